"""The main cases for pytest-benchmark, and the proof that what is compared is equal.

Times are reported and never asserted.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bench import api, cases, cli, contenders, document, helpers, measure, service, table, targets
from bench.contenders import BASE, Contender, Setting
from bench.measure import Report, Result

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


def run_bench(out: Path, *only: str) -> dict[str, Any]:
    """What a quick run of these cases leaves."""
    run = Path(__file__).with_name("run.py")
    words = ["--quick", "--out", str(out), *(word for case in only for word in ("--only", case))]
    done = subprocess.run(
        [sys.executable, str(run), *words], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads((out / "results.json").read_text())
    return found


def test_python_cases_run(tmp_path: Path) -> None:
    """Every kind of case of the Python API gives results, as each user, and no run fails."""
    before = document.PATH.read_text()
    found = run_bench(tmp_path, "python-20", "pool", "rate-2", "parked")
    assert document.PATH.read_text() == before
    assert all(r["failed"] == 0 for r in found["results"])
    for user in USERS:
        seen = {(r["case"], r["contender"]) for r in found["results"] if r["user"] == user}
        assert seen >= {
            ("python-20", "run()"),
            ("python-20", "posix_spawn, nsrun"),
            ("python-20", api.FORKED),
            ("pool", "Pool.run()"),
            ("pool", "core, to the exit message"),
            ("pool", api.BARE),
            ("rate-2", "run(), threads"),
            ("rate-2", "run(), asyncio"),
            ("rate-2", api.API_FLOOR),
            ("parked", "Pss of its processes"),
        }


def test_same_plan() -> None:
    """What run() is timed with is what the programs get as options, descriptors aside.

    A plan of Python's passes on none but the streams where close_fds is set, a command's all.
    """
    code = (
        "import runpy, sys\n"
        "parent = runpy.run_path(sys.argv[1])\n"
        "plan, options = parent['Plan'], sys.argv[2:]\n"
        "spec = parent['SPEC']\n"
        "mine = plan.from_spec(spec, ['/true'], env={})\n"
        "other = plan.from_argv([*options, '--', '/true'], {})\n"
        "less = plan.from_argv([*options[:-2], '--', '/true'], {})\n"
        "print(mine == other, mine == less, parent['POOL_SPEC'].replace(close_fds=False) == spec)\n"
    )
    words = [sys.executable, "-I", "-c", code, str(api.SCRIPT), *cases.STANDARD]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["True", "False", "True"], done.stderr


def test_document_is_of_these_results() -> None:
    """Nobody has edited the figures, or forgot to commit one of both."""
    found = json.loads((cli.OUT / "results.json").read_text())
    assert document.section(found) in document.PATH.read_text()
    pictures = {path.name for path in cli.OUT.glob("*.svg")}
    text = document.PATH.read_text()
    assert pictures == {name for name in pictures if f"(bench/{name})" in text}


def test_document_keeps_what_is_around(tmp_path: Path) -> None:
    """Only what lies between the marks changes."""
    found = json.loads((cli.OUT / "results.json").read_text())
    found["targets"] = found["targets"][:1]
    (tmp_path / "results.json").write_text(json.dumps(found))
    path = tmp_path / "performance.md"
    path.write_text(f"before\n{document.BEGIN}\nold\n{document.END}\nafter\n")
    document.rewrite(tmp_path, path)
    assert path.read_text() == f"before\n{document.section(found)}\nafter\n"
    path.write_text("no marks\n")
    with pytest.raises(ValueError, match="marks"):
        document.rewrite(tmp_path, path)


@pytest.mark.parametrize(("large", "met"), [(1.05, True), (1.2, False)])
def test_target_across_cases(large: float, met: bool) -> None:
    """A target may compare a contender with itself in another case."""
    results = [
        Result("python-20", "user", "run()", 1, 0, median_ns=1.0),
        Result("python-2048", "user", "run()", 1, 0, median_ns=large),
    ]
    what = "run(), 2 GiB touched / 20 MiB"
    (verdict,) = (v for v in targets.judge_all(results) if v.what == what)
    assert (verdict.measured, verdict.met) == (large, met)


@pytest.mark.parametrize(("ours", "met"), [(4.2, True), (3.9, False)])
def test_a_target_stands_beside_the_floor(ours: float, met: bool) -> None:
    """What the hand-written program reaches is shown, and is no excuse."""
    names = {"run(), threads": ours, api.API_FLOOR: 3.8, api.API_BASE: 1.0}
    results = [Result("rate-2", "user", name, 1, 0, per_second=n) for name, n in names.items()]
    what = "run(), threads, 2 at a time, over bwrap's"
    (verdict,) = (v for v in targets.judge_all(results) if v.what == what)
    assert (verdict.measured, verdict.floor, verdict.met) == (ours, 3.8, met)
    assert "3.800" in table.verdict_row(verdict)


def test_short_memory_is_said() -> None:
    """A program that does not fit is not measured, and that is said; the others are."""
    few, many = (cases.ApiCase(f"python-{n}", "", "spawn", n) for n in (1, 1 << 40))
    report = Report()
    assert api.that_fit([few, many], "user", report) == [few]
    (absence,) = report.absences
    assert absence.case == many.key
    assert "MiB of memory are free" in absence.reason


def test_early_end_is_a_failure(
    workspace: helpers.Workspace, capfd: pytest.CaptureFixture[str]
) -> None:
    """A measuring program that dies costs its own case, and the bench says that it failed."""
    case = cases.API_CASES[0]
    report = Report()
    setting = setting_of(workspace, next(iter(USERS)))
    everybody = contenders.find_all(workspace)
    with api.noted([case], "user", report), api.Parent(everybody, setting, 0) as parent:
        parent.ask("what it does not know")
    assert [(r.case, r.failed) for r in report.results] == [(case.key, 1)]
    assert "the Python program ended with 1 at 'what it does not know'" in capfd.readouterr().err


def test_the_services_part_is_what_was_measured() -> None:
    found = json.loads(service.FOUND.read_text())
    text = service.DOCUMENT.read_text()
    assert all(line in text for line in service.rows(found))


def test_the_service_is_measured() -> None:
    """Every row has figures of both, from real commands."""
    found = asyncio.run(service.measure(2))
    assert set(found) == set(service.ROWS)
    for columns in found.values():
        assert all(value > 0 for who in (service.SERVICE, service.BWRAP) for value in columns[who])


def test_the_bulk_is_text() -> None:
    """Each NUL would be six characters of JSON."""
    ran = subprocess.run(["sh", "-c", f"{service.BULK} | tr -d x"], capture_output=True, check=True)
    assert (ran.stdout, ran.stderr) == (b"", b"")
