"""``nsrun vm keep``: the machines of a pool, each of which waits for its command.

Two processes are forked for each: one makes the machine, gives it away and ends; the other is there
from the command on, and stands for it as ``nsrun vm exec`` does.  In between a machine costs a few
descriptors here beside its monitor.  One with a network keeps the process that made it, which alone
can tell how the network ended.

This process has no threads, so that a fork takes nothing along that is in use, and what is loaded
here is shared by all.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import resource
import select
import signal
import socket
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, fields, replace
from functools import partial

from cowork_nsrun._native import Number
from cowork_nsrun.by_keeper import TAKEN, TERMS, WARM
from cowork_nsrun.errors import NsrunError
from cowork_nsrun.guest import cache
from cowork_nsrun.guest.agent import Command
from cowork_nsrun.guest.compile import Translation, translate
from cowork_nsrun.guest.exec import (
    Streams,
    Teller,
    own_settings,
    read_plan,
    run_in,
    stand_for,
)
from cowork_nsrun.guest.kernel import Kernel, choose
from cowork_nsrun.guest.limits import Limits
from cowork_nsrun.guest.machine import Guest, Machine
from cowork_nsrun.guest.standin import Forwarding
from cowork_nsrun.guest.view import view_digest
from cowork_nsrun.guest.vmm import Elsewhere, Ends, Monitor, Running, find_beside
from cowork_nsrun.guest.warm import Saved, clone, message, wake
from cowork_nsrun.plan import Extras, Plan

FAILED = 1
#: seconds until it is tried again to have a program do its start, when it could not be
COLD_FOR = 60.0
_PR_SET_CHILD_SUBREAPER = 36
#: a plan, and three standard streams
_HANDED = 4
#: of a machine: control, console, messages, and a pidfd of its monitor
_GIVEN = 4
_GIFT = 1 << 16

Work = Callable[[], int]


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
        warm: the plan's command is a program that does its start, and waits.
    """

    plan: int
    status: int
    life: int
    line: int
    directory: int
    outlet: int = -1
    warm: bool = field(default=False, kw_only=True)

    def close(self) -> None:
        """Its owner sees that."""
        for name in _DESCRIPTORS:
            fd = getattr(self, name)
            if fd >= 0:
                os.close(fd)

    def read(self) -> Plan:
        """The plan, in the owner's directory from now on."""
        os.fchdir(self.directory)
        # the maker has read it, and its place in the file is the stand-in's too
        os.lseek(self.plan, 0, os.SEEK_SET)
        return read_plan(self.plan).with_extras(Extras(numbers={Number.LISTEN_FD: self.outlet}))


#: of a place, in the order in which they come; a sandbox without egress rules has no outlet
_DESCRIPTORS = tuple(each.name for each in fields(Place) if each.name != "warm")


@dataclass(frozen=True, slots=True)
class _Made:
    """A machine that was given away.

    Attributes:
        pid: of its monitor.
        view: what is shared of the host's files, see :func:`view_digest`.
        first: the number of the first of them.
        warm: a program waits in it, and it stands still.
        cold: why not, though one was to.
        fds: see :data:`_GIVEN`.
    """

    pid: int
    view: str
    first: int
    warm: bool
    cold: str
    fds: tuple[int, ...]

    def close(self) -> None:
        """The monitor sees that, and ends."""
        for fd in self.fds:
            os.close(fd)


@dataclass(frozen=True, slots=True)
class _Making:
    place: Place
    gift: socket.socket
    made: _Made | None = None

    @property
    def fd(self) -> int:
        """Readable when there is something to do."""
        return self.gift.fileno()

    def close(self) -> None:
        """What waits for it is told by that."""
        self.gift.close()
        if self.made is not None:
            self.made.close()
        self.place.close()


@dataclass(frozen=True, slots=True)
class _Parked:
    place: Place
    made: _Made

    @property
    def fd(self) -> int:
        """Readable when there is something to do."""
        return self.place.line

    def close(self) -> None:
        """End it."""
        self.made.close()
        self.place.close()


