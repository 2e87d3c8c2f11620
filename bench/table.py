"""Prints results: rich tables on a terminal, aligned plain text everywhere else."""

from __future__ import annotations

import sys

from bench.cases import TITLES
from bench.measure import Absence, Report, Result
from bench.targets import Verdict

try:
    import rich.console as rich_console
    import rich.table as rich_table
except ImportError:
    HAVE_RICH = False
else:
    HAVE_RICH = True

Rows = list[list[str]]
RESULT_HEADS = [
    "case",
    "user",
    "program",
    "ratio",
    "median ms",
    "p99 ms",
    "all gone ms",
    "runs/s",
    "KiB",
    "failed",
]
VERDICT_HEADS = ["what", "user", "wanted", "measured", "floor", ""]


def milliseconds(nanoseconds: float | None) -> str:
    return "" if nanoseconds is None else f"{nanoseconds / 1e6:.3f}"


def kibibytes(value: float | None) -> str:
    return "" if value is None else f"{value / 1024:.0f}"


def ratio(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def result_row(result: Result) -> list[str]:
    rate = "" if result.per_second is None else f"{result.per_second:.0f}"
    return [
        TITLES.get(result.case, result.case),
        result.user,
        result.contender,
        ratio(result.ratio),
        milliseconds(result.median_ns),
        milliseconds(result.p99_ns),
        milliseconds(result.gone_median_ns),
        rate,
        kibibytes(result.memory_bytes),
        str(result.failed or ""),
    ]


def verdict_row(verdict: Verdict) -> list[str]:
    said = {True: "met", False: "MISSED", None: "not measured"}
    figures = [ratio(verdict.measured), ratio(verdict.floor)]
    return [verdict.what, verdict.user, verdict.wanted, *figures, said[verdict.met]]


def group_absences(absences: list[Absence]) -> Rows:
    """One row a contender and reason, with the cases that it concerns."""
    groups: dict[tuple[str, str, str], list[str]] = {}
    for absence in absences:
        key = (absence.contender, absence.user, absence.reason)
        groups.setdefault(key, []).append(absence.case)
    return [[*key, ", ".join(filter(None, cases)) or "all"] for key, cases in groups.items()]


def print_plain(title: str, heads: list[str], rows: Rows) -> None:
    widths = [max(len(row[i]) for row in [heads, *rows]) for i in range(len(heads))]
    print(f"\n{title}")
    for row in [heads, *rows]:
        print(
            "  ".join(word.ljust(width) for word, width in zip(row, widths, strict=True)).rstrip()
        )


def print_rich(title: str, heads: list[str], rows: Rows) -> None:
    table = rich_table.Table(title=title, title_justify="left")
    for head in heads:
        table.add_column(head)
    for row in rows:
        table.add_row(*row)
    rich_console.Console().print(table)


def print_table(title: str, heads: list[str], rows: Rows) -> None:
    if not rows:
        return
    printer = print_rich if HAVE_RICH and sys.stdout.isatty() else print_plain
    printer(title, heads, rows)


def print_report(report: Report, verdicts: list[Verdict]) -> None:
    print_table("Results", RESULT_HEADS, [result_row(r) for r in report.results])
    print_table(
        "Not measured", ["program", "user", "reason", "cases"], group_absences(report.absences)
    )
    print_table("Targets", VERDICT_HEADS, [verdict_row(v) for v in verdicts])
