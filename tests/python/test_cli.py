"""The command line: nsrun run, nsrun version, and what else is said."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import cowork_nsrun
from cowork_nsrun import cli
from cowork_nsrun.process import find_program

Cli = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(params=["program", "module"])
def nsrun(request: pytest.FixtureRequest) -> Cli:
    """Call it by the installed program, then by the module that this hands over to."""
    program = [find_program()]
    if request.param == "module":
        program = [sys.executable, "-I", "-m", "cowork_nsrun.cli"]

    def call(
        *words: str, env: dict[str, str] | None = None, input: str | None = None
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*program, *words], capture_output=True, text=True, check=False, env=env, input=input
        )

    return call


def test_run_says_what_ran_and_how_long_it_took(nsrun: Cli) -> None:
    done = nsrun("run", "--", "echo", "hello")
    assert (done.returncode, done.stdout) == (0, "hello\n")
    assert done.stderr.startswith("nsrun: run by namespaces; spawned in ")
    assert done.stderr.endswith(" ms\n")


def test_quiet(nsrun: Cli) -> None:
    done = nsrun("run", "--quiet", "--", "sh", "-c", "echo err >&2")
    assert done.stderr == "err\n"


@pytest.mark.parametrize(("script", "status"), [("exit 3", 3), ("kill -TERM $$", 128 + 15)])
def test_exit_status_is_the_command_s(nsrun: Cli, script: str, status: int) -> None:
    assert nsrun("run", "--quiet", "--", "sh", "-c", script).returncode == status


def test_options_of_the_command_are_its_own(nsrun: Cli) -> None:
    done = nsrun("run", "--quiet", "--", "echo", "--quiet", "--help", "--", "-x")
    assert done.stdout == "--quiet --help -- -x\n"


def test_folders(nsrun: Cli, shared: Path) -> None:
    (shared / "file").write_text("text\n")
    script = f"cat /inside/file; touch /inside/new; echo more >{shared}/made; pwd"
    words = ["--workspace", str(shared), "--ro-bind", f"{shared}:/inside", "--quiet"]
    done = nsrun("run", *words, "--", "sh", "-c", script)
    assert done.stdout == f"text\n{shared}\n"
    assert "Read-only file system" in done.stderr
    assert (shared / "made").read_text() == "more\n"


def test_environment_and_directory(nsrun: Cli) -> None:
    environ = {**os.environ, "SECRET": "secret"}
    words = ["--env", "A=b=c", "--tmpfs", "/work", "--chdir", "/work", "--quiet"]
    done = nsrun("run", *words, "--", "sh", "-c", "env; pwd", env=environ)
    assert "A=b=c\n" in done.stdout
    assert done.stdout.endswith("/work\n")
    assert "secret" not in done.stdout


def test_network_is_off_unless_asked_for(nsrun: Cli) -> None:
    def namespace(*words: str) -> str:
        return nsrun("run", "--quiet", *words, "--", "readlink", "/proc/self/ns/net").stdout

    host = os.readlink("/proc/self/ns/net") + "\n"
    assert namespace("--network", "host") == host
    assert namespace() not in {host, ""}


def test_standard_input_is_passed_on(nsrun: Cli) -> None:
    assert nsrun("run", "--quiet", "--", "cat", input="typed\n").stdout == "typed\n"


def test_timeout(nsrun: Cli) -> None:
    done = nsrun("run", "--timeout", "0.3", "--", "sleep", "1000")
    assert done.returncode == cli.TIMED_OUT
    assert done.stderr == "nsrun: the command ran for longer than 0.3 seconds\n"


@pytest.mark.parametrize(
    ("words", "status", "text"),
    [
        (["run", "--", "no-such"], 1, "nsrun: execvp no-such: No such file or directory\n"),
        (["run", "--workspace", "/no/such", "--", "true"], 1, "/no/such is not a directory"),
        (["run", "--bind", "/no/such", "--", "true"], 1, "Can't find source path /no/such"),
        (["run", "--no-such"], 2, "unrecognized arguments: --no-such"),
        (["run"], 2, "a command is missing"),
        (["run", "--env", "A", "--", "true"], 2, "NAME=VALUE is wanted, not 'A'"),
        (["frobnicate"], 2, "nsrun: frobnicate: unknown; there are: run, version, doctor\n"),
    ],
)
def test_mistakes_are_named(nsrun: Cli, words: list[str], status: int, text: str) -> None:
    done = nsrun(*words)
    assert (done.returncode, done.stdout) == (status, "")
    assert text in done.stderr
    assert "Traceback" not in done.stderr


def test_version(nsrun: Cli) -> None:
    done = nsrun("version")
    assert done.returncode == 0
    assert done.stdout.startswith(f"nsrun {cowork_nsrun.__version__} (Python 3.")


def test_versions_agree() -> None:
    out = subprocess.run([find_program(), "--version"], capture_output=True, text=True, check=True)
    assert out.stdout.startswith(f"nsrun {cowork_nsrun.__version__} (bubblewrap ")


@pytest.mark.parametrize("word", list(cli.WORDS))
def test_help(nsrun: Cli, word: str) -> None:
    done = nsrun(word, "--help")
    assert done.returncode == 0
    assert f"usage: nsrun {word}" in done.stdout


@pytest.fixture
def marker() -> str:
    return f"1000.{time.monotonic_ns() % 10**9}"


def test_interrupt(marker: str) -> None:
    """As the terminal sends it: to nsrun; the command, in a session of its own, is killed."""
    process = subprocess.Popen(
        [find_program(), "run", "--", "sh", "-c", f"echo ready; sleep {marker}"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout
    assert process.stdout.readline() == b"ready\n"
    process.send_signal(signal.SIGINT)
    _, err = process.communicate()
    assert process.returncode == 128 + signal.SIGINT
    assert err == b""
    lines = [path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline") if path.exists()]
    assert not [line for line in lines if marker.encode() in line]
