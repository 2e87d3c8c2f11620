"""What the tests of guests share: an agent, and a machine that runs a stock kernel."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn

import pytest
from agent_server import Server

from cowork_nsrun.guest.image import Image, prepare
from cowork_nsrun.guest.kernel import Kernel, choose
from cowork_nsrun.program import find_program

GUEST = Path(__file__).parent
TESTS = GUEST.parent
sys.path[:0] = [str(TESTS / "python"), str(TESTS / "vmm")]

from leftovers import processes_with  # noqa: E402 - found by the line above
from machines_left import running, wait_until_nothing_is_left  # noqa: E402

UNPRIVILEGED = 12345


@pytest.fixture(scope="session")
def kernel(lack: Callable[[str], NoReturn]) -> Kernel:
    probes = json.loads(subprocess.run([find_program(), "--probe"], capture_output=True,
                                       check=True).stdout)["probes"]  # fmt: skip
    for probe in probes:
        if probe["name"] in {"kvm", "kvm-guest", "guest-kernel"} and probe["verdict"] != "ok":
            lack(f"no machine: {probe['name']}: {probe['evidence']}")
    return choose()


@pytest.fixture(scope="session")
def first(open_directory: Path, c_compiler: list[str]) -> Path:
    """A first process of a guest that is no agent."""
    program = open_directory / "first"
    sources = [str(GUEST / name) for name in ("first.c", "intruder.c")]
    subprocess.run([*c_compiler, "-o", str(program), *sources], check=True)
    return program


@pytest.fixture
def booted(kernel: Kernel, first: Path) -> Iterator[Image]:
    with prepare(kernel, first) as image:
        yield image


@pytest.fixture
def marker() -> Iterator[str]:
    """A number of seconds that only this test sleeps; nobody does when it is over."""
    value = f"1000.{time.monotonic_ns() % 10**9}"
    yield value
    assert processes_with(value) == []


@pytest.fixture
def no_machines_left(kernel: Kernel) -> Iterator[None]:
    """Of one test's machines, before the next counts its own."""
    assert not running("nsrun-vmm")
    assert not processes_with("keep")
    yield
    wait_until_nothing_is_left()


@pytest.fixture(scope="module", params=["caller", "unprivileged"])
def agents(request: pytest.FixtureRequest, open_directory: Path) -> Iterator[Server]:
    """An agent of the tests' own user, then one of a user without privileges."""
    if request.param == "unprivileged" and os.geteuid() != 0:
        pytest.skip("the tests' own user has no privileges already")
    directory = open_directory / f"{request.module.__name__}-{request.param}"
    directory.mkdir()
    directory.chmod(0o777)
    server = Server(directory, os.getuid() if request.param == "caller" else UNPRIVILEGED)
    server.wait_until_ready()
    yield server
    server.end()


@pytest.fixture
def server(agents: Server) -> Iterator[Server]:
    """The same, with nothing left in it when the test is over."""
    before = agents.fds()
    yield agents
    agents.wait_until_idle(before)
    assert agents.process.poll() is None


@pytest.fixture(scope="session")
def slirp(lack: Callable[[str], NoReturn]) -> None:
    """A network for machines."""
    if not Path(find_program()).with_name("nsrun-slirp").exists():
        lack("no nsrun-slirp: libslirp was not there when nsrun was built")
