"""What the design promises, beside what was measured."""

from __future__ import annotations

from dataclasses import dataclass

from bench.api import API_BASE, API_FLOOR, BARE
from bench.contenders import BASE, FLOOR
from bench.measure import Result


@dataclass(frozen=True)
class Target:
    """One contender over another in a case; at least ``bound`` if ``more``, else at most.

    With ``base_case`` the other is of that case.  ``floor`` is a hand-written contender, which
    nobody can be much better than: what it reaches stands beside what was measured.
    """

    case: str
    against: str
    bound: float
    what: str
    more: bool = False
    mine: str = "nsrun"
    base_case: str = ""
    floor: str = ""


def python_targets() -> list[Target]:
    """Those of the Python API; streams are captured by both or by none."""
    spawns = [
        ("run()", "subprocess.run, nsrun"),
        ("run(), no capture", "posix_spawn, nsrun"),
    ]
    rates = [("run(), threads", 2), ("run(), threads", 16), ("run(), asyncio", 16)]
    pooled = ["Pool.run()", "core, to the exit message"]
    return [
        *(
            Target(f"python-{size}", other, 1.0, f"{mine} / {other}, {size} MiB touched", mine=mine)
            for size in (20, 2048)
            for mine, other in spawns
        ),
        *(
            Target(
                "python-2048",
                mine,
                1.1,
                f"{mine}, 2 GiB touched / 20 MiB",
                mine=mine,
                base_case="python-20",
            )
            for mine, _ in spawns
        ),
        *(Target("pool", BARE, 2.0, f"{mine}, parked / {BARE}", mine=mine) for mine in pooled),
        *(
            Target(
                f"rate-{n}",
                API_BASE,
                4.0,
                f"{mine}, {n} at a time, over bwrap's",
                more=True,
                mine=mine,
                floor=API_FLOOR,
            )
            for mine, n in rates
        ),
    ]


TARGETS = [
    Target("true", BASE, 0.25, "nsrun / bwrap, static true", floor=FLOOR),
    Target("net", BASE, 0.35, "nsrun / bwrap, with a new network", floor=FLOOR),
    Target("cowork", BASE, 0.25, "nsrun / bwrap, Cowork argv", floor=FLOOR),
    Target("binds-1000", BASE, 0.03, "nsrun / bwrap, 1,000 binds", floor=FLOOR),
    Target("true", FLOOR, 1.15, "nsrun / floor, static true"),
    Target(
        "throughput-2",
        BASE,
        4.0,
        "runs a second over bwrap's, both cores",
        more=True,
        floor=FLOOR,
    ),
    *python_targets(),
]
# A bind may cost this much more among a thousand than among a hundred and still count as linear.
LINEAR = 1.5


@dataclass(frozen=True)
class Verdict:
    """One target as one user."""

    what: str
    user: str
    wanted: str
    measured: float | None
    met: bool | None
    #: what the hand-written program reaches
    floor: float | None = None


def find(results: list[Result], case: str, user: str, contender: str) -> Result | None:
    for result in results:
        if (result.case, result.user, result.contender) == (case, user, contender):
            return result
    return None


def quotient(mine: Result | None, other: Result | None) -> float | None:
    if mine is None or other is None:
        return None
    if mine.median_ns is not None and other.median_ns:
        return mine.median_ns / other.median_ns
    if mine.per_second is not None and other.per_second:
        return mine.per_second / other.per_second
    return None


def judge(target: Target, results: list[Result], user: str) -> Verdict:
    mine = find(results, target.case, user, target.mine)
    other = find(results, target.base_case or target.case, user, target.against)
    value = quotient(mine, other)
    wanted = f"{'≥' if target.more else '≤'} {target.bound:g}"
    met = None if value is None else (value >= target.bound) == target.more or value == target.bound
    floor = quotient(find(results, target.case, user, target.floor), other)
    return Verdict(target.what, user, wanted, value, met, floor)


def slope(results: list[Result], user: str, contender: str, few: int, many: int) -> float | None:
    """Nanoseconds a bind between two counts."""
    low = find(results, f"binds-{few}", user, contender)
    high = find(results, f"binds-{many}", user, contender)
    if low is None or high is None or low.median_ns is None or high.median_ns is None:
        return None
    return (high.median_ns - low.median_ns) / (many - few)


def judge_linearity(results: list[Result], user: str, contender: str) -> Verdict:
    """Does the thousandth bind cost what the hundredth did?"""
    first = slope(results, user, contender, 10, 100)
    second = slope(results, user, contender, 100, 1000)
    value = second / first if first and second and first > 0 else None
    met = None if value is None else value <= LINEAR
    what = f"{contender}: a bind of 100 to 1,000 over one of 10 to 100"
    return Verdict(what, user, f"≤ {LINEAR:g}", value, met)


def judge_all(results: list[Result]) -> list[Verdict]:
    verdicts: list[Verdict] = []
    for user in dict.fromkeys(r.user for r in results):
        verdicts += [judge(target, results, user) for target in TARGETS]
        verdicts.append(judge_linearity(results, user, "nsrun"))
    return verdicts
