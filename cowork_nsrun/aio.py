"""The asyncio twins of :mod:`cowork_nsrun.process`.

They need no child watcher and no SIGCHLD handler, and work with any event loop that has
``add_reader`` and ``connect_read_pipe``.
"""

from __future__ import annotations

import asyncio
import io
import os
import signal
import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from cowork_nsrun import straight
from cowork_nsrun._native import Flow, Run
from cowork_nsrun.aside import to_its_end
from cowork_nsrun.enforce import Enforced, enforce
from cowork_nsrun.errors import NsrunError, SpecError, TimeoutExpired
from cowork_nsrun.handle import Ending, Handle, Stdio, start
from cowork_nsrun.plan import Plan
from cowork_nsrun.process import (
    Argv,
    CommandOptions,
    PopenOptions,
    Result,
    extras_for,
    lone_result,
    make_result,
)
from cowork_nsrun.spec import Sandbox
from cowork_nsrun.streams import Ends, Ours, Stream, Terminal


class AsyncPopenOptions(PopenOptions, total=False):
    """Options of :func:`popen`."""

    within: Group | None


class AsyncRunOptions(CommandOptions, total=False):
    """Options of :func:`run`."""

    input: bytes | None
    capture: bool


if TYPE_CHECKING:
    from cowork_nsrun.limits import Group
    from cowork_nsrun.policy.gate import OnDecision
    from cowork_nsrun.policy.veth import Veth

TURNS = 2
LIMIT = 1 << 18  # bytes that a reader holds before the command is made to wait


