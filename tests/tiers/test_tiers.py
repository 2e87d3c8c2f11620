"""The same sandbox, whatever part of the new mount API the kernel refuses."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hostlib import Ended, Runner, host_mounts, one_clear_line, running
from seen import differences, observation, visible_mounts

NUMBER = {"open_tree": 428, "move_mount": 429, "mount_setattr": 442, "open_tree_attr": 467}
OPENAT2, CLOSE_RANGE, STATX = 437, 436, 332
MOUNT_API = ("open_tree", "move_mount", "mount_setattr")
#: which calls are refused, and how
TIERS = {
    "open_tree_attr-enosys": (("open_tree_attr",), errno.ENOSYS),
    "open_tree_attr-eperm": (("open_tree_attr",), errno.EPERM),
    "all-enosys": ((*MOUNT_API, "open_tree_attr"), errno.ENOSYS),
    "all-eperm": ((*MOUNT_API, "open_tree_attr"), errno.EPERM),
    **{f"{name}-only": ((name,), errno.ENOSYS) for name in MOUNT_API},
}
CORPUS = {
    "read-only": ("--ro-bind", "/", "/"),
    "standard": ("--ro-bind", "/", "/", "--dev", "/dev", "--proc", "/proc", "--tmpfs", "/tmp"),
    "writable": ("--bind", "/", "/", "--tmpfs", "/tmp"),
    "devices": ("--dev-bind", "/", "/", "--tmpfs", "/tmp"),
    "nested": ("--tmpfs", "/", "--bind", "/", "/host", "--ro-bind", "/usr", "/host/mnt"),
    "twice": ("--bind", "/", "/", "--ro-bind", "/", "/mnt", "--tmpfs", "/tmp"),
    "files": ("--tmpfs", "/", "--ro-bind", "/etc/passwd", "/etc/passwd", "--bind", "/usr", "/usr"),
    "remount": (
        *("--bind", "/", "/", "--tmpfs", "/tmp"),
        *("--bind", "/usr", "/usr", "--remount-ro", "/usr"),
    ),
    "remount-root": ("--tmpfs", "/", "--dir", "/proc", "--dir", "/o", "--remount-ro", "/"),
    "below": ("--tmpfs", "/", "--ro-bind", "{g}/tree", "/tree"),
    "below-writable": ("--tmpfs", "/", "--bind", "{g}/tree", "/tree", "--remount-ro", "/tree"),
    "below-part": (
        *("--tmpfs", "/", "--ro-bind", "{g}/tree/sub", "/sub"),
        *("--dev-bind", "{g}/tree", "/t"),
    ),
    "by-link": ("--tmpfs", "/", "--ro-bind", "{g}/link", "/sub"),
    "sys": ("--tmpfs", "/", "--ro-bind", "/sys", "/sys", "--ro-bind", "/proc", "/host"),
    "user": ("--unshare-user", "--ro-bind", "/", "/", "--dev", "/dev", "--tmpfs", "/tmp"),
    "other-id": (
        *("--unshare-user", "--uid", "77", "--bind", "/", "/"),
        *("--dev", "/dev", "--tmpfs", "/tmp"),
    ),
    "console": ("--tmpfs", "/", "--dev", "/dev", "--mqueue", "/dev/mqueue", "--unshare-ipc"),
    "fd": ("--tmpfs", "/", "--ro-bind-fd", "{fd}", "/fd"),
}


def refusals(calls: tuple[str, ...], error: int) -> list[str]:
    return [*(f"{NUMBER[name]}={error}" for name in calls), "--"]


@pytest.fixture
def tree(ground: Path, runner: Runner) -> Iterator[Path]:
    """A bind source with mounts below it: plain, locked down, covered, oddly named."""
    tree = ground / "tree"
    for name in ("sub/plain", "strict", "covered/inner", "odd name", "lib"):
        (tree / name).mkdir(parents=True)
    (ground / "link").symlink_to(tree / "sub")
    if os.geteuid() != 0:
        yield ground
        return
    mount(tree / "sub", "rw")
    (tree / "sub" / "plain").mkdir()
    mount(tree / "sub" / "plain", "noexec,relatime")
    mount(tree / "strict", "ro,nosuid,nodev,noexec,noatime")
    mount(tree / "covered" / "inner", "rw")
    mount(tree / "covered", "rw")
    mount(tree / "odd name", "nodev")
    try:
        yield ground
    finally:
        for place in ("odd name", "covered", "covered/inner", "strict", "sub/plain", "sub"):
            os.system(f"umount '{tree / place}'")


def mount(place: Path, options: str) -> None:
    command = f"mount -t tmpfs -o mode=755,{options} test '{place}'"
    assert os.system(command) == 0, command


def observe(runner: Runner, observer: Path, ground: Path, name: str, prefix: list[object]) -> Ended:
    words = CORPUS[name]
    fd = os.open(ground / "tree", os.O_RDONLY)
    # where the host's own / is bound, only its /tmp is a place to mount on
    own_root = words[:2] == ("--tmpfs", "/") or name == "console"
    place = Path("/o") if own_root else Path("/tmp/o")
    argv = ["--unshare-pid", *(word.format(g=ground, fd=fd) for word in words)]
    if name == "read-only":
        place = observer.parent
    argv += ["--ro-bind", str(observer.parent), str(place)]
    argv += [] if "--proc" in words else ["--proc", "/proc"]
    try:
        return runner.run([*argv, place / observer.name], prefix=prefix, pass_fds=[fd])
    finally:
        os.close(fd)


def compare(good: Ended, other: Ended) -> list[str]:
    found = differences(observation(good.stdout), observation(other.stdout))
    if not other.stdout:
        return found[:3]
    mounts = {"visible": visible_mounts(good.stdout)}, {"visible": visible_mounts(other.stdout)}
    return [line for line in found if not line.startswith(".mounts")] + differences(*mounts)


@pytest.mark.parametrize("name", CORPUS)
def test_equal_in_every_tier(
    runner: Runner, observer: Path, deny: Path, tree: Path, name: str
) -> None:
    host = host_mounts()
    good = observe(runner, observer, tree, name, [deny, "999=1", "--"])
    assert observation(good.stdout) is not None, good
    wrong = []
    for tier, (calls, error) in TIERS.items():
        words = [deny, *refusals(calls, error)]
        ended = observe(runner, observer, tree, name, words)
        wrong += [f"{tier}: {line}" for line in [*compare(good, ended), ended.stderr] if line]
    assert not wrong, "\n".join(["", *wrong])
    assert host_mounts() == host


def test_control_another_sandbox_is_told_apart(
    as_root: Runner, runner: Runner, observer: Path, deny: Path, tree: Path
) -> None:
    prefix: list[object] = [deny, "999=1", "--"]
    seen = [observe(runner, observer, tree, n, prefix) for n in ("below", "below-writable")]
    first, second = (observation(ended.stdout) for ended in seen)
    assert differences(first, second)


@pytest.mark.parametrize("error", [errno.ENOSYS, errno.EPERM])
def test_refused_filter_is_effective(
    runner: Runner, deny: Path, attacker: Path, error: int
) -> None:
    """The control of the filter itself: mount(2) refused as well leaves no way."""
    words = refusals(MOUNT_API, error)
    prefix = [deny, f"165={error}", *words]
    argv = ["--ro-bind", attacker.parent, "/b", "/b/attacker", "reach", "/"]
    ended = runner.run(argv, prefix=prefix)
    assert ended.status == 1
    assert one_clear_line(ended), ended


@pytest.mark.parametrize("error", [errno.ENOSYS, errno.EPERM])
@pytest.mark.parametrize(
    "number", [OPENAT2, CLOSE_RANGE, STATX], ids=["openat2", "close_range", "statx"]
)
def test_without_what_safety_rests_on_it_works_or_fails_clearly(
    runner: Runner, deny: Path, attacker: Path, number: int, error: int
) -> None:
    words = ["--unshare-pid", "--tmpfs", "/", "--ro-bind", attacker.parent, "/b", "--dir", "/made"]
    prefix = [deny, f"{number}={error}", "--"]
    ended = runner.run([*words, "/b/attacker", "reach", "/made"], prefix=prefix)
    if ended.status == 0:
        assert ended.attempts() == {"reach": 0}
    else:
        assert ended.status == 1
        assert one_clear_line(ended), ended


def test_bind_that_moves_in_the_old_tier_is_still_restricted(
    runner: Runner, deny: Path, attacker: Path, ground: Path
) -> None:
    """mount(2) restricts a bind by its name, which a neighbour may exchange."""
    hostile = ground / "h"
    for name in ("a", "other"):
        (hostile / name).mkdir(parents=True)
        os.chown(hostile / name, runner.identity.uid, runner.identity.gid)
    os.chown(hostile, runner.identity.uid, runner.identity.gid)
    (hostile / "b").symlink_to("/other")
    neighbour = runner.popen(["swap", hostile / "a", hostile / "b"], program=attacker)
    argv = ["--bind", hostile, "/h", "--bind", hostile / "other", "/other", "--unshare-pid"]
    argv += ["--ro-bind", attacker.parent, "/b", "--ro-bind", attacker.parent, "/h/a"]
    argv += ["--proc", "/p", "/b/attacker", "mounts", "/p"]
    prefix = [deny, *refusals(MOUNT_API, errno.ENOSYS)]
    ran = 0
    with running(neighbour):
        for _ in range(300):
            ended = runner.run(argv, prefix=prefix)
            lines = [line.split() for line in ended.stdout.splitlines()]
            binds = [line for line in lines if line[3] == str(attacker.parent)]
            loose = [line for line in binds if not line[5].startswith("ro,nosuid,nodev")]
            assert not loose, ended.stdout
            ran += ended.status == 0
    assert ran, "every run failed: nothing was raced"
