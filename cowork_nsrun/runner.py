"""Who starts a sandbox: this process, the nsrun program, an installed bwrap, or a microVM."""

from __future__ import annotations

import logging
import os
from functools import cache
from pathlib import Path

from cowork_nsrun import _native
from cowork_nsrun.by_bwrap import BwrapChild
from cowork_nsrun.by_keeper import Keeper, ParkedMachine
from cowork_nsrun.by_machine import MachineChild
from cowork_nsrun.errors import NsrunError
from cowork_nsrun.plan import Extras, Plan
from cowork_nsrun.probe import VARIABLE
from cowork_nsrun.program import find_program
from cowork_nsrun.selection import Backend, Runner, Selection, forget, select

log = logging.getLogger(__name__)

IN_PROCESS = "namespaces"
BY_PROGRAM = "namespaces (nsrun program)"
BY_BWRAP = "namespaces (bwrap)"
BY_MACHINE = "microVM (KVM)"

HOST_ABI = 2  # the first ABI of Landlock that the host backend takes
_APPARMOR = Path("/proc/sys/kernel/apparmor_restrict_unprivileged_userns")
# words that mean our own namespaces wherever those are to be had
_NAMESPACES = {"", "bwrap"}


@cache
def _late_refusal(_uid: int) -> bool:
    """AppArmor lets the clone through and takes the rights away after it: ask before."""
    try:
        return _APPARMOR.read_text(encoding="ascii").strip() == "1" and os.geteuid() != 0
    except OSError:
        return False


@cache
def _selected(_pid: int, _uid: int, word: str) -> Selection:
    return select(environ={**os.environ, VARIABLE: word})


@cache
def _selected_by_name(_pid: int, _uid: int, backend: str) -> Selection:
    return select(backend)


def _choice(plan: Plan) -> Selection | None:
    """What was selected; None: this process has to try."""
    if plan.by_name and plan.backend == Backend.KVM:
        return _selected_by_name(os.getpid(), os.geteuid(), plan.backend).require()
    word = "" if plan.by_name else os.environ.get(VARIABLE, "").lower()
    uid = os.geteuid()
    if word in _NAMESPACES and not _late_refusal(uid):
        return None
    return _selected(os.getpid(), uid, word).require()


def begin(
    plan: Plan, stdio: tuple[int, int, int], keeper: Keeper | None = None
) -> tuple[_native.Child, str]:
    """Start a plan; returns the child, and what runs it.

    Arguments:
        keeper: makes the microVM of a plan that waits for its command.

    Raises:
        NsrunError: nothing here can run it.
    """
    if plan.flags & _native.PlanFlag.ON_HOST:
        return _by_program(plan, stdio)
    choice = _choice(plan)
    if choice is None or choice.runner is Runner.PROCESS:
        try:
            return _in_process(plan, stdio)
        except NsrunError as error:
            if error.step != _native.STEP_CLONE:
                raise
            log.info("namespaces are refused to this process: %s", error)
            choice = _instead(error)
    return _by(choice, plan, stdio, keeper)


def _instead(error: NsrunError) -> Selection:
    """What can run it although this process can't."""
    forget()
    choice = select()
    if choice.backend is None or choice.runner in {None, Runner.PROCESS}:
        raise NsrunError(
            f"{error.text}. See 'nsrun doctor'.",
            step=error.step,
            path=error.path,
            errno=error.errno,
        ) from None
    return choice


def _in_process(plan: Plan, stdio: tuple[int, int, int]) -> tuple[_native.Child, str]:
    child = _native.Child()
    try:
        child.start(plan.native, stdio)
    except _native.NeedsProgram as reason:
        log.debug("not in process: %s", reason)
        return _by_program(plan, stdio)
    return child, IN_PROCESS


def _by_program(plan: Plan, stdio: tuple[int, int, int]) -> tuple[_native.Child, str]:
    child = _native.Child()
    child.start_program(plan.native, find_program(), stdio)
    on_host = plan.flags & _native.PlanFlag.ON_HOST
    return child, plan.native.describe_host() if on_host else BY_PROGRAM


def _by(
    choice: Selection, plan: Plan, stdio: tuple[int, int, int], keeper: Keeper | None
) -> tuple[_native.Child, str]:
    if choice.runner is Runner.PROGRAM:
        return _by_program(plan, stdio)
    if choice.backend is Backend.HOST:
        return _by_program(_for_host(plan), stdio)
    if choice.runner is Runner.BWRAP:
        child = BwrapChild()
        child.start_bwrap(plan, stdio)
        return child, BY_BWRAP
    if plan.flags & _native.PlanFlag.PARKED:
        return _parked(plan, keeper), BY_MACHINE
    machine = MachineChild()
    machine.start_machine(plan, stdio)
    return machine, BY_MACHINE


def _parked(plan: Plan, keeper: Keeper | None) -> ParkedMachine:
    if keeper is None:
        raise NsrunError("a microVM in a network of its own (veth) can't be made ahead")
    machine = ParkedMachine()
    machine.start_parked(plan, keeper)
    return machine


def _for_host(plan: Plan) -> Plan:
    """The same plan on the host, which the variable asks for; as the nsrun program does it.

    Raises:
        NsrunError: it asks for what can't be had there.
    """
    flags = _native.PlanFlag.ON_HOST
    if _native.landlock_abi() < HOST_ABI:
        flags |= _native.PlanFlag.UNCONFINED
    made = plan.with_extras(Extras(flags))
    log.warning("%s asks for the host: %s", VARIABLE, made.native.describe_host())
    return made
