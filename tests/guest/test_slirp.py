"""nsrun-slirp, with a kernel's own TCP on the other side, and with frames made by hand."""

from __future__ import annotations

import ctypes
import errno
import os
import random
import re
import resource
import shutil
import signal
import socket
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path
from typing import NoReturn

import pytest
from net_servers import answer_crc, echo_server, name_server, sender, tcp_server

from cowork_nsrun.guest.network import HOST, NAME_SERVER, Network, resolv_conf
from cowork_nsrun.guest.vmm import GuestError, find_beside

HERE = Path(__file__).parent
SOURCE = HERE.parents[1] / "csrc"
HOST6 = "fd6e:7372:756e::2"
GUEST, GUEST6 = "10.0.2.15", "fd6e:7372:756e::15"
MIB = 1 << 20
Lack = Callable[[str], NoReturn]
Peer = Callable[..., str]

pytestmark = pytest.mark.usefixtures("slirp")


@pytest.fixture(scope="session")
def peer_program(open_directory: Path, lack: Lack) -> Path:
    built = open_directory / "net_peer"
    if not shutil.which("cc"):
        lack("no C compiler: nsrun-slirp has no peer")
    command = ["cc", "-std=c17", "-D_GNU_SOURCE", "-O2", "-Wall", "-Wextra", "-Wshadow"]
    command += ["-Werror", f"-I{SOURCE}/net", f"{HERE}/net_peer.c", f"{SOURCE}/guest/net_up.c"]
    subprocess.run([*command, "-o", str(built)], check=True)
    return built


@pytest.fixture
def peer(peer_program: Path, lack: Lack) -> Peer:
    """Run net_client.py on a network's other side; what it says."""
    if os.geteuid() or not os.access("/dev/net/tun", os.R_OK | os.W_OK):
        lack("no TAP device: only root where /dev/net/tun is can make one")

    def run(network: Network, *words: object) -> str:
        command = [sys.executable, "-I", HERE / "net_client.py", *words]
        head = [peer_program, network.card.fileno(), network.mtu]
        done = subprocess.run(
            [str(word) for word in [*head, *command]],
            pass_fds=[network.card.fileno()],
            stdout=subprocess.PIPE,
            text=True,
            check=False,
        )
        assert done.returncode in (0, 1)
        return done.stdout.strip()

    return run


# --- what is carried ---------------------------------------------------------------------------


@pytest.mark.parametrize("mtu", [1280, 1500, 65520])
@pytest.mark.parametrize("host", [(HOST, "127.0.0.1"), (HOST6, "::1")])
def test_streams_are_intact(peer: Peer, mtu: int, host: tuple[str, str]) -> None:
    data = random.Random(mtu).randbytes(16 * MIB)
    with (
        Network(mtu=mtu, loopback=True) as network,
        tcp_server(sender(data), host[1]) as source,
        tcp_server(answer_crc, host[1]) as sink,
    ):
        assert peer(network, "get", host[0], source.port) == f"{len(data)} {zlib.crc32(data):08x}"
        sent, answer = peer(network, "put", host[0], sink.port, 16 * MIB).split()
        assert sent == answer


@pytest.mark.parametrize("mtu", [1500, 65520])
@pytest.mark.parametrize("size", [1, 1400, 9000])
def test_datagrams(peer: Peer, size: int, mtu: int) -> None:
    """Also those that come in fragments."""
    with Network(mtu=mtu, loopback=True) as network, echo_server("127.0.0.1") as port:
        assert peer(network, "datagram", HOST, port, size) == str(size)


def test_datagrams_of_ipv6(peer: Peer) -> None:
    with Network(loopback=True) as network, echo_server("::1") as port:
        assert peer(network, "datagram", HOST6, port, 1400) == "1400"


