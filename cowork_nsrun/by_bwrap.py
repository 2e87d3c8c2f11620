"""A sandbox that an installed bwrap makes, where only that is allowed to.

The ``nsrun`` program puts the plan into bwrap's words, or names what those can't say.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
from contextlib import suppress
from pathlib import Path

from cowork_nsrun import _native
from cowork_nsrun._native import Number, PlanFlag
from cowork_nsrun.errors import NsrunError
from cowork_nsrun.plan import Plan
from cowork_nsrun.program import find_program

CHUNK = 1 << 12
# what this side does instead: it starts bwrap with few descriptors and no ignored signals
OURS = PlanFlag.DEFAULT_SIGNALS | PlanFlag.CLOSE_FDS | PlanFlag.TELL_EXEC


class BwrapChild(_native.Child):
    """As :class:`_native.Child`; what bwrap does not tell stays unknown."""

    def __init__(self) -> None:
        super().__init__()
        self._process: subprocess.Popen[bytes] | None = None
        self._status = self._pidfd = self._init = -1
        self._init_pid = 0
        self._records = b""
        self._code = -1

    def start_bwrap(self, plan: Plan, stdio: tuple[int, int, int]) -> None:
        """Start it.

        Raises:
            NsrunError: not at all.
        """
        self._status, theirs = os.pipe()
        os.set_blocking(self._status, False)
        data = os.memfd_create("nsrun-plan")
        try:
            os.write(data, _for_bwrap(plan, theirs))
            os.lseek(data, 0, os.SEEK_SET)
            self._process = subprocess.Popen(
                [find_program(), "--backend", "bwrap", "--quiet", "--plan", str(data)],
                stdin=stdio[0],
                stdout=stdio[1],
                stderr=stdio[2],
                pass_fds=[data, theirs, *plan.fds],
            )
            self._pidfd = os.pidfd_open(self._process.pid)
        except OSError as error:
            self.close()
            raise NsrunError(f"can't start bwrap: {error}", errno=error.errno or 0) from error
        finally:
            os.close(data)
            os.close(theirs)

    @property
    def fd(self) -> int:
        """Readable when :meth:`read` has something."""
        return self._status if self._status >= 0 else self._pidfd

    def read(self) -> bool:
        """True once the command has ended."""
        if self._status >= 0 and not self._read_records():
            return False
        if self._process is None or self._process.poll() is None:
            return False
        self._code = self._process.returncode
        if b'"exit-code"' not in self._records:
            # its reason is on standard error, where it belongs for a command line
            raise NsrunError(f"bwrap could not run the command, exit status {self._code}")
        return True

    def _read_records(self) -> bool:
        """Take what is there; True at the end."""
        with suppress(BlockingIOError):
            while data := os.read(self._status, CHUNK):
                self._records += data
            os.close(self._status)
            self._status = -1
        if not self._init_pid and b"\n" in self._records:
            self._init_pid = json.loads(self._records.partition(b"\n")[0])["child-pid"]
            with suppress(ProcessLookupError):
                self._init = os.pidfd_open(self._init_pid)
        return self._status < 0

    @property
    def exit_status(self) -> int:
        """0-255; 128+n for signal n."""
        return self._code if self._code >= 0 else 128 - self._code

    @property
    def exec_seen(self) -> bool:
        """Pid 1 is there; bwrap does not tell of the exec."""
        return self._init_pid > 0

    @property
    def spawn_ns(self) -> int | None:
        """Not known."""
        return None

    @property
    def pid(self) -> int:
        """Not known."""
        return 0

    @property
    def usage(self) -> tuple[int, int]:
        """Not known."""
        return 0, 0

    def signal(self, number: int) -> bool:
        """SIGKILL reaches all; another signal the command, which is pid 1's first child."""
        if self._process is None:
            return False
        with suppress(ProcessLookupError):
            if number == signal.SIGKILL:
                target = self._init if self._init >= 0 else self._pidfd
                signal.pidfd_send_signal(target, number)
                return True
            return self._signal_command(number)
        return False

    def _signal_command(self, number: int) -> bool:
        children = Path(f"/proc/{self._init_pid}/task/{self._init_pid}/children")
        try:
            pid = int(children.read_text().split()[0])
            fd = os.pidfd_open(pid)
        except (OSError, IndexError):
            return False
        try:
            # still a child of pid 1, which can't be another process as long as we hold it
            if str(pid) not in children.read_text().split():
                return False
            signal.pidfd_send_signal(fd, number)
        finally:
            os.close(fd)
        return True

    def close(self) -> None:
        """Kill what is left and wait for it."""
        if self._process is not None:
            self.signal(signal.SIGKILL)
            self._process.kill()
            self._process.wait()
            self._process = None
        if self._init >= 0:
            poller = select.poll()
            poller.register(self._init, select.POLLIN)
            poller.poll()
        self.forget()

    def forget(self) -> None:
        """Give the descriptors back, and kill nothing."""
        for fd in (self._status, self._pidfd, self._init):
            if fd >= 0:
                os.close(fd)
        self._status = self._pidfd = self._init = -1


def _for_bwrap(plan: Plan, status: int) -> bytes:
    native = _native.Plan()
    native.read(plan.to_bytes())
    native.set_number(Number.FLAGS, (plan.flags & ~OURS) | PlanFlag.DIE_WITH_PARENT)
    native.set_number(Number.TIMEOUT_MS, 0)
    native.set_number(Number.JSON_STATUS_FD, status)
    return native.write()
