"""The same program and identities as in the hostile suite, and an attacker of its own."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
TESTS = HERE.parent
sys.path.insert(0, str(TESTS / "hostile"))
sys.path.insert(0, str(TESTS / "python"))

from hostile_fixtures import (  # noqa: E402, F401
    as_root,
    as_user,
    ground,
    marker,
    nsrun,
    runner,
)
from hostlib import build  # noqa: E402


@pytest.fixture(scope="session")
def walls(open_directory: Path) -> Path:
    """The attacker, in a directory of its own."""
    directory = open_directory / "walls"
    directory.mkdir()
    return build(HERE / "walls.c", directory / "walls")


@pytest.fixture(scope="session")
def abi(open_directory: Path) -> Path:
    return build(HERE / "abi.c", open_directory / "abi")


@pytest.fixture(scope="session")
def deny(open_directory: Path) -> Path:
    return build(TESTS / "tiers" / "deny.c", open_directory / "deny-walls")
