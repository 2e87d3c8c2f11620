"""Commands in sandboxes, as subprocess has them outside: :class:`Process`, :func:`run`."""

from __future__ import annotations

import io
import logging
import os
import signal
import threading
import time
import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import IO, TYPE_CHECKING, Any, Generic, Literal, Self, TypedDict, TypeVar, overload

from cowork_nsrun import straight
from cowork_nsrun._native import Flow, Number, PlanFlag, Run
from cowork_nsrun.closing import Closing
from cowork_nsrun.enforce import Enforced, enforce
from cowork_nsrun.errors import CommandError, NsrunError, SpecError, TimeoutExpired
from cowork_nsrun.handle import NO_USAGE, Ending, Handle, Usage, signal_of, start
from cowork_nsrun.plan import Extras, Plan, milliseconds
from cowork_nsrun.runner import IN_PROCESS
from cowork_nsrun.spec import Sandbox
from cowork_nsrun.streams import Ends, Ours, OutOfTime, Pump, Stream, Terminal

if TYPE_CHECKING:
    from cowork_nsrun.policy import EgressThread
    from cowork_nsrun.policy.gate import OnDecision
    from cowork_nsrun.policy.veth import Veth

log = logging.getLogger(__name__)

Output = TypeVar("Output", bytes, str)
Argv = Sequence[str | os.PathLike[str]]


class CommandOptions(TypedDict, total=False):
    """What can be said about every command."""

    cwd: str | os.PathLike[str] | None
    env: Mapping[str, str] | None
    timeout: float | None
    on_egress: OnDecision | None


class PopenOptions(CommandOptions, total=False):
    """Options of :func:`popen`, but ``text``."""

    stdin: Stream
    stdout: Stream
    stderr: Stream
    pty: bool | tuple[int, int]


class RunOptions(CommandOptions, total=False):
    """Options of :func:`run`, but ``text``."""

    input: bytes | str | None
    capture: bool


@dataclass(frozen=True, slots=True)
class Timings:
    """How long things took, in nanoseconds.

    Attributes:
        spawn_ns: from just before the sandbox's clone, or the hand-over to one that was
            ready, to just before the command's exec; None where it is not known.
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
        ending: why it ended.  ``OUT_OF_MEMORY`` and ``OUT_OF_PIDS`` are known where a
            cgroup holds the limit, and said if the command failed as well.
        usage: processor time and memory.
        limits: limit to what held it.
    """

    argv: tuple[str, ...]
    returncode: int
    signal: int | None
    stdout: Output
    stderr: Output
    timings: Timings
    backend: str
    ending: Ending = Ending.EXITED
    usage: Usage = NO_USAGE
    limits: Mapping[str, str] = field(default_factory=dict)

    def check(self) -> Self:
        """Return this very result if the command ended with 0.

        Raises:
            CommandError: it did not.
        """
        if self.returncode:
            raise CommandError(self)
        return self


def _as_text(data: bytes) -> str:
    return data.decode(errors="backslashreplace")


