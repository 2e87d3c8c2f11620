"""The walls: what Landlock and namespaces keep from code in the monitor's place, past seccomp."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import pytest
from inject import openers, opens
from vmmlib import (
    EXPORTED,
    EXPORTS,
    HANG,
    NOT_EXPORTED,
    RESUME,
    RUNNING,
    Record,
    build_part,
    monitor,
)

from cowork_nsrun.guest.view import Access, Export, Rule, view_bytes
from cowork_nsrun.guest.vmm import Wall

Lack = Callable[[str], NoReturn]
Guest = Callable[[str], Path]
LAST = 1
NAMESPACES = {Wall.NET: "net", Wall.IPC: "ipc", Wall.UTS: "uts"}
_IPC_CREAT, _IPC_RMID = 0o1000, 0


def landlock_abi() -> int:
    """Of this kernel; 0: none."""
    libc = ctypes.CDLL(None)
    return max(0, int(libc.syscall(444, None, 0, 1)))


def walls_here() -> Wall:
    """Those that this machine and user can have, found out by other means than the monitor's."""
    abi, holds = landlock_abi(), Wall.JAIL
    for wall, least in ((Wall.FILES, 2), (Wall.TCP, 4), (Wall.SCOPES, 6)):
        if abi >= least:
            holds |= wall
    for wall, name in NAMESPACES.items():
        command = ["unshare", f"--{name}", "true"]
        if subprocess.run(command, check=False, stderr=subprocess.DEVNULL).returncode == 0:
            holds |= wall
    return holds


HERE = walls_here()


@pytest.fixture(scope="session")
def cases(tmp_path_factory: pytest.TempPathFactory, lack: Lack) -> Path:
    """The program that tries something behind the walls."""
    return build_part("wall_cases", ("jail", "walls"), tmp_path_factory, lack)


@dataclass(frozen=True)
class World:
    """Where attempts are made: what is shared, what is shown read-only, and all the rest."""

    program: Path
    directory: Path

    def attempt(self, walls: str, thread: str, what: str, number: int = 0) -> tuple[Wall, int]:
        """Which walls held, and 0 or the attempt's errno."""
        command = [str(self.program), walls, thread, what, str(self.directory), str(number)]
        ran = subprocess.run(command, check=False, capture_output=True, text=True, timeout=HANG)
        assert (ran.returncode, ran.stderr) == (0, "")
        holds, result = ran.stdout.split()
        return Wall(int(holds)), int(result)


@pytest.fixture
def world(cases: Path, open_directory: Path, request: pytest.FixtureRequest) -> Iterator[World]:
    directory = open_directory / "walls"
    for name in ("shared/a", "shared/b", "shown", "other"):
        (directory / name).mkdir(parents=True)
    for name in ("shared/file", "shared/a/file", "shown/file", "other/file"):
        (directory / name).touch()
    shutil.copy(cases, directory / "shared" / "program")
    yield World(cases, directory)
    shutil.rmtree(directory)


#: what the file server does for its guest
DOES = ("read-shared", "write-shared", "make-shared", "move-shared", "link-shared", "read-shown")
#: attempt -> the walls that are up when it fails, and how
BREAKS: dict[str, tuple[set[str], set[int]]] = {
    "write-shown": ({"files", "shut"}, {errno.EACCES}),
    "make-shown": ({"files", "shut"}, {errno.EACCES}),
    "read-other": ({"files", "shut"}, {errno.EACCES}),
    "list-other": ({"files", "shut"}, {errno.EACCES}),
    "write-other": ({"files", "shut"}, {errno.EACCES}),
    "make-other": ({"files", "shut"}, {errno.EACCES}),
    "remove-other": ({"files", "shut"}, {errno.EACCES}),
    "move-out": ({"files", "shut"}, {errno.EACCES, errno.EXDEV}),
    "move-in": ({"files", "shut"}, {errno.EACCES, errno.EXDEV}),
    "link-in": ({"files", "shut"}, {errno.EACCES, errno.EXDEV}),
    "execute": ({"begin", "files", "shut"}, {errno.EACCES}),
    # not number 0: a whiteout, which newer kernels take for a file
    "make-device": ({"begin", "files", "shut"}, {errno.EACCES}),
}
THREADS = ("worker", "main")
WALLS = ("begin", "files", "shut")


