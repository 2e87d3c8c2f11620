"""Specs as plans: what :meth:`cowork_nsrun.plan.Plan.from_spec` does."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache

from cowork_nsrun import _native
from cowork_nsrun._native import Number, Op, OpFlag, OpType, PlanFlag, String, Words
from cowork_nsrun.denies import with_denies
from cowork_nsrun.errors import NsrunError, SpecError
from cowork_nsrun.namespaces import CLONE, Namespace
from cowork_nsrun.plan import Extras, milliseconds
from cowork_nsrun.spec import (
    Bind,
    BindData,
    BindFd,
    Chmod,
    Dev,
    Dir,
    File,
    Limits,
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

NO_LIMITS = Limits()
TEMPLATES = 64  # compiled specs that are kept

_AT_DEST = {
    RemountReadOnly: OpType.REMOUNT_RO,
    Mqueue: OpType.MQUEUE,
    Proc: OpType.PROC,
    Dev: OpType.DEV,
}


@dataclass(frozen=True, slots=True)
class Template:
    """A spec and its plan.

    Attributes:
        lone: see :func:`lone_template`.
        inherits: the command's environment is the caller's, as it is.
    """

    spec: Sandbox
    native: _native.Plan
    lone: bool
    inherits: bool


class _Templates:
    """What was compiled of the specs that were used last: most are used many times."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._known: OrderedDict[int, Template] = OrderedDict()

    def get(self, spec: Sandbox) -> Template:
        """That of a spec."""
        # by identity, since comparing takes longer than compiling; a spec that is held here
        # has its identity for itself
        with self._lock:
            found = self._known.get(id(spec))
            if found is not None:
                self._known.move_to_end(id(spec))
                return found
        lone = is_lone(spec) and spec.timeout is None and not spec.on_host
        made = Template(spec, _compile_spec(spec), lone, _inherits(spec))
        with self._lock:
            self._known[id(spec)] = made
            if len(self._known) > TEMPLATES:
                self._known.popitem(last=False)
        return made


@cache
def _templates() -> _Templates:
    return _Templates()


def template(spec: Sandbox) -> _native.Plan:
    """The plan of a spec, to be copied: its command is none that is meant.

    Raises:
        NsrunError: the core takes no such plan.
    """
    # what deny lists come to depends on what is there now
    if spec.deny_read or spec.deny_write:
        return _compile_spec(spec)
    return _templates().get(spec).native


def lone_template(spec: Sandbox) -> Template | None:
    """That of a spec if the sandbox has nothing outside, and a life as long as its command's."""
    if spec.deny_read or spec.deny_write:
        return None
    try:
        found = _templates().get(spec)
    except NsrunError:
        # whoever compiles it next will say so
        return None
    return found if found.lone else None


def is_lone(spec: Sandbox) -> bool:
    """Whether the sandbox has nothing outside: no limits, no way out, no names that are held."""
    outside = spec.egress is not None or spec.veth or spec.deny_write
    return spec.limits == NO_LIMITS and not outside


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
    native.set_number(Number.UNSHARE, sum(CLONE[name] for name in spec.unshare))
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


def checked_argv(argv: Sequence[str | os.PathLike[str]]) -> list[str]:
    """The words of a command, as strings.

    Raises:
        SpecError: it is none.
    """
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


def checked_cwd(cwd: str | os.PathLike[str]) -> str:
    """A directory to start in, as a string.

    Raises:
        SpecError: it is no absolute path.
    """
    text = os.fspath(cwd)
    if not isinstance(text, str) or not text.startswith("/") or "\0" in text:
        raise SpecError("cwd", f"an absolute path inside is wanted, not {cwd!r}")
    return text


class _Inherited:
    """The caller's environment, decoded anew when it has changed."""

    def __init__(self) -> None:
        self._known: tuple[dict[bytes, bytes], dict[str, str], bytes] = {}, {}, b""

    def get(self) -> tuple[dict[str, str], bytes]:
        """It, not to be changed, and the same as the core takes it."""
        # what CPython keeps it in: to compare that takes a hundredth of decoding all of it
        raw = getattr(os.environ, "_data", None)
        if raw is None:
            decoded = dict(os.environ)
            return decoded, _block(decoded)
        known, decoded, block = self._known
        if raw != known:
            known = dict(raw)
            decoded = {os.fsdecode(name): os.fsdecode(value) for name, value in known.items()}
            block = _block(decoded)
            # all at once, for other threads
            self._known = known, decoded, block
        return decoded, block


def _block(environment: Mapping[str, str]) -> bytes:
    return _native.joined([f"{name}={value}" for name, value in environment.items()])


@cache
def _inherited() -> _Inherited:
    return _Inherited()


def inherited() -> tuple[Mapping[str, str], bytes]:
    """The caller's environment, not to be changed, and the same as the core takes it."""
    return _inherited().get()


def environment_of(spec: Sandbox, env: Mapping[str, str] | None) -> dict[str, str]:
    """A command's environment: what the spec says, or ``env`` in place of all of it.

    Raises:
        SpecError: a variable that can't be.
    """
    if env is not None:
        for name, value in env.items():
            if not isinstance(name, str) or not isinstance(value, str):
                raise SpecError("env", f"strings are wanted, not {name!r}: {value!r}")
            if not name or "=" in name or "\0" in name + value:
                raise SpecError("env", f"{name!r} can't be set to {value!r}")
        return dict(env)
    result = {} if spec.clear_env else _inherited().get()[0].copy()
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


def environment_block(spec: Sandbox, env: Mapping[str, str] | None) -> bytes:
    """The same as the core takes it.

    Raises:
        SpecError: a variable that can't be.
    """
    as_it_is = env is None and _inherits(spec)
    return _inherited().get()[1] if as_it_is else _block(environment_of(spec, env))


def _inherits(spec: Sandbox) -> bool:
    """Whether a command's environment is the caller's, as it is."""
    return spec.egress is None and not spec.clear_env and not spec.environment


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
