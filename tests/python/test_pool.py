"""Pools: sandboxes made ahead, and commands handed over to them."""

from __future__ import annotations

import errno
import gc
import logging
import os
import resource
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from leftovers import census, children, processes_with, wait_until_session_gone

from cowork_nsrun import (
    PIPE,
    Ending,
    NsrunError,
    Overlay,
    Pool,
    PoolExecutor,
    Process,
    Sandbox,
    SpecError,
    TimeoutExpired,
    run,
)
from cowork_nsrun.pool import SIZE_MAX

AsUser = Callable[[Callable[[], Any]], Any]
MINIMAL = Sandbox.minimal()


def full(pool: Pool) -> Pool:
    assert pool.wait_full(60)
    return pool


def test_commands_get_what_is_ready(as_user: AsUser) -> None:
    def probe() -> list[Any]:
        with Pool(MINIMAL, 2) as pool:
            full(pool)
            result = pool.run(["sh", "-c", "cat; echo err >&2; exit 3"], input="in", text=True)
            with pool.popen(["cat"], stdin=PIPE, stdout=PIPE) as process:
                out, _ = process.communicate(b"piped")
            full(pool)
            stats = pool.stats()
            return [
                result.returncode, result.stdout, result.stderr, out,
                stats.handed, stats.fresh, stats.discarded, stats.failed, stats.parked,
            ]  # fmt: skip

    assert as_user(probe) == [3, "in", "err\n", b"piped", 2, 0, 0, 0, 2]


def test_each_is_used_once(as_user: AsUser) -> None:
    """What one command leaves in its /tmp the next does not find."""

    def probe() -> list[bytes]:
        with Pool(MINIMAL, 1) as pool:
            return [
                full(pool).run(["sh", "-c", "ls /tmp; echo x > /tmp/left"]).stdout for _ in range(3)
            ]

    assert as_user(probe) == [b"", b"", b""]


def test_cwd_environment_and_rlimits_are_the_command_s(as_user: AsUser) -> None:
    spec = MINIMAL.env(A="spec").limit(open_files=77)

    def probe() -> list[bytes]:
        with Pool(spec, 2) as pool:
            script = 'echo "$PWD $A $B"; ulimit -n'
            usual = full(pool).run(["sh", "-c", script]).stdout
            other = pool.run(
                ["sh", "-c", script], cwd="/usr", env={"PATH": "/usr/bin:/bin", "B": "own"}
            ).stdout
            assert pool.stats().handed == 2
            fresh = run(["sh", "-c", script], spec).stdout
            return [usual, other, fresh]

    usual, other, fresh = as_user(probe)
    assert usual.split()[1:] == fresh.split()[1:] == [b"spec", b"77"]
    assert other == b"/usr  own\n77\n"


def test_timeouts(as_user: AsUser, marker: str) -> None:
    def probe() -> tuple[Ending, bytes, int]:
        with Pool(MINIMAL, 2) as pool:
            with pytest.raises(TimeoutExpired):
                full(pool).run(["sleep", marker], timeout=0.2)
            # pid 1 keeps the time: nobody waits
            with pool.popen(
                ["sh", "-c", f"echo on; sleep {marker}"], stdout=PIPE, timeout=0.3
            ) as process:
                assert process.stdout is not None
                out = process.stdout.read()
                process.wait()
            return process.result().ending, out, pool.stats().handed

    assert as_user(probe) == (Ending.TIMED_OUT, b"on\n", 2)
    assert processes_with(marker) == []


def test_terminal(as_user: AsUser) -> None:
    def probe() -> tuple[bytes, int]:
        with Pool(MINIMAL, 1) as pool:
            script = "test -t 0 && stty size < /dev/tty"
            with full(pool).popen(["sh", "-c", script], pty=(11, 22)) as process:
                return process.communicate()[0].strip(), pool.stats().handed

    assert as_user(probe) == (b"11 22", 1)


