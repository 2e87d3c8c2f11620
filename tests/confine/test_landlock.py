"""Landlock as a second wall: what the mounts alone would let pass, and what it costs."""

from __future__ import annotations

import errno
import os
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hostlib import Ended, Lack, Runner

from cowork_nsrun import Plan, Pool, Sandbox, SpecError, Tmpfs, run
from cowork_nsrun._native import PlanFlag, Words, landlock_abi

EACCES, EPERM = errno.EACCES, errno.EPERM
VIEW = ("--ro-bind", "/", "/", "--dev", "/dev", "--proc", "/proc", "--tmpfs", "/tmp")
WALL = ("--landlock",)
CREATE_RULESET = 444


@pytest.fixture(autouse=True)
def landlock(lack: Lack) -> None:
    if landlock_abi() < 6:
        lack("no Landlock of ABI 6: the second wall's scopes")


def shell(runner: Runner, script: str, *options: str, **more: str) -> Ended:
    return runner.run([*options, "sh", "-c", script], **more)  # type: ignore[arg-type]


def test_what_only_the_root_of_mounts_could_write(runner: Runner) -> None:
    """The tmpfs that holds the rest is writable to its owner."""
    view = ("--ro-bind", "/usr", "/usr", "--symlink", "usr/bin", "/bin", "--symlink", "usr/lib",
            "/lib", "--symlink", "usr/lib64", "/lib64")  # fmt: skip
    assert shell(runner, "echo > /new", *view).status == 0
    ended = shell(runner, "echo > /new", *view, *WALL)
    assert ended.status != 0
    assert "Permission denied" in ended.stderr


def test_what_is_writable_stays_so(runner: Runner, ground: Path) -> None:
    script = f"""
    set -e
    mkdir -p a/b c && echo x > a/b/f && mv a/b/f c/g && ln c/g a/h && ln -s h a/l && rm -r a c
    mkfifo p && rm p && echo > /dev/null && echo > /tmp/t && mv /tmp/t /tmp/u
    echo > /dev/shm/s && truncate -s 3 {ground}/t && echo 500 > /proc/self/oom_score_adj
    """
    options = (*VIEW, "--bind", str(ground), str(ground), "--chdir", str(ground))
    ended = shell(runner, script, *options, *WALL)
    assert ended.status == 0, ended
    assert [path.name for path in ground.iterdir()] == ["t"]


def test_directories_that_hold_others_are_not_written(runner: Runner) -> None:
    options = (*VIEW, "--tmpfs", "/mnt", "--remount-ro", "/mnt", "--dir", "/tmp/stem",
               "--ro-bind", "/usr", "/tmp/stem/usr", "--dir", "/tmp/leaf")  # fmt: skip
    ended = shell(runner, "echo > /tmp/leaf/x; echo > /mnt/x", *options, *WALL)
    assert "/tmp/leaf" not in ended.stderr
    assert "/mnt/x: Read-only file system" in ended.stderr


def test_mount_is_over(as_user: Runner, walls: Path) -> None:
    options = ("--unshare-user", "--cap-add", "ALL", *VIEW, "--ro-bind", str(walls), "/tmp/walls")
    free = as_user.run([*options, "/tmp/walls", "calls"]).attempts()
    held = as_user.run([*options, *WALL, "/tmp/walls", "calls"]).attempts()
    assert (free["mount"], free["tmpfs"]) == (0, 0)
    assert (held["mount"], held["tmpfs"]) == (EPERM, EPERM)


def test_sandboxes_inside_are_over(runner: Runner) -> None:
    inner = [str(runner.program), "--ro-bind", "/", "/", "--tmpfs", "/tmp", "true"]
    bound = ("--ro-bind", str(runner.program.parent), str(runner.program.parent))
    assert runner.run([*VIEW, *bound, *inner]).status == 0
    assert runner.run([*VIEW, *bound, *WALL, *inner]).status == 1


def test_signals_to_pid_1_and_outside(runner: Runner) -> None:
    options = ("--unshare-pid", *VIEW)
    assert shell(runner, "kill -0 1", *options).status == 0
    held = shell(runner, "sleep 9 & kill -TERM $! && kill -0 1", *options, *WALL)
    assert "not permitted" in held.stderr.lower()


@pytest.fixture
def abstract() -> Iterator[str]:
    name = f"nsrun-test-{os.getpid()}-{time.monotonic_ns()}"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(f"\0{name}")
        server.listen()
        yield name


def test_abstract_sockets_of_a_shared_network(runner: Runner, walls: Path, abstract: str) -> None:
    options = (*VIEW, "--ro-bind", str(walls), "/tmp/walls")
    command = ("/tmp/walls", "unix", "/nowhere", abstract)
    assert runner.run([*options, *command]).attempts()["abstract"] == 0
    assert runner.run([*options, *WALL, *command]).attempts()["abstract"] == EPERM


