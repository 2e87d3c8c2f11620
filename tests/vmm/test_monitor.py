"""nsrun-vmm with small guests: its options, its ends, its owner."""

from __future__ import annotations

import errno
import os
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

import pytest
from vmmlib import (
    CONNECT,
    ENDED,
    EXPORTED,
    EXPORTS,
    HANG,
    LISTEN,
    NOT_EXPORTED,
    PAUSE,
    PAUSED,
    RECORD,
    REFUSED,
    RESUME,
    RESUMED,
    RUNNING,
    VMM,
    Monitor,
    Record,
    monitor,
    run,
)

from cowork_nsrun.guest import vmm
from cowork_nsrun.guest.image import Image
from cowork_nsrun.guest.machine import wait_for_agent
from cowork_nsrun.guest.view import Export, view_bytes
from cowork_nsrun.guest.vmm import GuestError

Guest = Callable[[str], Path]
Lack = Callable[[str], NoReturn]
POWER_OFF, CRASHED, BROKEN = 1, 2, 3
MIB = 1 << 20


def test_power_off(guest: Guest, tmp_path: Path) -> None:
    initrd = tmp_path / "initrd"
    initrd.write_bytes(b"\x5a" * 5000)
    ended = run(guest("hello"), "--memory", "64", cmdline="some words", initrd=initrd)
    assert ended.lines == [
        "cmdline some words",
        "initrd 5000 bytes, first 5a",
        "e820 0 9fc00 1",
        "e820 e0000 10000 2",
        f"e820 100000 {64 * MIB - MIB:x} 1",
    ]
    assert (ended.status, ended.stderr) == (0, "")
    assert [record.type for record in ended.records] == [RUNNING, ENDED]
    assert ended.records[1].port == POWER_OFF


def test_memory_above_the_hole(guest: Guest) -> None:
    ended = run(guest("hello"), "--memory", "4097")
    assert ended.lines[-2:] == [
        f"e820 100000 {0xC0000000 - MIB:x} 1",
        f"e820 100000000 {1025 * MIB:x} 1",
    ]


@pytest.mark.parametrize("word", ["crash", "reset"])
def test_crash(guest: Guest, word: str) -> None:
    ended = run(guest("hello"), cmdline=word)
    assert ended.status == 3
    assert ended.stderr.count("\n") == 1
    assert ended.stderr.startswith("nsrun-vmm: the guest ")
    assert ended.records[-1] == Record(ENDED, CRASHED)
    assert ended.lines[0] == f"cmdline {word}"


def running(machine: Monitor, text: str) -> None:
    """Wait until the guest has said that."""
    while text not in machine.console.read_text():
        assert machine.process.poll() is None
        time.sleep(0.01)


@pytest.mark.parametrize("cpus", ["1", "4"])
def test_it_ends_with_its_owner(guest: Guest, cpus: str) -> None:
    with monitor(guest("hello"), "--cpus", cpus, cmdline="loop") as machine:
        machine.expect(RUNNING)
        running(machine, "e820")
        machine.control.close()
        assert machine.process.wait(HANG) == 0


def test_an_owner_that_was_gone_before(guest: Guest) -> None:
    with monitor(guest("hello"), cmdline="loop") as machine:
        machine.control.close()
        assert machine.process.wait(HANG) == 0


@pytest.mark.parametrize("cpus", ["1", "4"])
def test_pause_and_resume(guest: Guest, cpus: str) -> None:
    with monitor(guest("ticker"), "--cpus", cpus) as machine:
        machine.expect(RUNNING)
        for _ in range(3):
            running(machine, "tick 10\n")
            machine.send(PAUSE)
            machine.expect(PAUSED)
            size = machine.console.stat().st_size
            time.sleep(0.05)
            assert machine.console.stat().st_size == size
            machine.send(PAUSE)
            machine.expect(PAUSED)
            machine.send(RESUME)
            machine.expect(RESUMED)
            while machine.console.stat().st_size == size:
                assert machine.process.poll() is None


def test_second_processor(guest: Guest) -> None:
    ended = run(guest("cpus"), "--cpus", "2", cmdline="wait")
    assert ended.lines == ["the second processor says 5a"]
    alone = run(guest("cpus"), "--cpus", "1")
    assert alone.lines == ["the second processor says 0"]


def test_a_console_that_nobody_reads(guest: Guest) -> None:
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    try:
        ended = run(guest("flood"), "--console-fd", str(writing), fds=[writing])
    finally:
        os.close(writing)
    with open(reading, "rb") as pipe:
        text = pipe.read()
    assert ended.status == 0
    assert text.startswith(b"line 0 ")
    assert b"line 1199 " not in text


def test_console_without_a_reader(guest: Guest) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    try:
        assert run(guest("flood"), "--console-fd", str(writing), fds=[writing]).status == 0
    finally:
        os.close(writing)


def raw(machine: Monitor, data: bytes, fds: Sequence[int] = ()) -> None:
    socket.send_fds(machine.control, [data], list(fds))


