"""A microVM's network: a stack in a process of its own, that uses the host's sockets.

The guest has a network card; its frames go to ``nsrun-slirp``, which carries TCP, UDP and
echo on as a usual process of this user.  The guest's addresses are those of
``csrc/net/addresses.h``; docs/architecture.md says what can't be carried.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
from contextlib import ExitStack, suppress

from cowork_nsrun.closing import Closing
from cowork_nsrun.guest.vmm import GuestError, find_beside

#: the guest's name server, which is the host's
NAME_SERVER = "10.0.2.3"
#: the guest's way to the host's 127.0.0.1, where that is allowed
HOST = "10.0.2.2"
#: bytes of a packet: as large as can be, since each costs the same
MTU = 65520
_REMEDY = (
    "install libslirp-dev and build nsrun again, or do without the host's network (--unshare-net)"
)
#: bytes that one of the two may be behind the other
_BUFFER = 4 << 20
_PATIENCE = 2.0
_SAID_LIMIT = 4096


class Network(Closing):
    """A running network for one machine: give it to :class:`~cowork_nsrun.guest.vmm.Settings`.

    It ends with the machine, or when it is closed.

    Arguments:
        mtu: bytes of a packet, 1280 to 65520.
        loopback: the guest reaches what listens on the host's 127.0.0.1, as :data:`HOST`.
        link_local: the guest reaches 169.254.0.0/16, such as a cloud's metadata service.

    Raises:
        GuestError: it can't be started.
    """

    def __init__(self, *, mtu: int = MTU, loopback: bool = False, link_local: bool = False) -> None:
        self.mtu = mtu
        program = find_beside("nsrun-slirp", _REMEDY)
        with ExitStack() as on_error:
            theirs, self._card = (
                on_error.enter_context(end)
                for end in socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            )
            for end in (theirs, self._card):
                end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _BUFFER)
            # nsrun-slirp limits what it writes there
            self._said = os.memfd_create("nsrun-slirp")
            on_error.callback(os.close, self._said)
            words = ["--fd", str(theirs.fileno()), "--mtu", str(mtu)]
            words += ["--allow-loopback"] if loopback else []
            words += ["--allow-link-local"] if link_local else []
            try:
                self._process = subprocess.Popen(
                    self._command(str(program), *words),
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=self._said,
                    pass_fds=[theirs.fileno()],
                    # a signal of the terminal's is for the command in the guest
                    start_new_session=True,
                )
            except OSError as error:
                text = f"{program}: {error.strerror}"
                raise GuestError(text, errno=error.errno or 0) from error
            on_error.pop_all()
        theirs.close()

    def _command(self, *words: str) -> list[str]:
        return list(words)

    @property
    def card(self) -> socket.socket:
        """The monitor's end: records are Ethernet frames."""
        return self._card

    @property
    def pid(self) -> int:
        """The process that is the network."""
        return self._process.pid

    def hand_over(self) -> None:
        """The monitor has its end now; so the network sees when that one is gone."""
        self._card.close()

    def failure(self) -> GuestError | None:
        """Why the network ended before its machine; None: it did not,
        or was closed."""
        status = self._process.poll()
        if not status or self._said < 0:
            return None
        how = f"ended with status {status}"
        if status < 0:
            how = f"was killed by signal {-status}"
            with suppress(ValueError):
                how = f"was killed by {signal.Signals(-status).name}"
        said = os.pread(self._said, _SAID_LIMIT, 0).decode(errors="replace").strip()
        return GuestError("; ".join(filter(None, (f"nsrun-slirp {how}", said))))

    def wait(self, timeout: float | None = None) -> int | None:
        """Its exit status, 0 when its machine is gone; None if the time was up first."""
        try:
            return self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            return None

    def close(self) -> None:
        """End it, and wait until it has ended."""
        self._card.close()
        if self.wait(_PATIENCE) is None:
            self._process.kill()
            self._process.wait()
        if self._said >= 0:
            os.close(self._said)
            self._said = -1


def resolv_conf(host: str) -> str | None:
    """The guest's /etc/resolv.conf; None: the host's will do.

    A resolver on the host's loopback (127.0.0.53) is out of a guest's reach, but the
    network's own name server asks it.

    Arguments:
        host: what is in the host's.
    """
    lines = [line for line in host.splitlines() if line.strip()]
    servers = [
        words[1] for words in map(str.split, lines) if words[0] == "nameserver" and words[1:]
    ]
    if servers and not any(map(_is_loopback, servers)):
        return None
    kept = [line for line in lines if line.split()[0] != "nameserver"]
    return "".join(f"{line}\n" for line in [f"nameserver {NAME_SERVER}", *kept])


def _is_loopback(server: str) -> bool:
    from ipaddress import ip_address  # noqa: PLC0415 - most machines need none of it

    try:
        address = ip_address(server)
    except ValueError:
        return False
    return address.is_loopback or address.is_unspecified
