"""Seed corpora: command lines that clients of bwrap really use.

    seeds.py DIRECTORY TOWRITE

writes DIRECTORY/argv/N (words, each with its NUL), DIRECTORY/plan/N (the
same as the plan's bytes, by the program TOWRITE) and DIRECTORY/hand/N (the
message of csrc/core/hand.h for such commands), DIRECTORY/vsock/N (what a
driver and a host do, as fuzz/vsock.c reads it); for virtqueue, mmio and
net queues that a driver could have made, for snapshot saved machines, for
outlet what programs and a host do with a way out, for kernel ELF files.
"""

from __future__ import annotations

import struct
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

LINES = (
    "--ro-bind / / true",
    "--unshare-all --share-net --die-with-parent --new-session --dev /dev --proc /proc sh -c x",
    "--unshare-user --uid 1000 --gid 1000 --unshare-uts --hostname box --bind /a /b true",
    "--tmpfs / --ro-bind /usr /usr --symlink usr/bin /bin --dir /run --chdir /s -- prog --flag",
    "--perms 0700 --size 4096 --tmpfs /t --perms 0640 --file 20 /f --ro-bind-data 21 /d true",
    "--overlay-src /l1 --overlay-src /l2 --ro-overlay /o --overlay-src /l --tmp-overlay /p true",
    "--overlay-src /l --overlay /rw /wk /o --remount-ro /o --chmod 0600 /f --mqueue /q true",
    "--clearenv --setenv A b --unsetenv A --cap-drop ALL --cap-add CAP_NET_RAW true",
    "--seccomp 22 --sync-fd 20 --block-fd 21 --info-fd 20 --json-status-fd 21 true",
    "--seccomp-profile strict --add-seccomp-fd 22 --seccomp-profile default true",
    "--seccomp 22 --seccomp-profile nesting true",
    "--add-seccomp-fd 22 --lock-file /l --unshare-pid --argv0 name true",
    "--args 20 true",
    "--args 21 --bind-fd 20 /x --ro-bind-fd 21 /y true",
    "--userns 20 --userns2 21 --pidns 20 --unshare-pid --as-pid-1 true",
    "--unshare-user --disable-userns --assert-userns-disabled --unshare-cgroup-try true",
    "--bind-try /a /a --ro-bind-try /b /b --dev-bind-try /c /c --level-prefix true",
    "--landlock --tcp-connect 443 --tcp-bind none --ro-bind / / --bind /w /w true",
    "--backend host --private-tmp --ro-bind /usr /usr --dev /dev --proc /proc true",
    "--backend host --unconfined --bind /w /w true",
    "--timeout 2.5 --unshare-pid --rlimit nofile 64:128 --rlimit as unlimited --cgroup /c true",
    "--unshare-net --listen-fd 20 --controlling-terminal --close-fds true",
    "--plan 20",
    "--version",
    "--help",
)


HANDS = (
    (None, [], ["/bin/true"], ["true"], ["PWD=/"]),
    ("/tmp", [], ["/bin/sh", "/usr/bin/sh"], ["sh", "-c", "exit 3"], ["A=b", "PWD=/tmp"]),
    ("/", [(7, 64, 128), (9, 1 << 30, 1 << 30)], ["prog"], ["prog", "", "-x"], ["HOME=/", "PWD="]),
)


def hand(
    directory: str | None,
    rlimits: list[tuple[int, int, int]],
    programs: list[str],
    argv: list[str],
    env: list[str],
) -> bytes:
    limits = b"".join(struct.pack("<3Q", *limit) for limit in rlimits)
    words = [*([] if directory is None else [directory]), *programs, *argv, *env]
    body = limits + b"".join(word.encode() + b"\0" for word in words)
    counts = [len(rlimits), len(programs), len(argv), len(env)]
    flags = 0 if directory is None else 1
    return struct.pack("<6I", 24 + len(body), flags, *counts) + body


# actions of fuzz/vsock.c, settled
PACKET, RAW, CONNECT, SEND, RECEIVE, SHUT, CLOSE, POST, TAKE, LISTEN = (
    bytes([(n - 0x80) % 15 + 0x80]) for n in range(10)
)


