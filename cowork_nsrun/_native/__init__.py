"""The C core with Python types: the only module that touches ``ffi``.

A thin layer: each method is one C function of ``nsrun.h``, with strings, bytes
and errors turned into Python's.
"""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum, IntFlag
from itertools import count
from typing import TYPE_CHECKING, Any, NamedTuple

from cowork_nsrun._native._core import ffi, lib
from cowork_nsrun.errors import NsrunError

if TYPE_CHECKING:
    from cowork_nsrun.limits import CgroupUsage


class OpType(IntEnum):
    """What a filesystem operation does."""

    BIND = lib.NSR_OP_BIND
    REMOUNT_RO = lib.NSR_OP_REMOUNT_RO
    PROC = lib.NSR_OP_PROC
    DEV = lib.NSR_OP_DEV
    TMPFS = lib.NSR_OP_TMPFS
    MQUEUE = lib.NSR_OP_MQUEUE
    DIR = lib.NSR_OP_DIR
    FILE = lib.NSR_OP_FILE
    BIND_DATA = lib.NSR_OP_BIND_DATA
    SYMLINK = lib.NSR_OP_SYMLINK
    CHMOD = lib.NSR_OP_CHMOD
    OVERLAY = lib.NSR_OP_OVERLAY
    TMP_OVERLAY = lib.NSR_OP_TMP_OVERLAY
    RO_OVERLAY = lib.NSR_OP_RO_OVERLAY
    HOSTNAME = lib.NSR_OP_HOSTNAME
    GUARD = lib.NSR_OP_GUARD


class OpFlag(IntFlag):
    """How a filesystem operation does it."""

    NONE = 0
    RDONLY = lib.NSR_OP_RDONLY
    DEVICES = lib.NSR_OP_DEVICES
    TRY = lib.NSR_OP_TRY
    SOURCE_FD = lib.NSR_OP_SOURCE_FD
    NO_LINKS = lib.NSR_OP_NO_LINKS


class PlanFlag(IntFlag):
    """Switches of a whole plan."""

    NONE = 0
    UNSHARE_USER_TRY = lib.NSR_UNSHARE_USER_TRY
    UNSHARE_CGROUP_TRY = lib.NSR_UNSHARE_CGROUP_TRY
    DISABLE_USERNS = lib.NSR_DISABLE_USERNS
    ASSERT_USERNS_DISABLED = lib.NSR_ASSERT_USERNS_DISABLED
    NEW_SESSION = lib.NSR_NEW_SESSION
    DIE_WITH_PARENT = lib.NSR_DIE_WITH_PARENT
    AS_PID_1 = lib.NSR_AS_PID_1
    CAPS_TOUCHED = lib.NSR_CAPS_TOUCHED
    LEVEL_PREFIX = lib.NSR_LEVEL_PREFIX
    NOT_A_SECURITY_BOUNDARY = lib.NSR_NOT_A_SECURITY_BOUNDARY
    CLOSE_FDS = lib.NSR_CLOSE_FDS
    DEFAULT_SIGNALS = lib.NSR_DEFAULT_SIGNALS
    TERMINAL = lib.NSR_TERMINAL
    PARKED = lib.NSR_PARKED
    TELL_EXEC = lib.NSR_TELL_EXEC
    LANDLOCK = lib.NSR_LANDLOCK
    ON_HOST = lib.NSR_ON_HOST
    UNCONFINED = lib.NSR_UNCONFINED
    PRIVATE_TMP = lib.NSR_PRIVATE_TMP


class Number(IntEnum):
    """A word of the plan that is a number."""

    FLAGS = lib.NSR_FLAGS
    UNSHARE = lib.NSR_UNSHARE
    CAPS_SET = lib.NSR_CAPS_SET
    CAPS_CLEAR = lib.NSR_CAPS_CLEAR
    TIMEOUT_MS = lib.NSR_TIMEOUT_MS
    UID = lib.NSR_UID
    GID = lib.NSR_GID
    USERNS_FD = lib.NSR_USERNS_FD
    USERNS2_FD = lib.NSR_USERNS2_FD
    PIDNS_FD = lib.NSR_PIDNS_FD
    SYNC_FD = lib.NSR_SYNC_FD
    BLOCK_FD = lib.NSR_BLOCK_FD
    USERNS_BLOCK_FD = lib.NSR_USERNS_BLOCK_FD
    INFO_FD = lib.NSR_INFO_FD
    JSON_STATUS_FD = lib.NSR_JSON_STATUS_FD
    SECCOMP_FD = lib.NSR_SECCOMP_FD
    LISTEN_FD = lib.NSR_LISTEN_FD


