"""The standard streams of a command: which descriptors it gets, and our ends of them."""

from __future__ import annotations

import errno
import fcntl
import io
import os
import selectors
import struct
import subprocess
import termios
from collections.abc import Callable
from types import TracebackType
from typing import Any, Protocol, Self, cast

from cowork_nsrun.errors import SpecError
from cowork_nsrun.handle import Handle, Stdio, seconds_left

PIPE = subprocess.PIPE
STDOUT = subprocess.STDOUT
DEVNULL = subprocess.DEVNULL

CHUNK = 1 << 18
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
        data: for its standard input, if that is in ``inputs``.
        inputs: our ends to write ``data`` to, and then to close, unless they are read too.
        outputs: our ends to read.
        close: closes one of our ends.
    """

    def __init__(
        self, data: bytes, inputs: list[int], outputs: list[int], close: Callable[[int], None]
    ) -> None:
        self._selector = selectors.PollSelector()
        self._left = memoryview(data)
        self._close = close
        self.output: dict[int, bytearray] = {fd: bytearray() for fd in outputs}
        for fd in inputs:
            if fd in outputs:
                self._watch(fd, selectors.EVENT_READ | selectors.EVENT_WRITE, self._converse)
            elif data:
                self._watch(fd, selectors.EVENT_WRITE, lambda fd, _: self._feed(fd))
            else:
                close(fd)
        for fd in set(outputs) - set(inputs):
            self._watch(fd, selectors.EVENT_READ, lambda fd, _: self._collect(fd))

    def _watch(self, fd: int, event: int, action: Callable[[int, int], bool]) -> None:
        os.set_blocking(fd, False)
        self._selector.register(fd, event, action)

    def _forget(self, fd: int) -> None:
        self._selector.unregister(fd)
        self._close(fd)

    def _converse(self, fd: int, events: int) -> bool:
        """Both with a terminal; False at its end."""
        if events & selectors.EVENT_WRITE and not self._feed(fd):
            self._selector.modify(fd, selectors.EVENT_READ, lambda fd, _: self._collect(fd))
        return not events & selectors.EVENT_READ or self._collect(fd)

    def _feed(self, fd: int) -> bool:
        """Write what fits; False once there is no more to write."""
        try:
            while self._left:
                self._left = self._left[os.write(fd, self._left[:CHUNK]) :]
        except BlockingIOError:
            return True
        except BrokenPipeError:
            pass  # the command wants no more of it
        except OSError as error:
            if error.errno != errno.EIO:  # the same of a terminal
                raise
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
        except OSError as error:
            if error.errno != errno.EIO:  # a terminal's end of file
                raise
        return False

    def run(self, handle: Handle, deadline: float | None) -> None:
        """Serve the streams until the command ends, and until all is gone.

        Raises:
            OutOfTime: the deadline came first.
        """
        with handle.polling():
            self._attend(handle, deadline)
        handle.wait(None)
        self._drain()

    def _attend(self, handle: Handle, deadline: float | None) -> None:
        if handle.advance():
            return
        watched = handle.fd
        self._selector.register(watched, selectors.EVENT_READ)
        try:
            while not handle.advance():
                if watched != handle.fd:
                    self._selector.unregister(watched)
                    watched = handle.fd
                    self._selector.register(watched, selectors.EVENT_READ)
                left = seconds_left(deadline)
                if left is not None and left <= 0:
                    raise OutOfTime
                for key, events in self._selector.select(left):
                    if key.fd != watched and not key.data(key.fd, events):
                        self._forget(key.fd)
        finally:
            self._selector.unregister(watched)

    def _drain(self) -> None:
        """Take what the command left in its pipes; nobody inside writes to them any more."""
        for fd in self.output:
            if fd not in self._selector.get_map():
                continue
            more = True
            while more:
                before = len(self.output[fd])
                more = self._collect(fd) and len(self.output[fd]) > before
            self._forget(fd)

    def close(self) -> None:
        """Forget the streams; whoever made them closes what is left."""
        for key in list(self._selector.get_map().values()):
            os.set_blocking(key.fd, True)
        self._selector.close()
