"""What this machine can do: the core's probes, presented.

Whether namespaces are allowed can depend on the executable that makes them.  So
there are two askers: this process (:func:`probe_own`), and the ``nsrun`` program
(:func:`ask_program`), which also knows of all else.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, Self

from cowork_nsrun import _native
from cowork_nsrun.errors import NsrunError
from cowork_nsrun.program import find_program

FORMAT = 1
DEADLINE = 120.0  # seconds; each probe has a shorter one of its own
VARIABLE = "COWORK_VM_BACKEND"


class Verdict(StrEnum):
    """What a probe says."""

    OK = "ok"
    BLOCKED = "blocked"
    MISSING = "missing"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Probe:
    """One finding.

    Attributes:
        name: what was probed, such as ``namespaces``.
        verdict: there and allowed, there and refused, not there, or not known.
        evidence: one line, what was seen.
        errno: the system's error number behind it; 0 if there is none.
        remedy: name of what helps, for :func:`cowork_nsrun.remedies.remedy`; None if nothing
            is wrong or nothing helps.
    """

    name: str
    verdict: Verdict
    evidence: str
    errno: int = 0
    remedy: str | None = None

    @property
    def ok(self) -> bool:
        """Nothing is in the way."""
        return self.verdict is Verdict.OK

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """One element of ``probes`` of ``nsrun --probe``."""
        return cls(
            name=data["name"],
            verdict=Verdict(data["verdict"]),
            evidence=data["evidence"],
            errno=data["errno"],
            remedy=data["remedy"],
        )


@dataclass(frozen=True, slots=True)
class Answer:
    """The selection as the core made it; see :class:`cowork_nsrun.selection.Selection`."""

    backend: str | None
    reason: str
    wanted: str | None
    wanted_by: str
    failed: tuple[str, ...]
    remedy: str | None


@dataclass(frozen=True, slots=True)
class Report:
    """All that ``nsrun --probe`` found.

    Attributes:
        executable: the program that probed, and that would clone.
        probes: in the order of the core.
        bwrap: the installed bwrap; None if there is none.
        answer: what would run a sandbox.
    """

    executable: Path
    probes: tuple[Probe, ...]
    bwrap: Path | None
    answer: Answer

    def __getitem__(self, name: str) -> Probe:
        return next(probe for probe in self.probes if probe.name == name)


def probe_own() -> Probe:
    """Make a sandbox in a child of this very process, and see."""
    found = _native.select_own("namespaces", None)[1]
    assert found is not None
    return own(found)


def own(found: _native.Probe) -> Probe:
    """The core's probe of this process's own namespaces."""
    verdict = Verdict(_native.VERDICTS[found.verdict])
    return Probe("namespaces", verdict, found.evidence, found.errno, found.remedy or None)


def ask_program(
    backend: str | None = None,
    *,
    allow_host: bool = False,
    environ: Mapping[str, str] | None = None,
    program: str | os.PathLike[str] | None = None,
) -> Report:
    """Have the ``nsrun`` program probe everything and choose.

    Arguments:
        backend: as ``--backend`` takes it; None leaves it to the environment.
        allow_host: the confined host may be the last choice.
        environ: the environment that counts; by default the caller's.
        program: another nsrun than the package's own.

    Raises:
        NsrunError: it can't be started, or does not answer.
    """
    command = [os.fspath(program or find_program()), "--probe"]
    if backend is not None:
        command += ["--backend", backend]
    if allow_host:
        command.append("--allow-host")
    try:
        ended = subprocess.run(
            command,
            env=os.environ if environ is None else environ,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=DEADLINE,
            check=False,
        )
    except OSError as error:
        raise NsrunError(f"{command[0]} --probe: {error}", errno=error.errno or 0) from error
    except subprocess.TimeoutExpired as error:
        raise NsrunError(f"{command[0]} --probe: {error}") from error
    if ended.returncode:
        said = ended.stderr.decode(errors="replace").strip()
        raise NsrunError(f"{command[0]} --probe ended with {ended.returncode}: {said}")
    return _read(json.loads(ended.stdout))


def _read(data: Mapping[str, Any]) -> Report:
    if data["format"] != FORMAT:
        raise NsrunError(f"nsrun --probe answers in format {data['format']}, not {FORMAT}")
    chosen = data["selection"]
    return Report(
        executable=Path(data["executable"]["path"]),
        probes=tuple(Probe.from_json(probe) for probe in data["probes"]),
        bwrap=None if data["bwrap"] is None else Path(data["bwrap"]),
        answer=Answer(
            backend=chosen["backend"],
            reason=chosen["reason"],
            wanted=chosen["wanted"],
            wanted_by=chosen["wanted_by"],
            failed=tuple(chosen["failed"]),
            remedy=chosen["remedy"],
        ),
    )
