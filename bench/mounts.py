"""A mount namespace of the benchmarks' own: what a program leaves mounted ends with them."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

CLONE_NEWNS = 0x20000
MS_BIND = 0x1000
MS_REC = 0x4000
MS_PRIVATE = 0x40000
CGROUPS = Path("/sys/fs/cgroup")


def call(name: str, *arguments: object) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if getattr(libc, name)(*arguments):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), name)


def mount(source: bytes | None, target: bytes, flags: int) -> None:
    call("mount", source, target, None, ctypes.c_ulong(flags), None)


def enter_own() -> None:
    """firejail leaves mounts in /run; crun takes no hybrid cgroup tree, so it is shown cgroup2."""
    call("unshare", CLONE_NEWNS)
    mount(None, b"/", MS_REC | MS_PRIVATE)
    unified = CGROUPS / "unified"
    if unified.is_mount():
        mount(bytes(unified), bytes(CGROUPS), MS_BIND)
