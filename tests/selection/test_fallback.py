"""The fallback for real: our namespaces are refused, a set-user-id bwrap's are not."""

from __future__ import annotations

import json
import os
import re
import shutil
import struct
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hostlib import becomes
from worlds import GID, SANDBOX, UID, Tools, World

from cowork_nsrun import Bind, File, Plan, Sandbox, Tmpfs

HERE = Path(__file__).parent
LARGE = bytes(range(256)) * 800  # more than a pipe holds
ALLOW = struct.pack("HBBI", 0x06, 0, 0, 0x7FFF0000)
# getppid fails with EBADMSG: ld nr; jeq getppid; ret errno; ret allow
SYS_GETPPID, EBADMSG = 110, 74
DENY_GETPPID = b"".join(
    [
        struct.pack("HBBI", 0x20, 0, 0, 0),
        struct.pack("HBBI", 0x15, 0, 1, SYS_GETPPID),
        struct.pack("HBBI", 0x06, 0, 0, 0x00050000 | EBADMSG),
        ALLOW,
    ]
)
TOLD = re.compile(rb"nsrun: own namespaces are refused \(.+\); run by /[^\n]+/bwrap\n")

# a fresh /proc is refused where something of the old one is hidden
MASKED = "mount -t tmpfs -o ro mask /proc/irq"


@pytest.fixture
def world(set_user_id: Path) -> World:
    return World(limit=0, bwrap=set_user_id)


@contextmanager
def content(data: bytes) -> Iterator[int]:
    """The reading end of a pipe: what was read from it once is gone."""
    r, w = os.pipe()

    def feed() -> None:
        with open(w, "wb") as pipe:
            pipe.write(data)

    writer = threading.Thread(target=feed)
    writer.start()
    try:
        yield r
    finally:
        os.close(r)
        writer.join()


@pytest.mark.parametrize("status", [0, 1, 7, 255])
def test_exit_status_and_stdin(world: World, tools: Tools, status: int) -> None:
    command = ["sh", "-c", f"cat; cat /proc/1/comm >&2; exit {status}"]
    ended = world.run(tools, [tools.nsrun, *SANDBOX, *command], stdin=LARGE)
    assert ended.stdout == LARGE
    told, _, ran = ended.stderr.partition(b"\n")
    assert TOLD.fullmatch(told + b"\n"), ended
    assert ran == b"bwrap\n"
    assert ended.returncode == status


def test_death_by_signal(world: World, tools: Tools) -> None:
    ended = world.run(tools, [tools.nsrun, *SANDBOX, "sh", "-c", "kill -9 $$"])
    assert ended.returncode == 128 + 9


def test_quiet(world: World, tools: Tools) -> None:
    ended = world.run(tools, [tools.nsrun, "--quiet", *SANDBOX, "true"])
    assert (ended.returncode, ended.stderr) == (0, b"")


def test_contents_that_were_read_are_served_again(world: World, tools: Tools) -> None:
    padding = [word for i in range(2000) for word in ("--setenv", f"V{i}", "x" * 90)]
    options = ["--tmpfs", "/tmp", *padding, "--setenv", "LAST", "here"]
    packed = b"".join(os.fsencode(word) + b"\0" for word in options)
    assert len(packed) > 200_000
    with (
        content(packed) as args,
        content(LARGE) as file,
        content(LARGE[::-1]) as data,
        content(DENY_GETPPID) as program,
        content(ALLOW) as second,
    ):
        words = [*SANDBOX, "--args", args, "--file", file, "/tmp/file"]
        words += ["--perms", "0640", "--ro-bind-data", data, "/tmp/data"]
        words += ["--add-seccomp-fd", program, "--add-seccomp-fd", second]
        script = (
            "echo $LAST $V1999 $(stat -c %a /tmp/data); cmp /tmp/file /proc/self/fd/0 && "
            "tac -rs '.\\|\\n' /tmp/data >/dev/null; wc -c < /tmp/data; "
            'python3 -c "import os; print(os.getppid())"'
        )
        ended = world.run(
            tools,
            [tools.nsrun, *words, "sh", "-c", script],
            stdin=LARGE,
            pass_fds=[args, file, data, program, second],
        )
    lines = ended.stdout.decode().splitlines()
    assert lines[0] == f"here {'x' * 90} 640", ended
    assert lines[1] == str(len(LARGE))
    # no wrapper checks getppid(2): it returns what the filter says
    assert lines[2] == str(-1) or lines[2] == str(-EBADMSG), ended


def test_block_and_status_fds(world: World, tools: Tools) -> None:
    r, w = os.pipe()
    block_r, block_w = os.pipe()
    os.write(block_w, b"x")
    words = [*SANDBOX, "--json-status-fd", w, "--block-fd", block_r, "sh", "-c", "exit 3"]
    ended = world.run(tools, [tools.nsrun, *words], pass_fds=[w, block_r])
    os.close(w)
    with open(r, "rb") as file:
        records = file.read()
    os.close(block_r)
    os.close(block_w)
    assert ended.returncode == 3
    assert b'"child-pid"' in records
    assert b'"exit-code": 3' in records


