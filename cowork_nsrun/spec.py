"""What a sandbox is, as a value: :class:`Sandbox` and the filesystem operations in it.

Everything here is frozen and checked when it is made: a wrong value raises
:class:`SpecError` that names its field.  Methods return a changed copy.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from enum import StrEnum
from pathlib import Path
from typing import Any, Literal, Self

from cowork_nsrun.errors import SpecError

PATH_MAX = 4096
MODE_MAX = 0o7777
ID_MAX = 2**31 - 1
SIZE_MAX = 2**63 - 1
BPF_INSTRUCTION = 8
BPF_MAX = 4096 * BPF_INSTRUCTION

PathLike = str | os.PathLike[str]


class Namespace(StrEnum):
    """A kind of namespace that a sandbox can have for itself: namespaces(7)."""

    USER = "user"
    IPC = "ipc"
    PID = "pid"
    NET = "net"
    UTS = "uts"
    CGROUP = "cgroup"


# --- checks; each takes the object, its field's name, and returns nothing ---------------


def _name(owner: object, field_name: str) -> str:
    return f"{type(owner).__name__}.{field_name}"


def _refuse(owner: object, field_name: str, problem: str) -> SpecError:
    return SpecError(_name(owner, field_name), problem)


def _set(owner: object, field_name: str, value: object) -> None:
    """Store the checked form of a field; the dataclasses are frozen for everybody else."""
    object.__setattr__(owner, field_name, value)


def _check_text(owner: object, field_name: str, value: object) -> None:
    if not isinstance(value, str):
        raise _refuse(owner, field_name, f"a string is wanted, not {value!r}")
    if "\0" in value:
        raise _refuse(owner, field_name, f"{value!r} holds a NUL byte")
    try:
        os.fsencode(value)
    except UnicodeEncodeError:
        raise _refuse(owner, field_name, f"{value!r} can't be encoded") from None


def _check_path(owner: object, field_name: str) -> None:
    value = getattr(owner, field_name)
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
        _set(owner, field_name, value)
    _check_text(owner, field_name, value)
    if not value.startswith("/"):
        raise _refuse(owner, field_name, f"an absolute path is wanted, not {value!r}")
    if len(os.fsencode(value)) >= PATH_MAX:
        raise _refuse(owner, field_name, f"longer than {PATH_MAX - 1} bytes")


def _check_bool(owner: object, field_name: str) -> None:
    value = getattr(owner, field_name)
    if not isinstance(value, bool):
        raise _refuse(owner, field_name, f"True or False is wanted, not {value!r}")


def _check_number(owner: object, field_name: str, low: int, high: int) -> None:
    value = getattr(owner, field_name)
    if isinstance(value, bool) or not isinstance(value, int):
        raise _refuse(owner, field_name, f"a number is wanted, not {value!r}")
    if not low <= value <= high:
        raise _refuse(owner, field_name, f"{value} is not between {low} and {high}")


def _check_mode(owner: object, field_name: str = "mode") -> None:
    _check_number(owner, field_name, 0, MODE_MAX)


def _check_content(owner: object) -> None:
    content = getattr(owner, "content", None)
    if isinstance(content, str):
        raise _refuse(owner, "content", "bytes are wanted, not a string")
    if not isinstance(content, bytes):
        raise _refuse(owner, "content", f"bytes are wanted, not {content!r}")


def _check_layers(owner: object, at_least: int) -> None:
    layers: object = getattr(owner, "layers", None)
    if isinstance(layers, str) or not isinstance(layers, Sequence):
        raise _refuse(owner, "layers", f"a sequence of paths is wanted, not {layers!r}")
    if len(layers) < at_least:
        raise _refuse(owner, "layers", f"at least {at_least} wanted, not {len(layers)}")
    for layer in layers:
        if not isinstance(layer, str | os.PathLike) or not os.fspath(layer).startswith("/"):
            raise _refuse(owner, "layers", f"an absolute path is wanted, not {layer!r}")
        _check_text(owner, "layers", os.fspath(layer))
    _set(owner, "layers", tuple(os.fspath(layer) for layer in layers))


# --- filesystem operations ----------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Bind:
    """Show the host's ``source`` at ``dest``: ``--bind`` and its kin.

    Attributes:
        read_only: ``--ro-bind``.
        devices: device nodes stay usable, ``--dev-bind``.
        optional: an absent source skips the operation, ``--bind-try``.
    """

    source: str
    dest: str
    read_only: bool = False
    devices: bool = False
    optional: bool = False

    def __post_init__(self) -> None:
        _check_path(self, "source")
        _check_path(self, "dest")
        for name in ("read_only", "devices", "optional"):
            _check_bool(self, name)
        if self.read_only and self.devices:
            raise _refuse(self, "devices", "a bind is read-only or shows devices, not both")


@dataclass(frozen=True, slots=True)
class BindFd:
    """Show the directory or file that is open at ``fd``: ``--bind-fd``, ``--ro-bind-fd``."""

    fd: int
    dest: str
    read_only: bool = False

    def __post_init__(self) -> None:
        _check_number(self, "fd", 0, ID_MAX)
        _check_path(self, "dest")
        _check_bool(self, "read_only")


@dataclass(frozen=True, slots=True)
class _AtDest:
    dest: str

    def __post_init__(self) -> None:
        _check_path(self, "dest")


class RemountReadOnly(_AtDest):
    """Make the mount at ``dest`` read-only, not what is below it: ``--remount-ro``."""

    __slots__ = ()


class Mqueue(_AtDest):
    """Mount a new POSIX message queue filesystem: ``--mqueue``."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class Proc(_AtDest):
    """Mount a new proc: ``--proc``."""

    dest: str = "/proc"


