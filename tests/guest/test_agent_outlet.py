"""The agent, natively: connections of a command with a way out are carried to the host."""

from __future__ import annotations

import os
import queue
import random
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
from agent_server import HOST_LIKE, SANDBOX, Server, drain, plan
from leftovers import wait_until_gone

from cowork_nsrun.errors import NsrunError
from cowork_nsrun.guest.agent import Command

MIB = 1 << 20
MOST = 256
PYTHON = """import os, socket, sys
def to(port):
    return socket.create_connection(('127.0.0.1', port))
"""
UPPER = """
with to({port}) as sock:
    sock.sendall(b"hello")
    sock.shutdown(socket.SHUT_WR)
    while data := sock.recv(100):
        sys.stdout.buffer.write(data)
"""


class Host:
    """Gets a command's connections, each served in a thread."""

    def __init__(self, serve: Callable[[socket.socket], None]) -> None:
        self.serve = serve
        self.threads: list[threading.Thread] = []

    def __call__(self, stream: socket.socket) -> None:
        thread = threading.Thread(target=self._run, args=[stream])
        self.threads.append(thread)
        thread.start()

    def _run(self, stream: socket.socket) -> None:
        with stream:
            self.serve(stream)

    def join(self) -> None:
        for thread in self.threads:
            thread.join()


def start(server: Server, host: Callable[[socket.socket], None], script: str) -> Command:
    words = plan(*SANDBOX, "python3", "-c", PYTHON + script)
    return server.agent.start(words, replace(server.settings, outlet=True), outlet=host)


def run(server: Server, serve: Callable[[socket.socket], None], script: str) -> bytes:
    host = Host(serve)
    with start(server, host, script) as command:
        assert command.stdout is not None
        reader = _Reader(command.stdout)
        errors = _Reader(command.stderr)
        status = command.wait()
        assert status == 0, errors.text()
        text = reader.text()
    host.join()
    return text


class _Reader(threading.Thread):
    def __init__(self, stream: socket.socket | None) -> None:
        super().__init__()
        assert stream is not None
        self._stream = stream
        self._text = b""
        self.start()

    def run(self) -> None:
        self._text = drain(self._stream)

    def text(self) -> bytes:
        self.join()
        return self._text


def upper(stream: socket.socket) -> None:
    """To the end; only then the answer, if anything was said."""
    if said := drain(stream):
        stream.sendall(said.upper())


@pytest.mark.parametrize("port", [3128, 1080])
def test_a_connection(server: Server, port: int) -> None:
    """The end of one way is passed on alone."""
    assert run(server, upper, UPPER.format(port=port)) == b"HELLO"


def test_the_host_ends_first(server: Server) -> None:
    got: queue.Queue[bytes] = queue.Queue()

    def serve(stream: socket.socket) -> None:
        stream.sendall(b"all there is")
        stream.shutdown(socket.SHUT_WR)
        got.put(drain(stream))

    script = """
with to(3128) as sock:
    said = b"".join(iter(lambda: sock.recv(100), b""))
    sock.sendall(said * 2)
"""
    run(server, serve, script)
    assert got.get() == b"all there is" * 2


def test_much_both_ways(server: Server) -> None:
    data = random.Random(1).randbytes(8 * MIB)

    def serve(stream: socket.socket) -> None:
        feeder = threading.Thread(target=_feed, args=[stream, data])
        feeder.start()
        assert drain(stream) == data
        feeder.join()

    script = """
import threading
sock = to(3128)
data = []
def read():
    while part := sock.recv(1 << 16):
        data.append(part)
thread = threading.Thread(target=read)
thread.start()
echo = bytearray()
thread.join()
sock.sendall(b"".join(data))
sock.close()
"""
    run(server, serve, script)


def test_many_and_no_more(server: Server) -> None:
    """Those that are too many wait, and others are served as soon as one is over."""
    arrived: queue.Queue[None] = queue.Queue()

    def serve(stream: socket.socket) -> None:
        arrived.put(None)
        upper(stream)

    script = f"""
socks = [to(3128) for _ in range({MOST})]
sys.stdin.buffer.raw.read(1)
late = to(1080)
late.sendall(b"late")
late.shutdown(socket.SHUT_WR)
print("late", flush=True)
sys.stdin.buffer.raw.read(1)
socks.pop().close()
assert late.recv(5) == b"LATE"
"""
    host = Host(serve)
    with start(server, host, script) as command:
        assert command.stdin is not None
        assert command.stdout is not None
        waiter = threading.Thread(target=command.wait)
        waiter.start()
        for _ in range(MOST):
            arrived.get()
        # only now: one by the other listener would be taken before the last ones by this
        command.stdin.sendall(b"x")
        assert command.stdout.recv(1) == b"l"
        # the next one would have come before this command has ended
        assert server.run(*SANDBOX, "echo", "well").stdout == b"well\n"
        assert arrived.empty()
        command.stdin.sendall(b"x")
        arrived.get()
        waiter.join()
        assert command.wait() == 0
    host.join()


