"""Streams between the host and a stock kernel's own vsock driver."""

from __future__ import annotations

import os
import queue
import random
import resource
import socket
import struct
import subprocess
import threading
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from enum import IntEnum
from pathlib import Path

import pytest
from vsocklib import Lack, find_compiler

from cowork_nsrun.guest import image, kernel
from cowork_nsrun.guest.bzimage import KernelError
from cowork_nsrun.guest.vmm import Ended, GuestError, Monitor, NoAnswer, Settings, StreamRefused

HERE = Path(__file__).parent
FLAGS = ["-std=gnu17", "-O2", "-static", "-Wall", "-Wextra", "-Wshadow", "-Werror"]
PORT, UNATTENDED_PORT = 1024, 1025
#: seconds after which a guest counts as hung, far more than any takes
HANG = 300
BULK = int(os.environ.get("NSRUN_VSOCK_MIB", "64")) << 20
BLOCK = random.Random(1).randbytes(1 << 20)
#: at once
STREAMS = 1024
RESULT = struct.Struct("=QII")


class Task(IntEnum):
    """enum task_kind of vsock_peer.c."""

    SINK = 1
    SOURCE = 2
    ECHO = 3
    DIAL = 4
    STALL = 5
    REBIND = 6
    POWER_OFF = 7


@pytest.fixture(scope="module")
def peer_image(tmp_path_factory: pytest.TempPathFactory, lack: Lack) -> Iterator[image.Image]:
    peer = tmp_path_factory.mktemp("vsock") / "vsock_peer"
    command = [find_compiler(lack), *FLAGS, str(HERE / "guests" / "vsock_peer.c"), "-o", str(peer)]
    subprocess.run(command, check=True)
    try:
        chosen = kernel.choose()
    except KernelError as error:
        lack(f"no kernel for a guest: {error}")
    with image.prepare(chosen, peer) as made:
        yield made


def connect(machine: Monitor, task: Task, port: int = 0, value: int = 0) -> socket.socket:
    stream = machine.connect(PORT, HANG)
    stream.settimeout(HANG)
    stream.sendall(struct.pack("=IIQ", task, port, value))
    return stream


def wait_listening(machine: Monitor) -> None:
    """Until the peer listens; the device refuses before."""
    waiting = threading.Event()
    while not waiting.wait(0.1):
        try:
            machine.connect(PORT, HANG).close()
            return
        except StreamRefused:
            assert machine.wait(0) is None, machine.failure()


def boot(made: image.Image) -> Monitor:
    machine = Monitor(made, Settings(memory_mib=256))
    try:
        machine.wait_running(HANG)
        wait_listening(machine)
    except BaseException:
        machine.close()
        raise
    return machine


@pytest.fixture(scope="module")
def machine(peer_image: image.Image, lack: Lack) -> Iterator[Monitor]:
    try:
        booted = boot(peer_image)
    except GuestError as error:
        if os.environ.get("NSRUN_KVMBED") == "inside":
            raise
        lack(f"no machine runs a stock kernel here: {str(error).splitlines()[0]}")
    with booted:
        yield booted


