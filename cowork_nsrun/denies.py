"""Deny lists: what a sandbox must not read or write within what it is shown.

A denied path is covered or made a read-only mount of itself, and every directory on
the way to it becomes a mount as well: a mount point can't be renamed or removed from
inside, so no other file can take its name.  Of a denied path and a bind the longer one
wins; of equal ones, the denial.
"""

from __future__ import annotations

import fcntl
import logging
import os
import re
import stat
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from fnmatch import translate
from pathlib import PurePosixPath

from cowork_nsrun._native import Op, OpFlag, OpType
from cowork_nsrun.errors import NsrunError, SpecError
from cowork_nsrun.spec import (
    Bind,
    BindData,
    BindFd,
    Dev,
    Dir,
    File,
    Mqueue,
    Operation,
    Overlay,
    Proc,
    ReadOnlyOverlay,
    RemountReadOnly,
    Sandbox,
    Symlink,
    Tmpfs,
    TmpOverlay,
)

log = logging.getLogger(__name__)

MATCHES_MAX = 4096  # of one pattern; as many mounts as a kernel has by default are 100000
LINKS_MAX = 40  # as the kernel has it
PLACEHOLDER_MODE = 0o500
_MOUNTS = (
    Bind, BindFd, Tmpfs, Proc, Dev, Mqueue, BindData, Overlay, TmpOverlay, ReadOnlyOverlay,
)  # fmt: skip

Path = PurePosixPath


@dataclass(frozen=True, slots=True)
class _Place:
    """A path inside, after links: what it is there and on the host.

    Attributes:
        path: without links, as far as it exists.
        host: the host's path of the same; None: not the host's.
        mode: of what is there; None: nothing is.
        missing: the first name on the way that isn't there; None: all are.
        writable: the operation that shows it lets it be written.
        links: the names of links that led here.
    """

    path: Path
    host: str | None
    mode: int | None
    missing: Path | None
    writable: bool
    links: tuple[Path, ...]


