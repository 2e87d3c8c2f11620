"""A plan for a guest: what it shows of the host, what it refuses, what is the guest's own."""

from __future__ import annotations

import os
import socket
import stat
from pathlib import Path

import pytest

from cowork_nsrun._native import Op, OpFlag, OpType, String, Words
from cowork_nsrun.errors import NsrunError
from cowork_nsrun.guest.compile import EXPORTS, Refused, Translation, translate
from cowork_nsrun.guest.limits import Limits
from cowork_nsrun.guest.tree import make_mount_point
from cowork_nsrun.guest.view import Access, Export, view_bytes
from cowork_nsrun.plan import Plan

ENDS = ("--unshare-pid", "--unshare-net", "true")


def made(*words: object, cwd: str = "/") -> Translation:
    return translate(Plan.from_argv([*map(str, words), *ENDS], {"HOME": "/home/x"}), cwd=cwd)


def operations(translation: Translation, first: int = 0) -> list[Op]:
    return [
        op for op in Plan.from_bytes(translation.plan(first)).operations
        if op.type is not OpType.HOSTNAME
    ]  # fmt: skip


def rules(export: Export) -> dict[str, Access]:
    return {rule.path: rule.access for rule in export.rules}


@pytest.fixture
def top(tmp_path: Path) -> Path:
    for name in ("a/b/c", "a/d", "other"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "a/file").write_text("text")
    return tmp_path


def test_a_bind_becomes_an_export(top: Path) -> None:
    found = made("--ro-bind", top / "a", "/x", "--bind", top / "other", "/y")
    assert [(each.path, each.read_only) for each in found.exports] == [
        (str(top / "a"), True),
        (str(top / "other"), False),
    ]
    status = (top / "a").stat()
    assert found.exports[0].identity == (status.st_dev, status.st_ino)
    assert [op.source for op in operations(found)] == [f"{EXPORTS}/0", f"{EXPORTS}/1"]
    assert [op.source for op in operations(found, 40)] == [f"{EXPORTS}/40", f"{EXPORTS}/41"]
    assert [op.dest for op in operations(found)] == ["/x", "/y"]
    view_bytes(found.exports)


def test_links_are_followed_here(top: Path) -> None:
    (top / "link").symlink_to("a/b")
    found = made("--bind", top / "link", "/x")
    assert found.exports[0].path == str(top / "a/b")


def test_a_source_by_descriptor(top: Path) -> None:
    fd = os.open(top / "a", os.O_PATH)
    try:
        found = made("--bind-fd", fd, "/x")
    finally:
        os.close(fd)
    assert found.exports[0].path == str(top / "a")
    assert operations(found)[0].fd == -1


def test_what_is_covered_is_taken_away(top: Path) -> None:
    found = made(
        *("--bind", top / "a", "/x", "--tmpfs", "/x/b", "--ro-bind", top / "other", "/x/d"),
        *("--ro-bind", top / "a/file", "/x/file"),
    )
    assert rules(found.exports[0]) == {
        "b": Access.HIDDEN,
        "d": Access.HIDDEN,
        # its own read-only self
        "file": Access.READ_ONLY,
    }
    assert [each.path for each in found.exports[1:]] == [str(top / "other"), str(top / "a/file")]


def test_only_the_mount_below_is_concerned(top: Path) -> None:
    found = made(
        *("--bind", top / "a", "/x", "--tmpfs", "/x/b", "--bind", top / "other", "/x/b/c"),
        *("--tmpfs", "/x/b/c/d"),
    )
    assert rules(found.exports[0]) == {"b": Access.HIDDEN}
    assert rules(found.exports[1]) == {"d": Access.HIDDEN}


def test_the_way_leads_over_links_inside(top: Path) -> None:
    """As they are below the new root, not on the host."""
    (top / "a/inner").symlink_to("/x/b")
    (top / "a/up").symlink_to("../../../../../x/d")
    found = made(
        *("--symlink", "x", "/alias", "--bind", top / "a", "/x"),
        *("--tmpfs", "/alias/inner/c", "--tmpfs", "/x/up"),
    )
    assert rules(found.exports[0]) == {"b/c": Access.HIDDEN, "d": Access.HIDDEN}


def test_links_without_an_end(top: Path) -> None:
    (top / "a/loop").symlink_to("loop")
    with pytest.raises(NsrunError, match="too many symbolic links"):
        made("--bind", top / "a", "/x", "--tmpfs", "/x/loop/y")


def test_a_name_that_a_link_has_already(top: Path) -> None:
    """--dir and --symlink leave it as it is, and follow it nowhere."""
    loop = ("--symlink", "loop", "/loop")
    assert [op.dest for op in operations(made(*loop, "--dir", "/loop"))][-1] == "/loop"
    twice = ("--symlink", "x", "/alias", "--symlink", "x", "/alias")
    found = made("--bind", top / "a", "/x", *twice, "--tmpfs", "/alias/inner")
    assert rules(found.exports[0]) == {"inner": Access.HIDDEN}


