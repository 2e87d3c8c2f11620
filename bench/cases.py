"""What is measured: each case is one sandbox and one payload."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from bench.helpers import Workspace

HOME = "/home/bench"
STANDARD = [
    *("--unshare-user", "--unshare-pid", "--unshare-ipc", "--unshare-uts"),
    *("--ro-bind", "/", "/", "--proc", "/proc", "--dev", "/dev", "--tmpfs", "/tmp"),
]


@dataclass(frozen=True)
class Case:
    """One row of the results.

    ``sandbox`` names the kind of sandbox; ``binds`` is how many files are bound on top of it.
    With ``workers`` it measures runs a second by so many at a time, else the time of single runs.
    """

    key: str
    title: str
    sandbox: str
    payload: Callable[[Workspace], list[str]]
    rounds: int
    binds: int = 0
    workers: int = 0
    peers: bool = False


def run_true(workspace: Workspace) -> list[str]:
    return [str(workspace.true)]


def run_shell(_: Workspace) -> list[str]:
    return ["/bin/sh", "-c", ":"]


def run_python(_: Workspace) -> list[str]:
    """An interpreter that every user may read: root's own may lie below /root."""
    system = Path("/usr/bin/python3")
    return [str(system) if system.exists() else sys.executable, "-I", "-S", "-c", "pass"]


CASES = [
    Case("true", "static true", "standard", run_true, 300, peers=True),
    Case("net", "static true, new network", "network", run_true, 200, peers=True),
    Case("cowork", "static true, Cowork argv", "cowork", run_true, 200),
    Case("binds-10", "10 binds", "standard", run_true, 100, binds=10),
    Case("binds-100", "100 binds", "standard", run_true, 30, binds=100),
    Case("binds-1000", "1,000 binds", "standard", run_true, 8, binds=1000),
    Case("shell", "/bin/sh -c :", "standard", run_shell, 150),
    Case("python", "python3 -c pass", "standard", run_python, 60),
    Case("throughput-1", "runs a second, 1 worker", "standard", run_true, 0, workers=1),
    Case("throughput-2", "runs a second, 2 workers", "standard", run_true, 0, workers=2),
    Case("throughput-4", "runs a second, 4 workers", "standard", run_true, 0, workers=4),
]


@dataclass(frozen=True)
class ApiCase:
    """One row of the Python API's results.

    ``amount`` is what the kind counts: MiB that the calling program has touched (``spawn``), so
    many at a time (``rates``), or parked sandboxes (``pool``, ``park``).
    """

    key: str
    title: str
    kind: str
    amount: int


API_CASES = [
    ApiCase("python-20", "Python, 20 MiB touched", "spawn", 20),
    ApiCase("python-512", "Python, 512 MiB touched", "spawn", 512),
    ApiCase("python-2048", "Python, 2 GiB touched", "spawn", 2048),
    ApiCase("pool", "Python, a full pool", "pool", 4),
    *(
        ApiCase(f"rate-{n}", f"Python, runs a second, {n} at a time", "rates", n)
        for n in (1, 2, 4, 8, 16, 32, 64)
    ),
    ApiCase("parked", "memory of one parked sandbox", "park", 64),
]
TITLES = {
    **{case.key: case.title for case in CASES},
    **{case.key: case.title for case in API_CASES},
}


def host_links() -> list[str]:
    """/bin and its like, as the Cowork service hands them on."""
    words: list[str] = []
    for path in ("/bin", "/lib", "/lib64", "/sbin"):
        if os.path.islink(path):
            words += ["--symlink", os.readlink(path), path]
        elif os.path.exists(path):
            words += ["--ro-bind", path, path]
    return words


def cowork_options(workspace: Workspace, payload: list[str]) -> list[str]:
    """The Cowork service's command line for one shared folder."""
    directory = str(Path(payload[0]).parent)
    return [
        *("--chdir", "/sessions/bench/mnt/work", "--tmpfs", "/"),
        *("--ro-bind", "/usr", "/usr", "--ro-bind", "/etc", "/etc"),
        *("--dev", "/dev", "--proc", "/proc", "--tmpfs", "/tmp", "--tmpfs", "/run"),
        *host_links(),
        *("--dir", HOME, "--ro-bind", directory, directory),
        *("--dir", "/sessions/bench", "--dir", "/sessions/bench/mnt"),
        *("--bind", str(workspace.folder), "/sessions/bench/mnt/work"),
        *("--unshare-pid", "--die-with-parent", "--new-session"),
    ]


def bind_options(count: int, workspace: Workspace) -> list[str]:
    words: list[str] = []
    for number in range(count):
        words += ["--ro-bind", str(workspace.sources / str(number)), f"/tmp/{number}"]
    return words


def bwrap_options(case: Case, workspace: Workspace, payload: list[str]) -> list[str]:
    """The options that make this case's sandbox, in bwrap's language."""
    if case.sandbox == "cowork":
        return cowork_options(workspace, payload)
    network = ["--unshare-net"] if case.sandbox == "network" else []
    return [*network, *STANDARD, *bind_options(case.binds, workspace)]
