"""Fixtures that every suite shares, and the report of what this machine lacks."""

from __future__ import annotations

import shutil
import signal
import socket
import subprocess
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn

import pytest
from hypothesis import HealthCheck, settings

TESTS = Path(__file__).parent
LACKING = pytest.StashKey[Counter[str]]()
WARNINGS = ["-std=c17", "-O2", "-static", "-Wall", "-Wextra", "-Wshadow", "-Werror"]

# of a machine that does other things as well nothing is expected in time
settings.register_profile("nsrun", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("nsrun")

Note = Callable[[str], None]
Lack = Callable[[str], NoReturn]


def pytest_configure(config: pytest.Config) -> None:
    config.stash[LACKING] = Counter()
    # ignored in what a script starts in the background, and so in all that tests start
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if signal.getsignal(signal.SIGQUIT) is signal.SIG_IGN:
        signal.signal(signal.SIGQUIT, signal.SIG_DFL)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--every",
        type=int,
        default=1,
        metavar="N",
        help="run each Nth test only, for machines on which all take too long",
    )
    parser.addoption(
        "--first",
        type=int,
        default=0,
        metavar="M",
        help="with --every: begin with test M, counted from 0; N runs have all tests between them",
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    every, first = config.getoption("every"), config.getoption("first")
    if every > 1:
        left_out = [item for number, item in enumerate(items) if number % every != first]
        items[:] = items[first::every]
        config.hook.pytest_deselected(items=left_out)


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    lacking = config.stash[LACKING]
    if lacking:
        terminalreporter.section("not tested, and why")
        for reason, count in sorted(lacking.items()):
            terminalreporter.line(f"{count:5d}  {reason}")


@pytest.fixture(scope="session")
def note_lack(pytestconfig: pytest.Config) -> Note:
    """Count something that could not be tested, for the report at the end."""

    def note(reason: str) -> None:
        pytestconfig.stash[LACKING][reason] += 1

    return note


@pytest.fixture(scope="session")
def lack(note_lack: Note) -> Lack:
    """Skip a test, by name and counted: never silently."""

    def skip(reason: str) -> NoReturn:
        note_lack(reason)
        pytest.skip(reason)

    return skip


@pytest.fixture(scope="session")
def localhost(lack: Lack) -> str:
    """A name that the system's resolver knows; a bare system may lack /etc/hosts."""
    try:
        socket.gethostbyname("localhost")
    except socket.gaierror as error:
        lack(f"the name localhost is not known, see /etc/hosts: {error.strerror}")
    return "localhost"


@pytest.fixture(scope="session")
def open_directory() -> Iterator[Path]:
    """A directory that every user may traverse (pytest's own are 0700)."""
    with tempfile.TemporaryDirectory(prefix="nsrun-test-") as name:
        directory = Path(name)
        directory.chmod(0o755)
        yield directory


def compiler() -> list[str] | None:
    """musl makes the smaller observer; it needs the kernel's headers by name."""
    if shutil.which("musl-gcc"):
        headers = [
            path
            for path in ("/usr/include", "/usr/include/x86_64-linux-gnu")
            if Path(path).is_dir()
        ]
        return ["musl-gcc", *(word for path in headers for word in ("-idirafter", path))]
    return next(([name] for name in ("gcc", "cc") if shutil.which(name)), None)


@pytest.fixture(scope="session")
def c_compiler(lack: Lack) -> list[str]:
    """The words that compile a program that needs nothing where it runs."""
    command = compiler()
    if command is None:
        lack("no C compiler: the tests' own programs cannot be built")
    return [*command, *WARNINGS]


@pytest.fixture(scope="session")
def observer(open_directory: Path, c_compiler: list[str]) -> Path:
    built = open_directory / "observer"
    sources = sorted((TESTS / "observer").glob("*.c"))
    subprocess.run([*c_compiler, *map(str, sources), "-o", str(built)], check=True)
    built.chmod(0o755)
    return built
