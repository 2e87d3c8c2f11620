"""Monitor or pid 1 killed at any moment: as the options say, and nothing hangs."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import time
from pathlib import Path

from hostlib import Runner, becomes, host_mounts, kill_marked, marked, running

ROUNDS = 60
#: from before the clone to long after the payload's exec
LATEST = 0.008


def start(runner: Runner, attacker: Path, marker: str, words: list[str]) -> subprocess.Popen[bytes]:
    argv = ["--unshare-pid", "--ro-bind", "/", "/", "--proc", "/proc", "--tmpfs", "/tmp", *words]
    argv += ["--ro-bind", str(attacker.parent), "/tmp/b", "/tmp/b/attacker", "linger"]
    return runner.popen(argv, marker=marker)


def kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def test_killed_monitor_takes_all_along(runner: Runner, attacker: Path, marker: str) -> None:
    mounts = host_mounts()
    chance = random.Random(1)
    for _ in range(ROUNDS):
        with running(start(runner, attacker, marker, ["--die-with-parent"])) as monitor:
            time.sleep(chance.uniform(0, LATEST))
            monitor.kill()
            monitor.wait()
            assert becomes(lambda: not marked(marker)), marked(marker)
    assert host_mounts() == mounts


def test_killed_pid_1_ends_the_monitor(runner: Runner, attacker: Path, marker: str) -> None:
    chance = random.Random(2)
    for _ in range(ROUNDS):
        with running(start(runner, attacker, marker, [])) as monitor:
            assert becomes(lambda: len(marked(marker)) > 1 or monitor.poll() is not None)
            time.sleep(chance.uniform(0, LATEST))
            for pid in marked(marker):
                if pid != monitor.pid:
                    kill(pid)
            assert monitor.wait(60) in (1, 137)
            assert becomes(lambda: not marked(marker)), marked(marker)


def test_control_payload_stays_without_the_option(
    runner: Runner, attacker: Path, marker: str
) -> None:
    with running(start(runner, attacker, marker, [])) as monitor:
        assert monitor.stdout is not None
        assert monitor.stdout.readline() == b"started\n"
        monitor.kill()
        monitor.wait()
        assert len(marked(marker)) == 2
        kill_marked(marker)
