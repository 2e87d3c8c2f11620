"""Sandboxes for AI-agent programs on Linux.

>>> from cowork_nsrun import Sandbox, run
>>> run(["echo", "hello"], Sandbox.minimal()).check().stdout
b'hello\\n'
"""

from cowork_nsrun._native import version as _version
from cowork_nsrun.errors import CommandError, NsrunError, SpecError, TimeoutExpired
from cowork_nsrun.handle import Ending, Usage
from cowork_nsrun.limits import LimitError
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
    Namespace,
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

__version__ = _version()

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
