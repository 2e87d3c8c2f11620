"""What the Cowork service costs: its spawns and events, and the same load on a plain bwrap.

    .venv/bin/python -m bench.service [--quick]

Writes docs/bench/service.json and the part of docs/performance.md between its marks.  The
service is asked over its socket, as the app does it.  bwrap gets the Cowork command line by
asyncio's own subprocess in the same program, without socket or protocol.  In turns; medians.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from bench.cli import machine

ROOT = Path(__file__).parent.parent
DOCUMENT = ROOT / "docs" / "performance.md"
FOUND = ROOT / "docs" / "bench" / "service.json"
BEGIN = "<!-- service: made by python -m bench.service from docs/bench/service.json -->"
END = "<!-- service: end -->"
SERVICE, BWRAP = "nsrun serve", "bwrap, asyncio subprocess"
CHUNK = 65536
LINES = "i=0; while [ $i -lt 20000 ]; do echo $i; i=$((i+1)); done"
BULK = "head -c 67108864 /dev/zero | tr '\\0' x"
SESSIONS = 8
FIRST = "request to the first output, ms"
EXIT = "request to the exit, ms"
MANY = f"1,000 commands in {SESSIONS} sessions, s"
ROWS = {
    FIRST: "one `echo`; the first stdout event",
    EXIT: "the same; the exit event",
    MANY: "each of `echo`, to the last exit",
    "20,000 lines, s": "one write(2) each",
    "64 MiB, s": "as text, through JSON and back",
    "events a second": "with the 20,000 lines",
    "MiB a second": "with the 64 MiB",
}
Samples = dict[str, dict[str, list[float]]]


class Client:
    """A connection that asks and hears events."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    def ask(self, method: str, params: Mapping[str, Any]) -> None:
        body = json.dumps({"method": method, "params": params, "id": 1}).encode()
        self._writer.write(len(body).to_bytes(4, "big") + body)

    async def hear(self) -> dict[str, Any]:
        size = int.from_bytes(await self._reader.readexactly(4), "big")
        message: dict[str, Any] = json.loads(await self._reader.readexactly(size))
        return message

    def spawn(self, ident: str, session: str, script: str) -> None:
        mounts = {"proj": {"path": "proj", "mode": "rw"}}
        words = {"id": ident, "name": session, "command": "/bin/sh", "args": ["-c", script]}
        self.ask("spawn", {**words, "additionalMounts": mounts})

    def close(self) -> None:
        self._writer.close()


