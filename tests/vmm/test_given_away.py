"""A machine that one process makes and another has: it goes on, answers, and ends with that one."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from cowork_nsrun.guest.image import Image
from cowork_nsrun.guest.vmm import (
    Elsewhere,
    Ended,
    Ends,
    GuestError,
    Monitor,
    Running,
    Settings,
    StreamRefused,
)

Guest = Callable[[str], Path]

SETTINGS = Settings(memory_mib=64)


def make(path: Path, gift: socket.socket) -> None:
    """In a process of its own, which ends then."""
    with path.open("rb") as kernel, path.open("rb") as initramfs:
        monitor = Monitor(Image(kernel, initramfs), SETTINGS)
    monitor.wait_running()
    fds = [*monitor.ends, os.pidfd_open(monitor.pid)]
    socket.send_fds(gift, [str(monitor.pid).encode()], fds)


@pytest.fixture
def running(guest: Guest) -> Running:
    """What is left when its maker has ended."""
    path = guest("ticker")
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    pid = os.fork()
    if not pid:
        try:
            make(path, theirs)
        finally:
            os._exit(0)
    theirs.close()
    with ours:
        data, fds, _, _ = socket.recv_fds(ours, 64, 4, socket.MSG_CMSG_CLOEXEC)
        assert ours.recv(1) == b""
    os.waitpid(pid, 0)
    return Running(
        Elsewhere(int(data), fds[-1]), Ends(*(socket.socket(fileno=fd) for fd in fds[:3]))
    )


def test_it_goes_on_and_ends_with_its_owner(running: Running) -> None:
    with Monitor(running, SETTINGS) as monitor:
        seen = len(monitor.console)
        while len(monitor.console) == seen:
            time.sleep(0.01)
        monitor.pause()
        monitor.resume()
        assert monitor.running
        with pytest.raises(StreamRefused):
            monitor.connect(1024)
        assert monitor.wait(0) is None
    assert monitor.wait(0) is not None


def test_its_death_is_told(running: Running) -> None:
    with Monitor(running, SETTINGS) as monitor:
        assert isinstance(running.process, Elsewhere)
        assert not running.process.over
        os.kill(running.process.pid, signal.SIGKILL)
        assert monitor.wait() is Ended.UNKNOWN
        assert running.process.over
        with pytest.raises(GuestError, match="nsrun-vmm is gone"):
            monitor.pause()
