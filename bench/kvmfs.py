"""What operations on the shared files of a microVM cost: exits of its guest, and system calls.

    .venv/bin/python bench/kvmfs.py [TIMES]

As root, with strace, where KVM runs stock kernels and debugfs is mounted.  Counts, unlike times,
are the same on a busy machine.  A script of its own, as kvmstock.py is.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from parent import offspring

from cowork_nsrun import PIPE, Process, Sandbox, popen

DEBUG = Path("/sys/kernel/debug/kvm")
FILES = 100
PYTHON = str(Path(sys.executable).resolve())
#: one operation on the folder each, which is writable and so is cached for a moment at most
OPERATIONS = {
    "stat of a file": "os.stat('f')",
    "open, read 4 KiB, close": "d = os.open('f', 0); os.pread(d, 4096, 0); os.close(d)",
    "write 4 KiB": "os.pwrite(w, block, 0)",
    "create, remove": "os.close(os.open('n', os.O_CREAT)); os.unlink('n')",
    "rename, there and back": "os.rename('a', 'b'); os.rename('b', 'a')",
    f"list {FILES} files": "os.listdir('many')",
    f"list {FILES} files with their sizes": "[e.stat() for e in os.scandir('many')]",
    "1 MiB, read": "d = os.open('big', 0); os.read(d, 1 << 20); os.close(d)",
    "1 MiB, written": "os.pwrite(w, block * 256, 0)",
}
SCRIPT = """
import os, sys
block = b"x" * 4096
w = os.open("written", os.O_CREAT | os.O_RDWR)
for line in sys.stdin:
    times, operation = line.rstrip("\\n").split(" ", 1)
    code = compile(operation, "operation", "exec")
    for _ in range(int(times)):
        exec(code)
    print("done", flush=True)
"""


@dataclass(frozen=True)
class Counts:
    """Of a monitor, since some moment."""

    exits: int
    calls: int


def monitor_of(process: Process[str]) -> int:
    """The pid of the nsrun-vmm that it started; a command that has answered has one."""
    names = {pid: Path(f"/proc/{pid}/comm").read_text().strip() for pid in offspring(process.pid)}
    return next(pid for pid, name in names.items() if name == "nsrun-vmm")


def exits(pid: int) -> int:
    """How often its guest has been left; those to the kernel alone too."""
    return sum(int(path.read_text()) for path in DEBUG.glob(f"{pid}-*/exits"))


def calls(pid: int, work: Callable[[], None]) -> int:
    """What a monitor asks of the host meanwhile, beside entering the guest."""
    tracer = subprocess.Popen(
        ["strace", "-f", "-c", "-p", str(pid)], stderr=subprocess.PIPE, text=True
    )
    assert tracer.stderr is not None
    # one line a thread that it has got hold of, the first when it has them all
    tracer.stderr.readline()
    work()
    tracer.send_signal(signal.SIGINT)
    rows = [line.split() for line in tracer.stderr.read().splitlines()]
    tracer.wait()
    found = {row[-1]: int(row[3]) for row in rows if len(row) in (5, 6) and row[3].isdigit()}
    return found.pop("total", 0) - found.get("ioctl", 0)


def counted(pid: int, work: Callable[[], None]) -> Counts:
    """Both, of the same work done twice: a tracer stops the processors, which is exits as well."""
    before = exits(pid)
    work()
    return Counts(exits(pid) - before, calls(pid, work))


def ask(process: Process[str], times: int, operation: str) -> None:
    """Have it done so often."""
    assert process.stdin is not None
    assert process.stdout is not None
    print(times, operation, file=process.stdin, flush=True)
    assert process.stdout.readline() == "done\n"


def fill(folder: Path) -> None:
    """What the operations need."""
    for name in ("f", "a"):
        (folder / name).write_bytes(bytes(8192))
    (folder / "big").write_bytes(bytes(1 << 20))
    (folder / "many").mkdir()
    for number in range(FILES):
        (folder / "many" / str(number)).touch()


def main() -> int:
    """Print a table."""
    times = int(sys.argv[1]) if len(sys.argv) > 1 else 200
    if not DEBUG.is_dir():
        sys.exit(f"{DEBUG}: not there: mount -t debugfs debugfs /sys/kernel/debug, as root")
    with tempfile.TemporaryDirectory(prefix="nsrun-bench-") as name:
        fill(Path(name))
        spec = Sandbox.minimal().bind(sys.base_prefix, read_only=True).bind(name, "/w")
        spec = spec.replace(backend="kvm", cwd="/w")
        words = [PYTHON, "-I", "-c", SCRIPT]
        with popen(words, spec, stdin=PIPE, stdout=PIPE, text=True) as process:
            ask(process, 1, "pass")
            pid = monitor_of(process)
            print("| operation | exits | system calls |\n|---|---|---|")
            for title, operation in OPERATIONS.items():
                ask(process, 3, operation)
                idle = counted(pid, lambda: ask(process, times, "pass"))
                busy = counted(pid, lambda operation=operation: ask(process, times, operation))
                each = [(busy.exits - idle.exits) / times, (busy.calls - idle.calls) / times]
                print(f"| {title} | {each[0]:.1f} | {each[1]:.1f} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
