"""The vsock device against drivers that are good, slow, and hostile: vsock_cases.c.

The device's own sources are linked with a driver in ordinary memory, and
driven through real virtqueues and real sockets, under the sanitizers.
"""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
from vsocklib import Lack, find_compiler

HERE = Path(__file__).parent
VMM = HERE.parents[1] / "csrc" / "vmm"
CASES = re.findall(r'{ "([a-z-]+)", case_', (HERE / "vsock_cases.c").read_text())
FLAGS = ["-std=c17", "-D_GNU_SOURCE", "-g", "-O1", "-Wall", "-Wextra", "-Wshadow", "-Werror"]
SANITIZERS = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]


@pytest.fixture(scope="session")
def vsock_cases(tmp_path_factory: pytest.TempPathFactory, lack: Lack) -> Path:
    built = tmp_path_factory.mktemp("vsock") / "vsock_cases"
    sources = [HERE / "vsock_cases.c", HERE / "vsock_driver.c", VMM / "virtqueue.c"]
    sources += [VMM / "memory.c", *sorted(set(VMM.glob("vsock*.c")) - {VMM / "vsock_control.c"})]
    command = [find_compiler(lack), *FLAGS, *SANITIZERS, *map(str, sources), "-o", str(built)]
    subprocess.run(command, check=True)
    return built


def test_the_program_has_these_cases(vsock_cases: Path) -> None:
    listed = subprocess.run([vsock_cases, "--list"], check=True, capture_output=True, text=True)
    assert listed.stdout.split() == CASES
    assert len(CASES) > 30


@pytest.mark.parametrize("case", CASES)
def test_vsock(vsock_cases: Path, case: str) -> None:
    done = subprocess.run([vsock_cases, case], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
