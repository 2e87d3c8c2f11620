"""What holds the limits of a spec here: cgroups, else resource limits where they mean the same."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from cowork_nsrun._native import Number
from cowork_nsrun.compiling import is_lone
from cowork_nsrun.denies import hold_names
from cowork_nsrun.errors import NsrunError, SpecError
from cowork_nsrun.handle import Enforcement
from cowork_nsrun.limits import Cgroup, Cgroups, Group, LimitError
from cowork_nsrun.link import Link
from cowork_nsrun.outlet import Outlet
from cowork_nsrun.runner import BY_GUEST, runs_in_machine
from cowork_nsrun.spec import (
    LIMITS,
    Bind,
    BindData,
    BindFd,
    Dev,
    Mqueue,
    Operation,
    Proc,
    Sandbox,
    Tmpfs,
)

if TYPE_CHECKING:
    from cowork_nsrun.policy.gate import OnDecision

log = logging.getLogger(__name__)

#: where a guest has them
_GUEST_CGROUPS = "/sys/fs/cgroup/nsrun-0"


@cache
def shared_cgroups() -> Cgroups:
    """The one that this process makes its cgroups by: finding their place takes a while."""
    return Cgroups()


@dataclass(frozen=True, slots=True)
class Enforced:
    """How a spec's limits are held.

    Attributes:
        enforcement: with the cgroup, to be entered and later removed.
        rlimits: resource limits that stand for limits of a cgroup.
    """

    enforcement: Enforcement = field(default_factory=Enforcement)
    rlimits: Mapping[str, int] = field(default_factory=dict)

    @property
    def cgroups(self) -> tuple[str, ...]:
        """Directories to enter."""
        cgroup = self.enforcement.cgroup
        return () if cgroup is None else cgroup.inner

    @property
    def numbers(self) -> dict[Number, int]:
        """Numbers of the plan that they need."""
        outlet = self.enforcement.outlet
        return {} if outlet is None else {Number.LISTEN_FD: outlet.fd}

    def give_back(self) -> None:
        """Nothing was started."""
        self.enforcement.give_back()


def enforce(
    spec: Sandbox, on_decision: OnDecision | None = None, within: Group | None = None
) -> Enforced:
    """Make what a spec needs outside: the cgroup of its limits, its way out, its placeholders.

    Arguments:
        on_decision: is told what the proxy allows and refuses, in a thread of its own.
        within: whose limits hold as well, for all in it together.

    Raises:
        LimitError: a limit can't be had, and the spec does not say ``best_effort``.
    """
    if within is None and is_lone(spec):
        return Enforced()
    enforced = _limit(spec, within)
    try:
        placeholders = hold_names(spec)
        enforcement = replace(enforced.enforcement, placeholders=placeholders)
        enforced = replace(enforced, enforcement=enforcement)
        if spec.veth:
            return replace(enforced, enforcement=replace(enforcement, link=Link()))
        if spec.egress is None:
            return enforced
        outlet = Outlet(spec.egress, on_decision)
    except BaseException:
        enforced.give_back()
        raise
    return replace(enforced, enforcement=replace(enforced.enforcement, outlet=outlet))


def _limit(spec: Sandbox, within: Group | None) -> Enforced:
    held = {
        name: str(LIMITS[name].rlimit)
        for name in LIMITS
        if LIMITS[name].rlimit is not None and getattr(spec.limits, name) is not None
    }
    wanted = dict(spec.limits.cgroup)
    rlimits: dict[str, int] = {}
    # pid 1 inside is one more than the command knows of
    if "pids" in wanted and not spec.as_pid_1:
        wanted["pids"] += 1
    if wanted and within is None and runs_in_machine(spec.backend):
        return _by_guest(spec, held, wanted)
    while wanted or within is not None:
        try:
            cgroup = _open(wanted, within)
        except LimitError as error:
            if error.limit not in wanted:
                raise
            if within is None and _falls_to_a_machine(spec, error):
                return _by_guest(spec, held, wanted)
            value = wanted.pop(error.limit)
            instead = _instead(spec, error)
            if instead is None:
                continue
            rlimits[instead] = int(value)
            held[error.limit] = instead
        else:
            enforced = Enforced(Enforcement({**held, **cgroup.held}, cgroup), rlimits)
            try:
                check_hidden(spec, enforced.cgroups)
            except BaseException:
                enforced.give_back()
                raise
            return enforced
    return Enforced(Enforcement(held), rlimits)


def _falls_to_a_machine(spec: Sandbox, error: LimitError) -> bool:
    """Whether it will be a microVM anyway, which needs no cgroup of the host's.

    Raises:
        LimitError: that can't be told; then it is this error that says why.
    """
    try:
        return runs_in_machine(spec.backend, probe=True)
    except NsrunError as unknown:
        log.info("no backend was looked for: %s", unknown)
        raise error from None


def _by_guest(spec: Sandbox, held: Mapping[str, str], wanted: Mapping[str, float]) -> Enforced:
    """A microVM's own kernel keeps them: nothing on the host has to be delegated."""
    check_hidden(spec, (_GUEST_CGROUPS,))
    by = dict.fromkeys(wanted, BY_GUEST)
    return Enforced(Enforcement({**held, **by}, in_guest=dict(wanted)))


