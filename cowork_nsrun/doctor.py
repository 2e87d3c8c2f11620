"""``nsrun doctor``: what runs sandboxes here, what does not, and what would help."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

import cowork_nsrun
from cowork_nsrun import apparmor
from cowork_nsrun.limits import Cgroups
from cowork_nsrun.probe import Probe, Report, Verdict, ask_program, probe_own
from cowork_nsrun.program import find_program
from cowork_nsrun.remedies import Remedy, System, remedy, this_system
from cowork_nsrun.selection import Backend, Runner, Selection, select

SCHEMA = Path(__file__).with_name("doctor.schema.json")
FORMAT = 1
OTHER_PROGRAM = Path("/usr/bin/nsrun")


class Level(StrEnum):
    """How a check went."""

    PASS = "PASS"
    INFO = "INFO"
    WARN = "WARN"
    FAIL = "FAIL"


class Section(StrEnum):
    """What belongs together."""

    NAMESPACES = "Namespaces"
    CONFINEMENT = "Confinement"
    KVM = "KVM (optional)"
    HOST = "Host"


@dataclass(frozen=True, slots=True)
class Check:
    """One line of the doctor's.

    Attributes:
        section: where it stands.
        name: of the probe, or what else was looked at.
        level: how it went.
        evidence: what was seen.
        remedy: what helps, if something is wrong.
    """

    section: Section
    name: str
    level: Level
    evidence: str
    remedy: Remedy | None = None


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """The whole of it; :attr:`isolation` is the one line that counts."""

    system: System
    program: Path
    checks: tuple[Check, ...]
    selection: Selection

    @property
    def isolation(self) -> str:
        """What will run a sandbox, in words."""
        chosen = self.selection
        if chosen.backend is None:
            return f"none ({chosen.reason})"
        words = {
            Backend.NAMESPACES: "namespaces",
            Backend.BWRAP: f"namespaces through {chosen.bwrap}",
            Backend.KVM: "microVM (KVM)",
            Backend.HOST: "host, without namespaces",
        }
        how = " (by the nsrun program)" if chosen.runner is Runner.PROGRAM else ""
        by = "" if chosen.wanted is None else f", asked for by {chosen.wanted_by}"
        return words[chosen.backend] + how + by

    @property
    def exit_status(self) -> int:
        """0 only if a backend will run a sandbox."""
        return 0 if self.selection.backend is not None else 1


def diagnose(backend: str | None = None, *, allow_host: bool = False) -> Diagnosis:
    """Probe everything, and choose.

    Raises:
        NsrunError: the nsrun program can't be asked.
    """
    report = ask_program(backend, allow_host=allow_host)
    selection = select(backend, allow_host=allow_host, cache=False)
    system = this_system()
    checks = [
        *_namespaces(report, selection, system),
        *_confinement(report, system),
        *_kvm(report, selection, system),
        *_host(report, selection, system),
    ]
    return Diagnosis(system, report.executable, tuple(checks), selection)


def _check(
    section: Section, probe: Probe, level: Level, system: System, name: str | None = None
) -> Check:
    """A probe as a line: PASS if it is ok, else as the caller sees it."""
    if probe.ok:
        return Check(section, name or probe.name, Level.PASS, probe.evidence)
    helps = None if probe.remedy is None else remedy(probe.remedy, system)
    return Check(section, name or probe.name, level, probe.evidence, helps)


def _namespaces(report: Report, selection: Selection, system: System) -> Iterable[Check]:
    here = Section.NAMESPACES
    by_namespaces = selection.backend in (Backend.NAMESPACES, Backend.BWRAP)
    level = Level.WARN if by_namespaces else Level.FAIL
    if selection.wanted is not None and selection.backend in (Backend.KVM, Backend.HOST):
        level = Level.INFO
    program, own = report["namespaces"], probe_own()
    yield _check(here, program, level, system, "namespaces (nsrun program)")
    if own.ok != program.ok or own.evidence != program.evidence:
        other = Level.INFO if program.ok else level
        yield _check(here, own, other, system, "namespaces (this Python)")
    bwrap = report["bwrap"]
    needed = not program.ok or (selection.wanted or "").lower() == "bwrap"
    if not bwrap.ok and program.ok and selection.backend is not None:
        needed = False
    yield _check(here, bwrap, level if needed else Level.INFO, system)


def _confinement(report: Report, system: System) -> Iterable[Check]:
    for name in ("seccomp", "no-new-privs", "landlock"):
        yield _check(Section.CONFINEMENT, report[name], Level.WARN, system)
    yield from _cgroups()


def _cgroups() -> Iterable[Check]:
    """What would hold the limits of a sandbox, by those who would make its cgroup."""
    for limit in Cgroups().available().values():
        name = f"limit {limit.limit}"
        if limit.held_by is not None:
            yield Check(Section.CONFINEMENT, name, Level.PASS, f"held by {limit.evidence}")
        else:
            helps = Remedy(limit.remedy) if limit.remedy else None
            yield Check(Section.CONFINEMENT, name, Level.INFO, limit.evidence, helps)


def _kvm(report: Report, selection: Selection, system: System) -> Iterable[Check]:
    """Plain information, unless KVM is asked for."""
    asked = (selection.wanted or "").lower() == Backend.KVM
    for name in ("microvm", "kvm", "kvm-guest", "guest-kernel"):
        probe = report[name]
        level = Level.INFO if not asked else Level.FAIL
        if asked and probe.verdict is Verdict.UNKNOWN:
            level = Level.WARN
        yield _check(Section.KVM, probe, level, system)


def _host(report: Report, selection: Selection, system: System) -> Iterable[Check]:
    asked = (selection.wanted or "").lower() == Backend.HOST
    level = Level.FAIL if asked and selection.backend is None else Level.INFO
    yield _check(Section.HOST, report["host"], level, system)


# --- showing it -------------------------------------------------------------------------------


def to_json(diagnosis: Diagnosis) -> dict[str, Any]:
    """As :data:`SCHEMA` describes it."""
    chosen = diagnosis.selection
    return {
        "format": FORMAT,
        "version": cowork_nsrun.__version__,
        "program": str(diagnosis.program),
        "system": {
            "name": diagnosis.system.name,
            "family": diagnosis.system.family.value,
            "container": diagnosis.system.container,
        },
        "checks": [_check_json(check) for check in diagnosis.checks],
        "isolation": diagnosis.isolation,
        "selection": {
            "backend": chosen.backend,
            "reason": chosen.reason,
            "runner": chosen.runner,
            "wanted": chosen.wanted,
            "wanted_by": chosen.wanted_by,
            "failed": list(chosen.failed),
            "remedy": chosen.remedy,
            "bwrap": chosen.bwrap,
        },
    }


def _check_json(check: Check) -> dict[str, Any]:
    helps = check.remedy
    return {
        "section": check.section,
        "name": check.name,
        "level": check.level,
        "evidence": check.evidence,
        "remedy": None if helps is None else {"text": helps.text, "commands": list(helps.commands)},
    }


def _printable(text: str) -> str:
    """What a terminal may be sent: paths can hold anything."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


