"""Pid 1 of a sandbox that a Python program started never opens that program's memory."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import pytest

from cowork_nsrun import Sandbox, popen

Lack = Callable[[str], NoReturn]

#: what a payload can try at once, by the kernel's own checks for each door
TRY = """
for door in mem environ maps root/ cwd/ fd/1 exe; do
    if (exec 3<"/proc/1/$door") 2>/dev/null; then echo "open $door"; fi
done
"""
SPAWN = """
import sys
from cowork_nsrun import Sandbox, run
secret = bytearray(b"the caller's secret" * 1000)
result = run(["/bin/sh", "-c", sys.argv[1]], Sandbox.minimal(), text=True)
sys.stdout.write(result.check().stdout)
"""
#: calls of pid 1 from the end of its set-up until the payload may run
STEPS = ("clone", "execveat", "prctl", "capset", "rt_sigaction", "rt_sigprocmask", "write", "wait4")
HOLD_MICROSECONDS = 20_000
ROUNDS = 30


def spawned(prefix: list[str], uid: int) -> str:
    """What the payload found open, with the program run behind prefix as uid."""
    words = [*prefix, sys.executable, "-I", "-c", SPAWN, TRY]
    if uid:
        # the interpreter may lie where only root can read: change after it was started
        change = (
            f"import ctypes, os; os.setgroups([]); os.setgid({uid}); os.setuid({uid})\n"
            # a program that changed its user can't write id maps until it says so
            "assert ctypes.CDLL(None).prctl(4, 1, 0, 0, 0) == 0\n"
        )
        words[-2] = SPAWN.replace("secret =", f"{change}secret =", 1)
    ran = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


@pytest.mark.parametrize("uid", [0, 12345])
@pytest.mark.parametrize("step", STEPS)
def test_no_door_opens_however_long_a_step_takes(step: str, uid: int, lack: Lack) -> None:
    if os.geteuid() != 0:
        lack("not root: cannot change the user")
    strace = shutil.which("strace")
    if strace is None:
        lack("no strace: cannot hold pid 1 at a step")
    hold = f"inject={step}:delay_enter={HOLD_MICROSECONDS}"
    assert spawned([strace, "-f", "-qq", "-o", os.devnull, "-e", hold], uid) == ""


def test_control_the_wrong_order_opens_them(tmp_path: Path, lack: Lack) -> None:
    """A payload that runs while pid 1 shares its starter's memory can open it."""
    if os.geteuid() != 0:
        lack("not root: the control makes namespaces without a user namespace")
    program = tmp_path / "early"
    source = Path(__file__).parent / "early.c"
    subprocess.run(["gcc", "-O2", "-o", program, source], check=True)
    ran = subprocess.run(
        [program, "/bin/sh", "-c", TRY], capture_output=True, text=True, timeout=60, check=False
    )
    assert ran.returncode == 0
    assert "open mem\n" in ran.stdout


@pytest.fixture(scope="module")
def no_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    program = tmp_path_factory.mktemp("no-root") / "no_root"
    core = Path(__file__).parents[2] / "csrc" / "core"
    sources = [str(Path(__file__).parent / "no_root.c"), str(core / "caps.c")]
    subprocess.run(
        ["gcc", "-O2", "-I", core, "-I", core.parent / "include", *sources, "-o", program],
        check=True,
    )
    return program


def capabilities(program: Path, *words: str) -> tuple[list[str], set[int]]:
    ran = subprocess.run([program, *words], capture_output=True, text=True, check=True)
    lines = ran.stdout.splitlines()
    return lines[:-2], {int(line.split()[1], 16) for line in lines[-2:]}


def test_pid_1_gets_no_rights_by_an_exec(no_root: Path) -> None:
    """Though it is uid 0 of its user namespace, and its bounding set is whole."""
    assert capabilities(no_root, "bar") == (["lift 1", "0"], {0})


def test_control_an_exec_as_uid_0_gives_all(no_root: Path) -> None:
    told, caps = capabilities(no_root)
    assert told == ["0"]
    assert 0 not in caps


def test_pid_1_bars_that_before_its_exec(lack: Lack) -> None:
    strace = shutil.which("strace")
    if strace is None:
        lack("no strace: cannot see what pid 1 does")
    words = ["-f", "-qq", "-e", "trace=prctl,execveat", sys.executable, "-I", "-c", SPAWN, "true"]
    ran = subprocess.run([strace, *words], capture_output=True, text=True, check=True)
    by_pid_1 = ran.stderr.partition("execveat(")[0]
    bits = "SECBIT_NOROOT|SECBIT_NOROOT_LOCKED|SECBIT_NO_SETUID_FIXUP|SECBIT_NO_SETUID_FIXUP_LOCKED"
    assert f"prctl(PR_SET_SECUREBITS, {bits}" in by_pid_1, ran.stderr


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def identity(path: str) -> tuple[int, int]:
    found = os.stat(path)
    return found.st_dev, found.st_ino


@pytest.mark.parametrize("new_session", [False, True])
def test_pid_1_stands_where_the_payload_does(new_session: bool) -> None:
    """It is exec'd while the sandbox is made, and nothing of the host's is left to it."""
    spec = Sandbox.minimal().replace(new_session=new_session)
    host = identity("/")
    for _ in range(ROUNDS):
        with popen(["sleep", "1000"], spec) as process:
            pid_1 = parent_of(process.pid)
            root = identity(f"/proc/{process.pid}/root")
            assert root != host
            assert identity(f"/proc/{pid_1}/root") == root
            assert identity(f"/proc/{pid_1}/cwd") == root
            # the leader is pid 1, as when it made the sandbox itself
            assert (os.getsid(process.pid) == pid_1) == new_session
            assert len(os.listdir(f"/proc/{pid_1}/task")) == 1
            assert os.readlink(f"/proc/{pid_1}/exe").startswith("/memfd:nsrun-reaper")