def test_mount_points_are_made_here(top: Path) -> None:
    """As the core would, which the file server does not let the guest do."""
    found = made(
        *("--bind", top / "a", "/x", "--tmpfs", "/x/new/dir"),
        *("--ro-bind", top / "a/file", "/x/new/file", "--ro-bind", top / "other", "/r"),
        *("--tmpfs", "/r/none"),
    )
    assert (top / "a/new/dir").is_dir()
    assert stat.filemode((top / "a/new/file").stat().st_mode) == "-r--r--r--"
    assert rules(found.exports[0])["new/dir"] is Access.HIDDEN
    # read-only: the guest will say that it can't be made
    assert not (top / "other/none").exists()
    assert rules(found.exports[2]) == {}


@pytest.mark.parametrize(
    ("words", "mode"),
    [
        (("--tmpfs", "/x/p/q"), "drwxr-xr-x"),
        (("--perms", "0700", "--tmpfs", "/x/p/q"), "drwx------"),
        (("--perms", "0750", "--tmpfs", "/x/p/q"), "drwxr-x---"),
        (("--ro-bind", "/usr", "/x/p/q"), "drwx------"),
    ],
)
def test_directories_on_the_way(top: Path, words: tuple[str, ...], mode: str) -> None:
    """As closed as the core makes them: a bind's are its owner's alone."""
    made("--bind", top / "a", "/x", *words)
    assert stat.filemode((top / "a/p").stat().st_mode) == mode


def test_a_source_descriptor_is_used_up(top: Path) -> None:
    fd = os.open(top / "a", os.O_PATH)
    try:
        made("--bind-fd", fd, "/x")
        with pytest.raises(NsrunError, match=f"Can't stat fd {fd}: Bad file descriptor"):
            made("--bind-fd", fd, "/x", "--ro-bind-fd", fd, "/y")
    finally:
        os.close(fd)


def test_a_link_put_on_the_way_is_not_followed(top: Path) -> None:
    (top / "a/link").symlink_to(top / "other")
    with pytest.raises(NotADirectoryError):
        make_mount_point(str(top / "a"), "link/new", directory=True, parents=0o755)
    assert os.listdir(top / "other") == []


def test_remount_ro_holds_outside_as_well(top: Path) -> None:
    found = made("--bind", top / "a", "/x", "--remount-ro", "/x")
    assert found.exports[0].read_only
    found = made("--bind", top / "a", "/x", "--bind", top / "other", "/x/b", "--remount-ro", "/x")
    assert not found.exports[1].read_only


def test_the_kernels_own_is_the_guests(top: Path) -> None:
    found = made(
        *("--ro-bind", "/sys", "/sys", "--dev-bind", "/dev/null", "/n", "--bind", "/proc", "/p"),
        *("--dev-bind", "/dev", "/dev"),
    )
    assert found.exports == ()
    assert [op.source for op in operations(found)] == ["/sys", "/dev/null", "/proc", "/dev"]


def test_what_is_optional_of_the_kernels_may_be_the_hosts_alone(top: Path) -> None:
    """As /proc/mtrr, which the kernel of a guest may not have."""
    found = made("--ro-bind-try", "/proc/sys", "/s", "--ro-bind-try", top / "a", "/a")
    assert [OpFlag.TRY in op.flags for op in operations(found)] == [True, False]


def test_a_bind_of_everything(top: Path) -> None:
    found = made("--ro-bind", "/", "/", "--proc", "/proc")
    assert [(op.type, op.source, op.dest) for op in operations(found)] == [
        (OpType.BIND, f"{EXPORTS}/0", "/"),
        (OpType.BIND, "/sys", "/sys"),
        (OpType.BIND, "/dev", "/dev"),
        (OpType.PROC, None, "/proc"),
    ]
    assert rules(found.exports[0]) == dict.fromkeys(("proc", "sys", "dev"), Access.HIDDEN)
    # what was mounted before is covered, and is no reason to leave the guest's own away
    found = made("--proc", "/proc", "--ro-bind", "/", "/")
    assert [op.dest for op in operations(found)] == ["/proc", "/", "/proc", "/sys", "/dev"]


def test_overlays(top: Path) -> None:
    found = made("--overlay-src", top / "a", "--overlay-src", top / "other", "--tmp-overlay", "/x")
    assert [each.read_only for each in found.exports] == [True, True]
    assert operations(found)[0].layers == (f"{EXPORTS}/0", f"{EXPORTS}/1")
    # a layer that is there twice is for the guest's kernel to refuse
    found = made("--overlay-src", top / "a", "--overlay-src", top / "a", "--ro-overlay", "/x")
    assert operations(found)[0].layers == (f"{EXPORTS}/0", f"{EXPORTS}/0")
    with pytest.raises(Refused, match="--overlay /x: "):
        made("--overlay-src", top / "a", "--overlay", top / "other", top / "a/d", "/x")


