"""Who starts a sandbox: this process, the nsrun program, an installed bwrap, or a microVM."""

from __future__ import annotations

import errno
import logging
import os
import threading
from collections.abc import Mapping
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
# what holds the limits of a microVM's command
BY_GUEST = "cgroup v2 of the guest"

HOST_ABI = 2  # the first ABI of Landlock that the host backend takes
_APPARMOR = Path("/proc/sys/kernel/apparmor_restrict_unprivileged_userns")
# of a clone: no refusal of namespaces, and who would run it instead needs more of the same
_SHORTAGES = {errno.EMFILE, errno.ENFILE, errno.ENOMEM}
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


@cache
def _doubted(_pid: int, _uid: int) -> threading.Event:
    """Set once a sandbox could not be set up: from then on it is asked before, not tried."""
    return threading.Event()


def doubt(error: NsrunError) -> None:
    """A sandbox could not be set up: what starts the next one is chosen by new probes.

    Those alone tell whether it was for this plan or for what runs it.
    """
    if error.step == _native.STEP_EXEC:
        return
    forget()
    _selected.cache_clear()
    _selected_by_name.cache_clear()
    _doubted(os.getpid(), os.geteuid()).set()


def _worth_a_try(pid: int, uid: int) -> bool:
    """Namespaces are not asked about before: a clone tells as much."""
    return not _late_refusal(uid) and not _doubted(pid, uid).is_set()


def _tries_first(backend: str, environ: Mapping[str, str]) -> bool:
    """Whether this process tries namespaces itself before it asks what there is."""
    if backend == "auto":
        ours = environ.get(VARIABLE, "").lower() in _NAMESPACES
    else:
        ours = backend == Backend.NAMESPACES
    return ours and _worth_a_try(os.getpid(), os.geteuid())


def _choice(backend: str, environ: Mapping[str, str]) -> Selection | None:
    """What was selected; None: this process has to try."""
    if _tries_first(backend, environ):
        return None
    pid, uid = os.getpid(), os.geteuid()
    if backend != "auto":
        return _selected_by_name(pid, uid, backend).require()
    return _selected(pid, uid, environ.get(VARIABLE, "").lower()).require()


def in_process(backend: str, environ: Mapping[str, str]) -> bool:
    """Whether :func:`begin` starts what is for namespaces in this very process.

    Arguments:
        backend: of a spec.
        environ: the process's own.

    Raises:
        NsrunError: nothing here can run it.
    """
    choice = _choice(backend, environ)
    return choice is None or choice.runner is Runner.PROCESS


def runs_in_machine(backend: str, *, probe: bool = False) -> bool:
    """Whether :func:`begin` will make it a microVM.

    Arguments:
        backend: of a spec.
        probe: find out even where begin() would only do so once a clone was refused.
    """
    if backend != "auto":
        return backend == Backend.KVM
    if not probe and _tries_first(backend, os.environ):
        return False
    word = os.environ.get(VARIABLE, "").lower()
    return _selected(os.getpid(), os.geteuid(), word).backend is Backend.KVM


def begin(
    plan: Plan,
    stdio: tuple[int, int, int],
    in_guest: Mapping[str, float],
    keeper: Keeper | None = None,
) -> tuple[_native.Child, str]:
    """Start a plan; returns the child, and what runs it.

    Arguments:
        in_guest: limits that only a microVM's guest keeps; see :func:`runs_in_machine`.
        keeper: makes the microVM of a plan that waits for its command.

    Raises:
        NsrunError: nothing here can run it.
    """
    if in_guest:
        # for what it says if something is missing
        _choice(plan.backend, os.environ)
        return _by_machine(plan, stdio, in_guest, keeper)
    if plan.on_host:
        return _by_program(plan, stdio)
    choice = _choice(plan.backend, os.environ)
    if choice is None or choice.runner is Runner.PROCESS:
        try:
            return _in_process(plan, stdio)
        except NsrunError as error:
            if error.step != _native.STEP_CLONE or error.errno in _SHORTAGES:
                raise
            log.info("namespaces are refused to this process: %s", error)
            choice = _instead(error, plan)
    try:
        return _by(choice, plan, stdio, keeper)
    except NsrunError as error:
        doubt(error)
        raise


def _instead(error: NsrunError, plan: Plan) -> Selection:
    """What can run it although this process can't."""
    forget()
    choice = select(plan.backend if plan.by_name else None)
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
    return child, plan.native.describe_host() if plan.on_host else BY_PROGRAM


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
    return _by_machine(plan, stdio, {}, keeper)


def _by_machine(
    plan: Plan,
    stdio: tuple[int, int, int],
    limits: Mapping[str, float],
    keeper: Keeper | None,
) -> tuple[_native.Child, str]:
    if plan.flags & _native.PlanFlag.PARKED:
        return _parked(plan, keeper, limits), BY_MACHINE
    machine = MachineChild()
    machine.start_machine(plan, stdio, limits)
    return machine, BY_MACHINE


def _parked(plan: Plan, keeper: Keeper | None, limits: Mapping[str, float]) -> ParkedMachine:
    if keeper is None:
        raise NsrunError("a microVM in a network of its own (veth) can't be made ahead")
    machine = ParkedMachine()
    machine.start_parked(plan, keeper, limits)
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
