"""What the rows of machine_differences.py must never take for a difference that is meant."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from differences import Verdict, compare
from harness import Case, Program, Result
from machine_differences import ROWS, visible

NSRUN = Program("nsrun", Path("/nsrun"), (0, 12))


def result(*mounts: tuple[str, str, str]) -> Result:
    """Of mounts by point and depth, each with its options and type."""
    told = {
        key: {"device": "0:5" if kind == "devtmpfs" else "made0", "root": "/", "options": options,
              "propagation": [], "fs": f"{kind} {kind} rw"}
        for key, options, kind in mounts
    }  # fmt: skip
    return Result(0, "", "", False, {"mounts": told, "stat": {}}, {}, {})


def verdict(expected: Result, actual: Result, *argv: str) -> Verdict:
    return compare(NSRUN, Case("x", argv), expected, actual, ROWS)


ROOT = ("/@0", "ro,nosuid", "tmpfs")
BIND_ALL = ("--ro-bind", "/", "/")


@pytest.mark.parametrize(
    ("outside", "inside"),
    [
        # read-only outside, and not in the guest
        ([ROOT, ("/dev@1", "ro,nosuid", "devtmpfs")], [ROOT, ("/dev@1", "rw,nosuid", "devtmpfs")]),
        ([ROOT, ("/sys@1", "ro,noexec", "sysfs")], [ROOT, ("/sys@1", "ro", "sysfs")]),
        # what a plan hides by a mount of its own, seen in the guest
        ([ROOT, ("/proc/x@1", "ro", "tmpfs")], [ROOT]),
        (
            [ROOT, ("/dev@1", "ro", "devtmpfs"), ("/dev@2", "ro", "tmpfs")],
            [ROOT, ("/dev@1", "ro", "devtmpfs")],
        ),
        # a place outside of /proc, /sys and /dev
        ([ROOT, ("/a@1", "ro", "tmpfs")], [ROOT, ("/a@1", "rw", "tmpfs")]),
        ([ROOT], [ROOT, ("/a@1", "rw", "tmpfs")]),
    ],
)
def test_less_closed(
    outside: list[tuple[str, str, str]], inside: list[tuple[str, str, str]]
) -> None:
    assert verdict(result(*outside), result(*inside), *BIND_ALL).unexpected


@pytest.mark.parametrize(
    ("outside", "inside"),
    [
        ([ROOT, ("/dev@1", "ro", "devtmpfs")], [ROOT, ("/dev@1", "ro,nosuid", "devtmpfs")]),
        # what is covered is nobody's
        (
            [ROOT, ("/dev@1", "ro", "devtmpfs"), ("/dev@2", "rw", "tmpfs")],
            [ROOT, ("/dev@1", "rw", "tmpfs")],
        ),
    ],
)
def test_as_closed(outside: list[tuple[str, str, str]], inside: list[tuple[str, str, str]]) -> None:
    assert not verdict(result(*outside), result(*inside), *BIND_ALL).unexpected


@pytest.mark.parametrize(
    ("outside", "inside", "meant"), [("1027", "1026", False), ("26", "1027", True)]
)
def test_flags_of_a_shared_file(outside: str, inside: str, meant: bool) -> None:
    expected, actual = result(ROOT), result(ROOT)
    expected.seen["stat"] = {"/x": {"type": "ef53", "flags": outside}}
    actual.seen["stat"] = {"/x": {"type": "65735546", "flags": inside}}
    assert bool(verdict(expected, actual).unexpected) is not meant


def test_where_a_path_leads() -> None:
    mounts = ("/@0", "/a@1", "/a/b@2", "/a@2", "/a/c@3", "/d@1", "/d/e@2")
    places = {
        "/": "/@0", "/x": "/@0", "/a": "/a@2", "/a/b": "/a@2", "/a/b/c": "/a@2",
        "/a/c": "/a/c@3", "/a/c/x": "/a/c@3", "/d/e/f": "/d/e@2", "/dd": "/@0",
    }  # fmt: skip
    assert {path: visible(mounts, path) for path in places} == places


@pytest.mark.parametrize(
    ("outside", "inside", "meant"),
    [
        ("sh: 1: cannot create /dev/stderr: Permission denied\nx\n", "e\nx\n", True),
        ("sh: 1: cannot create /dev/stderr: Permission denied\nx\n", "e\ny\n", False),
        ("sh: 1: cannot create /dev/kmsg: Permission denied\n", "e\n", False),
        ("", "e\n", False),
    ],
)
def test_what_a_shell_says_of_its_streams(outside: str, inside: str, meant: bool) -> None:
    expected, actual = (replace(result(ROOT), stderr=text) for text in (outside, inside))
    assert bool(verdict(expected, actual).unexpected) is not meant
