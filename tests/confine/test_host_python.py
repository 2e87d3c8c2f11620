"""The host backend from Python: the same Process, the same ends."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hostlib import MARKER, Lack, becomes, kill_marked, marked, new_marker

from cowork_nsrun import Bind, Limits, NsrunError, Sandbox, SpecError, Tmpfs, aio, popen, run
from cowork_nsrun._native import landlock_abi
from cowork_nsrun.namespaces import Namespace

InPython = Callable[[Callable[[], Any]], Any]
DAEMON = "(setsid sh -c 'sleep 500 & sleep 500' >/dev/null 2>&1 &); "
LIMIT = 60


@pytest.fixture(autouse=True)
def landlock(lack: Lack) -> None:
    if landlock_abi() < 6:
        lack("no Landlock of ABI 6: the host backend in full")


@pytest.fixture
def place(open_directory: Path, request: pytest.FixtureRequest) -> Path:
    name = "".join(c if c.isalnum() else "-" for c in request.node.name)
    top = open_directory / f"host-{name}"
    top.mkdir()
    top.chmod(0o777)
    return top


def with_marker(spec: Sandbox, marker: str) -> Sandbox:
    return spec.env({MARKER: marker})


def open_fds() -> set[str]:
    return {os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd") if fd.isdigit()
            and os.path.lexists(f"/proc/self/fd/{fd}")}  # fmt: skip


def test_a_workspace_on_the_host(in_python: InPython, place: Path) -> None:
    script = """
        echo 1 > made && python3 -c 'import tempfile; print(tempfile.mkdtemp())'
        echo $HOME; pwd; cat /etc/shadow; echo > /tmp/no; ls -d "$TMPDIR"
    """
    secret = place.parent / "secret-of-host"
    secret.write_text("secret")

    def work() -> Any:
        result = run(
            ["sh", "-c", f"{script}\ncat {secret}"], Sandbox.host_workspace(place), text=True
        )
        return result.stdout, result.stderr, result.backend

    out, err, backend = in_python(work)
    made, home, cwd, tmp = out.split()
    assert made.startswith(f"{tmp}/")
    assert (home, cwd) == (tmp, str(place))
    assert not Path(tmp).exists()
    assert (place / "made").read_text() == "1\n"
    assert err.count("ermission denied") == 3
    assert backend == f"host, confined by Landlock ABI {landlock_abi()} and seccomp"


def test_unconfined_is_called_so(place: Path) -> None:
    spec = Sandbox.host_workspace(place).replace(backend="unconfined")
    result = run(["sh", "-c", "echo > /tmp/nsrun-yes; rm /tmp/nsrun-yes"], spec)
    assert result.check().backend == "host, not confined"


def test_real_programs_run(in_python: InPython, place: Path) -> None:
    script = """
        set -e
        git init -q . && echo 'int main(void) { return 0; }' > a.c
        git -c safe.directory=* -c user.name=n -c user.email=e add -A
        git -c safe.directory=* -c user.name=n -c user.email=e commit -qm first
        cc a.c -o a && ./a
        python3 -c 'import subprocess, sqlite3; subprocess.run(["ls"], check=True)'
        tar cf t.tar a.c && cp -a a.c b.c && rm -r .git a a.c b.c t.tar
    """
    in_python(lambda: run(["sh", "-c", script], Sandbox.host_workspace(place)).check() and None)
    assert list(place.iterdir()) == []


REFUSED: dict[str, Any] = {
    "--tmpfs": lambda spec: spec.tmpfs("/tmp"),
    "--unshare-pid": lambda spec: spec.replace(unshare={Namespace.PID}),
    "--unshare-net": lambda spec: spec.network("none"),
    "--bind": lambda spec: spec.bind("/usr", "/elsewhere"),
    "--cap-add": lambda spec: spec.replace(caps_drop=frozenset(), caps_add={"cap_chown"}),
    "--uid": lambda spec: spec.replace(uid=4711),
}


@pytest.mark.parametrize("named", REFUSED)
def test_what_can_not_be_had_is_a_spec_error(place: Path, named: str) -> None:
    with pytest.raises(SpecError, match=f"{named}.*host|{named} requires"):
        run(["true"], REFUSED[named](Sandbox.host_workspace(place)))


def test_other_errors(place: Path) -> None:
    spec = Sandbox.host_workspace(place)
    # the failure comes by way of the monitor: never later than the end of the start
    for _ in range(30):
        with pytest.raises(NsrunError, match="execvp no-such-command"):
            popen(["no-such-command"], spec)
    with pytest.raises(NsrunError, match="Can't find source path /absent"):
        run(["true"], spec.add(Bind("/absent", "/absent")))
    with pytest.raises(SpecError, match="deny_read"):
        spec.replace(deny_read=("/usr/share",))
    with pytest.raises(SpecError):
        run(["true"], Sandbox.minimal().add(Tmpfs("/x")).replace(backend="host"))


def test_a_dead_owner_ends_it(place: Path) -> None:
    marker = new_marker()
    spec = with_marker(Sandbox.host_workspace(place), marker)
    pid = os.fork()
    if not pid:
        popen(["sh", "-c", DAEMON + "sleep 500"], spec)
        os.kill(os.getpid(), signal.SIGKILL)
    try:
        os.waitpid(pid, 0)
        assert becomes(lambda: marked(marker) == [])
    finally:
        kill_marked(marker)


def test_leaving_early_ends_it(in_python: InPython, place: Path) -> None:
    marker = new_marker()
    spec = with_marker(Sandbox.host_workspace(place), marker)

    def work() -> tuple[int, list[int]]:
        with popen(["sh", "-c", DAEMON + "sleep 500"], spec) as process:
            assert becomes(lambda: len(marked(marker)) >= 3)
        return process.returncode or 0, marked(marker)

    assert in_python(work) == (128 + signal.SIGKILL, [])


def test_signals_reach_all(in_python: InPython, place: Path) -> None:
    """As in a pid namespace, by the reaper."""
    script = """
        for n in 1 2 3; do sh -c 'trap "echo got >> log; exit" TERM; echo up >> log
            while :; do sleep 0.02; done' & done
        trap '' TERM; wait; wait
    """
    log = place / "log"

    def work() -> int:
        with popen(["sh", "-c", script], Sandbox.host_workspace(place)) as process:
            assert becomes(lambda: log.exists() and log.read_text().count("up") == 3)
            process.terminate()
            return process.wait(LIMIT)

    in_python(work)
    assert log.read_text().count("got") == 3


def test_time_and_limits(in_python: InPython, place: Path) -> None:
    marker = new_marker()
    spec = with_marker(Sandbox.host_workspace(place), marker).limit(open_files=50)

    def work() -> list[Any]:
        with popen(["sh", "-c", DAEMON + "sleep 500"], spec, timeout=0.3) as process:
            code = process.wait(LIMIT)
            ending = process.result().ending
        return [code, ending.value, run(["sh", "-c", "ulimit -n"], spec, text=True).stdout]

    assert in_python(work) == [128 + signal.SIGKILL, "timed out", "50\n"]
    assert marked(marker) == []


def test_a_cgroup_holds_what_it_can(place: Path, lack: Lack) -> None:
    spec = Sandbox.host_workspace(place).replace(limits=Limits(pids=20))
    try:
        result = run(["sh", "-c", "for i in $(seq 60); do sleep 1 & done; wait"], spec, text=True)
    except NsrunError as error:
        lack(f"no cgroup for a limit: {error.text}")
    assert result.returncode
    assert "fork" in result.stderr.lower()


def test_streams_and_terminal(place: Path) -> None:
    spec = Sandbox.host_workspace(place)
    assert run(["cat"], spec, input=b"x" * 10**6).stdout == b"x" * 10**6
    with popen(
        ["sh", "-c", "test -t 0 && tty > /dev/null; stty size"], spec, pty=(7, 33)
    ) as process:
        out, _ = process.communicate(timeout=LIMIT)
    assert out.split() == [b"7", b"33"]


def test_from_asyncio(place: Path) -> None:
    async def work() -> list[int]:
        spec = Sandbox.host_workspace(place)
        results = await asyncio.gather(
            *(aio.run(["sh", "-c", f"exit {n}"], spec) for n in range(8))
        )
        return [result.returncode for result in results]

    assert asyncio.run(work()) == list(range(8))


def test_nothing_of_the_caller_s_changes(in_python: InPython, place: Path) -> None:
    def work() -> bool:
        spec = Sandbox.host_workspace(place)
        run(["true"], spec)
        fds, environment, cwd = open_fds(), dict(os.environ), Path.cwd()
        status = Path("/proc/self/status").read_text()
        for _ in range(5):
            run(["true"], spec)
        kept = ("Uid", "Gid", "NoNewPrivs", "SigBlk", "SigIgn", "CapEff", "Seccomp")
        same = [line for line in Path("/proc/self/status").read_text().splitlines()
                if line.startswith(kept)] == [line for line in status.splitlines()
                                              if line.startswith(kept)]  # fmt: skip
        return same and open_fds() == fds and dict(os.environ) == environment and Path.cwd() == cwd

    assert in_python(work)


def test_many_at_once_leave_nothing(place: Path) -> None:
    """The temporary directories are where the command's environment has TMPDIR."""
    spec = Sandbox.host_workspace(place).env(TMPDIR=str(place))
    processes = [popen(["sleep", "500"], spec) for _ in range(20)]
    assert len(list(place.iterdir())) == 20
    for process in processes:
        process.close()
    assert list(place.iterdir()) == []
    assert {process.returncode for process in processes} == {128 + signal.SIGKILL}
