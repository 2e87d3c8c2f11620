"""Cgroups of the kernel that runs the tests: v1 or v2, as root or where they are delegated."""

from __future__ import annotations

import ctypes
import errno
import os
import random
import re
import select
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cowork_nsrun import NsrunError, SpecError, janitor
from cowork_nsrun.limits import LIMITS, PARENT_VARIABLE, Cgroup, Cgroups, LimitError
from cowork_nsrun.places import (
    Missing,
    Mount,
    Places,
    directory_of,
    parse_membership,
    parse_mountinfo,
)
from cowork_nsrun.program import find_program

Lack = Callable[[str], NoReturn]
AsUser = Callable[[Callable[[], Any]], Any]

MIB = 1 << 20
USER = 12345  # whom as_user becomes
PATIENCE = 60.0
PR_SET_CHILD_SUBREAPER = 36
ALLOCATE = "import sys; a = bytearray(int(sys.argv[1])); print('alive')"
FORK = """
import os, signal, sys
n = 0
for _ in range(int(sys.argv[1])):
    try:
        if not os.fork():
            signal.pause()
    except BlockingIOError:
        print("refused", flush=True)
        break
    n += 1
print(n, flush=True)
"""


@pytest.fixture
def cgroups() -> Iterator[Cgroups]:
    with Cgroups() as made:
        yield made


def need(cgroups: Cgroups, lack: Lack, *limits: str) -> None:
    for limit in limits:
        found = cgroups.available()[limit]
        if found.held_by is None:
            lack(f"limit {limit}: {found.evidence}; {found.remedy}")


def enter(cgroup: Cgroup) -> Callable[[], None]:
    def write() -> None:
        for path in cgroup.paths:
            Path(path, "cgroup.procs").write_text("0")

    return write


def start(cgroup: Cgroup | None, argv: Sequence[str], **more: Any) -> subprocess.Popen[str]:
    return subprocess.Popen(
        argv,
        # the child has one thread, and only opens and writes
        preexec_fn=None if cgroup is None else enter(cgroup),  # noqa: PLW1509
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        **more,
    )


def python(cgroup: Cgroup | None, script: str, *args: object) -> subprocess.Popen[str]:
    return start(cgroup, [sys.executable, "-Ic", script, *map(str, args)])


def hoard(cgroup: Cgroup) -> bool:
    """Whether it is killed for 256 MiB; for users who can't run the tests' Python."""
    attacker = start(cgroup, ["sh", "-c", "head -c 256M /dev/zero | tail -c 256M >/dev/null"])
    attacker.communicate()
    assert attacker.returncode in (0, -signal.SIGKILL, 128 + signal.SIGKILL)
    return attacker.returncode != 0


def soon(condition: Callable[[], object]) -> bool:
    """Whether it becomes true; a machine may be slow, so it gets a long time."""
    end = time.monotonic() + PATIENCE
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.005)
    return True


def processes(cgroup: Cgroup) -> set[int]:
    return {
        int(word)
        for path in cgroup.paths
        for word in Path(path, "cgroup.procs").read_text().split()
    }


def made_by(pid: int) -> list[Path]:
    """Cgroups that a process made, as their names tell; by looking only, nothing is swept."""
    places, name = Places(), re.compile(rf"nsrun-\d+-{pid}-.*")
    parents = {
        path
        for controller in (*LIMITS, "cpuacct")
        for path in places.hierarchy(controller).candidates
    }
    return [
        entry
        for parent in parents
        for entry in Path(parent).iterdir()
        if name.fullmatch(entry.name)
    ]


def running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def janitor_pidfd(cgroups: Cgroups) -> int:
    pidfd = cgroups.janitor_pidfd()
    assert pidfd is not None
    return pidfd


def has_janitor(cgroups: Cgroups) -> int:
    pidfd = janitor_pidfd(cgroups)
    line = next(
        line
        for line in Path(f"/proc/self/fdinfo/{pidfd}").read_text().splitlines()
        if line.startswith("Pid:")
    )
    return int(line.split()[1])


# --- what programs in it can't do -----------------------------------------------------------


def test_memory_is_limited(cgroups: Cgroups, lack: Lack) -> None:
    need(cgroups, lack, "memory")
    with cgroups.open(memory=64 * MIB) as cgroup:
        attacker = python(cgroup, ALLOCATE, 256 * MIB)
        assert attacker.communicate()[0] == ""
        assert attacker.returncode == -signal.SIGKILL
        usage = cgroup.usage()
        assert usage.oom_kills
        assert usage.memory_peak is None or 32 * MIB < usage.memory_peak <= 64 * MIB
    with cgroups.open(memory=512 * MIB) as cgroup:  # the control
        assert python(cgroup, ALLOCATE, 256 * MIB).communicate()[0] == "alive\n"
        assert cgroup.usage().oom_kills == 0


def test_memory_of_many_counts_together(cgroups: Cgroups, lack: Lack) -> None:
    need(cgroups, lack, "memory")
    # neither gives its memory back before the other has its own
    script = (
        "import os; r, w = os.pipe(); p = os.fork(); p or os.close(w); a = bytearray(40 << 20); "
        "p and os.close(w); p or os.read(r, 1); p and os.wait(); print('alive')"
    )
    with cgroups.open(memory=64 * MIB) as cgroup:
        python(cgroup, script).communicate()
        assert cgroup.usage().oom_kills
    with cgroups.open(memory=512 * MIB) as cgroup:  # the control
        assert python(cgroup, script).communicate()[0] == "alive\nalive\n"


