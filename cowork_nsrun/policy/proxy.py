"""The proxy: takes connections of sandboxes and serves HTTP and SOCKS 5 on each."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import socket
import stat
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from types import TracebackType
from typing import Self

from cowork_nsrun.errors import NsrunError
from cowork_nsrun.policy import socks
from cowork_nsrun.policy.decisions import Counters, EgressLimits, Protocol
from cowork_nsrun.policy.dial import (
    Refused,
    Resolver,
    SystemResolver,
    Unreachable,
    Upstream,
)
from cowork_nsrun.policy.gate import Gate, OnDecision, Session, Wish
from cowork_nsrun.policy.http import HttpSession, OriginError
from cowork_nsrun.policy.incoming import next_connection
from cowork_nsrun.policy.rules import EgressRules
from cowork_nsrun.policy.streams import Stream, relay

BACKLOG = 128
# accept(2): these are about the listener; others pass, such as a lack of descriptors
NO_LISTENER = frozenset({errno.EBADF, errno.EINVAL, errno.ENOTSOCK, errno.EOPNOTSUPP})
ACCEPT_PAUSE = 0.5
SOCKS_REPLIES = {
    errno.ECONNREFUSED: socks.Reply.REFUSED,
    errno.ENETUNREACH: socks.Reply.NETWORK_UNREACHABLE,
}


class EgressProxy:
    """Connects sandboxes that have no network to what the rules allow.

    Use it within one event loop.  One proxy can serve any number of sandboxes, which then have
    their rules in common.

    Arguments:
        rules: what may be reached.
        on_decision: called in the loop with each :class:`Decision`; it should not take long.
            What it raises is logged and changes nothing.
        resolver: looks names up instead of :class:`SystemResolver`.
        upstream: a proxy to go through; a URL as :class:`Upstream` takes it.
        limits: the bounds.
        logger: where decisions are logged, at INFO.
    """

    def __init__(
        self,
        rules: EgressRules,
        *,
        on_decision: OnDecision | None = None,
        resolver: Resolver | None = None,
        upstream: Upstream | str | None = None,
        limits: EgressLimits | None = None,
        logger: logging.Logger | None = None,
    ) -> None:
        self._system: SystemResolver | None = None
        if resolver is None:
            resolver = self._system = SystemResolver()
        self._gate = Gate(
            rules,
            resolver=resolver,
            upstream=Upstream(upstream) if isinstance(upstream, str) else upstream,
            limits=limits or EgressLimits(),
            on_decision=on_decision,
            logger=logger or logging.getLogger(__name__),
        )
        self._sessions: dict[asyncio.Task[None], Session] = {}

    @property
    def counters(self) -> Counters:
        """What the proxy has done so far."""
        return self._gate.counters

    @property
    def rules(self) -> EgressRules:
        """The rules that it goes by; to set them changes what is asked for from now on."""
        return self._gate.rules

    @rules.setter
    def rules(self, rules: EgressRules) -> None:
        self._gate.rules = rules

    def update(self, rules: EgressRules) -> None:
        """Go by other rules from now on; connections that they don't allow are reset."""
        self.rules = rules
        self.close_disallowed()

    def close_disallowed(self) -> None:
        """Reset the connections that the rules don't allow."""
        for task, session in self._sessions.items():
            outbound = session.outbound
            if outbound is None:
                continue
            verdict = outbound.judge(self._gate.rules)
            if not verdict.allowed:
                self._gate.count(closed=1)
                self._gate.log.info(
                    "egress closed: %s port %d: %s",
                    outbound.host,
                    outbound.port,
                    verdict.reason,
                )
                task.cancel()

    async def serve(self, listeners: Sequence[socket.socket]) -> None:
        """Serve one sandbox until cancelled, then close its connections.

        Arguments:
            listeners: its listening stream sockets; each takes HTTP and SOCKS.  One of type
                SOCK_SEQPACKET stands for connections that are handed over there, one a
                message, until its other end is closed.  They belong to the proxy from now on,
                which closes them.
        """
        slots = asyncio.Semaphore(int(self._gate.limits.connections))
        mine: set[asyncio.Task[None]] = set()
        try:
            async with asyncio.TaskGroup() as group:
                for listener in listeners:
                    listener.setblocking(False)
                    group.create_task(self._accept(listener, slots, mine))
        finally:
            for task in mine:
                task.cancel()
            for listener in listeners:
                listener.close()
            await asyncio.gather(*mine, return_exceptions=True)

    @asynccontextmanager
    async def serving(self, listeners: Sequence[socket.socket]) -> AsyncIterator[Self]:
        """:meth:`serve`, for as long as the context lasts."""
        task = asyncio.create_task(self.serve(listeners))
        try:
            yield self
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    def close(self) -> None:
        """Look no more names up.  What is being served goes on until it is cancelled."""
        if self._system is not None:
            self._system.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    async def _accept(
        self,
        listener: socket.socket,
        slots: asyncio.Semaphore,
        mine: set[asyncio.Task[None]],
    ) -> None:
        while True:
            try:
                sock = await next_connection(listener)
            except OSError as error:
                if error.errno in NO_LISTENER:
                    raise
                self._gate.log.warning("egress: a connection waits: %s", error.strerror)
                await asyncio.sleep(ACCEPT_PAUSE)
                continue
            if sock is None:
                return
            try:
                await slots.acquire()
            except BaseException:
                sock.close()
                raise
            mine.add(self._start(sock, slots, mine))

    def _start(
        self, sock: socket.socket, slots: asyncio.Semaphore, mine: set[asyncio.Task[None]]
    ) -> asyncio.Task[None]:
        session = Session(Stream(sock))
        task = asyncio.create_task(self._serve_session(session))
        self._sessions[task] = session
        self._gate.count(accepted=1, open=1)

        def over(task: asyncio.Task[None]) -> None:
            session.client.close()  # where it was cancelled before it began
            del self._sessions[task]
            mine.discard(task)
            slots.release()
            self._gate.count(open=-1)

        task.add_done_callback(over)
        return task

    async def _serve_session(self, session: Session) -> None:
        regular = False
        try:
            await self._serve_stream(session)
            regular = True
        except* (OSError, OriginError) as errors:
            self._gate.log.debug("egress: a connection broke: %r", errors.exceptions)
        except* Exception:
            self._gate.log.exception("egress: a connection failed")
        finally:
            streams = [session.client]
            if session.outbound is not None:
                streams.append(session.outbound.stream)
            for stream in streams:
                if regular:
                    stream.close()
                else:
                    stream.abort()

    async def _serve_stream(self, session: Session) -> None:
        client = session.client
        try:
            async with asyncio.timeout(self._gate.limits.header_seconds):
                first = await client.read()
        except TimeoutError:
            return
        client.unread(first)
        if first[:1] == bytes((socks.VERSION,)):
            await self._serve_socks(session)
        elif first:
            await HttpSession(session, self._gate).run()

    async def _serve_socks(self, session: Session) -> None:
        client = session.client
        try:
            async with asyncio.timeout(self._gate.limits.header_seconds):
                request = await _socks_handshake(client)
        except socks.SocksError as error:
            self._gate.count(malformed=1)
            self._gate.log.info("egress: a SOCKS client is turned away: %s", error)
            await client.send(error.answer)
            await client.linger()
            return
        if request is None:
            self._gate.count(malformed=1)
            return
        try:
            outbound = await self._gate.connect(Wish(Protocol.SOCKS5, request.host, request.port))
        except (Refused, Unreachable) as error:
            await client.send(socks.reply(_socks_code(error)))
            await client.linger()
            return
        session.outbound = outbound
        await client.send(socks.reply(socks.Reply.SUCCEEDED))
        gate = self._gate
        await relay(
            client,
            outbound.stream,
            gate.limits.idle_seconds,
            gate.count_sent,
            gate.count_received,
        )


