"""Where the nsrun program is."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from cowork_nsrun.errors import NsrunError

_PROGRAM = "/bin/nsrun"


@cache
def find_program() -> str:
    """The ``nsrun`` program that came with this package, else the one on PATH.

    Raises:
        NsrunError: there is none.
    """
    for file in _installed():
        return os.path.realpath(file)
    # both take a while to import, and are rarely needed
    import shutil  # noqa: PLC0415

    found = shutil.which("nsrun")
    if found is None:
        raise NsrunError("no nsrun program: install the cowork-nsrun package")
    return found


def _installed() -> Iterator[str]:
    """What the list of installed files names; importlib.metadata reads the same, slowly.

    That is RECORD, of the distribution that lies beside this package: PEP 376 and 627.  Its
    paths are relative to that directory.
    """
    place = Path(__file__).parent.parent
    for record in place.glob("cowork_nsrun-*.dist-info/RECORD"):
        with record.open(encoding="utf-8", newline="") as file:
            for row in csv.reader(file):
                if row and row[0].endswith(_PROGRAM):
                    yield os.path.join(place, row[0])
