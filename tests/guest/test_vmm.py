"""A stock kernel in a machine of ours, as a process sees it that started the machine.

On KVM that runs stock kernels alone: in the bed.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import pytest

from cowork_nsrun.guest.image import Image
from cowork_nsrun.guest.kernel import Kernel
from cowork_nsrun.guest.vmm import Ended, GuestError, Monitor, Settings, StreamRefused


def ends(image: Image, do: str) -> Monitor:
    """Boot, and wait for the machine's end."""
    with Monitor(image, Settings(256, cmdline=f"quiet do={do}")) as monitor:
        monitor.wait()
    return monitor


def until(monitor: Monitor, text: bytes, times: int = 1) -> None:
    """Wait until the guest has printed something so many times."""
    while monitor.console.count(text) < times:
        assert monitor.wait(0.05) is None, monitor.failure()


def test_power_off(booted: Image) -> None:
    monitor = ends(booted, "nothing")
    assert monitor.wait() is Ended.POWER_OFF
    assert b"first: started\r\nfirst: ended\r\n" in monitor.console
    assert not monitor.running


def test_every_module_loads(booted: Image, kernel: Kernel, lack: Callable[[str], NoReturn]) -> None:
    if not kernel.modules:
        lack(f"{kernel.path} has everything built in: no modules to load")
    console = ends(booted, "modules").console
    assert console.count(b"first: ") == 2
    assert console.count(b"loaded ") == len(kernel.modules), console.decode()


def test_a_panic_is_told_with_the_console(booted: Image) -> None:
    monitor = ends(booted, "crash")
    assert monitor.wait() is Ended.CRASHED
    error = monitor.failure()
    assert "the guest crashed" in error.text
    assert "Kernel panic" in error.text


def test_a_stream_before_anybody_listens(booted: Image) -> None:
    with Monitor(booted, Settings(256, cmdline="quiet do=stay")) as monitor:
        with pytest.raises(StreamRefused, match="port 1024"):
            monitor.connect(1024)
        until(monitor, b"started")
        with pytest.raises(StreamRefused):
            monitor.connect(1024)
        assert monitor.running
    with pytest.raises(GuestError):
        monitor.connect(1024)


def test_a_monitor_that_is_killed(booted: Image) -> None:
    with Monitor(booted, Settings(256, cmdline="quiet do=stay")) as monitor:
        monitor.wait_running()
        os.kill(monitor.pid, signal.SIGKILL)
        assert monitor.wait() is Ended.UNKNOWN
        assert "killed by SIGKILL" in monitor.failure().text
        with pytest.raises(GuestError, match="killed by SIGKILL"):
            monitor.connect(1024)


def test_a_flood_on_the_console(booted: Image) -> None:
    with Monitor(booted, Settings(256, cmdline="quiet do=flood")) as monitor:
        until(monitor, b"first: flood", 4000)
        while len(monitor.console) < 64 << 10:
            assert monitor.wait(0.01) is None
        assert len(monitor.console) == 64 << 10
        with pytest.raises(StreamRefused):
            monitor.connect(1024)


def test_memory_that_can_not_be_had(booted: Image) -> None:
    with (
        Monitor(booted, Settings(memory_mib=1)) as monitor,
        pytest.raises(GuestError, match="--memory 1: "),
    ):
        monitor.wait_running()


def test_no_kernel(booted: Image) -> None:
    """The archive in the kernel's place."""
    with (
        Image(booted.initramfs, booted.initramfs) as image,
        Monitor(image) as monitor,
        pytest.raises(GuestError, match="nsrun-vmm: "),
    ):
        monitor.wait_running()


def test_the_machine_dies_with_its_owner(kernel: Kernel, first: Path) -> None:
    """Of kill -9, so that nobody could have cleaned up."""
    script = (
        "import sys, time\n"
        "from pathlib import Path\n"
        "from cowork_nsrun.guest import image, kernel, vmm\n"
        "booted = image.prepare(kernel.choose(), Path(sys.argv[1]))\n"
        "monitor = vmm.Monitor(booted, vmm.Settings(256, cmdline='quiet do=stay'))\n"
        "monitor.wait_running()\n"
        "print(monitor.pid, flush=True)\n"
        "time.sleep(1000)\n"
    )
    command = [sys.executable, "-I", "-c", script, str(first)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as owner:
        assert owner.stdout is not None
        monitor = os.pidfd_open(int(owner.stdout.readline()))
        owner.kill()
    with open(monitor, "rb"):
        # readable once it has ended: waited for without a limit
        select.select([monitor], [], [])
