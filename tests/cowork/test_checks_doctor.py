"""Acceptance checks 61 and 62: the doctor's Cowork section, which the service agrees with."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
from cowork_fixtures import SERVE, Lack, Start

from cowork_nsrun.cowork.backends import Choice
from cowork_nsrun.cowork.config import UserMounts
from cowork_nsrun.cowork.doctor import (
    Level,
    Line,
    is_userns,
    kvm_lines,
    mount_lines,
    sandbox_lines,
    summary,
)
from cowork_nsrun.probe import Probe, Verdict
from cowork_nsrun.spec import Bind

DOCTOR = (*SERVE[:-1], "doctor", "--cowork")
REFUSED = Probe("namespaces", Verdict.BLOCKED, "setting up uid map: Permission denied", 13)
NO_KVM = Probe("kvm", Verdict.MISSING, "/dev/kvm: no such file", 2, "kvm-module")


def _texts(lines: object) -> list[str]:
    return [str(line) for line in lines]  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("override", "level"), [("", Level.FAIL), ("bwrap", Level.FAIL), ("junk", Level.FAIL),
                            ("kvm", Level.WARN), ("HOST", Level.WARN)]
)  # fmt: skip
def test_61_a_failed_probe(override: str, level: Level) -> None:
    choice = Choice("none", override, override != "junk", "refused")
    found = list(sandbox_lines(choice, REFUSED))
    assert found[0] == Line(level, "bubblewrap: sandbox probe failed (errno=13)")
    assert all(line.level is Level.INFO for line in found[1:])
    works = Probe("namespaces", Verdict.OK, "made one")
    assert _texts(sandbox_lines(choice, works)) == ["[PASS] bubblewrap: sandbox probe succeeded"]


def test_61_kvm_is_information_unless_it_is_asked_for() -> None:
    quiet = list(kvm_lines(Choice("bwrap", "", True), NO_KVM))
    assert quiet == [Line(Level.INFO, "KVM: not available")]
    asked = list(kvm_lines(Choice("kvm", "KVM", True, "x"), NO_KVM))
    assert asked[0] == Line(Level.WARN, "KVM: not available")
    assert "Fix:" in asked[1].text
    there = Probe("kvm", Verdict.OK, "usable")
    assert _texts(kvm_lines(Choice("bwrap", "", True), there)) == ["[PASS] KVM: accessible"]


@pytest.mark.parametrize(
    ("choice", "text"),
    [
        (Choice("bwrap", "", True), "bubblewrap (namespace sandbox)"),
        (Choice("bwrap", "bwrap", True), "bubblewrap (namespace sandbox, via override)"),
        (Choice("host", "Host", True), "host-direct (no isolation, via override)"),
        (
            Choice("host", "", True, confined=True, instead="why"),
            "host-direct (confined by Landlock and seccomp, no namespaces)",
        ),
        (Choice("kvm", "kvm", True, "why"), "KVM (full VM isolation, via override): why"),
        (Choice("none", "", True, "why"), "none (nothing is started): why"),
    ],
)
def test_61_summary(choice: Choice, text: str) -> None:
    assert summary(choice) == text


@pytest.mark.parametrize("override", [None, "bwrap", "host", "junk", "KVM"])
def test_61_doctor_and_service_agree(start: Start, tmp_path: Path, override: str | None) -> None:
    (tmp_path / "home").mkdir()
    env = {"HOME": str(tmp_path / "home"), "PATH": os.environ["PATH"],
           "XDG_RUNTIME_DIR": str(tmp_path / "run")}  # fmt: skip
    if override is not None:
        env["COWORK_VM_BACKEND"] = override
    before = subprocess.run(DOCTOR, env=env, capture_output=True, text=True, check=False)
    assert before.returncode == before.stdout.count("[FAIL]")
    assert before.stdout.startswith("Cowork Mode\n----------------\n")
    assert "Cowork daemon" not in before.stdout
    daemon = start(override)
    backend = daemon.client().call("getStatus")["backend"]
    words = {"bwrap": "bubblewrap (namespace", "host": "host-direct", "kvm": "KVM (full"}
    assert f"Cowork isolation: {words[backend]}" in before.stdout
    assert ("[WARN] Unknown COWORK_VM_BACKEND: 'junk'" in before.stdout) == (override == "junk")
    after = subprocess.run(DOCTOR, env=env, capture_output=True, text=True, check=False)
    assert f"[PASS] Cowork daemon: running on {daemon.path}, backend {backend}" in after.stdout


def test_61_mounts(tmp_path: Path, lack: Lack) -> None:
    mounts = UserMounts(
        (Bind("/opt", "/opt", read_only=True),),
        (Bind(str(tmp_path), "/etc/x"), Bind(str(tmp_path / "none"), "/y")),
        frozenset({"/usr", "/tmp"}),
        ("BwrapConfig: rejected x",),
    )
    found = _texts(mount_lines(mounts))
    assert found[0] == "[WARN] BwrapConfig: rejected x"
    assert "           - /opt" in found
    assert f"           - {tmp_path} -> /etc/x" in found
    shadows = "shadows a default sandbox mount (may break system tools inside the sandbox)"
    assert f"[WARN] Mount dst '/etc/x' {shadows}" in found
    assert f"[WARN] Mount source '{tmp_path}/none' is not there: it is left out" in found
    assert "[WARN] Disabled default mount: /usr (may break system tools!)" in found
    assert "       Disabled default mount: /tmp" in found
    assert not any("'/y'" in line for line in found)
    assert _texts(mount_lines(UserMounts())) == [
        "       Bwrap mounts: default (no custom configuration)"
    ]


def test_61_the_file_that_the_service_reads(start: Start, tmp_path: Path) -> None:
    config = tmp_path / "xdg/Claude/claude_desktop_linux_config.json"
    config.parent.mkdir(parents=True)
    section = {"additionalROBinds": ["/proc", "/opt"]}
    config.write_text(json.dumps({"preferences": {"coworkBwrapMounts": section}}))
    (tmp_path / "home").mkdir()
    env = {"HOME": str(tmp_path / "home"), "PATH": os.environ["PATH"],
           "XDG_CONFIG_HOME": str(tmp_path / "xdg"), "COWORK_VM_BACKEND": "bwrap"}  # fmt: skip
    out = subprocess.run(DOCTOR, env=env, capture_output=True, text=True, check=False).stdout
    rejected = 'BwrapConfig: rejected mount "/proc": Path is forbidden: /proc'
    assert f"[WARN] {rejected}" in out
    start(env={"XDG_CONFIG_HOME": str(tmp_path / "xdg")})
    log = (tmp_path / "xdg/Claude/logs/cowork_vm_daemon.log").read_text()
    assert rejected in log


@pytest.mark.parametrize(
    "text",
    [
        "setting up uid map: Permission denied",
        "setting up gid map: x",
        "No permissions to create new namespace: Operation not permitted",
        "creating new user namespace failed",
        "user_namespaces are off",
        "usernamespace",
        "AppArmor denied it",
        "clone(CLONE_NEWUSER)",
        "needs CAP_SYS_ADMIN",
    ],
)
def test_62_user_namespaces(text: str) -> None:
    assert is_userns(text)
    probe = Probe("namespaces", Verdict.BLOCKED, text, 1)
    found = _texts(sandbox_lines(Choice("none", "", True, "x"), probe))
    assert any("User namespaces are not allowed" in line for line in found)


@pytest.mark.parametrize("text", ["", "No such file or directory", "ENOENT", "{}"])
def test_62_other_reasons(text: str) -> None:
    assert not is_userns(text)
    probe = Probe("namespaces", Verdict.BLOCKED, text, 2)
    found = _texts(sandbox_lines(Choice("none", "", True, "x"), probe))
    assert not any("User namespaces are not allowed" in line for line in found)


def test_a_terminal_is_sent_nothing_else() -> None:
    assert str(Line(Level.WARN, "a\x1b[2J\nb")) == "[WARN] a\\x1b[2J\\nb"