class AsyncProcess:
    """A command that runs in a sandbox, for one event loop.

    As an asynchronous context manager it ends the sandbox on leaving.

    Attributes:
        argv: the command.
        stdin: to write to, if that was to be a pipe; else None.
        stdout: to read from, likewise.
        stderr: likewise.
        terminal: our end of the terminal, if there was to be one.  Its descriptor doesn't
            block; use ``loop.add_reader`` on it.
    """

    def __init__(self, handle: Handle, argv: tuple[str, ...], begin: int) -> None:
        self._handle = handle
        self._begin = begin
        self._total_ns = 0
        self._loop = asyncio.get_running_loop()
        self._ended = self._loop.create_future()
        self._started = self._loop.create_future()
        self._watched = -1
        self._told = -1
        self._timer: asyncio.TimerHandle | None = None
        self._gone: asyncio.Future[None] | None = None
        self._transports: list[asyncio.BaseTransport] = []
        self.argv = argv
        self.stdin: asyncio.StreamWriter | None = None
        self.stdout: asyncio.StreamReader | None = None
        self.stderr: asyncio.StreamReader | None = None
        self.terminal: Terminal | None = None

    # --- the loop ---------------------------------------------------------------------------

    def watch(self) -> None:
        """Begin to listen to the sandbox."""
        self._handle.hold(self)
        self._watch_fd(self._handle.fd)

    def time_out_at(self, deadline: float) -> None:
        """Let the loop keep the time too, where pid 1 may not: by ``time.monotonic()``."""
        left = max(0.0, deadline - time.monotonic())
        self._timer = self._loop.call_later(left, self.time_out)

    async def connect(self, ours: Mapping[str, Ours]) -> None:
        """Take our ends of the streams over."""
        files = {name: file for name, file in ours.items() if isinstance(file, io.FileIO)}
        terminal = ours.get("terminal")
        if isinstance(terminal, Terminal):
            self.terminal = terminal
            os.set_blocking(self.terminal.fileno(), False)
        try:
            for name in ("stdout", "stderr"):
                if name in files:
                    setattr(self, name, await self._reader(files[name]))
            if "stdin" in files:
                self.stdin = await self._writer(files["stdin"])
        except BaseException:
            # those that no transport has got hold of
            for file in files.values():
                file.close()
            raise

    async def _reader(self, file: io.FileIO) -> asyncio.StreamReader:
        reader = asyncio.StreamReader(limit=LIMIT, loop=self._loop)
        protocol = asyncio.StreamReaderProtocol(reader, loop=self._loop)
        transport, _ = await self._loop.connect_read_pipe(lambda: protocol, file)
        self._transports.append(transport)
        return reader

    async def _writer(self, file: io.FileIO) -> asyncio.StreamWriter:
        transport, protocol = await self._loop.connect_write_pipe(
            lambda: asyncio.streams.FlowControlMixin(loop=self._loop), file
        )
        self._transports.append(transport)
        return asyncio.StreamWriter(transport, protocol, None, self._loop)

    def _advance(self) -> None:
        """Whenever the sandbox has something to say."""
        ended = self._handle.advance()
        if self._handle.started and not self._started.done():
            self._started.set_result(None)
        if not ended:
            self._watch_fd(self._handle.fd)
            return
        self._watch_fd(-1)
        self._end_told()
        if self._timer is not None:
            self._timer.cancel()
        self._total_ns = time.monotonic_ns() - self._begin
        for future in (self._started, self._ended):
            if not future.done():
                future.set_result(None)
        if self._handle.goes_at_once:
            self._handle.release(self)
            self._gone = self._loop.create_future()
            self._gone.set_result(None)
        else:
            # the last of its processes may take a moment to go: not in the loop's thread
            self._gone = self._loop.run_in_executor(None, self._handle.release, self)

    def _watch_fd(self, fd: int) -> None:
        if fd == self._watched:
            return
        if self._watched >= 0:
            self._loop.remove_reader(self._watched)
        self._watched = fd
        if fd >= 0:
            self._loop.add_reader(fd, self._advance)

    # --- what is known ----------------------------------------------------------------------

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
        """Limit to what holds it."""
        return self._handle.held

    @property
    def veth(self) -> Veth | None:
        """The devices of its network, with their addresses, if the spec has ``veth``."""
        return self._handle.veth

    @property
    def returncode(self) -> int | None:
        """0 to 255, or 128+n for signal n; None while it runs."""
        return self._handle.returncode

    @property
    def spawn_ns(self) -> int | None:
        """As :attr:`Timings.spawn_ns`."""
        return self._handle.spawn_ns

    # --- its end ----------------------------------------------------------------------------

    async def wait_started(self) -> None:
        """Until the command runs.

        Raises:
            NsrunError: it could not be started; nothing is left then.
        """
        await asyncio.shield(self._started)
        # the start is told just before the exec: whether that came off, an end of file tells
        await self._exec_told()
        if self._handle.ended:
            await self._all_gone()
            self._handle.check()

    async def _exec_told(self) -> None:
        fd = self._handle.exec_fd
        if self._handle.ended or fd < 0:
            return
        told = asyncio.Event()
        self._told = fd
        self._loop.add_reader(fd, told.set)
        waiter = asyncio.ensure_future(told.wait())
        try:
            await asyncio.wait((waiter, self._ended), return_when=asyncio.FIRST_COMPLETED)
        finally:
            waiter.cancel()
            self._end_told()
        if not self._ended.done():
            self._advance()

    def _end_told(self) -> None:
        # before that descriptor is given back: its number may be another's at once
        if self._told >= 0:
            self._loop.remove_reader(self._told)
        self._told = -1

    async def wait(self) -> int:
        """Wait for the end; what the command left running is gone as well then.

        Raises:
            NsrunError: it had never started.
        """
        await asyncio.shield(self._ended)
        await self._all_gone()
        self._handle.check()
        assert self.returncode is not None
        return self.returncode

    async def _all_gone(self) -> None:
        assert self._gone is not None
        await asyncio.shield(self._gone)

    async def communicate(self, input: bytes | None = None) -> tuple[bytes, bytes]:
        """Feed the command, collect its output, wait for its end.

        If this is cancelled the command goes on; :meth:`kill` it, or leave its context.
        """
        if input and self.stdin is None:
            raise SpecError("input", "there is no pipe to standard input")
        readers = [asyncio.ensure_future(_read(r)) for r in (self.stdout, self.stderr)]
        feeder = asyncio.ensure_future(self._feed(input or b""))
        try:
            await self.wait()
            # whoever held the other ends is gone, so they come to their end
            out, err = await asyncio.gather(*readers)
        finally:
            for task in (feeder, *readers):
                task.cancel()
            await asyncio.gather(feeder, *readers, return_exceptions=True)
        return out, err

    async def _feed(self, data: bytes) -> None:
        if self.stdin is None:
            return
        try:
            self.stdin.write(data)
            await self.stdin.drain()
        except (BrokenPipeError, ConnectionResetError):
            pass  # the command wants no more of it
        finally:
            self.stdin.close()

    def result(self, stdout: bytes = b"", stderr: bytes = b"") -> Result[bytes]:
        """How it ended, with output that was collected.

        Raises:
            NsrunError: it has not ended.
        """
        code = self.returncode
        if code is None or self._gone is None or not self._gone.done():
            raise NsrunError("the command has not ended: await wait() first")
        return make_result(self._handle, self.argv, (stdout, stderr), self._total_ns)

    def time_out(self) -> None:
        """Kill everything, and call that the end of its time."""
        self._handle.time_out()

    @property
    def timed_out(self) -> bool:
        """It was ended since its time was up."""
        return self._handle.ending is Ending.TIMED_OUT

    # --- signals ----------------------------------------------------------------------------

    def send_signal(self, number: int) -> None:
        """As :meth:`Process.send_signal`."""
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

    # --- leaving ----------------------------------------------------------------------------

    async def close(self) -> None:
        """Kill everything that is left in the sandbox, and close our ends of its streams."""
        self.kill()
        await asyncio.shield(self._ended)
        await self._all_gone()
        for transport in self._transports:
            transport.close()
        # transports close their files in the loop's next turns, which may be its last ones
        for _ in range(TURNS):
            await asyncio.sleep(0)
        if self.terminal is not None:
            self.terminal.close()

    @property
    def _is_at_rest(self) -> bool:
        """All is gone, and there is nothing of ours to close."""
        gone = self._gone
        if gone is None or not gone.done() or gone.cancelled() or gone.exception() is not None:
            return False
        return not self._transports and self.terminal is None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if not self._is_at_rest:
            await _finish_anyway(self.close())


