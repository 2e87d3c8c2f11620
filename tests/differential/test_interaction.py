"""What only shows while a sandbox runs: blocking, locks, signals, who dies when.

Each test holds for bwrap and for nsrun alike; where bwrap falls short, the test
is for nsrun alone and says what bwrap does."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import pytest
from corpus import SEE, do, look
from harness import (
    HANG,
    ROOT,
    USER,
    Bench,
    Case,
    Fd,
    Identity,
    Opened,
    Program,
    kill_session,
    under_own_name,
)

IDENTITIES = {"root": ROOT, "user": USER}
PID = ("--unshare-pid",)
pytestmark = pytest.mark.usefixtures("as_root")


@pytest.fixture(params=["reference", "nsrun"])
def program(request: pytest.FixtureRequest) -> Program:
    found = request.getfixturevalue({"reference": "newest", "nsrun": "candidate"}[request.param])
    assert isinstance(found, Program)
    return found


@pytest.fixture(params=list(IDENTITIES))
def identity(request: pytest.FixtureRequest) -> Identity:
    return IDENTITIES[request.param]


@dataclass
class Running:
    process: subprocess.Popen[bytes]
    opened: Opened

    def line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().decode()

    def silent(self) -> bool:
        """Nothing comes: the one place where waiting longer only makes surer."""
        assert self.process.stdout is not None
        return not select.select([self.process.stdout], [], [], 0.3)[0]

    def say(self, text: bytes) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(text)
        self.process.stdin.flush()

    def finish(self) -> tuple[int, str, str]:
        stdout, stderr = self.process.communicate(timeout=HANG)
        return self.process.returncode, stdout.decode(), stderr.decode()

    def children(self) -> list[int]:
        pid = self.process.pid
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def read_line(fd: int) -> bytes:
    """A record may be written in pieces."""
    text = b""
    while not text.endswith(b"\n") and (got := os.read(fd, 1)):
        text += got
    return text


def read_to_end(fd: int) -> bytes:
    text = b""
    while got := os.read(fd, 4096):
        text += got
    return text


def lock_on(bench: Bench, path: Path) -> str:
    query = subprocess.run(
        [bench.observer, "lock-query", path], capture_output=True, text=True, check=True
    )
    return query.stdout


@contextmanager
def running(bench: Bench, program: Program, case: Case, identity: Identity) -> Iterator[Running]:
    process, opened = bench.start(program, case, identity)
    try:
        yield Running(process, opened)
    finally:
        kill_session(process)
        process.communicate()


@pytest.fixture
def gate(bench: Bench, identity: Identity) -> Iterator[Path]:
    """A FIFO that a program can be kept waiting at."""
    path = bench.directory / "gate"
    os.mkfifo(path)
    os.chown(path, identity.uid, identity.gid)
    yield path
    path.unlink()


def gate_fd(gate: Path) -> int:
    # for both: opening one end only would wait for the other
    return os.open(gate, os.O_RDWR)


def waiting(*options: str, fds: dict[str, Fd] | None = None) -> Case:
    return do("waiting", options, "wait-for-input", "it runs", fds=fds or {})


def pid_gone(pid: int) -> bool:
    """Wait for the end of a process that is not ours."""
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([fd], [], [], HANG)[0])
    finally:
        os.close(fd)


def test_block_fd_blocks(bench: Bench, program: Program, identity: Identity, gate: Path) -> None:
    writer = gate_fd(gate)
    case = do(
        "block", ("--block-fd", "{fd:p}"), "arguments", fds={"p": Fd("open", path="{d}/gate")}
    )
    with running(bench, program, case, identity) as run:
        assert run.silent()
        os.write(writer, b"x")
        assert run.finish() == (0, "arguments\n", "")
    os.close(writer)


def test_userns_block_fd_waits_for_the_maps(
    bench: Bench, program: Program, identity: Identity, gate: Path
) -> None:
    """The caller writes the id maps between the info record and its byte."""
    writer = gate_fd(gate)
    fds = {"s": Fd("sink"), "p": Fd("open", path="{d}/gate")}
    case = look(
        "maps", "--unshare-user", "--info-fd", "{fd:s}", "--userns-block-fd", "{fd:p}", fds=fds
    )
    with running(bench, program, case, identity) as run:
        child = json.loads(read_to_end(run.opened.sinks["s"]))["child-pid"]
        proc = Path(f"/proc/{child}")
        (proc / "uid_map").write_text(f"{identity.uid} {identity.uid} 1\n7 4242 1\n")
        (proc / "gid_map").write_text(f"{identity.gid} {identity.gid} 1\n7 4242 1\n")
        os.write(writer, b"x")
        status, stdout, stderr = run.finish()
    os.close(writer)
    assert (status, stderr) == (0, "")
    maps = json.loads(stdout)["identity"]
    ranges = {
        key: [line.split() for line in maps[key].splitlines()] for key in ("uid_map", "gid_map")
    }
    assert all(["7", "4242", "1"] in found and len(found) == 2 for found in ranges.values())


def test_info_record_comes_first(bench: Bench, program: Program, identity: Identity) -> None:
    with running(
        bench, program, waiting(*PID, "--info-fd", "{fd:s}", fds={"s": Fd("sink")}), identity
    ) as run:
        # to its end: it is closed once it is written
        record = json.loads(read_to_end(run.opened.sinks["s"]))
        assert record["child-pid"] in run.children()
        assert record["pid-namespace"] == Path(f"/proc/{record['child-pid']}/ns/pid").stat().st_ino
        assert record["mnt-namespace"] == Path(f"/proc/{record['child-pid']}/ns/mnt").stat().st_ino
        assert run.line() == "it runs\n"


def test_exit_code_is_reported_at_the_end(
    bench: Bench, program: Program, identity: Identity
) -> None:
    case = waiting("--json-status-fd", "{fd:s}", fds={"s": Fd("sink")})
    with running(bench, program, case, identity) as run:
        assert run.line() == "it runs\n"
        first = read_line(run.opened.sinks["s"])
        assert first.startswith(b'{ "child-pid": ')
        assert first.endswith(b" }\n")
        assert run.finish()[0] == 0
        assert os.read(run.opened.sinks["s"], 4096) == b'{ "exit-code": 0 }\n'


@pytest.mark.parametrize("options", [(), PID, ("--unshare-all",), (*PID, "--as-pid-1")], ids=str)
def test_death_of_the_monitor(
    bench: Bench, program: Program, identity: Identity, options: tuple[str, ...]
) -> None:
    """With --die-with-parent the payload does not outlive the monitor."""
    case = waiting(
        "--die-with-parent", *options, "--json-status-fd", "{fd:s}", fds={"s": Fd("sink")}
    )
    with running(bench, program, case, identity) as run:
        assert run.line() == "it runs\n"
        child = json.loads(read_line(run.opened.sinks["s"]))["child-pid"]
        os.kill(run.process.pid, signal.SIGKILL)
        assert pid_gone(child)
        assert run.finish()[0] == -signal.SIGKILL


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_ends_only_the_monitor(
    bench: Bench, program: Program, identity: Identity, number: signal.Signals
) -> None:
    with running(bench, program, waiting(*PID), identity) as run:
        assert run.line() == "it runs\n"
        os.kill(run.process.pid, number)
        assert run.process.wait(HANG) == -number
        run.say(b"still there\n")
        assert run.line() == "still there\n"


def test_the_death_of_pid_1_is_reported(bench: Bench, program: Program, identity: Identity) -> None:
    with running(bench, program, waiting(*PID), identity) as run:
        assert run.line() == "it runs\n"
        os.kill(run.children()[0], signal.SIGKILL)
        assert run.finish()[0] == 128 + signal.SIGKILL


def test_a_stopped_payload_does_not_end_it(
    bench: Bench, program: Program, identity: Identity
) -> None:
    with running(bench, program, waiting(), identity) as run:
        assert run.line() == "it runs\n"
        (child,) = run.children()
        os.kill(child, signal.SIGSTOP)
        assert run.silent()
        assert run.process.poll() is None
        os.kill(child, signal.SIGCONT)
        assert run.finish() == (0, "", "")


def test_sync_fd_is_open_until_the_sandbox_is_empty(
    bench: Bench, program: Program, identity: Identity
) -> None:
    case = do(
        "sync", (*PID, "--sync-fd", "{fd:s}"), "orphan", "400", "late", "3", fds={"s": Fd("sink")}
    )
    with running(bench, program, case, identity) as run:
        assert run.process.wait(HANG) == 3
        assert not select.select([run.opened.sinks["s"]], [], [], 0)[0], "closed too early"
        assert run.line() == "late\n"
        assert os.read(run.opened.sinks["s"], 1) == b""


def test_lock_is_seen_from_outside(bench: Bench, program: Program, identity: Identity) -> None:
    case = waiting("--bind", "{w}", "/w", "--lock-file", "/w/locked")
    with running(bench, program, case, identity) as run:
        assert run.line() == "it runs\n"
        # COMMAND does not wait for the lock, so neither may come first
        while lock_on(bench, bench.work / "locked") != "type 0 held by another\n":
            assert run.process.poll() is None
        assert run.finish()[0] == 0
    assert lock_on(bench, bench.work / "locked") == "type 2 held by nobody\n"


def test_nothing_reaches_the_host(bench: Bench, program: Program, identity: Identity) -> None:
    """No mount of a run is left in, or ever passed on to, the host's namespace."""
    before = Path("/proc/self/mountinfo").read_text()
    with running(
        bench, program, waiting("--bind", "/", "/", "--tmpfs", "/mnt", "--proc", "/proc"), identity
    ) as run:
        assert run.line() == "it runs\n"
        assert Path("/proc/self/mountinfo").read_text() == before
    assert Path("/proc/self/mountinfo").read_text() == before


