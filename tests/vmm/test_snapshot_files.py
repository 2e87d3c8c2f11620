"""Machines that are saved with what they know of the host's files, and have open of them."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from snaplib import NOT_SAVED, SAVED, restored, save
from vmmlib import (
    EXPORTED,
    EXPORTS,
    PAUSE,
    PAUSED,
    RESUME,
    RESUMED,
    RUNNING,
    Monitor,
    Record,
    monitor,
)

from cowork_nsrun.guest.view import Export, view_bytes

Guest = Callable[[str], Path]
CHECK, CHECKED, NOT_CHECKED = 8, 74, 75
LAST, KEEP = 1, 2


@contextmanager
def view(*exports: Export) -> Iterator[int]:
    fd = os.memfd_create("view")
    try:
        os.write(fd, view_bytes(exports))
        yield fd
    finally:
        os.close(fd)


@pytest.fixture
def host(tmp_path: Path) -> Path:
    path = tmp_path / "host"
    path.mkdir()
    (path / "file").write_text("old")
    return path


def exports(host: Path) -> Export:
    return Export(str(host), read_only=True)


@contextmanager
def reading(guest: Guest, host: Path, how: int) -> Iterator[Monitor]:
    """A machine that reads the file, paused."""
    with view() as none, view(exports(host)) as files:
        words = ("--memory", "16", "--fs", f"nsrun={none}")
        with monitor(guest("files"), *words, fds=[none]) as machine:
            machine.expect(RUNNING)
            machine.send(EXPORTS, how, 5, [files])
            assert machine.expect(EXPORTED) == Record(EXPORTED, 0, 5)
            wait_for_line(machine, "0 old 1")
            machine.send(PAUSE)
            machine.expect(PAUSED)
            yield machine


def wait_for_line(machine: Monitor, line: str) -> None:
    """Whatever it says before."""
    while line not in machine.console.read_text().splitlines():
        assert machine.process.poll() is None, machine.finish()
        time.sleep(0.001)


def saved(guest: Guest, host: Path, to: Path) -> Path:
    with reading(guest, host, LAST | KEEP) as machine, to.open("xb") as file:
        assert save(machine, file).type == SAVED
        # and it goes on
        before = machine.console.stat().st_size
        machine.send(RESUME)
        machine.expect(RESUMED)
        while machine.console.stat().st_size == before:
            time.sleep(0.001)
    return to


@contextmanager
def clone(file: Path, host: Path, *options: str) -> Iterator[Monitor]:
    with (
        view(exports(host)) as files,
        restored(file, "--fs", f"nsrun={files}", *options, fds=[files]) as machine,
    ):
        yield machine


def check(machine: Monitor) -> Record:
    machine.send(CHECK, 0, 9)
    answer = machine.receive()
    assert answer is not None, machine.finish()
    return answer


def test_it_goes_on(guest: Guest, host: Path, tmp_path: Path) -> None:
    """With the handle that it had, in as many clones as are wanted."""
    file = saved(guest, host, tmp_path / "file")
    with clone(file, host) as one, clone(file, host, "--paused") as other, view() as none:
        one.expect(RUNNING)
        wait_for_line(one, "0 old 1")
        other.expect(PAUSED)
        assert check(other) == Record(CHECKED, 0, 9)
        # it is looked at once
        assert check(other).type == NOT_CHECKED
        other.send(EXPORTS, LAST, 6, [none])
        other.expect(EXPORTED)
        other.send(RESUME)
        other.expect(RESUMED)
        wait_for_line(other, "0 old 1")
        # behind its walls: what is there now is another file than the one that is open
        (host / "new").write_text("new")
        (host / "new").rename(host / "file")
        wait_for_line(other, "0 old 0")
    assert "has changed" in refusal(file, host)
    (host / "file").unlink()
    assert "has changed" in refusal(file, host)


def refusal(file: Path, host: Path) -> str:
    with clone(file, host) as machine:
        ended = machine.finish()
    assert ended.status == 1
    assert ended.stderr.count("\n") == 1
    return ended.stderr


def test_a_file_that_changed(guest: Guest, host: Path, tmp_path: Path) -> None:
    file = saved(guest, host, tmp_path / "file")
    with clone(file, host, "--paused") as machine:
        machine.expect(PAUSED)
        (host / "file").write_text("changed")
        assert check(machine) == Record(NOT_CHECKED, errno.ESTALE, 9)
        machine.control.close()
        machine.process.wait()
        assert machine.process.stderr is not None
        said = machine.process.stderr.read().decode()
    assert said == f"nsrun-vmm: {host}/file: it has changed\n"
    assert refusal(file, host) == f"nsrun-vmm: --restore: files: {host}/file: it has changed\n"


def test_other_exports(guest: Guest, host: Path, tmp_path: Path) -> None:
    file = saved(guest, host, tmp_path / "file")
    other = tmp_path / "other"
    other.mkdir()
    (other / "file").write_text("old")
    assert f"{other}: another file is there now" in refusal(file, other)


def test_when_it_can_not_be_saved(guest: Guest, host: Path, tmp_path: Path) -> None:
    """Shared as ever; and only while paused is it looked at."""
    with reading(guest, host, LAST) as machine, (tmp_path / "file").open("xb") as file:
        answer = save(machine, file)
        assert (answer.type, answer.port) == (NOT_SAVED, errno.EBUSY)
        assert check(machine) == Record(NOT_CHECKED, errno.ESTALE, 9)
        machine.send(RESUME)
        machine.expect(RESUMED)
        assert check(machine) == Record(NOT_CHECKED, errno.EINVAL, 9)
    with reading(guest, host, LAST | KEEP) as machine, (tmp_path / "other").open("xb") as file:
        (host / "file").write_text("changed")
        answer = save(machine, file)
        assert (answer.type, answer.port) == (NOT_SAVED, errno.EBUSY)
        machine.control.close()
        machine.process.wait()
        assert machine.process.stderr is not None
        said = machine.process.stderr.read().decode()
    assert said == f"nsrun-vmm: fs: {host}/file: it has changed\n"
