"""In each environment the probes, the doctor, Python and what really ran agree."""

from __future__ import annotations

import errno
import json
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from worlds import GID, SANDBOX, SEEN, UID, Tools, World, by_python, probe_of

SYS_MOUNT, SYS_CLONE, SYS_UNSHARE, SYS_MOVE_MOUNT, SYS_FSMOUNT, SYS_CLONE3 = (
    165, 56, 272, 429, 432, 435)  # fmt: skip
NEW_USER = 0x10000000
SERVE_AS_USER = Path(__file__).with_name("serve_as_user.py")
RUNNERS = {"namespaces": "nsrun", "bwrap": "bwrap"}
MASK = "mount -t tmpfs -o ro mask /proc/irq"


def no_user_namespaces(error: int) -> tuple[str, ...]:
    refused = tuple(f"{call}={error}&{NEW_USER:#x}" for call in (SYS_CLONE, SYS_UNSHARE))
    return (*refused, f"{SYS_CLONE3}={errno.ENOSYS}")


@dataclass(frozen=True)
class Case:
    """An environment, and what has to be found in it."""

    world: Callable[[Tools, pytest.FixtureRequest], World]
    backend: str | None
    remedy: str | None
    evidence: str
    bwrap: str = "missing"


def fixed(**words: object) -> Callable[[Tools, pytest.FixtureRequest], World]:
    return lambda tools, request: World(**words)  # type: ignore[arg-type]


def with_bwrap(fixture: str, **words: object) -> Callable[[Tools, pytest.FixtureRequest], World]:
    return lambda tools, request: World(
        bwrap=request.getfixturevalue(fixture),
        **words,  # type: ignore[arg-type]
    )


CASES = {
    "nothing refused": Case(fixed(), "namespaces", None, "was made"),
    "nothing refused, bwrap there": Case(
        with_bwrap("plain_bwrap"), "namespaces", None, "was made", "ok"
    ),
    "seccomp EPERM": Case(
        fixed(deny=no_user_namespaces(errno.EPERM)), None, "userns-seccomp", "seccomp"
    ),
    "seccomp ENOSYS": Case(
        fixed(deny=no_user_namespaces(errno.ENOSYS)), None, "userns-seccomp", "seccomp"
    ),
    "seccomp denies mounts": Case(
        fixed(deny=tuple(f"{call}={errno.EPERM}"
                         for call in (SYS_MOUNT, SYS_MOVE_MOUNT, SYS_FSMOUNT))),
        None, "userns-seccomp", "seccomp",
    ),
    "limit 0": Case(fixed(limit=0), None, "userns-max-user", "user.max_user_namespaces is 0"),
    "limit 0, bwrap without rights": Case(
        with_bwrap("plain_bwrap", limit=0), None, "userns-max-user",
        "user.max_user_namespaces is 0", "blocked",
    ),
    "limit 0, set-user-id bwrap": Case(
        with_bwrap("set_user_id", limit=0), "bwrap", "userns-max-user",
        "user.max_user_namespaces is 0", "ok",
    ),
    "limit 0, bwrap fails": Case(
        lambda tools, request: World(limit=0, bwrap=tools.failing), None, "userns-max-user",
        "user.max_user_namespaces is 0", "blocked",
    ),
    "limit 0, bwrap is a wrapper around nsrun": Case(
        lambda tools, request: World(limit=0, bwrap=tools.wrapper), None, "userns-max-user",
        "user.max_user_namespaces is 0", "blocked",
    ),
    "masked /proc": Case(fixed(script=MASK), None, "proc-masked", "/proc/irq"),
    "masked /proc, bwrap without rights": Case(
        with_bwrap("plain_bwrap", script=MASK), None, "proc-masked", "/proc/irq", "blocked"
    ),
}  # fmt: skip


@pytest.fixture(params=CASES.values(), ids=CASES.keys())
def case(request: pytest.FixtureRequest) -> Case:
    found: Case = request.param
    return found


@pytest.fixture
def world(case: Case, tools: Tools, request: pytest.FixtureRequest) -> World:
    return case.world(tools, request)


def test_probes_and_selection(case: Case, world: World, tools: Tools) -> None:
    report = world.probe(tools)
    namespaces, bwrap = probe_of(report, "namespaces"), probe_of(report, "bwrap")
    assert report["selection"]["backend"] == case.backend, report
    assert namespaces["remedy"] == case.remedy, report
    assert case.evidence in namespaces["evidence"], report
    assert (namespaces["verdict"] == "ok") == (case.remedy is None)
    assert bwrap["verdict"] == case.bwrap, report
    if case.remedy is not None:
        assert case.evidence in report["selection"]["reason"], report
        assert report["selection"]["remedy"] == case.remedy


