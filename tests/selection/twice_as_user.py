"""Run a command twice from one program of another user: ``twice_as_user.py UID GID BACKEND``.

Prints a list of what came of it each time: ``{"backend", "seen"}`` or ``{"error"}``.
"""

from __future__ import annotations

import ctypes
import json
import os
import sys

from cowork_nsrun import NsrunError, Sandbox, run

PR_SET_DUMPABLE = 4


def once(backend: str) -> dict[str, str]:
    try:
        # no user namespace, where a bwrap that is root's can do without
        spec = Sandbox.minimal().replace(backend=backend, unshare_try=frozenset())
        result = run(["cat", "/proc/1/comm"], spec, text=True)
    except NsrunError as error:
        return {"error": error.text}
    return {"backend": result.backend, "seen": result.stdout.strip()}


def main() -> None:
    uid, gid = map(int, sys.argv[1:3])
    # the interpreter may lie where only root can read: all of it is imported by then
    once("auto")
    os.setgroups([])
    os.setresgid(gid, gid, gid)
    os.setresuid(uid, uid, uid)
    # lost by the change of ids; an ordinary user's process has it
    ctypes.CDLL(None).prctl(PR_SET_DUMPABLE, 1, 0, 0, 0)
    print(json.dumps([once(sys.argv[3]) for _ in range(2)]))


if __name__ == "__main__":
    main()
