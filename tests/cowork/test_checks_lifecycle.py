"""Acceptance checks 23 to 28: the life of the "machine", and what answers with a constant."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from cowork_client import Client, Refused
from cowork_fixtures import Daemon, Lack, Start, wait_for

CONNECTED = {"type": "networkStatus", "status": "connected"}
DISCONNECTED = {"type": "networkStatus", "status": "disconnected"}


def test_23_start_on_the_host(host: Daemon) -> None:
    client = host.subscriber()
    assert client.call("startVM", {"bundlePath": "/x", "memoryGB": 4}) == {}
    assert client.call("isGuestConnected") == {"connected": False}
    assert client.call("isRunning") == {"running": True}
    assert client.event() == CONNECTED
    assert client.call("isGuestConnected") == {"connected": True}
    assert client.call("startVM", {}) == {}
    client.call("stopVM")
    assert client.event() == DISCONNECTED


def test_24_start_with_sandboxes(daemon: Daemon) -> None:
    client = daemon.subscriber()
    assert client.call("startVM", {"bundlePath": "/x"}) == {}
    assert client.call("isGuestConnected") == {"connected": True}
    assert client.event() == CONNECTED
    assert client.call("startVM", {"bundlePath": "/x"}) == {}
    client.call("stopVM")
    assert client.event() == DISCONNECTED


def test_25_stop_right_after_start(host: Daemon) -> None:
    client = host.subscriber()
    client.call("startVM", {})
    client.call("stopVM")
    # longer than the delay: what was to come would have come
    host.sh(client, "sleep 1")
    assert client.call("isGuestConnected") == {"connected": False}
    assert CONNECTED not in client.events


def test_26_stop_idle(daemon: Daemon) -> None:
    client = daemon.subscriber()
    assert client.call("stopVM") == {}
    assert client.event() == DISCONNECTED


def test_27_configure(daemon: Daemon) -> None:
    client = daemon.client()
    known = {"memoryMB": 8192, "cpuCount": 4, "userDataName": "x", "sessionOnly": True}
    good: list[object] = [None, {}, known]
    for params in (*good, {"memoryMB": None, "cpuCount": 2.5}, {"memoryMB": 0}):
        assert client.call("configure", params) == {}
    for wrong in ({"memoryMB": "8"}, {"memoryMB": -1}, {"cpuCount": 1e300}):
        with pytest.raises(Refused, match="params"):
            client.call("configure", wrong)
    assert client.call("createVM", {"bundlePath": "/x", "diskSizeGB": 10}) == {}


def test_28_shapes(daemon: Daemon) -> None:
    client = daemon.client()
    disk = client.call("getSessionsDiskInfo", {"lowWaterBytes": 1})
    assert disk.keys() == {"totalBytes", "freeBytes", "sessions"}
    assert disk["totalBytes"] > 0
    assert disk["freeBytes"] > 0
    assert disk["sessions"] == []
    nothing = {"prunedSessions": [], "skippedSessions": [], "freedBytes": 0, "errors": {}}
    assert client.call("pruneSessionCaches", {"onlyIfFreeBytesBelow": 1}) == nothing
    assert client.call("deleteSessionDirs", {"names": ["a"]}) == {"deleted": [], "errors": {}}
    assert client.call("getNetworkDrives") == {"drives": []}
    assert client.call("sendGuestResponse", {"id": "1", "resultJson": "{}"}) == {}


def _with_home(daemon: Daemon, events: Client, script: str, name: str) -> str:
    return daemon.sh(events, script, name=name, mountSkeletonHome=True)


def test_28_what_sessions_keep(daemon: Daemon) -> None:
    events = daemon.subscriber()
    _with_home(daemon, events, "echo kept > ~/f; mkdir ~/d; chmod 0 ~/d", "a")
    assert _with_home(daemon, events, "cat ~/f", "a") == "kept\n"
    assert _with_home(daemon, events, "ls -A ~", "b") == ""
    found = events.call("getSessionsDiskInfo", {})["sessions"]
    assert [session["name"] for session in found] == ["a", "b"]
    assert found[0]["bytes"] > 0
    outside = daemon.folder("precious")
    (outside / "file").touch()
    _with_home(daemon, events, f"ln -s {outside} ~/link", "a")
    answer = events.call("deleteSessionDirs", {"names": ["a", "..", "none", "b/../a"]})
    assert answer["deleted"] == ["a"]
    assert answer["errors"].keys() == {"..", "b/../a"}
    assert (outside / "file").exists()
    assert [s["name"] for s in events.call("getSessionsDiskInfo", {})["sessions"]] == ["b"]


def test_28_a_running_session_is_not_deleted(daemon: Daemon) -> None:
    events = daemon.subscriber()
    events.call("spawn", {"id": "a", "name": "a", "command": "sleep", "args": ["1000"],
                          "mountSkeletonHome": True})  # fmt: skip
    answer = events.call("deleteSessionDirs", {"names": ["a"]})
    assert answer == {"deleted": [], "errors": {"a": "the session is running"}}
    events.call("kill", {"id": "a"})
    events.until_exit("a")
    assert events.call("deleteSessionDirs", {"names": ["a"]})["deleted"] == ["a"]


def test_28_prune(start: Start) -> None:
    daemon = start(env={"COWORK_SESSION_TMP": "1"})
    events = daemon.subscriber()
    daemon.sh(events, "echo > /tmp/new; echo > /tmp/old; touch -d '2 days ago' /tmp/old")
    assert daemon.sh(events, "cd /tmp; ls new old") == "new\nold\n"
    assert daemon.sh(events, "cd /tmp; ls new old || :", name="other") == ""
    prune = {"includeSessionTmp": True, "sessionTmpOlderThanSeconds": 3600}
    kept = events.call("pruneSessionCaches", dict(prune, onlyIfFreeBytesBelow=1))
    assert sorted(kept["skippedSessions"]) == ["other", "s1"]
    answer = events.call("pruneSessionCaches", prune)
    assert sorted(answer["prunedSessions"]) == ["other", "s1"]
    assert answer["freedBytes"] > 0
    assert daemon.sh(events, "cd /tmp; ls new old || :") == "new\n"
    assert not os.path.exists(daemon.home / "new")


def test_limits_of_configure(daemon: Daemon, lack: Lack) -> None:
    client = daemon.subscriber()
    client.call("configure", {"memoryMB": 64, "cpuCount": 1})
    client.call("spawn", {"id": "a", "name": "s", "command": "cat"})
    process = None

    def runs() -> bool:
        nonlocal process
        (process,) = client.call("getStatus")["sessions"][0]["processes"]
        return bool(process["state"] == "running")

    wait_for(runs, "it does not run")
    assert process is not None
    if "memory" not in process["limits"]:
        lack("cowork: no cgroup holds a memory limit here")
    script = f"head -c {200 << 20} /dev/zero | tail -c {200 << 20} | wc -c"  # tail holds it
    out, _, end = daemon.run(client, "sh", ["-c", script], id="b")
    assert out != f"{200 << 20}\n"
    assert end["oomKillCount"] >= 1
    # that was one command's end and not its session's
    assert client.call("isProcessRunning", {"id": "a"}) == {"running": True}
    client.call("closeStdin", {"id": "a"})
    assert "oomKillCount" not in client.until_exit("a")[2]
    client.call("configure", {})
    out, _, end = daemon.run(client, "sh", ["-c", script], id="c")
    assert (out, end["exitCode"]) == (f"{200 << 20}\n", 0)
    assert "oomKillCount" not in end


def test_limits_are_the_sessions(either: Daemon, lack: Lack) -> None:
    """Commands that fit alone, and don't together; those of another session do."""
    if not os.path.exists("/usr/bin/python3"):
        lack("cowork: there is no /usr/bin/python3 to hold memory")
    client = either.subscriber()
    client.call("configure", {"memoryMB": 64})

    def spawn(ident: str, session: str) -> None:
        script = f"x = b'x' * {40 << 20}; print('held', flush=True); input()"
        client.call("spawn", {"id": ident, "name": session, "command": "/usr/bin/python3",
                              "args": ["-c", script]})  # fmt: skip

    def next_of(*idents: str, kinds: tuple[str, ...] = ("stdout", "exit")) -> dict[str, Any]:
        while True:
            event = client.event()
            if event.get("id") in idents and event["type"] in kinds:
                return event

    spawn("a", "one")
    assert next_of("a")["type"] == "stdout"
    (process,) = client.call("getStatus")["sessions"][0]["processes"]
    if "memory" not in process["limits"]:
        lack("cowork: no cgroup holds a memory limit here")
    spawn("c", "two")
    assert next_of("c")["type"] == "stdout"
    spawn("b", "one")
    ended = next_of("a", "b", kinds=("exit",))
    assert ended["oomKillCount"] >= 1
    assert client.call("isProcessRunning", {"id": "c"}) == {"running": True}


