"""The one way from a request to a connection: parsed, judged, told, connected."""

from __future__ import annotations

import asyncio
import errno
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from cowork_nsrun.policy.decisions import Counters, Decision, EgressLimits, Protocol
from cowork_nsrun.policy.dial import (
    Outbound,
    Refused,
    Resolver,
    Unreachable,
    Upstream,
    connect_through,
    connect_to,
)
from cowork_nsrun.policy.hosts import NAME_MAX, Address, Host, HostError, host_text, parse_host
from cowork_nsrun.policy.rules import EgressRules, Rule, Verdict
from cowork_nsrun.policy.streams import Stream

OnDecision = Callable[[Decision], None]


@dataclass(frozen=True, slots=True)
class Wish:
    """What a sandbox asks for: a host as it wrote it."""

    protocol: Protocol
    host: str
    port: int


@dataclass(slots=True)
class Session:
    """One connection from a sandbox.

    Attributes:
        client: its bytes.
        outbound: what it is connected to now, if anything.
    """

    client: Stream
    outbound: Outbound | None = None


class Gate:
    """Connects what the rules allow, and tells of every decision."""

    def __init__(
        self,
        rules: EgressRules,
        *,
        resolver: Resolver,
        upstream: Upstream | None,
        limits: EgressLimits,
        on_decision: OnDecision | None,
        logger: logging.Logger,
    ) -> None:
        self.rules = rules
        self.upstream = upstream
        self.limits = limits
        self.counters = Counters()
        self.log = logger
        self._resolver = resolver
        self._on_decision = on_decision

    def count(self, **more: int) -> None:
        """Add to the counters, by name."""
        self.counters = replace(
            self.counters,
            **{name: getattr(self.counters, name) + value for name, value in more.items()},
        )

    def count_sent(self, length: int) -> None:
        """Bytes went to the world."""
        self.count(sent=length)

    def count_received(self, length: int) -> None:
        """Bytes came from the world."""
        self.count(received=length)

    async def connect(self, wish: Wish) -> Outbound:
        """Connect to what is wished for, if the rules allow it.

        Raises:
            Refused: they don't.
            Unreachable: they do, but it can't be had.
        """
        try:
            host = parse_host(wish.host)
        except HostError as error:
            verdict = Verdict(False, None, f"that is no host: {error}")
            self._tell(wish, ascii(wish.host[:NAME_MAX])[1:-1], verdict)
            raise Refused(verdict) from None
        try:
            outbound = await self._connect(wish, host)
        except Refused as refused:
            self._tell(wish, str(host), refused.verdict, refused.address)
            raise
        except Unreachable as error:
            self.count(failed=1)
            self._tell(wish, str(host), self.rules.check(host, wish.port), failure=str(error))
            raise
        self._tell(wish, str(host), outbound.verdict, outbound.address)
        return outbound

    async def _connect(self, wish: Wish, host: Host) -> Outbound:
        rules, seconds = self.rules, self.limits.connect_seconds
        try:
            async with asyncio.timeout(seconds):
                if self.upstream is None:
                    outbound = await connect_to(rules, self._resolver, host, wish.port, seconds)
                else:
                    tunnel = wish.protocol is not Protocol.HTTP
                    outbound = await connect_through(
                        self.upstream, rules, host, wish.port, seconds, tunnel=tunnel
                    )
        except TimeoutError:
            raise Unreachable(
                f"{host_text(host, wish.port)} did not answer within {seconds:g} seconds",
                errno=errno.ETIMEDOUT,
            ) from None
        verdict = outbound.judge(self.rules)
        if not verdict.allowed:  # the rules changed meanwhile
            outbound.stream.abort()
            raise Refused(verdict, outbound.address)
        return outbound

    def _tell(
        self,
        wish: Wish,
        host: str,
        verdict: Verdict,
        address: Address | None = None,
        *,
        failure: str = "",
    ) -> None:
        decision = Decision(
            time=time.time(),
            allowed=verdict.allowed,
            host=host,
            port=wish.port,
            address=address,
            rule=_text(verdict.rule),
            protocol=wish.protocol,
            reason=verdict.reason or failure,
        )
        self.count(**{"allowed" if decision.allowed else "refused": 1})
        self.log.info(
            "egress %s: %s %s port %d, address %s, rule %s%s",
            "allowed" if decision.allowed else "refused",
            decision.protocol,
            decision.host,
            decision.port,
            decision.address,
            decision.rule,
            f": {decision.reason}" if decision.reason else "",
        )
        if self._on_decision is None:
            return
        try:
            self._on_decision(decision)
        except Exception:
            self.log.exception("the callback for egress decisions failed")


def _text(rule: Rule | None) -> str | None:
    return None if rule is None else str(rule)
