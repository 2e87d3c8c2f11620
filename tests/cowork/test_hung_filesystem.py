"""A file system that does not answer: one command waits for it, nothing else does."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from cowork_client import request
from cowork_fixtures import Daemon, Lack, wait_for

MNT_DETACH = 2


@pytest.fixture
def hung(tmp_path: Path, lack: Lack) -> Iterator[Path]:
    """A FUSE mount whose server takes no request."""
    if os.geteuid() != 0 or not os.path.exists("/dev/fuse"):
        lack("cowork: no FUSE mount can be made, to stand for a dead file system")
    place = tmp_path / "disk"
    place.mkdir()
    libc = ctypes.CDLL(None, use_errno=True)
    fd = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    options = f"fd={fd},rootmode=40000,user_id=0,group_id=0".encode()
    target = os.fsencode(place)
    if libc.mount(b"test", target, b"fuse", 0, options):
        os.close(fd)
        lack(f"cowork: no FUSE mount: {os.strerror(ctypes.get_errno())}")
    try:
        yield place
    finally:
        libc.umount2(target, MNT_DETACH)
        os.close(fd)


def test_only_what_uses_it_waits(daemon: Daemon, hung: Path) -> None:
    events = daemon.subscriber()
    mounts = {"disk": {"path": f"{hung}/project", "mode": "rw"}}
    for number in range(20):
        params = {"id": f"h{number}", "name": "hung", "command": "true", "additionalMounts": mounts}
        events.send(request("spawn", params, f"hung-{number}"))
    mount = {"processId": "hung", "subpath": f"{hung}/x", "mountName": "x"}
    events.send(request("mountPath", mount, "hung-m"))
    events.send(request("installSdk", {"sdkSubpath": f"{hung}/sdk", "version": "1"}, "hung-s"))
    events.send(request("readFile", {"filePath": f"{daemon.home}/none"}, "read"))
    assert events.reply()["id"] == "read"
    assert daemon.run(events, "/bin/echo", ["works"], name="other")[0] == "works\n"
    status = events.call("getStatus")
    (session,) = (s for s in status["sessions"] if s["name"] == "hung")
    assert len(session["processes"]) == 20
    # and it ends, though they are still waiting
    daemon.process.terminate()
    assert daemon.process.wait() == 0
    assert not os.path.exists(daemon.path)
    wait_for(lambda: "exit code=0" in daemon.log, "it does not say so")
    assert "does not answer" in daemon.log
