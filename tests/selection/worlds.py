"""Run programs in an environment, and look at what ran them."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hostlib import HANG

UID, GID = 12345, 12346
SYSTEM = "/usr/bin:/bin:/usr/sbin:/sbin"
# the system's own bwrap is out of the way, so that PATH decides
HIDE_BWRAP = "if [ -e /usr/bin/bwrap ]; then mount --bind /dev/null /usr/bin/bwrap; fi"
AS_USER = Path(__file__).with_name("as_user.py")
SEEN = "cat /proc/1/comm"
SANDBOX = ("--ro-bind", "/", "/", "--unshare-pid", "--proc", "/proc", "--dev", "/dev")


@dataclass(frozen=True)
class Tools:
    directory: Path
    nsrun: Path
    nested: Path
    deny: Path
    no_bwrap: Path
    failing: Path
    wrapper: Path


@dataclass(frozen=True)
class World:
    """How to get in: a script that root runs in a mount namespace of its own, then a prefix.

    Attributes:
        script: changes mounts; run by sh.
        limit: of user namespaces, in a user namespace around; None: no such namespace.
        deny: words for the deny program.
        bwrap: a directory that comes first in PATH.
    """

    script: str = "true"
    limit: int | None = None
    deny: tuple[str, ...] = ()
    bwrap: Path | None = None
    env: Mapping[str, str] = field(default_factory=dict)

    def command(self, tools: Tools, argv: Sequence[object], *, root: bool = False) -> list[str]:
        words = [str(word) for word in argv]
        if self.deny:
            words = [str(tools.deny), *self.deny, "--", *words]
        path = SYSTEM if self.bwrap is None else f"{self.bwrap}:{SYSTEM}"
        words = ["/usr/bin/env", f"PATH={path}", *words]
        uid, gid = (0, 0) if root else (UID, GID)
        if self.limit is not None:
            words = [str(tools.nested), str(self.limit), str(uid), str(gid), *words]
        elif not root:
            words = ["setpriv", f"--reuid={uid}", f"--regid={gid}", "--clear-groups", *words]
        script = f'{HIDE_BWRAP}; {self.script} && exec "$@"'
        return ["unshare", "-m", "--propagation", "private", "sh", "-c", script, "sh", *words]

    def run(
        self,
        tools: Tools,
        argv: Sequence[object],
        *,
        stdin: bytes = b"",
        pass_fds: Sequence[int] = (),
        env: Mapping[str, str] | None = None,
        root: bool = False,
    ) -> subprocess.CompletedProcess[bytes]:
        environment = {"PATH": SYSTEM, "HOME": "/", **self.env, **(env or {})}
        return subprocess.run(
            self.command(tools, argv, root=root),
            input=stdin,
            capture_output=True,
            env=environment,
            pass_fds=tuple(pass_fds),
            timeout=HANG * 2,
            cwd="/",
            check=False,
        )

    def probe(self, tools: Tools, *words: str, env: Mapping[str, str] | None = None) -> Any:
        """What the program that would clone says."""
        ended = self.run(tools, [tools.nsrun, "--probe", *words], env=env)
        assert ended.returncode == 0, ended
        return json.loads(ended.stdout)

    def doctor(
        self, tools: Tools, *words: str, env: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[bytes]:
        become = [sys.executable, "-I", AS_USER, UID, GID, "doctor"]
        return self.run(tools, [*become, *words], env=env, root=True)


def by_python(
    world: World, tools: Tools, *command: str, env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[bytes]:
    """Run a command by a Python program: first as root, whose output comes first."""
    become = [sys.executable, "-I", AS_USER, UID, GID, "run", "--quiet", "--"]
    return world.run(tools, [*become, *command], env=env, root=True)


def probe_of(report: Any, name: str) -> Any:
    return next(probe for probe in report["probes"] if probe["name"] == name)
