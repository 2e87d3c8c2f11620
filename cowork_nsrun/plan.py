"""The compiled form of a sandbox: what the core runs, and what travels as bytes."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache

from cowork_nsrun import _native
from cowork_nsrun._native import Number, Op, OpFlag, OpType, PlanFlag, String, Words
from cowork_nsrun.denies import with_denies
from cowork_nsrun.errors import NsrunError, SpecError
from cowork_nsrun.spec import (
    Bind,
    BindData,
    BindFd,
    Chmod,
    Dev,
    Dir,
    File,
    Mqueue,
    Namespace,
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

TEMPLATES = 64  # compiled specs that are kept

# CLONE_NEW*: linux/sched.h
_CLONE = {
    Namespace.CGROUP: 0x02000000,
    Namespace.UTS: 0x04000000,
    Namespace.IPC: 0x08000000,
    Namespace.USER: 0x10000000,
    Namespace.PID: 0x20000000,
    Namespace.NET: 0x40000000,
}
_AT_DEST = {
    RemountReadOnly: OpType.REMOUNT_RO,
    Mqueue: OpType.MQUEUE,
    Proc: OpType.PROC,
    Dev: OpType.DEV,
}


@dataclass(frozen=True, slots=True)
class Extras:
    """What a plan gets from how it is run rather than from its spec.

    Attributes:
        flags: switches to add.
        cgroups: directories of the cgroups to enter.
        rlimits: further resource limits, by names such as ``RLIMIT_AS``.
        numbers: numbers to set.
    """

    flags: PlanFlag = PlanFlag.NONE
    cgroups: tuple[str, ...] = ()
    rlimits: Mapping[str, int] = field(default_factory=dict)
    numbers: Mapping[Number, int] = field(default_factory=dict)

    def apply(self, native: _native.Plan) -> None:
        """Put it into a plan."""
        if self.flags:
            native.set_number(Number.FLAGS, native.number(Number.FLAGS) | self.flags)
        for path in self.cgroups:
            native.add_word(Words.CGROUPS, path)
        for name, value in self.rlimits.items():
            native.add_rlimit(name.removeprefix("RLIMIT_").lower(), value, value)
        for which, number in self.numbers.items():
            native.set_number(which, number)


NO_EXTRAS = Extras()


class Plan:
    """A plan: complete, checked, and ready to run.

    Make one with :meth:`from_spec`, :meth:`from_argv` or :meth:`from_bytes`.  Two plans
    are equal if their bytes are.
    """

    def __init__(
        self,
        native: _native.Plan,
        warnings: Sequence[str] = (),
        argv: Sequence[str] | None = None,
        *,
        backend: str = "auto",
    ) -> None:
        self._native = native
        self._argv = None if argv is None else tuple(argv)
        self.warnings = tuple(warnings)
        self.backend = backend

    @classmethod
    def from_argv(cls, argv: Sequence[str], environ: Mapping[str, str] | None = None) -> Plan:
        """Read a bwrap command line.

        Arguments:
            argv: options, then the command; without the name ``bwrap`` itself.
            environ: what ``--setenv`` and its kin act on; by default the caller's.

        Raises:
            NsrunError: with the text that the command line tool gives.
        """
        native = _native.Plan()
        env = os.environ if environ is None else environ
        return cls(native, native.parse(["nsrun", *argv], env))

    @classmethod
    def from_spec(
        cls,
        spec: Sandbox,
        argv: Sequence[str | os.PathLike[str]],
        *,
        cwd: str | os.PathLike[str] | None = None,
        env: Mapping[str, str] | None = None,
        extras: Extras = NO_EXTRAS,
    ) -> Plan:
        """Compile a spec for one command.

        Arguments:
            argv: the command, found along the PATH inside, and its arguments.
            cwd: instead of the spec's; a path inside.
            env: the command's whole environment, instead of what the spec says.
            extras: what depends on this run.

        Raises:
            SpecError: a value that can't be, named.
        """
        words = _checked_argv(argv)
        try:
            native = _native.Plan(_template(spec))
        except NsrunError as error:
            if isinstance(error, SpecError) or not spec.on_host:
                raise
            raise SpecError("Sandbox", error.text) from None
        native.clear(Words.ARGV)
        native.add_words(Words.ARGV, words)
        environment = _environment(spec, env).items()
        native.add_words(Words.ENV, [f"{name}={value}" for name, value in environment])
        if cwd is not None:
            native.set_string(String.CHDIR, _checked_cwd(cwd))
        extras.apply(native)
        native.check()
        return cls(native, argv=words, backend=spec.backend)

    @classmethod
    def for_parked(
        cls,
        spec: Sandbox,
        argv: Sequence[str | os.PathLike[str]],
        *,
        cwd: str | os.PathLike[str] | None = None,
        env: Mapping[str, str] | None = None,
        extras: Extras = NO_EXTRAS,
    ) -> Plan:
        """What a parked sandbox of that spec takes: command, environment, directory, limits."""
        native = _native.Plan()
        words = _checked_argv(argv)
        native.add_words(Words.ARGV, words)
        environment = _environment(spec, env).items()
        native.add_words(Words.ENV, [f"{name}={value}" for name, value in environment])
        if cwd is not None:
            native.set_string(String.CHDIR, _checked_cwd(cwd))
        Extras(rlimits=spec.limits.rlimits).apply(native)
        extras.apply(native)
        return cls(native, argv=words)

    @classmethod
    def from_bytes(cls, data: bytes) -> Plan:
        """Read what :meth:`to_bytes` wrote; strict.

        Raises:
            NsrunError: it is damaged, of another version, or asks for what can't be.
        """
        native = _native.Plan()
        native.read(data)
        return cls(native)

    def to_bytes(self) -> bytes:
        """The plan in the form that ``nsrun --plan FD`` reads."""
        return self._native.write()

    def with_extras(self, extras: Extras) -> Plan:
        """A copy with more in it."""
        native = _native.Plan()
        native.read(self.to_bytes())
        extras.apply(native)
        native.check()
        return Plan(native, self.warnings, backend=self.backend)

    @property
    def by_name(self) -> bool:
        """Its backend was asked for, so that the environment has no say."""
        return self.backend != "auto"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Plan) and self.to_bytes() == other.to_bytes()

    def __hash__(self) -> int:
        return hash(self.to_bytes())

    def __repr__(self) -> str:
        return f"<Plan {self.argv!r}, {len(self.operations)} operations>"

    @property
    def argv(self) -> tuple[str, ...]:
        """The command and its arguments."""
        if self._argv is None:
            self._argv = self._native.words(Words.ARGV)
        return self._argv

    @property
    def environment(self) -> dict[str, str]:
        """The command's environment, ``PWD`` aside, which the core sets."""
        words = self._native.words(Words.ENV)
        return {name: value for name, _, value in (word.partition("=") for word in words)}

    @property
    def lock_files(self) -> tuple[str, ...]:
        """Files to hold a read lock on."""
        return self._native.words(Words.LOCK_FILES)

    @property
    def operations(self) -> tuple[Op, ...]:
        """The filesystem operations, in order, as the core has them."""
        return self._native.ops()

    @property
    def flags(self) -> PlanFlag:
        """The plan's switches."""
        return PlanFlag(self._native.number(Number.FLAGS))

    @property
    def unshare(self) -> frozenset[Namespace]:
        """The namespaces that are certainly new."""
        bits = self._native.number(Number.UNSHARE)
        return frozenset(name for name, bit in _CLONE.items() if bits & bit)

    @property
    def cwd(self) -> str | None:
        """Directory inside to start in."""
        return self._native.string(String.CHDIR)

    @property
    def hostname(self) -> str | None:
        """Host name inside."""
        return self._native.string(String.HOSTNAME)

    def number(self, which: Number) -> int:
        """Any number of the plan."""
        return self._native.number(which)

    @property
    def fds(self) -> tuple[int, ...]:
        """The caller's file descriptors that the plan speaks of."""
        named = [self.number(which) for which in _native.FD_NUMBERS]
        return tuple(fd for fd in [*named, *(op.fd for op in self.operations)] if fd >= 0)

    @property
    def native(self) -> _native.Plan:
        """What the core runs; for :mod:`cowork_nsrun.process`."""
        return self._native


