"""A sandbox in a microVM of its own: ``nsrun vm exec`` is a process of this one's.

What it tells of the command comes as JSON lines; signals go to it by a pipe, whose end ends
the machine.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

from cowork_nsrun import _native
from cowork_nsrun._native import PlanFlag
from cowork_nsrun.errors import NsrunError
from cowork_nsrun.limits import CgroupUsage
from cowork_nsrun.plan import Plan
from cowork_nsrun.program import find_program

CHUNK = 1 << 12
# what this side does instead: it starts the machine with few descriptors and no ignored signals
OURS = PlanFlag.DEFAULT_SIGNALS | PlanFlag.CLOSE_FDS | PlanFlag.TELL_EXEC | PlanFlag.PARKED


class MachineChild(_native.Child):
    """As :class:`_native.Child`; pids are the guest's, and so not told."""

    def __init__(self) -> None:
        super().__init__()
        self._process: subprocess.Popen[bytes] | None = None
        self._status = self._life = self._pidfd = -1
        self._heard = b""
        self._started = self._parked = False
        self._cold = ""
        self._pid = 0
        self._ending: dict[str, Any] = {}

    def start_machine(
        self, plan: Plan, stdio: tuple[int, int, int], limits: Mapping[str, float]
    ) -> None:
        """Start it.

        Arguments:
            limits: ``memory``, ``pids``, ``cpu``: what the guest holds the command to.

        Raises:
            NsrunError: not at all.
        """
        try:
            with self._ends(plan) as (data, status, life):
                words = ["--plan", data, "--status-fd", status, "--life-fd", life]
                words += [word for name in limits for word in (f"--{name}", limits[name])]
                self._process = subprocess.Popen(
                    [find_program(), "vm", "exec", *map(str, words)],
                    stdin=stdio[0],
                    stdout=stdio[1],
                    stderr=stdio[2],
                    pass_fds=[data, status, life, *plan.fds],
                    start_new_session=True,
                )
                self._pid = self._process.pid
                self._pidfd = os.pidfd_open(self._pid)
        except OSError as error:
            self.close()
            raise NsrunError(f"can't start a microVM: {error}", errno=error.errno or 0) from error

    @contextmanager
    def _ends(self, plan: Plan) -> Iterator[tuple[int, int, int]]:
        """Make both pipes; the other ends, behind a file with the plan, for this block."""
        with ExitStack() as theirs:
            self._status, status = os.pipe()
            theirs.callback(os.close, status)
            life, self._life = os.pipe()
            theirs.callback(os.close, life)
            os.set_blocking(self._status, False)
            data = plan_file(_for_machine(plan))
            theirs.callback(os.close, data)
            yield data, status, life

    @property
    def fd(self) -> int:
        """Readable when :meth:`read` has something."""
        return self._status if self._status >= 0 else self._pidfd

    @property
    def exec_fd(self) -> int:
        """Not told."""
        return -1

    def read(self) -> bool:
        """True once the command has ended.

        Raises:
            NsrunError: it could not be run, or the machine died.
        """
        if self._status >= 0 and not self._read_records():
            return False
        if not self._over():
            return False
        if "error" in self._ending:
            raise NsrunError(
                self._ending["error"],
                step=self._ending["step"],
                path=self._ending["path"],
                errno=self._ending["errno"],
            )
        if "exit" not in self._ending:
            self._check_end()
        return True

    def _over(self) -> bool:
        """The process that stands for the command has ended."""
        poller = select.poll()
        poller.register(self._pidfd, select.POLLIN)
        return bool(poller.poll(0))

    def _code(self) -> int:
        """How it ended, as Popen has it."""
        return 0 if self._process is None else self._process.wait()

    def _check_end(self) -> None:
        """Raise if it ended for no reason that is known."""
        if self._code() >= 0:
            raise NsrunError(f"the microVM ended with status {self._code()}")

    def _read_records(self) -> bool:
        """Take what is there; True at the end."""
        with suppress(BlockingIOError):
            while data := os.read(self._status, CHUNK):
                self._heard += data
            os.close(self._status)
            self._status = -1
        *lines, self._heard = self._heard.split(b"\n")
        for line in lines:
            record = json.loads(line)
            if "started" in record:
                self._started = True
            elif "parked" in record:
                self._parked = True
                self._cold = record.get("cold", "")
            else:
                self._ending = record
        return self._status < 0

    @property
    def exit_status(self) -> int:
        """0-255; 128+n for signal n."""
        if "exit" in self._ending:
            return int(self._ending["exit"])
        code = self._code()
        return code if code >= 0 else 128 - code

    @property
    def timed_out(self) -> bool:
        """Its deadline ended it."""
        return bool(self._ending.get("timed_out"))

    @property
    def exec_seen(self) -> bool:
        """The command has been started."""
        return self._started

    @property
    def spawn_ns(self) -> int | None:
        """Not known."""
        return None

    @property
    def pid(self) -> int:
        """Of the process that stands for the command: what it is in the guest means nothing."""
        return self._pid if self._started else 0

    @property
    def usage(self) -> tuple[int, int]:
        """Of the command alone, as its guest counts it."""
        return int(self._ending.get("cpu_ns", 0)), int(self._ending.get("peak", 0))

    @property
    def counted(self) -> CgroupUsage | None:
        """What the command's cgroup in the guest counted; None: the machine was ended first."""
        if "exit" not in self._ending:
            return None
        cpu_ns, peak = self.usage
        refused = self._ending["pids_refused"]
        return CgroupUsage(cpu_ns, peak or None, self._ending["oom_kills"], refused)

    def signal(self, number: int) -> bool:
        """SIGKILL ends the machine; another signal goes to every process of the command."""
        if self._pidfd < 0 or self._over():
            return False
        try:
            if number == signal.SIGKILL:
                signal.pidfd_send_signal(self._pidfd, number)
            else:
                os.write(self._life, bytes([number]))
        except (BrokenPipeError, ProcessLookupError):
            return False
        return True

    def close(self) -> None:
        """End the machine and wait for it."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None
        self.forget()

    def forget(self) -> None:
        """Give the descriptors back, and kill nothing."""
        for fd in (self._status, self._life, self._pidfd):
            if fd >= 0:
                os.close(fd)
        self._status = self._life = self._pidfd = -1


def plan_file(data: bytes) -> int:
    """A memory file with a plan's bytes, to be read; the caller's to close.

    Raises:
        OSError: there is no memory, or no descriptor.
    """
    fd = os.memfd_create("nsrun-plan")
    try:
        left = memoryview(data)
        while left:
            left = left[os.write(fd, left) :]
        os.lseek(fd, 0, os.SEEK_SET)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _for_machine(plan: Plan) -> bytes:
    native = _native.Plan()
    native.read(plan.to_bytes())
    native.set_number(_native.Number.FLAGS, plan.flags & ~OURS)
    return native.write()
