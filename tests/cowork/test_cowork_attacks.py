"""A hostile command in a session: what it tries, and that the same program succeeds outside."""

from __future__ import annotations

import json
import os
from collections.abc import Callable

import pytest
from cowork_client import Client
from cowork_fixtures import SERVE, Daemon, Lack, Start, wait_for

from cowork_nsrun._native import landlock_abi

SCOPES = 6  # the ABI of Landlock that holds back signals and abstract sockets

# prints what came off, as JSON
PROGRAM = r"""
import ctypes, glob, json, os, socket, sys
home, path, folder, other = sys.argv[1:5]
done = []

def attempt(name):
    def run(function):
        try:
            if function():
                done.append(name)
        except OSError:
            pass
    return run

@attempt("read the home")
def _():
    return open(f"{home}/secret").read()

@attempt("write to the home")
def _():
    return open(f"{home}/.profile", "w").write("x") and os.path.exists(f"{home}/secret")

@attempt("speak to the service")
def _():
    s = socket.socket(socket.AF_UNIX)
    s.connect(path)
    return True

@attempt("write to a read-only folder")
def _():
    return open(f"{folder}/ro/written", "w").write("x")

@attempt("write to /usr or /etc")
def _():
    for directory in ("/usr", "/etc"):
        try:
            os.close(os.open(f"{directory}/nsrun-attack", os.O_CREAT | os.O_WRONLY))
            os.unlink(f"{directory}/nsrun-attack")
            return True
        except OSError:
            pass

@attempt("see another session's process")
def _():
    for name in glob.glob("/proc/[0-9]*/cmdline"):
        if open(name, "rb").read().split(b"\0")[1:] == [other.encode(), b""]:
            return True

@attempt("see another session's folder")
def _():
    return "o" in sum((os.listdir(d) for d in glob.glob("/sessions/*/mnt")), [])

@attempt("remount")
def _():
    libc = ctypes.CDLL(None, use_errno=True)
    return libc.mount(b"", f"{folder}/ro".encode(), None, 32 | 4096, None) == 0 and open(
        f"{folder}/ro/written", "w").write("x")

@attempt("write to /proc/sys")
def _():
    value = open("/proc/sys/vm/swappiness").read()
    with open("/proc/sys/vm/swappiness", "w") as file:
        return file.write(value)

@attempt("make a device")
def _():
    os.mknod("/tmp/nsrun-attack", 0o20600, os.makedev(1, 3))
    try:
        return os.open("/tmp/nsrun-attack", os.O_RDONLY) >= 0
    finally:
        os.unlink("/tmp/nsrun-attack")

@attempt("leave by /proc/1/root")
def _():
    return open(f"/proc/1/root{home}/secret").read()

@attempt("leave by a link")
def _():
    os.symlink(f"{home}/secret", f"{folder}/rw/link")
    return open(f"{folder}/rw/link").read()

@attempt("read the service's log")
def _():
    return open(f"{home}/.config/Claude/logs/cowork_vm_daemon.log").read()

@attempt("find a token")
def _():
    for name in glob.glob("/proc/[0-9]*/environ"):
        try:
            if b"t0ken-of-another" in open(name, "rb").read():
                return True
        except OSError:
            pass

print(json.dumps(done))
"""
Attack = Callable[..., set[str]]
MARK = "1234567.25"


def _attack(daemon: Daemon, events: Client, folder: str) -> set[str]:
    (daemon.home / "secret").write_text("secret")
    (daemon.folder("ro") / "f").touch()
    daemon.folder("rw")
    daemon.folder("other-folder")
    events.call("spawn", {"id": "other", "name": "other", "command": "sleep", "args": [MARK],
                          "oauthToken": "t0ken-of-another",
                          "additionalMounts": {"o": {"path": "other-folder"}}})  # fmt: skip

    def runs() -> bool:
        sessions = events.call("getStatus")["sessions"]
        return any(process["pid"] for session in sessions for process in session["processes"])

    wait_for(runs, "what is to be found does not run")
    mounts = {"ro": {"path": "ro", "mode": "ro"}, "rw": {"path": "rw", "mode": "rw"}}
    args = ["-c", PROGRAM, str(daemon.home), daemon.path, folder, MARK]
    out, err, end = daemon.run(
        events, "/usr/bin/python3", args, name="attacker", additionalMounts=mounts
    )
    assert end["exitCode"] == 0, err
    return set(json.loads(out))


@pytest.fixture
def attack(start: Start, lack: Lack) -> Attack:
    if not os.path.exists("/usr/bin/python3"):
        lack("cowork: there is no /usr/bin/python3 to attack with")

    def run(backend: str, command: tuple[str, ...] = SERVE) -> set[str]:
        daemon = start(backend, command=command)
        folder = "/sessions/attacker/mnt" if backend == "bwrap" else str(daemon.home)
        return _attack(daemon, daemon.subscriber(), folder)

    return run


def test_nothing_comes_off(attack: Attack) -> None:
    assert attack("bwrap") == set()


def test_what_comes_off_on_the_confined_host(attack: Attack, lack: Lack) -> None:
    """Processes can be seen there, as docs/backends.md says; all else is refused."""
    if landlock_abi() < SCOPES:
        lack("cowork: no Landlock of ABI 6, which holds the host backend in full")
    assert attack("host") == {"see another session's process"}


def test_the_same_program_outside(attack: Attack, without_landlock: tuple[str, ...]) -> None:
    """Control: without a sandbox most of it does."""
    done = attack("host", (*without_landlock, *SERVE))
    assert {
        "read the home", "write to the home", "speak to the service", "leave by a link",
        "write to a read-only folder", "see another session's process", "read the service's log",
        "find a token",
    } <= done  # fmt: skip
    if os.geteuid() == 0:
        assert {"write to /usr or /etc", "write to /proc/sys", "make a device"} <= done
