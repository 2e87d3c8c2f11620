"""Run one command in the bed: .venv/bin/python -m tests.kvmbed [OPTION...] -- COMMAND..."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from .machine import STILL_S, Bed, Job, end_on_signals, reported


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="tests/kvmbed/run", description=__doc__)
    parser.add_argument("--user", type=int, default=0, metavar="UID", help="run as this user")
    parser.add_argument(
        *("--group", "--groups"), action="append", default=[], metavar="NAME", help="and in it"
    )
    parser.add_argument(
        "--delegated", action="store_true", help="in a cgroup subtree that the user owns"
    )
    parser.add_argument(
        "--sysctl", action="append", default=[], metavar="NAME=VALUE", help="set before the start"
    )
    parser.add_argument("--env", action="append", default=[], metavar="NAME=VALUE")
    parser.add_argument("--timeout", type=float, default=600, metavar="SECONDS")
    parser.add_argument(
        "--still",
        type=float,
        default=STILL_S,
        metavar="SECONDS",
        help="stop the machine when nothing was heard of it for so long (%(default)s)",
    )
    parser.add_argument("--memory", type=int, default=2048, metavar="MIB")
    parser.add_argument(
        "--results", type=Path, metavar="DIRECTORY", help="gets what is written to $RESULTS"
    )
    parser.add_argument("command", nargs="+")
    return parser


def main() -> int:
    parser = arguments()
    options = parser.parse_args()
    for word in (*options.sysctl, *options.env):
        if "=" not in word:
            parser.error(f"{word!r} is not NAME=VALUE")
    job = Job(
        command=tuple(options.command),
        user=options.user,
        groups=tuple(options.group),
        delegated=options.delegated,
        sysctls=tuple(options.sysctl),
        environment=dict(word.split("=", 1) for word in options.env),
        timeout_s=options.timeout,
        still_s=options.still,
        memory_mib=options.memory,
        results=options.results,
    )
    end_on_signals()
    return reported(lambda: Bed().run(job, sys.stdout.buffer))


if __name__ == "__main__":
    sys.exit(main())
