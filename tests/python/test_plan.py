"""The plan: command lines, specs and bytes are three ways to the same thing."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cowork_nsrun import (
    Bind,
    BindData,
    BindFd,
    Chmod,
    Dev,
    Dir,
    File,
    Mqueue,
    Namespace,
    NsrunError,
    Overlay,
    Plan,
    Proc,
    ReadOnlyOverlay,
    RemountReadOnly,
    Sandbox,
    SpecError,
    Symlink,
    Tmpfs,
    TmpOverlay,
)
from cowork_nsrun._native import Number, OpFlag, OpType, PlanFlag
from cowork_nsrun.spec import Operation

ENV = {"PATH": "/bin", "HOME": "/home/u", "EMPTY": ""}

# what the options of bwrap are called here
SAME: dict[str, tuple[list[str], Operation]] = {
    "bind": (["--bind", "/a", "/b"], Bind("/a", "/b")),
    "ro-bind": (["--ro-bind", "/a", "/b"], Bind("/a", "/b", read_only=True)),
    "dev-bind": (["--dev-bind", "/a", "/b"], Bind("/a", "/b", devices=True)),
    "bind-try": (["--bind-try", "/a", "/b"], Bind("/a", "/b", optional=True)),
    "ro-bind-try": (
        ["--ro-bind-try", "/a", "/b"],
        Bind("/a", "/b", read_only=True, optional=True),
    ),
    "dev-bind-try": (
        ["--dev-bind-try", "/a", "/b"],
        Bind("/a", "/b", devices=True, optional=True),
    ),
    "bind-fd": (["--bind-fd", "7", "/b"], BindFd(7, "/b")),
    "ro-bind-fd": (["--ro-bind-fd", "7", "/b"], BindFd(7, "/b", read_only=True)),
    "remount-ro": (["--remount-ro", "/a"], RemountReadOnly("/a")),
    "proc": (["--proc", "/proc"], Proc()),
    "dev": (["--dev", "/dev"], Dev()),
    "mqueue": (["--mqueue", "/m"], Mqueue("/m")),
    "tmpfs": (["--tmpfs", "/t"], Tmpfs("/t")),
    "tmpfs-more": (
        ["--perms", "1777", "--size", "65536", "--tmpfs", "/t"],
        Tmpfs("/t", size=65536, mode=0o1777),
    ),
    "dir": (["--dir", "/d"], Dir("/d")),
    "dir-perms": (["--perms", "0700", "--dir", "/d"], Dir("/d", mode=0o700)),
    "symlink": (["--symlink", "usr/bin", "/bin"], Symlink("usr/bin", "/bin")),
    "chmod": (["--chmod", "0500", "/d"], Chmod("/d", 0o500)),
    "overlay": (
        ["--overlay-src", "/l", "--overlay", "/u", "/w", "/o"],
        Overlay("/o", ("/l",), "/u", "/w"),
    ),
    "tmp-overlay": (["--overlay-src", "/l", "--tmp-overlay", "/o"], TmpOverlay("/o", ("/l",))),
    "ro-overlay": (
        ["--overlay-src", "/l", "--overlay-src", "/m", "--ro-overlay", "/o"],
        ReadOnlyOverlay("/o", ("/l", "/m")),
    ),
}


def from_argv(*options: str, env: Mapping[str, str] = ENV) -> Plan:
    return Plan.from_argv(["--close-fds", *options, "--", "true", "-x"], env)


@pytest.mark.parametrize("name", SAME)
def test_operation_is_the_same_as_the_option(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    options, operation = SAME[name]
    spec = Sandbox(filesystem=(operation,), clear_env=True).env(ENV)
    assert Plan.from_spec(spec, ["true", "-x"]) == from_argv(*options)


def test_switches_are_the_same_as_the_options() -> None:
    spec = Sandbox(
        unshare=frozenset({Namespace.USER, Namespace.PID, Namespace.UTS, Namespace.NET}),
        unshare_try=frozenset({Namespace.CGROUP}),
        disable_userns=True,
        uid=1000,
        gid=100,
        hostname="inside",
        cwd="/tmp",
        clear_env=True,
        environment=(("A", "b"), ("C", None)),
        caps_add=frozenset({"cap_net_raw"}),
        caps_drop=frozenset({"CAP_KILL"}),
        new_session=True,
        die_with_parent=True,
        lock_files=("/l",),
    )
    plan = from_argv(
        *["--unshare-user", "--unshare-pid", "--unshare-uts", "--unshare-net"],
        *["--unshare-cgroup-try", "--disable-userns", "--uid", "1000", "--gid", "100"],
        *["--hostname", "inside", "--chdir", "/tmp", "--clearenv", "--setenv", "A", "b"],
        *["--cap-add", "cap_net_raw", "--cap-drop", "CAP_KILL", "--new-session"],
        *["--die-with-parent", "--lock-file", "/l"],
    )
    assert Plan.from_spec(spec, ["true", "-x"]) == plan


def test_all_capabilities_but_one() -> None:
    spec = Sandbox(caps_drop=frozenset({"ALL"}), caps_add=frozenset({"cap_chown"}), clear_env=True)
    plan = from_argv("--clearenv", "--cap-drop", "ALL", "--cap-add", "cap_chown")
    assert Plan.from_spec(spec, ["true", "-x"]) == plan


def test_unknown_capability_is_named() -> None:
    with pytest.raises(SpecError, match="cap_fly") as caught:
        Plan.from_spec(Sandbox(caps_drop=frozenset({"cap_fly"})), ["true"])
    assert caught.value.field == "Sandbox.caps_drop"


def cowork_argv(home: str, session: str, mounts: Mapping[str, str]) -> list[str]:
    """The Cowork helper's command line, as that helper writes it."""
    root = f"/sessions/{session}"
    primary = next(name for name in mounts if not name.startswith(".") and name != "uploads")
    words = ["--chdir", f"{root}/mnt/{primary}", "--tmpfs", "/", "--ro-bind", "/usr", "/usr"]
    words += ["--ro-bind", "/etc", "/etc", "--dev", "/dev", "--proc", "/proc"]
    words += ["--tmpfs", "/tmp", "--tmpfs", "/run"]
    for path in ("/bin", "/lib", "/lib64", "/sbin"):
        if os.path.islink(path):
            words += ["--symlink", os.readlink(path), path]
        elif os.path.exists(path):
            words += ["--ro-bind", path, path]
    resolver = os.path.realpath("/etc/resolv.conf")
    if resolver.startswith("/run/") and os.path.exists(resolver):
        words += ["--ro-bind", os.path.dirname(resolver), os.path.dirname(resolver)]
    words += ["--dir", home, "--ro-bind", "/opt/tool", "/opt/tool"]
    words += ["--dir", root, "--dir", f"{root}/mnt"]
    for name, path in mounts.items():
        words += ["--ro-bind" if name == "docs" else "--bind", path, f"{root}/mnt/{name}"]
    return [*words, "--unshare-pid", "--die-with-parent", "--new-session"]


