"""The command line of the benchmarks."""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

from bench import api, chart, contenders, document, helpers, measure, mounts, table, targets
from bench.cases import API_CASES, CASES, TITLES, Case
from bench.contenders import FLOOR, Contender, Setting
from bench.measure import Absence, Report

OUT = Path(__file__).resolve().parent.parent / "docs" / "bench"


def parse(words: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="bench", description=__doc__)
    parser.add_argument(
        "--quick", action="store_true", help="a tenth of the rounds, for a smoke test"
    )
    parser.add_argument(
        "--only",
        action="append",
        choices=list(TITLES),
        metavar="CASE",
        help="one case; may be repeated: %(choices)s",
    )
    parser.add_argument(
        "--out", type=Path, default=OUT, help="directory for JSON and SVG (%(default)s)"
    )
    parser.add_argument("--cache", type=Path, default=None, help="directory for what is built")
    parser.add_argument(
        "--uid", type=int, default=12345, help="the unprivileged user, when run as root"
    )
    return parser.parse_args(words)


def users(uid: int) -> dict[str, int]:
    """Both if we are root, else just us."""
    return {"root": 0, "user": uid} if os.geteuid() == 0 else {"user": os.geteuid()}


def version_of(contender: Contender) -> str:
    """What the program says of itself, in one line, if anything."""
    if contender.path is None or contender.name in {FLOOR, "no sandbox"}:
        return ""
    try:
        done = subprocess.run(
            [contender.path, "--version"], capture_output=True, text=True, timeout=10, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return next(iter(done.stdout.splitlines()), "")


def processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine()
    return next(
        (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), ""
    )


def machine() -> dict[str, str | int]:
    return {
        "processor": processor(),
        "cores": len(os.sched_getaffinity(0)),
        "kernel": platform.release(),
        "date": datetime.now(UTC).date().isoformat(),
    }


def announce_missing(everybody: list[Contender], user_names: list[str], report: Report) -> None:
    for contender in everybody:
        if contender.path is None:
            print(f"missing: {contender.name} ({contender.hint})", file=sys.stderr)
            reason = f"not installed ({contender.hint})"
            report.absences += [Absence(user, contender.name, reason) for user in user_names]


def run_all(
    chosen: list[Case], everybody: list[Contender], settings: dict[str, Setting], quick: bool
) -> Report:
    report = Report()
    announce_missing(everybody, list(settings), report)
    for user, setting in settings.items():
        for case in chosen:
            print(f"{case.title}, as {user} ...", file=sys.stderr)
            entries = measure.select(everybody, case, setting, user, report)
            report.results += measure.run_case(case, entries, setting, user, quick)
    return report


def write_out(directory: Path, report: Report, about: dict[str, object], note: str) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    verdicts = [asdict(verdict) for verdict in targets.judge_all(report.results)]
    everything = {
        **about,
        "results": [asdict(result) for result in report.results],
        "not_measured": [asdict(absence) for absence in report.absences],
        "targets": verdicts,
    }
    (directory / "results.json").write_text(
        json.dumps(everything, indent=1, ensure_ascii=False) + "\n"
    )
    for name, picture in chart.draw_all(report, note).items():
        (directory / name).write_text(picture)


def main(words: list[str] | None = None) -> int:
    """Measure, print, write; 1 if a measured run failed, 2 if nothing could be measured."""
    arguments = parse(words)
    ids = users(arguments.uid)
    root = arguments.cache or helpers.default_root()
    try:
        workspace = helpers.prepare(root, list(ids.values()))
    except helpers.BuildError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 2
    if os.geteuid() == 0:
        mounts.enter_own()
    everybody = contenders.find_all(workspace)
    settings = {
        name: Setting(workspace, uid, os.getegid() if uid == os.geteuid() else uid)
        for name, uid in ids.items()
    }
    chosen = [case for case in CASES if not arguments.only or case.key in arguments.only]
    report = run_all(chosen, everybody, settings, arguments.quick)
    python = [case for case in API_CASES if not arguments.only or case.key in arguments.only]
    api.run_api(python, everybody, settings, arguments.quick, report)
    table.print_report(report, targets.judge_all(report.results))
    about = machine()
    versions = {c.name: version_of(c) for c in everybody if c.path}
    note = "{processor}, {cores} cores, Linux {kernel}, {date}; interleaved runs".format(**about)
    write_out(
        arguments.out,
        report,
        {"machine": about, "versions": versions, "quick": arguments.quick},
        note,
    )
    if arguments.out == OUT:
        document.rewrite(arguments.out)
    print(f"\nwritten to {arguments.out}")
    return 1 if any(result.failed for result in report.results) else 0
