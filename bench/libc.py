"""Which C library nsrun should be static on: the same program on musl and on glibc.

    .venv/bin/python -m bench.libc

Builds both with meson and runs them in turn; prints medians and their ratio.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
ROUNDS = 300
SANDBOX = (
    *("--unshare-user", "--unshare-pid", "--unshare-ipc", "--unshare-uts"),
    *("--ro-bind", "/", "/", "--proc", "/proc", "--dev", "/dev", "--"),
)


def program(libc: str) -> Path:
    """nsrun built on this C library."""
    place = ROOT / "build" / f"libc-{libc}"
    meson = [sys.executable, "-m", "mesonbuild.mesonmain"]
    # both lie beside this interpreter, which need not be in PATH
    ninja = str(Path(sys.executable).with_name("ninja"))
    found = os.environ | {"NINJA": ninja}
    if not place.exists():
        setup = [*meson, "setup", str(place), str(ROOT), f"-Dlibc={libc}"]
        subprocess.run(setup, check=True, stdout=subprocess.DEVNULL, env=found)
    built = place / "csrc/nsrun"
    build = [ninja, "-C", str(place), str(built.relative_to(place))]
    subprocess.run(build, check=True, stdout=subprocess.DEVNULL)
    return built


def helper(name: str) -> Path:
    """One of our C helpers, static."""
    out = ROOT / "build" / f"libc-{name}"
    source = ROOT / "bench" / f"{name}.c"
    subprocess.run(["gcc", "-O2", "-static", "-o", out, source], check=True)
    return out


def medians(programs: list[Path]) -> list[float]:
    """Median wall time of a run of each, interleaved, in microseconds."""
    words = [str(helper("spawn_timer")), "-n", str(ROUNDS), "-w", "20", "--"]
    payload = str(ROOT / "build/libc-payload")
    for index, path in enumerate(programs):
        words += [":::"] * bool(index) + [str(path), *SANDBOX, payload]
    ran = subprocess.run(words, check=True, capture_output=True, text=True)
    samples = (json.loads(line)["wall_ns"] for line in ran.stdout.splitlines())
    return [statistics.median(times) / 1000 for times in samples]


def main() -> None:
    """Print the table."""
    payload = ROOT / "bench/true.c"
    flags = ["-O2", "-nostdlib", "-static", "-o", str(ROOT / "build/libc-payload")]
    (ROOT / "build").mkdir(exist_ok=True)
    subprocess.run(["gcc", *flags, str(payload)], check=True)
    names = ("musl", "glibc")
    times = medians([program(name) for name in names])
    for name, time in zip(names, times, strict=True):
        print(f"{name:6} {time:7.0f} us  {time / times[0]:.2f}")


if __name__ == "__main__":
    main()
