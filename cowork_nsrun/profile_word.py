"""``nsrun profile``: a look at profiles, and at the built-in seccomp profiles."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import get_args

from cowork_nsrun import profile, seccomp
from cowork_nsrun.errors import NsrunError
from cowork_nsrun.plan import Plan
from cowork_nsrun.spec import SeccompProfile


def _write_utf8(text: str) -> None:
    """As a profile has to be, whatever the locale's encoding is."""
    sys.stdout.buffer.write(text.encode())


def _profile_schema(options: argparse.Namespace) -> int:
    _write_utf8(profile.schema_text())
    return 0


def _profile_check(options: argparse.Namespace) -> int:
    wrong = 0
    for file in options.file:
        try:
            # a plan knows the capabilities' names, which differ between systems
            Plan.from_spec(profile.load(file), ["true"])
        except NsrunError as error:
            wrong += 1
            named = error.text if error.path == file else f"{file}: {error.text}"
            sys.stderr.write(f"nsrun: {named}\n")
    return 1 if wrong else 0


def _profile_show(options: argparse.Namespace) -> int:
    _write_utf8(profile.dumps(profile.load(options.file), options.format))
    return 0


def _profile_seccomp(options: argparse.Namespace) -> int:
    sys.stdout.write(seccomp.describe(options.name) if options.name else seccomp.summary())
    return 0


def main(words: Sequence[str]) -> int:
    """Carry out ``nsrun profile WORDS``; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="nsrun profile", description="Look at profiles, the files of 'nsrun run --profile'."
    )
    parts = parser.add_subparsers(required=True, metavar="schema|check|show|seccomp")
    part = parts.add_parser("schema", help="print the JSON schema, for editors")
    part.set_defaults(do=_profile_schema)
    part = parts.add_parser("check", help="say what is wrong; exit status 1 if something is")
    part.add_argument("file", nargs="+", metavar="FILE")
    part.set_defaults(do=_profile_check)
    part = parts.add_parser("show", help="print the sandbox that a profile makes, in full")
    part.add_argument("file", metavar="FILE")
    part.add_argument("--format", choices=["toml", "json"], default="toml")
    part.set_defaults(do=_profile_show)
    part = parts.add_parser("seccomp", help="print what a built-in seccomp profile refuses")
    part.add_argument("name", nargs="?", choices=get_args(SeccompProfile), metavar="NAME")
    part.set_defaults(do=_profile_seccomp)
    options = parser.parse_args(words)
    status: int = options.do(options)
    return status
