"""The agent, natively: what must not be possible, from either side."""

from __future__ import annotations

import errno
import os
import resource
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import NoReturn

import pytest
from agent_server import HOST_LIKE, SANDBOX, Server, drain, fill, plan
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from cowork_nsrun import _native
from cowork_nsrun.errors import NsrunError
from cowork_nsrun.guest.agent import ALL_CAPABILITIES, Settings

MAGIC = 0x4152534E
CONTROL, STDIN, STDOUT, STDERR, TERMINAL = range(5)
SETTINGS, PLAN, SIGNAL, RESIZE, DEADLINE, POWER_OFF, GET_INFO, CONTINUE = range(1, 9)
EXITED, FAILED, INFO = 66, 67, 68
HELLOS = 64
COMMANDS = 1024
MANY = settings(
    deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def hello(
    role: int, token: bytes, *, magic: int = MAGIC, version: int = 2, reserved: int = 0
) -> bytes:
    return struct.pack("=4I16s", magic, version, role, reserved, token)


def frame(kind: int, payload: bytes = b"") -> bytes:
    return struct.pack("=2I", kind, len(payload)) + payload


class Raw:
    """Streams by hand, with one token."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.token = os.urandom(16)
        self.streams: list[socket.socket] = []

    def say(self, data: bytes) -> socket.socket:
        stream = self.server.connect(0)
        self.streams.append(stream)
        stream.sendall(data)
        return stream

    def join(self, role: int) -> socket.socket:
        stream = self.say(hello(role, self.token))
        assert stream.recv(1) == b"\0"
        return stream

    def is_refused(self, role: int) -> bool:
        try:
            return self.say(hello(role, self.token)).recv(1) == b""
        except ConnectionError:
            # it was closed before the hello was read, or came
            return True


@contextmanager
def raw(server: Server) -> Iterator[Raw]:
    made = Raw(server)
    try:
        yield made
    finally:
        for stream in made.streams:
            stream.close()


def answers(control: socket.socket) -> list[tuple[int, bytes]]:
    """All frames to the end of the stream."""
    data, found = drain(control), []
    while data:
        kind, length = struct.unpack_from("=2I", data)
        assert len(data) >= 8 + length
        found.append((kind, data[8 : 8 + length]))
        data = data[8 + length :]
    return found


def failure(payload: bytes) -> tuple[int, str]:
    _, number, path, text = struct.unpack_from("=IiII", payload)
    assert len(payload) == 16 + path + text
    return number, payload[16 + path :].decode()


def works(server: Server) -> bool:
    return server.run(*SANDBOX, "echo", "well").stdout == b"well\n"


# --- the host's bytes ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "said",
    [
        hello(CONTROL, b"", magic=0),
        hello(CONTROL, b"", version=1),
        hello(6, b""),
        hello(CONTROL, b"", reserved=1),
    ],
    ids=["magic", "version", "role", "reserved"],
)
def test_hello_that_is_none(server: Server, said: bytes) -> None:
    with raw(server) as host:
        assert host.say(said).recv(1) == b""


def test_streams_out_of_place(server: Server) -> None:
    with raw(server) as host:
        control = host.join(CONTROL)
        assert host.is_refused(CONTROL)
        host.join(STDOUT)
        assert host.is_refused(STDOUT)
        assert host.is_refused(TERMINAL)
        control.sendall(frame(SETTINGS, server.settings.encode()))
        control.sendall(frame(PLAN, plan(*SANDBOX, "cat")))
        # the answer to a question shows that the plan was taken
        control.sendall(frame(GET_INFO))
        while control.recv(65536)[:4] != struct.pack("=I", INFO):
            pass
        assert host.is_refused(STDIN)
        assert host.is_refused(STDERR)
    with raw(server) as host:
        host.join(CONTROL)
        host.join(TERMINAL)
        assert host.is_refused(STDIN)


def test_another_token_is_another_command(server: Server) -> None:
    with raw(server) as one, raw(server) as other:
        one.join(CONTROL)
        one.join(STDOUT)
        other.join(STDOUT)
        other.join(CONTROL)


@pytest.mark.parametrize(
    ("frames", "text"),
    [
        (frame(0), "no frame of this type: 0"),
        (frame(9), "no frame of this type: 9"),
        (frame(CONTINUE), "length"),
        (struct.pack("=2I", CONTINUE, (64 << 10) + 1), "length"),
        (frame(CONTINUE, b"x"), "behind its settings"),
        (frame(EXITED), "no frame of this type"),
        (frame(SIGNAL, b"abc"), "length"),
        (frame(RESIZE, b"abc"), "length"),
        (frame(DEADLINE), "length"),
        (frame(POWER_OFF, b"x"), "length"),
        (frame(SETTINGS, b"x" * 111), "length"),
        (struct.pack("=2I", PLAN, (64 << 20) + 1), "length"),
        (struct.pack("=2I", PLAN, 0), "length"),
        (struct.pack("=2I", SETTINGS, 0xFFFFFFFF), "length"),
        (frame(PLAN, b"x"), "behind its settings"),
        (frame(SIGNAL, struct.pack("=I", 0)), "no signal"),
        (frame(SIGNAL, struct.pack("=I", 65)), "no signal"),
        (frame(RESIZE, struct.pack("=2I", 65536, 1)), "rows"),
        (frame(DEADLINE, struct.pack("=Q", 1 << 60)), "too far off"),
        (frame(SETTINGS, bytes(112)), "version: 0"),
    ],
)
def test_frames_that_are_none(server: Server, frames: bytes, text: str) -> None:
    with raw(server) as host:
        control = host.join(CONTROL)
        control.sendall(frames)
        ((kind, payload),) = answers(control)
        assert kind == FAILED
        number, said = failure(payload)
        assert number == 71  # EPROTO
        assert text in said


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"flags": 16}, "flag"),
        ({"n_groups": 4097}, "too many groups"),
        ({"n_groups": 1}, "length of their groups"),
        ({"uid": 0xFFFFFFFF}, "nobody"),
        ({"gid": 0xFFFFFFFF}, "nobody"),
        ({"umask": 0o1000}, "umask"),
        ({"rows": 65536}, "rows"),
        ({"columns": 65536}, "rows"),
        ({"deadline_ms": 1 << 40}, "too far off"),
    ],
)
def test_settings_that_are_none(server: Server, change: dict[str, int], text: str) -> None:
    words = "version flags uid gid umask rows columns n_groups memory processes cpu"
    names = [*words.split(), "deadline_ms", "clock_ns", "bounding", "entropy"]
    good = struct.unpack("=8I4QqQ32s", server.settings.encode())
    values = {**dict(zip(names, good, strict=True)), **change}
    with raw(server) as host:
        control = host.join(CONTROL)
        control.sendall(frame(SETTINGS, struct.pack("=8I4QqQ32s", *values.values())))
        ((kind, payload),) = answers(control)
        assert kind == FAILED
        assert text in failure(payload)[1]


def test_once_is_enough(server: Server) -> None:
    told = frame(SETTINGS, server.settings.encode())
    with raw(server) as host:
        control = host.join(CONTROL)
        control.sendall(told + told)
        assert [kind for kind, _ in answers(control)] == [FAILED]
    run = frame(PLAN, plan(*SANDBOX, "sleep", "1000"))
    with raw(server) as host:
        control = host.join(CONTROL)
        control.sendall(told + run + run)
        kinds = [kind for kind, _ in answers(control)]
        assert FAILED in kinds


def test_plan_that_is_none(server: Server) -> None:
    with server.agent.start(b"x" * 100, server.settings) as command:
        assert command.stdout is not None
        with pytest.raises(NsrunError):
            command.wait()
        assert drain(command.stdout) == b""
        # the failure stays
        with pytest.raises(NsrunError):
            command.wait()
    assert works(server)


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (("--sync-fd", "0", "true"), "fd 0"),
        (("--bind-fd", "0", "/x", "true"), "--bind: the plan names fd 0"),
        (("--backend", "host", "--unconfined", "--bind", "/", "/", "true"), "no guest runs"),
    ],
)
def test_plan_that_needs_the_host(server: Server, words: tuple[str, ...], text: str) -> None:
    assert text in server.fails(*words).text


def test_failures_say_where(server: Server) -> None:
    error = server.fails(*SANDBOX, "/no/such")
    assert (error.text, error.path, error.errno) == (
        "execvp /no/such: No such file or directory",
        "/no/such",
        2,
    )
    assert error.step
    error = server.fails("--ro-bind", "/", "/", "--tmpfs", "/proc/x", "true")
    assert "/proc/x" in error.text
    assert error.path == "/proc/x"


def test_limits_without_cgroups(server: Server) -> None:
    limited = Settings(server.settings.uid, server.settings.gid, memory=1 << 20)
    assert "cgroup v2" in server.fails(*SANDBOX, "true", settings=limited).text


@MANY
@given(data=st.binary(max_size=200))
def test_any_bytes_instead_of_a_hello(server: Server, data: bytes) -> None:
    with raw(server) as host:
        stream = host.say(data)
        stream.shutdown(socket.SHUT_WR)
        try:
            answer = drain(stream)
        except ConnectionResetError:
            answer = b""  # there was more than a hello
        if len(data) < 32 or data[:4] != struct.pack("=I", MAGIC):
            assert answer == b""


FRAMES = st.one_of(
    st.binary(max_size=64),
    st.builds(
        frame, st.sampled_from([SIGNAL, RESIZE, DEADLINE, GET_INFO, PLAN, CONTINUE]), st.binary()
    ),
    st.builds(frame, st.integers(0, 300), st.binary(max_size=300)),
    st.just(frame(GET_INFO)),
    st.builds(lambda n: frame(SIGNAL, struct.pack("=I", n)), st.integers(0, 70)),
)


@MANY
@given(frames=st.lists(FRAMES, max_size=8), started=st.booleans(), data=st.data())
def test_any_frames(
    server: Server, frames: list[bytes], started: bool, data: st.DataObject
) -> None:
    whole = b"".join(frames)
    assume(frame(POWER_OFF) not in whole)
    with raw(server) as host:
        control = host.join(CONTROL)
        if started:
            control.sendall(frame(SETTINGS, server.settings.encode()))
            control.sendall(frame(PLAN, plan(*SANDBOX, "true")))
        cut = data.draw(st.integers(0, len(whole)))
        try:
            control.sendall(whole[:cut])
            control.sendall(whole[cut:])
            control.shutdown(socket.SHUT_WR)
        except OSError:
            pass  # it was told that this is none, and closed
        try:
            kinds = {kind for kind, _ in answers(control)}
        except ConnectionResetError:
            kinds = set()
        assert kinds <= {65, EXITED, FAILED, INFO}
    assert server.process.poll() is None


def test_questions_without_end_whose_answers_nobody_reads(server: Server) -> None:
    with raw(server) as host:
        control = host.join(CONTROL)
        assert fill(control, frame(GET_INFO) * 1000) < 4 << 20
        before = server.resident()
        assert works(server)
        assert server.resident() < before + (1 << 20)


def test_half_a_hello_from_many(server: Server) -> None:
    """While all places are taken others wait, and come in when there is one again."""
    outcomes: list[bool] = []
    with ExitStack() as stack, raw(server) as host:
        alone = host.join(STDOUT)
        streams = [stack.enter_context(server.connect(0)) for _ in range(HELLOS)]
        for stream in streams:
            stream.sendall(b"NSRA")
        late = threading.Thread(target=lambda: outcomes.append(works(server)))
        late.start()
        # nobody closes them: the agent's patience ends
        for stream in streams:
            assert stream.recv(1) == b""
        late.join()
        # nor does the control stream of this one ever come
        assert drain(alone) == b""
    assert outcomes == [True]


@pytest.fixture
def many_files(lack: Callable[[str], NoReturn]) -> Iterator[None]:
    """As many descriptors as the agent has commands, and some more."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < COMMANDS + 500:
        lack(f"no more than {hard} descriptors a process: the agent's commands don't fit")
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.usefixtures("many_files")
def test_more_commands_than_there_may_be(server: Server) -> None:
    with ExitStack() as stack:
        hosts = [stack.enter_context(raw(server)) for _ in range(COMMANDS)]
        for host in hosts:
            host.join(CONTROL)
        assert stack.enter_context(raw(server)).is_refused(CONTROL)
        hosts[7].streams[0].close()
        refused = True
        while refused:
            # closed again: the agent may take a while to see that a place is free
            with raw(server) as host:
                refused = host.is_refused(CONTROL)
    assert works(server)


# --- the command's side -------------------------------------------------------------------------


@pytest.mark.parametrize("words", [SANDBOX, HOST_LIKE], ids=["own-pids", "shared-pids"])
def test_command_can_kill_but_itself(server: Server, words: tuple[str, ...]) -> None:
    with server.start(*SANDBOX, "cat") as other:
        script = "trap '' TERM; kill -9 1; kill -9 -1; kill -TERM -1; echo still"
        with server.start(*words, "sh", "-c", script) as command:
            command.wait()
        assert other.stdin is not None
        assert other.stdout is not None
        other.stdin.sendall(b"alive")
        assert other.stdout.recv(100) == b"alive"
        assert works(server)


def test_command_sees_no_other_process(server: Server, lack: Callable[[str], NoReturn]) -> None:
    script = "cat /proc/[0-9]*/cmdline | tr '\\0' '\\n'; echo; ls -d /proc/[0-9]* | wc -l; echo $$"
    with server.start(*SANDBOX, "cat"):
        outcome = server.run("--dev-bind", "/", "/", "sh", "-c", script)
    if server.uid != os.getuid() and b"--listen-unix" in outcome.stdout:
        lack("a user can't mount /proc here: a user's own agent shows the machine's")
    assert b"--listen-unix" not in outcome.stdout
    assert b"pytest" not in outcome.stdout
    # warden, monitor, pid 1, shell, and those of the pipe
    assert int(outcome.stdout.split()[-2]) < 10


def test_memory_of_the_agent_is_not_in_its_children(server: Server) -> None:
    """The processes above a payload are the agent's program anew, with nothing of its memory."""
    if os.geteuid() != 0:
        pytest.skip("only root reads the memory of others")
    secret = os.urandom(12).hex().encode()
    with server.start(*SANDBOX, "cat") as one:
        assert one.stdin is not None
        assert one.stdout is not None
        one.stdin.sendall(secret)
        assert one.stdout.recv(100) == secret
        # the control: it is in the agent's own, in the buffer that it came through
        assert holds(server.process.pid, secret)
        with server.start(*SANDBOX, "cat") as other:
            assert other.stdin is not None
            assert other.stdout is not None
            other.stdin.sendall(b"x")
            other.stdout.recv(1)
            family = descendants(other.wait_started())
            assert len(family) >= 3
            assert not [pid for pid in family if holds(pid, secret)]


def descendants(pid: int) -> list[int]:
    found = [pid]
    for one in found:
        with open(f"/proc/{one}/task/{one}/children") as children:
            found += [int(child) for child in children.read().split()]
    return found


def holds(pid: int, secret: bytes) -> bool:
    """Whether it is anywhere in its memory."""
    with open(f"/proc/{pid}/maps") as maps, open(f"/proc/{pid}/mem", "rb", 0) as memory:
        for line in maps:
            area, rights = line.split()[:2]
            if "r" not in rights or line.rstrip().endswith(("[vvar]", "[vsyscall]")):
                continue
            start, end = (int(number, 16) for number in area.split("-"))
            try:
                memory.seek(start)
                if secret in memory.read(end - start):
                    return True
            except OSError:
                continue
    return False


def test_ids_of_the_settings(server: Server) -> None:
    if server.uid:
        error = server.fails(*SANDBOX, "true", settings=Settings(0, 0))
        assert "not root" in error.text
        return
    user = Settings(23456, 34567, groups=(45678, 45679), umask=0o027)
    script = "id -u; id -g; umask; echo out >/dev/stdout; grep Groups /proc/self/status"
    outcome = server.run("--dev-bind", "/", "/", "sh", "-c", script, settings=user)
    lines = outcome.stdout.decode().split("\n")
    assert lines[:4] == ["23456", "34567", "0027", "out"]
    # groups that its user namespace has no names for
    assert lines[4].split() == ["Groups:", "65534", "65534"]


def test_ids_that_a_plan_asks_for(server: Server) -> None:
    """Without a user namespace it can have those of the settings, whatever the agent's are."""
    user = server.settings if server.uid else Settings(23456, 34567)
    words = (*HOST_LIKE, "true")
    with server.agent.start(with_uid(user.uid, *words), user) as command:
        assert command.wait() == 0
    if server.uid:
        return
    with (
        server.agent.start(with_uid(user.uid, *words), Settings(0, 0)) as command,
        pytest.raises(NsrunError, match="--uid requires --unshare-user"),
    ):
        command.wait()


def with_uid(uid: int, *words: str) -> bytes:
    """A plan as that user would write it; root's own command line may not ask for it."""
    native = _native.Plan()
    native.read(plan(*words))
    native.set_number(_native.Number.UID, uid)
    return native.write()


def test_bounding_set_of_the_settings(server: Server) -> None:
    sys_admin, sys_boot = 1 << 21, 1 << 22
    script = "grep CapBnd /proc/self/status"
    words = ("--dev-bind", "/", "/", "sh", "-c", script)
    settings = replace(server.settings, bounding=ALL_CAPABILITIES & ~sys_boot)
    left = int(server.run(*words, settings=settings).stdout.split()[1], 16)
    if server.uid:
        # of a user namespace, which begins with a full one: the core leaves nothing in it
        assert left == 0
        return
    assert left & sys_admin
    assert not left & sys_boot
    settings = replace(server.settings, bounding=ALL_CAPABILITIES & ~sys_admin)
    assert server.fails(*words, settings=settings).errno == errno.EPERM


def test_fds_of_the_command(server: Server) -> None:
    outcome = server.run(*HOST_LIKE, "sh", "-c", "ls /proc/$$/fd")
    assert outcome.stdout.split() == [b"0", b"1", b"2"]