def milliseconds(seconds: float) -> int:
    """As the core counts time: at least one."""
    return max(1, round(seconds * 1000))


class _Templates:
    """What was compiled of the specs that were used last: most are used many times."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._known: OrderedDict[int, tuple[Sandbox, _native.Plan]] = OrderedDict()

    def get(self, spec: Sandbox) -> _native.Plan:
        """The plan of a spec, without a command."""
        # by identity, since comparing takes longer than compiling; a spec that is held here
        # has its identity for itself
        with self._lock:
            found = self._known.get(id(spec))
            if found is not None:
                self._known.move_to_end(id(spec))
                return found[1]
        made = _compile_spec(spec)
        with self._lock:
            self._known[id(spec)] = (spec, made)
            if len(self._known) > TEMPLATES:
                self._known.popitem(last=False)
        return made


@cache
def _templates() -> _Templates:
    return _Templates()


def _template(spec: Sandbox) -> _native.Plan:
    # what deny lists come to depends on what is there now
    if spec.deny_read or spec.deny_write:
        return _compile_spec(spec)
    return _templates().get(spec)


def _after_fork() -> None:
    # another thread may have had the lock
    _templates.cache_clear()


os.register_at_fork(after_in_child=_after_fork)


def _compile_spec(spec: Sandbox) -> _native.Plan:
    native = _native.Plan()
    # the reader wants a command
    native.add_word(Words.ARGV, "command")
    for path in spec.lock_files:
        native.add_word(Words.LOCK_FILES, path)
    for operation in with_denies(spec):
        native.add_op(operation if isinstance(operation, Op) else compile_op(operation))
    _compile_identity(native, spec)
    if spec.cwd is not None:
        native.set_string(String.CHDIR, spec.cwd)
    native.set_number(Number.UNSHARE, sum(_CLONE[name] for name in spec.unshare))
    native.set_number(Number.FLAGS, _flags(spec) | _compile_caps(native, spec))
    profile = _native.seccomp_profile(spec.seccomp_profile).bpf
    for program in (profile, *spec.seccomp) if profile else spec.seccomp:
        native.add_seccomp(program)
    Extras(rlimits=spec.limits.rlimits).apply(native)
    _compile_ports(native, Words.TCP_CONNECT, spec.tcp_connect)
    _compile_ports(native, Words.TCP_BIND, spec.tcp_bind)
    if spec.timeout is not None and spec.ends_all:
        native.set_number(Number.TIMEOUT_MS, milliseconds(spec.timeout))
    # read again: what the reader refuses is no plan
    compact = _native.Plan()
    compact.read(native.write())
    return compact


def _checked_argv(argv: Sequence[str | os.PathLike[str]]) -> list[str]:
    if isinstance(argv, str | bytes):
        raise SpecError("argv", "a list of words is wanted, not one string")
    if not argv:
        raise SpecError("argv", "must not be empty")
    words = []
    for word in argv:
        text = os.fspath(word) if isinstance(word, os.PathLike) else word
        if not isinstance(text, str) or "\0" in text:
            raise SpecError("argv", f"a string without NUL bytes is wanted, not {word!r}")
        words.append(text)
    return words


def _checked_cwd(cwd: str | os.PathLike[str]) -> str:
    text = os.fspath(cwd)
    if not isinstance(text, str) or not text.startswith("/") or "\0" in text:
        raise SpecError("cwd", f"an absolute path inside is wanted, not {cwd!r}")
    return text


class _Inherited:
    """The caller's environment, decoded anew when it has changed."""

    def __init__(self) -> None:
        self._known: tuple[dict[bytes, bytes], dict[str, str]] = {}, {}

    def get(self) -> dict[str, str]:
        """It, not to be changed."""
        # what CPython keeps it in: to compare that takes a hundredth of decoding all of it
        raw = getattr(os.environ, "_data", None)
        if raw is None:
            return dict(os.environ)
        known, decoded = self._known
        if raw != known:
            known = dict(raw)
            decoded = {os.fsdecode(name): os.fsdecode(value) for name, value in known.items()}
            # both at once, for other threads
            self._known = known, decoded
        return decoded


