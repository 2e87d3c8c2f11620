"""What a client knows and has open, saved, and found again by another server."""

from __future__ import annotations

import fcntl
import os
import random
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import rawfuse
from rawfuse import CHECK, KEEP, LOAD, ROOT, SAVE, Raw, raw

from cowork_nsrun.guest.view import Access, Export, Rule

#: bytes of what is saved before the first node, if files of one device were shown; of a node
HEAD, NODE = 48, 96


@pytest.fixture
def host(tmp_path: Path) -> Path:
    for name in ("ro/lib/deep", "rw/work"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "ro/lib/module").write_text("module")
    (tmp_path / "ro/lib/deep/other").write_text("other")
    (tmp_path / "ro/link").symlink_to("lib")
    (tmp_path / "ro/secret").write_text("hidden")
    (tmp_path / "rw/work/file").write_text("file")
    return tmp_path


def exports(host: Path) -> list[Export]:
    rules = (Rule("secret", Access.HIDDEN),)
    return [
        Export(str(host / "ro"), read_only=True, rules=rules),
        Export(str(host / "rw")),
    ]


@contextmanager
def client(driver: Path, host: Path) -> Iterator[Raw]:
    with raw(driver, exports(host)) as one:
        yield one


@contextmanager
def keeping(driver: Path, host: Path) -> Iterator[tuple[Raw, dict[str, int]]]:
    """A client that has looked around, and the numbers of the nodes that it knows."""
    with client(driver, host) as one:
        assert one.order(KEEP) == (0, b"")
        below = {
            "0": ("", "/lib", "/lib/module", "/lib/deep/other", "/link", "/secret"),
            "1": ("", "/work", "/work/file"),
        }
        names = [top + path for top, paths in below.items() for path in paths]
        yield one, {name: one.lookup(ROOT, *name.split("/")).node for name in names}


def saved(one: Raw) -> bytes:
    length, data = one.order(SAVE)
    assert length == len(data), data
    return data


def refusal(one: Raw, order: int, data: bytes = b"") -> str:
    value, said = one.order(order, data)
    assert value == -1
    return said.decode()


def read(one: Raw, node: int, handle: int) -> bytes:
    body = struct.pack("<QQIIQII", handle, 0, 4096, 0, 0, 0, 0)
    return one.request(rawfuse.READ, node, body).data


def test_another_server_goes_on(driver: Path, host: Path) -> None:
    """By the same numbers, with the rights of the view, and with new numbers for what is new."""
    with keeping(driver, host) as (one, nodes):
        handle = one.open(nodes["0/lib/module"]).node
        listing = one.open(nodes["0/lib"], opcode=rawfuse.OPENDIR).node
        data = saved(one)
        # it goes on as well
        assert read(one, nodes["0/lib/module"], handle) == b"module"
    with client(driver, host) as other:
        assert other.order(LOAD, data) == (0, b"")
        assert other.order(CHECK) == (0, b"")
        assert read(other, nodes["0/lib/module"], handle) == b"module"
        assert other.read(nodes["0/lib/deep/other"]) == b"other"
        body = struct.pack("<QQIIQII", listing, 0, 4096, 0, 0, 0, 0)
        names = other.request(rawfuse.READDIR, nodes["0/lib"], body).data
        assert b"module" in names
        assert other.open(nodes["0/secret"]).errno
        assert other.open(nodes["0/lib/module"], os.O_RDWR).errno
        assert other.create(nodes["1/work"], "new").errno == 0
        assert other.lookup(ROOT, "0", "lib").node == nodes["0/lib"]
        assert other.lookup(nodes["1/work"], "new").node > max(nodes.values())
        # what is open anew has another number than what was open
        assert other.open(nodes["0/lib/module"]).node not in (handle, listing)


Change = Callable[[Path], object]


