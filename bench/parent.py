"""A Python program of a wanted size that starts sandboxes; bench.api tells it what and how often.

Stands alone: run as ``python -I parent.py CONFIG``, so that it has the installed package.  One line
of JSON in is one order, one line out its answer.
"""

from __future__ import annotations

import asyncio
import ctypes
import json
import mmap
import os
import random
import select
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

from cowork_nsrun import (
    Bind,
    Dev,
    Namespace,
    NsrunError,
    Plan,
    Pool,
    Proc,
    Sandbox,
    Tmpfs,
    _native,
    aio,
    run,
)
from cowork_nsrun.plan import Extras
from cowork_nsrun.teardown import teardown

PR_SET_DUMPABLE = 4
PR_SET_CHILD_SUBREAPER = 36
PAGE = 4096
# What bench.cases.STANDARD says in bwrap's words; test_bench.py holds both equal.
SPEC = Sandbox(
    filesystem=(Bind("/", "/", read_only=True), Proc("/proc"), Dev("/dev"), Tmpfs("/tmp")),
    unshare=frozenset({Namespace.USER, Namespace.PID, Namespace.IPC, Namespace.UTS}),
    close_fds=False,
)
# A pool has no descriptors to pass on.
POOL_SPEC = SPEC.replace(close_fds=True)
KERNEL = ("Slab", "KernelStack", "PageTables", "Percpu")

Config = dict[str, Any]
Sample = Callable[[], int | None]


def prctl(option: int, value: int) -> None:
    if ctypes.CDLL(None).prctl(option, value, 0, 0, 0):
        raise OSError(f"prctl({option}) failed")


def become(uid: int, gid: int) -> None:
    """The user that is measured: after the imports, which may lie where only root reads."""
    if uid != os.geteuid():
        os.setgroups([])
        os.setresgid(gid, gid, gid)
        os.setresuid(uid, uid, uid)
        prctl(PR_SET_DUMPABLE, 1)


def touch(size: int) -> mmap.mmap | None:
    """Memory in small pages, the dear case for whoever copies page tables."""
    if not size:
        return None
    area = mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    area.madvise(mmap.MADV_NOHUGEPAGE)
    for offset in range(0, size, PAGE):
        area[offset] = 1
    return area


def reap() -> None:
    """Nothing of what ran is left, so that none pays for the end of the one before."""
    teardown().drain()
    while True:
        try:
            os.waitpid(-1, 0)
        except ChildProcessError:
            return


def timed(action: Callable[[], int]) -> int | None:
    """Nanoseconds of a run; None: it failed."""
    begin = time.perf_counter_ns()
    try:
        code = action()
    except (OSError, NsrunError) as error:
        print(f"bench: a run failed: {error}", file=sys.stderr)
        return None
    took = time.perf_counter_ns() - begin
    return None if code else took


def spawn_plain(words: list[str]) -> int:
    pid = os.posix_spawn(words[0], words, os.environ)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def spawn_captured(words: list[str]) -> int:
    return subprocess.run(words, capture_output=True, check=False).returncode


def spawn_forked(words: list[str]) -> int:
    """What a program of this size pays that copies itself first."""
    pid = os.fork()
    if not pid:
        try:
            os.execv(words[0], words)
        finally:
            os._exit(127)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def spawners(config: Config) -> dict[str, Callable[[], int]]:
    """The ways to run the payload once; the names are those of the results."""
    payload = [config["true"]]
    nsrun = [config["nsrun"], *config["options"], "--", *payload]
    found = {
        "run()": lambda: run(payload, SPEC).returncode,
        "run(), no capture": lambda: run(payload, SPEC, capture=False).returncode,
        "subprocess.run, nsrun": lambda: spawn_captured(nsrun),
        "posix_spawn, nsrun": lambda: spawn_plain(nsrun),
        "posix_spawn, no sandbox": lambda: spawn_plain(payload),
    }
    if config["bwrap"] is not None:
        bwrap = [config["bwrap"], *config["options"], "--", *payload]
        found[config["base"]] = lambda: spawn_captured(bwrap)
    if config["floor"] is not None:
        floor = [config["floor"], "std", *payload]
        found["subprocess.run, floor"] = lambda: spawn_captured(floor)
    return found


def in_turn(samples: dict[str, Sample], number: int, between: Callable[[], object]) -> Config:
    """One sample of each, in an order of the round's own: nobody always follows the same one."""
    names = list(samples)
    random.Random(number).shuffle(names)
    took: Config = {}
    for name in names:
        between()
        took[name] = samples[name]()
    return took


def sample_of(action: Callable[[], int]) -> Sample:
    return lambda: timed(action)


class ParkedOnes:
    """Parked sandboxes one by one through the core's own calls, without a pool's Python."""

    def __init__(self, payload: list[str]) -> None:
        flags = _native.PlanFlag.PARKED | _native.PlanFlag.DEFAULT_SIGNALS
        self._plan = Plan.from_spec(POOL_SPEC, ["stub"], extras=Extras(flags)).native
        self._command = Plan.for_parked(POOL_SPEC, payload).native
        self._null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        self._child: _native.Child | None = None

    def close(self) -> None:
        """The one that is parked ends."""
        if self._child is not None:
            self._child.close()
        os.close(self._null)

    def prepare(self) -> None:
        """Park one unless there is one."""
        if self._child is not None:
            return
        self._child = _native.Child()
        self._child.start(self._plan, (self._null,) * 3)
        while not self._child.parked:
            self._read(self._child)

    def _read(self, child: _native.Child) -> bool:
        poller = select.poll()
        poller.register(child.fd, select.POLLIN)
        poller.poll()
        return child.read()

    def sample(self) -> tuple[int | None, int | None]:
        """From before the hand-over to the exit message, and to just before the exec."""
        child = self._child
        if child is None:
            return None, None
        begin = time.perf_counter_ns()
        handed = child.hand(self._command, (0, 1, 2))
        while handed and not self._read(child):
            pass
        took = time.perf_counter_ns() - begin
        good = handed and not child.exit_status
        to_exec = child.spawn_ns
        child.close()
        self._child = None
        return (took, to_exec) if good else (None, None)