# ---- where nsrun does better ---------------------------------------------------


@pytest.fixture
def nsrun(candidate: Program, lack: Callable[[str], NoReturn]) -> Program:
    if not under_own_name(candidate).path.exists():
        lack("the candidate is a bwrap: where nsrun does better")
    return candidate


@pytest.mark.parametrize("options", [(), PID], ids=str)
def test_an_ignored_sigchld(
    bench: Bench, nsrun: Program, identity: Identity, options: tuple[str, ...]
) -> None:
    """bwrap before 0.11.1 waits for ever."""
    case = do("ignored", options, "exit", "7", launch=("ignore", str(int(signal.SIGCHLD))))
    with running(bench, nsrun, case, identity) as run:
        assert run.finish() == (7, "", "")


def test_an_ignored_sigchld_is_not_passed_on(
    bench: Bench, nsrun: Program, identity: Identity
) -> None:
    case = look("ignored", launch=("ignore", str(int(signal.SIGCHLD))))
    ignored = int(bench.run(nsrun, case, identity).seen["process"]["ignored"], 16)
    # whatever else the caller of these tests ignores is passed on
    assert not ignored & 1 << (signal.SIGCHLD - 1)


@pytest.mark.parametrize("option", ["--info-fd", "--json-status-fd"])
def test_no_process_stays_after_a_bad_descriptor(
    bench: Bench, nsrun: Program, identity: Identity, option: str
) -> None:
    """bwrap leaves its child blocked, for ever, as a child of init."""
    case = Case("bad", (option, "77", *SEE))
    with running(bench, nsrun, case, identity) as run:
        status, stdout, _ = run.finish()
        assert (status, stdout) == (1, "")