# file descriptors stand last in enum nsr_number
FD_NUMBERS = tuple(number for number in Number if number >= Number.USERNS_FD)


class String(IntEnum):
    """A word of the plan that is a string."""

    HOSTNAME = lib.NSR_HOSTNAME
    CHDIR = lib.NSR_CHDIR
    ARGV0 = lib.NSR_ARGV0


class Words(IntEnum):
    """A list of strings of the plan."""

    ARGV = lib.NSR_ARGV
    ENV = lib.NSR_ENV
    LOCK_FILES = lib.NSR_LOCK_FILES
    CGROUPS = lib.NSR_CGROUPS
    TCP_CONNECT = lib.NSR_TCP_CONNECT
    TCP_BIND = lib.NSR_TCP_BIND


@dataclass(frozen=True, slots=True)
class Op:
    """One filesystem operation, as the plan holds it; ``fd`` -1 means none."""

    type: OpType
    dest: str | None = None
    source: str | None = None
    work: str | None = None
    flags: OpFlag = OpFlag.NONE
    fd: int = -1
    perms: int = 0
    size: int = 0
    data: bytes | None = None
    layers: tuple[str, ...] = ()


STEP_CLONE: int = lib.nsr_step_clone()
STEP_EXEC: int = lib.nsr_step_exec()


def version() -> str:
    """The version of the core; the package's own."""
    return _str(lib.nsr_version())


def _str(value: Any) -> str:
    return os.fsdecode(ffi.string(value))


def _optional_str(value: Any) -> str | None:
    return None if value == ffi.NULL else _str(value)


def _raw(value: str) -> bytes:
    """For a ``const char *`` argument: cffi ends it with a NUL byte."""
    raw = os.fsencode(value)
    if b"\0" in raw:
        raise NsrunError(f"a NUL byte in {value!r}", errno=errno.EINVAL)
    return raw


def _c_str(value: str) -> Any:
    return ffi.new("char[]", _raw(value))


def _c_words(values: Iterable[str]) -> tuple[Any, list[Any]]:
    """An array that ends with NULL, and what has to live as long as it does."""
    kept = [_c_str(value) for value in values]
    return ffi.new("const char *[]", [*kept, ffi.NULL]), kept


def _error(diag: Any) -> NsrunError:
    return NsrunError(_str(diag.text), step=diag.step, path=_str(diag.path), errno=diag.err)


def _check(ret: int) -> None:
    if ret < 0:
        raise NsrunError(os.strerror(-ret), errno=-ret)


@ffi.def_extern()  # type: ignore[untyped-decorator]
def nsr_py_warn(arg: Any, text: Any) -> None:
    """Take one warning of the parser."""
    ffi.from_handle(arg).append(_str(text))


def joined(words: Sequence[str]) -> bytes:
    """Many words as the core takes them at once: each with a NUL byte behind it.

    Raises:
        NsrunError: there is one in a word.
    """
    text = "".join([f"{word}\0" for word in words])
    if text.count("\0") != len(words):
        raise NsrunError("a NUL byte in a word", errno=errno.EINVAL)
    return os.fsencode(text)


