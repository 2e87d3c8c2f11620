"""What runs commands, behind one small interface, and which of them is taken.

A backend makes a :class:`Running` of a :class:`Command`, in two steps: what looks at the file
system may hang there, and is done in a thread.  It knows nothing of clients, sessions
or events.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from cowork_nsrun import selection
from cowork_nsrun.cowork.layout import Layout
from cowork_nsrun.cowork.log import log
from cowork_nsrun.errors import NsrunError
from cowork_nsrun.limits import Group
from cowork_nsrun.probe import VARIABLE, ask_program
from cowork_nsrun.remedies import remedy, this_system
from cowork_nsrun.selection import select
from cowork_nsrun.spec import Limits


@dataclass(frozen=True, slots=True)
class Command:
    """What is to be started.

    Attributes:
        argv: the program's path and its arguments.
        environment: all of it.
        layout: what it is to see, for a backend that gives commands a view of their own.
        cwd: a directory of the host, for one that doesn't.
        domains: the only ones that it may reach; None: the host's network.
        group: what holds its session's limits; None: nothing does, or there are none.
        limits: those of its session, for a backend that holds them by itself.
    """

    argv: tuple[str, ...]
    environment: Mapping[str, str]
    layout: Layout
    cwd: str
    domains: tuple[str, ...] | None = None
    group: Group | None = None
    limits: Limits = field(default_factory=Limits)

    @property
    def session(self) -> str:
        """Its session's name."""
        return self.layout.session


@dataclass(frozen=True, slots=True)
class End:
    """How a command ended.

    Attributes:
        code: its exit status, or 128+n for signal n.
        oom_kills: processes that were killed for want of memory; None: not known.
    """

    code: int
    oom_kills: int | None = None


class Running(Protocol):
    """A command that runs."""

    stdin: asyncio.StreamWriter
    stdout: asyncio.StreamReader
    stderr: asyncio.StreamReader

    @property
    def pid(self) -> int:
        """To show only."""

    @property
    def limits(self) -> Mapping[str, str]:
        """Limit to what holds it."""

    def signal(self, number: int) -> None:
        """Send a signal to all of its processes; nothing once it has ended."""

    async def wait(self) -> End:
        """Until it has ended."""

    async def close(self) -> None:
        """Kill what is left, and give everything back."""


Start = Callable[[], Awaitable[Running]]


class Backend(Protocol):
    """What runs commands.

    Attributes:
        name: as the log and ``nsrun sessions`` call it.
        sandboxed: commands have a view of their own, in which guest paths are real.
        connect_delay: seconds until the "guest" is there.
        host_limits: cgroups of the host hold a session's limits.
    """

    name: str
    sandboxed: bool
    connect_delay: float
    host_limits: bool

    def problem(self) -> str | None:
        """Why nothing can be started; None: it can."""

    def prepare(self, command: Command) -> Start:
        """Get a command ready, in any thread; what is returned starts it, and is called once.

        Raises:
            NsrunError: it can't be started; nothing is left.  What is returned raises it, too.
        """

    def end(self, session: str | None) -> None:
        """A session is over, and what is kept for it ends, in any thread; None: all are."""


class Unavailable:
    """The backend of a system that has none: says so, each time."""

    sandboxed = True
    connect_delay = 0.0
    host_limits = False

    def __init__(self, name: str, reason: str) -> None:
        self.name = name
        self._reason = reason

    def problem(self) -> str | None:
        """Why nothing can be started."""
        return self._reason

    def prepare(self, command: Command) -> Start:
        """Refuse.

        Raises:
            NsrunError: always.
        """
        raise NsrunError(self._reason)

    def end(self, session: str | None) -> None:
        """Nothing is kept."""


@dataclass(frozen=True, slots=True)
class Choice:
    """Which backend it is, for the service and for its doctor alike.

    Attributes:
        name: ``bwrap``, ``host``, ``kvm``, or ``none`` if nothing can be started.
        override: what asked for it; empty if nothing did.
        known: whether that is a backend's name.
        problem: why nothing can be started; None: it can.
        help_name: what would help, for :func:`cowork_nsrun.remedies.remedy`.
        confined: the host confines commands by Landlock and seccomp.
        instead: why nothing stronger is taken; None: it was asked for, or is the strongest.
    """

    name: str
    override: str
    known: bool
    problem: str | None = None
    help_name: str | None = None
    confined: bool = False
    instead: str | None = None


def decide(override: str | None) -> Choice:
    """The backend that the environment asks for, else what the one selection finds.

    The confined host is the last one; without confinement it has to be asked for by name.
    """
    word = override or ""
    known = word.lower() in {"", "bwrap", "host", "kvm"}
    if word.lower() == "bwrap":
        return Choice("bwrap", word, known)
    if word.lower() == "host":
        confined = ask_program("host", allow_host=True)["landlock"].ok
        return Choice("host", word, known, confined=confined)
    if word.lower() == "kvm":
        found = select("kvm")
        if found.backend is selection.Backend.KVM:
            return Choice("kvm", word, known)
        return Choice("kvm", word, known, found.reason, found.remedy)
    return _found(word, known)


def _found(word: str, known: bool) -> Choice:
    found = select("auto", allow_host=True)
    if found.backend in {selection.Backend.NAMESPACES, selection.Backend.BWRAP}:
        return Choice("bwrap", word, known)
    if found.backend is selection.Backend.KVM:
        return Choice("kvm", word, known)
    if found.backend is selection.Backend.HOST:
        return Choice(
            "host", word, known, help_name=found.remedy, confined=True, instead=found.reason
        )
    return Choice("none", word, known, found.reason, found.remedy)


def make(choice: Choice) -> Backend:
    """The backend that was decided for; what is not as expected is said in the log."""
    # each brings in more than the others need
    from cowork_nsrun.cowork.host import HostBackend  # noqa: PLC0415
    from cowork_nsrun.cowork.namespaces import NamespaceBackend  # noqa: PLC0415

    if not choice.known:
        log.error('Unknown backend override "%s", falling back to auto-detect', choice.override)
    if choice.problem is not None:
        log.error("no sandbox can be made here, so nothing is started: %s", choice.problem)
        _say_help(choice)
        log.error("'nsrun doctor' says more; %s=host runs commands without isolation", VARIABLE)
        return Unavailable(choice.name, f"no sandbox can be made here: {choice.problem}")
    if choice.name == "kvm":
        from cowork_nsrun.cowork.machines import MachineBackend  # noqa: PLC0415

        log.debug("Backend: kvm")
        return MachineBackend()
    if choice.name == "host":
        _say_host(choice)
        return HostBackend(choice.confined)
    log.debug("Backend: %s", choice.name)
    return NamespaceBackend()


def _say_help(choice: Choice) -> None:
    if choice.help_name is not None:
        helps = remedy(choice.help_name, this_system())
        log.error("%s %s", helps.text, "; ".join(helps.commands))


def _say_host(choice: Choice) -> None:
    if choice.instead is not None:
        log.error("no namespaces can be made here: %s", choice.instead)
        _say_help(choice)
    why = f"asked for by {VARIABLE}" if choice.instead is None else "the last resort"
    if choice.confined:
        log.error("Backend: host: %s; commands are confined by Landlock and seccomp alone", why)
    else:
        log.error("Backend: host: %s; no Landlock here, commands are not isolated", why)
