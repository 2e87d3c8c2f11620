"""What sessions keep on disk: a /tmp and a home of their own, where they were asked for.

All of it lies below one directory of the service's, one directory a session.  A session's
commands write there, so what lies below is not trusted.
"""

from __future__ import annotations

import os
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from cowork_nsrun.cowork.paths import check_name
from cowork_nsrun.errors import NsrunError

TMP = "tmp"
HOME = "home"
PATIENCE = 120.0  # seconds for a tree to be removed
COUNTED_MAX = 200_000  # entries of a tree that are counted


@dataclass(frozen=True, slots=True)
class Disk:
    """The file system of the home, in bytes; zeros if it does not answer."""

    total: int
    free: int


def disk(path: str) -> Disk:
    """How large the file system is that a path lies on."""
    try:
        found = os.statvfs(path)
    except OSError:
        return Disk(0, 0)
    return Disk(found.f_blocks * found.f_frsize, found.f_bavail * found.f_frsize)


@dataclass(frozen=True, slots=True)
class Storage:
    """The sessions' directories.

    Attributes:
        root: the directory that holds them.
    """

    root: Path

    def directory(self, session: str, part: str) -> str:
        """A part of a session's, made if it is not there.

        Raises:
            NsrunError: it can't be made.
        """
        place = self.root / check_name("session", session)
        try:
            self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
            place.mkdir(mode=0o700, exist_ok=True)
            (place / part).mkdir(mode=0o700, exist_ok=True)
            if (place / part).is_symlink():
                raise OSError(0, "is a symbolic link")
        except OSError as error:
            raise NsrunError(
                f"{place / part}: {error.strerror}", path=str(place), errno=error.errno or 0
            ) from None
        return str(place / part)

    def names(self) -> list[str]:
        """Sessions that have something here."""
        try:
            return sorted(entry.name for entry in os.scandir(self.root) if entry.is_dir())
        except OSError:
            return []

    def has(self, session: str) -> bool:
        """The session has something here."""
        return (self.root / check_name("session", session)).is_dir()

    def size(self, session: str) -> int:
        """Bytes on disk, of as much as is counted."""
        return _size(self.root / check_name("session", session))

    def delete(self, session: str) -> None:
        """Remove a session's directory.

        Raises:
            NsrunError: something of it is left.
        """
        _remove(self.root / check_name("session", session))

    def prune(self, session: str, older_than: float) -> int:
        """Remove what of a session's /tmp has not changed for so many seconds; bytes freed.

        Raises:
            NsrunError: something of it is left.
        """
        freed = 0
        tmp = self.root / check_name("session", session) / TMP
        if tmp.is_symlink() or not tmp.is_dir():
            return 0
        for entry in list(os.scandir(tmp)):
            if time.time() - entry.stat(follow_symlinks=False).st_mtime >= older_than:
                size = _size(Path(entry.path))
                _remove(Path(entry.path))
                freed += size
        return freed


def _size(path: Path) -> int:
    """Without following links, and without end."""
    total, counted, queue = 0, 0, [str(path)]
    while queue and counted < COUNTED_MAX:
        current = queue.pop()
        try:
            total += os.lstat(current).st_blocks * 512
            if os.path.isdir(current) and not os.path.islink(current):
                queue += [entry.path for entry in os.scandir(current)]
        except OSError:
            continue
        counted += 1
    return total


def _remove(path: Path) -> None:
    """rm(1) follows no links, and takes trees of any depth."""
    command = ["rm", "-rf", "--one-file-system", "--", str(path)]
    done = _run(command)
    if done.returncode and not path.is_symlink():
        _run(["chmod", "-R", "u+rwx", "--", str(path)])
        done = _run(command)
    if done.returncode:
        raise NsrunError(f"{path}: {done.stderr[:500].strip()}", path=str(path))


def _run(command: list[str]) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=PATIENCE,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NsrunError(f"{command[-1]}: {error}", path=command[-1]) from None
