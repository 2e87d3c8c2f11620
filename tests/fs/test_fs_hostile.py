"""A client that took its kernel over: requests made of anything."""

from __future__ import annotations

import errno
import os
import random
import shutil
import stat
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn

import pytest
import rawfuse
from rawfuse import ROOT, Raw, raw

from cowork_nsrun.guest.view import Access, Export, Rule, view_bytes

SECRET = b"what the plan hid\n"
RULES = (
    Rule("secret", Access.HIDDEN),
    Rule("vault", Access.HIDDEN),
    Rule("vault/shown", Access.READ_ONLY),
    Rule("proj/.git/hooks", Access.READ_ONLY),
    Rule("proj/later/config", Access.READ_ONLY),
    Rule("ro", Access.READ_ONLY),
    Rule("ro/out", Access.WRITABLE),
)


@pytest.fixture
def host(tmp_path: Path) -> Path:
    path = tmp_path / "host"
    for name in ("proj/.git/hooks", "vault/shown", "vault/deep", "ro/out", "free"):
        (path / name).mkdir(parents=True)
    (path / "secret").write_bytes(SECRET)
    for name in ("vault/key", "vault/shown/open", "proj/.git/hooks/pre", "ro/f", "free/f"):
        (path / name).write_bytes(SECRET)
    (tmp_path / "outside").write_bytes(SECRET)
    return path


@pytest.fixture
def client(driver: Path, host: Path) -> Iterator[Raw]:
    with raw(driver, [Export(str(host), rules=RULES), Export(str(host), read_only=True)]) as one:
        yield one


@pytest.fixture
def unruled(driver: Path, host: Path) -> Iterator[Raw]:
    """The control: the same without rules, where all that is refused must succeed."""
    with raw(driver, [Export(str(host))]) as one:
        yield one


# --- names ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["..", ".", "", "a/b", "../outside", "free/f", "/etc/passwd"])
def test_only_plain_names(client: Raw, name: str) -> None:
    top = client.lookup(ROOT, "0").node
    text = os.fsencode(name) + b"\0"
    assert client.lookup(top, name).errno == errno.EINVAL
    assert client.create(top, name).errno == errno.EINVAL
    assert client.rename(top, "free", top, name).errno == errno.EINVAL
    assert client.rename(top, name, top, "x").errno == errno.EINVAL
    assert client.link(client.lookup(top, "free", "f").node, top, name).errno == errno.EINVAL
    for opcode, front in (
        (rawfuse.MKDIR, struct.pack("<II", 0o755, 0)),
        (rawfuse.MKNOD, struct.pack("<IIII", stat.S_IFREG | 0o644, 0, 0, 0)),
        (rawfuse.UNLINK, b""),
        (rawfuse.RMDIR, b""),
    ):
        assert client.request(opcode, top, front + text).errno == errno.EINVAL
    assert client.request(rawfuse.SYMLINK, top, text + b"target\0").errno == errno.EINVAL


def test_a_name_without_an_end(client: Raw) -> None:
    top = client.lookup(ROOT, "0").node
    assert client.request(rawfuse.LOOKUP, top, b"free").errno == errno.EINVAL
    assert client.request(rawfuse.LOOKUP, top, b"x" * 255).errno == errno.EINVAL
    assert client.request(rawfuse.LOOKUP, top, b"x" * 256).errno == errno.ENAMETOOLONG
    assert client.request(rawfuse.LOOKUP, top, b"x" * 300 + b"\0").errno == errno.ENAMETOOLONG


@pytest.mark.parametrize("name", ["2", "-1", "00", "+0", " 0", "0x0", "4294967296", "9" * 30])
def test_only_exports_lie_at_the_top(client: Raw, name: str) -> None:
    assert client.lookup(ROOT, name).errno == errno.ENOENT


# --- numbers that the client made up ----------------------------------------------------------


