"""Acceptance checks 59 to 63: which backend runs, the doctor, and the client's boot."""

from __future__ import annotations

import multiprocessing
import os
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import boot_sequence
import pytest
from cowork_client import Refused
from cowork_fixtures import SERVE, Daemon, Lack, Start

from cowork_nsrun._native import landlock_abi


@pytest.mark.parametrize("override", [None, "", "bwrap", "BWRAP", "Bwrap", "junk", " bwrap"])
def test_59_60_sandboxes(start: Start, override: str | None) -> None:
    daemon = start(override)
    assert daemon.client().call("getStatus")["backend"] == "bwrap"
    unknown = f'Unknown backend override "{override}", falling back to auto-detect'
    assert (unknown in daemon.log) == (override in {"junk", " bwrap"})


@pytest.mark.parametrize("override", ["host", "HOST", "Host"])
def test_60_host(start: Start, override: str) -> None:
    daemon = start(override)
    assert daemon.client().call("getStatus")["backend"] == "host"
    assert ("confined by Landlock" in daemon.log) == (landlock_abi() >= 2)
    assert ("commands are not isolated" in daemon.log) == (landlock_abi() < 2)


def test_60_host_without_landlock(start: Start, without_landlock: tuple[str, ...]) -> None:
    daemon = start("host", command=(*without_landlock, *SERVE))
    assert daemon.client().call("getStatus")["backend"] == "host"
    assert "no Landlock here, commands are not isolated" in daemon.log
    assert daemon.sh(daemon.subscriber(), f"ls {daemon.home}/.config") == "Claude\n"


def test_60_kvm_is_an_error_where_it_is_not_there(start: Start, tmp_path: Path) -> None:
    """Not the host, and not namespaces: what was asked for, or nothing."""
    daemon = start("KVM", env={"NSRUN_GUEST_KERNEL": str(tmp_path / "none")})
    events = daemon.subscriber()
    with pytest.raises(Refused, match="no sandbox can be made here"):
        events.call("startVM", {"bundlePath": "/x"})
    assert events.call("isGuestConnected") == {"connected": False}
    events.call("spawn", {"id": "a", "name": "s", "command": "/bin/echo", "args": ["no"]})
    event = events.event()
    assert event["type"] == "error"
    assert "no sandbox can be made here" in event["message"]
    assert events.until_exit("a")[2]["exitCode"] == 127


def test_59_the_confined_host_is_the_last_resort(
    start: Start, without_namespaces: tuple[str, ...], lack: Lack
) -> None:
    if landlock_abi() < 2:
        lack("cowork check 59: no Landlock of ABI 2")
    daemon = start(None, command=(*without_namespaces, *SERVE))
    events = daemon.subscriber()
    assert events.call("getStatus")["backend"] == "host"
    assert daemon.log.count("[error]") >= 3
    assert "no namespaces can be made here" in daemon.log
    assert "last resort; commands are confined by Landlock" in daemon.log
    script = f"cat {daemon.home}/.config/Claude/logs/cowork_vm_daemon.log || echo refused"
    assert daemon.sh(events, script) == "refused\n"


def test_59_without_anything_nothing_runs(
    start: Start, without_namespaces: tuple[str, ...], without_landlock: tuple[str, ...]
) -> None:
    """No namespaces and no Landlock: that there is no isolation has to be asked for."""
    daemon = start(None, command=(*without_namespaces, *without_landlock, *SERVE))
    events = daemon.subscriber()
    assert events.call("getStatus")["backend"] == "none"
    assert daemon.log.count("[error]") >= 2
    events.call("spawn", {"id": "a", "name": "s", "command": "/bin/echo", "args": ["no"]})
    assert events.event()["type"] == "error"
    with pytest.raises(Refused, match=r"no sandbox can be made"):
        events.call("startVM", {})


