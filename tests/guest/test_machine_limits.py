"""Limits of a spec in a microVM: kept by the guest, where no cgroup of the host is delegated."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import pytest

from cowork_nsrun import LimitError, Pool, Result, Sandbox, SpecError, TimeoutExpired, popen, run
from cowork_nsrun.handle import Ending
from cowork_nsrun.limits import Cgroups
from cowork_nsrun.program import find_program

NSRUN = find_program()
MIB = 1 << 20
GUEST = "cgroup v2 of the guest"
PYTHON = str(Path(sys.executable).resolve())
#: takes so many MiB, a touch of each page; says how far it came
TAKE = """
import sys
for n in range(int(sys.argv[1])):
    held = globals().setdefault("held", []); held.append(bytearray(b"x") * (1 << 20))
print("had it")
"""
#: threads until one is refused; how many there were then, with the first
THREADS = """
import sys, threading
end, n = threading.Event(), 1
try:
    while n < int(sys.argv[1]):
        threading.Thread(target=end.wait).start()
        n += 1
except RuntimeError:
    pass
end.set()
print(n)
sys.exit(n < int(sys.argv[1]))
"""


@pytest.fixture(scope="module")
def spec(lack: Callable[[str], NoReturn]) -> Sandbox:
    """A microVM in which Python runs."""
    probes = json.loads(subprocess.run([NSRUN, "--probe"], capture_output=True,
                                       check=True).stdout)["probes"]  # fmt: skip
    verdicts = {probe["name"]: probe for probe in probes}
    for name in ("microvm", "kvm", "kvm-guest", "guest-kernel"):
        if verdicts[name]["verdict"] != "ok":
            lack(f"no microVM: {name}: {verdicts[name]['evidence']}")
    return Sandbox.minimal().bind(sys.base_prefix, read_only=True).replace(backend="kvm")


def python(spec: Sandbox, script: str, *words: object) -> Result[bytes]:
    return run([PYTHON, "-c", script, *map(str, words)], spec)


def test_no_cgroup_of_the_host_is_needed(spec: Sandbox, lack: Callable[[str], NoReturn]) -> None:
    """The control: in namespaces the same limit can't be had here."""
    if Cgroups().available()["memory"].held_by is not None:
        lack("a user to whom no cgroup is delegated: limits that only a guest can keep")
    with pytest.raises(LimitError):
        run(["true"], spec.limit(memory="64M").replace(backend="namespaces"))
    assert run(["true"], spec.limit(memory="64M")).returncode == 0


def test_memory(spec: Sandbox) -> None:
    result = python(spec.limit(memory="64M"), TAKE, 256)
    assert (result.returncode, result.stdout) == (137, b"")
    assert result.ending is Ending.OUT_OF_MEMORY
    assert result.limits == {"memory": GUEST}
    assert result.usage.of_cgroup
    assert result.usage.oom_kills == 1
    assert result.usage.pids_refused == 0
    assert result.usage.peak_memory is None or result.usage.peak_memory <= 64 * MIB


def test_memory_that_is_enough(spec: Sandbox) -> None:
    """The control."""
    result = python(spec.limit(memory="400M"), TAKE, 256)
    assert (result.returncode, result.stdout) == (0, b"had it\n")
    assert result.ending is Ending.EXITED
    assert result.usage.oom_kills == 0


def test_pids(spec: Sandbox) -> None:
    """Exactly so many, as in namespaces: pid 1 inside does not count."""
    result = python(spec.limit(pids=10), THREADS, 12)
    assert (result.returncode, result.stdout) == (1, b"10\n")
    assert result.ending is Ending.OUT_OF_PIDS
    assert result.limits == {"pids": GUEST}
    assert result.usage.pids_refused == 1
    assert result.usage.oom_kills == 0


