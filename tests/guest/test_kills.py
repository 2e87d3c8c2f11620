"""kill -9 of nsrun, of the monitor, or of the command's own shell, at any moment: nothing is left.

On KVM that runs stock kernels alone: in the bed.  NSRUN_KILLS=n for more than a few.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

import pytest

from cowork_nsrun.program import find_program
from cowork_nsrun.selection import select

KILLS = int(os.environ.get("NSRUN_KILLS", "20"))
#: seconds, at most, until the kill
LIFE = 3.0
SANDBOX = ("--ro-bind", "/", "/", "--dev", "/dev", "--proc", "/proc", "--unshare-pid")


@pytest.fixture(autouse=True)
def machine(lack: Callable[[str], NoReturn]) -> None:
    found = select("kvm")
    if found.backend is None:
        lack(f"kills: no microVM: {found.reason}")


def family(pid: int) -> list[int]:
    """The process and all that descend from it."""
    parents: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                words = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            parents.setdefault(int(words[1]), []).append(int(entry.name))
    found = [pid]
    for one in found:
        found += parents.get(one, [])
    return found


def program(pid: int) -> str:
    """The name of what it runs, which everybody may read; empty if it is gone."""
    try:
        return Path(f"/proc/{pid}/comm").read_text().rstrip("\n")
    except OSError:
        return ""


def of_machines() -> list[int]:
    """Processes of microVMs, whoever their parent is."""
    pids = (int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit())
    return [pid for pid in pids if program(pid) in {"nsrun-vmm", "nsrun-slirp"}]


def mounts() -> int:
    return len(Path("/proc/self/mountinfo").read_text().splitlines())


def kill(pid: int) -> None:
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    with suppress(ProcessLookupError):
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
    os.close(pidfd)


def test_kills_at_any_moment(tmp_path: Path) -> None:
    places = (Path(tempfile.gettempdir()), Path("/dev/shm"))
    rng = random.Random(7)
    folder = tmp_path / "project"
    folder.mkdir()
    before = [sorted(place.iterdir()) for place in places]
    mounted = mounts()
    assert of_machines() == []
    script = "while :; do echo line >>file; sleep 0.05; done"
    words = [find_program(), "--backend", "kvm", *SANDBOX, "--bind", str(folder), str(folder)]
    words += ["--chdir", str(folder), "sh", "-c", script]
    file = folder / "file"
    file.touch()
    for number in range(KILLS):
        size = file.stat().st_size
        process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                                   stderr=subprocess.DEVNULL)  # fmt: skip
        while number % 2 and file.stat().st_size == size and process.poll() is None:
            time.sleep(0.01)  # every other one runs its command
        # control: a machine that runs a command is seen
        assert of_machines() or not number % 2
        time.sleep(rng.uniform(0, LIFE))
        victim = rng.choice(family(process.pid))
        is_network = program(victim) == "nsrun-slirp"
        kill(victim)
        if is_network:  # the command goes on without it
            kill(process.pid)
        process.wait()
        while of_machines():
            time.sleep(0.01)
    assert mounts() == mounted
    assert [sorted(place.iterdir()) for place in places] == before
    # what it wrote is whole lines, and the folder is an ordinary one
    assert set(file.read_text().splitlines()) == {"line"}
