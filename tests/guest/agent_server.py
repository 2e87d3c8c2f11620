"""An agent, natively or in a guest, and what a test asks it."""

from __future__ import annotations

import os
import socket
import subprocess
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from cowork_nsrun.errors import NsrunError
from cowork_nsrun.guest.agent import Agent, Command, Settings, Usage
from cowork_nsrun.plan import Plan
from cowork_nsrun.program import find_program

PROGRAM = Path(find_program()).with_name("nsrun-agent")
SANDBOX = ("--unshare-all", "--ro-bind", "/", "/", "--proc", "/proc", "--dev", "/dev")
HOST_LIKE = ("--dev-bind", "/", "/")


@dataclass(frozen=True)
class Outcome:
    status: int
    stdout: bytes
    stderr: bytes
    usage: Usage


def plan(*words: str) -> bytes:
    return Plan.from_argv(list(words)).to_bytes()


def drain(stream: socket.socket) -> bytes:
    """To its end."""
    return b"".join(iter(lambda: stream.recv(1 << 20), b""))


def fill(stream: socket.socket, data: bytes, limit: int = 64 << 20) -> int:
    """Write until nobody takes more; how many bytes that were."""
    stream.setblocking(False)
    sent = 0
    try:
        while sent < limit:
            sent += stream.send(data)
    except BlockingIOError:
        pass
    stream.setblocking(True)
    return sent


class Client:
    """What a test asks an agent."""

    def __init__(self, agent: Agent, settings: Settings) -> None:
        self.agent = agent
        self.settings = settings

    def start(
        self, *words: str, settings: Settings | None = None, terminal: bool = False
    ) -> Command:
        return self.agent.start(plan(*words), settings or self.settings, terminal=terminal)

    def run(self, *words: str, data: bytes = b"", settings: Settings | None = None) -> Outcome:
        with self.start(*words, settings=settings) as command:
            assert command.stdin is not None
            feeder = threading.Thread(target=_feed, args=(command.stdin, data))
            feeder.start()
            outputs: dict[str, bytes] = {}
            streams = {"stdout": command.stdout, "stderr": command.stderr}
            readers = [
                threading.Thread(target=lambda n, s: outputs.update({n: drain(s)}), args=item)
                for item in streams.items()
            ]
            for reader in readers:
                reader.start()
            status = command.wait()
            for thread in (*readers, feeder):
                thread.join()
            assert command.usage is not None
            return Outcome(status, outputs["stdout"], outputs["stderr"], command.usage)

    def fails(self, *words: str, settings: Settings | None = None) -> NsrunError:
        """What is said of a plan that can't run."""
        with self.start(*words, settings=settings) as command:
            try:
                status = command.wait()
            except NsrunError as error:
                return error
        raise AssertionError(f"it ran, and ended with {status}")


class Server(Client):
    """One agent process."""

    def __init__(self, directory: Path, uid: int, *options: str) -> None:
        self.path = directory / f"agent-{uid}-{time.monotonic_ns()}"
        self.uid = uid
        other = {} if uid == os.getuid() else {"user": uid, "group": uid, "extra_groups": []}
        self.process = subprocess.Popen(
            [PROGRAM, "--listen-unix", self.path, *options],
            cwd="/",
            stdin=subprocess.DEVNULL,
            **other,  # type: ignore[call-overload]
        )
        super().__init__(Agent(self.connect), Settings(uid, uid if other else os.getgid()))

    def wait_until_ready(self) -> None:
        while self.process.poll() is None:
            try:
                self.connect().close()
            except (FileNotFoundError, ConnectionRefusedError):
                time.sleep(0.005)
            else:
                return
        raise AssertionError(f"the agent ended with status {self.process.returncode}")

    def connect(self, _port: int = 0, _patience: float = 0) -> socket.socket:
        stream = socket.socket(socket.AF_UNIX)
        try:
            stream.connect(str(self.path))
        except BaseException:
            stream.close()
            raise
        return stream

    def fds(self) -> list[str]:
        """What the agent has open."""
        return sorted(os.listdir(f"/proc/{self.process.pid}/fd"), key=int)

    def wait_until_idle(self, fds: list[str]) -> None:
        """Until it has nothing more open than it had then."""
        while len(self.fds()) > len(fds):
            time.sleep(0.005)

    def resident(self) -> int:
        """Bytes of its memory."""
        for line in Path(f"/proc/{self.process.pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) * 1024
        raise AssertionError("no VmRSS")

    def end(self) -> None:
        self.process.terminate()
        assert self.process.wait() == 0
        self.path.unlink()


def _feed(stream: socket.socket, data: bytes) -> None:
    try:
        stream.sendall(data)
        stream.shutdown(socket.SHUT_WR)
    except OSError:
        return  # the command read no more
