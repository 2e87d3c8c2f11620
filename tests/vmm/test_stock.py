"""A distribution's own kernel under nsrun-vmm, with a process 1 of the tests': guests/init.c.

It needs a KVM that runs ordinary kernels, and is run in the bed.
"""

from __future__ import annotations

import re
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, NoReturn

import pytest
from vmmlib import (
    CONNECT,
    ENDED,
    HANG,
    HERE,
    PAUSE,
    PAUSED,
    REFUSED,
    RESUME,
    RESUMED,
    RUNNING,
    Ended,
    Monitor,
    Record,
    monitor,
)

from cowork_nsrun.guest import image
from cowork_nsrun.guest.kernel import find_kernels
from cowork_nsrun.probe import ask_program

Lack = Callable[[str], NoReturn]
Boot = Callable[..., Ended]
CMDLINE = "console=ttyS0 reboot=t panic=-1 random.trust_cpu=on loglevel=4"
BLOCK = 4096
BLOCKS = 64


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory, lack: Lack) -> Iterator[image.Image]:
    """The first fit kernel, and an initial file system with the tests' process 1."""
    probe = ask_program()["kvm-guest"]
    if not probe.ok:
        lack(f"stock kernels: {probe.evidence}")
    fit = [kernel for kernel in find_kernels() if kernel.fit]
    if not fit:
        lack("stock kernels: there is none that a guest can boot")
    if not shutil.which("gcc"):
        lack("stock kernels: no gcc for the guest's first process")
    directory = tmp_path_factory.mktemp("stock")
    init = directory / "init"
    source = str(HERE / "guests" / "init.c")
    subprocess.run(["gcc", "-O2", "-static", "-Wall", source, "-o", str(init)], check=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(directory))
        made = image.prepare(fit[0], init)
    with made:
        yield made


@pytest.fixture
def boot(images: image.Image) -> Boot:
    """Boot to the end that the command line asks for."""

    def file(opened: BinaryIO) -> Path:
        return Path(f"/proc/self/fd/{opened.fileno()}")

    def to_end(*options: str, end: str, fds: tuple[int, ...] = ()) -> Ended:
        cmdline = f"{CMDLINE} end={end}"
        kernel, initrd = file(images.vmlinux), file(images.initramfs)
        with monitor(kernel, *options, cmdline=cmdline, initrd=initrd, fds=fds) as machine:
            return machine.finish()

    return to_end


def said(ended: Ended, what: str) -> str:
    """The rest of the line that begins so."""
    found = [line for line in ended.lines if line.startswith(f"{what}: ")]
    assert len(found) == 1, ended.console
    return found[0].removeprefix(f"{what}: ")


def disk(path: Path) -> Path:
    """Blocks that begin with their number."""
    path.write_bytes(b"".join(number.to_bytes(BLOCK, "little") for number in range(BLOCKS)))
    return path


def test_devices_and_power_off(boot: Boot, tmp_path: Path) -> None:
    base, read_only = disk(tmp_path / "base"), disk(tmp_path / "read-only")
    before = base.read_bytes()
    overlay = tmp_path / "overlay"
    with base.open("rb") as low, read_only.open("rb") as rest, overlay.open("w+b") as high:
        fds = (low.fileno(), rest.fileno(), high.fileno())
        disks = ["--blk", f"{fds[0]}:cow={fds[2]}", "--blk", f"{fds[1]}:ro"]
        ended = boot("--rng", *disks, end="off", fds=fds)
    assert (ended.status, ended.stderr) == (0, ""), ended.console
    assert [record.type for record in ended.records] == [RUNNING, ENDED]
    assert ended.records[1].port == 1
    assert said(ended, "hwrng") == "random"
    assert said(ended, "clocksource") == "kvm-clock"
    assert said(ended, "disk /dev/vda") == f"{BLOCKS} good, {BLOCKS // 2} written, fsync 0"
    assert said(ended, "disk /dev/vdb") == f"{BLOCKS} good, 0 written, fsync 0"
    assert "init: done" in ended.lines
    assert base.read_bytes() == read_only.read_bytes() == before
    written = overlay.read_bytes()
    for number in range(1, BLOCKS, 2):
        start = number * BLOCK
        assert written[start : start + 4] == (number ^ 0xFFFFFFFF).to_bytes(4, "little")
    # each device has a line of its own, and the port's transmitter interrupts
    lines = [line.split() for line in ended.lines if line.startswith("interrupt ")]
    counts = {words[-1]: int(words[2]) for words in lines}
    assert set(counts) == {"virtio0", "virtio1", "virtio2", "ttyS0"}
    assert all(counts.values())


