"""Bar charts as SVG, written by hand; they follow the reader's light or dark colours."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape

from bench.cases import CASES
from bench.contenders import BASE
from bench.measure import Report, Result

WIDTH = 840
LEFT = 190
RIGHT = 150
TOP = 76
BAR = 18
GAP = 6
GROUP_GAP = 18
MOST_STEPS = 8
LONG_MS = 100  # from here on, no decimals
COLOURS = {"nsrun": "#2a9d8f", "floor": "#8ab8b2", BASE: "#e07a3f", "bwrap, system": "#eab08c"}
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
    colour = COLOURS.get(bar.name, OTHER)
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


def ratio_chart(report: Report, user: str, note: str) -> Chart | None:
    """Each case's medians over bwrap's."""
    groups: list[Group] = []
    for case in CASES:
        rows = [r for r in report.results if (r.case, r.user) == (case.key, user)]
        bars = [bar for r in rows if r.contender in COLOURS and (bar := ratio_bar(r))]
        if bars:
            groups.append(Group(case.title, bars))
    if not groups:
        return None
    return Chart(
        f"Time of one sandboxed run, over {BASE} (as {user})",
        note,
        f"median, {BASE} = 1; less is better",
        groups,
    )


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


def throughput_chart(report: Report, user: str, note: str) -> Chart | None:
    groups: list[Group] = []
    for case in CASES:
        rows = [r for r in report.results if (r.case, r.user) == (case.key, user)]
        bars = [
            Bar(r.contender, r.per_second, f"{r.per_second:,.0f}")
            for r in rows
            if r.per_second and r.contender in COLOURS
        ]
        if bars:
            groups.append(Group(case.title, bars))
    if not groups:
        return None
    return Chart(f"Sandboxes a second (as {user})", note, "runs a second; more is better", groups)


def draw_all(report: Report, note: str) -> dict[str, str]:
    """File names and pictures."""
    makers = {"cases": ratio_chart, "peers": peer_chart, "throughput": throughput_chart}
    pictures: dict[str, str] = {}
    for user in dict.fromkeys(r.user for r in report.results):
        for name, maker in makers.items():
            chart = maker(report, user, note)
            if chart is not None:
                pictures[f"{name}-{user}.svg"] = draw(chart)
    return pictures
