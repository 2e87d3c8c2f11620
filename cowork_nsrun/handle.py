"""One started sandbox: its records, its end, its limits.  Safe in any number of threads."""

from __future__ import annotations

import logging
import os
import select
import signal
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import TYPE_CHECKING

from cowork_nsrun import _native
from cowork_nsrun._native import Number
from cowork_nsrun.by_keeper import Keeper, ParkedMachine
from cowork_nsrun.denies import Placeholders
from cowork_nsrun.errors import NsrunError
from cowork_nsrun.limits import Cgroup
from cowork_nsrun.link import CLONE_NEWNET, Link
from cowork_nsrun.outlet import Outlet
from cowork_nsrun.plan import Extras, Plan, milliseconds
from cowork_nsrun.runner import BY_GUEST, BY_MACHINE, IN_PROCESS, begin, doubt
from cowork_nsrun.teardown import teardown

if TYPE_CHECKING:
    from cowork_nsrun.policy.veth import Veth

log = logging.getLogger(__name__)

SIGNAL_BASE = 128
# asked for once: each answer is a new set of enumeration members
SIGNALS = frozenset(signal.valid_signals())
EARLY_END = "the sandbox was ended before the command could start"
LONGEST_POLL = 86400.0  # seconds; poll(2) counts milliseconds in an int

Stdio = tuple[int, int, int]


class Ending(StrEnum):
    """How a command came to its end."""

    EXITED = "exited"
    SIGNALED = "signaled"
    TIMED_OUT = "timed out"
    OUT_OF_MEMORY = "out of memory"
    OUT_OF_PIDS = "out of pids"


@dataclass(frozen=True, slots=True)
class Usage:
    """What a sandbox used; of its cgroup where it has one, else of what was waited for.

    Attributes:
        cpu_ns: processor time, in nanoseconds.
        peak_memory: bytes; of all processes together with a cgroup, else of the largest;
            None: not known, as it is without a cgroup for what stays below the caller's own.
        of_cgroup: which of both.
        oom_kills: processes that were killed for want of memory; None: not known.
        pids_refused: how often a process or thread was refused; None: not known.
    """

    cpu_ns: int
    peak_memory: int | None
    of_cgroup: bool = False
    oom_kills: int | None = None
    pids_refused: int | None = None


NO_USAGE = Usage(0, None)


def signal_of(code: int) -> int | None:
    """The signal that an exit status tells of; None: none."""
    number = code - SIGNAL_BASE
    return number if number in SIGNALS else None


@dataclass(frozen=True, slots=True)
class Enforcement:
    """What a sandbox has outside: its limits as they are held, and its way out.

    Attributes:
        held: limit to what holds it, such as ``cgroup v2`` or ``RLIMIT_NPROC``.
        cgroup: what holds those that concern all processes together.
        placeholders: what keeps names free that are not to come into being.
        in_guest: ``memory``, ``pids``, ``cpu``: limits that a microVM's guest keeps.
        outlet: its way out, if it has one.
        link: its network's devices, if it has such.
    """

    held: Mapping[str, str] = field(default_factory=dict)
    cgroup: Cgroup | None = None
    outlet: Outlet | None = None
    placeholders: Placeholders | None = None
    link: Link | None = None
    in_guest: Mapping[str, float] = field(default_factory=dict)

    def give_back(self) -> None:
        """Nothing runs in it."""
        if self.cgroup is not None:
            self.cgroup.close()
        if self.outlet is not None:
            self.outlet.close()
        if self.placeholders is not None:
            self.placeholders.release()
        if self.link is not None:
            self.link.close()


@dataclass(slots=True)
class _Outcome:
    returncode: int | None = None
    timed_out: bool = False
    error: BaseException | None = None
    usage: Usage | None = None
    gone: bool = False


