"""The same program, attacker and identities as in the hostile suite."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "hostile"))

from hostile_fixtures import (  # noqa: E402, F401
    as_root,
    as_user,
    attacker,
    ground,
    marker,
    nsrun,
    runner,
)
from hostlib import build  # noqa: E402


@pytest.fixture(scope="session")
def deny(open_directory: Path) -> Path:
    return build(HERE / "deny.c", open_directory / "deny")
