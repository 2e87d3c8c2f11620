"""A guest whose root has no agent above it, and goes for what the plan hid from it.

On KVM that runs stock kernels alone: in the bed.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from cowork_nsrun.guest.image import Image
from cowork_nsrun.guest.view import Access, Export, Rule, view_file
from cowork_nsrun.guest.vmm import Ended, Monitor, Settings

SECRET = "a-key-of-the-hosts"
KEPT = "a-text-of-the-hosts"
WITNESS = "the guest's to change"
RULES = (
    Rule("hidden", Access.HIDDEN),
    Rule("way/rule", Access.HIDDEN),
    Rule("token", Access.HIDDEN),
    Rule("ro", Access.READ_ONLY),
)
PROTECTED = ("hidden", "way", "token", "ro")

Facts = dict[str, tuple[object, ...]]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "folder"
    for name in ("hidden/inner", "way/rule", "ro/inner", "open"):
        (made / name).mkdir(parents=True)
    for name in ("hidden/key", "hidden/inner/key", "way/rule/key", "token"):
        (made / name).write_text(SECRET)
    for name in ("ro/file", "ro/inner/file"):
        (made / name).write_text(KEPT)
    for name in ("open/file", "open/mine", "open/witness"):
        (made / name).write_text(WITNESS)
    # other ways to what is hidden
    (made / "open/token").hardlink_to(made / "token")
    (made / "open/alias").symlink_to("../hidden/key")
    return made


def facts(folder: Path) -> Facts:
    """All that can be told of what is protected, but when it was read."""
    found: Facts = {}
    tops = [folder / name for name in PROTECTED]
    for path in (*tops, *(below for top in tops for below in sorted(top.rglob("*")))):
        st = path.lstat()
        content = path.read_text() if stat.S_ISREG(st.st_mode) else None
        attributes = os.listxattr(path, follow_symlinks=False)
        inode = (st.st_ino, st.st_mode, st.st_nlink, st.st_uid, st.st_gid, st.st_mtime_ns)
        found[str(path.relative_to(folder))] = (*inode, content, tuple(attributes))
    return found


def intrude(image: Image, export: Export) -> str:
    """What the guest printed, when it was through."""
    with (
        view_file([export]) as view,
        Monitor(image, Settings(cmdline="quiet do=intrude", shares={"files": view})) as monitor,
    ):
        assert monitor.wait() is Ended.POWER_OFF, monitor.failure()
        console = monitor.console.decode()
    assert "first: intruded" in console, console
    return console


def test_what_is_protected_stays_so(booted: Image, folder: Path) -> None:
    before = facts(folder)
    console = intrude(booted, Export(str(folder), rules=RULES))
    assert SECRET not in console
    assert KEPT in console  # of what may only be read
    assert facts(folder) == before
    # it could write, and did
    assert (folder / "open/witness").read_text() != WITNESS
    assert sorted(os.listdir(folder)) == ["hidden", "open", "ro", "token", "way"]


def test_nothing_changes_below_a_read_only_export(booted: Image, folder: Path) -> None:
    before = facts(folder)
    console = intrude(booted, Export(str(folder), read_only=True, rules=RULES))
    assert SECRET not in console
    assert facts(folder) == before
    assert (folder / "open/witness").read_text() == WITNESS


def test_all_of_it_comes_off_without_rules(booted: Image, folder: Path) -> None:
    """The control: the same guest, and nothing that is kept from it."""
    before = facts(folder)
    console = intrude(booted, Export(str(folder)))
    for how in ("read", "mapped", "copied", "opened anew", "wrote", "changed", "moved", "linked"):
        assert f"{how} " in console
    for name in ("hidden/key", "way/rule/key", "token"):
        assert f"read /mnt/0/{name}: {SECRET}" in console
    after = facts(folder) if all((folder / name).exists() for name in PROTECTED) else {}
    assert not set(before.items()) & set(after.items())
