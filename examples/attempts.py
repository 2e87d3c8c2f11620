"""Run inside a sandbox: say what is visible, and try what must not work.

Prints one JSON object.  Arguments: the user's home, and the pid of a process outside.
"""

import ctypes
import errno
import json
import os
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path

HOME, HOST_PID = Path(sys.argv[1]), int(sys.argv[2])
LIBC = ctypes.CDLL(None, use_errno=True)
CLONE_NEWNS = 0x00020000
PTRACE_SEIZE = 0x4206


def call(name: str, *args: object) -> None:
    """A C library call whose failure is an OSError, as Python's own are."""
    if getattr(LIBC, name)(*args) < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def write(path: str) -> None:
    Path(path).write_text("written from inside")


def raw_socket() -> None:
    socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP).close()


ATTEMPTS: dict[str, Callable[[], object]] = {
    "list /root/.ssh": lambda: os.listdir("/root/.ssh"),
    f"list {HOME}/.ssh": lambda: os.listdir(HOME / ".ssh"),
    "list /var": lambda: os.listdir("/var"),
    "write /usr/bin/evil": lambda: write("/usr/bin/evil"),
    "write /etc/passwd": lambda: write("/etc/passwd"),
    "open the terminal": lambda: os.close(os.open("/dev/tty", os.O_RDWR)),
    "open a disk": lambda: os.close(os.open("/dev/sda", os.O_RDONLY)),
    "signal a host process": lambda: os.kill(HOST_PID, 0),
    "read the memory of pid 1": lambda: Path("/proc/1/mem").open("rb").close(),
    "trace pid 1": lambda: call("ptrace", PTRACE_SEIZE, 1, None, None),
    "mount a tmpfs": lambda: call("mount", b"none", b"/tmp", b"tmpfs", 0, None),
    "unmount /usr": lambda: call("umount2", b"/usr", 2),
    "make /usr writable": lambda: call("mount", None, b"/usr", None, 4096 | 32, None),
    "new mount namespace": lambda: call("unshare", CLONE_NEWNS),
    "set the host name": lambda: call("sethostname", b"evil", 4),
    "set the clock": lambda: time.clock_settime(time.CLOCK_REALTIME, time.time()),
    "open a raw socket": raw_socket,
    "change the root": lambda: os.chroot("/tmp"),
}


def outcome(attempt: Callable[[], object]) -> str:
    """The errno's name, or "allowed"."""
    try:
        attempt()
    except OSError as error:
        return errno.errorcode.get(error.errno or 0, str(error))
    return "allowed"


def main() -> None:
    mounts = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    report = {
        "ids": f"uid {os.getuid()}, gid {os.getgid()}",
        "cwd": os.getcwd(),
        "root": sorted(os.listdir("/")),
        "home": sorted(os.listdir(HOME)),
        "mounts": mounts,
        "pids": sorted(int(name) for name in os.listdir("/proc") if name.isdigit()),
        "attempts": {name: outcome(attempt) for name, attempt in ATTEMPTS.items()},
    }
    json.dump(report, sys.stdout)


main()
