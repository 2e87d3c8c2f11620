"""The agent, natively: streams, exit, signals, terminals, deadlines, as root and as a user."""

from __future__ import annotations

import hashlib
import os
import random
import signal
import socket
import threading
import time
from pathlib import Path

import pytest
from agent_server import HOST_LIKE, SANDBOX, Server, drain, fill, plan
from leftovers import processes_with, wait_until_gone

from cowork_nsrun.errors import NsrunError
from cowork_nsrun.guest.agent import Command, Settings

MIB = 1 << 20
#: what ends a process that has not asked for it
DEADLY = sorted(
    set(signal.valid_signals())
    - {
        signal.SIGCHLD,
        signal.SIGCONT,
        signal.SIGURG,
        signal.SIGWINCH,
        signal.SIGSTOP,
        signal.SIGTSTP,
        signal.SIGTTIN,
        signal.SIGTTOU,
    }
)


def becomes(text: bytes, stream: socket.socket) -> bytes:
    """Read until it is there."""
    seen = b""
    while text not in seen:
        data = stream.recv(65536)
        assert data, seen
        seen += data
    return seen


def test_every_exit_status(server: Server) -> None:
    for status in range(256):
        with server.start(*SANDBOX, "sh", "-c", f"exit {status}") as command:
            assert command.wait() == status


@pytest.mark.parametrize("words", [SANDBOX, HOST_LIKE], ids=["own-pids", "shared-pids"])
def test_every_deadly_signal(server: Server, words: tuple[str, ...]) -> None:
    for number in DEADLY:
        # ulimit: no file is left by those that dump core
        script = f"ulimit -c 0; kill -{int(number)} $$; sleep 1000"
        with server.start(*words, "sh", "-c", script) as command:
            assert command.wait() == 128 + number


def test_streams_and_environment(server: Server) -> None:
    script = 'cat; echo "$A" >&2; ls /proc/self/fd | wc -l'
    outcome = server.run(*SANDBOX, "--setenv", "A", "b", "sh", "-c", script, data=b"in\n")
    assert (outcome.status, outcome.stderr) == (0, b"b\n")
    # stdio and the directory that ls reads
    assert outcome.stdout == b"in\n4\n"
    assert outcome.usage.cpu_ns > 0
    assert outcome.usage.peak > 0
    assert not outcome.usage.timed_out


def test_streams_that_are_left_out(server: Server) -> None:
    words = plan(*SANDBOX, "sh", "-c", "cat; echo x; echo y >&2; exit 5")
    command = server.agent.start(words, server.settings, stdin=False, stdout=False, stderr=False)
    with command:
        assert (command.stdin, command.stdout, command.stderr) == (None, None, None)
        assert command.wait() == 5


def test_much_output_on_both(server: Server) -> None:
    script = "head -c 104857600 /dev/zero & head -c 104857600 /dev/zero >&2; wait"
    outcome = server.run(*SANDBOX, "sh", "-c", script)
    assert (outcome.status, len(outcome.stdout), len(outcome.stderr)) == (0, 100 * MIB, 100 * MIB)


def test_much_input_comes_back(server: Server) -> None:
    data = random.Random(1).randbytes(32 * MIB)
    outcome = server.run(*SANDBOX, "cat", data=data)
    assert outcome.status == 0
    assert hashlib.sha256(outcome.stdout).digest() == hashlib.sha256(data).digest()


def test_reader_that_stalls(server: Server) -> None:
    """It stops the command, and nobody else; the agent keeps no more than its share."""
    with server.start(*SANDBOX, "sh", "-c", "head -c 67108864 /dev/zero; echo done >&2") as slow:
        assert slow.stdout is not None
        assert slow.stderr is not None
        got = len(slow.stdout.recv(1))
        before = server.resident()
        assert server.run(*SANDBOX, "cat", data=b"x" * MIB).stdout == b"x" * MIB
        assert server.resident() < before + MIB
        slow.stderr.setblocking(False)
        with pytest.raises(BlockingIOError):
            slow.stderr.recv(1)
        slow.stderr.setblocking(True)
        while got < 64 * MIB:
            got += len(slow.stdout.recv(MIB))
        assert drain(slow.stdout) == b""
        assert drain(slow.stderr) == b"done\n"
        assert slow.wait() == 0


def test_command_that_does_not_read(server: Server, marker: str) -> None:
    with server.start(*SANDBOX, "sleep", marker) as command:
        assert command.stdin is not None
        assert fill(command.stdin, b"x" * MIB) < 4 * MIB
    wait_until_gone(marker)


def test_stdin_ends_with_the_command(server: Server) -> None:
    with server.start(*SANDBOX, "true") as command:
        assert command.stdin is not None
        assert command.wait() == 0
        assert command.stdin.recv(1) == b""


def test_closed_output_is_a_broken_pipe(server: Server) -> None:
    with server.start(*SANDBOX, "yes") as command:
        assert command.stdout is not None
        command.stdout.recv(1)
        command.stdout.close()
        assert command.wait() == 128 + signal.SIGPIPE


