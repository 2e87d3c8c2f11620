"""The agent, natively: a program does its start, its host goes, and another goes on with it."""

from __future__ import annotations

import json
import os
import select
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from typing import NoReturn

import pytest
from agent_server import SANDBOX, Server, drain, plan
from leftovers import wait_until_gone

from cowork_nsrun.errors import NsrunError
from cowork_nsrun.guest.agent import Command, Settings, _Type
from cowork_nsrun.guest.warm import VARIABLE, message
from cowork_nsrun.plan import Plan
from cowork_nsrun.warm import python

MODULES = ("json", "decimal", "random")
#: for every user
INTERPRETER = "/usr/bin/python3"
PYTHON = python(*MODULES, interpreter=INTERPRETER)
TELL = """
import json, os, sys
print(json.dumps([sys.argv, os.getcwd(), dict(os.environ), sys.stdin.read(),
                  "decimal" in sys.modules, sorted(os.listdir("/proc/self/fd"))]))
print("error", file=sys.stderr)
sys.exit(7)
"""


@pytest.fixture(autouse=True)
def there(lack: Callable[[str], NoReturn]) -> None:
    if not os.access(INTERPRETER, os.X_OK):
        lack(f"no {INTERPRETER}, which any user can run")


def begin(server: Server, *words: str, settings: Settings | None = None) -> Command:
    """The start of a program."""
    warm = plan(*SANDBOX, "--setenv", VARIABLE, "0", *words)
    settings = replace(settings or server.settings, warm=True)
    return server.agent.start(warm, settings, stdin=False)


def wait_warm(command: Command) -> None:
    poller = select.poll()
    poller.register(command, select.POLLIN)
    while not command.warm:
        poller.poll()
        assert command.poll() is None, drain(command.stderr) if command.stderr else b""


def kept(server: Server, *words: str) -> None:
    """A program that waits, without any stream."""
    fds = server.fds()
    with begin(server, *words) as command:
        wait_warm(command)
    # the line to it and the one to its warden are left
    while len(server.fds()) > len(fds) + 2:
        time.sleep(0.005)


def go_on(server: Server, told: bytes, settings: Settings | None = None) -> Command:
    settings = settings or server.settings
    return server.agent.go_on(told, settings, stdin=True, stdout=True, stderr=True)


def test_another_host_goes_on(server: Server, marker: str) -> None:
    fds = server.fds()
    kept(server, *PYTHON)
    arguments = ["-c", TELL, "", marker, "ü"]
    with go_on(server, message(arguments, {"A": "b=c", "B": ""}, "/usr")) as command:
        assert command.wait_started() > 0
        assert command.stdin is not None
        assert command.stdout is not None
        assert command.stderr is not None
        command.stdin.sendall(b"typed")
        command.stdin.shutdown(1)
        argv, cwd, environment, typed, loaded, open_files = json.loads(drain(command.stdout))
        assert (argv, cwd, typed) == (["-c", "", marker, "ü"], "/usr", "typed")
        assert environment == {"A": "b=c", "B": "", "PWD": "/usr"}
        assert loaded
        # the directory that is listed is the fourth
        assert open_files == ["0", "1", "2", "3"]
        assert drain(command.stderr) == b"error\n"
        assert command.wait() == 7
        assert command.usage is not None
        assert command.usage.cpu_ns > 0
    server.wait_until_idle(fds)
    # the question itself
    while server.agent.info().commands > 1:
        time.sleep(0.005)


def test_signals_deadlines_and_the_end_of_its_host(server: Server, marker: str) -> None:
    sleeps = message(["-c", "import time; print('on', flush=True); time.sleep(1000)"], {}, None)
    kept(server, *PYTHON)
    with go_on(server, sleeps) as command:
        assert command.stdout is not None
        assert command.stdout.recv(1) == b"o"
        command.signal(signal.SIGTERM)
        assert command.wait() == 128 + signal.SIGTERM
    kept(server, *PYTHON)
    with go_on(server, sleeps, replace(server.settings, deadline=0.3)) as command:
        assert command.wait() == 124
        assert command.usage is not None
        assert command.usage.timed_out
    kept(server, "sh", "-c", f': {marker}; exec "$@"', "sh", *PYTHON, marker)
    with go_on(server, message(["-c", "import time; time.sleep(1000)"], {}, None)) as command:
        assert command.wait_started() > 0
    # as for any command
    wait_until_gone(marker)


def test_a_host_that_goes_too_early(server: Server, marker: str) -> None:
    """Before it is ready nothing is kept."""
    fds = server.fds()
    with begin(server, "sleep", marker) as command:
        assert command.wait_started() > 0
    wait_until_gone(marker)
    server.wait_until_idle(fds)