LEAK = "ls /proc/self/fd | sort -n | tr '\\n' ' '"


def test_payload_gets_no_fds_of_ours(world: World, tools: Tools) -> None:
    with content(b"x") as file:
        words = [*SANDBOX, "--tmpfs", "/tmp", "--file", file, "/tmp/x", "sh", "-c", LEAK]
        ended = world.run(tools, [tools.nsrun, *words], pass_fds=[file])
    assert ended.stdout == b"0 1 2 3 ", ended


def test_close_fds(world: World, tools: Tools) -> None:
    with content(b"x") as file, content(b"y") as other:
        words = [*SANDBOX, "--tmpfs", "/tmp", "--file", file, "/tmp/x", "sh", "-c", LEAK]
        open_ = world.run(tools, [tools.nsrun, *words], pass_fds=[file, other])
    assert str(other).encode() in open_.stdout.split(), "control"
    with content(b"x") as file, content(b"y") as other, content(ALLOW) as program:
        words = ["--close-fds", "--add-seccomp-fd", program, *SANDBOX, "--tmpfs", "/tmp",
                 "--file", file, "/tmp/x", "sh", "-c", LEAK]  # fmt: skip
        closed = world.run(tools, [tools.nsrun, *words], pass_fds=[file, other, program])
    assert closed.stdout == b"0 1 2 3 ", closed


def test_environment_is_the_plans_and_not_in_argv(world: World, tools: Tools) -> None:
    words = [*SANDBOX, "--unsetenv", "GONE", "--setenv", "NEW", "secret-word", "sh", "-c"]
    script = "tr '\\0' ' ' < /proc/1/cmdline; echo; env"
    env = {"GONE": "1", "KEPT": "2"}
    ended = world.run(tools, [tools.nsrun, *words, script], env=env)
    cmdline, _, rest = ended.stdout.decode().partition("\n")
    seen = dict(line.split("=", 1) for line in rest.splitlines())
    assert "secret-word" not in cmdline
    assert seen["NEW"] == "secret-word"
    assert seen["KEPT"] == "2"
    assert "GONE" not in seen
    assert "NSRUN_FALLBACK" not in seen


def test_loader_variables_meant_for_inside_stay_inside(world: World, tools: Tools) -> None:
    """They would have bwrap itself load a file of the sandbox's choice, outside."""
    words = [*SANDBOX, "--setenv", "LD_DEBUG", "libs", "sh", "-c", "exit 0"]
    ended = world.run(tools, [tools.nsrun, *words])
    assert b"libcap" not in ended.stderr, "bwrap's own libraries were traced"
    assert b"libc.so" in ended.stderr, "control: the command's were"


def test_plan_in_bytes(world: World, tools: Tools) -> None:
    whole = (Bind("/", "/", read_only=True), Tmpfs("/tmp"), File("/tmp/x", LARGE))
    plan = Plan.from_spec(Sandbox(filesystem=whole), ["wc", "-c", "/tmp/x"])
    with content(plan.to_bytes()) as fd:
        ended = world.run(tools, [tools.nsrun, "--plan", fd], pass_fds=[fd])
        assert TOLD.fullmatch(ended.stderr), ended
    assert ended.stdout == f"{len(LARGE)} /tmp/x\n".encode()
    with content(plan.to_bytes()) as fd:
        words = ["--quiet", "--backend", "BWRAP", "--plan", fd]
        ended = world.run(tools, [tools.nsrun, *words], pass_fds=[fd])
    assert (ended.stdout, ended.stderr) == (f"{len(LARGE)} /tmp/x\n".encode(), b"")


def test_what_bwrap_cannot_express_is_refused_by_name(world: World, tools: Tools) -> None:
    r, w = os.pipe()
    words = [*SANDBOX, "--close-fds", "--sync-fd", w, "true"]
    ended = world.run(tools, [tools.nsrun, "--quiet", *words], pass_fds=[w])
    os.close(r)
    os.close(w)
    assert ended.returncode == 1
    assert ended.stderr == b"nsrun: bwrap can't express --close-fds with --sync-fd\n"


def test_user_namespace_by_name_is_not_taken_for_granted(world: World, tools: Tools) -> None:
    """This bwrap can do without one, but the plan asks for it: an error, not a weaker sandbox."""
    ended = world.run(tools, [tools.nsrun, "--unshare-user", *SANDBOX, "true"])
    assert ended.returncode == 1
    assert re.fullmatch(rb"nsrun: Creating new namespace failed: [^\n]+\n", ended.stderr), ended


