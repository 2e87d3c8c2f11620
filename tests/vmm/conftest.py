"""Fixtures of the monitor's tests."""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import pytest
from vmmlib import compile_guest

Lack = Callable[[str], NoReturn]
Guest = Callable[[str], Path]


@pytest.fixture(scope="session")
def kvm(lack: Lack) -> None:
    """A KVM that may be used; small guests run on any."""
    if platform.machine() != "x86_64":
        lack("the monitor: it is for x86-64")
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        lack("the monitor: no /dev/kvm that this user may open")


@pytest.fixture(scope="session")
def guest(kvm: None, tmp_path_factory: pytest.TempPathFactory, lack: Lack) -> Guest:
    """The ELF of one of the guests, built once."""
    if not shutil.which("gcc"):
        lack("the monitor: no gcc, its guests cannot be built")
    directory = tmp_path_factory.mktemp("guests")

    def build(name: str) -> Path:
        built = directory / name
        return built if built.exists() else compile_guest(name, directory)

    return build
