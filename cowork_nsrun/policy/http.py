"""HTTP from a sandbox: CONNECT, and plain requests in absolute form (RFC 9110, 9112).

Every message is read with h11 and written anew from what was understood, so that the origin
never sees what the sandbox wrote.  Each plain request gets a connection of its own.
"""

from __future__ import annotations

import asyncio
import errno
import re
from collections.abc import Iterable
from contextlib import suppress

import h11

from cowork_nsrun.policy.decisions import Protocol
from cowork_nsrun.policy.dial import Outbound, Refused, Unreachable
from cowork_nsrun.policy.gate import Gate, Session, Wish
from cowork_nsrun.policy.hosts import host_text
from cowork_nsrun.policy.streams import Stream, idle_limit, relay

VIA = b"1.1 nsrun"
HTTP_PORT = 80
ABSOLUTE = re.compile(r"http://([^/?#]*)(/[^?#]*)?(\?[^#]*)?", re.IGNORECASE)
AUTHORITY = re.compile(r"(?:\[([^\[\]]*)\]|([^\[\]:]*))(?::([0-9]{0,5}))?", re.ASCII)
ESTABLISHED = b"HTTP/1.1 200 Connection established\r\n\r\n"

# RFC 9110 7.6.1, and the proxy's own
HOP_BY_HOP = frozenset(
    b"connection proxy-connection keep-alive te trailer transfer-encoding upgrade "
    b"proxy-authenticate proxy-authorization proxy-authentication-info".split()
)
# what a Connection header must not take away
END_TO_END = frozenset({b"host", b"content-length", b"via"})

Headers = list[tuple[bytes, bytes]]


class BadRequestError(Exception):
    """A request that is answered with an error.

    Attributes:
        status: the HTTP status code.
    """

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


class OriginError(Exception):
    """The other side broke off, or is no HTTP server."""


def split_authority(text: str, default_port: int | None) -> tuple[str, int]:
    """Host and port of an authority, the host still to be parsed.

    Raises:
        BadRequestError: it is none; the message never repeats it.
    """
    if "@" in text:
        raise BadRequestError(400, "a URL with a user name in it is not accepted")
    match = AUTHORITY.fullmatch(text)
    if not match:
        raise BadRequestError(400, "the URL has no valid host and port")
    bracketed, name, port = match.groups()
    if port:
        return bracketed or name, int(port)
    if default_port is None:
        raise BadRequestError(400, "CONNECT wants host:port")
    return bracketed or name, default_port


def split_url(target: bytes) -> tuple[str, int, str]:
    """Host, port and path of a request to a proxy.

    Raises:
        BadRequestError: it is not an ``http`` URL.
    """
    match = ABSOLUTE.fullmatch(target.decode("ascii"))
    if not match:
        raise BadRequestError(
            400, "this is a proxy: a request for it has an http:// URL, or is a CONNECT"
        )
    authority, path, query = match.groups()
    host, port = split_authority(authority, HTTP_PORT)
    return host, port, (path or "/") + (query or "")


def _named(headers: Iterable[tuple[bytes, bytes]], name: bytes) -> list[bytes]:
    return [value for key, value in headers if key.lower() == name]


def check_framing(request: h11.Request) -> None:
    """Refuse a request whose end two parsers could see at different places.

    Raises:
        BadRequestError: it is one.
    """
    encodings = _named(request.headers, b"transfer-encoding")
    lengths = _named(request.headers, b"content-length")
    if encodings and lengths:
        raise BadRequestError(400, "both Content-Length and Transfer-Encoding")
    if encodings and request.http_version != b"1.1":
        raise BadRequestError(400, "Transfer-Encoding before HTTP/1.1")
    if request.method == b"CONNECT" and (encodings or any(length != b"0" for length in lengths)):
        raise BadRequestError(400, "CONNECT has no body")


def end_to_end(message: h11.Request | h11.Response | h11.InformationalResponse) -> Headers:
    """The headers that are meant for the other end, in the case they were written in."""
    headers: Headers = message.headers.raw_items()
    dropped = set(HOP_BY_HOP)
    for value in _named(headers, b"connection"):
        dropped.update(token.strip().lower() for token in value.split(b","))
    dropped -= END_TO_END
    return [(name, value) for name, value in headers if name.lower() not in dropped]


