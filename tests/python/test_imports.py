"""What is imported before it is needed delays every start: of a program, and of a microVM."""

from __future__ import annotations

import subprocess
import sys

import pytest

import cowork_nsrun

#: for reports, for profiles, for downloads of kernels, for sandboxes that this process makes
NEEDLESS = {
    "argparse", "asyncio", "bz2", "ctypes", "importlib.metadata", "json", "lz4", "lzma",
    "multiprocessing", "rich", "shutil", "tomllib", "typing_extensions", "zstandard",
    "cowork_nsrun.doctor", "cowork_nsrun.guest.image", "cowork_nsrun.handle",
    "cowork_nsrun.policy", "cowork_nsrun.process", "cowork_nsrun.spec",
}  # fmt: skip


def loaded(module: str) -> set[str]:
    """The modules that a new Python has when it has imported that one."""
    script = f"import sys, {module}\nprint(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-I", "-c", script], capture_output=True, text=True, check=True
    )
    return set(done.stdout.split())


def test_start_of_a_machine() -> None:
    assert loaded("cowork_nsrun.guest.start") & NEEDLESS == set()


@pytest.mark.parametrize("module", ["cowork_nsrun", "cowork_nsrun.cli"])
def test_words_and_the_package_alone(module: str) -> None:
    ours = {name for name in loaded(module) if name.startswith("cowork_nsrun.")}
    assert ours <= {"cowork_nsrun.cli", "cowork_nsrun.errors"}


@pytest.mark.parametrize("name", [*cowork_nsrun.__all__, "__version__"])
def test_each_name_is_there(name: str) -> None:
    assert getattr(cowork_nsrun, name) is not None
    assert name in dir(cowork_nsrun)


def test_other_names_are_not() -> None:
    with pytest.raises(AttributeError, match=r"cowork_nsrun.*no attribute 'sandbox'"):
        _ = cowork_nsrun.sandbox  # type: ignore[attr-defined]
