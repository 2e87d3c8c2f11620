"""Containers and odd machines: it works, or says what is missing."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

import pytest
from hostlib import Ended, Runner, one_clear_line

SYS_CLONE, SYS_UNSHARE, SYS_CLONE3 = 56, 272, 435
NEW_USER = 0x10000000
UNSHARE = Path("/usr/bin/unshare")
IN_OWN_MOUNTS = ("-m", "--propagation", "private", "sh", "-c")


@pytest.fixture
def inside(attacker: Path) -> list[str]:
    return ["--ro-bind", str(attacker.parent), "/b"]


def fails(ended: Ended, text: str) -> None:
    assert ended.status == 1, ended
    assert one_clear_line(ended), ended
    assert text in ended.stderr, ended


def within(root: Runner, runner: Runner, script: str, argv: list[str]) -> Ended:
    """In a mount namespace that the script has changed, as the runner's user."""
    who = runner.identity
    change = "" if who.is_root else f"setpriv --reuid {who.uid} --regid {who.gid} --clear-groups"
    words = [*IN_OWN_MOUNTS, f'{script} && exec {change} "$@"', "sh", str(runner.program), *argv]
    return root.run(words, program=UNSHARE)


@pytest.fixture
def root(nsrun: Path, as_root: Runner) -> Runner:
    return as_root


@pytest.mark.parametrize("error", [errno.EPERM, errno.ENOSYS, errno.EINVAL])
def test_refused_user_namespaces_are_named(
    as_user: Runner, deny: Path, inside: list[str], error: int
) -> None:
    refused = [f"{number}={error}&{NEW_USER:#x}" for number in (SYS_CLONE, SYS_UNSHARE)]
    prefix = [deny, *refused, f"{SYS_CLONE3}={errno.ENOSYS}", "--"]
    fails(as_user.run([*inside, "/b/attacker", "reach", "/"], prefix=prefix), "namespace")


def test_remedy_is_told_where_the_kernel_forbids_user_namespaces(
    as_user: Runner, deny: Path, inside: list[str]
) -> None:
    prefix = [deny, f"{SYS_CLONE}={errno.EPERM}&{NEW_USER:#x}", "--"]
    ended = as_user.run([*inside, "/b/attacker", "reach", "/"], prefix=prefix)
    fails(ended, "sysctl kernel.unprivileged_userns_clone=1")


@pytest.mark.parametrize("user", [True, False], ids=["unshare-user", "plain"])
def test_root_without_sys_admin(as_root: Runner, inside: list[str], user: bool) -> None:
    """A container's root: a user namespace of its own is the way."""
    words = ["--bounding-set", "-sys_admin", str(as_root.program)]
    words += [*(["--unshare-user"] if user else []), *inside, "/b/attacker", "reach", "/"]
    ended = as_root.run(words, program=Path(shutil.which("setpriv") or "/usr/bin/setpriv"))
    if user:
        assert ended.attempts() == {"reach": 0}, ended
    else:
        fails(ended, "Creating new namespace failed: Operation not permitted")


def test_masked_proc_is_named(root: Runner, as_user: Runner, inside: list[str]) -> None:
    """A fresh /proc would show what the mounts over the old one hide."""
    words = [*inside, "--unshare-pid", "--proc", "/proc", "/b/attacker", "reach", "/proc/1"]
    masked = "mount -t tmpfs -o ro mask /proc/irq"
    fails(within(root, as_user, masked, words), "Can't mount proc on /newroot/proc")
    assert within(root, as_user, "true", words).attempts() == {"reach": 0}


def test_no_proc_at_all(root: Runner, runner: Runner, inside: list[str]) -> None:
    words = [*inside, "--tmpfs", "/t", "/b/attacker", "reach", "/t"]
    ended = within(root, runner, "umount -l /proc", words)
    if ended.status == 0:
        assert ended.attempts() == {"reach": 0}
    else:
        fails(ended, "/proc")


def test_read_only_machine(root: Runner, runner: Runner, inside: list[str]) -> None:
    words = [*inside, "--dev", "/dev", "--tmpfs", "/t", "/b/attacker", "create", "/t/x"]
    read_only = "mount -o remount,bind,ro / && ! touch /touched 2>/dev/null"
    ended = within(root, runner, read_only, words)
    assert ended.attempts() == {"create": 0}, ended


def test_no_tmp(runner: Runner, inside: list[str]) -> None:
    """bwrap needs a /tmp to build in. The machine without one is a sandbox of ours."""
    words = ["--unshare-user", "--unshare-pid", *inside, "--proc", "/proc", "--dev", "/dev"]
    nested = ["--unshare-user", *inside[:1], "/b", "/b", "/b/attacker", "reach", "/tmp"]
    program = runner.program.parent
    words += ["--ro-bind", str(program), "/p", "/p/nsrun", *nested]
    ended = runner.run(words)
    assert ended.attempts() == {"reach": errno.ENOENT}, ended


def test_root_is_an_initramfs(as_root: Runner, attacker: Path) -> None:
    """pivot_root(2) is impossible there: it works otherwise, or says so."""
    program, payload = (os.open(path, os.O_RDONLY) for path in (as_root.program, attacker))
    words = ["on-rootfs", str(program), "nsrun", "--perms", "0755", "--file", str(payload), "/x"]
    try:
        ended = as_root.run(
            [*words, "/x", "reach", "/"], program=attacker, pass_fds=[program, payload]
        )
    finally:
        os.close(program)
        os.close(payload)
    assert "prepare" not in ended.attempts(), ended
    if ended.status == 0:
        assert ended.attempts() == {"reach": 0}
    else:
        fails(ended, "")
