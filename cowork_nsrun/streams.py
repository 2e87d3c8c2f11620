"""The standard streams of a command: which descriptors it gets, and our ends of them."""

from __future__ import annotations

import errno
import fcntl
import io
import os
import struct
import subprocess
import termios
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, Protocol, Self, cast

from cowork_nsrun._native import Flow
from cowork_nsrun.errors import SpecError
from cowork_nsrun.handle import Handle, Stdio

PIPE = subprocess.PIPE
STDOUT = subprocess.STDOUT
DEVNULL = subprocess.DEVNULL

STREAMS = ("stdin", "stdout", "stderr")
STDERR = 2
MODES = {"stdin": "wb", "stdout": "rb", "stderr": "rb"}
TERMINAL_SIZE = (24, 80)


class HasFileno(Protocol):
    """Anything with a descriptor."""

    def fileno(self) -> int:
        """The descriptor."""
        ...


#: None is the caller's own, else PIPE, DEVNULL, STDOUT (stderr only), a descriptor or a file
Stream = int | HasFileno | None


class Fds:
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
        """Close it later.  Where our own stdio is closed it is moved out of that place."""
        self._open.add(fd)
        if fd > STDERR:
            return fd
        moved = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, STDERR + 1)
        self._open.add(moved)
        os.close(self.give_up(fd))
        return moved

    def give_up(self, fd: int) -> int:
        """It is somebody else's to close now."""
        self._open.discard(fd)
        return fd

    def pipe(self) -> tuple[int, int]:
        """Both ends, close-on-exec."""
        self._open.update(ends := os.pipe())
        r, w = map(self.own, ends)
        return r, w

    def __del__(self) -> None:
        self.close_all()

    def close_all(self) -> None:
        """Close what was not given up."""
        while self._open:
            os.close(self._open.pop())


class Terminal(io.RawIOBase):
    """Our end of a command's terminal: pty(7).  The end of the command is an end of file."""

    def __init__(self, fd: int) -> None:
        super().__init__()
        self._fd = fd

    def fileno(self) -> int:
        """Its descriptor."""
        self._check_open()
        return self._fd

    def _check_open(self) -> None:
        # the number may be another's by then
        if self.closed:
            raise ValueError("the terminal is closed")

    def isatty(self) -> bool:
        """It is one."""
        return True

    def readable(self) -> bool:
        """It is."""
        return True

    def writable(self) -> bool:
        """It is."""
        return True

    def readinto(self, buffer: Any, /) -> int | None:
        """Take what was written to the terminal."""
        self._check_open()
        try:
            data = os.read(self._fd, len(buffer))
        except BlockingIOError:
            return None
        except OSError as error:
            # what a terminal without a process at its other end says
            if error.errno != errno.EIO:
                raise
            data = b""
        buffer[: len(data)] = data
        return len(data)

    def write(self, data: Any, /) -> int | None:
        """Type; returns how many bytes were taken."""
        self._check_open()
        try:
            return os.write(self._fd, data)
        except BlockingIOError:
            return None

    def resize(self, rows: int, columns: int) -> None:
        """Change the window's size; the command gets a SIGWINCH.

        Raises:
            SpecError: no window has that size.
        """
        self._check_open()
        _set_size(self._fd, (rows, columns))

    def end_of(self, data: bytes) -> bytes:
        """What is to be typed behind that so that the command reads an end of file."""
        _, _, _, local, _, _, special = termios.tcgetattr(self.fileno())
        if not local & termios.ICANON:
            return b""
        # at the begin of a line once, elsewhere the first one ends the line
        end = bytes(special[termios.VEOF])
        return end if not data or data.endswith(b"\n") else 2 * end

    def close(self) -> None:
        """Hang up."""
        if not self.closed:
            os.close(self._fd)
        super().close()


#: unbuffered
Ours = io.FileIO | Terminal


