"""Builds the C programs that the benchmarks are made of, and lays out the files they run on."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
WARNINGS = ["-std=c17", "-O2", "-Wall", "-Wextra", "-Wshadow", "-Werror"]
# What is measured starts with as few pages and segments as can be: not a PIE, one segment for text.
SMALL = [
    "-static",
    "-fno-pie",
    "-no-pie",
    "-fno-stack-protector",
    "-fno-asynchronous-unwind-tables",
    "-Wl,--build-id=none,-z,noseparate-code,-z,norelro",
    "-s",
]
FLAGS = {
    "floor": SMALL,
    "true": ["-nostdlib", *SMALL],
    "spawn_timer": ["-static"],
}
MOST_BINDS = 1000


class BuildError(Exception):
    """A helper could not be built; the message holds the compiler's words."""


@dataclass(frozen=True)
class Workspace:
    """Where the helpers and the files that sandboxes bind lie."""

    root: Path

    @property
    def floor(self) -> Path:
        return self.root / "floor"

    @property
    def true(self) -> Path:
        return self.root / "true"

    @property
    def timer(self) -> Path:
        return self.root / "spawn_timer"

    @property
    def folder(self) -> Path:
        """The one folder that the Cowork argv shares."""
        return self.root / "folder"

    @property
    def sources(self) -> Path:
        """Empty files, to be bound one by one."""
        return self.root / "sources"

    def state(self, uid: int) -> Path:
        """A directory that this user may write, for runtimes that keep state on disk."""
        return self.root / f"state-{uid}"


def default_root() -> Path:
    """Not below /tmp, which the sandboxes cover; root's may be read by all."""
    if os.geteuid() == 0:
        return Path("/var/cache/nsrun-bench")
    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path.home() / ".cache") / "nsrun-bench"


def find_compiler() -> str:
    """musl-gcc if there is one: a static glibc costs half as much again at every start."""
    for name in ("musl-gcc", "gcc", "cc"):
        if shutil.which(name):
            return name
    raise BuildError("no C compiler: install musl-tools or gcc")


def build(name: str, workspace: Workspace, compiler: str) -> None:
    """Build one helper unless the one there is newer than its source."""
    source, target = HERE / f"{name}.c", workspace.root / name
    if target.exists() and target.stat().st_mtime > source.stat().st_mtime:
        return
    command = [compiler, *WARNINGS, *FLAGS[name], str(source), "-o", str(target)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise BuildError(f"{' '.join(command)}\n{done.stderr}")


def build_observer(workspace: Workspace) -> Path | None:
    """The test suite's payload that tells what it sees, if this checkout has it."""
    sources = sorted((HERE.parent / "tests" / "observer").glob("*.c"))
    if not sources:
        return None
    compiler = find_compiler()
    # musl-gcc does not look for the kernel's headers where distributions keep them.
    own = f"/usr/include/{os.uname().machine}-linux-gnu"
    headers = ["-idirafter", "/usr/include", "-idirafter", own]
    target = workspace.root / "observer"
    words = ["-std=c17", "-O2", "-static", *headers, *map(str, sources), "-o", str(target)]
    done = subprocess.run([compiler, *words], capture_output=True, text=True, check=False)
    if done.returncode:
        raise BuildError(done.stderr)
    return target


def make_state(workspace: Workspace, uid: int) -> None:
    """One directory a user, theirs."""
    state = workspace.state(uid)
    state.mkdir(exist_ok=True)
    if os.geteuid() == 0:
        os.chown(state, uid, uid)


def prepare(root: Path, uids: list[int]) -> Workspace:
    """Everything on disk that a run needs."""
    workspace = Workspace(root)
    root.mkdir(parents=True, exist_ok=True)
    if root.stat().st_uid != os.geteuid():
        raise BuildError(f"{root} belongs to somebody else")
    compiler = find_compiler()
    for name in FLAGS:
        build(name, workspace, compiler)
    workspace.folder.mkdir(exist_ok=True)
    workspace.sources.mkdir(exist_ok=True)
    for number in range(MOST_BINDS):
        (workspace.sources / str(number)).touch()
    for uid in uids:
        make_state(workspace, uid)
    return workspace
