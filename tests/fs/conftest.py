"""Fixtures of the file server's tests."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from fslib import SANITIZER, Mount, build, lacking, links, mounted


def sanitizer(note: Callable[[str], None]) -> str:
    if links(SANITIZER):
        return SANITIZER
    note(f"the compiler has no {SANITIZER} sanitizer: the file server is tested without")
    return "none"


@pytest.fixture(scope="session")
def mount(
    tmp_path_factory: pytest.TempPathFactory,
    lack: Callable[[str], NoReturn],
    note_lack: Callable[[str], None],
) -> Mount:
    """Mount the server with a list of exports."""
    reason = lacking()
    if reason is not None:
        lack(reason)
    built = build("mounter", tmp_path_factory.mktemp("mounter"), sanitizer(note_lack))
    return functools.partial(mounted, built)


@pytest.fixture(scope="session")
def driver(tmp_path_factory: pytest.TempPathFactory, note_lack: Callable[[str], None]) -> Path:
    """The program that gives the server requests that no kernel would make."""
    return build("driver", tmp_path_factory.mktemp("driver"), sanitizer(note_lack))