def test_cowork_preset_is_the_cowork_command_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_TOKEN", "t")
    mounts = {".claude": "/home/u/.claude", "work": "/home/u/work", "docs": "/home/u/docs"}
    spec = Sandbox.cowork("s1", mounts, home="/home/u", read_only={"docs"}, program_dir="/opt/tool")
    argv = ["--seccomp-profile", "nesting", *cowork_argv("/home/u", "s1", mounts)]
    assert Plan.from_spec(spec, ["true", "-x"]) == from_argv(*argv, env=dict(os.environ))


def test_introspection() -> None:
    spec = Sandbox(
        filesystem=(Tmpfs("/"), File("/f", b"\0data"), BindData("/g", b"", read_only=True)),
        unshare=frozenset({Namespace.PID, Namespace.UTS}),
        hostname="h",
        cwd="/f",
        clear_env=True,
        new_session=True,
    )
    plan = Plan.from_spec(spec.env(A="1"), ["cmd", "arg"])
    assert plan.argv == ("cmd", "arg")
    assert plan.environment == {"A": "1"}
    assert plan.unshare == {Namespace.PID, Namespace.UTS}
    assert plan.cwd == "/f"
    assert plan.hostname == "h"
    assert plan.flags == PlanFlag.NEW_SESSION | PlanFlag.CLOSE_FDS
    assert plan.number(Number.UID) == -1
    assert plan.fds == ()
    types = [operation.type for operation in plan.operations]
    assert types == [OpType.TMPFS, OpType.FILE, OpType.BIND_DATA, OpType.HOSTNAME]
    assert plan.operations[1].data == b"\0data"
    assert plan.operations[2].data == b""
    assert plan.operations[2].flags == OpFlag.RDONLY


def test_fds_are_those_that_the_plan_names() -> None:
    plan = from_argv("--bind-fd", "7", "/b", "--sync-fd", "8", "--file", "9", "/f")
    assert sorted(plan.fds) == [7, 8, 9]


def test_env_replaces_and_removes() -> None:
    spec = Sandbox(clear_env=True).env({"A": "1", "B": "2"}).env(A=None, B="3")
    assert Plan.from_spec(spec, ["x"]).environment == {"B": "3"}
    assert Plan.from_spec(spec, ["x"], env={"C": "4"}).environment == {"C": "4"}


def test_environment_is_that_of_the_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = Sandbox(environment=(("LC_ALL", "C"),))
    for value in ("1", "2", "\udcff", None):
        if value is None:
            monkeypatch.delenv("NSRUN_TEST", raising=False)
        else:
            monkeypatch.setenv("NSRUN_TEST", value)
        plan = Plan.from_spec(spec, ["x"])
        assert plan.environment == {**os.environ, "LC_ALL": "C"}
        assert plan.environment.get("NSRUN_TEST") == value
    # what one spec sets is not there for another
    assert Plan.from_spec(Sandbox(), ["x"]).environment == dict(os.environ)


