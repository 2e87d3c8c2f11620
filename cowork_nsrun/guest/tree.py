"""What a plan's operations make of paths, as seen from the host before anything is mounted."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field

from cowork_nsrun.errors import NsrunError

#: as the kernel has it
LINKS_MAX = 40


@dataclass(slots=True)
class Mount:
    """What an operation mounts.

    Attributes:
        dest: the path inside, without links.
        host: the host's path of the same; None: nothing of the host's.
        writable: what is there can be changed.
        number: which export shows it; None: none does.
    """

    dest: str
    host: str | None = None
    writable: bool = True
    number: int | None = None


@dataclass(frozen=True, slots=True)
class Place:
    """A path inside, after links.

    Attributes:
        path: without links.
        mount: in which it lies.
        host: the host's path of the same; None: not the host's.
    """

    path: str
    mount: Mount
    host: str | None

    @property
    def relative(self) -> str:
        """To its mount; empty: it is the mount itself."""
        return self.path.removeprefix(self.mount.dest).strip("/")


@dataclass(slots=True)
class Tree:
    """The mounts so far, and what was made between them."""

    mounts: list[Mount] = field(default_factory=lambda: [Mount("/")])
    links: dict[str, str] = field(default_factory=dict)
    directories: set[str] = field(default_factory=set)

    def mount_of(self, path: str) -> Mount:
        """The mount that a path without links lies in."""
        return next(each for each in reversed(self.mounts) if is_below(path, each.dest))

    def at(self, path: str) -> Place:
        """A path without links."""
        mount = self.mount_of(path)
        if mount.host is None:
            return Place(path, mount, None)
        rest = path.removeprefix(mount.dest).strip("/")
        return Place(path, mount, os.path.join(mount.host, rest) if rest else mount.host)

    def _link(self, place: Place) -> str | None:
        """The text of the link that a place is."""
        if place.host is None:
            return self.links.get(place.path)
        with suppress(OSError):
            return os.readlink(place.host)
        return None

    def resolve(self, dest: str) -> Place:
        """Follow a path, links included, as the core does below the new root.

        Raises:
            NsrunError: links without an end.
        """
        path, left, seen = "/", _parts(dest), 0
        while left:
            name = left.pop(0)
            if name == "..":
                path = os.path.dirname(path)
                continue
            place = self.at(os.path.join(path, name))
            text = self._link(place)
            if text is None:
                path = place.path
                continue
            seen += 1
            if seen > LINKS_MAX:
                raise NsrunError(f"{dest}: too many symbolic links", path=dest)
            if text.startswith("/"):
                path = "/"
            left = _parts(text) + left
        return self.at(path)

    def name(self, dest: str) -> Place:
        """Where something gets a name, which is not followed if a link has it already.

        Raises:
            NsrunError: links without an end, before that name.
        """
        above_it, _, last = dest.rstrip("/").rpartition("/")
        if last in ("", ".", ".."):
            return self.resolve(dest)
        return self.at(os.path.join(self.resolve(above_it).path, last))

    def add(self, mount: Mount) -> None:
        """Mount over whatever is there, which is out of sight from now on."""
        self.mounts.append(mount)
        self.directories = {path for path in self.directories if not is_below(path, mount.dest)}
        self.links = {
            path: text for path, text in self.links.items() if not is_below(path, mount.dest)
        }
        self.directories.update(above(mount.dest))

    def is_directory(self, path: str) -> bool:
        """Whether there is a directory at that path, as far as can be told."""
        place = self.resolve(path)
        if place.host is not None:
            return os.path.isdir(place.host)
        return place.path == place.mount.dest or place.path in self.directories


def _parts(path: str) -> list[str]:
    return [part for part in path.split("/") if part not in ("", ".")]


def is_below(path: str, top: str) -> bool:
    """Whether it is that path or lies below it; both without links."""
    return top in ("/", path) or path.startswith(f"{top}/")


def above(path: str) -> Iterator[str]:
    """A path and those above it."""
    while path != "/":
        yield path
        path = os.path.dirname(path)


def make_mount_point(top: str, relative: str, *, directory: bool, parents: int) -> None:
    """Make what something is to be mounted on, as the core would in the sandbox.

    No link is followed below ``top``, whoever may have put one there meanwhile.

    Arguments:
        top: where the export begins.
        relative: the way from there.
        directory: whether it is to be one; else an empty file.
        parents: mode of the directories that are missing on the way.

    Raises:
        OSError: it can't be made.
    """
    flags = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
    *way, last = relative.split("/")
    at = os.open(top, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for name in way:
            with suppress(FileExistsError):
                os.mkdir(name, parents, dir_fd=at)
            below = os.open(name, flags | os.O_DIRECTORY, dir_fd=at)
            os.close(at)
            at = below
        with suppress(FileExistsError):
            if directory:
                os.mkdir(last, 0o755, dir_fd=at)
            else:
                os.mknod(last, stat.S_IFREG | 0o444, dir_fd=at)
    finally:
        os.close(at)