def need(wall: Wall, lack: Lack) -> None:
    if wall not in HERE:
        lack(f"the monitor's walls: {wall.name}, which this kernel or user can't have")


@pytest.mark.parametrize("thread", THREADS)
@pytest.mark.parametrize("what", DOES)
@pytest.mark.parametrize("walls", ["none", "begin", "shut"])
def test_what_is_shared_can_be_used(world: World, walls: str, thread: str, what: str) -> None:
    assert world.attempt(walls, thread, what)[1] == 0


@pytest.mark.parametrize("thread", THREADS)
@pytest.mark.parametrize("what", DOES)
def test_without_a_file_server_no_file_is_reached(
    world: World, lack: Lack, thread: str, what: str
) -> None:
    need(Wall.FILES, lack)
    assert world.attempt("files", thread, what)[1] == errno.EACCES


@pytest.mark.parametrize("thread", THREADS)
@pytest.mark.parametrize("what", BREAKS)
@pytest.mark.parametrize("walls", WALLS)
def test_files(world: World, lack: Lack, walls: str, thread: str, what: str) -> None:
    need(Wall.FILES, lack)
    when, how = BREAKS[what]
    assert world.attempt(walls, thread, what)[1] in (how if walls in when else {0})


@pytest.mark.parametrize("thread", THREADS)
@pytest.mark.parametrize("what", BREAKS)
def test_without_walls_each_attempt_at_a_file_succeeds(
    world: World, thread: str, what: str
) -> None:
    """The control of the tests above; a user is refused a device node in another way."""
    refused = what == "make-device" and os.geteuid() != 0
    expected = errno.EPERM if refused else 0
    assert world.attempt("none", thread, what) == (Wall(0), expected)


def attempts(
    world: World, what: str, number: int = 0, walls: Sequence[str] = WALLS
) -> Iterator[tuple[Wall, int]]:
    """By each thread, behind each kind of walls; without any it succeeds, which is the control."""
    for thread in THREADS:
        assert world.attempt("none", thread, what, number) == (Wall(0), 0)
        for each in walls:
            yield world.attempt(each, thread, what, number)


def test_which_hold(world: World) -> None:
    assert {holds for holds, _ in attempts(world, "read-shared", walls=("begin", "shut"))} == {HERE}


def test_signals(world: World, lack: Lack) -> None:
    need(Wall.SCOPES, lack)
    for _, result in attempts(world, "signal", os.getpid()):
        assert result == errno.EPERM


@contextlib.contextmanager
def listening(family: socket.AddressFamily, address: object) -> Iterator[socket.socket]:
    with socket.socket(family) as listener:
        listener.bind(address)  # type: ignore[arg-type]
        listener.listen(64)
        yield listener


def test_tcp(world: World, lack: Lack) -> None:
    """Landlock refuses, or there is nothing in the namespace to reach it by."""
    if not HERE & (Wall.TCP | Wall.NET):
        need(Wall.TCP, lack)
    with listening(socket.AF_INET, ("127.0.0.1", 0)) as listener:
        for _, result in attempts(world, "tcp", listener.getsockname()[1]):
            assert result == (errno.EACCES if Wall.TCP in HERE else errno.ENETUNREACH)


def test_abstract_sockets(world: World, lack: Lack) -> None:
    if not HERE & (Wall.SCOPES | Wall.NET):
        need(Wall.SCOPES, lack)
    with listening(socket.AF_UNIX, f"\0nsrun-{os.getpid()}"):
        for _, result in attempts(world, "abstract", os.getpid()):
            assert result == (errno.ECONNREFUSED if Wall.NET in HERE else errno.EPERM)


@pytest.mark.parametrize("wall", NAMESPACES)
def test_namespaces(world: World, lack: Lack, wall: Wall) -> None:
    need(wall, lack)
    name = NAMESPACES[wall]
    for _, result in attempts(world, name, os.stat(f"/proc/self/ns/{name}").st_ino):
        assert result == errno.EXDEV


def test_shared_memory(world: World, lack: Lack) -> None:
    """Of System V's, which has no permissions that root would mind."""
    need(Wall.IPC, lack)
    libc, key = ctypes.CDLL(None), os.getpid()
    made = libc.shmget(key, 1, _IPC_CREAT | 0o600)
    assert made >= 0
    try:
        for _, result in attempts(world, "shm", key):
            assert result == errno.ENOENT
    finally:
        libc.shmctl(made, _IPC_RMID, None)


