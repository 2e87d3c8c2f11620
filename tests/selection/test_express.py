"""A plan in bwrap's words is the same plan: written by nsrun, read back by the parser."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from worlds import Tools, World

from cowork_nsrun import Plan, _native
from cowork_nsrun._native import Op, OpFlag, OpType, Words

# answers the probe, and else writes down what it was given
RECORDER = """#!/bin/sh
for word; do last=$word; done
if [ "$last" = --version ]; then exit 0; fi
cat "/proc/self/fd/$2"
shift 3
printf '%s\\0' -- "$@"
"""

LINES = {
    "binds": "--ro-bind / / --bind /tmp /a --dev-bind /dev /dev --ro-bind-try /x /y "
    "--bind-try /x /z --dev-bind-try /x /w",
    "overlay": "--overlay-src /usr --overlay-src /bin --ro-overlay /o --overlay-src /usr "
    "--tmp-overlay /t --overlay-src /usr --overlay /var /tmp /v",
    "mounts": "--proc /proc --dev /dev --mqueue /m --size 4096 --perms 0700 --tmpfs /t "
    "--tmpfs /u --remount-ro /u",
    "files": "--dir /d --perms 0711 --dir /e --symlink a /l --chmod 0751 /d",
    "namespaces": "--unshare-user --unshare-pid --unshare-ipc --unshare-uts --unshare-net "
    "--unshare-cgroup --hostname here --uid 7 --gid 8",
    "tries": "--unshare-all --share-net",
    "switches": "--unshare-user --unshare-pid --disable-userns --assert-userns-disabled "
    "--new-session --die-with-parent --as-pid-1 --level-prefix --not-a-security-boundary",
    "all but": "--unshare-user --cap-drop ALL --cap-add cap_chown --cap-add CAP_KILL",
    "capabilities": "--unshare-user --cap-add cap_chown --cap-drop cap_kill",
    "all": "--unshare-user --cap-add ALL",
    "all, less": "--unshare-user --cap-add ALL --cap-drop cap_setuid",
    "process": "--chdir /tmp --argv0 other --lock-file /etc/passwd --lock-file /etc/group",
    "fds": "--sync-fd 0 --block-fd 0 --info-fd 1 --json-status-fd 2 --seccomp 0 --userns2 0",
    "fd binds": "--bind-fd 0 /a --ro-bind-fd 0 /b --file 0 /c --perms 0444 --ro-bind-data 0 /d "
    "--bind-data 0 /e",
}


@pytest.fixture(scope="module")
def recorder(tools: Tools) -> World:
    directory = tools.directory / "recorder"
    directory.mkdir()
    (directory / "bwrap").write_text(RECORDER)
    (directory / "bwrap").chmod(0o755)
    return World(bwrap=directory)


def recorded(recorder: World, tools: Tools, words: list[str], fds: list[int]) -> list[str]:
    ended = recorder.run(tools, [tools.nsrun, "--backend", "bwrap", *words], pass_fds=fds)
    assert ended.returncode == 0, ended
    return [os.fsdecode(word) for word in ended.stdout.split(b"\0")[:-1]]


@pytest.mark.parametrize("line", LINES.values(), ids=LINES.keys())
def test_nothing_is_lost_or_added(recorder: World, tools: Tools, line: str) -> None:
    words = [*line.split(), "--", "cmd", "--with", "a b", ""]
    seen = recorded(recorder, tools, words, [])
    assert seen[seen.index("--") :] == words[words.index("--") :]
    assert Plan.from_argv(seen, {}) == Plan.from_argv(words, {})


def test_every_option_of_bwrap_is_in_a_line() -> None:
    table = (Path(__file__).parents[2] / "csrc/core/options.def").read_text()
    names = {row.split('"')[1] for row in table.splitlines()
             if row.startswith("O(") and "OURS" not in row}  # fmt: skip
    elsewhere = {"--args", "--setenv", "--unsetenv", "--clearenv", "--add-seccomp-fd",
                 "--help", "--version", "--userns", "--pidns", "--userns-block-fd",
                 "--exec-label", "--file-label", "--unshare-user-try",
                 "--unshare-cgroup-try"}  # fmt: skip
    used = {word for line in LINES.values() for word in line.split() if word.startswith("--")}
    assert names - elsewhere == used


def test_what_has_no_option_is_an_error(recorder: World, tools: Tools) -> None:
    """In bytes a plan can hold more than a command line can."""
    plan = _native.Plan()
    plan.add_op(Op(OpType.BIND, "/dev", "/dev", flags=OpFlag.RDONLY | OpFlag.DEVICES))
    plan.add_word(Words.ARGV, "true")
    fd = os.memfd_create("plan")
    os.write(fd, plan.write())
    os.lseek(fd, 0, os.SEEK_SET)
    words = ["--backend", "bwrap", "--plan", str(fd)]
    ended = recorder.run(tools, [tools.nsrun, *words], pass_fds=[fd])
    os.close(fd)
    assert ended.returncode == 1
    assert b"bwrap can't express a read-only bind with usable devices, at /dev" in ended.stderr
