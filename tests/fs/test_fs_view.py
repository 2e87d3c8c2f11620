"""Which views are taken, and what of the host's mounts shows."""

from __future__ import annotations

import errno
import os
import stat
import struct
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from fslib import OPTIONS, Mount, Mounted

from cowork_nsrun.guest.view import Access, Export, Rule, view_bytes


def refusal(driver: Path, tmp_path: Path, data: bytes) -> str:
    """What the server says of such bytes; it must not take them."""
    view = tmp_path / "view"
    view.write_bytes(data)
    environment = {**os.environ, **OPTIONS}
    ended = subprocess.run(
        [driver, view], input=b"", capture_output=True, env=environment, check=False
    )
    assert ended.returncode == 1, ended.stderr.decode()
    return ended.stderr.decode().strip()


def header(body: bytes, *, magic: int = 0x5652534E, version: int = 1, extra: int = 0) -> bytes:
    return struct.pack("<III", magic, version, 12 + len(body) + extra) + body


def export(
    path: bytes, *rules: tuple[int, bytes], flags: int = 0, count: int | None = None
) -> bytes:
    number = len(rules) if count is None else count
    data = struct.pack("<IIQQI", flags, number, 0, 0, len(path)) + path
    return data + b"".join(struct.pack("<II", access, len(name)) + name for access, name in rules)


ONE = struct.pack("<I", 1)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"\0", "not a view of version 1"),
        (b"x" * 40, "not a view of version 1"),
        (header(struct.pack("<I", 0), version=2), "not a view of version 1"),
        (header(struct.pack("<I", 0), extra=1), "not a view of version 1"),
        (header(b""), "cut off"),
        (header(struct.pack("<I", 5000)), "more than 4096 exports"),
        (header(ONE), "cut off"),
        (header(ONE + export(b"")), "0 bytes is cut off, empty"),
        (header(ONE + export(b"/a\0b")), "has a NUL"),
        (header(ONE + export(b"relative")), "not absolute"),
        (header(ONE + export(b"/tmp", flags=4)), "unknown flags"),
        (header(ONE + export(b"/tmp", count=1)), "cut off"),
        (header(ONE + export(b"/tmp", count=70000)), "more than 65536 rules"),
        (header(ONE + export(b"/tmp", (3, b"a"))), "has access 3"),
        (header(ONE + export(b"/tmp", (0, b"/a"))), "has the part ''"),
        (header(ONE + export(b"/tmp", (0, b"a//b"))), "has the part ''"),
        (header(ONE + export(b"/tmp", (0, b"a/../b"))), "has the part '..'"),
        (header(ONE + export(b"/tmp", (0, b"."))), "has the part '.'"),
        (header(ONE + export(b"/tmp", (0, b"a" * 256))), "has the part 'aaa"),
        (header(ONE + export(b"/tmp", (0, b"a"), (1, b"a"))), "two rules for one path"),
        (header(ONE + export(b"/tmp") + b"x"), "1 bytes too many"),
        (header(ONE + export(b"/no/such")), "export /no/such: open: No such file"),
    ],
)
def test_what_is_no_view(driver: Path, tmp_path: Path, data: bytes, words: str) -> None:
    assert words in refusal(driver, tmp_path, data)


def test_a_rule_through_a_link_is_refused(driver: Path, tmp_path: Path) -> None:
    host = tmp_path / "host"
    (host / "real").mkdir(parents=True)
    (host / "link").symlink_to("real")
    rules = (Rule("link/below", Access.HIDDEN),)
    said = refusal(driver, tmp_path, view_bytes([Export(str(host), rules=rules)]))
    assert "symbolic link" in said
    assert str(host) in said


