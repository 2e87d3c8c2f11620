"""``nsrun --backend kvm``: its plan, in a machine of its own.

The nsrun program starts this (``python3 -I -m cowork_nsrun.guest.start FD NAME``), with the plan
in an open file, and the name that messages begin with.  Every module that is imported here delays
a command by as much.
"""

from __future__ import annotations

import gc
import sys

# nothing that the imports make is garbage: looking for some takes a tenth of their time
gc.disable()

from cowork_nsrun.cli import Voice, reported  # noqa: E402
from cowork_nsrun.guest.exec import Request, execute, read_plan  # noqa: E402

gc.freeze()
gc.enable()


def main(fd: int, name: str) -> int:
    """Run the plan; returns the exit status."""
    request = Request(read_plan(fd), name=name)
    return reported(lambda: execute(request), request.voice)


if __name__ == "__main__":
    # whether levels are wanted is not known before the plan is
    sys.exit(reported(lambda: main(int(sys.argv[1]), sys.argv[2]), Voice(sys.argv[2])))
