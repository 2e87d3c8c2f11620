"""Fixtures of the Python package's tests."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from forked import UNPRIVILEGED
from forked import in_child as run_in_child
from leftovers import processes_with

AsUser = Callable[[Callable[[], Any]], Any]


@pytest.fixture
def in_child() -> AsUser:
    """Run a function in a forked process, as the same user."""
    return lambda function: run_in_child(function, None)


@pytest.fixture(params=["caller", "unprivileged"])
def as_user(request: pytest.FixtureRequest) -> AsUser:
    """Run a function as the tests' own user, then as one without privileges."""
    if request.param == "caller":
        return lambda function: function()
    if os.geteuid() != 0:
        pytest.skip("the tests' own user has no privileges already")
    return lambda function: run_in_child(function, UNPRIVILEGED)


@pytest.fixture
def shared(open_directory: Path, request: pytest.FixtureRequest) -> Path:
    """A directory of the test's own that every user may write to."""
    path = open_directory / str(abs(hash(request.node.nodeid)))
    path.mkdir()
    path.chmod(0o777)
    return path


@pytest.fixture
def marker() -> Iterator[str]:
    """A number of seconds that only this test sleeps; nobody does when it is over."""
    value = f"1000.{time.monotonic_ns() % 10**9}"
    yield value
    assert processes_with(value) == []
