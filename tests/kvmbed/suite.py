"""All that the bed tests, with one summary: .venv/bin/python -m tests.kvmbed.suite [STEP...]"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from xml.etree import ElementTree

from .machine import BROKEN, CACHE, ROOT, Bed, Job, end_on_signals, reported, say
from .steps import SOAKS, TESTS, Machine, Step

RESULTS = CACHE / "results"
BEGIN = f"{'=' * 20} kvmbed: begin of"
END = f"{'=' * 20} kvmbed: end of"
TOLD = "kvmbed: told: "
PYTEST = (".venv/bin/pytest", "-p", "no:cacheprovider", "--color=no")
#: of pytest's output, what says why a test failed
TELLING = re.compile(r"FAILED|ERROR|E  |.*KeyboardInterrupt")
ACCOUNT_LINES = 12


@dataclass(frozen=True)
class Outcome:
    """What came of a step; of one that failed and was run again, ``first`` is its first status."""

    step: Step
    status: int | None
    seconds: float = 0
    first: int = 0

    @property
    def good(self) -> bool:
        return self.status in (0, None)

    def line(self) -> str:
        if self.status is None:
            return f"{self.step.name:18} not run: {' '.join(self.step.lacks())} is not there"
        verdict = "ok" if self.good else f"FAILED, status {self.status}"
        if self.first:
            verdict += f", the second time; UNSTEADY: status {self.first} the first"
        return f"{self.step.name:18} {counts(self.step):44} {self.seconds:5.0f} s  {verdict}"

    def account(self) -> str:
        """Of a failure: what the end of its output says of it."""
        log = RESULTS / self.step.name / "output.log"
        lines = log.read_text(errors="replace").splitlines() if log.exists() else []
        told = [line for line in lines if TELLING.match(line)][-ACCOUNT_LINES:]
        return "\n".join((f"--- {self.step.name}", *told, *lines[-ACCOUNT_LINES:]))


def counts(step: Step) -> str:
    """What pytest counted, out of its report."""
    report = RESULTS / step.name / "junit.xml"
    if not report.exists():
        return "no report"
    suite = ElementTree.parse(report).getroot().find("testsuite")
    assert suite is not None
    number = {name: int(suite.get(name, 0)) for name in ("tests", "failures", "errors", "skipped")}
    passed = number["tests"] - number["failures"] - number["errors"] - number["skipped"]
    words = [f"{passed} passed"]
    words += [
        f"{number[name]} {name}" for name in ("failures", "errors", "skipped") if number[name]
    ]
    return ", ".join(words)


def last_seconds(machine: Machine) -> float:
    """How long its steps took the last time, as far as that is known."""
    seconds = 0.0
    for step in machine.steps:
        report = RESULTS / step.name / "junit.xml"
        if report.exists():
            suite = ElementTree.parse(report).getroot().find("testsuite")
            seconds += 0 if suite is None else float(suite.get("time", 0))
    return seconds


# --- one machine ------------------------------------------------------------------------------


def run(bed: Bed, machine: Machine) -> list[Outcome]:
    """Its steps, whose output is shown as it comes."""
    outcomes = [Outcome(step, None) for step in machine.steps if step.lacks()]
    steps = tuple(step for step in machine.steps if not step.lacks())
    for step in steps:
        shutil.rmtree(RESULTS / step.name, ignore_errors=True)
        (RESULTS / step.name).mkdir(parents=True)
    if steps and machine.job is None:
        outcomes += [on_host(step) for step in steps]
    elif steps and machine.job is not None:
        outcomes += in_bed(bed, machine.job, steps)
    return sorted(outcomes, key=lambda outcome: machine.steps.index(outcome.step))


def on_host(step: Step) -> Outcome:
    print(f"{BEGIN} {step.name}", flush=True)
    begin = time.monotonic()
    command = ["setpriv", "--pdeathsig", "TERM", *PYTEST, *step.tests]
    command.append(f"--junitxml={RESULTS}/{step.name}/junit.xml")
    environment = {**os.environ, "NSRUN_KVMBED": "outside"}
    done = subprocess.run(command, cwd=ROOT, env=environment, check=False)
    return Outcome(step, done.returncode, time.monotonic() - begin)


def script(step: Step) -> str:
    """For the bed's shell: the step between two marks, with its status and its seconds."""
    results = f"/run/results/{step.name}"
    words = ["env", *(f"{name}={value}" for name, value in step.environment.items())]
    # interrupted, pytest says where it was
    words += ["timeout", "--signal=INT", "--kill-after=60", f"{step.timeout_s:g}"]
    words += [*PYTEST, *step.tests, f"--junitxml={results}/junit.xml"]
    return (
        f"echo '{BEGIN} {step.name}'; mkdir {results}; begin=$(date +%s); {shlex.join(words)};"
        f" echo '{END} {step.name}' $? $(($(date +%s) - begin))"
    )


def in_bed(bed: Bed, job: Job, steps: tuple[Step, ...]) -> list[Outcome]:
    with tempfile.TemporaryDirectory(dir=CACHE, prefix="results-") as directory:
        results = Path(directory)
        job = replace(
            job,
            command=("sh", "-c", "\n".join(map(script, steps))),
            timeout_s=sum(step.timeout_s for step in steps),
            results=results,
        )
        with open(results / "output.log", "wb") as log:
            status = reported(lambda: bed.run(job, sys.stdout.buffer, log))
        text = (results / "output.log").read_text(errors="replace")
        for step in steps:
            for path in (results / step.name).glob("*"):
                shutil.move(path, RESULTS / step.name)
            if (results / "console.log").exists():
                shutil.copy(results / "console.log", RESULTS / step.name)
        return [outcome_of(step, text, status) for step in steps]