def test_pids_that_are_enough(spec: Sandbox) -> None:
    """The control."""
    result = python(spec.limit(pids=12), THREADS, 12)
    assert (result.returncode, result.stdout) == (0, b"12\n")
    assert result.ending is Ending.EXITED
    assert result.usage.pids_refused == 0


@pytest.mark.parametrize("cpu", [0.25, None])
def test_processor_time(spec: Sandbox, cpu: float | None) -> None:
    """A command that wants all of it is held up, and without the limit it is not."""
    shown = spec.bind("/sys", read_only=True)
    script = (
        "import glob, time\n"
        "end = time.process_time() + 0.5\n"
        "while time.process_time() < end: pass\n"
        "for path in glob.glob('/sys/fs/cgroup/nsrun-*/cpu.stat'): print(open(path).read())"
    )
    result = python(shown if cpu is None else shown.limit(cpu=cpu), script)
    assert result.returncode == 0
    words = result.stdout.decode().split()
    throttled = int(words[words.index("nr_throttled") + 1])
    assert (throttled > 0) is (cpu is not None)
    assert result.limits == ({} if cpu is None else {"cpu": GUEST})
    assert result.usage.cpu_ns >= 500_000_000


def test_time_is_told_apart(spec: Sandbox) -> None:
    limited = spec.limit(memory="64M", pids=10).replace(timeout=20)
    with pytest.raises(TimeoutExpired):
        run(["sleep", "1000"], limited)
    with popen(["sleep", "1000"], limited) as process:
        process.wait()
        assert process.result().ending is Ending.TIMED_OUT


def test_a_signal_is_told_apart(spec: Sandbox) -> None:
    result = run(["sh", "-c", "kill -KILL $$"], spec.limit(memory="64M", pids=10))
    assert (result.returncode, result.ending) == (137, Ending.SIGNALED)


def test_the_command_can_not_lift_them(spec: Sandbox) -> None:
    with pytest.raises(SpecError, match="its own cgroup, writable"):
        run(["true"], spec.bind("/sys").limit(memory="64M"))


def test_from_the_command_line(spec: Sandbox) -> None:
    words = [NSRUN, "run", "--ro-bind", sys.base_prefix, "--memory", "64M"]
    words += ["--", PYTHON, "-c", TAKE]
    env = {**os.environ, "COWORK_VM_BACKEND": "kvm"}
    done = subprocess.run([*words, "256"], capture_output=True, check=False, text=True, env=env)
    assert (done.returncode, done.stdout) == (137, ""), done
    assert "the command was out of memory" in done.stderr
    assert f"memory held by {GUEST}" in done.stderr
    done = subprocess.run([*words, "16"], capture_output=True, check=False, text=True, env=env)
    assert (done.returncode, done.stdout) == (0, "had it\n"), done


def test_where_namespaces_are_refused(
    spec: Sandbox, monkeypatch: pytest.MonkeyPatch, lack: Callable[[str], NoReturn]
) -> None:
    """Nobody said kvm: it is what is left, or the environment's choice."""
    if Cgroups().available()["memory"].held_by is not None:
        lack("a user to whom no cgroup is delegated: limits that only a guest can keep")
    monkeypatch.setenv("COWORK_VM_BACKEND", "kvm")
    limited = spec.limit(memory="64M").replace(backend="auto")
    result = python(limited, TAKE, 256)
    assert (result.backend, result.ending) == ("microVM (KVM)", Ending.OUT_OF_MEMORY)
    assert result.limits == {"memory": GUEST}


def test_of_a_machine_that_was_made_ahead(spec: Sandbox) -> None:
    """The limits are a pool's own, and told to the guest with the command."""
    with Pool(spec.limit(memory="64M", pids=8), 1) as pool:
        result = pool.run([PYTHON, "-c", THREADS, "40"], text=True)
        assert (result.returncode, int(result.stdout)) == (1, 8)
        assert result.ending is Ending.OUT_OF_PIDS
        assert result.limits == {"memory": GUEST, "pids": GUEST}