class Handle:
    """A sandbox that :func:`start` has started.

    Whoever polls :attr:`fd` does so within :meth:`polling`: what it stands for is given
    back only when nobody does any more.
    """

    def __init__(self, child: _native.Child, enforcement: Enforcement, backend: str) -> None:
        self._child = child
        self._enforcement = enforcement
        self.backend = backend
        self._owner = os.getpid()
        # by one thread more than once: a signal handler or a finalizer may come at any point.
        # It is entered itself, not by the condition, where an interrupt could keep it held.
        self._lock = threading.RLock()
        # of who waits for another thread's poll; few sandboxes have such
        self._changed: threading.Condition | None = None
        self._pollers: dict[object, int] = {}
        self._outcome = _Outcome()
        self._started = False
        self._spawn_ns: int | None = None
        self._pid = 0
        _living.add(self)

    # --- what is known ------------------------------------------------------------------

    @property
    def outlet(self) -> Outlet | None:
        """Its way out."""
        return self._enforcement.outlet

    @property
    def held(self) -> Mapping[str, str]:
        """Limit to what holds it."""
        return self._enforcement.held

    @property
    def veth(self) -> Veth | None:
        """Its network's devices."""
        link = self._enforcement.link
        return None if link is None else link.veth

    @property
    def pid(self) -> int:
        """The command's pid outside; 0 where it is not known.  It may have ended."""
        return self._pid

    @property
    def spawn_ns(self) -> int | None:
        """Nanoseconds from the clone to just before the exec; None if it did not come to it."""
        return self._spawn_ns

    @property
    def returncode(self) -> int | None:
        """0 to 255, 128+n for signal n; None while it runs."""
        return self._outcome.returncode

    @property
    def started(self) -> bool:
        """The command has been started."""
        return self._started

    @property
    def parked(self) -> bool:
        """It waits for its command."""
        return self._child.parked

    @property
    def ended(self) -> bool:
        """The command has ended, or could not be started."""
        return self._outcome.returncode is not None or self._outcome.error is not None

    @property
    def usage(self) -> Usage:
        """What was used, once all is gone."""
        return self._outcome.usage or NO_USAGE

    @property
    def ending(self) -> Ending:
        """Why it ended, once all is gone."""
        usage, code = self.usage, self._outcome.returncode or 0
        if self._outcome.timed_out:
            return Ending.TIMED_OUT
        if code and usage.oom_kills:
            return Ending.OUT_OF_MEMORY
        if code and usage.pids_refused:
            return Ending.OUT_OF_PIDS
        return Ending.SIGNALED if signal_of(code) else Ending.EXITED

    def _check_owner(self) -> None:
        if not self.is_ours():
            raise NsrunError("this sandbox belongs to the process that was forked from")

    def is_ours(self) -> bool:
        """Started by this very process, not by one that it was forked from."""
        return os.getpid() == self._owner

    # --- records --------------------------------------------------------------------------

    @property
    def fd(self) -> int:
        """Readable when :meth:`advance` has something; may change with each call of that."""
        return self._child.fd

    @contextmanager
    def polling(self) -> Iterator[None]:
        """Keep :attr:`fd` what it is."""
        self._check_owner()
        poller = object()
        try:
            self.hold(poller)
            yield
        finally:
            self.release(poller)

    def hold(self, poller: object) -> None:
        """Begin of :meth:`polling`."""
        self._check_owner()
        with self._lock:
            self._pollers[poller] = threading.get_ident()

    def release(self, poller: object) -> None:
        """End of :meth:`polling`; the last one frees what has ended, and may wait for that."""
        with self._lock:
            self._pollers.pop(poller, None)
            if not self.ended or self._pollers or self._outcome.gone:
                return
            self._finish()
            if self._changed is not None:
                self._changed.notify_all()

    @property
    def goes_at_once(self) -> bool:
        """It has ended, and :meth:`release` waits for nothing."""
        outside = (self._enforcement.outlet, self._enforcement.placeholders)
        return self.ended and self._only_kernels() and outside == (None, None)

    def _only_kernels(self) -> bool:
        """Nothing of the user's is left: the namespaces' end is the kernel's business."""
        held = self._enforcement
        # a network's devices are removed by an event loop of pyroute2's own
        light = held.cgroup is None and held.link is None
        return self._child.alone and light and self.backend == IN_PROCESS

    def advance(self) -> bool:
        """Take what there is, without blocking; True once the command has ended."""
        with self._lock:
            if self.ended:
                return True
            try:
                ended = self._child.read()
            except NsrunError as error:
                self._outcome.error = error
                self._child.signal(signal.SIGKILL)
                doubt(error)
                return True
            self._note_start()
            if ended:
                self._note_end()
            return ended

    def _note_start(self) -> None:
        if not self._started and self._child.exec_seen:
            self._started = True
            self._spawn_ns = self._child.spawn_ns
            self._pid = self._child.pid

    def _note_end(self) -> None:
        if not self._started:
            self._outcome.error = NsrunError(self._early_end())
        self._outcome.returncode = self._child.exit_status
        self._outcome.timed_out |= self._child.timed_out
        # what the command left running ends with it; pid 1 alone ends by itself
        if not self._child.alone:
            self._child.signal(signal.SIGKILL)

    def _early_end(self) -> str:
        usage = self._enforcement.cgroup.usage() if self._enforcement.cgroup else None
        if usage is not None and usage.oom_kills:
            return "the memory limit is too small to set the sandbox up"
        return EARLY_END

    def _finish(self) -> None:
        """No process of the sandbox but a dying pid 1 is left when this returns."""
        cpu_ns, largest = self._child.usage
        peak = largest or None
        cgroup, used = self._enforcement.cgroup, self._child.counted
        if self._only_kernels():
            teardown().add(self._child)
        else:
            self._child.close()
        self._outcome.usage = Usage(cpu_ns, peak)
        if used is None and cgroup is not None:
            used = cgroup.usage()
        if used is not None:
            self._outcome.usage = Usage(
                cpu_ns if used.cpu_ns is None else used.cpu_ns,
                peak if used.memory_peak is None else used.memory_peak,
                used.memory_peak is not None,
                used.oom_kills,
                used.pids_refused,
            )
        self._enforcement.give_back()
        self._outcome.gone = True

    # --- waiting --------------------------------------------------------------------------

    def wait(self, deadline: float | None) -> bool:
        """Wait for the end, and until all is gone; False if the deadline came first.

        Arguments:
            deadline: by ``time.monotonic()``.
        """
        if self._outcome.gone:
            return True
        if not self._wait_until(lambda: self.ended, deadline):
            return False
        with self._lock:
            # another thread may still be looking at it: it is woken by the end as we were
            while not self._outcome.gone:
                if not self._pollers:
                    self._finish()
                elif set(self._pollers.values()) == {threading.get_ident()}:
                    # this is a signal handler's call: whom it came in between will finish
                    return True
                else:
                    self._changed = self._changed or threading.Condition(self._lock)
                    self._changed.wait(seconds_left(deadline))
                    if deadline is not None and time.monotonic() >= deadline:
                        return self._outcome.gone
        return True

    def wait_started(self) -> None:
        """Wait until the command runs.

        Raises:
            NsrunError: it could not be started; nothing is left then.
        """
        self._wait_until(lambda: self._started or self.ended, None)
        self._wait_exec()
        if self._outcome.error is not None:
            self.close()
            raise self._outcome.error

    @property
    def exec_fd(self) -> int:
        """At its end once the exec has succeeded or failed; -1: that is not told."""
        return self._child.exec_fd

    def _wait_exec(self) -> None:
        """The start is told just before the exec, which may fail."""
        with self.polling():
            fd = self.exec_fd
            if self.ended or fd < 0:
                return
            poller = select.poll()
            poller.register(fd, select.POLLIN)
            poller.poll()
            self.advance()

    @property
    def cold(self) -> str:
        """Of a parked one, why no program waits in it that was to; "": there is no such reason."""
        return self._child.cold if isinstance(self._child, ParkedMachine) else ""

    def wait_parked(self) -> bool:
        """Wait until it waits for its command; False if it came to an end instead."""
        self._wait_until(lambda: self._child.parked or self.ended, None)
        return not self.ended

    def _wait_until(self, reached: Callable[[], bool], deadline: float | None) -> bool:
        with self.polling():
            while not reached():
                left = seconds_left(deadline)
                if left is not None and left <= 0:
                    self.advance()
                    return reached()
                poller = select.poll()
                poller.register(self.fd, select.POLLIN)
                poller.poll(None if left is None else left * 1000)
                self.advance()
        return True

    def check(self) -> None:
        """Raise what kept the command from being started."""
        if self._outcome.error is not None:
            raise self._outcome.error

    # --- ending ---------------------------------------------------------------------------

    def signal(self, number: int) -> bool:
        """Send a signal to everything inside; False if it has ended.

        Raises:
            NsrunError: it can't be sent.
        """
        self._check_owner()
        with self._lock:
            return not self.ended and self._child.signal(number)

    def time_out(self) -> None:
        """Kill everything, and call that the end of its time."""
        with self._lock:
            # it may have come to its end in time, and nobody looked
            if not self.advance():
                self._outcome.timed_out = True
                self._child.signal(signal.SIGKILL)

    def close(self) -> None:
        """Kill everything and wait until it is gone; may be called again."""
        if self._outcome.gone:
            return
        self._check_owner()
        with self._lock:
            if not self.ended:
                self._child.signal(signal.SIGKILL)
        self.wait(None)

    def hand(self, command: Plan, stdio: Stdio, timeout: float | None) -> bool:
        """Give a parked sandbox its command; False if it has to be thrown away.

        Raises:
            NsrunError: with ``E2BIG`` if the command is too large for it.
        """
        self._check_owner()
        with self._lock:
            deadline = None if timeout is None else milliseconds(timeout)
            return not self.ended and self._child.hand(command.native, stdio, deadline)

    def __del__(self) -> None:
        outcome = getattr(self, "_outcome", None)
        if outcome is None or outcome.gone:
            return
        if self.is_ours():
            self._finish()
        else:
            self.forget()

    def forget(self) -> None:
        """In a forked copy of the program: close what this holds, and end nothing."""
        self._child.forget()
        if self._enforcement.placeholders is not None:
            self._enforcement.placeholders.forget()


