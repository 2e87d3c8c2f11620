"""A process that stands for a command, with an agent that runs here: streams, signals, terminal."""

from __future__ import annotations

import fcntl
import os
import pty
import signal
import struct
import subprocess
import sys
import termios
from collections.abc import Iterator
from pathlib import Path

import pytest
from agent_server import SANDBOX, Server

SCRIPT = Path(__file__).with_name("stand_in.py")


@pytest.fixture(scope="module")
def agents(open_directory: Path) -> Iterator[Server]:
    """Of the tests' own user alone: it is the process on this side that is looked at."""
    server = Server(open_directory, os.getuid())
    server.wait_until_ready()
    yield server
    server.end()


def words(server: Server, *command: str) -> list[str]:
    return [sys.executable, str(SCRIPT), str(server.path), *SANDBOX, *command]


def run(server: Server, *command: str, data: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(words(server, *command), input=data, capture_output=True, check=False)


def test_streams_and_status(server: Server) -> None:
    done = run(server, "sh", "-c", "cat; echo error >&2; exit 7", data=b"typed")
    assert (done.returncode, done.stdout, done.stderr) == (7, b"typed", b"error\n")


def test_much_both_ways(server: Server) -> None:
    data = os.urandom(1 << 20) * 8
    done = run(server, "cat", data=data)
    assert done.stdout == data


def test_input_that_is_not_read(server: Server) -> None:
    done = run(server, "true", data=bytes(16 << 20))
    assert (done.returncode, done.stderr) == (0, b"")


def test_output_that_nobody_reads(server: Server) -> None:
    """The command finds out, as by a pipe of its own."""
    script = "trap '' PIPE; while echo x; do :; done 2>/dev/null; exit 6"
    with subprocess.Popen(words(server, "sh", "-c", script), stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.read(2) == b"x\n"
        process.stdout.close()
        assert process.wait() == 6


def test_signals(server: Server) -> None:
    script = "trap 'echo int' INT; trap 'echo usr1' USR1; trap 'exit 3' TERM; echo ready; "
    script += "while :; do sleep 0.01; done"
    with subprocess.Popen(words(server, "sh", "-c", script), stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        for number, text in ((signal.SIGINT, b"int\n"), (signal.SIGUSR1, b"usr1\n")):
            process.send_signal(number)
            assert process.stdout.readline() == text
        # many at once, of which some interrupt the handling of others
        for _ in range(100):
            process.send_signal(signal.SIGUSR1)
            process.send_signal(signal.SIGWINCH)
        process.send_signal(signal.SIGTERM)
        assert set(process.stdout.read().splitlines()) <= {b"usr1"}
        assert process.wait() == 3


class Terminal:
    """A program on a terminal of its own."""

    def __init__(self, command: list[str], rows: int, columns: int) -> None:
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            self._resize(0, rows, columns)
            os.execv(command[0], command)
        self.seen = b""

    @staticmethod
    def _resize(fd: int, rows: int, columns: int) -> None:
        fcntl.ioctl(fd, termios.TIOCSWINSZ, struct.pack("4H", rows, columns, 0, 0))

    def resize(self, rows: int, columns: int) -> None:
        self._resize(self.fd, rows, columns)

    def type(self, data: bytes) -> None:
        os.write(self.fd, data)

    def until(self, text: bytes) -> None:
        while text not in self.seen:
            try:
                data = os.read(self.fd, 4096)
            except OSError:
                data = b""
            assert data, self.seen
            self.seen += data

    def status(self) -> int:
        try:
            while data := os.read(self.fd, 4096):
                self.seen += data
        except OSError:
            pass  # EIO: nobody has it open any more
        status = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        os.close(self.fd)
        return status


@pytest.mark.parametrize("session", [(), ("--new-session",)])
def test_a_terminal(server: Server, session: tuple[str, ...]) -> None:
    script = 'trap "stty size" WINCH; tty; stty size; read x; echo "got $x"; cat; echo over; exit 4'
    # a trap's output may come between, and read(1) ends by the signal in some shells
    command = words(server, *session, "--controlling-terminal", "sh", "-c", script)
    terminal = Terminal(command, 33, 99)
    terminal.until(b"/dev/")
    terminal.until(b"33 99")
    terminal.type(b"some text\r")
    terminal.until(b"got some text")
    terminal.type(b"\x04")
    terminal.until(b"over")
    assert terminal.status() == 4


def test_a_terminals_keys_and_size(server: Server) -> None:
    script = "trap 'echo interrupted; exit 5' INT; trap 'stty size' WINCH; echo ready; "
    script += "while :; do sleep 0.01; done"
    terminal = Terminal(words(server, "--controlling-terminal", "sh", "-c", script), 10, 20)
    terminal.until(b"ready")
    terminal.resize(50, 120)
    terminal.until(b"50 120")
    terminal.type(b"\x03")
    terminal.until(b"interrupted")
    assert terminal.status() == 5
