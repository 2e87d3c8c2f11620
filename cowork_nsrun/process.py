"""Run a command in a sandbox and hear how it ended."""

from __future__ import annotations

import errno
import json
import logging
import os
import selectors
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from types import TracebackType
from typing import Generic, Literal, Protocol, Self, TypeVar, cast, overload

from cowork_nsrun import _native
from cowork_nsrun._native import Number, PlanFlag
from cowork_nsrun.errors import CommandError, NsrunError, TimeoutExpired
from cowork_nsrun.plan import Plan
from cowork_nsrun.spec import Sandbox

log = logging.getLogger(__name__)

CHUNK = 1 << 18
SIGNAL_BASE = 128

Output = TypeVar("Output", bytes, str)


@dataclass(frozen=True, slots=True)
class Timings:
    """How long things took, in nanoseconds.

    Attributes:
        spawn_ns: from just before the sandbox's clone to just before the command's exec;
            None where it is not known.
        total_ns: from the start of the call until the command's end was known.
    """

    spawn_ns: int | None
    total_ns: int


@dataclass(frozen=True, slots=True)
class Result(Generic[Output]):
    """How a command ended.

    Attributes:
        argv: the command.
        returncode: its exit status, or 128+n if signal n ended it.
        signal: that n, else None.  A program that exits with such a number by itself
            looks the same.
        stdout: what it wrote; empty if it was not captured.
        stderr: likewise.
        timings: how long it took.
        backend: what ran it.
    """

    argv: tuple[str, ...]
    returncode: int
    signal: int | None
    stdout: Output
    stderr: Output
    timings: Timings
    backend: str

    def check(self) -> Self:
        """Return this very result if the command ended with 0.

        Raises:
            CommandError: it did not.
        """
        if self.returncode:
            raise CommandError(self)
        return self


@overload
def run(
    argv: Sequence[str | os.PathLike[str]],
    spec: Sandbox,
    *,
    input: bytes | str | None = None,
    capture: bool = True,
    cwd: str | os.PathLike[str] | None = None,
    env: Mapping[str, str] | None = None,
    timeout: float | None = None,
    text: Literal[False] = False,
) -> Result[bytes]: ...
@overload
def run(
    argv: Sequence[str | os.PathLike[str]],
    spec: Sandbox,
    *,
    input: bytes | str | None = None,
    capture: bool = True,
    cwd: str | os.PathLike[str] | None = None,
    env: Mapping[str, str] | None = None,
    timeout: float | None = None,
    text: Literal[True],
) -> Result[str]: ...
def run(
    argv: Sequence[str | os.PathLike[str]],
    spec: Sandbox,
    *,
    input: bytes | str | None = None,
    capture: bool = True,
    cwd: str | os.PathLike[str] | None = None,
    env: Mapping[str, str] | None = None,
    timeout: float | None = None,
    text: bool = False,
) -> Result[bytes] | Result[str]:
    """Run a command in a sandbox, to its end.

    What the command leaves running is killed with it where the sandbox has a pid
    namespace of its own.  Safe to call from any number of threads.

    Arguments:
        argv: the command, found along the PATH inside, and its arguments.
        spec: the sandbox.
        input: what the command reads on its standard input; None gives it the caller's.
        capture: collect its output; else it goes where the caller's goes.
        cwd: directory inside to start in, instead of the spec's.
        env: the command's whole environment, instead of what the spec says.
        timeout: seconds, after which everything in the sandbox is killed.
        text: decode output as UTF-8, with what is not UTF-8 escaped.

    Raises:
        SpecError: a value that can't be, named.
        NsrunError: the sandbox could not be made, or the command not started.
        TimeoutExpired: the time was up.
    """
    plan = Plan.from_spec(spec, argv, cwd=cwd, env=env)
    return _run(plan, input, capture, timeout, text)


@overload
def run_plan(
    plan: Plan,
    *,
    input: bytes | str | None = None,
    capture: bool = True,
    timeout: float | None = None,
    text: Literal[False] = False,
) -> Result[bytes]: ...
@overload
def run_plan(
    plan: Plan,
    *,
    input: bytes | str | None = None,
    capture: bool = True,
    timeout: float | None = None,
    text: Literal[True],
) -> Result[str]: ...
def run_plan(
    plan: Plan,
    *,
    input: bytes | str | None = None,
    capture: bool = True,
    timeout: float | None = None,
    text: bool = False,
) -> Result[bytes] | Result[str]:
    """Run a plan, such as one made from a bwrap command line; else like :func:`run`.

    Descriptors that the plan speaks of stay the caller's to close.
    """
    return _run(plan, input, capture, timeout, text)


