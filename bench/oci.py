"""OCI bundles, made on the fly, whose sandbox equals the standard one."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from bench.cases import Case
from bench.helpers import Workspace

NAMESPACES = ["user", "pid", "ipc", "uts", "mount"]
BOUND = ["/usr", "/etc", "/var"]
LINKS = {"bin": "usr/bin", "lib": "usr/lib", "lib64": "usr/lib64", "sbin": "usr/sbin"}


def mounts() -> list[dict[str, Any]]:
    """The host read-only, and a /proc, /dev and /tmp of its own."""
    read_only = ["rbind", "ro", "nosuid", "nodev"]
    pts = ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"]
    return [
        *({"destination": p, "type": "bind", "source": p, "options": read_only} for p in BOUND),
        {"destination": "/proc", "type": "proc", "source": "proc"},
        {
            "destination": "/dev",
            "type": "tmpfs",
            "source": "tmpfs",
            "options": ["nosuid", "mode=755"],
        },
        {"destination": "/dev/pts", "type": "devpts", "source": "devpts", "options": pts},
        {"destination": "/tmp", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "nodev"]},
    ]


def configuration(case: Case, uid: int, gid: int, payload: list[str]) -> dict[str, Any]:
    """config.json: uid 0 inside, since a runtime cannot map back to the caller's own id."""
    namespaces = [*NAMESPACES, *(["network"] if case.sandbox == "network" else [])]
    return {
        "ociVersion": "1.0.2",
        "process": {
            "user": {"uid": 0, "gid": 0},
            "args": payload,
            "env": ["PATH=/usr/bin:/bin"],
            "cwd": "/",
            "noNewPrivileges": True,
        },
        "root": {"path": "rootfs", "readonly": True},
        "mounts": mounts(),
        "linux": {
            "namespaces": [{"type": name} for name in namespaces],
            "uidMappings": [{"containerID": 0, "hostID": uid, "size": 1}],
            "gidMappings": [{"containerID": 0, "hostID": gid, "size": 1}],
        },
    }


def make_root(root: Path) -> None:
    """An empty root with a place for every mount."""
    for path in [*BOUND, "/proc", "/dev", "/tmp"]:
        (root / path.lstrip("/")).mkdir(parents=True, exist_ok=True)
    for name, target in LINKS.items():
        if not (root / name).is_symlink():
            (root / name).symlink_to(target)


def give(path: Path, uid: int, gid: int) -> None:
    if os.geteuid() == 0:
        for each in [path, *path.rglob("*")]:
            os.chown(each, uid, gid, follow_symlinks=False)


def make_bundle(
    case: Case, workspace: Workspace, uid: int, gid: int, payload: list[str]
) -> tuple[Path, Path]:
    """The bundle's directory, and the runtime's state directory beside it."""
    text = json.dumps(configuration(case, uid, gid, payload))
    state = workspace.state(uid)
    bundle = state / hashlib.sha256(text.encode()).hexdigest()[:12]
    if not (bundle / "config.json").exists():
        make_root(bundle / "rootfs")
        (bundle / "config.json").write_text(text)
        give(bundle, uid, gid)
    return bundle, state / "run"
