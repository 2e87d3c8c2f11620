"""Veth networks, as root: what is made, what gets through, and that nothing stays."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from ipaddress import IPv4Network
from typing import NoReturn

import pytest

from cowork_nsrun import NsrunError, SpecError
from cowork_nsrun.policy.veth import Veth

Lack = Callable[[str], NoReturn]
AsUser = Callable[[Callable[[], object]], object]
WAIT = 30
REPORT = b"x"


@contextmanager
def namespace() -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """A process in a network namespace of its own, and a descriptor of that."""
    command = ["unshare", "-n", "sh", "-c", "echo x; exec sleep 1000"]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.read(1) == REPORT
            fd = os.open(f"/proc/{process.pid}/ns/net", os.O_RDONLY)
            try:
                yield process, fd
            finally:
                os.close(fd)
        finally:
            process.kill()


@pytest.fixture(autouse=True)
def root(lack: Lack) -> None:
    if os.geteuid():
        lack("veth networks take root")


def devices() -> set[str]:
    return {name for _index, name in socket.if_nameindex()}


def within(process: subprocess.Popen[bytes], script: str) -> str:
    command = ["nsenter", "-t", str(process.pid), "-n", sys.executable, "-c", script]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def test_traffic_and_that_nothing_stays() -> None:
    before = devices(), sorted(os.listdir("/proc/self/fd"))
    ask = (
        "import socket\n"
        "try: print(socket.create_connection(('{}', {}), timeout=5).recv(5).decode())\n"
        "except OSError as error: print(error.strerror)"
    )
    with (
        namespace() as (process, fd),
        socket.create_server(("0.0.0.0", 0)) as server,
    ):
        port = server.getsockname()[1]
        with Veth.open(fd) as veth:
            assert devices() == before[0] | {veth.name}
            assert veth.host.network == veth.inside.network
            child = subprocess.Popen(
                ["nsenter", "-t", str(process.pid), "-n", sys.executable, "-c",
                 ask.format(veth.host.ip, port)], stdout=subprocess.PIPE,
            )  # fmt: skip
            client, peer = server.accept()
            with client:
                assert peer[0] == str(veth.inside.ip)
                client.sendall(b"hello")
            assert child.communicate(timeout=WAIT)[0] == b"hello\n"
            routes = within(process, "print(open('/proc/net/route').read())")
            gateway = f"{int.from_bytes(veth.host.ip.packed, 'little'):08X}"
            assert ["eth0", "00000000", gateway] in [line.split()[:3] for line in
                                                     routes.splitlines()]  # fmt: skip
        # the control of what follows: it was there before
        assert within(process, ask.format(veth.host.ip, port)) == "Network is unreachable"
        names = "import socket; print([name for _, name in socket.if_nameindex()])"
        assert within(process, names) == "['lo']"
        veth.close()
    assert (devices(), sorted(os.listdir("/proc/self/fd"))) == before


def test_two_at_once_have_networks_of_their_own() -> None:
    with (
        namespace() as (_first, one),
        namespace() as (_second, other),
        Veth.open(one) as left,
        Veth.open(other) as right,
    ):
        assert not left.host.network.overlaps(right.host.network)


def test_a_network_by_name() -> None:
    with (
        namespace() as (_process, fd),
        Veth.open(fd, IPv4Network("198.18.7.0/29")) as veth,
    ):
        assert (str(veth.host), str(veth.inside)) == ("198.18.7.1/29", "198.18.7.2/29")


OWNER = """
import os, sys, time
from cowork_nsrun.policy.veth import Veth
print(Veth.open(os.open(sys.argv[1], os.O_RDONLY)).name, flush=True)
time.sleep(1000)
"""


def test_a_killed_owner_leaves_nothing() -> None:
    with namespace() as (process, fd):
        with subprocess.Popen(
            [sys.executable, "-P", "-c", OWNER, f"/proc/{process.pid}/ns/net"],
            stdout=subprocess.PIPE,
            text=True,
        ) as owner:
            assert owner.stdout is not None
            name = owner.stdout.readline().strip()
            assert name in devices()
            owner.send_signal(signal.SIGKILL)
        os.stat(fd)
    # namespaces are taken down by a kernel thread, some time after their last process
    end = time.monotonic() + WAIT
    while name in devices() and time.monotonic() < end:
        time.sleep(0.01)
    assert name not in devices()


def test_wrong_descriptors() -> None:
    own = os.open("/proc/self/ns/net", os.O_RDONLY)
    other = os.open("/proc/self/ns/uts", os.O_RDONLY)
    try:
        for fd, problem in ((own, "own"), (other, "another kind"), (-1, "no namespace")):
            with pytest.raises(SpecError, match=problem):
                Veth.open(fd)
    finally:
        os.close(own)
        os.close(other)
    with namespace() as (_process, fd), pytest.raises(SpecError, match="no room"):
        Veth.open(fd, IPv4Network("10.0.0.0/32"))


def test_failures_leave_nothing() -> None:
    """The namespace has an eth0 already, so the kernel refuses to put ours there."""
    before = devices(), sorted(os.listdir("/proc/self/fd"))
    with namespace() as (_process, fd), Veth.open(fd):
        within_ = devices()
        with pytest.raises(NsrunError) as caught:
            Veth.open(fd)
        assert caught.value.errno
        assert devices() == within_
    assert (devices(), sorted(os.listdir("/proc/self/fd"))) == before


def test_without_privileges(in_child: AsUser) -> None:
    with namespace() as (_process, fd):

        def drop_and_open() -> str:
            os.setresuid(12345, 12345, 12345)
            try:
                Veth.open(fd)
            except NsrunError as error:
                return error.text
            return "made"

        assert "it takes root" in str(in_child(drop_and_open))