@dataclass(frozen=True, slots=True)
class Dev(_AtDest):
    """Make a minimal /dev: ``--dev``."""

    dest: str = "/dev"


@dataclass(frozen=True, slots=True)
class Tmpfs:
    """Mount a new tmpfs: ``--tmpfs``, after ``--size`` and ``--perms``.

    Attributes:
        size: bytes; None leaves it to the kernel (half of the memory).
    """

    dest: str
    size: int | None = None
    mode: int = 0o755

    def __post_init__(self) -> None:
        _check_path(self, "dest")
        _check_mode(self)
        if self.size is not None:
            _check_number(self, "size", 1, SIZE_MAX)


@dataclass(frozen=True, slots=True)
class Dir:
    """Make a directory: ``--dir``."""

    dest: str
    mode: int = 0o755

    def __post_init__(self) -> None:
        _check_path(self, "dest")
        _check_mode(self)


@dataclass(frozen=True, slots=True)
class File:
    """Make a file that holds ``content``: ``--file``."""

    dest: str
    content: bytes
    mode: int = 0o666

    def __post_init__(self) -> None:
        _check_path(self, "dest")
        _check_content(self)
        _check_mode(self)


@dataclass(frozen=True, slots=True)
class BindData:
    """Mount a file that holds ``content`` at ``dest``: ``--bind-data``, ``--ro-bind-data``."""

    dest: str
    content: bytes
    read_only: bool = False
    mode: int = 0o600

    def __post_init__(self) -> None:
        _check_path(self, "dest")
        _check_content(self)
        _check_bool(self, "read_only")
        _check_mode(self)


@dataclass(frozen=True, slots=True)
class Symlink:
    """Make a symbolic link at ``dest`` with the text ``target``: ``--symlink``."""

    target: str
    dest: str

    def __post_init__(self) -> None:
        _check_text(self, "target", self.target)
        if not self.target:
            raise _refuse(self, "target", "must not be empty")
        _check_path(self, "dest")


@dataclass(frozen=True, slots=True)
class Chmod:
    """Change the mode of ``dest`` inside: ``--chmod``."""

    dest: str
    mode: int

    def __post_init__(self) -> None:
        _check_path(self, "dest")
        _check_mode(self)


@dataclass(frozen=True, slots=True)
class Overlay:
    """Mount an overlay whose changes go to ``upper``: ``--overlay``.

    Attributes:
        layers: lower directories, bottom first; at least one.
        upper: host directory that takes the changes.
        work: an empty host directory on the same filesystem as ``upper``.
    """

    dest: str
    layers: tuple[str, ...]
    upper: str
    work: str

    def __post_init__(self) -> None:
        for name in ("dest", "upper", "work"):
            _check_path(self, name)
        _check_layers(self, 1)


@dataclass(frozen=True, slots=True)
class TmpOverlay:
    """Mount an overlay whose changes are lost at the end: ``--tmp-overlay``."""

    dest: str
    layers: tuple[str, ...]

    def __post_init__(self) -> None:
        _check_path(self, "dest")
        _check_layers(self, 1)


@dataclass(frozen=True, slots=True)
class ReadOnlyOverlay:
    """Mount a read-only overlay of at least two layers: ``--ro-overlay``."""

    dest: str
    layers: tuple[str, ...]

    def __post_init__(self) -> None:
        _check_path(self, "dest")
        _check_layers(self, 2)


