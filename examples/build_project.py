"""Build and test a small C and Python project in a sandbox, and try to break out of it.

The sandbox is that of a Cowork session: the system read-only, an empty home, one
folder of the user's.  Run it with ``make run``, as root or as any other user.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import sys
import tempfile
from pathlib import Path

from cowork_nsrun import Result, Sandbox, run

HERE = Path(__file__).parent
ROUNDS = 20


def system_python() -> str | None:
    """A Python that is visible inside because it lies in /usr."""
    return shutil.which("python3", path="/usr/local/bin:/usr/bin")


def make_sandbox(project: Path) -> Sandbox:
    """The Cowork command line; root gives up its capabilities besides."""
    spec = Sandbox.cowork("demo", {"project": project})
    spec = spec.replace(caps_drop={"ALL"})
    if system_python() is None:
        spec = spec.bind(sys.base_prefix, read_only=True)
    return spec


def say(title: str) -> None:
    print(f"\n--- {title}", flush=True)


def milliseconds(nanoseconds: int | None) -> str:
    return "unknown" if nanoseconds is None else f"{nanoseconds / 1e6:.2f} ms"


def show(result: Result[str]) -> Result[str]:
    """What a command said, and how it ended."""
    print(result.stdout + result.stderr, end="")
    print(
        f"[exit status {result.returncode}; {result.backend}; "
        f"spawned in {milliseconds(result.timings.spawn_ns)}, "
        f"{milliseconds(result.timings.total_ns)} in all]"
    )
    return result.check()


def build_and_test(spec: Sandbox, python: str) -> None:
    has_compiler = run(["sh", "-c", "command -v cc && command -v make"], spec).returncode == 0
    if has_compiler:
        say("make test, inside")
        show(run(["make", "test", f"PYTHON={python}"], spec, text=True))
    else:
        say("unit tests, inside (no C compiler or make in /usr: Python part alone)")
        show(run([python, "-m", "unittest", "-v", "test_tally"], spec, text=True))


def explore(spec: Sandbox, python: str) -> bool:
    """Report what is visible and what was denied; False if something was not."""
    script = (HERE / "attempts.py").read_text()
    words = [python, "-c", script, str(Path.home()), str(os.getpid())]
    report = json.loads(run(words, spec, text=True).check().stdout)
    say("visible inside")
    print(f"ids     {report['ids']}")
    print(f"cwd     {report['cwd']}")
    print(f"/       {' '.join(report['root'])}")
    print(f"home    {' '.join(report['home']) or 'empty'}")
    print(f"pids    {' '.join(map(str, report['pids']))}")
    print(f"mounts  {' '.join(report['mounts'])}")
    say("tried inside")
    for name, outcome in report["attempts"].items():
        print(f"{name:32} {outcome}")
    return "allowed" not in report["attempts"].values()


def measure(spec: Sandbox) -> None:
    say(f"spawn, from clone to exec, {ROUNDS} times")
    taken = [run(["true"], spec).check().timings.spawn_ns for _ in range(ROUNDS)]
    times = [ns for ns in taken if ns is not None]
    if times:
        print(f"median {milliseconds(round(statistics.median(times)))}, ", end="")
        print(f"fastest {milliseconds(min(times))}")


def main() -> int:
    with tempfile.TemporaryDirectory(prefix="nsrun-example-") as name:
        # a copy, so that the checkout stays as it is
        project = Path(name) / "project"
        shutil.copytree(HERE / "project", project)
        spec = make_sandbox(project)
        python = system_python() or sys.executable
        build_and_test(spec, python)
        held = explore(spec, python)
        measure(spec)
    if not held:
        print("\nSomething was allowed that must not be.", file=sys.stderr)
    return 0 if held else 1


if __name__ == "__main__":
    sys.exit(main())