@asynccontextmanager
async def service(home: Path) -> AsyncIterator[Client]:
    """A service of its own, and a subscriber."""
    run = home / "run"
    run.mkdir(mode=0o700)
    (home / "proj").mkdir()
    env = {"HOME": str(home), "PATH": os.environ["PATH"], "XDG_RUNTIME_DIR": str(run)}
    words = [sys.executable, "-I", "-m", "cowork_nsrun.cli", "serve", "-socket", str(run / "s")]
    env["COWORK_VM_BACKEND"] = "bwrap"
    with subprocess.Popen(words, env=env, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            process.stdout.readline()
            client = Client(*await asyncio.open_unix_connection(run / "s", limit=16 << 20))
            client.ask("subscribeEvents", {})
            assert (await client.hear())["success"]
            yield client
            client.close()
        finally:
            process.terminate()


def bwrap_words(home: Path, script: str) -> list[str]:
    """The command line that the service which was there before gave to bwrap."""
    system = [
        word
        for path in ("/bin", "/lib", "/lib64", "/sbin")
        if os.path.exists(path)
        for word in (
            ("--symlink", os.readlink(path), path)
            if os.path.islink(path)
            else ("--ro-bind", path, path)
        )
    ]
    return [
        "bwrap", "--tmpfs", "/", "--ro-bind", "/usr", "/usr", "--ro-bind", "/etc", "/etc",
        "--dev", "/dev", "--proc", "/proc", "--tmpfs", "/tmp", "--tmpfs", "/run", *system,
        "--dir", str(home), "--dir", "/sessions/s", "--dir", "/sessions/s/mnt",
        "--bind", str(home / "proj"), "/sessions/s/mnt/proj", "--unshare-pid",
        "--die-with-parent", "--new-session", "--chdir", "/sessions/s/mnt/proj",
        "/bin/sh", "-c", script,
    ]  # fmt: skip


async def by_service(client: Client, script: str) -> tuple[float, float, int]:
    """Seconds to the first output and to the exit, and how many events there were."""
    begin, first, events = time.perf_counter(), 0.0, 0
    client.spawn("a", "one", script)
    while True:
        message = await client.hear()
        events += "type" in message
        if message.get("type") == "stdout":
            first = first or time.perf_counter() - begin
        elif message.get("type") == "exit":
            assert message["exitCode"] == 0, message
            return first, time.perf_counter() - begin, events


async def by_bwrap(home: Path, script: str) -> tuple[float, float, int]:
    begin, first, reads = time.perf_counter(), 0.0, 0
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(
        *bwrap_words(home, script), stdin=pipe, stdout=pipe, stderr=pipe
    )
    assert process.stdout is not None
    while await process.stdout.read(CHUNK):
        first = first or time.perf_counter() - begin
        reads += 1
    assert await process.wait() == 0
    return first, time.perf_counter() - begin, reads


async def many_by_service(client: Client, each: int) -> float:
    """So many commands one after the other, in each of the sessions at once."""
    begin = time.perf_counter()
    left = dict.fromkeys(map(str, range(SESSIONS)), each)
    for session in left:
        client.spawn(f"{session}.{each}", session, "echo x")
    running = SESSIONS
    while running:
        message = await client.hear()
        if message.get("type") != "exit":
            continue
        session = message["id"].partition(".")[0]
        left[session] -= 1
        if left[session]:
            client.spawn(f"{session}.{left[session]}", session, "echo x")
        else:
            running -= 1
    return time.perf_counter() - begin


async def many_by_bwrap(home: Path, each: int) -> float:
    async def session() -> None:
        for _ in range(each):
            await by_bwrap(home, "echo x")

    begin = time.perf_counter()
    await asyncio.gather(*(session() for _ in range(SESSIONS)))
    return time.perf_counter() - begin


async def measure(rounds: int) -> Samples:
    """Samples by row and contender."""
    found: Samples = defaultdict(lambda: defaultdict(list))
    with tempfile.TemporaryDirectory(prefix="nsrun-bench-") as name:
        home = Path(name)
        async with service(home) as client:

            async def once(script: str) -> dict[str, tuple[float, float, int]]:
                return {SERVICE: await by_service(client, script),
                        BWRAP: await by_bwrap(home, script)}  # fmt: skip

            for _ in range(3):
                await once("echo warm")
            for _ in range(rounds):
                for who, (first, end, _) in (await once("echo x")).items():
                    found[FIRST][who].append(first * 1000)
                    found[EXIT][who].append(end * 1000)
            for _ in range(max(2, rounds // 40)):
                for who, (_, end, events) in (await once(LINES)).items():
                    found["20,000 lines, s"][who].append(end)
                    found["events a second"][who].append(events / end)
                for who, (_, end, _) in (await once(BULK)).items():
                    found["64 MiB, s"][who].append(end)
                    found["MiB a second"][who].append(64 / end)
                each = max(2, min(125, rounds // 2))
                scale = 125 / each
                found[MANY][SERVICE].append(await many_by_service(client, each) * scale)
                found[MANY][BWRAP].append(await many_by_bwrap(home, each) * scale)
    return found


def rows(found: Mapping[str, Any]) -> list[str]:
    """The table, as Markdown."""
    lines = [f"| | {SERVICE} | {BWRAP} | ratio |", "|---|---|---|---|"]
    for row, about in ROWS.items():
        ours, theirs = (found["medians"][row][who] for who in (SERVICE, BWRAP))
        shown = f"{ours:.3g} | {theirs:.3g} | {ours / theirs:.2f}"
        lines.append(f"| {row} ({about}) | {shown} |")
    return lines


def rewrite(found: Mapping[str, Any], document: Path = DOCUMENT) -> None:
    """Put the table between its marks."""
    before, begin, rest = document.read_text().partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{document}: the marks {BEGIN!r} and {END!r} are not there")
    about = "{processor}, {cores} cores, Linux {kernel}, {date}".format(**found["machine"])
    quick = ["A quick run, with a tenth of the rounds.", ""] if found["quick"] else []
    lines = [BEGIN, "", f"Measured on {about}.", "", *quick, *rows(found), "", END]
    document.write_text(before + "\n".join(lines) + after)


def main() -> None:
    parser = argparse.ArgumentParser(prog="bench.service")
    parser.add_argument("--quick", action="store_true", help="a tenth of the rounds")
    quick = parser.parse_args().quick
    samples = asyncio.run(measure(20 if quick else 200))
    medians = {
        row: {who: round(statistics.median(values), 4) for who, values in columns.items()}
        for row, columns in samples.items()
    }
    found = {"machine": machine(), "quick": quick, "medians": medians}
    FOUND.write_text(json.dumps(found, indent=1) + "\n")
    rewrite(found)
    print("\n".join(rows(found)))


if __name__ == "__main__":
    main()