@pytest.mark.parametrize("argv", [[], "true", ["a\0b"], [b"true"]])
def test_wrong_commands_are_refused(argv: list[str]) -> None:
    with pytest.raises(SpecError) as caught:
        Plan.from_spec(Sandbox(), argv)
    assert caught.value.field == "argv"


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--bind", "/a"], "--bind takes two arguments"),
        (["--no-such"], "Unknown option --no-such"),
        (["--hostname", "a"], "Specifying --hostname requires --unshare-uts"),
    ],
)
def test_command_line_errors_keep_their_text(options: list[str], text: str) -> None:
    with pytest.raises(NsrunError) as caught:
        Plan.from_argv(options, ENV)
    assert caught.value.text == text


def test_warnings_are_kept() -> None:
    plan = from_argv("--chdir", "/a", "--chdir", "/b")
    assert plan.warnings == ("Only the last --chdir option will take effect",)
    assert plan.cwd == "/b"


# --- bytes --------------------------------------------------------------------------------

EVERYTHING = [
    *(word for options, _ in SAME.values() for word in options),
    *["--unshare-all", "--hostname", "h", "--setenv", "X", "y", "--chdir", "/c"],
    *["--cap-drop", "ALL", "--lock-file", "/l", "--argv0", "zero", "--info-fd", "5"],
]


def test_bytes_come_back_the_same() -> None:
    plan = from_argv(*EVERYTHING)
    data = plan.to_bytes()
    again = Plan.from_bytes(data)
    assert again.to_bytes() == data
    assert again.operations == plan.operations
    assert again.environment == plan.environment
    assert again.flags == plan.flags


def test_every_truncation_is_refused() -> None:
    data = from_argv(*EVERYTHING).to_bytes()
    for length in range(1, len(data)):
        with pytest.raises(NsrunError):
            Plan.from_bytes(data[:length])


def test_more_behind_is_refused() -> None:
    with pytest.raises(NsrunError, match="cut short or has more"):
        Plan.from_bytes(from_argv(*EVERYTHING).to_bytes() + b"\0")


def test_empty_and_foreign_bytes_are_refused() -> None:
    for data in (b"", b"\0", b"#!/bin/sh\n", bytes(64)):
        with pytest.raises(NsrunError, match="Not a plan"):
            Plan.from_bytes(data)


def test_every_changed_byte_is_refused_or_kept_exactly() -> None:
    data = from_argv(*EVERYTHING).to_bytes()
    refused = 0
    for at in range(len(data)):
        for bit in (0x01, 0x80):
            changed = bytearray(data)
            changed[at] ^= bit
            try:
                plan = Plan.from_bytes(bytes(changed))
            except NsrunError:
                refused += 1
            else:
                assert plan.to_bytes() == changed
    # headers, counts and lengths hold; letters may become other letters
    assert refused > len(data) // 4


def test_another_version_is_named() -> None:
    data = bytearray(from_argv().to_bytes())
    data[4] += 1
    with pytest.raises(NsrunError, match="Plan of version 3"):
        Plan.from_bytes(bytes(data))


words = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=20)
paths = words.map(lambda text: "/" + text)
modes = st.integers(0, 0o7777)
operations: st.SearchStrategy[Operation] = st.one_of(
    st.builds(Bind, paths, paths, read_only=st.booleans(), optional=st.booleans()),
    st.builds(Tmpfs, paths, st.none() | st.integers(1, 2**63 - 1), modes),
    st.builds(Dir, paths, modes),
    st.builds(File, paths, st.binary(max_size=100), modes),
    st.builds(BindData, paths, st.binary(max_size=100), st.booleans(), modes),
    st.builds(Symlink, words.filter(bool), paths),
    st.builds(TmpOverlay, paths, st.lists(paths, min_size=1, max_size=3).map(tuple)),
    st.builds(Proc, paths),
    st.builds(Dev, paths),
)
specs = st.builds(
    Sandbox,
    filesystem=st.lists(operations, max_size=6).map(tuple),
    unshare=st.frozensets(st.sampled_from([Namespace.PID, Namespace.NET, Namespace.IPC])),
    cwd=st.none() | paths,
    clear_env=st.just(True),
    environment=st.dictionaries(
        words.filter(lambda text: text and "=" not in text), words, max_size=5
    ).map(lambda pairs: tuple(pairs.items())),
    seccomp=st.lists(st.binary(min_size=8, max_size=8), max_size=2).map(tuple),
    new_session=st.booleans(),
)


@settings(deadline=None)
@given(specs, st.lists(words, min_size=1, max_size=5))
def test_any_spec_survives_bytes(spec: Sandbox, argv: list[str]) -> None:
    plan = Plan.from_spec(spec, argv)
    again = Plan.from_bytes(plan.to_bytes())
    assert again == plan
    assert again.argv == tuple(argv)
    assert again.environment == dict(spec.environment)
    assert len(again.operations) == len(spec.filesystem)


@settings(deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_are_refused_or_kept(data: bytes) -> None:
    try:
        plan = Plan.from_bytes(data)
    except NsrunError:
        return
    assert plan.to_bytes() == data


def test_plan_outlives_what_it_was_made_from(tmp_path: Path) -> None:
    plans = [from_argv("--bind", f"{tmp_path}/{i}", "/b" * 50) for i in range(200)]
    texts = [plan.operations[0].source for plan in plans]
    assert texts == [f"{tmp_path}/{i}" for i in range(200)]
