"""The command line: nsrun run, nsrun version, and what else is said."""

from __future__ import annotations

import fcntl
import os
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import cowork_nsrun
from cowork_nsrun import Bind, Sandbox, SpecError, Tmpfs, cli, profile, run_word
from cowork_nsrun.program import find_program

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
        (
            ["frobnicate"],
            2,
            "frobnicate: unknown; there are: run, doctor, profile, serve, sessions, vm, version\n",
        ),
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


# --- the sandbox that words make ----------------------------------------------------------

MINIMAL = Sandbox.minimal()


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], MINIMAL),
        (["--network", "host"], MINIMAL.network("host")),
        (["--ro-bind", "/srv:/s"], MINIMAL.bind("/srv", "/s", read_only=True)),
        (["--timeout", "1.5"], MINIMAL.replace(timeout=1.5)),
        (["--chdir", "/tmp"], MINIMAL.replace(cwd="/tmp")),
        (
            ["--memory", "512M", "--pids", "64", "--cpu", "0.5"],
            MINIMAL.limit(memory=2**29, pids=64, cpu=0.5),
        ),
        (
            ["--rlimit", "nofile=64", "--rlimit", "RLIMIT_AS=1G", "--rlimit", "cpu-seconds=5"],
            MINIMAL.limit(open_files=64, address_space=2**30, cpu_seconds=5),
        ),
        (["--rlimit", "core=0", "--best-effort"], MINIMAL.limit(core_size=0, best_effort=True)),
    ],
)
def test_options_make_a_sandbox(words: list[str], expected: Sandbox) -> None:
    assert run_word.parse_run([*words, "--", "cmd", "--pids", "1"]) == run_word.RunRequest(
        expected,
        ["cmd", "--pids", "1"],
        quiet=False,
        pty=False,
    )


@pytest.fixture
def agent(shared: Path) -> Path:
    """A profile with a bit of everything that options can change."""
    file = shared / "agent.toml"
    file.write_text(
        f"""
        preset = "workspace"
        path = "{shared}"
        network = "host"
        timeout = 100
        environment = {{ A = "profile", B = "profile" }}
        limits = {{ memory = "1G", pids = 100 }}
        """
    )
    return file


def test_options_come_after_the_profile(agent: Path, tmp_path: Path) -> None:
    begin = ["--profile", str(agent)]
    spec = run_word.parse_run([*begin, "--", "true"]).spec
    assert spec == profile.load(agent)
    assert not spec.limits.best_effort
    words = ["--memory", "64M", "--env", "A=option", "--timeout", "1", "--network", "none"]
    changed = run_word.parse_run([*words, *begin, "--tmpfs", "/scratch", "--", "true"]).spec
    assert changed == spec.limit(memory=2**26).env(A="option").network("none").replace(
        timeout=1.0
    ).add(Tmpfs("/scratch"))
    assert changed.limits.pids == 100
    moved = run_word.parse_run([*begin, "--workspace", str(tmp_path), "--", "true"]).spec
    assert moved.cwd == str(tmp_path)
    assert moved.filesystem == (*spec.filesystem, Bind(str(tmp_path), str(tmp_path)))


def test_a_best_effort_of_the_profile_stays(tmp_path: Path) -> None:
    file = tmp_path / "p.json"
    file.write_text('{"limits": {"pids": 5, "best_effort": true}}')
    spec = run_word.parse_run(["--profile", str(file), "--pids", "6", "--", "true"]).spec
    assert spec == Sandbox().limit(pids=6, best_effort=True)


@pytest.mark.parametrize(
    ("words", "field"),
    [
        (["--memory", "much"], "Limits.memory"),
        (["--memory", "1"], "Limits.memory"),
        (["--pids", "0"], "Limits.pids"),
        (["--cpu", "nan"], "Limits.cpu"),
        (["--rlimit", "nofile=many"], "Limits.open_files"),
        (["--rlimit", "nproc=1K"], "Limits.processes"),
        (["--timeout", "0"], "Sandbox.timeout"),
        (["--chdir", "src"], "Sandbox.cwd"),
    ],
)
def test_options_that_can_t_be_are_named(words: list[str], field: str) -> None:
    with pytest.raises(SpecError) as caught:
        run_word.parse_run([*words, "--", "true"])
    assert caught.value.field == field


def test_unknown_rlimits_are_refused_with_those_that_there_are(nsrun: Cli) -> None:
    done = nsrun("run", "--rlimit", "memory=1", "--", "true")
    assert done.returncode == cli.USAGE
    assert "'memory' is unknown; there are: address_space, as, core, core_size" in done.stderr


# --- profiles -----------------------------------------------------------------------------


def test_run_with_a_profile(nsrun: Cli, agent: Path) -> None:
    agent.write_text(
        """
        preset = "workspace"
        path = "."
        filesystem = [{ op = "file", dest = "/etc/hello", content = "from the profile" }]
        environment = { A = "variable" }
        """
    )
    script = "cat /etc/hello; echo; echo $A; pwd; echo made >made"
    done = nsrun("run", "--quiet", "--profile", str(agent), "--", "sh", "-c", script)
    assert done.stderr == ""
    assert done.stdout == f"from the profile\nvariable\n{agent.parent}\n"
    assert (agent.parent / "made").read_text() == "made\n"


