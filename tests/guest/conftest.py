"""What the tests of guests share: a machine that runs a stock kernel."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from typing import NoReturn

import pytest

from cowork_nsrun.guest.kernel import Kernel, choose
from cowork_nsrun.program import find_program


@pytest.fixture(scope="session")
def kernel(lack: Callable[[str], NoReturn]) -> Kernel:
    probes = json.loads(subprocess.run([find_program(), "--probe"], capture_output=True,
                                       check=True).stdout)["probes"]  # fmt: skip
    for probe in probes:
        if probe["name"] in {"kvm", "kvm-guest", "guest-kernel"} and probe["verdict"] != "ok":
            lack(f"no machine: {probe['name']}: {probe['evidence']}")
    return choose()
