"""Servers on the loopback, for guests with a network."""

from __future__ import annotations

import socket
import threading
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

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


@contextmanager
def tcp_server(handler: Handler, address: str = LOOPBACK) -> Iterator[tuple[int, list[str]]]:
    """Its port, and who came."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.create_server((address, 0), family=family) as server:
        came: list[str] = []

        def serve() -> None:
            while True:
                try:
                    client, peer = server.accept()
                except OSError:
                    return
                came.append(peer[0])
                with client:
                    handler(client)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield server.getsockname()[1], came
        finally:
            server.shutdown(socket.SHUT_RDWR)
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
