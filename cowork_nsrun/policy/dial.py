"""Connections to the world: look a name up, check each address, connect to what was checked."""

from __future__ import annotations

import asyncio
import base64
import errno
import os
import socket
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address, ip_address
from urllib.parse import unquote, urlsplit

import h11

from cowork_nsrun.errors import SpecError
from cowork_nsrun.policy.hosts import (
    Address,
    Host,
    HostError,
    host_text,
    parse_host,
    plain,
)
from cowork_nsrun.policy.rules import EgressRules, Verdict
from cowork_nsrun.policy.streams import Stream

ADDRESSES_MAX = 16
LOOKUP_THREADS = 8
DISCARD_PORT = 9
UPSTREAM_HEADER_MAX = 64 * 1024

# Takes a name as parse_host gives it; raises OSError when there is none of that name.
Resolver = Callable[[str], Awaitable[Sequence[Address]]]


class Refused(Exception):
    """The rules say no.

    Attributes:
        verdict: what they say.
        address: the address that decided, if it was one.
    """

    def __init__(self, verdict: Verdict, address: Address | None = None) -> None:
        super().__init__(verdict.reason)
        self.verdict = verdict
        self.address = address


class Unreachable(Exception):
    """It is allowed, but can't be had.

    Attributes:
        errno: of the last attempt to connect; 0 if it did not come to one.
    """

    def __init__(self, text: str, *, errno: int = 0) -> None:
        super().__init__(text)
        self.errno = errno


class SystemResolver:
    """Names as this machine's programs look them up: getaddrinfo(3), in a few threads.

    With threads of its own one sandbox can't hold up another's names.
    """

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(LOOKUP_THREADS, thread_name_prefix="nsrun-lookup")

    async def __call__(self, name: str) -> list[Address]:
        return await asyncio.get_running_loop().run_in_executor(self._pool, _look_up, name)

    def close(self) -> None:
        """Start no more look-ups; what runs ends by itself, at getaddrinfo's own time limit."""
        self._pool.shutdown(wait=False, cancel_futures=True)


def _look_up(name: str) -> list[Address]:
    # as bytes, since Python would run its own older IDNA over a string
    found = socket.getaddrinfo(
        name.encode("ascii"), None, type=socket.SOCK_STREAM, flags=socket.AI_ADDRCONFIG
    )
    texts = (str(entry[4][0]).partition("%")[0] for entry in found)
    return list(dict.fromkeys(plain(ip_address(text)) for text in texts))


@dataclass(frozen=True, slots=True)
class Upstream:
    """A proxy that all connections go through, such as a company's.

    It looks the names up, so their addresses can't be checked here.  Nothing is read from the
    environment unless :meth:`from_environment` is called.

    Attributes:
        url: ``http://[user:password@]host[:port]``; never shown.

    Raises:
        SpecError: another kind of URL.
    """

    url: str = field(repr=False)
    host: Host = field(init=False)
    port: int = field(init=False)
    authorization: bytes = field(init=False, repr=False)

    def __post_init__(self) -> None:
        try:
            parts = urlsplit(self.url)
            if parts.scheme != "http" or parts.path not in ("", "/") or parts.query:
                raise HostError("http://host:port is wanted")
            host = parse_host(parts.hostname or "")
            port = 80 if parts.port is None else parts.port
        except ValueError as error:
            # error may come from urlsplit and then repeat the password
            why = str(error) if isinstance(error, HostError) else "it is no URL"
            raise SpecError("Upstream.url", why) from None
        secret = f"{unquote(parts.username or '')}:{unquote(parts.password or '')}"
        basic = b"Basic " + base64.b64encode(secret.encode())
        object.__setattr__(self, "host", host)
        object.__setattr__(self, "port", port)
        object.__setattr__(self, "authorization", basic if parts.username else b"")

    @classmethod
    def from_environment(cls, environ: Mapping[str, str]) -> Upstream | None:
        """The proxy that HTTPS_PROXY, HTTP_PROXY or ALL_PROXY name, in this order, if any."""
        for name in ("https_proxy", "http_proxy", "all_proxy"):
            url = environ.get(name) or environ.get(name.upper())
            if url:
                return cls(url)
        return None

    def headers(self) -> list[tuple[bytes, bytes]]:
        """What it wants to see with each request."""
        return [(b"Proxy-Authorization", self.authorization)] if self.authorization else []


@dataclass(frozen=True, slots=True)
class Outbound:
    """A connection to the world.

    Attributes:
        stream: its bytes.
        host: what was asked for.
        port: its port.
        address: where it leads; None behind an upstream proxy.
        this_machine: the address is one of this machine's own.
        verdict: what the rules said.
    """

    stream: Stream
    host: Host
    port: int
    address: Address | None
    this_machine: bool
    verdict: Verdict

    def judge(self, rules: EgressRules) -> Verdict:
        """What other rules would say of this connection."""
        verdict = rules.check(self.host, self.port)
        if not verdict.allowed or self.address is None:
            return verdict
        return rules.check_address(
            self.host, self.port, self.address, this_machine=self.this_machine
        )


