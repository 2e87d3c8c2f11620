"""The process that removes a program's cgroups when the program no longer can.

It is ``nsrun --tend FD`` (``csrc/cli/tend.c``): told of each cgroup before it is made, it kills
and removes those that are left when its owner is gone, however that happened.  It is nobody's
child, so the owner's ``wait`` for any child never sees it, and no SIGCHLD comes of it.
"""

from __future__ import annotations

import logging
import os
import select
import signal
import socket
import subprocess
from collections.abc import Iterable
from contextlib import suppress

from cowork_nsrun.errors import NsrunError

log = logging.getLogger(__name__)

PATIENCE = 10.0
HELLO = b"!"
PATHS_PER_RECORD = 8


class Janitor:
    """One such process.  Not for several threads at once.

    Arguments:
        program: the nsrun program.

    Raises:
        NsrunError: it can't be started.
    """

    def __init__(self, program: str) -> None:
        self._pidfd = -1
        try:
            self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        except OSError as error:
            raise self._failure(f"socketpair: {error.strerror}", error.errno or 0) from error
        try:
            with theirs:
                self._start(program, theirs.fileno())
            self._meet()
        except BaseException:
            self.close()
            raise

    def _start(self, program: str, fd: int) -> None:
        try:
            with subprocess.Popen(
                [program, "--tend", str(fd)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                pass_fds=[fd],
            ) as process:
                # what was started forks and ends; nobody's child is left
                _, words = process.communicate()
        except OSError as error:
            raise self._failure(f"{program}: {error.strerror}", error.errno or 0) from error
        if words or process.returncode:
            reason = os.fsdecode(words).strip() or f"exit status {process.returncode}"
            raise self._failure(f"{program}: {reason}")

    def _meet(self) -> None:
        # a janitor that is stopped, or has no time, must not stop its owner for good
        self._socket.settimeout(PATIENCE)
        try:
            hello, fds, _, _ = socket.recv_fds(self._socket, 1, 1, socket.MSG_CMSG_CLOEXEC)
        except OSError as error:
            raise self._failure(f"no word from it: {error}", error.errno or 0) from error
        if fds:
            self._pidfd = fds[0]
        if hello != HELLO or not fds:
            raise self._failure("it ended at once")

    @staticmethod
    def _failure(reason: str, number: int = 0) -> NsrunError:
        return NsrunError(
            f"can't start the process that removes cgroups after a crash, {reason}", errno=number
        )

    @property
    def pidfd(self) -> int:
        """A descriptor of the process, pidfd_open(2)."""
        return self._pidfd

    def alive(self) -> bool:
        """Whether it still runs."""
        return not self._ended(0)

    def _ended(self, timeout: float) -> bool:
        poll = select.poll()
        poll.register(self._pidfd, select.POLLIN)
        return bool(poll.poll(timeout * 1000))

    def expect(self, paths: Iterable[str]) -> None:
        """Cgroups that are about to be made.

        Raises:
            OSError: it is gone, or does not take it.
        """
        self._tell(b"+", paths)

    def forget(self, paths: Iterable[str]) -> None:
        """Cgroups that are gone.

        Raises:
            OSError: it is gone, or does not take it.
        """
        self._tell(b"-", paths)

    def _tell(self, word: bytes, paths: Iterable[str]) -> None:
        # in one record what it can hold: each wakes the janitor
        rest = [os.fsencode(path) for path in paths]
        while rest:
            self._socket.send(word + b"\0".join(rest[:PATHS_PER_RECORD]))
            rest = rest[PATHS_PER_RECORD:]

    def kill(self) -> None:
        """End it without its work: another is told of everything that it knew."""
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
        self.close()

    def close(self) -> None:
        """Let it do its work and end, and wait for that some seconds at most."""
        self._socket.close()
        if self._pidfd < 0:
            return
        if not self._ended(PATIENCE):
            log.warning("cgroups: the process that removes them still has some")
        # it is our child after all where we are pid 1 or a subreaper
        with suppress(ChildProcessError):
            os.waitid(os.P_PIDFD, self._pidfd, os.WEXITED | os.WNOHANG)
        self.abandon()

    def abandon(self) -> None:
        """Close the descriptors, and no more: in a fork of the owner they are copies."""
        self.__del__()

    def __del__(self) -> None:
        if self._pidfd >= 0:
            os.close(self._pidfd)
            self._pidfd = -1
        # kept to the owner's last moment, and not forgotten; where it failed there is none
        ours = getattr(self, "_socket", None)
        if ours is not None:
            ours.close()