class Process(Closing, Generic[Output]):
    """A command that runs in a sandbox; the counterpart of :class:`subprocess.Popen`.

    As a context manager it ends the sandbox on leaving, if the command has not ended
    by then.  Every method may be called from any thread.  A forked copy of the program
    can't use it, and does no harm to it.

    Attributes:
        argv: the command.
        stdin: a file to write to, if that was to be a pipe; else None.
        stdout: likewise, to read from.
        stderr: likewise.
        terminal: our end of the terminal, if there was to be one; else None.
    """

    def __init__(
        self,
        handle: Handle,
        *,
        argv: tuple[str, ...],
        ours: Mapping[str, Ours],
        text: bool,
        timeout: float | None,
        begin: int,
    ) -> None:
        self._text = text
        self._deadline = None if timeout is None else time.monotonic() + timeout
        self._begin = begin
        self._total_ns = 0
        # held while the streams are in somebody's hands, or closed
        self._streams = threading.RLock()
        self._talking = False
        self.argv = argv
        self.stdin = self._file(ours.get("stdin"), "w")
        self.stdout = self._file(ours.get("stdout"), "r")
        self.stderr = self._file(ours.get("stderr"), "r")
        terminal = ours.get("terminal")
        self.terminal = terminal if isinstance(terminal, Terminal) else None
        # last: without it there is nothing to close
        self._handle = handle

    def _file(self, raw: Ours | None, mode: str) -> IO[Any] | None:
        if raw is None:
            return None
        binary: IO[Any] = io.BufferedWriter(raw) if mode == "w" else io.BufferedReader(raw)
        if not self._text:
            return binary
        errors = "strict" if mode == "w" else "backslashreplace"
        return io.TextIOWrapper(binary, "utf-8", errors=errors, write_through=mode == "w")

    # --- what is known ------------------------------------------------------------------

    @property
    def pid(self) -> int:
        """The command's pid, as the caller sees it; 0 if not known.  Use it to show only."""
        return self._handle.pid

    @property
    def backend(self) -> str:
        """What runs it."""
        return self._handle.backend

    @property
    def limits(self) -> Mapping[str, str]:
        """Limit to what holds it, such as ``cgroup v2`` or ``RLIMIT_NOFILE``."""
        return self._handle.held

    @property
    def egress(self) -> EgressThread | None:
        """The proxy, if there is one: its counters, and a door for other rules."""
        outlet = self._handle.outlet
        return None if outlet is None else outlet.proxy

    @property
    def veth(self) -> Veth | None:
        """The devices of its network, with their addresses, if the spec has ``veth``."""
        return self._handle.veth

    @property
    def returncode(self) -> int | None:
        """0 to 255, or 128+n for signal n; None as long as its end is not known."""
        return self._handle.returncode

    @property
    def spawn_ns(self) -> int | None:
        """As :attr:`Timings.spawn_ns`."""
        return self._handle.spawn_ns

    def __repr__(self) -> str:
        state = "running" if self.returncode is None else f"returncode {self.returncode}"
        return f"<Process {self.argv!r}, {state}>"

    # --- its end -------------------------------------------------------------------------

    def poll(self) -> int | None:
        """The exit status if it has ended, else None; does not block.

        Raises:
            NsrunError: its microVM died.
        """
        with self._handle.polling():
            self._handle.advance()
        self._note_total()
        self._handle.check()
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the end; what the command left running is gone as well then.

        Arguments:
            timeout: seconds to wait; nothing happens to the command when they are over.

        Raises:
            TimeoutExpired: it still runs.
            NsrunError: its microVM died.
        """
        if not self._wait(timeout):
            assert timeout is not None
            raise TimeoutExpired(timeout, None, None)
        self._handle.check()
        assert self.returncode is not None
        return self.returncode

    def _wait(self, timeout: float | None) -> bool:
        until = None if timeout is None else time.monotonic() + timeout
        deadline = self._deadline
        while not self._handle.wait(_earlier(until, deadline)):
            if deadline is not None and time.monotonic() >= deadline:
                self._handle.time_out()
                deadline = None
            else:
                return False
        self._note_total()
        return True

    def _note_total(self) -> None:
        if not self._total_ns and self._handle.ended:
            self._total_ns = time.monotonic_ns() - self._begin

    def communicate(
        self, input: bytes | str | None = None, timeout: float | None = None
    ) -> tuple[Output, Output]:
        """Feed the command, collect its output, wait for its end.

        Its end is the command's, even if a process that it left holds its output open.

        Arguments:
            input: for its standard input or its terminal, which is closed behind it.
            timeout: seconds to wait; then everything in the sandbox is killed.

        Raises:
            TimeoutExpired: with what was collected until then.
            NsrunError: its microVM died.
        """
        until = None if timeout is None else time.monotonic() + timeout
        data = as_data(input)
        with self._streams:
            self._talking = True
            try:
                out, err, in_time = self._talk(data, until)
            finally:
                self._talking = False
        self._note_total()
        if not in_time:
            assert timeout is not None
            raise TimeoutExpired(timeout, out, err)
        self._handle.check()
        if self._text:
            return _as_text(out), _as_text(err)  # type: ignore[return-value] # Output is str
        return out, err  # type: ignore[return-value] # Output is bytes

    def _talk(self, data: bytes | None, until: float | None) -> tuple[bytes, bytes, bool]:
        if data and self.stdin is None and self.terminal is None:
            raise SpecError("input", "there is no pipe to standard input")
        if self.stdin is not None and not self.stdin.closed:
            with suppress(BrokenPipeError):
                self.stdin.flush()
        source: IO[Any] | Terminal | None = self.stdin
        if self.terminal is not None and data is not None:
            source = self.terminal
            data += self.terminal.end_of(data)
        first = self.stdout if self.terminal is None else self.terminal
        sinks: list[IO[Any] | Terminal | None] = [first, self.stderr]
        numbers: list[int] = [_number(file) for file in (source, *sinks)]
        for fd in set(numbers) - {-1}:
            os.set_blocking(fd, False)
        in_time = True
        try:
            flow = Flow(numbers[0], data or b"", (numbers[1], numbers[2]))
            pump = Pump(flow, self._end_input)
            try:
                pump.run(self._handle, _earlier(until, self._deadline))
            except OutOfTime:
                # the process's own limit shows in its result, ours is an exception
                in_time = until is None or time.monotonic() < until
                self._handle.time_out()
                pump.run(self._handle, None)
            for file in sinks:
                if file is not None:
                    file.close()
        finally:
            for file in (source, *sinks):
                if file is not None and not file.closed:
                    os.set_blocking(file.fileno(), True)
        out, err = pump.output
        return out, err, in_time

    def _end_input(self) -> None:
        """All is written.  What was typed at a terminal has its end of file in it."""
        if self.stdin is not None:
            with suppress(BrokenPipeError):
                self.stdin.close()

    def result(self, stdout: Output | None = None, stderr: Output | None = None) -> Result[Output]:
        """How it ended, with output that was collected.

        Raises:
            NsrunError: it has not ended.
        """
        code = self.returncode
        if code is None or not self._wait(None):
            raise NsrunError("the command has not ended")
        none: Any = "" if self._text else b""
        out = none if stdout is None else stdout
        err = none if stderr is None else stderr
        return make_result(self._handle, self.argv, (out, err), self._total_ns)

    # --- signals -------------------------------------------------------------------------

    def send_signal(self, number: int) -> None:
        """Send a signal to every process in the sandbox; nothing if the command has ended.

        Without a pid namespace, or with seccomp programs of the user's own, only the
        command itself can be reached, except by SIGKILL.

        Raises:
            NsrunError: it can't be sent.
        """
        self._handle.signal(number)

    def terminate(self) -> None:
        """SIGTERM to every process in the sandbox."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """Kill every process in the sandbox."""
        self.send_signal(signal.SIGKILL)

    def resize(self, rows: int, columns: int) -> None:
        """Change the size of the terminal's window.

        Raises:
            SpecError: there is no terminal.
        """
        if self.terminal is None:
            raise SpecError("pty", "the command has no terminal")
        self.terminal.resize(rows, columns)

    # --- leaving -------------------------------------------------------------------------

    def close(self) -> None:
        """Kill everything that is left in the sandbox, and close our ends of its streams."""
        self._handle.close()
        self._note_total()
        with self._streams:
            # a signal handler's call, in the midst of communicate(), leaves them to that
            files = () if self._talking else (self.stdin, self.stdout, self.stderr, self.terminal)
            for file in files:
                if file is not None:
                    # what is still buffered for a command that has ended
                    with suppress(BrokenPipeError):
                        file.close()

    def __del__(self) -> None:
        handle = getattr(self, "_handle", None)
        if handle is not None and not handle.ended and handle.is_ours():
            try:
                text = f"{self!r} was dropped: it is killed"
                warnings.warn(text, ResourceWarning, 2, source=self)
            finally:
                # whoever records the warning keeps this object
                self.close()


def _number(file: IO[Any] | Terminal | None) -> int:
    return -1 if file is None or file.closed else file.fileno()


def _earlier(a: float | None, b: float | None) -> float | None:
    return a if b is None else b if a is None else min(a, b)


# --- starting ---------------------------------------------------------------------------


def launch(plan: Plan, ends: Ends, enforced: Enforced) -> Handle:
    """Start a plan and wait until its command runs; takes the enforcement over."""
    handle = start(plan, ends.stdio, enforced.enforcement)
    try:
        handle.wait_started()
    except BaseException:
        handle.close()
        raise
    return handle


def extras_for(
    enforced: Enforced, pty: object, timeout: float | None, can_time: bool, tell_exec: bool
) -> Extras:
    """What every command gets that Python starts."""
    # Python ignores SIGPIPE and SIGXFSZ for itself, a command expects them
    flags = PlanFlag.DEFAULT_SIGNALS
    if tell_exec:
        flags |= PlanFlag.TELL_EXEC
    if pty:
        flags |= PlanFlag.TERMINAL
    numbers = enforced.numbers
    if timeout and can_time:
        numbers[Number.TIMEOUT_MS] = milliseconds(timeout)
    return Extras(flags, enforced.cgroups, enforced.rlimits, numbers)


@overload
def popen(
    argv: Argv,
    spec: Sandbox,
    *,
    stdin: Stream = None,
    stdout: Stream = None,
    stderr: Stream = None,
    pty: bool | tuple[int, int] = False,
    cwd: str | os.PathLike[str] | None = None,
    env: Mapping[str, str] | None = None,
    timeout: float | None = None,
    on_egress: OnDecision | None = None,
    text: Literal[False] = False,
) -> Process[bytes]: ...
@overload
def popen(
    argv: Argv,
    spec: Sandbox,
    *,
    stdin: Stream = None,
    stdout: Stream = None,
    stderr: Stream = None,
    pty: bool | tuple[int, int] = False,
    cwd: str | os.PathLike[str] | None = None,
    env: Mapping[str, str] | None = None,
    timeout: float | None = None,
    on_egress: OnDecision | None = None,
    text: Literal[True],
) -> Process[str]: ...
def popen(
    argv: Argv,
    spec: Sandbox,
    *,
    stdin: Stream = None,
    stdout: Stream = None,
    stderr: Stream = None,
    pty: bool | tuple[int, int] = False,
    cwd: str | os.PathLike[str] | None = None,
    env: Mapping[str, str] | None = None,
    timeout: float | None = None,
    on_egress: OnDecision | None = None,
    text: bool = False,
) -> Process[bytes] | Process[str]:
    """Start a command in a sandbox; returns once it runs.

    Arguments:
        argv: the command, found along the PATH inside, and its arguments.
        spec: the sandbox.
        stdin: None for the caller's, PIPE, DEVNULL, a descriptor or a file.
        stdout: likewise.
        stderr: likewise, or STDOUT.
        pty: a terminal instead, of 24 rows and 80 columns or of this size; it becomes
            the command's controlling terminal.
        cwd: directory inside to start in, instead of the spec's.
        env: the command's whole environment, instead of what the spec says.
        timeout: seconds, instead of the spec's, after which everything in the sandbox
            is killed, whether anybody waits for it or not.
        on_egress: is told what the proxy allows and refuses, in a thread of the proxy's.
        text: the pipes are text, UTF-8, with what is not UTF-8 escaped.

    Raises:
        SpecError: a value that can't be, named.
        LimitError: a limit can't be had here.
        NsrunError: the sandbox could not be made, or the command not started.
    """
    begin = time.monotonic_ns()
    timeout = spec.timeout if timeout is None else timeout
    ends = Ends(stdin, stdout, stderr, pty)
    try:
        enforced = enforce(spec, on_egress)
        try:
            can_time = spec.ends_all
            extras = extras_for(enforced, pty, timeout, can_time, tell_exec=True)
            plan = Plan.from_spec(spec, argv, cwd=cwd, env=env, extras=extras)
        except BaseException:
            enforced.give_back()
            raise
        handle = launch(plan, ends, enforced)
    except BaseException:
        ends.close()
        raise
    return Process(
        handle, argv=plan.argv, ours=ends.take(), text=text, timeout=timeout, begin=begin
    )


@overload
def run(
    argv: Argv,
    spec: Sandbox,
    *,
    input: bytes | str | None = None,
    capture: bool = True,
    cwd: str | os.PathLike[str] | None = None,
    env: Mapping[str, str] | None = None,
    timeout: float | None = None,
    on_egress: OnDecision | None = None,
    text: Literal[False] = False,
) -> Result[bytes]: ...
@overload
def run(
    argv: Argv,
    spec: Sandbox,
    *,
    input: bytes | str | None = None,
    capture: bool = True,
    cwd: str | os.PathLike[str] | None = None,
    env: Mapping[str, str] | None = None,
    timeout: float | None = None,
    on_egress: OnDecision | None = None,
    text: Literal[True],
) -> Result[str]: ...
def run(
    argv: Argv,
    spec: Sandbox,
    *,
    input: bytes | str | None = None,
    capture: bool = True,
    cwd: str | os.PathLike[str] | None = None,
    env: Mapping[str, str] | None = None,
    timeout: float | None = None,
    on_egress: OnDecision | None = None,
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
        timeout: seconds, instead of the spec's, after which everything in the sandbox
            is killed.
        on_egress: is told what the proxy allows and refuses, in a thread of the proxy's.
        text: decode output as UTF-8, with what is not UTF-8 escaped.

    Raises:
        SpecError: a value that can't be, named.
        LimitError: a limit can't be had here.
        NsrunError: the sandbox could not be made, or the command not started.
        TimeoutExpired: the time was up.
    """
    begin = time.monotonic_ns()
    if on_egress is None:
        lone = straight.start(spec, argv, data=as_data(input), capture=capture, cwd=cwd, env=env)
        if lone is not None:
            return _finish_lone(lone, argv, timeout=timeout, text=text, begin=begin)
    timeout = spec.timeout if timeout is None else timeout
    flow = Flow.opened(as_data(input), capture)
    try:
        enforced = enforce(spec, on_egress)
        try:
            # the time is kept here, so that it counts from the call on
            extras = extras_for(enforced, None, None, can_time=False, tell_exec=False)
            untimed = spec if spec.timeout is None else spec.replace(timeout=None)
            plan = Plan.from_spec(untimed, argv, cwd=cwd, env=env, extras=extras)
        except BaseException:
            enforced.give_back()
            raise
        handle = start(plan, flow.stdio, enforced.enforcement)
    except BaseException:
        flow.close()
        raise
    return finish(handle, plan, flow, timeout=timeout, text=text, begin=begin)


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
    begin = time.monotonic_ns()
    flow = Flow.opened(as_data(input), capture)
    enforced = Enforced()
    try:
        plan = plan.with_extras(extras_for(enforced, None, None, False, False))
        handle = start(plan, flow.stdio, enforced.enforcement)
    except BaseException:
        flow.close()
        raise
    return finish(handle, plan, flow, timeout=timeout, text=text, begin=begin)


