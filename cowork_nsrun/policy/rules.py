"""What a sandbox may reach: :class:`EgressRules`, made of :class:`Rule`.

A rule is one line as people write it: ``example.com``, ``*.example.com``, ``*``, ``192.0.2.1``,
``10.0.0.0/8``, ``2001:db8::/32``; each may end in ports: ``:443``, ``:80,443``, ``:8000-8999``
(IPv6 in brackets then).  What no rule allows is refused, and deny wins over allow.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from ipaddress import IPv4Network, IPv6Network, ip_network

from cowork_nsrun.errors import SpecError
from cowork_nsrun.policy.hosts import (
    MAPPED,
    METADATA,
    THIS_MACHINE,
    Address,
    Host,
    HostError,
    Network,
    host_text,
    is_special,
    kind_of,
    parse_host,
    same_target,
)

PORT_MAX = 65535
RULE_MAX = 2048
PORTS = re.compile(r"[0-9]{1,5}(?:-[0-9]{1,5})?(?:,[0-9]{1,5}(?:-[0-9]{1,5})?)*", re.ASCII)
BRACKETS = re.compile(r"\[([^\[\]]*)\](?::(.*))?", re.DOTALL)

PortRanges = tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule.

    Attributes:
        text: the rule as written.
        allow_private: a name may lead to, or a network may hold, addresses that are not public
            (private, loopback, link-local and so on), and addresses of this machine.  Cloud
            metadata services still need a rule of exactly their address.
        name: the name that it means, without ``*.``; empty for ``*`` and for addresses.
        below: it means the names below ``name``, not ``name`` itself.
        network: the addresses that it means; None for names and ``*``.
        ports: pairs of first and last port; empty means every port.
    """

    text: str
    allow_private: bool = False
    name: str = field(init=False, repr=False, compare=False)
    below: bool = field(init=False, repr=False, compare=False)
    network: Network | None = field(init=False, repr=False, compare=False)
    ports: PortRanges = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not isinstance(self.text, str):
            raise SpecError("Rule.text", f"a string is wanted, not {self.text!r}")
        if not isinstance(self.allow_private, bool):
            raise SpecError("Rule.allow_private", "True or False is wanted")
        try:
            name, below, network, ports = _parse(self.text)
        except HostError as error:
            raise SpecError("Rule.text", f"{self.text[:RULE_MAX]!r}: {error}") from None
        for key, value in (
            ("name", name),
            ("below", below),
            ("network", network),
            ("ports", ports),
        ):
            object.__setattr__(self, key, value)

    def __str__(self) -> str:
        return self.text

    @property
    def everything(self) -> bool:
        """It is ``*``: every name, and every public address."""
        return not self.name and self.network is None

    def matches(self, host: Host, port: int) -> bool:
        """Whether the rule means this host and port; a host as :func:`parse_host` gives it."""
        if self.ports and not any(first <= port <= last for first, last in self.ports):
            return False
        if self.everything:
            return True
        if not isinstance(host, str):
            return self.network is not None and host in self.network
        if self.below:
            return host.endswith("." + self.name)
        return host == self.name

    def opens(self, kind: str) -> bool:
        """Whether an address of this kind, not public, may be reached by a rule that matches.

        A network opens what is private in it only if it has no public part, so that
        ``0.0.0.0/0`` means the internet and not also the local network.
        """
        exact = self.network is not None and self.network.num_addresses == 1
        if kind == METADATA or exact:
            return exact
        if self.allow_private:
            return True
        return kind != THIS_MACHINE and self.network is not None and is_special(self.network)


def _parse(text: str) -> tuple[str, bool, Network | None, PortRanges]:
    _check_shape(text)
    host, ports_text = _split_ports(text)
    ports = _parse_ports(ports_text)
    if host == "*":
        return "", False, None, ports
    if "/" in host:
        return "", False, _parse_network(host), ports
    below = host.startswith("*.")
    rest = host.removeprefix("*.")
    if "*" in rest:
        raise HostError('"*" stands alone or at the beginning, as in *.example.com')
    parsed = parse_host(rest)
    if isinstance(parsed, str):
        return parsed, below, None, ports
    if below:
        raise HostError("no names lie below an address; for a network write 10.0.0.0/8")
    return "", False, ip_network(parsed), ports


def _check_shape(text: str) -> None:
    """Refuse what people write when they have something else in mind, and say what to write."""
    if len(text) > RULE_MAX:
        raise HostError(f"longer than {RULE_MAX} characters")
    if not text:
        raise HostError("the rule is empty")
    if "://" in text:
        raise HostError("a rule has no scheme; for https://example.com write example.com:443")
    if "@" in text:
        raise HostError("a rule has no user name")
    if text.startswith("."):
        rest = text.lstrip(".")
        raise HostError(f"write *.{rest} for what lies below, {rest} for the host itself")


def _split_ports(text: str) -> tuple[str, str | None]:
    if text.startswith("["):
        match = BRACKETS.fullmatch(text)
        if not match or ":" not in match[1]:
            raise HostError("brackets hold an IPv6 address or network, as in [2001:db8::1]:443")
        return match[1], match[2]
    if text.count(":") > 1:
        return text, None
    host, colon, ports = text.partition(":")
    return host, ports if colon else None


