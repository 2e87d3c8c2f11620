"""Requests for the file server that no kernel would make, through tests/fs/driver.c."""

from __future__ import annotations

import contextlib
import os
import struct
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from fslib import OPTIONS

from cowork_nsrun.guest.view import Export, view_bytes

LOOKUP, FORGET, GETATTR, SETATTR, READLINK, SYMLINK = 1, 2, 3, 4, 5, 6
MKNOD, MKDIR, UNLINK, RMDIR, RENAME, LINK, OPEN, READ, WRITE, STATFS, RELEASE = range(8, 19)
FSYNC, SETXATTR, GETXATTR, LISTXATTR, REMOVEXATTR, FLUSH, INIT = range(20, 27)
OPENDIR, READDIR, RELEASEDIR, FSYNCDIR, GETLK, SETLK, SETLKW = range(27, 34)
ACCESS, CREATE, INTERRUPT, BMAP, DESTROY, IOCTL, POLL = range(34, 41)
BATCH_FORGET, FALLOCATE, READDIRPLUS, RENAME2, LSEEK, COPY_FILE_RANGE = range(42, 48)
SYNCFS, TMPFILE, STATX = 50, 51, 52
ROOT = 1
#: orders of the driver
ADD, KEEP, SAVE, LOAD, CHECK = range(5)
IN_HEADER = struct.Struct("<IIQQIIIHH")
OUT_HEADER = struct.Struct("<IiQ")


@dataclass(frozen=True)
class Reply:
    """An errno (0: none), and what follows the header."""

    errno: int
    data: bytes

    @property
    def node(self) -> int:
        """Of an entry's reply."""
        assert self.errno == 0, os.strerror(self.errno)
        return int(struct.unpack_from("<Q", self.data)[0])

    @property
    def mode(self) -> int:
        return int(struct.unpack_from("<I", self.data, 40 + 60)[0])


@dataclass
class Raw:
    """A server that gets any bytes."""

    process: subprocess.Popen[bytes]
    piece: int = 1 << 20
    unique: int = 0

    def give(self, data: bytes, room: int) -> tuple[int, bytes]:
        """What fs_request returned, and the reply."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(struct.pack("<III", len(data), room, self.piece) + data)
        self.process.stdin.flush()
        answer = self.process.stdout.read(8)
        assert len(answer) == 8, self.process.communicate()[1].decode()
        returned = struct.unpack("<q", answer)[0]
        return returned, self.process.stdout.read(max(returned, 0))

    def order(self, order: int, data: bytes = b"") -> tuple[int, bytes]:
        """What came of an order of tests/fs/driver.c, and what was saved or what is wrong."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(struct.pack("<III", len(data), order, 0) + data)
        self.process.stdin.flush()
        answer = self.process.stdout.read(12)
        assert len(answer) == 12, self.process.communicate()[1].decode()
        value, length = struct.unpack("<qI", answer)
        return value, self.process.stdout.read(length)

    def add(self, view: bytes) -> int:
        """The index of the first of more exports; -1: refused."""
        return self.order(ADD, view)[0]

    def request(self, opcode: int, node: int, body: bytes = b"", *, room: int = 8192) -> Reply:
        """A well-formed request with this body."""
        self.unique += 1
        head = IN_HEADER.pack(40 + len(body), opcode, self.unique, node, 0, 0, 1, 0, 0)
        returned, reply = self.give(head + body, room)
        assert returned >= OUT_HEADER.size, returned
        length, error, unique = OUT_HEADER.unpack_from(reply)
        assert (length, unique) == (returned, self.unique)
        assert error <= 0
        return Reply(-error, reply[OUT_HEADER.size :])

    def init(self) -> None:
        flags = 0xFFFFFFFF
        assert self.request(INIT, 0, struct.pack("<IIII", 7, 39, 65536, flags)).errno == 0

    def lookup(self, node: int, *names: str | bytes) -> Reply:
        """One name after the other."""
        reply = Reply(0, struct.pack("<Q", node))
        for name in names:
            reply = self.request(LOOKUP, reply.node, os.fsencode(name) + b"\0")
            if reply.errno:
                break
        return reply

    def open(self, node: int, flags: int = os.O_RDONLY, opcode: int = OPEN) -> Reply:
        return self.request(opcode, node, struct.pack("<II", flags, 0))

    def read(self, node: int, flags: int = os.O_RDONLY) -> bytes:
        """Open, and all that is in it."""
        reply = self.open(node, flags)
        assert reply.errno == 0, os.strerror(reply.errno)
        handle = reply.node
        body = struct.pack("<QQIIQII", handle, 0, 4096, 0, 0, 0, 0)
        return self.request(READ, node, body).data

    def create(self, node: int, name: str, flags: int = os.O_RDWR, opcode: int = CREATE) -> Reply:
        body = struct.pack("<IIII", flags | os.O_CREAT, 0o644, 0, 0)
        return self.request(opcode, node, body + os.fsencode(name) + b"\0")

    def rename(self, old: int, name: str, new: int, to: str, flags: int = 0) -> Reply:
        body = struct.pack("<QII", new, flags, 0)
        return self.request(RENAME2, old, body + os.fsencode(f"{name}\0{to}\0"))

    def link(self, node: int, directory: int, name: str) -> Reply:
        body = struct.pack("<Q", node) + os.fsencode(name) + b"\0"
        return self.request(LINK, directory, body)


@contextlib.contextmanager
def raw(
    driver: Path, exports: Sequence[Export], *, piece: int = 1 << 20, user: int | None = None
) -> Iterator[Raw]:
    """A server that a client has begun to use; in the end it must not have complained."""
    with tempfile.TemporaryDirectory(prefix="nsrun-fs-") as name:
        view = Path(name, "view")
        view.write_bytes(view_bytes(exports))
        Path(name).chmod(0o755)
        pipe = subprocess.PIPE
        with subprocess.Popen(
            [driver, view],
            env={**os.environ, **OPTIONS},
            stdin=pipe,
            stdout=pipe,
            stderr=pipe,
            user=user,
            group=user,
            extra_groups=None if user is None else [],
        ) as process:
            client = Raw(process, piece)
            try:
                client.init()
                yield client
                _, errors = process.communicate()
                assert (process.returncode, errors.decode()) == (0, "")
            finally:
                process.kill()
