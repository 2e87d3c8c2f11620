"""Acceptance checks 29 to 37: commands, their streams, signals, and ends."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import pytest
from cowork_client import Client, Refused, request
from cowork_fixtures import Daemon, is_alive, wait_for


def _pid(client: Client, ident: str) -> int:
    found: list[int] = []

    def is_there() -> bool:
        for session in client.call("getStatus")["sessions"]:
            found.extend(p["pid"] for p in session["processes"] if p["id"] == ident and p["pid"])
        return bool(found)

    wait_for(is_there, f"{ident} does not run")
    return found[0]


def _marked(marker: str) -> list[int]:
    """The processes that have a word in their command line."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if marker.encode() in path.read_bytes().split(b"\0"):
                found.append(int(path.parent.name))
        except (FileNotFoundError, ProcessLookupError):
            continue
    return [pid for pid in found if is_alive(pid)]


def test_29_output_then_exit(either: Daemon) -> None:
    events = either.subscriber()
    events.call("spawn", {"id": "a", "name": "s", "command": "/bin/echo", "args": ["hi"]})
    assert [events.event() for _ in range(2)] == [
        {"type": "stdout", "id": "a", "data": "hi\n"},
        {"type": "exit", "id": "a", "exitCode": 0, "signal": None},
    ]
    assert events.call("isProcessRunning", {"id": "a"}) == {"running": False, "exitCode": 0}
    assert events.call("isProcessRunning", {"id": "never"}) == {"running": False}


def test_30_missing_program(either: Daemon) -> None:
    events = either.subscriber()
    out, err, end = either.run(events, "/no/such-program", id="a")
    assert (out, err) == ("", "Error: /no/such-program not found\n")
    assert (end["exitCode"], end["signal"]) == (127, None)


def test_31_not_executable(either: Daemon) -> None:
    file = either.folder() / "file"
    file.write_text("#!/bin/sh\necho hi\n")
    events = either.subscriber()
    events.call("spawn", {"id": "a", "name": "s", "command": str(file)})
    event = events.event()
    assert (event["type"], event["id"], event["fatal"]) == ("error", "a", True)
    assert "Permission denied" in event["message"]
    assert events.until_exit("a")[2]["exitCode"] == 127
    assert events.call("isProcessRunning", {"id": "a"})["running"] is False


def test_32_stdin(either: Daemon) -> None:
    events = either.subscriber()
    events.call("spawn", {"id": "a", "name": "s", "command": "cat"})
    events.call("writeStdin", {"id": "a", "data": "héllo\n"})
    assert events.event() == {"type": "stdout", "id": "a", "data": "héllo\n"}
    assert events.call("isProcessRunning", {"id": "a"}) == {"running": True}
    events.call("writeStdin", {"id": "a", "data": "last"})
    events.call("closeStdin", {"id": "a"})
    assert events.until_exit("a")[0] == "last"
    for ident in ("a", "never"):
        assert events.call("writeStdin", {"id": ident, "data": "x"}) == {}


def test_32_stdin_that_comes_with_the_spawn(daemon: Daemon) -> None:
    """Not lost, although the command has not been started yet."""
    events = daemon.subscriber()
    events.send(
        request("spawn", {"id": "a", "name": "s", "command": "cat"}, 1)
        + b"".join(request("writeStdin", {"id": "a", "data": f"{i} "}, 2 + i) for i in range(9))
        + request("closeStdin", {"id": "a"}, 99)
    )
    assert events.until_exit("a")[0] == "0 1 2 3 4 5 6 7 8 "


@pytest.mark.parametrize("text", ["é", "€", "😀"])
def test_32_a_character_in_two_writes(either: Daemon, text: str) -> None:
    data = text.encode()
    halves = ["printf '" + "".join(f"\\{byte:03o}" for byte in part) + "'"
              for part in (data[:1], data[1:])]  # fmt: skip
    assert either.sh(either.subscriber(), "; sleep 0.2; ".join(halves)) == text


def test_32_wrong_bytes(either: Daemon) -> None:
    assert either.sh(either.subscriber(), r"printf 'a\377b\303'") == "a\ufffdb\ufffd"


def test_33_a_child_that_closes_its_stdin(either: Daemon) -> None:
    events = either.subscriber()
    events.call("spawn", {"id": "other", "name": "o", "command": "cat"})
    events.call("spawn", {"id": "a", "name": "s", "command": "/bin/sh",
                          "args": ["-c", "exec 0<&-; echo closed; sleep 1000"]})  # fmt: skip
    assert events.event()["data"] == "closed\n"
    for _ in range(3):
        assert events.call("writeStdin", {"id": "a", "data": "x" * 100_000}) == {}
    events.call("writeStdin", {"id": "other", "data": "alive"})
    assert events.event() == {"type": "stdout", "id": "other", "data": "alive"}
    assert either.process.poll() is None


def test_33_stdin_is_bounded(daemon: Daemon) -> None:
    events = daemon.subscriber()
    events.call("spawn", {"id": "a", "name": "s", "command": "sleep", "args": ["1000"]})
    with pytest.raises(Refused, match="backpressure"):
        _write_much(events)
    assert events.call("kill", {"id": "a"}) == {}
    assert events.until_exit("a")[2]["signal"] == "SIGTERM"


