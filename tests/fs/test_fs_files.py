"""What programs do with files, on a writable export."""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import socket
import stat
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn

import pytest
from fslib import Mount, Mounted

from cowork_nsrun._native import landlock_abi
from cowork_nsrun.guest.view import Export


@pytest.fixture
def host(tmp_path: Path) -> Path:
    path = tmp_path / "host"
    path.mkdir()
    return path


@pytest.fixture
def guest(mount: Mount, host: Path) -> Iterator[Path]:
    with mount([Export(str(host))]) as mounted:
        yield mounted / "0"


@pytest.fixture
def inside(mount: Mount, host: Path) -> Iterator[Mounted]:
    with mount([Export(str(host))]) as mounted:
        yield mounted


def test_what_is_written_is_there_at_once(host: Path, guest: Path) -> None:
    (guest / "a").write_bytes(b"from the guest")
    assert (host / "a").read_bytes() == b"from the guest"
    (host / "b").write_bytes(b"from the host")
    assert (guest / "b").read_bytes() == b"from the host"
    assert sorted(os.listdir(guest)) == ["a", "b"]


def test_a_file_grown_on_the_host_is_seen_when_opened(host: Path, guest: Path) -> None:
    (host / "log").write_bytes(b"one")
    assert (guest / "log").read_bytes() == b"one"
    (host / "log").write_bytes(b"one two")
    # attributes may be believed for a second; opening asks anew
    time.sleep(1.1)
    assert (guest / "log").read_bytes() == b"one two"


def test_attributes_are_the_hosts(host: Path, guest: Path) -> None:
    (host / "f").write_bytes(b"x" * 5000)
    os.chown(host / "f", 1234, 5678)
    (host / "f").chmod(0o640)
    os.utime(host / "f", ns=(1_500_000_000_123_456_789, 1_600_000_000_987_654_321))
    ours, theirs = (guest / "f").stat(), (host / "f").stat()
    for name in ("st_ino", "st_mode", "st_nlink", "st_uid", "st_gid", "st_size", "st_blocks"):
        assert getattr(ours, name) == getattr(theirs, name)
    assert (ours.st_atime_ns, ours.st_mtime_ns) == (theirs.st_atime_ns, theirs.st_mtime_ns)


def test_attributes_are_set(host: Path, guest: Path) -> None:
    (guest / "f").write_bytes(b"0123456789")
    (guest / "f").chmod(0o604)
    os.truncate(guest / "f", 4)
    os.utime(guest / "f", ns=(1_000_000_001, 2_000_000_002))
    there = (host / "f").stat()
    assert stat.S_IMODE(there.st_mode) == 0o604
    assert (there.st_size, there.st_atime_ns, there.st_mtime_ns) == (4, 1000000001, 2000000002)


def test_set_id_bits_are_dropped_by_root(host: Path, guest: Path) -> None:
    (guest / "f").write_bytes(b"#!/bin/sh\n")
    (guest / "f").chmod(0o6755)
    assert stat.S_IMODE((host / "f").stat().st_mode) == 0o755
    os.mknod(guest / "n", 0o6755 | stat.S_IFREG)
    assert stat.S_IMODE((host / "n").stat().st_mode) & 0o7000 == 0
    # one that the host made loses them when the guest opens it for writing
    (host / "s").write_bytes(b"x")
    (host / "s").chmod(0o4755)
    with open(guest / "s", "r+b", buffering=0) as file:
        file.write(b"evil")
    assert stat.S_IMODE((host / "s").stat().st_mode) == 0o755


def test_links_and_renames(host: Path, guest: Path) -> None:
    (guest / "d").mkdir()
    (guest / "d" / "a").write_bytes(b"a")
    os.link(guest / "d" / "a", guest / "b")
    assert (guest / "b").stat().st_nlink == 2
    assert (guest / "b").stat().st_ino == (guest / "d" / "a").stat().st_ino
    os.symlink("d/a", guest / "s")
    assert os.readlink(host / "s") == "d/a"
    assert (guest / "s").read_bytes() == b"a"
    os.link(guest / "s", guest / "s2", follow_symlinks=False)
    assert os.readlink(host / "s2") == "d/a"
    os.rename(guest / "d", guest / "e")
    assert (guest / "e" / "a").read_bytes() == b"a"
    assert (host / "e" / "a").exists()
    os.unlink(guest / "e" / "a")
    os.rmdir(guest / "e")
    assert sorted(os.listdir(host)) == ["b", "s", "s2"]


