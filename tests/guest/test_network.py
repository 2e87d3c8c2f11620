"""A stock kernel whose network card is joined to nsrun-slirp.

On KVM that runs stock kernels alone: in the bed.
"""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import NoReturn

import pytest
from net_servers import answer_crc, name_server, sender, tcp_server

from cowork_nsrun.guest.image import Image, prepare
from cowork_nsrun.guest.kernel import Kernel
from cowork_nsrun.guest.network import HOST, Network
from cowork_nsrun.guest.vmm import Ended, Monitor, Settings
from cowork_nsrun.program import find_program

HERE = Path(__file__).parent
SOURCE = HERE.parents[1] / "csrc"
MIB = 1 << 20


@pytest.fixture(scope="module")
def image(
    open_directory: Path, kernel: Kernel, slirp: None, c_compiler: list[str]
) -> Iterator[Image]:
    program = open_directory / "online"
    command = [*c_compiler, "-D_GNU_SOURCE", f"-I{SOURCE}/guest", f"-I{SOURCE}/net"]
    sources = [f"{HERE}/online.c", f"{SOURCE}/guest/net_up.c"]
    subprocess.run([*command, "-o", str(program), *sources], check=True)
    with prepare(kernel, program, network=True) as made:
        yield made


def run(image: Image, network: Network, *words: str) -> str:
    """What the guest said, to its end."""
    settings = Settings(256, cmdline=" ".join(("quiet", *words)), network=network)
    with network, Monitor(image, settings) as monitor:
        assert monitor.wait() is Ended.POWER_OFF, monitor.failure()
        # with the monitor its network goes, by itself
        assert network.wait() == 0
    console = monitor.console.decode()
    assert "the network is up" in console, console
    return console


@pytest.mark.parametrize(("mtu", "size"), [(1500, MIB), (65520, 16 * MIB)])
def test_what_is_fetched_and_sent_is_intact(image: Image, mtu: int, size: int) -> None:
    data = random.Random(mtu).randbytes(size)
    with tcp_server(sender(data)) as source, tcp_server(answer_crc) as sink:
        console = run(image, Network(mtu=mtu, loopback=True), f"get={source.port}",
                      f"put={sink.port}")  # fmt: skip
    assert f"got {len(data)} bytes, crc {zlib.crc32(data):08x}\r\n" in console
    found = re.search(r"put crc (\w+), answer (\w+)", console)
    assert found, console
    assert found[1] == found[2]


def test_the_host_is_out_of_reach(image: Image) -> None:
    with tcp_server(sender(b"secret")) as server:
        port = server.port
        console = run(image, Network(), f"get={port}", f"to=127.0.0.1,{port}", f"to=::1,{port}")
        assert server.visitors() == 0
    # the guest's own loopback is down, so that its kernel sends those on, too
    assert console.count("no way to ") == 3, console


Resolver = Callable[[dict[str, str]], AbstractContextManager[list[bytes]]]


@pytest.fixture
def resolver(lack: Callable[[str], NoReturn]) -> Resolver:
    """Makes a name server on the loopback the host's own."""
    if os.geteuid() or os.environ.get("NSRUN_KVMBED") != "inside":
        lack("no name server: only root in the bed may change /etc/resolv.conf")
    Path("/etc/resolv.conf").write_text("nameserver 127.0.0.1\n")
    return partial(name_server, address="127.0.0.1")


def test_names_are_the_hosts(image: Image, resolver: Resolver) -> None:
    with resolver({"some.test": "192.0.2.7"}) as queries:
        console = run(image, Network(), "name=some.test", "name=other.test")
    assert "some.test is 192.0.2.7" in console
    assert "other.test: Name does not resolve" in console
    assert queries


FETCH = """
import socket, sys, zlib
with socket.create_connection((sys.argv[1], int(sys.argv[2]))) as stream:
    data = stream.makefile("rb").read()
print(len(data), zlib.crc32(data))
"""


ONLINE = ("--unshare-all", "--share-net", "--ro-bind", "/", "/")


def fetched(*options: str, host: str, port: int) -> subprocess.CompletedProcess[str]:
    """A command in a microVM that shares the host's network, and fetches something."""
    python = [sys.executable, "-I", "-S", "-c", FETCH, host, str(port)]
    command = [find_program(), "vm", "exec", *options, "--", *ONLINE, *python]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_a_plan_that_shares_the_network(kernel: Kernel, slirp: None) -> None:
    data = random.Random(1).randbytes(16 * MIB)
    with tcp_server(sender(data)) as server:
        done = fetched("--allow-loopback", host=HOST, port=server.port)
        assert done.stdout == f"{len(data)} {zlib.crc32(data)}\n", done.stderr
        done = fetched(host=HOST, port=server.port)
    assert done.returncode == 1
    assert "ConnectionRefusedError" in done.stderr or "Network is unreachable" in done.stderr


def test_a_plan_with_the_hosts_names(kernel: Kernel, slirp: None, resolver: Resolver) -> None:
    """The host's resolver is on its loopback, and is asked by another address."""
    with resolver({"some.test": HOST}), tcp_server(sender(b"by name")) as server:
        done = fetched("--allow-loopback", host="some.test", port=server.port)
    assert done.stdout == f"7 {zlib.crc32(b'by name')}\n", done.stderr


def child_called(name: str, pid: int) -> int:
    """The child of that process whose program is called so."""
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        if Path(f"/proc/{child}/comm").read_text().strip() == name:
            return int(child)
    raise AssertionError(f"no {name}")


@pytest.mark.parametrize("killed", [True, False])
def test_a_network_that_dies_is_told(kernel: Kernel, slirp: None, killed: bool) -> None:
    """The command goes on, but is never offline without a word."""
    words = ["--backend", "kvm", "--level-prefix", *ONLINE, "sh", "-c", "echo there; read x"]
    with subprocess.Popen(
        ["bwrap", *words],
        executable=find_program(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as command:
        assert command.stdout is not None
        assert command.stdout.readline() == b"there\n", command.communicate()
        if killed:
            os.kill(child_called("nsrun-slirp", command.pid), signal.SIGKILL)
        _, said = command.communicate(b"\n")
    assert command.returncode == 0
    lost = b"<4>bwrap: the command lost its network: nsrun-slirp was killed by SIGKILL\n"
    assert said == (lost if killed else b"")
