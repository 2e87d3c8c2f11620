"""Save machines, and restore or fork them."""

from __future__ import annotations

import contextlib
import itertools
import os
import select
import socket
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from vmmlib import HANG, PAUSE, PAUSED, RECORD, VMM, Monitor, Record

SAVE, FORK = 7, 32
SAVED, NOT_SAVED = 76, 77
FORKED, NOT_FORKED = 96, 97
_cookies = itertools.count(1)


def save(machine: Monitor, file: BinaryIO) -> Record:
    """The answer to SAVE, which is not checked."""
    cookie = next(_cookies)
    machine.send(SAVE, 0, cookie, [file.fileno()])
    answer = machine.receive()
    assert answer is not None, machine.finish()
    assert answer.type in (SAVED, NOT_SAVED)
    assert answer.value == cookie
    return answer


def saved(machine: Monitor, path: Path) -> Path:
    """Pause it and save it to a new file."""
    machine.send(PAUSE)
    machine.expect(PAUSED)
    with path.open("xb") as file:
        assert save(machine, file) == Record(SAVED, 0, machine.records[-1].value)
    return path


@contextlib.contextmanager
def restored(file: Path, *options: str, fds: Sequence[int] = ()) -> Iterator[Monitor]:
    """nsrun-vmm that restores this file; it is killed at the end."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.settimeout(HANG)
    with ours, theirs, tempfile.NamedTemporaryFile() as console, file.open("rb") as state:
        words = [str(VMM), "--restore", str(state.fileno()), "--control-fd", str(theirs.fileno())]
        words += ["--console-fd", str(console.fileno()), *options]
        process = subprocess.Popen(
            words,
            pass_fds=[state.fileno(), theirs.fileno(), console.fileno(), *fds],
            stderr=subprocess.PIPE,
            stdin=subprocess.DEVNULL,
        )
        theirs.close()
        try:
            yield Monitor(process, ours, Path(console.name))
        finally:
            process.kill()
            process.wait()
            assert process.stderr is not None
            process.stderr.close()


@dataclass
class Clone:
    """A monitor that a zygote forked."""

    pid: int
    pidfd: int
    control: socket.socket
    console: Path
    messages: Path
    records: list[Record] = field(default_factory=list)

    def receive(self) -> Record | None:
        data = self.control.recv(64)
        if not data:
            return None
        self.records.append(Record(*RECORD.unpack(data)))
        return self.records[-1]

    def expect(self, kind: int) -> Record:
        record = self.receive()
        assert record is not None
        assert record.type == kind
        return record

    def wait(self) -> None:
        """Until its process is gone."""
        assert select.select([self.pidfd], [], [], HANG)[0]

    def close(self) -> None:
        self.control.close()
        self.wait()
        os.close(self.pidfd)


@dataclass
class Zygote:
    process: subprocess.Popen[bytes]
    control: socket.socket
    directory: Path

    def fork(self, cid: int = 0) -> Clone:
        cookie = next(_cookies)
        console, messages = (self.directory / f"{name}-{cookie}" for name in ("console", "errors"))
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.settimeout(HANG)
        with theirs, console.open("xb") as out, messages.open("xb") as err:
            fds = [theirs.fileno(), out.fileno(), err.fileno()]
            socket.send_fds(self.control, [RECORD.pack(FORK, cid, cookie)], fds)
        data, [pidfd], _, _ = socket.recv_fds(self.control, 64, 1)
        kind, pid, answered = RECORD.unpack(data)
        assert (kind, answered) == (FORKED, cookie)
        return Clone(pid, pidfd, ours, console, messages)


@contextlib.contextmanager
def zygote(file: Path, directory: Path, *options: str, fds: Sequence[int] = ()) -> Iterator[Zygote]:
    """A zygote of this file; it is killed at the end, but not what it forked."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.settimeout(HANG)
    with ours, theirs, file.open("rb") as state:
        words = [str(VMM), "--restore", str(state.fileno()), "--zygote", str(theirs.fileno())]
        process = subprocess.Popen(
            [*words, *options],
            pass_fds=[state.fileno(), theirs.fileno(), *fds],
            stderr=subprocess.PIPE,
            stdin=subprocess.DEVNULL,
        )
        theirs.close()
        try:
            yield Zygote(process, ours, directory)
        finally:
            process.kill()
            process.wait()
            assert process.stderr is not None
            process.stderr.close()
