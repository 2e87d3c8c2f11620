"""Veth networks, as root: what is made, what gets through, and that nothing stays."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from ipaddress import IPv4Network
from typing import NoReturn

import pytest

from cowork_nsrun import PIPE, Egress, Namespace, NsrunError, Sandbox, SpecError
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


# --- as a sandbox's network -------------------------------------------------------------------


@pytest.fixture
def server() -> Iterator[int]:
    """A service of the host's, on every address, that answers one word."""
    with socket.create_server(("0.0.0.0", 0)) as listener:

        def answer() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                with connection:
                    connection.sendall(b"hello")

        thread = threading.Thread(target=answer)
        thread.start()
        yield int(listener.getsockname()[1])
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()


def _ask(spec: Sandbox, port: int) -> tuple[str, str]:
    """What a sandbox hears of the host at its gateway, and its devices."""
    script = (
        "read line; set -- $line; exec 3<>/dev/tcp/$1/$2; cat <&3; "
        "sed -n 's/^ *\\([^ ]*\\):.*/ \\1/p' /proc/net/dev"
    )
    with spec.popen(["bash", "-c", script], stdin=PIPE, stdout=PIPE, stderr=PIPE, text=True) as run:
        gateway = "127.0.0.1" if run.veth is None else str(run.veth.host.ip)
        out, err = run.communicate(f"{gateway} {port}\n", timeout=WAIT)
        return out, err


def test_a_sandbox_reaches_the_host_by_it(server: int) -> None:
    before = devices()
    spec = Sandbox.minimal()
    assert _ask(spec.network("veth"), server)[0] == "hello lo\n eth0\n"
    assert devices() == before
    # the control: without it there is no way
    assert "hello" not in _ask(spec.network("none"), server)[0]


def test_a_sandbox_can_not_change_it() -> None:
    """The namespace is the host's own user's: no capability inside reaches it."""
    spec = Sandbox.minimal().network("veth").replace(caps_drop=frozenset())
    spec = spec.replace(unshare=spec.unshare | {Namespace.USER}, caps_add=frozenset({"all"}))
    script = "import fcntl, socket; s = socket.socket(); fcntl.ioctl(s, 0x8914, b'eth0'.ljust(40))"
    done = spec.bind(sys.base_prefix, read_only=True).run(
        [os.path.realpath(sys.executable), "-c", script], text=True
    )
    assert "Operation not permitted" in done.stderr, done


def test_asyncio_and_pool() -> None:
    before = devices()
    spec = Sandbox.minimal().network("veth")
    script = ["sh", "-c", "test -e /sys/class/net || grep -c eth0 /proc/net/dev"]
    assert asyncio.run(spec.arun(script)).stdout == b"1\n"
    with spec.pool(1) as pool:
        assert pool.run(script).stdout == b"1\n"
    assert devices() == before


SANDBOX_OWNER = """
import sys, time
from cowork_nsrun import Sandbox
run = Sandbox.minimal().network("veth").popen(["sleep", "1000"])
print(run.veth.name, run.pid, flush=True)
time.sleep(1000)
"""


def test_nothing_is_left_of_a_killed_owner() -> None:
    command = [sys.executable, "-I", "-c", SANDBOX_OWNER]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None
        name, pid = owner.stdout.readline().split()
        assert name in devices()
        owner.kill()
    end = time.monotonic() + WAIT
    while name in devices() or os.path.exists(f"/proc/{pid}"):
        assert time.monotonic() < end, "the network outlives its owner"
        time.sleep(0.01)


def test_a_failed_start_leaves_nothing() -> None:
    before = devices(), sorted(os.listdir("/proc/self/fd"))
    with pytest.raises(NsrunError):
        Sandbox.minimal().network("veth").run(["/nothing/there"])
    assert (devices(), sorted(os.listdir("/proc/self/fd"))) == before


def test_others_are_told_that_it_takes_root(as_user: AsUser) -> None:
    def attempt() -> str:
        try:
            Sandbox.minimal().network("veth").run(["true"])
        except NsrunError as error:
            return error.text
        return f"made by {os.geteuid()}"

    said = str(as_user(attempt))
    assert said == "made by 0" or "takes root on the host" in said


def test_what_does_not_go_together() -> None:
    veth = Sandbox.minimal().network("veth")
    with pytest.raises(SpecError, match="egress rules would not hold"):
        veth.replace(egress=Egress(allow=("a.example",)))
    with pytest.raises(SpecError, match="needs 'net'"):
        Sandbox(veth=True)
    assert not veth.network("host").veth
    assert not veth.allow_hosts("a.example").veth


def test_the_word_of_the_command_line() -> None:
    command = [sys.executable, "-I", "-m", "cowork_nsrun.cli", "run", "--network", "veth", "--"]
    done = subprocess.run([*command, "cat", "/proc/net/dev"], capture_output=True, text=True,
                          check=True)  # fmt: skip
    assert "eth0:" in done.stdout