class _Running(Protocol):
    """A sandbox at work."""

    backend: str

    def start(self, plan: Plan, stdio: tuple[int, int, int]) -> None: ...
    @property
    def fd(self) -> int: ...
    def read(self) -> bool: ...
    @property
    def exit_status(self) -> int: ...
    @property
    def spawn_ns(self) -> int | None: ...
    def close(self) -> None: ...


class _InProcess(_native.Child):
    """Started by this very process, without a helper program."""

    backend = "namespaces"

    def start(self, plan: Plan, stdio: tuple[int, int, int]) -> None:  # type: ignore[override]
        super().start(plan.native, stdio)

    def read(self) -> bool:
        ended = super().read()
        if ended and self.spawn_ns is None:
            raise NsrunError("the sandbox was ended before the command could start")
        return ended


class _Program:
    """Started by the nsrun program: for plans that would change this process."""

    backend = "namespaces (nsrun program)"

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._fds = _Fds()
        self._status = -1
        self._records = b""
        self._init = -1
        self._ours = False
        self.exit_status = -1
        self.spawn_ns: int | None = None

    def start(self, plan: Plan, stdio: tuple[int, int, int]) -> None:
        program = find_program()
        self._status, theirs = self._fds.pipe()
        os.set_blocking(self._status, False)
        self._ours = plan.number(Number.JSON_STATUS_FD) == -1
        numbers = {Number.JSON_STATUS_FD: theirs} if self._ours else {}
        # so that ending the program ends the sandbox
        ready = plan.with_changes(PlanFlag.DIE_WITH_PARENT, numbers)
        data = self._fds.own(os.memfd_create("nsrun-plan"))
        with open(os.dup(data), "wb") as file:
            file.write(ready.to_bytes())
        os.lseek(data, 0, os.SEEK_SET)
        self._process = subprocess.Popen(
            [program, "--plan", str(data)],
            stdin=stdio[0],
            stdout=stdio[1],
            stderr=stdio[2],
            pass_fds=[data, *({theirs} if self._ours else ()), *plan.fds],
        )
        self._fds.close(data)
        self._fds.close(theirs)
        self._pidfd = self._fds.own(os.pidfd_open(self._process.pid))

    @property
    def fd(self) -> int:
        return self._status if self._status >= 0 else self._pidfd

    def read(self) -> bool:
        assert self._process is not None
        if self._status >= 0 and not self._read_records():
            return False
        if self._process.poll() is None:
            return False
        self.exit_status = self._process.returncode
        if self._ours and b'"exit-code"' not in self._records:
            # its reason is on standard error, where it belongs for a command line
            raise NsrunError(f"nsrun could not run the plan, exit status {self.exit_status}")
        return True

    def _read_records(self) -> bool:
        """Take what is there; True at the end."""
        while True:
            try:
                data = os.read(self._status, CHUNK)
            except BlockingIOError:
                break
            if not data:
                self._fds.close(self._status)
                self._status = -1
                break
            self._records += data
        if self._init < 0 and b"\n" in self._records:
            pid = json.loads(self._records.partition(b"\n")[0])["child-pid"]
            with suppress(ProcessLookupError):
                self._init = self._fds.own(os.pidfd_open(pid))
        return self._status < 0

    def close(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        if self._init >= 0:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._init, signal.SIGKILL)
            with selectors.PollSelector() as selector:
                selector.register(self._init, selectors.EVENT_READ)
                selector.select()
        self._fds.close_all()


def find_program() -> str:
    """The ``nsrun`` program that came with this package, else the one on PATH.

    Raises:
        NsrunError: there is none.
    """
    try:
        files = distribution("cowork-nsrun").files or []
    except PackageNotFoundError:
        files = []
    for file in files:
        if file.name == "nsrun" and file.parent.name == "bin":
            return os.path.realpath(os.fspath(file.locate()))
    found = shutil.which("nsrun")
    if found is None:
        raise NsrunError("no nsrun program: install the cowork-nsrun package")
    return found


class _Fds:
    """File descriptors that are ours to close, whatever happens."""

    def __init__(self) -> None:
        self._open: set[int] = set()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close_all()

    def own(self, fd: int) -> int:
        self._open.add(fd)
        return fd

    def pipe(self) -> tuple[int, int]:
        """Both ends, close-on-exec."""
        r, w = os.pipe()
        return self.own(r), self.own(w)

    def close(self, fd: int) -> None:
        if fd in self._open:
            self._open.remove(fd)
            os.close(fd)

    def close_all(self) -> None:
        while self._open:
            os.close(self._open.pop())


