"""A pool's microVMs: processes that have a machine ready, and wait for its command.

One process of the pool's, ``nsrun vm keep``, loads what they need and forks one of them for each
machine.  From its command on it is what ``nsrun vm exec`` is, with the same two pipes.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import struct
import subprocess
import threading
import weakref
from collections.abc import Sequence
from contextlib import ExitStack

from cowork_nsrun import _native
from cowork_nsrun._native import Number
from cowork_nsrun.by_machine import MachineChild, plan_file
from cowork_nsrun.closing import Closing
from cowork_nsrun.errors import NsrunError
from cowork_nsrun.plan import Plan
from cowork_nsrun.program import find_program

#: the keeper's answer: 0 and a pidfd, or an errno
ANSWER = struct.Struct("=i")
#: with a command: milliseconds until its deadline; 0: it has none
DEADLINE = struct.Struct("=Q")
#: a parked machine's answer to its command: it is the sandbox that was asked for
TAKEN = b"\1"
#: seconds in which a keeper has seen that its owner is gone
PATIENCE = 5.0


class Keeper(Closing):
    """The process that a pool's machines are forked from.

    It is started by the first :meth:`park`, and again if it is gone; it ends with this object,
    and with this process.  Its machines end by themselves.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._control: socket.socket | None = None
        self._process: subprocess.Popen[bytes] | None = None
        _living.add(self)

    def park(self, fds: Sequence[int]) -> int:
        """Have a machine made.

        Arguments:
            fds: see :class:`cowork_nsrun.guest.keep.Place`.

        Returns:
            A pidfd of the process that stands for it, the caller's to close.

        Raises:
            NsrunError: no process can be made.
        """
        with self._lock:
            control = self._control or self._start()
            try:
                socket.send_fds(control, [b"\0"], list(fds))
                data, given, _, _ = socket.recv_fds(
                    control, ANSWER.size, 1, socket.MSG_CMSG_CLOEXEC
                )
            except OSError:
                data, given = b"", []
            if len(data) != ANSWER.size:
                raise NsrunError(f"nsrun vm keep ended with status {self._end()}")
        (number,) = ANSWER.unpack(data)
        if number or not given:
            raise NsrunError(f"nsrun vm keep can't fork: {os.strerror(number)}", errno=number)
        return given[0]

    def _start(self) -> socket.socket:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            with theirs:
                self._process = subprocess.Popen(
                    [find_program(), "vm", "keep", "--control-fd", str(theirs.fileno())],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    pass_fds=[theirs.fileno()],
                    start_new_session=True,
                )
        except BaseException:
            ours.close()
            raise
        self._control = ours
        return ours

    def _end(self) -> int:
        control, self._control = self._control, None
        process, self._process = self._process, None
        if control is not None:
            control.close()
        if process is None:
            return 0
        try:
            return process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()
            return process.wait()

    def close(self) -> None:
        """End it, and wait for its end; machines that have a command go on."""
        with self._lock:
            self._end()

    def forget(self) -> None:
        """In a forked copy of the program: a copy of our end would keep it alive."""
        if self._control is not None:
            self._control.close()


_living: weakref.WeakSet[Keeper] = weakref.WeakSet()


def _after_fork() -> None:
    for keeper in list(_living):
        keeper.forget()


os.register_at_fork(after_in_child=_after_fork)


class ParkedMachine(MachineChild):
    """A machine that waits for its command; its process is a child of the keeper's."""

    def __init__(self) -> None:
        super().__init__()
        self._line: socket.socket | None = None
        self._killed = False

    def start_parked(self, plan: Plan, keeper: Keeper) -> None:
        """Have it made.

        Raises:
            NsrunError: not at all.
        """
        outlet = plan.number(Number.LISTEN_FD)
        if any(fd != outlet for fd in plan.fds):
            raise NsrunError("a pool of microVMs has none of the caller's descriptors")
        try:
            with self._ends(plan) as ends, ExitStack() as theirs:
                self._line, line = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
                theirs.enter_context(line)
                here = os.open(".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
                theirs.callback(os.close, here)
                fds = [*ends, line.fileno(), here]
                self._pidfd = keeper.park(fds if outlet < 0 else [*fds, outlet])
        except OSError as error:
            self.close()
            raise NsrunError(f"can't make a microVM: {error}", errno=error.errno or 0) from error
        except BaseException:
            self.close()
            raise

    @property
    def parked(self) -> bool:
        """Waits for its command."""
        return self._pid > 0

    def hand(
        self, command: _native.Plan, stdio: tuple[int, int, int], deadline: int | None
    ) -> bool:
        """Give it its command; False if it has to be thrown away."""
        line, self._line = self._line, None
        if line is None:
            return False
        with line:
            try:
                data = plan_file(command.write())
                try:
                    socket.send_fds(line, [DEADLINE.pack(deadline or 0)], [data, *stdio])
                finally:
                    os.close(data)
                return line.recv(len(TAKEN)) == TAKEN
            except OSError:
                return False

    def _code(self) -> int:
        return -signal.SIGKILL

    def _check_end(self) -> None:
        if not self._killed:
            raise NsrunError("the process that stands for the command is gone")

    def signal(self, number: int) -> bool:
        """SIGKILL ends the machine; another signal goes to every process of the command."""
        self._killed |= number == signal.SIGKILL
        return super().signal(number)

    def close(self) -> None:
        """End the machine and wait for its process's end."""
        if self._pidfd >= 0 and self.signal(signal.SIGKILL):
            poller = select.poll()
            poller.register(self._pidfd, select.POLLIN)
            poller.poll()
        self.forget()

    def forget(self) -> None:
        """Give the descriptors back, and kill nothing."""
        super().forget()
        if self._line is not None:
            self._line.close()
            self._line = None
