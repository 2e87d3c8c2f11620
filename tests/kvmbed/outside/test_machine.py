"""The driver on the host: statuses, results, and nothing left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
# dies with the tests, so that they leave nothing either
RUN = ("setpriv", "--pdeathsig", "KILL", str(ROOT / "tests" / "kvmbed" / "run"))
CACHE = ROOT / "build" / "kvmbed"
START_S = 120


def bed(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*RUN, *words], capture_output=True, text=True, check=False, timeout=START_S
    )


def test_status_output_and_results(tmp_path: Path) -> None:
    script = (
        'printf "%s|" "$0" "$@"; id -u; id -Gn; pwd; echo "$A" >&2; '
        "echo kept >$RESULTS/file; exit 7"
    )
    odd = ["it's", 'a "b" $HOME', "", "two  spaces\nand a line"]
    done = bed(
        *("--user", "1234", "--groups", "kvm", "--results", str(tmp_path / "out")),
        *("--env", "A=it's", "--", "sh", "-c", script, *odd),
    )
    assert done.returncode == 7, done
    assert done.stdout == "|".join(odd) + f"|1234\nbed kvm\n{ROOT}\nit's\n"
    assert (tmp_path / "out" / "file").read_text() == "kept\n"


def test_much_output_arrives_whole() -> None:
    done = bed("--", "sh", "-c", "seq 200000; sleep 1000 & exit 0")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[:200000] == [str(number) for number in range(1, 200001)]
    assert lines[200000:] == ["kvmbed: was still running: sleep 1000 "]


def test_changes_do_not_outlive_the_run() -> None:
    mark = "/usr/left-by-a-test"
    for _ in range(2):
        done = bed("--", "sh", "-c", f"test ! -e {mark} && touch {mark} ./left-by-a-test")
        assert done.returncode == 0, done


def test_settings_of_the_kernel() -> None:
    setting = "kernel.unprivileged_userns_clone"
    read = ["cat", f"/proc/sys/{setting.replace('.', '/')}"]
    assert bed("--sysctl", f"{setting}=0", "--", *read).stdout == "0\n"
    done = bed("--sysctl", "kernel.no_such_setting=0", "--", "true")
    assert done.returncode == 125
    assert "can't set kernel.no_such_setting=0" in done.stderr


def test_time_limit() -> None:
    done = bed("--timeout", "6", "--", "sh", "-c", "echo begun; sleep 1000")
    assert done.returncode == 124, done
    assert "no end after 6 s" in done.stderr


INTERRUPTS = """
count() { awk '/virtio/ { n += $2 } END { print n }' /proc/interrupts; }
before=$(count)
sleep 5
echo $(($(count) - before))
"""


def test_idle_machine_is_interrupted() -> None:
    """Twice a second, or as often as the driver gets its turn."""
    done = bed("--", "sh", "-c", INTERRUPTS)
    assert int(done.stdout) >= 4, done


STAND_STILL = """
for pid in $(pgrep -f /run/bed/main); do
    [ "$pid" = 1 ] || kill -STOP "$pid"
done
sleep 1000
"""


def test_machine_that_stands_still() -> None:
    """What says that it is there is stopped: it is ended, and its processor's state told."""
    done = bed("--still", "15", "--", "sh", "-c", STAND_STILL)
    assert done.returncode == 125, done
    assert "stood still for 15 s" in done.stderr
    assert "RIP=" in done.stderr


def test_dead_kernel_is_an_error_with_its_last_words() -> None:
    done = bed("--", "sh", "-c", "echo c >/proc/sysrq-trigger")
    assert done.returncode == 125, done
    assert "sysrq triggered crash" in done.stderr


@pytest.fixture
def running() -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [*RUN, "--", "sh", "-c", "echo begun; sleep 1000"], stdout=subprocess.PIPE, text=True
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def children(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def wait_gone(pid: int) -> None:
    end = time.monotonic() + START_S
    while Path(f"/proc/{pid}").exists():
        assert time.monotonic() < end, f"process {pid} is still there"
        time.sleep(0.05)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_killed_driver_leaves_nothing(
    running: subprocess.Popen[str], number: signal.Signals
) -> None:
    assert running.stdout is not None
    assert running.stdout.readline() == "begun\n"
    (qemu,) = children(running.pid)
    assert "qemu-system" in Path(f"/proc/{qemu}/cmdline").read_text()
    before = {path for path in CACHE.iterdir() if ".part" not in path.name}
    os.kill(running.pid, number)
    status = running.wait(timeout=START_S)
    assert status == (-9 if number == signal.SIGKILL else 128 + number)
    wait_gone(qemu)
    assert set(CACHE.iterdir()) == before
