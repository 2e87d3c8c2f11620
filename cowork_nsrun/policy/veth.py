"""A network for one sandbox, as root: a pair of virtual Ethernet devices, veth(4).

One end is on the host, the other in the sandbox's network namespace, with addresses and a
default route.  Forwarding, NAT and filters are the host's: without rules there the sandbox
reaches the host and nothing behind it.

The kernel removes both ends with the namespace, so nothing is left even when the owner is
killed.  Needs pyroute2, the extra ``net``.
"""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
from dataclasses import dataclass
from ipaddress import IPv4Interface, IPv4Network, ip_network
from typing import Any, Self

from cowork_nsrun.closing import Closing
from cowork_nsrun.errors import NsrunError, SpecError

try:
    from pyroute2 import IPRoute, NetlinkError, NetNS
except ImportError as _error:
    raise ImportError(
        "pyroute2 is missing; install it with: pip install 'cowork-nsrun[net]'"
    ) from _error

NS_GET_NSTYPE = 0xB703  # ioctl_ns(2)
CLONE_NEWNET = 0x40000000
INSIDE_NAME = "eth0"
POOL = IPv4Network("10.213.0.0/16")
PREFIX = 30


@dataclass(frozen=True, slots=True)
class Veth(Closing):
    """A pair of devices; a context manager, which removes both.

    Attributes:
        name: the device on the host.
        index: its interface number.
        host: its address, the sandbox's gateway.
        inside: the address in the sandbox.
    """

    name: str
    index: int
    host: IPv4Interface
    inside: IPv4Interface

    @classmethod
    def open(cls, netns_fd: int, network: IPv4Network | None = None) -> Self:
        """Connect a network namespace to this one.

        Arguments:
            netns_fd: the sandbox's network namespace: /proc/PID/ns/net.
            network: room for two hosts; None takes a free /30 of 10.213.0.0/16.

        Raises:
            SpecError: the network is too small, or the descriptor is no other namespace.
            NsrunError: the kernel refuses, for example without CAP_NET_ADMIN; with errno.
        """
        _check_namespace(netns_fd)
        try:
            with IPRoute() as ip:
                chosen = network or _free_network(ip)
                addresses = _two_hosts(chosen)
                name = f"nsr{secrets.token_hex(5)}"
                veth = cls(name, _make_pair(ip, name, netns_fd), *addresses)
                try:
                    _bring_up(ip, veth.index, veth.host)
                    _set_up_inside(netns_fd, veth)
                except BaseException:
                    veth._delete(ip)
                    raise
        except (NetlinkError, OSError) as error:
            raise _failed(error) from error
        return veth

    def close(self) -> None:
        """Remove the pair.  Once more does nothing, nor if it went with the namespace.

        Raises:
            NsrunError: the kernel refuses.
        """
        try:
            with IPRoute() as ip:
                self._delete(ip)
        except (NetlinkError, OSError) as error:
            raise _failed(error) from error

    def _delete(self, ip: Any) -> None:
        try:
            ip.link("del", index=self.index)
        except NetlinkError as error:
            if error.code != errno.ENODEV:
                raise


def _failed(error: Any) -> NsrunError:
    number = getattr(error, "code", None) or getattr(error, "errno", None) or 0
    text = f"can't set up a veth network: {os.strerror(number)}"
    if number in (errno.EPERM, errno.EACCES):
        text += "; it takes root on the host (CAP_NET_ADMIN, CAP_SYS_ADMIN)"
    return NsrunError(text, errno=number)


def _check_namespace(fd: int) -> None:
    try:
        kind = fcntl.ioctl(fd, NS_GET_NSTYPE)
    except (OSError, ValueError) as error:
        raise SpecError("Veth.netns_fd", f"{fd} is no namespace: {error}") from None
    if kind != CLONE_NEWNET:
        raise SpecError("Veth.netns_fd", f"{fd} is a namespace of another kind")
    if os.path.samestat(os.fstat(fd), os.stat("/proc/thread-self/ns/net")):
        raise SpecError("Veth.netns_fd", f"{fd} is the caller's own network namespace")


def _two_hosts(network: IPv4Network) -> tuple[IPv4Interface, IPv4Interface]:
    hosts = iter(network.hosts())
    pair = [next(hosts, None), next(hosts, None)]
    if None in pair:
        raise SpecError("Veth.network", f"{network} has no room for two hosts")
    host, inside = (IPv4Interface(f"{address}/{network.prefixlen}") for address in pair)
    return host, inside


def _free_network(ip: Any) -> IPv4Network:
    """A /30 that no route of this host overlaps; chosen by chance, as others choose too."""
    used = []
    for route in ip.get_routes(family=2):
        dst = route.get_attr("RTA_DST")
        if dst is not None:
            used.append(ip_network(f"{dst}/{route['dst_len']}", strict=False))
    pool = list(POOL.subnets(new_prefix=PREFIX))
    while pool:
        network = pool.pop(secrets.randbelow(len(pool)))
        if not any(network.overlaps(other) for other in used):
            return network
    raise NsrunError(f"no network is free in {POOL}; name one", errno=errno.EADDRNOTAVAIL)


def _make_pair(ip: Any, name: str, netns_fd: int) -> int:
    """The host's end, whose peer comes into being in the namespace."""
    ip.link("add", ifname=name, kind="veth", peer={"ifname": INSIDE_NAME, "net_ns_fd": netns_fd})
    index: int = ip.link_lookup(ifname=name)[0]
    return index


def _bring_up(ip: Any, index: int, address: IPv4Interface) -> None:
    ip.addr("add", index=index, address=str(address.ip), prefixlen=address.network.prefixlen)
    ip.link("set", index=index, state="up")


def _set_up_inside(netns_fd: int, veth: Veth) -> None:
    with NetNS(f"/proc/{os.getpid()}/fd/{netns_fd}", flags=0) as inside:
        loopback = inside.link_lookup(ifname="lo")[0]
        inside.link("set", index=loopback, state="up")
        _bring_up(inside, inside.link_lookup(ifname=INSIDE_NAME)[0], veth.inside)
        inside.route("add", dst="default", gateway=str(veth.host.ip))