def renameat2(old: Path, new: Path, flags: int) -> int:
    script = (
        "import ctypes, os, sys; libc = ctypes.CDLL(None, use_errno=True);"
        "a, b, f = os.fsencode(sys.argv[1]), os.fsencode(sys.argv[2]), int(sys.argv[3]);"
        "sys.exit(libc.renameat2(-100, a, -100, b, f) and ctypes.get_errno())"
    )
    command = [sys.executable, "-c", script, str(old), str(new), str(flags)]
    return subprocess.run(command, check=False).returncode


def test_rename2(host: Path, guest: Path) -> None:
    noreplace, exchange, whiteout = 1, 2, 4
    (guest / "a").write_bytes(b"a")
    (guest / "b").mkdir()
    (guest / "b" / "in").write_bytes(b"in")
    assert renameat2(guest / "a", guest / "b", noreplace) == errno.EEXIST
    assert renameat2(guest / "a", guest / "b", exchange) == 0
    assert (guest / "b").read_bytes() == b"a"
    assert (guest / "a" / "in").read_bytes() == b"in"
    assert (host / "a" / "in").read_bytes() == b"in"
    assert renameat2(guest / "a", guest / "c", whiteout) == errno.EINVAL


def test_a_file_without_a_name_stays_readable(guest: Path) -> None:
    with open(guest / "f", "w+b", buffering=0) as file:
        file.write(b"still here")
        os.unlink(guest / "f")
        assert os.fstat(file.fileno()).st_nlink == 0
        os.ftruncate(file.fileno(), 5)
        assert os.pread(file.fileno(), 100, 0) == b"still"
        os.fchmod(file.fileno(), 0o600)


def test_tmpfile_is_linked(host: Path, guest: Path) -> None:
    fd = os.open(guest, os.O_TMPFILE | os.O_RDWR, 0o644)
    os.write(fd, b"all at once")
    assert os.listdir(host) == []
    # with a directory's fd, or Python calls link(2), which doesn't follow
    os.link(str(fd), guest / "whole", src_dir_fd=(proc := os.open("/proc/self/fd", os.O_PATH)))
    os.close(proc)
    os.close(fd)
    assert (host / "whole").read_bytes() == b"all at once"


