"""Commands in microVMs: one for each session, with all of its commands in it."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TypeVar

from cowork_nsrun.cowork.backends import Command, End, Running, Start
from cowork_nsrun.cowork.log import log
from cowork_nsrun.cowork.namespaces import egress_of, log_decision
from cowork_nsrun.errors import NsrunError
from cowork_nsrun.guest.agent import Command as GuestCommand
from cowork_nsrun.guest.compile import Translation, translate
from cowork_nsrun.guest.exec import own_settings
from cowork_nsrun.guest.limits import Limits as GuestLimits
from cowork_nsrun.guest.machine import Machine, Size
from cowork_nsrun.namespaces import Namespace
from cowork_nsrun.outlet import Outlet, hand_over_to
from cowork_nsrun.plan import Plan
from cowork_nsrun.policy import environment as proxy_environment
from cowork_nsrun.spec import Egress, Limits

#: machines without a command that are kept for their sessions' next ones
IDLE_MAX = 4
MIB = 1 << 20
LIMIT = 1 << 18  # bytes that a reader holds before the command is made to wait
HELD = "microVM"

T = TypeVar("T")


@dataclass(slots=True, eq=False)
class _Kept:
    """A session's machine."""

    session: str
    network: bool
    limits: Limits
    machine: Machine
    users: int = 0
    used_at: float = field(default_factory=time.monotonic)

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
        self._ended_all = 0
        self._ended: Counter[str] = Counter()

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
                before = self._ends(command.session)
                kept = _boot(command, network)
                with self._lock:
                    # a session that ended meanwhile keeps it for this command alone
                    if before == self._ends(command.session):
                        self._kept.setdefault(command.session, []).append(kept)
            return kept

    def _ends(self, session: str) -> tuple[int, int]:
        return self._ended_all, self._ended[session]

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

    def _has(self, kept: _Kept) -> bool:
        return kept in self._kept.get(kept.session, ())

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
            if not kept.users and kept not in ended and not self._has(kept):
                ended.append(kept)
        for each in ended:
            log.debug("session %s: its microVM is idle, and ended", each.session)
            each.machine.close()

    def end(self, session: str | None) -> None:
        """A session is over, with whatever runs in it; None: all are."""
        with self._lock:
            if session is None:
                self._ended_all += 1
            else:
                self._ended[session] += 1
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


@dataclass(frozen=True, slots=True)
class _Begun:
    """A command that was started, and what is to be undone when it has ended."""

    kept: _Kept
    command: GuestCommand
    undo: ExitStack

    def close(self) -> None:
        """Kill it, and give everything back; may be called again."""
        self.undo.close()


class InMachine:
    """A command in a session's machine."""

    def __init__(self, begun: _Begun) -> None:
        self._begun = begun
        self._kept = begun.kept
        self._command = begun.command
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
        for writer in self._writers:
            writer.close()
        await asyncio.to_thread(self._begun.close)


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
        env = dict(command.environment)
        egress = None
        with command.layout.pinned() as pinned:
            spec = pinned
            if command.domains is not None:
                egress = egress_of(command.domains)
                spec = spec.replace(unshare=spec.unshare | {Namespace.NET})
                env |= proxy_environment()
            translation = translate(Plan.from_spec(spec, command.argv, env=env), cwd="/")
        return partial(self._start, command, translation, egress)

    async def _start(
        self, command: Command, translation: Translation, egress: Egress | None
    ) -> Running:
        begin = partial(self._begin, command, translation, egress)
        running = InMachine(await _to_its_end(begin, _Begun.close))
        try:
            await running.connect()
        except BaseException:
            await asyncio.shield(running.close())
            raise
        return running

    def _begin(self, command: Command, translation: Translation, egress: Egress | None) -> _Begun:
        """Have the session's machine, and start the command in it; takes a while."""
        with ExitStack() as undo:
            kept = self._machines.enter(command, translation.network)
            undo.callback(self._machines.leave, kept)
            way = None if egress is None else undo.enter_context(closing(_Way(egress)))
            started = _run(kept.machine, translation, way)
            undo.callback(started.close)
            return _Begun(kept, started, undo.pop_all())

    def end(self, session: str | None) -> None:
        """A session is over; None: all are."""
        self._machines.end(session)


class _Way:
    """A command's way out: its connections go to a proxy of its own."""

    def __init__(self, egress: Egress) -> None:
        self._outlet = Outlet(egress, log_decision)
        self._line = self._outlet.theirs.dup()
        try:
            self._outlet.open(of_machine=True)
        except BaseException:
            self.close()
            raise
        self.hand_over = hand_over_to(self._line)

    def close(self) -> None:
        self._line.close()
        self._outlet.close()


def _run(machine: Machine, translation: Translation, way: _Way | None) -> GuestCommand:
    settings = replace(own_settings(GuestLimits()), outlet=way is not None)
    try:
        return machine.run(translation, settings, outlet=None if way is None else way.hand_over)
    except NsrunError as error:
        raise machine.explain(error) from None


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