def test_program_that_is_not_there(as_user: AsUser) -> None:
    def probe() -> list[int]:
        with Pool(MINIMAL, 2) as pool:
            found = []
            for call in (pool.run, pool.popen):
                with pytest.raises(NsrunError, match="no-such-program") as caught:
                    call(["no-such-program"])
                found.append(caught.value.errno)
            full(pool)
            return found

    assert as_user(probe) == [errno.ENOENT] * 2


def test_command_that_is_too_large_gets_a_fresh_one() -> None:
    words = ["x" * 1000] * 120
    with Pool(MINIMAL, 1) as pool:
        out = full(pool).run(["sh", "-c", 'echo "$#"', "sh", *words]).stdout
        stats = pool.stats()
        assert (out, stats.fresh, stats.handed, stats.parked) == (b"120\n", 1, 0, 1)
        many = pool.run(["sh", "-c", 'echo "$#"', "sh", *["y"] * 9000]).stdout
        assert (many, pool.stats().fresh) == (b"9000\n", 2)


def test_stale_sources_are_not_used(as_user: AsUser, shared: Path) -> None:
    """A bound file that was replaced: the parked sandboxes still have the old one."""
    file = shared / "file"

    def probe() -> tuple[bytes, bytes, int, int]:
        file.write_text("old")
        spec = MINIMAL.bind(str(file), "/file", read_only=True)
        with Pool(spec, 3) as pool:
            before = full(pool).run(["cat", "/file"]).stdout
            full(pool)
            (shared / "new").write_text("new")
            (shared / "new").rename(file)
            after = pool.run(["cat", "/file"]).stdout
            stats = pool.stats()
            return before, after, stats.discarded, stats.fresh

    assert as_user(probe) == (b"old", b"new", 3, 1)


def test_control_a_file_that_is_only_written_stays_the_same(shared: Path) -> None:
    file = shared / "file"
    file.write_text("old")
    with Pool(MINIMAL.bind(str(file), "/file", read_only=True), 1) as pool:
        full(pool)
        file.write_text("new")
        assert pool.run(["cat", "/file"]).stdout == b"new"
        assert pool.stats().discarded == 0


def test_old_ones_expire() -> None:
    with Pool(MINIMAL, 2, max_age=0.2) as pool:
        full(pool)
        while pool.stats().discarded < 4:
            time.sleep(0.02)
        assert pool.run(["echo", "on"]).stdout == b"on\n"
        assert pool.stats().parked <= 2


def test_those_that_died_are_not_used() -> None:
    with Pool(MINIMAL, 2) as pool:
        full(pool)
        for pid in stubs():
            os.kill(pid, signal.SIGKILL)
        while stubs():
            time.sleep(0.01)
        assert pool.run(["echo", "on"]).stdout == b"on\n"
        assert pool.stats().discarded == 2


def stubs() -> list[int]:
    """Parked processes of this process's sandboxes."""
    mine = set(children())
    found = []
    for pid in processes_with("nsrun-stub"):
        # it may go at any moment
        with suppress(FileNotFoundError, ProcessLookupError):
            stat = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
            if int(stat[1]) in mine or pid in mine:
                found.append(pid)
    return found


def test_the_size_is_a_bound() -> None:
    with Pool(MINIMAL, 3) as pool, ThreadPoolExecutor(8) as threads:
        most = 0
        futures = [threads.submit(pool.run, ["true"]) for _ in range(60)]
        while not all(future.done() for future in futures):
            most = max(most, pool.stats().parked)
        full(pool)
        assert most <= 3
        assert len(stubs()) == 3
        stats = pool.stats()
        assert stats.handed + stats.fresh == 60


@pytest.mark.parametrize("size", [0, -1, SIZE_MAX + 1, True, 1.5, None])
def test_sizes_that_can_t_be(size: Any) -> None:
    with pytest.raises(SpecError, match="size"):
        Pool(MINIMAL, size)
    with pytest.raises(SpecError, match="max_age"):
        Pool(MINIMAL, 1, max_age=0)