class _View:
    """What a list of operations makes of paths, as seen from here."""

    def __init__(self, operations: tuple[Operation, ...]) -> None:
        self.operations = operations
        self.dests = [_normal(item.dest) for item in operations]
        self._sources = [_sources(item) for item in operations]
        self._mounts = [
            (index, dest)
            for index, (item, dest) in enumerate(zip(operations, self.dests, strict=True))
            if isinstance(item, _MOUNTS)
            and not (isinstance(item, Bind) and item.optional and not os.path.exists(item.source))
        ]
        self._mounts.reverse()
        self._governing: dict[Path, int | None] = {}

    def governing(self, path: Path) -> int | None:
        """Index of the operation whose mount the path lies in."""
        if path not in self._governing:
            within = (index for index, dest in self._mounts if _below(path, dest))
            self._governing[path] = next(within, None)
        return self._governing[path]

    def behind(self, path: Path) -> int:
        """Where in the list the path is what it is going to be."""
        covering = (i for i, dest in enumerate(self.dests) if _below(path, dest))
        return max(covering, default=-1) + 1

    def holds(self, path: Path) -> bool:
        """A later operation lies below it, and is to win."""
        first = self.behind(path)
        return any(dest != path and _below(dest, path) for dest in self.dests[first:])

    def writable(self, index: int | None) -> bool:
        if index is None:
            return True  # the root is a tmpfs where nothing else is
        operation, dest = self.operations[index], self.dests[index]
        later = zip(self.operations[index:], self.dests[index:], strict=True)
        if any(isinstance(item, RemountReadOnly) and at == dest for item, at in later):
            return False
        if isinstance(operation, Bind | BindFd | BindData):
            return not operation.read_only
        return not isinstance(operation, ReadOnlyOverlay)

    def hosts(self, index: int | None, path: Path) -> list[str]:
        """Where on the host it may be, the first choice first."""
        if index is None:
            return []
        rest = path.relative_to(self.dests[index])
        return [os.path.normpath(os.path.join(top, rest)) for top in self._sources[index]]

    def made(self, path: Path) -> Operation | None:
        """What makes it, where that is no mount."""
        for operation, dest in zip(reversed(self.operations), reversed(self.dests), strict=True):
            if isinstance(operation, Dir | File | Symlink) and _below(dest, path):
                return operation if dest == path else Dir(str(path))
        return None

    def look(self, path: Path) -> tuple[int | None, str | None, str | None]:
        """Mode, host path and a link's text of one name, itself not followed."""
        index = self.governing(path)
        for host in self.hosts(index, path):
            with suppress(OSError):
                if _is_placeholder(host):
                    return None, None, None
                mode = os.lstat(host).st_mode
                if index is not None and self.dests[index] == path:
                    mode = os.stat(host).st_mode
                return mode, host, os.readlink(host) if stat.S_ISLNK(mode) else None
        if index is not None and self.dests[index] == path:
            data = isinstance(self.operations[index], BindData)
            return (stat.S_IFREG if data else stat.S_IFDIR), None, None
        made = self.made(path)
        if made is None:
            below = any(_below(dest, path) for dest in self.dests)
            return (stat.S_IFDIR if below else None), None, None
        if isinstance(made, Symlink):
            return stat.S_IFLNK, None, made.target
        return (stat.S_IFREG if isinstance(made, File) else stat.S_IFDIR), None, None

    def resolve(self, path: Path) -> _Place:
        """Follow every link on the way, the last name's too.

        Raises:
            OSError: links lead in a circle.
        """
        rest, at = list(path.parts[1:]), Path("/")
        mode: int | None = stat.S_IFDIR
        host: str | None = None
        missing: Path | None = None
        links: list[Path] = []
        while rest:
            name = rest.pop(0)
            if name == "..":
                at = at.parent
                continue
            at /= name
            if missing is None:
                mode, host, text = self.look(at)
                if mode is None:
                    missing = at
                elif text is not None:
                    links.append(at)
                    if len(links) > LINKS_MAX:
                        raise OSError(40, os.strerror(40), str(path))
                    at = Path("/") if text.startswith("/") else at.parent
                    rest = [part for part in text.split("/") if part not in {"", "."}] + rest
                    mode = stat.S_IFDIR
        index = self.governing(at)
        if missing is not None:
            host = next(iter(self.hosts(index, at)), None)
            mode = None
        elif host is None:
            _, host, _ = self.look(at)
        return _Place(at, host, mode, missing, self.writable(index), tuple(links))

    def aliases(self, place: _Place) -> Iterator[Path]:
        """Other names inside of the same file, by other binds."""
        if place.host is None:
            return
        real = Path(place.host)
        for index, sources in enumerate(self._sources):
            for top in map(Path, sources):
                dest = self.dests[index]
                if _below(real, top):
                    alias = dest / real.relative_to(top)
                elif _below(top, real) and not _below(dest, place.path):
                    alias = dest
                else:
                    continue
                if alias != place.path and self.governing(alias) == index:
                    yield alias


def _below(path: Path, top: Path) -> bool:
    """What Path.is_relative_to does, and faster."""
    parts = top.parts
    return path.parts[: len(parts)] == parts


def _normal(path: str | None) -> Path:
    """Without doubled slashes and names of the directory itself."""
    return Path("/", os.path.normpath(path or "/").lstrip("/"))


def _sources(operation: Operation) -> tuple[str, ...]:
    match operation:
        case Bind(source):
            return (os.path.realpath(source),)
        case BindFd(fd):
            return (os.path.realpath(f"/proc/self/fd/{fd}"),)
        case Overlay(_, layers, upper):
            return (os.path.realpath(upper), *map(os.path.realpath, reversed(layers)))
        case TmpOverlay(_, layers) | ReadOnlyOverlay(_, layers):
            return tuple(map(os.path.realpath, reversed(layers)))
        case _:
            return ()