def test_pids_are_limited(cgroups: Cgroups, lack: Lack) -> None:
    need(cgroups, lack, "pids")
    with cgroups.open(pids=16) as cgroup:
        bomb = python(cgroup, FORK, 64)
        assert bomb.stdout is not None
        assert [bomb.stdout.readline(), bomb.stdout.readline()] == ["refused\n", "15\n"]
        assert cgroup.usage().pids_refused
        cgroup.kill()
        bomb.communicate()
    with cgroups.open(pids=128) as cgroup:  # the control
        bomb = python(cgroup, FORK, 64)
        assert bomb.stdout is not None
        assert bomb.stdout.readline() == "64\n"
        assert cgroup.usage().pids_refused == 0
        cgroup.kill()
        bomb.communicate()


def throttled(cgroup: Cgroup) -> int:
    """How often its processes were kept from running: cpu.stat, of both versions."""
    for path in cgroup.paths:
        if (Path(path) / "cpu.max").exists() or (Path(path) / "cpu.cfs_quota_us").exists():
            stat = dict(line.split() for line in (Path(path) / "cpu.stat").read_text().splitlines())
            return int(stat["nr_throttled"])
    raise AssertionError(f"no cpu.stat in {cgroup.paths}")


@contextmanager
def burning(cgroup: Cgroup) -> Iterator[None]:
    """Two processes that take all the time they get."""
    busy = start(cgroup, ["sh", "-c", "(while :; do :; done) & while :; do :; done"])
    try:
        assert soon(lambda: len(processes(cgroup)) == 2)
        yield
    finally:
        cgroup.kill()
        busy.communicate()


def rate(cgroup: Cgroup) -> float:
    """Processors' worth of time that it takes."""
    before, begin = cgroup.usage().cpu_ns, time.monotonic_ns()
    time.sleep(1)
    after, end = cgroup.usage().cpu_ns, time.monotonic_ns()
    assert before is not None
    assert after is not None
    return (after - before) / (end - begin)


def test_cpu_time_is_limited(cgroups: Cgroups, lack: Lack) -> None:
    need(cgroups, lack, "cpu")
    with cgroups.open(cpu=0.1) as cgroup, burning(cgroup):
        # however little a busy machine leaves to it
        while not throttled(cgroup):
            time.sleep(0.01)
        assert rate(cgroup) < 0.2
    with cgroups.open(cpu=8) as cgroup, burning(cgroup):  # the control
        while rate(cgroup) < 0.01:
            pass
        assert not throttled(cgroup)


def test_usage_without_limits(cgroups: Cgroups, lack: Lack) -> None:
    try:
        cgroup = cgroups.open(account=True)
    except LimitError as error:
        lack(error.text)
    with cgroup:
        assert cgroup.held == {}
        python(cgroup, ALLOCATE, 64 * MIB).communicate()
        cpu_ns = cgroup.usage().cpu_ns
        assert cpu_ns is not None
        assert cpu_ns > 1_000_000


def test_what_holds_each_limit_is_told(cgroups: Cgroups, lack: Lack) -> None:
    need(cgroups, lack, *LIMITS)
    available = cgroups.available()
    assert set(available) == set(LIMITS)
    with cgroups.open(memory=64 * MIB, pids=8, cpu=1) as cgroup:
        assert cgroup.held == {limit: available[limit].held_by for limit in LIMITS}
        parents = {str(Path(path).parent) for path in cgroup.paths}
        assert {available[limit].path for limit in LIMITS} <= parents