def test_output_is_left_to_read_when_control_has_ended(server: Server) -> None:
    with server.start(*SANDBOX, "echo", "last words") as command:
        assert command.wait() == 0
        assert command.stdout is not None
        command._control.close()
        assert drain(command.stdout) == b"last words\n"


def test_files_by_the_name_of_stdio(server: Server) -> None:
    script = "cat /dev/stdin; echo out >/dev/stdout; echo err >/dev/stderr"
    outcome = server.run(*SANDBOX, "sh", "-c", script, data=b"in\n")
    assert (outcome.stdout, outcome.stderr, outcome.status) == (b"in\nout\n", b"err\n", 0)


# --- terminals ---------------------------------------------------------------------------------


def test_terminal(server: Server) -> None:
    settings = Settings(server.settings.uid, server.settings.gid, rows=33, columns=99)
    script = (
        "tty && stty size; trap 'stty size; exit 3' WINCH; echo ready; while :; do sleep 0.01; done"
    )
    with server.start(
        *SANDBOX, "--controlling-terminal", "sh", "-c", script, settings=settings, terminal=True
    ) as command:
        assert command.terminal is not None
        assert b"33 99" in becomes(b"ready", command.terminal)
        command.resize(50, 120)
        assert b"50 120" in drain(command.terminal)
        assert command.wait() == 3


def test_terminal_is_typed_at(server: Server) -> None:
    with server.start(*SANDBOX, "cat", terminal=True) as command:
        assert command.terminal is not None
        command.terminal.sendall(b"word\n")
        becomes(b"word\r\nword\r\n", command.terminal)
        command.terminal.sendall(b"\x04")
        assert command.wait() == 0
        assert drain(command.terminal) == b""


def test_terminal_interrupts(server: Server) -> None:
    script = "echo ready; exec sleep 1000"
    with server.start(
        *SANDBOX, "--controlling-terminal", "sh", "-c", script, terminal=True
    ) as command:
        assert command.terminal is not None
        becomes(b"ready", command.terminal)
        command.terminal.sendall(b"\x03")
        assert command.wait() == 128 + signal.SIGINT


def test_terminal_typed_at_too_late(server: Server) -> None:
    """Its end is an end, whatever was typed meanwhile."""
    for _ in range(20):
        with server.start(*SANDBOX, "echo", "all", terminal=True) as command:
            assert command.terminal is not None
            for _ in range(5):
                command.terminal.sendall(b"late\n")
            assert b"all\r\n" in drain(command.terminal)
            assert command.wait() == 0


def test_terminal_half_closed_shows_on(server: Server) -> None:
    with server.start(*SANDBOX, "sh", "-c", "read x; sleep 0.1; echo $x", terminal=True) as command:
        assert command.terminal is not None
        command.terminal.sendall(b"word\n")
        command.terminal.shutdown(socket.SHUT_WR)
        assert drain(command.terminal).endswith(b"word\r\n")
        assert command.wait() == 0


def test_only_a_terminal_has_a_size(server: Server) -> None:
    with server.start(*SANDBOX, "cat") as command, pytest.raises(NsrunError, match="no terminal"):
        command.resize(1, 1)


# --- signals and ends --------------------------------------------------------------------------


@pytest.mark.parametrize("words", [SANDBOX, HOST_LIKE], ids=["own-pids", "shared-pids"])
def test_signal(server: Server, words: tuple[str, ...]) -> None:
    script = "trap 'echo got; exit 9' USR1; echo ready; while :; do sleep 0.01; done"
    with server.start(*words, "sh", "-c", script) as command:
        assert command.stdout is not None
        becomes(b"ready", command.stdout)
        command.signal(signal.SIGUSR1)
        becomes(b"got", command.stdout)
        assert command.wait() == 9
        command.signal(signal.SIGUSR1)  # too late: nothing


def test_payload_as_first_process_is_signalled(server: Server) -> None:
    script = "trap 'exit 9' USR1; echo ready; while :; do sleep 0.01; done"
    with server.start(*SANDBOX, "--as-pid-1", "sh", "-c", script) as command:
        assert command.stdout is not None
        becomes(b"ready", command.stdout)
        command.signal(signal.SIGUSR1)
        assert command.wait() == 9


@pytest.mark.parametrize("words", [SANDBOX, HOST_LIKE], ids=["own-pids", "shared-pids"])
def test_kill(server: Server, words: tuple[str, ...], marker: str) -> None:
    script = f"sleep {marker} & sleep {marker}"
    with server.start(*words, "sh", "-c", script) as command:
        while len(processes_with(marker)) < 2:
            time.sleep(0.005)
        command.kill()
        assert command.wait() == 137
        wait_until_gone(marker)


def test_deadline_of_the_settings(server: Server, marker: str) -> None:
    settings = Settings(server.settings.uid, server.settings.gid, deadline=0.2)
    outcome = server.run(*SANDBOX, "sleep", marker, settings=settings)
    assert (outcome.status, outcome.usage.timed_out) == (124, True)


