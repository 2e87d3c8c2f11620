"""``nsrun vm``: what has to do with microVMs."""

from __future__ import annotations

import argparse
import json
import socket
import sys
from collections.abc import Sequence

from cowork_nsrun.cli import NSRUN, reported
from cowork_nsrun.guest.exec import Request, execute, read_plan
from cowork_nsrun.guest.kernel import VARIABLE, Kernel, find_kernels
from cowork_nsrun.guest.limits import Limits
from cowork_nsrun.guest.machine import Size
from cowork_nsrun.plan import Plan

USAGE = 2


def _as_json(kernel: Kernel) -> dict[str, object]:
    return {
        "path": str(kernel.path),
        "release": kernel.release,
        "origin": kernel.origin,
        "fit": kernel.fit,
        "unfit": kernel.unfit or None,
        "remedy": kernel.remedy or None,
        "modules": [str(path) for path in kernel.modules],
    }


def _verdict(kernel: Kernel) -> str:
    if kernel.fit:
        return f"fit, {len(kernel.modules)} modules" if kernel.modules else "fit, needs no modules"
    return f"unfit: {kernel.unfit}" + (f"; what helps: {kernel.remedy}" if kernel.remedy else "")


def _print_table(found: Sequence[Kernel]) -> None:
    # a command that is to run does not wait for these
    from rich.console import Console  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415

    table = Table(box=None, pad_edge=False)
    for column in ("release", "image", "origin", "verdict"):
        table.add_column(column, overflow="fold")
    for kernel in found:
        table.add_row(kernel.release, str(kernel.path), kernel.origin, _verdict(kernel))
    Console(highlight=False).print(table)


def _kernels(options: argparse.Namespace) -> int:
    found = find_kernels(options.kernel)
    if options.json:
        sys.stdout.write(json.dumps([_as_json(kernel) for kernel in found], indent=2) + "\n")
    elif sys.stdout.isatty():
        _print_table(found)
    else:
        for kernel in found:
            words = (kernel.release, str(kernel.path), kernel.origin, _verdict(kernel))
            sys.stdout.write("\t".join(words) + "\n")
    if not found:
        NSRUN.error(f"no kernel found; install one, or name one by {VARIABLE}")
    return 0 if any(kernel.fit for kernel in found) else 1


def _size(text: str) -> int:
    # of all that a spec can be, this alone is wanted here, and rarely
    from cowork_nsrun.spec import parse_size  # noqa: PLC0415

    return parse_size(text)


def _exec(options: argparse.Namespace) -> int:
    if (options.plan is None) == (not options.words):
        NSRUN.error("vm exec takes --plan FD, or bwrap's options and a command")
        return USAGE
    if options.plan is not None:
        plan = read_plan(options.plan)
    else:
        words = options.words[1:] if options.words[0] == "--" else options.words
        plan = Plan.from_argv(words)
    limits = Limits(
        None if options.memory is None else _size(options.memory),
        options.pids,
        options.cpu,
        options.timeout,
    )
    size = Size(options.machine_memory, options.cpus)
    request = Request(
        plan,
        options.kernel,
        size,
        limits,
        options.status_fd,
        loopback=options.allow_loopback,
        life_fd=options.life_fd,
    )
    return reported(lambda: execute(request), request.voice)


def _keep(options: argparse.Namespace) -> int:
    from cowork_nsrun.guest.keep import keep  # noqa: PLC0415 - a command alone needs none of it

    return keep(socket.socket(fileno=options.control_fd))


def _exec_parser(part: argparse.ArgumentParser) -> None:
    add = part.add_argument
    add("--plan", type=int, metavar="FD", help="a plan in bytes, instead of options and command")
    add("--kernel", metavar="IMAGE", help=f"boot this one; default: ${VARIABLE}, or one found")
    add("--machine-memory", type=int, metavar="MIB", help="of the machine; default: 1024")
    add("--cpus", type=int, metavar="N", help="of the machine; default: this one's, at most 4")
    add("--memory", metavar="SIZE", help="of the command's processes together, such as 512M")
    add("--pids", type=int, metavar="N", help="processes and threads at one time")
    add("--cpu", type=float, metavar="N", help="processors' worth of time, such as 0.5")
    add("--timeout", type=float, metavar="SECONDS", help="kill everything after that time")
    add("--status-fd", type=int, default=-1, metavar="FD", help="a JSON object a line goes there")
    add(
        "--allow-loopback",
        action="store_true",
        help="with the host's network (no --unshare-net): reach its 127.0.0.1, as 10.0.2.2",
    )
    add("--life-fd", type=int, default=-1, metavar="FD",
        help="its end ends everything; bytes are signals for the command")  # fmt: skip
    add("words", nargs=argparse.REMAINDER, metavar="-- OPTION... COMMAND [ARGS...]",
        help="as after 'nsrun'")  # fmt: skip
    part.set_defaults(do=_exec)


def main(words: Sequence[str]) -> int:
    """Carry out ``nsrun vm WORDS``; returns the exit status."""
    parser = argparse.ArgumentParser(prog="nsrun vm", description="Look after microVMs.")
    parts = parser.add_subparsers(required=True, metavar="kernels|exec|keep")
    part = parts.add_parser(
        "kernels",
        help="list the kernels that a microVM could boot; exit status 1 if none is fit",
    )
    part.add_argument("kernel", nargs="?", metavar="IMAGE", help="look at this one alone")
    part.add_argument("--json", action="store_true", help="for programs")
    part.set_defaults(do=_kernels)
    _exec_parser(parts.add_parser("exec", help="run one sandbox in a microVM of its own"))
    part = parts.add_parser("keep", help="what a pool of microVMs starts; of no use by hand")
    part.add_argument("--control-fd", type=int, required=True, metavar="FD")
    part.set_defaults(do=_keep)
    options = parser.parse_args(words)
    status: int = options.do(options)
    return status
