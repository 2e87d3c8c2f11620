"""Commands in microVMs: one for each session, with all of its commands in it."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

from cowork_nsrun.cowork.backends import Command, End, Running, Start
from cowork_nsrun.cowork.log import log
from cowork_nsrun.errors import NsrunError
from cowork_nsrun.guest.agent import Command as GuestCommand
from cowork_nsrun.guest.compile import Translation, translate
from cowork_nsrun.guest.exec import own_settings
from cowork_nsrun.guest.limits import Limits as GuestLimits
from cowork_nsrun.guest.machine import Machine, Size
from cowork_nsrun.plan import Plan
from cowork_nsrun.spec import Limits

#: machines without a command that are kept for their sessions' next ones
IDLE_MAX = 4
MIB = 1 << 20
LIMIT = 1 << 18  # bytes that a reader holds before the command is made to wait
HELD = "microVM"

T = TypeVar("T")


@dataclass(slots=True)
class _Kept:
    """A session's machine."""

    session: str
    network: bool
    limits: Limits
    machine: Machine
    users: int = 0
    used_at: float = field(default_factory=time.monotonic)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def fits(self, command: Command, network: bool) -> bool:
        """Whether the command may be put into it, as it is or since nothing runs in it."""
        same = self.network == network and self.limits == command.limits
        return self.machine.alive and (same or (self.users > 0 and self.network == network))


class Machines:
    """The machines of all sessions; for any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._booting: dict[str, threading.Lock] = {}
        self._kept: dict[str, list[_Kept]] = {}

    def enter(self, command: Command, network: bool) -> _Kept:
        """The session's machine, booted if it is not there, until :meth:`leave`.

        Raises:
            NsrunError: it can't be had.
        """
        with self._lock:
            booting = self._booting.setdefault(command.session, threading.Lock())
        with booting:
            kept = self._find(command, network)
            if kept is None:
                kept = _boot(command, network)
                with self._lock:
                    self._kept.setdefault(command.session, []).append(kept)
            return kept

    def _find(self, command: Command, network: bool) -> _Kept | None:
        """What there is; the session's machines that can't be used any more are ended."""
        ended = []
        found = None
        with self._lock:
            for kept in list(self._kept.get(command.session, ())):
                if kept.fits(command, network):
                    found = kept
                    kept.users += 1
                elif not kept.users:
                    self._drop(kept)
                    ended.append(kept)
        for kept in ended:
            kept.machine.close()
        return found

    def _drop(self, kept: _Kept) -> None:
        self._kept[kept.session].remove(kept)
        if not self._kept[kept.session]:
            del self._kept[kept.session]

    def leave(self, kept: _Kept) -> None:
        """A command of it has ended; too many idle machines are ended, the oldest first."""
        with self._lock:
            kept.users -= 1
            kept.used_at = time.monotonic()
            idle = [each for all_ in self._kept.values() for each in all_ if not each.users]
            idle.sort(key=lambda each: each.used_at)
            ended = idle[: max(0, len(idle) - IDLE_MAX)]
            for each in ended:
                self._drop(each)
        for each in ended:
            log.debug("session %s: its microVM is idle, and ended", each.session)
            each.machine.close()

    def end(self, session: str | None) -> None:
        """A session is over, with whatever runs in it; None: all are."""
        with self._lock:
            names = list(self._kept) if session is None else [session]
            ended = [kept for name in names for kept in self._kept.pop(name, ())]
        for kept in ended:
            kept.machine.close()


def _boot(command: Command, network: bool) -> _Kept:
    begin = time.monotonic()
    memory, cpu = command.limits.memory, command.limits.cpu
    size = Size(
        None if memory is None else max(128, int(memory) // MIB),
        None if cpu is None else max(1, round(cpu)),
    )
    machine = Machine(size=size, network=network)
    try:
        machine.wait_ready()
    except NsrunError as error:
        machine.close()
        raise machine.explain(error) from None
    except BaseException:
        machine.close()
        raise
    log.debug("session %s: microVM booted in %.2f s", command.session, time.monotonic() - begin)
    return _Kept(command.session, network, command.limits, machine, users=1)


class InMachine:
    """A command in a session's machine."""

    def __init__(self, kept: _Kept, command: GuestCommand, leave: Callable[[_Kept], None]) -> None:
        self._kept = kept
        self._command = command
        self._leave: Callable[[_Kept], None] | None = leave
        self._loop = asyncio.get_running_loop()
        # a writer that nobody holds closes its stream
        self._writers: list[asyncio.StreamWriter] = []
        self.stdin: asyncio.StreamWriter
        self.stdout: asyncio.StreamReader
        self.stderr: asyncio.StreamReader

    async def connect(self) -> None:
        """Take its streams over, and wait until it runs.

        Raises:
            NsrunError: it could not be started.
        """
        readers = []
        for stream in (self._command.stdin, self._command.stdout, self._command.stderr):
            reader, writer = await asyncio.open_connection(sock=stream, limit=LIMIT)
            readers.append(reader)
            self._writers.append(writer)
        self.stdin = self._writers[0]
        _, self.stdout, self.stderr = readers
        await self._until(self._started)

    def _started(self) -> int | None:
        with suppress(TimeoutError):
            return self._command.wait_started(0)
        return None

    @property
    def pid(self) -> int:
        """In its guest; to show only."""
        return self._command.pid

    @property
    def limits(self) -> Mapping[str, str]:
        """Limit to what holds it."""
        return dict.fromkeys(self._kept.limits.cgroup, HELD)

    def signal(self, number: int) -> None:
        """Send a signal to every process in the sandbox."""
        # a guest that takes nothing must not stop the service
        self._loop.run_in_executor(None, self._command.signal, number)

    async def wait(self) -> End:
        """Until it has ended.

        Raises:
            NsrunError: its machine has.
        """
        code = await self._until(self._command.poll)
        usage = self._command.usage
        return End(code, None if usage is None else usage.oom_kills)

    async def _until(self, look: Callable[[], int | None]) -> int:
        heard = asyncio.Event()
        fd = self._command.fileno()
        self._loop.add_reader(fd, heard.set)
        try:
            while (found := look()) is None:
                heard.clear()
                await heard.wait()
        except NsrunError as error:
            raise await asyncio.to_thread(self._kept.machine.explain, error) from None
        finally:
            self._loop.remove_reader(fd)
        return found

    async def close(self) -> None:
        """Kill what is left, and give everything back."""
        if self._leave is None:
            return
        leave, self._leave = self._leave, None
        for writer in self._writers:
            writer.close()
        self._command.close()
        await asyncio.to_thread(leave, self._kept)