def test_forged_nodes_and_handles(client: Raw) -> None:
    top = client.lookup(ROOT, "0").node
    file = client.lookup(top, "free", "f").node
    handle = client.open(file).node
    other = client.lookup(top, "secret").node
    for node in (0, 999, 1 << 63, (1 << 64) - 1):
        assert client.request(rawfuse.GETATTR, node, bytes(16)).errno == errno.ESTALE
    read = struct.Struct("<QQIIQII")
    for fake in (handle + 1, 0, (1 << 64) - 1, handle ^ 1 << 20):
        body = read.pack(fake, 0, 100, 0, 0, 0, 0)
        assert client.request(rawfuse.READ, file, body).errno == errno.EBADF
    # a file's handle is of its node, and no directory's
    body = read.pack(handle, 0, 100, 0, 0, 0, 0)
    assert client.request(rawfuse.READ, other, body).errno == errno.EBADF
    assert client.request(rawfuse.READDIR, file, body).errno == errno.EBADF
    assert client.request(rawfuse.READ, file, body).data == SECRET
    # once forgotten, or released, it is gone
    assert client.request(rawfuse.RELEASE, file, struct.pack("<QIIQ", handle, 0, 0, 0)).errno == 0
    assert client.request(rawfuse.READ, file, body).errno == errno.EBADF
    head = rawfuse.IN_HEADER.pack(48, rawfuse.FORGET, 1, file, 0, 0, 0, 0, 0)
    assert client.give(head + struct.pack("<Q", 1 << 40), 0) == (0, b"")
    assert client.request(rawfuse.GETATTR, file, bytes(16)).errno == errno.ESTALE


def test_lengths_are_checked(client: Raw) -> None:
    top = client.lookup(ROOT, "0").node
    pack = rawfuse.IN_HEADER.pack
    for length in (0, 39, 41, 1 << 31):
        data = pack(length, rawfuse.LOOKUP, 1, top, 0, 0, 0, 0, 0)
        assert client.give(data, 200)[0] == -errno.EPROTO
    assert client.give(b"", 200)[0] == -errno.EPROTO
    assert (
        client.give(pack(45, rawfuse.LOOKUP, 1, top, 0, 0, 0, 0, 0) + b"free\0", 15)[0]
        == -errno.EPROTO
    )
    assert client.request(rawfuse.LOOKUP, top, b"free\0", room=16 + 127).errno == errno.EINVAL
    assert client.request(rawfuse.LOOKUP, top, b"free\0", room=16 + 128).errno == 0
    for opcode in range(60):
        if opcode in (rawfuse.FORGET, rawfuse.INTERRUPT, rawfuse.BATCH_FORGET, rawfuse.DESTROY):
            continue
        if opcode in (rawfuse.READLINK, rawfuse.STATFS):
            continue
        assert client.request(opcode, top, b"", room=16).errno in (
            errno.EINVAL,
            errno.ENOSYS,
            errno.ENOTTY,
        )


def test_counts_are_checked(client: Raw) -> None:
    file = client.lookup(client.lookup(ROOT, "0").node, "free", "f").node
    handle = client.open(file, os.O_RDWR).node
    write = struct.pack("<QQIIQII", handle, 0, 1 << 31, 0, 0, 0, 0)
    assert client.request(rawfuse.WRITE, file, write + b"short").errno == errno.EINVAL
    xattr = struct.pack("<II", 1 << 31, 0) + b"user.a\0" + b"v"
    assert client.request(rawfuse.SETXATTR, file, xattr).errno == errno.E2BIG
    xattr = struct.pack("<II", 100, 0) + b"user.a\0" + b"v"
    assert client.request(rawfuse.SETXATTR, file, xattr).errno == errno.EINVAL
    many = rawfuse.IN_HEADER.pack(48, rawfuse.BATCH_FORGET, 1, 0, 0, 0, 0, 0, 0)
    assert client.give(many + struct.pack("<II", 0xFFFFFFFF, 0), 0) == (0, b"")


@pytest.mark.parametrize("piece", [1, 3, 7, 64])
def test_requests_in_pieces(driver: Path, host: Path, piece: int) -> None:
    with raw(driver, [Export(str(host))], piece=piece) as client:
        top = client.lookup(ROOT, "0").node
        reply = client.create(top, "new")
        handle = struct.unpack_from("<Q", reply.data, 128)[0]
        data = bytes(range(256)) * 3
        write = struct.pack("<QQIIQII", handle, 5, len(data), 0, 0, 0, 0)
        assert client.request(rawfuse.WRITE, reply.node, write + data).errno == 0
        assert client.read(reply.node) == bytes(5) + data
        assert (host / "new").read_bytes() == bytes(5) + data


# --- what the view takes away -----------------------------------------------------------------


