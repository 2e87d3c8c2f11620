"""``nsrun vm exec``: one plan in a machine of its own, as if it ran here.

This process stands for the command: its standard streams are the command's, signals that it
gets go to the command, and it ends with the command's exit status.
"""

from __future__ import annotations

import fcntl
import json
import os
import signal
import socket
import termios
import threading
import time
import tty
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from types import FrameType

from cowork_nsrun._native import PlanFlag
from cowork_nsrun.errors import NsrunError
from cowork_nsrun.guest.agent import Command, Outlet, Settings
from cowork_nsrun.guest.compile import Translation, translate
from cowork_nsrun.guest.limits import Limits
from cowork_nsrun.guest.machine import Machine, Size
from cowork_nsrun.plan import Extras, Plan

CHUNK = 1 << 18
#: signals that go to the command; SIGKILL needs no help, and SIGTSTP stops only this side
FORWARDED = (
    signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1,
    signal.SIGUSR2, signal.SIGALRM, signal.SIGCONT,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Request:
    """What is to be done.

    Attributes:
        plan: what to run.
        kernel: the image to boot; None: one that is found.
        size: of the machine.
        limits: of the command.
        status_fd: gets a JSON object a line of what happens; -1: nobody asks.
        life_fd: its end ends everything, and bytes are signals to send; -1: there is none.
    """

    plan: Plan
    kernel: str | None = None
    size: Size = field(default_factory=Size)
    limits: Limits = field(default_factory=Limits)
    status_fd: int = -1
    life_fd: int = -1


def execute(request: Request) -> int:
    """Run it to its end; returns the exit status.

    Raises:
        NsrunError: it could not be run.
    """
    tell = _teller(request.status_fd)
    try:
        return _execute(request, tell)
    except NsrunError as error:
        tell({"error": error.text, "step": error.step, "path": error.path, "errno": error.errno})
        raise


def _teller(fd: int) -> Callable[[dict[str, object]], None]:
    def tell(record: dict[str, object]) -> None:
        if fd >= 0:
            with suppress(OSError):
                os.write(fd, json.dumps(record).encode("ascii") + b"\n")

    return tell


def _execute(request: Request, tell: Callable[[dict[str, object]], None]) -> int:
    terminal = all(os.isatty(fd) for fd in range(3))
    plan = request.plan
    if terminal and plan.flags & PlanFlag.TERMINAL:
        # a terminal made for this command: its window's changes come to us
        with suppress(OSError):
            fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    if terminal:
        # in the guest its keys can be signals, as they are here
        plan = plan.with_extras(Extras(PlanFlag.TERMINAL))
    translation = translate(plan)
    with (
        _Forwarding() as forwarding,
        Machine(request.kernel, request.size, network=translation.network) as machine,
    ):
        if request.life_fd >= 0:
            _thread(_watch, request.life_fd, forwarding)
        try:
            machine.wait_ready()
            if translation.hold is not None:
                os.read(translation.hold, 1)
            settings = own_settings(request.limits.within(translation.limits))
            settings = replace(settings, outlet=translation.outlet is not None)
            with _started(machine, translation, settings, terminal) as command:
                forwarding.to(command)
                status = _relayed(command, tell)
        except NsrunError as error:
            raise machine.explain(error) from None
    usage = command.usage
    if usage is not None:
        tell({"exit": status, "cpu_ns": usage.cpu_ns, "peak": usage.peak,
              "oom_kills": usage.oom_kills, "timed_out": usage.timed_out})  # fmt: skip
    return status


def own_settings(limits: Limits) -> Settings:
    """This process's ids; the guest gets the time and fresh entropy."""
    old = os.umask(0)
    os.umask(old)
    settings = Settings(
        uid=os.getuid(),
        gid=os.getgid(),
        groups=tuple(os.getgroups()),
        umask=old,
        memory=limits.memory,
        processes=limits.processes,
        cpu=limits.cpu,
        deadline=limits.timeout,
        clock_ns=time.time_ns(),
        entropy=os.urandom(32),
    )
    with suppress(OSError):
        columns, rows = os.get_terminal_size(0)
        settings = replace(settings, rows=rows, columns=columns)
    return settings


def _started(
    machine: Machine, translation: Translation, settings: Settings, terminal: bool
) -> Command:
    there = [_is_open(fd) for fd in range(3)]
    return machine.run(
        translation,
        settings,
        stdin=there[0],
        stdout=there[1],
        stderr=there[2],
        terminal=terminal,
        outlet=None if translation.outlet is None else _hand_over_to(translation.outlet),
    )


def _hand_over_to(fd: int) -> Outlet:
    """The owner of the plan's outlet gets the command's connections; see :mod:`cowork_nsrun.outlet`."""
    try:
        line = socket.socket(fileno=fd)
    except OSError as error:
        text = f"--listen-fd {fd}: {error.strerror}"
        raise NsrunError(text, errno=error.errno or 0) from None

    def hand_over(stream: socket.socket) -> None:
        # an owner that takes none, or no more at present, has them closed
        with stream, suppress(OSError):
            socket.send_fds(line, [b"\0"], [stream.fileno()], socket.MSG_DONTWAIT)

    return hand_over


def _is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


# --- signals ------------------------------------------------------------------------------


class _Forwarding(ExitStack):
    """Signals go to the command, those that come before it is there as well."""

    def __init__(self) -> None:
        super().__init__()
        self._command: Command | None = None
        self._early: list[int] = []

    def __enter__(self) -> _Forwarding:
        super().__enter__()
        for number in FORWARDED:
            # what was ignored from the start stays so: nohup(1)
            if signal.getsignal(number) is not signal.SIG_IGN:
                self._handle(number, self._forward)
        self._handle(signal.SIGWINCH, self._resize)
        # a relay that reads or sets the terminal in the background gets errors instead
        self._handle(signal.SIGTTIN, signal.SIG_IGN)
        self._handle(signal.SIGTTOU, signal.SIG_IGN)
        return self

    def _handle(self, number: int, handler: signal._HANDLER) -> None:
        self.callback(signal.signal, number, signal.signal(number, handler))

    def _forward(self, number: int, _frame: FrameType | None) -> None:
        if self._command is None:
            self._early.append(number)
        else:
            self._command.signal(number)

    def _resize(self, _number: int, _frame: FrameType | None) -> None:
        if self._command is not None and self._command.terminal is not None:
            with suppress(OSError):
                columns, rows = os.get_terminal_size(0)
                self._command.resize(rows, columns)

    def signal(self, number: int) -> None:
        """To the command, at once or when it is there."""
        self._forward(number, None)

    def to(self, command: Command) -> None:
        """From now on to this one."""
        self._command = command
        while self._early:
            command.signal(self._early.pop(0))


def _watch(fd: int, forwarding: _Forwarding) -> None:
    """The owner's words: bytes are signals; its end is the machine's, which sees ours."""
    with suppress(OSError):
        while data := os.read(fd, 64):
            for number in data:
                forwarding.signal(number)
    os._exit(128 + signal.SIGKILL)


# --- streams ------------------------------------------------------------------------------


def _relayed(command: Command, tell: Callable[[dict[str, object]], None]) -> int:
    """Carry the streams until the command has ended, and all that it wrote has arrived."""
    writers = []
    with _raw(command.terminal is not None):
        for stream, fd in ((command.stdout, 1), (command.stderr, 2), (command.terminal, 1)):
            if stream is not None:
                writers.append(_thread(_carry_out, stream, fd))
        source = command.terminal or command.stdin
        if source is not None:
            _thread(_carry_in, source, command.terminal is not None)
        tell({"started": True})
        status = command.wait()
        for writer in writers:
            writer.join()
    return status


def _thread(target: Callable[..., None], *args: object) -> threading.Thread:
    thread = threading.Thread(target=target, args=args, daemon=True)
    thread.start()
    return thread


def _carry_out(stream: socket.socket, fd: int) -> None:
    with suppress(OSError):
        while data := stream.recv(CHUNK):
            left = memoryview(data)
            while left:
                left = left[os.write(fd, left) :]
        return
    # nobody reads any more: the command's next write is to fail
    with suppress(OSError):
        stream.shutdown(socket.SHUT_RD)


def _carry_in(stream: socket.socket, terminal: bool) -> None:
    with suppress(OSError):
        while data := os.read(0, CHUNK):
            stream.sendall(data)
        if terminal:
            stream.sendall(b"\x04")
    if not terminal:
        with suppress(OSError):
            stream.shutdown(socket.SHUT_WR)


@contextmanager
def _raw(wanted: bool) -> Iterator[None]:
    """Every key goes to the command, ctrl-C too: termios(3)."""
    if not wanted:
        yield
        return
    before = termios.tcgetattr(0)
    tty.setraw(0)
    try:
        yield
    finally:
        termios.tcsetattr(0, termios.TCSADRAIN, before)


def read_plan(fd: int) -> Plan:
    """The plan that a descriptor holds.

    Raises:
        NsrunError: it holds none.
    """
    try:
        with open(fd, "rb") as file:
            return Plan.from_bytes(file.read())
    except OSError as error:
        raise NsrunError(f"--plan {fd}: {error.strerror}", errno=error.errno or 0) from None
