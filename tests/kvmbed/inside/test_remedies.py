"""Every remedy that can be tried here: it fails, what the doctor prints is pasted, it works.

As root, who breaks the system for a user, who then pastes; the bed is thrown away afterwards.
What no test tries, and why, is in docs/selection.md.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import pytest

ROOT = Path(__file__).parents[3]
NSRUN = ROOT / ".venv/bin/nsrun"
USER, NAME = 1234, "paster"
SUDO = r"""
#define _GNU_SOURCE
#include <grp.h>
#include <unistd.h>
int main(int argc, char **argv)
{
    return setgroups(0, 0) || setresgid(0, 0, 0) || setresuid(0, 0, 0) || argc < 2 ||
           execvp(argv[1], argv + 1);
}
"""
Lack = Callable[[str], NoReturn]


@pytest.fixture(scope="module", autouse=True)
def as_root(lack: Lack) -> None:
    if os.geteuid() != 0:
        lack("remedies: it takes root to break the bed")


@pytest.fixture(scope="module")
def home(as_root: None, open_directory: Path) -> Path:
    """A user who may sudo without a password."""
    made = open_directory / NAME
    made.mkdir(exist_ok=True)
    os.chown(made, USER, USER)
    with Path("/etc/passwd").open("a") as passwd, Path("/etc/group").open("a") as group:
        passwd.write(f"{NAME}:x:{USER}:{USER}::{made}:/bin/sh\n")
        group.write(f"{NAME}:x:{USER}:\n")
    programs = open_directory / "sudo-bin"
    programs.mkdir()
    (programs / "sudo.c").write_text(SUDO)
    subprocess.run(["cc", "-o", programs / "sudo", programs / "sudo.c"], check=True)
    (programs / "sudo").chmod(0o4755)
    return made


def as_user(home: Path, *words: object, **options: Any) -> subprocess.CompletedProcess[str]:
    """As after a new login: groups are read again."""
    front = ["setpriv", f"--reuid={USER}", f"--regid={USER}", "--init-groups"]
    env = {"USER": NAME, "HOME": str(home), "LANG": "C.UTF-8",
           "PATH": f"{home.parent}/sudo-bin:/usr/sbin:/usr/bin:/sbin:/bin"}  # fmt: skip
    return subprocess.run([*front, *map(str, words)], env=env, cwd=home, capture_output=True,
                          text=True, check=False, **options)  # fmt: skip


def report(home: Path, *front: str) -> Any:
    done = as_user(home, *front, NSRUN, "--probe")
    return json.loads(done.stdout)


def probe(found: Any, name: str) -> Any:
    return next(each for each in found["probes"] if each["name"] == name)


def doctor(home: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return as_user(home, NSRUN, "doctor", *words)


def line(home: Path) -> str:
    last: str = doctor(home).stdout.strip().splitlines()[-1]
    return last


def paste(home: Path, text: str) -> None:
    """What a person does with the doctor's commands; comments are part of what is pasted."""
    done = as_user(home, "sh", "-c", text)
    print(text, done)


@pytest.fixture
def kept() -> Iterator[Callable[[Path, str], None]]:
    """Write to a sysctl; it gets its value back."""
    before: dict[Path, str] = {}

    def write(path: Path, value: str) -> None:
        before.setdefault(path, path.read_text())
        path.write_text(value)

    yield write
    for path, value in before.items():
        path.write_text(value)


KINDS = ("user", "mnt", "pid", "ipc", "uts", "net")
SYSCTLS = [("kernel/unprivileged_userns_clone", "userns-sysctl")] + [
    (f"user/max_{kind}_namespaces", f"userns-max-{kind}") for kind in KINDS
]