def test_hidden_by_every_route(client: Raw, host: Path) -> None:
    top = client.lookup(ROOT, "0").node
    secret = client.lookup(top, "secret")
    assert (secret.mode, client.open(secret.node).errno) == (stat.S_IFREG, errno.EACCES)
    assert client.request(
        rawfuse.GETXATTR, secret.node, struct.pack("<II", 100, 0) + b"user.a\0"
    ).errno
    assert client.link(secret.node, top, "alias").errno == errno.EXDEV
    assert client.rename(top, "secret", top, "alias").errno == errno.EBUSY
    assert client.rename(top, "free", top, "secret", flags=2).errno == errno.EACCES
    assert client.request(rawfuse.UNLINK, top, b"secret\0").errno == errno.EBUSY
    assert client.create(top, "secret").errno == errno.EACCES
    vault = client.lookup(top, "vault").node
    assert client.lookup(vault, "key").errno == errno.ENOENT
    assert client.create(vault, "key").errno == errno.EACCES
    assert client.create(vault, "new", opcode=rawfuse.TMPFILE).errno == errno.EACCES
    assert client.lookup(vault, "deep").errno == errno.ENOENT
    # what a longer rule shows can be reached, and is all that is listed
    shown = client.lookup(vault, "shown").node
    assert client.read(client.lookup(shown, "open").node) == SECRET
    assert client.create(shown, "new").errno == errno.EROFS
    handle = client.open(vault, opcode=rawfuse.OPENDIR).node
    listing = client.request(
        rawfuse.READDIR, vault, struct.pack("<QQIIQII", handle, 0, 4096, 0, 0, 0, 0)
    )
    assert b"shown" in listing.data
    assert b"key" not in listing.data
    # another name that the host made
    os.link(host / "secret", host / "free" / "alias")
    (host / "vault").rename(host / "free" / "moved")
    for name in ("alias", "moved"):
        node = client.lookup(top, "free", name)
        assert stat.S_IMODE(node.mode) in (0, 0o555)
        assert client.open(node.node).errno in (errno.EACCES, errno.EISDIR)
        assert client.rename(client.lookup(top, "free").node, name, top, "x").errno == errno.EBUSY
    assert client.lookup(top, "free", "moved", "key").errno == errno.ENOENT


def test_control_hidden(unruled: Raw) -> None:
    top = unruled.lookup(ROOT, "0").node
    secret = unruled.lookup(top, "secret").node
    assert unruled.read(secret) == SECRET
    assert unruled.link(secret, top, "alias").errno == 0
    assert unruled.rename(top, "secret", top, "moved").errno == 0
    assert unruled.rename(top, "free", top, "alias", flags=2).errno == 0
    assert unruled.request(rawfuse.UNLINK, top, b"moved\0").errno == 0
    assert unruled.create(top, "secret").errno == 0
    vault = unruled.lookup(top, "vault").node
    assert unruled.read(unruled.lookup(vault, "key").node) == SECRET
    assert unruled.create(vault, "new", opcode=rawfuse.TMPFILE).errno == 0
    assert unruled.create(unruled.lookup(vault, "shown").node, "new").errno == 0


