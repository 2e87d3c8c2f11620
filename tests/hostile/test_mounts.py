"""Mounts: nothing reaches the host, and the new root is not found in itself."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hostlib import Runner, host_mounts

SHARED = ("unshare", "-m", "--propagation", "shared", "sh", "-c")
#: the mounts before and after, and what the program says between them
LOOK = 'cat /proc/self/mountinfo >"$0.'
WATCH = f'{LOOK}before"; "$@"; status=$?; {LOOK}after"; exit $status'
LAYOUTS = {
    "plain": ("--ro-bind", "/", "/"),
    "full": ("--bind", "/", "/", "--proc", "/proc", "--dev", "/dev", "--tmpfs", "/tmp"),
    "twice": ("--bind", "/", "/", "--bind", "/", "/"),
    "nested": ("--tmpfs", "/x", "--bind", "/", "/x/y", "--ro-bind", "/", "/x/y/mnt"),
    "over-tmp": ("--bind", "/", "/", "--tmpfs", "/tmp", "--bind", "/", "/tmp/again"),
    "dir-on-root": ("--bind", "{bin}", "/", "--tmpfs", "/tmp"),
    "root-again": ("--tmpfs", "/a", "--bind", "{bin}", "/", "--ro-bind", "/", "/a"),
    "fails-late": ("--bind", "/", "/", "--tmpfs", "/tmp", "--bind", "/usr", "/etc/passwd"),
    "fails-exec": ("--tmpfs", "/tmp", "--chdir", "/nowhere"),
}


def words_of(layout: str, attacker: Path) -> list[str]:
    return [word.format(bin=attacker.parent) for word in LAYOUTS[layout]]


@pytest.mark.parametrize(
    "extra", [(), ("--unshare-user", "--unshare-pid")], ids=["plain", "userns"]
)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_host_table_is_the_same_on_a_shared_root(
    as_root: Runner, tmp_path: Path, attacker: Path, layout: str, extra: tuple[str, ...]
) -> None:
    table = host_mounts()
    argv = [*SHARED, WATCH, str(tmp_path / "table"), str(as_root.program)]
    argv += [*extra, *words_of(layout, attacker), "/bin/true"]
    ended = as_root.run(argv[1:], program=Path("/usr/bin") / argv[0])
    before, after = (tmp_path / f"table.{when}" for when in ("before", "after"))
    assert " shared:" in before.read_text(), "the control: this tree would propagate"
    assert before.read_text() == after.read_text(), ended
    assert host_mounts() == table
    assert layout.startswith("fails") <= (ended.status != 0), ended


def test_control_a_mount_in_a_shared_tree_is_noticed(as_root: Runner, tmp_path: Path) -> None:
    """What a sandbox that leaves its copy of the tree shared would do."""
    (tmp_path / "on").mkdir()
    careless = f"unshare -m --propagation unchanged mount -t tmpfs x {tmp_path / 'on'}"
    words = [*SHARED[1:], WATCH, str(tmp_path / "table"), "sh", "-c", careless]
    as_root.run(words, program=Path("/usr/bin") / SHARED[0])
    before, after = (tmp_path / f"table.{when}" for when in ("before", "after"))
    assert before.read_text() != after.read_text()


@pytest.mark.parametrize("layout", [name for name in LAYOUTS if not name.startswith("fails")])
def test_new_root_does_not_appear_within_itself(
    runner: Runner, attacker: Path, layout: str
) -> None:
    """A tmpfs of the sandbox is mounted once, and none is there unasked but the root."""
    hosts = {line.split()[2] for line in host_mounts()}
    words = ["--unshare-pid", *words_of(layout, attacker), "--tmpfs", "/tmp"]
    words += ["--ro-bind", str(attacker), "/tmp/attacker", "--proc", "/tmp/p"]
    ended = runner.run([*words, "/tmp/attacker", "mounts", "/tmp/p"])
    assert ended.status == 0, ended
    lines = [line.split() for line in ended.stdout.splitlines()]
    own = [line[2] for line in lines if line[2] not in hosts and line[-3] == "tmpfs"]
    whole = [line[2] for line in lines if line[2] in own and line[3] == "/"]
    assert len(whole) == len(set(whole)), ended.stdout
    assert len(whole) <= 1 + words.count("--tmpfs") + words.count("--dev"), ended.stdout


def test_scratch_is_gone_when_the_payload_runs(runner: Runner, attacker: Path) -> None:
    reader, writer = os.pipe()
    os.write(writer, b"data")
    os.close(writer)
    words = ["--bind-data", str(reader), "/data", "--ro-bind", str(attacker.parent), "/bin"]
    ended = runner.run([*words, "/bin/attacker", "reach", "/bindfile0"], pass_fds=[reader])
    os.close(reader)
    assert ended.attempts() == {"reach": 2}, ended
