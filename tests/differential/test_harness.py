"""Controls: the harness sees what it should, and is blind to what it should be."""

from __future__ import annotations

import re
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from corpus import CORPUS, SEE, look
from differences import KNOWN, Comparison, judge
from harness import (
    ROOT,
    USER,
    Bench,
    Case,
    Divergence,
    Fd,
    Output,
    Program,
    Result,
    collect,
    diverge,
)

BY_NAME = {case.name: case for case in CORPUS}
STEADY = (
    "plain",
    "only--unshare-all",
    "flatpak",
    "webkit",
    "codex",
    "cowork-links",
    "shared-cowork-binds",
    "terminal",
    "orphan",
    "info7",
    "status7",
    "userns",
    "tmp-overlay",
    "many",
)

BASE = look(
    "base", "--unshare-pid", "--tmpfs", "/t", "--bind", "{w}/dir", "/w", "--setenv", "A", "1"
)
# What is changed in the argv, and where that must show.
ALTERED = {
    "a bind's flags": (("--bind", "--ro-bind"), "seen.mounts./w@1.options"),
    "a device bind": (("--bind", "--dev-bind"), "seen.mounts./w@1.options"),
    "a bind's source": (("{w}/dir", "{w}/empty"), "seen.mounts./w@1.root"),
    "a place": (("/t", "/u"), "seen.mounts./t@1.fs"),
    "a variable": (("A", "B"), "seen.process.environ.4"),
    "a namespace": (("--unshare-pid", "--unshare-ipc"), "seen.namespaces.ipc.inode"),
    "the session": (("--unshare-pid", "--new-session"), "seen.process.sid"),
    "a failure": (("--unshare-pid", "--assert-userns-disabled"), "status"),
}
ADDED = {
    "capabilities": (("--cap-drop", "CAP_CHOWN"), "seen.caps.effective"),
    "the directory": (("--chdir", "/t"), "seen.process.cwd"),
    "a death signal": (("--die-with-parent",), "seen.prctl.death_signal"),
    "a file's mode": (("--perms", "0700", "--dir", "/x"), "seen.tree./x.mode"),
    "a host file": (("--dir", "/w/made"), "host.dir/made.mode"),
    "the network": (("--unshare-net",), "seen.net.links"),
    "a tmpfs's flags": (("--remount-ro", "/t"), "seen.mounts./t@1.options"),
    "a warning": (("--chdir", "/", "--chdir", "/"), "stderr"),
    "argv": (("--argv0", "x"), "seen.process.argv"),
    "user namespaces": (("--unshare-user", "--disable-userns"), "seen.may.user_namespace"),
    "ids": (("--unshare-user", "--uid", "7"), "seen.identity.uid_map"),
    "the host name": (("--unshare-uts", "--hostname", "x"), "seen.hostname"),
}


def differing(bench: Bench, program: Program, one: Case, other: Case) -> set[str]:
    found = diverge(bench.run(program, one, ROOT), bench.run(program, other, ROOT))
    return {divergence.path for divergence in found}


@pytest.mark.usefixtures("as_root")
@pytest.mark.parametrize("identity", [ROOT, USER], ids=lambda identity: identity.name)
@pytest.mark.parametrize("name", STEADY)
def test_bwrap_agrees_with_itself(
    bench: Bench, newest: Program, name: str, identity: object
) -> None:
    who = ROOT if identity == ROOT else USER
    first, second = (bench.run(newest, BY_NAME[name], who) for _ in range(2))
    assert diverge(first, second) == []
    assert first.seen or first.stdout or first.records


@pytest.mark.usefixtures("as_root")
@pytest.mark.parametrize("what", ALTERED)
def test_a_changed_word_is_caught(bench: Bench, newest: Program, what: str) -> None:
    (old, new), path = ALTERED[what]
    other = replace(BASE, argv=tuple(new if word == old else word for word in BASE.argv))
    assert path in differing(bench, newest, BASE, other)


@pytest.mark.usefixtures("as_root")
@pytest.mark.parametrize("what", ADDED)
def test_an_added_option_is_caught(bench: Bench, newest: Program, what: str) -> None:
    words, path = ADDED[what]
    other = replace(BASE, argv=(*BASE.argv[: -len(SEE)], *words, *SEE))
    assert path in differing(bench, newest, BASE, other)


@pytest.mark.usefixtures("as_root")
@pytest.mark.parametrize(
    ("launch", "path"),
    [
        (("block", "10"), "seen.process.blocked"),
        (("ignore", "10"), "seen.process.ignored"),
        (("umask", "77"), "seen.process.umask"),
        (("close", "0"), "seen.fds.0.type"),
        (("bounding", "1fffefffffe"), "seen.caps.bounding"),
        (("files", "300"), "seen.process.rlimits"),
        (("nice", "3"), "seen.process.nice"),
    ],
    ids=str,
)
def test_an_inherited_state_is_caught(
    bench: Bench, newest: Program, launch: tuple[str, ...], path: str
) -> None:
    assert path in differing(bench, newest, BASE, replace(BASE, launch=launch))


@pytest.mark.usefixtures("as_root")
def test_an_open_descriptor_is_caught(bench: Bench, newest: Program) -> None:
    other = replace(BASE, fds={"a": Fd("file", b"x")})
    assert "seen.fds.20.type" in differing(bench, newest, BASE, other)


@pytest.mark.usefixtures("as_root")
def test_a_closed_status_descriptor_is_caught(bench: Bench, newest: Program) -> None:
    with_status = replace(
        BASE, argv=("--json-status-fd", "{fd:s}", *BASE.argv), fds={"s": Fd("sink")}
    )
    with_info = replace(BASE, argv=("--info-fd", "{fd:s}", *BASE.argv), fds={"s": Fd("sink")})
    assert "records.s.shape" in differing(bench, newest, with_status, with_info)


def test_a_command_that_takes_its_time_has_all_of_its_input() -> None:
    """More than a pipe holds, read later than the harness looks whether it has ended."""
    given = b"line\n" * 40000
    process = subprocess.Popen(
        ["sh", "-c", "sleep 1; cat"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    assert collect(process, given) == Output(0, given, b"")


def test_a_known_difference_is_no_wider_than_its_row(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    program = Program("some bwrap", tmp_path_factory.mktemp("p") / "bwrap", (0, 11))
    root = Divergence("seen.mounts./@0.root", "/newroot", "/")
    flags = Divergence("seen.mounts./@0.options", "rw,nosuid,nodev,relatime", "rw,relatime")
    other = Divergence("seen.mounts./w@1.root", "/newroot", "/")
    nothing = Result(0, "", "", False, {}, {}, {})
    verdict = judge([root, flags, other], Comparison(program, BASE, nothing, nothing))
    assert verdict.applied == ["root-mount-field"]
    assert verdict.unexpected == [flags, other]


def test_every_known_difference_is_documented() -> None:
    """docs/compatibility.md and the table that the tests apply name the same rows."""
    text = (Path(__file__).parents[2] / "docs/compatibility.md").read_text()
    documented = set(re.findall(r"^\| `([a-z][a-z0-9-]+)` \|", text, flags=re.M))
    assert documented == {row.name for row in KNOWN}
