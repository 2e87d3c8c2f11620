"""The part of docs/performance.md that is made from results.json."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from bench import chart, table
from bench.cases import API_CASES, CASES
from bench.measure import Report, Result
from bench.table import Rows
from bench.targets import Verdict

PATH = Path(__file__).resolve().parent.parent / "docs" / "performance.md"
BEGIN = "<!-- bench: made by make bench from docs/bench/results.json; don't edit -->"
END = "<!-- bench: end -->"
API_KEYS = {case.key: case.kind for case in API_CASES}
KEYS = {case.key for case in CASES}


def markdown(heads: list[str], rows: Rows) -> list[str]:
    """A table without the columns that nobody has anything in."""
    used = [i for i in range(len(heads)) if any(row[i] for row in rows)]
    lines = [[heads[i] for i in used], ["---"] * len(used)]
    lines += [[row[i].replace("|", "\\|") for i in used] for row in rows]
    return [f"| {' | '.join(line)} |" for line in lines]


def part(title: str, report: Report, keys: set[str], picture: str) -> list[str]:
    """A heading, pictures, and the rows of these cases."""
    rows = [table.result_row(r) for r in report.results if r.case in keys]
    if not rows:
        return []
    drawn = [name for name in chart.draw_all(report, "") if name.split("-")[0] in picture.split()]
    images = [f"![{Path(name).stem}](bench/{name})" for name in drawn]
    return [f"### {title}", "", *images, "", *markdown(table.RESULT_HEADS, rows), ""]


def section(found: dict[str, Any]) -> str:
    """All between the marks, the marks included."""
    report = Report([Result(**result) for result in found["results"]])
    verdicts = [table.verdict_row(Verdict(**verdict)) for verdict in found["targets"]]
    about = "{processor}, {cores} cores, Linux {kernel}, {date}".format(**found["machine"])
    versions = ", ".join(version for version in found["versions"].values() if version)
    lines = [BEGIN, "", f"Measured on {about}; {versions}.", ""]
    if found["quick"]:
        lines += ["A quick run, with a tenth of the rounds.", ""]
    lines += ["### Targets", "", *markdown(table.VERDICT_HEADS, verdicts), ""]
    lines += part("The command", report, KEYS, "cases peers throughput")
    for kind, title, picture in (
        ("spawn", "From Python", "python"),
        ("pool", "A pool", "pool"),
        ("rates", "Sandboxes a second, from Python", "rates"),
        ("park", "Memory of a parked sandbox", ""),
    ):
        keys = {key for key, its in API_KEYS.items() if its == kind}
        lines += part(title, report, keys, picture)
    return "\n".join([*lines, END])


def rewrite(directory: Path, path: Path = PATH) -> None:
    """Put what is in that directory's results.json into the document."""
    found = json.loads((directory / "results.json").read_text())
    before, begin, rest = path.read_text().partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{path}: the marks {BEGIN!r} and {END!r} are not there")
    path.write_text(before + section(found) + after)
