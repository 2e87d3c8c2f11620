"""Processes that do not want to end, and monitors that end too early."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from hostlib import HANG, Runner, becomes, kill_marked, marked, running

MOST_PROCESSES = 60
#: starts its words, says the child's pid, and waits for it
PARENT = '"$@" & echo $!; wait'


def of_user(runner: Runner) -> int:
    """The limit counts all processes of a user, wherever they come from."""
    found = 0
    for proc in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            found += proc.name.isdigit() and proc.stat().st_uid == runner.identity.uid
    return found


@contextlib.contextmanager
def started(
    runner: Runner, attacker: Path, marker: str, words: list[str], mode: str
) -> Iterator[subprocess.Popen[bytes]]:
    argv = ["--ro-bind", attacker.parent, "/bin", *words, "/bin/attacker", mode]
    limit = ["prlimit", f"--nproc={of_user(runner) + MOST_PROCESSES}", "--"]
    process = runner.popen(argv, marker=marker, prefix=limit if mode == "fork-bomb" else [])
    with running(process):
        assert process.stdout is not None
        assert process.stdout.readline() == b"started\n"
        yield process
        kill_marked(marker)


#: without a pid namespace only the payload itself is reached, as with bwrap
@pytest.mark.parametrize(
    ("mode", "pid"), [("linger", True), ("fork-bomb", True), ("linger", False)]
)
def test_all_die_with_the_monitor(
    as_user: Runner, attacker: Path, marker: str, mode: str, pid: bool
) -> None:
    words = ["--die-with-parent", *(["--unshare-pid"] if pid else [])]
    with started(as_user, attacker, marker, words, mode) as process:
        assert marked(marker)
        process.kill()
        process.wait()
        assert becomes(lambda: not marked(marker)), marked(marker)


def test_all_die_with_the_caller(runner: Runner, attacker: Path, marker: str) -> None:
    words = ["--unshare-pid", "--die-with-parent", "--ro-bind", str(attacker.parent), "/bin"]
    argv = ["-c", PARENT, "sh", runner.program, *words, "/bin/attacker", "linger"]
    with running(runner.popen(argv, program=Path("/bin/sh"), marker=marker)) as process:
        assert process.stdout is not None
        assert b"started\n" in {process.stdout.readline(), process.stdout.readline()}
        process.kill()
        process.wait()
        assert becomes(lambda: not marked(marker)), marked(marker)


def test_control_without_the_option_they_stay(runner: Runner, attacker: Path, marker: str) -> None:
    with started(runner, attacker, marker, ["--unshare-pid"], "linger") as process:
        process.kill()
        process.wait()
        assert len(marked(marker)) == 2, "pid 1 and the payload"


def test_killed_pid_1_takes_all_along(runner: Runner, attacker: Path, marker: str) -> None:
    with started(runner, attacker, marker, ["--unshare-pid"], "linger") as process:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        os.kill(int(children.read_text(encoding="ascii").split()[0]), signal.SIGKILL)
        assert process.wait(HANG) == 137
        assert becomes(lambda: not marked(marker))


def test_control_the_bomb_does_multiply(as_user: Runner, attacker: Path, marker: str) -> None:
    with started(as_user, attacker, marker, ["--unshare-pid"], "fork-bomb") as process:
        assert becomes(lambda: len(marked(marker)) > 10)
        assert process.poll() is None
