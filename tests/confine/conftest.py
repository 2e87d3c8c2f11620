"""The same program and identities as in the hostile suite, and an attacker of its own."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
TESTS = HERE.parent
sys.path.insert(0, str(TESTS / "hostile"))
sys.path.insert(0, str(TESTS / "python"))

from forked import UNPRIVILEGED, in_child  # noqa: E402
from hostile_fixtures import (  # noqa: E402, F401
    as_root,
    as_user,
    ground,
    marker,
    nsrun,
    runner,
)
from hostlib import Lack, build  # noqa: E402

InPython = Callable[[Callable[[], Any]], Any]


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


@pytest.fixture(params=[None, UNPRIVILEGED], ids=["caller", "user"])
def in_python(request: pytest.FixtureRequest, lack: Lack) -> InPython:
    """Run a function in a forked process, as the tests' user and as one without privileges."""
    if request.param is not None and os.geteuid() != 0:
        lack("not root: Python as another user")
    return lambda function: in_child(function, request.param)
