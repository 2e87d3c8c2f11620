"""What runs on the guest's side of tests of nsrun-slirp: net_client.py WHAT ADDRESS PORT [N]."""

from __future__ import annotations

import resource
import socket
import struct
import sys
import zlib
from collections.abc import Callable
from contextlib import suppress


def get(address: str, port: int) -> str:
    """Read all that comes."""
    crc, size = 0, 0
    with socket.create_connection((address, port)) as stream:
        while data := stream.recv(1 << 18):
            crc, size = zlib.crc32(data, crc), size + len(data)
    return f"{size} {crc:08x}"


def put(address: str, port: int, size: int) -> str:
    """Send so many bytes; the answer is their checksum."""
    data = bytes(i * 7 >> 3 & 255 for i in range(1 << 16)) * (size >> 16)
    with socket.create_connection((address, port)) as stream:
        stream.sendall(data)
        stream.shutdown(socket.SHUT_WR)
        answer = stream.recv(100).decode()
    return f"{zlib.crc32(data):08x} {answer}"


def datagram(address: str, port: int, size: int) -> str:
    """Send that many bytes at once; what comes back."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as sock:
        sock.connect((address, port))
        sock.send(b"x" * size)
        return str(len(sock.recv(1 << 16)))


def send(address: str, port: int) -> str:
    """A datagram, without an answer."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as sock:
        sock.sendto(b"bad", (address, port))
    return "sent"


def many(address: str, port: int, sink: int) -> str:
    """Make connections until one is refused, close all, and go on; how many were made."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    kept = []
    with suppress(OSError):
        while True:
            kept.append(socket.create_connection((address, port)))
    for sock in kept:
        # closed by a reset, whatever the server does
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        sock.close()
    while True:
        # those that were closed need a moment
        with suppress(OSError):
            return f"{len(kept)} {put(address, sink, 1 << 20)}"


def name(address: str, port: int) -> str:
    """The address of some.test, asked of that name server: RFC 1035."""
    query = b"\x12\x34\x01\0\0\x01\0\0\0\0\0\0\4some\4test\0\0\x01\0\x01"
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.connect((address, port))
        sock.send(query)
        answer = sock.recv(1 << 12)
    assert answer[:2] == query[:2]
    return socket.inet_ntoa(answer[-4:])


def main() -> int:
    what, address, *numbers = sys.argv[1:]
    does: dict[str, Callable[..., str]] = {
        "get": get,
        "put": put,
        "send": send,
        "datagram": datagram,
        "many": many,
        "name": name,
    }
    try:
        print(does[what](address, *map(int, numbers)))
    except OSError as error:
        print(type(error).__name__, error.errno)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
