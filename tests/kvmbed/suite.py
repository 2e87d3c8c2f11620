"""All that the bed tests, with one summary: .venv/bin/python -m tests.kvmbed.suite [STEP...]"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from xml.etree import ElementTree

from .machine import CACHE, ROOT, Bed, Job, end_on_signals, reported, say

RESULTS = CACHE / "results"
SUMMARY = f"{'=' * 20} kvmbed: summary"
PYTEST = (".venv/bin/pytest", "-p", "no:cacheprovider", "--color=no")
USER = 1000
LIMITS = "tests/python/test_limits.py"
FEW = {"NSRUN_HYPOTHESIS_EXAMPLES": "4"}
NO_USERNS = ("kernel.unprivileged_userns_clone=0",)


@dataclass(frozen=True)
class Step:
    """Tests to run in the bed; without ``where`` on the host, to test the bed itself."""

    name: str
    tests: tuple[str, ...]
    where: Job | None = field(default_factory=lambda: Job(()))
    needs: tuple[str, ...] = ()

    def lacks(self) -> list[str]:
        """What of the tests, and of what they need, is not in this tree."""
        names = (*(name for name in self.tests if not name.startswith("-")), *self.needs)
        return [name for name in names if not (ROOT / name).exists()]


#: what make guest-kernel builds; taken into the bed when it is there
OWN_KERNEL = "build/guest-kernel/boot/vmlinuz"
BY_OWN_KERNEL = {"NSRUN_GUEST_KERNEL": str(ROOT / OWN_KERNEL)}
THREATS = "tests/confine/test_threats.py"
INSIDE = ("tests/kvmbed/inside",)
# remedies: as root, who breaks the bed for a user
AS_USER = (*INSIDE, "--ignore=tests/kvmbed/inside/test_remedies.py")
# what depends on the kernel; emulated, all of tests/python would take half an hour
CORE = ("tests/python/test_run.py", "tests/python/test_plan.py", "tests/tiers")
MACHINES = "tests/differential/test_machine.py"
VMM = tuple(f"tests/vmm/test_{name}.py" for name in ("stock", "devices", "monitor", "jail"))
STEPS = (
    Step("driver", ("tests/kvmbed/outside",), None),
    Step("bed-root", INSIDE),
    Step("bed-kvm", AS_USER, Job((), user=USER, groups=("kvm",), sysctls=NO_USERNS)),
    Step("bed-delegated", AS_USER, Job((), user=USER, delegated=True)),
    Step(
        "guest-boot",
        ("tests/guest/test_vmm.py", "tests/guest/test_intruder.py"),
        Job((), user=USER, groups=("kvm",), timeout_s=900),
    ),
    Step("microvm-root", ("tests/guest/test_exec.py",), Job((), timeout_s=900)),
    Step(
        "microvm-user",
        ("tests/guest/test_exec.py",),
        Job((), user=USER, groups=("kvm",), sysctls=NO_USERNS, timeout_s=900),
    ),
    Step("pool-root", ("tests/guest/test_pool_machines.py",), Job((), timeout_s=1800)),
    Step(
        "pool-user",
        ("tests/guest/test_pool_machines.py", "--every=3"),
        Job((), user=USER, groups=("kvm",), sysctls=NO_USERNS, timeout_s=1800),
    ),
    Step(
        "sessions-root", ("tests/cowork/test_machine_sessions.py", THREATS), Job((), timeout_s=900)
    ),
    Step(
        "kills-user",
        ("tests/guest/test_kills.py",),
        Job((), user=USER, groups=("kvm",), timeout_s=1200),
    ),
    # root: a name server has port 53
    Step("net-root", ("tests/guest/test_network.py",)),
    Step("egress-root", ("tests/guest/test_egress.py",), Job((), timeout_s=900)),
    Step(
        "egress-user",
        ("tests/guest/test_egress.py",),
        Job((), user=USER, groups=("kvm",), sysctls=NO_USERNS, timeout_s=900),
    ),
    Step("agent-root", ("tests/guest/test_agent_guest.py",)),
    Step("limits-root", (LIMITS,)),
    Step("limits-delegated", (LIMITS,), Job((), user=USER, delegated=True)),
    Step(
        "limits-guest",
        ("tests/guest/test_machine_limits.py",),
        Job((), user=USER, groups=("kvm",), timeout_s=1200),
    ),
    Step("core-root", CORE, Job((), timeout_s=900)),
    # small guests run natively too, all of them
    Step("vmm-root", VMM[:2]),
    Step(
        "vmm-kvm",
        (*VMM, "--every=4"),
        Job((), user=USER, groups=("kvm",), sysctls=NO_USERNS),
    ),
    Step("walls-root", ("tests/vmm/test_walls.py",)),
    Step("walls-kvm", ("tests/vmm/test_walls.py",), Job((), user=USER, groups=("kvm",))),
    Step("fs-root", ("tests/fs/test_fs_guest.py",), Job((), timeout_s=1800)),
    Step("vsock-root", ("tests/vmm/test_vsock.py",)),
    Step("snapshot-root", ("tests/guest/test_template.py",)),
    # samples: all would take 4 minutes, 20, and hours; root runs the cases of the user too
    Step("hostile-root", ("tests/hostile", "--every=2")),
    Step("differential-machine", (MACHINES, "--every=37"), Job((), timeout_s=1800)),
    Step(
        "differential-root",
        ("tests/differential", f"--ignore={MACHINES}", "--every=23"),
        Job((), environment=FEW),
    ),
)
# by make kvm-soak, or by name
SOAKS = (
    # more bytes than vsock's counters hold
    Step(
        "vsock-soak",
        ("tests/vmm/test_vsock.py",),
        Job((), timeout_s=7200, environment={"NSRUN_VSOCK_MIB": "4200"}),
    ),
    # 10,000 small files, 500 random operations
    Step(
        "fs-soak",
        ("tests/fs/test_fs_guest.py",),
        Job((), timeout_s=7200, environment={"NSRUN_FS_FULL": "1"}),
    ),
    Step(
        "snapshot-soak",
        ("tests/guest/test_template.py",),
        Job((), timeout_s=7200, environment={"NSRUN_CLONES": "100"}),
    ),
    # the whole corpus: some hours
    Step("differential-machine-soak", (MACHINES,), Job((), timeout_s=36000)),
    Step(
        "kills-soak",
        ("tests/guest/test_kills.py",),
        Job((), user=USER, groups=("kvm",), timeout_s=7200, environment={"NSRUN_KILLS": "200"}),
    ),
    # guests of the kernel that make guest-kernel builds; not run where it was not built
    Step(
        "own-kernel-boot",
        tuple(f"tests/guest/test_{name}.py" for name in ("vmm", "network", "template")),
        Job((), timeout_s=900, environment=BY_OWN_KERNEL),
        (OWN_KERNEL,),
    ),
    Step(
        "own-kernel-root",
        ("tests/guest/test_exec.py",),
        Job((), timeout_s=900, environment=BY_OWN_KERNEL),
        (OWN_KERNEL,),
    ),
    Step(
        "own-kernel-user",
        ("tests/guest/test_exec.py",),
        Job(
            (),
            user=USER,
            groups=("kvm",),
            sysctls=NO_USERNS,
            timeout_s=900,
            environment=BY_OWN_KERNEL,
        ),
        (OWN_KERNEL,),
    ),
)


@dataclass(frozen=True)
class Outcome:
    step: Step
    status: int | None
    seconds: float = 0

    @property
    def good(self) -> bool:
        return self.status in (0, None)

    def line(self) -> str:
        if self.status is None:
            return f"{self.step.name:18} not run: {' '.join(self.step.lacks())} is not there"
        verdict = "ok" if self.good else f"FAILED, status {self.status}"
        return f"{self.step.name:18} {counts(self.step):44} {self.seconds:5.0f} s  {verdict}"


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


def last_seconds(step: Step) -> float:
    """How long it took the last time; 0 if that is not known."""
    report = RESULTS / step.name / "junit.xml"
    if not report.exists():
        return 0
    suite = ElementTree.parse(report).getroot().find("testsuite")
    return 0 if suite is None else float(suite.get("time", 0))


def run(bed: Bed, step: Step) -> Outcome:
    if step.lacks():
        return Outcome(step, None)
    print(f"\n{'=' * 20} kvmbed: {step.name} {'=' * 20}", flush=True)
    results = RESULTS / step.name
    shutil.rmtree(results, ignore_errors=True)
    results.mkdir(parents=True)
    begin = time.monotonic()
    if step.where is None:
        command = ["setpriv", "--pdeathsig", "TERM", *PYTEST, *step.tests]
        command.append(f"--junitxml={results}/junit.xml")
        environment = {**os.environ, "NSRUN_KVMBED": "outside"}
        status = subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode
    else:
        status = in_bed(bed, step, step.where, results)
    return Outcome(step, status, time.monotonic() - begin)


def in_bed(bed: Bed, step: Step, where: Job, results: Path) -> int:
    command = (*PYTEST, *step.tests, "--junitxml=/run/results/junit.xml")
    job = Job(**{**vars(where), "command": command, "results": results})
    with open(results / "output.log", "wb") as log:
        return reported(lambda: bed.run(job, sys.stdout.buffer, log))


def run_apart(running: set[subprocess.Popen[bytes]], step: Step) -> Outcome:
    """A step in a process of its own, whose output is shown when it has ended."""
    begin = time.monotonic()
    # this thread outlives the process, which would end with it
    front = ["setpriv", "--pdeathsig", "TERM", sys.executable, "-m", "tests.kvmbed.suite"]
    process = subprocess.Popen(
        [*front, "--jobs=1", step.name],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    running.add(process)
    output, _ = process.communicate()
    running.remove(process)
    sys.stdout.buffer.write(output.partition(SUMMARY.encode())[0])
    sys.stdout.flush()
    return Outcome(step, process.returncode, time.monotonic() - begin)


def run_all(steps: list[Step], jobs: int) -> list[Outcome]:
    """One after the other, or several at a time; the longest ones first then."""
    if jobs == 1 or len(steps) == 1:
        bed = Bed()
        return [run(bed, step) for step in steps]
    there = [step for step in steps if not step.lacks()]
    outcomes = [Outcome(step, None) for step in steps if step not in there]
    there.sort(key=lambda step: -last_seconds(step))
    running: set[subprocess.Popen[bytes]] = set()
    with ThreadPoolExecutor(jobs) as pool:
        try:
            outcomes += pool.map(partial(run_apart, running), there)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in list(running):
                process.terminate()
            raise
    return sorted(outcomes, key=lambda outcome: steps.index(outcome.step))


def main() -> int:
    names = [step.name for step in (*STEPS, *SOAKS)]
    parser = argparse.ArgumentParser(prog="make kvm-test STEPS=...", description=__doc__)
    parser.add_argument("steps", nargs="*", metavar="STEP", help=f"of {', '.join(names)}")
    parser.add_argument("--soak", action="store_true", help="the steps that take long")
    parser.add_argument(
        "--jobs", type=int, default=os.cpu_count(), help="machines at a time (%(default)s)"
    )
    given = parser.parse_args()
    wanted = given.steps or [step.name for step in (SOAKS if given.soak else STEPS)]
    for name in set(wanted) - set(names):
        parser.error(f"no step {name!r}; there are: {', '.join(names)}")
    end_on_signals()
    steps = [step for step in (*STEPS, *SOAKS) if step.name in wanted]
    outcomes = run_all(steps, given.jobs)
    print(f"\n{SUMMARY}, Linux {Bed().kernel.version} {'=' * 20}")
    for outcome in outcomes:
        print(outcome.line())
    failed = [outcome.step.name for outcome in outcomes if not outcome.good]
    if failed:
        say(f"failed: {', '.join(failed)}; logs in {RESULTS}/")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(reported(main))
