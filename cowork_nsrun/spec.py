"""What a sandbox is, as a value: :class:`Sandbox` and the filesystem operations in it.

Everything here is frozen and checked when it is made: a wrong value raises
:class:`SpecError` that names its field.  Methods return a changed copy.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from enum import StrEnum
from fractions import Fraction
from pathlib import Path
from types import MappingProxyType
from typing import (
    TYPE_CHECKING,
    Annotated,
    Any,
    Literal,
    NamedTuple,
    Self,
    TypedDict,
    Unpack,
    get_args,
    overload,
)

from cowork_nsrun.errors import SpecError
from cowork_nsrun.namespaces import Namespace

if TYPE_CHECKING:
    # what runs a spec is imported by the methods that do: a spec alone is a value
    from cowork_nsrun.aio import AsyncPopenOptions, AsyncProcess, AsyncRunOptions
    from cowork_nsrun.policy.rules import EgressRules
    from cowork_nsrun.pool import Pool
    from cowork_nsrun.process import Argv, PopenOptions, Process, Result, RunOptions

PATH_MAX = 4096
MODE_MAX = 0o7777
ID_MAX = 2**31 - 1
PORT_MAX = 2**16 - 1
SIZE_MAX = 2**63 - 1
BPF_INSTRUCTION = 8
BPF_MAX = 4096 * BPF_INSTRUCTION
TIMEOUT_MAX = 10**9
SIZE_PATTERN = r"([0-9]{1,20}(?:\.[0-9]{1,20})?)([KMGTkmgt]?)"
_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}

PathLike = str | os.PathLike[str]


class Kind(StrEnum):
    """What a value means beyond its type; profiles and their schema go by it."""

    HOST_PATH = "host path"
    INNER_PATH = "inner path"
    MODE = "mode"
    SIZE = "size"


class Range(NamedTuple):
    """The least and the greatest value of a number."""

    low: float
    high: float


HostPath = Annotated[str, Kind.HOST_PATH]
InnerPath = Annotated[str, Kind.INNER_PATH]
Mode = Annotated[int, Kind.MODE, Range(0, MODE_MAX)]
Size = Annotated[int, Kind.SIZE, Range(1, SIZE_MAX)]
Id = Annotated[int, Range(0, ID_MAX)]
Port = Annotated[int, Range(1, PORT_MAX)]


def parse_size(text: str) -> int:
    """Bytes from a number with K, M, G or T behind it, powers of 1024: ``1.5G``.

    Raises:
        ValueError: it is not written so, or is no whole number of bytes.
    """
    match = re.fullmatch(SIZE_PATTERN, text)
    if match is None:
        raise ValueError(f"bytes are wanted, or a number with K, M, G or T, not {text!r}")
    size = Fraction(match[1]) * _UNITS[match[2].upper()]
    if size.denominator != 1:
        raise ValueError(f"{text!r} is not a whole number of bytes")
    return int(size)


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


def _check_size(owner: object, field_name: str, low: int = 1, high: int = SIZE_MAX) -> None:
    value = getattr(owner, field_name)
    if isinstance(value, str):
        try:
            _set(owner, field_name, parse_size(value))
        except ValueError as error:
            raise _refuse(owner, field_name, str(error)) from None
    _check_number(owner, field_name, low, high)


def _check_real(owner: object, field_name: str, low: float, high: float) -> None:
    value = getattr(owner, field_name)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _refuse(owner, field_name, f"a number is wanted, not {value!r}")
    if not low <= value <= high:  # neither is NaN
        raise _refuse(owner, field_name, f"{value} is not between {low} and {high}")
    _set(owner, field_name, float(value))


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

    source: HostPath
    dest: InnerPath
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

    fd: Id
    dest: InnerPath
    read_only: bool = False

    def __post_init__(self) -> None:
        _check_number(self, "fd", 0, ID_MAX)
        _check_path(self, "dest")
        _check_bool(self, "read_only")


@dataclass(frozen=True, slots=True)
class _AtDest:
    dest: InnerPath

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

    dest: InnerPath = "/proc"


@dataclass(frozen=True, slots=True)
class Dev(_AtDest):
    """Make a minimal /dev: ``--dev``."""

    dest: InnerPath = "/dev"


@dataclass(frozen=True, slots=True)
class Tmpfs:
    """Mount a new tmpfs: ``--tmpfs``, after ``--size`` and ``--perms``.

    Attributes:
        size: bytes, or such as "64M"; None leaves it to the kernel (half of the memory).
    """

    dest: InnerPath
    size: Size | None = None
    mode: Mode = 0o755

    def __post_init__(self) -> None:
        _check_path(self, "dest")
        _check_mode(self)
        if self.size is not None:
            _check_size(self, "size")


@dataclass(frozen=True, slots=True)
class Dir:
    """Make a directory: ``--dir``."""

    dest: InnerPath
    mode: Mode = 0o755

    def __post_init__(self) -> None:
        _check_path(self, "dest")
        _check_mode(self)


@dataclass(frozen=True, slots=True)
class File:
    """Make a file that holds ``content``: ``--file``."""

    dest: InnerPath
    content: bytes
    mode: Mode = 0o666

    def __post_init__(self) -> None:
        _check_path(self, "dest")
        _check_content(self)
        _check_mode(self)


@dataclass(frozen=True, slots=True)
class BindData:
    """Mount a file that holds ``content`` at ``dest``: ``--bind-data``, ``--ro-bind-data``."""

    dest: InnerPath
    content: bytes
    read_only: bool = False
    mode: Mode = 0o600

    def __post_init__(self) -> None:
        _check_path(self, "dest")
        _check_content(self)
        _check_bool(self, "read_only")
        _check_mode(self)


@dataclass(frozen=True, slots=True)
class Symlink:
    """Make a symbolic link at ``dest`` with the text ``target``: ``--symlink``."""

    target: str
    dest: InnerPath

    def __post_init__(self) -> None:
        _check_text(self, "target", self.target)
        if not self.target:
            raise _refuse(self, "target", "must not be empty")
        _check_path(self, "dest")


@dataclass(frozen=True, slots=True)
class Chmod:
    """Change the mode of ``dest`` inside: ``--chmod``."""

    dest: InnerPath
    mode: Mode

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

    dest: InnerPath
    layers: tuple[HostPath, ...]
    upper: HostPath
    work: HostPath

    def __post_init__(self) -> None:
        for name in ("dest", "upper", "work"):
            _check_path(self, name)
        _check_layers(self, 1)


@dataclass(frozen=True, slots=True)
class TmpOverlay:
    """Mount an overlay whose changes are lost at the end: ``--tmp-overlay``."""

    dest: InnerPath
    layers: tuple[HostPath, ...]

    def __post_init__(self) -> None:
        _check_path(self, "dest")
        _check_layers(self, 1)


@dataclass(frozen=True, slots=True)
class ReadOnlyOverlay:
    """Mount a read-only overlay of at least two layers: ``--ro-overlay``."""

    dest: InnerPath
    layers: tuple[HostPath, ...]

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

# --- limits -------------------------------------------------------------------------------

Unit = Literal["bytes", "count", "seconds", "processors"]


@dataclass(frozen=True, slots=True)
class Limit:
    """One row of :data:`LIMITS`: what a field of :class:`Limits` is.

    Attributes:
        rlimit: name of the resource in getrlimit(2); None: held by a cgroup.
        unit: of the number.
        low: the least value.
        high: the greatest value.
    """

    rlimit: str | None
    unit: Unit
    low: float
    high: float


# What each limit is: the one table, for the command line, the schema and the documents.
LIMITS: Mapping[str, Limit] = MappingProxyType(
    {
        "memory": Limit(None, "bytes", 4096, SIZE_MAX),
        "pids": Limit(None, "count", 1, 2**22),
        "cpu": Limit(None, "processors", 0.01, 8192),
        "address_space": Limit("RLIMIT_AS", "bytes", 4096, SIZE_MAX),
        "data": Limit("RLIMIT_DATA", "bytes", 0, SIZE_MAX),
        "stack": Limit("RLIMIT_STACK", "bytes", 4096, SIZE_MAX),
        "file_size": Limit("RLIMIT_FSIZE", "bytes", 0, SIZE_MAX),
        "core_size": Limit("RLIMIT_CORE", "bytes", 0, SIZE_MAX),
        "locked_memory": Limit("RLIMIT_MEMLOCK", "bytes", 0, SIZE_MAX),
        "open_files": Limit("RLIMIT_NOFILE", "count", 0, 2**30),
        "processes": Limit("RLIMIT_NPROC", "count", 1, 2**22),
        "cpu_seconds": Limit("RLIMIT_CPU", "seconds", 1, TIMEOUT_MAX),
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How much a command may use; None leaves it as it is for the caller.

    ``memory``, ``pids`` and ``cpu`` are held by a cgroup, for everything in the sandbox
    together.  The others are resource limits, which each process has for itself.  None
    of those limits memory: ``address_space`` counts what is mapped, used or not, and
    there may be any number of processes.  Sizes may be given such as ``"512M"``.

    Attributes:
        memory: bytes in use by all processes together, page cache included.
        pids: processes and threads at one time.
        cpu: processors' worth of time: 0.5 is half of one.
        address_space: bytes that a process may map: RLIMIT_AS.
        data: bytes of data and private writable mappings: RLIMIT_DATA.
        stack: bytes of the main thread's stack: RLIMIT_STACK.
        file_size: bytes of a file that a process may write: RLIMIT_FSIZE.
        core_size: bytes of a core dump; 0 is none: RLIMIT_CORE.
        locked_memory: bytes that a process may lock: RLIMIT_MEMLOCK.
        open_files: one more than the greatest file descriptor: RLIMIT_NOFILE.
        processes: processes and threads of the same user id, counted for each user
            namespace, so of this sandbox alone only where it has an own one; a
            privileged command is not bound by it: RLIMIT_NPROC.
        cpu_seconds: seconds of processor time of a process: RLIMIT_CPU.
        best_effort: a limit that can't be had here is left out; else it is an error.
    """

    memory: Size | None = None
    pids: int | None = None
    cpu: float | None = None
    address_space: Size | None = None
    data: Size | None = None
    stack: Size | None = None
    file_size: Size | None = None
    core_size: Size | None = None
    locked_memory: Size | None = None
    open_files: int | None = None
    processes: int | None = None
    cpu_seconds: int | None = None
    best_effort: bool = False

    def __post_init__(self) -> None:
        for name, limit in LIMITS.items():
            if getattr(self, name) is None:
                continue
            if limit.unit == "processors":
                _check_real(self, name, limit.low, limit.high)
            elif limit.unit == "bytes":
                _check_size(self, name, int(limit.low), int(limit.high))
            else:
                _check_number(self, name, int(limit.low), int(limit.high))
        _check_bool(self, "best_effort")

    @property
    def cgroup(self) -> dict[str, float]:
        """What a cgroup has to hold, by field."""
        return self._given(lambda limit: limit.rlimit is None)

    @property
    def rlimits(self) -> dict[str, int]:
        """The resource limits, by the kernel's name such as ``RLIMIT_AS``."""
        given = self._given(lambda limit: limit.rlimit is not None)
        return {str(LIMITS[name].rlimit): int(value) for name, value in given.items()}

    def _given(self, wanted: Callable[[Limit], bool]) -> dict[str, Any]:
        values = {name: getattr(self, name) for name, limit in LIMITS.items() if wanted(limit)}
        return {name: value for name, value in values.items() if value is not None}