def replace(path: Path) -> None:
    other = path.with_name("other-file")
    other.write_bytes(path.read_bytes())
    other.rename(path)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda host: (host / "ro/lib/module").write_text("MODULE"), "lib/module: it has changed"),
        (lambda host: (host / "rw/work/file").write_text("FILE"), "work/file: it has changed"),
        (lambda host: replace(host / "rw/work/file"), "work/file: another file is there now"),
        (lambda host: (host / "ro/lib/new").write_text(""), "ro/lib: it has changed"),
        (lambda host: (host / "ro/lib/deep").rename(host / "ro/lib/else"), "ro/lib: it has"),
        (lambda host: (host / "rw/work").rename(host / "rw/else"), "not there any more"),
        (lambda host: (host / "ro/lib/module").chmod(0o600), "lib/module: it has changed"),
    ],
)
@pytest.mark.parametrize("when", [SAVE, LOAD, CHECK])
def test_changes_of_the_host_s(
    driver: Path, host: Path, change: Change, why: str, when: int
) -> None:
    """Each is found out when it is saved, when it is loaded, and when it is looked at again."""
    with keeping(driver, host) as (one, _):
        if when == SAVE:
            change(host)
            assert why in refusal(one, SAVE)
            return
        data = saved(one)
    if when == LOAD:
        change(host)
    with client(driver, host) as other:
        if when == LOAD:
            said = refusal(other, LOAD, data)
            assert why in said or "what was in it is not there any more" in said
            return
        assert other.order(LOAD, data) == (0, b"")
        change(host)
        assert why in refusal(other, CHECK)


def test_changes_that_are_none(driver: Path, host: Path) -> None:
    """What nobody looked at, what is hidden, and what happens in a writable directory."""
    with keeping(driver, host) as (one, nodes):
        data = saved(one)
    (host / "ro/secret").write_text("changed")
    (host / "ro/lib/deep/other").read_text()
    (host / "rw/work/later").write_text("")
    with client(driver, host) as other:
        assert other.order(LOAD, data) == (0, b"")
        assert other.order(CHECK) == (0, b"")
        assert other.lookup(nodes["1/work"], "later").errno == 0


@pytest.mark.parametrize("top", ["0", "1"])
def test_what_was_only_listed(driver: Path, host: Path, top: str) -> None:
    """Where others write it is nothing; where nobody does the client believes it."""
    place = host / ("ro/lib/deep" if top == "0" else "rw/work")
    (place / "listed").write_text("")
    with client(driver, host) as one:
        assert one.order(KEEP) == (0, b"")
        node = one.lookup(ROOT, top, *place.relative_to(host).parts[1:]).node
        handle = one.open(node, opcode=rawfuse.OPENDIR).node
        body = struct.pack("<QQIIQII", handle, 0, 4096, 0, 0, 0, 0)
        assert b"listed" in one.request(rawfuse.READDIRPLUS, node, body).data
        release(one, node, handle, rawfuse.RELEASEDIR)
        data = saved(one)
    (place / "listed").write_text("changed")
    with client(driver, host) as other:
        if top == "0":
            assert "listed: it has changed" in refusal(other, LOAD, data)
            return
        assert other.order(LOAD, data) == (0, b"")
        assert other.order(CHECK) == (0, b"")
        assert other.lookup(node, "listed").errno == 0


def test_what_the_client_forgot_counts(driver: Path, host: Path) -> None:
    """A program may have read it: only once it was looked at again is nothing kept."""
    with keeping(driver, host) as (one, nodes):
        forget = struct.pack("<Q", 1)
        one.unique += 1
        head = rawfuse.IN_HEADER.pack(48, rawfuse.FORGET, 1, nodes["1/work/file"], 0, 0, 1, 0, 0)
        assert one.give(head + forget, 64) == (0, b"")
        data = saved(one)
        (host / "rw/work/file").write_text("FILE")
        assert "it has changed" in refusal(one, SAVE)
    with client(driver, host) as other:
        assert "work/file: it has changed" in refusal(other, LOAD, data)


def test_what_can_not_be_saved(driver: Path, host: Path) -> None:
    with client(driver, host) as one:
        one.lookup(ROOT, "0")
        assert "not to be saved" in refusal(one, SAVE)
        assert "none to be looked at" in refusal(one, CHECK)
    with keeping(driver, host) as (one, nodes):
        assert one.open(nodes["1/work/file"], os.O_RDWR).errno == 0
        assert "work/file: it is open for writing" in refusal(one, SAVE)
    with keeping(driver, host) as (one, nodes):
        handle = one.open(nodes["1/work/file"]).node
        body = struct.pack("<QQQQIIII", handle, 7, 0, 9, fcntl.F_RDLCK, 1, 0, 0)
        assert one.request(rawfuse.SETLK, nodes["1/work/file"], body).errno == 0
        assert "work/file: it is locked" in refusal(one, SAVE)
    with keeping(driver, host) as (one, nodes):
        handle = one.open(nodes["1/work/file"]).node
        for kind, locked in ((fcntl.F_RDLCK, True), (fcntl.F_UNLCK, False)):
            body = struct.pack("<QQQQIIII", handle, 7, 0, 9, kind, 1, 1, 0)
            assert one.request(rawfuse.SETLK, nodes["1/work/file"], body).errno == 0
            if locked:
                assert "work/file: it is locked" in refusal(one, SAVE)
        assert saved(one)
    with keeping(driver, host) as (one, nodes):
        assert one.create(nodes["1/work"], "", opcode=rawfuse.TMPFILE).errno == 0
        assert "name" in refusal(one, SAVE)


