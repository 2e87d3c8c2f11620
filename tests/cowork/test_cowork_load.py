"""The service under load: many sessions, large outputs, slow readers, clients that die."""

from __future__ import annotations

import os
import re
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from cowork_client import Client, request
from cowork_fixtures import Daemon, wait_for

SESSIONS = 8
SPAWNS = int(os.environ.get("COWORK_LOAD_SPAWNS", "96"))  # 1,000 and more by hand
LARGE = 100_000
MIB = 1 << 20


def _fds(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


def _rss(pid: int) -> int:
    found = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert found is not None
    return int(found[1]) * 1024


def _session(daemon: Daemon, number: int, count: int) -> None:
    """One session's client: every output is checked to the byte."""
    name = f"session-{number}"
    mounts = {"proj": {"path": f"proj-{number}", "mode": "rw"}}
    with Client(daemon.path) as events, Client(daemon.path) as pipe:
        events.subscribe()
        for i in range(count):
            ident = f"{name}-{i}"
            script = f"echo {ident} >> log; cat; head -c {LARGE} /dev/zero | tr '\\0' {number}"
            params = {"id": ident, "name": name, "command": "/bin/sh", "args": ["-c", script],
                      "additionalMounts": mounts}  # fmt: skip
            assert pipe.call("spawn", params) == {}
            pipe.call("writeStdin", {"id": ident, "data": f"<{ident}>"})
            pipe.call("closeStdin", {"id": ident})
            out, err, end = events.until_exit(ident)
            assert out == f"<{ident}>" + str(number) * LARGE
            assert (err, end["exitCode"]) == ("", 0)
    log = (daemon.home / f"proj-{number}/log").read_text().split()
    assert log[-count:] == [f"{name}-{i}" for i in range(count)]


def _dying_clients(daemon: Daemon, over: threading.Event) -> None:
    """They start something, subscribe, and are gone, in the middle of a frame."""
    number = 0
    while not over.wait(0.02):
        number += 1
        with Client(daemon.path) as client:
            client.send(request("subscribeEvents", {}, 1))
            client.send(request("spawn", {"id": f"d{number}", "name": "dying", "command": "true"}))
            client.send(request("isRunning", ident=2)[: number % 20])


def _slow_reader(daemon: Daemon, over: threading.Event) -> None:
    with Client(daemon.path) as client:
        client.subscribe()
        while not over.wait(0.05):
            client.receive()


def _load(daemon: Daemon, count: int) -> None:
    over = threading.Event()
    with ThreadPoolExecutor(SESSIONS + 2) as threads:
        others = [threads.submit(work, daemon, over) for work in (_dying_clients, _slow_reader)]
        try:
            sessions = [threads.submit(_session, daemon, n, count) for n in range(SESSIONS)]
            for session in sessions:
                session.result()
        finally:
            over.set()
        others[0].result()


def test_load(daemon: Daemon) -> None:
    pid = daemon.process.pid
    control = daemon.client()

    def idle() -> bool:
        status = control.call("getStatus")
        return status["subscribers"] == 0 and all(not s["processes"] for s in status["sessions"])

    _load(daemon, 2)
    wait_for(idle, "something is left")
    fds, memory = _fds(pid), _rss(pid)
    _load(daemon, SPAWNS // SESSIONS)
    wait_for(idle, "something is left")
    wait_for(lambda: _fds(pid) <= fds + 2, "descriptors are left")
    grown = (_rss(pid) - memory) / MIB
    print(f"{SPAWNS} commands: {grown:.1f} MiB more")
    assert grown < 40
    metrics = control.call("getStatus")["metrics"]
    assert metrics["spawns"] >= SPAWNS
    assert metrics["notStarted"] == 0
    children = Path(f"/proc/{pid}/task/{pid}/children")
    # what the kernel still takes down is waited for a moment later
    wait_for(lambda: not children.read_text().split(), "a process is left")


def test_memory_and_descriptors_stay_flat(daemon: Daemon) -> None:
    """Compressed traffic: what leaks a little at a time, shows."""
    pid = daemon.process.pid
    events = daemon.subscriber()

    def many(count: int) -> None:
        for number in range(count):
            with Client(daemon.path) as client:
                client.call("isRunning")
                client.call("mountPath", {"processId": f"n{number % 7}", "subpath": "x",
                                          "mountName": "m"})  # fmt: skip
            for method in ("getSessionsDiskInfo", "getStatus", "configure"):
                events.call(method, {})
        for number in range(count // 10):
            daemon.run(events, "/bin/true", name=f"n{number % 7}")

    many(200)
    fds, memory = _fds(pid), _rss(pid)
    many(600)
    wait_for(lambda: _fds(pid) <= fds + 2, "descriptors are left")
    assert _rss(pid) - memory < 8 * MIB