class _Keeper:
    """Machines that are being made, and those that wait, by the descriptor that is looked at."""

    def __init__(self, control: socket.socket) -> None:
        self._control = control
        self._kept: dict[int, _Making | _Parked] = {}
        self._choice = _Choice()
        self._choice.kernel()
        self._warm = _WarmState()
        self._come, self._numbers = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._files = resource.getrlimit(resource.RLIMIT_NOFILE)
        self._poller = select.poll()
        for fd in (control.fileno(), self._come):
            self._poller.register(fd, select.POLLIN)

    def serve(self) -> Work | None:
        """Until the owner is gone; in a forked process, what that has to do."""
        # ten descriptors a machine
        resource.setrlimit(resource.RLIMIT_NOFILE, (self._files[1], self._files[1]))
        signal.set_wakeup_fd(self._numbers, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        while True:
            for fd, _ in self._poller.poll():
                work: Work | None = None
                if fd == self._come:
                    self._reap()
                elif fd == self._control.fileno():
                    place = _asked(self._control)
                    if place is None:
                        return None
                    work = self._make(place)
                elif fd in self._kept:
                    kept = self._kept[fd]
                    if isinstance(kept, _Making):
                        self._take(kept)
                    else:
                        work = self._hand_on(kept)
                if work is not None:
                    return work

    def _reap(self) -> None:
        """Forked processes, and monitors whose makers are gone."""
        with suppress(BlockingIOError):
            os.read(self._come, 4096)
        with suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass

    def _keep(self, kept: _Making | _Parked) -> None:
        self._kept[kept.fd] = kept
        self._poller.register(kept.fd, select.POLLIN)

    def _let_go(self, kept: _Making | _Parked) -> None:
        del self._kept[kept.fd]
        self._poller.unregister(kept.fd)

    def _make(self, place: Place) -> Work | None:
        kernel = self._choice.kernel()
        try:
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            with ExitStack() as on_error:
                on_error.enter_context(ours)
                on_error.enter_context(theirs)
                pid = self._fork()
                on_error.pop_all()
            (theirs if pid else ours).close()
            if not pid:
                make = partial(_make_warm, warm=self._warm) if place.warm else _make
                return partial(_begin, place, partial(make, place, theirs, kernel))
            self._keep(_Making(place, ours))
        except OSError as error:
            _tell_of(error, place)
            place.close()
        return None

    def _take(self, making: _Making) -> None:
        """What a maker gives away, and its end: until then its thread reads what monitors say.

        If it ends without, it has told why; with a network it goes on by itself.
        """
        try:
            data, fds, _, _ = socket.recv_fds(
                making.gift, _GIFT, _GIVEN + 1, socket.MSG_CMSG_CLOEXEC | socket.MSG_DONTWAIT
            )
        except BlockingIOError:
            return
        except ConnectionError:
            data, fds = b"", []
        if data:
            record = json.loads(data)
            self._warm.learn(record.pop("key"), record["cold"], fds[_GIVEN:])
            made = _Made(**record, fds=tuple(fds[:_GIVEN]))
            self._kept[making.fd] = replace(making, made=made)
            return
        self._let_go(making)
        if making.made is None:
            making.close()
            return
        making.gift.close()
        self._keep(_Parked(making.place, making.made))
        Teller(making.place.status)({"parked": True, "cold": making.made.cold})

    def _hand_on(self, parked: _Parked) -> Work | None:
        """A command came, or the owner wants it no more."""
        self._let_go(parked)
        try:
            if _has_come(parked.place.line) and not self._fork():
                return partial(_begin, parked.place, partial(_stand, parked))
        except OSError as error:
            _tell_of(error, parked.place)
        parked.close()
        return None

    def _fork(self) -> int:
        """As fork(2); the new process has nothing of the other machines'."""
        pid = os.fork()
        if not pid:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            resource.setrlimit(resource.RLIMIT_NOFILE, self._files)
            os.setsid()
            self._control.close()
            os.close(self._come)
            os.close(self._numbers)
            for kept in self._kept.values():
                kept.close()
        return pid


class _WarmState:
    """The template of machines in which a program waits, or why there is none."""

    def __init__(self) -> None:
        self.saved: Saved | None = None
        self._cold = ""
        self._again_at = 0.0

    def learn(self, key: str, cold: str, fds: list[int]) -> None:
        """What a maker found; a descriptor is a new template."""
        if cold or fds:
            if self.saved is not None:
                self.saved.file.close()
            # it is this object's from now on
            self.saved = Saved(os.fdopen(fds[0], "rb"), key) if fds else None
        if cold and cold != self.cold:
            self._cold, self._again_at = cold, time.monotonic() + COLD_FOR

    @property
    def cold(self) -> str:
        """Why none is to be made now; "": it can be tried."""
        return self._cold if time.monotonic() < self._again_at else ""


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


def keep(control: socket.socket) -> int:
    """Make machines as often as is asked, until the other end is gone; returns the status."""
    # looked for once, for all
    find_beside("nsrun-vmm")
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0):
        number = ctypes.get_errno()
        raise NsrunError(f"prctl(PR_SET_CHILD_SUBREAPER): {os.strerror(number)}", errno=number)
    keeper = _Keeper(control)
    gc.collect()
    gc.freeze()
    work = keeper.serve()
    return 0 if work is None else work()


