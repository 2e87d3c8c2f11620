"""The profiles in Python: the spec, the plan, presets, the command line, the document."""

from __future__ import annotations

import os
import signal
import struct
import subprocess
import time
from pathlib import Path
from typing import get_args

import pytest

from cowork_nsrun import (
    NsrunError,
    Plan,
    Sandbox,
    SpecError,
    TimeoutExpired,
    _native,
    run,
    seccomp,
)
from cowork_nsrun.pool import Pool
from cowork_nsrun.process import popen
from cowork_nsrun.program import find_program
from cowork_nsrun.spec import SeccompProfile

ROOT = Path(__file__).parents[2]
DOCUMENT = ROOT / "docs" / "hardening.md"
BEGIN, END = "<!-- from here: the table -->\n", "<!-- to here -->\n"
ALLOW = struct.pack("<HBBI", 0x06, 0, 0, 0x7FFF0000)
NAMES = get_args(SeccompProfile)
COUNT = "grep -h Seccomp_filters: /proc/self/status /proc/1/status | cut -f2 | xargs"


def test_the_spec_knows_the_core_s_names() -> None:
    assert tuple(profile.name for profile in _native.seccomp_profiles()) == NAMES


@pytest.mark.parametrize("wrong", ["", "Default", "off", None, 3, b"none"])
def test_other_names_are_refused(wrong: object) -> None:
    with pytest.raises(SpecError, match="default, nesting, strict, none") as caught:
        Sandbox(seccomp_profile=wrong)  # type: ignore[arg-type]
    assert caught.value.field == "Sandbox.seccomp_profile"
    with pytest.raises(SpecError):
        Sandbox().harden("paranoid")  # type: ignore[arg-type]


def test_presets() -> None:
    workspace = Sandbox.workspace(".")
    assert Sandbox().seccomp_profile == "none"
    assert Sandbox.minimal().seccomp_profile == workspace.seccomp_profile == "default"
    assert Sandbox.cowork("s", {}, home="/home/u").seccomp_profile == "nesting"
    assert Sandbox().harden().seccomp_profile == "default"
    assert workspace.harden("none") == workspace.replace(seccomp_profile="none")


@pytest.mark.parametrize("name", NAMES)
def test_plan_is_the_option_s(name: SeccompProfile) -> None:
    spec = Sandbox(clear_env=True, close_fds=False).harden(name)
    option = Plan.from_argv(["--seccomp-profile", name, "true"], {})
    assert Plan.from_spec(spec, ["true"]) == option
    assert Plan.from_bytes(option.to_bytes()) == option


def test_profile_stands_first_in_the_plan() -> None:
    """So that the user's own, which may answer with more, do not hide it."""
    fd = os.memfd_create("program", 0)
    os.write(fd, ALLOW)
    spec = Sandbox(clear_env=True, close_fds=False, seccomp=(ALLOW,)).harden("strict")
    for first in (True, False):
        os.lseek(fd, 0, os.SEEK_SET)
        words = ["--seccomp-profile", "strict"], ["--add-seccomp-fd", str(os.dup(fd))]
        argv = [*words[0], *words[1]] if first else [*words[1], *words[0]]
        assert Plan.from_argv([*argv, "true"], {}) == Plan.from_spec(spec, ["true"])
    os.close(fd)


def test_last_of_several_holds() -> None:
    words = ["--seccomp-profile", "strict", "--seccomp-profile", "none", "true"]
    plan = Plan.from_argv(words, {})
    assert plan.warnings == ("Only the last --seccomp-profile option will take effect",)
    assert plan == Plan.from_argv(["true"], {})


@pytest.mark.parametrize("name", NAMES)
def test_loaded_into_command_and_pid_1(name: SeccompProfile) -> None:
    spec = Sandbox.minimal().harden(name)
    wanted = "0 0\n" if name == "none" else "1 1\n"
    assert run(["sh", "-c", COUNT], spec, text=True).check().stdout == wanted
    more = "1 1\n" if name == "none" else "2 2\n"
    both = spec.replace(seccomp=(ALLOW,))
    assert run(["sh", "-c", COUNT], both, text=True).check().stdout == more