# --- the monitor itself -------------------------------------------------------------------------


def view(*exports: Export) -> int:
    fd = os.memfd_create("view")
    os.write(fd, view_bytes(exports))
    return fd


@pytest.mark.parametrize("jailed", [True, False])
def test_the_monitor_says_which_hold(guest: Guest, jailed: bool) -> None:
    options = [] if jailed else ["--no-jail"]
    with monitor(guest("hello"), *options, cmdline="loop") as machine:
        assert machine.expect(RUNNING).value == (HERE if jailed else 0)
        for wall, name in NAMESPACES.items():
            own = os.stat(f"/proc/self/ns/{name}").st_ino
            for thread in Path(f"/proc/{machine.process.pid}/task").iterdir():
                is_own = (thread / "ns" / name).stat().st_ino == own
                assert is_own is not (jailed and wall in HERE)


def test_after_the_last_exports_nothing_else_can_be_opened(
    guest: Guest, lack: Lack, tmp_path: Path
) -> None:
    """By any thread that opens files; before them, everything: the control."""
    need(Wall.FILES, lack)
    shared, other = tmp_path / "shared", tmp_path / "other"
    for directory in (shared, other):
        directory.mkdir()
        (directory / "file").touch()
    wanted = [str(shared / "file"), str(other / "file"), "/etc/passwd"]
    fds = [view(), view(Export(str(shared)))]
    try:
        with monitor(guest("hello"), "--fs", f"nsrun={fds[0]}", cmdline="loop", fds=fds) as machine:
            machine.expect(RUNNING)
            pid = machine.process.pid
            threads = openers(pid)
            for thread in threads:
                assert [opens(pid, thread, path) for path in wanted] == [0, 0, 0]
            machine.send(EXPORTS, LAST, 7, [fds[1]])
            assert machine.expect(EXPORTED) == Record(EXPORTED, 0, 7)
            for thread in threads:
                found = [opens(pid, thread, path) for path in wanted]
                assert found == [0, errno.EACCES, errno.EACCES]
            machine.send(EXPORTS, LAST, 8, [fds[1]])
            assert machine.expect(NOT_EXPORTED) == Record(NOT_EXPORTED, errno.EPERM, 8)
            machine.control.close()
            assert machine.process.wait(HANG) == 0
    finally:
        for fd in fds:
            os.close(fd)


def test_a_writable_path_in_something_read_only(guest: Guest, lack: Lack, tmp_path: Path) -> None:
    need(Wall.FILES, lack)
    shown = tmp_path / "shown"
    (shown / "inner").mkdir(parents=True)
    (shown / "file").touch()
    (shown / "inner" / "file").touch()
    rules = (Rule("inner", Access.WRITABLE),)
    fds = [view(), view(Export(str(shown), read_only=True, rules=rules))]
    try:
        with monitor(guest("hello"), "--fs", f"nsrun={fds[0]}", cmdline="loop", fds=fds) as machine:
            machine.expect(RUNNING)
            machine.send(EXPORTS, LAST, 7, [fds[1]])
            assert machine.expect(EXPORTED) == Record(EXPORTED, 0, 7)
            pid = machine.process.pid
            for thread in openers(pid):
                assert opens(pid, thread, str(shown)) == 0
                assert opens(pid, thread, str(shown / "inner" / "file"), os.O_RDWR) == 0
                assert opens(pid, thread, str(shown / "file"), os.O_RDWR) == errno.EACCES
    finally:
        for fd in fds:
            os.close(fd)


def test_paused_processors_are_shut_in_too(guest: Guest, tmp_path: Path) -> None:
    """Each thread takes part, whatever it waits for; then the machine goes on."""
    fds = [view(), view(Export(str(tmp_path)))]
    try:
        with monitor(
            guest("hello"), "--fs", f"nsrun={fds[0]}", "--cpus", "4", "--paused",
            cmdline="", fds=fds,
        ) as machine:  # fmt: skip
            machine.receive()
            machine.send(EXPORTS, LAST, 7, [fds[1]])
            assert machine.expect(EXPORTED) == Record(EXPORTED, 0, 7)
            machine.send(RESUME)
            ended = machine.finish()
        assert (ended.status, ended.stderr) == (0, "")
    finally:
        for fd in fds:
            os.close(fd)
