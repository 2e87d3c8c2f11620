"""The observer's report, reduced to what two equal sandboxes share."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent / "differential"))

from normalise import Context, normalise_observation

NAMESPACES = ("cgroup", "ipc", "mnt", "net", "pid", "time", "user", "uts")


def host_context() -> Context:
    known = {Path(f"/proc/self/ns/{name}").stat().st_ino: "host" for name in NAMESPACES}
    lines = Path("/proc/self/mountinfo").read_text(encoding="latin-1").splitlines()
    return Context(0, known, frozenset(line.split()[2] for line in lines))


def observation(stdout: str) -> dict[str, Any] | None:
    """None if the payload never ran."""
    if not stdout.startswith('{"fds":'):
        return None
    found: dict[str, Any] = normalise_observation(json.loads(stdout), host_context())
    return found


def differences(good: Any, other: Any, path: str = "") -> list[str]:
    if isinstance(good, dict) and isinstance(other, dict):
        keys = [*good, *(key for key in other if key not in good)]
        below = [differences(good.get(k), other.get(k), f"{path}.{k}") for k in keys]
        return [line for lines in below for line in lines]
    return [] if good == other else [f"{path}: {good!r} became {other!r}"]


def visible_mounts(stdout: str) -> list[list[str]]:
    """What a path can reach: mount(2) cannot restrict a mount that another one covers."""
    lines = [line.split() for line in json.loads(stdout)["mountinfo"].splitlines()]
    by_number = {line[0]: line for line in lines}

    def covered(line: list[str]) -> bool:
        return any(other[1] == line[0] and other[4] == line[4] for other in lines)

    def out_of_reach(line: list[str]) -> bool:
        _, parent, _, _, point, *_ = line
        if any(other[1] == parent and point.startswith(other[4] + "/") for other in lines):
            return True
        above = by_number.get(parent)
        if above is None:
            return False
        # a mount on its parent's very root is what covers the parent
        return out_of_reach(above) or (above[4] != point and covered(above))

    return sorted(line[3:] for line in lines if not covered(line) and not out_of_reach(line))
