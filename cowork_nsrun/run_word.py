"""``nsrun run``: a command in a sandbox that its options, or a profile, describe."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, get_args

from cowork_nsrun import profile
from cowork_nsrun.errors import SpecError, TimeoutExpired
from cowork_nsrun.handle import Ending
from cowork_nsrun.process import Result, popen, run
from cowork_nsrun.relay import relay, window_size
from cowork_nsrun.spec import LIMITS, Sandbox, SeccompProfile


def _pair(word: str) -> tuple[str, str]:
    """``SRC`` or ``SRC:DEST``."""
    source, colon, dest = word.partition(":")
    return source, dest if colon else source


def _variable(word: str) -> tuple[str, str]:
    name, equals, value = word.partition("=")
    if not name or not equals:
        raise argparse.ArgumentTypeError(f"NAME=VALUE is wanted, not {word!r}")
    return name, value


# "nofile" and "open_files" are the same
_RLIMITS = {
    name: field
    for field, limit in LIMITS.items()
    if limit.rlimit
    for name in (field, limit.rlimit.removeprefix("RLIMIT_").lower())
}


def _rlimit(word: str) -> tuple[str, str]:
    """``NAME=VALUE`` as a field of Limits and what it is to be."""
    name, value = _variable(word)
    plain = name.lower().replace("-", "_").removeprefix("rlimit_")
    if plain not in _RLIMITS:
        known = ", ".join(sorted(_RLIMITS))
        raise argparse.ArgumentTypeError(f"{name!r} is unknown; there are: {known}")
    return _RLIMITS[plain], value


def _run_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="nsrun run",
        usage="%(prog)s [OPTIONS...] -- COMMAND [ARGS...]",
        description="Run a command that sees the system's programs, read-only, the folders "
        "named here, and nothing else: no network, no other processes, no home.  With a "
        "profile, that is what the sandbox is, and the other options change it.",
        epilog="The exit status is the command's, or 128+n if signal n ended it.  The bwrap "
        "options are for 'nsrun --option ...': see nsrun(1).",
    )
    add = parser.add_argument
    add("--profile", metavar="FILE", help="begin with that .toml or .json file's sandbox")
    add("--workspace", metavar="DIR", help="show DIR, writable, and start in it")
    add("--bind", metavar="SRC[:DEST]", action="append", default=[], type=_pair,
        help="show the host's SRC, writable; may be repeated")  # fmt: skip
    add("--ro-bind", metavar="SRC[:DEST]", action="append", default=[], type=_pair,
        help="show the host's SRC, read-only; may be repeated")  # fmt: skip
    add("--tmpfs", metavar="DEST", action="append", default=[], help="an empty place in memory")
    add("--network", choices=["none", "host", "veth"], help="default: none, or the profile's")
    add(
        "--seccomp-profile",
        metavar="NAME",
        choices=get_args(SeccompProfile),
        help="%(choices)s; default: default, or the profile's; see 'nsrun profile seccomp'",
    )
    add("--allow-host", metavar="RULE", action="append", default=[],
        help="let RULE be reached, through a proxy: pypi.org:443, *.example.com, 192.0.2.0/24; "
        "may be repeated")  # fmt: skip
    add("--deny-host", metavar="RULE", action="append", default=[],
        help="not RULE, whatever is allowed; may be repeated")  # fmt: skip
    add("--env", metavar="NAME=VALUE", action="append", default=[], type=_variable,
        help="set a variable; without a profile, LANG and TERM alone are the caller's")  # fmt: skip
    add("--chdir", metavar="DIR", help="start in DIR")
    add("--timeout", metavar="SECONDS", type=float, help="kill everything after that time")
    add("--memory", metavar="SIZE", help="memory of all processes together, such as 512M")
    add("--pids", metavar="N", type=int, help="processes and threads at one time")
    add("--cpu", metavar="N", type=float, help="processors' worth of time, such as 0.5")
    add("--rlimit", metavar="NAME=VALUE", action="append", default=[], type=_rlimit,
        help="a resource limit of each process, such as nofile=64, by getrlimit(2)'s name "
        "or that of Limits; may be repeated")  # fmt: skip
    add("--best-effort", action="store_true", help="leave out limits that can't be had here")
    add("--pty", action="store_true", help="give the command a terminal, for shells and editors")
    add("--protect", action="store_true",
        help="what is obeyed outside (git hooks, shell start-up files, settings of editors and "
        "agents) can't be written where the command starts")  # fmt: skip
    add("--deny-read", metavar="PATH", action="append", default=[],
        help="PATH inside, or a pattern, can't be read; may be repeated")  # fmt: skip
    add("--deny-write", metavar="PATH", action="append", default=[],
        help="PATH inside, or a pattern, can't be written or made; may be repeated")  # fmt: skip
    add("--landlock", action="store_true", help="put Landlock behind the mounts")
    add("--quiet", action="store_true", help="don't say what ran the command")
    add("command", nargs=argparse.REMAINDER, metavar="COMMAND", help=argparse.SUPPRESS)
    return parser


def _limits(options: argparse.Namespace) -> dict[str, int | float | str]:
    """The limits that options ask for, by their fields in Limits."""
    given = {name: getattr(options, name) for name in ("memory", "pids", "cpu")}
    given.update(options.rlimit)
    for name, value in given.items():
        # sizes stay as they are written: Limits reads them
        if isinstance(value, str) and LIMITS[name].unit != "bytes":
            try:
                given[name] = int(value)
            except ValueError:
                raise SpecError(f"Limits.{name}", f"a number is wanted, not {value!r}") from None
    given["best_effort"] = options.best_effort or None
    return {name: value for name, value in given.items() if value is not None}


def _sandbox(options: argparse.Namespace) -> Sandbox:
    """The profile's sandbox or the minimal one, with what the options change."""
    spec = profile.load(options.profile) if options.profile is not None else Sandbox.minimal()
    if options.workspace is not None:
        spec = spec.work_in(options.workspace)
    for source, dest in options.ro_bind:
        spec = spec.bind(source, os.path.abspath(dest), read_only=True)
    for source, dest in options.bind:
        spec = spec.bind(source, os.path.abspath(dest))
    for dest in options.tmpfs:
        spec = spec.tmpfs(dest)
    if options.network:
        spec = spec.network(options.network)
    if options.seccomp_profile:
        spec = spec.harden(options.seccomp_profile)
    if options.allow_host or options.deny_host:
        if options.network in {"host", "veth"}:
            raise SpecError("--allow-host", f"--network {options.network} was asked for as well")
        spec = spec.allow_hosts(*options.allow_host, deny=options.deny_host)
    if options.chdir is not None:
        spec = spec.replace(cwd=options.chdir)
    if options.timeout is not None:
        spec = spec.replace(timeout=options.timeout)
    if options.protect:
        spec = spec.protect()
    spec = spec.replace(
        deny_read=(*spec.deny_read, *options.deny_read),
        deny_write=(*spec.deny_write, *options.deny_write),
        landlock=spec.landlock or options.landlock,
    )
    limits: Any = _limits(options)
    return spec.env(dict(options.env)).limit(**limits)


