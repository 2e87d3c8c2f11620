"""Start of a microVM to its guest's first OUT: nsrun-vmm, the bare ioctls, QEMU's microvm.

    .venv/bin/python -m bench.kvm [--rounds N] [--memory MIB]

All load the same small ELF.  They are run in turn; medians, and ratios to nsrun-vmm's targets.
Then restored and forked machines: see kvmsnap.py.
1 if a target is missed, 2 if nothing can be measured.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from .kvmsnap import small_rows, stock_rows

HERE = Path(__file__).resolve().parent
VMM = Path(sys.executable).with_name("nsrun-vmm")
STATIC = ("-O2", "-static", "-fno-pie", "-no-pie", "-Wl,-z,noseparate-code")
GUEST = ("-nostdlib", "-static", "-no-pie", "-Wl,-Ttext-segment=0x200000,--build-id=none")
QEMU = "qemu-system-x86_64"
#: ratio of nsrun-vmm's median to the contender's
TARGETS = {"floor": 1.3, "qemu microvm": 0.15}


@dataclass(frozen=True)
class Contender:
    """A command that makes a machine, and writes the guest's byte to its stdout."""

    name: str
    command: tuple[str, ...]


def kernel_headers() -> tuple[str, ...]:
    """musl-gcc has none of its own."""
    found = subprocess.run(
        ["gcc", "-print-multiarch"], check=True, capture_output=True, text=True
    ).stdout.strip()
    directories = ("/usr/include", f"/usr/include/{found}")
    return tuple(word for directory in directories for word in ("-idirafter", directory))


def compile_all(directory: Path) -> None:
    """kvmfloor, the guest and the timer."""
    libc = "musl-gcc" if shutil.which("musl-gcc") else "gcc"
    floor = [libc, *STATIC, *kernel_headers(), str(HERE / "kvmfloor.c")]
    subprocess.run([*floor, "-o", str(directory / "kvmfloor")], check=True)
    guest = ["gcc", *GUEST, str(HERE / "kvmguest.S"), "-o", str(directory / "guest")]
    subprocess.run(guest, check=True)
    timer = ["gcc", "-O2", "-static", str(HERE / "spawn_timer.c")]
    subprocess.run([*timer, "-o", str(directory / "spawn_timer")], check=True)


def contenders(directory: Path, memory: int, kernel: int, control: int) -> list[Contender]:
    """Whoever is there; kernel and control are descriptors that nsrun-vmm inherits."""
    guest = str(directory / "guest")
    ours = (str(VMM), "--kernel-fd", str(kernel), "--control-fd", str(control))
    ours += ("--console-fd", "1", "--memory", str(memory))
    found = [
        Contender("floor", (str(directory / "kvmfloor"), guest, str(memory))),
        Contender("nsrun-vmm", ours),
        Contender("nsrun-vmm, no jail", (*ours, "--no-jail")),
    ]
    qemu = shutil.which(QEMU)
    if qemu is None:
        print(f"missing: {QEMU} (Debian: qemu-system-x86)", file=sys.stderr)
        return found
    words = (qemu, "-M", "microvm", "-accel", "kvm", "-cpu", "host,-arch-capabilities")
    words += ("-m", str(memory), "-kernel", guest, "-serial", "stdio", "-display", "none")
    words += ("-nodefaults", "-no-user-config", "-no-reboot")
    return [*found, Contender("qemu microvm", words)]


def works(contender: Contender, fds: tuple[int, ...]) -> bool:
    """Whether its guest speaks."""
    done = subprocess.run(
        contender.command, capture_output=True, stdin=subprocess.DEVNULL, check=False, pass_fds=fds
    )
    if done.stdout[:1] != b"\n":
        said = done.stderr.decode(errors="replace").strip() or f"status {done.returncode}"
        print(f"left out: {contender.name}: {said}", file=sys.stderr)
        return False
    return True


def medians(
    timer: Path, chosen: list[Contender], rounds: int, fds: tuple[int, ...]
) -> dict[str, float]:
    """Microseconds from the spawn to the byte."""
    words: list[str] = []
    for contender in chosen:
        words += [":::", *contender.command]
    ran = subprocess.run(
        [str(timer), "-o", "-n", str(rounds), "-w", "5", "--", *words[1:]],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
        pass_fds=fds,
    )
    lines = [json.loads(line)["output_ns"] for line in ran.stdout.splitlines()]
    assert all(all(line) for line in lines), "a guest that did not speak"
    pairs = zip(chosen, lines, strict=True)
    return {contender.name: statistics.median(line) / 1000 for contender, line in pairs}


def report(times: dict[str, float]) -> bool:
    """Print them; whether all targets that could be measured are met."""
    ours, good = times["nsrun-vmm"], True
    for name, time in times.items():
        print(f"{name:20} {time:9.0f} us   {time / ours:7.2f}")
    for name, most in TARGETS.items():
        if name in times:
            ratio = ours / times[name]
            good &= ratio <= most
            verdict = "met" if ratio <= most else "MISSED"
            print(f"nsrun-vmm / {name}: {ratio:.3f}, target {most}: {verdict}")
    return good


def main() -> int:
    """Build, measure, print."""
    parser = argparse.ArgumentParser(prog="bench.kvm", description=__doc__)
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--memory", type=int, default=64, metavar="MIB")
    arguments = parser.parse_args()
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        print("bench.kvm: no /dev/kvm that this user may open", file=sys.stderr)
        return 2
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with tempfile.TemporaryDirectory(prefix="nsrun-bench-") as name, ours, theirs:
        directory = Path(name)
        compile_all(directory)
        with (directory / "guest").open("rb") as kernel:
            fds = (kernel.fileno(), theirs.fileno())
            chosen = [
                contender
                for contender in contenders(directory, arguments.memory, *fds)
                if works(contender, fds)
            ]
            if not {"floor", "nsrun-vmm"} <= {contender.name for contender in chosen}:
                return 2
            times = medians(directory / "spawn_timer", chosen, arguments.rounds, fds)
        rows = small_rows(directory, arguments.memory, arguments.rounds)
    rows += stock_rows(max(1, min(3, arguments.rounds // 10)))
    good = report(times)
    for row in rows:
        good &= row.print()
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
