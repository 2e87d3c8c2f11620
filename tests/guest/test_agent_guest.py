"""The agent as the first process of a stock guest: in the bed.

The guest sees this machine's files through virtio-fs, read-only.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from agent_server import Client, drain

from cowork_nsrun.guest import vmm
from cowork_nsrun.guest.agent import Agent, Command, Settings
from cowork_nsrun.guest.image import prepare
from cowork_nsrun.guest.kernel import Kernel
from cowork_nsrun.guest.machine import wait_for_agent
from cowork_nsrun.guest.view import Export, view_bytes

MIB = 1 << 20
HOST = "/run/nsrun/exports/0"
SANDBOX = tuple(f"--unshare-all --ro-bind {HOST} / --proc /proc --dev /dev --tmpfs /tmp".split())
#: the guest itself, as it is
BARE = ("--dev-bind", "/", "/")
USER = Settings(1000, 1000, groups=(44,))
ROOT = Settings(0, 0)
COMPLAINT = b"nsrun-agent: "
#: seconds that a guest may take to boot, emulated and on a busy machine
PATIENCE = 900.0


class Guest(Client):
    """A machine with an agent in it."""

    def __init__(self, monitor: vmm.Monitor) -> None:
        super().__init__(Agent(monitor.connect), USER)
        self.monitor = monitor
        wait_for_agent(monitor, PATIENCE)


def boot(kernel: Kernel) -> Iterator[Guest]:
    with tempfile.TemporaryFile() as view:
        view.write(view_bytes([Export("/", read_only=True)]))
        view.seek(0)
        settings = vmm.Settings(512, cmdline="quiet nsrun.fs", shares={"nsrun": view})
        with (
            prepare(kernel, vmm.find_beside("nsrun-agent")) as image,
            vmm.Monitor(image, settings) as monitor,
        ):
            yield Guest(monitor)


@pytest.fixture(scope="module")
def guest(kernel: Kernel) -> Iterator[Guest]:
    yield from boot(kernel)


@pytest.fixture
def own_guest(kernel: Kernel) -> Iterator[Guest]:
    """For who breaks it."""
    yield from boot(kernel)


def test_what_it_is(guest: Guest, kernel: Kernel) -> None:
    info = guest.agent.info()
    assert info.release in kernel.path.name
    assert (info.machine, info.is_guest, info.has_limits) == ("x86_64", True, True)
    assert info.commands == 1
    assert COMPLAINT not in guest.monitor.console


@pytest.mark.parametrize("settings", [USER, ROOT], ids=["user", "root"])
def test_root_of_the_initramfs(guest: Guest, settings: Settings) -> None:
    """Sandboxes are built on it as on any root: by pivot_root."""
    words = ("--unshare-all", "--ro-bind", "/", "/", "--proc", "/proc", "--dev", "/dev")
    outcome = guest.run(*words, "/init", settings=settings)
    assert outcome.status == 2
    assert b"usage: nsrun-agent" in outcome.stderr
    assert guest.run(*BARE, "/init", settings=settings).status == 2


@pytest.mark.parametrize("settings", [USER, ROOT], ids=["user", "root"])
def test_command(guest: Guest, settings: Settings) -> None:
    script = "cat; id -u; id -g; echo err >&2; exit 7"
    outcome = guest.run(*SANDBOX, "sh", "-c", script, data=b"in\n", settings=settings)
    assert outcome.stdout.split() == [b"in", b"%d" % settings.uid, b"%d" % settings.gid]
    assert (outcome.status, outcome.stderr) == (7, b"err\n")
    assert outcome.usage.cpu_ns > 0
    assert outcome.usage.peak > 0


def test_exit_by_signal(guest: Guest) -> None:
    assert guest.run(*SANDBOX, "sh", "-c", "kill -9 $$").status == 137
    with guest.start(*SANDBOX, "sleep", "1000") as command:
        command.wait_started()
        command.signal(signal.SIGTERM)
        assert command.wait() == 128 + signal.SIGTERM


def test_much_both_ways(guest: Guest) -> None:
    data = os.urandom(MIB) * 8
    outcome = guest.run(*SANDBOX, "cat", data=data)
    assert outcome.status == 0
    assert outcome.stdout == data


def test_many_at_once(guest: Guest) -> None:
    commands = [guest.start(*SANDBOX, "sh", "-c", f"cat; exit {n}") for n in range(12)]
    for number, command in enumerate(commands):
        assert command.stdin is not None
        command.stdin.sendall(b"%d" % number)
        command.stdin.shutdown(socket.SHUT_WR)
    for number, command in enumerate(commands):
        assert command.stdout is not None
        assert drain(command.stdout) == b"%d" % number
        assert command.wait() == number
        command.close()
    assert alone(guest)


def alone(guest: Guest) -> bool:
    """Whether all others are gone, after a while."""
    while guest.agent.info().commands > 1:
        time.sleep(0.05)
    return True


def test_failure(guest: Guest) -> None:
    error = guest.fails(*SANDBOX, "--ro-bind", "/no/such", "/x", "true")
    assert "/no/such" in error.text
    error = guest.fails(*SANDBOX, "/no/such")
    assert (error.text, error.path) == (
        "execvp /no/such: No such file or directory",
        "/no/such",
    )


def test_terminal(guest: Guest) -> None:
    settings = replace(USER, rows=33, columns=99)
    script = "tty; stty size; read line; stty size; echo $line"
    with guest.start(
        *SANDBOX, "--controlling-terminal", "sh", "-c", script, settings=settings, terminal=True
    ) as command:
        assert command.terminal is not None
        seen = b""
        while b"33 99" not in seen:
            seen += command.terminal.recv(1000)
        command.resize(50, 120)
        command.terminal.sendall(b"word\n")
        assert b"50 120\r\nword\r\n" in drain(command.terminal)
        assert command.wait() == 0


# --- limits ------------------------------------------------------------------------------------


def test_memory_limit(guest: Guest) -> None:
    settings = replace(USER, memory=32 * MIB)
    outcome = guest.run(*SANDBOX, "tail", "/dev/zero", settings=settings)
    assert outcome.status == 137
    assert outcome.usage.oom_kills == 1
    assert 16 * MIB < outcome.usage.peak <= 32 * MIB
    assert alone(guest)


def test_limit_of_processes(guest: Guest) -> None:
    script = "for n in 1 2 3 4 5 6 7 8; do sleep 1000 & done; echo all"
    # pid 1 inside is one of them
    with guest.start(*SANDBOX, "sh", "-c", script, settings=replace(USER, processes=6)) as few:
        assert few.stderr is not None
        said = b""
        while b"fork" not in said:
            said += few.stderr.recv(1000)
        assert few.wait()
    with guest.start(*SANDBOX, "sh", "-c", script, settings=replace(USER, processes=20)) as more:
        assert more.stdout is not None
        assert more.stdout.recv(100) == b"all\n"
        assert more.wait() == 0
    assert alone(guest)


def test_limit_of_the_processor(guest: Guest) -> None:
    outcome = guest.run(
        *("--ro-bind", HOST, "/", "--bind", "/sys/fs/cgroup", "/tmp"),
        *("sh", "-c", "cat /tmp/nsrun-*/cpu.max"),
        settings=replace(ROOT, cpu=0.25),
    )
    assert outcome.stdout == b"25000 100000\n", outcome


def test_deadline(guest: Guest) -> None:
    outcome = guest.run(*SANDBOX, "sleep", "1000", settings=replace(USER, deadline=0.5))
    assert (outcome.status, outcome.usage.timed_out) == (124, True)


# --- what a guest is given ---------------------------------------------------------------------


def test_clock_and_entropy(guest: Guest) -> None:
    for year, seconds in (("2001", 1_000_000_000), ("2033", 2_000_000_000)):
        settings = replace(USER, clock_ns=seconds * 10**9, entropy=os.urandom(32))
        outcome = guest.run(*SANDBOX, "date", "-u", "+%Y", settings=settings)
        assert outcome.stdout.decode().strip() == year
    assert COMPLAINT not in guest.monitor.console


def test_devices_and_file_systems(guest: Guest) -> None:
    script = (
        "cd /tmp/g && test -c dev/null && test -e dev/fd/0 && test -d dev/pts && test -d dev/shm "
        "&& test -d sys/fs/cgroup && test -d run/nsrun/exports/0/usr && cat proc/sys/kernel/ostype"
    )
    words = f"--ro-bind {HOST} / --proc /proc --tmpfs /tmp --dev-bind / /tmp/g".split()
    outcome = guest.run(*words, "sh", "-xc", script, settings=ROOT)
    assert outcome.stdout == b"Linux\n", outcome.stderr


def test_loopback_is_up(guest: Guest) -> None:
    script = "cat /tmp/class/net/lo/flags"
    words = ("--ro-bind", HOST, "/", "--dev-bind", "/sys", "/tmp")
    assert int(guest.run(*words, "sh", "-c", script, settings=ROOT).stdout, 16) & 1


# --- walls -------------------------------------------------------------------------------------


def test_command_does_not_reach_the_agent(guest: Guest) -> None:
    """By vsock, from within: there is no way, or nobody who answers."""
    script = (
        "import socket\n"
        "for cid in (1, 3):\n"
        "    with socket.socket(socket.AF_VSOCK) as stream:\n"
        "        stream.settimeout(5)\n"
        "        try:\n"
        "            stream.connect((cid, 1024))\n"
        "            stream.sendall(b'NSRA' + (1).to_bytes(4, 'little') + bytes(24))\n"
        "            print('answered' if stream.recv(1) else 'closed')\n"
        "        except OSError as error:\n"
        "            print('refused')\n"
    )
    outcome = guest.run(*SANDBOX, str(Path(sys.executable).resolve()), "-c", script, settings=ROOT)
    assert len(outcome.stdout.split()) == 2, outcome
    assert b"answered" not in outcome.stdout


@pytest.mark.parametrize("settings", [USER, ROOT], ids=["user", "root"])
def test_command_can_kill_but_its_own(guest: Guest, settings: Settings) -> None:
    script = "trap '' TERM; kill -9 1; kill -9 -1; kill -TERM -1; true"
    words = ("--ro-bind", HOST, "/", "--dev", "/dev", "--proc", "/proc")
    with guest.start(*SANDBOX, "cat") as other:
        with guest.start(*words, "sh", "-c", script, settings=settings) as command:
            command.wait()
        assert other.stdin is not None
        assert other.stdout is not None
        other.stdin.sendall(b"alive")
        assert other.stdout.recv(10) == b"alive"
    assert alone(guest)


def test_command_that_reboots_ends_itself(guest: Guest) -> None:
    script = "import ctypes, time; ctypes.CDLL(None).reboot(0x4321FEDC); time.sleep(1000)"
    words = ("--ro-bind", HOST, "/", "--dev", "/dev")
    outcome = guest.run(*words, sys.executable, "-c", script, settings=ROOT)
    # as the kernel says it of a pid namespace that switches off
    assert outcome.status == 128 + signal.SIGINT
    assert alone(guest)


def test_command_sees_its_own_processes(guest: Guest) -> None:
    script = "cat /tmp/[0-9]*/comm | sort -u"
    words = ("--ro-bind", HOST, "/", "--dev-bind", "/proc", "/tmp")
    outcome = guest.run(*words, "sh", "-c", script, settings=ROOT)
    # init: the warden and the monitor
    assert {b"init", b"cat"} <= set(outcome.stdout.split()) <= {b"init", b"sh", b"cat", b"sort"}


def test_no_proc_of_the_agent_lies_below(guest: Guest) -> None:
    busybox = f"{HOST}/bin/busybox"
    script = f"cd /proc; {busybox} umount -l /proc; {busybox} ls /proc; echo $?"
    outcome = guest.run(*BARE, busybox, "sh", "-c", script, settings=ROOT)
    assert outcome.stdout == b"0\n", outcome


# --- the end -----------------------------------------------------------------------------------


def test_power_off(own_guest: Guest) -> None:
    said: list[str] = []

    def wait(command: Command) -> None:
        try:
            command.wait()
        except Exception as error:  # noqa: BLE001 - looked at below
            said.append(type(error).__name__)

    with own_guest.start(*SANDBOX, "sleep", "1000") as command:
        command.wait_started()
        waiter = threading.Thread(target=wait, args=(command,))
        waiter.start()
        own_guest.agent.power_off()
        assert own_guest.monitor.wait() is vmm.Ended.POWER_OFF
        waiter.join()
    assert said in ([], ["NsrunError"])
    assert COMPLAINT not in own_guest.monitor.console


def test_monitor_killed(own_guest: Guest) -> None:
    with own_guest.start(*SANDBOX, "sleep", "1000") as command:
        command.wait_started()
        os.kill(own_guest.monitor.pid, signal.SIGKILL)
        with pytest.raises(Exception, match="gone"):
            command.wait()