class _Streams:
    """The command's standard streams, seen from here; nothing in it blocks."""

    def __init__(self, fds: _Fds, data: bytes | None, capture: bool) -> None:
        self._fds = fds
        self._selector = selectors.PollSelector()
        self._left = memoryview(data or b"")
        self.output: dict[int, bytearray] = {}
        self._theirs: list[int] = []
        stdin = 0
        if data is not None:
            stdin, ours = fds.pipe()
            self._watch(ours, selectors.EVENT_WRITE, self._feed)
            self._theirs.append(stdin)
        stdout, stderr = (self._collector() for _ in range(2)) if capture else (1, 2)
        self.stdio = (stdin, stdout, stderr)

    def _collector(self) -> int:
        ours, theirs = self._fds.pipe()
        self.output[ours] = bytearray()
        self._watch(ours, selectors.EVENT_READ, self._collect)
        self._theirs.append(theirs)
        return theirs

    def _watch(self, fd: int, event: int, action: Callable[[int], bool]) -> None:
        os.set_blocking(fd, False)
        self._selector.register(fd, event, action)

    def _forget(self, fd: int) -> None:
        self._selector.unregister(fd)
        self._fds.close(fd)

    def _feed(self, fd: int) -> bool:
        """Write what fits; False once there is no more to write."""
        try:
            while self._left:
                self._left = self._left[os.write(fd, self._left[:CHUNK]) :]
        except BlockingIOError:
            return True
        except BrokenPipeError:
            pass  # the command wants no more of it
        return False

    def _collect(self, fd: int) -> bool:
        """Read what is there; False at its end."""
        try:
            while data := os.read(fd, CHUNK):
                self.output[fd] += data
                if len(data) < CHUNK:
                    return True
        except BlockingIOError:
            return True
        return False

    def started(self) -> None:
        """The command has its ends."""
        for fd in self._theirs:
            self._fds.close(fd)

    def attend(self, running: _Running, deadline: float | None) -> bool:
        """Serve the streams until the command ends; False if the deadline came first."""
        watched = running.fd
        self._selector.register(watched, selectors.EVENT_READ)
        while True:
            if watched != running.fd:
                self._selector.unregister(watched)
                watched = running.fd
                self._selector.register(watched, selectors.EVENT_READ)
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                return False
            ended = False
            for key, _ in self._selector.select(left):
                if key.fd == watched:
                    ended = running.read()
                elif not key.data(key.fd):
                    self._forget(key.fd)
            if ended:
                self._selector.unregister(watched)
                return True

    def drain(self) -> None:
        """Take what the command left in its pipes."""
        for fd in self.output:
            if fd in self._selector.get_map():
                more = True
                while more:
                    before = len(self.output[fd])
                    more = self._collect(fd) and len(self.output[fd]) > before

    def close(self) -> None:
        self._selector.close()

    def captured(self) -> list[bytes]:
        """Standard output and standard error, if they are collected."""
        return [bytes(data) for data in self.output.values()]


def _run(
    plan: Plan, data: bytes | str | None, capture: bool, timeout: float | None, text: bool
) -> Result[bytes] | Result[str]:
    begin = time.monotonic_ns()
    deadline = None if timeout is None else time.monotonic() + timeout
    raw = data.encode() if isinstance(data, str) else data
    with _Fds() as fds:
        streams = _Streams(fds, raw, capture)
        try:
            running = _start_and_attend(plan, streams, deadline)
        except _OutOfTime:
            out, err = streams.captured() or (None, None)
            raise TimeoutExpired(cast(float, timeout), out, err) from None
        finally:
            streams.close()
        out, err = streams.captured() or (b"", b"")
    status = running.exit_status
    number = status - SIGNAL_BASE
    end = Timings(running.spawn_ns, time.monotonic_ns() - begin)
    log.debug("%s ended with %d, run by %s", plan.argv[0], status, running.backend)
    ended_by = number if number in signal.valid_signals() else None
    if text:
        texts = (out.decode(errors="backslashreplace"), err.decode(errors="backslashreplace"))
        return Result(plan.argv, status, ended_by, *texts, end, running.backend)
    return Result(plan.argv, status, ended_by, out, err, end, running.backend)


class _OutOfTime(Exception):
    pass


def _start_and_attend(plan: Plan, streams: _Streams, deadline: float | None) -> _Running:
    """Run to the end; when this returns or raises, nothing is left of the sandbox."""
    # Python ignores SIGPIPE and SIGXFSZ for itself, a command expects them
    plan = plan.with_changes(PlanFlag.DEFAULT_SIGNALS)
    running: _Running
    for running in (_InProcess(), _Program()):
        try:
            running.start(plan, streams.stdio)
            streams.started()
            in_time = streams.attend(running, deadline)
        except _native.NeedsProgram as reason:
            log.debug("not in process: %s", reason)
            continue
        finally:
            running.close()
            streams.drain()
        if not in_time:
            raise _OutOfTime
        return running
    raise NsrunError("no way to run this plan", errno=errno.ENOTSUP)