def test_two_processors_and_a_panic(boot: Boot) -> None:
    ended = boot("--cpus", "2", "--rng", "--memory", "200", end="panic")
    assert ended.status == 3, ended.console
    assert said(ended, "processors") == "2"
    assert "Kernel panic" in ended.console
    assert ended.stderr.startswith("nsrun-vmm: the guest crashed or reset itself")
    assert ended.records[-1] == Record(ENDED, 2)


def test_reboot_is_the_end(boot: Boot) -> None:
    ended = boot(end="reboot")
    assert ended.status == 3, ended.console
    assert "init: done" in ended.lines


def wait_for(machine: Monitor, text: str) -> None:
    """Until the guest has said that."""
    while text not in machine.console.read_text(errors="replace"):
        assert machine.process.poll() is None
        time.sleep(0.05)


def test_streams_are_refused_by_a_guest_that_does_not_listen(images: image.Image) -> None:
    """Its driver is up then, and answers."""
    cmdline = f"{CMDLINE} end=never"
    kernel = Path(f"/proc/self/fd/{images.vmlinux.fileno()}")
    initrd = Path(f"/proc/self/fd/{images.initramfs.fileno()}")
    ours, theirs = socket.socketpair()
    with (
        ours,
        theirs,
        monitor(kernel, "--vsock", "3", cmdline=cmdline, initrd=initrd) as machine,
    ):
        machine.expect(RUNNING)
        wait_for(machine, "init: done")
        machine.send(CONNECT, 1024, 5, [theirs.fileno()])
        assert machine.expect(REFUSED) == Record(REFUSED, 1024, 5)
        machine.send(PAUSE)
        machine.expect(PAUSED)
        machine.send(RESUME)
        machine.expect(RESUMED)
        machine.control.close()
        assert machine.process.wait(HANG) == 0


def memory_of(machine: Monitor) -> int:
    """KiB of the monitor, the guest's pages among them."""
    status = Path(f"/proc/{machine.process.pid}/status").read_text()
    return int(re.findall(r"^RssAnon:\s+(\d+) kB$", status, re.MULTILINE)[0])


@pytest.mark.parametrize("balloon", [True, False])
def test_free_pages_come_back(images: image.Image, balloon: bool) -> None:
    """The guest uses 100 MiB and frees them; without the device the host does not see that."""
    cmdline = f"{CMDLINE} end=never use=memory"
    kernel = Path(f"/proc/self/fd/{images.vmlinux.fileno()}")
    initrd = Path(f"/proc/self/fd/{images.initramfs.fileno()}")
    options = ["--balloon"] if balloon else []
    with monitor(kernel, *options, cmdline=cmdline, initrd=initrd) as machine:
        machine.expect(RUNNING)
        wait_for(machine, "memory: used")
        most = memory_of(machine)
        assert most > 100 << 10
        wait_for(machine, "init: done")
        if balloon:
            while memory_of(machine) > most - (60 << 10):
                assert machine.process.poll() is None
                time.sleep(0.1)
        else:
            # the guest's kernel reports every two seconds
            time.sleep(5)
            assert memory_of(machine) > most - (10 << 10)