@pytest.mark.parametrize("own", [(), (ALLOW,)], ids=["ours alone", "control: a user's too"])
def test_pid_1_still_takes_orders(own: tuple[bytes, ...]) -> None:
    """A signal reaches every process, unless a program that isn't ours may forbid it."""
    spec = Sandbox.minimal().harden("strict").replace(seccomp=own)
    script = "(trap 'echo child; exit' USR1; echo up; while :; do sleep 0.05; done) & wait; wait"
    command = ["sh", "-c", f"trap 'echo parent' USR1; {script}"]
    with popen(command, spec, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"up\n"
        child.send_signal(signal.SIGUSR1)
        got = {child.stdout.readline()}
        if own:
            # what the other would have needed to hear of it
            time.sleep(0.5)
            child.kill()
        got |= set(child.stdout.read().splitlines(keepends=True))
    assert got == ({b"parent\n"} if own else {b"parent\n", b"child\n"})


@pytest.mark.parametrize("name", ["default", "nesting", "strict"])
def test_deadline_terminal_and_pool(name: SeccompProfile) -> None:
    """What pid 1 and the stub do after the filter is there: timers, orders, sockets, terminals."""
    spec = Sandbox.minimal().harden(name).limit(open_files=64)
    with pytest.raises(TimeoutExpired):
        run(["sleep", "1000"], spec, timeout=0.3)
    with Pool(spec, 1) as pool:
        assert pool.wait_full(60)
        with pool.popen(["sh", "-c", ": </dev/tty && echo controlling"], pty=True) as child:
            assert child.terminal is not None
            assert child.terminal.read(4096) == b"controlling\r\n"
            child.wait()
        assert pool.stats().handed == 1
        assert pool.run(["sh", "-c", COUNT], text=True).check().stdout == "1 1\n"


def test_command_line_words() -> None:
    program = find_program()

    def said(*words: str) -> str:
        return subprocess.run([program, *words], check=True, capture_output=True, text=True).stdout

    listed = said("profile", "seccomp")
    assert [line.split()[0] for line in listed.splitlines()] == list(NAMES)
    for name in NAMES:
        assert said("profile", "seccomp", name) == seccomp.describe(name)
    wrong = subprocess.run([program, "profile", "seccomp", "x"], check=False, capture_output=True)
    assert wrong.returncode == 2
    for words, count in (([], "1 1"), (["--seccomp-profile", "none"], "0 0")):
        assert said("run", "--quiet", *words, "--", "sh", "-c", COUNT) == f"{count}\n"


def test_option_s_help_names_them() -> None:
    text = (ROOT / "csrc/core/options.def").read_text()
    row = next(line for line in text.splitlines() if line.startswith('O("--seccomp-profile"'))
    assert ", ".join(NAMES[:-1]) + f" or {NAMES[-1]}" in row


def test_description_names_every_rule() -> None:
    everything = {name: seccomp.describe(name) for name in NAMES}
    for group in seccomp.groups():
        assert group.why
        assert group.breaks
        for rule in group.rules:
            for name in rule.profiles:
                assert rule.call in everything[name].replace(",", " ").split(), (rule, name)
    assert "ptrace" not in everything["default"]
    assert "mount_setattr" not in everything["nesting"]
    with pytest.raises(NsrunError, match="'nope'"):
        seccomp.describe("nope")


def test_document_is_the_table() -> None:
    """Brought up to date by: .venv/bin/python tests/policy/test_profiles.py."""
    text = DOCUMENT.read_text(encoding="utf-8")
    assert text.split(BEGIN)[1].split(END)[0] == seccomp.markdown()


if __name__ == "__main__":
    before, _, after = DOCUMENT.read_text(encoding="utf-8").partition(BEGIN)
    DOCUMENT.write_text(before + BEGIN + seccomp.markdown() + END + after.partition(END)[2])
