"""A process that stands for a command in a guest: its streams, its signals, its terminal."""

from __future__ import annotations

import os
import signal
import socket
import termios
import tty
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from types import FrameType

from cowork_nsrun.errors import NsrunError
from cowork_nsrun.guest.agent import Command
from cowork_nsrun.guest.threads import start_thread

CHUNK = 1 << 18
#: signals that go to the command; SIGKILL needs no help, and SIGTSTP stops only this side
FORWARDED = (
    signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1,
    signal.SIGUSR2, signal.SIGALRM, signal.SIGCONT,
)  # fmt: skip
#: of these, those that nobody waits for a boot with
ENDING = frozenset({signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT})


# --- signals ------------------------------------------------------------------------------


class Forwarding(ExitStack):
    """Signals go to the command; before it is there, those that end a program end this one.

    Python's handlers run between two steps of the main thread, and a signal that comes just
    before a system call does not end that.  So the interpreter writes each signal's number to
    a pipe as it comes (:func:`signal.set_wakeup_fd`), and a thread sends them on.
    """

    def __init__(self) -> None:
        super().__init__()
        self._has_command = False
        self._come, self._numbers = -1, -1

    def __enter__(self) -> Forwarding:
        super().__enter__()
        self._come, self._numbers = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        os.set_blocking(self._come, True)
        before = signal.set_wakeup_fd(self._numbers, warn_on_full_buffer=False)
        self.callback(signal.set_wakeup_fd, before)
        for number in FORWARDED:
            # what was ignored from the start stays so: nohup(1)
            if signal.getsignal(number) is not signal.SIG_IGN:
                self._handle(number, self._comes)
        self._handle(signal.SIGWINCH, self._comes)
        # a relay that reads or sets the terminal in the background gets errors instead
        self._handle(signal.SIGTTIN, signal.SIG_IGN)
        self._handle(signal.SIGTTOU, signal.SIG_IGN)
        return self

    def _handle(self, number: int, handler: signal._HANDLER) -> None:
        self.callback(signal.signal, number, signal.signal(number, handler))

    def _comes(self, number: int, _frame: FrameType | None) -> None:
        """It is in the pipe already."""
        if not self._has_command and number in ENDING:
            raise SystemExit(128 + number)

    def signal(self, number: int) -> None:
        """To the command, at once or when it is there."""
        os.write(self._numbers, bytes([number]))

    def watch(self, fd: int) -> None:
        """Take the owner's words: bytes are signals; the end of it is the end of everything."""
        start_thread(_watch, fd, self)

    def to(self, command: Command) -> None:
        """From now on to this one, beginning with what has come."""
        self._has_command = True
        start_thread(_send_on, self._come, command)


def _send_on(come: int, command: Command) -> None:
    while True:
        for number in os.read(come, 64):
            with suppress(NsrunError, OSError):
                if number != signal.SIGWINCH:
                    command.signal(number)
                elif command.terminal is not None:
                    columns, rows = os.get_terminal_size(0)
                    command.resize(rows, columns)


def _watch(fd: int, forwarding: Forwarding) -> None:
    with suppress(OSError):
        while data := os.read(fd, 64):
            for number in data:
                forwarding.signal(number)
    # the monitor sees the end of this process
    os._exit(128 + signal.SIGKILL)


# --- streams ------------------------------------------------------------------------------


def relay(command: Command, started: Callable[[], None]) -> int:
    """Carry the streams until the command has ended, and all that it wrote has arrived.

    Arguments:
        started: is called once the streams flow.

    Returns:
        The exit status.

    Raises:
        NsrunError: the sandbox could not be made, or the guest is gone.
    """
    writers = []
    with _raw(command.terminal is not None):
        for stream, fd in ((command.stdout, 1), (command.stderr, 2), (command.terminal, 1)):
            if stream is not None:
                writers.append(start_thread(_carry_out, stream, fd))
        source = command.terminal or command.stdin
        if source is not None:
            start_thread(_carry_in, source, command.terminal is not None)
        started()
        status = command.wait()
        for writer in writers:
            writer.join()
    return status


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