@pytest.mark.parametrize(("name", "remedy"), SYSCTLS)
def test_sysctls(home: Path, kept: Callable[[Path, str], None], name: str, remedy: str) -> None:
    sysctl = Path("/proc/sys") / name
    assert report(home)["selection"]["backend"] == "namespaces"
    kept(sysctl, "0")
    found = report(home)
    assert (probe(found, "namespaces")["verdict"], probe(found, "namespaces")["remedy"]) == (
        "blocked", remedy,
    )  # fmt: skip
    assert found["selection"]["backend"] != "namespaces"
    assert "Isolation: namespaces" not in line(home)
    paste(home, doctor(home, "--fix-hint").stdout)
    assert report(home)["selection"]["backend"] == "namespaces"
    assert "Isolation: namespaces" in line(home)
    assert doctor(home).returncode == 0
    ran = as_user(home, NSRUN, "--unshare-all", "--ro-bind", "/", "/", "true")
    assert ran.returncode == 0, ran


def remedy_of(home: Path, name: str, *front: str) -> str:
    """What the doctor says to paste for one probe, whatever else is missing."""
    done = as_user(home, *front, NSRUN, "doctor", "--json")
    checks = json.loads(done.stdout)["checks"]
    (remedy,) = (each["remedy"] for each in checks if each["name"] == name)
    return "\n".join(remedy["commands"])


def test_permission_for_kvm(home: Path, lack: Lack) -> None:
    if not Path("/dev/kvm").exists():
        lack("remedies: the bed has no /dev/kvm")
    os.chown("/dev/kvm", 0, 0)
    Path("/dev/kvm").chmod(0o600)
    assert probe(report(home), "kvm")["remedy"] == "kvm-permission"
    paste(home, remedy_of(home, "kvm"))
    assert probe(report(home), "kvm")["verdict"] == "ok"


def test_another_device_for_kvm(home: Path, lack: Lack) -> None:
    """It runs after the permission's test: the user is in the group by then."""
    if not Path("/dev/kvm").exists():
        lack("remedies: the bed has no /dev/kvm")
    Path("/dev/kvm").unlink()
    os.mknod("/dev/kvm", 0o20666, os.makedev(1, 3))
    os.chmod("/dev/kvm", 0o666)
    assert probe(report(home), "kvm")["remedy"] == "kvm-device"
    paste(home, remedy_of(home, "kvm"))
    assert probe(report(home), "kvm")["verdict"] == "ok"


def test_a_kernel_that_can_not_be_read(home: Path) -> None:
    kernel = Path(f"/boot/vmlinuz-{os.uname().release}")
    kernel.chmod(0o600)  # as Ubuntu installs it
    try:
        assert probe(report(home), "guest-kernel")["remedy"] == "guest-kernel-permission"
        paste(home, remedy_of(home, "guest-kernel"))
        assert probe(report(home), "guest-kernel")["verdict"] == "ok"
        copy = home / ".cache/nsrun" / kernel.name
        assert (copy.read_bytes(), copy.stat().st_uid) == (kernel.read_bytes(), USER)
    finally:
        kernel.chmod(0o644)


def test_no_proc(home: Path) -> None:
    """In a mount namespace without /proc; what is pasted is pasted there."""
    script = f"""
    umount -l /proc
    user() {{ setpriv --reuid={USER} --regid={USER} --init-groups "$@"; }}
    user {NSRUN} --probe
    mount -t proc proc /proc
    user {NSRUN} --probe
    """
    done = subprocess.run(["unshare", "--mount", "sh", "-c", script], capture_output=True,
                          text=True, check=True)  # fmt: skip
    decoder = json.JSONDecoder()
    before, end = decoder.raw_decode(done.stdout)
    after, _ = decoder.raw_decode(done.stdout[end:].lstrip())
    assert probe(before, "namespaces")["remedy"] == "proc-missing"
    assert probe(after, "namespaces")["verdict"] == "ok"
    # the command is the remedy's own
    assert "sudo mount -t proc proc /proc" in _text_of("proc-missing")


def _text_of(name: str) -> str:
    script = (
        "import sys; from cowork_nsrun.remedies import remedy, this_system;"
        "print('\\n'.join(remedy(sys.argv[1], this_system()).commands))"
    )
    return subprocess.run([ROOT / ".venv/bin/python", "-I", "-c", script, name],
                          capture_output=True, text=True, check=True).stdout  # fmt: skip