_STYLES = {Level.PASS: "green", Level.INFO: "cyan", Level.WARN: "yellow", Level.FAIL: "bold red"}


def _show(diagnosis: Diagnosis, console: Console) -> None:
    def line(*parts: str | tuple[str, str]) -> None:
        console.print(Text.assemble(*parts), soft_wrap=True)

    container = diagnosis.system.container
    inside = "" if container is None else f", in a container ({_printable(container)})"
    line(f"nsrun {cowork_nsrun.__version__} on {_printable(diagnosis.system.name)}{inside}")
    section = None
    for check in diagnosis.checks:
        if check.section is not section:
            section = check.section
            line("")
            line((section, "bold"))
        evidence = f"{check.name}: {_printable(check.evidence)}"
        line((f"[{check.level}]", _STYLES[check.level]), " ", evidence)
        if check.remedy is not None:
            line("       ", (_printable(check.remedy.text), "italic"))
            for command in check.remedy.commands:
                line("         ", (_printable(command), "bold"))
    style = "bold green" if diagnosis.exit_status == 0 else "bold red"
    line("")
    line((f"Isolation: {_printable(diagnosis.isolation)}", style))


def _hints(diagnosis: Diagnosis) -> Iterable[str]:
    """What to paste, for what is not as it should be; a shell can read all of it."""
    seen = set()
    for check in diagnosis.checks:
        if check.level not in (Level.WARN, Level.FAIL) or check.remedy is None:
            continue
        if check.remedy in seen:
            continue
        seen.add(check.remedy)
        yield f"# {check.name}: {_printable(check.remedy.text)}"
        yield from check.remedy.commands


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="nsrun doctor",
        description="Show what runs sandboxes on this machine, and what would help.",
        epilog="The exit status is 0 only if a sandbox will run.",
    )
    add = parser.add_argument
    add("--backend", metavar="NAME", help="ask for auto, namespaces, bwrap, kvm or host")
    add("--allow-host", action="store_true", help="the confined host may be the last choice")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--json", action="store_true", help="for programs; see --schema")
    what.add_argument("--schema", action="store_true", help="print the JSON schema of --json")
    what.add_argument("--fix-hint", action="store_true", help="only the commands that help")
    what.add_argument(
        "--cowork", action="store_true", help="what 'nsrun serve' will do; alone on the line"
    )
    what.add_argument(
        "--apparmor",
        metavar="PATH",
        nargs="?",
        const="",
        help="print an AppArmor profile for nsrun, here or at PATH, and how to load it",
    )
    return parser


def _profile(path: str) -> str:
    """For the path that was named, the package's own program, or the system's."""
    program = path or find_program()
    if not path and OTHER_PROGRAM.exists():
        program = str(OTHER_PROGRAM)
    return apparmor.profile(program)


def _cowork(words: Sequence[str]) -> int:
    if len(words) > 1:
        sys.stderr.write("nsrun: doctor --cowork goes with nothing else\n")
        return 2
    # its libraries are nobody else's business
    from cowork_nsrun.cowork.doctor import report  # noqa: PLC0415

    text, failures = report(os.environ)
    sys.stdout.write(text)
    return failures


def main(words: Sequence[str]) -> int:
    """``nsrun doctor``; returns the exit status."""
    if "--cowork" in words:
        return _cowork(words)
    options = _parser().parse_args(words)
    if options.schema:
        sys.stdout.write(SCHEMA.read_text(encoding="utf-8"))
        return 0
    if options.apparmor is not None:
        sys.stdout.write(_profile(options.apparmor))
        return 0
    diagnosis = diagnose(options.backend, allow_host=options.allow_host)
    if options.json:
        sys.stdout.write(json.dumps(to_json(diagnosis), indent=2) + "\n")
    elif options.fix_hint:
        sys.stdout.writelines(f"{line}\n" for line in _hints(diagnosis))
    else:
        _show(diagnosis, Console(highlight=False))
    return diagnosis.exit_status