def test_specs_that_can_t_be(tmp_path: Path) -> None:
    overlay = Overlay("/o", (str(tmp_path),), str(tmp_path / "u"), str(tmp_path / "w"))
    for spec in (
        MINIMAL.replace(close_fds=False),
        MINIMAL.replace(as_pid_1=True),
        MINIMAL.replace(filesystem=(*MINIMAL.filesystem, overlay)),
    ):
        with pytest.raises(SpecError):
            Pool(spec)


def test_refills_after_a_failure(shared: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = shared / "file"
    with Pool(MINIMAL.bind(str(file), "/file", read_only=True), 2) as pool:
        while not pool.stats().failed:
            time.sleep(0.01)
        with pytest.raises(NsrunError, match="Can't find source path"):
            pool.run(["true"])
        file.write_text("there")
        assert full(pool).run(["cat", "/file"]).stdout == b"there"
    assert "can't make a sandbox ahead" in caplog.text


def test_refills_after_it_ran_out_of_descriptors(in_child: AsUser) -> None:
    def probe() -> tuple[bool, bytes]:
        before = census()
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (60, hard))
        with Pool(MINIMAL, 30) as pool:
            while not pool.stats().failed:
                time.sleep(0.01)
            kept: list[Process[bytes]] = []
            with suppress(NsrunError, OSError):
                while len(kept) < 60:
                    kept.append(pool.popen(["cat"], stdin=PIPE, stdout=PIPE, stderr=PIPE))
            refused = len(kept) < 60
            while kept:
                kept.pop().close()
            gc.collect()
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            full(pool)
            out = pool.run(["cat"], input=b"on").stdout
        return refused and census() == before, out

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        assert in_child(probe) == (True, b"on")


def test_concurrent_hand_outs(as_user: AsUser) -> None:
    def probe() -> tuple[int, int]:
        with Pool(MINIMAL, 4) as pool, ThreadPoolExecutor(12) as threads:
            outs = list(threads.map(lambda n: pool.run(["echo", str(n)]).stdout, range(120)))
            stats = pool.stats()
            assert outs == [b"%d\n" % n for n in range(120)]
            return stats.handed + stats.fresh, stats.discarded

    assert as_user(probe) == (120, 0)


def test_executor() -> None:
    with Pool(MINIMAL, 2) as pool, PoolExecutor(pool, 3) as executor:
        future = executor.submit(["sh", "-c", "echo out; exit 4"], text=True)
        assert (future.result().stdout, future.result().returncode) == ("out\n", 4)
        argvs = [["echo", str(n)] for n in range(10)]
        assert [r.stdout for r in executor.map(argvs)] == [b"%d\n" % n for n in range(10)]
        assert isinstance(executor.submit(["no-such-program"]).exception(), NsrunError)
        late = executor.map([["sleep", "1000"]], timeout=0.1)
        with pytest.raises(TimeoutExpired):
            next(late)


def test_close_leaves_running_commands_alone(marker: str) -> None:
    before = census()
    pool = full(Pool(MINIMAL, 3))
    process = pool.popen(["cat"], stdin=PIPE, stdout=PIPE)
    pool.close()
    pool.close()
    assert stubs() == []
    out, _ = process.communicate(b"on")
    assert out == b"on"
    process.close()
    with pytest.raises(NsrunError, match="closed"):
        pool.run(["true"])
    with pytest.raises(NsrunError, match="closed"):
        pool.wait_full()
    assert census() == before


def test_close_while_others_use_it() -> None:
    """Each of them gets a result, or is told; nothing stays."""
    before = census()
    for _ in range(10):
        pool = Pool(MINIMAL, 2)
        with ThreadPoolExecutor(6) as threads:
            words = ["true", *["x" * 1000] * 120]  # which are put back: too large
            futures = [threads.submit(pool.run, words[: 1 + n % 2 * 120]) for n in range(24)]
            time.sleep(0.01)
            pool.close()
            for future in futures:
                error = future.exception()
                assert error is None or "closed" in str(error)
    assert census() == before