@pytest.mark.parametrize(
    ("data", "n_fds", "why"),
    [
        (b"x", 0, "not of 16 bytes"),
        (RECORD.pack(PAUSE, 0, 0) + b"x", 0, "not of 16 bytes"),
        (RECORD.pack(0, 0, 0), 0, "type 0"),
        (RECORD.pack(RUNNING, 0, 0), 0, "type 65"),
        (RECORD.pack(PAUSE, 0, 0), 1, "a descriptor with a record of type 4"),
        (RECORD.pack(CONNECT, 1, 2), 0, "CONNECT without a descriptor"),
        (RECORD.pack(CONNECT, 1, 2), 2, "more than one descriptor"),
        (RECORD.pack(CONNECT, 1, 2), 9, "more than one descriptor"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_records_that_are_refused(guest: Guest, data: bytes, n_fds: int, why: str) -> None:
    with monitor(guest("hello"), cmdline="loop") as machine:
        machine.expect(RUNNING)
        with open(os.devnull, "rb") as null:
            raw(machine, data, [null.fileno()] * n_fds)
        ended = machine.finish()
    assert ended.status == 1
    assert ended.stderr.startswith("nsrun-vmm: control: ")
    assert why in ended.stderr
    assert ended.records[-1] == Record(ENDED, BROKEN)


def test_connect_without_a_stream_device(guest: Guest) -> None:
    ours, theirs = socket.socketpair()
    with ours, monitor(guest("hello"), cmdline="loop") as machine:
        with theirs:
            machine.expect(RUNNING)
            machine.send(CONNECT, 1024, 77, [theirs.fileno()])
        assert machine.expect(REFUSED) == Record(REFUSED, 1024, 77)
        assert ours.recv(1) == b""


def test_listen_without_a_stream_device(guest: Guest) -> None:
    with monitor(guest("hello"), cmdline="loop") as machine:
        machine.expect(RUNNING)
        machine.send(LISTEN, 5)
        ended = machine.finish()
    assert (ended.status, "LISTEN" in ended.stderr) == (1, True)


def used(words: Sequence[str]) -> tuple[int, str]:
    with open(os.devnull, "rb") as null:
        done = subprocess.run(
            [VMM, *(word.replace("NULL", str(null.fileno())) for word in words)],
            capture_output=True,
            text=True,
            check=False,
            pass_fds=[null.fileno()],
        )
    return done.returncode, done.stderr


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ([], "--kernel-fd"),
        (["--kernel-fd", "NULL"], "--control-fd"),
        (["--kernel-fd"], "--kernel-fd"),
        (["--kernel-fd", "999"], "--kernel-fd 999: Bad file descriptor"),
        (["--kernel-fd", "-1"], "--kernel-fd -1"),
        (["--kernel-fd", "1x"], "--kernel-fd 1x"),
        (["--kernel-fd", "99999999999999999999"], "--kernel-fd 99999999999999999999"),
        (["--memory", "0"], "--memory 0: a number from 2 to"),
        (["--cpus", "65"], "--cpus 65: a number from 1 to 64"),
        (["--vsock", "2"], "--vsock 2: a number from 3 to"),
        (["--blk", "NULL:rw"], "FD, FD:ro or FD:cow=FD"),
        (["--blk", "NULL:cow="], "--blk"),
        (["--fs", "=3"], "TAG=FD"),
        (["--fs", "t" * 37 + "=NULL"], "TAG=FD"),
        (["--rng", "--frobnicate", "1"], "--frobnicate"),
        (["--blk", "NULL"] * 16, "fewer than 16 devices"),
        (["--kernel-fd", "NULL", "--control-fd", "NULL", "--cmdline", "x" * 2048], "--cmdline"),
    ],
)
def test_usage(words: Sequence[str], named: str) -> None:
    status, said = used(words)
    assert status == 2
    assert said.startswith("nsrun-vmm: ")
    assert named in said
    assert said.count("\n") == 1


def broken_kernel(good: bytes, how: str) -> bytes:
    data = bytearray(good)
    program_headers = int.from_bytes(data[32:40], "little")
    if how == "not an ELF":
        data[0] = 0
    elif how == "of 32 bits":
        data[4] = 1
    elif how == "no headers":
        data[56:58] = bytes(2)
    elif how == "headers outside":
        data[32:40] = b"\xff" * 8
    elif how == "address outside":
        data[program_headers + 24 : program_headers + 32] = (1 << 40).to_bytes(8, "little")
    elif how == "low address":
        data[program_headers + 24 : program_headers + 32] = (0x7000).to_bytes(8, "little")
    elif how == "size outside":
        data[program_headers + 40 : program_headers + 48] = b"\xff" * 8
    elif how == "file larger than memory":
        data[program_headers + 32 : program_headers + 40] = b"\xff" * 7 + b"\0"
    elif how == "cut off":
        del data[program_headers + 56 * 3 :]
    elif how == "empty":
        data.clear()
    return bytes(data)


@pytest.mark.parametrize(
    "how",
    [
        *("not an ELF", "of 32 bits", "no headers", "headers outside", "address outside"),
        *("low address", "size outside", "file larger than memory", "cut off", "empty"),
    ],
)
def test_kernels_that_are_refused(guest: Guest, tmp_path: Path, how: str) -> None:
    kernel = tmp_path / "kernel"
    kernel.write_bytes(broken_kernel(guest("hello").read_bytes(), how))
    ended = run(kernel)
    assert ended.status == 1
    assert ended.stderr.startswith("nsrun-vmm: --kernel-fd ")
    assert ended.stderr.count("\n") == 1
    assert ended.records == (Record(ENDED, BROKEN),)


@pytest.mark.parametrize(("memory", "fits"), [(8, False), (16, True)])
def test_an_initrd_has_to_fit(guest: Guest, tmp_path: Path, memory: int, fits: bool) -> None:
    initrd = tmp_path / "initrd"
    with initrd.open("wb") as file:
        file.truncate(8 * MIB)
    ended = run(guest("hello"), "--memory", str(memory), initrd=initrd)
    assert ended.status == (0 if fits else 1)
    assert ("--memory" in ended.stderr) is not fits


def test_nothing_is_left_of_a_killed_monitor(guest: Guest) -> None:
    with monitor(guest("ticker"), "--cpus", "2", "--rng") as machine:
        machine.expect(RUNNING)
        running(machine, "tick 10\n")
        os.kill(machine.process.pid, signal.SIGKILL)
        assert machine.process.wait(HANG) == -signal.SIGKILL
        assert machine.receive() is None


def test_without_the_right_to_use_kvm(guest: Guest, open_directory: Path, lack: Lack) -> None:
    if os.geteuid() != 0:
        lack("the monitor without the right to use KVM: only root becomes another user")
    if os.stat("/dev/kvm").st_mode & 0o006:
        lack("the monitor without the right to use KVM: every user may here")
    program = open_directory / "nsrun-vmm"
    program.write_bytes(VMM.read_bytes())
    program.chmod(0o755)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs, guest("hello").open("rb") as kernel:
        fds = [kernel.fileno(), theirs.fileno()]
        words = ["--kernel-fd", str(fds[0]), "--control-fd", str(fds[1])]
        done = subprocess.run(
            [program, *words],
            capture_output=True,
            text=True,
            check=False,
            pass_fds=fds,
            user=12345,
            group=12345,
            extra_groups=[],
        )
    assert (done.returncode, done.stderr) == (1, "nsrun-vmm: /dev/kvm: Permission denied\n")


def test_exports_are_added(guest: Guest, tmp_path: Path) -> None:
    def view(*exports: Export) -> int:
        fd = os.memfd_create("view")
        os.write(fd, view_bytes(exports))
        return fd

    fds = [view(), view(Export("/usr"), Export("/etc")), view(Export(str(tmp_path / "gone")))]
    try:
        with monitor(guest("hello"), "--fs", f"nsrun={fds[0]}", cmdline="l", fds=fds) as machine:
            machine.expect(RUNNING)
            for number, fd in enumerate((fds[1], fds[2], fds[1])):
                machine.send(EXPORTS, 0, 70 + number, [fd])
            assert machine.expect(EXPORTED) == Record(EXPORTED, 0, 70)
            assert machine.expect(NOT_EXPORTED) == Record(NOT_EXPORTED, errno.EINVAL, 71)
            assert machine.expect(EXPORTED) == Record(EXPORTED, 2, 72)
            machine.control.close()
            assert machine.process.wait(HANG) == 0
            assert machine.process.stderr is not None
            assert str(tmp_path / "gone") in machine.process.stderr.read().decode()
    finally:
        for fd in fds:
            os.close(fd)


def test_exports_without_a_file_server(guest: Guest) -> None:
    with monitor(guest("hello"), cmdline="l") as machine, open(os.devnull, "rb") as null:
        machine.expect(RUNNING)
        machine.send(EXPORTS, 0, 7, [null.fileno()])
        assert machine.expect(NOT_EXPORTED) == Record(NOT_EXPORTED, errno.ENODEV, 7)


def booted(kernel: Path) -> vmm.Monitor:
    """A guest of ours where one with an agent is expected."""
    with kernel.open("rb") as vmlinux, tempfile.TemporaryFile() as initramfs:
        initramfs.write(b"none")
        initramfs.flush()
        return vmm.Monitor(Image(vmlinux, initramfs), vmm.Settings())


def test_an_agent_that_never_listens(guest: Guest) -> None:
    """The guest goes on for ever; what its console says is told."""
    with booted(guest("ticker")) as machine:
        while b"tick 1\r" not in machine.console and b"tick 1\n" not in machine.console:
            assert machine.wait(0.01) is None, machine.failure()
        with pytest.raises(GuestError, match=r"was not there after 0\.1 seconds") as caught:
            wait_for_agent(machine, 0.1)
        assert "guest: tick " in caught.value.text


def test_a_guest_that_dies_before_its_agent_listens(guest: Guest) -> None:
    """It crashes by a word of its command line, which is the one of all guests."""
    with (
        booted(guest("hello")) as machine,
        pytest.raises(GuestError, match="the guest crashed") as caught,
    ):
        wait_for_agent(machine, 3600)
    assert f"cmdline {vmm.COMMAND_LINE}" in caught.value.text
