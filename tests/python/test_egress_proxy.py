"""The proxy over real sockets: HTTP, CONNECT and SOCKS 5, and what attackers send."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import resource
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest
from egress_fixtures import (
    WAIT,
    Names,
    Proxied,
    read_all,
    read_exactly,
    read_until,
    server,
)
from hypothesis import example, given, settings
from hypothesis import strategies as st

from cowork_nsrun import NsrunError
from cowork_nsrun.policy import (
    Decision,
    EgressLimits,
    EgressProxy,
    EgressRules,
    EgressThread,
    Protocol,
    Rule,
    unix_listener,
)

InChild = Callable[[Callable[[], Any]], Any]

MIB = 1 << 20
HUGE = 64 * MIB
RULES = EgressRules(
    allow=[
        Rule("server.test", allow_private=True),
        Rule("unreachable.test", allow_private=True),
    ]
)
RESET = struct.pack("ii", 1, 0)
GOOD_ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc"


def names() -> Names:
    return Names(
        server_test=["127.0.0.1"],
        other_test=["127.0.0.1"],
        unreachable_test=["127.0.0.1"],
    )


@pytest.fixture
def proxy() -> Iterator[Proxied]:
    with Proxied(RULES, names()) as made:
        yield made


def echo(sock: socket.socket) -> None:
    while data := sock.recv(1 << 16):
        sock.sendall(data)


class Recorder:
    """An HTTP server that keeps every request's bytes and closes after its answer."""

    def __init__(self, answer: bytes = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok") -> None:
        self.answer = answer
        self.requests: list[bytes] = []

    def __call__(self, sock: socket.socket) -> None:
        head = read_until(sock, b"\r\n\r\n")
        if not head:
            return
        lower = head.lower()
        if b"chunked" in lower:
            head += read_until(sock, b"0\r\n\r\n")
        elif b"content-length: " in lower:
            length = int(lower.partition(b"content-length: ")[2].partition(b"\r\n")[0])
            head += read_exactly(sock, length)
        self.requests.append(head)
        sock.sendall(self.answer)


# --- what is allowed, both ways -------------------------------------------------------------


def test_connect(proxy: Proxied) -> None:
    with server(echo) as port, proxy.tunnel(f"Server.TEST.:{port}") as sock:
        sock.sendall(b"hello")
        assert read_exactly(sock, 5) == b"hello"
    (decision,) = proxy.decisions
    assert decision.allowed
    assert (decision.host, decision.port, str(decision.address)) == (
        "server.test",
        port,
        "127.0.0.1",
    )
    assert (decision.rule, decision.protocol, decision.reason) == ("server.test", "connect", "")


def test_what_was_sent_with_the_request_is_not_lost(proxy: Proxied) -> None:
    with server(echo) as port, proxy.connect() as sock:
        sock.sendall(f"CONNECT server.test:{port} HTTP/1.1\r\nHost: x\r\n\r\nearly".encode())
        read_until(sock, b"\r\n\r\n")
        assert read_exactly(sock, 5) == b"early"
    with server(echo) as port, proxy.connect() as sock:
        sock.sendall(b"\5\1\0\5\1\0\3\x0bserver.test" + port.to_bytes(2) + b"early")
        assert read_exactly(sock, 12) == b"\5\0\5\0\0\1\0\0\0\0\0\0"
        assert read_exactly(sock, 5) == b"early"


def test_socks(proxy: Proxied) -> None:
    with server(echo) as port:
        sock, code = proxy.socks(b"server.test", port)
        with sock:
            assert code == 0
            sock.sendall(b"hello")
            assert read_exactly(sock, 5) == b"hello"
        sock, code = proxy.socks(b"other.test", port)
        with closing(sock):
            assert code == 2
            assert read_all(sock) == b""
    assert [decision.protocol for decision in proxy.decisions] == [Protocol.SOCKS5] * 2


def test_socks_addresses() -> None:
    with (
        Proxied(EgressRules(allow=["127.0.0.1", "::1"])) as proxy,
        server(echo) as port4,
        server(echo, "::1") as port6,
    ):
        for kind, packed, port, expected in (
            (1, socket.inet_aton("127.0.0.1"), port4, 0),
            (4, socket.inet_pton(socket.AF_INET6, "::1"), port6, 0),
            (4, socket.inet_pton(socket.AF_INET6, "::ffff:127.0.0.1"), port4, 0),
            (1, socket.inet_aton("127.0.0.2"), port4, 2),
            (4, socket.inet_pton(socket.AF_INET6, "fe80::1"), port6, 2),
        ):
            with proxy.connect() as sock:
                sock.sendall(b"\5\1\0\5\1\0" + bytes([kind]) + packed + port.to_bytes(2))
                assert read_exactly(sock, 12)[3] == expected, packed
                if not expected:
                    sock.sendall(b"x")
                    assert read_exactly(sock, 1) == b"x"


def test_socks_byte_by_byte(proxy: Proxied) -> None:
    with server(echo) as port, proxy.connect() as sock:
        message = b"\5\2\1\0\5\1\0\3\x0bserver.test" + port.to_bytes(2)
        for byte in message:
            sock.sendall(bytes([byte]))
        assert read_exactly(sock, 12)[3] == 0


@pytest.mark.parametrize(
    ("sent", "answer"),
    [
        (b"\5\1\2", b"\5\xff"),  # authentication only
        (b"\5\0", b"\5\xff"),
        (b"\5\1\0\5\2\0\1\x7f\0\0\1\0\x50", b"\5\0\5\7\0\1\0\0\0\0\0\0"),  # BIND
        (b"\5\1\0\5\3\0\1\x7f\0\0\1\0\x50", b"\5\0\5\7\0\1\0\0\0\0\0\0"),  # UDP
        (b"\5\1\0\5\1\0\2\x7f\0\0\1\0\x50", b"\5\0\5\x08\0\1\0\0\0\0\0\0"),
        (b"\5\1\0\5\1\0\3\2\xff\xfe\0\x50", b"\5\0\5\2\0\1\0\0\0\0\0\0"),
        (b"\5\1\0\5\1\0\3\0\0\x50", b"\5\0\5\2\0\1\0\0\0\0\0\0"),  # no name
        (b"\5\1\0\5\1\0\3\x0bserver.test\0\0", b"\5\0\5\2\0\1\0\0\0\0\0\0"),  # port 0
        (b"\5\1\0\4\1\0\1\x7f\0\0\1\0\x50", b"\5\0"),
        (b"\5\1\0\5\1\0\3\x10unreachable.test\0\1", b"\5\0\5\5\0\1\0\0\0\0\0\0"),
    ],
)
def test_socks_answers(proxy: Proxied, sent: bytes, answer: bytes) -> None:
    with proxy.connect() as sock:
        sock.sendall(sent)
        sock.shutdown(socket.SHUT_WR)
        assert read_all(sock) == answer


def test_plain_http_is_written_anew(proxy: Proxied) -> None:
    recorder = Recorder()
    with server(recorder) as port:
        answer = proxy.ask(
            f"POST HTTP://SERVER.test:{port}?q=1 HTTP/1.1\r\n"
            "Host: evil.example\r\nConnection: close, X-Hop, Host\r\nX-Hop: 1\r\n"
            "Proxy-Authorization: Basic c2VjcmV0\r\nProxy-Connection: keep-alive\r\n"
            "TE: trailers\r\nUpgrade: h2c\r\nX-End: 2\r\nTransfer-Encoding: chunked\r\n\r\n"
            "3;ext=1\r\nabc\r\n0\r\nTrailer: x\r\n\r\n".encode()
        )
    assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
    assert answer.endswith(b"\r\n\r\nok")
    (request,) = recorder.requests
    head, _, body = request.partition(b"\r\n\r\n")
    lines = head.split(b"\r\n")
    assert lines[0] == b"POST /?q=1 HTTP/1.1"
    assert f"Host: server.test:{port}".encode() in lines
    assert b"X-End: 2" in lines
    for word in (b"evil", b"X-Hop", b"Proxy-", b"TE:", b"Upgrade", b"secret"):
        assert word.lower() not in head.lower()
    assert body == b"3\r\nabc\r\n0\r\n\r\n"
    counters = proxy.thread.counters
    assert (counters.sent, counters.received) == (len(request), 2)


def test_a_connection_header_takes_no_length_away(proxy: Proxied) -> None:
    recorder = Recorder()
    with server(recorder) as port:
        answer = proxy.ask(
            f"POST http://server.test:{port}/ HTTP/1.1\r\nHost: x\r\n"
            "Connection: close, Content-Length\r\nContent-Length: 4\r\n\r\nbody".encode()
        )
    assert answer.endswith(b"ok")
    assert recorder.requests[0].endswith(b"\r\n\r\nbody")


def test_each_request_of_a_connection_is_checked(proxy: Proxied) -> None:
    recorder = Recorder()
    with server(recorder) as port, proxy.connect() as sock:
        for _ in range(3):
            sock.sendall(f"GET http://server.test:{port}/a HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            assert read_until(sock, b"\r\n\r\nok").startswith(b"HTTP/1.1 200")
        # allowed in Host, but not what is asked for
        sock.sendall(
            f"GET http://other.test:{port}/a HTTP/1.1\r\nHost: server.test:{port}\r\n\r\n".encode()
        )
        answer = read_all(sock)
    assert answer.startswith(b"HTTP/1.1 403 ")
    assert f'"other.test:{port}"'.encode() in answer
    assert len(recorder.requests) == 3
    assert [decision.allowed for decision in proxy.decisions] == [True, True, True, False]


def test_pipelined_requests_are_each_checked(proxy: Proxied) -> None:
    recorder = Recorder()
    with server(recorder) as port:
        answer = proxy.ask(
            f"GET http://server.test:{port}/1 HTTP/1.1\r\nHost: x\r\n\r\n"
            f"GET http://other.test:{port}/2 HTTP/1.1\r\nHost: x\r\n\r\n"
            f"GET http://server.test:{port}/3 HTTP/1.1\r\nHost: x\r\n\r\n".encode()
        )
    assert answer.count(b"HTTP/1.1 200") == 1
    assert answer.count(b"HTTP/1.1 403") == 1
    assert len(recorder.requests) == 1


@pytest.mark.parametrize(
    ("answer", "version", "body"),
    [
        (b"HTTP/1.1 200 OK\r\n\r\nuntil the end", "1.1", b"until the end"),
        (b"HTTP/1.1 200 OK\r\n\r\nuntil the end", "1.0", b"until the end"),
        (
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n"
            b"3\r\nabc\r\n0\r\n\r\n",
            "1.1",
            b"3\r\nabc\r\n0\r\n\r\n",
        ),
        (b"HTTP/1.1 304 Not Modified\r\nContent-Length: 7\r\n\r\n", "1.1", b""),
        (b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 204 No\r\n\r\n", "1.1", b""),
    ],
)
def test_answers(proxy: Proxied, answer: bytes, version: str, body: bytes) -> None:
    with server(Recorder(answer)) as port:
        got = proxy.ask(
            f"GET http://server.test:{port}/ HTTP/{version}\r\nHost: x\r\n"
            "Connection: close\r\n\r\n".encode()
        )
    assert body in got
    assert b"content-length: 3" not in got.lower()


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"no HTTP at all",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
        b"HTTP/1.1 101 Switching\r\nUpgrade: x\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + b"x" * MIB,
    ],
)
def test_bad_answers(proxy: Proxied, answer: bytes) -> None:
    with server(Recorder(answer)) as port:
        got = proxy.ask(f"GET http://server.test:{port}/ HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    assert got.startswith(b"HTTP/1.1 502 ")


def test_an_answer_cut_short_does_not_look_complete(proxy: Proxied) -> None:
    cut = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n64\r\nonly this"
    with server(Recorder(cut)) as port, proxy.connect() as sock:
        sock.sendall(f"GET http://server.test:{port}/ HTTP/1.0\r\n\r\n".encode())
        with pytest.raises(ConnectionResetError):
            read_all(sock)


@pytest.mark.parametrize("tail", [b"3\r\nabcXX", b"zz\r\n", b"3\r\nab"])
def test_a_body_that_breaks_off_ends_both_sides(proxy: Proxied, tail: bytes) -> None:
    ended = threading.Event()

    def wait_for_the_rest(sock: socket.socket) -> None:
        try:
            read_all(sock)
        finally:
            ended.set()

    with server(wait_for_the_rest) as port, proxy.connect() as sock:
        sock.sendall(
            f"POST http://server.test:{port}/ HTTP/1.1\r\nHost: x\r\n"
            "Transfer-Encoding: chunked\r\n\r\n".encode()
            + tail
        )
        sock.shutdown(socket.SHUT_WR)
        assert read_all(sock).startswith(b"HTTP/1.1 400 ")
        assert ended.wait(WAIT)


def test_a_refusal_reaches_a_client_that_sends_on(proxy: Proxied) -> None:
    with proxy.connect() as sock:
        sock.sendall(
            b"POST http://other.test/ HTTP/1.1\r\nHost: x\r\nContent-Length: 524288\r\n\r\n"
        )
        assert sock.recv(12) == b"HTTP/1.1 403"
        for _ in range(64):
            sock.sendall(b"x" * (MIB // 128))
        assert b"no rule allows other.test:80" in read_all(sock)


def test_an_early_answer_reaches_a_client_that_still_sends(proxy: Proxied) -> None:
    def refuse(sock: socket.socket) -> None:
        read_until(sock, b"\r\n\r\n")
        sock.sendall(b"HTTP/1.1 413 Too Large\r\nContent-Length: 0\r\n\r\n")

    with server(refuse) as port, proxy.connect() as sock:
        sock.sendall(
            f"POST http://server.test:{port}/ HTTP/1.1\r\nHost: x\r\n"
            "Expect: 100-continue\r\nContent-Length: 1000000\r\n\r\n".encode()
        )
        assert read_until(sock, b"\r\n\r\n").startswith(b"HTTP/1.1 413 ")


def test_expect_continue_goes_through(proxy: Proxied) -> None:
    def patient(sock: socket.socket) -> None:
        assert b"expect: 100-continue" in read_until(sock, b"\r\n\r\n").lower()
        sock.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        assert read_exactly(sock, 4) == b"body"
        sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")

    with server(patient) as port, proxy.connect() as sock:
        sock.sendall(
            f"POST http://server.test:{port}/ HTTP/1.1\r\nHost: x\r\n"
            "Expect: 100-continue\r\nContent-Length: 4\r\n\r\n".encode()
        )
        assert b" 100 " in read_until(sock, b"\r\n\r\n")
        sock.sendall(b"body")
        assert b" 200 " in read_until(sock, b"\r\n\r\n")


# --- what is refused ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rules", "target", "words"),
    [
        (EgressRules(), "a.example:443", 'no rule allows a.example:443; to allow it, add "a.ex'),
        (EgressRules(allow=["*"], deny=["a.example"]), "a.example:443", 'deny rule "a.example"'),
        (EgressRules(allow=["server.test"]), "server.test:1", "127.0.0.1, which is a loopback"),
        (EgressRules(allow=["*"]), "127.0.0.1:22", "127.0.0.1:22 is a loopback address"),
        (EgressRules(allow=["*"]), "[::1]:22", "loopback"),
        (EgressRules(allow=["*"]), "[::ffff:127.0.0.1]:22", "loopback"),
        (EgressRules(allow=["*"]), "169.254.169.254:80", "metadata"),
        (EgressRules(allow=["*"]), "2130706433:80", "four decimal numbers"),
        (EgressRules(allow=["*"]), "0x7f.1:80", "four decimal numbers"),
        (EgressRules(allow=["*"]), "a..example:80", "two dots"),
        (EgressRules(allow=["*"]), "a.example:0", "0 is no port"),
        (EgressRules(allow=["*"]), "a.example:65536", "65536 is no port"),
    ],
)
def test_refusals_say_why_and_how(rules: EgressRules, target: str, words: str) -> None:
    with Proxied(rules, names()) as proxy:
        answer = proxy.ask(f"CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n\r\n".encode())
        assert answer.startswith(b"HTTP/1.1 403 ")
        assert b"Content-Type: text/plain" in answer
        assert words in answer.decode()
        (decision,) = proxy.decisions
        assert not decision.allowed
        assert words in decision.reason


def test_names_that_no_rule_allows_are_not_looked_up(proxy: Proxied) -> None:
    answer = proxy.ask(b"CONNECT c2VjcmV0.evil.example:443 HTTP/1.1\r\nHost: x\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 403 ")
    assert proxy.names.asked == []


def test_rebinding_gains_nothing() -> None:
    """Each look-up's own answer is checked, and the very address checked is connected to."""
    reached: list[bytes] = []

    def secret(sock: socket.socket) -> None:
        reached.append(sock.recv(9))

    rules = EgressRules(allow=[Rule("a.test"), "127.0.0.2"])
    with ExitStack() as stack:
        port = stack.enter_context(server(secret))
        friend = stack.enter_context(socket.create_server(("127.0.0.2", port)))
        resolver = Names(a_test=["127.0.0.2", "127.0.0.1", "127.0.0.1 127.0.0.2", "::1"])
        proxy = stack.enter_context(Proxied(rules, resolver))
        with proxy.tunnel(f"a.test:{port}"):
            friend.accept()[0].close()
        request = f"CONNECT a.test:{port} HTTP/1.1\r\nHost: x\r\n\r\n".encode()
        assert b"127.0.0.1, which is a loopback" in proxy.ask(request)
        # both: the allowed one alone is used
        with proxy.tunnel(f"a.test:{port}"):
            friend.accept()[0].close()
        assert b"403" in proxy.ask(request)
        assert proxy.names.asked == ["a.test"] * 4
        assert [str(decision.address) for decision in proxy.decisions] == [
            "127.0.0.2",
            "127.0.0.1",
            "127.0.0.2",
            "::1",
        ]
    assert reached == []


def test_what_can_not_be_reached(proxy: Proxied) -> None:
    proxy.thread.update(EgressRules(allow=[Rule("*", allow_private=True)]))
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port = unused.getsockname()[1]
    answer = proxy.ask(f"CONNECT server.test:{port} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    assert answer.startswith(b"HTTP/1.1 502 ")
    assert b"Connection refused" in answer
    answer = proxy.ask(b"CONNECT unknown.test:80 HTTP/1.1\r\nHost: x\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 502 ")
    assert b"no such name" in answer
    assert [decision.allowed for decision in proxy.decisions] == [True, True]
    assert proxy.thread.counters.failed == 2


def test_a_second_address_is_tried() -> None:
    rules = EgressRules(allow=["a.test", "127.0.0.0/8", "::1"])
    with (
        server(echo) as port,
        Proxied(rules, Names(a_test=["::1 127.0.0.9 127.0.0.1"])) as proxy,
        proxy.tunnel(f"a.test:{port}") as sock,
    ):
        sock.sendall(b"x")
        assert read_exactly(sock, 1) == b"x"
        assert str(proxy.decisions[0].address) == "127.0.0.1"


def test_a_name_that_takes_too_long() -> None:
    class Never(Names):
        async def __call__(self, name: str) -> list[object]:  # type: ignore[override]
            await asyncio.Event().wait()
            raise AssertionError

    rules = EgressRules(allow=["*"])
    with Proxied(rules, Never(), limits=EgressLimits(connect_seconds=0.1)) as proxy:
        answer = proxy.ask(b"CONNECT a.test:80 HTTP/1.1\r\nHost: x\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 504 ")


# --- attacks on the HTTP parser -------------------------------------------------------------

BAD = {
    "both framings": b"POST %s HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n"
    b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "two lengths": b"POST %s HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\nContent-Length: 5\r\n\r\n",
    "list of lengths": b"POST %s HTTP/1.1\r\nHost: x\r\nContent-Length: 4, 5\r\n\r\n",
    "signed length": b"POST %s HTTP/1.1\r\nHost: x\r\nContent-Length: +4\r\n\r\nabcd",
    "hidden chunked": b"POST %s HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: xchunked\r\n\r\n",
    "chunked twice": b"POST %s HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked, chunked\r\n\r\n",
    "chunked in 1.0": b"POST %s HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "space before colon": b"POST %s HTTP/1.1\r\nHost: x\r\nContent-Length : 4\r\n\r\nabcd",
    "NUL in a header": b"GET %s HTTP/1.1\r\nHost: x\r\nA: b\0c\r\n\r\n",
    "CR in a header": b"GET %s HTTP/1.1\r\nHost: x\r\nA: b\rHost: y\r\n\r\n",
    "two hosts": b"GET %s HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n",
    "no host": b"GET %s HTTP/1.1\r\n\r\n",
    "space in the target": b"GET %s x HTTP/1.1\r\nHost: x\r\n\r\n",
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    "SOCKS 4": b"\x04\x01\x00\x50\x7f\x00\x00\x01\x00",
    "origin form": b"GET / HTTP/1.1\r\nHost: server.test\r\n\r\n",
    "asterisk": b"OPTIONS * HTTP/1.1\r\nHost: server.test\r\n\r\n",
    "another scheme": b"GET https://server.test/ HTTP/1.1\r\nHost: x\r\n\r\n",
    "ftp": b"GET ftp://server.test/ HTTP/1.1\r\nHost: x\r\n\r\n",
    "fragment": b"GET %s#x HTTP/1.1\r\nHost: x\r\n\r\n",
    "user name": b"GET http://server.test@evil.example/ HTTP/1.1\r\nHost: x\r\n\r\n",
    "password": b"GET http://user:secret@server.test/ HTTP/1.1\r\nHost: x\r\n\r\n",
    "backslash": b"GET http://evil.example\\@server.test/ HTTP/1.1\r\nHost: x\r\n\r\n",
    "bad port": b"GET http://server.test:x/ HTTP/1.1\r\nHost: x\r\n\r\n",
    "two ports": b"GET http://server.test:80:90/ HTTP/1.1\r\nHost: x\r\n\r\n",
    "CONNECT without port": b"CONNECT server.test HTTP/1.1\r\nHost: x\r\n\r\n",
    "CONNECT to a URL": b"CONNECT http://server.test:80 HTTP/1.1\r\nHost: x\r\n\r\n",
    "CONNECT with user": b"CONNECT a@server.test:80 HTTP/1.1\r\nHost: x\r\n\r\n",
    "CONNECT with body": b"CONNECT server.test:80 HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\n",
}


@pytest.mark.parametrize("case", BAD)
def test_malformed_requests_reach_nobody(
    proxy: Proxied, case: str, caplog: pytest.LogCaptureFixture
) -> None:
    recorder = Recorder()
    caplog.set_level(logging.DEBUG)
    with server(recorder) as port:
        url = f"http://server.test:{port}/secret".encode()
        with proxy.connect() as sock:
            sock.sendall(BAD[case].replace(b"%s", url))
            sock.shutdown(socket.SHUT_WR)
            answer = read_all(sock)
        assert answer.startswith((b"HTTP/1.1 4", b"HTTP/1.1 501 ")), answer
        assert b"secret" not in answer
        # the control: the same server is there for a request that is right
        assert b"200 OK" in proxy.ask(
            b"GET " + url + b" HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
        )
    assert len(recorder.requests) == 1
    assert "secret" not in caplog.text
    assert proxy.thread.counters.malformed == 1


def test_what_follows_a_body_is_a_request_of_its_own(proxy: Proxied) -> None:
    """A request hidden in a chunked body's tail is checked like any other."""
    recorder = Recorder()
    with server(recorder) as port:
        answer = proxy.ask(
            f"POST http://server.test:{port}/ HTTP/1.1\r\nHost: x\r\n"
            "Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
            f"GET http://other.test:{port}/ HTTP/1.1\r\nHost: server.test\r\n\r\n".encode()
        )
    assert b" 403 " in answer
    assert len(recorder.requests) == 1


def test_a_header_of_10_mib(proxy: Proxied) -> None:
    with proxy.connect() as sock:
        sock.sendall(b"GET http://server.test/ HTTP/1.1\r\nHost: x\r\n")
        try:
            for _ in range(10 * 16):
                sock.sendall(b"X-Long: " + b"x" * (MIB // 16) + b"\r\n")
            answer = read_all(sock)
        except ConnectionError:
            answer = b""
    assert answer == b"" or answer.startswith(b"HTTP/1.1 431 ")
    assert proxy.thread.counters.malformed == 1
    assert proxy.decisions == []


def test_slowloris() -> None:
    limits = EgressLimits(header_seconds=0.5, connections=4)
    with Proxied(RULES, names(), limits=limits) as proxy, server(echo) as port, ExitStack() as all_:
        # a byte now and then does not buy more time, and all slots are taken
        slow = [all_.enter_context(proxy.connect()) for _ in range(8)]
        stop = threading.Event()

        def trickle(sock: socket.socket) -> bytes:
            try:
                for byte in b"GET http://server.test/" + b"x" * 10**6:
                    sock.sendall(bytes([byte]))
                    if stop.wait(0.05):
                        break
            except ConnectionError:
                pass
            return b""

        pool = all_.enter_context(ThreadPoolExecutor(8))
        for sock in slow:
            pool.submit(trickle, sock)
        with proxy.tunnel(f"server.test:{port}") as sock:
            sock.sendall(b"x")
            assert read_exactly(sock, 1) == b"x"
        stop.set()


def test_silence() -> None:
    with (
        Proxied(RULES, names(), limits=EgressLimits(header_seconds=0.2)) as proxy,
        proxy.connect() as sock,
    ):
        assert read_all(sock) == b""
        with proxy.connect() as half:
            half.sendall(b"\5\1")
            with pytest.raises(ConnectionResetError):
                read_all(half)


def test_what_moves_is_not_idle() -> None:
    with (
        Proxied(RULES, names(), limits=EgressLimits(idle_seconds=2)) as proxy,
        server(echo) as port,
        proxy.tunnel(f"server.test:{port}") as sock,
    ):
        end = time.monotonic() + 3
        while time.monotonic() < end:
            sock.sendall(b"x")
            assert read_exactly(sock, 1) == b"x"
            time.sleep(0.1)


def test_idle_tunnels_are_reset() -> None:
    with (
        Proxied(RULES, names(), limits=EgressLimits(idle_seconds=0.2)) as proxy,
        server(echo) as port,
        proxy.tunnel(f"server.test:{port}") as sock,
        pytest.raises(ConnectionResetError),
    ):
        read_all(sock)


@settings(max_examples=300, deadline=None)
@given(
    data=st.one_of(
        st.binary(max_size=200),
        st.binary(max_size=60).map(lambda tail: b"\5" + tail),
        st.binary(max_size=60).map(lambda tail: b"\5\1\0\5\1\0" + tail),
        st.lists(
            st.sampled_from(
                [b"GET ", b"CONNECT ", b"http://", b"server.test", b":1", b"/", b" HTTP/1.1",
                 b"\r\n", b"\r\n\r\n", b"Host: x", b"Content-Length: 3", b"\0", b"\xff", b":",
                 b"Transfer-Encoding: chunked", b"0", b"abc", b"@", b"[", b"]", b" ", b"\n"]
            ),
            max_size=25,
        ).map(b"".join),
    )
)  # fmt: skip
def test_any_bytes_are_answered_or_closed(fuzzed: Proxied, data: bytes) -> None:
    with fuzzed.connect() as sock:
        try:
            sock.sendall(data)
            sock.shutdown(socket.SHUT_WR)
            answer = read_all(sock)
        except ConnectionError:
            return
    assert answer == b"" or answer.startswith((b"HTTP/1.1 ", b"\5"))


@settings(max_examples=150, deadline=None)
@given(
    answer=st.one_of(
        st.binary(max_size=200),
        st.lists(
            st.sampled_from(
                [b"HTTP/1.1 200 OK", b"HTTP/1.1 204 X", b"HTTP/1.0 ", b"HTTP/1.1 100 ", b"101",
                 b"\r\n", b"\r\n\r\n", b"Content-Length: 3", b"Content-Length: -1", b"abc",
                 b"3\r\nabc\r\n", b"0\r\n\r\n", b"Transfer-Encoding: chunked", b"\0",
                 b"ffffffffffffffffff\r\n", b"Connection: close", b"Connection: upgrade",
                 b"Proxy-Authenticate: x", b" ", b":"]
            ),
            max_size=20,
        ).map(b"".join),
    )
)  # fmt: skip
@example(answer=GOOD_ANSWER)
@example(answer=b"HTTP/1.0 100 Proxy-Authenticate\r\n\r\n")
@example(answer=b"HTTP/1.1 204 X\r\nProxy-Authenticate: x\r\n\r\n")
def test_any_answer_of_a_server_is_passed_on_or_an_error(fuzzed: Proxied, answer: bytes) -> None:
    """A server may say what it likes: its client hears HTTP, or the end."""

    def say(sock: socket.socket) -> None:
        read_until(sock, b"\r\n\r\n")
        sock.sendall(answer)

    with server(say) as port, fuzzed.connect() as sock:
        target = f"http://server.test:{port}/"
        try:
            sock.sendall(f"GET {target} HTTP/1.1\r\nHost: server.test:{port}\r\n\r\n".encode())
            sock.shutdown(socket.SHUT_WR)
            heard = read_all(sock)
        except ConnectionError:
            return
    assert heard == b"" or heard.startswith(b"HTTP/1.1 ")
    assert answer != GOOD_ANSWER or heard.endswith(b"abc"), "control"
    # a header; what follows the status is for the server to say
    assert b"\r\nProxy-Authenticate" not in heard.partition(b"\r\n\r\n")[0]


@pytest.fixture(scope="module")
def fuzzed() -> Iterator[Proxied]:
    failures: list[logging.LogRecord] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            failures.append(record)

    logger = logging.Logger("fuzzed")
    logger.addHandler(Keep(level=logging.WARNING))
    with Proxied(RULES, names(), logger=logger) as made:
        yield made
        # nothing was raised out, and it still serves
        assert made.ask(b"CONNECT a.test:1 HTTP/1.1\r\nHost: x\r\n\r\n").startswith(b"HTTP/1.1 403")
    assert failures == []


# --- streams --------------------------------------------------------------------------------


def test_huge_streams_both_ways_at_once(proxy: Proxied) -> None:
    block = os.urandom(MIB)
    expected = hashlib.sha256(block * (HUGE // MIB)).hexdigest()
    seen: dict[str, str] = {}

    def take(sock: socket.socket, who: str) -> None:
        digest = hashlib.sha256()
        while chunk := sock.recv(1 << 18):
            digest.update(chunk)
        seen[who] = digest.hexdigest()

    def give(sock: socket.socket) -> None:
        for _ in range(HUGE // MIB):
            sock.sendall(block)
        sock.shutdown(socket.SHUT_WR)

    def both(sock: socket.socket, who: str) -> None:
        giver = threading.Thread(target=give, args=[sock])
        giver.start()
        take(sock, who)
        giver.join()

    with server(lambda sock: both(sock, "server")) as port:
        sock, code = proxy.socks(b"server.test", port)
        with sock:
            assert code == 0
            both(sock, "client")
    assert seen == {"client": expected, "server": expected}
    counters = proxy.thread.counters
    assert (counters.sent, counters.received) == (HUGE, HUGE)


def test_a_huge_upload_and_download_by_plain_http(proxy: Proxied) -> None:
    block = os.urandom(MIB)

    def serve(sock: socket.socket) -> None:
        read_until(sock, b"\r\n\r\n")
        digest = hashlib.sha256(read_exactly_large(sock, HUGE))
        sock.sendall(f"HTTP/1.1 200 OK\r\nContent-Length: {HUGE}\r\nX: {digest.hexdigest()}"
                     "\r\n\r\n".encode())  # fmt: skip
        for _ in range(HUGE // MIB):
            sock.sendall(block)

    with server(serve) as port, proxy.connect() as sock:
        sock.sendall(
            f"PUT http://server.test:{port}/ HTTP/1.1\r\nHost: x\r\nContent-Length: {HUGE}"
            "\r\n\r\n".encode()
        )
        for _ in range(HUGE // MIB):
            sock.sendall(block)
        head = read_until(sock, b"\r\n\r\n")
        whole = hashlib.sha256(block * (HUGE // MIB)).hexdigest()
        assert whole.encode() in head
        assert hashlib.sha256(read_exactly_large(sock, HUGE)).hexdigest() == whole


def read_exactly_large(sock: socket.socket, length: int) -> bytes:
    data = bytearray(length)
    view = memoryview(data)
    while view:
        count = sock.recv_into(view)
        assert count
        view = view[count:]
    return bytes(data)


def test_a_slow_reader_stops_the_writer(proxy: Proxied) -> None:
    """What the proxy and the kernel hold is bounded: the writer comes to a stand."""
    stuck = threading.Event()

    def flood(sock: socket.socket) -> None:
        sock.settimeout(2)
        try:
            for _ in range(512):
                sock.sendall(b"x" * MIB)
        except TimeoutError:
            stuck.set()

    with server(flood) as port, proxy.tunnel(f"server.test:{port}"):
        assert stuck.wait(WAIT)
        assert proxy.thread.counters.received < 64 * MIB


def test_half_close_both_ways(proxy: Proxied) -> None:
    def after_the_end(sock: socket.socket) -> None:
        data = read_all(sock)
        sock.sendall(b"got " + data)

    def before_the_end(sock: socket.socket) -> None:
        sock.sendall(b"bye")
        sock.shutdown(socket.SHUT_WR)
        assert read_all(sock) == b"still here"

    with server(after_the_end) as port, proxy.tunnel(f"server.test:{port}") as sock:
        sock.sendall(b"all")
        sock.shutdown(socket.SHUT_WR)
        assert read_all(sock) == b"got all"
    with server(before_the_end) as port, proxy.tunnel(f"server.test:{port}") as sock:
        assert read_all(sock) == b"bye"
        sock.sendall(b"still here")
        sock.shutdown(socket.SHUT_WR)


def test_a_reset_is_passed_on(proxy: Proxied) -> None:
    ended: list[str] = []
    over = threading.Event()

    def reset(sock: socket.socket) -> None:
        sock.sendall(b"part")
        sock.recv(1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)

    def see(sock: socket.socket) -> None:
        try:
            read_all(sock)
            ended.append("end")
        except ConnectionResetError:
            ended.append("reset")
        over.set()

    with server(reset) as port, proxy.tunnel(f"server.test:{port}") as sock:
        assert read_exactly(sock, 4) == b"part"
        sock.sendall(b"x")
        with pytest.raises(ConnectionResetError):
            read_all(sock)
    with server(see) as port:
        # the client dies
        sock = proxy.tunnel(f"server.test:{port}")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        sock.close()
        assert over.wait(WAIT)
    assert ended == ["reset"]


def test_two_hundred_at_once(proxy: Proxied) -> None:
    with server(echo) as port, ExitStack() as stack:
        socks = [stack.enter_context(proxy.tunnel(f"server.test:{port}")) for _ in range(200)]
        for number, sock in enumerate(socks):
            sock.sendall(f"{number:05d}".encode())
        for number, sock in enumerate(socks):
            assert read_exactly(sock, 5) == f"{number:05d}".encode()
        assert proxy.thread.counters.open == 200


def test_more_than_the_limit_wait() -> None:
    with (
        Proxied(RULES, names(), limits=EgressLimits(connections=1)) as proxy,
        server(echo) as port,
        proxy.tunnel(f"server.test:{port}") as held,
        proxy.connect() as late,
    ):
        late.sendall(f"CONNECT server.test:{port} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        late.settimeout(0.2)
        with pytest.raises(TimeoutError):
            late.recv(1)
        assert proxy.thread.counters.open == 1
        held.shutdown(socket.SHUT_WR)
        assert read_all(held) == b""
        late.settimeout(WAIT)
        assert read_until(late, b"\r\n\r\n").startswith(b"HTTP/1.1 200")


# --- life -----------------------------------------------------------------------------------


def test_new_rules_close_what_they_do_not_allow(proxy: Proxied) -> None:
    both = EgressRules(
        allow=[Rule("server.test", allow_private=True), Rule("other.test", allow_private=True)]
    )
    proxy.thread.update(both)
    with (
        server(echo) as port,
        proxy.tunnel(f"server.test:{port}") as stays,
        proxy.tunnel(f"other.test:{port}") as goes,
    ):
        proxy.thread.update(RULES)
        with pytest.raises(ConnectionResetError):
            read_all(goes)
        stays.sendall(b"x")
        assert read_exactly(stays, 1) == b"x"
        assert b" 403 " in proxy.ask(
            f"CONNECT other.test:{port} HTTP/1.1\r\nHost: x\r\n\r\n".encode()
        )
        # by address, too
        proxy.thread.update(EgressRules(allow=["server.test"]))
        with pytest.raises(ConnectionResetError):
            read_all(stays)
    assert proxy.thread.counters.closed == 2


def test_rules_that_change_while_a_name_is_looked_up() -> None:
    asked, go = threading.Event(), threading.Event()

    class Slow(Names):
        async def __call__(self, name: str) -> list[object]:  # type: ignore[override]
            asked.set()
            await asyncio.to_thread(go.wait, WAIT)
            return list(await super().__call__(name))

    with (
        server(echo) as port,
        Proxied(RULES, Slow(server_test=["127.0.0.1"])) as proxy,
        proxy.connect() as sock,
    ):
        sock.sendall(f"CONNECT server.test:{port} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        assert asked.wait(WAIT)
        proxy.thread.update(EgressRules())
        go.set()
        assert read_all(sock).startswith(b"HTTP/1.1 403 ")


def test_a_callback_that_raises_changes_nothing(caplog: pytest.LogCaptureFixture) -> None:
    def broken(decision: Decision) -> None:
        raise RuntimeError(decision.host)

    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    with EgressThread(EgressRules(), [listener], on_decision=broken) as thread:
        for _ in range(2):
            with socket.create_connection(("127.0.0.1", port)) as sock:
                sock.sendall(b"CONNECT a.test:1 HTTP/1.1\r\nHost: x\r\n\r\n")
                assert read_all(sock).startswith(b"HTTP/1.1 403 ")
        assert thread.counters.refused == 2
    assert "callback" in caplog.text


def test_decisions_are_logged_without_secrets(
    proxy: Proxied, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    with server(Recorder()) as port:
        proxy.ask(
            f"GET http://server.test:{port}/hidden?token=hidden HTTP/1.1\r\nHost: x\r\n"
            "Authorization: hidden\r\nConnection: close\r\n\r\n".encode()
        )
    proxy.ask(b"CONNECT other.test:9\r\n\r\n")
    proxy.ask(b"CONNECT other.test:9 HTTP/1.1\r\nHost: hidden\r\n\r\n")
    assert f"egress allowed: http server.test port {port}, address 127.0.0.1" in caplog.text
    assert "egress refused: connect other.test port 9" in caplog.text
    assert "hidden" not in caplog.text


def fds() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_nothing_is_left(tmp_path: Path) -> None:
    before = fds(), threading.active_count()
    path = tmp_path / "proxy.sock"
    with server(echo) as port:
        with (
            EgressThread(RULES, path=path, resolver=names()) as thread,
            socket.socket(socket.AF_UNIX) as sock,
        ):
            assert path.stat().st_mode & 0o777 == 0o600
            sock.connect(str(path))
            sock.sendall(f"CONNECT server.test:{port} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            assert read_until(sock, b"\r\n\r\n").startswith(b"HTTP/1.1 200")
            thread.close()
            assert read_all(sock) == b""
            thread.close()
            thread.update(EgressRules())
        assert not path.exists()
    assert before == (fds(), threading.active_count())


def test_a_left_over_socket_file_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "proxy.sock"
    with unix_listener(path), pytest.raises(NsrunError, match="in use"):
        unix_listener(path)
    assert path.exists()
    with EgressThread(EgressRules(), path=path):
        pass
    path.write_text("a file of somebody's")
    with pytest.raises(NsrunError, match="in use"):
        EgressThread(EgressRules(), path=path)
    assert path.read_text() == "a file of somebody's"


def test_in_a_loop_of_the_callers() -> None:
    async def main(port: int) -> None:
        listeners = [socket.create_server(("127.0.0.1", 0)) for _ in range(2)]
        ports = [listener.getsockname()[1] for listener in listeners]
        async with (
            EgressProxy(RULES, resolver=names()) as proxy,
            proxy.serving(listeners[:1]),
            proxy.serving(listeners[1:]),
        ):
            for own in ports:
                reader, writer = await asyncio.open_connection("127.0.0.1", own)
                writer.write(f"CONNECT server.test:{port} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
                assert (await reader.readline()).startswith(b"HTTP/1.1 200")
                writer.close()
                await writer.wait_closed()
            assert proxy.counters.allowed == 2
            assert proxy.rules is RULES
        assert [listener.fileno() for listener in listeners] == [-1, -1]
        assert proxy.counters.open == 0

    with server(echo) as port:
        asyncio.run(main(port))


def test_the_systems_resolver(localhost: str) -> None:
    with server(echo) as port:
        listener = socket.create_server(("127.0.0.1", 0))
        own = listener.getsockname()[1]
        rules = EgressRules(allow=[Rule(localhost, allow_private=True), "no-such.invalid"])
        with EgressThread(rules, [listener]):
            for target, answer in (
                (f"{localhost}:{port}", b"HTTP/1.1 200 "),
                ("no-such.invalid:1", b"HTTP/1.1 502 "),
            ):
                with socket.create_connection(("127.0.0.1", own)) as sock:
                    sock.sendall(f"CONNECT {target} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
                    assert read_until(sock, b"\r\n").startswith(answer)


# --- an upstream proxy ----------------------------------------------------------------------


def ask_both(proxy: Proxied, port: int) -> list[bytes]:
    plain = f"http://server.test:{port}/a"
    return [
        proxy.ask(f"GET {plain} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode()),
        proxy.ask(f"CONNECT other.test:{port} HTTP/1.1\r\nHost: x\r\n\r\n".encode()),
    ]


def test_upstream() -> None:
    """One proxy behind another: the first decides, the second resolves."""
    far_rules = EgressRules(allow=[Rule("*.test", allow_private=True)])
    recorder = Recorder()
    with Proxied(far_rules, names()) as far, server(recorder) as port:
        url = f"http://user:secret@127.0.0.1:{far.port}"
        with Proxied(EgressRules(allow=["server.test"]), Names(), upstream=url) as near:
            plain, refused = ask_both(near, port)
            assert plain.endswith(b"ok")
            assert refused.startswith(b"HTTP/1.1 403 ")
            with near.tunnel(f"server.test:{port}") as sock:
                sock.sendall(b"GET /b HTTP/1.0\r\n\r\n")
                assert read_all(sock).endswith(b"ok")
            assert near.names.asked == []
            assert [decision.protocol for decision in far.decisions] == ["http", "connect"]
            assert b"secret" not in b"".join(recorder.requests)


def test_an_upstream_that_refuses(caplog: pytest.LogCaptureFixture) -> None:
    answers: list[Callable[[socket.socket], None]] = [
        Recorder(b"HTTP/1.1 407 Who are you\r\nContent-Length: 0\r\n\r\n"),
        Recorder(b"garbage\r\n\r\n"),
        Recorder(b""),
    ]
    for answer in answers:
        with (
            server(answer) as port,
            Proxied(
                EgressRules(allow=["*"]), upstream=f"http://u:hidden@127.0.0.1:{port}"
            ) as proxy,
        ):
            got = proxy.ask(b"CONNECT a.example:443 HTTP/1.1\r\nHost: x\r\n\r\n")
            assert got.startswith(b"HTTP/1.1 502 ")
            assert b"upstream" in got
            got = proxy.ask(b"CONNECT 127.0.0.1:443 HTTP/1.1\r\nHost: x\r\n\r\n")
            assert got.startswith(b"HTTP/1.1 403 ")
    assert "hidden" not in caplog.text


# --- a lack of descriptors ------------------------------------------------------------------


def no_more_fds() -> tuple[int, int]:
    """Let no descriptor be opened; returns the limits from before."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    with open("/dev/null", "rb") as lowest:
        limit = lowest.fileno()
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, before[1]))
    return before


def test_it_serves_again_when_there_are_descriptors(in_child: InChild) -> None:
    def main() -> tuple[bytes, bytes]:
        with Proxied(EgressRules()) as proxy, socket.socket() as sock:
            sock.settimeout(0.2)
            before = no_more_fds()
            sock.connect(("127.0.0.1", proxy.port))
            sock.sendall(b"CONNECT a.test:1 HTTP/1.1\r\nHost: x\r\n\r\n")
            try:
                early = sock.recv(1)
            except TimeoutError:
                early = b""
            resource.setrlimit(resource.RLIMIT_NOFILE, before)
            sock.settimeout(WAIT)
            return early, sock.recv(12)

    assert in_child(main) == (b"", b"HTTP/1.1 403")


def test_a_thread_that_can_not_start_says_so(in_child: InChild) -> None:
    def main() -> tuple[str, int]:
        listener = socket.create_server(("127.0.0.1", 0))
        no_more_fds()
        try:
            EgressThread(EgressRules(), [listener])
        except NsrunError as error:
            return error.text, listener.fileno()
        return "started", 0

    text, fd = in_child(main)
    assert "can't start" in text
    assert "open files" in text
    assert fd == -1