def release(one: Raw, node: int, handle: int, opcode: int = rawfuse.RELEASE) -> None:
    body = struct.pack("<QIIQ", handle, 0, 0, 0)
    assert one.request(opcode, node, body).errno == 0


def test_what_the_client_wrote_itself(driver: Path, host: Path) -> None:
    """It is as it is when it is saved; what is gone by then is nothing."""
    with keeping(driver, host) as (one, nodes):
        for name in ("kept", "gone"):
            made = one.create(nodes["1/work"], name)
            node, handle = made.node, struct.unpack_from("<Q", made.data, 128)[0]
            body = struct.pack("<QQIIQII", handle, 0, 4, 0, 0, 0, 0) + b"four"
            assert one.request(rawfuse.WRITE, node, body).errno == 0
            release(one, node, handle)
        assert one.request(rawfuse.UNLINK, nodes["1/work"], b"gone\0").errno == 0
        head = rawfuse.IN_HEADER.pack(48, rawfuse.FORGET, 1, node, 0, 0, 1, 0, 0)
        assert one.give(head + struct.pack("<Q", 1), 64) == (0, b"")
        data = saved(one)
    with client(driver, host) as other:
        assert other.order(LOAD, data) == (0, b"")
    (host / "rw/work/kept").write_text("five.")
    with client(driver, host) as other:
        assert "work/kept: it has changed" in refusal(other, LOAD, data)


def test_bytes_of_anybody_s(driver: Path, host: Path) -> None:
    """Cut short anywhere, or with any of it another: refused with a word, or as good as any."""
    with keeping(driver, host) as (one, nodes):
        one.open(nodes["0/lib/module"])
        one.open(nodes["0/lib"], opcode=rawfuse.OPENDIR)
        data = saved(one)
    generator = random.Random(7)
    cuts = [data[:at] for at in range(0, len(data), 97)] + [data + b"\0"]
    spoilt = []
    for _ in range(60):
        at = generator.randrange(len(data) // 8) * 8
        value = generator.choice([0, 1, 2, 9, 2**20, 2**31, 2**43, 2**63, 2**64 - 1])
        spoilt.append(data[:at] + struct.pack("<Q", value) + data[at + 8 :])
    for number, bad in enumerate(cuts + spoilt):
        with client(driver, host) as other:
            value, said = other.order(LOAD, bad)
            assert value in (0, -1)
            assert bool(value) == bool(said)
            if number < len(cuts):
                assert value == -1
            # whatever it took can be used
            for node in nodes.values():
                other.request(rawfuse.GETATTR, node, bytes(16))
                other.open(node)
            other.lookup(ROOT, "0", "lib", "module")


def test_numbers_that_can_not_be(driver: Path, host: Path) -> None:
    with keeping(driver, host) as (one, nodes):
        handle = one.open(nodes["0/lib/module"]).node
        data = saved(one)
    for at, value in (
        (0, 1), (0, 2**63), (0, 2),  # the next node
        (8, 0), (8, 2**44),  # the next handle
        (16, 257),  # devices
        (24, 2**60), (32, 2**60),  # how many follow
        (HEAD, 1), (HEAD + 8, 77), (HEAD + 16, 2**63), (HEAD + NODE - 8, 256),  # the first node
        (len(data) - 24, 2**50 + handle), (len(data) - 16, 99), (len(data) - 8, 1),  # the handle
    ):  # fmt: skip
        bad = data[:at] + struct.pack("<Q", value) + data[at + 8 :]
        with client(driver, host) as other:
            assert refusal(other, LOAD, bad), (at, value)
    # control
    with client(driver, host) as other:
        assert other.order(LOAD, data) == (0, b"")