def packet(op: int, data: int = 0, flags: int = 0) -> bytes:
    """From port 0 of the guest's to the last port of the host's that it saw, with room."""
    return PACKET + bytes([op, 0, 0, flags, 0xB0, 0, data])


OPENED = CONNECT + b"\0" + TAKE + packet(2)
VSOCKS = (
    OPENED + packet(5, 60) + RECEIVE + b"\0\x3f" + packet(4, flags=3) + TAKE,
    OPENED + SEND + b"\0\x8c" + TAKE + packet(6) + TAKE + CLOSE + b"\0\0" + TAKE + packet(3),
    OPENED + packet(5, 0x8F) * 12 + RECEIVE + b"\0\x91" + SHUT + b"\0\1" + packet(7) + TAKE,
    OPENED * 4 + CLOSE + b"\1\0" + SHUT + b"\2\0" + packet(4, flags=1) + packet(4, flags=2),
    CONNECT + b"\0" + TAKE + packet(3) + CONNECT + b"\1" + CLOSE + b"\0\0" + POST + b"\4" + TAKE,
    LISTEN
    + b"\0"
    + packet(1)
    + packet(5, 9)
    + TAKE
    + packet(1)
    + packet(9)
    + RAW
    + bytes([44, *range(44)]),
)


DESC, AVAIL, USED = 0x1000, 0x1400, 0x1800
NEXT, WRITE, INDIRECT = 1, 2, 4


def descriptor(address: int, length: int, flags: int, following: int = 0) -> bytes:
    return struct.pack("<QIHH", address, length, flags, following)


#: tables of descriptors, each with the heads that are offered
RINGS = (
    ([descriptor(0x2000, 100, NEXT, 1), descriptor(0x2100, 200, WRITE)], [0]),
    ([descriptor(0x2000, 16, WRITE), descriptor(1 << 32, 4096, WRITE)], [0, 1, 0]),
    (
        [
            descriptor(0x1010, 32, INDIRECT),
            descriptor(0x3000, 1, NEXT, 2),
            descriptor(0x3100, 0, WRITE),
        ],
        [0, 1],
    ),
    ([descriptor(0x2000, 8, WRITE | NEXT, 0)], [0]),
)


def memory(table: list[bytes], heads: list[int]) -> bytes:
    """A guest's memory with that queue."""
    image = bytearray(0x1800)
    image[DESC : DESC + 16 * len(table)] = b"".join(table)
    ring = struct.pack(f"<HH{len(heads)}H", 0, len(heads), *heads)
    image[AVAIL : AVAIL + len(ring)] = ring
    return bytes(image)


def virtqueues() -> Iterator[bytes]:
    """As fuzz/virtqueue.c reads them."""
    for number, (table, heads) in enumerate(RINGS):
        for flags in (number % 8, 7 - number % 8):
            setting = (3, flags, DESC, AVAIL, USED, DESC + 8, number % 2, 0)
            yield struct.pack("<BBHHHHBB", *setting) + memory(table, heads)


def brought_up(device: int, table: list[bytes], heads: list[int]) -> list[tuple[int, ...]]:
    """Steps of fuzz/mmio.c that bring a device up with that queue: what, device, at, value."""
    registers = ((0x70, 1), (0x70, 3), (0x24, 1), (0x20, 1), (0x24, 0), (0x20, 1 << 28))
    registers += ((0x70, 11), (0x30, 0), (0x38, 8), (0x80, DESC), (0x90, AVAIL), (0xA0, USED))
    registers += ((0x44, 1), (0x70, 15))
    image = memory(table, heads)
    words = ((at, image[at : at + 4]) for at in range(DESC, len(image), 4))
    return [(2, device, *register) for register in registers] + [
        (6, 0, at, int.from_bytes(word, "little")) for at, word in words if any(word)
    ]


