"""A sandbox's way out: sockets that listen in its network, and the proxy that accepts there.

A sandbox sends its two listening sockets here before its command starts.  From a microVM
connections themselves come, one a message, as long as it lives.
"""

from __future__ import annotations

import array
import socket
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

from cowork_nsrun.errors import NsrunError

if TYPE_CHECKING:
    from cowork_nsrun.policy import EgressThread
    from cowork_nsrun.policy.gate import OnDecision
    from cowork_nsrun.spec import Egress

PORTS = 2


class Outlet:
    """Made before the sandbox is started, opened after that, closed with it.

    Attributes:
        proxy: once it is open.
    """

    def __init__(self, egress: Egress, on_decision: OnDecision | None) -> None:
        self._egress = egress
        self._on_decision = on_decision
        self._ours, self._theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.proxy: EgressThread | None = None

    @property
    def theirs(self) -> socket.socket:
        """The other end, until :meth:`open`."""
        return self._theirs

    @property
    def fd(self) -> int:
        """For the plan: the sandbox's first process sends its sockets there."""
        return self._theirs.fileno()

    def open(self, *, of_machine: bool = False) -> None:
        """Take the sockets, and serve them.

        A sandbox that failed before it made them is no error here: it tells so itself.

        Arguments:
            of_machine: it is a microVM, which hands connections over.

        Raises:
            NsrunError: the proxy can't be started.
        """
        self._theirs.close()
        if of_machine:
            self._serve([self._ours])
            return
        size = array.array("i").itemsize
        _, control, _, _ = self._ours.recvmsg(
            1, socket.CMSG_SPACE(PORTS * size), socket.MSG_CMSG_CLOEXEC
        )
        self._ours.close()
        fds = array.array("i")
        for level, kind, data in control:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                fds.frombytes(data[: len(data) - len(data) % size])
        listeners = [socket.socket(fileno=fd) for fd in fds]
        if len(listeners) == PORTS:
            self._serve(listeners)
        elif listeners:
            for listener in listeners:
                listener.close()
            raise NsrunError("the sandbox sent other sockets than its proxy's")

    def _serve(self, listeners: Sequence[socket.socket]) -> None:
        # late, since most sandboxes have no outlet and this takes a while
        from cowork_nsrun.policy import EgressThread  # noqa: PLC0415

        self.proxy = EgressThread(self._egress.rules(), listeners, on_decision=self._on_decision)

    def close(self) -> None:
        """End the proxy and every connection through it."""
        self._ours.close()
        self._theirs.close()
        if self.proxy is not None:
            self.proxy.close()


def hand_over_to(line: socket.socket) -> Callable[[socket.socket], None]:
    """What gives a microVM's connections to the owner of an outlet, over its other end."""

    def hand_over(stream: socket.socket) -> None:
        # an owner that takes none, or no more at present, has them closed
        with stream, suppress(OSError):
            socket.send_fds(line, [b"\0"], [stream.fileno()], socket.MSG_DONTWAIT)

    return hand_over