def test_content_of_descriptors(top: Path) -> None:
    first, last = os.pipe()
    os.write(last, b"content")
    os.close(last)
    found = made("--ro-bind-data", first, "/x")
    os.close(first)
    (op,) = operations(found)
    assert (op.fd, op.data) == (-1, b"content")


def test_where_it_starts(top: Path) -> None:
    def directory(*words: object, cwd: str) -> str | None:
        plan = Plan.from_bytes(made(*words, cwd=cwd).plan())
        return plan.native.string(String.CHDIR)

    bind = ("--bind", top, top)
    assert directory(*bind, cwd=str(top / "a")) == str(top / "a")
    assert directory(*bind, "--chdir", "/y", cwd=str(top)) == "/y"
    assert directory(*bind, "--dir", "/home/x", cwd="/elsewhere") == "/home/x"
    assert directory(*bind, cwd="/elsewhere") is None
    # another mount lies over it
    covered = ("--bind", top / "a", top / "a", "--tmpfs", top)
    assert directory(*covered, cwd=str(top / "a")) is None


def test_links_that_a_mount_covers(top: Path) -> None:
    found = made(
        *("--bind", top / "a", "/x", "--symlink", "/x", "/t/alias"),
        *("--tmpfs", "/t", "--tmpfs", "/t/alias/b"),
    )
    assert rules(found.exports[0]) == {}


def test_the_hosts_name() -> None:
    for words in (("--tmpfs", "/t"), ("--unshare-uts", "--tmpfs", "/t")):
        plan = Plan.from_bytes(made(*words).plan())
        assert plan.hostname == os.uname().nodename
    plan = Plan.from_bytes(made("--unshare-uts", "--hostname", "x").plan())
    assert plan.hostname == "x"


def test_optional_sources(top: Path) -> None:
    found = made("--bind-try", top / "none", "/x", "--bind-try", top / "a", "/y")
    assert [op.dest for op in operations(found)] == ["/y"]
    with pytest.raises(NsrunError, match=r"Can't find source path .*none: No such file"):
        made("--bind", top / "none", "/x")


def test_optional_sources_that_nobody_can_look_at(top: Path) -> None:
    """Not there is one thing; that it can't be told is an error, as it is for the core."""
    (top / "loop").symlink_to("loop")
    (top / "file").touch()
    for source, error in (("file/below", "Not a directory"), ("loop", "Too many levels")):
        with pytest.raises(NsrunError, match=f"Can't find source path .*{source}: {error}"):
            made("--ro-bind-try", top / source, "/x")


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (("--userns", 0), "--userns: "),
        (("--info-fd", 1), "--info-fd: "),
        (("--dev-bind", "/usr", "/usr"), "none of the host's devices"),
        (("--dev-bind", "/dev/kvm", "/k"), "/dev/kvm is of the host's devices"),
        (("--ro-bind", f"/proc/{os.getpid()}/status", "/s"), "of a process"),
    ],
)
def test_refused_by_name(words: tuple[object, ...], text: str) -> None:
    if "/dev/kvm" in words and not os.path.exists("/dev/kvm"):
        words = tuple("/dev/tty1" if word == "/dev/kvm" else word for word in words)
        text = "of the host's devices"
    with pytest.raises(Refused) as caught:
        made(*words)
    assert text in caught.value.text


def test_limits_of_a_cgroup(top: Path) -> None:
    for name, text in (("memory.max", "1048576\n"), ("pids.max", "max\n"), ("cpu.max", "5 10\n")):
        (top / "a" / name).write_text(text)
    for name, text in (("memory.limit_in_bytes", "9223372036854771712"), ("pids.max", "7\n"),
                       ("cpu.cfs_quota_us", "-1\n"), ("cpu.cfs_period_us", "10\n")):  # fmt: skip
        (top / "other" / name).write_text(text)
    found = made("--cgroup", top / "a", "--cgroup", top / "other")
    assert found.limits == Limits(1 << 20, 7, 0.5)
    assert Plan.from_bytes(found.plan()).native.words(Words.CGROUPS) == ()
    assert found.limits.within(Limits(memory=1, timeout=3)) == Limits(1, 7, 0.5, 3)


def test_sockets_and_fifos_are_refused(top: Path) -> None:
    os.mkfifo(top / "fifo")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(top / "socket"))
        for name, what in (("fifo", "FIFO"), ("socket", "socket")):
            with pytest.raises(Refused, match=f"{name} is a {what}"):
                made("--bind", top / name, "/x")


def test_a_shared_pid_namespace_is_refused() -> None:
    with pytest.raises(Refused, match="--unshare-pid"):
        translate(Plan.from_argv(["--unshare-net", "--ro-bind", "/", "/", "true"]))


def test_a_shared_network_is_told() -> None:
    assert not made().network
    assert translate(Plan.from_argv(["--unshare-pid", "--tmpfs", "/t", "true"])).network