# --- patterns ---------------------------------------------------------------------------


def _is_pattern(path: str) -> bool:
    return any(sign in path for sign in "*?[")


class _Expansion:
    """The paths inside that a pattern means now."""

    def __init__(self, view: _View, field_name: str, pattern: str) -> None:
        self._view, self._field, self._pattern = view, field_name, pattern
        self._found: dict[Path, None] = {}

    def paths(self) -> tuple[Path, ...]:
        """``**`` stands for any number of directories, and follows no link."""
        self._walk(Path("/"), list(_normal(self._pattern).parts[1:]))
        return tuple(self._found)

    def _walk(self, at: Path, parts: list[str]) -> None:
        if not parts:
            self._found[at] = None
            if len(self._found) > MATCHES_MAX:
                raise SpecError(self._field, f"{self._pattern!r} means over {MATCHES_MAX} paths")
            return
        head, rest = parts[0], parts[1:]
        if head == "**":
            self._walk(at, rest)
            for name in self._names(at):
                mode, _, _ = self._view.look(at / name)
                if mode is not None and stat.S_ISDIR(mode):
                    self._walk(at / name, parts)
        elif _is_pattern(head):
            matches = re.compile(translate(head)).match
            for name in self._names(at):
                if matches(name):
                    self._walk(at / name, rest)
        elif self._view.look(at / head)[0] is not None:
            self._walk(at / head, rest)

    def _names(self, at: Path) -> list[str]:
        names = {dest.name for dest in self._view.dests if dest.parent == at and dest != at}
        place = self._view.resolve(at)
        if place.host is not None:
            with suppress(OSError):
                names.update(os.listdir(place.host))
        return sorted(names)


# --- from denied paths to operations ------------------------------------------------------


@dataclass(slots=True)
class _Denial:
    read: bool
    place: _Place


@dataclass(slots=True)
class _Plan:
    """The operations to put in, by where in the list."""

    view: _View
    inserted: list[tuple[int, int, Op]] = field(default_factory=list)
    last: list[Op] = field(default_factory=list)
    absent: list[_Place] = field(default_factory=list)
    pinned: set[Path] = field(default_factory=set)

    def put(self, path: Path, op: Op) -> None:
        self.inserted.append((self.view.behind(path), len(path.parts), op))

    def guard(self, path: Path, *, read_only: bool) -> None:
        """A mount of itself, with the rights that it has already, or fewer."""
        index = self.view.governing(path)
        devices = index is not None and (
            isinstance(self.view.operations[index], Dev)
            or getattr(self.view.operations[index], "devices", False)
        )
        flags = OpFlag.NO_LINKS | (OpFlag.DEVICES if devices else OpFlag.NONE)
        self.put(path, Op(OpType.GUARD, str(path), flags=flags | OpFlag.RDONLY * read_only))

    def pin(self, path: Path) -> None:
        """Every directory that could be renamed to make room for another."""
        for parent in reversed(path.parents[:-1]):
            index = self.view.governing(parent)
            if index is None or self.view.dests[index] == parent or parent in self.pinned:
                continue
            if self.view.writable(index) and self.view.hosts(index, parent):
                self.pinned.add(parent)
                self.guard(parent, read_only=False)

    def empty(self, path: Path, mode: int) -> None:
        self.put(path, Op(OpType.TMPFS, str(path), perms=mode, flags=OpFlag.NO_LINKS))
        self.last.append(Op(OpType.REMOUNT_RO, str(path), flags=OpFlag.NO_LINKS))

    def deny_read(self, place: _Place) -> None:
        if place.mode is None:
            return  # nothing is there to be read
        self.pin(place.path)
        if stat.S_ISDIR(place.mode):
            # binds that lie below it have to be reached
            self.empty(place.path, 0o111 if self.view.holds(place.path) else 0)
        else:
            flags = OpFlag.NO_LINKS | OpFlag.RDONLY
            self.put(place.path, Op(OpType.BIND_DATA, str(place.path), data=b"", flags=flags))

    def deny_write(self, place: _Place) -> None:
        if not place.writable:
            return
        if place.missing is None:
            self.pin(place.path)
            self.guard(place.path, read_only=True)
            return
        if place.missing in self.pinned:
            return
        self.pinned.add(place.missing)
        self.pin(place.missing)
        # a readable empty directory is what most programs pass by without a word
        self.empty(place.missing, 0o555)
        self.absent.append(place)

    def operations(self) -> tuple[Operation | Op, ...]:
        merged: list[Operation | Op] = []
        added = sorted(self.inserted, key=lambda item: item[:2])
        for index in range(len(self.view.operations) + 1):
            merged += [op for at, _, op in added if at == index]
            merged += self.view.operations[index : index + 1]
        return (*merged, *self.last)