@cache
def _inherited() -> _Inherited:
    return _Inherited()


def _environment(spec: Sandbox, env: Mapping[str, str] | None) -> dict[str, str]:
    if env is not None:
        for name, value in env.items():
            if not isinstance(name, str) or not isinstance(value, str):
                raise SpecError("env", f"strings are wanted, not {name!r}: {value!r}")
            if not name or "=" in name or "\0" in name + value:
                raise SpecError("env", f"{name!r} can't be set to {value!r}")
        return dict(env)
    result = {} if spec.clear_env else _inherited().get().copy()
    if spec.egress is not None:
        # late, since most sandboxes have none of it and it takes a while
        from cowork_nsrun.policy.environment import environment  # noqa: PLC0415

        result |= environment()
    for name, new in spec.environment:
        if new is None:
            result.pop(name, None)
        else:
            result[name] = new
    return result


def compile_op(operation: Operation) -> Op:  # noqa: PLR0911 - one return a kind is the clearest
    match operation:
        case Bind():
            flags = OpFlag.RDONLY if operation.read_only else OpFlag.NONE
            flags |= OpFlag.DEVICES if operation.devices else OpFlag.NONE
            flags |= OpFlag.TRY if operation.optional else OpFlag.NONE
            return Op(OpType.BIND, operation.dest, operation.source, flags=flags)
        case BindFd():
            flags = OpFlag.SOURCE_FD | (OpFlag.RDONLY if operation.read_only else OpFlag.NONE)
            return Op(OpType.BIND, operation.dest, flags=flags, fd=operation.fd)
        case Tmpfs(dest, size, mode):
            return Op(OpType.TMPFS, dest, perms=mode, size=size or 0)
        case Dir(dest, mode):
            return Op(OpType.DIR, dest, perms=mode)
        case File(dest, content, mode):
            return Op(OpType.FILE, dest, data=content, perms=mode)
        case BindData(dest, content, read_only, mode):
            flags = OpFlag.RDONLY if read_only else OpFlag.NONE
            return Op(OpType.BIND_DATA, dest, data=content, perms=mode, flags=flags)
        case Symlink(target, dest):
            return Op(OpType.SYMLINK, dest, target)
        case Chmod(dest, mode):
            return Op(OpType.CHMOD, dest, perms=mode)
        case Overlay(dest, layers, upper, work):
            return Op(OpType.OVERLAY, dest, upper, work, layers=layers)
        case TmpOverlay(dest, layers):
            return Op(OpType.TMP_OVERLAY, dest, layers=layers)
        case ReadOnlyOverlay(dest, layers):
            return Op(OpType.RO_OVERLAY, dest, layers=layers)
        case RemountReadOnly() | Mqueue() | Proc() | Dev():
            return Op(_AT_DEST[type(operation)], operation.dest)