def test_reader_that_stalls(server: Server) -> None:
    """It stops its connection's writer; the agent keeps no more than its share."""
    accepted: queue.Queue[socket.socket] = queue.Queue()
    script = """
with to(3128) as sock:
    for _ in range(64):
        sock.sendall(bytes(1 << 20))
"""
    with start(server, accepted.put, script) as command:
        waiter = threading.Thread(target=command.wait)
        waiter.start()
        with accepted.get() as stream:
            got = len(stream.recv(1))
            before = server.resident()
            assert server.run(*SANDBOX, "cat", data=b"x" * MIB).stdout == b"x" * MIB
            assert server.resident() < before + MIB
            while got < 64 * MIB:
                got += len(stream.recv(MIB))
            assert stream.recv(1) == b""
        waiter.join()
        assert command.wait() == 0


def test_an_answer_to_one_who_still_writes(server: Server) -> None:
    """A refusal is read although the host has closed and takes nothing more."""

    def refuse(stream: socket.socket) -> None:
        stream.recv(1)
        stream.sendall(b"403" * 1000)

    script = """
import threading, time
sock = to(3128)
def write():
    try:
        while True:
            sock.sendall(bytes(1000))
    except OSError:
        return
threading.Thread(target=write, daemon=True).start()
got = b""
while part := sock.recv(100):
    got += part
assert got == b"403" * 1000, got
os._exit(0)
"""
    run(server, refuse, script)


def test_a_reset_ends_it(server: Server) -> None:
    accepted: queue.Queue[bytes] = queue.Queue()
    script = """
import struct
sock = to(3128)
sock.sendall(b"x")
assert sock.recv(1) == b"y"
sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
sock.close()
sys.stdin.read(1)
"""

    def serve(stream: socket.socket) -> None:
        assert stream.recv(1) == b"x"
        stream.sendall(b"y")
        accepted.put(drain(stream))

    host = Host(serve)
    with start(server, host, script) as command:
        waiter = threading.Thread(target=command.wait)
        waiter.start()
        assert accepted.get() == b""
        assert command.stdin is not None
        command.stdin.sendall(b"x")
        waiter.join()
        assert command.wait() == 0
    host.join()


def test_what_is_left_ends_with_the_command(marker: str, server: Server) -> None:
    """A process that goes on has no way out, once the host does not care for it any more."""
    accepted: queue.Queue[socket.socket] = queue.Queue()
    script = f"""
sock = to(3128)
os.set_inheritable(sock.fileno(), True)
os.execvp("sleep", ["sleep", "{marker}"])
"""
    with start(server, accepted.put, script) as command:
        threading.Thread(target=_wait_quietly, args=[command]).start()
        stream = accepted.get()
    with stream:
        assert stream.recv(1) == b""
    wait_until_gone(marker)


def _feed(stream: socket.socket, data: bytes) -> None:
    stream.sendall(data)
    stream.shutdown(socket.SHUT_WR)


def _wait_quietly(command: Command) -> None:
    with pytest.raises(NsrunError):
        command.wait()


def test_without_it_nobody_listens(server: Server) -> None:
    script = PYTHON + "to(3128)"
    outcome = server.run(*SANDBOX, "python3", "-c", script)
    assert outcome.status == 1
    assert b"ConnectionRefusedError" in outcome.stderr


def test_the_callers_network_has_no_outlet(server: Server) -> None:
    settings = replace(server.settings, outlet=True)
    error = server.fails(*HOST_LIKE, "true", settings=settings)
    assert str(error) == "A plan with a way out to a proxy needs a network of its own"


@pytest.fixture
def told(server: Server) -> Iterator[tuple[Command, int, bytes]]:
    """A command with one connection that waits for the host, its number and token."""
    script = "sock = to(3128)\nprint(sock.recv(10).decode(), flush=True)"
    numbers: queue.Queue[int] = queue.Queue()
    token = os.urandom(16)

    class Listening:
        def begin(self, number: int) -> None:
            numbers.put(number)

    streams = server.agent._streams(range(4), token)  # type: ignore[arg-type]
    with Command(streams) as command:
        command.fetch = Listening()  # type: ignore[assignment]
        command._send(1, replace(server.settings, outlet=True).encode())  # type: ignore[arg-type]
        command._send(2, plan(*SANDBOX, "python3", "-c", PYTHON + script))  # type: ignore[arg-type]
        waiter = threading.Thread(target=_wait_for_anything, args=[command])
        waiter.start()
        yield command, numbers.get(), token
    waiter.join()


def _wait_for_anything(command: Command) -> None:
    try:
        command.wait()
    except NsrunError:
        return


def hello(role: int, connection: int, token: bytes) -> bytes:
    return b"".join(
        (0x4152534E .to_bytes(4, "little"), (2).to_bytes(4, "little"),
         role.to_bytes(4, "little"), connection.to_bytes(4, "little"), token)
    )  # fmt: skip


def test_only_the_host_of_this_command_is_let_in(
    server: Server, told: tuple[Command, int, bytes]
) -> None:
    """With its token and the number that it was told, and once."""
    command, number, token = told
    for wrong in (
        hello(5, number, os.urandom(16)),
        hello(5, number + 1, token),
        hello(5, 0, token),
        hello(0, number, token),
        hello(6, number, token),
    ):
        with server.connect(0) as stream:
            stream.sendall(wrong)
            assert stream.recv(1) == b""
    with server.connect(0) as right, server.connect(0) as again:
        # what comes behind it at once is the command's
        right.sendall(hello(5, number, token) + b"well")
        assert right.recv(1) == b"\0"
        again.sendall(hello(5, number, token))
        assert again.recv(1) == b""
        right.shutdown(socket.SHUT_WR)
        assert command.stdout is not None
        assert drain(command.stdout) == b"well\n"
