"""Names and addresses of hosts: one spelling for each, and what kind of address one is.

Rules, requests and resolvers all pass through :func:`parse_host`, so a host that a rule means
can't be spelled so that the rule misses it.
"""

from __future__ import annotations

import re
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

import idna

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network
Host = str | Address

NAME_MAX = 253  # RFC 1035, without the last dot
LABEL = re.compile(r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?")
# what the C library's inet_aton would read as a number, so that 127.1 is an address to it
NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*")

METADATA = "a cloud metadata address"
THIS_MACHINE = "an address of this machine"

# Services that hand out a machine's credentials to whoever asks from it.
METADATA_ADDRESSES: frozenset[Address] = frozenset(
    {
        IPv4Address("169.254.169.254"),  # AWS, Google, Azure, OpenStack, and others
        IPv4Address("169.254.170.2"),  # AWS ECS
        IPv4Address("169.254.170.23"),  # AWS EKS
        IPv4Address("100.100.100.200"),  # Alibaba
        IPv4Address("168.63.129.16"),  # Azure's WireServer, in the public range
        IPv4Address("192.0.0.192"),  # Oracle
        IPv6Address("fd00:ec2::254"),  # AWS
        IPv6Address("fd00:ec2::23"),  # AWS EKS
        IPv6Address("fd20:ce::254"),  # Google
    }
)

NAT64 = IPv6Network("64:ff9b::/96")
SIX_TO_FOUR = IPv6Network("2002::/16")
MAPPED = IPv6Network("::ffff:0:0/96")

# IANA's special-purpose registries (RFC 6890), as far as they are not globally reachable.  The
# module ipaddress has them too, but differently in each Python.  The first that fits is named.
SPECIAL: tuple[tuple[Network, str], ...] = (
    (IPv4Network("127.0.0.0/8"), "a loopback address"),
    (IPv4Network("10.0.0.0/8"), "a private address"),
    (IPv4Network("172.16.0.0/12"), "a private address"),
    (IPv4Network("192.168.0.0/16"), "a private address"),
    (IPv4Network("169.254.0.0/16"), "a link-local address"),
    (IPv4Network("100.64.0.0/10"), "a carrier's shared address"),
    (IPv4Network("0.0.0.0/8"), "an address of this host"),
    (IPv4Network("224.0.0.0/4"), "a multicast address"),
    (IPv4Network("192.0.0.0/24"), "a reserved address"),
    (IPv4Network("192.0.2.0/24"), "a documentation address"),
    (IPv4Network("192.88.99.0/24"), "a reserved address"),
    (IPv4Network("198.18.0.0/15"), "a benchmarking address"),
    (IPv4Network("198.51.100.0/24"), "a documentation address"),
    (IPv4Network("203.0.113.0/24"), "a documentation address"),
    (IPv4Network("240.0.0.0/4"), "a reserved address"),
    (IPv6Network("::1/128"), "a loopback address"),
    (IPv6Network("::/128"), "an address of this host"),
    (IPv6Network("fc00::/7"), "a private address"),
    (IPv6Network("fe80::/10"), "a link-local address"),
    (IPv6Network("fec0::/10"), "a site-local address"),
    (IPv6Network("ff00::/8"), "a multicast address"),
    (IPv6Network("64:ff9b:1::/48"), "a local translation address"),
    (IPv6Network("2001::/32"), "a Teredo address"),
    (IPv6Network("2001::/23"), "a reserved address"),
    (IPv6Network("2001:db8::/32"), "a documentation address"),
    (SIX_TO_FOUR, "a 6to4 address"),
    (IPv6Network("3fff::/20"), "a documentation address"),
    # all but 2000::/3, which is what has been given out
    (IPv6Network("::/3"), "a reserved address"),
    (IPv6Network("4000::/2"), "a reserved address"),
    (IPv6Network("8000::/1"), "a reserved address"),
)


class HostError(ValueError):
    """Text that names no host; the message says why, without repeating the text."""


def parse_host(text: str) -> Host:
    """The one spelling of a host: an address, or a name in lower case and ASCII.

    Names get their A-labels (UTS 46, IDNA 2008) and lose one dot at the end.  IPv6 addresses
    come without brackets; those that only wrap an IPv4 address become that.  Numbers that
    inet_aton(3) would take for an address (``127.1``, ``0x7f.1``, ``2130706433``) are refused.

    Raises:
        HostError: it is no host.
    """
    if ":" in text:
        return _ipv6(text)
    # before any work that grows with it; four bytes are the longest a character gets
    if len(text) > 4 * NAME_MAX:
        raise HostError(f"the name is longer than {NAME_MAX} characters")
    name = (text if text.isascii() else _to_ascii(text)).lower()
    name = name.removesuffix(".")
    if not name:
        raise HostError("the host is empty")
    labels = name.split(".")
    if NUMBER.fullmatch(labels[-1]):
        return _ipv4(name)
    if len(name) > NAME_MAX:
        raise HostError(f"the name is longer than {NAME_MAX} characters")
    for label in labels:
        _check_label(label)
    return name


def _check_label(label: str) -> None:
    if not label:
        raise HostError("two dots follow each other, or the name begins with one")
    if not LABEL.fullmatch(label):
        raise HostError(
            "each part of a name has 1 to 63 letters, digits, hyphens or underscores, "
            "with no hyphen at either end"
        )


def _to_ascii(text: str) -> str:
    try:
        return idna.encode(text, uts46=True, std3_rules=True).decode("ascii")
    except idna.IDNAError as error:
        raise HostError(f"it is no international name: {str(error)!a}") from None


def _ipv4(text: str) -> IPv4Address:
    try:
        return IPv4Address(text)
    except ValueError:
        raise HostError(
            "an IPv4 address is written as four decimal numbers, such as 192.0.2.1"
        ) from None


def _ipv6(text: str) -> Address:
    if "%" in text:
        raise HostError("an address with a zone is of no use outside")
    try:
        address = IPv6Address(text)
    except ValueError:
        raise HostError("it is no IPv6 address") from None
    return plain(address)


def plain(address: Address) -> Address:
    """An IPv4 address for an IPv6 one that only wraps it (``::ffff:0:0/96``)."""
    if isinstance(address, IPv6Address):
        return address.ipv4_mapped or IPv6Address(int(address))
    return address


def same_target(address: Address) -> tuple[Address, ...]:
    """The address, and the IPv4 address that traffic to it is translated to, if any."""
    if isinstance(address, IPv6Address):
        if address in NAT64:
            return (address, IPv4Address(int(address) & 0xFFFFFFFF))
        if address in SIX_TO_FOUR:
            return (address, IPv4Address((int(address) >> 80) & 0xFFFFFFFF))
    return (address,)


def kind_of(address: Address) -> str:
    """What keeps an address from being one of the public internet, in words; empty if nothing."""
    if address in METADATA_ADDRESSES:
        return METADATA
    if address in NAT64:
        return ""
    return next((kind for network, kind in SPECIAL if address in network), "")


def is_special(network: Network) -> bool:
    """Whether no address of the network is public."""
    return any(_inside(network, special) for special, _kind in SPECIAL)


def _inside(network: Network, other: Network) -> bool:
    if isinstance(network, IPv4Network):
        return isinstance(other, IPv4Network) and network.subnet_of(other)
    return isinstance(other, IPv6Network) and network.subnet_of(other)


def host_text(host: Host, port: int) -> str:
    """``name:port``, ``192.0.2.1:port`` or ``[2001:db8::1]:port``."""
    return f"[{host}]:{port}" if isinstance(host, IPv6Address) else f"{host}:{port}"
