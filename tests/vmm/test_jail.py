"""The jail: what each thread of the monitor may still do, and what kills it."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import pytest
from vmmlib import HANG, RUNNING, Monitor, build_part, monitor

from cowork_nsrun.guest.view import view_bytes

Lack = Callable[[str], NoReturn]
Guest = Callable[[str], Path]

#: call -> the roles that may make it
ALL = {"cpu", "devices", "devices-fs", "disk", "fs"}
MAIN = {"devices", "devices-fs"}
FILES = {"devices-fs", "fs"}
CALLS: dict[str, set[str]] = {
    "write": ALL,
    "map": ALL,
    "map-code": set(),
    "make-code": set(),
    "run-guest": {"cpu"},
    "make-guest": set(),
    "read-registers": MAIN,
    "write-registers": set(),
    "type-ahead": set(),
    "unix-pair": MAIN,
    "datagram-pair": set(),
    "inet-socket": set(),
    "unix-socket": set(),
    "random": MAIN,
    "wait": {*MAIN, "fs"},
    "open": FILES,
    "write-disk": {"disk", *MAIN, *FILES},
    "make-directory": FILES,
    "fork": set(),
    "exec": set(),
    "mount": set(),
    "trace": set(),
    "kick": MAIN,
    "kick-other": set(),
    "kick-any": set(),
    "shut": {"devices-fs"},
    "confine-itself": ALL,
    "lock": FILES,
    "signals-for-others": set(),
    "kill-thread": set(),
    "kill": set(),
    "set-user": set(),
    "other-abi": set(),
}


@pytest.fixture(scope="session")
def cases(tmp_path_factory: pytest.TempPathFactory, lack: Lack, kvm: None) -> Path:
    """The program that makes one call in one jail; static, as the monitor is."""
    return build_part("jail_cases", ("filter", "jail", "walls"), tmp_path_factory, lack)


@pytest.mark.parametrize("role", sorted(ALL))
@pytest.mark.parametrize("call", CALLS)
def test_calls(cases: Path, role: str, call: str) -> None:
    status = subprocess.run([cases, role, call], check=False, timeout=HANG).returncode
    assert status == (0 if role in CALLS[call] else -signal.SIGSYS)


@pytest.mark.parametrize("call", CALLS)
def test_without_a_jail_no_call_kills(cases: Path, call: str) -> None:
    """The control of the test above."""
    assert subprocess.run([cases, "none", call], check=False, timeout=HANG).returncode == 0


def threads(machine: Monitor) -> list[dict[str, str]]:
    """The status of each thread."""
    found = []
    for thread in Path(f"/proc/{machine.process.pid}/task").iterdir():
        lines = (thread / "status").read_text().splitlines()
        found.append(
            {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}
        )
    return found


@pytest.mark.parametrize("jailed", [True, False])
def test_every_thread_is_in(guest: Guest, tmp_path: Path, jailed: bool) -> None:
    """Two processors, a disk, a file server, and the main thread."""
    disk, view = tmp_path / "disk", tmp_path / "view"
    disk.write_bytes(bytes(512))
    view.write_bytes(view_bytes([]))
    with disk.open("rb") as image, view.open("rb") as exports:
        fds = [image.fileno(), exports.fileno()]
        options = ["--cpus", "2", "--blk", f"{fds[0]}:ro", "--fs", f"nsrun={fds[1]}"]
        options += ["--vsock", "3", *([] if jailed else ["--no-jail"])]
        with monitor(guest("hello"), *options, cmdline="loop", fds=fds) as machine:
            machine.expect(RUNNING)
            found = threads(machine)
            limits = Path(f"/proc/{machine.process.pid}/limits").read_text()
    assert len(found) >= 5
    expected = ("2", "1") if jailed else ("0", "0")
    assert {(status["Seccomp"], status["NoNewPrivs"]) for status in found} == {expected}
    core = next(line for line in limits.splitlines() if line.startswith("Max core file size"))
    if jailed:
        assert core.split()[4:6] == ["0", "0"]


def test_descriptors_that_were_not_given_are_closed(guest: Guest, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(b"x")
    for jailed in (True, False):
        with secret.open("rb") as leaked:
            options = [] if jailed else ["--no-jail"]
            fds = [leaked.fileno()]
            with monitor(guest("hello"), *options, cmdline="loop", fds=fds) as machine:
                machine.expect(RUNNING)
                directory = Path(f"/proc/{machine.process.pid}/fd")
                names = {os.readlink(entry) for entry in directory.iterdir()}
        assert (str(secret) in names) is not jailed
        assert "/dev/kvm" not in names
        assert not any(name.endswith("/hello") for name in names)
