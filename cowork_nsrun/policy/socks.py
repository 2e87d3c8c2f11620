"""The messages of SOCKS 5 (RFC 1928), without any input or output.

Each parser gets what has come so far.  It returns None if that is only the beginning, else the
message and its length in bytes.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from ipaddress import IPv4Address, IPv6Address

VERSION = 5
NO_AUTHENTICATION = 0
CONNECT = 1
IPV4, NAME, IPV6 = 1, 3, 4
ADDRESS_LENGTHS = {IPV4: 4, IPV6: 16}
HEAD = 4
MESSAGE_MAX = HEAD + 1 + 255 + 2

ACCEPT = bytes((VERSION, NO_AUTHENTICATION))
NO_METHOD = bytes((VERSION, 0xFF))


class Reply(IntEnum):
    """REP of RFC 1928, section 6."""

    SUCCEEDED = 0
    FAILURE = 1
    NOT_ALLOWED = 2
    NETWORK_UNREACHABLE = 3
    HOST_UNREACHABLE = 4
    REFUSED = 5
    COMMAND_NOT_SUPPORTED = 7
    ADDRESS_NOT_SUPPORTED = 8


class SocksError(ValueError):
    """A message that can't be served.

    Attributes:
        answer: what to send before the connection is closed; may be empty.
    """

    def __init__(self, problem: str, answer: bytes = b"") -> None:
        super().__init__(problem)
        self.answer = answer


@dataclass(frozen=True, slots=True)
class Request:
    """A wish to be connected: a host as written (text or address), and a port."""

    host: str
    port: int


def reply(code: Reply) -> bytes:
    """A reply; the bound address in it is zero, since that of the host concerns nobody inside."""
    return bytes((VERSION, code, 0, IPV4, 0, 0, 0, 0, 0, 0))


def parse_greeting(data: bytes) -> int | None:
    """The length of the client's first message, if it offers to go without authentication.

    Raises:
        SocksError: it is no such message, or it doesn't.
    """
    if data and data[0] != VERSION:
        raise SocksError(f"SOCKS version {data[0]}, not {VERSION}")
    if len(data) < 2:
        return None
    length = 2 + data[1]
    if len(data) < length:
        return None
    if NO_AUTHENTICATION not in data[2:length]:
        raise SocksError("the client insists on authentication", NO_METHOD)
    return length


def parse_request(data: bytes) -> tuple[Request, int] | None:
    """The client's second message.

    Raises:
        SocksError: it is wrong, or wishes for something other than CONNECT.
    """
    if data and data[0] != VERSION:
        raise SocksError(f"SOCKS version {data[0]}, not {VERSION}")
    if len(data) <= HEAD:
        return None
    command, kind = data[1], data[3]
    if command != CONNECT:
        raise SocksError(f"command {command}", reply(Reply.COMMAND_NOT_SUPPORTED))
    begin = HEAD
    if kind == NAME:
        length = data[HEAD]
        begin += 1
    elif kind in ADDRESS_LENGTHS:
        length = ADDRESS_LENGTHS[kind]
    else:
        raise SocksError(f"address type {kind}", reply(Reply.ADDRESS_NOT_SUPPORTED))
    end = begin + length
    if len(data) < end + 2:
        return None
    host = _host(kind, data[begin:end])
    return Request(host, int.from_bytes(data[end : end + 2])), end + 2


def _host(kind: int, data: bytes) -> str:
    if kind == IPV4:
        return str(IPv4Address(data))
    if kind == IPV6:
        return str(IPv6Address(data))
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        raise SocksError("the name is not UTF-8", reply(Reply.NOT_ALLOWED)) from None