def _identities(kernel: Kernel) -> list[str]:
    files = (kernel.path, *kernel.modules, *(kernel.network or ()))
    return [cache.identity(path) for path in files]


def _asked(control: socket.socket) -> Place | None:
    """The next request; None at the end."""
    try:
        data, fds, _, _ = socket.recv_fds(control, 1, len(_DESCRIPTORS), socket.MSG_CMSG_CLOEXEC)
    except ConnectionError:
        return None
    return Place(*fds, warm=data == WARM) if data else None


def _has_come(line: int) -> bool:
    """Whether there is a message; if not, the other end is gone."""
    with socket.socket(fileno=os.dup(line)) as copy:
        try:
            return bool(copy.recv(1, socket.MSG_PEEK))
        except ConnectionError:
            return False


def _tell_of(error: OSError, place: Place) -> None:
    text = f"nsrun vm keep: {error.strerror}"
    Teller(place.status).failure(NsrunError(text, errno=error.errno or 0))


# --- the forked processes ---------------------------------------------------------------------


def _begin(place: Place, work: Work) -> int:
    """Do it; comes back if it can't be done."""
    try:
        # nothing is left to do, and an interpreter takes its time to end
        os._exit(work())
    except NsrunError as error:
        Teller(place.status).failure(error)
        return FAILED


def _make(place: Place, gift: socket.socket, kernel: Kernel | None) -> int:
    """Make a machine and give it away, or stay with it if it has a network."""
    plan = place.read()
    with Forwarding() as forwarding:
        forwarding.watch(place.life)
        parked = translate(plan)
        with Machine(kernel, network=parked.network) as machine:
            try:
                machine.wait_ready()
                first = machine.share(parked.exports, last=True)
                view = view_digest(parked.exports)
                if not parked.network:
                    _give(gift, machine, {"view": view, "first": first})
                    os._exit(0)
                gift.close()
                Teller(place.status)({"parked": True})
                with socket.socket(fileno=place.line) as line:
                    return _carry(place, line, _receive(line, plan, view), machine, forwarding)
            except NsrunError as error:
                raise machine.explain(error) from None


def _make_warm(place: Place, gift: socket.socket, kernel: Kernel | None, warm: _WarmState) -> int:
    """Make a machine in which the plan's program waits, or one in which none does, and give it."""
    plan = place.read()
    with Forwarding() as forwarding:
        forwarding.watch(place.life)
        parked = translate(plan)
        if parked.network or parked.outlet is not None:
            raise NsrunError("a program that does its start ahead has no network")
        made = clone(kernel, plan, parked, warm.saved, warm.cold)
        saved = made.saved
        told: dict[str, object] = {"warm": not made.cold, "cold": made.cold}
        if saved is not None:
            told["key"] = saved.key
        files = [] if saved is None else [saved.file.fileno()]
        view = view_digest(parked.exports)
        _give(gift, made.guest, {"view": view, "first": made.first, **told}, files)
        os._exit(0)


