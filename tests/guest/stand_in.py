"""Stand for one command of an agent's that listens on a Unix socket: argv is its path and a plan's
words."""

from __future__ import annotations

import os
import socket
import sys

from cowork_nsrun.guest.agent import Agent, Settings
from cowork_nsrun.guest.standin import Forwarding, relay
from cowork_nsrun.plan import Plan


def connect(_port: int, _patience: float) -> socket.socket:
    stream = socket.socket(socket.AF_UNIX)
    stream.connect(sys.argv[1])
    return stream


def main() -> int:
    plan = Plan.from_argv(sys.argv[2:]).to_bytes()
    size = os.get_terminal_size(0) if os.isatty(0) else os.terminal_size((0, 0))
    settings = Settings(os.getuid(), os.getgid(), rows=size.lines, columns=size.columns)
    with (
        Forwarding() as forwarding,
        Agent(connect).start(plan, settings, terminal=os.isatty(0)) as command,
    ):
        forwarding.to(command)
        return relay(command, lambda: None)


if __name__ == "__main__":
    sys.exit(main())