def test_a_user_in_it_can_neither_leave_nor_raise_it(cgroups: Cgroups, lack: Lack) -> None:
    need(cgroups, lack, "pids")
    if os.geteuid():
        lack("not root: a cgroup of the user's own can be left where cgroupfs is writable inside")
    script = """
        exec 2>/dev/null
        for path; do
            [ "${path##*/nsrun-}" = "$path" ] || {
                echo 1000 >"$path/pids.max" && echo raised
                continue
            }
            echo $$ >"$path/cgroup.procs" && echo left
        done
        true
    """

    places = Places()
    homes = {places.hierarchy(controller).own or "" for controller in (*LIMITS, "cpuacct")}

    def attack(cgroup: Cgroup, uid: int) -> set[str]:
        def become() -> None:
            enter(cgroup)()
            os.setgroups([])
            os.setresgid(uid, uid, uid)
            os.setresuid(uid, uid, uid)

        attacker = subprocess.run(
            ["sh", "-c", script, "sh", *cgroup.paths, *homes],
            preexec_fn=become,
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
        return set(attacker.stdout.split())

    with cgroups.open(pids=8) as cgroup:
        assert attack(cgroup, USER) == set()
    with cgroups.open(pids=8) as cgroup:  # the control
        assert attack(cgroup, 0) == {"raised", "left"}


# --- the end --------------------------------------------------------------------------------

DAEMONS = """
import os, signal, sys, time
for how in range(3):
    if os.fork() == 0:
        os.setsid()
        if os.fork():
            os._exit(0)
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)
        print(os.getpid(), flush=True)
        os.close(1), os.close(2)
        if how == 1:
            os.kill(os.getpid(), signal.SIGSTOP)
        while how == 2:
            if os.fork():
                os._exit(0)  # never twice the same pid
        signal.pause()
    os.wait()
print("ready", flush=True)
signal.pause()
"""


def test_daemons_die_with_it(cgroups: Cgroups, lack: Lack) -> None:
    need(cgroups, lack, "pids")
    bystander = subprocess.Popen(["sleep", "1000"])
    with cgroups.open(pids=64) as cgroup:
        leader = python(cgroup, DAEMONS)
        assert leader.stdout is not None
        words = {leader.stdout.readline().strip() for _ in range(4)}
        daemons = list(map(int, words - {"ready"}))
        assert len(daemons) == 3
        leader.kill()
        leader.communicate()
        # the control: the leader's end is not theirs; one of them is never long the same
        assert len(processes(cgroup) & set(daemons)) >= 2
        cgroup.kill()
        assert processes(cgroup) == set()
        assert not any(map(running, daemons))
        cgroup.kill()
    assert bystander.poll() is None
    bystander.kill()
    bystander.wait()
    assert not any(map(os.path.exists, cgroup.paths))


def test_throttled_ones_die_at_once(cgroups: Cgroups, lack: Lack) -> None:
    need(cgroups, lack, "cpu")
    with cgroups.open(cpu=0.01) as cgroup:
        busy = [start(None, ["sh", "-c", "while :; do :; done"]) for _ in range(8)]
        for path in cgroup.paths:
            for process in busy:
                Path(path, "cgroup.procs").write_text(str(process.pid))
        assert len(processes(cgroup)) == 8
        cgroup.kill()
        assert processes(cgroup) == set()
        for process in busy:
            process.communicate()


def test_close_kills_and_may_come_twice(cgroups: Cgroups, lack: Lack) -> None:
    need(cgroups, lack, "pids")
    cgroup = cgroups.open(pids=8)
    sleeper = start(cgroup, ["sleep", "1000"])
    cgroup.close()
    assert sleeper.wait() == -signal.SIGKILL
    assert not any(map(os.path.exists, cgroup.paths))
    usage = cgroup.usage()
    cgroup.close()
    cgroup.kill()
    assert cgroup.usage() == usage
    sleeper.communicate()


def test_cgroups_below_it_go_with_it(cgroups: Cgroups, lack: Lack) -> None:
    need(cgroups, lack, "pids")
    cgroup = cgroups.open(pids=8)
    deepest = [Path(path, "a", ".hidden", "c") for path in cgroup.paths]
    for path in deepest:
        path.mkdir(parents=True)

    def move() -> None:
        for path in deepest:
            (path / "cgroup.procs").write_text("0")

    sleeper = subprocess.Popen(["sleep", "1000"], preexec_fn=move)  # noqa: PLW1509
    cgroup.close()
    assert sleeper.wait() == -signal.SIGKILL
    assert not any(map(os.path.exists, cgroup.paths))


def test_closing_all(cgroups: Cgroups, lack: Lack) -> None:
    need(cgroups, lack, "pids")
    made = [cgroups.open(pids=8) for _ in range(3)]
    assert len({cgroup.paths for cgroup in made}) == 3
    janitor = has_janitor(cgroups)
    cgroups.close()
    cgroups.close()
    assert not any(os.path.exists(path) for cgroup in made for path in cgroup.paths)
    assert not running(janitor)
    cgroups.open(pids=8).close()


def test_no_descriptor_is_left(lack: Lack) -> None:
    def one(program: str | None = None) -> None:
        with Cgroups(program=program) as cgroups:
            need(cgroups, lack, "pids")
            for _ in range(20):
                cgroups.open(pids=8).close()
            janitor = has_janitor(cgroups)
            os.kill(janitor, signal.SIGKILL)
            assert soon(lambda: not running(janitor))
            cgroups.open(pids=8)

    one()
    before = os.listdir("/proc/self/fd")
    one()
    for program in ("/bin/false", "/none"):
        with pytest.raises(NsrunError):
            one(program)
    assert os.listdir("/proc/self/fd") == before


def test_many_threads(cgroups: Cgroups, lack: Lack) -> None:
    need(cgroups, lack, "pids")

    def work(_: int) -> tuple[str, ...]:
        with cgroups.open(pids=8) as cgroup:
            assert start(cgroup, ["true"]).communicate()[0] == ""
            return cgroup.paths

    with ThreadPoolExecutor(8) as pool:
        names = list(pool.map(work, range(64)))
    assert len(set(names)) == 64
    assert made_by(os.getpid()) == []


# --- the owner's end ------------------------------------------------------------------------

OWNER = """
import os, subprocess, sys, threading
from pathlib import Path
from cowork_nsrun.limits import Cgroups

cgroups = Cgroups()

def enter(cgroup):
    for path in cgroup.paths:
        Path(path, "cgroup.procs").write_text("0")

def work():
    while True:
        with cgroups.open(pids=8) as cgroup:
            subprocess.Popen(
                ["sh", "-c", "setsid sleep 1000 & wait"], stdout=subprocess.DEVNULL,
                preexec_fn=lambda: enter(cgroup),
            )

kept = [cgroups.open(pids=8) for _ in range(int(sys.argv[1]))]
for cgroup in kept:
    subprocess.Popen(["sleep", "1000"], stdout=subprocess.DEVNULL, preexec_fn=lambda: enter(cgroup))
for _ in range(int(sys.argv[2])):
    threading.Thread(target=work).start()
fdinfo = Path(f"/proc/self/fdinfo/{cgroups.janitor_pidfd()}") if kept else None
print(fdinfo.read_text().partition("Pid:")[2].split()[0] if fdinfo else "", flush=True)
exec(sys.argv[3])
sys.stdin.read()
"""


def owner(kept: int, threads: int, more: str = "") -> tuple[subprocess.Popen[str], int]:
    """A program with cgroups, and its janitor's pid."""
    process = subprocess.Popen(
        [sys.executable, "-Ic", OWNER, str(kept), str(threads), textwrap.dedent(more)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    return process, int(process.stdout.readline().strip() or 0)


def end(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.communicate()


@pytest.mark.parametrize("seed", range(20))
def test_killed_owner_leaves_nothing(cgroups: Cgroups, lack: Lack, seed: int) -> None:
    need(cgroups, lack, "pids")
    process, _ = owner(kept=seed % 3, threads=seed % 2 + 1)
    time.sleep(random.Random(seed).uniform(0, 0.08))
    end(process)
    assert soon(lambda: made_by(process.pid) == [])


def test_killed_owner_of_those_that_never_keep_a_pid(cgroups: Cgroups, lack: Lack) -> None:
    need(cgroups, lack, "pids")
    process, _ = owner(
        kept=1,
        threads=0,
        more="""
            script = "import os\\nwhile True:\\n if os.fork(): os._exit(0)"
            for _ in range(3):
                subprocess.Popen([sys.executable, "-Ic", script], preexec_fn=lambda: enter(kept[0]))
            print("forking", flush=True)
        """,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "forking\n"
    end(process)
    assert soon(lambda: made_by(process.pid) == [])


def test_what_a_dead_owner_and_a_dead_janitor_left_is_swept(cgroups: Cgroups, lack: Lack) -> None:
    need(cgroups, lack, "pids")
    process, janitor = owner(kept=2, threads=0)
    living, _ = owner(kept=1, threads=0)
    os.kill(janitor, signal.SIGKILL)
    assert soon(lambda: not running(janitor))
    end(process)
    left = made_by(process.pid)
    # the control of the test above, too: without a janitor they stay
    assert left
    sleepers = [int(pid) for path in left for pid in (path / "cgroup.procs").read_text().split()]
    assert sleepers
    with cgroups.open(pids=8):
        assert made_by(process.pid) == []
        assert not any(map(running, sleepers))
        # one whose owner lives is not touched
        assert made_by(living.pid)
    end(living)
    assert soon(lambda: made_by(living.pid) == [])


def test_a_recycled_pid_is_not_the_owner(cgroups: Cgroups, lack: Lack) -> None:
    need(cgroups, lack, "pids")
    with cgroups.open(pids=8) as cgroup:
        path = Path(cgroup.paths[0])
        words = path.name.split("-")
    # our own pid, but another start; and another pid namespace, of which nothing is known
    stale = path.with_name("-".join([*words[:3], str(int(words[3]) - 1), "abcd", "0"]))
    foreign = path.with_name("-".join(["nsrun", "1", "4194304", *words[3:]]))
    stale.mkdir()
    foreign.mkdir()
    try:
        with Cgroups() as others, others.open(pids=8):
            assert not stale.exists()
            assert foreign.exists()
    finally:
        foreign.rmdir()


def test_another_janitor_takes_over(cgroups: Cgroups, lack: Lack) -> None:
    need(cgroups, lack, "pids")
    process, janitor = owner(
        kept=2,
        threads=0,
        more="""
            sys.stdin.readline()
            kept.append(cgroups.open(pids=8))
            print("again", flush=True)
        """,
    )
    os.kill(janitor, signal.SIGKILL)
    assert soon(lambda: not running(janitor))
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write("\n")
    process.stdin.flush()
    assert process.stdout.readline() == "again\n"
    assert len({path.name for path in made_by(process.pid)}) == 3
    end(process)
    assert soon(lambda: made_by(process.pid) == [])


def test_a_stopped_janitor_is_replaced(lack: Lack, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(janitor, "PATIENCE", 2.0)
    with Cgroups() as cgroups:
        need(cgroups, lack, "pids")
        cgroups.open(pids=8).close()
        stopped = has_janitor(cgroups)
        os.kill(stopped, signal.SIGSTOP)
        # until its queue is full and its owner has lost patience
        for _ in range(2000):
            cgroups.open(pids=8).close()
            if has_janitor(cgroups) != stopped:
                break
        assert has_janitor(cgroups) != stopped
        assert soon(lambda: not running(stopped))


def test_a_fork_that_lives_on_does_not_keep_them(cgroups: Cgroups, lack: Lack) -> None:
    need(cgroups, lack, "pids")
    process, _ = owner(
        kept=1,
        threads=0,
        more="""
            pid = os.fork()
            if not pid:
                import signal
                signal.pause()
            print(pid, flush=True)
        """,
    )
    assert process.stdout is not None
    fork = int(process.stdout.readline())
    process.kill()
    process.wait()
    try:
        assert soon(lambda: made_by(process.pid) == [])
        assert running(fork)
    finally:
        os.kill(fork, signal.SIGKILL)
        process.communicate()


def test_what_another_program_replaces_has_ended(cgroups: Cgroups, lack: Lack) -> None:
    need(cgroups, lack, "pids")
    process, _ = owner(kept=1, threads=0, more="os.execv('/bin/sleep', ['sleep', '1000'])")
    assert soon(lambda: made_by(process.pid) == [])
    assert process.poll() is None
    end(process)


def test_a_fork_does_not_touch_its_parents(cgroups: Cgroups, lack: Lack, in_child: AsUser) -> None:
    need(cgroups, lack, "pids")
    cgroup = cgroups.open(pids=8)
    sleeper = start(cgroup, ["sleep", "1000"])
    janitor = has_janitor(cgroups)

    def fork() -> tuple[bool, str, bool]:
        cgroup.close()
        with pytest.raises(NsrunError, match="fork"):
            cgroup.kill()
        with cgroups.open(pids=8) as own:
            other = has_janitor(cgroups) != janitor
            name = Path(own.paths[0]).name
            assert start(own, ["true"]).communicate()[0] == ""
        cgroups.close()
        return other, name, cgroup.usage().pids_refused == 0

    other, name, read = in_child(fork)
    assert other
    assert read
    assert str(os.getpid()) not in name.split("-")
    assert sleeper.poll() is None
    assert running(janitor)
    with cgroups.open(pids=8):
        assert has_janitor(cgroups) == janitor
    cgroup.close()
    sleeper.communicate()


# --- the janitor itself ---------------------------------------------------------------------


def test_the_owner_has_no_child_by_it(lack: Lack, in_child: AsUser) -> None:
    need(Cgroups(), lack, "pids")

    def look(action: Any) -> bool:
        seen: list[int] = []
        handler = action if action == signal.SIG_IGN else lambda number, frame: seen.append(number)
        signal.signal(signal.SIGCHLD, handler)
        with Cgroups() as cgroups, cgroups.open(pids=8):
            seen.clear()
            with pytest.raises(ChildProcessError):
                os.waitpid(-1, 0)
            os.kill(has_janitor(cgroups), signal.SIGKILL)
            assert select.select([janitor_pidfd(cgroups)], [], [], PATIENCE)[0]
            cgroups.open(pids=8).close()
        with pytest.raises(ChildProcessError):
            os.waitpid(-1, 0)
        return True

    assert in_child(lambda: look(None))
    assert in_child(lambda: look(signal.SIG_IGN))


def test_an_owner_that_reaps_everything(lack: Lack, in_child: AsUser) -> None:
    need(Cgroups(), lack, "pids")

    def reap() -> bool:
        # what comes to it as orphan or child, it takes at once, as a pid 1 does
        assert ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0
        over = threading.Event()

        def wait() -> None:
            while not over.is_set():
                with suppress(ChildProcessError):
                    os.waitpid(-1, os.WNOHANG)

        thread = threading.Thread(target=wait)
        thread.start()
        try:
            for _ in range(5):
                with Cgroups() as cgroups, cgroups.open(pids=8):
                    pass
        finally:
            over.set()
            thread.join()
        with Cgroups() as cgroups, cgroups.open(pids=8):
            janitor = has_janitor(cgroups)
        # nobody else waits here, so it is its owner who took it
        return not Path(f"/proc/{janitor}").exists()

    assert in_child(reap)


def test_it_keeps_nothing_of_the_callers_open(cgroups: Cgroups, lack: Lack, shared: Path) -> None:
    need(cgroups, lack, "pids")
    r, w = os.pipe()
    os.set_inheritable(w, True)
    before = Path.cwd()
    os.chdir(shared)
    try:
        with cgroups.open(pids=8):
            janitor = Path(f"/proc/{has_janitor(cgroups)}")
    finally:
        os.chdir(before)
    os.close(w)
    assert os.read(r, 1) == b""
    os.close(r)
    # the pidfd that it gave away may be open for another moment
    assert soon(lambda: sorted(os.listdir(janitor / "fd")) == ["0", "1"])
    kinds = [os.readlink(janitor / "fd" / name).partition(":")[0] for name in "01"]
    assert kinds in (["socket", "anon_inode"], ["socket", "pidfd"])
    assert os.readlink(janitor / "cwd") == "/"
    assert os.getsid(int(janitor.name)) == int(janitor.name)
    status = (janitor / "status").read_text()
    ignored = int(status.partition("SigIgn:")[2].split()[0], 16)
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGPIPE):
        assert ignored >> (number - 1) & 1
    assert int(status.partition("VmRSS:")[2].split()[0]) < 2048


def tend(fd: int, *more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [find_program(), "--tend", str(fd), *more],
        pass_fds=[fd],
        capture_output=True,
        text=True,
        check=False,
    )


def test_tend_takes_a_socket_of_its_parent_only() -> None:
    with open(os.devnull, "rb") as file:
        file_number = file.fileno()
        refused = tend(file_number)
    assert refused.returncode == 1
    assert refused.stderr == f"nsrun: --tend: fd {file_number}: {os.strerror(errno.ENOTSOCK)}\n"
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with ours, theirs:
        refused = tend(theirs.fileno())
    assert (refused.returncode, "SEQPACKET" in refused.stderr) == (1, True)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        fd = theirs.fileno()
        shell = subprocess.run(
            ["sh", "-c", f"{find_program()} --tend {fd}; exit $?"],
            pass_fds=[fd],
            capture_output=True,
            text=True,
            check=False,
        )
        assert (shell.returncode, "parent" in shell.stderr) == (1, True)
        assert "stands alone" in tend(fd, "true").stderr
    assert (
        "Invalid fd"
        in subprocess.run(
            [find_program(), "--tend", "x"], capture_output=True, text=True, check=False
        ).stderr
    )


def janitor_with(records: Sequence[bytes]) -> int:
    """Start one, tell it that, hang up, and wait for its end."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours:
        with theirs:
            assert tend(theirs.fileno()).returncode == 0
        hello, fds, _, _ = socket.recv_fds(ours, 2, 1)
        assert hello == b"!"
        for record in records:
            with suppress(BrokenPipeError, ConnectionResetError):
                ours.send(record)
    assert select.select(fds, [], [], PATIENCE)[0]
    os.close(fds[0])
    return 0


def test_its_owner_may_end_without_a_word() -> None:
    """As the one of all sandboxes of a process does: no warning of a socket left open."""
    script = (
        "import gc\n"
        "from cowork_nsrun.janitor import Janitor\n"
        "from cowork_nsrun.program import find_program\n"
        "made = Janitor(find_program())\n"
        "del made\n"
        "gc.collect()\n"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-X", "dev", "-c", script],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")


def test_it_removes_cgroups_and_nothing_else(cgroups: Cgroups, lack: Lack, shared: Path) -> None:
    need(cgroups, lack, "pids")
    plain = shared / "nsrun-plain"
    plain.mkdir()
    link = shared / "nsrun-link"
    parent = Path(cgroups.available()["pids"].path)
    cgroup, other = parent / "nsrun-test-tend", parent / "test-tend-other"
    cgroup.mkdir()
    other.mkdir()
    link.symlink_to(cgroup)
    try:
        janitor_with([b"+" + os.fsencode(plain), b"+" + os.fsencode(parent / "nsrun-none")])
        assert plain.exists()
        # what is not a record, or no name of ours, ends it without any removal
        first = b"+" + os.fsencode(cgroup)
        for bad in (
            b"+" + os.fsencode(other),
            b"+" + os.fsencode(parent / "x" / ".." / cgroup.name),
            b"+nsrun-relative",
            b"-/never/told/nsrun-1",
            b"?" + os.fsencode(cgroup),
            b"+",
            first + b"\0",
            first + b"\0\0" + os.fsencode(cgroup),
            b"+/" + b"x" * 4096 + b"/nsrun-long",
            b"+" + b"/nsrun-x" * 5000,
        ):
            janitor_with([first, bad])
            assert cgroup.exists(), bad
        janitor_with([first, b"-" + os.fsencode(cgroup)])
        assert cgroup.exists()
        janitor_with([first + b"\0" + os.fsencode(parent / "nsrun-none")])
        assert not cgroup.exists()
        assert other.exists()
    finally:
        for path in (cgroup, other):
            with suppress(FileNotFoundError):
                path.rmdir()


def test_no_program_no_cgroup(lack: Lack) -> None:
    with Cgroups(program="/bin/false") as cgroups:
        need(cgroups, lack, "pids")
        with pytest.raises(NsrunError, match="exit status 1"):
            cgroups.open(pids=8)
        assert made_by(os.getpid()) == []
    with (
        Cgroups(program="/none") as cgroups,
        pytest.raises(NsrunError, match="No such file") as caught,
    ):
        cgroups.open(pids=8)
    assert caught.value.errno == errno.ENOENT


# --- whom it is refused ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("limits", "field"),
    [
        ({"memory": 0}, "memory"),
        ({"memory": 1 << 63}, "memory"),
        ({"pids": 0}, "pids"),
        ({"pids": 1 << 23}, "pids"),
        ({"cpu": 0.001}, "cpu"),
        ({"cpu": float("inf")}, "cpu"),
        ({"cpu": float("nan")}, "cpu"),
        ({}, "limits"),
    ],
)
def test_values_that_cannot_be(cgroups: Cgroups, limits: dict[str, Any], field: str) -> None:
    with pytest.raises(SpecError) as caught:
        cgroups.open(**limits)
    assert caught.value.field == field


def test_who_may_not_is_told_what_to_do(as_user: AsUser) -> None:
    def ask() -> None:
        if not os.geteuid() or all(each.held_by for each in Cgroups().available().values()):
            return  # whoever has them is the other tests' matter
        with Cgroups() as cgroups:
            for limit, found in cgroups.available().items():
                assert found.held_by is None
                assert found.remedy
                request: dict[str, Any] = {limit: 64 * MIB if limit == "memory" else 1}
                with pytest.raises(LimitError) as caught:
                    cgroups.open(**request)
                error = caught.value
                assert (error.limit, error.path) == (limit, found.path)
                assert error.errno
                assert error.path in error.text
                assert os.strerror(error.errno) in error.text
                assert PARENT_VARIABLE in error.text
                assert error.text.endswith(error.remedy)

    as_user(ask)


def test_a_user_with_directories_of_v1(cgroups: Cgroups, lack: Lack, as_user: AsUser) -> None:
    if os.geteuid():
        lack("not root: nobody to delegate to a user")
    available = cgroups.available()
    if any(found.held_by != "cgroup v1" for found in available.values()):
        lack("not all of memory, pids, cpu on cgroup v1: no delegation of v1 directories")
    with ExitStack() as stack:
        parents = []
        for found in available.values():
            parent = Path(found.path, "test-limits-user")
            parent.mkdir()
            stack.callback(parent.rmdir)
            os.chown(parent, USER, USER)
            parents.append(str(parent))

        def use() -> tuple[dict[str, str], bool]:
            with Cgroups(":".join(parents)) as own:
                assert all(each.path in parents for each in own.available().values())
                with own.open(memory=64 * MIB, pids=16, cpu=1) as cgroup:
                    killed = hoard(cgroup)
                with own.open(memory=512 * MIB) as roomy:  # the control
                    assert not hoard(roomy)
                return cgroup.held, killed

        held, killed = as_user(use)
        assert held == dict.fromkeys(LIMITS, "cgroup v1")
        assert killed
        # by the environment, too
        os.environ[PARENT_VARIABLE] = parents[1]
        try:
            assert Cgroups().available()["pids"].path == parents[1]
        finally:
            del os.environ[PARENT_VARIABLE]


def test_a_parent_that_is_none(shared: Path) -> None:
    for parent in (str(shared), "/none", "relative"):
        with Cgroups(parent) as cgroups:
            assert parent in cgroups.available()["pids"].evidence
            with pytest.raises(LimitError, match=parent) as caught:
                cgroups.open(pids=8)
            assert caught.value.path == parent


def test_more_than_the_kernel_takes(cgroups: Cgroups, lack: Lack) -> None:
    """A v1 quota above the parent's is refused by the kernel; the cgroup does not stay."""
    need(cgroups, lack, "cpu")
    found = cgroups.available()["cpu"]
    if found.held_by != "cgroup v1" or os.geteuid():
        lack("a quota above the parent's is an error as root on cgroup v1 only")
    parent = Path(found.path, "test-limits-low")
    parent.mkdir()
    try:
        (parent / "cpu.cfs_quota_us").write_text("10000")
        with Cgroups(parent) as low:
            low.open(cpu=0.05).close()
            with pytest.raises(LimitError, match=f"above that of {parent}") as caught:
                low.open(cpu=1)
            assert caught.value.errno == errno.EINVAL
            assert caught.value.path.endswith("cpu.cfs_quota_us")
            assert made_by(os.getpid()) == []
    finally:
        parent.rmdir()


# --- version 2 ------------------------------------------------------------------------------


def need_v2(cgroups: Cgroups, lack: Lack) -> Path:
    found = cgroups.available()
    if any(each.held_by != "cgroup v2" for each in found.values()):
        lack("memory, pids and cpu are not all to be had on cgroup v2")
    return Path(found["memory"].path)


def test_v2_limits_are_what_the_files_say(cgroups: Cgroups, lack: Lack) -> None:
    need_v2(cgroups, lack)
    with cgroups.open(memory=64 * MIB, pids=16, cpu=0.5) as cgroup:
        (path,) = map(Path, cgroup.paths)
        expected = {
            "memory.max": str(64 * MIB),
            "memory.oom.group": "1",
            "pids.max": "16",
            "cpu.max": "50000 100000",
        }
        assert {name: (path / name).read_text().strip() for name in expected} == expected
        swap = path / "memory.swap.max"
        assert not swap.exists() or swap.read_text() == "0\n"


def test_v2_oom_ends_the_whole_group(cgroups: Cgroups, lack: Lack) -> None:
    need_v2(cgroups, lack)
    with cgroups.open(memory=64 * MIB) as cgroup:
        bystander = start(cgroup, ["sleep", "1000"])
        python(cgroup, ALLOCATE, 256 * MIB).communicate()
        assert bystander.wait() == -signal.SIGKILL
        bystander.communicate()


def test_v2_delegated_to_a_user(
    cgroups: Cgroups, lack: Lack, in_child: AsUser, as_user: AsUser
) -> None:
    """As systemd delegates: the process in a cgroup of its own below the one that is the user's."""
    parent = need_v2(cgroups, lack)
    if os.geteuid():
        lack("not root: nobody to delegate to a user")
    delegated = parent / "test-limits-user"
    main = delegated / "main"
    main.mkdir(parents=True)
    try:
        for path in (delegated, main):
            os.chown(path, USER, USER)
            for name in ("cgroup.procs", "cgroup.subtree_control"):
                os.chown(path / name, USER, USER)
        os.setxattr(delegated, "trusted.delegate", b"1")  # by which root knows it

        def use() -> tuple[dict[str, str], str, bool]:
            (main / "cgroup.procs").write_text("0")

            def work() -> tuple[dict[str, str], str, bool]:
                with Cgroups() as own, own.open(memory=64 * MIB, pids=16, cpu=1) as cgroup:
                    return cgroup.held, str(Path(cgroup.paths[0]).parent), hoard(cgroup)

            return as_user(work)  # type: ignore[no-any-return]

        held, place, dead = in_child(use)
        assert held == dict.fromkeys(LIMITS, "cgroup v2")
        assert place == str(delegated)
        assert dead
    finally:
        soon(lambda: not (main / "cgroup.procs").read_text())
        main.rmdir()
        delegated.rmdir()


def test_v2_controllers_of_a_cgroup_with_processes_stay(
    cgroups: Cgroups, lack: Lack, in_child: AsUser
) -> None:
    parent = need_v2(cgroups, lack)
    if os.geteuid():
        lack("not root: no cgroup of the test's own to name")
    inhabited = parent / "test-limits-inhabited"
    inhabited.mkdir()
    try:
        sleeper = subprocess.Popen(["sleep", "1000"])
        (inhabited / "cgroup.procs").write_text(str(sleeper.pid))
        with Cgroups(inhabited) as named:
            with pytest.raises(LimitError, match="holds processes") as caught:
                named.open(memory=64 * MIB)
            assert caught.value.errno == errno.EBUSY
        assert (inhabited / "cgroup.subtree_control").read_text().strip() == ""
        sleeper.kill()
        sleeper.wait()
        with Cgroups(inhabited) as named:  # the control
            named.open(memory=64 * MIB).close()
        assert "memory" in (inhabited / "cgroup.subtree_control").read_text()
    finally:
        soon(lambda: not (inhabited / "cgroup.procs").read_text())
        inhabited.rmdir()


# --- finding the place ----------------------------------------------------------------------

MOUNTINFO = rb"""
31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
34 31 0:30 /a\040b /with\040space\011tab\012line\134back rw shared:7 master:1 - cgroup  rw,cpu,pids
41 31 0:38 /.. /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw,nsdelegate
no mount
1 2 x:y / / rw - ext4 /dev/root rw
5 2 8:1 / /lonely rw
""".strip()


def test_mountinfo() -> None:
    mounts = parse_mountinfo(MOUNTINFO)
    assert [mount.kind for mount in mounts] == ["tmpfs", "cgroup", "cgroup2"]
    assert mounts[1] == Mount(
        os.makedev(0, 30),
        "/a b",
        "/with space\ttab\nline\\back",
        "cgroup",
        frozenset({"rw", "cpu", "pids"}),
    )


def test_membership() -> None:
    data = b"4:memory:/a:b\n3:cpu,cpuacct:/\n1:name=systemd:/x y\n0::/user.slice\nbad\n"
    assert parse_membership(data) == {
        frozenset({"memory"}): "/a:b",
        frozenset({"cpu", "cpuacct"}): "/",
        frozenset({"name=systemd"}): "/x y",
        frozenset(): "/user.slice",
    }


@pytest.mark.parametrize(
    ("root", "point", "path", "directory"),
    [
        ("/", "/c", "/", "/c"),
        ("/", "/c", "/a/b", "/c/a/b"),
        ("/", "/", "/a", "/a"),
        ("/", "/", "/", "/"),
        ("/a", "/c", "/a", "/c"),
        ("/a", "/c", "/a/b", "/c/b"),
        ("/a", "/c", "/ab", None),
        ("/a", "/c", "/", None),
        # cgroup namespaces: a mount from above it, a process outside of it
        ("/..", "/c", "/", None),
        ("/..", "/c", "/../x", "/c/x"),
        ("/", "/c", "/../x", None),
        ("/../x", "/c", "/../x/y", "/c/y"),
        ("/..", "/c", "/../../x", None),
    ],
)
def test_where_a_mount_shows_a_cgroup(
    root: str, point: str, path: str, directory: str | None
) -> None:
    mount = Mount(0, root, point, "cgroup2", frozenset())
    assert directory_of(mount, path) == directory


def escaped(name: bytes) -> bytes:
    """As the kernel writes it, seq_path(9)."""
    return re.sub(rb"[ \t\n\\#]", lambda match: b"\\%03o" % match[0][0], name)


names = st.binary(max_size=40).filter(lambda name: b"\0" not in name)


@settings(database=None, deadline=None)
@given(root=names, point=names, source=names, number=st.integers(0, 4095))
def test_any_name_is_read_back(root: bytes, point: bytes, source: bytes, number: int) -> None:
    line = b"1 2 %d:%d /" % (number, number) + escaped(root) + b" /" + escaped(point)
    line += b" rw shared:1 - cgroup2 " + escaped(source) + b" rw,x\n"
    (mount,) = parse_mountinfo(line)
    assert mount.root == os.fsdecode(b"/" + root)
    assert mount.point == os.fsdecode(b"/" + point)
    assert mount.options == {"rw", "x"}


@settings(database=None, deadline=None)
@given(
    st.one_of(
        st.binary(max_size=400), st.lists(st.sampled_from(MOUNTINFO.split(b" "))).map(b" ".join)
    )
)
def test_nothing_is_too_odd_to_read(data: bytes) -> None:
    for mount in parse_mountinfo(data):
        for path in parse_membership(data).values():
            found = directory_of(mount, path)
            assert found is None or ".." not in found.removeprefix(mount.point).split("/")


def test_an_odd_mount_point(lack: Lack, shared: Path, in_child: AsUser) -> None:
    """The only mount of a hierarchy, at a place whose name has to be escaped."""
    if os.geteuid():
        lack("not root: no mounts of the test's own")
    point = shared / "a b\\c\td"
    point.mkdir()

    def look() -> tuple[str, ...]:
        libc = ctypes.CDLL(None, use_errno=True)
        flags = {"new namespace": 0x20000, "private": 0x44000}
        assert libc.unshare(flags["new namespace"]) == 0
        assert libc.mount(None, b"/", None, flags["private"], None) == 0
        assert libc.umount2(b"/sys/fs/cgroup", 2) == 0
        with suppress(Missing):
            assert Places().hierarchy("none").candidates == ()
        assert libc.mount(b"none", os.fsencode(point), b"cgroup2", 0, None) == 0
        return Places().hierarchy("none").candidates

    candidates = in_child(look)
    assert candidates[-1] == str(point)
    point.rmdir()


def test_what_another_mount_hides_is_not_used(lack: Lack, in_child: AsUser) -> None:
    if os.geteuid():
        lack("not root: no mounts of the test's own")

    def look() -> str:
        libc = ctypes.CDLL(None, use_errno=True)
        assert libc.unshare(0x20000) == 0
        assert libc.mount(None, b"/", None, 0x44000, None) == 0
        assert libc.mount(b"none", b"/sys/fs/cgroup", b"tmpfs", 0, None) == 0
        return Cgroups().available()["pids"].evidence

    assert "no mount shows" in in_child(look)


# --- groups ---------------------------------------------------------------------------------


def test_a_group_holds_for_all_in_it(lack: Callable[[str], NoReturn]) -> None:
    with Cgroups() as cgroups:
        try:
            group = cgroups.group(memory=64 << 20)
        except LimitError as error:
            lack(f"no cgroup for a group: {error.text}")
        with group, group.open() as one, group.open(memory=32 << 20) as two:
            assert one.held == two.held == group.held
            parents = {os.path.dirname(path) for path in one.paths + two.paths}
            assert parents == set(group.paths)
            # v1 has a hierarchy with several controllers, and v2 those that were asked for
            if len(group.paths) == 1:
                with pytest.raises(LimitError, match="no controller"):
                    group.open(cpu=1)
            shown = [*group.paths, *one.paths, *two.inner]
            assert all(map(os.path.isdir, shown))
        assert not any(map(os.path.exists, shown))
        with pytest.raises(LimitError, match="gone"):
            group.open()
        with pytest.raises(SpecError, match="none is given"):
            cgroups.group()
