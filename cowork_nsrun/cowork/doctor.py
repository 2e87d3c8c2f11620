"""``nsrun doctor --cowork``: what the service will do here, as the launcher's doctor says it.

It asks the service's own decision, its own reader of the configuration and its own socket, so
what it says is what happens.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from cowork_nsrun.cowork import config
from cowork_nsrun.cowork.backends import Choice, decide
from cowork_nsrun.cowork.client import call, usual_path
from cowork_nsrun.cowork.main import config_directory
from cowork_nsrun.cowork.paths import PathError, Paths, is_within
from cowork_nsrun.errors import NsrunError
from cowork_nsrun.probe import VARIABLE, Probe, Verdict, ask_program
from cowork_nsrun.remedies import remedy, this_system
from cowork_nsrun.spec import Bind

HEADER = "Cowork Mode"
NAME_MAX_WANTED = 200  # bytes of a project's directory name: the app makes long ones
_SYSTEM = ("/usr", "/etc", "/bin", "/sbin", "/lib", "/lib64")
_USERNS = re.compile(
    r"user[ _-]?namespace|apparmor|operation not permitted|setting up [ug]id map"
    r"|CLONE_NEW(USER|NS)|CAP_SYS_ADMIN",
    re.IGNORECASE,
)


class Level(StrEnum):
    """How a line begins; information has no tag."""

    PASS = "[PASS] "
    FAIL = "[FAIL] "
    WARN = "[WARN] "
    INFO = "       "


@dataclass(frozen=True, slots=True)
class Line:
    """One line."""

    level: Level
    text: str

    def __str__(self) -> str:
        shown = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in self.text)
        return f"{self.level}{shown}"


def is_userns(text: str) -> bool:
    """A failure of a sandbox that comes from user namespaces not being allowed."""
    return _USERNS.search(text) is not None


def lines(environ: Mapping[str, str]) -> Iterator[Line]:
    """The section's lines.

    Raises:
        NsrunError: the nsrun program can't be asked.
    """
    choice = decide(environ.get(VARIABLE))
    report = ask_program("auto")
    if not choice.known:
        yield from _unknown(choice.override)
    yield from sandbox_lines(choice, report["namespaces"])
    yield from kvm_lines(choice, report["kvm"])
    yield Line(Level.INFO, f"Cowork isolation: {summary(choice)}")
    try:
        paths = Paths.of_home(environ.get("HOME") or os.path.expanduser("~"))
    except PathError as error:
        yield Line(Level.FAIL, error.text)
        return
    file = config_directory(environ, paths.home) / config.FILE
    if file.exists():
        yield from mount_lines(config.load(file, paths))
    yield from _name_lines(Path(paths.home))
    yield from _service_lines(environ)


def _unknown(override: str) -> Iterator[Line]:
    yield Line(Level.WARN, f"Unknown {VARIABLE}: '{override}'")
    yield Line(Level.INFO, "Valid values: kvm, bwrap, host")


def sandbox_lines(choice: Choice, probe: Probe) -> Iterator[Line]:
    """Whether sandboxes can be made."""
    if probe.ok or (choice.name == "bwrap" and not choice.override):
        yield Line(Level.PASS, "bubblewrap: sandbox probe succeeded")
        return
    others = choice.override.lower() in {"kvm", "host"}
    level = Level.WARN if others else Level.FAIL
    yield Line(level, f"bubblewrap: sandbox probe failed (errno={probe.errno})")
    yield Line(Level.INFO, f"  {probe.evidence}")
    if is_userns(probe.evidence):
        yield Line(
            Level.INFO, "  User namespaces are not allowed to this program; AppArmor decides"
        )
        yield Line(Level.INFO, "  that on Ubuntu 24.04+.  'nsrun doctor' says more.")
    if probe.remedy is not None:
        helps = remedy(probe.remedy, this_system())
        yield Line(Level.INFO, f"  Fix: {helps.text} {'; '.join(helps.commands)}".rstrip())


def kvm_lines(choice: Choice, probe: Probe) -> Iterator[Line]:
    """Plain information, unless KVM is asked for."""
    if probe.ok:
        yield Line(Level.PASS, "KVM: accessible")
        return
    asked = choice.override.lower() == "kvm"
    there = probe.verdict is Verdict.BLOCKED
    text = "KVM: /dev/kvm exists but not accessible" if there else "KVM: not available"
    yield Line(Level.WARN if asked else Level.INFO, text)
    if asked and probe.remedy is not None:
        helps = remedy(probe.remedy, this_system())
        yield Line(Level.INFO, f"  Fix: {helps.text} {'; '.join(helps.commands)}".rstrip())


def summary(choice: Choice) -> str:
    """What will run commands."""
    words = {
        "bwrap": "bubblewrap (namespace sandbox",
        "host": "host-direct (no isolation",
        "kvm": "KVM (full VM isolation",
        "none": "none (nothing is started",
    }
    text = words[choice.name]
    if choice.confined:
        text = "host-direct (confined by Landlock and seccomp, no namespaces"
    if choice.override and choice.known:
        text += ", via override"
    text += ")"
    if not choice.known:
        text += f", invalid override '{choice.override}' is ignored — see warning above"
    return text if choice.problem is None else f"{text}: {choice.problem}"


def mount_lines(mounts: config.UserMounts) -> Iterator[Line]:
    """The user's configuration, and what of it is not taken."""
    for warning in mounts.warnings:
        yield Line(Level.WARN, warning)
    if not (mounts.read_only or mounts.writable or mounts.disabled):
        yield Line(Level.INFO, "Bwrap mounts: default (no custom configuration)")
        return
    yield Line(Level.INFO, "Bwrap custom mount configuration detected:")
    for title, binds in (("Read-only", mounts.read_only), ("Read-write", mounts.writable)):
        if binds:
            yield Line(Level.INFO, f"  {title} mounts:")
            yield from (Line(Level.INFO, f"    - {_shown(bind)}") for bind in binds)
    for bind in (*mounts.read_only, *mounts.writable):
        if any(is_within(os.path.normpath(bind.dest), place) for place in _SYSTEM):
            yield Line(
                Level.WARN,
                f"Mount dst '{bind.dest}' shadows a default sandbox mount "
                "(may break system tools inside the sandbox)",
            )
    for source in mounts.present()[1]:
        yield Line(Level.WARN, f"Mount source '{source}' is not there: it is left out")
    for path in sorted(mounts.disabled):
        if path in {"/usr", "/etc"}:
            text = f"Disabled default mount: {path} (may break system tools!)"
            yield Line(Level.WARN, text)
        else:
            yield Line(Level.INFO, f"Disabled default mount: {path}")
    yield Line(Level.INFO, "Changes hold once the service is started anew.")