def mmios() -> Iterator[bytes]:
    """Each device with each ring, and the disk with each kind of request."""
    end = [(5, 0, 0, 0), (5, 1, 0, 0), (4, 1, 0x60, 0)]
    for device in (0, 1):
        for ring in RINGS:
            yield packed(brought_up(device, *ring) + end)
    for kind in (0, 1, 4, 8, 77):
        flags = NEXT if kind == 1 else NEXT | WRITE
        table = [descriptor(0x2000, 16, NEXT, 1), descriptor(0x2100, 512, flags, 2)]
        table.append(descriptor(0x2400, 1, WRITE))
        words = [(6, 0, 0x2000, kind), (6, 0, 0x2008, 3)]
        yield packed(brought_up(1, table, [0]) + words + end)


def packed(steps: Sequence[tuple[int, ...]]) -> bytes:
    return b"".join(struct.pack("<BBHI", *step) for step in steps)


# opcodes of FUSE, the node, and what follows the header; nodes count from 1, the root
FUSE_TOP = (1, 1, b"0\0")
FUSE_HANDLE = 1 << 20
FUSE_IO = struct.pack("<QQIIQII", FUSE_HANDLE, 0, 100, 0, 0, 0, 0)
FUSES: tuple[tuple[tuple[int, int, bytes], ...], ...] = (
    (FUSE_TOP, (1, 2, b"s\0"), (14, 3, bytes(8)), (13, 2, struct.pack("<Q", 3) + b"alias\0")),
    (
        FUSE_TOP,
        (35, 2, struct.pack("<IIII", 2, 0o644, 0, 0) + b"new\0"),
        (16, 3, struct.pack("<QQIIQII", FUSE_HANDLE, 0, 4, 0, 0, 0, 0) + b"data"),
        (15, 3, FUSE_IO),
        (46, 3, struct.pack("<QQII", FUSE_HANDLE, 0, 3, 0)),
        (43, 3, struct.pack("<QQQII", FUSE_HANDLE, 0, 4096, 0, 0)),
        (47, 3, struct.pack("<7Q", FUSE_HANDLE, 0, 3, FUSE_HANDLE, 8, 4, 0)),
        (32, 3, struct.pack("<QQQQIIII", FUSE_HANDLE, 7, 0, 9, 1, 0, 0, 0)),
        (31, 3, struct.pack("<QQQQIIII", FUSE_HANDLE, 8, 0, 9, 1, 0, 0, 0)),
        (4, 3, struct.pack("<II10QI", 9, 0, 0, 2, *(8 * (0,)), 0o640) + bytes(20)),
        (25, 3, struct.pack("<QIIQ", FUSE_HANDLE, 0, 0, 7)),
        (18, 3, struct.pack("<QIIQ", FUSE_HANDLE, 0, 0, 0)),
        (10, 2, b"new\0"),
    ),
    (
        FUSE_TOP,
        (27, 2, bytes(8)),
        (44, 2, struct.pack("<QQIIQII", FUSE_HANDLE, 0, 4000, 0, 0, 0, 0)),
        (28, 2, struct.pack("<QQIIQII", FUSE_HANDLE, 0, 4000, 0, 0, 0, 0)),
        (29, 2, struct.pack("<QIIQ", FUSE_HANDLE, 0, 0, 0)),
        (42, 0, struct.pack("<II4Q", 2, 0, 2, 1, 3, 1)),
    ),
    (
        FUSE_TOP,
        (9, 2, struct.pack("<II", 0o755, 0) + b"n\0"),
        (9, 3, struct.pack("<II", 0o755, 0) + b"m\0"),
        (6, 2, b"link\0target\0"),
        (5, 4, b""),
        (45, 2, struct.pack("<QII", 3, 0, 0) + b"link\0moved\0"),
        (12, 2, struct.pack("<Q", 2) + b"p\0x\0"),
        (8, 2, struct.pack("<IIII", 0o10644, 0, 0, 0) + b"fifo\0"),
        (51, 2, struct.pack("<IIII", 2, 0o600, 0, 0) + b"/\0"),
        (17, 2, b""),
        (52, 2, struct.pack("<IIQII", 0, 0, 0, 0, 0xFFF)),
    ),
    (
        FUSE_TOP,
        (21, 2, struct.pack("<II", 1, 0) + b"user.a\0v"),
        (22, 2, struct.pack("<II", 64, 0) + b"user.a\0"),
        (23, 2, struct.pack("<II", 64, 0)),
        (24, 2, b"user.a\0"),
        (2, 2, struct.pack("<Q", 1)),
        (38, 0, b""),
    ),
)