class Plan:
    """``struct nsr_plan``, freed with this object."""

    def __init__(self, base: Plan | None = None) -> None:
        """An empty one, or a copy of another, which must not change any more."""
        self._own(lib.nsr_plan_new() if base is None else lib.nsr_plan_derive(base._plan), base)

    def for_command(
        self, argv: Sequence[str], environment: bytes, cwd: str | None, flags: int
    ) -> Plan:
        """A copy with a command; this one must not change any more.

        Arguments:
            argv: the command.
            environment: what is added, as :func:`joined` makes it.
            cwd: directory inside to start in, instead of this one's.
            flags: switches to add.

        Raises:
            NsrunError: it asks for what no plan may ask for.
        """
        words = joined(argv) + environment
        path = ffi.NULL if cwd is None else _raw(cwd)
        diag = ffi.new("struct nsr_diag *")
        pointer = lib.nsr_plan_for_command(
            self._plan, words, len(words), len(argv), path, flags, diag
        )
        if pointer == ffi.NULL:
            raise _error(diag)
        made = Plan.__new__(Plan)
        made._own(pointer, self)
        return made

    def _own(self, pointer: Any, base: Plan | None) -> None:
        if pointer == ffi.NULL:
            raise MemoryError
        self._plan: Any = ffi.gc(pointer, lib.nsr_plan_free)
        # what was not changed is still there
        self._base = base
        # the parser points into the words that it was given
        self._kept: list[Any] = []

    def parse(self, argv: Sequence[str], environ: Mapping[str, str]) -> list[str]:
        """Read a bwrap command line, the program's name first; returns the warnings.

        Raises:
            NsrunError: it is not one, or it asks for help or a version.
        """
        words, kept_words = _c_words(argv)
        env, kept_env = _c_words(f"{name}={value}" for name, value in environ.items())
        self._kept += [words, kept_words, env, kept_env]
        warnings: list[str] = []
        handle = ffi.new_handle(warnings)
        diag = ffi.new("struct nsr_diag *")
        ret = lib.nsr_plan_parse(self._plan, len(argv), words, env, lib.nsr_py_warn, handle, diag)
        if ret == lib.NSR_PARSE_ERROR:
            raise _error(diag)
        if ret != lib.NSR_PARSE_OK:
            raise NsrunError("the command line holds no command", errno=errno.EINVAL)
        return warnings

    def read(self, data: bytes) -> None:
        """Fill an empty plan from bytes."""
        diag = ffi.new("struct nsr_diag *")
        if lib.nsr_plan_read(self._plan, ffi.from_buffer("uint8_t[]", data), len(data), diag):
            raise _error(diag)

    def write(self) -> bytes:
        """The plan as bytes."""
        size = lib.nsr_plan_write(self._plan, ffi.NULL, 0)
        out = ffi.new("uint8_t[]", size)
        lib.nsr_plan_write(self._plan, out, size)
        return bytes(ffi.buffer(out, size))

    def check(self) -> None:
        """Raise if it asks for what no plan may ask for."""
        diag = ffi.new("struct nsr_diag *")
        if lib.nsr_plan_check(self._plan, diag):
            raise _error(diag)

    def set_number(self, which: Number, value: int) -> None:
        """Set a number."""
        _check(lib.nsr_plan_set_number(self._plan, which, value))

    def set_string(self, which: String, value: str | None) -> None:
        """Set a string, or take it away."""
        text = ffi.NULL if value is None else _raw(value)
        _check(lib.nsr_plan_set_string(self._plan, which, text))

    def add_word(self, which: Words, value: str) -> None:
        """Add to a list."""
        _check(lib.nsr_plan_add_word(self._plan, which, _raw(value)))

    def add_words(self, which: Words, values: Sequence[str]) -> None:
        """Add many at once."""
        raw = joined(values)
        _check(lib.nsr_plan_add_words(self._plan, which, raw, len(raw)))

    def clear(self, which: Words) -> None:
        """Empty a list."""
        _check(lib.nsr_plan_clear(self._plan, which))

    def clear_ops(self) -> None:
        """Take all operations away."""
        lib.nsr_plan_clear_ops(self._plan)

    def add_op(self, op: Op) -> None:
        """Add a filesystem operation."""
        native = ffi.new("struct nsr_op *")
        native.type, native.flags, native.fd = op.type, op.flags, op.fd
        native.perms, native.size = op.perms, op.size
        # a struct holds pointers only; what they point to is kept here until it is copied
        kept: list[Any] = []
        for name, value in (("source", op.source), ("dest", op.dest), ("work", op.work)):
            if value is not None:
                kept.append(_c_str(value))
                setattr(native, name, kept[-1])
        if op.data is not None:
            kept.append(ffi.from_buffer("uint8_t[]", op.data))
            native.data, native.data_len = kept[-1], len(op.data)
        if op.layers:
            kept += _c_words(op.layers)
            native.layers, native.n_layers = kept[-2], len(op.layers)
        _check(lib.nsr_plan_add_op(self._plan, native))

    def add_seccomp(self, program: bytes) -> None:
        """Add a seccomp program."""
        data = ffi.from_buffer("uint8_t[]", program)
        _check(lib.nsr_plan_add_seccomp(self._plan, data, len(program)))

    def add_rlimit(self, name: str, soft: int, hard: int) -> None:
        """Add a resource limit; the name is that of ``RLIMIT_*`` in lower case."""
        _check(lib.nsr_plan_add_rlimit(self._plan, _raw(name), soft, hard))

    def number(self, which: Number) -> int:
        """A number of the plan."""
        return int(lib.nsr_plan_number(self._plan, which))

    def string(self, which: String) -> str | None:
        """A string of the plan, or None."""
        return _optional_str(lib.nsr_plan_string(self._plan, which))

    def words(self, which: Words) -> tuple[str, ...]:
        """A list of the plan."""
        count = lib.nsr_plan_words(self._plan, which)
        return tuple(_str(lib.nsr_plan_word(self._plan, which, i)) for i in range(count))

    def describe_host(self) -> str:
        """What confines it on the host here, in words."""
        size = 256
        out = ffi.new("char[]", size)
        lib.nsr_host_describe(self._plan, out, size)
        return _str(out)

    def ops(self) -> tuple[Op, ...]:
        """The filesystem operations, in order."""
        count = lib.nsr_plan_ops(self._plan)
        return tuple(_op(lib.nsr_plan_op(self._plan, i)) for i in range(count))