def test_an_export_that_was_replaced_is_refused(driver: Path, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    status = file.stat()
    file.rename(tmp_path / "old")
    file.touch()
    given = Export(str(file), identity=(status.st_dev, status.st_ino))
    assert "it is another file now" in refusal(driver, tmp_path, view_bytes([given]))


@pytest.mark.parametrize("path", ["", "/a", "a/", "a//b", ".", "a/../b", "a/./b", "a" * 256])
def test_rules_are_plain_paths(path: str) -> None:
    with pytest.raises(ValueError, match="not a plain relative path"):
        Rule(path, Access.HIDDEN)


def test_paths_that_are_none() -> None:
    with pytest.raises(ValueError, match="not an absolute path"):
        Export("relative")
    for path in ("/a\0b", "/" + "a" * 4095):
        with pytest.raises(ValueError, match="a NUL in it, or longer"):
            view_bytes([Export(path)])


# --- mounts below a source ------------------------------------------------------------------------

MOUNTS = """
set -e
mount -t tmpfs none {0}/tmp
echo within > {0}/tmp/f
mount -t proc none {0}/proc
mount -t sysfs none {0}/sys
mount -t devpts none {0}/pts
mount -t cgroup2 none {0}/cgroup 2>/dev/null || mount -t tmpfs none {0}/cgroup
mount -t devtmpfs none {0}/dev 2>/dev/null || mount -t proc none {0}/dev
mount --bind {0}/tree {0}/again
"""


@pytest.fixture
def foreign(mount: Mount, tmp_path: Path) -> Iterator[tuple[Path, Mounted]]:
    """A source with all sorts of file systems below it."""
    host = tmp_path / "host"
    for name in ("tmp", "proc", "sys", "pts", "cgroup", "dev", "again", "tree/hidden"):
        (host / name).mkdir(parents=True)
    (host / "tree" / "hidden" / "key").touch()
    subprocess.run(["sh", "-c", MOUNTS.format(host)], check=True)
    rules = (Rule("tree/hidden", Access.HIDDEN),)
    try:
        with mount([Export(str(host), rules=rules), Export(str(host / "proc"))]) as mounted:
            yield host, mounted
    finally:
        for name in ("again", "tmp", "proc", "sys", "pts", "cgroup", "dev"):
            subprocess.run(["umount", "-l", host / name], check=True)


def test_what_is_crossed(foreign: tuple[Path, Mounted]) -> None:
    host, mounted = foreign
    guest = mounted / "0"
    assert (guest / "tmp" / "f").read_text() == "within\n"
    # two file systems, whose files are not to be taken for one
    assert (guest / "tmp").stat().st_ino != (host / "tmp").stat().st_ino
    for name in ("proc", "sys", "pts", "dev"):
        assert stat.S_ISDIR((guest / name).stat().st_mode)
        assert os.listdir(guest / name) == []
        with pytest.raises(FileNotFoundError):
            os.stat(guest / name / "self")
        with pytest.raises(PermissionError):
            (guest / name / "made").mkdir()
    # by name it is an export like any other
    assert (mounted / "1" / "version").read_text() == Path("/proc/version").read_text()


def test_another_way_to_what_is_hidden(foreign: tuple[Path, Mounted]) -> None:
    _, mounted = foreign
    for name in ("tree", "again"):
        assert os.listdir(mounted / "0" / name) == ["hidden"]
        assert os.listdir(mounted / "0" / name / "hidden") == []
        with pytest.raises(FileNotFoundError):
            os.stat(mounted / "0" / name / "hidden" / "key")


# --- kinds of sources -------------------------------------------------------------------------


def test_sources_of_all_kinds(mount: Mount, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"a file")
    (tmp_path / "link").symlink_to("file")
    os.mkfifo(tmp_path / "fifo")
    exports = [
        Export(str(tmp_path / "file")),
        Export(str(tmp_path / "link")),
        Export(str(tmp_path / "link"), follow=False),
        Export(str(tmp_path / "fifo")),
        Export("/dev/null"),
    ]
    with mount(exports) as guest:
        assert sorted(os.listdir(guest.path)) == ["0", "1", "2", "3", "4"]
        assert (guest / "0").read_bytes() == (guest / "1").read_bytes() == b"a file"
        assert os.readlink(guest / "2") == "file"
        assert stat.S_ISFIFO((guest / "3").stat().st_mode)
        # replaced on the host, the export is what it was, as a bind mount is
        (tmp_path / "new").write_bytes(b"another")
        (tmp_path / "new").rename(tmp_path / "file")
        assert (guest / "0").read_bytes() == b"a file"
        with pytest.raises(OSError, match=r"Permission denied|No such device"):
            (guest / "4").read_bytes()
        for name in ("5", "x"):
            with pytest.raises(FileNotFoundError):
                os.stat(guest / name)
        with pytest.raises(OSError, match="Read-only"):
            (guest / "5").mkdir()


def test_read_only_exports(mount: Mount, tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "f").write_bytes(b"before")
    (tmp_path / "w").mkdir()
    rules = (Rule("w", Access.WRITABLE),)
    with mount([Export(str(tmp_path), read_only=True, rules=rules)]) as guest:
        changes: Sequence[Sequence[str]] = (
            ["sh", "-c", "echo x > d/f"],
            ["rm", "d/f"],
            ["mv", "d/f", "w/f"],
            ["ln", "d/f", "w/f"],
            ["touch", "d/f"],
            ["chmod", "600", "d/f"],
            ["mkdir", "d/e"],
            ["setfattr", "-n", "user.a", "d/f"],
        )
        for change in changes:
            assert guest.run(change, check=False).returncode != 0
        guest.run(["sh", "-c", "cp d/f w/f; echo x >> w/f; mkdir w/e; mv w/f w/e"])
    assert (tmp_path / "d" / "f").read_bytes() == b"before"
    assert (tmp_path / "w" / "e" / "f").read_bytes() == b"beforex\n"


def content_of(fd: int) -> bytes | None:
    """What an O_PATH fd's file holds; None if it is gone."""
    try:
        return Path(f"/proc/self/fd/{fd}").read_bytes()
    except OSError as error:
        if error.errno in (errno.ESTALE, errno.ENOENT):
            return None
        raise


def test_a_file_deleted_and_made_again_is_another(mount: Mount, tmp_path: Path) -> None:
    """The inode's number may be the old one's; what is stale is not shown for it."""
    host = tmp_path / "host"
    host.mkdir()
    with mount([Export(str(host))]) as guest:
        for number in range(50):
            (host / "f").write_bytes(b"%d" % number)
            fd = os.open(guest / "0" / "f", os.O_PATH)
            (host / "f").unlink()
            (host / "g").write_bytes(b"new")
            (host / "g").rename(host / "f")
            assert content_of(fd) in (b"%d" % number, None)
            os.close(fd)
