"""One monitor process, which runs one virtual machine: its control socket and its console.

A thread reads what the monitor says.  The monitor ends when this process does: it sees the
control socket's end.
"""

from __future__ import annotations

import array
import itertools
import logging
import os
import select
import selectors
import signal
import socket
import struct
import subprocess
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from enum import IntEnum, IntFlag
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Protocol, runtime_checkable

from cowork_nsrun.closing import Closing
from cowork_nsrun.errors import NsrunError
from cowork_nsrun.guest.threads import start_thread
from cowork_nsrun.program import find_program

if TYPE_CHECKING:
    from cowork_nsrun.guest.image import Image
    from cowork_nsrun.guest.network import Network

log = logging.getLogger(__name__)

#: what is kept of what a guest prints on its console, in bytes
CONSOLE_TAIL = 64 << 10
#: what every guest's kernel is told: console, an end instead of a wait, no wait for entropy
COMMAND_LINE = "console=ttyS0 reboot=t panic=-1 random.trust_cpu=on rdinit=/init"

_RECORD = struct.Struct("=IIQ")
#: PAUSE and RESUME, and their answers, have none; one of them at a time
_NO_COOKIE = 0
#: of EXPORTS: there come no more; the machine is to be saved with what it knows of them
_LAST = 1
_KEEP = 2
_LINES_SHOWN = 12
_MESSAGES_LIMIT = 16 << 10


class Record(IntEnum):
    """Kinds of records on the control socket."""

    CONNECT = 1
    LISTEN = 2
    UNLISTEN = 3
    PAUSE = 4
    RESUME = 5
    EXPORTS = 6
    SAVE = 7
    CHECK = 8
    RUNNING = 65
    CONNECTED = 66
    REFUSED = 67
    ACCEPTED = 68
    PAUSED = 69
    RESUMED = 70
    ENDED = 71
    EXPORTED = 72
    NOT_EXPORTED = 73
    CHECKED = 74
    NOT_CHECKED = 75
    SAVED = 76
    NOT_SAVED = 77


#: answers with an errno, in words
_FAILURES: dict[int, str] = {
    Record.NOT_SAVED: "the machine can't be saved",
    Record.NOT_CHECKED: "the files of the machine are not as they were",
    Record.NOT_EXPORTED: "the monitor can't share these files",
}


class Wall(IntFlag):
    """What holds a monitor, as it says itself; csrc/vmm/walls.h."""

    JAIL = 1
    FILES = 2
    TCP = 4
    SCOPES = 8
    NET = 16
    IPC = 32
    UTS = 64


class Ended(IntEnum):
    """Why a machine is not there any more."""

    UNKNOWN = 0
    POWER_OFF = 1
    CRASHED = 2
    BROKEN = 3


def _last_words(console: bytes) -> list[str]:
    """The last lines, or those before a panic; where it was in the kernel helps nobody."""
    lines = [line.rstrip() for line in console.decode(errors="replace").splitlines()]
    panics = (number for number, line in enumerate(lines, 1) if "Kernel panic" in line)
    return [line for line in lines[: next(panics, None)] if line][-_LINES_SHOWN:]


class GuestError(NsrunError):
    """A machine could not be started, or is not there any more.

    Attributes:
        console: the end of what it printed.
    """

    def __init__(self, text: str, console: bytes = b"", *, errno: int = 0) -> None:
        shown = "".join(f"\n  guest: {line}" for line in _last_words(console))
        super().__init__(text + shown, errno=errno)
        self.console = console


class StreamRefused(GuestError):
    """Nobody in the guest listens on that port, or not yet."""


class NoAnswer(GuestError):
    """The guest did not answer in time."""


@dataclass(frozen=True, slots=True)
class Settings:
    """What a machine is.

    Attributes:
        memory_mib: its memory; pages that it never touches cost nothing.
        cpus: its processors.
        cmdline: words for the kernel, behind :data:`COMMAND_LINE`.
        cid: its address on its own vsock; nothing outside the monitor sees it.
        shares: open view files (see :mod:`cowork_nsrun.guest.view`) by their tags.
        network: what its network card is joined to; None: it has no card.
        jail: whether the monitor confines itself.
    """

    memory_mib: int = 512
    cpus: int = 1
    cmdline: str = ""
    cid: int = 3
    shares: Mapping[str, BinaryIO] = field(default_factory=dict)
    network: Network | None = None
    jail: bool = True


