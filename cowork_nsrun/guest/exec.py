"""``nsrun vm exec``: one plan in a machine of its own, as if it ran here.

This process stands for the command: its standard streams are the command's, signals that it
gets go to the command, and it ends with the command's exit status.
"""

from __future__ import annotations

import fcntl
import os
import socket
import termios
import time
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from cowork_nsrun._native import PlanFlag
from cowork_nsrun.cli import NSRUN, Voice
from cowork_nsrun.errors import NsrunError
from cowork_nsrun.guest.agent import Command, Outlet, Settings
from cowork_nsrun.guest.compile import Translation, translate
from cowork_nsrun.guest.limits import Limits
from cowork_nsrun.guest.machine import Guest, Machine, Size
from cowork_nsrun.guest.network import Network
from cowork_nsrun.guest.standin import Forwarding, relay
from cowork_nsrun.outlet import hand_over_to
from cowork_nsrun.plan import Extras, Plan


@dataclass(frozen=True, slots=True)
class Request:
    """What is to be done.

    Attributes:
        plan: what to run.
        kernel: the image to boot; None: one that is found.
        size: of the machine.
        limits: of the command.
        status_fd: gets a JSON object a line of what happens; -1: nobody asks.
        loopback: with the host's network, the guest reaches its 127.0.0.1 as 10.0.2.2.
        life_fd: its end ends everything, and bytes are signals to send; -1: there is none.
        name: of the program, which its messages begin with.
    """

    plan: Plan
    kernel: str | None = None
    size: Size = field(default_factory=Size)
    limits: Limits = field(default_factory=Limits)
    status_fd: int = -1
    loopback: bool = False
    life_fd: int = -1
    name: str = "nsrun"

    @property
    def voice(self) -> Voice:
        """How messages begin."""
        return Voice(self.name, bool(self.plan.flags & PlanFlag.LEVEL_PREFIX))


def execute(request: Request) -> int:
    """Run it to its end; returns the exit status.

    Raises:
        NsrunError: it could not be run.
    """
    tell = Teller(request.status_fd)
    try:
        return _execute(request, tell)
    except NsrunError as error:
        tell.failure(error)
        raise


@dataclass(frozen=True, slots=True)
class Teller:
    """Tells who asked of what happens: a JSON object a line.

    Attributes:
        fd: where; -1: nobody asks.
    """

    fd: int

    def __call__(self, record: dict[str, object]) -> None:
        if self.fd < 0:
            return
        # late, since few ask
        import json  # noqa: PLC0415

        with suppress(OSError):
            os.write(self.fd, json.dumps(record).encode("ascii") + b"\n")

    def failure(self, error: NsrunError) -> None:
        """The command could not be run, or its machine died."""
        self({"error": error.text, "step": error.step, "path": error.path, "errno": error.errno})


def _execute(request: Request, tell: Teller) -> int:
    streams = Streams.found()
    plan = streams.adopt(request.plan)
    translation = translate(plan)
    with (
        Forwarding() as forwarding,
        Machine(
            request.kernel,
            request.size,
            network=translation.network,
            loopback=request.loopback,
        ) as machine,
    ):
        if request.life_fd >= 0:
            forwarding.watch(request.life_fd)
        try:
            machine.wait_ready()
            if translation.hold is not None:
                # an error is as good as the end, as it is for the core
                with suppress(OSError):
                    os.read(translation.hold, 1)
            _record(translation.status, {"stand-in-pid": os.getpid()})
            limits = request.limits.within(translation.limits)
            with run_in(machine, translation, limits, streams) as command:
                status = stand_for(command, machine, forwarding, tell, request.voice)
        except NsrunError as error:
            raise machine.explain(error) from None
    # nobody reads any more: that changes nothing for the command
    with suppress(NsrunError):
        _record(translation.status, {"exit-code": status})
    return status


def _record(fd: int | None, record: dict[str, int]) -> None:
    """For ``--json-status-fd``: an object a line, spaced as the core's.

    There is no ``child-pid``, whose /proc/PID/ns and /proc/PID/root would be the host's.

    Raises:
        NsrunError: it can't be written.
    """
    if fd is None:
        return
    words = ", ".join(f'"{name}": {value}' for name, value in record.items())
    try:
        os.write(fd, f"{{ {words} }}\n".encode("ascii"))
    except OSError as error:
        text = f"--json-status-fd {fd}: {error.strerror}"
        raise NsrunError(text, errno=error.errno or 0) from None