def request_headers(request: h11.Request, authority: bytes) -> Headers:
    """The headers that the origin gets: Host is what the URL says."""
    rest = [item for item in end_to_end(request) if item[0].lower() != b"host"]
    headers = [(b"Host", authority), *rest, (b"Via", VIA), (b"Connection", b"close")]
    if _named(request.headers, b"transfer-encoding"):
        headers.append((b"Transfer-Encoding", b"chunked"))
    return headers


def response_headers(response: h11.Response | h11.InformationalResponse) -> Headers:
    """The headers that the sandbox gets; h11 adds the framing."""
    headers = end_to_end(response)
    if _named(response.headers, b"transfer-encoding"):
        # which counts, where both are there
        headers = [item for item in headers if item[0].lower() != b"content-length"]
    return [*headers, (b"Via", VIA)]


class HttpSession:
    """One connection from a sandbox that speaks HTTP."""

    def __init__(self, session: Session, gate: Gate) -> None:
        self._session = session
        self._client = session.client
        self._gate = gate
        self._http = h11.Connection(h11.SERVER, max_incomplete_event_size=gate.limits.header_bytes)

    async def run(self) -> None:
        """Serve it to its end.  Raises OSError, and OriginError when an answer broke off."""
        try:
            while await self._serve_one():
                self._http.start_next_cycle()
        except h11.RemoteProtocolError as error:
            self._gate.count(malformed=1)
            # h11's text quotes what came
            await self._answer(error.error_status_hint, "that is not valid HTTP")
        except BadRequestError as error:
            self._gate.count(malformed=1)
            await self._answer(error.status, str(error))

    async def _serve_one(self) -> bool:
        """One request; whether another can follow."""
        try:
            async with asyncio.timeout(self._gate.limits.header_seconds):
                request = await self._read_request()
        except TimeoutError:
            if self._http.trailing_data[0]:
                await self._answer(408, "the request took too long")
            return False
        if request is None:
            return False
        check_framing(request)
        if request.method == b"CONNECT":
            await self._tunnel(request)
            return False
        return await self._forward(request)

    async def _read_request(self) -> h11.Request | None:
        while True:
            event = self._http.next_event()
            if event is h11.NEED_DATA:
                self._http.receive_data(await self._client.read())
            elif isinstance(event, h11.Request):
                return event
            else:
                return None

    async def _connect(self, protocol: Protocol, host: str, port: int) -> Outbound | None:
        """A connection; without one the sandbox has been told why."""
        try:
            return await self._gate.connect(Wish(protocol, host, port))
        except Refused as refused:
            await self._answer(403, f"nsrun refuses this connection: {refused}")
        except Unreachable as error:
            status = 504 if error.errno == errno.ETIMEDOUT else 502
            await self._answer(status, f"nsrun could not connect: {error}")
        return None

    async def _tunnel(self, request: h11.Request) -> None:
        host, port = split_authority(request.target.decode("ascii"), None)
        outbound = await self._connect(Protocol.CONNECT, host, port)
        if outbound is None:
            return
        self._session.outbound = outbound
        self._client.unread(self._http.trailing_data[0])
        await self._say(ESTABLISHED)
        gate = self._gate
        await relay(
            self._client,
            outbound.stream,
            gate.limits.idle_seconds,
            gate.count_sent,
            gate.count_received,
        )

    async def _forward(self, request: h11.Request) -> bool:
        host, port, path = split_url(request.target)
        outbound = await self._connect(Protocol.HTTP, host, port)
        if outbound is None:
            return False
        self._session.outbound = outbound
        try:
            async with idle_limit(self._gate.limits.idle_seconds, self._client, outbound.stream):
                await self._exchange(request, outbound, path)
        except OriginError as error:
            if self._http.our_state is not h11.SEND_RESPONSE:
                raise
            await self._answer(502, str(error))
            return False
        finally:
            self._session.outbound = None
            outbound.stream.close()
        done = (self._http.our_state, self._http.their_state) == (h11.DONE, h11.DONE)
        if not done:
            await self._client.linger()
        return done

    async def _exchange(self, request: h11.Request, outbound: Outbound, path: str) -> None:
        """Carry request and response at the same time, until the response is complete."""
        authority = host_text(outbound.host, outbound.port)
        if outbound.port == HTTP_PORT:
            authority = authority.removesuffix(f":{HTTP_PORT}")
        headers = request_headers(request, authority.encode("ascii"))
        if self._gate.upstream is not None:
            path = f"http://{authority}{path}"
            headers += self._gate.upstream.headers()
        origin = h11.Connection(
            h11.CLIENT, max_incomplete_event_size=self._gate.limits.header_bytes
        )
        begin = origin.send(h11.Request(method=request.method, target=path, headers=headers))
        to_origin = asyncio.create_task(self._send_body(origin, outbound.stream, begin or b""))
        to_client = asyncio.create_task(self._send_response(origin, outbound.stream))
        tasks = {to_origin, to_client}
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            if not to_client.done():
                to_origin.result()
                await asyncio.wait({to_client})
            to_client.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _send_body(self, origin: h11.Connection, stream: Stream, begin: bytes) -> None:
        await self._send_to_origin(stream, begin)
        while True:
            event = self._http.next_event()
            if event is h11.NEED_DATA:
                self._http.receive_data(await self._client.read())
            elif isinstance(event, h11.Data):
                await self._send_to_origin(stream, origin.send(event) or b"")
            elif isinstance(event, h11.EndOfMessage):
                # without its trailers, which a proxy may drop
                await self._send_to_origin(stream, origin.send(h11.EndOfMessage()) or b"")
                return
            else:
                raise ConnectionResetError("the sandbox went away within a request")

    async def _send_to_origin(self, stream: Stream, data: bytes) -> None:
        # where it takes no more, it may have answered already, and that decides
        with suppress(OSError):
            await stream.send(data)
            self._gate.count_sent(len(data))

    async def _send_response(self, origin: h11.Connection, stream: Stream) -> None:
        while True:
            event = await self._origin_event(origin, stream)
            if isinstance(event, h11.InformationalResponse):
                await self._send(
                    h11.InformationalResponse(
                        status_code=event.status_code,
                        headers=response_headers(event),
                        reason=event.reason,
                    )
                )
            elif isinstance(event, h11.Response):
                await self._send(
                    h11.Response(
                        status_code=event.status_code,
                        headers=response_headers(event),
                        reason=event.reason,
                    )
                )
            elif isinstance(event, h11.Data):
                await self._send(h11.Data(data=event.data))
                self._gate.count_received(len(event.data))
            elif isinstance(event, h11.EndOfMessage):
                await self._send(h11.EndOfMessage())
                return
            else:
                raise OriginError("the server closed the connection without an answer")

    async def _origin_event(self, origin: h11.Connection, stream: Stream) -> object:
        try:
            while (event := origin.next_event()) is h11.NEED_DATA:
                origin.receive_data(await stream.read())
        except (OSError, h11.RemoteProtocolError):
            raise OriginError("the server's answer broke off, or is not HTTP") from None
        return event

    async def _send(self, event: h11.Event) -> None:
        try:
            data = self._http.send(event)
        except h11.LocalProtocolError:
            raise OriginError("the server's answer makes no sense") from None
        await self._client.send(data or b"")

    async def _answer(self, status: int, text: str) -> None:
        """An answer of the proxy's own, after which the connection is closed."""
        body = f"{text}\n".encode()
        headers = [
            (b"Content-Type", b"text/plain; charset=utf-8"),
            (b"Content-Length", str(len(body)).encode("ascii")),
            (b"Connection", b"close"),
            (b"Via", VIA),
        ]
        if self._http.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            raise ConnectionResetError("an answer is under way")
        events: list[h11.Event] = [
            h11.Response(status_code=status, headers=headers),
            h11.Data(data=body),
            h11.EndOfMessage(),
        ]
        await self._say(b"".join(self._http.send(event) or b"" for event in events))
        await self._client.linger()

    async def _say(self, data: bytes) -> None:
        """Something short of the proxy's own; a client that does not read is given up."""
        async with asyncio.timeout(self._gate.limits.header_seconds):
            await self._client.send(data)
