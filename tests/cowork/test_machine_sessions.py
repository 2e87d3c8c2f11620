"""Sessions in microVMs, of which each has its own."""

from __future__ import annotations

import os
import socket
import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest
from cowork_client import Client, request
from cowork_fixtures import SERVE, Daemon, Lack, Start

from cowork_nsrun.selection import select

BOOT_ID = "cat /proc/sys/kernel/random/boot_id"
PROJECT = {"proj": {"path": "proj", "mode": "rw"}}


@pytest.fixture
def machines(start: Start, lack: Lack) -> Daemon:
    found = select("kvm")
    if found.backend is None:
        lack(f"cowork: no microVM: {found.reason}")
    daemon = start("kvm")
    daemon.folder("proj")
    return daemon


def monitors(daemon: Daemon) -> list[int]:
    """The pids of the service's machines."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            words = (entry / "cmdline").read_bytes().split(b"\0")
            parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
        if words[0].endswith(b"nsrun-vmm") and parent == daemon.process.pid:
            found.append(int(entry.name))
    return found


def test_a_session_in_its_own_machine(machines: Daemon) -> None:
    events = machines.subscriber()
    assert events.call("getStatus")["backend"] == "kvm"
    host = Path("/proc/sys/kernel/random/boot_id").read_text()
    first = machines.sh(events, BOOT_ID, name="one")
    assert first != host
    assert machines.sh(events, BOOT_ID, name="one") == first
    assert machines.sh(events, BOOT_ID, name="two") not in {first, host}
    assert len(monitors(machines)) == 2
    machines_are_ended_with_the_session(machines, events)


def machines_are_ended_with_the_session(machines: Daemon, events: Client) -> None:
    events.call("stopVM", {})
    assert monitors(machines) == []
    events.call("startVM", {})
    assert machines.sh(events, "echo again", name="one") == "again\n"


def test_files_streams_and_exits(machines: Daemon) -> None:
    """Several shells and a Python program on a project folder, seen from both sides."""
    events = machines.subscriber()
    project = machines.home / "proj"
    (project / "in").write_text("from outside")
    both = {"name": "s", "additionalMounts": PROJECT}
    script = "cat in; echo made > out; pwd; id -u"
    out = machines.sh(events, script, **both)
    assert out == f"from outside/sessions/s/mnt/proj\n{os.getuid()}\n"
    assert (project / "out").read_text() == "made\n"
    out, err, end = machines.run(events, "/bin/sh", ["-c", "echo o; echo e >&2; exit 7"], **both)
    assert (out, err, end["exitCode"]) == ("o\n", "e\n", 7)
    program = "import pathlib; pathlib.Path('py').write_text(str(6 * 7))"
    out, err, end = machines.run(events, "python3", ["-c", program], **both)
    assert (end["exitCode"], (project / "py").read_text()) == (0, "42"), err
    # a folder that comes with a later command
    machines.folder("more")
    (machines.home / "more" / "f").write_text("later")
    mounts = {**PROJECT, "more": {"path": "more", "mode": "ro"}}
    script = "cat /sessions/s/mnt/more/f; touch /sessions/s/mnt/more/g || echo refused"
    out, _, _ = machines.run(events, "/bin/sh", ["-c", script], name="s", additionalMounts=mounts)
    assert out == "laterrefused\n"
    # and is not there for others
    assert "more" not in machines.sh(events, "ls /sessions/s/mnt", **both)
    assert len(monitors(machines)) == 1


def test_stdin_and_kill(machines: Daemon) -> None:
    events = machines.subscriber()
    events.call("spawn", {"id": "c", "name": "s", "command": "/bin/cat", "args": []})
    events.call("writeStdin", {"id": "c", "data": "through\n"})
    assert events.event()["data"] == "through\n"
    events.call("closeStdin", {"id": "c"})
    assert events.until_exit("c")[2]["exitCode"] == 0
    events.call("spawn", {"id": "k", "name": "s", "command": "/bin/sh",
                          "args": ["-c", "echo up; sleep 1000"]})  # fmt: skip
    assert events.event()["data"] == "up\n"
    events.call("kill", {"id": "k", "signal": "SIGTERM"})
    end = events.until_exit("k")[2]
    assert (end["exitCode"], end["signal"]) == (None, "SIGTERM")
    assert machines.sh(events, "pgrep sleep || echo none", name="s") == "none\n"


def test_domains(machines: Daemon, start: Start) -> None:
    """A list is kept, by a proxy outside: what is on it is reached, nothing else."""
    events = machines.subscriber()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        threading.Thread(target=answer, args=(listener,), daemon=True).start()
        script = f"curl -sS --noproxy none -m 20 http://127.0.0.1:{port}/ 2>&1; echo $?"
        allowed = {"name": "s", "allowedDomains": [f"127.0.0.1:{port}"]}
        out = machines.sh(events, script, **allowed)
        direct = machines.sh(events, f"curl --noproxy '*' -s http://127.0.0.1:{port}/ || echo no",
                             **allowed)  # fmt: skip
        refused = machines.sh(events, script, name="s", allowedDomains=["example.org"])
    assert out == "hello0\n"
    assert direct == "no\n"
    assert "hello" not in refused


def answer(listener: socket.socket) -> None:
    with suppress(OSError):
        while True:
            client, _ = listener.accept()
            with client:
                client.recv(4096)
                client.sendall(b"HTTP/1.0 200 OK\r\nContent-Length: 5\r\n\r\nhello")


def test_05_a_stop_does_not_block(machines: Daemon) -> None:
    events = machines.subscriber()
    events.call("startVM", {})
    events.call("spawn", {"id": "a", "name": "s", "command": "/bin/sleep", "args": ["1000"]})
    other = machines.client()
    other.send(request("stopVM", {}, "slow") + request("isRunning", ident="quick"))
    assert [other.receive()["id"] for _ in range(2)] == ["quick", "slow"]
    assert events.until_exit("a")[2]["signal"] == "SIGKILL"
    assert monitors(machines) == []


def test_a_machine_that_dies_is_told_and_replaced(machines: Daemon) -> None:
    events = machines.subscriber()
    events.call("spawn", {"id": "a", "name": "s", "command": "/bin/sh",
                          "args": ["-c", "echo up; sleep 1000"]})  # fmt: skip
    assert events.event()["data"] == "up\n"
    (pid,) = monitors(machines)
    os.kill(pid, 9)
    event = events.event()
    assert event["type"] == "error", event
    assert events.until_exit("a")[2]["exitCode"] == 127
    assert machines.sh(events, "echo new", name="s") == "new\n"


def test_nothing_is_left_of_a_killed_service(machines: Daemon) -> None:
    events = machines.subscriber()
    assert machines.sh(events, "echo there", name="s") == "there\n"
    pids = monitors(machines)
    assert pids
    machines.process.kill()
    machines.process.wait()
    for pid in pids:
        while Path(f"/proc/{pid}").exists():
            time.sleep(0.01)


def test_59_kvm_comes_before_the_host(
    machines: Daemon, start: Start, without_namespaces: tuple[str, ...], lack: Lack
) -> None:
    machines.stop()
    daemon = start(None, command=(*without_namespaces, *SERVE))
    assert daemon.client().call("getStatus")["backend"] == "kvm"