def test_too_late_to_hand_over(tools: Tools, set_user_id: Path) -> None:
    """What is refused after the clone: the sandbox has read from the fds already."""
    world = World(script=MASKED, bwrap=set_user_id)
    command = ["cat", "/proc/1/comm"]
    assert world.probe(tools)["selection"]["backend"] == "bwrap"
    ended = world.run(tools, [tools.nsrun, *SANDBOX, *command])
    assert ended.returncode == 1
    program = f"with '--backend bwrap' {set_user_id}/bwrap would run it"
    assert ended.stderr.decode().endswith(f"; {program}\n"), ended
    ended = world.run(tools, [tools.nsrun, "--backend", "bwrap", *SANDBOX, *command])
    assert ended.stdout == b"bwrap\n", ended


def twice(world: World, tools: Tools, backend: str) -> list[dict[str, str]]:
    """What comes of two runs of one Python program."""
    program = [sys.executable, "-I", HERE / "twice_as_user.py", UID, GID, backend]
    ended = world.run(tools, program, root=True)
    assert ended.returncode == 0, ended
    found: list[dict[str, str]] = json.loads(ended.stdout)
    return found


def test_too_late_for_this_one_but_not_for_the_next(tools: Tools, set_user_id: Path) -> None:
    """From Python: the first failure makes the program ask who can."""
    first, second = twice(World(script=MASKED, bwrap=set_user_id), tools, "auto")
    assert "/proc" in first["error"]
    assert second == {"backend": "namespaces (bwrap)", "seen": "bwrap"}


def test_too_late_and_nobody_else_can(tools: Tools) -> None:
    first, second = twice(World(script=MASKED), tools, "auto")
    assert "/proc" in first["error"]
    assert "no backend can run here" in second["error"]
    assert "See 'nsrun doctor'" in second["error"]


@pytest.mark.parametrize("how", [{"script": MASKED}, {"limit": 0}], ids=["late", "at the clone"])
def test_python_asked_for_our_namespaces_takes_no_other(
    tools: Tools, set_user_id: Path, how: dict[str, Any]
) -> None:
    for found in twice(World(bwrap=set_user_id, **how), tools, "namespaces"):
        assert "error" in found


def test_never_without_being_asked_as_bwrap(world: World, tools: Tools, set_user_id: Path) -> None:
    """Called as bwrap: only where the installation's configuration, root's own, says so."""
    place = tools.directory / "configured"
    shutil.rmtree(place, ignore_errors=True)
    (place / "etc").mkdir(parents=True)
    alias = place / "bwrap"
    alias.symlink_to(tools.nsrun)

    def run(text: str, mode: int = 0o644, uid: int = 0) -> bytes:
        conf = place / "etc" / "nsrun.conf"
        conf.unlink(missing_ok=True)
        conf.write_text(text)
        conf.chmod(mode)
        os.chown(conf, uid, 0)
        # a copy, since the file may not be there to be bound over
        script = f"cp -a /etc/. {place}/etc2 && cp -a {conf} {place}/etc2/ && "
        script += f"mount --bind {place}/etc2 /etc"
        (place / "etc2").mkdir(exist_ok=True)
        changed = World(script=script, limit=0, bwrap=set_user_id)
        return changed.run(tools, [alias, *SANDBOX, "cat", "/proc/1/comm"]).stdout

    assert run("bwrap-fallback = yes\n") == b"bwrap\n"
    assert run("# so\n\nother=1\n\tbwrap-fallback=yes  ") == b"bwrap\n"
    assert run("bwrap-fallback = no\n") == b""
    assert run("#bwrap-fallback = yes\n") == b""
    assert run("bwrap-fallback = yes please\n") == b""
    assert run("bwrap-fallback = yes\n", mode=0o666) == b"", "others can write to it"
    assert run("bwrap-fallback = yes\n", uid=12345) == b"", "it is not root's"


def test_killed_while_it_probes(tools: Tools) -> None:
    """A bwrap that hangs does not outlive the nsrun that asked it."""
    place = tools.directory / "hanging"
    place.mkdir()
    marker = place / "pid"
    marker.touch()
    marker.chmod(0o666)
    (place / "bwrap").write_text(f"#!/bin/sh\necho $$ >{marker}\nexec sleep 600\n")
    (place / "bwrap").chmod(0o755)
    world = World(limit=0, bwrap=place)
    script = f"{tools.nsrun} {' '.join(SANDBOX)} true & "
    script += f"until [ -s {marker} ]; do sleep 0.05; done; kill -9 $!; wait $!; echo $?"
    ended = world.run(tools, ["sh", "-c", script])
    assert ended.stdout.split()[-1] == b"137", ended
    pid = int(marker.read_text())
    assert becomes(lambda: not Path(f"/proc/{pid}").exists())
