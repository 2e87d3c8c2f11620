"""The same program and identities as in the hostile suite, and an attacker of its own."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "hostile"))

from hostile_fixtures import as_root, as_user, nsrun, runner  # noqa: E402, F401
from hostlib import build  # noqa: E402


@pytest.fixture(scope="session")
def caller(open_directory: Path) -> Path:
    """The program that makes the refused calls."""
    directory = open_directory / "caller"
    directory.mkdir()
    return build(HERE / "attacker.c", directory / "attacker")