def run_pool(config: Config, rounds: int, size: int) -> dict[str, list[int | None]]:
    """Commands into a full pool; it fills off the clock."""
    payload = [config["true"]]
    with Pool(POOL_SPEC, size=size) as pool, closing(ParkedOnes(payload)) as ones:

        def through_popen() -> int:
            with pool.popen(payload) as process:
                return process.wait()

        samples: dict[str, Sample] = {
            "Pool.run()": sample_of(lambda: pool.run(payload).returncode),
            "Pool.run(), no capture": sample_of(
                lambda: pool.run(payload, capture=False).returncode
            ),
            "Pool.popen() and wait()": sample_of(through_popen),
            "posix_spawn, no sandbox": sample_of(lambda: spawn_plain(payload)),
        }
        core: list[tuple[int | None, int | None]] = []

        def core_sample() -> int | None:
            core.append(ones.sample())
            return core[-1][0]

        samples["core, to the exit message"] = core_sample

        def between() -> None:
            teardown().drain()
            pool.wait_full()
            ones.prepare()

        took: dict[str, list[int | None]] = {name: [] for name in samples}
        for number in range(rounds):
            for name, value in in_turn(samples, number, between).items():
                took[name].append(value)
        stats = pool.stats()
    took["core, to just before the exec"] = [pair[1] for pair in core]
    if stats.fresh:
        raise RuntimeError(f"{stats.fresh} commands found no parked sandbox")
    return took


def rate_loop(action: Callable[[], int], until: float) -> int:
    done = 0
    while time.perf_counter() < until:
        if action():
            raise RuntimeError("a run failed")
        done += 1
    return done


def rate_threads(action: Callable[[], int], workers: int, seconds: float) -> int:
    until = time.perf_counter() + seconds
    with ThreadPoolExecutor(workers) as threads:
        loops = [threads.submit(rate_loop, action, until) for _ in range(workers)]
        return sum(loop.result() for loop in loops)


async def rate_tasks(payload: list[str], workers: int, seconds: float) -> int:
    until = time.perf_counter() + seconds

    async def loop() -> int:
        done = 0
        while time.perf_counter() < until:
            if (await aio.run(payload, SPEC)).returncode:
                raise RuntimeError("a run failed")
            done += 1
        return done

    return sum(await asyncio.gather(*(loop() for _ in range(workers))))


def run_rate(config: Config, name: str, workers: int, seconds: float) -> list[float]:
    """Runs, and the seconds that they took until nothing of them was left."""
    begin = time.perf_counter()
    if name == "run(), asyncio":
        runs = asyncio.run(rate_tasks([config["true"]], workers, seconds))
    else:
        runs = rate_threads(spawners(config)[name.removesuffix(", threads")], workers, seconds)
    reap()
    return [runs, time.perf_counter() - begin]


def offspring(pid: int) -> list[int]:
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in map(int, (task / "children").read_text().split()):
            found += [child, *offspring(child)]
    return found


def pss(pid: int) -> int:
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024
    return 0


def meminfo() -> dict[str, int]:
    lines = Path("/proc/meminfo").read_text().splitlines()
    return {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines}


def park(count: int) -> dict[str, float]:
    """Bytes that each of so many parked sandboxes takes, by three ways of counting."""
    reap()
    before = meminfo()
    with Pool(POOL_SPEC, size=count) as pool:
        pool.wait_full()
        after = meminfo()
        own = sum(pss(pid) for pid in offspring(os.getpid()))
    reap()
    kernel = sum(after[name] - before[name] for name in KERNEL)
    return {
        "Pss of its processes": own / count,
        "kernel: slab, stacks, page tables, per cpu": kernel / count,
        "MemAvailable": (before["MemAvailable"] - after["MemAvailable"]) / count,
    }


def obey(order: Config, config: Config) -> object:
    """The answer to one order."""
    match order["do"]:
        case "round":
            samples = {name: sample_of(way) for name, way in spawners(config).items()}
            return in_turn(samples, order["number"], reap)
        case "fork":
            return timed(lambda: spawn_forked([config["true"]]))
        case "pool":
            return run_pool(config, order["rounds"], order["size"])
        case "rate":
            return run_rate(config, order["name"], order["workers"], order["seconds"])
        case "park":
            return park(order["count"])
    raise ValueError(order["do"])


def main() -> None:
    """Take orders until there are no more."""
    config = json.loads(sys.argv[1])
    # the payloads' streams are empty ones; ours lie elsewhere
    orders, answers = os.fdopen(os.dup(0)), os.fdopen(os.dup(1), "w")
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(null, 1)
    become(config["uid"], config["gid"])
    prctl(PR_SET_CHILD_SUBREAPER, 1)
    area = touch(config["touch"])
    for line in orders:
        answers.write(json.dumps(obey(json.loads(line), config)) + "\n")
        answers.flush()
    if area is not None:
        area.close()


if __name__ == "__main__":
    main()