def _op(native: Any) -> Op:
    has_data = native.data != ffi.NULL
    return Op(
        type=OpType(native.type),
        dest=_optional_str(native.dest),
        source=_optional_str(native.source),
        work=_optional_str(native.work),
        flags=OpFlag(native.flags),
        fd=native.fd,
        perms=native.perms,
        size=native.size,
        data=bytes(ffi.buffer(native.data, native.data_len)) if has_data else None,
        layers=tuple(_str(native.layers[i]) for i in range(native.n_layers)),
    )


def landlock_abi() -> int:
    """The version of landlock(7) here; 0: none."""
    return max(0, int(lib.nsr_landlock_abi()))


class NeedsProgram(Exception):
    """This plan can't be started in process; the nsrun program has to run it."""


class Child:
    """A started sandbox.  Make it, start it once, and close it whatever happens.

    Not for two threads at once: the caller takes turns.
    """

    def __init__(self) -> None:
        # The memory is held apart from its finalizer: that one may run first in a cycle, and
        # takes the memory that it alone holds along.
        self._child = ffi.new("struct nsr_child *")
        # a finalizer in Python can be interrupted, this one not
        self._closes = ffi.gc(self._child, lib.nsr_child_close)
        self._diag = ffi.new("struct nsr_diag *")
        self._plan: Plan | None = None

    def start(self, plan: Plan, stdio: tuple[int, int, int]) -> None:
        """Clone; ``stdio`` are the three descriptors that become 0, 1 and 2 inside.

        Raises:
            NeedsProgram: not in process.
            NsrunError: not at all.
        """
        # the core reads it until the child is closed
        self._plan = plan
        ret = lib.nsr_spawn(plan._plan, list(stdio), self._child, self._diag)
        if ret == -errno.ENOTSUP:
            raise NeedsProgram(_str(self._diag.text))
        if ret:
            raise _error(self._diag)

    def start_program(self, plan: Plan, program: str, stdio: tuple[int, int, int]) -> None:
        """The same by the nsrun program at that path, which runs every plan.

        Raises:
            NsrunError: not at all.
        """
        self._plan = plan
        ret = lib.nsr_spawn_program(plan._plan, _raw(program), list(stdio), self._child, self._diag)
        if ret:
            raise _error(self._diag)

    def hand(self, command: Plan, stdio: tuple[int, int, int], deadline: int | None = None) -> bool:
        """Give a parked sandbox its command; False if it is not what it was made to be.

        Arguments:
            deadline: milliseconds after which pid 1 ends the sandbox; None: never.

        Raises:
            NsrunError: with ``E2BIG`` if the command is too large for it.
        """
        ret = lib.nsr_child_hand(self._child, command._plan, list(stdio), self._diag)
        if ret == -errno.E2BIG:
            raise _error(self._diag)
        if not ret and deadline is not None:
            # one that has ended by now needs none
            lib.nsr_child_deadline(self._child, deadline)
        return not ret

    def read(self) -> bool:
        """True once the payload has ended; never blocks.

        Raises:
            NsrunError: the set-up or the exec failed.
        """
        ret = lib.nsr_child_read(self._child, self._diag)
        if ret < 0:
            raise _error(self._diag)
        return bool(ret)

    @property
    def fd(self) -> int:
        """Readable when :meth:`read` has something; may change with each read."""
        return int(self._child.status_fd)

    @property
    def exit_status(self) -> int:
        """0-255; 128+n for signal n."""
        return int(self._child.exit_status)

    @property
    def exec_fd(self) -> int:
        """At its end once the exec has succeeded or failed; -1: that is not told."""
        return int(self._child.exec_fd)

    @property
    def parked(self) -> bool:
        """Waits for its command."""
        return bool(self._child.parked)

    @property
    def timed_out(self) -> bool:
        """The plan's timeout ended it."""
        return bool(self._child.timed_out)

    @property
    def pid(self) -> int:
        """The command's pid as the caller sees it; 0 before its exec, or where nobody told."""
        child = self._child
        return int(child.payload_pid or (child.pid if child.exec_ns else 0))

    @property
    def usage(self) -> tuple[int, int]:
        """Nanoseconds of processor time, and bytes of the largest process or 0, after the end."""
        return int(self._child.cpu_ns), int(self._child.peak_rss)

    @property
    def counted(self) -> CgroupUsage | None:
        """What a cgroup counted that nobody else can look at; None: there is none."""
        return None

    def signal(self, number: int) -> bool:
        """Send a signal to everything inside; False if it has ended.

        Raises:
            NsrunError: it can't be sent.
        """
        ret = lib.nsr_child_signal(self._child, number)
        if ret == -errno.ESRCH:
            return False
        _check(ret)
        return True

    @property
    def exec_seen(self) -> bool:
        """The command has been started."""
        return bool(self._child.exec_ns)

    @property
    def spawn_ns(self) -> int | None:
        """From just before the clone to just before the exec; None if it did not come to it."""
        child = self._child
        return int(child.exec_ns - child.start_ns) if child.exec_ns else None

    def close(self) -> None:
        """Kill what is left and free everything; may be called again."""
        lib.nsr_child_close(self._child)

    @property
    def alone(self) -> bool:
        """At the command's end no process but pid 1 was left."""
        return bool(self._child.alone)

    def try_close(self) -> bool:
        """Close it if that takes no time; else nothing is done, and False returned."""
        if not lib.nsr_child_try_close(self._child):
            return False
        # nothing is left to do for the finalizer
        ffi.gc(self._closes, None)
        return True

    def forget(self) -> None:
        """For a forked copy of the process that started it: free, and kill nothing."""
        lib.nsr_child_forget(self._child)


