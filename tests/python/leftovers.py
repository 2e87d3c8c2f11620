"""What a test may leave behind, counted."""

from __future__ import annotations

import os
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from cowork_nsrun import settle

CGROUPS = Path("/sys/fs/cgroup")


def processes_with(marker: str) -> list[int]:
    """Processes that have it as a word of their command line."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if os.fsencode(marker) in path.read_bytes().split(b"\0"):
                found.append(int(path.parent.name))
        except OSError:
            continue
    return found


def wait_until_gone(marker: str) -> None:
    """Until none of them is left."""
    while processes_with(marker):
        time.sleep(0.01)


def wait_until_session_gone(leader: int) -> None:
    """Until nothing is left in a session: what a sandbox begins with is in its owner's."""
    while any(_session(path) == leader for path in Path("/proc").glob("[0-9]*/stat")):
        time.sleep(0.01)


def _session(path: Path) -> int:
    try:
        return int(path.read_text().rsplit(")", 1)[1].split()[3])
    except OSError:
        return 0


def children() -> list[int]:
    """Children of this process, the ended ones too."""
    found = []
    for task in Path("/proc/self/task").glob("*/children"):
        try:
            found += [int(pid) for pid in task.read_text().split()]
        except OSError:
            continue
    return sorted(found)


def cgroups_of(pid: int) -> list[Path]:
    """Cgroups that a process has made: its pid is in their names."""
    return [
        Path(directory, name)
        for directory, names, _ in os.walk(CGROUPS)  # which forgives what goes meanwhile
        for name in names
        if name.startswith("nsrun-") and name.split("-")[2] == str(pid)
    ]


@dataclass(frozen=True)
class Census:
    """How much there is of what must not pile up."""

    fds: tuple[str, ...]
    children: tuple[int, ...]
    mounts: int
    cgroups: int
    threads: int


def census() -> Census:
    """Of this process, after all that was only ending has ended."""
    settle()
    with os.scandir("/proc/self/fd") as entries:
        names = [entry.name for entry in entries]
    fds = []
    for name in sorted(names, key=int):
        try:
            fds.append(f"{name} {os.readlink(f'/proc/self/fd/{name}')}")
        except OSError:
            continue  # that by which they were listed
    return Census(
        tuple(fds),
        tuple(children()),
        len(Path("/proc/self/mountinfo").read_text().splitlines()),
        len(cgroups_of(os.getpid())),
        len([thread for thread in threading.enumerate() if thread.is_alive()]),
    )