def test_read_only_by_every_route(client: Raw, host: Path) -> None:
    top = client.lookup(ROOT, "0").node
    ro = client.lookup(top, "ro").node
    file = client.lookup(ro, "f").node
    for flags in (os.O_WRONLY, os.O_RDWR, os.O_RDONLY | os.O_TRUNC):
        assert client.open(file, flags).errno == errno.EROFS
        assert client.create(ro, "f", flags).errno == errno.EROFS
    assert client.read(file) == SECRET
    for valid in (1, 2, 4, 8, 16, 128):
        body = struct.pack("<II", valid, 0) + bytes(80)
        assert client.request(rawfuse.SETATTR, file, body).errno == errno.EROFS
    assert (
        client.request(rawfuse.SETXATTR, file, struct.pack("<II", 1, 0) + b"user.a\0v").errno
        == errno.EROFS
    )
    assert client.request(rawfuse.REMOVEXATTR, file, b"user.a\0").errno == errno.EROFS
    free = client.lookup(top, "free").node
    assert client.link(file, free, "alias").errno == errno.EXDEV
    assert client.link(client.lookup(free, "f").node, ro, "alias").errno in (
        errno.EXDEV,
        errno.EROFS,
    )
    assert client.rename(ro, "f", free, "x").errno == errno.EROFS
    assert client.rename(free, "f", ro, "x").errno == errno.EROFS
    assert client.request(rawfuse.UNLINK, ro, b"f\0").errno == errno.EROFS
    assert (
        client.request(rawfuse.MKDIR, ro, struct.pack("<II", 0o755, 0) + b"d\0").errno
        == errno.EROFS
    )
    assert client.request(rawfuse.SYMLINK, ro, b"s\0t\0").errno == errno.EROFS
    assert client.create(ro, "", opcode=rawfuse.TMPFILE).errno == errno.EROFS
    # the exception within it, from which nothing comes out or in
    out = client.lookup(ro, "out").node
    made = client.create(out, "new")
    assert made.errno == 0
    assert client.link(made.node, free, "n").errno == errno.EXDEV
    assert client.rename(out, "new", free, "n").errno == errno.EXDEV
    tmpfile = client.create(free, "", opcode=rawfuse.TMPFILE).node
    assert client.link(tmpfile, out, "n").errno == errno.EXDEV
    # a file that was opened for reading stays so
    handle = client.open(file).node
    write = struct.pack("<QQIIQII", handle, 0, 1, 0, 0, 0, 0) + b"x"
    assert client.request(rawfuse.WRITE, file, write).errno == errno.EBADF
    assert (
        client.request(rawfuse.FALLOCATE, file, struct.pack("<QQQII", handle, 0, 9, 0, 0)).errno
        == errno.EBADF
    )
    copy = struct.pack("<7Q", handle, 0, file, handle, 5, 5, 0)
    assert client.request(rawfuse.COPY_FILE_RANGE, file, copy).errno == errno.EBADF
    assert (host / "ro" / "f").read_bytes() == SECRET
    # nor through the other export of the same files
    again = client.lookup(ROOT, "1", "free", "f").node
    assert client.open(again, os.O_RDWR).errno == errno.EROFS
    assert client.link(
        client.lookup(top, "free", "f").node, client.lookup(ROOT, "1").node, "x"
    ).errno


def test_nothing_on_the_way_to_a_rule_moves(client: Raw, host: Path) -> None:
    top = client.lookup(ROOT, "0").node
    proj = client.lookup(top, "proj").node
    git = client.lookup(proj, ".git").node
    exchange = 2
    for flags in (0, exchange):
        assert client.rename(top, "proj", top, "free", flags).errno == errno.EBUSY
        assert client.rename(top, "free", top, "proj", flags).errno == errno.EBUSY
        assert client.rename(proj, ".git", proj, "x", flags).errno == errno.EBUSY
        assert client.rename(git, "hooks", git, "x", flags).errno == errno.EBUSY
    assert client.request(rawfuse.RMDIR, git, b"hooks\0").errno == errno.EBUSY
    assert client.create(client.lookup(git, "hooks").node, "post").errno == errno.EROFS
    # a rule's path that isn't there yet: its parents only as directories, itself not at all
    assert client.request(rawfuse.SYMLINK, proj, b"later\0elsewhere\0").errno == errno.EBUSY
    assert client.create(proj, "later").errno == errno.EBUSY
    assert client.rename(top, "free", proj, "later").errno == errno.EBUSY
    made = client.request(rawfuse.MKDIR, proj, struct.pack("<II", 0o755, 0) + b"later\0")
    assert client.create(made.node, "config").errno == errno.EROFS
    assert client.create(made.node, "other").errno == 0
    assert client.rename(made.node, "other", made.node, "config").errno == errno.EROFS
    assert (
        client.request(rawfuse.MKDIR, made.node, struct.pack("<II", 0o755, 0) + b"config\0").errno
        == errno.EROFS
    )
    assert client.request(rawfuse.RMDIR, proj, b"later\0").errno == errno.EBUSY
    assert os.listdir(host / "proj" / "later") == ["other"]


def test_control_moves(unruled: Raw, host: Path) -> None:
    top = unruled.lookup(ROOT, "0").node
    proj = unruled.lookup(top, "proj").node
    git = unruled.lookup(proj, ".git").node
    assert unruled.create(unruled.lookup(git, "hooks").node, "post").errno == 0
    assert unruled.rename(git, "hooks", git, "x").errno == 0
    assert unruled.rename(proj, ".git", proj, "x").errno == 0
    assert unruled.request(rawfuse.SYMLINK, proj, b"later\0elsewhere\0").errno == 0
    assert unruled.rename(top, "proj", top, "free", 2).errno == 0
    assert (host / "free" / "x" / "x" / "post").exists()


