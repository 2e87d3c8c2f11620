"""``nsrun WORD``: what of the command line is done in Python.

The nsrun program starts this for its words (``python3 -I -m cowork_nsrun.cli``);
options of the bwrap kind never come here.  Each word imports what it needs, and no more.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
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
        NSRUN.error(f"{word or 'no word'}: unknown; there are: {known}")
        return USAGE
    return reported(lambda: _carry_out(word, rest))


@dataclass(frozen=True, slots=True)
class Voice:
    """How messages begin.

    Attributes:
        name: the program's.
        levels: their level comes first, as ``--level-prefix`` wants it: ``<3>`` is an error,
            ``<4>`` a warning, as in sd-daemon(3).
    """

    name: str = "nsrun"
    levels: bool = False

    def error(self, text: object) -> None:
        """What was asked for is not done."""
        self._say(3, text)

    def warning(self, text: object) -> None:
        """It is done, but not as it should be."""
        self._say(4, text)

    def _say(self, level: int, text: object) -> None:
        prefix = f"<{level}>" if self.levels else ""
        sys.stderr.write(f"{prefix}{self.name}: {text}\n")


NSRUN = Voice()


def reported(work: Callable[[], int], voice: Voice = NSRUN) -> int:
    """The exit status of some work, with a line for an error."""
    try:
        return work()
    except TimeoutExpired as error:
        voice.error(error)
        return TIMED_OUT
    except NsrunError as error:
        voice.error(error)
        return FAILED
    except KeyboardInterrupt:
        return 128 + 2


if __name__ == "__main__":
    sys.exit(main())