class Flow:
    """``struct nsr_flow``: what goes to a command, and what comes from it.

    Not for two threads at once.

    Arguments:
        stdin: our end to write ``data`` to, which does not block; -1: none.
        outputs: our ends to read, at most two; -1: none.
    """

    FED: int = lib.NSR_FLOW_FED

    def __init__(
        self, stdin: int = -1, data: bytes = b"", outputs: Sequence[int] = (-1, -1)
    ) -> None:
        # held apart, as the memory of a child is
        self._flow = ffi.new("struct nsr_flow *")
        self._frees = ffi.gc(self._flow, lib.nsr_flow_free)
        flow = self._flow
        flow.out[0].fd, flow.out[1].fd = outputs
        flow.to = stdin
        self._feed(data)

    def _feed(self, data: bytes) -> None:
        if data:
            self._data = ffi.from_buffer("uint8_t[]", data)
            self._flow.data, self._flow.left = self._data, len(data)

    @classmethod
    def opened(cls, data: bytes | None, capture: bool) -> Flow:
        """That of a command that is to be started with :attr:`stdio`, with pipes of its own.

        Arguments:
            data: for its standard input; None gives it the caller's.
            capture: collect its output; else it goes where the caller's goes.

        Raises:
            OSError: there are no pipes to be had.
        """
        flow = cls()
        ret = lib.nsr_flow_open(flow._flow, data is not None, capture)
        if ret:
            raise OSError(-ret, os.strerror(-ret))
        flow._feed(data or b"")
        return flow

    @property
    def stdio(self) -> tuple[int, int, int]:
        """What becomes 0, 1 and 2 inside."""
        stdio = self._flow.stdio
        return stdio[0], stdio[1], stdio[2]

    @property
    def stdin(self) -> int:
        """Our end to write to; -1: none, or it is closed."""
        return int(self._flow.to)

    @property
    def outputs(self) -> tuple[int, int]:
        """Our ends to read; -1: none, or it is at its end."""
        out = self._flow.out
        return out[0].fd, out[1].fd

    @property
    def feeds(self) -> bool:
        """Something is still to be written."""
        return bool(self._flow.left)

    def started(self) -> None:
        """Close what the command has copies of; :meth:`serve` does that as well."""
        lib.nsr_flow_started(self._flow)

    def end_input(self) -> None:
        """Close our end of the command's standard input."""
        lib.nsr_flow_end_input(self._flow)

    def close(self) -> None:
        """Close all that :meth:`opened` has opened and forget the output; may be called again."""
        ffi.release(self._frees)

    def serve(self, watch: int, deadline: float | None) -> int:
        """Feed and collect; :attr:`FED` is among the result once no more is to be written.

        It returns when ``watch`` is readable, at the deadline, when something was read or
        written, when a signal came, and after a twentieth of a second.

        Arguments:
            deadline: by ``time.monotonic()``.

        Raises:
            NsrunError: a stream can't be read or written, or memory is short.
        """
        until = 0 if deadline is None else max(1, int(deadline * 1e9))
        ret = int(lib.nsr_flow_serve(self._flow, watch, until))
        if ret < 0:
            _check(ret)
        return ret

    def step(self) -> int:
        """Feed and collect what can be at once; as :meth:`serve`.

        Raises:
            NsrunError: as for :meth:`serve`.
        """
        ret = int(lib.nsr_flow_step(self._flow))
        if ret < 0:
            _check(ret)
        return ret

    def drain(self) -> None:
        """Take what is there.

        Raises:
            NsrunError: as for :meth:`serve`.
        """
        if self.outputs != (-1, -1):
            _check(lib.nsr_flow_drain(self._flow))

    def output(self, i: int) -> bytes:
        """What was collected from one of ``outputs``."""
        out = self._flow.out[i]
        return bytes(ffi.buffer(out.bytes, out.len)) if out.len else b""