def test_special_files_are_never_opened(client: Raw, host: Path) -> None:
    os.mkfifo(host / "free" / "fifo")
    if os.geteuid() == 0:
        os.mknod(host / "free" / "dev", stat.S_IFCHR | 0o666, os.makedev(1, 5))
    os.symlink("f", host / "free" / "link")
    free = client.lookup(ROOT, "0", "free").node
    for name in sorted({"fifo", "dev"} & set(os.listdir(host / "free"))):
        node = client.lookup(free, name).node
        for flags in (os.O_RDONLY, os.O_WRONLY, os.O_RDWR, os.O_RDWR | os.O_TRUNC):
            assert client.open(node, flags).errno == errno.ENXIO
            assert client.create(free, name, flags).errno == errno.ENXIO
        assert client.open(node, opcode=rawfuse.OPENDIR).errno == errno.ENOTDIR
        truncate = struct.pack("<II", 8, 0) + bytes(80)
        assert client.request(rawfuse.SETATTR, node, truncate).errno == errno.EINVAL
    assert client.open(client.lookup(free, "link").node).errno == errno.ELOOP
    assert client.create(free, "link").errno == errno.ELOOP
    for kind in (stat.S_IFCHR, stat.S_IFBLK, 0o170000):
        body = struct.pack("<IIII", kind | 0o644, 0x103, 0, 0) + b"made\0"
        assert client.request(rawfuse.MKNOD, free, body).errno == errno.EPERM


def test_a_new_client_knows_nothing(client: Raw) -> None:
    file = client.lookup(ROOT, "0", "free", "f").node
    handle = client.open(file, os.O_RDWR).node
    lock = struct.pack("<QQQQIIII", handle, 7, 0, 10, 1, 0, 0, 0)
    assert client.request(rawfuse.SETLK, file, lock).errno == 0
    client.init()
    assert client.request(rawfuse.GETATTR, file, bytes(16)).errno == errno.ESTALE
    assert client.request(rawfuse.DESTROY, 0).errno == 0
    assert client.request(rawfuse.GETATTR, ROOT, bytes(16)).errno == errno.EIO
    client.init()
    file = client.lookup(ROOT, "0", "free", "f").node
    assert client.read(file) == SECRET


def test_directories_that_the_host_moves_around(client: Raw, host: Path) -> None:
    """What was above is now below: no loop, and stale at most."""
    (host / "free" / "a" / "b").mkdir(parents=True)
    free = client.lookup(ROOT, "0", "free").node
    a = client.lookup(free, "a").node
    b = client.lookup(a, "b").node
    (host / "free" / "a" / "b").rename(host / "free" / "b")
    (host / "free" / "a").rename(host / "free" / "b" / "a")
    assert client.lookup(b, "a").errno in (errno.ESTALE, 0)
    assert client.lookup(free, "b", "a").node == a
    assert client.lookup(a, "b").errno == errno.ENOENT
    assert client.request(rawfuse.GETATTR, a, bytes(16)).errno == 0


def test_random_requests(client: Raw) -> None:
    """All opcodes with bodies of anything: each gets a reply, and nothing is overrun."""
    chance = random.Random(5)
    nodes = [ROOT, *(client.lookup(ROOT, "0").node for _ in range(2))]
    nodes += [client.lookup(ROOT, "0", name).node for name in ("free", "secret", "vault", "ro")]
    handles = [client.open(client.lookup(ROOT, "0", "free", "f").node, os.O_RDWR).node]
    for _ in range(3000):
        body = bytearray(chance.randbytes(chance.choice((0, 4, 8, 16, 40, 88, 120, 600))))
        if len(body) >= 8 and chance.random() < 0.5:
            body[:8] = struct.pack("<Q", chance.choice(handles + nodes))
        opcode = chance.choice([code for code in range(60) if code not in (2, 36, 38, 42)])
        # a chain of symbolic names would fill the directory of the test
        reply = client.request(
            opcode, chance.choice(nodes), bytes(body), room=chance.choice((16, 200, 5000))
        )
        if reply.errno == 0 and opcode in (rawfuse.OPEN, rawfuse.OPENDIR):
            handles.append(reply.node)


