"""``nsrun vm exec``: one plan in a machine of its own, as if it ran here.

This process stands for the command: its standard streams are the command's, signals that it
gets go to the command, and it ends with the command's exit status.
"""

from __future__ import annotations

import fcntl
import os
import socket
import sys
import termios
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from cowork_nsrun._native import PlanFlag
from cowork_nsrun.errors import NsrunError
from cowork_nsrun.guest.agent import Command, Outlet, Settings
from cowork_nsrun.guest.compile import Translation, translate
from cowork_nsrun.guest.limits import Limits
from cowork_nsrun.guest.machine import Machine, Size
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
    """

    plan: Plan
    kernel: str | None = None
    size: Size = field(default_factory=Size)
    limits: Limits = field(default_factory=Limits)
    status_fd: int = -1
    loopback: bool = False
    life_fd: int = -1


def execute(request: Request) -> int:
    """Run it to its end; returns the exit status.

    Raises:
        NsrunError: it could not be run.
    """
    tell = _teller(request.status_fd)
    try:
        return _execute(request, tell)
    except NsrunError as error:
        tell({"error": error.text, "step": error.step, "path": error.path, "errno": error.errno})
        raise


def _teller(fd: int) -> Callable[[dict[str, object]], None]:
    if fd < 0:
        return lambda _: None
    # late, since few ask
    import json  # noqa: PLC0415

    def tell(record: dict[str, object]) -> None:
        with suppress(OSError):
            os.write(fd, json.dumps(record).encode("ascii") + b"\n")

    return tell


def _execute(request: Request, tell: Callable[[dict[str, object]], None]) -> int:
    there = _standard_streams()
    terminal = all(os.isatty(fd) for fd in range(3))
    plan = request.plan
    if terminal and plan.flags & PlanFlag.TERMINAL:
        # a terminal made for this command: its window's changes come to us
        with suppress(OSError):
            fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    if terminal:
        # in the guest its keys can be signals, as they are here
        plan = plan.with_extras(Extras(PlanFlag.TERMINAL))
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
            settings = own_settings(request.limits.within(translation.limits))
            settings = replace(settings, outlet=translation.outlet is not None)
            with _started(machine, translation, settings, there, terminal) as command:
                forwarding.to(command)
                status = relay(command, lambda: tell({"started": True}))
            _say_lost(machine.network)
        except NsrunError as error:
            raise machine.explain(error) from None
    usage = command.usage
    if usage is not None:
        tell({"exit": status, "cpu_ns": usage.cpu_ns, "peak": usage.peak,
              "oom_kills": usage.oom_kills, "timed_out": usage.timed_out})  # fmt: skip
    return status


def _say_lost(network: Network | None) -> None:
    """A command is never offline without a word."""
    failure = network.failure() if network is not None else None
    if failure is not None:
        sys.stderr.write(f"nsrun: the command lost its network: {failure.text}\n")


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


def _started(
    machine: Machine,
    translation: Translation,
    settings: Settings,
    there: list[bool],
    terminal: bool,
) -> Command:
    return machine.run(
        translation,
        settings,
        stdin=there[0],
        stdout=there[1],
        stderr=there[2],
        terminal=terminal,
        outlet=None if translation.outlet is None else _hand_over_to(translation.outlet),
    )


def _hand_over_to(fd: int) -> Outlet:
    try:
        return hand_over_to(socket.socket(fileno=fd))
    except OSError as error:
        text = f"--listen-fd {fd}: {error.strerror}"
        raise NsrunError(text, errno=error.errno or 0) from None


def _standard_streams() -> list[bool]:
    """Which of them the caller left open; nothing of our own takes the place of the others."""
    there = [_is_open(fd) for fd in range(3)]
    for closed in (fd for fd in range(3) if not there[fd]):
        # the lowest number is free
        null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        assert null == closed
    return there


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