def fuse(requests: tuple[tuple[int, int, bytes], ...]) -> bytes:
    """Requests, each behind its length, as fuzz/fuse.c takes them."""
    whole = b""
    for unique, (opcode, node, body) in enumerate(requests, 1):
        head = struct.pack("<IIQQIIII", 40 + len(body), opcode, unique, node, 0, 0, 0, 0)
        whole += struct.pack("<H", 40 + len(body)) + head + body
    return whole


def frame(kind: int, payload: bytes) -> bytes:
    return struct.pack("<2I", kind, len(payload)) + payload


SETTINGS = struct.pack(
    "<8I4QqQ32s", 2, 3, 1000, 1000, 18, 24, 80, 2, 1 << 25, 64, 500, 9, 1, 1 << 41, b"e"
)
SETTINGS += struct.pack("<2I", 4, 24)
#: frames of csrc/guest/protocol.h, as hosts send them
AGENTS = (
    frame(1, SETTINGS) + frame(2, b"plan" * 20),
    frame(1, SETTINGS) + frame(3, b"\x0f\0\0\0") + frame(5, bytes(8)),
    frame(4, struct.pack("<2I", 24, 80)) + frame(7, b"") * 9 + frame(6, b""),
    frame(7, b"") * 99,
    frame(1, SETTINGS[:-4]),
    frame(9, b"x") + frame(7, b""),
    frame(1, SETTINGS) + frame(8, b"told"),
)


def agents() -> list[bytes]:
    """How long the pieces are in which they come, then the frames; and hellos."""
    # the last one: a frame is read, nothing can be written, a frame is read, ...
    pieces = (b"", b"\x08\x68\0\x08\xff", bytes(range(1, 60)), b"\x08" + b"\0\x08" * 31)
    found = [bytes([len(sizes)]) + sizes + said for said in AGENTS for sizes in pieces]
    found += [SETTINGS, SETTINGS[:28] + struct.pack("<I", 9000) + SETTINGS[32:]]
    return found + [struct.pack("<4I16s", 0x4152534E, 2, role, 0, b"t") for role in range(6)]


#: actions of fuzz/outlet.c, each with a peer and a number
O_FDS, O_CONNECT, O_COME, O_SAY, O_TAKE, O_SHUT, O_LEAVE, O_TURN, O_TIME, O_FILL, O_END = range(11)
O_CLOSE = 11
HOST, SETTLED = 9, (O_TURN, 0, 0)


def carried(program: int, host: int) -> list[tuple[int, int, int]]:
    """A program that connects, and the host that comes for it."""
    return [(O_CONNECT, program, program), SETTLED, (O_COME, host, 0), SETTLED]


def outlets() -> Iterator[bytes]:
    """As fuzz/outlet.c reads them."""
    begin = [(O_FDS, 0, 2), SETTLED]
    both_say = [(O_SAY, 0, 200), (O_SAY, HOST, 255), SETTLED, (O_TAKE, 0, 0), (O_TAKE, HOST, 0)]
    for how in (0, 1, 2, 3, 5, 0x80, 0x82, 0x42):
        yield bytes(sum([(O_FDS, 0, how), SETTLED, (O_FDS, 0, 2), *carried(0, HOST)], ()))
    for last in ((O_SHUT, 0, 1), (O_SHUT, HOST, 1), (O_SHUT, HOST, 0), (O_LEAVE, 0, 0),
                 (O_LEAVE, HOST, 0), (O_END, 0, 0), (O_CLOSE, 0, 255)):  # fmt: skip
        steps = [*begin, *carried(0, HOST), *both_say, last, *both_say, (O_TIME, 0, 60)]
        yield bytes(sum(steps, ()))
    # more than are carried at one time, nobody comes, then no room to tell of them
    many = [(O_CONNECT, number, 1) for number in range(20)]
    for middle in ([(O_TIME, 0, 200)], [(O_FILL, 0, 1), SETTLED, (O_FILL, 0, 0), (O_TIME, 0, 9)]):
        steps = [*begin, *many, *middle, SETTLED, (O_COME, HOST, 3), (O_COME, 8, 3), SETTLED]
        yield bytes(sum(steps, ()))


