"""Around the service: socket activation, ``nsrun sessions``, the log's rotation, user units."""

from __future__ import annotations

import logging
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from cowork_client import PATIENCE, Client, one_shot
from cowork_fixtures import SERVE, Daemon, Lack, Start, wait_for

from cowork_nsrun.cowork import log as service_log

PACKAGING = Path(__file__).parents[2] / "packaging" / "systemd"
ACTIVATE = """
import os, sys
fd = int(sys.argv[1])
os.dup2(fd, 3, inheritable=True)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS=sys.argv[2])
os.execv(sys.argv[3], sys.argv[3:])
"""


def _activated(
    tmp_path: Path, listener: socket.socket, words: list[str], count: str = "1"
) -> subprocess.Popen[bytes]:
    home = tmp_path / "home"
    home.mkdir(exist_ok=True)
    command = [sys.executable, "-c", ACTIVATE, str(listener.fileno()), count, *SERVE, *words]
    return subprocess.Popen(
        command,
        env={"HOME": str(home), "PATH": os.environ["PATH"], "COWORK_VM_BACKEND": "bwrap"},
        pass_fds=[listener.fileno()],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def _end(process: subprocess.Popen[bytes]) -> int:
    process.terminate()
    _, _ = process.communicate(timeout=PATIENCE)
    return process.returncode


def test_socket_activation(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        process = _activated(tmp_path, listener, ["-socket", str(path)])
        assert one_shot(str(path), "isRunning")["success"]
        with Client(str(path)) as client:
            env = {"id": "a", "name": "s", "command": "/usr/bin/env"}
            client.subscribe().call("spawn", env)
            assert "LISTEN_" not in client.until_exit("a")[0]
        assert _end(process) == 0
        # systemd's, not ours
        assert path.exists()


@pytest.mark.parametrize("wrong", ["other path", "count", "datagram", "not listening"])
def test_socket_activation_that_is_wrong(tmp_path: Path, wrong: str) -> None:
    path = tmp_path / "s"
    kind = socket.SOCK_DGRAM if wrong == "datagram" else socket.SOCK_STREAM
    with socket.socket(socket.AF_UNIX, kind) as listener:
        listener.bind(str(path))
        if wrong in {"other path", "count"}:
            listener.listen()
        words = ["-socket", str(tmp_path / "t") if wrong == "other path" else str(path)]
        count = "2" if wrong == "count" else "1"
        process = _activated(tmp_path, listener, words, count)
        _, err = process.communicate(timeout=PATIENCE)
        assert process.returncode == 1
        assert re.search(rb"LISTEN_FDS|handed over", err)


def test_sessions(daemon: Daemon) -> None:
    events = daemon.subscriber()
    params = {"id": "p\x1b[2J", "name": "fox", "command": "cat"}
    events.call("spawn", params)

    def pid() -> int:
        (session,) = events.call("getStatus")["sessions"]
        return int(session["processes"][0]["pid"])

    wait_for(lambda: pid() != 0, "it does not run")
    command = [*SERVE[:-1], "sessions", "-socket", daemon.path]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert re.search(rf"^backend bwrap, 1 sessions\nfox\n  p\?\[2J  cat  running  pid {pid()}",
                     shown)  # fmt: skip
    found = subprocess.run([*command, "--json"], capture_output=True, text=True, check=True).stdout
    assert '"firstOutputMs"' in found


def test_sessions_without_a_service(tmp_path: Path) -> None:
    command = [*SERVE[:-1], "sessions", "-socket", str(tmp_path / "none")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "is the service running?" in done.stderr


def test_the_log_rotates(tmp_path: Path) -> None:
    logs = service_log.Log(tmp_path, debug=False)
    try:
        line = "x" * 4000
        for _ in range(service_log.FILE_MAX // 4000 * 2):
            service_log.lifecycle("%s", line)
    finally:
        logs.close()
    sizes = {path.name: path.stat().st_size for path in tmp_path.iterdir()}
    assert set(sizes) == {f"cowork_vm_daemon.log{end}" for end in ("", ".1", ".2")}
    assert all(size <= service_log.FILE_MAX for size in sizes.values())


def test_a_log_that_can_not_be_written(start: Start, tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home/.config").write_text("no directory")
    daemon = start()
    assert daemon.client().call("isRunning") == {"running": False}
    daemon.process.terminate()
    assert daemon.process.wait() == 0
    assert daemon.process.stderr is not None
    assert b"no log file" in daemon.process.stderr.read()


def test_nobody_reads_the_output(start: Start) -> None:
    """A full pipe must not stop the service."""
    daemon = start(env={"COWORK_VM_DEBUG": "1"})
    client = daemon.client()
    for _ in range(3000):
        client.call("isRunning")
    assert daemon.log.count("request 'isRunning'") == 3000


def test_handlers_are_given_back(tmp_path: Path) -> None:
    before = list(service_log.log.handlers)
    service_log.Log(tmp_path, debug=True).close()
    assert service_log.log.handlers == before
    assert isinstance(service_log.log, logging.Logger)


@pytest.mark.parametrize("unit", ["nsrun-cowork.socket", "nsrun-cowork.service"])
def test_units(unit: str, lack: Lack) -> None:
    import shutil  # noqa: PLC0415

    text = (PACKAGING / unit).read_text()
    if unit.endswith(".socket"):
        assert "ListenStream=%t/claude-cowork-vm.sock" in text
        assert "SocketMode=0700" in text
    else:
        assert "ExecStart=" in text
    if shutil.which("systemd-analyze") is None:
        lack("cowork: there is no systemd-analyze to check the units by")