def _write_much(client: Client) -> None:
    for _ in range(10):
        client.call("writeStdin", {"id": "a", "data": "x" * (4 << 20)})


@pytest.mark.parametrize(
    ("params", "name"),
    [
        ({}, "SIGTERM"),
        ({"signal": None}, "SIGTERM"),
        ({"signal": "SIGKILL"}, "SIGKILL"),
        ({"signal": "KILL"}, "SIGKILL"),
        ({"signal": "SIGINT"}, "SIGINT"),
        ({"signal": 9}, "SIGKILL"),
    ],
)
def test_34_kill(either: Daemon, params: dict[str, object], name: str) -> None:
    events = either.subscriber()
    events.call("spawn", {"id": "a", "name": "s", "command": "sleep", "args": ["1000"]})
    assert events.call("kill", {"id": "a", **params}) == {}
    end = events.until_exit("a")[2]
    assert (end["exitCode"], end["signal"]) == (None, name)


@pytest.mark.parametrize("wrong", ["NOPE", "", "SIG", "SIG_DFL", "sigkill", 9999, -1, 0])
def test_34_no_signal(daemon: Daemon, wrong: object) -> None:
    events = daemon.subscriber()
    events.call("spawn", {"id": "a", "name": "s", "command": "cat"})
    assert events.call("kill", {"id": "a", "signal": wrong}) == {}
    assert events.call("kill", {"id": "never", "signal": wrong}) == {}
    assert events.call("isProcessRunning", {"id": "a"}) == {"running": True}


def test_35_nothing_survives(either: Daemon) -> None:
    marker = f"{time.time_ns() % 10**9}.125"
    events = either.subscriber()
    script = f"sleep {marker} & sleep {marker} & echo ready; wait"
    events.call("spawn", {"id": "a", "name": "s", "command": "/bin/sh", "args": ["-c", script]})
    assert events.event()["data"] == "ready\n"
    wait_for(lambda: len(_marked(marker)) == 2, "they do not run")
    events.call("kill", {"id": "a"})
    events.until_exit("a")
    wait_for(lambda: not _marked(marker), "something survives")


def test_36_a_program_that_ignores_signals(either: Daemon) -> None:
    events = either.subscriber()
    script = "trap '' TERM INT HUP; echo ready; while :; do sleep 1; done"
    events.call("spawn", {"id": "a", "name": "s", "command": "/bin/sh", "args": ["-c", script]})
    assert events.event()["data"] == "ready\n"
    events.call("kill", {"id": "a"})
    assert events.until_exit("a")[2]["signal"] == "SIGTERM"


def test_36_a_program_that_handles_its_signal(daemon: Daemon) -> None:
    events = daemon.subscriber()
    script = "trap 'echo bye; exit 3' TERM; echo ready; while :; do sleep 0.1; done"
    events.call("spawn", {"id": "a", "name": "s", "command": "/bin/sh", "args": ["-c", script]})
    assert events.event()["data"] == "ready\n"
    events.call("kill", {"id": "a"})
    out, _, end = events.until_exit("a")
    assert (out, end["exitCode"]) == ("bye\n", 3)


def test_36_the_service_is_killed(daemon: Daemon) -> None:
    marker = f"{time.time_ns() % 10**9}.375"
    events = daemon.subscriber()
    events.call("spawn", {"id": "a", "name": "s", "command": "sleep", "args": [marker]})
    pid = _pid(events, "a")
    assert _marked(marker)
    daemon.process.send_signal(signal.SIGKILL)
    daemon.process.wait()
    wait_for(lambda: not is_alive(pid) and not _marked(marker), "the sandbox is left")


def test_37_nothing_is_lost_at_the_end(either: Daemon) -> None:
    size = 3_000_000
    script = f"(head -c {size} /dev/zero | tr '\\0' x) ; sleep 1000 & exit 4"
    out, _, end = either.run(either.subscriber(), "/bin/sh", ["-c", script])
    assert (len(out), end["exitCode"]) == (size, 4)


def test_the_same_id_twice(daemon: Daemon) -> None:
    events = daemon.subscriber()
    events.call("spawn", {"id": "a", "name": "s", "command": "cat"})
    with pytest.raises(Refused, match="running already"):
        events.call("spawn", {"id": "a", "name": "t", "command": "cat"})
    events.call("kill", {"id": "a"})
    events.until_exit("a")
    # once the exit is told the id is free
    for _ in range(20):
        assert daemon.run(events, "/bin/echo", ["hi"], id="a")[0] == "hi\n"


def test_an_exit_status_is_no_signal(daemon: Daemon) -> None:
    events = daemon.subscriber()
    end = daemon.run(events, "/bin/sh", ["-c", "exit 143"])[2]
    assert (end["exitCode"], end["signal"]) == (143, None)


def test_stop_kills_everything(daemon: Daemon) -> None:
    events = daemon.subscriber()
    for ident in "abc":
        events.call("spawn", {"id": ident, "name": ident, "command": "cat"})
    assert events.call("stopVM") == {}
    ends = {e["id"]: e["signal"] for e in events.events if e["type"] == "exit"}
    assert ends == dict.fromkeys("abc", "SIGKILL")
    assert all(not s["processes"] for s in events.call("getStatus")["sessions"])