def _say_lost(network: Network | None, voice: Voice) -> None:
    """A command is never offline without a word."""
    failure = network.failure() if network is not None else None
    if failure is not None:
        voice.warning(f"the command lost its network: {failure.text}")


def own_settings(limits: Limits) -> Settings:
    """This process's ids and rights; the guest gets the time and fresh entropy."""
    umask, bounding = _of_status()
    settings = Settings(
        uid=os.getuid(),
        gid=os.getgid(),
        groups=tuple(os.getgroups()),
        umask=umask,
        memory=limits.memory,
        processes=limits.processes,
        cpu=limits.cpu,
        deadline=limits.timeout,
        clock_ns=time.time_ns(),
        entropy=os.urandom(32),
        bounding=bounding,
    )
    with suppress(OSError):
        columns, rows = os.get_terminal_size(0)
        settings = replace(settings, rows=rows, columns=columns)
    return settings


def _of_status() -> tuple[int, int]:
    """This process's umask and bounding set; the least, if nothing tells them.

    umask(2) can only be asked by changing it, for all threads.
    """
    lines = Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines()
    told = {name: value for name, _, value in (line.partition(":\t") for line in lines)}
    return int(told.get("Umask", "0077"), 8), int(told.get("CapBnd", "0"), 16)


def run_in(machine: Guest, translation: Translation, limits: Limits, streams: Streams) -> Command:
    """Start a plan in a machine that is ready.

    Raises:
        NsrunError: the guest can't be given it.
    """
    settings = own_settings(limits)
    stdin, stdout, stderr = streams.there
    return machine.run(
        translation,
        replace(settings, outlet=translation.outlet is not None),
        stdin=stdin,
        stdout=stdout,
        stderr=stderr,
        terminal=streams.terminal,
        outlet=None if translation.outlet is None else _hand_over_to(translation.outlet),
        # this machine runs nothing else
        last=True,
    )


def stand_for(
    command: Command,
    machine: Guest,
    forwarding: Forwarding,
    tell: Teller,
    voice: Voice = NSRUN,
) -> int:
    """Be the command's process here until it has ended; returns its exit status.

    Raises:
        NsrunError: the sandbox could not be made, or the guest is gone.
    """
    forwarding.to(command)
    status = relay(command, lambda: tell({"started": True}))
    _say_lost(machine.network, voice)
    usage = command.usage
    if usage is not None:
        tell({"exit": status, "cpu_ns": usage.cpu_ns, "peak": usage.peak,
              "oom_kills": usage.oom_kills, "pids_refused": usage.pids_refused,
              "timed_out": usage.timed_out})  # fmt: skip
    return status


def _hand_over_to(fd: int) -> Outlet:
    try:
        return hand_over_to(socket.socket(fileno=fd))
    except OSError as error:
        text = f"--listen-fd {fd}: {error.strerror}"
        raise NsrunError(text, errno=error.errno or 0) from None


@dataclass(frozen=True, slots=True)
class Streams:
    """This process's standard streams, which are the command's.

    Attributes:
        there: which of them the caller left open.
        terminal: all three are terminals.
    """

    there: tuple[bool, bool, bool]
    terminal: bool

    @classmethod
    def found(cls) -> Streams:
        """As they are; nothing of our own takes the place of those that are closed."""
        stdin, stdout, stderr = (_is_open(fd) for fd in range(3))
        there = (stdin, stdout, stderr)
        for closed in (fd for fd in range(3) if not there[fd]):
            # the lowest number is free
            null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
            assert null == closed
        return cls(there, all(os.isatty(fd) for fd in range(3)))

    def adopt(self, plan: Plan) -> Plan:
        """The plan, with a terminal if this process has one."""
        if not self.terminal:
            return plan
        if plan.flags & PlanFlag.TERMINAL:
            # a terminal made for this command: its window's changes come to us
            with suppress(OSError):
                fcntl.ioctl(0, termios.TIOCSCTTY, 0)
        # in the guest its keys can be signals, as they are here
        return plan.with_extras(Extras(PlanFlag.TERMINAL))


def _is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


def read_plan(fd: int) -> Plan:
    """The plan that a descriptor holds.

    Raises:
        NsrunError: it holds none.
    """
    try:
        with open(fd, "rb") as file:
            return Plan.from_bytes(file.read())
    except OSError as error:
        raise NsrunError(f"--plan {fd}: {error.strerror}", errno=error.errno or 0) from None
