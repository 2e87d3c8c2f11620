"""Commands on the host as they are, without any isolation; only if asked for by name."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping
from contextlib import suppress

from cowork_nsrun.cowork.backends import Command, End, Running
from cowork_nsrun.errors import NsrunError

LIMIT = 1 << 18  # bytes that a reader holds


class Unconfined:
    """A command in a process group of its own."""

    def __init__(self, running: asyncio.subprocess.Process) -> None:
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
        """None is held."""
        return {}

    def signal(self, number: int) -> None:
        """Send a signal to the process group."""
        if self._process.returncode is None:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, number)

    async def wait(self) -> End:
        """Until it has ended."""
        code = await self._process.wait()
        return End(code if code >= 0 else 128 - code)

    async def close(self) -> None:
        """Kill what is left in the process group, and close the streams."""
        # what the command left running ends with it, as it does in a sandbox
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, 9)
        await self._process.wait()
        self.stdin.close()
        transport = getattr(self._process, "_transport", None)
        if transport is not None:
            transport.close()


class HostBackend:
    """Commands on the host."""

    name = "host"
    sandboxed = False
    connect_delay = 0.5

    def problem(self) -> str | None:
        """Nothing is needed."""
        return None

    async def start(self, command: Command) -> Running:
        """Start a command.

        Raises:
            NsrunError: it can't be started, or a network of certain domains was asked for.
        """
        if command.domains is not None:
            raise NsrunError(
                "allowedDomains: the host backend can't hold a command to them; "
                "use a backend with isolation"
            )
        try:
            return Unconfined(
                await asyncio.create_subprocess_exec(
                    *command.argv,
                    stdin=asyncio.subprocess.PIPE,
                    stdout=asyncio.subprocess.PIPE,
                    stderr=asyncio.subprocess.PIPE,
                    cwd=command.cwd,
                    env=dict(command.environment),
                    start_new_session=True,
                    limit=LIMIT,
                )
            )
        except (OSError, ValueError) as error:
            raise NsrunError(f"spawn {command.argv[0]}: {error}") from None