class Run:
    """``struct nsr_run``: a command of which its end and its output are wanted.

    For one thread.

    Arguments:
        data: for its standard input; None gives it the caller's.
        capture: collect its output; else it goes where the caller's goes.

    Attributes:
        captures: as it was asked for.
        given_away: somebody else will close it.
    """

    def __init__(self, data: bytes | None, capture: bool) -> None:
        # held apart, as the memory of a child is
        self._run = ffi.new("struct nsr_run *")
        self._frees = ffi.gc(self._run, lib.nsr_run_free)
        self._base: Plan | None = None
        self.captures = capture
        self.given_away = False
        run = self._run
        run.output = capture
        if data is not None:
            run.input = True
            if data:
                self._data = ffi.from_buffer("uint8_t[]", data)
                run.data, run.left = self._data, len(data)

    def start(
        self, base: Plan, argv: Sequence[str], environment: bytes, cwd: str | None, flags: int
    ) -> None:
        """Start it; the arguments are those of :meth:`Plan.for_command`.

        Raises:
            NeedsProgram: not in process.
            OSError: there are no pipes to be had.
            NsrunError: not at all.
        """
        words = joined(argv) + environment
        path = ffi.NULL if cwd is None else _raw(cwd)
        # what is not changed is still there
        self._base = base
        ret = lib.nsr_run_start(self._run, base._plan, words, len(words), len(argv), path, flags)
        if ret > 0:
            raise OSError(ret, os.strerror(ret))
        if ret == -errno.ENOTSUP:
            raise NeedsProgram(_str(self._run.diag.text))
        if ret:
            raise _error(self._run.diag)

    def serve(self, deadline: float | None) -> bool:
        """Feed and collect; True once the command has ended and none of its processes is left.

        It also returns at the deadline, when a signal came, and after a twentieth of a second.

        Arguments:
            deadline: by ``time.monotonic()``.

        Raises:
            NsrunError: the set-up or the exec failed, or a stream can't be read or written.
        """
        until = 0 if deadline is None else max(1, int(deadline * 1e9))
        ret = lib.nsr_run_serve(self._run, until)
        if ret < 0:
            raise _error(self._run.diag)
        return bool(ret)

    def watch(self) -> int:
        """For an event loop: readable whenever :meth:`step` has something to do.

        Raises:
            NsrunError: there is no descriptor to be had.
        """
        ret = int(lib.nsr_run_watch(self._run))
        _check(ret)
        return ret

    def step(self) -> bool:
        """As :meth:`serve`, but at once; after the end :meth:`finish` is due."""
        ret = lib.nsr_run_step(self._run)
        if ret < 0:
            raise _error(self._run.diag)
        return bool(ret)

    def finish(self) -> None:
        """End what the command left running, and take the rest of its output.

        It closes what :meth:`watch` gave, and takes a moment unless the command was :attr:`alone`.

        Raises:
            NsrunError: a stream can't be read.
        """
        if lib.nsr_run_finish(self._run):
            raise _error(self._run.diag)

    def kill(self) -> None:
        """Kill everything inside."""
        lib.nsr_child_signal(ffi.addressof(self._run, "child"), signal.SIGKILL)

    @property
    def ending(self) -> tuple[int, int | None, int, int]:
        """How it ended: as :attr:`Child.exit_status`, ``spawn_ns`` and both of ``usage``."""
        child = self._run.child
        began = child.exec_ns
        spawn_ns = began - child.start_ns if began else None
        return child.exit_status, spawn_ns, child.cpu_ns, child.peak_rss

    @property
    def began(self) -> bool:
        """As :attr:`Child.exec_seen`."""
        return bool(self._run.child.exec_ns)

    @property
    def alone(self) -> bool:
        """As :attr:`Child.alone`; if it is not so, nothing is left to be closed."""
        return bool(self._run.child.alone)

    def take_output(self) -> tuple[bytes, bytes]:
        """What was collected from its standard output and its standard error; once."""
        flow = self._run.flow
        first, second = flow.out[0], flow.out[1]
        if not first.len and not second.len:
            return b"", b""
        taken = tuple(bytes(ffi.buffer(out.bytes, out.len)) for out in (first, second))
        lib.nsr_flow_free(ffi.addressof(self._run, "flow"))
        return taken[0], taken[1]

    def try_close(self) -> bool:
        """As :meth:`Child.try_close`."""
        return bool(lib.nsr_child_try_close(ffi.addressof(self._run, "child")))

    def close(self) -> None:
        """Kill what is left and free everything, the output too; may be called again."""
        lib.nsr_run_close(self._run)

    def forget(self) -> None:
        """As :meth:`Child.forget`."""
        lib.nsr_run_forget(self._run)


