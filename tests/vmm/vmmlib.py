"""Start nsrun-vmm with small guests, and talk to it."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import struct
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

import pytest

HERE = Path(__file__).parent
VMM = Path(sys.executable).parent / "nsrun-vmm"
SOURCES = HERE.parents[1] / "csrc" / "vmm"
PART_FLAGS = (
    *("-std=c17", "-D_GNU_SOURCE", "-O1", "-Wall", "-Wextra", "-Wno-unused-result", "-pthread"),
)
GUEST_FLAGS = (
    *("-std=gnu17", "-O2", "-Wall", "-Wextra", "-Wshadow", "-Werror"),
    *("-ffreestanding", "-nostdlib", "-static", "-no-pie", "-fno-pie", "-mgeneral-regs-only"),
    *("-fno-stack-protector", "-fcf-protection=none", "-mno-red-zone", "-fno-builtin"),
    *("-fno-tree-loop-distribute-patterns", "-Wl,-Ttext-segment=0x200000", "-Wl,--build-id=none"),
)
#: bytes: type, port, value
RECORD = struct.Struct("=IIQ")
CONNECT, LISTEN, UNLISTEN, PAUSE, RESUME, EXPORTS = range(1, 7)
RUNNING, CONNECTED, REFUSED, ACCEPTED, PAUSED, RESUMED, ENDED = range(65, 72)
EXPORTED, NOT_EXPORTED = 72, 73
#: seconds after which a monitor counts as hung, far more than any takes
HANG = 120


def compile_guest(name: str, directory: Path) -> Path:
    """The ELF of guests/NAME.c."""
    built = directory / name
    sources = [HERE / "guests" / part for part in ("start.S", "guest.c", f"{name}.c")]
    subprocess.run(["gcc", *GUEST_FLAGS, *map(str, sources), "-o", str(built)], check=True)
    return built


def build_part(
    name: str,
    parts: tuple[str, ...],
    tmp_path_factory: pytest.TempPathFactory,
    lack: Callable[[str], NoReturn],
) -> Path:
    """tests/vmm/NAME.c with these files of the monitor's."""
    compiler = next((name for name in ("musl-gcc", "gcc") if shutil.which(name)), None)
    if compiler is None:
        lack("the jail: no C compiler")
    built = tmp_path_factory.mktemp("jail") / name
    machine = subprocess.run(
        ["gcc", "-print-multiarch"], capture_output=True, text=True, check=True
    ).stdout.strip()
    headers = ["-idirafter", "/usr/include", "-idirafter", f"/usr/include/{machine}"]
    own = (HERE / f"{name}.c", HERE / "fail.c")
    sources = [*map(str, own), *(str(SOURCES / f"{part}.c") for part in parts)]
    command = [
        compiler,
        *PART_FLAGS,
        "-static",
        f"-I{SOURCES}",
        *headers,
        *sources,
        "-o",
        str(built),
    ]
    subprocess.run(command, check=True)
    return built


@dataclass(frozen=True)
class Record:
    type: int
    port: int = 0
    value: int = 0


@dataclass(frozen=True)
class Ended:
    """How a monitor ended, and all that it said."""

    status: int
    console: str
    stderr: str
    records: tuple[Record, ...]

    @property
    def lines(self) -> list[str]:
        return self.console.splitlines()


@dataclass
class Monitor:
    """A running monitor; its console goes to a file."""

    process: subprocess.Popen[bytes]
    control: socket.socket
    console: Path
    records: list[Record] = field(default_factory=list)

    def send(self, kind: int, port: int = 0, value: int = 0, fds: Sequence[int] = ()) -> None:
        socket.send_fds(self.control, [RECORD.pack(kind, port, value)], list(fds))

    def receive(self) -> Record | None:
        """The next record; None at the end."""
        data = self.control.recv(64)
        if not data:
            return None
        self.records.append(Record(*RECORD.unpack(data)))
        return self.records[-1]

    def expect(self, kind: int) -> Record:
        record = self.receive()
        assert record is not None, self.finish()
        assert record.type == kind
        return record

    def finish(self) -> Ended:
        """Wait for its end."""
        with contextlib.suppress(ConnectionResetError):
            while self.receive():
                pass
        _, stderr = self.process.communicate(timeout=HANG)
        console = self.console.read_bytes().decode(errors="replace")
        return Ended(self.process.returncode, console, stderr.decode(), tuple(self.records))


@contextlib.contextmanager
def monitor(
    kernel: Path,
    *options: str,
    cmdline: str = "",
    initrd: Path | None = None,
    fds: Sequence[int] = (),
) -> Iterator[Monitor]:
    """nsrun-vmm with that kernel; it is killed at the end."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.settimeout(HANG)
    with contextlib.ExitStack() as stack:
        stack.enter_context(ours)
        stack.enter_context(theirs)
        console = stack.enter_context(tempfile.NamedTemporaryFile())
        words = [str(VMM), "--control-fd", str(theirs.fileno())]
        words += ["--console-fd", str(console.fileno()), "--cmdline", cmdline]
        passed = [theirs.fileno(), console.fileno(), *fds]
        for option, path in (("--kernel-fd", kernel), ("--initrd-fd", initrd)):
            if path is not None:
                fd = os.open(path, os.O_RDONLY)
                stack.callback(os.close, fd)
                words += [option, str(fd)]
                passed.append(fd)
        process = subprocess.Popen(
            [*words, *options], pass_fds=passed, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL
        )
        theirs.close()
        stack.callback(process.wait)
        stack.callback(process.kill)
        yield Monitor(process, ours, Path(console.name))
        assert process.stderr is not None
        process.stderr.close()


def run(
    kernel: Path,
    *options: str,
    cmdline: str = "",
    initrd: Path | None = None,
    fds: Sequence[int] = (),
) -> Ended:
    """The same to its end."""
    with monitor(kernel, *options, cmdline=cmdline, initrd=initrd, fds=fds) as machine:
        return machine.finish()