@dataclass(frozen=True, slots=True, kw_only=True)
class Egress:
    """What a sandbox without a network may reach, through a proxy outside.

    A rule is a name, ``*.suffix``, an address or a network, with a port or a range of ports
    behind a colon if it is to hold for those alone: ``pypi.org:443``.

    Attributes:
        allow: what may be reached; nothing else may.
        deny: what may not, even if ``allow`` has it.
        allow_private: names in ``allow`` may lead to private and loopback addresses.
    """

    allow: tuple[str, ...] = ()
    deny: tuple[str, ...] = ()
    allow_private: bool = False

    def __post_init__(self) -> None:
        for name in ("allow", "deny"):
            values: object = getattr(self, name)
            if isinstance(values, str) or not isinstance(values, Collection):
                raise _refuse(self, name, f"a collection of rules is wanted, not {values!r}")
            for value in values:
                _check_text(self, name, value)
            _set(self, name, tuple(values))
        _check_bool(self, "allow_private")
        self.rules()

    def rules(self) -> EgressRules:
        """The rules as the proxy reads them.

        Raises:
            SpecError: a rule that can't be, named.
        """
        # late, since most sandboxes have none of it and it takes a while
        from cowork_nsrun.policy.rules import EgressRules, Rule  # noqa: PLC0415

        side = "allow"
        try:
            allow = [Rule(text, allow_private=self.allow_private) for text in self.allow]
            side = "deny"
            deny = [Rule(text) for text in self.deny]
        except SpecError as error:
            raise _refuse(self, side, error.problem) from None
        return EgressRules(allow=allow, deny=deny)


