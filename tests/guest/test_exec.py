"""``nsrun`` in a microVM, compared with namespaces where those are to be had.

On KVM that runs stock kernels alone: in the bed, as root, and as a user who is refused
namespaces, so that the microVM is what nsrun falls back to.
"""

from __future__ import annotations

import errno
import json
import os
import pty
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import pytest
from inject import openers, opens
from net_servers import sender, tcp_server

from cowork_nsrun import PIPE, NsrunError, Sandbox, TimeoutExpired, popen
from cowork_nsrun import run as run_spec
from cowork_nsrun._native import landlock_abi
from cowork_nsrun.program import find_program

NSRUN = find_program()
#: the helper service's command line, with a network of its own
SYSTEM = (
    *("--tmpfs", "/", "--ro-bind", "/usr", "/usr", "--ro-bind", "/etc", "/etc", "--dev", "/dev"),
    *("--proc", "/proc", "--tmpfs", "/tmp", "--tmpfs", "/run"),
    *(word for name in ("/bin", "/lib", "/lib64", "/sbin")
      for word in ("--symlink", f"usr{name}", name)),
    *("--ro-bind", sys.base_prefix, sys.base_prefix),
    *("--dir", "/sessions/a", "--dir", "/sessions/a/mnt"),
)  # fmt: skip
ENDS = ("--unshare-pid", "--unshare-net", "--die-with-parent", "--new-session", "--")


@dataclass(frozen=True)
class Done:
    """What is to be the same, whatever ran it."""

    status: int
    stdout: bytes
    stderr: bytes


@pytest.fixture(scope="module")
def verdicts(lack: Callable[[str], NoReturn]) -> dict[str, str]:
    done = subprocess.run([NSRUN, "--probe"], capture_output=True, check=True)
    probes = {probe["name"]: probe for probe in json.loads(done.stdout)["probes"]}
    for name in ("microvm", "kvm", "kvm-guest", "guest-kernel"):
        if probes[name]["verdict"] != "ok":
            lack(f"no microVM: {name}: {probes[name]['evidence']}")
    return {name: probe["verdict"] for name, probe in probes.items()}


@pytest.fixture
def folder(open_directory: Path) -> Path:
    made = open_directory / f"project-{time.monotonic_ns()}"
    made.mkdir()
    return made


def argv(backend: str, folder: Path, *command: str) -> list[str]:
    mounts = [
        "--bind",
        str(folder),
        "/sessions/a/mnt/project",
        "--chdir",
        "/sessions/a/mnt/project",
    ]
    return [NSRUN, "--backend", backend, *SYSTEM, *mounts, *ENDS, *command]


def run(backend: str, folder: Path, *command: str, stdin: bytes = b"") -> Done:
    done = subprocess.run(argv(backend, folder, *command), input=stdin, capture_output=True,
                          check=False)  # fmt: skip
    return Done(done.returncode, done.stdout, done.stderr)


def both(verdicts: dict[str, str], folder: Path, *command: str, stdin: bytes = b"") -> Done:
    """In a microVM; what namespaces give is the same, if they are to be had."""
    done = run("kvm", folder, *command, stdin=stdin)
    if verdicts["namespaces"] == "ok":
        other = folder.with_name(f"{folder.name}-namespaces")
        other.mkdir()
        assert run("namespaces", other, *command, stdin=stdin) == done
        assert listing(other) == listing(folder)
    return done


def listing(folder: Path) -> list[tuple[str, int, int, bytes]]:
    """Names, modes, owners and contents of all that is there but git's own files."""
    found = []
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if "/.git/" not in f"/{name}/":
            at = path.lstat()
            text = path.read_bytes() if path.is_file() else b""
            found.append((name, at.st_mode, at.st_uid, text))
    return found


PYTHON = str(Path(sys.executable).resolve())
JOB = """
set -e
read -r line; echo "stdin: $line"; rest=$(cat); echo "rest: ${#rest}"
'$PYTHON' -c 'import os, json; print(json.dumps({"sum": sum(range(100)), "uid": os.getuid()}))'
printf '#include <stdio.h>\\nint main(void) { puts("compiled"); return 0; }\\n' >hello.c
cc -o hello hello.c && ./hello
export HOME=/tmp GIT_AUTHOR_DATE="1700000000 +0000"
export GIT_COMMITTER_DATE="$GIT_AUTHOR_DATE"
git init -q -b main repo && cd repo
git config user.email a@b && git config user.name a
echo text >file && git add file && git commit -qm first && git log --format=%H:%s
echo to-stderr >&2
touch /usr/nothing 2>/dev/null || echo read-only
exit 7
""".replace("$PYTHON", PYTHON)


def test_a_job(verdicts: dict[str, str], folder: Path) -> None:
    """Python, a compiler and git; standard input, both outputs, status, files."""
    done = both(verdicts, folder, "sh", "-c", JOB, stdin=b"one line\n" + b"x" * 100_000)
    assert done.status == 7, done
    lines = done.stdout.decode().splitlines()
    assert lines[:2] == ["stdin: one line", "rest: 100000"]
    assert json.loads(lines[2]) == {"sum": 4950, "uid": os.getuid()}
    assert lines[3] == "compiled"
    assert lines[4].endswith(":first")
    assert lines[5] == "read-only"
    assert done.stderr == b"to-stderr\n"
    assert (folder / "repo/file").read_text() == "text\n"
    assert (folder / "hello").stat().st_uid == os.getuid()
    assert os.access(folder / "hello", os.X_OK)


