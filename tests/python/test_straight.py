"""Commands of sandboxes with nothing outside: by fewer steps, with the same result."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from leftovers import processes_with, wait_until_gone

from cowork_nsrun import NsrunError, Result, Sandbox, TimeoutExpired, aio, run, straight
from cowork_nsrun.teardown import settle

AsUser = Callable[[Callable[[], Any]], Any]
MIB = 1 << 20
MINIMAL = Sandbox.minimal()


@dataclass(frozen=True)
class Job:
    """A command, and what is said about it."""

    script: str
    spec: Sandbox = MINIMAL
    more: dict[str, Any] = field(default_factory=dict)
    argv: tuple[str, ...] = ()

    @property
    def words(self) -> list[str]:
        return list(self.argv) or ["sh", "-c", self.script]


JOBS = {
    "silent": Job(":"),
    "speaks": Job("echo out; echo err >&2; exit 3"),
    "signaled": Job("kill -9 $$"),
    "as if signaled": Job("exit 137"),
    "no streams": Job("exit 4", more={"capture": False}),
    "closes its streams": Job("exec >&- 2>&-; sleep 0.2; exit 5"),
    "much": Job(f"head -c {5 * MIB} /dev/zero; head -c {3 * MIB} /dev/zero >&2"),
    "fed": Job("wc -c", more={"input": b"x" * (3 * MIB)}),
    "fed nothing": Job("wc -c", more={"input": b""}),
    "not read": Job("exit 6", more={"input": b"x" * (3 * MIB)}),
    "echoed": Job("cat", more={"input": b"y" * (2 * MIB)}),
    "leaves one behind": Job("sleep 1000 & echo gone"),
    "leaves one that speaks": Job("(while :; do echo more; done) & sleep 0.1; echo; exit 7"),
    "elsewhere": Job("pwd", more={"cwd": "/usr"}),
    "environment": Job("env | sort", more={"env": {"A": "b", "PATH": "/usr/bin:/bin"}}),
    "no such command": Job("", argv=("no-such-command",)),
    "not executable": Job("", argv=("/etc/passwd",)),
    "no such directory": Job(":", more={"cwd": "/no/such/directory"}),
    "no such source": Job(":", spec=MINIMAL.bind("/no/such/source", "/mnt")),
    "a NUL byte": Job("", argv=("echo", "a\0b")),
    "no command": Job("", argv=("",)),
    "too long": Job("echo begun; sleep 1000", more={"timeout": 0.3}),
    "no time": Job("sleep 1000", more={"timeout": 0}),
    "without pid namespace": Job("echo here", spec=MINIMAL.replace(unshare=frozenset())),
    "as pid 1": Job("echo $$", spec=MINIMAL.replace(as_pid_1=True, die_with_parent=False)),
}


def essence(result: Result[Any]) -> tuple[object, ...]:
    started = result.timings.spawn_ns is not None and result.timings.spawn_ns > 0
    return (
        *(result.argv, result.returncode, result.signal, result.stdout, result.stderr),
        *(result.backend, result.ending, result.limits, started, result.usage.of_cgroup),
    )


def outcome(work: Callable[[], Result[Any]]) -> tuple[object, ...]:
    try:
        return essence(work())
    except TimeoutExpired as error:
        return type(error), str(error), error.stdout, error.stderr
    except NsrunError as error:
        return type(error), error.text, error.step, error.path, error.errno


def trimmed(found: tuple[object, ...], job: Job) -> tuple[object, ...]:
    """Without what two runs of a job need not have in common."""
    if "more; done" in job.script:
        return tuple(part for part in found if not isinstance(part, bytes))
    return found


def told(_: object) -> None:
    """Of an egress rule: a sandbox without any never tells, but is taken the long way."""


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """For each run that was asked for: whether it went straight."""
    seen: list[bool] = []
    start = straight.start

    def look(*args: Any, **more: Any) -> Any:
        found = start(*args, **more)
        seen.append(found is not None)
        return found

    monkeypatch.setattr(straight, "start", look)
    return seen


def refused(job: Job) -> bool:
    """Before there is anything to start."""
    return job.argv == ("echo", "a\0b") or "no/such/source" in str(job.spec)


@pytest.mark.parametrize("name", JOBS)
def test_same_as_the_long_way(name: str, taken: list[bool]) -> None:
    job = JOBS[name]
    short = outcome(lambda: run(job.words, job.spec, **job.more))
    assert taken == ([] if refused(job) else [True])
    long = outcome(lambda: run(job.words, job.spec, on_egress=told, **job.more))
    assert len(taken) <= 1
    assert trimmed(short, job) == trimmed(long, job)


@pytest.mark.parametrize("name", JOBS)
def test_same_in_an_event_loop(name: str, taken: list[bool]) -> None:
    job = JOBS[name]
    short = outcome(lambda: asyncio.run(aio.run(job.words, job.spec, **job.more)))
    assert taken == ([] if refused(job) else [True])
    long = outcome(lambda: asyncio.run(aio.run(job.words, job.spec, on_egress=told, **job.more)))
    assert trimmed(short, job) == trimmed(long, job)


def test_what_has_something_outside_goes_the_long_way(taken: list[bool]) -> None:
    for spec in (
        MINIMAL.limit(open_files=64),
        MINIMAL.replace(timeout=100.0),
        MINIMAL.allow_hosts("example.org"),
        MINIMAL.replace(deny_read=("/etc/shadow",)),
        MINIMAL.replace(deny_write=("/usr/nothing",)),
    ):
        assert run(["echo", "x"], spec).stdout == b"x\n"
    assert taken == [False] * 5


def of_fds() -> list[str]:
    found = []
    for fd in os.listdir("/proc/self/fd"):
        try:
            found.append(os.readlink(f"/proc/self/fd/{fd}"))
        except FileNotFoundError:
            continue
    return sorted(found)


@pytest.mark.parametrize("way", ["run", "arun"])
def test_forked_copy_holds_nothing_of_it(in_child: AsUser, marker: str, way: str) -> None:
    """Neither its streams nor its socket: else the sandbox would outlive its owner."""

    def work() -> None:
        words = ["sh", "-c", f"exec sleep {marker}"]
        with_timeout: dict[str, Any] = {"timeout": 60}
        try:
            if way == "run":
                run(words, MINIMAL, **with_timeout)
            else:
                asyncio.run(aio.run(words, MINIMAL, **with_timeout))
        except TimeoutExpired:
            pass

    def probe() -> list[Any]:
        before = of_fds()
        thread = threading.Thread(target=work)
        thread.start()
        while not (found := processes_with(marker)):
            time.sleep(0.01)
        child = os.fork()
        if not child:
            kept = [name for name in of_fds() if name not in before]
            # the event loop's own, and the reaper's program, are no ends of ours
            ours = [name for name in kept if "pidfd" in name or "pipe" in name]
            os._exit(1 if ours else 0)
        _, status = os.waitpid(child, 0)
        alive = bool(processes_with(marker))
        os.kill(found[0], signal.SIGKILL)
        thread.join()
        settle()
        return [status, alive]

    assert in_child(probe) == [0, True]


def cancelled(work: Callable[[], Coroutine[Any, Any, Any]], marker: str) -> None:
    async def main() -> None:
        task = asyncio.ensure_future(work())
        while not processes_with(marker):
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert not processes_with(marker)

    asyncio.run(main())


def test_cancelled_in_an_event_loop(marker: str) -> None:
    settle()
    before = of_fds()
    cancelled(lambda: aio.run(["sleep", marker], MINIMAL), marker)
    settle()
    assert of_fds() == before


def test_interrupted(marker: str) -> None:
    """An exception out of a signal handler: nothing is left when it is seen."""
    script = f"""