def _places(view: _View, field_name: str, path: str) -> Iterator[_Place]:
    name = f"Sandbox.{field_name}"
    paths = _Expansion(view, name, path).paths() if _is_pattern(path) else (_normal(path),)
    for one in paths:
        try:
            place = view.resolve(one)
        except OSError as error:
            raise SpecError(name, f"{one}: {error.strerror}") from None
        if place.path == Path("/"):
            raise SpecError(name, f"{one} is everything there is: bind less instead")
        yield place
        for alias in view.aliases(place):
            yield view.resolve(alias)


def _check_links(view: _View, place: _Place) -> None:
    """A link can't be kept from being replaced: nothing can be mounted on it."""
    for link in place.links:
        index = view.governing(link)
        if view.writable(index) and view.hosts(index, link):
            raise SpecError(
                "Sandbox.deny_write",
                f"{link} is a symbolic link where the command can replace it: name "
                f"{place.path} instead, or bind {link.parent} read-only",
            )


def _warn_of_links(place: _Place) -> None:
    with suppress(OSError):
        if place.host is not None and place.mode is not None and stat.S_ISREG(place.mode):
            count = os.stat(place.host).st_nlink
            if count > 1:
                log.warning(
                    "%s has %d other hard links, which are not denied", place.path, count - 1
                )


def _compile(spec: Sandbox) -> _Plan:
    plan = _Plan(_View(spec.filesystem))
    hidden: list[Path] = []
    denials = [
        _Denial(name == "deny_read", place)
        for name in ("deny_read", "deny_write")
        for path in getattr(spec, name)
        for place in _places(plan.view, name, path)
    ]
    seen: set[tuple[bool, Path]] = set()
    # shorter ones first: what is longer lies on top
    for denial in sorted(denials, key=lambda item: (len(item.place.path.parts), not item.read)):
        place = denial.place
        if not denial.read:
            _check_links(plan.view, place)
        if (denial.read, place.path) in seen or _is_hidden(plan.view, hidden, place.path):
            continue
        seen.add((denial.read, place.path))
        _warn_of_links(place)
        if denial.read:
            plan.deny_read(place)
            if place.mode is not None:
                hidden.append(place.path)
        else:
            plan.deny_write(place)
    return plan


def _is_hidden(view: _View, hidden: list[Path], path: Path) -> bool:
    """Covered by a denial of reading, with no bind in between that wins over it."""
    index = view.governing(path)
    dest = Path("/") if index is None else view.dests[index]
    return any(_below(path, top) and _below(top, dest) for top in hidden)


def with_denies(spec: Sandbox) -> tuple[Operation | Op, ...]:
    """The filesystem of a spec with what keeps its deny lists.

    Raises:
        SpecError: a denial that can't be kept, by its field and path.
    """
    if not spec.deny_read and not spec.deny_write:
        return spec.filesystem
    return _compile(spec).operations()


# --- names that are not to come into being --------------------------------------------------


