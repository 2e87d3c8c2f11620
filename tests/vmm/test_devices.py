"""The monitor's devices, driven by small guests: good drivers and bad ones."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from vmmlib import run

Guest = Callable[[str], Path]
SECTOR = 512
RESET = "needs a reset"
#: what a driver did -> what became of the device
HOSTILE = {
    "loop": RESET,
    "long loop": RESET,
    "outside": RESET,
    "past the end": RESET,
    "wrapping": RESET,
    "huge": RESET,
    "next outside the table": RESET,
    "head outside the table": RESET,
    "readable behind writable": RESET,
    "empty buffer": "served",
    "table": "served",
    "table of no entry": RESET,
    "table of half an entry": RESET,
    "table too large": RESET,
    "table outside": RESET,
    "table with a next": RESET,
    "table in a table": RESET,
    "loop in a table": RESET,
    "next outside its table": RESET,
    "index too far": RESET,
    "queue good": "ready 1, fine",
    "queue of none": f"ready 0, {RESET}",
    "queue of three": f"ready 0, {RESET}",
    "queue too large": f"ready 0, {RESET}",
    "queue misplaced": f"ready 0, {RESET}",
    "queue misplaced avail": f"ready 0, {RESET}",
    "queue misplaced used": f"ready 0, {RESET}",
    "queue outside": f"ready 0, {RESET}",
    "queue avail outside": f"ready 0, {RESET}",
    "queue used outside": f"ready 0, {RESET}",
    "queue wrapping": f"ready 0, {RESET}",
    "status at once": "f",
    "status no acknowledge": "0",
    "status ok alone": "0",
    "status no features": "3",
    "status backwards": "b",
    "status unknown bits": "3",
    "status failed": "8b",
    "status own reset": "b",
    "no such queue": "ready 0",
}


def test_serial_port(guest: Guest) -> None:
    ended = run(guest("uart"))
    assert ended.lines == [
        "scratch 5a",
        "divisor 34 12",
        "ier 0 lcr 3",
        "loop 90, else b0, lsr 60",
        "no fifo 1",
        "fifo c1",
        "x",
        "interrupts 1 2, why c2 then c1",
        "nothing there: ff",
    ]


def disk(path: Path) -> bytes:
    """Nine sectors, each full of its number, and a rest that is none."""
    data = b"".join(bytes([number]) * SECTOR for number in range(1, 10))
    path.write_bytes(data + b"rest")
    return data + b"rest"


def test_good_drivers(guest: Guest, tmp_path: Path) -> None:
    names = ("raw", "read-only", "base")
    before = [disk(tmp_path / name) for name in names]
    with (
        (tmp_path / "raw").open("r+b") as raw,
        (tmp_path / "read-only").open("rb") as read_only,
        (tmp_path / "base").open("rb") as base,
        (tmp_path / "overlay").open("w+b") as overlay,
    ):
        files = (raw, read_only, base, overlay)
        fds = [file.fileno() for file in files]
        options = ["--rng", "--blk", f"{fds[0]}", "--blk", f"{fds[1]}:ro"]
        options += ["--blk", f"{fds[2]}:cow={fds[3]}"]
        ended = run(guest("devices"), *options, fds=fds)
    assert (ended.status, ended.stderr) == (0, "")
    transport = "magic 74726976 version 2 features"
    written = ["write 0, read 0: 2 41 4, flush 0", "id 0: nsrun"]
    refused = ["write 1, read 0: 2 3 4, flush 0", "id 0: nsrun"]
    first = "disk of 9 sectors: read 0: 2 3"
    edges = "last 0, behind 1, far 1, wrapping 1, odd 1, unknown 2"
    assert ended.lines == [
        f"device 4: {transport} 130000000 no queue 0 shm ffffffff",
        *(
            f"rng {how}: state f, random, chain 1 of 8 bytes, 1 interrupts, pending 0"
            for how in ("plain", "events", "indirect")
        ),
        f"device 2: {transport} 130000204 no queue 0 shm ffffffff",
        *(first, *written, edges),
        f"device 2: {transport} 130000224 no queue 0 shm ffffffff",
        *(first, *refused, edges),
        f"device 2: {transport} 130000204 no queue 0 shm ffffffff",
        *(first, *written, edges),
    ]
    changed = before[0][: 2 * SECTOR] + b"A" * SECTOR + before[0][3 * SECTOR :]
    assert (tmp_path / "raw").read_bytes() == changed
    assert [(tmp_path / name).read_bytes() for name in names[1:]] == before[1:]
    assert (tmp_path / "overlay").read_bytes() == changed[:4096]


@pytest.mark.parametrize("content", [b"x", b"\0" * 4096])
def test_an_overlay_has_to_be_empty(guest: Guest, tmp_path: Path, content: bytes) -> None:
    disk(tmp_path / "base")
    (tmp_path / "overlay").write_bytes(content)
    with (tmp_path / "base").open("rb") as base, (tmp_path / "overlay").open("r+b") as overlay:
        fds = [base.fileno(), overlay.fileno()]
        ended = run(guest("hello"), "--blk", f"{fds[0]}:cow={fds[1]}", fds=fds)
    assert ended.status == 1
    assert "must be empty" in ended.stderr


def test_bad_drivers(guest: Guest, tmp_path: Path) -> None:
    """After whatever it does, the device is reset and serves it; all within one machine."""
    disk(tmp_path / "disk")
    with (tmp_path / "disk").open("r+b") as image:
        options = ["--rng", "--vsock", "3", "--blk", str(image.fileno()), "--memory", "512"]
        ended = run(guest("hostile"), *options, fds=[image.fileno()])
    assert ended.status == 0, ended.stderr
    found = dict(re.findall(r"^(.+?): (.*), works$", ended.console, re.MULTILINE))
    assert found == HOSTILE
    assert ended.lines[-2:] == ["garbage: works", "nonsense: works"]
    assert {"features of none: 3", "features unknown: 3"} <= set(ended.lines)
    assert "DEAD" not in ended.console
    # one line a device, however often it is broken
    assert 1 <= ended.stderr.count("broke the rules") <= 3
