"""One command that a client has asked for, from its request to its exit event."""

from __future__ import annotations

import asyncio
import codecs
import signal
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from enum import StrEnum

from msgspec import UNSET

from cowork_nsrun.cowork import protocol
from cowork_nsrun.cowork.backends import End, Running, Start
from cowork_nsrun.cowork.hub import Hub
from cowork_nsrun.cowork.log import log
from cowork_nsrun.cowork.protocol import RequestError
from cowork_nsrun.errors import NsrunError

CHUNK = 65536
STDIN_MAX = 16 << 20  # bytes that may wait for a command to read them
GRACE = 2.0  # seconds between a signal that is to end a command and SIGKILL
DRAIN = 1.0  # seconds that what a command left running may hold its output open
STARTUP_FAILED = 127

# What ends a program that does nothing about it, and is sent in order to end it.
_ENDING = frozenset({signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGABRT, signal.SIGTERM})


class State(StrEnum):
    """Where a command stands."""

    STARTING = "starting"
    RUNNING = "running"
    ENDED = "ended"


def signal_number(name: str | int | None) -> int | None:
    """The signal of ``SIGTERM``, ``TERM`` or 15; None: there is none of that name."""
    if name is None:
        return signal.SIGTERM
    if isinstance(name, int):
        return name if name in signal.valid_signals() else None
    full = name if name.startswith("SIG") else f"SIG{name}"
    found = getattr(signal.Signals, full, None)
    return found.value if isinstance(found, signal.Signals) else None