class LimitChanges(TypedDict, total=False):
    """What :meth:`Sandbox.limit` takes: the fields of :class:`Limits`."""

    memory: int | str | None
    pids: int | None
    cpu: float | None
    address_space: int | str | None
    data: int | str | None
    stack: int | str | None
    file_size: int | str | None
    core_size: int | str | None
    locked_memory: int | str | None
    open_files: int | None
    processes: int | None
    cpu_seconds: int | None
    best_effort: bool


# what runs a sandbox: "auto" is namespaces, or what COWORK_VM_BACKEND says; "host" is confined
# by Landlock and seccomp alone, "unconfined" by nothing
Backend = Literal["auto", "namespaces", "kvm", "host", "unconfined"]

# Names in a project that programs outside obey: what writes there acts later, as the user.
PROTECTED = (
    ".git/hooks", ".git/config", ".gitmodules", ".gitconfig", ".bashrc", ".bash_profile",
    ".bash_login", ".profile", ".zshrc", ".zshenv", ".zprofile", ".envrc", ".vscode", ".idea",
    ".claude/settings.json", ".claude/settings.local.json", ".claude/commands", ".claude/agents",
    ".mcp.json", ".cursor", ".ripgreprc",
)  # fmt: skip

# the built-in lists of what the kernel refuses, as the core names them
SeccompProfile = Literal["default", "nesting", "strict", "none"]

