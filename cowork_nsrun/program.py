"""Where the nsrun program is."""

from __future__ import annotations

import os
import shutil
from functools import cache
from importlib.metadata import PackageNotFoundError, distribution

from cowork_nsrun.errors import NsrunError


@cache
def find_program() -> str:
    """The ``nsrun`` program that came with this package, else the one on PATH.

    Raises:
        NsrunError: there is none.
    """
    try:
        files = distribution("cowork-nsrun").files or []
    except PackageNotFoundError:
        files = []
    for file in files:
        if file.name == "nsrun" and file.parent.name == "bin":
            return os.path.realpath(os.fspath(file.locate()))
    found = shutil.which("nsrun")
    if found is None:
        raise NsrunError("no nsrun program: install the cowork-nsrun package")
    return found