def find_beside(name: str, remedy: str = "install the cowork-nsrun package again") -> Path:
    """A program that is installed beside ``nsrun``.

    Arguments:
        name: the program.
        remedy: what helps where it is not there.

    Raises:
        GuestError: it is not there.
    """
    path = Path(find_program()).with_name(name)
    if not os.access(path, os.X_OK):
        raise GuestError(f"{path}: not there; {remedy}")
    return path


class Process(Protocol):
    """A monitor's process; ``subprocess.Popen`` is one."""

    @property
    def pid(self) -> int:
        """Its number."""

    def poll(self) -> int | None:
        """How it ended, as Popen has it; None: not yet, or that is not known."""

    def wait(self) -> int:
        """Wait for its end."""

    def kill(self) -> None:
        """Send SIGKILL; too late, nothing."""


class Elsewhere:
    """A monitor that is another process's child, by its pidfd."""

    def __init__(self, pid: int, pidfd: int) -> None:
        self.pid = pid
        self._pidfd = pidfd
        self._closing = threading.Lock()

    def poll(self) -> int | None:
        return None

    def wait(self) -> int:
        """Wait for its end; how it ended only its parent could know."""
        self._ends_within(None)
        with self._closing:
            if self._pidfd >= 0:
                os.close(self._pidfd)
            self._pidfd = -1
        return 0

    @property
    def over(self) -> bool:
        """It has ended."""
        return self._ends_within(0)

    def _ends_within(self, milliseconds: int | None) -> bool:
        if self._pidfd < 0:
            return True
        poller = select.poll()
        poller.register(self._pidfd, select.POLLIN)
        return bool(poller.poll(milliseconds))

    def kill(self) -> None:
        with self._closing, suppress(ProcessLookupError):
            if self._pidfd >= 0:
                signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)


@dataclass(frozen=True, slots=True)
class Ends:
    """The monitor's ends of its sockets: control, console, and for its messages."""

    control: socket.socket
    console: socket.socket
    messages: socket.socket


@runtime_checkable
class Source(Protocol):
    """What a machine is made from."""

    def start(self, settings: Settings, ends: Ends) -> Process:
        """A monitor of one."""


@dataclass(frozen=True, slots=True)
class Boot:
    """A machine that boots an image."""

    image: Image

    def start(self, settings: Settings, ends: Ends) -> Process:
        """A monitor that boots it."""
        image = self.image
        words = ["--kernel-fd", str(image.vmlinux.fileno())]
        words += ["--initrd-fd", str(image.initramfs.fileno())]
        words += ["--cmdline", f"{COMMAND_LINE} {settings.cmdline}".strip()]
        words += ["--memory", str(settings.memory_mib), "--cpus", str(settings.cpus)]
        words += ["--control-fd", str(ends.control.fileno())]
        words += ["--console-fd", str(ends.console.fileno())]
        given = (image.vmlinux, image.initramfs, ends.control, ends.console)
        return run_monitor(words, settings, [end.fileno() for end in given], ends.messages)


def run_monitor(
    words: Sequence[str], settings: Settings, fds: Sequence[int], messages: socket.socket
) -> subprocess.Popen[bytes]:
    """``nsrun-vmm`` with these words and the settings' devices, which are always the same.

    Raises:
        GuestError: it can't be executed.
    """
    devices = ["--rng", "--balloon", "--vsock", str(settings.cid)]
    for tag, view in settings.shares.items():
        devices += ["--fs", f"{tag}={view.fileno()}"]
    fds = [*fds, *(view.fileno() for view in settings.shares.values())]
    if settings.network is not None:
        card = settings.network.card
        devices += ["--net", f"{card.fileno()}:mtu={settings.network.mtu}"]
        fds.append(card.fileno())
    if not settings.jail:
        devices.append("--no-jail")
    program = find_beside("nsrun-vmm")
    try:
        process = subprocess.Popen(
            [str(program), *words, *devices],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=messages.fileno(),
            pass_fds=fds,
            # a signal of the terminal's is for the command in the guest
            start_new_session=True,
        )
    except OSError as error:
        raise GuestError(f"{program}: {error.strerror}", errno=error.errno or 0) from error
    if settings.network is not None:
        settings.network.hand_over()
    return process