def saved_device(status: int, ready: int) -> bytes:
    """The random number device, by its registers, its one queue and no state of its own."""
    registers = struct.pack("<6I2QBI", 4, status, 1, 0, 0, 0, 1 << 32, 1 << 32, status == 15, 1)
    queue = struct.pack("<3Q4H2B", DESC, AVAIL, USED, 8, 0, 0, 0, ready, 0)
    return struct.pack("<I", 1) + registers + queue + struct.pack("<I", 0)


def saved_processor(leaves: int, msrs: int, xsave: int) -> bytes:
    """State of activity, registers, special ones, XCRs, APIC, events, debug registers, the rest."""
    fixed = bytes(4 + 144 + 312 + 392 + 1024 + 64 + 128)
    extended = struct.pack("<I", xsave) + bytes(xsave)
    cpuid = struct.pack("<I", leaves) + bytes(40 * leaves)
    return fixed + extended + cpuid + struct.pack("<I", msrs) + bytes(16 * msrs)


def snapshots() -> Iterator[bytes]:
    """As fuzz/snapshot.c reads them: a state without its header."""
    chips = b"".join(struct.pack("<I", number) + bytes(516) for number in range(3))
    start = struct.pack("<Q", 0x4000) + bytes(48) + chips + bytes(8)
    one = struct.pack("<I", 1) + saved_processor(3, 5, 4096)
    two = struct.pack("<I", 2) + 2 * saved_processor(1, 0, 4096)
    for device in (struct.pack("<I", 0), saved_device(15, 1), saved_device(11, 0)):
        for processors in (one, two):
            yield start + device + struct.pack("<I", 0) + processors
    yield start + saved_device(15, 1) + struct.pack("<I", 40) + bytes(40) + one


def saved_files(
    nodes: Sequence[tuple[int, int, str]], handles: Sequence[tuple[int, int, int]]
) -> bytes:
    """As fuzz/saved.c reads them, which puts in what is compared: (number, parent, name)..."""
    data = struct.pack("<6Q", 20, 9, 1, len(nodes), len(handles), 7)
    for number, above, name in nodes:
        data += struct.pack("<3Q", number, above, 1) + bytes(64)
        data += struct.pack("<Q", len(name)) + name.encode()
    return data + b"".join(struct.pack("<3Q", *handle) for handle in handles)


#: below the root: the export, a file, a directory, one in that, one that is hidden
TREE = ((2, 1, "0"), (3, 2, "f"), (4, 2, "d"), (5, 4, "g"), (6, 2, "s"))
SAVEDS = (
    saved_files(TREE[:1], ()),
    saved_files(TREE, ((1 << 20, 3, 0), (2 << 20 | 1, 4, 1))),
    saved_files(TREE, ((1 << 20, 6, 0),)),
    saved_files(TREE[:4], ((3 << 20 | 2, 2, 1), (4 << 20 | 2, 5, 0))),
    saved_files((*TREE[:2], (3, 2, "d")), ()),
    saved_files((*TREE[:2], (7, 2, "f")), ()),
    saved_files(((2, 9, "0"),), ()),
)


# actions of fuzz/net.c
N_DESCRIBE, N_PUBLISH, N_SPOIL, N_KICK, N_SETTLE, N_TAKE, N_SEND, N_RECEIVE, N_LEAVE = range(9)
N_RESTART = 9
#: its numbers for 2048 and 128
N_2048, N_128 = 0x80 | 11, 0x80 | 7


def offered(queue: int, flags: int, length: int, index: int) -> bytes:
    """One descriptor as a chain."""
    describe = [N_DESCRIBE, flags << 3 | queue, index * 8, length, 0, index]
    return bytes([*describe, N_PUBLISH, queue, index])


