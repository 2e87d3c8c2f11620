"""Functions that run in a forked process, as another user where that is asked for."""

from __future__ import annotations

import ctypes
import os
import pickle
import traceback
from collections.abc import Callable
from typing import Any

import pytest

UNPRIVILEGED = 12345
PR_SET_DUMPABLE = 4


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


def in_child(function: Callable[[], Any], uid: int | None) -> Any:
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
