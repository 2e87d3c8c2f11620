"""Connections that are handed over to the egress proxy, as a microVM's are."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from egress_fixtures import LOOPBACK, read_all, read_until, server

from cowork_nsrun.policy import EgressRules, EgressThread


@dataclass(frozen=True)
class Line:
    """Where connections are handed over, and the port that they may ask for."""

    sock: socket.socket
    port: int

    def hand_over(self, *socks: socket.socket) -> None:
        socket.send_fds(self.sock, [b"x"], [sock.fileno() for sock in socks])


@pytest.fixture
def line() -> Iterator[Line]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with server(lambda sock: sock.sendall(read_all(sock).upper())) as port:
        rules = EgressRules(allow=[f"{LOOPBACK}:{port}"])
        with ours, EgressThread(rules, [theirs]):
            yield Line(ours, port)


def asked(line: Line) -> bytes:
    """What comes of a connection that is handed over."""
    ours, theirs = socket.socketpair()
    with ours:
        with theirs:
            line.hand_over(theirs)
        ours.sendall(f"CONNECT {LOOPBACK}:{line.port} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        head = read_until(ours, b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200 "), head
        ours.sendall(b"text")
        ours.shutdown(socket.SHUT_WR)
        return read_all(ours)


def test_each_is_served(line: Line) -> None:
    assert [asked(line) for _ in range(3)] == [b"TEXT"] * 3


def test_what_is_none_is_closed(line: Line) -> None:
    """A message without a socket, with one of another kind, or with two."""
    line.sock.sendall(b"x")
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours:
        with theirs:
            line.hand_over(theirs)
        assert ours.recv(1) == b""
    ours, theirs = socket.socketpair()
    with ours:
        with theirs:
            line.hand_over(theirs, theirs)
        assert ours.recv(1) == b""
    assert asked(line) == b"TEXT"


def test_the_end_of_the_line_ends_all(line: Line) -> None:
    ours, theirs = socket.socketpair()
    with ours:
        with theirs:
            line.hand_over(theirs)
        line.sock.shutdown(socket.SHUT_WR)
        assert ours.recv(1) == b""
