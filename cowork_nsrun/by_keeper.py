"""A pool's microVMs: machines that are ready, and wait for their commands.

One process of the pool's, ``nsrun vm keep``, has them made and holds them.  From the command on a
process stands for it as ``nsrun vm exec`` does, with the same two pipes.
"""

from __future__ import annotations

import errno
import os
import select
import signal
import socket
import struct
import subprocess
import threading
import weakref
from collections.abc import Mapping, Sequence
from contextlib import ExitStack

from cowork_nsrun import _native
from cowork_nsrun._native import Number
from cowork_nsrun.by_machine import MachineChild, plan_file
from cowork_nsrun.closing import Closing
from cowork_nsrun.errors import NsrunError
from cowork_nsrun.plan import Plan
from cowork_nsrun.program import find_program

#: with a command: milliseconds until its deadline, and the bytes of memory, processes and
#: processors that its guest holds it to; 0: no limit
TERMS = struct.Struct("=QQQd")
#: the answer to a command, with a pidfd: the pid of the process that stands for it from now on
TAKEN = struct.Struct("=i")
#: what is asked for: a machine that waits for its command, and one whose program waits, too
COLD, WARM = b"\0", b"\1"
#: bytes of a command, as a plan, for a program that waits: it is told in one packet
LARGEST = 60 << 10
#: seconds in which a keeper has seen that its owner is gone
PATIENCE = 5.0


class Keeper(Closing):
    """The process that holds a pool's machines.

    It is started by the first :meth:`park`, and again if it is gone; it ends with this object,
    and with this process.  Machines that wait end with it, those with a command do not.

    Arguments:
        warm: the command of a parked plan is a program that does its start ahead.
    """

    def __init__(self, *, warm: bool = False) -> None:
        self.warm = warm
        self._lock = threading.Lock()
        self._control: socket.socket | None = None
        self._process: subprocess.Popen[bytes] | None = None
        _living.add(self)

    def park(self, fds: Sequence[int]) -> None:
        """Have a machine made; what comes of it is told by the status pipe among these.

        Arguments:
            fds: see :class:`cowork_nsrun.guest.keep.Place`.

        Raises:
            NsrunError: the process ends at once.
            OSError: it can't be started, or the request can't be sent.
        """
        with self._lock:
            if self._control is not None and self._send(self._control, fds):
                return
            self._end()
            if not self._send(self._start(), fds):
                raise NsrunError(f"nsrun vm keep ended with status {self._end()}")

    def _send(self, control: socket.socket, fds: Sequence[int]) -> bool:
        """False if nobody is there any more."""
        try:
            socket.send_fds(control, [WARM if self.warm else COLD], list(fds))
        except (BrokenPipeError, ConnectionResetError):
            return False
        return True

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
    """A machine that waits for its command; a process stands for it once that has come."""

    def __init__(self) -> None:
        super().__init__()
        self._line: socket.socket | None = None
        self._limits: Mapping[str, float] = {}
        self._killed = False
        self._most = 0

    def start_parked(self, plan: Plan, keeper: Keeper, limits: Mapping[str, float]) -> None:
        """Have it made.

        Arguments:
            limits: as for :meth:`MachineChild.start_machine`.

        Raises:
            NsrunError: not at all.
        """
        self._limits = limits
        self._most = LARGEST if keeper.warm else 0
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
                keeper.park(fds if outlet < 0 else [*fds, outlet])
        except OSError as error:
            self.close()
            raise NsrunError(f"can't make a microVM: {error}", errno=error.errno or 0) from error
        except BaseException:
            self.close()
            raise

    @property
    def parked(self) -> bool:
        """Waits for its command."""
        return self._parked

    @property
    def cold(self) -> str:
        """Why no program waits in it, though one was to; "": one does, or none was."""
        return self._cold

    def _terms(self, deadline: int | None) -> bytes:
        limits = self._limits
        whole = (int(limits.get(name, 0)) for name in ("memory", "pids"))
        return TERMS.pack(deadline or 0, *whole, limits.get("cpu", 0))

    def hand(
        self, command: _native.Plan, stdio: tuple[int, int, int], deadline: int | None = None
    ) -> bool:
        """Give it its command; False if it has to be thrown away.

        Raises:
            NsrunError: it is too large, E2BIG.
        """
        words = command.write()
        if self._most and len(words) > self._most:
            text = f"a command of {len(words)} bytes; a program that waits gets {self._most}"
            raise NsrunError(text, errno=errno.E2BIG)
        line, self._line = self._line, None
        if line is None:
            return False
        try:
            with line:
                data = plan_file(words)
                try:
                    socket.send_fds(line, [self._terms(deadline)], [data, *stdio])
                finally:
                    os.close(data)
                said, given, _, _ = socket.recv_fds(line, TAKEN.size, 1, socket.MSG_CMSG_CLOEXEC)
        except OSError:
            return False
        if len(said) != TAKEN.size or not given:
            return False
        (self._pid,) = TAKEN.unpack(said)
        self._pidfd = given[0]
        return True

    def _over(self) -> bool:
        return self._pidfd < 0 or super()._over()

    def _code(self) -> int:
        return -signal.SIGKILL

    def _check_end(self) -> None:
        if not self._killed:
            raise NsrunError("the process that stands for the command is gone")

    def signal(self, number: int) -> bool:
        """SIGKILL ends the machine; another signal goes to every process of the command."""
        self._killed |= number == signal.SIGKILL
        if self._pidfd >= 0:
            return super().signal(number)
        if number == signal.SIGKILL:
            self._let_go()
        return self._status >= 0

    def _let_go(self) -> None:
        """Who makes it or holds it sees that, and ends it."""
        if self._life >= 0:
            os.close(self._life)
            self._life = -1
        if self._line is not None:
            self._line.close()
            self._line = None

    def close(self) -> None:
        """End the machine, and wait for the end of the process that stands for its command."""
        if self.signal(signal.SIGKILL) and self._pidfd >= 0:
            poller = select.poll()
            poller.register(self._pidfd, select.POLLIN)
            poller.poll()
        self.forget()

    def forget(self) -> None:
        """Give the descriptors back, and kill nothing."""
        self._let_go()
        super().forget()
