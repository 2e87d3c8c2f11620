"""Two kernels as guests, in turn: a stock one, and another, such as make guest-kernel's.

    .venv/bin/python bench/kvmkernels.py ROUNDS IMAGE

IMAGE is compared with the first fit kernel of the system's.  Prints the sizes of both, and their
times to a payload's first output: booted, restored, forked; medians.  What a clone takes is told
by kvmstock.py, a kernel a run: what one leaves behind is still given back while another is counted.
Beside kvmstock.py, and a script, for the same reason.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from kvmstock import MIB, Stock, stock

from cowork_nsrun.guest.kernel import Kernel, choose, find_kernels
from cowork_nsrun.guest.template import Zygote
from cowork_nsrun.guest.view import view_file
from cowork_nsrun.guest.vmm import Monitor

#: restores and forks of one boot
CLONES = 3

Figures = dict[str, list[float]]


def stock_kernel(other: Path) -> Kernel:
    """The first fit one that is not the other."""
    for kernel in find_kernels():
        if kernel.fit and not kernel.path.samefile(other):
            return kernel
    raise SystemExit("kvmkernels: no stock kernel to compare with: see nsrun vm kernels")


def ways(found: Stock, stack: ExitStack) -> dict[str, Callable[[], float]]:
    """How a machine with this kernel starts, each to be measured."""
    view = stack.enter_context(view_file(()))
    shared = replace(found.settings, shares={"nsrun": view})
    mother = stack.enter_context(Zygote(found.template, shared))
    return {
        "cold boot": lambda: found.run(lambda settings: Monitor(found.image, settings)),
        "restore": lambda: found.run(found.template.restore),
        "fork": lambda: found.run(lambda _: mother.fork()),
    }


def times(pair: tuple[Stock, Stock], rounds: int) -> tuple[Figures, Figures]:
    """Milliseconds of each way, the two kernels in turn."""
    with ExitStack() as stack:
        both = [ways(found, stack) for found in pair]
        figures: tuple[Figures, Figures] = ({}, {})
        for _ in range(rounds):
            for way in both[0]:
                for _ in range(1 if way == "cold boot" else CLONES):
                    for can, own in zip(both, figures, strict=True):
                        own.setdefault(way, []).append(can[way]())
    return figures


def sizes(kernel: Kernel, found: Stock) -> dict[str, float]:
    """MiB: the image, what is unpacked of it, the initial file system."""
    return {
        "image": kernel.path.stat().st_size / MIB,
        "vmlinux": Path(f"/proc/self/fd/{found.image.vmlinux.fileno()}").stat().st_size / MIB,
        "initramfs": Path(f"/proc/self/fd/{found.image.initramfs.fileno()}").stat().st_size / MIB,
    }


def say(name: str, first: float, second: float, unit: str) -> None:
    """A line, the other kernel's figure over the stock one's."""
    print(f"{name:28} {second:9.2f} / {first:9.2f} {unit} = {second / first:.3f}", flush=True)


def main() -> int:
    """Compare, print."""
    rounds, other = int(sys.argv[1]), Path(sys.argv[2])
    kernels = (stock_kernel(other), choose(other))
    with stock(kernels[0]) as first, stock(kernels[1]) as second:
        print(f"{kernels[1].path} ({kernels[1].release}) / {kernels[0].path}", flush=True)
        measured = times((first, second), rounds)
        for way in measured[0]:
            say(way, *(statistics.median(figures[way]) for figures in measured), "ms")
        of_both = [sizes(kernel, found)
                   for kernel, found in zip(kernels, (first, second), strict=True)]  # fmt: skip
    for name in of_both[0]:
        say(name, *(figures[name] for figures in of_both), "MiB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