import os, signal, sys, threading, time
sys.path.insert(0, {str(Path(__file__).parent)!r})
from leftovers import processes_with
from cowork_nsrun import Sandbox, run
from cowork_nsrun.teardown import settle
run(["true"], Sandbox.minimal())
settle()
before = len(os.listdir("/proc/self/fd"))
def interrupt():
    while not processes_with("{marker}"):
        time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGINT)
threading.Thread(target=interrupt).start()
try:
    run(["sleep", "{marker}"], Sandbox.minimal())
except KeyboardInterrupt:
    settle()
    print(processes_with("{marker}"), len(os.listdir("/proc/self/fd")) - before)
"""
    done = subprocess.run(
        [sys.executable, "-I", "-c", script], capture_output=True, text=True, check=False
    )
    assert done.stdout == "[] 0\n", done.stderr


def test_owner_killed_at_any_moment(marker: str) -> None:
    script = f"""
from cowork_nsrun import Sandbox, run
print("begun", flush=True)
run(["sh", "-c", "sleep {marker} & sleep {marker}"], Sandbox.minimal())
"""
    mounts = len(Path("/proc/self/mountinfo").read_text().splitlines())
    for i in range(12):
        owner = subprocess.Popen([sys.executable, "-I", "-c", script], stdout=subprocess.PIPE)
        assert owner.stdout is not None
        assert owner.stdout.readline() == b"begun\n"
        time.sleep(i * 0.003)
        owner.kill()
        owner.wait()
        owner.stdout.close()
        wait_until_gone(marker)
    assert len(Path("/proc/self/mountinfo").read_text().splitlines()) == mounts


INTERRUPT_ANYWHERE = """
import gc, sys
sys.path.insert(0, {tests!r})
from interrupting import interrupted
from leftovers import census
import cowork_nsrun.process, cowork_nsrun.straight
from cowork_nsrun import Sandbox, run, settle
OURS = {{m.__file__ for m in (cowork_nsrun.process, cowork_nsrun.straight, cowork_nsrun._native)}}
spec = Sandbox.minimal()

def work():
    run(["cat"], spec, input=b"some")
    run(["sh", "-c", "sleep 1000 & kill $$"], spec)

work()
lines = interrupted(work, OURS, -1)
settle()
before = census()
for at in range(1, lines + 5):
    interrupted(work, OURS, at)
    gc.collect()
    settle()
    after = census()
    assert after == before, (at, after, before)
print("lines", lines > 100)
"""


def test_interrupt_at_any_line() -> None:
    """A KeyboardInterrupt between any two lines of ours: no process and no descriptor stays."""
    script = INTERRUPT_ANYWHERE.format(tests=str(Path(__file__).parent))
    done = subprocess.run(
        [sys.executable, "-I", "-c", script], capture_output=True, text=True, check=False
    )
    assert done.stdout == "lines True\n", done.stderr[-2000:]
