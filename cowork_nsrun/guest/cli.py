"""``nsrun vm``: what has to do with microVMs."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from cowork_nsrun.guest.kernel import VARIABLE, Kernel, find_kernels


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


def _table(found: Sequence[Kernel]) -> Table:
    table = Table(box=None, pad_edge=False)
    for column in ("release", "image", "origin", "verdict"):
        table.add_column(column, overflow="fold")
    for kernel in found:
        table.add_row(kernel.release, str(kernel.path), kernel.origin, _verdict(kernel))
    return table


def _kernels(options: argparse.Namespace) -> int:
    found = find_kernels(options.kernel)
    if options.json:
        sys.stdout.write(json.dumps([_as_json(kernel) for kernel in found], indent=2) + "\n")
    elif sys.stdout.isatty():
        Console(highlight=False).print(_table(found))
    else:
        for kernel in found:
            words = (kernel.release, str(kernel.path), kernel.origin, _verdict(kernel))
            sys.stdout.write("\t".join(words) + "\n")
    if not found:
        sys.stderr.write(f"nsrun: no kernel found; install one, or name one by {VARIABLE}\n")
    return 0 if any(kernel.fit for kernel in found) else 1


def main(words: Sequence[str]) -> int:
    """Carry out ``nsrun vm WORDS``; returns the exit status."""
    parser = argparse.ArgumentParser(prog="nsrun vm", description="Look after microVMs.")
    parts = parser.add_subparsers(required=True, metavar="kernels")
    part = parts.add_parser(
        "kernels",
        help="list the kernels that a microVM could boot; exit status 1 if none is fit",
    )
    part.add_argument("kernel", nargs="?", metavar="IMAGE", help="look at this one alone")
    part.add_argument("--json", action="store_true", help="for programs")
    part.set_defaults(do=_kernels)
    options = parser.parse_args(words)
    status: int = options.do(options)
    return status
