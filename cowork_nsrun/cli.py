"""``nsrun WORD``: what of the command line is done in Python.

The nsrun program starts this for its words (``python3 -I -m cowork_nsrun.cli``);
options of the bwrap kind never come here.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence

import cowork_nsrun
from cowork_nsrun import doctor
from cowork_nsrun.errors import NsrunError, TimeoutExpired
from cowork_nsrun.process import run
from cowork_nsrun.spec import Sandbox

FAILED = 1
USAGE = 2
TIMED_OUT = 124  # as timeout(1) says it


def _pair(word: str) -> tuple[str, str]:
    """``SRC`` or ``SRC:DEST``."""
    source, colon, dest = word.partition(":")
    return source, dest if colon else source


def _variable(word: str) -> tuple[str, str]:
    name, equals, value = word.partition("=")
    if not name or not equals:
        raise argparse.ArgumentTypeError(f"NAME=VALUE is wanted, not {word!r}")
    return name, value


def _run_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="nsrun run",
        usage="%(prog)s [OPTIONS...] -- COMMAND [ARGS...]",
        description="Run a command that sees the system's programs, read-only, the folders "
        "named here, and nothing else: no network, no other processes, no home.",
        epilog="The exit status is the command's, or 128+n if signal n ended it.  The bwrap "
        "options are for 'nsrun --option ...': see nsrun(1).",
    )
    add = parser.add_argument
    add("--workspace", metavar="DIR", help="show DIR, writable, and start in it")
    add("--bind", metavar="SRC[:DEST]", action="append", default=[], type=_pair,
        help="show the host's SRC, writable; may be repeated")  # fmt: skip
    add("--ro-bind", metavar="SRC[:DEST]", action="append", default=[], type=_pair,
        help="show the host's SRC, read-only; may be repeated")  # fmt: skip
    add("--tmpfs", metavar="DEST", action="append", default=[], help="an empty place in memory")
    add("--network", choices=["none", "host"], default="none", help="default: %(default)s")
    add("--env", metavar="NAME=VALUE", action="append", default=[], type=_variable,
        help="set a variable; of the caller's only LANG and TERM are kept")  # fmt: skip
    add("--chdir", metavar="DIR", help="start in DIR")
    add("--timeout", metavar="SECONDS", type=float, help="kill everything after that time")
    add("--quiet", action="store_true", help="don't say what ran the command")
    add("command", nargs=argparse.REMAINDER, metavar="COMMAND", help=argparse.SUPPRESS)
    return parser


def _sandbox(options: argparse.Namespace) -> Sandbox:
    spec = Sandbox.workspace(options.workspace) if options.workspace else Sandbox.minimal()
    for source, dest in options.ro_bind:
        spec = spec.bind(source, os.path.abspath(dest), read_only=True)
    for source, dest in options.bind:
        spec = spec.bind(source, os.path.abspath(dest))
    for dest in options.tmpfs:
        spec = spec.tmpfs(dest)
    return spec.network(options.network).env(dict(options.env))


def _run(words: Sequence[str]) -> int:
    parser = _run_parser()
    options = parser.parse_args(words)
    command = options.command[1:] if options.command[:1] == ["--"] else options.command
    if not command:
        parser.error("a command is missing")
    spec = _sandbox(options)
    result = run(command, spec, capture=False, cwd=options.chdir, timeout=options.timeout)
    if not options.quiet:
        spawn = result.timings.spawn_ns
        took = "" if spawn is None else f"; spawned in {spawn / 1e6:.2f} ms"
        sys.stderr.write(f"nsrun: run by {result.backend}{took}\n")
    return result.returncode


def _version(words: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="nsrun version", description="Show the versions.")
    parser.parse_args(words)
    python = ".".join(map(str, sys.version_info[:3]))
    sys.stdout.write(f"nsrun {cowork_nsrun.__version__} (Python {python})\n")
    return 0


WORDS: dict[str, Callable[[Sequence[str]], int]] = {
    "run": _run,
    "version": _version,
    "doctor": doctor.main,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Carry out one word; returns the exit status."""
    word, *rest = list(sys.argv[1:] if argv is None else argv) or [""]
    if word not in WORDS:
        known = ", ".join(WORDS)
        sys.stderr.write(f"nsrun: {word or 'no word'}: unknown; there are: {known}\n")
        return USAGE
    try:
        return WORDS[word](rest)
    except TimeoutExpired as error:
        sys.stderr.write(f"nsrun: {error}\n")
        return TIMED_OUT
    except NsrunError as error:
        sys.stderr.write(f"nsrun: {error}\n")
        return FAILED
    except KeyboardInterrupt:
        return 128 + 2


if __name__ == "__main__":
    sys.exit(main())
