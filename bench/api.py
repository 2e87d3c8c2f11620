"""The Python API against the programs: orders to bench/parent.py, and what came of them."""

from __future__ import annotations

import json
import select
import statistics
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from bench.cases import STANDARD, ApiCase
from bench.contenders import BASE, FLOOR, Contender, Setting
from bench.measure import Absence, MeasureError, Report, Result, add_ratios, environment, percentile

SCRIPT = Path(__file__).with_name("parent.py")
API_BASE = f"subprocess.run, {BASE}"
API_FLOOR = f"subprocess.run, {FLOOR}"
BARE = "posix_spawn, no sandbox"
FORKED = "fork and exec, no sandbox"
MIB = 1 << 20
SPARE = 1024 * MIB
WARM_UP = 5
ROUNDS = 200
FORKS = 30
SLICES = 10
SLICE_SECONDS = 0.3
PARKINGS = 3
PATIENCE = 60  # seconds for one order
REASON = "only {} MiB of memory are free"


class Parent:
    """A Python program that has touched so much memory, and takes orders."""

    def __init__(self, everybody: list[Contender], setting: Setting, touch: int) -> None:
        paths = {contender.name: contender.path for contender in everybody}
        config = {
            "uid": setting.uid,
            "gid": setting.gid,
            "touch": touch,
            "true": str(setting.workspace.true),
            "nsrun": paths["nsrun"],
            "bwrap": paths[BASE],
            "floor": paths[FLOOR],
            "base": API_BASE,
            "options": STANDARD,
        }
        self._process = subprocess.Popen(
            [sys.executable, "-I", str(SCRIPT), json.dumps(config)],
            cwd="/",
            env=environment(setting),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def ask(self, what: str, **more: float | str) -> Any:
        """Its answer to an order; what went wrong it has said on stderr itself."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps({"do": what, **more}) + "\n")
            self._process.stdin.flush()
            ready, _, _ = select.select([self._process.stdout], [], [], PATIENCE)
            if not ready:
                self._process.kill()
                raise MeasureError(f"the Python program hung at {what!r}")
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise MeasureError(f"the Python program ended with {self._process.wait()} at {what!r}")
        return json.loads(line)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        # the end of its orders is its end; an order that it did not take is lost with it
        with suppress(BrokenPipeError):
            self._process.__exit__(kind, value, traceback)


def timed(case: ApiCase, user: str, name: str, took: list[int | None]) -> Result:
    """A contender's result; None among the times is a run that failed."""
    good = [value for value in took if value is not None]
    result = Result(case.key, user, name, runs=len(took), failed=len(took) - len(good))
    if good:
        result.median_ns = statistics.median(good)
        result.p99_ns = percentile(good, 0.99)
        result.least_ns = min(good)
    return result


def free_memory() -> int:
    """Bytes that can be had without taking them from somebody."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return 0


def that_fit(cases: list[ApiCase], user: str, report: Report) -> list[ApiCase]:
    """They are all there at one time; those for which memory is short are noted."""
    free = free_memory()
    left = free - SPARE
    fit: list[ApiCase] = []
    for case in cases:
        left -= case.amount * MIB
        if left >= 0:
            fit.append(case)
        else:
            reason = REASON.format(free // MIB)
            report.absences.append(Absence(user, "the Python API", reason, case.key))
    return fit


def run_spawns(
    cases: list[ApiCase], everybody: list[Contender], setting: Setting, user: str, quick: bool
) -> list[Result]:
    """Programs of several sizes in turn, and in each of them all ways to start a sandbox."""
    rounds = ROUNDS // 10 if quick else ROUNDS
    rows: list[dict[str, list[int | None]]] = [{} for _ in cases]
    with ExitStack() as stack:
        parents = [stack.enter_context(Parent(everybody, setting, c.amount * MIB)) for c in cases]
        for number in range(-WARM_UP, rounds):
            for row, parent in zip(rows, parents, strict=True):
                for name, took in parent.ask("round", number=number).items():
                    if number >= 0:
                        row.setdefault(name, []).append(took)
        # apart from the rest, which would pay for the pages that it has to copy
        for row, parent in zip(rows, parents, strict=True):
            row[FORKED] = [parent.ask("fork") for _ in range(FORKS // 10 if quick else FORKS)]
    results: list[Result] = []
    for case, row in zip(cases, rows, strict=True):
        found = [timed(case, user, name, row[name]) for name in sorted(row, key=place_of)]
        add_ratios(found, API_BASE)
        results += found
    return results


def place_of(name: str) -> tuple[bool, str]:
    """Order in the tables: ours, then the others by name."""
    return ("()" not in name, name)


def run_pool(case: ApiCase, parent: Parent, user: str, quick: bool) -> list[Result]:
    """Commands into parked sandboxes."""
    rounds = ROUNDS // 10 if quick else ROUNDS
    answer = parent.ask("pool", rounds=rounds, size=case.amount)
    results = [timed(case, user, name, took) for name, took in answer.items()]
    add_ratios(results, BARE)
    return results


def run_rates(
    case: ApiCase, everybody: list[Contender], setting: Setting, user: str, quick: bool
) -> list[Result]:
    """So many at a time, each contender in a program of its own; one that hangs has failed."""
    slices, seconds = (2, SLICE_SECONDS / 4) if quick else (SLICES, SLICE_SECONDS)
    names = ["run(), threads", "run(), asyncio", "subprocess.run, nsrun"]
    for contender, name in ((FLOOR, API_FLOOR), (BASE, API_BASE)):
        if any(one.name == contender and one.path for one in everybody):
            names.append(name)
    results = [Result(case.key, user, name, runs=0, failed=0) for name in names]
    took = dict.fromkeys(names, 0.0)
    with ExitStack() as stack:
        parents = [stack.enter_context(Parent(everybody, setting, 20 * MIB)) for _ in names]
        for _ in range(slices):
            for result, parent in zip(results, parents, strict=True):
                if result.failed:
                    continue
                name = result.contender
                try:
                    runs, slice_took = parent.ask(
                        "rate", name=name, workers=case.amount, seconds=seconds
                    )
                except MeasureError as error:
                    print(f"bench: {name}: {error}", file=sys.stderr)
                    result.failed = 1
                    continue
                result.runs += runs
                took[name] += slice_took
    for result in results:
        if not result.failed:
            result.per_second = result.runs / took[result.contender]
    add_ratios(results, API_BASE)
    return results


def run_park(case: ApiCase, parent: Parent, user: str, quick: bool) -> list[Result]:
    """What parked sandboxes take: others use memory meanwhile, so the median of several times."""
    answers = [parent.ask("park", count=case.amount) for _ in range(1 if quick else PARKINGS)]
    return [
        Result(
            case.key,
            user,
            name,
            runs=case.amount,
            failed=0,
            memory_bytes=statistics.median(answer[name] for answer in answers),
        )
        for name in answers[0]
    ]


SMALL = {"pool": run_pool, "park": run_park}


@contextmanager
def noted(cases: list[ApiCase], user: str, report: Report) -> Iterator[None]:
    """Cases whose program came to an early end count as failed; the others go on."""
    try:
        yield
    except MeasureError as error:
        print(f"bench: {error}", file=sys.stderr)
        report.results += [Result(case.key, user, "the Python API", 1, 1) for case in cases]


def run_api(
    chosen: list[ApiCase],
    everybody: list[Contender],
    settings: dict[str, Setting],
    quick: bool,
    report: Report,
) -> None:
    """All of these cases, as each user."""
    paths = {contender.name: contender.path for contender in everybody}
    if paths["nsrun"] is None:
        return
    for user, setting in settings.items():
        spawns = that_fit([case for case in chosen if case.kind == "spawn"], user, report)
        if spawns:
            print(f"Python, as {user} ...", file=sys.stderr)
            with noted(spawns, user, report):
                report.results += run_spawns(spawns, everybody, setting, user, quick)
        for case in chosen:
            if case.kind == "spawn":
                continue
            print(f"{case.title}, as {user} ...", file=sys.stderr)
            if case.kind == "rates":
                report.results += run_rates(case, everybody, setting, user, quick)
            else:
                # a program of its own: what the last case left in it is no matter
                with noted([case], user, report), Parent(everybody, setting, 20 * MIB) as parent:
                    report.results += SMALL[case.kind](case, parent, user, quick)
