"""``nsrun vm keep``: forks a process for each machine that a pool wants to have ready.

What such a process needs is loaded once, and its memory is this one's until it writes there.
It has no threads, so that a fork takes nothing along that is in use.
"""

from __future__ import annotations

import errno
import gc
import os
import select
import signal
import socket
from contextlib import suppress
from dataclasses import dataclass, fields

from cowork_nsrun._native import Number
from cowork_nsrun.by_keeper import ANSWER, DEADLINE, TAKEN
from cowork_nsrun.errors import NsrunError
from cowork_nsrun.guest import cache
from cowork_nsrun.guest.agent import Command
from cowork_nsrun.guest.compile import Translation, translate
from cowork_nsrun.guest.exec import Streams, Teller, read_plan, run_in, stand_for
from cowork_nsrun.guest.kernel import Kernel, choose
from cowork_nsrun.guest.limits import Limits
from cowork_nsrun.guest.machine import Machine
from cowork_nsrun.guest.standin import Forwarding
from cowork_nsrun.guest.vmm import find_beside
from cowork_nsrun.plan import Extras, Plan

FAILED = 1


@dataclass(frozen=True)
class Place:
    """What a parked machine has of its owner's, as descriptors.

    Attributes:
        plan: a file with its plan.
        status: gets a JSON object a line, as ``--status-fd`` of ``nsrun vm exec``.
        life: as ``--life-fd``.
        line: the command comes there, once: its plan and its three standard streams.
        directory: the owner's, where the command starts if nothing else is said.
        outlet: where a sandbox with egress rules sends its sockets; -1: it has none.
    """

    plan: int
    status: int
    life: int
    line: int
    directory: int
    outlet: int = -1


_FDS = len(fields(Place))
#: a plan, and three standard streams
_HANDED = 4


def keep(control: socket.socket) -> int:
    """Fork as often as is asked, until the other end is gone; returns the exit status."""
    # looked for once, for all
    find_beside("nsrun-vmm")
    choice = _Choice()
    choice.kernel()
    gc.collect()
    gc.freeze()
    come, numbers = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(numbers, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    poller = select.poll()
    poller.register(control, select.POLLIN)
    poller.register(come, select.POLLIN)
    while True:
        ready = {fd for fd, _ in poller.poll()}
        if come in ready:
            _reap(come)
        if control.fileno() in ready:
            place = _asked(control)
            if place is None:
                return 0
            kernel = choice.kernel()
            if not _fork(control, place):
                return _begin(place, kernel)


class _Choice:
    """The kernel of all machines; it is looked for again when its files have changed."""

    def __init__(self) -> None:
        self._found: Kernel | None = None
        self._files: list[str] = []

    def kernel(self) -> Kernel | None:
        """None: there is none that is fit, of which the machine's own process tells."""
        try:
            if self._found is None or self._files != _identities(self._found):
                self._found = choose()
                self._files = _identities(self._found)
        except (NsrunError, OSError):
            self._found = None
        return self._found


def _identities(kernel: Kernel) -> list[str]:
    files = (kernel.path, *kernel.modules, *(kernel.network or ()))
    return [cache.identity(path) for path in files]


def _reap(come: int) -> None:
    """Those that have ended: their owners have a pidfd of each."""
    with suppress(BlockingIOError):
        os.read(come, 4096)
    with suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def _asked(control: socket.socket) -> Place | None:
    """The next request; None at the end."""
    try:
        data, fds, _, _ = socket.recv_fds(control, 1, _FDS, socket.MSG_CMSG_CLOEXEC)
    except ConnectionError:
        return None
    return Place(*fds) if data else None


def _fork(control: socket.socket, place: Place) -> int:
    """As fork(2), and the owner is told; in the new process the place is kept."""
    number, fds = 0, []
    try:
        pid = os.fork()
        if not pid:
            control.close()
            return pid
        # it is there until it is waited for, which comes later
        fds.append(os.pidfd_open(pid))
    except OSError as error:
        pid, number = -1, error.errno or errno.EAGAIN
    # an owner that is gone is seen at the next request
    with suppress(OSError):
        socket.send_fds(control, [ANSWER.pack(number)], fds)
    for fd in (*fds, *(fd for fd in vars(place).values() if fd >= 0)):
        os.close(fd)
    return pid


def _begin(place: Place, kernel: Kernel | None) -> int:
    """Be the process of one machine; comes back if it could not be had."""
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.setsid()
    try:
        # nothing is left to do, and an interpreter takes its time to end
        os._exit(_stand(place, kernel))
    except NsrunError as error:
        Teller(place.status).failure(error)
        return FAILED


def _stand(place: Place, kernel: Kernel | None) -> int:
    os.fchdir(place.directory)
    tell = Teller(place.status)
    plan = read_plan(place.plan).with_extras(Extras(numbers={Number.LISTEN_FD: place.outlet}))
    with Forwarding() as forwarding:
        forwarding.watch(place.life)
        parked = translate(plan)
        with Machine(kernel, network=parked.network) as machine:
            try:
                machine.wait_ready()
                machine.share(parked.exports)
                tell({"parked": os.getpid()})
                with _started(place, plan, parked, machine) as command:
                    return stand_for(command, machine, forwarding, tell)
            except NsrunError as error:
                raise machine.explain(error) from None


def _started(place: Place, plan: Plan, parked: Translation, machine: Machine) -> Command:
    """The command, when it comes: its plan and what becomes its standard streams.

    Raises:
        SystemExit: none comes, or the machine is not what was asked for any more.
    """
    with socket.socket(fileno=place.line) as line:
        data, fds, _, _ = socket.recv_fds(line, DEADLINE.size, _HANDED, socket.MSG_CMSG_CLOEXEC)
        if len(data) != DEADLINE.size or len(fds) != _HANDED:
            raise SystemExit(FAILED)
        (deadline,) = DEADLINE.unpack(data)
        for number, fd in enumerate(fds[1:]):
            os.dup2(fd, number)
            os.close(fd)
        streams = Streams.found()
        try:
            # sources may be others by now
            wanted = translate(streams.adopt(plan.with_command(read_plan(fds[0]))))
        except NsrunError:
            raise SystemExit(FAILED) from None
        if wanted.exports != parked.exports or not machine.alive:
            raise SystemExit(FAILED)
        line.send(TAKEN)
    limits = wanted.limits.within(Limits(timeout=deadline / 1000 if deadline else None))
    return run_in(machine, wanted, limits, streams)
