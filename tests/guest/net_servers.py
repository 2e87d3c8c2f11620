"""Servers on the loopback, for guests with a network."""

from __future__ import annotations

import socket
import threading
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import count
from queue import SimpleQueue

LOOPBACK = "127.0.0.1"
Handler = Callable[[socket.socket], None]


def sender(data: bytes) -> Handler:
    """Who comes gets that."""

    def handle(client: socket.socket) -> None:
        client.sendall(data)

    return handle


def answer_crc(client: socket.socket) -> None:
    """Read to the end, and answer with the checksum."""
    crc = 0
    while data := client.recv(1 << 16):
        crc = zlib.crc32(data, crc)
    client.sendall(b"%08x" % crc)


@dataclass(frozen=True)
class Server:
    """Who came to it is told by their ports."""

    address: str
    port: int
    _came: SimpleQueue[int] = field(default_factory=SimpleQueue)

    def came(self, port: int) -> None:
        self._came.put(port)

    def wait(self) -> int:
        """The next visitor."""
        return self._came.get()

    def visitors(self) -> int:
        """How many came, and were not waited for, before this call."""
        with socket.create_connection((self.address, self.port)) as last:
            own = last.getsockname()[1]
            for number in count():
                if self.wait() == own:
                    return number
        raise AssertionError


@contextmanager
def tcp_server(handler: Handler, address: str = LOOPBACK) -> Iterator[Server]:
    """A server of one visitor after the other, at any free port."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    dual = address == "::"
    with socket.create_server((address, 0), family=family, dualstack_ipv6=dual) as listener:
        local = {"::": "::1", "0.0.0.0": LOOPBACK}.get(address, address)
        server = Server(local, listener.getsockname()[1])

        def serve() -> None:
            while True:
                try:
                    client, peer = listener.accept()
                except OSError:
                    return
                server.came(peer[1])
                with client, suppress(ConnectionError):
                    handler(client)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield server
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()


@contextmanager
def echo_server(address: str) -> Iterator[int]:
    """Of datagrams; its port."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as server:
        server.bind((address, 0))
        port: int = server.getsockname()[1]

        def serve() -> None:
            while True:
                data, peer = server.recvfrom(1 << 16)
                if not data:
                    return
                server.sendto(data, peer)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield port
        finally:
            with socket.socket(family, socket.SOCK_DGRAM) as last:
                last.sendto(b"", (address, port))
            thread.join()


def _answer(query: bytes, names: Mapping[str, str]) -> bytes:
    """To a question for one name: RFC 1035, section 4."""
    labels, at = [], 12
    while query[at]:
        labels.append(query[at + 1 : at + 1 + query[at]].decode())
        at += 1 + query[at]
    question = query[12 : at + 5]
    kind = int.from_bytes(query[at + 1 : at + 3])
    address = names.get(".".join(labels))
    code = 0 if address else 3
    records = b""
    if address and kind == 1:
        records = b"\xc0\x0c\x00\x01\x00\x01\x00\x00\x00\x3c\x00\x04" + socket.inet_aton(address)
    head = query[:2] + bytes([0x81, 0x80 | code, 0, 1, 0, bool(records), 0, 0, 0, 0])
    return head + question + records


@contextmanager
def name_server(names: Mapping[str, str], address: str) -> Iterator[list[bytes]]:
    """On the address's port 53, where root alone may; all queries that came."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind((address, 53))
        queries: list[bytes] = []

        def serve() -> None:
            while True:
                query, peer = server.recvfrom(4096)
                if not query:
                    return
                queries.append(query)
                server.sendto(_answer(query, names), peer)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield queries
        finally:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as last:
                last.sendto(b"", (address, 53))
            thread.join()
