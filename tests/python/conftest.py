"""Fixtures of the Python package's tests."""

from __future__ import annotations

import ctypes
import os
import pickle
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from leftovers import processes_with

UNPRIVILEGED = 12345
PR_SET_DUMPABLE = 4
PR_GET_DUMPABLE = 3

AsUser = Callable[[Callable[[], Any]], Any]


def _become(uid: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)
    # lost by the change of ids; an ordinary user's process has it, and needs it for its id maps
    if libc.prctl(PR_SET_DUMPABLE, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl")
    os.environ.update(HOME="/", USER="nobody")
    os.chdir("/")


def _in_child(function: Callable[[], Any], uid: int | None) -> Any:
    """The function's result from a forked process; what it raises fails the test."""
    r, w = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            os.close(r)
            if uid is not None:
                _become(uid)
            outcome: tuple[bool, Any] = (True, function())
        except BaseException:  # noqa: BLE001 - the parent raises it
            outcome = (False, traceback.format_exc())
        with open(w, "wb") as pipe:
            pickle.dump(outcome, pipe)
        os._exit(0)
    os.close(w)
    with open(r, "rb") as pipe:
        data = pipe.read()
    os.waitpid(pid, 0)
    assert data, "the child died"
    done, value = pickle.loads(data)
    if not done:
        pytest.fail(value)
    return value


@pytest.fixture
def in_child() -> AsUser:
    """Run a function in a forked process, as the same user."""
    return lambda function: _in_child(function, None)


@pytest.fixture(params=["caller", "unprivileged"])
def as_user(request: pytest.FixtureRequest) -> AsUser:
    """Run a function as the tests' own user, then as one without privileges."""
    if request.param == "caller":
        return lambda function: function()
    if os.geteuid() != 0:
        pytest.skip("the tests' own user has no privileges already")
    return lambda function: _in_child(function, UNPRIVILEGED)


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