def test_deadline_set_later(server: Server, marker: str) -> None:
    with server.start(*HOST_LIKE, "sleep", marker) as command:
        command.deadline(1000)
        command.deadline(None)
        command.deadline(0.1)
        assert command.wait() == 124
        assert command.usage is not None
        assert command.usage.timed_out


def test_deadline_of_the_plan(server: Server, marker: str) -> None:
    outcome = server.run(*SANDBOX, "--timeout", "0.2", "sleep", marker)
    assert (outcome.status, outcome.usage.timed_out) == (124, True)


@pytest.mark.parametrize("words", [SANDBOX, HOST_LIKE], ids=["own-pids", "shared-pids"])
def test_what_is_left_behind_goes_with_the_control_stream(
    server: Server, words: tuple[str, ...], marker: str
) -> None:
    script = f"sleep {marker} </dev/null >/dev/null 2>&1 &"
    with server.start(*words, "sh", "-c", script) as command:
        assert command.wait() == 0
        while not processes_with(marker):  # it may not have executed its program yet
            time.sleep(0.005)
    wait_until_gone(marker)


def test_wait_and_poll(server: Server) -> None:
    with server.start(*SANDBOX, "cat") as command:
        assert command.poll() is None
        with pytest.raises(TimeoutError):
            command.wait(0.05)
        assert command.stdin is not None
        command.stdin.shutdown(socket.SHUT_WR)
        statuses: list[int] = []
        waiters = [
            threading.Thread(target=lambda: statuses.append(command.wait())) for _ in range(8)
        ]
        for waiter in waiters:
            waiter.start()
        for waiter in waiters:
            waiter.join()
        assert statuses == [0] * 8
        assert command.poll() == 0
        assert command.pid > 0


def test_closed_while_another_thread_waits(server: Server) -> None:
    command = server.start(*SANDBOX, "cat")
    said: list[str] = []

    def wait() -> None:
        try:
            command.wait()
        except NsrunError as error:
            said.append(error.text)

    waiter = threading.Thread(target=wait)
    waiter.start()
    time.sleep(0.05)
    command.close()
    waiter.join()
    assert len(said) == 1
    assert "gone" in said[0]


# --- many --------------------------------------------------------------------------------------


def test_fifty_at_once(server: Server) -> None:
    commands = [server.start(*SANDBOX, "sh", "-c", f"cat; exit {n}") for n in range(50)]
    data = [random.Random(n).randbytes(100_000) for n in range(50)]

    def feed(command: Command, what: bytes) -> None:
        assert command.stdin is not None
        command.stdin.sendall(what)
        command.stdin.shutdown(socket.SHUT_WR)

    feeders = [
        threading.Thread(target=feed, args=pair) for pair in zip(commands, data, strict=True)
    ]
    for feeder in feeders:
        feeder.start()
    for number, command in enumerate(commands):
        assert command.stdout is not None
        assert drain(command.stdout) == data[number]
        assert command.wait() == number
    for feeder in feeders:
        feeder.join()
    assert server.agent.info().commands == 51
    for command in commands:
        command.close()


def test_client_killed_at_any_moment(server: Server, marker: str) -> None:
    chance = random.Random(3)
    before = server.fds()
    for _ in range(60):
        child = os.fork()
        if not child:
            try:
                for terminal in (False, True, False):
                    server.start(*SANDBOX, "sleep", marker, terminal=terminal)
                time.sleep(1000)
            finally:
                os._exit(1)
        time.sleep(chance.uniform(0, 0.02))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    wait_until_gone(marker)
    server.wait_until_idle(before)


@pytest.mark.parametrize("words", [SANDBOX, HOST_LIKE], ids=["own-pids", "shared-pids"])
def test_agent_killed(
    server: Server, words: tuple[str, ...], marker: str, open_directory: Path
) -> None:
    other = Server(server.path.parent, server.uid)
    other.wait_until_ready()
    commands = [other.start(*words, "sleep", marker) for _ in range(3)]
    while len(processes_with(marker)) < 3:
        time.sleep(0.005)
    other.process.kill()
    other.process.wait()
    wait_until_gone(marker)
    for command in commands:
        with pytest.raises(NsrunError, match="gone"):
            command.wait()
        command.close()


def test_power_off_ends_all(server: Server, marker: str) -> None:
    other = Server(server.path.parent, server.uid)
    other.wait_until_ready()
    with other.start(*SANDBOX, "sleep", marker):
        while not processes_with(marker):
            time.sleep(0.005)
        other.agent.power_off()
        assert other.process.wait() == 0
        assert processes_with(marker) == []


def test_info(server: Server) -> None:
    info = server.agent.info()
    assert (info.release, info.machine) == (os.uname().release, os.uname().machine)
    assert (info.is_guest, info.has_limits, info.commands) == (False, False, 1)
