"""A stock kernel and its agent, booted, restored, forked and taken from a pool: rows for
``python -m bench.kvm``.

    .venv/bin/python bench/kvmstock.py ROUNDS

prints a JSON object a row.  A script of its own, so that it finds the installed package, and not
the sources beside it.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from cowork_nsrun import PIPE, Bind, Dev, Pool, Process, Sandbox, popen
from cowork_nsrun.guest.agent import Agent
from cowork_nsrun.guest.agent import Settings as CommandSettings
from cowork_nsrun.guest.compile import translate
from cowork_nsrun.guest.image import Image, prepare
from cowork_nsrun.guest.kernel import Kernel, choose
from cowork_nsrun.guest.machine import wait_for_agent
from cowork_nsrun.guest.template import Template, Zygote
from cowork_nsrun.guest.view import view_file
from cowork_nsrun.guest.vmm import Monitor, Settings, find_beside
from cowork_nsrun.plan import Plan
from cowork_nsrun.probe import ask_program
from cowork_nsrun.warm import python

MACHINES = 20
STOCK_MIB = 128
MIB = 1 << 20
#: what a program loads that is of some use
MODULES = ("json", "decimal", "http.client", "asyncio")
#: seconds that a guest may take to boot, emulated and on a busy machine
PATIENCE = 900.0


def wait_ready(monitor: Monitor) -> None:
    """Until the agent listens."""
    wait_for_agent(monitor, PATIENCE)


@dataclass(frozen=True)
class Stock:
    """A stock kernel, its image and its template, and what to run."""

    image: Image
    settings: Settings
    template: Template
    payload: Path

    def run(self, make: Callable[[Settings], Monitor]) -> float:
        """Milliseconds from the start of the machine to the payload's first byte."""
        argv = ["--unshare-all", "--ro-bind", str(self.payload.parent), "/x", "--dev", "/dev"]
        translation = translate(Plan.from_argv([*argv, "--", f"/x/{self.payload.name}"]))
        settings = CommandSettings(
            os.getuid(), os.getgid(), clock_ns=time.time_ns(), entropy=os.urandom(32)
        )
        with view_file(()) as view, view_file(translation.exports) as exports:
            begin = time.perf_counter_ns()
            with make(replace(self.settings, shares={"nsrun": view})) as monitor:
                wait_ready(monitor)
                plan = translation.plan(monitor.export(exports))
                agent = Agent(monitor.connect)
                with agent.start(plan, settings, stdin=False, stderr=False) as command:
                    assert command.stdout is not None
                    assert command.stdout.recv(1)
                    return (time.perf_counter_ns() - begin) / 1e6


@contextmanager
def stock(kernel: Kernel) -> Iterator[Stock]:
    """Made anew, since the cache may have it of another day."""
    agent = find_beside("nsrun-agent")
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="nsrun-bench-")))
        payload = directory / "true" / "say"
        payload.parent.mkdir()
        source = 'int main(void) { return write(1, "x", 1) != 1; }'
        libc = "musl-gcc" if shutil.which("musl-gcc") else "gcc"
        compiler = [libc, "-O2", "-static", "-include", "unistd.h", "-x", "c", "-"]
        subprocess.run([*compiler, "-o", str(payload)], check=True, input=source, text=True)
        image = stack.enter_context(prepare(kernel, agent))
        view = stack.enter_context(view_file(()))
        settings = Settings(STOCK_MIB, cmdline="quiet nsrun.fs", shares={"nsrun": view})
        file = stack.enter_context((directory / "template").open("x+b"))
        with Monitor(image, settings) as monitor:
            wait_ready(monitor)
            template = Template.save(monitor, file)
        yield Stock(image, settings, template, payload)


def first_byte(start: Callable[[], Process[bytes]]) -> float:
    """Milliseconds from the call to the payload's first byte."""
    begin = time.perf_counter_ns()
    with start() as process:
        assert process.stdout is not None
        assert process.stdout.read(1)
        return (time.perf_counter_ns() - begin) / 1e6


@dataclass(frozen=True)
class Pooled:
    """What a pool gives, and what the same call gives without one, in milliseconds."""

    pooled: float
    fresh: float
    memory: float