def outcome_of(step: Step, text: str, status: int) -> Outcome:
    """By a machine's output, which is kept by step; its status, if the step has no end in it."""
    output = text.partition(f"{BEGIN} {step.name}\n")[2]
    output, _, rest = output.partition(f"{END} {step.name} ")
    (RESULTS / step.name / "output.log").write_text(output.partition(BEGIN)[0])
    words = rest.split(maxsplit=2)[:2]
    if len(words) == 2 and all(word.isdigit() for word in words):
        return Outcome(step, int(words[0]), float(words[1]))
    return Outcome(step, status or BROKEN)


# --- all of them ------------------------------------------------------------------------------


def run_apart(running: set[subprocess.Popen[bytes]], machine: Machine) -> list[Outcome]:
    """A machine in a process of its own, whose output is shown when it has ended."""
    # this thread outlives the process, which would end with it
    front = ["setpriv", "--pdeathsig", "TERM", sys.executable, "-m", "tests.kvmbed.suite"]
    process = subprocess.Popen(
        [*front, "--jobs=1", "--once", "--told", *(step.name for step in machine.steps)],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    running.add(process)
    output, _ = process.communicate()
    running.remove(process)
    shown, mark, told = output.rpartition(TOLD.encode())
    sys.stdout.buffer.write(shown if mark else output)
    sys.stdout.flush()
    # it died, or was ended, before it could tell
    if process.returncode or not mark:
        return [Outcome(step, process.returncode or BROKEN) for step in machine.steps]
    facts = json.loads(told)
    return [Outcome(step, *facts[step.name]) for step in machine.steps]


def run_all(machines: list[Machine], jobs: int) -> list[Outcome]:
    """One after the other, or several at a time; the longest ones first then."""
    if jobs == 1 or len(machines) == 1:
        bed = Bed()
        return [outcome for machine in machines for outcome in run(bed, machine)]
    running: set[subprocess.Popen[bytes]] = set()
    first = sorted(machines, key=lambda machine: -last_seconds(machine))
    with ThreadPoolExecutor(jobs) as pool:
        try:
            outcomes = [
                done for part in pool.map(partial(run_apart, running), first) for done in part
            ]
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in list(running):
                process.terminate()
            raise
    names = names_of(machines)
    return sorted(outcomes, key=lambda outcome: names.index(outcome.step.name))


def run_again(bed: Bed, outcome: Outcome, machine: Machine) -> Outcome:
    """A step that failed, with nothing beside it; what it left the first time is kept."""
    print(outcome.account(), flush=True)
    kept = RESULTS / f"{outcome.step.name}.first"
    shutil.rmtree(kept, ignore_errors=True)
    (RESULTS / outcome.step.name).rename(kept)
    (again,) = run(bed, replace(machine, steps=(outcome.step,)))
    return replace(again, first=outcome.status or 0)


def chosen(names: Iterable[str]) -> list[Machine]:
    """The machines, with those of their steps alone that are named."""
    machines = (
        replace(machine, steps=tuple(step for step in machine.steps if step.name in names))
        for machine in (*TESTS, *SOAKS)
    )
    return [machine for machine in machines if machine.steps]


def names_of(machines: Iterable[Machine]) -> list[str]:
    return [step.name for machine in machines for step in machine.steps]


def arguments() -> argparse.Namespace:
    names = names_of((*TESTS, *SOAKS))
    parser = argparse.ArgumentParser(prog="make kvm-test STEPS=...", description=__doc__)
    parser.add_argument("steps", nargs="*", metavar="STEP", help=f"of {', '.join(names)}")
    parser.add_argument("--soak", action="store_true", help="the steps that take long")
    parser.add_argument(
        "--jobs", type=int, default=os.cpu_count(), help="machines at a time (%(default)s)"
    )
    parser.add_argument(
        "--once", action="store_true", help="a step that failed is not run a second time"
    )
    parser.add_argument("--told", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    for name in set(given.steps) - set(names):
        parser.error(f"no step {name!r}; there are: {', '.join(names)}")
    return given


def main() -> int:
    given = arguments()
    end_on_signals()
    machines = chosen(given.steps or names_of(SOAKS if given.soak else TESTS))
    outcomes = run_all(machines, given.jobs)
    if given.told:
        facts = {done.step.name: (done.status, done.seconds) for done in outcomes}
        print(f"\n{TOLD}{json.dumps(facts)}")
        return 0
    if not given.once:
        bed = Bed()
        machine_of = {step.name: machine for machine in machines for step in machine.steps}
        outcomes = [
            done if done.good else run_again(bed, done, machine_of[done.step.name])
            for done in outcomes
        ]
    print(f"\n{'=' * 20} kvmbed: summary, Linux {Bed().kernel.version} {'=' * 20}")
    for outcome in outcomes:
        print(outcome.line())
    failed = [outcome for outcome in outcomes if not outcome.good]
    for outcome in failed:
        print(outcome.account())
    if failed:
        names = ", ".join(outcome.step.name for outcome in failed)
        say(f"failed: {names}; logs in {RESULTS}/")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(reported(main))