async def _read(reader: asyncio.StreamReader | None) -> bytes:
    return b"" if reader is None else await reader.read()


async def _finish_anyway(work: Any) -> None:
    """Do it to its end, also if this is cancelled meanwhile."""
    task = asyncio.ensure_future(work)
    try:
        await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait((task,))
        raise


async def popen(
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
    within: Group | None = None,
) -> AsyncProcess:
    """Start a command in a sandbox; returns once it runs.

    Arguments and errors are those of :func:`cowork_nsrun.popen`; the streams are bytes.

    Arguments:
        within: a group of sandboxes with limits for all of them together, of
            :meth:`cowork_nsrun.limits.Cgroups.group`.
    """
    begin = time.monotonic_ns()
    timeout = spec.timeout if timeout is None else timeout
    ends = Ends(stdin, stdout, stderr, pty)

    def prepare(enforced: Enforced) -> Plan:
        can_time = spec.ends_all
        extras = extras_for(enforced, pty, timeout, can_time, tell_exec=True)
        return Plan.from_spec(spec, argv, cwd=cwd, env=env, extras=extras)

    def work() -> tuple[Handle, Plan]:
        return _start(spec, ends.stdio, prepare, on_egress, within)

    try:
        process = await _begin(spec, work, begin)
    except BaseException:
        ends.close()
        raise
    if timeout is not None:
        process.time_out_at(begin / 1e9 + timeout)
    try:
        await process.connect(ends.take())
        await process.wait_started()
    except BaseException:
        await _finish_anyway(process.close())
        raise
    return process


async def _begin(
    spec: Sandbox, work: Callable[[], tuple[Handle, Plan]], begin: int
) -> AsyncProcess:
    """Start it and listen to it."""
    if spec.egress is None and not spec.veth:
        handle, plan = work()
    else:
        # it waits for the network: not in the loop's thread
        handle, plan = await to_its_end(work, lambda started: started[0].close())
    process = AsyncProcess(handle, plan.argv, begin)
    process.watch()
    return process


def _start(
    spec: Sandbox,
    stdio: Stdio,
    prepare: Callable[[Enforced], Plan],
    on_egress: OnDecision | None,
    within: Group | None,
) -> tuple[Handle, Plan]:
    enforced = enforce(spec, on_egress, within)
    try:
        plan = prepare(enforced)
    except BaseException:
        enforced.give_back()
        raise
    return start(plan, stdio, enforced.enforcement), plan


async def run(
    argv: Argv,
    spec: Sandbox,
    *,
    input: bytes | None = None,
    capture: bool = True,
    cwd: str | os.PathLike[str] | None = None,
    env: Mapping[str, str] | None = None,
    timeout: float | None = None,
    on_egress: OnDecision | None = None,
) -> Result[bytes]:
    """Run a command in a sandbox, to its end; cancelled, it kills everything first.

    Arguments and errors are those of :func:`cowork_nsrun.run`; the streams are bytes.
    """
    begin = time.monotonic_ns()
    if on_egress is None:
        lone = straight.start(spec, argv, data=input, capture=capture, cwd=cwd, env=env)
        if lone is not None:
            output, in_time = await _Lone(lone).to_its_end(timeout, begin)
            if in_time:
                return lone_result(lone, argv, output, begin)
            assert timeout is not None
            raise TimeoutExpired(timeout, *(output if capture else (None, None)))
    timeout = spec.timeout if timeout is None else timeout
    untimed = spec if spec.timeout is None else spec.replace(timeout=None)
    flow = Flow.opened(input, capture)

    def prepare(enforced: Enforced) -> Plan:
        # the time is kept here, so that it counts from the call on
        extras = extras_for(enforced, None, None, can_time=False, tell_exec=False)
        return Plan.from_spec(untimed, argv, cwd=cwd, env=env, extras=extras)

    def work() -> tuple[Handle, Plan]:
        return _start(untimed, flow.stdio, prepare, on_egress, None)

    try:
        process = await _begin(untimed, work, begin)
        async with process:
            out, err = await _collect(process, flow, timeout, begin)
    finally:
        flow.close()
    if process.timed_out:
        assert timeout is not None
        raise TimeoutExpired(timeout, *((out, err) if capture else (None, None)))
    return process.result(out, err)