def test_what_runs_is_what_was_selected(case: Case, world: World, tools: Tools) -> None:
    ended = world.run(tools, [tools.nsrun, *SANDBOX, "--", "sh", "-c", SEEN])
    stderr = ended.stderr.decode()
    if case.backend is None:
        assert ended.returncode == 1, ended
        assert re.fullmatch(r"nsrun: [^\n]+\n", stderr), ended
        assert not ended.stdout
        return
    assert ended.returncode == 0, ended
    assert ended.stdout.decode().strip() == RUNNERS[case.backend], ended
    if case.backend == "namespaces":
        assert not stderr
    else:
        assert re.fullmatch(r"nsrun: own namespaces are refused [^\n]+\n", stderr), ended
        assert case.evidence in stderr


def test_doctor_and_python_say_the_same(case: Case, world: World, tools: Tools) -> None:
    ended = world.doctor(tools, "--json")
    data = json.loads(ended.stdout)
    assert data["selection"]["backend"] == case.backend, data
    assert ended.returncode == (0 if case.backend else 1)
    line = world.doctor(tools).stdout.decode().splitlines()[-1]
    assert line == f"Isolation: {data['isolation']}"
    first = data["isolation"].partition(" ")[0]
    assert first == {None: "none", "bwrap": "namespaces"}.get(case.backend, case.backend)
    if case.remedy is not None:
        assert case.evidence in "".join(check["evidence"] for check in data["checks"])


def test_the_service_and_its_doctor_say_the_same(case: Case, world: World, tools: Tools) -> None:
    """What it falls to, where no namespaces are to be had, is the confined host."""
    serve = [sys.executable, "-I", SERVE_AS_USER, UID, GID, f"{SEEN}; echo ran"]
    ended = world.run(tools, serve, root=True)
    assert ended.returncode == 0, ended
    seen = json.loads(ended.stdout.splitlines()[-1])
    said = {"bwrap": "bubblewrap (namespace sandbox)", "none": "none (nothing is started)",
            "host": "host-direct (confined by Landlock and seccomp, no namespaces)"}  # fmt: skip
    assert said[seen["backend"]] in seen["doctor"], seen
    if case.backend is None:
        assert seen["backend"] in {"host", "none"}, seen
        assert ("ran" in seen["out"]) == (seen["backend"] == "host"), seen
        assert (seen["exit"] == 0) == (seen["backend"] == "host"), seen
        return
    assert seen["backend"] == "bwrap", seen
    assert seen["exit"] == 0, seen
    first, last = seen["out"].split()
    assert (first == "bwrap") == (case.backend == "bwrap"), seen
    assert last == "ran"


def test_what_python_runs_is_what_was_selected(case: Case, world: World, tools: Tools) -> None:
    ended = by_python(world, tools, "sh", "-c", f"{SEEN}; exit 7")
    if case.backend is None:
        assert ended.returncode == 1, ended
        assert b"nsrun: " in ended.stderr.splitlines()[-1]
        return
    assert ended.returncode == 7, ended
    seen = ended.stdout.decode().split()[-1]
    assert (seen == "bwrap") == (case.backend == "bwrap"), ended


def test_called_as_bwrap_nothing_else_is_tried(case: Case, world: World, tools: Tools) -> None:
    alias = tools.directory / "alias" / "bwrap"
    alias.parent.mkdir(exist_ok=True)
    if not alias.is_symlink():
        alias.symlink_to(tools.nsrun)
    ended = world.run(tools, [alias, *SANDBOX, "--", "sh", "-c", SEEN])
    if case.backend == "namespaces":
        assert ended.stdout == b"bwrap\n"
        assert not ended.stderr
    else:
        assert ended.returncode == 1
        assert re.fullmatch(rb"bwrap: [^\n]+\n", ended.stderr), ended
        assert b"doctor" not in ended.stderr


def test_nothing_is_left(case: Case, world: World, tools: Tools) -> None:
    """No process of a probe outlives it; a reaper of orphans would have them."""
    count = (
        "import ctypes, os, subprocess, sys\n"
        "ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)\n"  # PR_SET_CHILD_SUBREAPER
        "subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL)\n"
        "try:\n print(os.waitpid(-1, 0))\n"
        "except ChildProcessError:\n print('none')"
    )
    ended = world.run(tools, ["/usr/bin/python3", "-c", count, tools.nsrun, "--probe"])
    assert ended.stdout == b"none\n", ended
