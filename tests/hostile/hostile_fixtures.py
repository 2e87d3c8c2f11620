"""The program under attack, the attacker, and who attacks."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from hostlib import ROOT, USER, Identity, Lack, Runner, build, find_nsrun, kill_marked, new_marker


@pytest.fixture(scope="session")
def nsrun(open_directory: Path, pytestconfig: pytest.Config, lack: Lack) -> Path:
    """A copy that every user may run, under its own name."""
    source = find_nsrun(pytestconfig.rootpath)
    if source is None:
        lack("no nsrun: build it, or name it by NSRUN")
    directory = open_directory / "program"
    directory.mkdir(exist_ok=True)
    copy = directory / "nsrun"
    shutil.copy(source, copy)
    copy.chmod(0o755)
    return copy


@pytest.fixture(scope="session")
def attacker(open_directory: Path) -> Path:
    return build(Path(__file__).parent / "attacker.c", open_directory / "attacker")


@pytest.fixture(params=[ROOT, USER], ids=lambda who: who.name)
def runner(request: pytest.FixtureRequest, nsrun: Path, lack: Lack) -> Runner:
    identity: Identity = request.param
    if os.geteuid() != 0 and identity.is_root:
        lack("not root: what root's sandboxes do")
    return Runner(nsrun, identity)


@pytest.fixture
def as_root(nsrun: Path, lack: Lack) -> Runner:
    if os.geteuid() != 0:
        lack("not root: what root's sandboxes do")
    return Runner(nsrun, ROOT)


@pytest.fixture
def as_user(nsrun: Path) -> Runner:
    return Runner(nsrun, USER)


@pytest.fixture
def ground(open_directory: Path, runner: Runner, request: pytest.FixtureRequest) -> Path:
    """A directory of the runner's own that everybody may look into."""
    name = "".join(c if c.isalnum() else "-" for c in request.node.name)
    place = open_directory / name
    place.mkdir()
    if os.geteuid() == 0:
        os.chown(place, runner.identity.uid, runner.identity.gid)
    return place


@pytest.fixture
def marker() -> Iterator[str]:
    """In the environment of all that a test starts; none of it outlives the test."""
    marker = new_marker()
    yield marker
    kill_marked(marker)