class MachineBackend:
    """Commands in sandboxes within microVMs, of which each session has its own."""

    name = "kvm"
    sandboxed = True
    connect_delay = 0.0
    host_limits = False

    def __init__(self) -> None:
        self._machines = Machines()

    def problem(self) -> str | None:
        """Nothing is known to be wrong before it is tried."""
        return None

    def prepare(self, command: Command) -> Start:
        """Compile the sandbox for a guest; the machine is booted once the command starts.

        Raises:
            NsrunError: a folder is gone, or no guest can run this.
        """
        if command.domains is not None:
            raise NsrunError("allowedDomains: a microVM has no egress rules yet; use bwrap")
        with command.layout.pinned() as spec:
            plan = Plan.from_spec(spec, command.argv, env=dict(command.environment))
            translation = translate(plan, cwd="/")
        return partial(self._start, command, translation)

    async def _start(self, command: Command, translation: Translation) -> Running:
        kept = await _to_its_end(partial(self._machines.enter, command, translation.network),
                                 self._machines.leave)  # fmt: skip
        try:
            started = await _to_its_end(partial(_run, kept.machine, translation), _close)
        except BaseException:
            await asyncio.shield(asyncio.to_thread(self._machines.leave, kept))
            raise
        running = InMachine(kept, started, self._machines.leave)
        try:
            await running.connect()
        except BaseException:
            await asyncio.shield(running.close())
            raise
        return running

    def end(self, session: str | None) -> None:
        """A session is over; None: all are."""
        self._machines.end(session)


def _run(machine: Machine, translation: Translation) -> GuestCommand:
    try:
        return machine.run(translation, own_settings(GuestLimits()))
    except NsrunError as error:
        raise machine.explain(error) from None


def _close(command: GuestCommand) -> None:
    command.close()


async def _to_its_end(work: Callable[[], T], undo: Callable[[T], None]) -> T:
    """Work in a thread; if this is cancelled meanwhile, what came of it is undone."""
    task = asyncio.ensure_future(asyncio.to_thread(work))
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait((task,))
        if not task.cancelled() and task.exception() is None:
            await asyncio.to_thread(undo, task.result())
        raise
