"""Files that cost time to make, kept below ``$XDG_CACHE_HOME/nsrun/guest``.

Each is named by a digest of what it was made of.  A file that is there is whole: it was
written under another name first.  Whoever opened one keeps it, though it may be removed
meanwhile: of each kind some are kept, the last used.
"""

from __future__ import annotations

import fcntl
import hashlib
import logging
import os
import stat
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

log = logging.getLogger(__name__)

#: files kept of each kind
KEPT = 4
#: part of every key: another way to make them makes other files
FORMAT = "1"
_PART = ".part-"


def directory() -> Path:
    """Where they are; it may not exist."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    if not os.path.isabs(base):
        base = os.path.join(os.path.expanduser("~"), ".cache")
    return Path(base) / "nsrun" / "guest"


def identity(path: str | os.PathLike[str]) -> str:
    """What tells one state of a file from every other, without reading it.

    That is device, inode, size and the times of its last changes; nobody can set the
    time of a change of the inode.

    Raises:
        OSError: it can't be looked at.
    """
    found = os.stat(path)
    return repr((found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns))


def key(parts: Iterable[str]) -> str:
    """A file's name by what it is made of."""
    digest = hashlib.sha256(FORMAT.encode())
    for part in parts:
        digest.update(b"\0" + part.encode(errors="surrogateescape"))
    return digest.hexdigest()[:32]


def opened(kind: str, key: str, make: Callable[[BinaryIO], None]) -> BinaryIO:
    """The file of this kind and key, to be read; ``make`` writes it if it is not there.

    Where there is no place for it, it is made in memory, for this once.

    Raises:
        Exception: what ``make`` raises.
    """
    try:
        with _own_directory() as place:
            return _found(place, kind, key) or _made(place, kind, key, make)
    except _Unusable as reason:
        log.info("%s is not used: %s", directory(), reason)
    file = open(os.memfd_create(f"nsrun-{kind}", os.MFD_CLOEXEC), "w+b")  # noqa: SIM115 - given away
    make(file)
    file.flush()
    file.seek(0)
    return file


def found(kind: str, key: str) -> BinaryIO | None:
    """The file if it is there, to be read."""
    try:
        with _own_directory() as place:
            return _found(place, kind, key)
    except _Unusable:
        return None


def keep(kind: str, key: str, make: Callable[[BinaryIO], None]) -> None:
    """Have ``make`` write the file, unless it is there, or there is no place for it.

    Raises:
        Exception: what ``make`` raises.
    """
    try:
        with _own_directory() as place:
            (_found(place, kind, key) or _made(place, kind, key, make)).close()
    except _Unusable as reason:
        log.info("%s is not used: %s", directory(), reason)


def unnamed(kind: str) -> BinaryIO:
    """An empty file for this process alone, and whom it gives it to; in memory where need be."""
    flags = os.O_TMPFILE | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC
    try:
        with _own_directory() as place:
            return open(os.open(".", flags, 0o600, dir_fd=place), "w+b")
    except (_Unusable, OSError) as reason:
        log.info("%s is not used: %s", directory(), reason)
    return open(os.memfd_create(f"nsrun-{kind}", os.MFD_CLOEXEC), "w+b")


def drop(kind: str, key: str) -> None:
    """Remove a file that turned out to be of no use."""
    with suppress(_Unusable, OSError), _own_directory() as place:
        os.unlink(f"{kind}-{key}", dir_fd=place)


class _Unusable(Exception):
    pass


@contextmanager
def _own_directory() -> Iterator[int]:
    """The directory, this user's alone; made if need be."""
    path = directory()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.mkdir(mode=0o700, exist_ok=True)
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        raise _Unusable(error) from None
    try:
        found = os.fstat(fd)
        # what others may write there would be run as a kernel
        if found.st_uid != os.geteuid() or found.st_mode & (stat.S_IRWXG | stat.S_IRWXO):
            raise _Unusable("not this user's alone")
        yield fd
    finally:
        os.close(fd)


def _found(place: int, kind: str, key: str) -> BinaryIO | None:
    try:
        fd = os.open(f"{kind}-{key}", os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=place)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise _Unusable(error) from None
    with suppress(OSError):
        os.utime(fd)  # used now: it stays
    return open(fd, "rb")


def _made(place: int, kind: str, key: str, make: Callable[[BinaryIO], None]) -> BinaryIO:
    with _locked(place, kind):
        # another one may have made it while we waited
        return _found(place, kind, key) or _written(place, kind, key, make)


@contextmanager
def _locked(place: int, kind: str) -> Iterator[None]:
    """One file of a kind is made at a time; one of another kind may be needed for it."""
    try:
        fd = os.open(f"lock-{kind}", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600,
                     dir_fd=place)  # fmt: skip
    except OSError as error:
        raise _Unusable(error) from None
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def _written(place: int, kind: str, key: str, make: Callable[[BinaryIO], None]) -> BinaryIO:
    """Write it under another name, then give it its own; the lock is held."""
    name = f"{kind}-{key}"
    part = f"{_PART}{name}"
    _tidy(place, kind)
    try:
        fd = os.open(part, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC,
                     0o600, dir_fd=place)  # fmt: skip
    except OSError as error:
        raise _Unusable(error) from None
    file = open(fd, "w+b")  # noqa: SIM115 - given away
    try:
        make(file)
        file.flush()
        # a name must not come to the disk before the content
        os.fsync(fd)
        os.rename(part, name, src_dir_fd=place, dst_dir_fd=place)
    except BaseException as error:
        file.close()
        with suppress(OSError):
            os.unlink(part, dir_fd=place)
        if isinstance(error, OSError):
            raise _Unusable(error) from None
        raise
    file.seek(0)
    return file


def _tidy(place: int, kind: str) -> None:
    """Remove what killed processes left, and of this kind what was not used for longest."""
    by_use: list[tuple[int, str]] = []
    for name in os.listdir(place):
        with suppress(OSError):
            if name.startswith(f"{_PART}{kind}-"):
                os.unlink(name, dir_fd=place)
            elif name.startswith(f"{kind}-"):
                by_use.append((os.stat(name, dir_fd=place).st_mtime_ns, name))
    for _, name in sorted(by_use, reverse=True)[KEPT - 1 :]:
        with suppress(OSError):
            os.unlink(name, dir_fd=place)