#: first whether there are event indexes (1) and merged buffers (2)
NETS = (
    b"\3" + offered(0, WRITE, N_2048, 0) + bytes([N_SEND, N_128, N_SETTLE, N_TAKE]),
    b"\2" + offered(1, 0, 63, 0) + bytes([N_SETTLE, N_RECEIVE, N_TAKE]),
    b"\3" + bytes([N_SEND, N_128, N_SETTLE])
    + b"".join(offered(0, WRITE, 63, index) for index in range(3)) + bytes([N_SETTLE, N_TAKE]),
    b"\0" + offered(0, WRITE, 63, 0) + bytes([N_SEND, N_128, N_SEND, 40, N_SETTLE, N_TAKE]),
    b"\3" + bytes([N_DESCRIBE, 64 | 1, 80, 63, 0, 0]) + offered(1, INDIRECT, 16, 0),
    b"\1" + offered(1, 0, 63, 0) + bytes([N_LEAVE, N_SETTLE, N_RESTART, 3])
    + offered(1, 0, 63, 0) + bytes([N_SPOIL, 1, 0x40, 2, 63, N_KICK, 1]),
)  # fmt: skip


#: of each kind: ARP, IPv4, IPv6, a neighbour's solicitation
FRAMES = (
    bytes(12) + b"\x08\x06" + bytes(28),
    bytes(12) + b"\x08\x00\x45" + bytes(15) + b"\x7f\0\0\1",
    bytes(12) + b"\x86\xdd\x60" + bytes(38) + b"\1",
    bytes(12) + b"\x86\xdd\x60" + bytes(5) + b"\x3a\xff" + bytes(16) + b"\xff\2" + bytes(14)
    + b"\x87" + bytes(23),
)  # fmt: skip


def kernel(segments: Sequence[tuple[int, int, int, int]], size: int) -> bytes:
    """An ELF of x86-64 with segments of (offset, address, bytes in the file, in memory)."""
    head = b"\x7fELF\2\1\1".ljust(16, b"\0")
    head += struct.pack("<HHIQQQI6H", 2, 62, 1, 0x100000, 64, 0, 0, 64, 56, len(segments), 0, 0, 0)
    for at, address, stored, whole in segments:
        head += struct.pack("<II6Q", 1, 7, at, address, address, stored, whole, 4096)
    return head.ljust(size, b"k")


#: copied, mapped page by page, with zeros behind it, two that overlap, out of bounds
KERNELS = (
    kernel([(0x100, 0x100000, 500, 500)], 0x400),
    kernel([(0x1000, 0x101000, 0x2800, 0x2800)], 0x3800),
    kernel([(0x1234, 0x101234, 0x2000, 0x9000)], 0x3400),
    kernel([(0x1000, 0x200000, 0x1000, 0x1000), (0x1800, 0x200800, 0x1000, 0x4000)], 0x3000),
    kernel([(0x1000, 0x3FF000, 0x1000, 0x1001)], 0x2000),
    kernel([(0x1000, 2**64 - 0x1000, 0x1000, 0x1000), (2**63, 0x100000, 1, 1)], 0x2000),
    kernel([(0x100, 0x100000, 0, 0)], 0x400),
    kernel([], 0x200),
)


def main(directory: Path, towrite: Path) -> int:
    made: dict[str, Iterable[bytes]] = {
        "argv": (),
        "plan": (),
        "hand": (hand(*parts) for parts in HANDS),
        "agent": agents(),
        "outlet": outlets(),
        "virtqueue": virtqueues(),
        "mmio": mmios(),
        "snapshot": snapshots(),
        "saved": SAVEDS,
        "vsock": VSOCKS,
        "net": NETS,
        "reach": FRAMES,
        "fuse": map(fuse, FUSES),
        "kernel": KERNELS,
    }
    for name, inputs in made.items():
        (directory / name).mkdir(parents=True, exist_ok=True)
        for number, data in enumerate(inputs):
            (directory / name / str(number)).write_bytes(data)
    for number, line in enumerate(LINES):
        words = line.split()
        data = b"".join(word.encode() + b"\0" for word in words)
        (directory / "argv" / str(number)).write_bytes(data)
        # data that is read while parsing is not there: those lines give no plan
        done = subprocess.run([towrite, *words], capture_output=True, check=False)
        if done.returncode == 0:
            (directory / "plan" / str(number)).write_bytes(done.stdout)
    return 0 if list((directory / "plan").iterdir()) else 1


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2])))
