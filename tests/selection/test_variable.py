"""COWORK_VM_BACKEND: the Python API obeys it as the nsrun program does."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from cowork_nsrun._native import landlock_abi
from cowork_nsrun.program import find_program

SHOW = """
import sys
from cowork_nsrun import NsrunError, Sandbox
spec = Sandbox().replace(backend=sys.argv[1]).bind("/", read_only=True)
if "pid" in sys.argv:
    spec = spec.replace(unshare=frozenset({"pid"}))
try:
    print(spec.run(["true"]).check().backend.partition(",")[0])
except NsrunError as error:
    sys.exit(str(error))
"""
WORDS = ["host", "HOST", "Host", "bwrap", "BWRAP", ""]


def _python(word: str, *args: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "COWORK_VM_BACKEND": word}
    command = [sys.executable, "-I", "-c", SHOW, *args]
    return subprocess.run(command, env=env, capture_output=True, text=True, check=False)


def _program(word: str, *words: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "COWORK_VM_BACKEND": word}
    command = [find_program(), *words, "--ro-bind", "/", "/", "true"]
    return subprocess.run(command, env=env, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("word", WORDS)
def test_both_obey(word: str) -> None:
    on_host = word.lower() == "host"
    python, program = _python(word, "auto"), _program(word)
    assert python.stdout == ("host\n" if on_host else "namespaces\n"), python
    assert program.returncode == 0
    assert ("host, " in program.stderr) == on_host
    # whether it confines is told, by both
    confined = "confined by Landlock" if landlock_abi() >= 2 else "not confined"
    for told in (python.stderr, program.stderr):
        assert (confined in told) == on_host


@pytest.mark.parametrize("word", ["host", "kvm", "junk"])
def test_a_name_in_the_spec_wins(word: str) -> None:
    done = _python(word, "namespaces")
    assert done.stdout == "namespaces\n", done


def test_what_the_host_can_not_have_is_an_error() -> None:
    python, program = _python("host", "auto", "pid"), _program("host", "--unshare-pid")
    assert python.returncode == program.returncode == 1
    for told in (python.stderr, program.stderr):
        assert "--unshare-pid can't be had with --backend host" in told


@pytest.mark.parametrize("word", ["junk", "bwrap ", "microvm", "auto"])
def test_no_backends_word(word: str) -> None:
    python, program = _python(word, "auto"), _program(word)
    assert python.returncode == program.returncode == 1
    for told in (python.stderr, program.stderr):
        assert "COWORK_VM_BACKEND takes" in told