def is_this_machine(address: Address) -> bool:
    """Whether connections to the address would stay here; asks the routes, sends nothing."""
    family = socket.AF_INET if isinstance(address, IPv4Address) else socket.AF_INET6
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((str(address), DISCARD_PORT))
            own = str(probe.getsockname()[0]).partition("%")[0]
    except OSError:
        return False
    return ip_address(own) == address


async def connect_to(
    rules: EgressRules, resolver: Resolver, host: Host, port: int, seconds: float
) -> Outbound:
    """Connect to a host at one of its allowed addresses, directly.

    Arguments:
        seconds: for all attempts to connect together.

    Raises:
        Refused: the rules allow none of its addresses.
        Unreachable: none of the allowed answers.
    """
    verdict = rules.check(host, port)
    if not verdict.allowed:
        raise Refused(verdict)
    addresses = await _addresses(resolver, host)
    allowed, refusal = [], None
    for address in addresses:
        this_machine = is_this_machine(address)
        judged = rules.check_address(host, port, address, this_machine=this_machine)
        if judged.allowed:
            allowed.append((address, this_machine))
        else:
            refusal = refusal or Refused(judged, address)
    if not allowed:
        raise refusal or Unreachable(f"{host} has no address")
    stream, (address, this_machine) = await _first(allowed, host, port, seconds)
    return Outbound(stream, host, port, address, this_machine, verdict)


async def _addresses(resolver: Resolver, host: Host) -> list[Address]:
    if not isinstance(host, str):
        return [host]
    try:
        found = await resolver(host)
    except OSError as error:
        raise Unreachable(f"{host} could not be looked up: {error.strerror or error}") from error
    return [plain(address) for address in found[:ADDRESSES_MAX]]


Candidate = tuple[Address, bool]


async def _first(
    candidates: list[Candidate], host: Host, port: int, seconds: float
) -> tuple[Stream, Candidate]:
    """The first address that answers; each gets an equal share of the time."""
    last = OSError("it has no address")
    for candidate in candidates:
        try:
            async with asyncio.timeout(seconds / len(candidates)):
                return await _open(candidate[0], port), candidate
        except TimeoutError:
            last = OSError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT))
        except OSError as error:
            last = error
    number = last.errno or 0
    # asyncio puts other words in strerror
    why = os.strerror(number) if number else str(last)
    raise Unreachable(f"{host_text(host, port)} can't be reached: {why}", errno=number)


async def _open(address: Address, port: int) -> Stream:
    family = socket.AF_INET6 if isinstance(address, IPv6Address) else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, (str(address), port))
        return Stream(sock)
    except BaseException:
        sock.close()
        raise


async def connect_through(
    upstream: Upstream,
    rules: EgressRules,
    host: Host,
    port: int,
    seconds: float,
    *,
    tunnel: bool,
) -> Outbound:
    """Connect to a host by way of a proxy.

    Arguments:
        seconds: for all attempts to connect together.
        tunnel: ask the proxy for a tunnel; without, the stream is the one to the proxy.

    Raises:
        Refused: the rules don't allow the host.
        Unreachable: the proxy doesn't answer, or refuses.
    """
    verdict = rules.check(host, port)
    if verdict.allowed and not isinstance(host, str):
        judged = rules.check_address(host, port, host, this_machine=is_this_machine(host))
        verdict = verdict if judged.allowed else judged
    if not verdict.allowed:
        raise Refused(verdict)
    stream = await _open_upstream(upstream, seconds)
    try:
        if tunnel:
            await _ask_for_tunnel(stream, upstream, host, port)
    except BaseException:
        stream.abort()
        raise
    return Outbound(stream, host, port, None, False, verdict)


async def _open_upstream(upstream: Upstream, seconds: float) -> Stream:
    loop = asyncio.get_running_loop()
    try:
        found = await loop.getaddrinfo(str(upstream.host), upstream.port, type=socket.SOCK_STREAM)
    except OSError as error:
        raise Unreachable(f"the upstream proxy could not be looked up: {error.strerror}") from error
    addresses = [plain(ip_address(str(entry[4][0]).partition("%")[0])) for entry in found]
    stream, _candidate = await _first(
        [(address, False) for address in addresses], upstream.host, upstream.port, seconds
    )
    return stream


async def _ask_for_tunnel(stream: Stream, upstream: Upstream, host: Host, port: int) -> None:
    authority = host_text(host, port).encode("ascii")
    connection = h11.Connection(h11.CLIENT, max_incomplete_event_size=UPSTREAM_HEADER_MAX)
    request = h11.Request(
        method=b"CONNECT",
        target=authority,
        headers=[(b"Host", authority), *upstream.headers()],
    )
    try:
        await stream.send(connection.send(request) or b"")
        await stream.send(connection.send(h11.EndOfMessage()) or b"")
        while True:
            event = connection.next_event()
            if event is h11.NEED_DATA:
                connection.receive_data(await stream.read())
            elif isinstance(event, h11.Response):
                break
            elif not isinstance(event, h11.InformationalResponse):
                raise Unreachable("the upstream proxy closed the connection")
    except (OSError, h11.ProtocolError) as error:
        raise Unreachable("the upstream proxy did not answer as one") from error
    if not 200 <= event.status_code < 300:
        raise Unreachable(f"the upstream proxy answered {event.status_code}")
    stream.unread(connection.trailing_data[0])