@dataclass(frozen=True, slots=True)
class RunRequest:
    """What ``nsrun run WORDS`` asks for."""

    spec: Sandbox
    command: list[str]
    quiet: bool
    pty: bool


def parse_run(words: Sequence[str]) -> RunRequest:
    """Read ``nsrun run WORDS``.

    Raises:
        SystemExit: a word is wrong; said on standard error.
        SpecError: a value that no sandbox can have.
    """
    parser = _run_parser()
    options = parser.parse_args(words)
    command = options.command[1:] if options.command[:1] == ["--"] else options.command
    if not command:
        parser.error("a command is missing")
    return RunRequest(_sandbox(options), command, options.quiet, options.pty)


def main(words: Sequence[str]) -> int:
    """Carry out ``nsrun run WORDS``; returns the exit status."""
    request = parse_run(words)
    result = _run_to_end(request)
    if result.ending in _SAID:
        sys.stderr.write(f"nsrun: the command was {result.ending}\n")
    if not request.quiet:
        sys.stderr.write(f"nsrun: {_how(result)}\n")
    return result.returncode


_SAID = {Ending.OUT_OF_MEMORY, Ending.OUT_OF_PIDS}


def _run_to_end(request: RunRequest) -> Result[bytes]:
    if not request.pty:
        return run(request.command, request.spec, capture=False)
    with popen(request.command, request.spec, pty=window_size()) as process:
        relay(process)
        process.wait()
        result = process.result()
    if result.ending is Ending.TIMED_OUT:
        raise TimeoutExpired(request.spec.timeout or 0, None, None)
    return result


def _how(result: Result[bytes]) -> str:
    """What ran it, how long the spawn took, and what held its limits."""
    parts = [f"run by {result.backend}"]
    if result.timings.spawn_ns is not None:
        parts.append(f"spawned in {result.timings.spawn_ns / 1e6:.2f} ms")
    parts += [f"{limit} held by {holder}" for limit, holder in result.limits.items()]
    return "; ".join(parts)
