"""Connections: frames in, replies and events out."""

from __future__ import annotations

import asyncio
import inspect
import os
import socket
import struct
from collections.abc import Awaitable
from typing import cast

from cowork_nsrun.cowork import protocol
from cowork_nsrun.cowork.frames import FrameReader, FrameTooLong
from cowork_nsrun.cowork.log import log
from cowork_nsrun.cowork.service import Answer, Reply, Service
from cowork_nsrun.errors import NsrunError

CONNECTIONS_MAX = 256
PENDING_MAX = 64  # requests of a connection that are worked on at one time
HELD_MAX = 128 << 20  # bytes of frames that are not complete, of all connections together
PENDING_BYTES_MAX = 64 << 20  # of all requests that are worked on
REPLIES_HIGH = 1 << 20  # bytes of unread replies at which no more requests are read


class Server:
    """The connections of a service."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._connections: set[Connection] = set()

    def connection(self) -> Connection:
        """The protocol of a new connection."""
        return Connection(self._service, self._connections)

    def close(self) -> None:
        """End all connections, behind what they are still to get."""
        for connection in list(self._connections):
            connection.finish()


def peer_uid(connection: socket.socket) -> int:
    """The user at the other end, as of its connect: unix(7)."""
    size = struct.calcsize("3i")
    data = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size)
    uid: int = struct.unpack("3i", data)[1]
    return uid


class Connection(asyncio.Protocol):
    """One client's connection."""

    def __init__(self, service: Service, connections: set[Connection]) -> None:
        self._service = service
        self._connections = connections
        self._reader = FrameReader()
        self._transport: asyncio.Transport | None = None
        self._pending: set[asyncio.Task[None]] = set()
        self._sent = 0
        self._paused = False
        self._over = False

    # --- from the loop --------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take a client of the same user, if there are not too many."""
        self._transport = cast(asyncio.Transport, transport)
        uid = peer_uid(transport.get_extra_info("socket"))
        if uid != os.geteuid():
            log.error("a client of user %d was refused", uid)
            self._transport.abort()
        elif len(self._connections) >= CONNECTIONS_MAX:
            log.error("a client was refused: %d are connected already", CONNECTIONS_MAX)
            self._transport.abort()
        else:
            self._transport.set_write_buffer_limits(high=REPLIES_HIGH)
            self._connections.add(self)

    def data_received(self, data: bytes) -> None:
        """Answer the requests that are complete now."""
        try:
            for body in self._reader.feed(data):
                self._take(body)
        except FrameTooLong as error:
            log.error("a client is disconnected: %s", error)
            self.drop(error.text)
            return
        held = sum(connection.held for connection in self._connections)
        if held > HELD_MAX:
            log.error("a client is disconnected: %d bytes wait for the rest of their frames", held)
            self.drop("too much is held")

    @property
    def held(self) -> int:
        """Bytes of a frame that is not complete."""
        return self._reader.held

    def eof_received(self) -> bool:
        """The client sends no more: what it waits for is still sent to it."""
        self._over = True
        return bool(self._pending)

    def pause_writing(self) -> None:
        """Replies are not read: no more requests are."""
        self._paused = True
        self._throttle()

    def resume_writing(self) -> None:
        """There is room again."""
        self._paused = False
        self._throttle()
        self._service.hub.moved(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """The client is gone; what it has started goes on."""
        self._connections.discard(self)
        self._service.hub.remove(self)
        self._transport = None

    # --- requests -------------------------------------------------------------------------

    def _take(self, body: bytes) -> None:
        if self._transport is None or self._transport.is_closing():
            return
        service = self._service
        service.metrics.requests += 1
        try:
            request = protocol.read_request(body)
        except protocol.RequestError as error:
            self._fail(None, error.text)
            return
        if request is None:
            log.debug("a frame of %d bytes is not JSON", len(body))
            return
        log.debug("request %r, %d bytes", request.shown[:80], len(body))
        handler = service.methods.get(request.method) if request.method is not None else None
        if handler is None:
            self._fail(request.id, f"Unknown method: {request.shown}")
            return
        if service.pending_bytes > PENDING_BYTES_MAX:
            self._fail(request.id, "too many requests at one time")
            return
        try:
            answer = handler(request, self)
        except Exception as error:  # noqa: BLE001 - no request stops the service
            self._raised(request, error)
            return
        if inspect.isawaitable(answer):
            self._later(request, answer)
        else:
            self._reply(request, answer)

    def _later(self, request: protocol.Request, answer: Awaitable[Answer]) -> None:
        size = len(request.params)
        self._service.pending_bytes += size
        task = asyncio.get_running_loop().create_task(self._answer(request, answer))
        self._pending.add(task)
        task.add_done_callback(lambda done: self._answered(done, size))
        self._throttle()

    async def _answer(self, request: protocol.Request, answer: Awaitable[Answer]) -> None:
        try:
            result = await answer
        except Exception as error:  # noqa: BLE001 - as above
            self._raised(request, error)
        else:
            self._reply(request, result)

    def _answered(self, task: asyncio.Task[None], size: int) -> None:
        self._service.pending_bytes -= size
        self._pending.discard(task)
        self._throttle()
        if not task.cancelled() and task.exception() is not None:
            log.error("a reply failed", exc_info=task.exception())
        if self._over and not self._pending:
            self.finish()

    def _throttle(self) -> None:
        """Read from the client only what can be worked on."""
        transport = self._transport
        if transport is None or transport.is_closing() or self._over:
            return
        if self._paused or len(self._pending) >= PENDING_MAX:
            transport.pause_reading()
        else:
            transport.resume_reading()

    def _reply(self, request: protocol.Request, answer: Answer) -> None:
        result, then = answer, None
        if isinstance(answer, Reply):
            result, then = answer.result, answer.then
        try:
            self.send(protocol.success(request.id, result))
        except FrameTooLong:
            self._fail(request.id, "the result is too long for a frame")
        finally:
            if then is not None:
                then()

    def _raised(self, request: protocol.Request, error: Exception) -> None:
        if isinstance(error, NsrunError):
            self._fail(request.id, error.text)
        else:
            log.error("request %r failed", request.shown[:80], exc_info=error)
            self._fail(request.id, f"internal error: {type(error).__name__}")

    def _fail(self, ident: bytes | None, error: str) -> None:
        self._service.metrics.failures += 1
        self.send(protocol.failure(ident, error))

    # --- to the client --------------------------------------------------------------------

    def send(self, data: bytes) -> None:
        """Queue a frame; nothing if the client is gone."""
        if self._transport is not None and not self._transport.is_closing():
            self._sent += len(data)
            self._transport.write(data)

    @property
    def backlog(self) -> int:
        """Bytes that wait to be taken."""
        return 0 if self._transport is None else self._transport.get_write_buffer_size()

    @property
    def taken(self) -> int:
        """Bytes that were ever taken."""
        return self._sent - self.backlog

    def drop(self, reason: str) -> None:
        """Close it at once."""
        if self._transport is not None:
            log.debug("a client is dropped: %s", reason)
            self._service.metrics.dropped += 1
            self._transport.abort()

    def finish(self) -> None:
        """Close it behind what it is still to get."""
        if self._transport is not None:
            self._transport.close()
