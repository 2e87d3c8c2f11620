"""Limits of commands: each is met by a command that goes beyond it, and told apart in the end."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from typing import Any

import pytest
from leftovers import cgroups_of

from cowork_nsrun import Ending, LimitError, Pool, Result, Sandbox, aio, popen, run
from cowork_nsrun.enforce import shared_cgroups

AsUser = Callable[[Callable[[], Any]], Any]
MINIMAL = Sandbox.minimal()
MIB = 1 << 20
ALLOCATE = ["sh", "-c", "a=$(head -c 300000000 /dev/zero | tr '\\0' x); echo ${#a}"]
# twenty that live at one time
FORKS = ["sh", "-c", "i=0; while [ $i -lt 20 ]; do sleep 5 & i=$((i+1)); done; echo all"]


@pytest.fixture
def cgroups(lack: Callable[[str], Any]) -> None:
    """Only where a cgroup is to be had."""
    missing = [a for a in shared_cgroups().available().values() if a.held_by is None]
    if missing:
        lack(f"no cgroup for {missing[0].limit}: {missing[0].evidence}")


def left() -> list[Any]:
    return cgroups_of(os.getpid())


@pytest.mark.usefixtures("cgroups")
def test_out_of_memory() -> None:
    result = run(ALLOCATE, MINIMAL.limit(memory="64M"), timeout=60)
    assert result.returncode != 0
    assert result.ending == Ending.OUT_OF_MEMORY
    assert (result.usage.oom_kills or 0) >= 1
    assert result.usage.of_cgroup
    assert 32 * MIB < (result.usage.peak_memory or 0) <= 64 * MIB
    assert result.limits["memory"].startswith("cgroup v")
    assert left() == []


@pytest.mark.usefixtures("cgroups")
def test_control_enough_memory() -> None:
    result = run(ALLOCATE, MINIMAL.limit(memory="2G"), timeout=60)
    assert (result.returncode, result.stdout) == (0, b"300000000\n")
    assert result.ending == Ending.EXITED
    assert result.usage.oom_kills == 0
    assert (result.usage.peak_memory or 0) > 250 * MIB


@pytest.mark.usefixtures("cgroups")
def test_out_of_pids() -> None:
    result = run(FORKS, MINIMAL.limit(pids=10), timeout=60)
    assert b"all" not in result.stdout
    assert result.returncode != 0
    assert result.ending == Ending.OUT_OF_PIDS
    assert (result.usage.pids_refused or 0) >= 1
    assert left() == []


@pytest.mark.usefixtures("cgroups")
def test_control_enough_pids() -> None:
    result = run(FORKS, MINIMAL.limit(pids=30), timeout=60)
    assert (result.stdout, result.ending, result.usage.pids_refused) == (
        b"all\n", Ending.EXITED, 0,
    )  # fmt: skip


@pytest.mark.usefixtures("cgroups")
def test_pids_are_as_many_as_were_asked_for() -> None:
    """pid 1, which nsrun puts there, is not counted."""
    script = "sleep 1 & sleep 1 & sleep 1 & wait; echo all"
    assert run(["sh", "-c", script], MINIMAL.limit(pids=4)).stdout == b"all\n"
    assert run(["sh", "-c", script], MINIMAL.limit(pids=3)).ending == Ending.OUT_OF_PIDS


@pytest.mark.usefixtures("cgroups")
def test_processor_time_is_shared_out() -> None:
    """A tenth of a processor does a tenth of what it can do."""
    spin = ["timeout", "1", "sh", "-c", "while :; do :; done"]
    slow = run(spin, MINIMAL.limit(cpu=0.1)).usage
    fast = run(spin, MINIMAL.limit(cpu=2)).usage
    assert slow.cpu_ns * 2 < fast.cpu_ns


def test_out_of_time(as_user: AsUser) -> None:
    def probe() -> Result[bytes]:
        with popen(["sleep", "1000"], MINIMAL.replace(timeout=0.2)) as process:
            process.wait()
            return process.result()

    result = as_user(probe)
    assert result.ending == Ending.TIMED_OUT
    assert result.returncode == 128 + signal.SIGKILL


def test_a_failure_of_its_own_is_just_that(as_user: AsUser) -> None:
    spec = MINIMAL.limit(memory="64M", pids=20, best_effort=True)
    result = as_user(lambda: run(["sh", "-c", "kill -9 $$"], spec))
    assert (result.returncode, result.ending) == (137, Ending.SIGNALED)
    assert as_user(lambda: run(["false"], spec)).ending == Ending.EXITED


RLIMITS: dict[str, tuple[Any, list[str], bytes]] = {
    "address_space": ("64M", ["sh", "-c", "ulimit -v"], b"65536\n"),
    "cpu_seconds": (7, ["sh", "-c", "ulimit -t"], b"7\n"),
    "file_size": ("1M", ["sh", "-c", "ulimit -f"], b"2048\n"),
    "open_files": (33, ["sh", "-c", "ulimit -n"], b"33\n"),
    "data": ("128M", ["sh", "-c", "ulimit -d"], b"131072\n"),
    "stack": ("4M", ["sh", "-c", "ulimit -s"], b"4096\n"),
    "locked_memory": ("32K", ["bash", "-c", "ulimit -l"], b"32\n"),
    "processes": (44, ["bash", "-c", "ulimit -u"], b"44\n"),
    "core_size": ("8K", ["sh", "-c", "ulimit -c"], b"16\n"),
}


@pytest.mark.parametrize("name", RLIMITS)
def test_each_resource_limit_is_set(as_user: AsUser, name: str) -> None:
    value, argv, expected = RLIMITS[name]
    result = as_user(lambda: run(argv, MINIMAL.limit(**{name: value})))
    assert result.stdout == expected, result.stderr
    assert result.limits[name].startswith("RLIMIT_")


def test_file_size_and_open_files_hold(as_user: AsUser) -> None:
    def probe() -> list[Any]:
        big = run(["sh", "-c", "head -c 2000000 /dev/zero > /tmp/x"], MINIMAL.limit(file_size="1M"))
        spin = run(["sh", "-c", "while :; do :; done"], MINIMAL.limit(cpu_seconds=1), timeout=60)
        opened = run(
            ["bash", "-c", "for i in $(seq 3 40); do eval \"exec $i<&0\" || exit 7; done"],
            MINIMAL.limit(open_files=20), input=b"",
        )  # fmt: skip
        return [big.returncode != 0, spin.signal in {signal.SIGXCPU, signal.SIGKILL},
                opened.returncode != 0]  # fmt: skip

    assert as_user(probe) == [True, True, True]


def test_memory_can_t_be_had_by_the_unprivileged(in_child: AsUser) -> None:
    """An error that says so; nothing weaker is run in its place."""
    if os.geteuid():
        pytest.skip("cgroups may be delegated to this user")

    def probe() -> list[Any]:
        os.setresgid(12345, 12345, 12345)
        os.setgroups([])
        os.setresuid(12345, 12345, 12345)
        import ctypes  # noqa: PLC0415 - of the forked process

        ctypes.CDLL(None).prctl(4, 1, 0, 0, 0)  # dumpable, as an ordinary user's process
        shared_cgroups.cache_clear()
        found: list[Any] = []
        for changes in ({"memory": "64M"}, {"cpu": 0.5}):
            with pytest.raises(LimitError) as caught:
                run(["true"], MINIMAL.limit(**changes))
            found.append(caught.value.limit)
        best = run(["true"], MINIMAL.limit(memory="64M", cpu=0.5, best_effort=True))
        found += [best.returncode, dict(best.limits)]
        pids = run(FORKS, MINIMAL.limit(pids=10), timeout=60)
        found += [b"all" in pids.stdout, dict(pids.limits)]
        return found

    assert in_child(probe) == [
        "memory", "cpu", 0, {}, False, {"pids": "RLIMIT_NPROC"},
    ]  # fmt: skip


@pytest.mark.usefixtures("cgroups")
def test_too_little_to_set_the_sandbox_up() -> None:
    from cowork_nsrun import NsrunError  # noqa: PLC0415 - beside what it is about

    with pytest.raises(NsrunError):
        run(["true"], MINIMAL.limit(memory="4K"), timeout=60)
    assert left() == []


@pytest.mark.usefixtures("cgroups")
@pytest.mark.parametrize("how", ["popen", "pool", "aio"])
def test_every_way_of_starting_has_limits(how: str) -> None:
    import asyncio  # noqa: PLC0415 - for one of three

    spec = MINIMAL.limit(memory="64M", pids=30)
    if how == "popen":
        with popen(ALLOCATE, spec) as process:
            process.wait()
            result = process.result()
    elif how == "pool":
        with Pool(spec, 1) as pool:
            assert pool.wait_full(60)
            result = pool.run(ALLOCATE)
            assert pool.stats().handed == 1
    else:
        result = asyncio.run(aio.run(ALLOCATE, spec))
    assert result.ending == Ending.OUT_OF_MEMORY
    assert set(result.limits) == {"memory", "pids"}
    assert left() == []


@pytest.mark.usefixtures("cgroups")
def test_killed_before_it_has_started_leaves_nothing(marker: str) -> None:
    """A plan with cgroups goes through a program, which may be killed at any moment."""
    from cowork_nsrun.enforce import enforce  # noqa: PLC0415 - internals, for this alone
    from cowork_nsrun.handle import start  # noqa: PLC0415
    from cowork_nsrun.plan import Extras, Plan  # noqa: PLC0415

    spec = MINIMAL.limit(pids=20).replace(die_with_parent=False)
    for step in range(25):
        enforced = enforce(spec)
        plan = Plan.from_spec(spec, ["sleep", marker], extras=Extras(cgroups=enforced.cgroups))
        handle = start(plan, (0, 1, 2), enforced.enforcement)
        time.sleep(step * 0.0004)
        handle.close()
    assert left() == []