@dataclass(frozen=True, slots=True)
class Running:
    """A machine that another process made and gave away; the ends are the owner's."""

    process: Process
    ends: Ends


class Monitor(Closing):
    """A running machine.

    Arguments:
        source: what it boots, or otherwise begins as; or what was given away.
        settings: what it has.

    Attributes:
        walls: which hold it; none before it runs.

    Raises:
        GuestError: it can't be started.
    """

    def __init__(self, source: Image | Source | Running, settings: Settings | None = None) -> None:
        self.settings = settings or Settings()
        self.walls = Wall(0)
        self._lock = threading.Lock()
        self._sending = threading.Lock()
        self._cookies = itertools.count(1)
        self._waiting: dict[int, Future[int]] = {}
        self._listeners: dict[int, Callable[[socket.socket], None]] = {}
        self._console = bytearray()
        self._messages = bytearray()
        self._reason = Ended.UNKNOWN
        self._gone = False
        self._over = threading.Event()
        self._running = threading.Event()
        if isinstance(source, Running):
            self._process, ends = source.process, source.ends
            self._control, self._console_end = ends.control, ends.console
            self._messages_end = ends.messages
            self._running.set()
        else:
            self._start(source if isinstance(source, Source) else Boot(source))
        self._thread = start_thread(self._read, name="nsrun-vmm")

    def _start(self, source: Source) -> None:
        with ExitStack() as theirs:
            control, self._control = self._pair(theirs, socket.SOCK_SEQPACKET)
            console, self._console_end = self._pair(theirs, socket.SOCK_STREAM)
            messages, self._messages_end = self._pair(theirs, socket.SOCK_STREAM)
            console.setblocking(False)
            try:
                self._process = source.start(self.settings, Ends(control, console, messages))
            except BaseException:
                self._close_ends()
                raise

    @staticmethod
    def _pair(theirs: ExitStack, kind: socket.SocketKind) -> tuple[socket.socket, socket.socket]:
        """The monitor's end, which we give away, and ours."""
        other, ours = socket.socketpair(socket.AF_UNIX, kind)
        return theirs.enter_context(other), ours

    # --- what the monitor says ------------------------------------------------------------

    def _read(self) -> None:
        """The thread: until the monitor has closed everything."""
        with selectors.DefaultSelector() as selector:
            for end, take in (
                (self._control, self._take_record),
                (self._console_end, lambda: self._take_text(self._console_end, self._console,
                                                             CONSOLE_TAIL)),
                (self._messages_end, lambda: self._take_text(self._messages_end, self._messages,
                                                             _MESSAGES_LIMIT)),
            ):  # fmt: skip
                selector.register(end, selectors.EVENT_READ, take)
            while selector.get_map():
                for key, _ in selector.select():
                    if not key.data():
                        selector.unregister(key.fileobj)
        self._process.wait()
        self._end()

    def _end(self) -> None:
        with self._lock:
            self._gone = True
            waiting, self._waiting = self._waiting, {}
        self._over.set()
        self._running.set()
        for future in waiting.values():
            future.set_exception(self.failure())

    @staticmethod
    def _take_text(end: socket.socket, kept: bytearray, limit: int) -> bool:
        try:
            data = end.recv(1 << 16)
        except ConnectionError:
            data = b""
        kept += data
        del kept[:-limit]
        return bool(data)

    def _take_record(self) -> bool:
        try:
            data, ancillary, _, _ = self._control.recvmsg(
                _RECORD.size, socket.CMSG_SPACE(4), socket.MSG_CMSG_CLOEXEC
            )
        except ConnectionError:
            return False
        fds = array.array("i")
        for _, _, content in ancillary:
            fds.frombytes(content[: len(content) - len(content) % fds.itemsize])
        stream = socket.socket(fileno=fds[0]) if fds else None
        if len(data) != _RECORD.size:
            return False
        kind, port, value = _RECORD.unpack(data)
        self._carry_out(kind, port, value, stream)
        return True

    def _carry_out(self, kind: int, port: int, value: int, stream: socket.socket | None) -> None:
        if kind == Record.RUNNING:
            self.walls = Wall(value)
            log.debug("the monitor's walls: %s", self.walls)
            self._running.set()
        elif kind == Record.ENDED:
            self._reason = Ended(port) if port in list(Ended) else Ended.UNKNOWN
        elif kind == Record.ACCEPTED and stream is not None:
            listener = self._listeners.get(port)
            if listener is None:
                stream.close()
            else:
                listener(stream)
        else:
            self._answer(kind, port, value)

    def _answer(self, kind: int, port: int, value: int) -> None:
        with self._lock:
            future = self._waiting.pop(value, None)
        if future is None:
            log.debug("the monitor says %d, %d, %d to nobody", kind, port, value)
        elif kind == Record.REFUSED:
            future.set_exception(StreamRefused(f"the guest refuses a stream to its port {port}"))
        elif kind in _FAILURES:
            text = f"{_FAILURES[kind]}: {os.strerror(port)}"
            future.set_exception(GuestError(text, errno=port))
        else:
            future.set_result(port)

    # --- what it is asked -----------------------------------------------------------------

    def _send(self, kind: Record, port: int, value: int, fds: Sequence[int] = ()) -> None:
        record = _RECORD.pack(kind, port, value)
        try:
            with self._sending:
                socket.send_fds(self._control, [record], list(fds))
        except OSError:
            # it is gone; why is told by what it left behind
            self._over.wait()
            raise self.failure() from None

    def _ask(
        self,
        kind: Record,
        port: int,
        fds: Sequence[int],
        timeout: float | None,
        cookie: int | None = None,
    ) -> int:
        """Send a record with a cookie, and wait for its answer."""
        if cookie is None:
            cookie = next(self._cookies)
        future: Future[int] = Future()
        with self._lock:
            if self._gone:
                raise self.failure()
            self._waiting[cookie] = future
        try:
            self._send(kind, port, cookie, fds)
            return future.result(timeout)
        except FutureTimeout:
            raise NoAnswer(
                f"the guest did not answer in {timeout:g} seconds", self.console
            ) from None
        finally:
            with self._lock:
                self._waiting.pop(cookie, None)

    def connect(self, port: int, timeout: float | None = None) -> socket.socket:
        """A new stream to a port of the guest's.

        Arguments:
            port: on which somebody in the guest listens.
            timeout: seconds to wait for the answer; None: as long as the machine lives.

        Raises:
            StreamRefused: nobody listens there, or not yet.
            NoAnswer: the time is up.
            GuestError: the machine is gone.
        """
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            with theirs:
                self._ask(Record.CONNECT, port, [theirs.fileno()], timeout)
        except BaseException:
            ours.close()
            raise
        return ours

    def export(
        self,
        view: BinaryIO,
        timeout: float | None = None,
        *,
        last: bool = False,
        keep: bool = False,
    ) -> int:
        """Share more files; returns the number of the first of them.

        Arguments:
            view: an open file that holds a view, see :mod:`cowork_nsrun.guest.view`.
            timeout: seconds to wait for the answer.
            last: more are refused, and where the kernel has Landlock the monitor can open
                no file but what it shares now.
            keep: the machine is to be saved later; what it looks at is remembered for that.

        Raises:
            GuestError: the monitor refuses the view, or is gone.
        """
        how = (_LAST if last else 0) | (_KEEP if keep else 0)
        return self._ask(Record.EXPORTS, how, [view.fileno()], timeout)

    def listen(self, port: int, listener: Callable[[socket.socket], None]) -> None:
        """Have streams that the guest opens to this port of the host's.

        ``listener`` gets each, on a thread of the monitor's, and must not take long.

        Raises:
            GuestError: the machine is gone.
        """
        self._listeners[port] = listener
        self._send(Record.LISTEN, port, 0)

    def pause(self) -> None:
        """Stop its processors; when this returns they stand still.

        Raises:
            GuestError: the machine is gone.
        """
        self._ask(Record.PAUSE, 0, [], None, cookie=_NO_COOKIE)

    def resume(self) -> None:
        """Let its processors go on.

        Raises:
            GuestError: the machine is gone.
        """
        self._ask(Record.RESUME, 0, [], None, cookie=_NO_COOKIE)

    def save(self, file: BinaryIO) -> None:
        """Write all of a paused machine to an empty file, for a template.

        Raises:
            GuestError: it can't be saved: EBUSY while streams are open, or files shared in a
                state that can't be kept.
        """
        self._ask_why(Record.SAVE, [file.fileno()])

    def check(self) -> None:
        """Look at the files of a paused machine that was restored with what it knows of them.

        Raises:
            GuestError: one is another now, or has changed since it was saved: ESTALE.
        """
        self._ask_why(Record.CHECK, [])

    def _ask_why(self, kind: Record, fds: Sequence[int]) -> None:
        """Ask for what is refused with a line among the monitor's messages."""
        try:
            self._ask(kind, 0, fds, None)
        except GuestError as error:
            why = bytes(self._messages).decode(errors="replace").strip().rpartition("\n")[2]
            raise GuestError(f"{error.text}: {why}", errno=error.errno) from None

    # --- its life -------------------------------------------------------------------------

    @property
    def pid(self) -> int:
        """The monitor's."""
        return self._process.pid

    @property
    def console(self) -> bytes:
        """The end of what the guest printed on its console."""
        return bytes(self._console)

    @property
    def running(self) -> bool:
        """Whether the machine was started, and has not ended."""
        return self._running.is_set() and not self._over.is_set()

    def wait_running(self, timeout: float | None = None) -> None:
        """Wait until the guest's first instruction.

        Raises:
            GuestError: it never came to it, or not in time.
        """
        if not self._running.wait(timeout):
            raise GuestError(f"the machine was not started in {timeout:g} seconds")
        if self._over.is_set():
            raise self.failure()

    def wait(self, timeout: float | None = None) -> Ended | None:
        """Wait for the machine's end: why it ended; None if the time was up first."""
        return self._reason if self._over.wait(timeout) else None

    def failure(self) -> GuestError:
        """Why the machine is not there any more, as an error."""
        words = {
            Ended.POWER_OFF: "the guest powered off",
            Ended.CRASHED: "the guest crashed",
            Ended.BROKEN: "the virtual machine broke",
            Ended.UNKNOWN: self._how_it_ended(),
        }
        said = bytes(self._messages).decode(errors="replace").strip()
        return GuestError("; ".join(filter(None, (words[self._reason], said))), self.console)

    def _how_it_ended(self) -> str:
        status = self._process.poll()
        if status is None:
            return "nsrun-vmm is gone"
        if status < 0:
            with suppress(ValueError):
                return f"nsrun-vmm was killed by {signal.Signals(-status).name}"
        return f"nsrun-vmm ended with status {status}"

    @property
    def ends(self) -> tuple[int, int, int]:
        """Descriptors of control, console and messages, for who is to be its owner.

        When this process ends the machine goes on, if they are another's by then.
        """
        ends = self._control, self._console_end, self._messages_end
        control, console, messages = (end.fileno() for end in ends)
        return control, console, messages

    def kill(self) -> None:
        """End the machine now, whatever it does."""
        self._process.kill()

    def close(self) -> None:
        """End the machine, and wait until it has given everything back."""
        with suppress(OSError):
            # the monitor sees the end, and ends
            self._control.shutdown(socket.SHUT_WR)
        if not self._over.wait(_PATIENCE):
            self.kill()
            self._over.wait()
        self._thread.join()
        self._close_ends()

    def _close_ends(self) -> None:
        for end in (self._control, self._console_end, self._messages_end):
            end.close()


#: seconds that a monitor gets to end by itself
_PATIENCE = 2.0