def test_pidns_and_own_pid_1(bench: Bench, nsrun: Program) -> None:
    """bwrap 0.11 waits for ever after COMMAND's end.

    Nobody outside is COMMAND's parent: its status is known once the joined
    namespace's pid 1 has reaped it, and unknown (255) before.
    """
    case = do(
        "both",
        ("--pidns", "{fd:n}", *PID, "--as-pid-1"),
        "exit",
        "5",
        fds={"n": Fd("namespace", path="pid")},
        holder="hold-pid",
    )
    assert bench.run(nsrun, case, ROOT).status in (5, 255)


def test_making_below_a_link_stays_inside(
    bench: Bench, newest: Program, nsrun: Program, identity: Identity
) -> None:
    """bwrap before 0.12 follows a link in a bound directory out of the new root."""
    assert made_outside(bench, newest, identity), "the control: this is a way out of bwrap 0.11"
    assert not made_outside(bench, nsrun, identity)


def made_outside(bench: Bench, program: Program, identity: Identity) -> bool:
    case = Case("out", ("--bind", "{w}", "/w", "--dir", "/w/link-out/made", *SEE))
    prepared = bench.prepare(program, case, identity, None)
    outside = bench.work / "empty"
    (bench.work / "link-out").symlink_to(f"/oldroot{outside}")
    prepared.popen(subprocess.DEVNULL, subprocess.PIPE, subprocess.PIPE).communicate(timeout=HANG)
    return (outside / "made").exists()
