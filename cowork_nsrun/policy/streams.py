"""Bytes over sockets on asyncio, with one bounded buffer each way and no more.

The loop's socket calls are used and not its streams: a chunk is read only when the one before
has been taken by the other side, so a slow reader slows the writer down.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress

CHUNK = 64 * 1024
RESET_ON_CLOSE = struct.pack("ii", 1, 0)
LINGER_SECONDS = 2.0
LINGER_BYTES = 1 << 20


class Stream:
    """A connected socket.  Not for use by two readers or two writers at once."""

    def __init__(self, sock: socket.socket, begin: bytes = b"") -> None:
        sock.setblocking(False)
        if sock.family != socket.AF_UNIX:
            with suppress(OSError):  # it was reset already; reading tells
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        self._sock = sock
        self._begin = begin
        self._idle: asyncio.Timeout | None = None
        self._idle_seconds = 0.0

    async def read(self) -> bytes:
        """Some bytes; empty at the end.  Raises OSError."""
        if self._begin:
            data, self._begin = self._begin, b""
            return data
        data = await asyncio.get_running_loop().sock_recv(self._sock, CHUNK)
        self._touch()
        return data

    def unread(self, data: bytes) -> None:
        """Give back what was read too far."""
        self._begin = data + self._begin

    async def send(self, data: bytes) -> None:
        """Send all of it, piece by piece, so that each piece counts as a sign of life."""
        loop = asyncio.get_running_loop()
        view = memoryview(data)
        for begin in range(0, len(view), CHUNK):
            await loop.sock_sendall(self._sock, view[begin : begin + CHUNK])
            self._touch()

    def end(self) -> None:
        """Say that nothing more will be sent."""
        with suppress(OSError):
            self._sock.shutdown(socket.SHUT_WR)

    async def linger(self) -> None:
        """End, and read on for a while: closing over unread data would destroy what was sent."""
        self.end()
        left = LINGER_BYTES
        with suppress(OSError):
            async with asyncio.timeout(LINGER_SECONDS):
                while left > 0 and (data := await self.read()):
                    left -= len(data)

    def close(self) -> None:
        self._sock.close()

    def abort(self) -> None:
        """Close so that the other side sees an error and no regular end."""
        with suppress(OSError):
            self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
        self._sock.close()

    def watch(self, idle: asyncio.Timeout | None, seconds: float) -> None:
        """Put this time limit off whenever something is read or sent; None for no more."""
        self._idle = idle
        self._idle_seconds = seconds

    def _touch(self) -> None:
        if self._idle is not None and not self._idle.expired():
            self._idle.reschedule(asyncio.get_running_loop().time() + self._idle_seconds)


@asynccontextmanager
async def idle_limit(seconds: float, *streams: Stream) -> AsyncIterator[None]:
    """Raise TimeoutError when none of the streams has moved for so long."""
    async with asyncio.timeout(seconds) as idle:
        for stream in streams:
            stream.watch(idle, seconds)
        try:
            yield
        finally:
            for stream in streams:
                stream.watch(None, 0)


Count = Callable[[int], None]


async def relay(
    client: Stream, origin: Stream, idle_seconds: float, sent: Count, received: Count
) -> None:
    """Carry bytes both ways until both sides have ended.

    The end of one direction is passed on and the other goes on.

    Raises:
        ExceptionGroup: of OSError, when a side fails or both are idle for too long.
    """
    async with idle_limit(idle_seconds, client, origin), asyncio.TaskGroup() as group:
        group.create_task(_pump(client, origin, sent))
        group.create_task(_pump(origin, client, received))


async def _pump(source: Stream, sink: Stream, count: Count) -> None:
    while data := await source.read():
        await sink.send(data)
        count(len(data))
    sink.end()