def as_data(input: bytes | str | None) -> bytes | None:
    """Input as it is written."""
    return input.encode() if isinstance(input, str) else input


def finish(
    handle: Handle, plan: Plan, flow: Flow, *, timeout: float | None, text: bool, begin: int
) -> Result[bytes] | Result[str]:
    """Run to the end; when this returns or raises, nothing is left of the sandbox."""
    captures = flow.outputs != (-1, -1)
    try:
        pump = Pump(flow, flow.end_input)
        try:
            pump.run(handle, None if timeout is None else begin / 1e9 + timeout)
        except OutOfTime:
            assert timeout is not None
            handle.time_out()
            pump.run(handle, None)
            out, err = pump.output if captures else (None, None)
            raise TimeoutExpired(timeout, out, err) from None
        total_ns = time.monotonic_ns() - begin
        handle.check()
        argv = plan.argv
        log.debug("%s ended with %s, run by %s", argv[0], handle.returncode, handle.backend)
        if text:
            return make_result(handle, argv, _as_texts(pump.output), total_ns)
        return make_result(handle, argv, pump.output, total_ns)
    finally:
        try:
            handle.close()
        finally:
            flow.close()


def _finish_lone(
    run: Run, argv: Argv, *, timeout: float | None, text: bool, begin: int
) -> Result[bytes] | Result[str]:
    """The same for one that :mod:`cowork_nsrun.straight` has started."""
    output, in_time = straight.finish(run, None if timeout is None else begin / 1e9 + timeout)
    if not in_time:
        assert timeout is not None
        raise TimeoutExpired(timeout, *(output if run.captures else (None, None)))
    if text:
        return lone_result(run, argv, _as_texts(output), begin)
    return lone_result(run, argv, output, begin)


def lone_result(run: Run, argv: Argv, output: tuple[Output, Output], begin: int) -> Result[Output]:
    """How such a command ended."""
    total_ns = time.monotonic_ns() - begin
    code, spawn_ns, cpu_ns, peak = run.ending
    words = tuple([os.fspath(word) for word in argv])
    number = signal_of(code)
    log.debug("%s ended with %s, run by %s", words[0], code, IN_PROCESS)
    return Result(
        words,
        code,
        number,
        *output,
        Timings(spawn_ns, total_ns),
        IN_PROCESS,
        Ending.SIGNALED if number else Ending.EXITED,
        Usage(cpu_ns, peak or None),
    )


def _as_texts(output: tuple[bytes, bytes]) -> tuple[str, str]:
    out, err = output
    return _as_text(out), _as_text(err)


def make_result(
    handle: Handle, argv: tuple[str, ...], output: tuple[Output, Output], total_ns: int
) -> Result[Output]:
    """How a command ended of which nothing is left."""
    code = handle.returncode
    assert code is not None
    return Result(
        argv,
        code,
        signal_of(code),
        *output,
        Timings(handle.spawn_ns, total_ns),
        handle.backend,
        handle.ending,
        handle.usage,
        handle.held,
    )
