"""Bar charts as SVG, written by hand; they follow the reader's light or dark colours."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from html import escape

from bench.api import API_BASE, API_FLOOR, BARE
from bench.cases import API_CASES, CASES, ApiCase, Case
from bench.contenders import BASE, FLOOR
from bench.measure import Report, Result

WIDTH = 840
LEFT = 230
RIGHT = 150
TOP = 76
BAR = 18
GAP = 6
GROUP_GAP = 18
MOST_STEPS = 8
LONG_MS = 100  # from here on, no decimals
COLOURS = {"nsrun": "#2a9d8f", FLOOR: "#8ab8b2", BASE: "#e07a3f", "bwrap, system": "#eab08c"}
API_COLOURS = {
    "run()": "#2a9d8f",
    "run(), no capture": "#2a9d8f",
    "run(), threads": "#2a9d8f",
    "run(), asyncio": "#5bb5a9",
    "Pool.run()": "#2a9d8f",
    "Pool.run(), no capture": "#2a9d8f",
    "Pool.popen() and wait()": "#2a9d8f",
    "core, to the exit message": "#8ab8b2",
    "core, to just before the exec": "#8ab8b2",
    "subprocess.run, nsrun": "#8d99ae",
    "posix_spawn, nsrun": "#8d99ae",
    API_FLOOR: "#8ab8b2",
    API_BASE: "#e07a3f",
    BARE: "#c5cbd6",
}
OTHER = "#8d99ae"
STYLE = """
  text { font-family: system-ui, "Segoe UI", Helvetica, Arial, sans-serif; fill: #6e7781 }
  .title { font-size: 18px; font-weight: 600 }
  .note, .tick { font-size: 12px }
  .name { font-size: 13px }
  .group { font-size: 13px; font-weight: 600 }
  .value { font-size: 12px; font-variant-numeric: tabular-nums }
  .grid { stroke: #8c959f; stroke-opacity: .35; stroke-width: 1 }
  .base { stroke: #8c959f; stroke-width: 1 }
  @media (prefers-color-scheme: light) { text { fill: #24292f } .note, .tick { fill: #57606a } }
  @media (prefers-color-scheme: dark) { text { fill: #e6edf3 } .note, .tick { fill: #9198a1 } }
"""


@dataclass(frozen=True)
class Bar:
    name: str
    value: float
    label: str


@dataclass(frozen=True)
class Group:
    title: str
    bars: list[Bar]


@dataclass(frozen=True)
class Chart:
    title: str
    note: str
    unit: str
    groups: list[Group]


def nice_step(limit: float) -> float:
    """A step of 1, 2 or 5 times a power of ten that cuts the axis in at most eight."""
    step = 10.0**-6
    while True:
        for factor in (1, 2, 5):
            if limit / (step * factor) <= MOST_STEPS:
                return step * factor
        step *= 10


def text_at(kind: str, x: float, y: float, words: str, anchor: str = "middle") -> str:
    place = f'x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"'
    return f'<text class="{kind}" {place}>{escape(words)}</text>'


def axis(limit: float, bottom: float, unit: str) -> list[str]:
    step = nice_step(limit)
    width = WIDTH - LEFT - RIGHT
    lines: list[str] = []
    for index in range(int(limit / step) + 1):
        x = LEFT + index * step / limit * width
        kind = "grid" if index else "base"
        ends = f'x1="{x:.1f}" y1="{TOP - 6}" x2="{x:.1f}" y2="{bottom:.1f}"'
        lines.append(f'<line class="{kind}" {ends}/>')
        lines.append(text_at("tick", x, bottom + 16, f"{index * step:g}"))
    lines.append(text_at("tick", LEFT + width / 2, bottom + 36, unit))
    return lines


def draw_bar(bar: Bar, y: float, limit: float) -> list[str]:
    width = max(1.5, bar.value / limit * (WIDTH - LEFT - RIGHT))
    colour = (COLOURS | API_COLOURS).get(bar.name, OTHER)
    base = y + BAR - 5
    return [
        text_at("name", LEFT - 10, base, bar.name, "end"),
        f'<rect x="{LEFT}" y="{y}" width="{width:.1f}" height="{BAR}" rx="2" fill="{colour}"/>',
        text_at("value", LEFT + width + 7, base, bar.label, "start"),
    ]


def draw_groups(groups: list[Group], limit: float) -> tuple[list[str], float]:
    lines: list[str] = []
    y = float(TOP)
    for group in groups:
        if group.title:
            lines.append(
                f'<text class="group" x="{LEFT}" y="{y + 12}">{escape(group.title)}</text>'
            )
            y += 20
        for bar in group.bars:
            lines += draw_bar(bar, y, limit)
            y += BAR + GAP
        y += GROUP_GAP
    return lines, y - GROUP_GAP + 4


def draw(chart: Chart) -> str:
    """The whole picture."""
    limit = max(bar.value for group in chart.groups for bar in group.bars) * 1.02
    bars, bottom = draw_groups(chart.groups, limit)
    height = bottom + 52
    title = escape(chart.title)
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:.0f}" role="img"'
            f' aria-label="{title}">',
            f"<style>{STYLE}</style>",
            f'<text class="title" x="20" y="30">{title}</text>',
            f'<text class="note" x="20" y="52">{escape(chart.note)}</text>',
            *axis(limit, bottom, chart.unit),
            *bars,
            "</svg>\n",
        ]
    )


def time_label(nanoseconds: float) -> str:
    value = nanoseconds / 1e6
    return f"{value:,.0f} ms" if value >= LONG_MS else f"{value:.2f} ms"


def ratio_bar(result: Result) -> Bar | None:
    if result.ratio is None or result.median_ns is None:
        return None
    return Bar(
        result.contender, result.ratio, f"{result.ratio:.3f}  ({time_label(result.median_ns)})"
    )


def grouped(
    report: Report,
    user: str,
    cases: Sequence[Case | ApiCase],
    shown: Iterable[str],
    make: Callable[[Result], Bar | None],
) -> list[Group]:
    """A group for each case that has results, with bars of the contenders to be shown."""
    groups: list[Group] = []
    for case in cases:
        rows = [r for r in report.results if (r.case, r.user) == (case.key, user)]
        bars = [bar for r in rows if r.contender in shown and (bar := make(r))]
        if bars:
            groups.append(Group(case.title, bars))
    return groups


def api_cases(kind: str) -> list[ApiCase]:
    return [case for case in API_CASES if case.kind == kind]


def ratio_chart(report: Report, user: str, note: str) -> Chart | None:
    """Each case's medians over bwrap's."""
    title = f"Time of one sandboxed run, over {BASE} (as {user})"
    groups = grouped(report, user, CASES, COLOURS, ratio_bar)
    return Chart(title, note, f"median, {BASE} = 1; less is better", groups) if groups else None


def python_chart(report: Report, user: str, note: str) -> Chart | None:
    """One run from Python programs of several sizes."""
    title = f"One sandboxed run from Python, by the program's memory (as {user})"
    groups = grouped(report, user, api_cases("spawn"), API_COLOURS, ratio_bar)
    unit = f"median, subprocess.run of {BASE} = 1; less is better"
    return Chart(title, note, unit, groups) if groups else None


def pool_chart(report: Report, user: str, note: str) -> Chart | None:
    """Commands into parked sandboxes."""
    title = f"A command in a parked sandbox, over one in none (as {user})"
    groups = grouped(report, user, api_cases("pool"), API_COLOURS, ratio_bar)
    unit = "median, posix_spawn without a sandbox = 1; less is better"
    return Chart(title, note, unit, groups) if groups else None


def peer_chart(report: Report, user: str, note: str) -> Chart | None:
    """Everybody on the plain case, in milliseconds."""
    rows = [r for r in report.results if (r.case, r.user) == ("true", user) and r.median_ns]
    bars = [
        Bar(r.contender, r.median_ns / 1e6, time_label(r.median_ns)) for r in rows if r.median_ns
    ]
    if not bars:
        return None
    bars.sort(key=lambda bar: bar.value)
    title = f"Starting and ending one sandbox around a program that only exits (as {user})"
    return Chart(title, note, "median, milliseconds; less is better", [Group("", bars)])


def rate_bar(result: Result) -> Bar | None:
    if not result.per_second:
        return None
    return Bar(result.contender, result.per_second, f"{result.per_second:,.0f}")


def rate_chart_of(title: str, groups: list[Group], note: str) -> Chart | None:
    return Chart(title, note, "runs a second; more is better", groups) if groups else None


def throughput_chart(report: Report, user: str, note: str) -> Chart | None:
    groups = grouped(report, user, CASES, COLOURS, rate_bar)
    return rate_chart_of(f"Sandboxes a second (as {user})", groups, note)


def rates_chart(report: Report, user: str, note: str) -> Chart | None:
    groups = grouped(report, user, api_cases("rates"), API_COLOURS, rate_bar)
    return rate_chart_of(f"Sandboxes a second from one Python program (as {user})", groups, note)


def draw_all(report: Report, note: str) -> dict[str, str]:
    """File names and pictures."""
    makers = {
        "cases": ratio_chart,
        "peers": peer_chart,
        "throughput": throughput_chart,
        "python": python_chart,
        "pool": pool_chart,
        "rates": rates_chart,
    }
    pictures: dict[str, str] = {}
    for user in dict.fromkeys(r.user for r in report.results):
        for name, maker in makers.items():
            chart = maker(report, user, note)
            if chart is not None:
                pictures[f"{name}-{user}.svg"] = draw(chart)
    return pictures