class SeccompTest(NamedTuple):
    """What a rule asks of an argument; ``kind`` is ``any``, ``bits``, ``above`` or ``not``."""

    kind: str
    arg: int
    mask: int
    value: int


@dataclass(frozen=True, slots=True)
class SeccompRule:
    """One row of the table of the seccomp profiles; all of ``tests`` hold for it to act."""

    call: str
    when: str
    answer: str
    errno: int
    profiles: frozenset[str]
    tests: tuple[SeccompTest, ...]


@dataclass(frozen=True, slots=True)
class BuiltinFilter:
    """A built-in seccomp profile; ``bpf`` is empty where nothing is loaded."""

    name: str
    help: str
    bpf: bytes


_TESTS = {
    lib.NSR_TEST_ANY: "any",
    lib.NSR_TEST_BITS: "bits",
    lib.NSR_TEST_ABOVE: "above",
    lib.NSR_TEST_NOT: "not",
}


def _filter(native: Any) -> BuiltinFilter:
    bpf = bytes(ffi.buffer(native.bpf, native.len)) if native.len else b""
    return BuiltinFilter(_str(native.name), _str(native.help), bpf)


def seccomp_profiles() -> tuple[BuiltinFilter, ...]:
    """The built-in seccomp profiles, in the table's order."""
    return tuple(_filter(lib.nsr_seccomp_profile_at(i)) for i in range(lib.NSR_SECCOMP_END))