@pytest.mark.parametrize("minor", [31, 34, 37, 39, 41, 999])
def test_each_kernel_gets_what_it_offers(client: Raw, minor: int) -> None:
    """Linux 5.4, 5.15, 6.1, 6.8, 6.12 and one to come; nothing is forced on any."""
    writeback_cache, unknown = 1 << 16, 1 << 31
    for offered in (0, 0xFFFFFFFF, 1 << 13 | 1 << 22, writeback_cache):
        reply = client.request(rawfuse.INIT, 0, struct.pack("<IIII", 7, minor, 4096, offered))
        assert reply.errno == 0
        major, _, readahead, flags = struct.unpack_from("<IIII", reply.data)
        assert (major, readahead, flags & ~offered) == (7, 4096, 0)
        assert flags & (writeback_cache | unknown) == 0
    client.init()


def test_kernels_that_are_too_old_or_too_new(client: Raw) -> None:
    for major, minor in ((6, 99), (7, 30), (0, 0)):
        body = struct.pack("<IIII", major, minor, 4096, 0)
        assert client.request(rawfuse.INIT, 0, body).errno == errno.EPROTO
    # it is told which version there is, and asks again
    reply = client.request(rawfuse.INIT, 0, struct.pack("<IIII", 8, 0, 4096, 0))
    assert struct.unpack_from("<I", reply.data)[0] == 7
    client.init()


def test_exports_come_later(client: Raw, host: Path) -> None:
    """Existing ones stay as they are, rules and numbers of nodes included."""
    secret = client.lookup(ROOT, "0", "secret").node
    assert client.lookup(ROOT, "2").errno == errno.ENOENT
    more = view_bytes([Export(str(host / "vault")), Export(str(host / "secret"), read_only=True)])
    assert client.add(more) == 2
    assert client.read(client.lookup(ROOT, "2", "key").node) == SECRET
    assert client.read(client.lookup(ROOT, "3").node) == SECRET
    assert client.lookup(ROOT, "0", "secret").node == secret
    assert client.open(secret).errno == errno.EACCES
    handle = client.open(ROOT, opcode=rawfuse.OPENDIR).node
    body = struct.pack("<QQIIQII", handle, 0, 4096, 0, 0, 0, 0)
    assert client.request(rawfuse.READDIR, ROOT, body).data.count(b"\0\0\0\0" + b"3") == 1
    # one that can't be adds nothing
    assert client.add(view_bytes([Export(str(host)), Export("/no/such")])) == -1
    assert client.add(more[:-1]) == -1
    assert client.lookup(ROOT, "4").errno == errno.ENOENT
    assert client.add(view_bytes([])) == 4


def test_as_many_exports_as_files_allow(driver: Path, host: Path) -> None:
    with raw(driver, [Export(str(host))]) as client:
        many = view_bytes([Export(str(host))] * 4096)
        assert client.add(many) == -1
        assert client.lookup(ROOT, "1").errno == errno.ENOENT
        assert client.add(view_bytes([Export(str(host))] * 10)) == 1


def test_a_user_s_server(
    driver: Path, open_directory: Path, lack: Callable[[str], NoReturn]
) -> None:
    """What it may not is refused by the host; nothing is done for it that needs root."""
    if os.geteuid() != 0:
        lack("only root can run the file server as root and as a user")
    host = open_directory / "users"
    host.mkdir()
    program = open_directory / "driver"
    shutil.copy(driver, program)
    (host / "roots").write_bytes(SECRET)
    (host / "roots").chmod(0o600)
    os.chown(host, 12345, 12345)
    with raw(program, [Export(str(host))], user=12345) as client:
        top = client.lookup(ROOT, "0").node
        roots = client.lookup(top, "roots").node
        assert client.open(roots).errno == errno.EACCES
        assert client.open(roots, os.O_WRONLY).errno == errno.EACCES
        made = client.create(top, "made").node
        mode = struct.pack("<II", 1, 0) + bytes(60) + struct.pack("<I", 0o4755) + bytes(16)
        assert client.request(rawfuse.SETATTR, made, mode).errno == 0
        owner = struct.pack("<II", 2, 0) + bytes(68) + struct.pack("<I", 0) + bytes(8)
        assert client.request(rawfuse.SETATTR, made, owner).errno == errno.EPERM
    there = (host / "made").stat()
    assert (there.st_uid, stat.S_IMODE(there.st_mode)) == (12345, 0o4755)