# every namespace that "--unshare-all" takes without "if possible"
_ALL = frozenset({Namespace.IPC, Namespace.PID, Namespace.NET, Namespace.UTS})
_TRY = frozenset({Namespace.USER, Namespace.CGROUP})

# What programs commonly read in /etc and what gives nothing away; what is absent is left out.
_PUBLIC_ETC = (
    "alternatives", "ca-certificates", "group", "hosts", "ld.so.cache", "ld.so.conf",
    "ld.so.conf.d", "localtime", "nsswitch.conf", "passwd", "pki", "protocols", "resolv.conf",
    "services", "ssl",
)  # fmt: skip
# On the host what is not shown is there all the same, and refused: programs that take that
# for an error must be able to read their configuration.
_HOST_ETC = (
    "bash.bashrc", "bashrc", "debian_version", "default/locale", "environment", "fonts", "gai.conf",
    "gitconfig", "host.conf", "inputrc", "java", "locale.conf", "lsb-release", "machine-id",
    "magic", "mime.types", "nanorc", "networks", "npmrc", "os-release", "perl", "pip.conf",
    "profile", "profile.d", "python3", "rpc", "selinux/config", "shells", "terminfo",
    "timezone", "vim", "wgetrc",
)  # fmt: skip
_SYSTEM_DIRS = ("/bin", "/lib", "/lib64", "/sbin")
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def _system_dir(path: str) -> tuple[Operation, ...]:
    """``/bin`` and its like as the host has them: a link into /usr, or a directory."""
    if os.path.islink(path):
        return (Symlink(os.readlink(path), path),)
    return (Bind(path, path, read_only=True),) if os.path.isdir(path) else ()