def _give(
    gift: socket.socket, machine: Guest, told: dict[str, object], files: Sequence[int] = ()
) -> None:
    monitor = machine.monitor
    record = {"pid": monitor.pid, "warm": False, "cold": "", "key": "", **told}
    # it is this process's child, and so there until it is waited for
    fds = [*monitor.ends, os.pidfd_open(monitor.pid), *files]
    # without the keeper nobody is left who would want it
    with suppress(BrokenPipeError):
        socket.send_fds(gift, [json.dumps(record).encode("ascii")], fds)


def _stand(parked: _Parked) -> int:
    """Take a machine and its command."""
    place, made = parked.place, parked.made
    plan = place.read()
    with Forwarding() as forwarding, socket.socket(fileno=place.line) as line:
        forwarding.watch(place.life)
        handed = _receive(line, plan, made.view)
        process = Elsewhere(made.pid, made.fds[-1])
        if process.over:
            raise SystemExit(FAILED)
        ends = Ends(*(socket.socket(fileno=fd) for fd in made.fds[:-1]))
        shared = {handed.translation.exports: made.first}
        with Guest(Monitor(Running(process, ends)), shared=shared) as machine:
            if made.warm and not wake(machine):
                raise SystemExit(FAILED)
            try:
                if made.warm:
                    handed = handed.to_program(plan)
                return _carry(place, line, handed, machine, forwarding)
            except NsrunError as error:
                raise machine.explain(error) from None


@dataclass(frozen=True, slots=True)
class _Handed:
    """A command, as it is to run in a machine that is ready.

    Attributes:
        told: what a program is told that waits there; None: none does.
    """

    translation: Translation
    limits: Limits
    streams: Streams
    command: Plan
    told: bytes | None = None

    def to_program(self, plan: Plan) -> _Handed:
        """The same for a program that waits, whose words are the parked plan's."""
        command = self.command
        arguments = command.argv[len(plan.argv) :]
        return replace(self, told=message(arguments, command.environment, command.cwd))


def _receive(line: socket.socket, plan: Plan, view: str) -> _Handed:
    """The command, when it comes; what becomes its standard streams are this process's.

    Raises:
        SystemExit: none comes, or the sources are others by now.
    """
    data, fds, _, _ = socket.recv_fds(line, TERMS.size, _HANDED, socket.MSG_CMSG_CLOEXEC)
    if len(data) != TERMS.size or len(fds) != _HANDED:
        raise SystemExit(FAILED)
    for number, fd in enumerate(fds[1:]):
        os.dup2(fd, number)
        os.close(fd)
    deadline, memory, processes, cpu = TERMS.unpack(data)
    streams = Streams.found()
    try:
        command = read_plan(fds[0])
        translation = translate(streams.adopt(plan.with_command(command)))
        same = view_digest(translation.exports) == view
    except (NsrunError, ValueError):
        same = False
    if not same:
        raise SystemExit(FAILED)
    limits = Limits(memory or None, processes or None, cpu or None, deadline / 1000 or None)
    return _Handed(translation, limits.within(translation.limits), streams, command)


def _carry(
    place: Place,
    line: socket.socket,
    handed: _Handed,
    machine: Guest,
    forwarding: Forwarding,
) -> int:
    """Say that the command is taken, and stand for it to its end.

    Raises:
        SystemExit: the machine is dead.
        NsrunError: the sandbox could not be made, or the guest is gone.
    """
    if not machine.alive:
        raise SystemExit(FAILED)
    own = os.pidfd_open(os.getpid())
    socket.send_fds(line, [TAKEN.pack(os.getpid())], [own])
    os.close(own)
    line.close()
    with _begun(machine, handed) as command:
        return stand_for(command, machine, forwarding, Teller(place.status))


def _begun(machine: Guest, handed: _Handed) -> Command:
    if handed.told is None:
        return run_in(machine, handed.translation, handed.limits, handed.streams)
    stdin, stdout, stderr = handed.streams.there
    settings = own_settings(handed.limits)
    return machine.agent.go_on(handed.told, settings, stdin=stdin, stdout=stdout, stderr=stderr)
