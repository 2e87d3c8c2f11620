"""The process that forks a pool's machines, where no machine can be had: what it then tells."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from leftovers import census, children, processes_with

from cowork_nsrun import NsrunError, Sandbox
from cowork_nsrun._native import PlanFlag
from cowork_nsrun.by_keeper import Keeper, ParkedMachine
from cowork_nsrun.plan import Extras, Plan

SPEC = Sandbox.minimal().replace(backend="kvm")


@pytest.fixture(autouse=True)
def no_kernel(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("NSRUN_GUEST_KERNEL", str(tmp_path / "no-kernel"))


@pytest.fixture
def keeper() -> Iterator[Keeper]:
    before = census()
    with Keeper() as made:
        yield made
    assert census() == before


def keepers() -> list[int]:
    """Those of this process."""
    return sorted({*processes_with("keep")} & {*children()})


def plan(spec: Sandbox = SPEC) -> Plan:
    return Plan.from_spec(spec, ["true"], extras=Extras(PlanFlag.PARKED))


def ending(keeper: Keeper, wanted: Plan) -> NsrunError:
    """Why a machine came to nothing."""
    machine = ParkedMachine()
    machine.start_parked(wanted, keeper, {})
    try:
        while not machine.read():
            select.select([machine.fd], [], [])
    except NsrunError as error:
        assert not machine.parked
        return error
    finally:
        machine.close()
    raise AssertionError


def test_why_there_is_no_machine(keeper: Keeper, tmp_path: Path) -> None:
    assert "no-kernel" in ending(keeper, plan()).text
    # before that, the plan is looked at
    os.mkfifo(tmp_path / "fifo")
    assert "is a FIFO" in ending(keeper, plan(SPEC.bind(tmp_path / "fifo", "/x"))).text
    missing = ending(keeper, plan(SPEC.bind("/no/such/source", "/x")))
    assert missing.path == "/no/such/source"


def test_the_caller_s_descriptors(keeper: Keeper) -> None:
    machine = ParkedMachine()
    words = [*("--unshare-all", "--ro-bind-fd", "0", "/x"), "true"]
    with pytest.raises(NsrunError, match="descriptors"):
        machine.start_parked(Plan.from_argv(words), keeper, {})


def test_forks_are_waited_for(keeper: Keeper) -> None:
    for _ in range(3):
        ending(keeper, plan())
    (pid,) = keepers()
    forks = Path(f"/proc/{pid}/task/{pid}/children")
    while forks.read_text():
        time.sleep(0.01)


def test_one_that_was_killed_is_made_again(keeper: Keeper) -> None:
    ending(keeper, plan())
    (pid,) = keepers()
    os.kill(pid, signal.SIGKILL)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    assert "no-kernel" in ending(keeper, plan()).text
    assert pid not in keepers()


OWNER = """
import os, signal
from cowork_nsrun import Sandbox
from cowork_nsrun._native import PlanFlag
from cowork_nsrun.by_keeper import Keeper, ParkedMachine
from cowork_nsrun.plan import Extras, Plan
spec = Sandbox.minimal().replace(backend="kvm")
keeper, machine = Keeper(), ParkedMachine()
machine.start_parked(Plan.from_spec(spec, ["true"], extras=Extras(PlanFlag.PARKED)), keeper, {})
print(open(f"/proc/self/task/{os.getpid()}/children").read(), flush=True)
signal.pause()
"""


def test_it_ends_with_its_owner() -> None:
    owner = subprocess.Popen([sys.executable, "-I", "-c", OWNER], stdout=subprocess.PIPE)
    assert owner.stdout is not None
    pid = int(owner.stdout.readline())
    owner.kill()
    owner.wait()
    owner.stdout.close()
    while pid in processes_with("keep"):
        time.sleep(0.01)
