"""Restored and forked machines: rows of ``python -m bench.kvm``.

With the small guest, on any KVM: a fork from the zygote to the guest's next OUT, over a bare
process that restores the same guest (kvmfloor).  With a stock kernel, where KVM runs one: a
restore to the payload's first output over a cold boot to the same, and the memory of a machine
that was restored and waits.
"""

from __future__ import annotations

import json
import os
import select
import socket
import statistics
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
VMM = Path(sys.executable).with_name("nsrun-vmm")
RECORD = struct.Struct("=IIQ")
PAUSE, SAVE, FORK = 4, 7, 32
RUNNING, PAUSED, SAVED, FORKED = 65, 69, 76, 96
#: rounds of one contender before it is another's turn
BATCH = 10


@dataclass(frozen=True)
class Row:
    """Two figures, what their ratio is to be, and the unit of both; without ``over``: a value."""

    name: str
    value: float
    over: float | None
    most: float
    unit: str

    def print(self) -> bool:
        """On one line; whether the target is met."""
        figure = self.value if self.over is None else self.value / self.over
        verdict = "met" if figure <= self.most else "MISSED"
        parts = f"{self.value:.2f} {self.unit}"
        if self.over is not None:
            parts += f" / {self.over:.2f} {self.unit} = {figure:.3f}"
        print(f"{self.name}: {parts}, target {self.most}: {verdict}")
        return figure <= self.most


# --- the small guest ----------------------------------------------------------------------------


def expect(control: socket.socket, kind: int) -> None:
    """The next record, which is of this kind."""
    found = RECORD.unpack(control.recv(64))
    assert found[0] == kind, found


def save_loop(guest: Path, memory: int, path: Path) -> None:
    """Our snapshot of the guest that speaks for ever."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs, guest.open("rb") as kernel, path.open("xb") as file:
        words = [str(VMM), "--kernel-fd", str(kernel.fileno()), "--memory", str(memory)]
        words += ["--control-fd", str(theirs.fileno())]
        process = subprocess.Popen(words, pass_fds=[kernel.fileno(), theirs.fileno()])
        expect(ours, RUNNING)
        ours.send(RECORD.pack(PAUSE, 0, 0))
        expect(ours, PAUSED)
        socket.send_fds(ours, [RECORD.pack(SAVE, 0, 1)], [file.fileno()])
        expect(ours, SAVED)
        process.kill()
        process.wait()


@contextmanager
def zygote(path: Path) -> Iterator[socket.socket]:
    """Its control socket."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, path.open("rb") as state:
        words = [str(VMM), "--restore", str(state.fileno()), "--zygote", str(theirs.fileno())]
        process = subprocess.Popen(words, pass_fds=[state.fileno(), theirs.fileno()])
        theirs.close()
        yield ours
        process.kill()
        process.wait()


def time_fork(mother: socket.socket) -> float:
    """Microseconds from the request to the guest's byte; then the machine is ended."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    reading, writing = os.pipe2(os.O_CLOEXEC)
    os.set_blocking(writing, False)
    begin = time.perf_counter_ns()
    socket.send_fds(mother, [RECORD.pack(FORK, 0, 1)], [theirs.fileno(), writing, 2])
    theirs.close()
    os.close(writing)
    byte = os.read(reading, 1)
    taken = (time.perf_counter_ns() - begin) / 1000
    assert byte == b"\n"
    _, [pidfd], _, _ = socket.recv_fds(mother, 64, 1)
    ours.close()
    os.close(reading)
    select.select([pidfd], [], [])
    os.close(pidfd)
    return taken


def time_floor(directory: Path, memory: int, rounds: int) -> list[float]:
    """The same of bare processes that restore, in microseconds."""
    restore = [str(directory / "kvmfloor"), "-", str(memory), str(directory / "floor.state")]
    timer = [str(directory / "spawn_timer"), "-o", "-n", str(rounds), "-w", "1", "--", *restore]
    ran = subprocess.run(timer, check=True, stdout=subprocess.PIPE, text=True)
    return [value / 1000 for value in json.loads(ran.stdout)["output_ns"]]


def small_rows(directory: Path, memory: int, rounds: int) -> list[Row]:
    """Forks, in turn with the floor.  ``directory`` has kvmfloor and spawn_timer."""
    loop = directory / "loop"
    link = ("-nostdlib", "-static", "-no-pie", "-Wl,-Ttext-segment=0x200000,--build-id=none")
    subprocess.run(["gcc", *link, str(HERE / "kvmloop.S"), "-o", str(loop)], check=True)
    floor = [str(directory / "kvmfloor"), str(loop), str(memory), str(directory / "floor.state")]
    subprocess.run(floor, check=True)
    save_loop(loop, memory, directory / "ours.state")
    forks: list[float] = []
    floors: list[float] = []
    with zygote(directory / "ours.state") as mother:
        time_fork(mother)
        for _ in range(max(1, rounds // BATCH)):
            forks += [time_fork(mother) for _ in range(min(rounds, BATCH))]
            floors += time_floor(directory, memory, min(rounds, BATCH))
    return [Row("fork / floor's restore", statistics.median(forks), statistics.median(floors),
                1.2, "us")]  # fmt: skip


# --- a stock kernel -----------------------------------------------------------------------------


def stock_rows(rounds: int) -> list[Row]:
    """Of kvmstock.py, which uses the installed package: nothing where KVM runs no stock kernel."""
    command = [sys.executable, str(HERE / "kvmstock.py"), str(rounds)]
    ran = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return [Row(**json.loads(line)) for line in ran.stdout.splitlines()]