def test_61_the_doctor_of_the_last_resort(
    start: Start, without_namespaces: tuple[str, ...], without_landlock: tuple[str, ...],
    tmp_path: Path, lack: Lack,
) -> None:  # fmt: skip
    if landlock_abi() < 2:
        lack("cowork check 61: no Landlock of ABI 2")
    command = [*SERVE[:-1], "doctor", "--cowork"]
    env = {"HOME": str(tmp_path), "PATH": os.environ["PATH"]}
    for front, text in (
        (without_namespaces, "host-direct (confined by Landlock and seccomp, no namespaces)"),
        ((*without_namespaces, *without_landlock), "none (nothing is started)"),
    ):
        done = subprocess.run([*front, *command], env=env, capture_output=True, text=True,
                              check=False)  # fmt: skip
        assert f"Cowork isolation: {text}" in done.stdout, done
        assert done.returncode == done.stdout.count("[FAIL]") >= 1


@pytest.mark.parametrize("user", [None, 12345])
def test_63_boot(user: int | None, open_directory: Path, lack: Lack) -> None:
    if user is not None and os.geteuid() != 0:
        lack("cowork check 63: the tests' own user has no privileges already")
    place = open_directory / f"boot-{user}"
    home, run = place / "home", place / "run"
    for directory in (place, home, run):
        directory.mkdir(mode=0o700)
        if user is not None:
            os.chown(directory, user, user)
    process = multiprocessing.get_context("fork").Process(
        target=boot_sequence.run, args=(user, str(home), str(run))
    )
    process.start()
    process.join()
    assert process.exitcode == 0


# --- the network -------------------------------------------------------------------------------


@pytest.fixture
def web() -> Iterator[tuple[str, int]]:
    """A server on this machine's loopback device that answers everybody."""
    listener = socket.create_server(("127.0.0.1", 0))

    def answer() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection:
                connection.recv(4096)
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello")

    thread = threading.Thread(target=answer)
    thread.start()
    yield "127.0.0.1", int(listener.getsockname()[1])
    # a close alone would not wake who waits for a connection
    listener.shutdown(socket.SHUT_RDWR)
    thread.join()
    listener.close()


def _curl(daemon: Daemon, web: tuple[str, int], domains: list[str] | None) -> str:
    script = f"curl -s --noproxy none -m 20 http://127.0.0.1:{web[1]}/ || echo failed"
    return daemon.sh(daemon.subscriber(), script, allowedDomains=domains)


def test_allowed_domains(daemon: Daemon, web: tuple[str, int], lack: Lack) -> None:
    if not os.path.exists("/usr/bin/curl"):
        lack("cowork: there is no curl")
    allowed = f"127.0.0.1:{web[1]}"
    assert _curl(daemon, web, None) == "hello"
    assert _curl(daemon, web, ["*"]) == "hello"
    assert _curl(daemon, web, [allowed, "not a rule/"]) == "hello"
    for domains in ([], ["example.com"], ["not a rule/"]):
        assert "hello" not in _curl(daemon, web, domains)
    assert "egress refused: 127.0.0.1" in daemon.log


def test_always_allowed(start: Start, web: tuple[str, int], lack: Lack) -> None:
    if not os.path.exists("/usr/bin/curl"):
        lack("cowork: there is no curl")
    daemon = start(env={"COWORK_EGRESS_ALLOW": f"example.org,127.0.0.1:{web[1]}"})
    assert _curl(daemon, web, ["example.com"]) == "hello"
    assert _curl(daemon, web, []) == "hello"


def test_allowed_domains_leave_no_other_way(daemon: Daemon, web: tuple[str, int]) -> None:
    script = f"exec 3<>/dev/tcp/127.0.0.1/{web[1]} && echo reached"
    events = daemon.subscriber()
    words = ["-c", script]
    assert daemon.run(events, "bash", words)[0] == "reached\n"
    out, _, end = daemon.run(events, "bash", words, allowedDomains=[f"127.0.0.1:{web[1]}"])
    assert (out, end["exitCode"]) == ("", 1)


def test_allowed_domains_on_the_host_are_refused(host: Daemon) -> None:
    events = host.subscriber()
    events.call("spawn", {"id": "a", "name": "s", "command": "/bin/echo", "args": ["no"],
                          "allowedDomains": ["example.com"]})  # fmt: skip
    event = events.event()
    assert event["type"] == "error"
    assert "allowedDomains" in event["message"]
    assert host.run(events, "/bin/echo", ["yes"], allowedDomains=["*"])[0] == "yes\n"