def test_appends_meet(host: Path, guest: Path) -> None:
    """Writers on both sides append to one file, and nothing is lost."""
    lines = 200

    def append(path: Path, mark: bytes) -> None:
        with open(path, "ab", buffering=0) as file:
            for _ in range(lines):
                file.write(mark * 31 + b"\n")

    threads = [
        threading.Thread(target=append, args=(side / "log", mark))
        for side, mark in ((guest, b"g"), (host, b"h"), (guest, b"G"))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = (host / "log").read_bytes().splitlines()
    assert sorted(found) == sorted([mark * 31 for mark in (b"g", b"h", b"G")] * lines)


def test_mmap(host: Path, guest: Path) -> None:
    (guest / "m").write_bytes(bytes(8192))
    with open(guest / "m", "r+b") as file, mmap.mmap(file.fileno(), 8192) as memory:
        memory[4000:4200] = b"m" * 200
        memory.flush()
        assert (host / "m").read_bytes()[4000:4200] == b"m" * 200
    with open(guest / "m", "a+b") as file, mmap.mmap(file.fileno(), 8192) as memory:
        # pages have their place, though the file was opened for appending
        memory[0:3] = b"beg"
    assert (host / "m").read_bytes()[:3] == b"beg"
    assert (host / "m").stat().st_size == 8192


def test_holes_and_copies(host: Path, guest: Path) -> None:
    punch_keep = 1 | 2
    with open(guest / "f", "w+b", buffering=0) as file:
        os.posix_fallocate(file.fileno(), 0, 1 << 20)
        os.pwrite(file.fileno(), b"x" * (1 << 20), 0)
        script = (
            "import ctypes, sys; libc = ctypes.CDLL(None, use_errno=True);"
            "libc.fallocate.argtypes = [ctypes.c_int] * 2 + [ctypes.c_int64] * 2;"
            f"sys.exit(libc.fallocate(0, {punch_keep}, 65536, 65536) and ctypes.get_errno())"
        )
        subprocess.run([sys.executable, "-c", script], stdin=file, check=True)
        assert os.lseek(file.fileno(), 0, os.SEEK_HOLE) == 65536
        assert os.lseek(file.fileno(), 65536, os.SEEK_DATA) == 131072
        with open(guest / "g", "w+b", buffering=0) as copy:
            done = os.lseek(file.fileno(), 0, os.SEEK_SET)
            while part := os.copy_file_range(file.fileno(), copy.fileno(), (1 << 20) - done):
                done += part
    assert (host / "g").read_bytes() == (host / "f").read_bytes()


def test_xattrs(host: Path, guest: Path) -> None:
    (guest / "f").touch()
    os.setxattr(guest / "f", "user.note", b"v" * 1000)
    assert os.getxattr(host / "f", "user.note") == b"v" * 1000
    assert os.getxattr(guest / "f", "user.note") == b"v" * 1000
    os.setxattr(guest, "user.dir", b"d")
    assert os.listxattr(guest) == ["user.dir"]
    os.removexattr(guest / "f", "user.note")
    assert os.listxattr(host / "f") == []


@pytest.mark.parametrize("name", ["security.capability", "trusted.t", "system.posix_acl_access"])
def test_xattrs_of_the_hosts_stay_outside(host: Path, guest: Path, name: str) -> None:
    (host / "f").touch()
    value = {
        "security.capability": struct.pack("<5I", 0x2000001, 1, 0, 0, 0),
        "system.posix_acl_access": struct.pack("<I", 2)
        + b"".join(struct.pack("<HHI", tag, 6, 0xFFFFFFFF) for tag in (1, 4, 0x20)),
    }.get(name, b"v")
    with pytest.raises(OSError, match="not supported"):
        os.setxattr(guest / "f", name, value)
    os.setxattr(host / "f", name, value)
    with pytest.raises(OSError, match=r"not supported|No data"):
        os.getxattr(guest / "f", name)
    assert os.listxattr(guest / "f") == []


def test_fifos_and_sockets_are_the_guests_own(host: Path, guest: Path) -> None:
    """One that the host made is there, and dead; one of the guest's works among its processes."""
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(host / "sock"))
        server.listen()
        assert stat.S_ISSOCK((guest / "sock").stat().st_mode)
        with socket.socket(socket.AF_UNIX) as client, pytest.raises(ConnectionRefusedError):
            client.connect(str(guest / "sock"))
    os.mkfifo(guest / "pipe")
    assert stat.S_ISFIFO((host / "pipe").stat().st_mode)
    reader = os.open(guest / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    writer = os.open(guest / "pipe", os.O_WRONLY)
    os.write(writer, b"through")
    assert os.read(reader, 10) == b"through"
    # another FIFO than the host's of that name
    with pytest.raises(OSError, match="No such device"):
        os.open(host / "pipe", os.O_WRONLY | os.O_NONBLOCK)
    os.close(writer)
    os.close(reader)


def test_devices_are_neither_made_nor_reached(host: Path, guest: Path) -> None:
    with pytest.raises(PermissionError):
        os.mknod(guest / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    os.mknod(host / "zero", stat.S_IFCHR | 0o666, os.makedev(1, 5))
    assert (guest / "zero").stat().st_rdev == 0
    with pytest.raises(OSError, match=r"Permission denied|No such device"):
        os.open(guest / "zero", os.O_RDONLY)


def test_devices_of_the_host_get_no_new_names(
    host: Path, guest: Path, lack: Callable[[str], NoReturn]
) -> None:
    """Landlock's doing, which is around the server; a directory with one in it can be moved."""
    if landlock_abi() < 2:
        lack("Landlock, which keeps devices from new names")
    (host / "d").mkdir()
    for path in (host / "zero", host / "d" / "zero"):
        os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(1, 5))
    with pytest.raises(PermissionError):
        (guest / "zero").rename(guest / "other")
    with pytest.raises(PermissionError):
        (guest / "other").hardlink_to(guest / "zero")
    (guest / "d").rename(guest / "e")
    (guest / "e" / "zero").unlink()
    assert sorted(path.name for path in host.iterdir()) == ["e", "zero"]


# --- locks ------------------------------------------------------------------------------------

LOCKER = """
import fcntl, struct, sys
file = open(sys.argv[1], "r+b", buffering=0)
if sys.argv[2] == "flock":
    fcntl.flock(file, fcntl.LOCK_EX)
else:
    fcntl.lockf(file, fcntl.LOCK_EX, 10, 100)
print("locked", flush=True)
sys.stdin.read()
"""


def locker(path: Path, kind: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", LOCKER, str(path), kind]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


@pytest.mark.parametrize("kind", ["flock", "posix"])
def test_locks_hold_across_the_boundary(host: Path, guest: Path, kind: str) -> None:
    (host / "f").write_bytes(b"x" * 200)

    def try_lock(path: Path) -> None:
        with open(path, "r+b") as file:
            if kind == "flock":
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            else:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, 10, 100)

    for holder, other in ((guest, host), (host, guest), (guest, guest)):
        with locker(holder / "f", kind) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "locked\n"
            with pytest.raises(BlockingIOError):
                try_lock(other / "f")
            process.communicate("")
        try_lock(other / "f")


@pytest.mark.parametrize("kind", ["flock", "posix"])
def test_a_lock_is_waited_for(host: Path, guest: Path, kind: str) -> None:
    (host / "f").write_bytes(b"x" * 200)
    with locker(host / "f", kind) as first:
        assert first.stdout is not None
        assert first.stdout.readline() == "locked\n"
        with locker(guest / "f", kind) as second:
            assert second.stdout is not None
            # the server goes on meanwhile
            for number in range(20):
                (guest / str(number)).write_bytes(b"on")
            assert second.poll() is None
            first.communicate("")
            assert second.stdout.readline() == "locked\n"
            second.communicate("")


def test_posix_locks_are_the_process_s(guest: Path) -> None:
    """Two openings in one process don't conflict; closing one drops the locks of both."""
    (guest / "f").write_bytes(b"x" * 100)
    other = (
        f"import fcntl; fcntl.lockf(open({str(guest / 'f')!r}, 'r+b'), fcntl.LOCK_EX|fcntl.LOCK_NB)"
    )
    with open(guest / "f", "r+b") as one:
        with open(guest / "f", "r+b") as two:
            fcntl.lockf(one, fcntl.LOCK_EX)
            fcntl.lockf(two, fcntl.LOCK_EX | fcntl.LOCK_NB)
            assert subprocess.run(
                [sys.executable, "-c", other], capture_output=True, check=False
            ).returncode
        subprocess.run([sys.executable, "-c", other], check=True)


def test_ofd_locks_are_the_open_file_s(host: Path, guest: Path) -> None:
    (host / "f").write_bytes(b"x" * 100)
    ofd_setlk = 37
    whole = struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
    with open(guest / "f", "r+b") as one, open(guest / "f", "r+b") as two:
        fcntl.fcntl(one, ofd_setlk, whole)
        with pytest.raises(BlockingIOError):
            fcntl.fcntl(two, ofd_setlk, whole)
        with open(host / "f", "r+b") as other, pytest.raises(BlockingIOError):
            fcntl.lockf(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        one.close()
        # closing tells the server after the program has gone on
        for _ in range(100):
            try:
                fcntl.fcntl(two, ofd_setlk, whole)
                break
            except BlockingIOError:
                time.sleep(0.05)
        else:
            pytest.fail("the lock outlives its open file")


def test_who_holds_a_lock_can_be_asked(host: Path, guest: Path) -> None:
    (host / "f").write_bytes(b"x" * 200)
    question = struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
    with open(guest / "f", "r+b") as file:
        free = fcntl.fcntl(file, fcntl.F_GETLK, question)
        assert struct.unpack("hhqqi4x", free)[0] == fcntl.F_UNLCK
        with locker(host / "f", "posix") as process:
            assert process.stdout is not None
            process.stdout.readline()
            kind, _, start, length, _ = struct.unpack(
                "hhqqi4x", fcntl.fcntl(file, fcntl.F_GETLK, question)
            )
            assert (kind, start, length) == (fcntl.F_WRLCK, 100, 10)
            process.communicate("")


def test_statfs_and_sync(host: Path, inside: Mounted) -> None:
    ours, theirs = os.statvfs(inside / "0"), os.statvfs(host)
    assert (ours.f_blocks, ours.f_namemax) == (theirs.f_blocks, theirs.f_namemax)
    fd = os.open(inside / "0", os.O_RDONLY)
    os.fsync(fd)
    os.close(fd)
    (inside / "0" / "f").write_bytes(b"x")
    inside.run(["sync", "-f", "f"])
    inside.run(["sync", "-d", "f"])


def test_large_directories_are_listed_whole(host: Path, guest: Path) -> None:
    names = {f"{number:04}-{'n' * (number % 200)}" for number in range(3000)}
    for name in names:
        (host / name).touch()
    assert set(os.listdir(guest)) == names
    assert {entry.name for entry in os.scandir(guest) if entry.is_file()} == names


def test_names_of_any_bytes(host: Path, guest: Path) -> None:
    for name in (b"\xff\xfe", b"a b\n", b"-", b"x" * 255, "é".encode()):
        with open(os.path.join(os.fsencode(guest), name), "wb") as file:
            file.write(name)
        assert name in os.listdir(os.fsencode(host))
    with pytest.raises(OSError, match="too long"):
        (guest / ("x" * 256)).touch()
