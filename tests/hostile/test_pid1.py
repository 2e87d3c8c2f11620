"""Pid 1 of the sandbox holds nothing that is worth an attack."""

from __future__ import annotations

import os
import re
import struct
from pathlib import Path

import pytest
from hostlib import Runner

ROUNDS = 50
#: struct nsr_record: type, step, err, op, value, text
RECORD = struct.calcsize("<Iiiiq") + 1024
BPF_RETURN, BPF_LOAD, BPF_EQUAL = 0x06, 0x20, 0x15
ALLOW, REFUSE = 0x7FFF0000, 0x00050001
SYS_MKDIR = {"x86_64": 83}


@pytest.fixture
def inside(attacker: Path) -> list[str]:
    return ["--ro-bind", str(attacker.parent), "/bin", "--unshare-pid", "--proc", "/proc"]


@pytest.fixture
def secret(open_directory: Path) -> Path:
    path = open_directory / "secret"
    path.write_text("of the host\n", encoding="ascii")
    path.chmod(0o644)
    return path


def directories(output: str) -> list[str]:
    return re.findall(r"^directory (.*)$", output, re.MULTILINE)


def test_holds_no_directory_from_the_payloads_first_instruction(
    runner: Runner, inside: list[str]
) -> None:
    data = "/bin/attacker"
    for _ in range(ROUNDS):
        ended = runner.run([*inside, "--tmpfs", "/t", "--dev", "/d", data, "fds-of-pid-1"])
        assert ended.attempts() == {"enumerate": 0}, ended
        assert not directories(ended.stdout), ended.stdout


def test_control_a_directory_that_it_holds_is_seen(runner: Runner, inside: list[str]) -> None:
    fd = os.open("/", os.O_RDONLY)
    try:
        words = ["--sync-fd", str(fd), "/bin/attacker", "fds-of-pid-1"]
        ended = runner.run([*inside, *words], pass_fds=[fd])
    finally:
        os.close(fd)
    assert directories(ended.stdout), ended


def test_none_of_its_doors_leads_to_the_host(
    runner: Runner, inside: list[str], secret: Path
) -> None:
    ended = runner.run([*inside, "/bin/attacker", "reach-by-pid-1", secret])
    assert ended.status == 0
    assert ended.attempts(), ended
    assert all(number for number in ended.attempts().values()), ended.stdout


def test_control_the_doors_open_where_the_file_is_bound(
    runner: Runner, inside: list[str], secret: Path
) -> None:
    words = ["--ro-bind", str(secret), str(secret)]
    ended = runner.run([*inside, *words, "/bin/attacker", "reach-by-pid-1", secret])
    assert ended.attempts()["root"] == 0, ended


def test_has_no_rights_to_steal(runner: Runner, inside: list[str]) -> None:
    """It may be ptraced, as bwrap's pid 1: so it has no capability and no fd."""
    ended = runner.run([*inside, "/bin/attacker", "filtered"])
    assert re.search(r"^CapEff:\s+0+$", ended.stdout, re.MULTILINE), ended


def test_touching_it_leaves_exit_status_and_monitor_sound(
    runner: Runner, inside: list[str]
) -> None:
    ended = runner.run([*inside, "/bin/attacker", "touch-pid-1"])
    assert set(ended.attempts()) == {"mem", "process_vm_writev", "ptrace"}
    assert ended.status == 0, ended
    assert ended.stderr == ""


def test_forged_records_do_not_crash_the_monitor(runner: Runner, inside: list[str]) -> None:
    """The payload can write to pid 1's status pipe: any step, any operation."""
    words = ["--unshare-uts", "--hostname", "forged", "--chdir", "/", "--tmpfs", "/t"]
    ended = runner.run([*inside, *words, "/bin/attacker", "forge", str(RECORD), "80", "6"])
    assert ended.status >= 0, f"killed by signal {-ended.status}"
    assert ended.status in (0, 1), ended


def test_no_signal_from_inside_ends_it(runner: Runner, inside: list[str]) -> None:
    ended = runner.run([*inside, "/bin/attacker", "signal-pid-1"])
    assert (ended.status, ended.stderr) == (7, "")


def test_control_those_signals_kill_others(runner: Runner, inside: list[str]) -> None:
    assert runner.run([*inside, "/bin/attacker", "signal-a-child"]).status == 9


def refuse_mkdir() -> bytes:
    number = SYS_MKDIR.get(os.uname().machine)
    assert number is not None, f"no number of mkdir(2) for {os.uname().machine}"
    program = [
        (BPF_LOAD, 0, 0, 0),
        (BPF_EQUAL, 0, 1, number),
        (BPF_RETURN, 0, 0, REFUSE),
        (BPF_RETURN, 0, 0, ALLOW),
    ]
    return b"".join(struct.pack("<HBBI", *words) for words in program)


@pytest.mark.parametrize("filtered", [True, False], ids=["filtered", "control"])
def test_filter_holds_pid_1_before_the_payload_runs(
    runner: Runner, inside: list[str], filtered: bool
) -> None:
    """Else the payload could make pid 1 do by ptrace what itself must not."""
    for _ in range(ROUNDS if filtered else 1):
        fd = os.memfd_create("filter")
        os.write(fd, refuse_mkdir())
        os.lseek(fd, 0, os.SEEK_SET)
        words = ["--seccomp", str(fd)] if filtered else []
        ended = runner.run([*inside, *words, "/bin/attacker", "filtered"], pass_fds=[fd])
        os.close(fd)
        assert (ended.attempts()["self"] == 1) is filtered, ended
        modes = re.findall(r"^Seccomp:\s+(\d)$", ended.stdout, re.MULTILINE)
        assert modes == (["2"] if filtered else ["0"]), ended.stdout