def _compile_identity(native: _native.Plan, spec: Sandbox) -> None:
    if spec.uid is not None:
        native.set_number(Number.UID, spec.uid)
    if spec.gid is not None:
        native.set_number(Number.GID, spec.gid)
    if spec.hostname is not None:
        native.add_op(Op(OpType.HOSTNAME, source=spec.hostname))
        native.set_string(String.HOSTNAME, spec.hostname)


def _compile_ports(native: _native.Plan, which: Words, ports: tuple[int, ...] | None) -> None:
    for word in () if ports is None else ports or ("none",):
        native.add_word(which, str(word))


def _flags(spec: Sandbox) -> PlanFlag:
    wanted = {
        PlanFlag.UNSHARE_USER_TRY: Namespace.USER in spec.unshare_try,
        PlanFlag.UNSHARE_CGROUP_TRY: Namespace.CGROUP in spec.unshare_try,
        PlanFlag.DISABLE_USERNS: spec.disable_userns,
        PlanFlag.NEW_SESSION: spec.new_session,
        PlanFlag.DIE_WITH_PARENT: spec.die_with_parent,
        PlanFlag.AS_PID_1: spec.as_pid_1,
        PlanFlag.CLOSE_FDS: spec.close_fds,
        PlanFlag.LANDLOCK: spec.landlock,
        PlanFlag.ON_HOST: spec.on_host,
        PlanFlag.UNCONFINED: spec.backend == "unconfined",
        PlanFlag.PRIVATE_TMP: spec.private_tmp,
    }
    flags = PlanFlag.NONE
    for flag, is_wanted in wanted.items():
        if is_wanted:
            flags |= flag
    return flags


def _cap_masks(field: str, names: frozenset[str]) -> int:
    mask = 0
    for name in sorted(names):
        try:
            mask |= _native.cap_mask(name)
        except NsrunError as error:
            raise SpecError(f"Sandbox.{field}", error.text) from None
    return mask


def _compile_caps(native: _native.Plan, spec: Sandbox) -> PlanFlag:
    """``ALL`` first, single names after it: the particular word holds."""
    if not spec.caps_add and not spec.caps_drop:
        return PlanFlag.NONE
    add = _cap_masks("caps_add", spec.caps_add - {"all"})
    drop = _cap_masks("caps_drop", spec.caps_drop - {"all"})
    if "all" in spec.caps_drop:
        drop = ~add
    if "all" in spec.caps_add:
        add = ~drop
    native.set_number(Number.CAPS_SET, add)
    native.set_number(Number.CAPS_CLEAR, drop)
    return PlanFlag.CAPS_TOUCHED
