"""Sandboxes for AI-agent programs on Linux.

>>> from cowork_nsrun import Sandbox, run
>>> run(["echo", "hello"], Sandbox.minimal()).check().stdout
b'hello\\n'
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cowork_nsrun.errors import CommandError, NsrunError, SpecError, TimeoutExpired
    from cowork_nsrun.handle import Ending, Usage
    from cowork_nsrun.limits import LimitError
    from cowork_nsrun.namespaces import Namespace
    from cowork_nsrun.plan import Plan
    from cowork_nsrun.pool import Pool, PoolExecutor, PoolStats
    from cowork_nsrun.process import Process, Result, Timings, popen, run, run_plan
    from cowork_nsrun.spec import (
        Bind,
        BindData,
        BindFd,
        Chmod,
        Dev,
        Dir,
        Egress,
        File,
        Limits,
        Mqueue,
        Overlay,
        Proc,
        ReadOnlyOverlay,
        RemountReadOnly,
        Sandbox,
        Symlink,
        Tmpfs,
        TmpOverlay,
    )
    from cowork_nsrun.streams import DEVNULL, PIPE, STDOUT
    from cowork_nsrun.teardown import settle

    __version__: str
else:
    # each name's module is imported when the name is first asked for: "nsrun vm exec" needs
    # few of them, and a program that starts wants none of them before it needs them
    _HOMES = {
        "errors": ("CommandError", "NsrunError", "SpecError", "TimeoutExpired"),
        "handle": ("Ending", "Usage"),
        "limits": ("LimitError",),
        "namespaces": ("Namespace",),
        "plan": ("Plan",),
        "pool": ("Pool", "PoolExecutor", "PoolStats"),
        "process": ("Process", "Result", "Timings", "popen", "run", "run_plan"),
        "streams": ("DEVNULL", "PIPE", "STDOUT"),
        "teardown": ("settle",),
    }
    # all others
    _SPEC = "spec"

    def _home(name):
        return next((home for home, names in _HOMES.items() if name in names), _SPEC)

    def __getattr__(name):
        if name == "__version__":
            value = import_module("cowork_nsrun._native").version()
        elif name in __all__:
            value = getattr(import_module(f"cowork_nsrun.{_home(name)}"), name)
        else:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        globals()[name] = value
        return value

    def __dir__():
        return sorted({*globals(), *__all__, "__version__"})


__all__ = [
    "DEVNULL",
    "PIPE",
    "STDOUT",
    "Bind",
    "BindData",
    "BindFd",
    "Chmod",
    "CommandError",
    "Dev",
    "Dir",
    "Egress",
    "Ending",
    "File",
    "LimitError",
    "Limits",
    "Mqueue",
    "Namespace",
    "NsrunError",
    "Overlay",
    "Plan",
    "Pool",
    "PoolExecutor",
    "PoolStats",
    "Proc",
    "Process",
    "ReadOnlyOverlay",
    "RemountReadOnly",
    "Result",
    "Sandbox",
    "SpecError",
    "Symlink",
    "TimeoutExpired",
    "Timings",
    "TmpOverlay",
    "Tmpfs",
    "Usage",
    "popen",
    "run",
    "run_plan",
    "settle",
]
