"""Egress rules in a microVM: what they allow is reached from it, and nothing else.

On KVM that runs stock kernels alone: in the bed.
"""

from __future__ import annotations

import asyncio
import socket
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest

from cowork_nsrun import PIPE, Sandbox, aio, popen, run
from cowork_nsrun.guest.kernel import Kernel
from cowork_nsrun.policy import Decision, EgressRules

#: by CONNECT and by SOCKS 5: what it says is echoed, upper case; refusals are printed
THROUGH = """
import os, socket, sys

def line(sock, end):
    data = b""
    while end not in data and (part := sock.recv(1)):
        data += part
    return data

def tunnel(target):
    port = int(os.environ["HTTPS_PROXY"].rpartition(":")[2])
    sock = socket.create_connection(("127.0.0.1", port))
    sock.sendall(f"CONNECT {target} HTTP/1.1\\r\\nHost: {target}\\r\\n\\r\\n".encode())
    status = line(sock, b"\\r\\n\\r\\n").split()[1].decode()
    return sock, status

def socks(target):
    host, _, port = target.rpartition(":")
    sock = socket.create_connection(("127.0.0.1", 1080))
    sock.sendall(b"\\5\\1\\0" + b"\\5\\1\\0\\3" + bytes([len(host)]) + host.encode()
                 + int(port).to_bytes(2, "big"))
    answer = b""
    while len(answer) < 12:
        answer += sock.recv(12 - len(answer))
    return sock, str(answer[3])

def both_ways(sock, text):
    sock.sendall(text)
    sock.shutdown(socket.SHUT_WR)
    return b"".join(iter(lambda: sock.recv(1 << 16), b""))
"""
ALLOWED = """
for how in (tunnel, socks):
    sock, status = how(sys.argv[1])
    big = b"x" * (1 << 20)
    print(how.__name__, status, both_ways(sock, b"some text"))
    sock, status = how(sys.argv[1])
    print(both_ways(sock, big) == big.upper())
    print(how(sys.argv[2])[1])
    print(how("host.test:1")[1])
"""
AROUND = """
import errno
port = int(sys.argv[1].rpartition(":")[2])
def tried(*words, to):
    try:
        sock = socket.socket(*words)
        sock.settimeout(5)
        sock.connect(to)
        sock.sendall(b"x")
        return sock.recv(1)
    except OSError as error:
        return type(error).__name__
print(tried(socket.AF_INET, socket.SOCK_STREAM, to=("127.0.0.1", port)))
print(tried(socket.AF_INET, socket.SOCK_STREAM, to=("192.0.2.1", 80)))
print(tried(socket.AF_INET6, socket.SOCK_STREAM, to=("2001:db8::1", 80)))
print(tried(socket.AF_INET, socket.SOCK_DGRAM, to=("192.0.2.1", 53)))
print(sorted(name for _, name in socket.if_nameindex()))
try:
    print(socket.getaddrinfo("example.com", 80))
except OSError:
    print("no names")
# the host's end of vsock, this machine's own, and the local one
ports = [1, 22, 1023, 1024, 1025, 1080, 3128, port]
print({tried(socket.AF_VSOCK, socket.SOCK_STREAM, to=(cid, p)) in (b"", "OSError", "TimeoutError",
       "ConnectionResetError", "BrokenPipeError", "PermissionError") or (cid, p)
       for cid in (0, 1, 2, 3) for p in ports})
"""


@dataclass
class Target:
    """A server on loopback, which says all again in upper case, and one that is forbidden."""

    port: int
    other: int
    accepted: list[bytes] = field(default_factory=list)


@pytest.fixture
def target() -> Iterator[Target]:
    listener = socket.create_server(("127.0.0.1", 0))
    forbidden = socket.create_server(("127.0.0.1", 0))
    made = Target(listener.getsockname()[1], forbidden.getsockname()[1])

    def serve(sock: socket.socket) -> None:
        with sock:
            data = b"".join(iter(lambda: sock.recv(1 << 16), b""))
            sock.sendall(data.upper())

    def accept() -> None:
        while True:
            try:
                sock, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=serve, args=[sock]).start()

    thread = threading.Thread(target=accept)
    thread.start()
    yield made
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()
    thread.join()
    forbidden.setblocking(False)
    with forbidden, pytest.raises(BlockingIOError):
        forbidden.accept()


def allowing(*hosts: str) -> Sandbox:
    spec = Sandbox.minimal().bind(sys.base_prefix, read_only=True)
    return spec.allow_hosts(*hosts, allow_private=True).replace(backend="kvm")


def words(script: str, target: Target) -> list[str]:
    places = [f"127.0.0.1:{port}" for port in (target.port, target.other)]
    return [f"{sys.base_prefix}/bin/python3", "-c", THROUGH + script, *places]


def test_what_a_rule_allows_is_reached_and_nothing_else(kernel: Kernel, target: Target) -> None:
    heard: list[Decision] = []
    spec = allowing(f"127.0.0.1:{target.port}")
    result = run(words(ALLOWED, target), spec, on_egress=heard.append)
    assert result.stderr == b""
    assert result.backend == "microVM (KVM)"
    assert result.stdout.decode().splitlines() == [
        "tunnel 200 b'SOME TEXT'", "True", "403", "403",
        "socks 0 b'SOME TEXT'", "True", "2", "2",
    ]  # fmt: skip
    told = [(each.allowed, each.host, each.port) for each in heard]
    one = [(True, "127.0.0.1", target.port)] * 2
    one += [(False, "127.0.0.1", target.other), (False, "host.test", 1)]
    assert told == one * 2


def test_there_is_no_way_around_it(kernel: Kernel, target: Target) -> None:
    """Nor by vsock, which a root of the guest's could use as well."""
    heard: list[Decision] = []
    spec = allowing(f"127.0.0.1:{target.port}")
    result = asyncio.run(aio.run(words(AROUND, target), spec, on_egress=heard.append))
    assert result.stderr == b""
    assert result.stdout.decode().splitlines() == [
        "ConnectionRefusedError", "OSError", "OSError", "OSError", "['lo']", "no names", "{True}",
    ]  # fmt: skip
    assert heard == []


def test_other_rules_while_it_runs(kernel: Kernel, target: Target) -> None:
    """And a second connection at the same time; the ends of both are seen."""
    script = """
print(tunnel(sys.argv[1])[1], flush=True)
sys.stdin.readline()
first, status = tunnel(sys.argv[1])
second, _ = tunnel(sys.argv[1])
print(status, both_ways(second, b"two"), both_ways(first, b"one"))
"""
    with popen(
        words(script, target), allowing("elsewhere.test"), stdin=PIPE, stdout=PIPE
    ) as process:
        assert process.egress is not None
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == b"403\n"
        process.egress.update(EgressRules(allow=[f"127.0.0.1:{target.port}"]))
        out, _ = process.communicate(b"go\n")
        assert process.egress.counters.allowed == 2
    assert out == b"200 b'TWO' b'ONE'\n"