def test_an_end_before_it_is_ready(server: Server) -> None:
    with begin(server, "sh", "-c", "echo words >&2; exit 3") as command:
        assert command.stderr is not None
        assert drain(command.stderr) == b"words\n"
        assert command.wait() == 3
        assert not command.warm


def test_what_can_not_go_on(server: Server) -> None:
    """Each is told, and harms nobody."""
    fds = server.fds()
    told = message(["-c", "pass"], {}, None)

    def failure(settings: Settings | None = None) -> str:
        with go_on(server, told, settings) as command, pytest.raises(NsrunError) as caught:
            command.wait()
        return caught.value.text

    assert "No program was warmed" in failure()
    kept(server, *PYTHON)
    for other in (
        replace(server.settings, umask=0o077),
        replace(server.settings, bounding=0),
        replace(server.settings, groups=(12345,)),
        replace(server.settings, warm=True),
    ):
        assert "another caller's" in failure(other)
    # it is there as ever
    with go_on(server, told) as command:
        assert command.wait() == 0
    # once alone
    assert "No program was warmed" in failure()
    with pytest.raises(NsrunError, match="at most"):
        go_on(server, b"x" * (1 << 17))
    server.wait_until_idle(fds)


def test_a_program_that_ended_while_it_waited(server: Server) -> None:
    fds = server.fds()
    code = f"import os, socket; socket.socket(fileno=int(os.environ['{VARIABLE}'])).send(b'x')"
    with begin(server, INTERPRETER, "-c", code) as command:
        while not command.warm:
            command.poll()
    server.wait_until_idle(fds)
    late = go_on(server, message([], {}, None))
    with late as command, pytest.raises(NsrunError, match="No program was warmed"):
        command.wait()


def test_streams_that_it_can_not_have(server: Server) -> None:
    words = Plan.from_argv([*SANDBOX, *PYTHON]).to_bytes()
    settings = replace(server.settings, warm=True)
    for terminal in (False, True):
        started = server.agent.start(words, settings, terminal=terminal)
        with started as command, pytest.raises(NsrunError, match="stdio"):
            command.wait()
    kept(server, *PYTHON)
    # what its own methods would not send
    first = (_Type.CONTINUE, message([], {}, None))
    odd = server.agent._begin(first, server.settings, (False, False, False), terminal=True)
    with odd as command, pytest.raises(NsrunError, match="no terminal"):
        command.wait()
    with go_on(server, message(["-c", "pass"], {}, None)) as command:
        assert command.wait() == 0


def test_messages_that_can_not_be(server: Server) -> None:
    """The host is trusted, but a program must not be something else than it was told to be."""
    for told in (b"x", message(["-c", "pass"], {}, None)[:-1], b"\xff" * 8 + b"a\0b\0"):
        kept(server, *PYTHON)
        with go_on(server, told) as command:
            assert command.stderr is not None
            assert b"a message that can't be" in drain(command.stderr)
            assert command.wait() == 1


def test_as_an_interpreter(server: Server, open_directory: object) -> None:
    """A module, a script, and code from standard input."""
    script = os.path.join(str(open_directory), "script.py")
    with open(script, "w") as file:
        file.write("import sys\nprint(__name__, sys.argv, sys.path[0])\n")
    for arguments, typed, expected in (
        (["-m", "json.tool"], b"[1]", b"[\n    1\n]\n"),
        ([script, "a"], b"", f"__main__ ['{script}', 'a'] {open_directory}\n".encode()),
        ([], b"import sys; print(sys.argv)", b"['-']\n"),
        (["-"], b"print(__name__)", b"__main__\n"),
    ):
        kept(server, *PYTHON)
        with go_on(server, message(arguments, {}, None)) as command:
            assert command.stdin is not None
            assert command.stdout is not None
            command.stdin.sendall(typed)
            command.stdin.shutdown(1)
            assert drain(command.stdout) == expected
            assert command.wait() == 0


def test_hooks_and_random_numbers(server: Server, open_directory: object) -> None:
    """Two starts from one seed: what goes on draws anew, and calls who asked for it."""
    with open(os.path.join(str(open_directory), "ours.py"), "w") as file:
        file.write("import random\nrandom.seed(1)\nCALLED = []\n")
        file.write("from nsrun_warm import after_resume\nafter_resume(lambda: CALLED.append(1))\n")
    drawn = []
    for _ in range(2):
        kept(
            server, "--setenv", "PYTHONPATH", str(open_directory),
            *python("ours", interpreter=INTERPRETER),
        )  # fmt: skip
        code = "import ours, random; print(ours.CALLED, random.random())"
        with go_on(server, message(["-c", code], {}, None)) as command:
            assert command.stdout is not None
            called, number = drain(command.stdout).split()
            assert called == b"[1]"
            drawn.append(number)
    assert drawn[0] != drawn[1]
