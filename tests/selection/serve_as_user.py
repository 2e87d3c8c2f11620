"""Start the Cowork service as another user, run one command in it, print what was seen.

``serve_as_user.py UID GID COMMAND``: JSON with the backend that the service names, that its
doctor names, and the events of the command.  As in as_user.py, root does everything once before.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "cowork"))

from cowork_client import Client

# what is imported late by others
from cowork_nsrun.cowork import doctor, host, namespaces  # noqa: F401
from cowork_nsrun.cowork.main import serve

PR_SET_DUMPABLE = 4
PATIENCE = 30.0


def _connect(path: Path) -> Client:
    end = time.monotonic() + PATIENCE
    while True:
        try:
            return Client(str(path))
        except OSError:
            if time.monotonic() > end:
                raise
            time.sleep(0.01)


def _become(uid: int, gid: int) -> None:
    os.setgroups([])
    os.setresgid(gid, gid, gid)
    os.setresuid(uid, uid, uid)
    # lost by the change of ids; an ordinary user's process has it
    ctypes.CDLL(None).prctl(PR_SET_DUMPABLE, 1, 0, 0, 0)


def _seen(place: Path, script: str) -> dict[str, Any]:
    """What one service shows."""
    os.environ |= {"HOME": str(place), "XDG_RUNTIME_DIR": str(place)}
    summary = next(
        line.text for line in doctor.lines(dict(os.environ)) if "isolation:" in line.text
    )
    path = place / "s"
    pid = os.fork()
    if not pid:
        null = os.open(os.devnull, os.O_RDWR)
        for fd in (1, 2):
            os.dup2(null, fd)
        os._exit(serve(["-socket", str(path)]))
    try:
        with _connect(path) as client:
            client.subscribe()
            backend = client.call("getStatus")["backend"]
            words = {"id": "a", "name": "s", "command": "/bin/sh", "args": ["-c", script]}
            client.call("spawn", words)
            out, err, end = client.until_exit("a")
    finally:
        os.kill(pid, signal.SIGTERM)
        os.waitpid(pid, 0)
    return {"backend": backend, "doctor": summary, "out": out, "err": err,
            "exit": end["exitCode"]}  # fmt: skip


def main() -> int:
    uid, gid, script = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    with tempfile.TemporaryDirectory(dir="/tmp") as first, tempfile.TemporaryDirectory() as second:
        _seen(Path(first), "true")
        os.chown(second, uid, gid)
        pid = os.fork()
        if not pid:
            _become(uid, gid)
            print(json.dumps(_seen(Path(second), script)), flush=True)
            os._exit(0)
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


if __name__ == "__main__":
    sys.exit(main())
