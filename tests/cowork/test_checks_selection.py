"""Acceptance checks 59 to 63: which backend runs, the doctor, and the client's boot."""

from __future__ import annotations

import multiprocessing
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import boot_sequence
import pytest
from cowork_client import Refused
from cowork_fixtures import Daemon, Lack, Start


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
    assert "commands are not isolated" in daemon.log


def test_60_kvm_is_an_error_as_long_as_it_is_not_there(start: Start) -> None:
    daemon = start("KVM")
    events = daemon.subscriber()
    with pytest.raises(Refused, match="microVM"):
        events.call("startVM", {"bundlePath": "/x"})
    assert events.call("isGuestConnected") == {"connected": False}
    events.call("spawn", {"id": "a", "name": "s", "command": "/bin/echo", "args": ["no"]})
    event = events.event()
    assert event["type"] == "error"
    assert "microVM" in event["message"]
    assert events.until_exit("a")[2]["exitCode"] == 127


def test_59_without_namespaces_nothing_runs_unconfined(start: Start, lack: Lack) -> None:
    if os.geteuid() != 0:
        lack("cowork check 59: only root can forbid namespaces to a service")
    command = (
        sys.executable, "-I", "-c",
        # an inner user namespace that may make none
        "import os, sys; open('/proc/sys/user/max_pid_namespaces', 'w').write('0');"
        "os.execv(sys.executable, [sys.executable, '-I', '-m', 'cowork_nsrun.cli', 'serve',"
        " *sys.argv[1:]])",
    )  # fmt: skip
    probe = ["unshare", "--user", "--map-root-user", *command[:3],
             "open('/proc/sys/user/max_pid_namespaces', 'w').write('0')"]  # fmt: skip
    if subprocess.run(probe, capture_output=True, check=False).returncode:
        lack("cowork check 59: namespaces can't be forbidden here")
    daemon = start(None, command=("unshare", "--user", "--map-root-user", *command))
    events = daemon.subscriber()
    assert events.call("getStatus")["backend"] == "none"
    assert daemon.log.count("[error]") >= 2
    events.call("spawn", {"id": "a", "name": "s", "command": "/bin/echo", "args": ["no"]})
    assert events.event()["type"] == "error"
    with pytest.raises(Refused, match=r"no sandbox can be made"):
        events.call("startVM", {})


@pytest.mark.parametrize("what", ["59: kvm after a missing bwrap", "59: the confined host backend",
                                  "61: the confined host in the doctor's summary"])  # fmt: skip
def test_59_61_62_not_yet(what: str, lack: Lack) -> None:
    lack(f"cowork check {what} is not there yet")


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