def _socks_code(error: Refused | Unreachable) -> socks.Reply:
    if isinstance(error, Refused):
        return socks.Reply.NOT_ALLOWED
    return SOCKS_REPLIES.get(error.errno, socks.Reply.HOST_UNREACHABLE)


async def _socks_handshake(client: Stream) -> socks.Request | None:
    """The client's request; None if it ended before that."""
    data = b""
    while (length := socks.parse_greeting(data)) is None:
        more = await client.read()
        if not more:
            return None
        data += more
    data = data[length:]
    await client.send(socks.ACCEPT)
    while (parsed := socks.parse_request(data)) is None:
        more = await client.read()
        if not more:
            return None
        data += more
    request, length = parsed
    client.unread(data[length:])
    return request


def unix_listener(path: str | os.PathLike[str]) -> socket.socket:
    """A listening Unix socket that only its owner may connect to.

    A socket file that nobody listens on, as a killed proxy leaves it, is replaced.  The caller
    removes the file.

    Raises:
        NsrunError: the path is taken, or can't be had.
    """
    name = os.fspath(path)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        if _is_left_over(name):
            os.unlink(name)
        sock.bind(name)
        # before listen(2): until then nobody can connect
        os.chmod(name, 0o600)
        sock.listen(BACKLOG)
    except OSError as error:
        sock.close()
        raise NsrunError(
            f"can't listen on {name}: {error.strerror or error}",
            path=name,
            errno=error.errno or 0,
        ) from error
    return sock


def _is_left_over(name: str) -> bool:
    try:
        if not stat.S_ISSOCK(os.lstat(name).st_mode):
            return False
    except FileNotFoundError:
        return False
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe, suppress(BlockingIOError):
        probe.setblocking(False)
        try:
            probe.connect(name)
        except ConnectionRefusedError:
            return True
    return False