def _parse_ports(text: str | None) -> PortRanges:
    if text is None:
        return ()
    if not PORTS.fullmatch(text):
        raise HostError(f"{text!r} are no ports; write 443, 80,443 or 8000-8999")
    ranges = []
    for part in text.split(","):
        first, _, last = part.partition("-")
        pair = (int(first), int(last or first))
        if not 1 <= pair[0] <= pair[1] <= PORT_MAX:
            raise HostError(f"{part} is no port and no range of ports from 1 to {PORT_MAX}")
        ranges.append(pair)
    return tuple(ranges)


def _parse_network(text: str) -> Network:
    address, _, prefix = text.partition("/")
    try:
        parse_host(address)
        if not (prefix.isascii() and prefix.isdigit()):
            raise HostError
        network = ip_network(text)
    except HostError:
        raise HostError(
            "a rule has no path; a network is an address and the length of its prefix, "
            "as in 10.0.0.0/8"
        ) from None
    except ValueError as error:
        raise HostError(f"it is no network: {error}") from None
    if isinstance(network, IPv6Network) and network.subnet_of(MAPPED):
        return IPv4Network((int(network.network_address) & 0xFFFFFFFF, network.prefixlen - 96))
    return network


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the rules say.

    Attributes:
        allowed: whether it may be reached.
        rule: the rule that decided, if one did.
        reason: why not, and what would allow it; empty if it is allowed.
    """

    allowed: bool
    rule: Rule | None
    reason: str = ""


@dataclass(frozen=True, slots=True)
class EgressRules:
    """What may be reached.  Each side takes strings, or :class:`Rule` for more.

    Attributes:
        allow: what may be reached; nothing else may.
        deny: what may not, even if ``allow`` has it.

    Raises:
        SpecError: a rule that can't be, named.
    """

    allow: Sequence[str | Rule] = ()
    deny: Sequence[str | Rule] = ()
    _allow: tuple[Rule, ...] = field(init=False, repr=False, compare=False)
    _deny: tuple[Rule, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        for side in ("allow", "deny"):
            rules = _make_rules(side, getattr(self, side))
            object.__setattr__(self, side, rules)
            object.__setattr__(self, "_" + side, rules)
        for rule in self._deny:
            if rule.allow_private:
                raise SpecError("EgressRules.deny", f"{rule.text!r}: allow_private allows nothing")

    def check(self, host: Host, port: int) -> Verdict:
        """Whether a host may be asked for.  For a name its addresses are still to be checked.

        No rule about addresses allows a name: it would have to be looked up first, and a
        look-up carries whatever the name says out of the sandbox.
        """
        if not 1 <= port <= PORT_MAX:
            return Verdict(False, None, f"{port} is no port")
        targets: Iterable[Host] = (host,) if isinstance(host, str) else same_target(host)
        denied = self._denied(targets, host_text(host, port), port)
        if denied:
            return denied
        for rule in self._allow:
            if rule.matches(host, port):
                return Verdict(True, rule)
        wanted = host_text(host, port)
        return Verdict(
            False,
            None,
            f'no rule allows {wanted}; to allow it, add "{wanted}" to the allow rules',
        )

    def check_address(
        self, host: Host, port: int, address: Address, *, this_machine: bool = False
    ) -> Verdict:
        """Whether the host, which :meth:`check` allows, may be reached at this address.

        Arguments:
            this_machine: the address is one of this machine's own.
        """
        wanted = host_text(host, port)
        where = wanted if address == host else f"{wanted} is at {address}, which"
        for target in same_target(address):
            denied = self._denied((target,), wanted, port)
            if denied:
                return denied
            kind = kind_of(target) or (THIS_MACHINE if this_machine else "")
            if kind and not self._opened(host, port, target, kind):
                how = f'to allow it, add "{host_text(target, port)}" to the allow rules'
                if kind != METADATA and isinstance(host, str):
                    how += ", or set allow_private for the rule that allows the name"
                return Verdict(False, None, f"{where} is {kind}; {how}")
        return self.check(host, port)

    def _denied(self, targets: Iterable[Host], wanted: str, port: int) -> Verdict | None:
        for target in targets:
            for rule in self._deny:
                if rule.matches(target, port):
                    return Verdict(
                        False,
                        rule,
                        f'the deny rule "{rule}" refuses {wanted}; '
                        "to allow it, take that rule away",
                    )
        return None

    def _opened(self, host: Host, port: int, address: Address, kind: str) -> bool:
        return any(
            rule.opens(kind) and (rule.matches(host, port) or rule.matches(address, port))
            for rule in self._allow
        )


def _make_rules(side: str, given: object) -> tuple[Rule, ...]:
    where = f"EgressRules.{side}"
    if isinstance(given, str | bytes) or not isinstance(given, Iterable):
        raise SpecError(where, f"a sequence of rules is wanted, not {given!r}")
    rules = []
    for item in given:
        if isinstance(item, Rule):
            rules.append(item)
            continue
        try:
            rules.append(Rule(item))
        except SpecError as error:
            raise SpecError(where, error.text.partition(": ")[2]) from None
    return tuple(rules)
