"""The agent's other end: plans sent to a guest, and what becomes of them.

``csrc/guest/protocol.h`` has the protocol.  Nothing here keeps a list: a :class:`Command` is its
sockets, and closing its control stream ends all of its processes.  Threads are there for the
connections of a command with a way out alone, each until it is handed over.
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import signal
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import IntEnum

from cowork_nsrun.closing import Closing
from cowork_nsrun.errors import NsrunError
from cowork_nsrun.guest.threads import start_thread

log = logging.getLogger(__name__)

#: of vsock, in the guest
PORT = 1024
#: bytes of a plan
MAX_PLAN = 64 << 20
#: how long the agent may take to take a stream, in seconds
PATIENCE = 60.0
#: those there are, and those to come
ALL_CAPABILITIES = (1 << 64) - 1

_MAGIC = 0x4152534E
_VERSION = 2
_HELLO = struct.Struct("=4I16s")
_FRAME = struct.Struct("=2I")
_SETTINGS = struct.Struct("=8I4QqQ32s")
_EXITED = struct.Struct("=2I2Q2I")
_FAILED = struct.Struct("=IiII")
_INFO = struct.Struct("=4I72s72s")
_STARTED = struct.Struct("=I")
_SETTINGS_VERSION = 2
_CLOCK = 1
_ENTROPY = 2
_OUTLET = 4
_NUMBER = struct.Struct("=I")
#: connections that are being fetched; an agent has at most half as many at one time
_FETCHED = 512
_TIMED_OUT = 1
_LONGEST_ANSWER = 64 << 10
_HIGHEST_STATUS = 255

#: a stream to a port, within so many seconds
Connect = Callable[[int, float], socket.socket]
Outlet = Callable[[socket.socket], None]


class _Role(IntEnum):
    CONTROL = 0
    STDIN = 1
    STDOUT = 2
    STDERR = 3
    TERMINAL = 4
    OUTGOING = 5


class _Type(IntEnum):
    SETTINGS = 1
    PLAN = 2
    SIGNAL = 3
    RESIZE = 4
    DEADLINE = 5
    POWER_OFF = 6
    GET_INFO = 7
    STARTED = 65
    EXITED = 66
    FAILED = 67
    INFO = 68
    OUTGOING = 69


@dataclass(frozen=True, slots=True)
class Settings:
    """What a command gets in the guest beside its plan.

    Attributes:
        uid: who runs the plan; the caller's, as on the host.
        gid: the same.
        groups: supplementary groups.
        umask: of the command.
        memory: bytes that all of its processes may have together; None: no limit.
        processes: how many there may be; None: no limit.
        cpu: processors' worth of time, such as 0.5; None: no limit.
        deadline: seconds from the start after which all of it is killed; None: never.
        rows: of the terminal; 0: not known.
        columns: the same.
        clock_ns: the time since 1970, for a guest that may not know it; None: leave it.
        entropy: 32 random bytes for a guest that may have none; None: leave it.
        outlet: connections to the proxy's ports in the command's network are carried here.
        bounding: capabilities that its bounding set may have, a bit each: capabilities(7).
    """

    uid: int
    gid: int
    groups: tuple[int, ...] = ()
    umask: int = 0o022
    memory: int | None = None
    processes: int | None = None
    cpu: float | None = None
    deadline: float | None = None
    rows: int = 0
    columns: int = 0
    clock_ns: int | None = None
    entropy: bytes | None = None
    outlet: bool = False
    bounding: int = ALL_CAPABILITIES

    def encode(self) -> bytes:
        """As they cross the wire.

        Raises:
            NsrunError: a value that can't cross it.
        """
        flags = (_CLOCK if self.clock_ns is not None else 0) | (
            _ENTROPY if self.entropy is not None else 0
        )
        flags |= _OUTLET if self.outlet else 0
        if self.entropy is not None and len(self.entropy) != 32:
            raise NsrunError(f"entropy: {len(self.entropy)} bytes; 32 are wanted")
        try:
            head = _SETTINGS.pack(
                _SETTINGS_VERSION,
                flags,
                self.uid,
                self.gid,
                self.umask,
                self.rows,
                self.columns,
                len(self.groups),
                self.memory or 0,
                self.processes or 0,
                0 if self.cpu is None else max(1, round(self.cpu * 1000)),
                _milliseconds(self.deadline),
                self.clock_ns or 0,
                self.bounding,
                self.entropy or b"",
            )
            return head + struct.pack(f"={len(self.groups)}I", *self.groups)
        except struct.error as error:
            raise NsrunError(f"settings that can't be sent: {error}") from None


@dataclass(frozen=True, slots=True)
class Usage:
    """What a command took.

    Attributes:
        cpu_ns: user and system time of its processes, in nanoseconds.
        peak: bytes that it had at most at one time; 0: not known.
        oom_kills: how many of its processes were killed for the memory limit.
        pids_refused: how often a process or thread was refused for the limit of them.
        timed_out: its deadline ended it.
    """

    cpu_ns: int
    peak: int
    oom_kills: int
    pids_refused: int
    timed_out: bool


@dataclass(frozen=True, slots=True)
class Info:
    """What the guest is.

    Attributes:
        release: of its kernel, as ``uname -r`` has it.
        machine: such as ``x86_64``.
        is_guest: the agent is its first process.
        has_limits: limits can be kept.
        commands: how many there are, this question among them.
    """

    release: str
    machine: str
    is_guest: bool
    has_limits: bool
    commands: int


class Agent:
    """An agent that listens.  Any thread may use it.

    Attributes:
        connect: makes a stream to a port of the guest's.
    """

    def __init__(self, connect: Connect, port: int = PORT) -> None:
        self.connect = connect
        self._port = port

    def start(
        self,
        plan: bytes,
        settings: Settings,
        *,
        stdin: bool = True,
        stdout: bool = True,
        stderr: bool = True,
        terminal: bool = False,
        outlet: Outlet | None = None,
    ) -> Command:
        """Run a plan.

        Arguments:
            plan: the bytes of :meth:`cowork_nsrun.plan.Plan.to_bytes`.
            settings: who runs it, and within which limits.
            stdin: whether there is to be a stream for it; else the command reads /dev/null.
            stdout: the same.
            stderr: the same.
            terminal: a terminal in place of these three.
            outlet: gets each connection of a command whose settings have an outlet, in a
                thread of its own; only while somebody waits for the command.

        Raises:
            NsrunError: the agent takes no more commands, or is gone.
        """
        if len(plan) > MAX_PLAN:
            raise NsrunError(f"plan of {len(plan)} bytes; a guest gets at most {MAX_PLAN}")
        wanted = [_Role.CONTROL, _Role.TERMINAL] if terminal else [_Role.CONTROL]
        if not terminal:
            wanted += [
                role
                for role, is_wanted in (
                    (_Role.STDIN, stdin),
                    (_Role.STDOUT, stdout),
                    (_Role.STDERR, stderr),
                )
                if is_wanted
            ]
        head = settings.encode()
        token = os.urandom(16)
        command = Command(self._streams(wanted, token))
        if outlet is not None:
            command.fetch = _Fetch(self, token, outlet)
        try:
            command._send(_Type.SETTINGS, head)
            command._send(_Type.PLAN, plan)
        except BaseException:
            command.close()
            raise
        return command

    def info(self, patience: float = PATIENCE) -> Info:
        """Ask what the guest is.

        Arguments:
            patience: seconds that it may take to take a stream.

        Raises:
            NsrunError: the agent is gone.
        """
        streams = self._streams([_Role.CONTROL], os.urandom(16), patience=patience)
        with Command(streams) as asking:
            asking._send(_Type.GET_INFO)
            kind, payload = asking._answer(time.monotonic() + PATIENCE)
        if kind != _Type.INFO or len(payload) != _INFO.size:
            raise NsrunError(f"the agent answers a question with frame {kind}")
        _, flags, commands, _, release, machine = _INFO.unpack(payload)
        return Info(_text(release), _text(machine), bool(flags & 1), bool(flags & 2), commands)

    def power_off(self) -> None:
        """End all commands and switch the guest off.  It is not waited for.

        Raises:
            NsrunError: the agent is gone.
        """
        with Command(self._streams([_Role.CONTROL], os.urandom(16))) as asking:
            asking._send(_Type.POWER_OFF)
            # it ends the stream when it goes; closed too early, nobody would read the frame
            asking._until_end(time.monotonic() + PATIENCE)

    def _streams(
        self,
        roles: Iterable[_Role],
        token: bytes,
        connection: int = 0,
        patience: float = PATIENCE,
    ) -> dict[_Role, socket.socket]:
        made: dict[_Role, socket.socket] = {}
        try:
            for role in roles:
                made[role] = self.connect(self._port, patience)
                made[role].settimeout(PATIENCE)
                made[role].sendall(_HELLO.pack(_MAGIC, _VERSION, role, connection, token))
            for role, stream in made.items():
                if stream.recv(1) != b"\0":
                    raise NsrunError(f"the agent took no stream for the command's {_name(role)}")
                stream.settimeout(None)
        except OSError as error:
            _close(made.values())
            raise NsrunError(
                f"the agent in the guest does not answer: {error}", errno=error.errno or 0
            ) from None
        except BaseException:
            _close(made.values())
            raise
        return made


class _Fetch:
    """Brings a command's connections here, each in a thread: the guest may let one wait."""

    def __init__(self, agent: Agent, token: bytes, outlet: Outlet) -> None:
        self._agent = agent
        self._token = token
        self._outlet = outlet
        # for a guest that is not in order any more
        self._places = threading.BoundedSemaphore(_FETCHED)

    def begin(self, connection: int) -> None:
        """One that the agent tells of."""
        if not self._places.acquire(blocking=False):
            log.debug("connection %d waits for nobody: too many do", connection)
            return
        start_thread(self._run, connection)

    def _run(self, connection: int) -> None:
        try:
            streams = self._agent._streams([_Role.OUTGOING], self._token, connection)
        except NsrunError as error:
            log.debug("connection %d is gone: %s", connection, error)
        else:
            self._outlet(streams[_Role.OUTGOING])
        finally:
            self._places.release()


