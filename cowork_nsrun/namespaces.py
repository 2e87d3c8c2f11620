"""The kinds of namespaces, by the names that specs have for them."""

from __future__ import annotations

from enum import StrEnum


class Namespace(StrEnum):
    """A kind of namespace that a sandbox can have for itself: namespaces(7)."""

    USER = "user"
    IPC = "ipc"
    PID = "pid"
    NET = "net"
    UTS = "uts"
    CGROUP = "cgroup"


#: CLONE_NEW* of each: linux/sched.h
CLONE = {
    Namespace.CGROUP: 0x02000000,
    Namespace.UTS: 0x04000000,
    Namespace.IPC: 0x08000000,
    Namespace.USER: 0x10000000,
    Namespace.PID: 0x20000000,
    Namespace.NET: 0x40000000,
}
