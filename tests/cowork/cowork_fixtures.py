"""What the service's tests start: real services, each in a home of its own."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import pytest
from cowork_client import PATIENCE, Client

SERVE = (sys.executable, "-I", "-m", "cowork_nsrun.cli", "serve")
KEPT = ("PATH", "LANG")


def wait_for(true: Callable[[], bool], what: str) -> None:
    """Until it is; a machine may be slow, so only the end of patience fails."""
    end = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < end, what
        time.sleep(0.01)


def is_alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


@dataclass
class Daemon:
    """A service that runs."""

    home: Path
    path: str
    process: subprocess.Popen[bytes]
    clients: list[Client] = field(default_factory=list)

    @property
    def log(self) -> str:
        return (self.home / ".config/Claude/logs/cowork_vm_daemon.log").read_text()

    def client(self) -> Client:
        self.clients.append(Client(self.path))
        return self.clients[-1]

    def subscriber(self) -> Client:
        return self.client().subscribe()

    def folder(self, name: str = "proj") -> Path:
        made = self.home / name
        made.mkdir(parents=True, exist_ok=True)
        return made

    def run(
        self, events: Client, command: str, args: list[str] | None = None, **params: Any
    ) -> tuple[str, str, dict[str, Any]]:
        """Spawn by the subscriber's own connection, until the exit."""
        ident = params.pop("id", f"p{time.monotonic_ns()}")
        name = params.pop("name", "s1")
        events.call("spawn", dict(id=ident, name=name, command=command, args=args or [], **params))
        return events.until_exit(ident)

    def sh(self, events: Client, script: str, **params: Any) -> str:
        """What a shell's commands write; they have to succeed."""
        out, err, end = self.run(events, "/bin/sh", ["-c", script], **params)
        assert end["exitCode"] == 0, (out, err, end)
        return out

    def stop(self) -> int:
        for client in self.clients:
            client.socket.close()
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        status = self.process.wait(PATIENCE)
        for stream in (self.process.stdout, self.process.stderr):
            if stream is not None:
                stream.close()
        return status


Start = Callable[..., Daemon]
Lack = Callable[[str], NoReturn]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start a service; it is stopped at the end."""
    daemons: list[Daemon] = []

    def start_one(
        backend: str | None = "bwrap",
        *,
        command: tuple[str, ...] = SERVE,
        words: tuple[str, ...] | None = None,
        path: Path | None = None,
        env: dict[str, str] | None = None,
        wait: bool = True,
    ) -> Daemon:
        home = tmp_path / "home"
        home.mkdir(exist_ok=True)
        run = tmp_path / "run"
        run.mkdir(mode=0o700, exist_ok=True)
        socket_path = path or run / "claude-cowork-vm.sock"
        environment = {name: os.environ[name] for name in KEPT if name in os.environ}
        environment |= {"HOME": str(home), "XDG_RUNTIME_DIR": str(run), **(env or {})}
        if backend is not None:
            environment["COWORK_VM_BACKEND"] = backend
        process = subprocess.Popen(
            [*command, *(("-socket", str(socket_path)) if words is None else words)],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        daemon = Daemon(home, str(socket_path), process)
        daemons.append(daemon)
        if wait:
            assert process.stdout is not None
            # "Service started on", once it listens
            while line := process.stdout.readline():
                if b"Service started on" in line:
                    break
            assert line, process.stderr and process.stderr.read()
        return daemon

    yield start_one
    for daemon in daemons:
        daemon.stop()


@pytest.fixture
def daemon(start: Start) -> Daemon:
    """A service with sandboxes."""
    return start()


@pytest.fixture
def host(start: Start) -> Daemon:
    """A service on the host: confined, where there is Landlock."""
    return start("host")


@pytest.fixture(scope="session")
def without_landlock(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    """What goes in front of a command whose kernel is to have no usable Landlock."""
    program = tmp_path_factory.mktemp("abi") / "abi"
    source = Path(__file__).parents[1] / "confine" / "abi.c"
    subprocess.run(["cc", "-O1", "-o", program, source], check=True)
    # it stays in front: what it runs ends with it
    setpriv = shutil.which("setpriv") or "/usr/bin/setpriv"
    return (str(program), "1", "--", setpriv, "--pdeathsig", "TERM")


@pytest.fixture(scope="session")
def without_namespaces(lack: Lack) -> tuple[str, ...]:
    """What goes in front of a Python program that is to get no namespaces."""
    if os.geteuid() != 0:
        lack("cowork check 59: only root can forbid namespaces to a service")
    # an inner user namespace that may make none
    forbid = "import os, sys; open('/proc/sys/user/max_pid_namespaces', 'w').write('0')"
    inner = ("unshare", "--user", "--map-root-user", sys.executable, "-I", "-c")
    if subprocess.run([*inner, forbid], capture_output=True, check=False).returncode:
        lack("cowork check 59: namespaces can't be forbidden here")
    return (*inner, f"{forbid}; os.execv(sys.argv[1], sys.argv[1:])")


@pytest.fixture(params=["bwrap", "host"])
def either(request: pytest.FixtureRequest, start: Start) -> Daemon:
    """A service with sandboxes, then one on the host."""
    return start(request.param)