async def _collect(
    process: AsyncProcess, flow: Flow, timeout: float | None, begin: int
) -> tuple[bytes, bytes]:
    flow.started()
    if timeout is not None:
        process.time_out_at(begin / 1e9 + timeout)
    pump = _Pump(flow, process.kill)
    try:
        await process.wait()
    except NsrunError:
        # it may have had no time to start
        if not process.timed_out:
            raise
    finally:
        pump.stop()
    return pump.output


class _Lone:
    """A command that :mod:`cowork_nsrun.straight` has started, in an event loop."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._in_time = True
        self._loop = asyncio.get_running_loop()
        self._ended: asyncio.Future[None] = self._loop.create_future()

    async def to_its_end(
        self, timeout: float | None, begin: int
    ) -> tuple[tuple[bytes, bytes], bool]:
        """As :func:`cowork_nsrun.straight.finish`."""
        run = self._run
        try:
            await self._wait(timeout, begin)
            if run.alone:
                run.finish()
            else:
                # the last of its processes may take a moment to go: not in the loop's thread
                await to_its_end(run.finish, lambda _: None)
            return straight.take(run, self._in_time), self._in_time
        except GeneratorExit as error:
            # no loop will go on with this
            straight.give_up(run, error)
            raise
        except BaseException as error:
            await _finish_anyway(asyncio.to_thread(straight.give_up, run, error))
            raise

    async def _wait(self, timeout: float | None, begin: int) -> None:
        fd = self._run.watch()
        timer: asyncio.TimerHandle | None = None
        if timeout is not None:
            left = max(0.0, begin / 1e9 + timeout - time.monotonic())
            timer = self._loop.call_later(left, self._time_out)
        self._loop.add_reader(fd, self._step)
        try:
            await self._ended
        finally:
            if not self._loop.is_closed():
                self._loop.remove_reader(fd)
            if timer is not None:
                timer.cancel()

    def _step(self) -> None:
        if self._ended.done():
            return
        try:
            if self._run.step():
                self._ended.set_result(None)
        except NsrunError as error:
            self._ended.set_exception(error)

    def _time_out(self) -> None:
        # it may have come to its end in time, and nobody looked
        self._step()
        if not self._ended.done():
            self._in_time = False
            self._run.kill()


class _Pump:
    """The streams of :func:`run`, served by the core whenever the loop says that it can."""

    def __init__(self, flow: Flow, kill: Callable[[], None]) -> None:
        self._flow = flow
        self._kill = kill
        self._loop = asyncio.get_running_loop()
        self._failed: NsrunError | None = None
        self._read = {fd for fd in flow.outputs if fd >= 0}
        for fd in self._read:
            self._loop.add_reader(fd, self._step)
        if flow.stdin >= 0:
            self._loop.add_writer(flow.stdin, self._step)
            if not flow.feeds:
                self._end_input()

    def _step(self) -> None:
        try:
            told = self._flow.step()
        except NsrunError as error:
            # nobody is to wait for the end of what is not served any more
            self._failed = error
            self.stop()
            self._kill()
            return
        if told & Flow.FED:
            self._end_input()
        for fd in self._read.difference(self._flow.outputs):
            self._loop.remove_reader(fd)
            self._read.remove(fd)

    def _end_input(self) -> None:
        self._loop.remove_writer(self._flow.stdin)
        self._flow.end_input()

    def stop(self) -> None:
        """Let go of the streams, before they are closed."""
        for fd in self._read:
            self._loop.remove_reader(fd)
        self._read.clear()
        if self._flow.stdin >= 0:
            self._end_input()

    @property
    def output(self) -> tuple[bytes, bytes]:
        """All of it, once nobody inside writes any more.

        Raises:
            NsrunError: a stream could not be read or written.
        """
        if self._failed is not None:
            raise self._failed
        self._flow.drain()
        return self._flow.output(0), self._flow.output(1)
