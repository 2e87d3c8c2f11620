"""What the seccomp profiles cost: calls inside with one over without, and a whole run.

    .venv/bin/python -m bench.seccomp

Prints each filter's length and a table: nanoseconds a call without a profile, microseconds of
a run of a static program, and the ratios with each.  Medians, the profiles in turn.
"""

from __future__ import annotations

import statistics
import subprocess
import time
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).parent.parent
NSRUN = ROOT / ".venv" / "bin" / "nsrun"
PROFILES = ("none", "default", "nesting", "strict")
SANDBOX = ("--ro-bind", "/", "/", "--dev", "/dev", "--unshare-user", "--unshare-pid")
ROUNDS = 15
CALLS = 100_000
RUNS = 200


def build(name: str, *flags: str) -> Path:
    out = ROOT / "build" / f"bench-{name}"
    source = ROOT / "bench" / f"{name}.c"
    subprocess.run(["gcc", "-O2", "-static", *flags, "-o", out, source], check=True)
    return out


def command(profile: str, *words: object) -> list[str]:
    return [str(NSRUN), *SANDBOX, "--seccomp-profile", profile, *map(str, words)]


def measure() -> dict[str, dict[str, float]]:
    """Median of each row, by profile."""
    calls, nothing = build("syscalls"), build("true", "-nostdlib")
    samples: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for _ in range(ROUNDS):
        for profile in PROFILES:
            out = subprocess.run(
                command(profile, calls, CALLS), check=True, capture_output=True, text=True
            ).stdout
            for line in out.splitlines():
                name, value = line.split()
                samples[f"{name}, ns"][profile].append(float(value))
    for _ in range(RUNS):
        for profile in PROFILES:
            begin = time.monotonic_ns()
            subprocess.run(command(profile, nothing), check=True)
            samples["run, us"][profile].append((time.monotonic_ns() - begin) / 1000)
    return {
        row: {profile: statistics.median(times) for profile, times in columns.items()}
        for row, columns in samples.items()
    }


def lengths() -> dict[str, str]:
    """Instructions, as nsrun says them."""
    found = {}
    for profile in PROFILES[1:]:
        out = subprocess.run(
            [NSRUN, "profile", "seccomp", profile], check=True, capture_output=True, text=True
        ).stdout
        found[profile] = out.splitlines()[1].split()[0]
    return found


def main() -> None:
    found = lengths()
    print("| | none | " + " | ".join(PROFILES[1:]) + " |")
    print("|---" * (len(PROFILES) + 1) + "|")
    print("| instructions | 0 | " + " | ".join(found[name] for name in PROFILES[1:]) + " |")
    for row, medians in measure().items():
        base = medians["none"]
        ratios = " | ".join(f"{medians[name] / base:.2f}" for name in PROFILES[1:])
        print(f"| {row} | {base:.0f} | {ratios} |")


if __name__ == "__main__":
    main()
