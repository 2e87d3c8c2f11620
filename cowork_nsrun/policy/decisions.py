"""What a proxy tells about itself: decisions, counters; and the bounds it keeps."""

from __future__ import annotations

from dataclasses import dataclass, fields
from enum import StrEnum

from cowork_nsrun.errors import SpecError
from cowork_nsrun.policy.hosts import Address


class Protocol(StrEnum):
    """How a sandbox asked."""

    CONNECT = "connect"
    HTTP = "http"
    SOCKS5 = "socks5"


@dataclass(frozen=True, slots=True)
class Decision:
    """One answer to a sandbox.

    Attributes:
        time: when, in seconds since the epoch.
        allowed: whether the rules allow it.
        host: the name or address asked for.  If it is none, the text, escaped and cut.
        port: the port asked for.
        address: the address that it was connected to; None if refused before there was one, if
            no address answered, or if an upstream proxy looks the name up.
        rule: the rule that decided, as written; None if none did.
        protocol: how it was asked for.
        reason: why it was refused, or why it failed although allowed; else empty.
    """

    time: float
    allowed: bool
    host: str
    port: int
    address: Address | None
    rule: str | None
    protocol: Protocol
    reason: str


@dataclass(frozen=True, slots=True)
class Counters:
    """What a proxy has done so far.

    Attributes:
        accepted: connections from sandboxes.
        open: those that are open now.
        allowed: requests that the rules allowed.
        refused: requests that they didn't.
        failed: allowed requests whose host could not be reached.
        malformed: connections that ended because what came was not HTTP or SOCKS 5.
        closed: connections closed by new rules.
        sent: bytes from sandboxes to the world.
        received: bytes from the world to sandboxes.
    """

    accepted: int = 0
    open: int = 0
    allowed: int = 0
    refused: int = 0
    failed: int = 0
    malformed: int = 0
    closed: int = 0
    sent: int = 0
    received: int = 0


@dataclass(frozen=True, slots=True)
class EgressLimits:
    """The bounds of a proxy.  Each connection holds at most two buffers of 64 KiB.

    Attributes:
        connections: open at once from one sandbox; more wait in the kernel's backlog.
        header_bytes: of one HTTP request's or response's header.
        header_seconds: until a request is complete, counted from the one before.
        idle_seconds: without a byte in either direction.
        connect_seconds: for looking up and connecting, together.

    Raises:
        SpecError: a bound that is not positive.
    """

    connections: int = 256
    header_bytes: int = 64 * 1024
    header_seconds: float = 30.0
    idle_seconds: float = 300.0
    connect_seconds: float = 30.0

    def __post_init__(self) -> None:
        for item in fields(self):
            value = getattr(self, item.name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
                raise SpecError(f"EgressLimits.{item.name}", f"{value!r} is not positive")
