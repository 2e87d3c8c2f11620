"""Machines that were saved when they were ready: restored, or forked from a zygote.

A template is one file: a guest with its agent listening, before its first command.  Clones
share what they never write to.  They also share what the guest's kernel had drawn and
counted until then, so each is given the time and fresh entropy before it runs anything: the
settings of a command (:class:`cowork_nsrun.guest.agent.Settings`) carry both.
"""

from __future__ import annotations

import array
import errno
import itertools
import os
import select
import signal
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

from cowork_nsrun.closing import Closing
from cowork_nsrun.guest import cache
from cowork_nsrun.guest.kernel import Kernel
from cowork_nsrun.guest.vmm import (
    COMMAND_LINE,
    Ends,
    GuestError,
    Monitor,
    Process,
    Settings,
    find_beside,
    run_monitor,
)

#: of files in the cache
KIND = "template"
#: part of every key: another way to save makes other files
FORMAT = "1"
#: seconds for a stream's end to reach the guest and come back
PATIENCE = 10.0

_RECORD = struct.Struct("=IIQ")
_FORK = 32
_FORKED = 96
_NAP = 0.005
_CPUINFO = ("vendor_id", "cpu family", "model", "stepping", "microcode", "flags")


def _processor() -> str:
    """What the host's first processor is."""
    lines = Path("/proc/cpuinfo").read_text(errors="replace").partition("\n\n")[0].splitlines()
    pairs = (line.partition(":") for line in lines)
    return repr([value.strip() for name, _, value in pairs if name.strip() in _CPUINFO])


def key(kernel: Kernel, agent: Path, settings: Settings) -> str:
    """What a template depends on, as a name; any change of it makes the template useless.

    Raises:
        GuestError: a file of these can't be looked at.
    """
    files = [kernel.path, agent, *kernel.modules, find_beside("nsrun-vmm")]
    if settings.network is not None:
        files += kernel.network or ()
    host = os.uname()
    shape = (settings.memory_mib, settings.cpus, COMMAND_LINE, settings.cmdline)
    try:
        identities = [cache.identity(path) for path in files]
    except OSError as error:
        text = f"{error.filename}: {error.strerror}"
        raise GuestError(text, errno=error.errno or 0) from None
    return cache.key(
        [
            FORMAT,
            *identities,
            repr((*shape, tuple(settings.shares), settings.network is not None)),
            repr((host.release, host.version, host.machine)),
            _processor(),
        ]
    )


@dataclass(frozen=True, slots=True)
class Template(Closing):
    """A saved machine: an open file, which nobody changes any more.

    Attributes:
        file: what :meth:`Monitor.save` wrote.
        settings: of the machine that was saved.  A clone may have another ``cid``, and its
            own views of the same ``shares``, but nothing else.
    """

    file: BinaryIO
    settings: Settings

    @classmethod
    def save(cls, monitor: Monitor, file: BinaryIO) -> Template:
        """Save a running machine to an empty file.  It runs on afterwards.

        Streams must be closed, and no files shared; for streams that were closed just now
        it is tried again for a while.

        Raises:
            GuestError: it can't be saved.
        """
        end = time.monotonic() + PATIENCE
        while True:
            monitor.pause()
            try:
                monitor.save(file)
            except GuestError as error:
                if error.errno != errno.EBUSY or time.monotonic() > end:
                    raise
            else:
                return cls(file, monitor.settings)
            finally:
                monitor.resume()
            time.sleep(_NAP)

    @classmethod
    def find(
        cls, kernel: Kernel, agent: Path, settings: Settings, wait_ready: Callable[[Monitor], None]
    ) -> Template:
        """The template of such a machine out of the cache; it is booted and saved if need be.

        Arguments:
            kernel: a fit one.
            agent: the program that becomes the guest's first process.
            settings: of the machine.
            wait_ready: returns when it is to be saved, or raises.

        Raises:
            NsrunError: it can't be booted, or not saved.
        """

        def make(file: BinaryIO) -> None:
            # what is there already needs no image
            from cowork_nsrun.guest.image import prepare  # noqa: PLC0415

            with prepare(kernel, agent) as image, Monitor(image, settings) as monitor:
                monitor.wait_running()
                wait_ready(monitor)
                cls.save(monitor, file)

        return cls(cache.opened(KIND, key(kernel, agent, settings), make), settings)

    def start(self, settings: Settings, ends: Ends) -> Process:
        """A monitor that restores it."""
        words = ["--restore", str(self.file.fileno())]
        words += ["--control-fd", str(ends.control.fileno())]
        words += ["--console-fd", str(ends.console.fileno())]
        given = (self.file, ends.control, ends.console)
        return run_monitor(words, settings, [end.fileno() for end in given], ends.messages)

    def restore(self, settings: Settings | None = None) -> Monitor:
        """A clone, by a process of its own.

        Raises:
            GuestError: it can't be started.
        """
        return Monitor(self, settings or self.settings)

    def close(self) -> None:
        """Close the file."""
        self.file.close()


