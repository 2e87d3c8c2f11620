"""``nsrun WORD``: what of the command line is done in Python.

The nsrun program starts this for its words (``python3 -I -m cowork_nsrun.cli``);
options of the bwrap kind never come here.  Each word imports what it needs, and no more.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from importlib import import_module

from cowork_nsrun.errors import NsrunError, TimeoutExpired

FAILED = 1
USAGE = 2
TIMED_OUT = 124  # as timeout(1) says it


#: by word: a module of this package, and what in it takes the other words
WORDS = {
    "run": ("run_word", "main"),
    "doctor": ("doctor", "main"),
    "profile": ("profile_word", "main"),
    "serve": ("cowork.main", "serve"),
    "sessions": ("cowork.client", "sessions"),
    "vm": ("guest.cli", "main"),
    "version": ("version_word", "main"),
}


def _carry_out(word: str, rest: Sequence[str]) -> int:
    module, function = WORDS[word]
    status: int = getattr(import_module(f"cowork_nsrun.{module}"), function)(rest)
    return status


def main(argv: Sequence[str] | None = None) -> int:
    """Carry out one word; returns the exit status."""
    word, *rest = list(sys.argv[1:] if argv is None else argv) or [""]
    if word not in WORDS:
        known = ", ".join(WORDS)
        sys.stderr.write(f"nsrun: {word or 'no word'}: unknown; there are: {known}\n")
        return USAGE
    return reported(lambda: _carry_out(word, rest))


def reported(work: Callable[[], int], name: str = "nsrun", *, levels: bool = False) -> int:
    """The exit status of some work, with a line for an error.

    Arguments:
        name: what the line begins with.
        levels: before it is the line's level, as ``--level-prefix`` wants it.
    """
    level = "<3>" if levels else ""
    try:
        return work()
    except TimeoutExpired as error:
        sys.stderr.write(f"{level}{name}: {error}\n")
        return TIMED_OUT
    except NsrunError as error:
        sys.stderr.write(f"{level}{name}: {error}\n")
        return FAILED
    except KeyboardInterrupt:
        return 128 + 2


if __name__ == "__main__":
    sys.exit(main())