def _covers_of_proc() -> tuple[Operation, ...]:
    """What root may write in /proc without any capability: it owns the host's kernel by that."""
    if os.geteuid():
        return ()
    names = ("acpi", "fs", "mtrr", "scsi", "sys", "sysrq-trigger")
    paths = (f"/proc/{name}" for name in names)
    return tuple(Bind(path, path, read_only=True, optional=True) for path in paths)


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
        landlock: landlock(7) behind the mounts: what they don't make writable can't be
            written even if they fail.  Forbids mount(2) inside, so sandboxes in it.
        tcp_connect: ports that TCP may connect to; empty for none, None for any.  Needs
            ``landlock`` or the host, and says nothing of UDP.
        tcp_bind: ports that TCP may be bound to, likewise.
        deny_read: paths inside, or patterns of them, that can neither be read nor written.
        deny_write: likewise, that can't be written, made, moved or removed.  A pattern
            means what is there at the start; see docs/backends.md for what wins.
        backend: what runs it: ``namespaces``, ``kvm`` (a microVM), ``host`` (no namespaces:
            confined by Landlock and seccomp), or ``unconfined`` (the host, and nothing
            else); ``auto`` is namespaces, and a microVM where those are refused, unless
            COWORK_VM_BACKEND in the environment asks for another.
        private_tmp: on the host, a temporary directory of its own, named by TMPDIR and
            removed at the end.
        seccomp_profile: a built-in list of what the kernel refuses to the command:
            ``default``, ``nesting`` (for commands that bring a sandbox of their own),
            ``strict`` or ``none``; see docs/hardening.md.
        seccomp: BPF programs to load after it, just before the command starts.
        new_session: leave the terminal's session, so that nothing can be typed into it.
        die_with_parent: the sandbox ends with the program that started it.
        as_pid_1: the command itself is pid 1 inside; needs PID in ``unshare``.
        close_fds: the command gets stdin, stdout and stderr only.
        lock_files: files inside to hold a read lock on while the sandbox runs.
        limits: how much the command may use.
        egress: what may be reached through a proxy outside; needs NET in ``unshare``.
            Programs find it by the standard variables, which are set inside.
        veth: a network of its own with a way to the host, by a pair of veth(4) devices; takes
            root, and NET in ``unshare``.  What lies behind the host is its rules' business.
        timeout: seconds of the whole life of a command, after which everything in the
            sandbox is killed; None is no end.
    """

    filesystem: tuple[Operation, ...] = ()
    unshare: frozenset[Namespace] = frozenset()
    unshare_try: frozenset[Namespace] = frozenset()
    disable_userns: bool = False
    uid: Id | None = None
    gid: Id | None = None
    hostname: str | None = None
    cwd: InnerPath | None = None
    clear_env: bool = False
    environment: tuple[tuple[str, str | None], ...] = ()
    caps_add: frozenset[str] = frozenset()
    caps_drop: frozenset[str] = frozenset()
    seccomp_profile: SeccompProfile = "none"
    seccomp: tuple[bytes, ...] = field(default=(), repr=False)
    landlock: bool = False
    tcp_connect: tuple[Port, ...] | None = None
    tcp_bind: tuple[Port, ...] | None = None
    deny_read: tuple[InnerPath, ...] = ()
    deny_write: tuple[InnerPath, ...] = ()
    backend: Backend = "auto"
    private_tmp: bool = False
    new_session: bool = False
    die_with_parent: bool = False
    as_pid_1: bool = False
    close_fds: bool = True
    lock_files: tuple[str, ...] = ()
    limits: Limits = Limits()
    egress: Egress | None = None
    veth: bool = False
    timeout: Annotated[float, Range(0, TIMEOUT_MAX)] | None = None

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
        self._check_walls()
        self._check_use()

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
        # what is said last about a variable holds: no need to keep the rest
        _set(self, "environment", tuple(dict(self.environment).items()))

    def _check_rights(self) -> None:
        for name in ("caps_add", "caps_drop"):
            _set(self, name, frozenset(cap.lower() for cap in self._strings(name)))
        both = self.caps_add & self.caps_drop
        if both:
            raise _refuse(self, "caps_drop", f"{min(both)} is in caps_add too")
        if self.seccomp_profile not in get_args(SeccompProfile):
            known = ", ".join(get_args(SeccompProfile))
            problem = f"{self.seccomp_profile!r} is unknown; there are: {known}"
            raise _refuse(self, "seccomp_profile", problem)
        if isinstance(self.seccomp, bytes) or not isinstance(self.seccomp, Sequence):
            raise _refuse(self, "seccomp", "a sequence of programs is wanted")
        for program in self.seccomp:
            if not isinstance(program, bytes) or len(program) % BPF_INSTRUCTION:
                raise _refuse(self, "seccomp", "a program is bytes, a multiple of 8")
            if not 0 < len(program) <= BPF_MAX:
                raise _refuse(self, "seccomp", f"a program has 1 to {BPF_MAX} bytes")
        _set(self, "seccomp", tuple(self.seccomp))

    def _check_walls(self) -> None:
        for name in ("tcp_connect", "tcp_bind"):
            if getattr(self, name) is not None:
                self._check_ports(name)
        for name in ("deny_read", "deny_write"):
            paths = self._strings(name)
            for path in paths:
                if not path.startswith("/") or len(os.fsencode(path)) >= PATH_MAX:
                    raise _refuse(self, name, f"an absolute path is wanted, not {path!r}")
                if ".." in path.split("/"):
                    raise _refuse(self, name, f"{path!r}: what '..' means depends on links")
            _set(self, name, paths)
        if self.backend not in get_args(Backend):
            known = ", ".join(get_args(Backend))
            raise _refuse(self, "backend", f"{self.backend!r} is unknown; there are: {known}")
        if self.private_tmp and not self.on_host:
            raise _refuse(self, "private_tmp", "is for the host: use Tmpfs('/tmp')")
        denies = self.deny_read or self.deny_write
        if denies and self.backend == "host":
            name = "deny_read" if self.deny_read else "deny_write"
            raise _refuse(self, name, "the host can't take back what a bind allows: bind less")

    def _check_ports(self, name: str) -> None:
        ports: object = getattr(self, name)
        if isinstance(ports, str) or not isinstance(ports, Collection):
            raise _refuse(self, name, f"a collection of ports is wanted, not {ports!r}")
        for port in ports:
            if isinstance(port, bool) or not isinstance(port, int) or not 0 < port <= PORT_MAX:
                raise _refuse(self, name, f"{port!r} is not a port")
        if self.backend == "unconfined" or not (self.landlock or self.backend == "host"):
            raise _refuse(self, name, "needs landlock, or 'host' as backend")
        _set(self, name, tuple(ports))

    @property
    def ends_all(self) -> bool:
        """Every process of it is known to the one that ends it, whoever they have become."""
        return Namespace.PID in self.unshare or self.on_host

    @property
    def on_host(self) -> bool:
        """It asks by name for the host, confined or not."""
        return self.backend in {"host", "unconfined"}

    def _check_use(self) -> None:
        if not isinstance(self.limits, Limits):
            raise _refuse(self, "limits", f"Limits(...) is wanted, not {self.limits!r}")
        if self.egress is not None and Namespace.NET not in self.unshare:
            raise _refuse(self, "egress", "needs 'net' in unshare")
        self._check_veth()
        if self.timeout is not None:
            _check_real(self, "timeout", 0, TIMEOUT_MAX)
            if self.timeout == 0:
                raise _refuse(self, "timeout", "must be more than 0 seconds")

    def _check_veth(self) -> None:
        if not self.veth:
            return
        if self.on_host:
            raise _refuse(self, "veth", "the host's network stays: use 'namespaces' as backend")
        if Namespace.NET not in self.unshare:
            raise _refuse(self, "veth", "needs 'net' in unshare")
        if self.egress is not None:
            raise _refuse(self, "veth", "egress rules would not hold for it: take one of both")

    # --- presets ----------------------------------------------------------------------

    @classmethod
    def minimal(cls) -> Self:
        """The system's programs, read-only, and nothing else of the host.

        /usr and the public part of /etc; new /dev, /proc and /tmp; every namespace of
        its own, so no network and no host processes; no capabilities; the default seccomp
        profile; an environment of PATH, HOME, LANG and TERM alone.
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
                *_covers_of_proc(),
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
            seccomp_profile="default",
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
        return cls.minimal().work_in(path)

    @classmethod
    def host_workspace(cls, path: PathLike) -> Self:
        """:meth:`workspace` as far as the host itself can have it, without namespaces.

        Reads the system's programs and the public part of /etc, writes one directory and
        a temporary one of its own; no capabilities, no Unix sockets.  The network, other
        processes and the names of all files are the host's.  See docs/backends.md.

        Arguments:
            path: the directory, absolute or relative to the caller's; the command starts
                in it.

        Raises:
            SpecError: it is not a directory.
        """
        kept = {name: os.environ[name] for name in ("LANG", "TERM") if name in os.environ}
        system = ("/usr", *_SYSTEM_DIRS, "/nix/store", "/run/current-system")
        etc = (f"/etc/{name}" for name in (*_PUBLIC_ETC, *_HOST_ETC))
        return cls(
            filesystem=(
                *(Bind(place, place, read_only=True, optional=True) for place in (*system, *etc)),
                Dev(),
                Proc(),
            ),
            clear_env=True,
            environment=(("PATH", _PATH), *kept.items()),
            caps_drop=frozenset({"all"}),
            seccomp_profile="default",
            backend="host",
            private_tmp=True,
            new_session=True,
            die_with_parent=True,
        ).work_in(path)

    @classmethod
    def cowork(
        cls,
        session: str,
        mounts: Mapping[str, PathLike] | Iterable[tuple[str, PathLike]] = (),
        *,
        home: PathLike | None = None,
        read_only: Collection[str] = (),
        program_dir: PathLike | None = None,
        extra: Sequence[Bind] = (),
    ) -> Self:
        """The sandbox of a Cowork session: bwrap's command line there, as a value.

        The system read-only, an empty home, and the user's folders below
        ``/sessions/SESSION/mnt``.  Host network; own processes; a seccomp profile that
        lets the session's program make sandboxes of its own.

        Arguments:
            session: name of the session.
            mounts: name inside, to directory of the host; the command starts in the first
                that is neither hidden nor ``uploads``.
            home: the user's home, by default the caller's; inside it is empty.
            read_only: names in ``mounts`` that are not to be written.
            program_dir: directory of the program, to be seen read-only at its own path.
            extra: further binds, ahead of the home.

        Raises:
            SpecError: a name is not one component of a path, or a path is not absolute.
        """
        _check_component("session", session)
        folders = dict(mounts)
        for name in folders:
            _check_component("mounts", name)
        unknown = set(read_only) - set(folders)
        if unknown:
            raise SpecError("read_only", f"{min(unknown)!r} is not in mounts")
        root = f"/sessions/{session}"
        shown = [name for name in folders if not name.startswith(".") and name != "uploads"]
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
                Dir(os.fspath(Path.home() if home is None else home)),
                *(Bind(path, path, read_only=True) for path in program),
                Dir(root),
                Dir(f"{root}/mnt"),
                *(
                    Bind(os.fspath(path), f"{root}/mnt/{name}", read_only=name in read_only)
                    for name, path in folders.items()
                ),
            ),
            unshare=frozenset({Namespace.PID}),
            cwd=f"{root}/mnt/{shown[0]}" if shown else f"{root}/mnt",
            seccomp_profile="nesting",
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

    def work_in(self, path: PathLike) -> Self:
        """A copy with one directory of the host writable at its own path, to start in.

        A relative path is taken from the caller's directory, now.

        Raises:
            SpecError: it is not a directory.
        """
        absolute = os.path.abspath(path)
        if not os.path.isdir(absolute):
            raise SpecError("path", f"{absolute} is not a directory")
        return replace(self.bind(absolute, absolute), cwd=absolute)

    def tmpfs(self, dest: PathLike, *, size: int | str | None = None, mode: int = 0o755) -> Self:
        """A copy with a new tmpfs at ``dest``; ``size`` in bytes, or such as "64M"."""
        # the operation makes a number of it
        return self.add(Tmpfs(os.fspath(dest), size=size, mode=mode))  # type: ignore[arg-type]

    def dir(self, dest: PathLike, *, mode: int = 0o755) -> Self:
        """A copy with a new directory at ``dest``."""
        return self.add(Dir(os.fspath(dest), mode))

    def file(self, dest: PathLike, content: bytes | str, *, mode: int = 0o666) -> Self:
        """A copy with a new file at ``dest``; text is written as UTF-8."""
        data = content.encode() if isinstance(content, str) else content
        return self.add(File(os.fspath(dest), data, mode))

    def symlink(self, target: PathLike, dest: PathLike) -> Self:
        """A copy with a symbolic link at ``dest`` that holds ``target``."""
        return self.add(Symlink(os.fspath(target), os.fspath(dest)))

    def limit(self, **changes: Unpack[LimitChanges]) -> Self:
        """A copy with other limits; what is not named stays, None lifts a limit.

        >>> Sandbox.minimal().limit(memory="512M", pids=64, cpu=0.5).limits.memory
        536870912

        Raises:
            SpecError: a limit that can't be, by its name such as ``Limits.memory``.
        """
        changed: dict[str, Any] = {**changes}
        unknown = changed.keys() - {item.name for item in fields(Limits)}
        if unknown:
            known = ", ".join(LIMITS)
            raise SpecError(f"Limits.{min(unknown)}", f"unknown; there are: {known}")
        return replace(self, limits=replace(self.limits, **changed))

    def env(self, changes: Mapping[str, str | None] | None = None, /, **more: str | None) -> Self:
        """A copy that sets variables, or, with None, removes them."""
        pairs = (*self.environment, *(changes or {}).items(), *more.items())
        return replace(self, environment=pairs)

    def protect(self, path: PathLike | None = None, names: Iterable[str] = PROTECTED) -> Self:
        """A copy in which those names below a directory can't be written, made or moved.

        Arguments:
            path: the directory inside; by default the one that the command starts in.
            names: what programs outside obey, such as ``.git/hooks``.

        Raises:
            SpecError: there is neither ``path`` nor ``cwd``.
        """
        top = self.cwd if path is None else os.fspath(path)
        if top is None:
            raise SpecError("path", "is needed where the sandbox has no cwd")
        more = (os.path.join(top, name) for name in names)
        return replace(self, deny_write=(*self.deny_write, *more))

    def harden(self, profile: SeccompProfile = "default") -> Self:
        """A copy with that seccomp profile; ``none`` takes it away."""
        return replace(self, seccomp_profile=profile)

    def network(self, mode: Literal["none", "host", "veth"]) -> Self:
        """A copy with no network but an own loopback device, with the host's, or with ``veth``.

        ``veth`` takes root: devices that connect the sandbox to the host, and behind it to
        what the host's own rules forward; see docs/egress.md.
        """
        if mode not in {"none", "host", "veth"}:
            raise SpecError("mode", f"'none', 'host' or 'veth' is wanted, not {mode!r}")
        net = {Namespace.NET}
        unshare = self.unshare - net if mode == "host" else self.unshare | net
        return replace(self, unshare=unshare, egress=None, veth=mode == "veth")

    def allow_hosts(
        self, *allow: str, deny: Collection[str] = (), allow_private: bool = False
    ) -> Self:
        """A copy with no network but a proxy that lets these hosts be reached.

        Further calls add to the rules; see :class:`Egress`.

        >>> Sandbox.minimal().allow_hosts("pypi.org:443", "*.pythonhosted.org").egress.allow
        ('pypi.org:443', '*.pythonhosted.org')
        """
        before = self.egress or Egress()
        egress = Egress(
            allow=(*before.allow, *allow),
            deny=(*before.deny, *deny),
            allow_private=before.allow_private or allow_private,
        )
        return replace(self, unshare=self.unshare | {Namespace.NET}, egress=egress, veth=False)

    # --- commands in it -----------------------------------------------------------------

    @overload
    def popen(
        self, argv: Argv, *, text: Literal[False] = False, **options: Unpack[PopenOptions]
    ) -> Process[bytes]: ...
    @overload
    def popen(
        self, argv: Argv, *, text: Literal[True], **options: Unpack[PopenOptions]
    ) -> Process[str]: ...
    def popen(
        self, argv: Argv, *, text: bool = False, **options: Unpack[PopenOptions]
    ) -> Process[bytes] | Process[str]:
        """Start a command: :func:`cowork_nsrun.popen`, whose options and errors these are."""
        from cowork_nsrun.process import popen  # noqa: PLC0415 - it imports this module

        call: Any = popen
        process: Process[bytes] | Process[str] = call(argv, self, text=text, **options)
        return process

    @overload
    def run(
        self, argv: Argv, *, text: Literal[False] = False, **options: Unpack[RunOptions]
    ) -> Result[bytes]: ...
    @overload
    def run(
        self, argv: Argv, *, text: Literal[True], **options: Unpack[RunOptions]
    ) -> Result[str]: ...
    def run(
        self, argv: Argv, *, text: bool = False, **options: Unpack[RunOptions]
    ) -> Result[bytes] | Result[str]:
        """Run a command to its end: :func:`cowork_nsrun.run`, whose options and errors these are.

        >>> Sandbox.minimal().run(["echo", "hello"], text=True).stdout
        'hello\\n'
        """
        from cowork_nsrun.process import run  # noqa: PLC0415 - it imports this module

        call: Any = run
        result: Result[bytes] | Result[str] = call(argv, self, text=text, **options)
        return result

    async def apopen(self, argv: Argv, **options: Unpack[AsyncPopenOptions]) -> AsyncProcess:
        """Start a command from asyncio: :func:`cowork_nsrun.aio.popen`."""
        from cowork_nsrun.aio import popen  # noqa: PLC0415 - it imports this module

        return await popen(argv, self, **options)

    async def arun(self, argv: Argv, **options: Unpack[AsyncRunOptions]) -> Result[bytes]:
        """Run a command to its end from asyncio: :func:`cowork_nsrun.aio.run`."""
        from cowork_nsrun.aio import run  # noqa: PLC0415 - it imports this module

        return await run(argv, self, **options)

    def pool(
        self,
        size: int = 4,
        *,
        max_age: float = 300.0,
        warm: Sequence[str | os.PathLike[str]] = (),
    ) -> Pool:
        """Keep that many ready for their command: :class:`cowork_nsrun.Pool`."""
        from cowork_nsrun.pool import Pool  # noqa: PLC0415 - it imports this module

        return Pool(self, size, max_age=max_age, warm=warm)


def _resolver() -> tuple[Operation, ...]:
    """Where /etc/resolv.conf leads into /run, which is hidden: its directory."""
    real = Path("/etc/resolv.conf").resolve()
    if not real.is_relative_to("/run") or not real.parent.is_dir():
        return ()
    return (Bind(str(real.parent), str(real.parent), read_only=True),)