def test_nothing_is_left_of_a_killed_services_cgroups(daemon: Daemon, lack: Lack) -> None:
    client = daemon.subscriber()
    client.call("configure", {"memoryMB": 64})
    client.call("spawn", {"id": "a", "name": "s", "command": "bash", "args": ["-c",
                "cat /proc/self/cgroup; echo; read line"]})  # fmt: skip
    event = client.event()
    (process,) = client.call("getStatus")["sessions"][0]["processes"]
    if "memory" not in process["limits"]:
        lack("cowork: no cgroup holds a memory limit here")
    assert event["type"] == "stdout"
    names = cgroup_names(process["pid"])
    assert names
    assert all(path.exists() for path in names)
    daemon.process.kill()
    daemon.process.wait()
    wait_for(lambda: not any(path.exists() for path in names), "a cgroup is left")


def cgroup_names(pid: int) -> list[Path]:
    """Directories of ours that a process is in."""
    found = []
    for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines():
        _, _, path = line.split(":", 2)
        for mount in Path("/sys/fs/cgroup"), *Path("/sys/fs/cgroup").glob("*"):
            place = mount / path.lstrip("/")
            if "nsrun-" in path and place.is_dir():
                # the session's, which its commands' lie in
                parts = place.parts
                top = next(i for i, part in enumerate(parts) if part.startswith("nsrun-"))
                found.append(Path(*parts[: top + 1]))
    return found