class Placeholders:
    """Empty directories on the host that are mounted on, so that nothing takes their names.

    Several sandboxes may need the same: each holds a shared lock on it, and the last
    one removes it.  After a kill -9 it stays behind, empty, until the next that needs it.
    """

    def __init__(self) -> None:
        self._held: list[_Held] = []

    def hold(self, path: str) -> None:
        """Make it, or share what another sandbox has made.

        Arguments:
            path: without links; one that somebody puts there meanwhile is an error.

        Raises:
            OSError: it can't be made.
            NsrunError: others make and remove it all the time.
        """
        above, name = os.path.split(path)
        parent = _open_straight(above)
        try:
            for _ in range(LINKS_MAX):
                fd = _make(parent, name)
                if fd is not None:
                    self._held.append(_Held(parent, name, fd))
                    return
        except BaseException:
            os.close(parent)
            raise
        os.close(parent)
        raise NsrunError(f"Can't hold the name {path}: it comes and goes", path=path)

    def release(self) -> None:
        """Remove what no other sandbox needs."""
        while self._held:
            held = self._held.pop()
            with suppress(OSError):
                fcntl.flock(held.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if _is_at(held.fd, held.parent, held.name):
                    os.rmdir(held.name, dir_fd=held.parent)
            held.close()

    def forget(self) -> None:
        """For a forked copy of the program."""
        while self._held:
            self._held.pop().close()


@dataclass(frozen=True, slots=True)
class _Held:
    """A directory by its parent and name, and open with a shared lock."""

    parent: int
    name: str
    fd: int

    def close(self) -> None:
        os.close(self.fd)
        os.close(self.parent)


def _open_straight(path: str) -> int:
    """A directory, on the way to which there is no link: as openat2(2) can do it."""
    how = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    fd = os.open("/", how)
    for name in Path(path).parts[1:]:
        try:
            below = os.open(name, how, dir_fd=fd)
        finally:
            os.close(fd)
        fd = below
    return fd


def _make(parent: int, name: str) -> int | None:
    """The placeholder, open and locked; None: it was removed in between."""
    with suppress(FileExistsError):
        os.mkdir(name, PLACEHOLDER_MODE, dir_fd=parent)
    how = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        fd = os.open(name, how, dir_fd=parent)
    except FileNotFoundError:
        return None
    fcntl.flock(fd, fcntl.LOCK_SH)
    if _is_at(fd, parent, name):
        return fd
    os.close(fd)
    return None


def _is_at(fd: int, parent: int, name: str) -> bool:
    try:
        there = os.stat(name, dir_fd=parent, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return os.path.samestat(os.fstat(fd), there)


def _is_placeholder(path: str) -> bool:
    """What a sandbox has made, of now or of one that was killed."""
    with suppress(OSError):
        found = os.lstat(path)
        return (
            stat.S_ISDIR(found.st_mode)
            and stat.S_IMODE(found.st_mode) == PLACEHOLDER_MODE
            and found.st_uid == os.geteuid()
            and not os.listdir(path)
        )
    return False


def hold_names(spec: Sandbox) -> Placeholders | None:
    """Make what :func:`with_denies` mounts on where nothing is; None: nothing is needed.

    Raises:
        SpecError: a denial that can't be kept.
        NsrunError: a directory can't be made.
    """
    if not spec.deny_write:
        return None
    placeholders = Placeholders()
    try:
        for host in _to_hold(spec):
            try:
                placeholders.hold(host)
            except OSError as error:
                raise NsrunError(
                    f"Can't keep {host} from being made: {error.strerror}",
                    path=host,
                    errno=error.errno or 0,
                ) from None
    except BaseException:
        placeholders.release()
        raise
    return placeholders


def _to_hold(spec: Sandbox) -> list[str]:
    plan = _compile(spec)
    found: dict[str, None] = {}
    for place in plan.absent:
        assert place.missing is not None
        index = plan.view.governing(place.missing)
        for host in plan.view.hosts(index, place.missing)[:1]:
            found[host] = None
    return list(found)
