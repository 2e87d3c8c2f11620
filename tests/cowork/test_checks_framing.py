"""Acceptance checks 1 to 22 of the service's specification: frames, replies, socket, log."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from cowork_client import Client, Closed, Refused, one_shot, pack, request
from cowork_fixtures import Daemon, Lack, Start, is_alive, wait_for

from cowork_nsrun.cowork.endpoint import default_path

MIB = 1 << 20
IS_RUNNING = request("isRunning", ident=7)


def test_01_one_shot_without_id(host: Daemon) -> None:
    assert one_shot(host.path, "isRunning") == {"success": True, "result": {"running": False}}


@pytest.mark.parametrize("ident", [0, None, "abc", {"a": 1}, [1.5, "é"], 2**70])
def test_02_ids_are_echoed(host: Daemon, ident: object) -> None:
    client = host.client()
    client.send(request("isRunning", ident=ident))
    assert client.receive()["id"] == ident
    client.send(request("nope", ident=ident))
    assert client.receive()["id"] == ident


def test_02_ids_are_echoed_byte_for_byte(host: Daemon) -> None:
    client = host.client()
    for text in ("1.50", "1e400", '"\\u00e9\\/"', "-0", '{"b":1, "a" :2}'):
        client.send(pack(f'{{"id":{text},"method":"isRunning"}}'.encode()))
        length = int.from_bytes(client._take(4), "big")
        assert f'"id":{text}}}'.encode() in client._take(length)


def test_03_byte_by_byte(host: Daemon) -> None:
    client = host.client()
    for byte in IS_RUNNING:
        client.send(bytes([byte]))
    assert client.receive()["id"] == 7


def test_04_three_in_one_write_the_third_split(host: Daemon) -> None:
    client = host.client()
    whole = b"".join(request("isRunning", ident=i) for i in range(3))
    client.send(whole[:-5])
    assert [client.receive()["id"] for _ in range(2)] == [0, 1]
    client.send(whole[-5:])
    assert client.receive()["id"] == 2


def test_05_a_slow_request_does_not_block(daemon: Daemon) -> None:
    tree = daemon.home / ".local/state/nsrun/cowork/sessions/old/tmp"
    tree.mkdir(parents=True)
    for i in range(5000):
        (tree / str(i)).touch()
    client = daemon.client()
    slow = request("deleteSessionDirs", {"names": ["old"]}, ident="slow")
    client.send(slow + IS_RUNNING)
    assert [client.receive()["id"] for _ in range(2)] == [7, "slow"]
    assert not tree.exists()


@pytest.mark.parametrize(
    "bad", [b"{", b"", b"\xff\xfe", b'{"method":"isRunning"', b"nonsense", b"{}" * 3]
)
def test_06_07_bad_frames_are_skipped(host: Daemon, bad: bytes) -> None:
    client = host.client()
    client.send(pack(bad))
    client.send(IS_RUNNING)
    assert client.receive()["id"] == 7
    client.send(pack(bad) + IS_RUNNING)
    assert client.receive()["id"] == 7


@pytest.mark.parametrize("body", [b"null", b"5", b'"x"', b"[]", b"true", b"[" * 100 + b"]" * 100])
def test_08_no_object(host: Daemon, body: bytes) -> None:
    client = host.client()
    client.send(pack(body) + IS_RUNNING)
    first = client.receive()
    assert first["success"] is False
    assert first["error"]
    assert client.receive()["id"] == 7


def test_08_deep_nesting(host: Daemon) -> None:
    client = host.client()
    deep = b"[" * 200_000 + b"]" * 200_000
    for body in (deep, b'{"id":' + deep + b"}", b'{"method":"spawn","params":' + deep + b"}"):
        client.send(pack(body))
        assert client.receive()["success"] is False
    client.send(IS_RUNNING)
    assert client.receive()["id"] == 7


@pytest.mark.parametrize(
    ("method", "shown"),
    [
        (b'"nope"', "nope"),
        (b'"toString"', "toString"),
        (b'"constructor"', "constructor"),
        (b'"__proto__"', "__proto__"),
        (b"null", "null"),
        (b"5", "5"),
        (None, "undefined"),
    ],
)
def test_09_unknown_methods(host: Daemon, method: bytes | None, shown: str) -> None:
    client = host.client()
    client.send(pack(b'{"id":1}' if method is None else b'{"id":1,"method":' + method + b"}"))
    assert client.receive() == {"success": False, "error": f"Unknown method: {shown}", "id": 1}


def test_10_too_long(host: Daemon) -> None:
    client = host.client()
    client.send((11 * MIB).to_bytes(4, "big") + b"{")
    with pytest.raises(Closed):
        client.receive()
    assert host.client().call("isRunning") == {"running": False}


def test_11_nine_mib(host: Daemon) -> None:
    client = host.client()
    assert client.call("configure", {"padding": "x" * (9 * MIB)}) == {}


def test_12_the_acknowledgement_is_first(host: Daemon) -> None:
    client = host.client()
    client.send(request("subscribeEvents", ident="a") + request("stopVM", ident="b"))
    assert client.receive() == {"success": True, "result": {}, "id": "a"}
    frames = [client.receive() for _ in range(2)]
    assert {"type": "networkStatus", "status": "disconnected"} in frames
    assert one_shot(host.path, "subscribeEvents") == {"success": True, "result": {}}


def test_13_two_subscribers(daemon: Daemon) -> None:
    first, second, caller = daemon.subscriber(), daemon.subscriber(), daemon.client()
    caller.call("spawn", {"id": "a", "name": "s", "command": "/bin/sh", "args": ["-c", "echo hi"]})
    assert first.until_exit("a") == second.until_exit("a")
    second.socket.close()
    assert daemon.sh(first, "echo there") == "there\n"


def test_13_twice_is_once(host: Daemon) -> None:
    client = host.subscriber().subscribe()
    host.client().call("stopVM")
    client.call("isRunning")
    assert client.events == [{"type": "networkStatus", "status": "disconnected"}]


def test_14_requests_on_a_subscribed_connection(daemon: Daemon) -> None:
    client = daemon.subscriber()
    client.call("spawn", {"id": "a", "name": "s", "command": "/bin/sh",
                          "args": ["-c", "yes | head -c 1000000"]})  # fmt: skip
    for _ in range(20):
        assert client.call("isRunning") == {"running": False}
    out, _, _ = client.until_exit("a")
    assert len(out) == 1_000_000


def _memory(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    found = re.search(r"VmHWM:\s+(\d+) kB", status)
    assert found is not None
    return int(found[1]) * 1024


def test_15_a_subscriber_that_never_reads(daemon: Daemon) -> None:
    silent = daemon.subscriber()
    reader = daemon.subscriber()
    daemon.sh(reader, "echo warm")
    before = _memory(daemon.process.pid)
    size = 30_000_000
    out, _, end = daemon.run(reader, "/bin/sh", ["-c", f"head -c {size} /dev/zero | tr '\\0' x"])
    assert (len(out), end["exitCode"]) == (size, 0)
    assert _memory(daemon.process.pid) - before < 60 * MIB
    with pytest.raises(Closed):
        _receive_all(silent)


def _receive_all(client: Client) -> None:
    while True:
        client.receive()


def test_15_a_slow_subscriber_loses_nothing(daemon: Daemon) -> None:
    """Slow is not dead: commands wait for it."""
    reader = daemon.client()
    reader.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    reader.subscribe()
    size = 40_000_000
    out, _, _ = daemon.run(reader, "/bin/sh", ["-c", f"head -c {size} /dev/zero | tr '\\0' x"])
    assert len(out) == size


def test_16_socket(start: Start, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir(mode=0o750)
    daemon = start()
    found = os.lstat(daemon.path)
    assert stat.S_ISSOCK(found.st_mode)
    assert stat.S_IMODE(found.st_mode) == 0o700
    assert stat.S_IMODE(run.stat().st_mode) == 0o750


def test_16_default_path(start: Start, tmp_path: Path) -> None:
    expected = tmp_path / "run/cowork-vm-service.sock"
    start(words=(), path=expected)
    assert one_shot(str(expected), "isRunning")["success"]


def test_16_default_without_runtime_directory() -> None:
    expected = Path("/tmp/cowork-vm-service.sock")
    assert default_path({}) == default_path({"XDG_RUNTIME_DIR": ""}) == expected


@pytest.mark.parametrize("kind", ["link", "file", "writable", "missing", "long"])
def test_16_bad_places_are_refused(start: Start, tmp_path: Path, kind: str) -> None:
    place = tmp_path / "place"
    place.mkdir(mode=0o700)
    path = place / "s"
    target = tmp_path / "target"
    target.write_text("precious")
    match kind:
        case "link":
            path.symlink_to(target)
        case "file":
            path.write_text("precious")
        case "writable":
            place.chmod(0o777)
        case "missing":
            path = tmp_path / "nowhere" / "s"
        case "long":
            path = place / ("s" * 100)
    daemon = start(path=path, wait=False)
    assert daemon.process.wait() == 1
    assert daemon.process.stderr is not None
    assert str(path.parent) in daemon.process.stderr.read().decode()
    assert target.read_text() == "precious"
    assert not (place / "s.lock").exists()


def test_17_stale_socket(start: Start) -> None:
    daemon = start()
    daemon.process.kill()
    daemon.process.wait()
    assert os.path.exists(daemon.path)
    assert start().client().call("isRunning") == {"running": False}


def test_18_second_service(start: Start) -> None:
    first = start()
    second = start(wait=False)
    assert second.process.wait() == 1
    assert second.process.stderr is not None
    assert b"another service listens" in second.process.stderr.read()
    assert first.client().call("isRunning") == {"running": False}


def test_18_a_foreign_service_is_left_alone(start: Start, tmp_path: Path) -> None:
    """One that knows nothing of the lock."""
    (tmp_path / "run").mkdir(mode=0o700)
    path = tmp_path / "run/other.sock"
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(path))
        other.listen()
        daemon = start(path=path, wait=False)
        assert daemon.process.wait() == 1
        assert path.exists()


def test_18_what_took_our_place_is_left_alone(start: Start) -> None:
    daemon = start()
    os.unlink(daemon.path)
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(daemon.path)
        assert daemon.stop() == 0
        assert os.path.exists(daemon.path)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_19_signals(daemon: Daemon, number: signal.Signals) -> None:
    events = daemon.subscriber()
    events.call("spawn", {"id": "a", "name": "s", "command": "sleep", "args": ["1000"]})
    wait_for(lambda: _pids(daemon) != [], "the command does not run")
    pids = _pids(daemon)
    daemon.process.send_signal(number)
    assert daemon.process.wait() == 0
    assert not os.path.exists(daemon.path)
    assert not os.path.exists(daemon.path + ".lock")
    for pid in pids:
        wait_for(lambda pid=pid: not is_alive(pid), "the command is left")  # type: ignore[misc]
    assert f"[lifecycle] [cowork-vm-service] {number.name} received" in daemon.log
    assert "[lifecycle] [cowork-vm-service] exit code=0" in daemon.log
    assert events.until_exit("a")[2]["signal"] == "SIGKILL"
    assert events.event() == {"type": "networkStatus", "status": "disconnected"}


def _pids(daemon: Daemon) -> list[int]:
    sessions = daemon.client().call("getStatus")["sessions"]
    found = [process["pid"] for session in sessions for process in session["processes"]]
    return [pid for pid in found if pid]


def _runner() -> str:
    return str(Path(sys.executable).with_name("nsrun-script-runner"))


def test_20_script_runner(start: Start, lack: Lack) -> None:
    runner = _runner()
    script = "/opt/app/resources/cowork-vm-service.js"
    daemon = start(command=(runner, script))
    assert daemon.client().call("isRunning") == {"running": False}
    pid = daemon.process.pid
    words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    assert script.encode() in words
    if shutil.which("pgrep") is None:
        lack("cowork check 20: there is no pgrep")
    found = subprocess.run(
        ["pgrep", "-f", r"cowork-vm-service\.js"], check=True, capture_output=True
    )
    assert str(pid).encode() in found.stdout.split()


def test_20_probes_of_the_runner() -> None:
    probe = 'process.exit(typeof require("fs").statfsSync === "function" ? 0 : 1)'
    assert subprocess.run([_runner(), "-e", probe], check=False).returncode == 0
    found = subprocess.run([_runner(), "--version"], capture_output=True, check=True)
    assert re.match(rb"v\d+\.\d+\.\d+", found.stdout)
    wrong = subprocess.run([_runner(), "other.js"], check=False, capture_output=True)
    assert wrong.returncode == 2
    assert b"other.js" in wrong.stderr


def test_21_log_without_debug(daemon: Daemon) -> None:
    stamp = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z \[lifecycle\] \[cowork-vm-service\] "
    assert re.search(f"^{stamp}startup .*sock={re.escape(daemon.path)}", daemon.log, re.M)
    assert re.search(f"^{stamp}listening {re.escape(daemon.path)}$", daemon.log, re.M)
    assert "[debug]" not in daemon.log
    log = daemon.home / ".config/Claude/logs/cowork_vm_daemon.log"
    assert stat.S_IMODE(log.stat().st_mode) == 0o600


def test_22_no_secrets_in_the_log(start: Start) -> None:
    daemon = start(env={"COWORK_VM_DEBUG": "1", "OWN_SECRET": "s3cret0"})
    events = daemon.subscriber()
    events.call("addApprovedOauthToken", {"token": "s3cret1"})
    events.call("spawn", {"id": "a", "name": "s", "command": "cat", "oauthToken": "s3cret2",
                          "env": {"KEY": "s3cret3"}, "args": ["-", "s3cret4"]})  # fmt: skip
    events.call("writeStdin", {"id": "a", "data": "s3cret5"})
    events.call("kill", {"id": "a"})
    events.until_exit("a")
    with pytest.raises(Refused):
        events.call("writeStdin", {"id": "a", "data": ["s3cret6"]})
    events.call("sendGuestResponse", {"id": "x", "resultJson": "s3cret7"})
    assert "request 'writeStdin'" in daemon.log
    assert re.findall("s3cret.", daemon.log) == []
    daemon.stop()


def test_22_a_message_is_one_line(start: Start) -> None:
    daemon = start(env={"COWORK_VM_DEBUG": "1"})
    client = daemon.client()
    with pytest.raises(Refused):
        client.call("x\n2026-01-01T00:00:00.000Z [lifecycle] forged\x1b[2J")
    assert all(line[:2] == "20" and "\x1b" not in line for line in daemon.log.splitlines())
    assert not re.search(r"^\S+ \[lifecycle\] forged", daemon.log, re.M)


def test_debug_is_switched_at_run_time(daemon: Daemon) -> None:
    client = daemon.client()
    client.call("isRunning")
    assert "request 'isRunning'" not in daemon.log
    client.call("setDebugLogging", {"enabled": True})
    client.call("isRunning")
    assert daemon.log.count("request 'isRunning'") == 1
    client.call("setDebugLogging", {"enabled": False})
    client.call("isRunning")
    assert daemon.log.count("request 'isRunning'") == 1


def test_half_close_before_the_reply(daemon: Daemon) -> None:
    (daemon.home / "f").write_text("content")
    with Client(daemon.path) as client:
        client.send(request("readFile", {"processName": "x", "filePath": str(daemon.home / "f")}))
        client.socket.shutdown(socket.SHUT_WR)
        assert client.receive()["result"] == {"content": "content"}
        assert client.socket.recv(1) == b""


def test_a_client_that_vanishes(daemon: Daemon) -> None:
    for _ in range(50):
        with Client(daemon.path) as client:
            client.send(request("getSessionsDiskInfo", {}, 1) * 20)
    assert daemon.client().call("isRunning") == {"running": False}


def test_other_users_are_refused(daemon: Daemon, lack: Lack) -> None:
    if os.geteuid() != 0:
        lack("cowork: only root can connect as another user")
    # the mode would keep them out already: let it not
    os.chmod(daemon.path, 0o777)
    for directory in Path(daemon.path).parents:
        if directory.stat().st_mode & 0o001 == 0:
            directory.chmod(0o711)
    script = (
        "import socket,sys\n"
        "s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1])\n"
        "s.settimeout(20)\n"
        "try:\n s.sendall(bytes.fromhex(sys.argv[2])); data = s.recv(1)\n"
        "except (ConnectionResetError, BrokenPipeError): data = b''\n"
        "print(len(data))"
    )
    command = ["/usr/bin/env", "python3", "-c", script, daemon.path, IS_RUNNING.hex()]
    outcomes = [
        subprocess.run(command, user=user, capture_output=True, text=True, check=True).stdout
        for user in (0, 12345)
    ]
    assert outcomes == ["1\n", "0\n"]
    assert "a client of user 12345 was refused" in daemon.log


def test_requests_as_they_may_not_be(daemon: Daemon) -> None:
    client = daemon.client()
    wrong = [5, "x", [], {"id": 5}, {"id": None, "name": "s", "command": "x"}, {}]
    for params in wrong:
        with pytest.raises(Refused, match="params"):
            client.call("spawn", params)
    for empty in (None, False):
        client.send(pack(json.dumps({"method": "isRunning", "params": empty, "id": 1}).encode()))
        assert client.receive()["success"]


def test_10_frames_that_never_end(daemon: Daemon) -> None:
    """Many clients, each with most of a frame."""
    clients = []
    part = (10 * MIB).to_bytes(4, "big") + bytes(9 * MIB)
    for _ in range(20):
        client = daemon.client()
        clients.append(client)
        try:
            client.send(part)
        except (BrokenPipeError, ConnectionResetError):
            break
    assert _memory(daemon.process.pid) < 300 * MIB
    assert daemon.client().call("isRunning") == {"running": False}
    assert "bytes wait for the rest of their frames" in daemon.log