Operation = (
    Bind
    | BindFd
    | RemountReadOnly
    | Proc
    | Dev
    | Tmpfs
    | Mqueue
    | Dir
    | File
    | BindData
    | Symlink
    | Chmod
    | Overlay
    | TmpOverlay
    | ReadOnlyOverlay
)

# every namespace that "--unshare-all" takes without "if possible"
_ALL = frozenset({Namespace.IPC, Namespace.PID, Namespace.NET, Namespace.UTS})
_TRY = frozenset({Namespace.USER, Namespace.CGROUP})

# What programs commonly read in /etc and what gives nothing away; what is absent is left out.
_PUBLIC_ETC = (
    "alternatives", "ca-certificates", "group", "hosts", "ld.so.cache", "ld.so.conf",
    "ld.so.conf.d", "localtime", "nsswitch.conf", "passwd", "pki", "protocols", "resolv.conf",
    "services", "ssl",
)  # fmt: skip
_SYSTEM_DIRS = ("/bin", "/lib", "/lib64", "/sbin")
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def _system_dir(path: str) -> tuple[Operation, ...]:
    """``/bin`` and its like as the host has them: a link into /usr, or a directory."""
    if os.path.islink(path):
        return (Symlink(os.readlink(path), path),)
    return (Bind(path, path, read_only=True),) if os.path.isdir(path) else ()