def pools(payload: Path, rounds: int, machines: int) -> Pooled:
    """In turn; each finds the pool full, so that nothing is made meanwhile."""
    usual = Sandbox.minimal()
    spec = Sandbox(
        filesystem=(Bind(str(payload.parent), "/x", read_only=True), Dev()),
        unshare=usual.unshare,
        unshare_try=usual.unshare_try,
        backend="kvm",
    )
    argv = [f"/x/{payload.name}"]
    pooled, fresh = [], []
    with Pool(spec, 1) as pool:
        for _ in range(rounds):
            pool.wait_full()
            pooled.append(first_byte(lambda: pool.popen(argv, stdout=PIPE)))
            pool.wait_full()
            fresh.append(first_byte(lambda: popen(argv, spec, stdout=PIPE)))
        assert pool.stats().handed == rounds
    return Pooled(
        statistics.median(pooled), statistics.median(fresh), memory_of_parked(spec, machines)
    )


def warmed(rounds: int) -> tuple[float, float]:
    """Python with some modules, by a clone that has loaded them, and by one that has not."""
    interpreter = f"{sys.base_prefix}/bin/python3"
    spec = Sandbox.minimal().replace(backend="kvm").network("none")
    spec = spec.bind(sys.base_prefix, read_only=True)
    argv = [interpreter, "-c", f"import {', '.join(MODULES)}; print()"]
    words = python(*MODULES, interpreter=interpreter)
    warm, cold = [], []
    with Pool(spec, 1, warm=words) as waiting, Pool(spec, 1) as base:
        for _ in range(rounds):
            for pool in (waiting, base):
                pool.wait_full()
            assert waiting.stats().warm, waiting.cold
            warm.append(first_byte(lambda: waiting.popen(argv[1:], stdout=PIPE)))
            for pool in (waiting, base):
                pool.wait_full()
            cold.append(first_byte(lambda: base.popen(argv, stdout=PIPE)))
        assert waiting.stats().handed == base.stats().handed == rounds
    return statistics.median(warm), statistics.median(cold)


def memory_of_parked(spec: Sandbox, machines: int) -> float:
    """MiB of a pool's machine, and what the process that holds it has for it."""
    with Pool(spec, machines + 1) as pool:
        # that process is there once
        while not pool.stats().parked:
            time.sleep(0.01)
        before, already = free_bytes(), pool.stats().parked
        pool.wait_full()
        return (before - free_bytes()) / (machines + 1 - already) / MIB


def free_bytes() -> int:
    """What the host has left; the page cache that all share counts as left."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    return sum(int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable:"))


def memory_of_one(found: Stock, machines: int) -> float:
    """MiB of a forked machine whose agent was spoken to, and which waits now."""
    with view_file(()) as view, ExitStack() as stack:
        mother = Zygote(found.template, replace(found.settings, shares={"nsrun": view}))
        stack.enter_context(mother)
        # the template's pages, and the zygote, are there once
        wait_ready(stack.enter_context(mother.fork()))
        before = free_bytes()
        for _ in range(machines):
            wait_ready(stack.enter_context(mother.fork()))
        return (before - free_bytes()) / machines / MIB


def main() -> int:
    """Nothing is printed where KVM runs no stock kernel."""
    rounds = int(sys.argv[1])
    probe = ask_program()["kvm-guest"]
    if not probe.ok:
        print(f"left out: stock kernels: {probe.evidence}", file=sys.stderr)
        return 0
    boots, restores, forks = [], [], []
    with stock(choose()) as found:
        with view_file(()) as view:
            shared = replace(found.settings, shares={"nsrun": view})
            with Zygote(found.template, shared) as mother:
                for _ in range(rounds):
                    boots.append(found.run(lambda settings: Monitor(found.image, settings)))
                    for _ in range(3):
                        restores.append(found.run(found.template.restore))
                        forks.append(found.run(lambda _: mother.fork()))
        memory = memory_of_one(found, MACHINES)
        parked = pools(found.payload, 3 * rounds, MACHINES)
        warm, loading = warmed(3 * rounds)
    cold = statistics.median(boots)
    for name, times in (("restore", restores), ("fork", forks)):
        say(f"stock: {name} / cold boot", statistics.median(times), cold, 0.10, "ms")
    say("stock: memory of a waiting machine", memory, None, 3.0, "MiB")
    say("stock: Pool.popen() / cold boot", parked.pooled, cold, 0.10, "ms")
    say("stock: Pool.popen() / popen() of a restored one", parked.pooled, parked.fresh, 0.25, "ms")
    say("stock: Python that has loaded / that loads in a pool's clone", warm, loading, 0.5, "ms")
    say("stock: memory of a pool's machine that waits", parked.memory, None, 3.0, "MiB")
    return 0


def say(name: str, value: float, over: float | None, most: float, unit: str) -> None:
    """A row, as kvmsnap.Row has it."""
    row = {"name": name, "value": value, "over": over, "most": most, "unit": unit}
    print(json.dumps(row), flush=True)


if __name__ == "__main__":
    sys.exit(main())
