"""Run ``nsrun WORD`` as another user: ``as_user.py UID GID WORD...``.

The interpreter may lie where only root can read.  So everything is imported, and done
once without being shown, before root becomes that user.
"""

from __future__ import annotations

import contextlib
import ctypes
import io
import os
import sys

from cowork_nsrun import cli

PR_SET_DUMPABLE = 4


def main() -> int:
    uid, gid, *words = sys.argv[1:]
    with contextlib.redirect_stdout(io.StringIO()):
        cli.main(words)
    os.setgroups([])
    os.setresgid(int(gid), int(gid), int(gid))
    os.setresuid(int(uid), int(uid), int(uid))
    # lost by the change of ids; an ordinary user's process has it
    ctypes.CDLL(None).prctl(PR_SET_DUMPABLE, 1, 0, 0, 0)
    return cli.main(words)


if __name__ == "__main__":
    sys.exit(main())
