"""Many spawns of every kind, and what there was before is what there is after.

``make soak`` runs 20000 of them; else NSRUN_SOAK says how many.
"""

from __future__ import annotations

import asyncio
import gc
import os
import random
import sys
import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

from cowork_nsrun import PIPE, NsrunError, Pool, Sandbox, TimeoutExpired, popen, run
from cowork_nsrun.enforce import shared_cgroups

sys.path.insert(0, str(Path(__file__).parents[1] / "python"))
from leftovers import census

SPAWNS = int(os.environ.get("NSRUN_SOAK", "600"))
WORKERS = 6
PART = 100
GROWTH = 1.2  # of resident memory after the first third
MINIMAL = Sandbox.minimal()


def resident() -> int:
    """Bytes of memory that this process has."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True)
class Kinds:
    """Ways to spawn; each raises if its outcome is not the right one."""

    pool: Pool
    limited: Sandbox

    def run(self) -> None:
        """A command, its input, its output."""
        assert run(["cat"], MINIMAL, input=b"some" * 1000).stdout == b"some" * 1000

    def popen(self) -> None:
        """A conversation."""
        with popen(["cat"], MINIMAL, stdin=PIPE, stdout=PIPE) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write(b"line\n")
            process.stdin.flush()
            assert process.stdout.readline() == b"line\n"

    def terminal(self) -> None:
        """A terminal."""
        with popen(["tty"], MINIMAL, pty=True) as process:
            assert b"/dev/" in process.communicate()[0]

    def pooled(self) -> None:
        """One that was made ahead, as long as there is one."""
        assert self.pool.run(["sh", "-c", "exit 5"]).returncode == 5

    def pooled_popen(self) -> None:
        """The same, killed while it runs."""
        with self.pool.popen(["sleep", "1000"]) as process:
            process.kill()
            assert process.wait() == 137

    def aio(self) -> None:
        """Some at once, one of them cancelled, in a loop of their own."""

        async def work() -> None:
            late = asyncio.ensure_future(MINIMAL.arun(["sleep", "1000"]))
            results = await asyncio.gather(*(MINIMAL.arun(["true"]) for _ in range(3)))
            late.cancel()
            assert [result.returncode for result in results] == [0] * 3

        asyncio.run(work())

    def late(self) -> None:
        """Out of time."""
        with pytest.raises(TimeoutExpired):
            run(["sh", "-c", "sleep 1000 & sleep 1000"], MINIMAL, timeout=0.02)

    def absent(self) -> None:
        """No such program, or no such source."""
        with pytest.raises(NsrunError):
            run(["no-such-program"], MINIMAL)
        with pytest.raises(NsrunError):
            popen(["true"], MINIMAL.bind("/no/such/file", "/x"))

    def with_limits(self) -> None:
        """In a cgroup where there is one."""
        assert run(["true"], self.limited).returncode == 0


def test_nothing_piles_up() -> None:
    rng = random.Random(1)
    cgroups = all(a.held_by for a in shared_cgroups().available().values())
    limits = MINIMAL.limit(memory="64M", pids=30) if cgroups else MINIMAL.limit(open_files=64)
    with Pool(MINIMAL, 4) as pool:
        kinds = Kinds(pool, limits)
        ways: list[Callable[[], None]] = [
            kinds.run, kinds.popen, kinds.terminal, kinds.pooled, kinds.pooled_popen,
            kinds.aio, kinds.late, kinds.absent, kinds.with_limits,
        ]  # fmt: skip
        counted: Counter[str] = Counter()
        third = max(len(ways), SPAWNS // 3)
        for way in ways:
            way()
        spawn_all(rng, ways, third, counted)
        gc.collect()
        assert pool.wait_full(60)
        before, memory = census(), resident()
        spawn_all(rng, ways, SPAWNS - third, counted)
        gc.collect()
        assert pool.wait_full(60)
        after = census()
        assert resident() < memory * GROWTH
        # the pool's own are others by now, as many as before
        assert (len(after.fds), len(after.children)) == (len(before.fds), len(before.children))
        assert (after.mounts, after.cgroups, after.threads) == (
            before.mounts, before.cgroups, before.threads,
        )  # fmt: skip
        assert sum(counted.values()) == max(third, SPAWNS // 3) + SPAWNS - third
        assert len(counted) == len(ways)
    assert threading.active_count() <= before.threads


def spawn_all(
    rng: random.Random, ways: list[Callable[[], None]], count: int, counted: Counter[str]
) -> None:
    """That many, some at a time."""
    chosen = [rng.choice(ways) for _ in range(count)]
    with ThreadPoolExecutor(WORKERS) as threads:
        # in parts: thousands of futures would be what grows
        for begin in range(0, count, PART):
            part = [threads.submit(way) for way in chosen[begin : begin + PART]]
            for future in part:
                future.result()
    counted.update(getattr(way, "__name__", "") for way in chosen)
