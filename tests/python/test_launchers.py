"""docs/launchers.md: each block of commands does what the text around it says."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

from cowork_nsrun.program import find_program

TEXT = (Path(__file__).parents[2] / "docs" / "launchers.md").read_text()
BLOCKS = re.findall(r"^```sh\n(.*?)^```$", TEXT, re.DOTALL | re.MULTILINE)


def _run(script: str, place: Path) -> subprocess.CompletedProcess[str]:
    program = Path(find_program())
    env = {**os.environ, "PATH": f"{program.parent}:{os.environ['PATH']}"}
    env.pop("COWORK_VM_BACKEND", None)
    return subprocess.run(
        ["bash", "-eu", "-c", script], cwd=place, env=env, capture_output=True, text=True,
        check=False,
    )  # fmt: skip


def test_there_are_blocks() -> None:
    assert len(BLOCKS) >= 8


@pytest.mark.parametrize("number", range(len(BLOCKS)))
def test_block(number: int, tmp_path: Path) -> None:
    done = _run(BLOCKS[number], tmp_path)
    assert done.returncode == 0, (BLOCKS[number], done.stdout, done.stderr)


def test_a_block_can_fail(tmp_path: Path) -> None:
    assert _run("nsrun --ro-bind / / sh -c 'exit 3'\ntrue\n", tmp_path).returncode == 3