def test_tcp_ports(runner: Runner, walls: Path) -> None:
    options = (*VIEW, "--ro-bind", str(walls), "/tmp/walls")
    with socket.create_server(("127.0.0.1", 0)) as server:
        command = ("/tmp/walls", "tcp", str(server.getsockname()[1]), "0")
        assert runner.run([*options, *WALL, *command]).attempts() == {"connect": 0, "bind": 0}
        held = ("--tcp-connect", "none", "--tcp-bind", "7")
        refused = {"connect": EACCES, "bind": EACCES}
        assert runner.run([*options, *WALL, *held, *command]).attempts() == refused


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--tcp-connect", "80"], "--tcp-connect requires --landlock"),
        (["--landlock", "--tcp-bind", "0"], "--tcp-bind: 0 is neither a port nor none"),
        (["--landlock", "--tcp-bind", "65536"], "neither a port"),
        (["--landlock", "--tcp-bind", "8o"], "neither a port"),
        (["--unconfined"], "--unconfined requires --backend host"),
        (["--private-tmp"], "--private-tmp requires --backend host"),
        (["--backend", "host", "--unconfined", "--landlock"], "not compatible"),
    ],
)
def test_options_that_make_no_sense(as_user: Runner, options: list[str], text: str) -> None:
    ended = as_user.run([*options, *VIEW, "true"])
    assert ended.status == 1
    assert text in ended.stderr


def test_without_landlock_it_is_refused(runner: Runner, deny: Path, abi: Path) -> None:
    """Never a sandbox with one wall where two were asked for."""
    for prefix, text in (
        ([deny, f"{CREATE_RULESET}={errno.ENOSYS}", "--"], "no Landlock"),
        ([deny, f"{CREATE_RULESET}={errno.EOPNOTSUPP}", "--"], "lsm="),
        ([abi, "1", "--"], "ABI 1"),
    ):
        ended = runner.run([*VIEW, *WALL, "echo", "ran"], prefix=prefix)
        assert (ended.status, ended.stdout) == (1, "")
        assert "--landlock: " in ended.stderr
        assert text in ended.stderr
        assert runner.run([*VIEW, "echo", "ran"], prefix=prefix).stdout == "ran\n"


@pytest.mark.parametrize("version", [2, 3, 4, 5, 6])
def test_older_versions(runner: Runner, abi: Path, version: int) -> None:
    script = "echo > /tmp/f; cat /usr/bin/env > /dev/null; echo done"
    ended = shell(runner, script, *VIEW, *WALL, prefix=[abi, str(version), "--"])  # type: ignore[arg-type]
    assert (ended.status, ended.stdout) == (0, "done\n"), ended


# --- from Python ------------------------------------------------------------------------------


def test_spec_and_options_are_the_same() -> None:
    spec = Sandbox(
        filesystem=(Tmpfs("/tmp"),),
        landlock=True,
        tcp_connect=(80, 443),
        tcp_bind=(),
        clear_env=True,
    )
    options = ["--landlock", "--tcp-connect", "80", "--tcp-connect", "443", "--tcp-bind", "none"]
    plan = Plan.from_argv(["--close-fds", "--tmpfs", "/tmp", *options, "true"], {})
    assert Plan.from_spec(spec, ["true"]) == plan == Plan.from_bytes(plan.to_bytes())
    assert plan.flags & PlanFlag.LANDLOCK
    assert plan.native.words(Words.TCP_BIND) == ("none",)


@pytest.mark.parametrize(
    "wrong",
    [{"tcp_connect": (80,)}, {"landlock": True, "tcp_bind": (0,)}, {"landlock": 1},
     {"backend": "vm"}, {"private_tmp": True}, {"deny_read": ("a",)}, {"deny_write": "/a"},
     {"deny_write": ("/a/../b",)}, {"backend": "host", "deny_read": ("/a",)}],
)  # fmt: skip
def test_wrong_fields_are_named(wrong: dict[str, object]) -> None:
    with pytest.raises(SpecError, match=rf"Sandbox\.({'|'.join(wrong)})"):
        Sandbox().replace(**wrong)


def test_in_process_and_from_a_pool(in_python: Callable[[Callable[[], Any]], Any]) -> None:
    spec = Sandbox.minimal().replace(landlock=True)
    script = ["sh", "-c", "echo > /tmp/a && ! echo > /new && kill -0 1"]

    def both() -> list[str]:
        results = [run(script, spec, text=True)]
        with Pool(spec, 1) as pool:
            results.append(pool.run(script, text=True))
            assert pool.stats().fresh + pool.stats().handed == 1
        return [result.stderr for result in results]

    for text in in_python(both):
        assert "/new: Permission denied" in text
        assert "not permitted" in text.lower()
    free = run(script, spec.replace(landlock=False), text=True)
    assert "Permission denied" not in free.stderr