def test_much_output_and_a_signal_of_its_own(verdicts: dict[str, str], folder: Path) -> None:
    command = "head -c 8388608 /dev/zero | tr '\\0' x; kill -USR1 $$"
    done = both(verdicts, folder, "sh", "-c", command)
    assert done.status == 128 + signal.SIGUSR1
    assert done.stdout == b"x" * 8388608


def test_it_is_what_is_left(verdicts: dict[str, str], folder: Path) -> None:
    """Where namespaces are refused it is chosen without a word, and said."""
    if verdicts["namespaces"] == "ok" or verdicts["bwrap"] == "ok":
        pytest.skip("namespaces are to be had: the other step of the bed has none")
    done = run("auto", folder, "cat", "/proc/sys/kernel/osrelease")
    assert done.status == 0, done
    assert done.stderr == b"nsrun: namespaces are refused, see 'nsrun doctor'; run in a microVM\n"


def test_a_command_that_is_not_there(verdicts: dict[str, str], folder: Path) -> None:
    done = both(verdicts, folder, "/no/such/program")
    assert done.status == 1
    assert done.stderr == b"nsrun: execvp /no/such/program: No such file or directory\n"


def test_how_messages_begin(verdicts: dict[str, str], folder: Path) -> None:
    """With their level if that is wanted, and with bwrap's name if it is called so."""
    words = argv("kvm", folder, "/no/such/program")
    words.insert(words.index("--"), "--level-prefix")
    done = subprocess.run(["bwrap", *words[1:]], executable=NSRUN, capture_output=True, check=False)
    assert (done.returncode, done.stdout) == (1, b"")
    assert done.stderr == b"<3>bwrap: execvp /no/such/program: No such file or directory\n"


def children(pid: int) -> list[int]:
    path = Path(f"/proc/{pid}/task/{pid}/children")
    return [int(word) for word in path.read_text().split()]


def monitor_of(pid: int) -> int:
    for child in children(pid):
        if Path(f"/proc/{child}/comm").read_text().strip() == "nsrun-vmm":
            return child
    raise AssertionError("no monitor")


def ended(pidfd: int) -> None:
    with open(pidfd, "rb"):
        # readable once it has ended: waited for without a limit
        select.select([pidfd], [], [])


