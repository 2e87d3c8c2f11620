"""Which processes of microVMs are left."""

from __future__ import annotations

import time
from pathlib import Path

from leftovers import processes_with


def running(name: str) -> list[int]:
    """Processes of a program, whoever their parent is; those that are only ending are not."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            head, _, rest = path.read_text().rpartition(")")
        except OSError:
            continue
        if head.partition("(")[2] == name and rest.split()[0] != "Z":
            found.append(int(path.parent.name))
    return found


def wait_until_nothing_is_left() -> None:
    while running("nsrun-vmm") or running("nsrun-slirp") or processes_with("keep"):
        time.sleep(0.02)