def _shown(bind: Bind) -> str:
    return bind.source if bind.source == bind.dest else f"{bind.source} -> {bind.dest}"


def _name_lines(home: Path) -> Iterator[Line]:
    """Encrypted homes take shorter names than the app makes."""
    place = home / ".claude" / "projects"
    while not place.exists() and place != home:
        place = place.parent
    try:
        longest = os.pathconf(place, "PC_NAME_MAX")
    except (OSError, ValueError):
        return
    if longest < NAME_MAX_WANTED:
        text = f"Filename limit: NAME_MAX={longest} on {place} (< {NAME_MAX_WANTED})"
        yield Line(Level.WARN, text)
        yield Line(Level.INFO, "  Projects with long paths fail with ENAMETOOLONG there.")


def _service_lines(environ: Mapping[str, str]) -> Iterator[Line]:
    path = usual_path(environ)
    if not os.path.exists(path):
        return
    try:
        status = call(path, "getStatus")
    except NsrunError as error:
        yield Line(Level.WARN, f"Cowork daemon: no answer: {error.text}")
        return
    count = len(status["sessions"])
    text = f"Cowork daemon: running on {path}, backend {status['backend']}, {count} sessions"
    yield Line(Level.PASS, text)


def report(environ: Mapping[str, str]) -> tuple[str, int]:
    """The section as text, and the number of its failures: the exit status.

    Raises:
        NsrunError: the nsrun program can't be asked.
    """
    found = list(lines(environ))
    text = "\n".join([HEADER, "-" * 16, *map(str, found)]) + "\n"
    return text, sum(line.level is Level.FAIL for line in found)