def test_dropped_pool_is_closed() -> None:
    before = census()
    pool = full(Pool(MINIMAL, 2))
    del pool
    gc.collect()
    assert census() == before


def test_finalizer_in_the_pool_s_own_thread(in_child: AsUser, shared: Path) -> None:
    """The collector runs in whatever thread it runs."""

    class Collect(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            collected.set() if gc.collect() else None

    collected = threading.Event()

    def probe() -> bool:
        gc.disable()
        logging.getLogger("cowork_nsrun").addHandler(Collect())
        cycle: list[Any] = [Pool(MINIMAL.bind(str(shared / "none"), "/x"), 1)]
        cycle.append(cycle)
        del cycle
        done = collected.wait(60)
        while any(thread.name == "nsrun-pool" for thread in threading.enumerate()):
            time.sleep(0.01)
        return done

    assert in_child(probe)


def test_fork_can_t_use_it(in_child: AsUser) -> None:
    def probe() -> tuple[int, bytes]:
        with Pool(MINIMAL, 2) as pool:
            full(pool)
            child = os.fork()
            if not child:
                try:
                    with pytest.raises(NsrunError, match="forked"):
                        pool.run(["true"])
                    pool.close()
                    os._exit(0 if run(["true"], MINIMAL).returncode == 0 else 3)
                finally:
                    os._exit(1)
            _, status = os.waitpid(child, 0)
            return status, pool.run(["echo", "on"]).stdout

    assert in_child(probe) == (0, b"on\n")


def test_owner_killed() -> None:
    script = """
import signal
from cowork_nsrun import Pool, Sandbox
pool = Pool(Sandbox.minimal(), 4)
pool.wait_full()
print("full", flush=True)
signal.pause()
"""
    owner = subprocess.Popen(
        [sys.executable, "-I", "-c", script], stdout=subprocess.PIPE, start_new_session=True
    )
    assert owner.stdout is not None
    assert owner.stdout.readline() == b"full\n"
    assert len(processes_with("nsrun-stub")) >= 4
    owner.kill()
    owner.wait()
    owner.stdout.close()
    wait_until_session_gone(owner.pid)


def test_stub_has_nothing_of_its_owner(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seen from outside: neither memory, environment, arguments nor descriptors."""
    if os.geteuid():
        pytest.skip("only root looks into another's memory")
    monkeypatch.setenv("SECRET_TOKEN", "secret-of-the-owner")
    with Pool(MINIMAL, 1) as pool:
        full(pool)
        (pid,) = stubs()
        proc = Path(f"/proc/{pid}")
        maps = proc.joinpath("maps").read_text()
        names = {line.split(maxsplit=5)[5] for line in maps.splitlines() if len(line.split()) > 5}
        assert names <= {
            "/memfd:nsrun-reaper (deleted)", "[stack]", "[heap]", "[vdso]", "[vvar]",
            "[vvar_vclock]", "[vsyscall]",
        }  # fmt: skip
        assert b"secret" not in proc.joinpath("environ").read_bytes()
        kinds = sorted(os.readlink(entry).split(":")[0] for entry in proc.joinpath("fd").iterdir())
        # the profile that it is to load, and what it hears and tells by
        assert kinds == ["/dev/null"] * 3 + ["/memfd"] + ["socket"] * 2
        with open(proc / "mem", "rb", 0) as memory:
            for line in maps.splitlines():
                low, high = (int(end, 16) for end in line.split()[0].split("-"))
                if "[v" in line or " r" not in line:
                    continue
                memory.seek(low)
                assert b"secret-of-the-owner" not in memory.read(high - low)


def test_control_the_owner_s_memory_holds_that_secret() -> None:
    secret = b"secret-of-" + b"the-owner"
    with open("/proc/self/mem", "rb", 0) as memory:
        found = False
        for line in Path("/proc/self/maps").read_text().splitlines():
            low, high = (int(end, 16) for end in line.split()[0].split("-"))
            if " rw" in line and "[v" not in line and not found:
                memory.seek(low)
                found = secret in memory.read(high - low)
    assert found