class _Forked:
    """A monitor that is the zygote's child, by its pidfd."""

    def __init__(self, pid: int, pidfd: int) -> None:
        self.pid = pid
        self._pidfd = pidfd
        self._closing = threading.Lock()

    def poll(self) -> int | None:
        return None

    def wait(self) -> int:
        """Wait for its end; how it ended only the zygote could know."""
        if self._pidfd >= 0:
            select.select([self._pidfd], [], [])
        with self._closing:
            if self._pidfd >= 0:
                os.close(self._pidfd)
            self._pidfd = -1
        return 0

    def kill(self) -> None:
        with self._closing, suppress(ProcessLookupError):
            if self._pidfd >= 0:
                signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)


class Zygote(Closing):
    """A process that has a template mapped, and forks a monitor for each clone.

    It ends with this object, and with this process; the clones do not end with it, but with
    their own :class:`Monitor`.  Any thread may fork.

    Arguments:
        template: may be closed when this returns.
        settings: of all clones but for their ``cid``; by default the template's.

    Raises:
        GuestError: it can't be started, or its clones would have to share a network card.
    """

    def __init__(self, template: Template, settings: Settings | None = None) -> None:
        self.settings = settings or template.settings
        if self.settings.network is not None:
            raise GuestError("a zygote's clones have no network; restore the template instead")
        self._cookies = itertools.count(1)
        self._lock = threading.Lock()
        control, self._control = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._messages, messages = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        with control, messages, ExitStack() as ours:
            ours.callback(self._control.close)
            ours.callback(self._messages.close)
            words = ["--restore", str(template.file.fileno()), "--zygote", str(control.fileno())]
            fds = [template.file.fileno(), control.fileno()]
            self._process: subprocess.Popen[bytes] = run_monitor(
                words, self.settings, fds, messages
            )
            ours.pop_all()

    def start(self, settings: Settings, ends: Ends) -> Process:
        """A monitor that is forked."""
        fds = [end.fileno() for end in (ends.control, ends.console, ends.messages)]
        with self._lock:
            cookie = next(self._cookies)
            record = _RECORD.pack(_FORK, settings.cid, cookie)
            try:
                socket.send_fds(self._control, [record], fds)
                data, ancillary, _, _ = self._control.recvmsg(
                    _RECORD.size, socket.CMSG_SPACE(4), socket.MSG_CMSG_CLOEXEC
                )
            except OSError:
                data, ancillary = b"", []
        given = array.array("i")
        for _, _, content in ancillary:
            given.frombytes(content[: len(content) - len(content) % given.itemsize])
        if len(data) != _RECORD.size:
            raise GuestError(self._failure())
        kind, pid, answered = _RECORD.unpack(data)
        if kind == _FORKED and answered == cookie and given:
            return _Forked(pid, given[0])
        raise GuestError(f"nsrun-vmm can't fork: {os.strerror(pid)}", errno=pid)

    def fork(self, cid: int | None = None) -> Monitor:
        """A clone.

        Arguments:
            cid: its address on its own vsock; by default the settings'.

        Raises:
            GuestError: it can't be forked; the zygote is gone, or could not be started.
        """
        settings = self.settings if cid is None else replace(self.settings, cid=cid)
        return Monitor(self, settings)

    def _failure(self) -> str:
        """Why it is not there any more."""
        if self._control.fileno() < 0:
            return "the zygote is closed"
        self._process.kill()
        status = self._process.wait()
        self._messages.setblocking(False)
        said = b""
        with suppress(BlockingIOError):
            said = self._messages.recv(1 << 16)
        return said.decode(errors="replace").strip() or f"the zygote ended with status {status}"

    def close(self) -> None:
        """End the zygote, and wait for its end."""
        self._control.close()
        try:
            self._process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._messages.close()
