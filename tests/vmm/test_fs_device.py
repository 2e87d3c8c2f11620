"""virtio-fs as a device: the way of a request from the guest's kick to its interrupt."""

from __future__ import annotations

import fcntl
import os
import struct
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from inject import held, openers, stopped
from snaplib import restored, saved
from vmmlib import HANG, PAUSED, RESUME, RESUMED, RUNNING, Monitor, monitor

from cowork_nsrun.guest.view import Export, view_bytes

Guest = Callable[[str], Path]
#: calls of x86-64
STATX, FUTEX = 332, 202
#: of the guest's program
TIMES, RESETS = 100, 50


@contextmanager
def served(guest: Path, shared: Path, cmdline: str, *options: str) -> Iterator[Monitor]:
    """A machine whose first and only export is this file."""
    fd = os.memfd_create("view")
    try:
        os.write(fd, view_bytes([Export(str(shared))]))
        options = ("--fs", f"nsrun={fd}", *options)
        with monitor(guest, *options, cmdline=cmdline, fds=[fd]) as machine:
            yield machine
    finally:
        os.close(fd)


def said(machine: Monitor, line: str) -> None:
    """Wait until the guest has said that."""
    begin = time.monotonic()
    while line not in (lines := machine.console.read_text().splitlines()):
        assert machine.process.poll() is None, machine.finish()
        assert time.monotonic() - begin < HANG, f"the guest never said {line!r}, but {lines}"
        time.sleep(0.01)


def waits_at(machine: Monitor, thread: int, call: int) -> None:
    """Wait until a thread waits in that system call."""
    begin = time.monotonic()
    while (found := Path(f"/proc/{thread}/syscall").read_text().split()[0]) != str(call):
        where = f"{found}, and the guest has said {machine.console.read_text()!r}"
        assert time.monotonic() - begin < HANG, f"thread {thread} is in call {where}"
        time.sleep(0.01)


def sleeps(thread: int) -> int:
    """How often a thread has waited for something."""
    lines = Path(f"/proc/{thread}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("voluntary")).split()[1])


@pytest.fixture
def shared(tmp_path: Path) -> Path:
    """A file of the host's."""
    path = tmp_path / "shared"
    path.touch()
    return path


def answered(how: str) -> str:
    """What a guest says that got all that it asked for."""
    batches = f"{TIMES} times 4 at once of which {4 * TIMES} good"
    return f"{how}: {TIMES} alone, {batches}, {TIMES} interrupts, pending 0"


def test_every_request_is_answered(guest: Guest, shared: Path) -> None:
    with served(guest("fs"), shared, "each") as machine:
        ended = machine.finish()
    assert (ended.status, ended.stderr) == (0, "")
    assert ended.lines == [answered("plain"), answered("events")]


def test_no_other_thread_has_a_part_in_it(guest: Guest, shared: Path) -> None:
    """The main one, which waits for all other devices, sleeps on."""
    with served(guest("fs"), shared, "each", "--paused") as machine:
        machine.expect(PAUSED)
        machine.send(RESUME)
        machine.expect(RESUMED)
        before = sleeps(machine.process.pid)
        said(machine, answered("plain"))
        # a few are RESUME's; a kick for each request would make them as many at least
        assert sleeps(machine.process.pid) - before < TIMES / 2


@pytest.mark.parametrize("kicks", [1, 2])
def test_a_long_request_holds_up_no_other(guest: Guest, shared: Path, kicks: int) -> None:
    """Whether the guest kicks for each or for both."""
    with served(guest("fs"), shared, f"long {kicks}", "--paused") as machine:
        machine.expect(PAUSED)
        threads = openers(machine.process.pid)[1:]
        with held(threads, STATX, lambda: machine.send(RESUME)):
            machine.expect(RESUMED)
            said(machine, "first came 1")
        ended = machine.finish()
    assert (ended.status, ended.lines) == (0, ["first came 1", "both good"])


def test_a_lock_comes_however_much_there_is_to_do(guest: Guest, shared: Path) -> None:
    lock = struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
    with shared.open("r+b") as file:
        fcntl.fcntl(file, fcntl.F_OFD_SETLK, lock)
        with served(guest("fs"), shared, "lock") as machine:
            machine.expect(RUNNING)
            said(machine, "asked")
            file.close()
            ended = machine.finish()
    assert (ended.status, ended.lines) == (0, ["asked", "lock good"])


def test_resets_while_it_is_at_work(guest: Guest, shared: Path) -> None:
    with served(guest("fs"), shared, "reset") as machine:
        ended = machine.finish()
    assert (ended.status, ended.stderr) == (0, "")
    assert ended.lines == [f"{RESETS} resets, 0 words changed after them"]


def test_a_reset_waits_for_what_is_under_way(guest: Guest, shared: Path) -> None:
    """Which still writes to the guest's memory."""
    with served(guest("fs"), shared, "stop", "--paused") as machine:
        machine.expect(PAUSED)
        pid = machine.process.pid
        workers = openers(pid)
        (processor,) = {int(task.name) for task in Path(f"/proc/{pid}/task").iterdir()} - {*workers}
        with held(workers[1:], STATX, lambda: machine.send(RESUME)):
            machine.expect(RESUMED)
            waits_at(machine, processor, FUTEX)
            assert "stopped" not in machine.console.read_text()
        ended = machine.finish()
    assert (ended.status, ended.lines) == (0, ["stopped", "0 words changed"])


def test_a_request_that_nobody_has_taken_is_not_lost(guest: Guest, tmp_path: Path) -> None:
    """The machine is saved between the kick and its hearing; the clone answers."""
    with tempfile.TemporaryFile() as view:
        view.write(view_bytes([]))
        view.flush()
        given = ("--fs", f"nsrun={view.fileno()}")
        options = (*given, "--memory", "16", "--paused")
        with monitor(guest("fs"), *options, cmdline="wait", fds=[view.fileno()]) as machine:
            machine.expect(PAUSED)
            with ExitStack() as still:
                for thread in openers(machine.process.pid)[1:]:
                    still.enter_context(stopped(thread))
                machine.send(RESUME)
                machine.expect(RESUMED)
                said(machine, "asked")
                file = saved(machine, tmp_path / "file")
        with restored(file, *given, fds=[view.fileno()]) as clone:
            ended = clone.finish()
    assert (ended.status, ended.lines) == (0, ["answered well"])
