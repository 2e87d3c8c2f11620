"""The spec: values are refused when they are made, by the name of their field."""

from __future__ import annotations

import dataclasses
import doctest
import inspect
import math
import os
import resource
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import cowork_nsrun.spec
from cowork_nsrun import (
    Bind,
    BindData,
    BindFd,
    Chmod,
    Dev,
    Dir,
    File,
    Limits,
    Mqueue,
    Namespace,
    Overlay,
    Proc,
    ReadOnlyOverlay,
    RemountReadOnly,
    Sandbox,
    SpecError,
    Symlink,
    Tmpfs,
    TmpOverlay,
)
from cowork_nsrun.spec import LIMITS, LimitChanges, parse_size


def uts() -> Sandbox:
    return Sandbox(unshare=frozenset({Namespace.UTS}))


WRONG: dict[str, tuple[str, Callable[[], Any]]] = {
    "relative source": ("Bind.source", lambda: Bind("usr", "/usr")),
    "relative dest": ("Bind.dest", lambda: Bind("/usr", "usr")),
    "empty dest": ("Bind.dest", lambda: Bind("/usr", "")),
    "NUL in a path": ("Bind.source", lambda: Bind("/a\0b", "/a")),
    "bytes for a path": ("Bind.source", lambda: Bind(b"/a", "/a")),  # type: ignore[arg-type]
    "a path too long": ("Bind.dest", lambda: Bind("/a", "/" + "x" * 4096)),
    "lone surrogates": ("Dir.dest", lambda: Dir("/\ud800")),
    "a flag that is none": ("Bind.read_only", lambda: Bind("/a", "/a", read_only="no")),  # type: ignore[arg-type]
    "devices and read-only": (
        "Bind.devices",
        lambda: Bind("/a", "/a", read_only=True, devices=True),
    ),
    "negative fd": ("BindFd.fd", lambda: BindFd(-1, "/a")),
    "fd as a string": ("BindFd.fd", lambda: BindFd("3", "/a")),  # type: ignore[arg-type]
    "fd as a bool": ("BindFd.fd", lambda: BindFd(True, "/a")),
    "proc elsewhere": ("Proc.dest", lambda: Proc("proc")),
    "dev elsewhere": ("Dev.dest", lambda: Dev("dev")),
    "mqueue elsewhere": ("Mqueue.dest", lambda: Mqueue("mqueue")),
    "remount elsewhere": ("RemountReadOnly.dest", lambda: RemountReadOnly("a")),
    "tmpfs of nothing": ("Tmpfs.size", lambda: Tmpfs("/tmp", size=0)),
    "tmpfs too large": ("Tmpfs.size", lambda: Tmpfs("/tmp", size=2**63)),
    "mode too large": ("Tmpfs.mode", lambda: Tmpfs("/tmp", mode=0o10000)),
    "mode as a string": ("Dir.mode", lambda: Dir("/a", mode="0755")),  # type: ignore[arg-type]
    "text for content": ("File.content", lambda: File("/a", "text")),  # type: ignore[arg-type]
    "no content": ("BindData.content", lambda: BindData("/a", None)),  # type: ignore[arg-type]
    "empty link": ("Symlink.target", lambda: Symlink("", "/a")),
    "relative chmod": ("Chmod.dest", lambda: Chmod("a", 0o700)),
    "no layers": ("TmpOverlay.layers", lambda: TmpOverlay("/a", ())),
    "one string for layers": ("TmpOverlay.layers", lambda: TmpOverlay("/a", "/b")),  # type: ignore[arg-type]
    "relative layer": ("Overlay.layers", lambda: Overlay("/a", ("b",), "/u", "/w")),
    "relative upper": ("Overlay.upper", lambda: Overlay("/a", ("/b",), "u", "/w")),
    "one read-only layer": ("ReadOnlyOverlay.layers", lambda: ReadOnlyOverlay("/a", ("/b",))),
    "no operation": ("Sandbox.filesystem", lambda: Sandbox(filesystem=("/usr",))),  # type: ignore[arg-type]
    "unknown namespace": ("Sandbox.unshare", lambda: Sandbox(unshare={"time"})),  # type: ignore[arg-type]
    "one string for namespaces": ("Sandbox.unshare", lambda: Sandbox(unshare="pid")),  # type: ignore[arg-type]
    "net if possible": (
        "Sandbox.unshare_try",
        lambda: Sandbox(unshare_try=frozenset({Namespace.NET})),
    ),
    "userns forbidden without one": (
        "Sandbox.disable_userns",
        lambda: Sandbox(disable_userns=True),
    ),
    "pid 1 without pids": ("Sandbox.as_pid_1", lambda: Sandbox(as_pid_1=True)),
    "locks without a keeper": (
        "Sandbox.lock_files",
        lambda: Sandbox(as_pid_1=True, unshare=frozenset({Namespace.PID}), lock_files=("/a",)),
    ),
    "negative uid": ("Sandbox.uid", lambda: Sandbox(uid=-1)),
    "gid too large": ("Sandbox.gid", lambda: Sandbox(gid=2**31)),
    "a name without its namespace": ("Sandbox.hostname", lambda: Sandbox(hostname="a")),
    "relative cwd": ("Sandbox.cwd", lambda: Sandbox(cwd="src")),
    "a variable with '='": ("Sandbox.environment", lambda: Sandbox().env({"A=B": "c"})),
    "a variable without a name": ("Sandbox.environment", lambda: Sandbox().env({"": "c"})),
    "NUL in a value": ("Sandbox.environment", lambda: Sandbox().env(A="b\0c")),
    "a number for a value": ("Sandbox.environment", lambda: Sandbox().env(A=1)),  # type: ignore[arg-type]
    "a flag of the sandbox": ("Sandbox.new_session", lambda: Sandbox(new_session=1)),  # type: ignore[arg-type]
    "cap added and dropped": (
        "Sandbox.caps_drop",
        lambda: Sandbox(caps_add=frozenset({"ALL"}), caps_drop=frozenset({"all"})),
    ),
    "half an instruction": ("Sandbox.seccomp", lambda: Sandbox(seccomp=(b"1234",))),
    "an empty program": ("Sandbox.seccomp", lambda: Sandbox(seccomp=(b"",))),
    "one program for a list": ("Sandbox.seccomp", lambda: Sandbox(seccomp=bytes(8))),  # type: ignore[arg-type]
    "limits of another kind": ("Sandbox.limits", lambda: Sandbox(limits={"pids": 1})),  # type: ignore[arg-type]
    "no time": ("Sandbox.timeout", lambda: Sandbox(timeout=0)),
    "time below zero": ("Sandbox.timeout", lambda: Sandbox(timeout=-1.0)),
    "time without end": ("Sandbox.timeout", lambda: Sandbox(timeout=math.inf)),
    "time that is no number": ("Sandbox.timeout", lambda: Sandbox(timeout=math.nan)),
    "too long a time": ("Sandbox.timeout", lambda: Sandbox(timeout=10**400)),
    "time as a string": ("Sandbox.timeout", lambda: Sandbox(timeout="1")),  # type: ignore[arg-type]
    "time as a flag": ("Sandbox.timeout", lambda: Sandbox(timeout=True)),
    "size of a tmpfs in MB": ("Tmpfs.size", lambda: Sandbox().tmpfs("/t", size="1MB")),
    "unknown limit": ("Limits.ram", lambda: Sandbox().limit(ram=1)),  # type: ignore[call-arg]
    "cpu that is no number": ("Limits.cpu", lambda: Limits(cpu=math.nan)),
    "flag for pids": ("Limits.pids", lambda: Limits(pids=True)),
    "string for pids": ("Limits.pids", lambda: Limits(pids="1")),  # type: ignore[arg-type]
    "memory that is no size": ("Limits.memory", lambda: Sandbox().limit(memory="much")),
    "memory as a fraction": ("Limits.memory", lambda: Limits(memory=1e6)),  # type: ignore[arg-type]
    "best effort as a string": ("Limits.best_effort", lambda: Limits(best_effort="no")),  # type: ignore[arg-type]
    "text that can't be encoded": ("Sandbox.hostname", lambda: uts().replace(hostname="\ud800")),
    "relative directory": ("Dir.dest", lambda: Sandbox().dir("a")),
    "number for content": ("File.content", lambda: Sandbox().file("/a", 1)),  # type: ignore[arg-type]
    "network of another kind": ("mode", lambda: Sandbox().network("all")),  # type: ignore[arg-type]
    "workspace that is absent": ("path", lambda: Sandbox.workspace("/does/not/exist")),
    "session with a slash": ("session", lambda: Sandbox.cowork("../a")),
    "mount named ..": ("mounts", lambda: Sandbox.cowork("s", {"..": "/a"})),
    "relative mount": ("Bind.source", lambda: Sandbox.cowork("s", {"a": "b"})),
    "read-only but not there": (
        "read_only",
        lambda: Sandbox.cowork("s", {"a": "/a"}, read_only={"b"}),
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_values_are_refused_by_name(name: str) -> None:
    field, make = WRONG[name]
    with pytest.raises(SpecError) as caught:
        make()
    assert caught.value.field == field
    assert str(caught.value).startswith(f"{field}: ")


def test_every_field_of_every_operation_is_checked() -> None:
    checked = {field for field, _ in WRONG.values()}
    for operation in (Bind, BindFd, Tmpfs, Overlay):
        named = {f"{operation.__name__}.{item.name}" for item in dataclasses.fields(operation)}
        assert named & checked


def test_specs_are_values() -> None:
    first = Sandbox.minimal().bind("/srv", "/srv", read_only=True)
    second = Sandbox.minimal().bind("/srv", "/srv", read_only=True)
    assert first == second
    assert hash(first) == hash(second)
    with pytest.raises(dataclasses.FrozenInstanceError):
        first.cwd = "/"  # type: ignore[misc]
    with pytest.raises(dataclasses.FrozenInstanceError):
        first.filesystem[0].dest = "/a"  # type: ignore[misc]


def test_methods_return_changed_copies() -> None:
    base = Sandbox()
    changed = base.bind("/a", "/b", read_only=True).tmpfs("/c", size=5).env(X="y", Z=None)
    assert base == Sandbox()
    assert changed.filesystem == (Bind("/a", "/b", read_only=True), Tmpfs("/c", size=5))
    assert changed.environment == (("X", "y"), ("Z", None))
    assert changed.network("none").unshare == {Namespace.NET}
    assert changed.network("none").network("host").unshare == frozenset()


def test_methods_add_files_directories_and_links() -> None:
    made = Sandbox().dir("/d", mode=0o700).file("/d/f", "\u00e9").file("/b", b"\xff", mode=0o400)
    assert made.symlink("d/f", "/l").filesystem == (
        Dir("/d", 0o700),
        File("/d/f", b"\xc3\xa9"),
        File("/b", b"\xff", 0o400),
        Symlink("d/f", "/l"),
    )


def test_the_last_word_about_a_variable_holds() -> None:
    spec = Sandbox().env(A="1", B="2").env(A=None, B="3").env(A="4")
    assert spec.environment == (("A", "4"), ("B", "3"))
    assert spec == Sandbox().env(A="4", B="3")


def test_cowork_s_home_is_the_caller_s(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/caller")
    assert Dir("/home/caller") in Sandbox.cowork("s").filesystem
    assert Dir("/home/u") in Sandbox.cowork("s", home="/home/u").filesystem
    assert Sandbox.cowork("s", [("a", "/a")]) == Sandbox.cowork("s", {"a": "/a"})


# --- limits -------------------------------------------------------------------------------


def test_one_table_has_every_limit() -> None:
    own = {item.name for item in dataclasses.fields(Limits)}
    assert own == LIMITS.keys() | {"best_effort"}
    assert own == LimitChanges.__annotations__.keys()
    for name, limit in LIMITS.items():
        # cleaned, as Python 3.13 does it by itself
        assert f"\n    {name}: " in inspect.cleandoc(str(Limits.__doc__))
        if limit.rlimit:
            assert hasattr(resource, limit.rlimit)


@pytest.mark.parametrize("name", LIMITS)
def test_limits_are_within_their_ranges(name: str) -> None:
    limit = LIMITS[name]

    def limits(value: Any) -> Limits:
        return Limits(**{name: value})

    for value in (limit.low, limit.high, None):
        assert getattr(limits(value), name) == value
    step = 0.001 if limit.unit == "processors" else 1
    for wrong in (limit.low - step, limit.high + step, "x"):
        with pytest.raises(SpecError) as caught:
            limits(wrong)
        assert caught.value.field == f"Limits.{name}"


def test_limit_changes_what_is_named() -> None:
    first = Sandbox().limit(memory="1.5G", open_files=64)
    second = first.limit(pids=10, best_effort=True).limit(open_files=None, cpu=1)
    assert first.limits == Limits(memory=3 * 2**29, open_files=64)
    assert second.limits == Limits(memory=3 * 2**29, pids=10, cpu=1.0, best_effort=True)
    assert isinstance(second.limits.cpu, float)
    assert second.limits.cgroup == {"memory": 3 * 2**29, "pids": 10, "cpu": 1.0}
    assert first.limits.rlimits == {"RLIMIT_NOFILE": 64}
    assert Limits(core_size=0).rlimits == {"RLIMIT_CORE": 0}


@pytest.mark.parametrize(
    ("text", "size"),
    [("0", 0), ("17", 17), ("64K", 65536), ("512m", 2**29), ("1.5G", 3 * 2**29), ("2T", 2**41)],
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "text", ["", "K", "-1", "+1", "1 K", "1KB", "1Ki", "0x10", ".5K", "1.K", "1e3", "\u0661", "1\n"]
)
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(ValueError, match="K, M, G or T"):
        parse_size(text)


def test_a_part_of_a_byte_is_no_size() -> None:
    assert parse_size("0.5K") == 512
    with pytest.raises(ValueError, match="not a whole number of bytes"):
        parse_size("0.0001K")


def test_examples_in_docstrings() -> None:
    found = doctest.testmod(cowork_nsrun.spec)
    assert found.attempted > 0
    assert found.failed == 0


def test_paths_may_be_path_objects() -> None:
    assert Bind(PurePosixPath("/a"), PurePosixPath("/b")) == Bind("/a", "/b")  # type: ignore[arg-type]


def test_relative_bind_is_taken_from_here_and_now(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    spec = Sandbox().bind("sub")
    assert spec.filesystem == (Bind(f"{tmp_path}/sub", f"{tmp_path}/sub"),)


def test_minimal_keeps_secrets_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("API_KEY", "secret")
    spec = Sandbox.minimal()
    assert "API_KEY" not in dict(spec.environment)
    assert spec.clear_env
    assert spec.unshare >= {Namespace.NET, Namespace.PID, Namespace.IPC}
    shown = {operation.source for operation in spec.filesystem if isinstance(operation, Bind)}
    assert not shown & {"/", "/etc", "/home", "/root", "/var", "/run", "/etc/shadow"}


def test_cowork_starts_in_the_first_visible_folder() -> None:
    mounts = {".claude": "/h/.claude", "uploads": "/h/up", "work": "/h/work", "more": "/h/more"}
    assert Sandbox.cowork("s", mounts, home="/h").cwd == "/sessions/s/mnt/work"
    assert Sandbox.cowork("s", {".claude": "/h/.claude"}).cwd == "/sessions/s/mnt"


@given(
    st.text(st.characters(exclude_categories=["Cs"])) | st.from_regex("/[a-z\0/]*", fullmatch=True)
)
def test_any_text_as_a_path_is_taken_or_refused(text: str) -> None:
    fits = text.startswith("/") and "\0" not in text and len(os.fsencode(text)) < 4096
    if fits:
        assert Dir(text).dest == text
    else:
        with pytest.raises(SpecError) as caught:
            Dir(text)
        assert caught.value.field == "Dir.dest"
