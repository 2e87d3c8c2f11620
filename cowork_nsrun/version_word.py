"""``nsrun version``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from cowork_nsrun import _native


def main(words: Sequence[str]) -> int:
    """Carry out ``nsrun version``; returns the exit status."""
    parser = argparse.ArgumentParser(prog="nsrun version", description="Show the versions.")
    parser.parse_args(words)
    python = ".".join(map(str, sys.version_info[:3]))
    sys.stdout.write(f"nsrun {_native.version()} (Python {python})\n")
    return 0
