"""Commands in sandboxes of the host's kernel."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from contextlib import ExitStack
from functools import partial

from cowork_nsrun import aio
from cowork_nsrun.cowork.backends import Command, End, Running, Start
from cowork_nsrun.cowork.log import LIFECYCLE, log
from cowork_nsrun.errors import NsrunError
from cowork_nsrun.namespaces import Namespace
from cowork_nsrun.policy import Decision
from cowork_nsrun.policy import environment as proxy_environment
from cowork_nsrun.spec import Egress, Sandbox
from cowork_nsrun.streams import PIPE


class Sandboxed:
    """A command in a sandbox."""

    def __init__(self, running: aio.AsyncProcess) -> None:
        assert running.stdin is not None
        assert running.stdout is not None
        assert running.stderr is not None
        self._process = running
        self.stdin: asyncio.StreamWriter = running.stdin
        self.stdout: asyncio.StreamReader = running.stdout
        self.stderr: asyncio.StreamReader = running.stderr

    @property
    def pid(self) -> int:
        """To show only."""
        return self._process.pid

    @property
    def limits(self) -> Mapping[str, str]:
        """Limit to what holds it."""
        return self._process.limits

    def signal(self, number: int) -> None:
        """Send a signal to every process in the sandbox."""
        self._process.send_signal(number)

    async def wait(self) -> End:
        """Until it has ended, and with it what it left running."""
        code = await self._process.wait()
        return End(code, self._process.result().usage.oom_kills)

    async def close(self) -> None:
        """Kill what is left, and give everything back."""
        await self._process.close()


class NamespaceBackend:
    """Commands in sandboxes, each in one of its own."""

    name = "bwrap"
    sandboxed = True
    connect_delay = 0.0
    host_limits = True

    def problem(self) -> str | None:
        """Nothing is known to be wrong before it is tried."""
        return None

    def prepare(self, command: Command) -> Start:
        """Open the folders, and compile the sandbox's spec.

        Raises:
            NsrunError: a folder is gone, or leads elsewhere.
        """
        env = dict(command.environment)
        with ExitStack() as stack:
            spec = stack.enter_context(command.layout.pinned())
            if command.domains is not None:
                egress = egress_of(command.domains)
                spec = spec.replace(egress=egress, unshare=spec.unshare | {Namespace.NET})
                env |= proxy_environment()
            return partial(start_sandboxed, command, spec, env, stack.pop_all())

    def end(self, session: str | None) -> None:
        """Nothing is kept."""


async def start_sandboxed(
    command: Command, spec: Sandbox, env: Mapping[str, str], opened: ExitStack
) -> Running:
    """Start a command by its spec, and let go of what was opened for it."""
    with opened:
        return Sandboxed(
            await aio.popen(
                command.argv,
                spec,
                stdin=PIPE,
                stdout=PIPE,
                stderr=PIPE,
                env=env,
                on_egress=log_decision,
                within=command.group,
            )
        )


def egress_of(domains: tuple[str, ...]) -> Egress:
    """The rules that a client's list comes to."""
    return Egress(allow=_usable(domains))


def _usable(domains: tuple[str, ...]) -> tuple[str, ...]:
    """Without those that are no rules: less can be reached then, never more."""
    usable = []
    for domain in domains:
        try:
            Egress(allow=(domain,)).rules()
        except NsrunError as error:
            log.error("allowedDomains: left out: %s", error)
        else:
            usable.append(domain)
    return tuple(usable)


def log_decision(decision: Decision) -> None:
    """Refusals always, the rest when debugging."""
    level = logging.DEBUG if decision.allowed else LIFECYCLE
    word = "allowed" if decision.allowed else "refused"
    log.log(level, "egress %s: %s:%s: %s", word, decision.host, decision.port, decision.reason)