def test_connections_are_bounded_and_the_rest_goes_on(peer: Peer) -> None:
    kept: list[socket.socket] = []
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    with (
        Network(loopback=True) as network,
        tcp_server(lambda client: kept.append(client.dup())) as server,
        tcp_server(answer_crc) as sink,
    ):
        made, sent, answer = peer(network, "many", HOST, server.port, sink.port).split()
        for client in kept:
            client.close()
    assert 500 < int(made) < 1024
    assert sent == answer


# --- what is not -------------------------------------------------------------------------------


@pytest.mark.parametrize("host", [(HOST, "127.0.0.1"), (HOST6, "::1")])
def test_the_hosts_loopback_is_refused(peer: Peer, host: tuple[str, str]) -> None:
    family = socket.AF_INET6 if ":" in host[1] else socket.AF_INET
    with (
        Network() as network,
        tcp_server(sender(b"secret"), host[1]) as server,
        socket.socket(family, socket.SOCK_DGRAM) as datagrams,
    ):
        assert "Error" in peer(network, "get", host[0], server.port)
        assert server.visitors() == 0
        datagrams.bind((host[1], 0))
        assert peer(network, "send", host[0], datagrams.getsockname()[1]) == "sent"
        settle(network)
        datagrams.sendto(b"good", datagrams.getsockname())
        assert datagrams.recv(100) == b"good"


def checksum(data: bytes) -> int:
    """RFC 1071."""
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def syn(dest: str, port: int, source_port: int) -> bytes:
    """The first frame of a connection to any address at all."""
    to = ip_address(dest)
    source = ip_address(GUEST if to.version == 4 else GUEST6)
    tcp = struct.pack("!HHIIBBHHH", source_port, port, 1000, 0, 5 << 4, 2, 65535, 0, 0)
    pseudo = source.packed + to.packed + struct.pack("!HH", 6, len(tcp))
    tcp = tcp[:16] + struct.pack("!H", checksum(pseudo + tcp)) + tcp[18:]
    if to.version == 6:
        ip = struct.pack("!IHBB", 6 << 28, len(tcp), 6, 64) + source.packed + to.packed
        return ethernet(0x86DD) + ip + tcp
    ip = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(tcp), 1, 0, 64, 6, 0)
    ip += source.packed + to.packed
    ip = ip[:10] + struct.pack("!H", checksum(ip)) + ip[12:]
    return ethernet(0x0800) + ip + tcp


def ethernet(kind: int) -> bytes:
    return bytes.fromhex("525500000002") + b"\x02nsrun" + struct.pack("!H", kind)


def udp(dest: str, port: int, data: bytes) -> bytes:
    to, source = ip_address(dest), ip_address(GUEST)
    ip = struct.pack("!BBHHHBBH", 0x45, 0, 28 + len(data), 1, 0, 64, 17, 0)
    ip += source.packed + to.packed
    ip = ip[:10] + struct.pack("!H", checksum(ip)) + ip[12:]
    return ethernet(0x0800) + ip + struct.pack("!HHHH", 99, port, 8 + len(data), 0) + data


LOCAL = [
    *("127.0.0.1", "127.1.2.3", "0.0.0.0", "255.255.255.255", "::", "::1"),
    *("::ffff:127.0.0.1", "::ffff:0.0.0.0"),
]


def arp() -> bytes:
    """So that the stack knows the guest's hardware address."""
    own = b"\x02nsrun" + IPv4Address(GUEST).packed
    return (
        ethernet(0x0806)
        + struct.pack("!HHBBH", 1, 0x0800, 6, 4, 1)
        + own
        + bytes(6)
        + (IPv4Address(HOST).packed)
    )


def settle(network: Network) -> None:
    """Until the stack has taken everything before: it answers in order."""
    # a peer made it another
    network.card.setblocking(True)
    network.card.send(arp())
    while True:
        frame = network.card.recv(1 << 16)
        if frame[12:14] == b"\x08\x06" and frame[20:22] == b"\x00\x02":
            return