def _open(wanted: Mapping[str, float], within: Group | None) -> Cgroup:
    memory, pids = wanted.get("memory"), wanted.get("pids")
    return (within or shared_cgroups()).open(
        memory=None if memory is None else int(memory),
        pids=None if pids is None else int(pids),
        cpu=wanted.get("cpu"),
    )


def _instead(spec: Sandbox, error: LimitError) -> str | None:
    """The resource limit that takes the place of one that no cgroup can hold; None: nothing.

    Raises:
        LimitError: nothing may take its place.
    """
    # counted in the sandbox's own user namespace, which an unprivileged caller's always has;
    # the real root is never counted, whatever it is called inside
    counts = os.getuid() != 0 and spec.limits.processes is None
    if error.limit == "pids" and counts:
        return "RLIMIT_NPROC"
    if not spec.limits.best_effort:
        raise error
    # no RLIMIT_AS for memory: what is mapped is not what is used
    log.info("limit left out: %s", error)
    return None


def check_hidden(spec: Sandbox, cgroups: Iterable[str]) -> None:
    """Refuse a limit that the command could lift by writing to its own cgroup.

    Raises:
        SpecError: an operation shows the cgroup, writable, and no later one covers it.
    """
    for path in map(Path, map(os.path.realpath, cgroups)):
        shown: set[Path] = set()
        for operation in spec.filesystem:
            dest = _dest(operation)
            if dest is None:
                continue
            shown = {place for place in shown if not place.is_relative_to(dest)}
            source = _writable_source(operation)
            if source is not None and path.is_relative_to(source):
                shown.add(dest / path.relative_to(source))
        if shown:
            mount = "/sys/fs/cgroup"
            raise SpecError(
                "Sandbox.filesystem",
                f"shows the command its own cgroup, writable, at {min(shown)}, so that it could "
                f"lift its limits: bind {mount} read-only after that",
            )


def _dest(operation: Operation) -> Path | None:
    """What an operation mounts over; None if it mounts nothing."""
    if isinstance(operation, Bind | BindFd | Tmpfs | Proc | Dev | Mqueue | BindData):
        return Path(os.path.normpath(operation.dest))
    return None


def _writable_source(operation: Operation) -> Path | None:
    if isinstance(operation, Bind) and not operation.read_only:
        return Path(os.path.realpath(operation.source))
    if isinstance(operation, BindFd) and not operation.read_only:
        return Path(os.path.realpath(f"/proc/self/fd/{operation.fd}"))
    return None