def seccomp_profile(name: str) -> BuiltinFilter:
    """One of them.

    Raises:
        NsrunError: there is none of that name.
    """
    native = lib.nsr_seccomp_profile(_raw(name))
    if native == ffi.NULL:
        raise NsrunError(f"there is no seccomp profile {name!r}", errno=errno.EINVAL)
    return _filter(native)


def seccomp_groups() -> tuple[tuple[str, str, str, tuple[SeccompRule, ...]], ...]:
    """The table by groups: title, why, what does not work then, and the rules."""
    names = [profile.name for profile in seccomp_profiles()]
    found: list[tuple[str, str, str, list[SeccompRule]]] = []
    for i in count():
        row = lib.nsr_seccomp_rule(i)
        if row == ffi.NULL:
            return tuple((*group[:3], tuple(group[3])) for group in found)
        if row.group != ffi.NULL:
            found.append((_str(row.group), _str(row.why), _str(row.breaks), []))
            continue
        found[-1][3].append(_rule(row, names))
    raise AssertionError("the table has no end")


def _rule(row: Any, names: Sequence[str]) -> SeccompRule:
    return SeccompRule(
        call=_str(row.call),
        when=_str(row.when),
        answer=_str(row.answer),
        errno=row.err,
        profiles=frozenset(name for i, name in enumerate(names) if row.profiles >> i & 1),
        tests=tuple(
            SeccompTest(_TESTS[test.type], test.arg, test.mask, test.value)
            for test in (row.test[0], row.test[1])
            if test.type != lib.NSR_TEST_NONE
        ),
    )


@dataclass(frozen=True, slots=True)
class Probe:
    """``struct nsr_probe``; ``verdict`` is a value of ``enum nsr_verdict``."""

    verdict: int
    errno: int
    remedy: str
    evidence: str


VERDICTS = {
    lib.NSR_OK: "ok",
    lib.NSR_BLOCKED: "blocked",
    lib.NSR_MISSING: "missing",
    lib.NSR_UNKNOWN: "unknown",
}


def select_own(option: str | None, variable: str | None) -> tuple[bool, Probe | None]:
    """Whether a sandbox may be made in process; what was found, if that was tried.

    Raises:
        NsrunError: a word that names no backend.
    """
    probe = ffi.new("struct nsr_probe *")
    diag = ffi.new("struct nsr_diag *")
    words = [ffi.NULL if word is None else _c_str(word) for word in (option, variable)]
    ret = lib.nsr_select_own(*words, probe, diag)
    if ret < 0:
        raise _error(diag)
    if probe.verdict not in VERDICTS:
        return bool(ret), None
    found = Probe(probe.verdict, probe.err, _str(probe.remedy), _str(probe.evidence))
    return bool(ret), found


def cap_mask(name: str) -> int:
    """The bits of one capability by name, or of ``ALL``.

    Raises:
        NsrunError: no such capability.
    """
    plan = Plan()
    plan.parse(["nsrun", "--cap-add", name, "true"], {})
    return plan.number(Number.CAPS_SET)
