"""The client's boot and a session of several steps, as any user."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import socket
import sys
from pathlib import Path

import pytest
from cowork_client import Client, Refused, one_shot, request
from cowork_fixtures import wait_for

# all that they need, ahead of the change of user
from cowork_nsrun import policy  # noqa: F401
from cowork_nsrun.cowork import host, namespaces  # noqa: F401
from cowork_nsrun.cowork.main import serve

PR_SET_DUMPABLE = 4


def boot(path: str, home: Path, pipe: Client, events: Client) -> None:
    assert one_shot(path, "isRunning") == {"success": True, "result": {"running": False}}
    for ident in (1, 2, 3):
        pipe.send(request("isRunning", ident=ident))
    assert {pipe.reply()["id"] for _ in range(3)} == {1, 2, 3}
    assert pipe.call("configure", {"userDataName": "Claude", "sessionOnly": True}) == {}
    events.subscribe()
    assert pipe.call("startVM", {"bundlePath": str(home / "bundle")}) == {}
    wait_for(lambda: bool(pipe.call("isGuestConnected")["connected"]), "no guest")
    assert pipe.call("getSessionsDiskInfo", {"lowWaterBytes": 1})["totalBytes"] > 0
    assert pipe.call("getNetworkDrives") == {"drives": []}
    sdk = home / "sdk/1.0/claude"
    sdk.parent.mkdir(parents=True)
    sdk.write_text('#!/bin/sh\necho "$CLAUDE_CODE_OAUTH_TOKEN $(pwd)"\n')
    sdk.chmod(0o755)
    assert pipe.call("installSdk", {"sdkSubpath": "sdk", "version": "1.0"}) == {}


def work(home: Path, pipe: Client, events: Client) -> None:
    project = home / "proj"
    project.mkdir()
    mounts = {
        "proj": {"path": str(project).lstrip("/"), "mode": "rw"},
        ".claude": {"path": ".claude", "mode": "rw"},
    }

    def run(
        ident: str, command: str, *args: str, domains: list[str] | None = None
    ) -> tuple[str, str, int | None]:
        params = {"id": ident, "name": "fox", "command": command, "args": args,
                  "additionalMounts": mounts, "oauthToken": "t0ken",
                  "allowedDomains": domains,
                  "env": {"CLAUDE_CONFIG_DIR": "/sessions/fox/mnt/.claude"}}  # fmt: skip
        assert pipe.call("spawn", params) == {}
        out, err, end = events.until_exit(ident)
        return out, err, end["exitCode"]

    assert run("p1", "claude") == ("t0ken /sessions/fox/mnt/proj\n", "", 0)
    assert run("p2", "bash", "-c", "echo 'print(6 * 7)' > a.py; id -u") == (
        f"{os.getuid()}\n", "", 0,
    )  # fmt: skip
    assert (project / "a.py").read_text() == "print(6 * 7)\n"
    if Path("/usr/bin/python3").exists():
        assert run("p3", "/usr/bin/python3", "a.py") == ("42\n", "", 0)
    (project / "b").write_text("from outside\n")
    assert run("p4", "bash", "-c", "cat b; touch $CLAUDE_CONFIG_DIR/c; ls -A ~")[0].startswith(
        "from outside\n"
    )
    assert (home / ".claude/c").exists()
    assert pipe.call(
        "readFile", {"processName": "fox", "filePath": "/sessions/fox/mnt/proj/b"}
    ) == {"content": "from outside\n"}
    ask = (
        "exec 3<>/dev/tcp/127.0.0.1/3128; "
        r"printf 'CONNECT denied.test:443 HTTP/1.1\r\nHost: denied.test:443\r\n\r\n' >&3; "
        "read -r version status rest <&3; echo $status"
    )
    assert run("n1", "bash", "-c", ask, domains=["example.com"]) == ("403\n", "", 0)
    # the same name, once it is allowed, is looked up and not found
    assert run("n2", "bash", "-c", ask, domains=["denied.test"])[0] not in {"403\n", ""}
    params = {"id": "p5", "name": "fox", "command": "cat", "additionalMounts": mounts}
    pipe.call("spawn", {**params, "isResume": True})
    pipe.call("writeStdin", {"id": "p5", "data": "línea\n"})
    while (event := events.event()).get("id") != "p5":
        pass
    assert event == {"type": "stdout", "id": "p5", "data": "línea\n"}
    pipe.call("kill", {"id": "p5"})
    assert events.until_exit("p5")[2]["signal"] == "SIGTERM"


def end(pipe: Client) -> None:
    pruned = pipe.call("pruneSessionCaches", {"onlyIfFreeBytesBelow": 1})
    assert pruned["errors"] == {}
    assert pipe.call("sendGuestResponse", {"id": "1"}) == {}
    assert pipe.call("deleteSessionDirs", {"names": ["fox"]})["errors"] == {}
    with pytest.raises(Refused, match=r"^Unknown method: noSuchMethod$"):
        pipe.call("noSuchMethod")
    assert pipe.call("stopVM") == {}


def _become(uid: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)
    # lost by the change of ids; an ordinary user's process has it, and needs it for its id maps
    if libc.prctl(PR_SET_DUMPABLE, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl")


def _serve(path: str) -> None:
    sys.exit(serve(["-socket", path]))


def _listens(path: str) -> bool:
    """The path is there a moment before it is listened on."""
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(path) == 0


def run(user: int | None, home: str, runtime: str) -> None:
    """In a forked process: Python itself need not be there for the user to start."""
    if user is not None:
        _become(user)
    os.environ.clear()
    os.environ.update(
        HOME=home, XDG_RUNTIME_DIR=runtime, PATH="/usr/bin:/bin", COWORK_VM_BACKEND="bwrap"
    )
    os.chdir("/")
    path = os.path.join(runtime, "claude-cowork-vm.sock")
    service = multiprocessing.get_context("fork").Process(target=_serve, args=(path,))
    service.start()
    wait_for(lambda: _listens(path), "the service does not listen")
    try:
        with Client(path) as pipe, Client(path) as events:
            boot(path, Path(home), pipe, events)
            work(Path(home), pipe, events)
            end(pipe)
    finally:
        service.terminate()
    service.join()
    assert service.exitcode == 0
    assert not os.path.exists(path)