@pytest.fixture
def talking(verdicts: dict[str, str], folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A command that says when it is there, and what signal it gets."""
    script = (
        "trap 'echo term; exit 3' TERM; trap 'echo int' INT; echo ready; "
        "while :; do read x || sleep 1; done"
    )
    with subprocess.Popen(
        argv("kvm", folder, "sh", "-c", script), stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        yield process
        process.kill()


def test_signals(talking: subprocess.Popen[bytes]) -> None:
    assert talking.stdout is not None
    talking.send_signal(signal.SIGINT)
    assert talking.stdout.readline() == b"int\n"
    talking.send_signal(signal.SIGTERM)
    assert talking.stdout.read() == b"term\n"
    assert talking.wait() == 3


def test_a_machine_that_dies(talking: subprocess.Popen[bytes]) -> None:
    monitor = os.pidfd_open(monitor_of(talking.pid))
    signal.pidfd_send_signal(monitor, signal.SIGKILL)
    ended(monitor)
    assert talking.stderr is not None
    assert b"nsrun: nsrun-vmm was killed by SIGKILL" in talking.stderr.read()
    assert talking.wait() == 1


def test_kill_leaves_no_machine(talking: subprocess.Popen[bytes]) -> None:
    monitor = os.pidfd_open(monitor_of(talking.pid))
    talking.kill()
    ended(monitor)


FETCH = """
import socket, sys
for name, port in zip(sys.argv[1::2], map(int, sys.argv[2::2])):
    try:
        with socket.create_connection((name, port)) as stream:
            print(len(stream.makefile("rb").read()))
    except OSError as error:
        print("refused")
"""


def test_the_callers_network(
    verdicts: dict[str, str], folder: Path, lack: Callable[[str], NoReturn]
) -> None:
    """Without --unshare-net: what the caller reaches, but not the host's own loopback."""
    if os.geteuid() != 0:
        lack("an address of the host's that is not its loopback's: it takes root to add one")
    address = "198.51.100.7"
    subprocess.run(["ip", "address", "add", f"{address}/32", "dev", "lo"], check=True)
    data = bytes(300_000)
    try:
        with tcp_server(sender(data), address) as far, tcp_server(sender(data)) as near:
            words = argv("kvm", folder, PYTHON, "-c", FETCH, address, str(far.port),
                         "127.0.0.1", str(near.port))  # fmt: skip
            words.remove("--unshare-net")
            done = subprocess.run(words, capture_output=True, check=False)
    finally:
        subprocess.run(["ip", "address", "del", f"{address}/32", "dev", "lo"], check=True)
    assert done.stdout == b"300000\nrefused\n", done


def test_from_python(verdicts: dict[str, str], folder: Path) -> None:
    """The same spec and the same result; a limit, and a time that is over."""
    spec = Sandbox.minimal().bind(folder, "/project").replace(cwd="/project", backend="kvm")
    script = "cat; echo $((6 * 7)) >out; echo error >&2; exit 5"
    result = run_spec(["sh", "-c", script], spec, input=b"typed")
    assert (result.returncode, result.stdout, result.stderr) == (5, b"typed", b"error\n")
    assert result.backend == "microVM (KVM)"
    assert (folder / "out").read_text() == "42\n"
    with pytest.raises(NsrunError, match="/no/such/program"):
        run_spec(["/no/such/program"], spec)


def test_from_python_with_signals(verdicts: dict[str, str]) -> None:
    spec = Sandbox.minimal().replace(backend="kvm")
    # a shell hears a signal that comes just before it waits for a program only after that
    script = "trap 'exit 9' TERM; echo ready; while :; do sleep 0.1; done"
    with popen(["sh", "-c", script], spec, stdout=PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        process.send_signal(signal.SIGTERM)
        assert process.wait() == 9


def test_a_time_limit(verdicts: dict[str, str]) -> None:
    with pytest.raises(TimeoutExpired):
        run_spec(["sleep", "1000"], Sandbox.minimal().replace(backend="kvm", timeout=20))


def test_a_terminal(verdicts: dict[str, str], folder: Path) -> None:
    """Raw here, and a terminal there: its echo, its keys."""
    script = 'test -t 0 && test -t 1 && echo terminal; read x; echo "got $x"; cat; echo over'
    words = argv("kvm", folder, "sh", "-c", script)
    pid, fd = pty.fork()
    if pid == 0:
        os.execv(words[0], words)
    os.set_inheritable(fd, False)
    seen = b""

    def until(text: bytes) -> None:
        nonlocal seen
        while text not in seen:
            data = os.read(fd, 4096)
            assert data, seen
            seen += data

    # the guest's, and it has no name in the sandbox's own /dev/pts
    until(b"terminal\r\n")
    os.write(fd, b"some text\r")
    until(b"got some text")
    os.write(fd, b"\x04")
    until(b"over")
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    os.close(fd)


def with_status(fd: int, command: list[str]) -> list[str]:
    return [command[0], "--json-status-fd", str(fd), *command[1:]]


@pytest.mark.parametrize(("script", "code"), [("exit 7", 7), ("kill -9 $$", 137)])
def test_status_records(verdicts: dict[str, str], folder: Path, script: str, code: int) -> None:
    """A pid to signal, no child-pid to look into, and the exit code."""
    reading, writing = os.pipe()
    with open(reading, "rb") as records:
        words = with_status(writing, argv("kvm", folder, "sh", "-c", script))
        with subprocess.Popen(words, pass_fds=[writing]) as process:
            os.close(writing)
            told = [json.loads(line) for line in records]
    assert told == [{"stand-in-pid": process.pid}, {"exit-code": code}]
    assert process.returncode == code


def test_no_exit_code_of_what_never_ran(verdicts: dict[str, str], folder: Path) -> None:
    reading, writing = os.pipe()
    with open(reading, "rb") as records:
        words = with_status(writing, argv("kvm", folder, "/no/such/program"))
        with subprocess.Popen(words, pass_fds=[writing], stderr=subprocess.PIPE) as process:
            os.close(writing)
            told = [json.loads(line) for line in records]
    assert told == [{"stand-in-pid": process.pid}]
    assert process.returncode == 1


def test_records_that_nobody_can_get(verdicts: dict[str, str], folder: Path) -> None:
    # subprocess.DEVNULL could be written to
    with open(os.devnull, "rb") as only_read:
        words = with_status(0, argv("kvm", folder, "echo", "ran"))
        done = subprocess.run(words, stdin=only_read, capture_output=True, check=False, text=True)
    assert (done.returncode, done.stdout) == (1, "")
    assert "--json-status-fd 0: " in done.stderr


def test_the_monitor_can_open_what_it_shares_and_nothing_else(
    verdicts: dict[str, str], folder: Path, lack: Callable[[str], NoReturn]
) -> None:
    """Whoever takes it over is behind walls; this process, which is not, opens both."""
    if landlock_abi() < 2:
        lack("Landlock, which keeps a monitor from other files")
    shared, other = folder / "file", folder.with_name(f"{folder.name}-other")
    for path in (shared, other):
        path.touch()
    words = argv("kvm", folder, "sh", "-c", "echo ready; sleep 1000")
    with subprocess.Popen(words, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"ready\n"
            pid = monitor_of(process.pid)
            for thread in openers(pid):
                assert opens(pid, thread, str(shared), os.O_RDWR) == 0
                for path in (other, Path("/proc/self/status"), folder.parent):
                    assert opens(pid, thread, str(path)) == errno.EACCES
        finally:
            process.kill()
