"""Environments in which namespaces are refused, made by the kernel's own means."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "hostile"))

from hostile_fixtures import nsrun  # noqa: E402, F401
from hostlib import Lack, build  # noqa: E402
from worlds import UID, Tools  # noqa: E402

DEBIAN_BWRAP = Path("/usr/bin/bwrap")


@pytest.fixture(scope="session")
def tools(open_directory: Path, nsrun: Path, lack: Lack) -> Tools:  # noqa: F811
    """What the environments are made with; root makes them."""
    if os.geteuid() != 0:
        lack("not root: simulated environments for the choice of a backend")
    for program in ("unshare", "setpriv", "mount"):
        if shutil.which(program) is None:
            lack(f"no {program}: simulated environments for the choice of a backend")
    programs = open_directory / "selection"
    programs.mkdir()
    (empty := programs / "no-bwrap").mkdir()
    return Tools(
        directory=programs,
        nsrun=nsrun,
        nested=build(HERE / "nested.c", programs / "nested"),
        deny=build(HERE.parent / "tiers" / "deny.c", programs / "deny"),
        no_bwrap=empty,
        failing=_script(programs / "failing", 'echo "bwrap: it is broken" >&2; exit 3'),
        wrapper=_script(programs / "wrapper", f'exec {nsrun} "$@"'),
    )


def _script(directory: Path, text: str) -> Path:
    directory.mkdir()
    path = directory / "bwrap"
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return directory


@pytest.fixture(scope="session")
def set_user_id(tools: Tools, lack: Lack) -> Path:
    """A directory with a bwrap that is root's whoever calls it: it needs no user namespace."""
    if not DEBIAN_BWRAP.exists():
        lack("no /usr/bin/bwrap: the fallback to a bwrap that is allowed what nsrun is not")
    directory = tools.directory / "set-user-id"
    directory.mkdir()
    bwrap = directory / "bwrap"
    shutil.copy(DEBIAN_BWRAP, bwrap)
    bwrap.chmod(0o4755)
    words = [bwrap, "--ro-bind", "/", "/", "true"]
    tried = subprocess.run(words, user=UID, capture_output=True, text=True, check=False)
    # Debian 13's, for one; whatever else it says is for the tests to find out
    if "setuid use of bubblewrap is not supported" in tried.stderr:
        lack(f"no set-user-id bwrap: {tried.stderr.strip()}")
    return directory


@pytest.fixture(scope="session")
def plain_bwrap(tools: Tools, lack: Lack) -> Path:
    """A directory with a bwrap that has no more rights than we."""
    if not DEBIAN_BWRAP.exists():
        lack("no /usr/bin/bwrap: what a bwrap without rights says")
    directory = tools.directory / "plain"
    directory.mkdir()
    shutil.copy(DEBIAN_BWRAP, directory / "bwrap")
    return directory
