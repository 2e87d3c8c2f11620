"""Runs contenders against each other through spawn_timer and turns its lines into results."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
from dataclasses import dataclass, field
from typing import Any

from bench.cases import HOME, Case
from bench.contenders import BASE, Contender, Setting

PROOF_CODE = 37
# By its real path: the directory of a program is bound too, in the Cowork case.
PROOF = ["/usr/bin/sh", "-c", f"exit {PROOF_CODE}"]
MARKER = ":::"
SLICE_MS = 2000


class MeasureError(Exception):
    """The timer itself failed."""


@dataclass
class Result:
    """One contender in one case as one user; a missing figure was not measured."""

    case: str
    user: str
    contender: str
    runs: int
    failed: int
    median_ns: float | None = None
    p99_ns: float | None = None
    least_ns: int | None = None
    gone_median_ns: float | None = None
    minor_faults: float | None = None
    per_second: float | None = None
    ratio: float | None = None
    memory_bytes: float | None = None


@dataclass
class Entry:
    """A contender that has shown that it works, with its words."""

    contender: Contender
    command: list[str]


@dataclass
class Absence:
    """A contender that is not measured, and why."""

    user: str
    contender: str
    reason: str
    case: str = ""


@dataclass
class Report:
    """All that a run found."""

    results: list[Result] = field(default_factory=list)
    absences: list[Absence] = field(default_factory=list)


def environment(setting: Setting) -> dict[str, str]:
    """The same small one for all, so that no length of ours counts."""
    runtime = str(setting.workspace.state(setting.uid))
    return {"PATH": "/usr/bin:/bin", "HOME": HOME, "LANG": "C.UTF-8", "XDG_RUNTIME_DIR": runtime}


def try_out(command: list[str], setting: Setting) -> subprocess.CompletedProcess[str]:
    switch = os.geteuid() != setting.uid
    return subprocess.run(
        command,
        cwd="/",
        env=environment(setting),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        user=setting.uid if switch else None,
        group=setting.gid if switch else None,
        extra_groups=[] if switch else None,
    )


def last_line(text: str, code: int) -> str:
    lines = text.strip().splitlines()
    return lines[-1] if lines else f"exit code {code}"


def find_fault(contender: Contender, case: Case, setting: Setting) -> str | None:
    """Why this contender can't be measured here, or None.

    It must run what it is given and say how that ended.
    """
    if contender.name == "no sandbox":
        return None
    for payload, expected in ((PROOF, PROOF_CODE), (case.payload(setting.workspace), 0)):
        command = contender.command(case, setting, payload)
        if command is None:
            return None
        done = try_out(command, setting)
        if done.returncode != expected:
            return last_line(done.stderr, done.returncode)
    return None


def select(
    contenders: list[Contender], case: Case, setting: Setting, user: str, report: Report
) -> list[Entry]:
    """Those who run the case; the others are noted by name."""
    entries: list[Entry] = []
    for contender in contenders:
        command = contender.command(case, setting, case.payload(setting.workspace))
        if command is None:
            continue
        fault = find_fault(contender, case, setting)
        if fault is None:
            entries.append(Entry(contender, command))
        else:
            report.absences.append(Absence(user, contender.name, fault, case.key))
    return entries


def time(entries: list[Entry], setting: Setting, options: list[str]) -> list[dict[str, Any]]:
    """One JSON line of the timer for each entry."""
    words: list[str] = []
    for entry in entries:
        words += [MARKER, *entry.command]
    switch = os.geteuid() != setting.uid
    identity = ["-u", str(setting.uid), "-g", str(setting.gid)] if switch else []
    done = subprocess.run(
        [str(setting.workspace.timer), *options, *identity, "--", *words[1:]],
        cwd="/",
        env=environment(setting),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise MeasureError(last_line(done.stderr, done.returncode))
    return [json.loads(line) for line in done.stdout.splitlines()]


def percentile(values: list[int], share: float) -> float:
    ordered = sorted(values)
    return float(ordered[min(len(ordered) - 1, int(len(ordered) * share))])


def single(entry: Entry, line: dict[str, Any], case: Case, user: str) -> Result:
    wall = line["wall_ns"]
    return Result(
        case=case.key,
        user=user,
        contender=entry.contender.name,
        runs=len(wall),
        failed=line["failed"],
        median_ns=statistics.median(wall),
        p99_ns=percentile(wall, 0.99),
        least_ns=min(wall),
        gone_median_ns=statistics.median(line["gone_ns"]),
        minor_faults=statistics.median(line["minor_faults"]),
    )


def throughput(entry: Entry, line: dict[str, Any], case: Case, user: str) -> Result:
    return Result(
        case=case.key,
        user=user,
        contender=entry.contender.name,
        runs=line["runs"],
        failed=line["failed"],
        per_second=line["runs"] / line["run_ns"] * 1e9,
    )


def add_ratios(results: list[Result], base_name: str) -> None:
    """Time over the base's, or for throughput rate over the base's."""
    base = next((r for r in results if r.contender == base_name), None)
    if base is None:
        return
    for result in results:
        if result.median_ns is not None and base.median_ns:
            result.ratio = result.median_ns / base.median_ns
        elif result.per_second is not None and base.per_second:
            result.ratio = result.per_second / base.per_second


def run_together(
    case: Case, entries: list[Entry], setting: Setting, user: str, quick: bool
) -> list[Result]:
    """One interleaved run."""
    if case.workers:
        milliseconds = SLICE_MS // 10 if quick else SLICE_MS
        lines = time(entries, setting, ["-j", str(case.workers), "-s", str(milliseconds)])
        results = [throughput(e, line, case, user) for e, line in zip(entries, lines, strict=True)]
    else:
        rounds, warm_up = (max(2, case.rounds // 10), 1) if quick else (case.rounds, 5)
        lines = time(entries, setting, ["-n", str(rounds), "-w", str(warm_up)])
        results = [single(e, line, case, user) for e, line in zip(entries, lines, strict=True)]
    add_ratios(results, BASE)
    return results


def run_case(
    case: Case, entries: list[Entry], setting: Setting, user: str, quick: bool
) -> list[Result]:
    """Peers come in a run of their own, against bwrap again: the heavy ones empty every cache."""
    peers = [entry for entry in entries if entry.contender.peer]
    others = [entry for entry in entries if not entry.contender.peer]
    results = run_together(case, others, setting, user, quick)
    if peers:
        against = [entry for entry in others if entry.contender.name == BASE]
        again = run_together(case, [*against, *peers], setting, user, quick)
        results += [result for result in again if result.contender != BASE]
    return results