@pytest.mark.parametrize("dest", LOCAL)
def test_an_address_that_no_card_would_carry(dest: str) -> None:
    """A guest writes what it likes into a frame."""
    any_address = "::" if ":" in dest else "0.0.0.0"
    with Network(loopback=True) as network, tcp_server(sender(b"x"), any_address) as server:
        for number in range(3):
            network.card.send(syn(dest, server.port, 2000 + number))
        settle(network)
        # the same frame to an address that is allowed is a good one
        network.card.send(syn(HOST6 if ":" in dest else HOST, server.port, 3000))
        server.wait()
        assert server.visitors() == 0


@pytest.mark.parametrize("dest", ["127.0.0.1", "0.0.0.0", "255.255.255.255"])
def test_datagrams_that_no_card_would_carry(dest: str) -> None:
    with (
        Network(loopback=True) as network,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server,
    ):
        server.bind(("0.0.0.0", 0))
        port = server.getsockname()[1]
        network.card.send(udp(dest, port, b"bad"))
        network.card.send(udp(HOST, port, b"good"))
        assert server.recv(100) == b"good"


def test_a_refusal_is_told_at_once(peer: Peer) -> None:
    """A look for a cloud's metadata does not wait for a time-out; errno EHOSTUNREACH."""
    with Network() as network:
        assert peer(network, "get", "169.254.169.254", 80) == "OSError 113"
        assert peer(network, "datagram", "169.254.169.254", 80, 10) == "OSError 113"


@pytest.fixture(scope="module")
def reaches(tmp_path_factory: pytest.TempPathFactory, lack: Lack) -> Callable[..., bool]:
    """csrc/net/reach.c itself."""
    if not shutil.which("cc"):
        lack("no C compiler: reach.c cannot be called")
    built = tmp_path_factory.mktemp("reach") / "reach.so"
    command = ["cc", "-std=c17", "-shared", "-fPIC", f"{SOURCE}/net/reach.c", "-o", str(built)]
    subprocess.run(command, check=True)
    function = ctypes.CDLL(str(built)).nsr_net_reaches
    function.restype = ctypes.c_bool
    function.argtypes = [ctypes.c_char_p, ctypes.c_size_t, ctypes.c_bool]
    return function


@pytest.mark.parametrize("link_local", [False, True])
def test_every_kind_of_address(reaches: Callable[..., bool], link_local: bool) -> None:
    generator = random.Random(1)
    for number in range(2000):
        packed = generator.randbytes(16)
        first = (number % 256).to_bytes()
        four = IPv4Address(first + generator.choice([b"\xfe", packed[1:2]]) + packed[2:4])
        six = IPv6Address(generator.choice([first + packed[1:], bytes(12) + packed[12:],
                                            bytes(10) + b"\xff\xff" + packed[12:],
                                            b"\xfe" + packed[1:]]))  # fmt: skip
        good = not (four.is_loopback or four.packed[0] == 0 or four.packed[0] >= 224)
        good = good and (link_local or not four.is_link_local)
        frame = syn(str(four), 80, 80)
        assert reaches(frame, len(frame), link_local) == good, four
        local = six.is_link_local or six.is_multicast or six.packed[:10] == bytes(10)
        frame = syn(str(six), 80, 80)
        assert reaches(frame, len(frame), link_local) != local, six


def test_frames_that_are_cut_off(reaches: Callable[..., bool]) -> None:
    for dest, need in ((HOST, 34), (HOST6, 54)):
        frame = syn(dest, 80, 80)
        for length in range(len(frame) + 1):
            # exactly so many bytes: what lies behind them is not theirs
            part = frame[:length]
            assert reaches(part, length, False) == (length >= need)


