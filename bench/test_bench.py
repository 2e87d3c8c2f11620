"""The main cases for pytest-benchmark, and the proof that what is compared is equal.

Times are reported and never asserted.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bench import cases, contenders, helpers, measure
from bench.contenders import BASE, Contender, Setting

USERS = {"root": 0, "user": 12345} if os.geteuid() == 0 else {"user": os.geteuid()}
CASES = {case.key: case for case in cases.CASES if case.key in {"true", "net", "cowork"}}
NAMES = ["nsrun", "floor", BASE]
ROUNDS = 50


@pytest.fixture(scope="session")
def workspace() -> helpers.Workspace:
    try:
        return helpers.prepare(helpers.default_root(), list(USERS.values()))
    except (helpers.BuildError, OSError) as error:
        pytest.skip(f"the benchmark's helpers: {error}")


@pytest.fixture(scope="session")
def observer(workspace: helpers.Workspace) -> Path:
    built = helpers.build_observer(workspace)
    if built is None:
        pytest.skip("tests/observer is not here")
    return built


def setting_of(workspace: helpers.Workspace, user: str) -> Setting:
    uid = USERS[user]
    return Setting(workspace, uid, os.getegid() if uid == os.geteuid() else uid)


def contender_of(workspace: helpers.Workspace, name: str) -> Contender:
    found = next(c for c in contenders.find_all(workspace) if c.name == name)
    if found.path is None:
        pytest.skip(f"{name} is not here: {found.hint}")
    return found


def command_of(name: str, case: str, setting: Setting, payload: list[str]) -> list[str]:
    command = contender_of(setting.workspace, name).command(CASES[case], setting, payload)
    if command is None:
        pytest.skip(f"{name} has no such sandbox on this system")
    return command


def spawn(command: list[str], environment: dict[str, str]) -> None:
    pid = os.posix_spawn(command[0], command, environment)
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 0


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", NAMES)
def test_spawn(benchmark: Any, workspace: helpers.Workspace, case: str, name: str) -> None:
    """One sandbox around a program that only exits, as whoever runs the tests."""
    setting = setting_of(workspace, next(iter(USERS)))
    command = command_of(name, case, setting, cases.run_true(workspace))
    benchmark.group = CASES[case].title
    environment = measure.environment(setting)
    benchmark.pedantic(spawn, args=(command, environment), rounds=ROUNDS, warmup_rounds=3)


def observe(name: str, case: str, setting: Setting, observer: Path) -> dict[str, Any]:
    """What a payload sees; it writes to a file, since it describes its descriptors too."""
    command = command_of(name, case, setting, [str(observer), "--tree", "/dev"])
    done = measure.try_out(command, setting)
    assert done.returncode == 0, done.stderr
    seen: dict[str, Any] = json.loads(done.stdout)
    return seen


def visible_mounts(mountinfo: str) -> dict[str, list[str]]:
    """Mount point to root, options and type; of several on one point, the one on top.

    What lies covered is left out: bwrap leaves the flags of those as they were on the host.
    """
    mounts: dict[str, list[str]] = {}
    for line in mountinfo.splitlines():
        fields = line.split()
        mounts[fields[4]] = [fields[3], fields[5], fields[fields.index("-") + 1]]
    return mounts


def credentials(status: str) -> dict[str, str]:
    """The lines of /proc/PID/status that say what a process may do."""
    wanted = {
        "Uid",
        "Gid",
        "Groups",
        "CapInh",
        "CapPrm",
        "CapEff",
        "CapBnd",
        "CapAmb",
        "NoNewPrivs",
        "Seccomp",
    }
    lines = (line.partition(":") for line in status.splitlines())
    return {key: value.strip() for key, _, value in lines if key in wanted}


def essence(seen: dict[str, Any]) -> dict[str, Any]:
    """An observation without what differs from run to run: inodes, times, names of programs."""
    process = seen["process"]
    same = (
        "pid",
        "ppid",
        "sid",
        "pgid",
        "umask",
        "cwd",
        "blocked",
        "ignored",
        "rlimits",
        "dev_tty",
    )
    whole = ("identity", "caps", "prctl", "asked_tree", "may", "hostname", "net", "pids")
    return {
        **{key: seen[key] for key in whole},
        **{f"process.{key}": process[key] for key in same},
        "environ": sorted(process["environ"]),
        "mounts": visible_mounts(seen["mountinfo"]),
        "pid1": credentials(seen["pid1"]["status"]),
        "own namespaces": sorted(
            k for k, v in seen["namespaces"].items() if isinstance(v["owner"], int)
        ),
    }


@pytest.mark.parametrize("user", USERS)
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", ["floor", "nsrun"])
def test_same_world(
    workspace: helpers.Workspace, observer: Path, name: str, case: str, user: str
) -> None:
    """A faster program that builds less would be no comparison."""
    setting = setting_of(workspace, user)
    expected = essence(observe(BASE, case, setting, observer))
    assert essence(observe(name, case, setting, observer)) == expected


def test_plain_and_quiet_when_piped(tmp_path: Path) -> None:
    """The whole program runs, says what is missing by name, and leaves its files."""
    run = Path(__file__).with_name("run.py")
    words = ["--quick", "--only", "true", "--out", str(tmp_path)]
    done = subprocess.run(
        [sys.executable, str(run), *words], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "results.json").read_text())
    assert {r["contender"] for r in results["results"]} >= {"floor", "no sandbox"}
    assert all(r["failed"] == 0 for r in results["results"])
    assert "\x1b" not in done.stdout