_living: weakref.WeakSet[Handle] = weakref.WeakSet()


def _after_fork() -> None:
    # a copy of our ends would keep sandboxes alive whose owner has died
    for handle in list(_living):
        handle.forget()


os.register_at_fork(after_in_child=_after_fork)


def seconds_left(deadline: float | None) -> float | None:
    """Until then, by ``time.monotonic()``; never more than poll(2) can wait."""
    return None if deadline is None else min(LONGEST_POLL, deadline - time.monotonic())


def _begin(
    plan: Plan, stdio: Stdio, enforcement: Enforcement, keeper: Keeper | None
) -> tuple[_native.Child, str]:
    link = enforcement.link
    if link is None:
        return begin(plan, stdio, enforcement.in_guest, keeper)
    # the network's namespace is there: what the link's thread starts is in it
    rest = plan.native.number(Number.UNSHARE) & ~CLONE_NEWNET
    joined = plan.with_extras(Extras(numbers={Number.UNSHARE: rest}))
    return link.start(lambda: begin(joined, stdio, enforcement.in_guest))


def start(
    plan: Plan, stdio: Stdio, enforcement: Enforcement, keeper: Keeper | None = None
) -> Handle:
    """Start a plan by whoever may; see :mod:`cowork_nsrun.runner`.

    Arguments:
        keeper: makes microVMs that wait for their command.

    Raises:
        NsrunError: it can't be started; what it has outside is given back then.
    """
    teardown().sweep()
    child: _native.Child | None = None
    try:
        child, backend = _begin(plan, stdio, enforcement, keeper)
        if backend == BY_MACHINE and enforcement.cgroup is not None:
            # it was to be entered; the guest keeps what it says
            held = {**enforcement.held, **dict.fromkeys(enforcement.cgroup.held, BY_GUEST)}
            enforcement = replace(enforcement, held=held)
        if enforcement.outlet is not None:
            enforcement.outlet.open(of_machine=backend == BY_MACHINE)
        return Handle(child, enforcement, backend)
    except BaseException:
        if child is not None:
            child.close()
        enforcement.give_back()
        raise