def test_timeout_of_a_profile(nsrun: Cli, agent: Path) -> None:
    agent.write_text('preset = "minimal"\ntimeout = 0.3\n')
    done = nsrun("run", "--profile", str(agent), "--", "sleep", "1000")
    assert done.returncode == cli.TIMED_OUT
    done = nsrun("run", "--quiet", "--profile", str(agent), "--timeout", "60", "--", "sleep", "0.6")
    assert (done.returncode, done.stderr) == (0, "")


def test_wrong_profile_runs_nothing(nsrun: Cli, agent: Path) -> None:
    agent.write_text('preset = "minimal"\nnetwrok = "none"\n')
    done = nsrun("run", "--profile", str(agent), "--", "echo", "ran")
    assert (done.returncode, done.stdout) == (cli.FAILED, "")
    assert done.stderr == f"nsrun: {agent}: netwrok: unknown; did you mean network?\n"


def test_profile_schema(nsrun: Cli) -> None:
    assert nsrun("profile", "schema").stdout == profile.schema_text()


def test_profile_check(nsrun: Cli, agent: Path) -> None:
    done = nsrun("profile", "check", str(agent))
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    caps, none = agent.with_name("caps.json"), agent.with_name("none.toml")
    caps.write_text('{"caps_drop": ["cap_fly"]}')
    done = nsrun("profile", "check", str(caps), str(agent), str(none))
    assert done.returncode == cli.FAILED
    first, second = done.stderr.splitlines()
    assert first.startswith(f"nsrun: {caps}: Sandbox.caps_drop: ")
    assert "cap_fly" in first
    assert second == f"nsrun: {none}: No such file or directory"


@pytest.mark.parametrize("form", ["toml", "json"])
def test_profile_show(nsrun: Cli, agent: Path, form: profile.Format) -> None:
    done = nsrun("profile", "show", str(agent), "--format", form)
    assert profile.loads(done.stdout, form) == profile.load(agent)
    assert "preset" not in done.stdout


def test_profile_needs_a_word(nsrun: Cli) -> None:
    done = nsrun("profile")
    assert done.returncode == cli.USAGE
    assert "schema|check|show" in done.stderr


# --- a terminal -----------------------------------------------------------------------------


@pytest.fixture
def terminal() -> Iterator[tuple[int, int]]:
    """Both ends of a terminal of 30 rows and 100 columns; the second is for the program."""
    ours, theirs = os.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 100, 0, 0))
    yield ours, theirs
    os.close(ours)


def read_until(fd: int, wanted: bytes) -> bytes:
    """What comes from a terminal, up to and with some text."""
    data = b""
    while wanted not in data:
        try:
            more = os.read(fd, 1 << 16)
        except OSError:  # what a terminal says at its end
            more = b""
        assert more, data
        data += more
    return data


def test_pty_is_like_a_terminal_of_one_s_own(terminal: tuple[int, int]) -> None:
    ours, theirs = terminal
    before = termios.tcgetattr(ours)
    script = "trap 'echo interrupted; exit 9' INT; stty size; echo ready; sleep 1000 & wait"
    words = [find_program(), "run", "--pty", "--quiet", "--", "sh", "-c", script]
    process = subprocess.Popen(
        words, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True
    )
    os.close(theirs)
    said = read_until(ours, b"ready\r\n")
    assert b"30 100\r\n" in said
    os.write(ours, b"\x03")
    assert b"interrupted\r\n" in read_until(ours, b"interrupted\r\n")
    assert process.wait() == 9
    assert termios.tcgetattr(ours) == before


def test_pty_follows_the_size_of_the_window(terminal: tuple[int, int]) -> None:
    ours, theirs = terminal
    script = "trap 'stty size; exit' WINCH; echo ready; while :; do sleep 0.01; done"
    words = [find_program(), "run", "--pty", "--quiet", "--", "sh", "-c", script]
    process = subprocess.Popen(words, stdin=theirs, stdout=theirs, stderr=theirs)
    read_until(ours, b"ready\r\n")
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 11, 44, 0, 0))
    process.send_signal(signal.SIGWINCH)
    assert b"11 44\r\n" in read_until(ours, b"11 44\r\n")
    assert process.wait() == 0
    os.close(theirs)


def test_pty_without_a_terminal_of_one_s_own(nsrun: Cli) -> None:
    done = nsrun("run", "--pty", "--quiet", "--", "sh", "-c", "test -t 0; cat; exit 3", input="a\n")
    assert (done.returncode, done.stdout) == (3, "a\na\n")  # typed, and said by cat


def test_what_held_the_limits_is_said(nsrun: Cli) -> None:
    done = nsrun("run", "--rlimit", "nofile=64", "--", "sh", "-c", "ulimit -n")
    assert done.stdout == "64\n"
    assert done.stderr.endswith("; open_files held by RLIMIT_NOFILE\n")
