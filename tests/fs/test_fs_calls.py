"""How many system calls of the host's a request costs: none more than it did."""

from __future__ import annotations

import os
import re
import shutil
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import pytest
import rawfuse
from fslib import build
from rawfuse import ROOT, raw

from cowork_nsrun.guest.view import Export

READ = struct.Struct("<QQIIQII")


@pytest.fixture
def traced(tmp_path: Path, lack: Callable[[str], NoReturn]) -> Path:
    """The driver under strace, which writes to "trace" beside it."""
    if not shutil.which("strace"):
        lack("no strace: the file server's system calls are not counted")
    built = build("driver", tmp_path, "none")
    script = tmp_path / "traced"
    script.write_text(f'#!/bin/sh\nexec strace -o {tmp_path}/trace {built} "$@"\n')
    script.chmod(0o755)
    tried = subprocess.run(["strace", "-o", "/dev/null", "true"], check=False, capture_output=True)
    if tried.returncode != 0:
        lack("strace may not trace: the file server's system calls are not counted")
    return script


def calls(trace: Path) -> list[list[str]]:
    """By request: what was called between its arrival and its reply."""
    found: list[list[str]] = []
    for line in trace.read_text().splitlines():
        match = re.match(r"(\w+)\((\d*)", line)
        if match is None:
            continue
        name, first = match[1], match[2]
        if name == "read" and first == "0":
            found.append([])
        elif name == "write" and first == "1":
            continue
        elif found and name not in ("brk", "mmap", "munmap", "madvise", "mremap"):
            found[-1].append(name)
    return found


def test_calls_of_each_request(traced: Path, tmp_path: Path) -> None:
    host = tmp_path / "host"
    (host / "d").mkdir(parents=True)
    for number in range(20):
        (host / "d" / f"f{number}").write_bytes(b"x" * 5000)
    wanted: list[tuple[str, list[str]]] = []
    with raw(traced, [Export(str(host))]) as client:
        top = client.lookup(ROOT, "0").node
        directory = client.lookup(top, "d").node
        wanted += [("LOOKUP of an export", ["statx"]), ("LOOKUP", ["statx"])]

        file = client.lookup(directory, "f1").node
        wanted.append(("LOOKUP, its directory opened", ["openat", "statx", "statx"]))
        client.lookup(directory, "f2")
        wanted.append(("LOOKUP", ["statx"]))
        client.request(rawfuse.GETATTR, file, bytes(16))
        wanted.append(("GETATTR", ["statx"]))
        handle = client.open(file).node
        wanted.append(("OPEN, first", ["openat", "statx", "openat"]))
        again = client.open(file).node
        wanted.append(("OPEN", ["openat"]))
        client.request(rawfuse.READ, file, READ.pack(handle, 0, 5000, 0, 0, 0, 0))
        wanted.append(("READ", ["preadv"]))
        client.request(rawfuse.FLUSH, file, struct.pack("<QIIQ", handle, 0, 0, 0))
        wanted.append(("FLUSH", []))
        client.request(rawfuse.RELEASE, file, struct.pack("<QIIQ", again, 0, 0, 0))
        wanted.append(("RELEASE", ["close"]))
        client.create(directory, "new")
        # root's set-id bits cost nothing here: the file is new
        wanted.append(("CREATE", ["openat", "statx"]))
        client.request(rawfuse.MKDIR, directory, struct.pack("<II", 0o755, 0) + b"e\0")
        wanted.append(("MKDIR", ["mkdirat", "statx"]))
        client.rename(directory, "new", directory, "newer")
        wanted.append(("RENAME", ["statx", "statx", "renameat2"]))
        client.request(rawfuse.UNLINK, directory, b"newer\0")
        wanted.append(("UNLINK", ["statx", "unlinkat"]))
        opened = client.open(directory, opcode=rawfuse.OPENDIR).node
        wanted.append(("OPENDIR", ["openat"]))
        client.request(rawfuse.READDIR, directory, READ.pack(opened, 0, 4096, 0, 0, 0, 0))
        wanted.append(("READDIR", ["lseek", "getdents64"]))
        body = READ.pack(opened, 0, 8000, 0, 0, 0, 0)
        client.request(rawfuse.READDIRPLUS, directory, body)
        # the twenty files and a directory
        wanted.append(("READDIRPLUS of 21", ["lseek", "getdents64", *["statx"] * 21]))
    # without INIT, at which the driver looks at its own output
    found = calls(tmp_path / "trace")[1:]
    assert list(zip([name for name, _ in wanted], found, strict=False)) == wanted
    assert os.path.exists(host / "d" / "e")