class Command(Closing):
    """A plan that runs in a guest.  Closing it kills all of its processes.

    Any thread may use it.  The streams are plain sockets: end stdin by
    ``shutdown(SHUT_WR)``, read the others to their end.

    Attributes:
        stdin: None if there is none.
        stdout: the same.
        stderr: the same.
        terminal: in place of these; both ways.
        pid: of the first process, as the guest has it; 0: not known yet.
        usage: what it took; None: it has not ended.
        fetch: what brings its connections here; None: it has no way out.
    """

    def __init__(self, streams: dict[_Role, socket.socket]) -> None:
        self._control = streams[_Role.CONTROL]
        self.stdin = streams.get(_Role.STDIN)
        self.stdout = streams.get(_Role.STDOUT)
        self.stderr = streams.get(_Role.STDERR)
        self.terminal = streams.get(_Role.TERMINAL)
        self.pid = 0
        self.usage: Usage | None = None
        self.fetch: _Fetch | None = None
        self._streams = streams
        self._status: int | None = None
        self._failure: NsrunError | None = None
        self._sending = threading.Lock()
        self._hearing = threading.Lock()
        self._heard = bytearray()

    def fileno(self) -> int:
        """Readable when :meth:`poll` may know more."""
        return self._control.fileno()

    def poll(self) -> int | None:
        """The exit status if it has ended; else None.

        Raises:
            NsrunError: the sandbox could not be made, or the agent is gone.
        """
        try:
            return self.wait(0)
        except TimeoutError:
            return None

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the command's end.  Processes that it left may still run.

        Arguments:
            timeout: in seconds.

        Returns:
            0 to 255; 128 and the number for a signal; 124 if its deadline ended it.

        Raises:
            TimeoutError: it still runs.
            NsrunError: the sandbox could not be made, or the agent is gone.
        """
        self._hear_until(lambda: self._status is not None, timeout)
        assert self._status is not None
        return self._status

    def wait_started(self, timeout: float | None = None) -> int:
        """Wait until the sandbox is made and the program is about to be executed.

        Arguments:
            timeout: in seconds.

        Returns:
            The pid of its first process, as the guest has it.

        Raises:
            TimeoutError: it is not made yet.
            NsrunError: it could not be made, or the agent is gone.
        """
        self._hear_until(lambda: self.pid > 0 or self._status is not None, timeout)
        return self.pid

    def signal(self, number: int) -> None:
        """Send a signal, as :meth:`cowork_nsrun.Process.send_signal` does; too late, nothing.

        Raises:
            NsrunError: there is no such signal.
        """
        if not 0 < number <= 64:
            raise NsrunError(f"there is no signal {number}")
        self._tell(_Type.SIGNAL, struct.pack("=I", number))

    def kill(self) -> None:
        """Kill all of its processes; :meth:`wait` tells when the command has ended."""
        self.signal(signal.SIGKILL)

    def resize(self, rows: int, columns: int) -> None:
        """Change the size of the terminal's window.

        Raises:
            NsrunError: there is no terminal, or none can be so large.
        """
        if self.terminal is None:
            raise NsrunError("the command has no terminal")
        if not (0 <= rows < 65536 and 0 <= columns < 65536):
            raise NsrunError(f"no terminal has {rows} rows and {columns} columns")
        self._tell(_Type.RESIZE, struct.pack("=2I", rows, columns))

    def deadline(self, seconds: float | None) -> None:
        """Kill all of it when that time is over, from now on; None: never.

        Raises:
            NsrunError: it is too far off.
        """
        self._tell(_Type.DEADLINE, struct.pack("=Q", _milliseconds(seconds)))

    def close(self) -> None:
        """Kill all of its processes and close all streams."""
        with contextlib.suppress(OSError):
            # wakes up whoever waits in another thread
            self._control.shutdown(socket.SHUT_RDWR)
        _close(self._streams.values())

    def _tell(self, kind: _Type, payload: bytes) -> None:
        try:
            self._send(kind, payload)
        except NsrunError:
            # it has ended, of which wait() tells
            return

    def _send(self, kind: _Type, payload: bytes = b"") -> None:
        try:
            with self._sending:
                self._control.sendall(_FRAME.pack(kind, len(payload)))
                self._control.sendall(payload)
        except OSError as error:
            raise NsrunError(
                f"the agent in the guest is gone: {error}", errno=error.errno or 0
            ) from None

    def _hear_until(self, enough: Callable[[], bool], timeout: float | None) -> None:
        end = None if timeout is None else time.monotonic() + timeout
        if not self._hearing.acquire(timeout=-1 if timeout is None else timeout):
            raise TimeoutError("the command still runs")
        try:
            while self._failure is None and not enough():
                self._hear(end)
        finally:
            self._hearing.release()
        if self._failure is not None:
            raise self._failure

    def _hear(self, end: float | None) -> None:
        try:
            kind, payload = self._answer(end)
        except NsrunError as error:
            self._failure = error
            return
        if kind == _Type.STARTED and len(payload) == _STARTED.size:
            (self.pid,) = _STARTED.unpack(payload)
        elif kind == _Type.EXITED and len(payload) == _EXITED.size:
            self._end(payload)
        elif kind == _Type.OUTGOING and len(payload) == _NUMBER.size and self.fetch:
            self.fetch.begin(*_NUMBER.unpack(payload))
        elif kind == _Type.FAILED and len(payload) >= _FAILED.size:
            self._failure = _failure(payload)
        else:
            self._failure = NsrunError(f"the agent sends a frame that nobody knows: {kind}")

    def _end(self, payload: bytes) -> None:
        status, flags, cpu_ns, peak, oom_kills, refused = _EXITED.unpack(payload)
        if status > _HIGHEST_STATUS:
            self._failure = NsrunError(f"the agent tells of an exit status of {status}")
            return
        self.usage = Usage(cpu_ns, peak, oom_kills, refused, bool(flags & _TIMED_OUT))
        self._status = status

    def _answer(self, end: float | None) -> tuple[int, bytes]:
        """The next frame."""
        while True:
            if len(self._heard) >= _FRAME.size:
                kind, length = _FRAME.unpack_from(self._heard)
                if length > _LONGEST_ANSWER:
                    raise NsrunError(f"the agent sends a frame of {length} bytes")
                whole = _FRAME.size + length
                if len(self._heard) >= whole:
                    payload = bytes(self._heard[_FRAME.size : whole])
                    del self._heard[:whole]
                    return kind, payload
            data = self._receive(end)
            if not data:
                raise NsrunError("the agent in the guest is gone: its stream has ended")
            self._heard += data

    def _receive(self, end: float | None) -> bytes:
        try:
            if end is not None:
                poll = select.poll()
                poll.register(self._control, select.POLLIN)
                if not poll.poll(max(0.0, end - time.monotonic()) * 1000):
                    raise TimeoutError("the command still runs")
            return self._control.recv(_LONGEST_ANSWER)
        except TimeoutError:
            raise
        except (OSError, ValueError) as error:
            number = error.errno if isinstance(error, OSError) else None
            raise NsrunError(
                f"the agent in the guest is gone: {error}", errno=number or 0
            ) from None

    def _until_end(self, end: float) -> None:
        try:
            while self._receive(end):
                pass
        except NsrunError:
            return


def _failure(payload: bytes) -> NsrunError:
    step, number, path_length, text_length = _FAILED.unpack_from(payload)
    path = payload[_FAILED.size : _FAILED.size + path_length]
    text = payload[_FAILED.size + path_length :][:text_length]
    return NsrunError(os.fsdecode(text), step=step, path=os.fsdecode(path), errno=number)


def _milliseconds(seconds: float | None) -> int:
    if seconds is None:
        return 0
    if not 0 < seconds <= 2_000_000:
        raise NsrunError(f"deadline: {seconds} seconds; more than 0 and at most 2000000 can be")
    return max(1, round(seconds * 1000))


def _name(role: _Role) -> str:
    return role.name.lower()


def _text(field: bytes) -> str:
    return field.split(b"\0", 1)[0].decode("ascii", "replace")


def _close(streams: Iterable[socket.socket]) -> None:
    for stream in streams:
        stream.close()