class Child:
    """A command.

    Attributes:
        ident: the client's id of it.
        session: name of its session.
        shown: its program, for the log.
        end: how it ended, as the exit event says it; None before.
    """

    def __init__(
        self, ident: str, session: str, shown: str, hub: Hub, on_end: Callable[[Child], None]
    ) -> None:
        self.ident = ident
        self.session = session
        self.shown = shown
        self.asked_at = time.monotonic()
        self.first_output_at: float | None = None
        self.state = State.STARTING
        self.end: protocol.Exit | None = None
        self._hub = hub
        self._on_end = on_end
        self._running: Running | None = None
        self._input: deque[bytes] = deque()
        self._input_size = 0
        self._input_closed = False
        self._input_there = asyncio.Event()
        self._signals: list[int] = []
        self._reported: int | None = None
        self._carried = 0
        self._emitting = 0
        self._killer: asyncio.TimerHandle | None = None
        self.pid_seen = 0
        self.done = asyncio.Event()

    @property
    def pid(self) -> int:
        """To show only; 0 if it does not run."""
        return 0 if self._running is None or self.end is not None else self._running.pid

    def shown_to_client(self) -> dict[str, object]:
        """What ``nsrun sessions`` shows of it."""
        return {
            "id": self.ident,
            "command": self.shown,
            "state": self.state.value,
            "pid": self.pid,
            "seconds": round(time.monotonic() - self.asked_at, 3),
            "limits": {} if self._running is None else dict(self._running.limits),
        }

    # --- what a client asks for --------------------------------------------------------

    def write(self, data: str) -> None:
        """Queue text for its standard input; nothing once that is closed.

        Raises:
            RequestError: too much waits already.
        """
        if self._input_closed or self.state is State.ENDED:
            return
        encoded = data.encode(errors="replace")
        if self._input_size + len(encoded) > STDIN_MAX:
            raise RequestError(
                f"stdin backpressure: {self._input_size} bytes wait for process "
                f"{self.ident[:80]!r}; at most {STDIN_MAX} may"
            )
        self._input.append(encoded)
        self._input_size += len(encoded)
        self._input_there.set()

    @property
    def waiting(self) -> int:
        """Bytes that it has not read."""
        return self._input_size

    def close_input(self) -> None:
        """Its standard input ends behind what was written."""
        self._input_closed = True
        self._input_there.set()

    def kill(self, number: int) -> None:
        """Send a signal to all of its processes; one that is to end it, ends it."""
        if self.state is State.ENDED:
            return
        if self._running is None:
            self._signals.append(number)
            return
        with suppress(NsrunError):
            self._running.signal(number)
        if number == signal.SIGKILL or number in _ENDING:
            self._reported = number
        if number in _ENDING and self._killer is None:
            loop = asyncio.get_running_loop()
            self._killer = loop.call_later(GRACE, self._kill_now, self._running)

    @staticmethod
    def _kill_now(running: Running) -> None:
        with suppress(NsrunError):
            running.signal(signal.SIGKILL)

    # --- its life -------------------------------------------------------------------------

    async def live(self, start: Start) -> None:
        """Start it, carry its streams, tell its end; whatever happens, it has ended then."""
        try:
            running = await start()
            try:
                exit_event = await self._attend(running)
            finally:
                if self._killer is not None:
                    self._killer.cancel()
                await running.close()
            self._tell(exit_event)
        except NsrunError as error:
            # it could not be started, or what ran it is gone
            self.fail(error.text)
        except asyncio.CancelledError:
            self.fail("the service ends")
            raise
        except Exception as error:  # noqa: BLE001 - one command's trouble is nobody else's
            log.exception("process %r", self.ident[:80])
            self.fail(f"internal error: {type(error).__name__}")
        finally:
            self._input.clear()
            self._input_size = 0

    def fail(self, message: str) -> None:
        """It could not be started."""
        if self.end is None:
            log.debug("process %r: %s", self.ident[:80], message)
            self._hub.emit(protocol.Error(self.ident, message))
            self._tell(protocol.Exit(self.ident, STARTUP_FAILED, None))

    def not_found(self, message: str) -> None:
        """There is no such program: said as a shell does."""
        self._hub.emit(protocol.Stderr(self.ident, message))
        self._tell(protocol.Exit(self.ident, STARTUP_FAILED, None))

    async def _attend(self, running: Running) -> protocol.Exit:
        self._running = running
        self.pid_seen = running.pid
        self.state = State.RUNNING
        feeder = asyncio.create_task(self._feed(running.stdin))
        readers = [
            asyncio.create_task(self._read(running.stdout, protocol.Stdout)),
            asyncio.create_task(self._read(running.stderr, protocol.Stderr)),
        ]
        for number in self._signals:
            self.kill(number)
        try:
            end = await running.wait()
            await self._drained(readers)
        finally:
            for task in (feeder, *readers):
                task.cancel()
            results = await asyncio.gather(feeder, *readers, return_exceptions=True)
        for result in results:
            if isinstance(result, Exception):
                log.error("process %r: a stream failed: %r", self.ident[:80], result)
        return self._exit(end)

    async def _drained(self, readers: list[asyncio.Task[None]]) -> None:
        """Until the output is read, or nothing comes for a while from who still holds it."""
        while True:
            before = self._carried
            _, waiting = await asyncio.wait(readers, timeout=DRAIN)
            if not waiting or (before == self._carried and not self._emitting):
                return

    def _exit(self, end: End) -> protocol.Exit:
        code: int | None = end.code
        name = None
        number = end.code - 128
        asked = self._reported
        if asked is not None and number in {asked, signal.SIGKILL}:
            code, name = None, signal.Signals(asked).name
        kills = UNSET if not end.oom_kills else end.oom_kills
        return protocol.Exit(self.ident, code, name, kills)

    def _tell(self, exit_event: protocol.Exit) -> None:
        """Once it is told, nothing of the command is left, and its id is free again."""
        self.end = exit_event
        self.state = State.ENDED
        # its end is remembered for a while, and not what it was
        self._running = None
        self._on_end(self)
        self._hub.emit(exit_event)
        self.done.set()

    # --- streams --------------------------------------------------------------------------

    async def _read(
        self, reader: asyncio.StreamReader, kind: type[protocol.Stdout] | type[protocol.Stderr]
    ) -> None:
        decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        while True:
            data = await reader.read(CHUNK)
            text = decoder.decode(data, final=not data)
            if text:
                if self.first_output_at is None:
                    self.first_output_at = time.monotonic()
                self._hub.emit(kind(self.ident, text))
                self._emitting += 1
                try:
                    await self._hub.room()
                finally:
                    self._emitting -= 1
            self._carried += len(data)
            if not data:
                return

    async def _feed(self, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                while self._input:
                    data = self._input.popleft()
                    writer.write(data)
                    await writer.drain()
                    self._input_size -= len(data)
                if self._input_closed:
                    return
                self._input_there.clear()
                await self._input_there.wait()
        except (BrokenPipeError, ConnectionResetError):
            log.debug("process %r: its stdin is closed", self.ident[:80])
            self._input_closed = True
        finally:
            self._input.clear()
            self._input_size = 0
            writer.close()