def test_neighbours_are_found_and_nothing_else(reaches: Callable[..., bool]) -> None:
    head = ethernet(0x86DD) + struct.pack("!IHBB", 6 << 28, 24, 58, 255)
    head += IPv6Address("fe80::1").packed + IPv6Address("ff02::1:ff00:2").packed
    for kind in range(256):
        frame = head + bytes([kind]) + bytes(23)
        assert reaches(frame, len(frame), False) == (133 <= kind <= 136)
    assert not reaches(head, len(head), False)
    for kind in (0x8100, 0x88F8, 0x0801, 0):
        assert not reaches(ethernet(kind) + bytes(60), 74, True)


# --- names -------------------------------------------------------------------------------------


class InMounts(Network):
    """With another /etc/resolv.conf."""

    def __init__(self, resolv: Path) -> None:
        script = 'mount --bind "$0" /etc/resolv.conf && exec "$@"'
        self.prefix = ["unshare", "-m", "sh", "-c", script, str(resolv)]
        super().__init__()

    def _command(self, *words: str) -> list[str]:
        return [*self.prefix, *super()._command(*words)]


def test_names(peer: Peer, tmp_path: Path, lack: Lack) -> None:
    """The network's name server is the host's first one, even on the host's loopback."""
    resolv = tmp_path / "resolv.conf"
    resolv.write_text("nameserver 127.53.0.1\n")
    if os.geteuid():
        lack("no name server: root alone has port 53")
    with (
        name_server({"some.test": "192.0.2.7"}, "127.53.0.1") as queries,
        InMounts(resolv) as network,
    ):
        assert peer(network, "name", NAME_SERVER, 53) == "192.0.2.7"
        assert len(queries) == 1


def test_resolv_conf() -> None:
    assert resolv_conf("nameserver 192.0.2.1\nsearch a.test\n") is None
    local = f"nameserver {NAME_SERVER}\n"
    for server in ("127.0.0.53", "::1", "127.0.0.1\nnameserver 192.0.2.1"):
        text = f"# made by x\nnameserver {server}\nsearch a.test\noptions edns0\n"
        assert resolv_conf(text) == f"{local}# made by x\nsearch a.test\noptions edns0\n"
    # without any it is the loopback's: resolv.conf(5)
    assert resolv_conf("") == resolv_conf("nameserver\n") == local
    assert resolv_conf("nameserver fe80::1%eth0\n") is None


# --- its life, and its jail --------------------------------------------------------------------


def test_it_ends_with_the_machine() -> None:
    with Network() as network:
        settle(network)
        network.hand_over()
        assert network.wait() == 0
        assert network.failure() is None


def test_it_ends_while_it_waits_for_a_guest_that_does_not_read() -> None:
    """Far more than the socket holds: it waits for room there, and sees the end."""
    with (
        Network(loopback=True) as network,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server,
    ):
        server.bind(("127.0.0.1", 0))
        settle(network)
        network.card.send(udp(HOST, server.getsockname()[1], b"hello"))
        guest = server.recvfrom(100)[1]
        for _ in range(4000):
            server.sendto(bytes(8000), guest)
        network.hand_over()
        assert network.wait() == 0


def test_its_death_is_told() -> None:
    with Network() as network:
        settle(network)
        os.kill(network.pid, signal.SIGSEGV)
        network.wait()
        error = network.failure()
        assert error is not None
        assert "nsrun-slirp was killed by SIGSEGV" in error.text


