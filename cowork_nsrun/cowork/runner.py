"""Stands where the app expects a script runner: ``PROGRAM [..]cowork-vm-service.js -socket PATH``.

Launchers probe a runner by ``-e EXPRESSION`` and ``--version`` first.  The script is not run: its
name in the command line is what launchers look for, so it stays there.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

import cowork_nsrun
from cowork_nsrun.cowork.main import serve

SCRIPT = "cowork-vm-service.js"
USAGE = 2


def main(argv: Sequence[str] | None = None) -> int:
    """Answer a probe, or serve; returns the exit status."""
    words = list(sys.argv[1:] if argv is None else argv)
    first = words[0] if words else ""
    if first in {"-e", "--eval", "-p", "--print"} and len(words) > 1:
        return 0  # they ask for functions of a file system that nothing here needs
    if first in {"-v", "--version"}:
        # read as a version of node by some: one that has all they ask for
        sys.stdout.write(f"v22.0.0-nsrun.{cowork_nsrun.__version__}\n")
        return 0
    if os.path.basename(first) == SCRIPT:
        return serve(words[1:])
    sys.stderr.write(
        f"nsrun-script-runner: {first or 'no word'}: it runs {SCRIPT} [-socket PATH] and nothing "
        "else\n"
    )
    return USAGE


if __name__ == "__main__":
    sys.exit(main())
