"""What the tests of egress share: servers on loopback, clients in a namespace without network."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from ipaddress import IPv4Address, ip_address
from pathlib import Path
from typing import Any

from cowork_nsrun.policy import Decision, EgressRules, EgressThread, environment
from cowork_nsrun.policy.hosts import Address

INSIDE = Path(__file__).with_name("egress_inside.py")
LOOPBACK = IPv4Address("127.0.0.1")
WAIT = 60


class Names:
    """A resolver with names of its own; each look-up takes the next answer, then the last."""

    def __init__(self, **answers: Sequence[str]) -> None:
        self.asked: list[str] = []
        self._answers = {
            name.replace("_", "."): [list(map(ip_address, answer.split())) for answer in given]
            for name, given in answers.items()
        }

    async def __call__(self, name: str) -> list[Address]:
        self.asked.append(name)
        try:
            answers = self._answers[name]
        except KeyError:
            raise OSError(-2, "no such name") from None
        return answers.pop(0) if len(answers) > 1 else answers[0]


@contextmanager
def inside(
    command: Sequence[str],
    env: Mapping[str, str],
    *,
    cwd: Path | None = None,
    helper: Sequence[str] = (sys.executable, str(INSIDE)),
) -> Iterator[tuple[subprocess.Popen[bytes], list[socket.socket], Callable[[], None]]]:
    """A command in a network namespace of its own, its listeners, and what lets it start."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        process = subprocess.Popen(
            ["unshare", "-rn", *helper, str(theirs.fileno()), *command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            pass_fds=[theirs.fileno()],
            env=dict(env),
            cwd=cwd,
        )
        with process:
            try:
                theirs.close()
                _data, fds, _flags, _address = socket.recv_fds(ours, 1, 2)
                assert len(fds) == 2, "the namespace could not be made"
                yield process, [socket.socket(fileno=fd) for fd in fds], lambda: ours.sendall(b"x")
            finally:
                process.kill()


def clean_environment(**more: str) -> dict[str, str]:
    keep = {
        name: value
        for name, value in os.environ.items()
        if "proxy" not in name.lower() and not name.startswith(("PIP_", "GIT_"))
    }
    return keep | {"PIP_CONFIG_FILE": "/dev/null", "GIT_TERMINAL_PROMPT": "0"} | more


class Ran:
    """How a command inside ended, and what the proxy decided meanwhile."""

    def __init__(self, status: int, output: str, decisions: list[Decision]) -> None:
        self.status = status
        self.output = output
        self.decisions = decisions

    def __repr__(self) -> str:
        return f"status {self.status}, {self.decisions}, output:\n{self.output}"


def run_inside(
    command: Sequence[str],
    rules: EgressRules,
    names: Names | None = None,
    *,
    cwd: Path | None = None,
    helper: Sequence[str] = (sys.executable, str(INSIDE)),
) -> Ran:
    """Run a command that has no network but the proxy."""
    decisions: list[Decision] = []
    variables = clean_environment(**environment())
    with (
        inside(command, variables, cwd=cwd, helper=helper) as (process, listeners, go),
        EgressThread(rules, listeners, resolver=names or Names(), on_decision=decisions.append),
    ):
        go()
        output, _none = process.communicate(timeout=WAIT)
    return Ran(process.returncode, output.decode(errors="replace"), decisions)


@contextmanager
def server(handle: Callable[[socket.socket], Any], address: str = "127.0.0.1") -> Iterator[int]:
    """A TCP server on loopback with a thread for each connection; gives its port."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    listener = socket.create_server((address, 0), family=family, backlog=256)
    threads: list[threading.Thread] = []
    errors: list[BaseException] = []

    def serve(sock: socket.socket) -> None:
        with sock:
            sock.settimeout(WAIT)
            try:
                handle(sock)
            except ConnectionError:
                pass
            except BaseException as error:  # noqa: BLE001 - the test raises it
                errors.append(error)

    def accept() -> None:
        while True:
            try:
                sock, _peer = listener.accept()
            except OSError:
                return
            thread = threading.Thread(target=serve, args=[sock])
            threads.append(thread)
            thread.start()

    acceptor = threading.Thread(target=accept)
    acceptor.start()
    try:
        yield listener.getsockname()[1]
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        acceptor.join()
        for thread in threads:
            thread.join(WAIT)
        assert not errors, errors


def read_all(sock: socket.socket) -> bytes:
    chunks = []
    while chunk := sock.recv(1 << 16):
        chunks.append(chunk)
    return b"".join(chunks)


def read_until(sock: socket.socket, mark: bytes) -> bytes:
    data = b""
    while mark not in data:
        chunk = sock.recv(1)
        if not chunk:
            break
        data += chunk
    return data


def read_exactly(sock: socket.socket, length: int) -> bytes:
    data = b""
    while len(data) < length:
        chunk = sock.recv(length - len(data))
        assert chunk, f"ended after {data!r}"
        data += chunk
    return data


class Proxied:
    """A proxy whose listeners are in this namespace, to be attacked by plain sockets."""

    def __init__(self, rules: EgressRules, names: Names | None = None, **options: Any) -> None:
        self.decisions: list[Decision] = []
        self.names = names or Names()
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=256)
        self.port: int = self._listener.getsockname()[1]
        self.thread = EgressThread(
            rules,
            [self._listener],
            resolver=self.names,
            on_decision=self.decisions.append,
            **options,
        )

    def __enter__(self) -> Proxied:
        return self

    def __exit__(self, *_error: object) -> None:
        self.thread.close()

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=WAIT)

    def ask(self, data: bytes) -> bytes:
        """Everything that comes back for some bytes."""
        with self.connect() as sock:
            sock.sendall(data)
            return read_all(sock)

    def tunnel(self, target: str) -> socket.socket:
        sock = self.connect()
        sock.sendall(f"CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n\r\n".encode())
        head = read_until(sock, b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200 "), head
        return sock

    def socks(self, host: bytes, port: int) -> tuple[socket.socket, int]:
        """A connection asked for by name, and the reply's code."""
        sock = self.connect()
        sock.sendall(b"\5\1\0")
        assert read_exactly(sock, 2) == b"\5\0"
        sock.sendall(b"\5\1\0\3" + bytes([len(host)]) + host + port.to_bytes(2))
        return sock, read_exactly(sock, 10)[1]