def _check_component(field_name: str, value: str) -> None:
    if not value or "/" in value or "\0" in value or value in {".", ".."}:
        raise SpecError(field_name, f"one name of a directory is wanted, not {value!r}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Sandbox:
    """What a command sees and may do.

    A bare ``Sandbox()`` has an empty root: nothing is there that no operation puts
    there.  Begin with :meth:`minimal`, :meth:`workspace` or :meth:`cowork`.

    Attributes:
        filesystem: what the root is made of, in this order.
        unshare: namespaces of its own; USER is implied for unprivileged callers.
        unshare_try: USER and CGROUP, if the system has them.
        disable_userns: no further user namespaces inside; needs USER in ``unshare``.
        uid: user id inside; None keeps the caller's.  Needs a user namespace.
        gid: group id inside, likewise.
        hostname: host name inside; needs UTS in ``unshare``.
        cwd: directory inside that the command starts in; None keeps the caller's
            where that exists inside, else $HOME, else ``/``.
        clear_env: begin with an empty environment rather than with the caller's.
        environment: what is then set, or, with None, removed.
        caps_add: names of capabilities to grant, such as ``cap_net_raw``, or ``ALL``.
        caps_drop: those to take away; a name is in one of both.
        seccomp: BPF programs to load just before the command starts.
        new_session: leave the terminal's session, so that nothing can be typed into it.
        die_with_parent: the sandbox ends with the program that started it.
        as_pid_1: the command itself is pid 1 inside; needs PID in ``unshare``.
        close_fds: the command gets stdin, stdout and stderr only.
        lock_files: files inside to hold a read lock on while the sandbox runs.
    """

    filesystem: tuple[Operation, ...] = ()
    unshare: frozenset[Namespace] = frozenset()
    unshare_try: frozenset[Namespace] = frozenset()
    disable_userns: bool = False
    uid: int | None = None
    gid: int | None = None
    hostname: str | None = None
    cwd: str | None = None
    clear_env: bool = False
    environment: tuple[tuple[str, str | None], ...] = ()
    caps_add: frozenset[str] = frozenset()
    caps_drop: frozenset[str] = frozenset()
    seccomp: tuple[bytes, ...] = field(default=(), repr=False)
    new_session: bool = False
    die_with_parent: bool = False
    as_pid_1: bool = False
    close_fds: bool = True
    lock_files: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for item in fields(self):
            if item.type == "bool":
                _check_bool(self, item.name)
        self._check_filesystem()
        self._check_namespaces()
        self._check_ids()
        self._check_environment()
        self._check_rights()
        if self.cwd is not None:
            _check_path(self, "cwd")
        _set(self, "lock_files", self._strings("lock_files"))

    def _strings(self, field_name: str) -> tuple[str, ...]:
        values: object = getattr(self, field_name)
        if isinstance(values, str) or not isinstance(values, Collection):
            raise _refuse(self, field_name, f"a collection of strings is wanted, not {values!r}")
        for value in values:
            _check_text(self, field_name, value)
        return tuple(values)

    def _check_filesystem(self) -> None:
        if not isinstance(self.filesystem, Sequence):
            raise _refuse(self, "filesystem", "a sequence of operations is wanted")
        for operation in self.filesystem:
            if not isinstance(operation, Operation):
                raise _refuse(self, "filesystem", f"{operation!r} is not an operation")
        _set(self, "filesystem", tuple(self.filesystem))

    def _check_namespaces(self) -> None:
        for name in ("unshare", "unshare_try"):
            try:
                _set(self, name, frozenset(map(Namespace, self._strings(name))))
            except ValueError as error:
                if isinstance(error, SpecError):
                    raise
                known = ", ".join(Namespace)
                raise _refuse(self, name, f"{error}; there are: {known}") from None
        if not self.unshare_try <= _TRY:
            raise _refuse(self, "unshare_try", "only user and cgroup can be tried")
        if self.disable_userns and Namespace.USER not in self.unshare:
            raise _refuse(self, "disable_userns", "needs 'user' in unshare")
        if self.as_pid_1 and Namespace.PID not in self.unshare:
            raise _refuse(self, "as_pid_1", "needs 'pid' in unshare")
        if self.as_pid_1 and self.lock_files:
            raise _refuse(self, "lock_files", "need a pid 1 that is not the command")

    def _check_ids(self) -> None:
        for name in ("uid", "gid"):
            if getattr(self, name) is not None:
                _check_number(self, name, 0, ID_MAX)
        if self.hostname is not None:
            _check_text(self, "hostname", self.hostname)
            if Namespace.UTS not in self.unshare:
                raise _refuse(self, "hostname", "needs 'uts' in unshare")

    def _check_environment(self) -> None:
        if isinstance(self.environment, Mapping):
            _set(self, "environment", tuple(self.environment.items()))
        if not isinstance(self.environment, tuple):
            raise _refuse(self, "environment", "a mapping or a tuple of pairs is wanted")
        for pair in self.environment:
            if not isinstance(pair, tuple) or len(pair) != 2:
                raise _refuse(self, "environment", f"{pair!r} is not a name and a value")
            name, value = pair
            _check_text(self, "environment", name)
            if not name or "=" in name:
                raise _refuse(self, "environment", f"{name!r} is not a variable's name")
            if value is not None:
                _check_text(self, "environment", value)

    def _check_rights(self) -> None:
        for name in ("caps_add", "caps_drop"):
            _set(self, name, frozenset(cap.lower() for cap in self._strings(name)))
        both = self.caps_add & self.caps_drop
        if both:
            raise _refuse(self, "caps_drop", f"{min(both)} is in caps_add too")
        if isinstance(self.seccomp, bytes) or not isinstance(self.seccomp, Sequence):
            raise _refuse(self, "seccomp", "a sequence of programs is wanted")
        for program in self.seccomp:
            if not isinstance(program, bytes) or len(program) % BPF_INSTRUCTION:
                raise _refuse(self, "seccomp", "a program is bytes, a multiple of 8")
            if not 0 < len(program) <= BPF_MAX:
                raise _refuse(self, "seccomp", f"a program has 1 to {BPF_MAX} bytes")
        _set(self, "seccomp", tuple(self.seccomp))

    # --- presets ----------------------------------------------------------------------

    @classmethod
    def minimal(cls) -> Self:
        """The system's programs, read-only, and nothing else of the host.

        /usr and the public part of /etc; new /dev, /proc and /tmp; every namespace of
        its own, so no network and no host processes; no capabilities; an environment of
        PATH, HOME, LANG and TERM alone.
        """
        kept = {name: os.environ[name] for name in ("LANG", "TERM") if name in os.environ}
        etc = (f"/etc/{name}" for name in _PUBLIC_ETC)
        return cls(
            filesystem=(
                Tmpfs("/"),
                Bind("/usr", "/usr", read_only=True),
                *(operation for path in _SYSTEM_DIRS for operation in _system_dir(path)),
                Dir("/etc"),
                *(Bind(path, path, read_only=True, optional=True) for path in etc),
                Dev(),
                Proc(),
                Tmpfs("/tmp", mode=0o1777),
                Dir("/home"),
                Tmpfs("/home/user", mode=0o700),
            ),
            unshare=_ALL,
            unshare_try=_TRY,
            cwd="/",
            clear_env=True,
            environment=(("PATH", _PATH), ("HOME", "/home/user"), *kept.items()),
            caps_drop=frozenset({"all"}),
            new_session=True,
            die_with_parent=True,
        )

    @classmethod
    def workspace(cls, path: PathLike) -> Self:
        """:meth:`minimal`, with one directory of the host writable at its own path.

        Arguments:
            path: the directory, absolute or relative to the caller's; the command starts
                in it.

        Raises:
            SpecError: it is not a directory.
        """
        absolute = os.path.abspath(path)
        if not os.path.isdir(absolute):
            raise SpecError("path", f"{absolute} is not a directory")
        return replace(cls.minimal().bind(absolute, absolute), cwd=absolute)

    @classmethod
    def cowork(
        cls,
        home: PathLike,
        session: str,
        mounts: Mapping[str, PathLike],
        *,
        read_only: Collection[str] = (),
        program_dir: PathLike | None = None,
        extra: Sequence[Bind] = (),
    ) -> Self:
        """The sandbox of a Cowork session: bwrap's command line there, as a value.

        The system read-only, an empty home, and the user's folders below
        ``/sessions/SESSION/mnt``.  Host network; own processes.

        Arguments:
            home: the user's home; inside it is empty.
            session: name of the session.
            mounts: name inside, to directory of the host; the command starts in the first
                that is neither hidden nor ``uploads``.
            read_only: names in ``mounts`` that are not to be written.
            program_dir: directory of the program, to be seen read-only at its own path.
            extra: further binds, ahead of the home.

        Raises:
            SpecError: a name is not one component of a path, or a path is not absolute.
        """
        _check_component("session", session)
        for name in mounts:
            _check_component("mounts", name)
        unknown = set(read_only) - set(mounts)
        if unknown:
            raise SpecError("read_only", f"{min(unknown)!r} is not in mounts")
        root = f"/sessions/{session}"
        shown = [name for name in mounts if not name.startswith(".") and name != "uploads"]
        program = () if program_dir is None else (os.fspath(program_dir),)
        return cls(
            filesystem=(
                Tmpfs("/"),
                Bind("/usr", "/usr", read_only=True),
                Bind("/etc", "/etc", read_only=True),
                Dev(),
                Proc(),
                Tmpfs("/tmp"),
                Tmpfs("/run"),
                *(operation for path in _SYSTEM_DIRS for operation in _system_dir(path)),
                *_resolver(),
                *extra,
                Dir(os.fspath(home)),
                *(Bind(path, path, read_only=True) for path in program),
                Dir(root),
                Dir(f"{root}/mnt"),
                *(
                    Bind(os.fspath(path), f"{root}/mnt/{name}", read_only=name in read_only)
                    for name, path in mounts.items()
                ),
            ),
            unshare=frozenset({Namespace.PID}),
            cwd=f"{root}/mnt/{shown[0]}" if shown else f"{root}/mnt",
            new_session=True,
            die_with_parent=True,
        )

    # --- changed copies ----------------------------------------------------------------

    def replace(self, **changes: Any) -> Self:
        """A copy with other values in some fields, checked as when it is made."""
        return replace(self, **changes)

    def add(self, *operations: Operation) -> Self:
        """A copy with filesystem operations added at the end."""
        return replace(self, filesystem=(*self.filesystem, *operations))

    def bind(
        self,
        source: PathLike,
        dest: PathLike | None = None,
        *,
        read_only: bool = False,
        optional: bool = False,
    ) -> Self:
        """A copy that shows the host's ``source``, by default at its own path.

        A relative source is taken from the caller's directory, now.
        """
        absolute = os.path.abspath(source)
        at = absolute if dest is None else os.fspath(dest)
        return self.add(Bind(absolute, at, read_only=read_only, optional=optional))

    def tmpfs(self, dest: PathLike, *, size: int | None = None, mode: int = 0o755) -> Self:
        """A copy with a new tmpfs at ``dest``; ``size`` in bytes."""
        return self.add(Tmpfs(os.fspath(dest), size=size, mode=mode))

    def env(self, changes: Mapping[str, str | None] | None = None, /, **more: str | None) -> Self:
        """A copy that sets variables, or, with None, removes them."""
        pairs = (*self.environment, *(changes or {}).items(), *more.items())
        return replace(self, environment=pairs)

    def network(self, mode: Literal["none", "host"]) -> Self:
        """A copy with no network but an own loopback device, or with the host's."""
        if mode not in {"none", "host"}:
            raise SpecError("mode", f"'none' or 'host' is wanted, not {mode!r}")
        net = {Namespace.NET}
        return replace(self, unshare=self.unshare | net if mode == "none" else self.unshare - net)


def _resolver() -> tuple[Operation, ...]:
    """Where /etc/resolv.conf leads into /run, which is hidden: its directory."""
    real = Path("/etc/resolv.conf").resolve()
    if not real.is_relative_to("/run") or not real.parent.is_dir():
        return ()
    return (Bind(str(real.parent), str(real.parent), read_only=True),)
