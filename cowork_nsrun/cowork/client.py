"""One request to a running service, for ``nsrun sessions``."""

from __future__ import annotations

import argparse
import json
import os
import socket
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from cowork_nsrun.cowork.endpoint import default_path
from cowork_nsrun.cowork.frames import FrameReader, frame
from cowork_nsrun.errors import NsrunError

PATIENCE = 10.0  # seconds
CHUNK = 65536


def call(path: str, method: str) -> dict[str, Any]:
    """The result of a request without params.

    Raises:
        NsrunError: there is no service, or it says no.
    """
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(PATIENCE)
            connection.connect(path)
            connection.sendall(frame(json.dumps({"method": method}).encode()))
            reply = json.loads(_body(connection))
    except (OSError, ValueError) as error:
        raise NsrunError(f"{path}: {error}; is the service running?", path=path) from None
    if not isinstance(reply, dict) or not reply.get("success"):
        raise NsrunError(f"{path}: {reply}", path=path)
    result: dict[str, Any] = reply["result"]
    return result


def _body(connection: socket.socket) -> bytes:
    reader = FrameReader()
    while data := connection.recv(CHUNK):
        for body in reader.feed(data):
            return body
    raise OSError(0, "closed without an answer")


def sessions(words: Sequence[str]) -> int:
    """Carry out ``nsrun sessions WORDS``; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="nsrun sessions", description="Show what a running 'nsrun serve' runs.",
        allow_abbrev=False,
    )  # fmt: skip
    parser.add_argument("-socket", "--socket", metavar="PATH", help="where it listens")
    parser.add_argument("--json", action="store_true", help="print all of it, metrics too")
    options = parser.parse_args(words)
    path = options.socket or usual_path(os.environ)
    found = call(path, "getStatus")
    if options.json:
        sys.stdout.write(json.dumps(found, indent=2) + "\n")
        return 0
    sys.stdout.write(f"backend {found['backend']}, {len(found['sessions'])} sessions\n")
    for session in found["sessions"]:
        sys.stdout.write(f"{_plain(session['name'])}\n")
        for process in session["processes"]:
            sys.stdout.write(
                f"  {_plain(process['id'])}  {_plain(process['command'])}  {process['state']}  "
                f"pid {process['pid']}  {process['seconds']:.0f} s\n"
            )
    return 0


def usual_path(environ: Mapping[str, str]) -> str:
    """The app's own socket if it is there, else the service's default."""
    runtime = environ.get("XDG_RUNTIME_DIR")
    app = os.path.join(runtime, "claude-cowork-vm.sock") if runtime else ""
    return app if app and os.path.exists(app) else str(default_path(environ))


def _plain(text: str) -> str:
    """Names are the client's: nothing in them may move a terminal's cursor."""
    return "".join(char if char.isprintable() else "?" for char in text)
