"""What the probes say of the bed: real sysctls, and a KVM that runs kernels."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[3]
USERNS = Path("/proc/sys/kernel/unprivileged_userns_clone")


@pytest.fixture(scope="module")
def report() -> Any:
    words = [str(ROOT / ".venv/bin/nsrun"), "--probe"]
    return json.loads(subprocess.run(words, capture_output=True, check=True).stdout)


def probe(report: Any, name: str) -> Any:
    return next(found for found in report["probes"] if found["name"] == name)


def test_namespaces(report: Any) -> None:
    found = probe(report, "namespaces")
    if os.geteuid() and USERNS.read_text().strip() == "0":
        assert (found["verdict"], found["remedy"]) == ("blocked", "userns-sysctl")
        assert report["selection"]["backend"] != "namespaces"
        doctor = subprocess.run(
            [ROOT / ".venv/bin/nsrun", "doctor", "--fix-hint"], capture_output=True, check=False
        )
        assert b"kernel.unprivileged_userns_clone = 1" in doctor.stdout, doctor
    else:
        assert (found["verdict"], report["selection"]["backend"]) == ("ok", "namespaces")


def test_kvm_runs_an_ordinary_guest(report: Any) -> None:
    if os.access("/dev/kvm", os.R_OK | os.W_OK):
        assert probe(report, "kvm")["verdict"] == "ok"
        assert probe(report, "kvm-guest")["verdict"] == "ok"
    else:
        assert probe(report, "kvm")["remedy"] == "kvm-permission"
        assert probe(report, "kvm-guest")["verdict"] == "unknown"
