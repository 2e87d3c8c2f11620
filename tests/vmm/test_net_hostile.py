"""The network device against drivers that are good, slow, and hostile: net_cases.c.

The device's own sources are linked with a driver in ordinary memory, and
driven through real virtqueues and a real socket, under the sanitizers.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import pytest

HERE = Path(__file__).parent
Lack = Callable[[str], NoReturn]
SOURCE = HERE.parents[1] / "csrc"
CASES = re.findall(r'{ "([a-z-]+)", case_', (HERE / "net_cases.c").read_text())
FLAGS = ["-std=c17", "-D_GNU_SOURCE", "-g", "-O1", "-Wall", "-Wextra", "-Wshadow", "-Werror"]
SANITIZERS = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]


@pytest.fixture(scope="session")
def net_cases(tmp_path_factory: pytest.TempPathFactory, lack: Lack) -> Path:
    compiler = next((name for name in ("cc", "gcc", "clang") if shutil.which(name)), None)
    if compiler is None:
        lack("no C compiler: the network device cannot be driven")
    built = tmp_path_factory.mktemp("net") / "net_cases"
    sources = [HERE / "net_cases.c", HERE / "net_driver.c"]
    sources += [SOURCE / "vmm" / name for name in ("net.c", "virtqueue.c", "memory.c")]
    command = [compiler, *FLAGS, *SANITIZERS, f"-I{SOURCE}/net", *map(str, sources)]
    subprocess.run([*command, "-o", str(built)], check=True)
    return built


def test_the_program_has_these_cases(net_cases: Path) -> None:
    listed = subprocess.run([net_cases, "--list"], check=True, capture_output=True, text=True)
    assert listed.stdout.split() == CASES
    assert len(CASES) > 20


@pytest.mark.parametrize("case", CASES)
def test_net(net_cases: Path, case: str) -> None:
    done = subprocess.run([net_cases, case], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
