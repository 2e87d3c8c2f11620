"""A program that attacks, under nothing and each backend; docs/backends.md has the table."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from forked import UNPRIVILEGED, in_child
from hostlib import Lack

from cowork_nsrun import Sandbox
from cowork_nsrun._native import landlock_abi
from cowork_nsrun.selection import select

DOCUMENT = Path(__file__).parents[2] / "docs" / "backends.md"
PYTHON = "/usr/bin/python3"
FULL = 6  # the ABI of Landlock with which the host backend is what the table says
PROGRAM = r"""
import ctypes, json, os, signal, socket, sys
there, pid, tcp, udp, name, memory = sys.argv[1:]
pid, memory = int(pid), int(memory)
libc = ctypes.CDLL(None, use_errno=True)
done = {}

def attempt(text):
    def run(function):
        try:
            done[text] = bool(function())
        except OSError:
            done[text] = False
    return run

def call(result):
    if result == -1:
        raise OSError(ctypes.get_errno(), "")
    return True

@attempt("read a file that isn't shown")
def _():
    return open(there + "/secret").read() == "secret"

@attempt("write to it")
def _():
    return open(there + "/secret", "r+").write("secret")

@attempt("truncate it")
def _():
    os.truncate(there + "/secret", 6)
    return True

@attempt("make a file beside it")
def _():
    with open(there + "/made", "w"):
        os.unlink(there + "/made")
    return True

@attempt("rename it")
def _():
    os.rename(there + "/secret", there + "/other")
    os.rename(there + "/other", there + "/secret")
    return True

@attempt("see its name, size and times")
def _():
    return os.stat(there + "/secret").st_size

@attempt("change its mode")
def _():
    os.chmod(there + "/secret", 0o600)
    return True

@attempt("signal a process of the user's")
def _():
    os.kill(pid, signal.SIGCONT)
    return True

@attempt("trace it")
def _():
    call(libc.ptrace(16, pid, None, None))
    os.waitpid(pid, 0x40000000)
    return call(libc.ptrace(17, pid, None, None))

@attempt("read its environment")
def _():
    return b"PATH" in open(f"/proc/{pid}/environ", "rb").read()

@attempt("see its command line")
def _():
    return b"987654" in open(f"/proc/{pid}/cmdline", "rb").read()

@attempt("speak to a service by a Unix socket")
def _():
    socket.socket(socket.AF_UNIX).connect(there + "/socket")
    return True

@attempt("by an abstract Unix socket")
def _():
    socket.socket(socket.AF_UNIX).connect("\0" + name)
    return True

@attempt("by TCP on localhost")
def _():
    socket.create_connection(("127.0.0.1", int(tcp)), 5)
    return True

@attempt("by UDP on localhost")
def _():
    s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    s.settimeout(5)
    s.sendto(b"x", ("127.0.0.1", int(udp)))
    return s.recv(1)

@attempt("attach System V memory of the user's")
def _():
    libc.shmat.restype = ctypes.c_ssize_t
    return call(libc.shmat(memory, None, 0))

@attempt("add a key to the user's keyring")
def _():
    number = libc.syscall(248, b"user", b"nsrun-attack", b"x", 1, -4)
    return call(number) and call(libc.syscall(250, 3, number, 0, 0, 0))

@attempt("make a user namespace")
def _():
    return call(libc.unshare(0x10000000))

print(json.dumps(done))
"""


@contextmanager
def victim(place: Path) -> Iterator[list[str]]:
    """What a user has: a file, a process, services, memory; as arguments for the program."""
    place.mkdir(mode=0o700)
    (place / "secret").write_text("secret")
    name = f"nsrun-threats-{os.getpid()}"
    listeners = [socket.socket(socket.AF_UNIX), socket.socket(socket.AF_UNIX), socket.socket()]
    for listener, address in zip(listeners, (str(place / "socket"), "\0" + name, ("127.0.0.1", 0)),
                                 strict=True):  # fmt: skip
        listener.bind(address)
        listener.listen(64)
    datagrams = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    datagrams.bind(("127.0.0.1", 0))

    def answer() -> None:
        while True:
            data, sender = datagrams.recvfrom(8)
            if data == b"end":
                return
            datagrams.sendto(b"y", sender)

    thread = threading.Thread(target=answer)
    thread.start()
    memory = subprocess.check_output(["ipcmk", "-M", "4096", "-p", "0600"], text=True).split()[-1]
    process = subprocess.Popen(["sleep", "987654"])
    try:
        ports = [str(each.getsockname()[1]) for each in (listeners[2], datagrams)]
        yield [str(place), str(process.pid), *ports, name, memory]
    finally:
        process.kill()
        process.wait()
        subprocess.run(["ipcrm", "-m", memory], check=True)
        datagrams.sendto(b"end", datagrams.getsockname())
        thread.join()
        for each in (*listeners, datagrams):
            each.close()


def attack(how: Callable[[str], Sandbox] | None) -> dict[str, bool]:
    """What came off."""
    with tempfile.TemporaryDirectory(prefix="nsrun-threats-") as top:
        folder = Path(top) / "folder"
        folder.mkdir()
        with victim(Path(top) / "theirs") as arguments:
            words = [PYTHON, "-c", PROGRAM, *arguments]
            if how is None:
                out = subprocess.run(words, check=True, capture_output=True).stdout
            else:
                out = how(str(folder)).run(words).check().stdout
    found: dict[str, bool] = json.loads(out)
    return found


def in_user(how: Callable[[str], Sandbox] | None) -> dict[str, bool]:
    user = UNPRIVILEGED if os.geteuid() == 0 else None
    found: Any = in_child(lambda: attack(how), user)
    return dict(found)


@pytest.fixture(autouse=True)
def needed(lack: Lack) -> None:
    if not os.path.exists(PYTHON):
        lack(f"threats: there is no {PYTHON} to attack with")


def test_the_table_is_what_comes_off(lack: Lack) -> None:
    if landlock_abi() < FULL:
        lack("threats: no Landlock of ABI 6")
    namespaces, host = in_user(Sandbox.workspace), in_user(Sandbox.host_workspace)
    said = {True: "**possible**", False: "refused"}
    # the microVM's column is tested where there can be one
    rows = [f"| {name} | {said[namespaces[name]]} | refused | {said[host[name]]} |"
            for name in namespaces]  # fmt: skip
    print("\n".join(rows))
    assert not any(namespaces.values()), namespaces
    text = DOCUMENT.read_text()
    assert [row for row in rows if row not in text] == []


def test_nothing_comes_off_in_a_microvm(lack: Lack) -> None:
    found = select("kvm")
    if found.backend is None:
        lack(f"threats: no microVM: {found.reason}")
    came_off = attack(lambda folder: Sandbox.workspace(folder).replace(backend="kvm"))
    assert not any(came_off.values()), came_off


def test_all_of_it_comes_off_outside() -> None:
    """Control: without a sandbox the program succeeds at everything."""
    found = in_user(None)
    assert all(found.values()), found