class Ends:
    """The command's three descriptors, and our ends of those that are pipes.

    Attributes:
        stdio: what becomes 0, 1 and 2 inside.
        ours: our ends by name: ``stdin``, ``stdout``, ``stderr``, ``terminal``.
    """

    def __init__(
        self, stdin: Stream, stdout: Stream, stderr: Stream, pty: bool | tuple[int, int]
    ) -> None:
        self._fds = Fds()
        self.ours: dict[str, int] = {}
        try:
            if pty:
                self.stdio = self._terminal((stdin, stdout, stderr), pty)
            else:
                self.stdio = self._streams((stdin, stdout, stderr))
        except BaseException:
            self._fds.close_all()
            raise

    def _streams(self, wanted: tuple[Stream, Stream, Stream]) -> Stdio:
        theirs: list[int] = []
        for number, (name, stream) in enumerate(zip(STREAMS, wanted, strict=True)):
            if stream is None:
                theirs.append(number if _is_open(number) else self._null())
            elif stream == PIPE:
                theirs.append(self._pipe(name))
            elif stream == DEVNULL:
                theirs.append(self._null())
            elif stream == STDOUT:
                if name != "stderr":
                    raise SpecError(name, "STDOUT is for stderr alone")
                theirs.append(theirs[1])
            else:
                theirs.append(_descriptor(name, stream))
        return cast(Stdio, tuple(theirs))

    def _null(self) -> int:
        return self._fds.own(os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC))

    def _pipe(self, name: str) -> int:
        r, w = self._fds.pipe()
        theirs, self.ours[name] = (r, w) if name == "stdin" else (w, r)
        return theirs

    def _terminal(
        self, wanted: tuple[Stream, Stream, Stream], size: bool | tuple[int, int]
    ) -> Stdio:
        for name, stream in zip(STREAMS, wanted, strict=True):
            if stream is not None:
                raise SpecError(name, "is the terminal where there is a pty")
        ours, theirs = map(self._fds.own, os.openpty())
        self.ours["terminal"] = ours
        _set_size(ours, TERMINAL_SIZE if isinstance(size, bool) else size)
        return theirs, theirs, theirs

    def take(self) -> dict[str, Ours]:
        """Our ends, now the caller's to close; the command's ends are closed here."""
        taken = {name: self._owner(name) for name in self.ours}
        self._fds.close_all()
        return taken

    def _owner(self, name: str) -> Ours:
        """One of them, as something that closes it when it is dropped."""
        if name == "terminal":
            return Terminal(self._fds.give_up(self.ours[name]))
        return io.FileIO(self._fds.give_up(self.ours[name]), MODES[name])

    def close(self) -> None:
        """All of them."""
        self._fds.close_all()


def _set_size(fd: int, size: tuple[int, int]) -> None:
    try:
        rows, columns = size
        packed = struct.pack("HHHH", rows, columns, 0, 0)
    except (TypeError, ValueError, struct.error) as error:
        raise SpecError("pty", f"{size!r} are no rows and columns from 0 to 65535") from error
    fcntl.ioctl(fd, termios.TIOCSWINSZ, packed)


def _is_open(fd: int) -> bool:
    try:
        fcntl.fcntl(fd, fcntl.F_GETFD)
    except OSError:
        return False
    return True


def _descriptor(name: str, stream: int | HasFileno) -> int:
    fd = stream if isinstance(stream, int) else stream.fileno()
    if fd < 0:
        raise SpecError(name, f"{stream!r} is no descriptor, PIPE or DEVNULL")
    return fd


class OutOfTime(Exception):
    """The deadline came first."""


class Pump:
    """Feeds a command and collects what it says, until it ends; nothing in it blocks.

    Arguments:
        flow: its streams.
        end_input: is called once no more is to be written.
    """

    def __init__(self, flow: Flow, end_input: Callable[[], None]) -> None:
        self._end_input = end_input
        self._flow = flow
        if flow.stdin >= 0 and not flow.feeds:
            end_input()

    @property
    def output(self) -> tuple[bytes, bytes]:
        """What was collected until now."""
        return self._flow.output(0), self._flow.output(1)

    def run(self, handle: Handle, deadline: float | None) -> None:
        """Serve the streams until the command ends, and until all is gone.

        Raises:
            OutOfTime: the deadline came first.
        """
        handle.hold(self)
        try:
            while not handle.ended:
                if self._flow.serve(handle.fd, deadline) & Flow.FED:
                    self._end_input()
                if not handle.advance() and deadline is not None and time.monotonic() >= deadline:
                    raise OutOfTime
        finally:
            handle.release(self)
        handle.wait(None)
        # nobody inside writes to them any more
        self._flow.drain()