@pytest.fixture
def descriptors() -> Iterator[None]:
    """As many as are allowed: a stream takes one."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (before[1], before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


def receive(stream: socket.socket, count: int) -> bytes:
    """Exactly so many bytes."""
    data = stream.recv(count, socket.MSG_WAITALL)
    assert len(data) == count
    return data


def rest(stream: socket.socket) -> tuple[int, int]:
    """Count and CRC of what comes until the end."""
    count = crc = 0
    while data := stream.recv(1 << 20):
        count += len(data)
        crc = zlib.crc32(data, crc)
    return count, crc


def pour(stream: socket.socket, count: int) -> int:
    """Send so many bytes, then half-close; their CRC."""
    crc = 0
    while count:
        data = BLOCK[:count]
        stream.sendall(data)
        crc = zlib.crc32(data, crc)
        count -= len(data)
    stream.shutdown(socket.SHUT_WR)
    return crc


def sink(machine: Monitor, count: int) -> None:
    """Bytes to the guest arrive, all of them; its answer comes behind our half-close."""
    with connect(machine, Task.SINK) as stream:
        crc = pour(stream, count)
        assert RESULT.unpack(receive(stream, RESULT.size)) == (count, crc, 0)
        assert stream.recv(1) == b""


def source(machine: Monitor, count: int) -> None:
    """Bytes from the guest arrive, all of them, and then their end."""
    with connect(machine, Task.SOURCE, value=count) as stream:
        crc, left = 0, count
        while left:
            data = stream.recv(min(left, 1 << 20))
            assert data
            crc = zlib.crc32(data, crc)
            left -= len(data)
        assert struct.unpack("=I", receive(stream, 4)) == (crc,)
        assert stream.recv(1) == b""


def fill(stream: socket.socket) -> None:
    """Send as much as is taken without anybody who reads."""
    stream.setblocking(False)
    with suppress(BlockingIOError):
        while stream.send(BLOCK):
            pass


def echo(stream: socket.socket, count: int) -> None:
    """Both directions at once on one stream."""
    with ThreadPoolExecutor(1) as pool:
        sent = pool.submit(pour, stream, count)
        got = rest(stream)
    assert got == (count, sent.result())


def test_a_port_nobody_listens_on(machine: Monitor) -> None:
    with pytest.raises(StreamRefused):
        machine.connect(UNATTENDED_PORT + 1, HANG)


def test_a_guest_that_does_not_answer(machine: Monitor) -> None:
    """Who asked is told so, and what comes late is for nobody."""
    machine.pause()
    with pytest.raises(NoAnswer, match="did not answer"):
        machine.connect(UNATTENDED_PORT, 0.2)
    machine.resume()
    with connect(machine, Task.ECHO) as stream:
        echo(stream, 1000)


def test_bytes_to_the_guest(machine: Monitor) -> None:
    sink(machine, BULK)


def test_bytes_from_the_guest(machine: Monitor) -> None:
    source(machine, BULK)


def test_both_ways_at_once(machine: Monitor) -> None:
    with connect(machine, Task.ECHO) as stream:
        echo(stream, BULK // 4)


def test_hundred_streams_at_once(machine: Monitor) -> None:
    streams = [connect(machine, Task.ECHO) for _ in range(100)]
    with ThreadPoolExecutor(len(streams)) as pool:
        list(pool.map(echo, streams, [100_000 + number for number in range(len(streams))]))
    for stream in streams:
        stream.close()


def test_as_many_streams_as_there_may_be(machine: Monitor, descriptors: None) -> None:
    opened: list[socket.socket] = []
    with suppress(StreamRefused):
        while len(opened) <= STREAMS:
            opened.append(machine.connect(UNATTENDED_PORT, HANG))
    for stream in opened:
        stream.close()
    # the guest may still be closing some of the tests before
    assert STREAMS - 20 < len(opened) <= STREAMS
    sink(machine, 1000)


def test_an_empty_stream(machine: Monitor) -> None:
    sink(machine, 0)
    source(machine, 0)


def test_the_guest_opens_streams(machine: Monitor) -> None:
    accepted: queue.SimpleQueue[socket.socket] = queue.SimpleQueue()
    machine.listen(77, accepted.put)
    for _ in range(3):
        with connect(machine, Task.DIAL, port=77) as task:
            assert RESULT.unpack(receive(task, RESULT.size)) == (0, 0, 0)
            with accepted.get(timeout=HANG) as stream:
                stream.settimeout(HANG)
                echo(stream, 1 << 20)


def test_the_guest_is_refused(machine: Monitor) -> None:
    with connect(machine, Task.DIAL, port=78) as task:
        _, _, error = RESULT.unpack(receive(task, RESULT.size))
    assert os.strerror(error) == "Connection reset by peer"


def test_readers_that_sleep_hold_up_nobody(machine: Monitor) -> None:
    with connect(machine, Task.STALL) as asleep, connect(machine, Task.SOURCE, value=BULK) as full:
        fill(asleep)
        sink(machine, 4 << 20)
        source(machine, 4 << 20)
        # what the guest had to keep back comes when it is wanted
        assert rest(full)[0] == BULK + 4


def test_the_host_goes_away_in_the_middle(machine: Monitor) -> None:
    for _ in range(20):
        stream = connect(machine, Task.SOURCE, value=BULK)
        receive(stream, 1000)
        stream.close()
        stream = connect(machine, Task.SINK)
        stream.sendall(BLOCK)
        stream.close()
    sink(machine, 1 << 20)
    source(machine, 1 << 20)


def test_the_driver_is_taken_away_and_comes_back(machine: Monitor) -> None:
    with connect(machine, Task.STALL) as other, connect(machine, Task.REBIND) as task:
        # its reset ends all streams
        assert task.recv(1) == b""
        assert other.recv(1) == b""
    wait_listening(machine)
    sink(machine, 4 << 20)
    source(machine, 4 << 20)


def test_power_off(peer_image: image.Image, machine: Monitor) -> None:
    with boot(peer_image) as other:
        connect(other, Task.POWER_OFF).close()
        assert other.wait(HANG) is Ended.POWER_OFF
    sink(machine, 1000)