def test_a_wrong_mtu_is_named() -> None:
    with Network(mtu=100) as network:
        assert network.wait() == 2
        error = network.failure()
        assert error is not None
        assert error.text == (
            "nsrun-slirp ended with status 2; "
            "nsrun-slirp: --mtu 100: a number from 1280 to 65520 is wanted"
        )


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "--fd is needed"),
        (["--fd"], "--fd: there is no such option, or its value is missing"),
        (["--fd", "x"], "--fd x: a number from 0 to 1073741824 is wanted"),
        (["--fd", "0"], "--fd 0: Socket operation on non-socket"),
        (["--fd", "999"], "--fd 999: Bad file descriptor"),
        (["--what", "0"], "there is no option --what"),
    ],
)
def test_usage(words: list[str], said: str) -> None:
    program = find_beside("nsrun-slirp")
    done = subprocess.run(
        [program, *words], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stderr == f"nsrun-slirp: {said}\n"


def test_what_it_gave_up() -> None:
    with Network(loopback=True) as network:
        settle(network)
        fields = dict(
            line.split(":\t", 1)
            for line in Path(f"/proc/{network.pid}/status").read_text().splitlines()
            if ":\t" in line
        )
        limits = Path(f"/proc/{network.pid}/limits").read_text()
        assert fields["Seccomp"] == "2"
        assert fields["NoNewPrivs"] == "1"
        for name in ("CapInh", "CapPrm", "CapEff", "CapAmb"):
            assert int(fields[name], 16) == 0
        assert re.search(r"Max core file size +0 +0 ", limits)
        assert re.search(r"Max open files +1024 +1024 ", limits)


def test_calls_in_its_jail(tmp_path: Path, lack: Lack) -> None:
    if not shutil.which("cc"):
        lack("no C compiler: the jail of nsrun-slirp cannot be tried")
    built = tmp_path / "net_jail"
    sources = [f"{HERE}/net_jail.c", f"{SOURCE}/net/jail.c"]
    flags = ["-std=c17", "-D_GNU_SOURCE", "-Wall", "-Wextra", "-Werror", f"-I{SOURCE}/net"]
    subprocess.run(["cc", *flags, *sources, "-o", str(built)], check=True)
    done = subprocess.run([built], stdout=subprocess.PIPE, text=True, check=True)
    tried = {name: int(code) for name, code in map(str.split, done.stdout.splitlines())}
    assert len(tried) > 20
    good = {"tcp", "udp6", "fionread", "resolv.conf", "mmap"}
    # by Landlock, where the kernel has it
    assert tried.pop("program") in (0, errno.EACCES)
    assert {name for name, code in tried.items() if not code} == good
    assert {code for code in tried.values() if code} == {errno.EPERM}


def test_garbage(peer: Peer) -> None:
    """Frames of random bytes, and good ones that are spoilt; it lives, and serves."""
    generator = random.Random(5)
    with Network(loopback=True) as network, tcp_server(answer_crc) as server:
        port = server.port
        good = [syn(HOST, port, 1), syn(HOST6, port, 2), udp(HOST, port, b"x"), arp(),
                udp(NAME_SERVER, 53, bytes(30)), udp(HOST, 67, bytes(300)),
                udp(HOST, 69, b"\0\1/etc/passwd\0octet\0")]  # fmt: skip
        network.card.setblocking(False)
        for number in range(20000):
            frame = bytearray(generator.choice(good))
            for _ in range(generator.randrange(4)):
                frame[generator.randrange(len(frame))] = generator.randrange(256)
            if number % 3 == 0:
                frame = frame[: generator.randrange(1, len(frame) + 1)]
            if number % 5 == 0:
                frame[14:] = generator.randbytes(generator.randrange(1500))
            give(network.card, bytes(frame))
        network.card.setblocking(True)
        settle(network)
        assert network.failure() is None
        sent, answer = peer(network, "put", HOST, port, MIB).split()
        assert sent == answer


def give(card: socket.socket, frame: bytes) -> None:
    """Send, and fetch what comes, so that neither waits for the other."""
    while True:
        try:
            card.send(frame)
            return
        except BlockingIOError:
            try:
                while card.recv(1 << 16):
                    pass
            except BlockingIOError:
                os.sched_yield()


def test_a_program_that_is_not_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "nsrun").symlink_to("/bin/true")
    monkeypatch.setattr("cowork_nsrun.guest.vmm.find_program", lambda: str(tmp_path / "nsrun"))
    with pytest.raises(GuestError, match=r"nsrun-slirp: not there; install libslirp-dev"):
        Network()
