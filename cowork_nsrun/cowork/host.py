"""Commands on the host as they are, without any isolation; only if asked for by name."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from typing import IO, Self

from cowork_nsrun.cowork.backends import Command, End, Running, Start
from cowork_nsrun.errors import NsrunError

LIMIT = 1 << 18  # bytes that a reader holds


class Unconfined:
    """A command in a process group of its own.

    Not asyncio's: that tells of an end only once nobody holds the output any more.
    """

    stdin: asyncio.StreamWriter
    stdout: asyncio.StreamReader
    stderr: asyncio.StreamReader

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process
        self._transports: list[asyncio.BaseTransport] = []
        self._ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._pidfd = os.pidfd_open(process.pid)

    @classmethod
    async def attach(cls, process: subprocess.Popen[bytes]) -> Self:
        """Take a process over, and its pipes."""
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        self = cls(process)
        loop = asyncio.get_running_loop()
        loop.add_reader(self._pidfd, self._on_end)
        self.stdout = await self._reader(process.stdout)
        self.stderr = await self._reader(process.stderr)
        transport, protocol = await loop.connect_write_pipe(
            lambda: asyncio.streams.FlowControlMixin(loop=loop), process.stdin
        )
        self._transports.append(transport)
        self.stdin = asyncio.StreamWriter(transport, protocol, None, loop)
        return self

    async def _reader(self, pipe: IO[bytes]) -> asyncio.StreamReader:
        loop = asyncio.get_running_loop()
        reader = asyncio.StreamReader(limit=LIMIT, loop=loop)
        protocol = asyncio.StreamReaderProtocol(reader, loop=loop)
        transport, _ = await loop.connect_read_pipe(lambda: protocol, pipe)
        self._transports.append(transport)
        return reader

    def _on_end(self) -> None:
        asyncio.get_running_loop().remove_reader(self._pidfd)
        self._process.wait()
        if not self._ended.done():
            self._ended.set_result(None)

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
        if not self._ended.done():
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, number)

    async def wait(self) -> End:
        """Until it has ended."""
        await asyncio.shield(self._ended)
        code = self._process.returncode
        return End(code if code >= 0 else 128 - code)

    async def close(self) -> None:
        """Kill what is left in the process group, and close the streams."""
        # what the command left running ends with it, as it does in a sandbox
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        await asyncio.shield(self._ended)
        for transport in self._transports:
            transport.close()
        if self._pidfd >= 0:
            os.close(self._pidfd)
            self._pidfd = -1


class HostBackend:
    """Commands on the host."""

    name = "host"
    sandboxed = False
    connect_delay = 0.5

    def problem(self) -> str | None:
        """Nothing is needed."""
        return None

    def prepare(self, command: Command) -> Start:
        """Look whether it may be started.

        Raises:
            NsrunError: a network of certain domains was asked for.
        """
        if command.domains is not None:
            raise NsrunError(
                "allowedDomains: the host backend can't hold a command to them; "
                "use a backend with isolation"
            )
        return partial(_start, command)


async def _start(command: Command) -> Running:
    try:
        process = await asyncio.to_thread(_popen, command)
    except (OSError, ValueError) as error:
        raise NsrunError(f"spawn {command.argv[0]}: {error}") from None
    return await Unconfined.attach(process)


def _popen(command: Command) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        command.argv,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=command.cwd,
        env=dict(command.environment),
        start_new_session=True,
        bufsize=0,
    )
