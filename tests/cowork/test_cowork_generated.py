"""What nobody would write: frames and sequences of requests, generated."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cowork_client import Client, Closed, Refused, pack, request
from cowork_fixtures import Daemon, Start
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from cowork_nsrun.cowork import config, protocol
from cowork_nsrun.cowork.config import UserMounts
from cowork_nsrun.cowork.frames import BODY_MAX, FrameReader, FrameTooLong, frame
from cowork_nsrun.cowork.paths import PathError, Paths, is_within

METHODS = [
    "configure", "createVM", "startVM", "stopVM", "isRunning", "isGuestConnected", "spawn", "kill",
    "writeStdin", "closeStdin", "isProcessRunning", "mountPath", "readFile", "installSdk",
    "addApprovedOauthToken", "setDebugLogging", "sendGuestResponse", "getSessionsDiskInfo",
    "deleteSessionDirs", "pruneSessionCaches", "getNetworkDrives", "getStatus",
]  # fmt: skip
MEMBERS = [
    "id", "name", "command", "args", "cwd", "env", "additionalMounts", "allowedDomains",
    "oauthToken", "signal", "data", "processId", "subpath", "mountName", "mode", "processName",
    "filePath", "sdkSubpath", "version", "token", "names", "memoryMB", "cpuCount", "path",
    "mountSkeletonHome", "sharedCwdPath", "includeSessionTmp", "onlyIfFreeBytesBelow",
]  # fmt: skip
WORDS = ["a", "b", "s1", "/bin/true", "cat", "echo", "proj", "../..", "/etc/passwd", "/proc/self",
         "/sessions/s1/mnt/proj/f", "ro", "SIGKILL", "x" * 5000, "\0", "é", "*"]  # fmt: skip

leaves = (
    st.none() | st.booleans() | st.integers(-(2**64), 2**64)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.sampled_from(WORDS) | st.text(max_size=20)
)  # fmt: skip
values = st.recursive(
    leaves,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(MEMBERS) | st.text(max_size=5), inner, max_size=4)
    ),
    max_leaves=12,
)
params = st.dictionaries(st.sampled_from(MEMBERS), values, max_size=8)
requests = st.builds(request, st.sampled_from(METHODS), params, values)
broken = st.binary(max_size=60).map(pack) | values.map(lambda v: pack(json.dumps(v).encode()))


def _cut(data: bytes, at: list[int]) -> Iterator[bytes]:
    places = sorted({place % (len(data) + 1) for place in at})
    for begin, end in zip([0, *places], [*places, len(data)], strict=True):
        yield data[begin:end]


PLACES = st.sampled_from(
    [
        "/",
        "/opt",
        "/proc/self",
        "//dev",
        "/sys/../proc",
        "HOME/w",
        "HOME/../x",
        "x",
        "",
        "/\0",
        "\ud800",
    ]
) | st.text(max_size=12)
ENTRIES = st.lists(
    PLACES | st.fixed_dictionaries({"src": PLACES, "dst": PLACES}) | values, max_size=6
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(read_only=ENTRIES | values, writable=ENTRIES | values, disabled=ENTRIES | values)
def test_the_users_own_mounts(
    tmp_path: Path, read_only: object, writable: object, disabled: object
) -> None:
    """Whatever it holds: nothing of the kernel's files, and none but the home's to write to."""
    home = tmp_path / "home"
    home.mkdir(exist_ok=True)
    section = {
        "additionalROBinds": read_only,
        "additionalBinds": writable,
        "disabledDefaultBinds": disabled,
    }
    text = json.dumps({"preferences": {"coworkBwrapMounts": section}})
    file = tmp_path / "config.json"
    file.write_text(text.replace("HOME", str(home)))
    found = config.load(file, Paths.of_home(home))
    for bind in (*found.read_only, *found.writable):
        for path in (bind.source, bind.dest):
            assert path.startswith("/")
            places = {os.path.normpath(path).replace("//", "/"), os.path.realpath(path)}
            assert not any(is_within(p, k) for p in places for k in ("/proc", "/dev", "/sys"))
            assert "/" not in places
    assert all(is_within(os.path.realpath(bind.source), str(home)) for bind in found.writable)
    assert not found.disabled & {"/", "/proc", "/dev"}


@given(st.binary(max_size=300))
def test_any_bytes_as_the_users_file(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    file = tmp_path_factory.getbasetemp() / "any-bytes.json"
    file.write_bytes(data)
    assert config.load(file, Paths.of_home("/nonexistent")) == UserMounts()


@given(st.lists(st.binary(max_size=300), max_size=8), st.lists(st.integers(0), max_size=20))
def test_frames_arrive_however_they_were_cut(bodies: list[bytes], at: list[int]) -> None:
    reader = FrameReader()
    got = [body for part in _cut(b"".join(map(frame, bodies)), at) for body in reader.feed(part)]
    assert got == bodies
    assert reader.held == 0


@given(st.integers(BODY_MAX + 1, 2**32 - 1), st.binary(max_size=10))
def test_frames_that_are_too_long(length: int, rest: bytes) -> None:
    reader = FrameReader()
    with pytest.raises(FrameTooLong):
        list(reader.feed(frame(b"x") + length.to_bytes(4, "big") + rest))


@given(st.binary(max_size=200) | values.map(lambda value: json.dumps(value).encode()))
def test_requests_are_read_or_refused(body: bytes) -> None:
    try:
        found = protocol.read_request(body)
    except protocol.RequestError:
        return
    if found is None:
        # what we call no JSON, Python calls so as well; it takes NaN and odd numbers on top
        return
    whole = json.loads(body)
    assert isinstance(whole, dict)
    assert (found.id is None) == ("id" not in whole)


@given(values)
def test_ids_come_back(ident: object) -> None:
    text = json.dumps({"id": ident, "method": "x"}).encode()
    found = protocol.read_request(text)
    assert found is not None
    reply = json.loads(protocol.success(found.id, {})[4:])
    assert json.dumps(reply["id"]) == json.dumps(ident)


@given(
    st.text(max_size=60)
    | st.lists(st.sampled_from(["..", ".", "", "a", "~", "home"])).map("/".join)
)
def test_no_path_leads_to_the_system(path: str) -> None:
    paths = Paths("/home/u", "/home/u")
    try:
        found = paths.locate(path)
    except PathError:
        return
    assert ".." not in found.split("/")
    assert paths.in_home(found) or paths.refusal(found) is None


@given(st.lists(st.sampled_from(["..", ".", "", "a", "b", "mnt", "sessions", "p"])).map("/".join))
def test_no_guest_path_leaves_its_mount(rest: str) -> None:
    paths = Paths("/home/u", "/home/u")
    for path in (f"/sessions/n/mnt/p/{rest}", f"/sessions/{rest}"):
        found = paths.to_host(path, {"p": "/h/p", "a": "/h/a"})
        assert found is None or is_within(found, "/h/p") or is_within(found, "/h/a")


class Machine:
    """One service, which has to outlive every sequence."""

    def __init__(self, daemon: Daemon) -> None:
        self.daemon = daemon
        (daemon.home / "proj").mkdir()
        (daemon.home / "proj/f").write_text("x")

    def is_well(self) -> None:
        with Client(self.daemon.path) as client:
            out, _, end = self.daemon.run(client.subscribe(), "/bin/echo", ["well"], name="check")
            assert (out, end["exitCode"]) == ("well\n", 0)
        assert self.daemon.process.poll() is None


@pytest.fixture
def machine(start: Start) -> Machine:
    return Machine(start())


@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(st.lists(requests | broken, min_size=1, max_size=12), st.lists(st.integers(0), max_size=6))
def test_sequences(machine: Machine, sequence: list[bytes], at: list[int]) -> None:
    data = b"".join(sequence)
    with Client(machine.daemon.path) as client:
        for part in _cut(data, at):
            client.send(part)
        last = {"sequence": "ends"}
        client.send(request("isRunning", ident=last))
        # every reply on the way is a reply; the last one comes
        while (reply := client.reply()).get("id") != last:
            assert isinstance(reply["success"], bool)
    machine.is_well()


@settings(
    max_examples=25,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(st.binary(max_size=400))
def test_noise(machine: Machine, noise: bytes) -> None:
    with Client(machine.daemon.path) as client:
        try:
            client.send(noise)
            client.socket.shutdown(1)
            while client.socket.recv(4096):
                pass
        except (ConnectionResetError, BrokenPipeError, Closed, Refused):
            pass
    with Client(machine.daemon.path) as client:
        client.call("isRunning")


def test_the_generator_can_find_something(tmp_path: Path) -> None:
    """The same sequences against a reader that trusts lengths would end in an error."""

    def trusting(data: bytes) -> list[Any]:
        found = []
        while data:
            length = int.from_bytes(data[:4], "big")
            found.append(json.loads(data[4 : 4 + length]))
            data = data[4 + length :]
        return found

    @settings(database=None, phases=[Phase.generate], report_multiple_bugs=False)
    @given(st.lists(requests | broken, min_size=1, max_size=12))
    def attempt(sequence: list[bytes]) -> None:
        trusting(b"".join(sequence))

    with pytest.raises(ValueError, match=r"JSON|codec|Expecting|Extra|Unterminated"):
        attempt()
