"""Real sandboxes, as the tests' own user and as one without privileges."""

from __future__ import annotations

import ctypes
import gc
import os
import re
import signal
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from cowork_nsrun import (
    Bind,
    CommandError,
    Dev,
    Dir,
    File,
    Namespace,
    NsrunError,
    Plan,
    Proc,
    Result,
    Sandbox,
    Symlink,
    TimeoutExpired,
    Tmpfs,
    _native,
    run,
    run_plan,
    settle,
)
from cowork_nsrun._native._core import ffi

MANY = 50_000_000
AsUser = Callable[[Callable[[], Any]], Any]

ALLOW = struct.pack("<HBBI", 0x06, 0, 0, 0x7FFF0000)


def sh(script: str, spec: Sandbox | None = None, **more: Any) -> Result[str]:
    """A shell's result, as text."""
    result: Result[str] = run(["sh", "-c", script], spec or Sandbox.minimal(), text=True, **more)
    return result


# --- what a command gets --------------------------------------------------------------------


def test_output_and_exit_status(as_user: AsUser) -> None:
    result = as_user(lambda: sh("echo out; echo err >&2; exit 3"))
    assert (result.returncode, result.signal) == (3, None)
    assert (result.stdout, result.stderr) == ("out\n", "err\n")
    assert result.backend == "namespaces"
    assert 0 < result.timings.spawn_ns < result.timings.total_ns


def test_check_raises_with_the_result(as_user: AsUser) -> None:
    def fails() -> int:
        with pytest.raises(CommandError, match="exit status 7") as caught:
            sh("exit 7").check()
        return int(caught.value.result.returncode)

    assert as_user(fails) == 7
    assert sh("true").check().returncode == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL, signal.SIGSEGV])
def test_signals_are_told(as_user: AsUser, number: int) -> None:
    result = as_user(lambda: sh(f"kill -{number} $$"))
    assert (result.returncode, result.signal) == (128 + number, number)


def test_python_s_ignored_signals_are_not_passed_on(as_user: AsUser) -> None:
    result = as_user(lambda: sh("grep SigIgn /proc/self/status"))
    ignored = int(result.stdout.split()[1], 16)
    assert not ignored & (1 << (signal.SIGPIPE - 1) | 1 << (signal.SIGXFSZ - 1))


def test_nothing_of_the_host_is_there(as_user: AsUser) -> None:
    result = as_user(
        lambda: sh("ls /; echo --; echo /proc/[0-9]*; cat /proc/net/dev | wc -l; hostname")
    )
    top, rest = result.stdout.split("--\n")
    assert set(top.split()) <= {
        "bin", "dev", "etc", "home", "lib", "lib64", "proc", "sbin", "tmp", "usr",
    }  # fmt: skip
    assert len(rest.split("\n")[0].split()) <= 3
    assert rest.split("\n")[1] == "3"  # two lines of header, and lo


def test_minimal_has_no_capabilities(as_user: AsUser) -> None:
    result = as_user(lambda: sh("grep -E 'Cap(Inh|Prm|Eff|Amb)' /proc/self/status"))
    assert {line.split()[1] for line in result.stdout.splitlines()} == {"0" * 16}


KERNEL = """
for file in core_pattern modprobe hostname sysrq panic; do
    (: >>/proc/sys/kernel/$file) 2>/dev/null && echo $file
done
(: >>/proc/sysrq-trigger) 2>/dev/null && echo sysrq-trigger
true
"""


def test_root_can_t_write_to_the_kernel(lack: Callable[[str], Any]) -> None:
    """A program that the kernel runs as root on the host is a line in /proc/sys away."""
    if os.geteuid():
        lack("not root: only root may write to /proc/sys without capabilities")
    assert sh(KERNEL).stdout == ""
    assert sh(KERNEL, Sandbox.workspace("/usr/share")).stdout == ""
    # the control, without what the presets add
    bare = Sandbox(
        filesystem=(Bind("/", "/", read_only=True), Dev(), Proc()),
        unshare=frozenset({Namespace.PID}),
        caps_drop=frozenset({"all"}),
    )
    assert "core_pattern" in sh(KERNEL, bare).stdout


def test_environment(as_user: AsUser, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_TOKEN", "secret")

    def probe() -> list[str]:
        spec = Sandbox.minimal().env(A="1 2")
        whole = sh("env", spec, env={"PATH": "/usr/bin", "B": "é\n"}).stdout
        return [sh("env", spec).stdout, whole]

    usual, whole = as_user(probe)
    assert "A=1 2\n" in usual
    assert "secret" not in usual
    assert "B=é\n" in whole
    assert "A=1 2" not in whole


def test_the_caller_s_environment_where_asked(
    as_user: AsUser, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PASSED_ON", "yes")
    spec = Sandbox.minimal().replace(clear_env=False)
    assert as_user(lambda: sh("echo $PASSED_ON", spec).stdout) == "yes\n"


def test_cwd(as_user: AsUser, shared: Path) -> None:
    def probe() -> list[str]:
        spec = Sandbox.workspace(shared)
        return [sh("pwd", spec).stdout, sh("pwd; echo $PWD", spec, cwd="/usr").stdout]

    assert as_user(probe) == [f"{shared}\n", "/usr\n/usr\n"]


def test_workspace_is_written_and_nothing_else(as_user: AsUser, shared: Path) -> None:
    spec = Sandbox.workspace(shared)
    result = as_user(lambda: sh("echo new >made; touch /usr/made", spec))
    assert (shared / "made").read_text() == "new\n"
    assert "Read-only file system" in result.stderr
    assert not Path("/usr/made").exists()


def test_files_links_and_memory(as_user: AsUser) -> None:
    spec = Sandbox.minimal().add(
        Dir("/d", mode=0o700), File("/d/f", b"content\0\n", mode=0o640), Symlink("d/f", "/l")
    )
    result = as_user(lambda: run(["sh", "-c", "cat /l; stat -Lc %a /d /l"], spec))
    assert result.stdout == b"content\0\n700\n640\n"


def test_seccomp_is_loaded(as_user: AsUser) -> None:
    spec = Sandbox.minimal().replace(seccomp=(ALLOW,))
    result = as_user(lambda: sh("grep -E '^Seccomp:' /proc/self/status", spec))
    assert result.stdout.split() == ["Seccomp:", "2"]


def test_only_stdio_is_passed_on(as_user: AsUser) -> None:
    def probe() -> str:
        r, w = os.pipe()
        os.set_inheritable(r, True)
        os.set_inheritable(w, True)
        try:
            return sh("ls /proc/$$/fd").stdout
        finally:
            os.close(r)
            os.close(w)

    assert as_user(probe).split() == ["0", "1", "2"]


# --- streams --------------------------------------------------------------------------------


def test_much_in_and_out_at_once(as_user: AsUser) -> None:
    data = bytes(range(256)) * (MANY // 256)
    spec = Sandbox.minimal()

    def probe() -> bool:
        result = run(["sh", "-c", "tee /dev/stderr"], spec, input=data)
        return result.stdout == data and result.stderr == data

    assert as_user(probe)


def test_input_that_nobody_reads(as_user: AsUser) -> None:
    assert as_user(lambda: run(["true"], Sandbox.minimal(), input=bytes(MANY))).returncode == 0


def test_empty_input_is_an_end_of_file(as_user: AsUser) -> None:
    assert as_user(lambda: run(["cat"], Sandbox.minimal(), input=b"")).stdout == b""


def test_output_of_a_process_left_behind(as_user: AsUser) -> None:
    """The command's end is the end, though another process holds its output open."""
    result = as_user(lambda: sh("sleep 1000 & echo started", timeout=60))
    assert result.stdout == "started\n"


@pytest.mark.parametrize("rest", ["true", "sleep 0.2", "sleep 0.2 & sleep 0.2"])
def test_output_that_is_closed_before_the_end(as_user: AsUser, rest: str) -> None:
    """The end of the output is not the command's."""
    result = as_user(lambda: sh(f"echo out; echo err >&2; exec >&- 2>&-; {rest}; exit 4"))
    assert (result.returncode, result.stdout, result.stderr) == (4, "out\n", "err\n")


def test_output_of_the_last_moment(as_user: AsUser) -> None:
    """As much as a pipe holds is still in it when the command's end is told."""

    def probe() -> set[tuple[int, int]]:
        script = "head -c 60000 /dev/zero; exec head -c 60000 /dev/zero >&2"
        ran = [run(["sh", "-c", script], Sandbox.minimal()) for _ in range(20)]
        return {(len(result.stdout), len(result.stderr)) for result in ran}

    assert as_user(probe) == {(60000, 60000)}


def test_input_that_is_closed_before_the_end(as_user: AsUser) -> None:
    def probe() -> Result[bytes]:
        script = "head -c 3; exec <&-; sleep 0.2; exit 4"
        return run(["sh", "-c", script], Sandbox.minimal(), input=bytes(MANY))

    result = as_user(probe)
    assert (result.returncode, result.stdout) == (4, bytes(3))


def test_bytes_that_are_no_text(as_user: AsUser) -> None:
    assert as_user(lambda: sh(r"printf 'a\377b'")).stdout == "a\\xffb"


def test_without_capture_output_goes_where_ours_goes(
    as_user: AsUser, capfd: pytest.CaptureFixture[str]
) -> None:
    result = as_user(lambda: sh("echo out; echo err >&2", capture=False))
    assert (result.stdout, result.stderr) == ("", "")
    captured = capfd.readouterr()
    assert (captured.out, captured.err) == ("out\n", "err\n")


# --- ends -----------------------------------------------------------------------------------


def processes_with(marker: str) -> list[int]:
    """Processes that have it on their command line."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if marker in path.read_bytes().decode(errors="replace").split("\0"):
                found.append(int(path.parent.name))
        except OSError:
            continue
    return found


@pytest.fixture
def marker() -> Iterator[str]:
    """A number of seconds that only this test sleeps."""
    value = f"1000.{time.monotonic_ns() % 10**9}"
    yield value
    assert processes_with(value) == []


@pytest.mark.parametrize(
    "script",
    [
        "echo early; sleep {0}",
        "echo early; sleep {0} & sleep {0}",
        "trap '' TERM INT; echo early; sleep {0} & wait",
        "echo early; setsid sleep {0} & sleep {0}",
    ],
)
def test_timeout_kills_everything(as_user: AsUser, marker: str, script: str) -> None:
    def probe() -> tuple[bytes | None, float]:
        with pytest.raises(TimeoutExpired) as caught:
            sh(script.format(marker), timeout=0.3)
        return caught.value.stdout, caught.value.timeout

    assert as_user(probe) == (b"early\n", 0.3)
    assert processes_with(marker) == []


def test_no_time_at_all(as_user: AsUser, marker: str) -> None:
    def probe() -> None:
        with pytest.raises(TimeoutExpired):
            sh(f"sleep {marker}", timeout=0)

    as_user(probe)


def test_interrupt_leaves_nothing(in_child: AsUser, marker: str) -> None:
    def probe() -> tuple[bool, list[int], list[str]]:
        settle()
        before = sorted(os.listdir("/proc/self/fd"))
        # sent once the command is known to run
        threading.Thread(target=interrupt_when_it_runs, args=(marker,)).start()
        try:
            sh(f"sleep {marker}")
        except KeyboardInterrupt:
            return True, processes_with(marker), changed(before)
        return False, [], []

    def changed(before: list[str]) -> list[str]:
        settle()
        return sorted(set(os.listdir("/proc/self/fd")) ^ set(before))

    def interrupt_when_it_runs(marker: str) -> None:
        while not processes_with(marker):
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    assert in_child(probe) == (True, [], [])


def test_sandbox_dies_with_its_owner(shared: Path, marker: str) -> None:
    """The owner is killed where it can clean up nothing."""
    script = (
        "from cowork_nsrun import Sandbox, run\n"
        f"run(['sh', '-c', 'touch begun; sleep {marker}'], Sandbox.workspace({str(shared)!r}))"
    )
    owner = subprocess.Popen([sys.executable, "-I", "-c", script])
    try:
        while not (shared / "begun").exists():
            assert owner.poll() is None
            time.sleep(0.01)
    finally:
        owner.kill()
        owner.wait()
    wait_until_gone(marker)


def wait_until_gone(marker: str) -> None:
    """The kernel ends them in its own time; a test that hangs is a failure by its timeout."""
    for _ in range(1000):
        if not processes_with(marker):
            return
        time.sleep(0.01)
    pytest.fail("the sandbox outlives its owner")


# --- failures -------------------------------------------------------------------------------


def test_command_that_is_not_there(as_user: AsUser) -> None:
    def probe() -> tuple[str, int]:
        with pytest.raises(NsrunError) as caught:
            run(["no-such-command"], Sandbox.minimal())
        return caught.value.text, caught.value.errno

    assert as_user(probe) == ("execvp no-such-command: No such file or directory", 2)


def test_source_that_is_not_there(as_user: AsUser) -> None:
    def probe() -> tuple[str, int]:
        with pytest.raises(NsrunError) as caught:
            run(["true"], Sandbox.minimal().add(Bind("/no/such", "/a")))
        return caught.value.text, caught.value.errno

    text, number = as_user(probe)
    assert text.startswith("Can't find source path /no/such")
    assert number == 2


def test_failure_inside_names_step_and_path(as_user: AsUser) -> None:
    def probe() -> tuple[int, str, str]:
        with pytest.raises(NsrunError) as caught:
            run(["true"], Sandbox.minimal().add(Dir("/usr/made/here")))
        return caught.value.step, caught.value.path, caught.value.text

    step, path, text = as_user(probe)
    assert step > 0
    assert path == "/usr/made/here"
    assert "Read-only file system" in text


# --- plans ----------------------------------------------------------------------------------

ROOT = ["--ro-bind", "/", "/", "--dev", "/dev", "--proc", "/proc", "--unshare-all"]


def test_command_line_of_bwrap(as_user: AsUser) -> None:
    plan = Plan.from_argv([*ROOT, "--", "echo", "hello"])
    assert as_user(lambda: run_plan(plan)).stdout == b"hello\n"


@pytest.fixture
def user_namespace() -> Iterator[int]:
    """A user namespace to join, held by a process of ours."""
    holder = subprocess.Popen(
        ["unshare", "--user", "--map-root-user", "sh", "-c", "echo ready; exec cat"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert holder.stdout
    assert holder.stdin
    assert holder.stdout.readline() == b"ready\n"
    fd = os.open(f"/proc/{holder.pid}/ns/user", os.O_RDONLY)
    yield fd
    os.close(fd)
    holder.stdin.close()
    holder.stdout.close()
    holder.wait()


def test_plans_that_join_namespaces_go_through_the_program(user_namespace: int) -> None:
    wanted = os.readlink(f"/proc/self/fd/{user_namespace}")
    plan = Plan.from_argv(
        ["--userns", str(user_namespace), "--unshare-pid", "--ro-bind", "/", "/",
         "--proc", "/proc", "--", "sh", "-c", "readlink /proc/self/ns/user; exit 5"]
    )  # fmt: skip
    result = run_plan(plan)
    assert result.stdout.decode().strip() == wanted
    assert result.returncode == 5
    assert result.backend == "namespaces (nsrun program)"
    assert result.timings.spawn_ns is not None
    assert 0 < result.timings.spawn_ns < result.timings.total_ns


def test_failure_through_the_program_is_told(user_namespace: int) -> None:
    plan = Plan.from_argv(["--userns", str(user_namespace), "--ro-bind", "/", "/", "no-such"])
    with pytest.raises(NsrunError, match="execvp no-such: No such file or directory"):
        run_plan(plan)


def test_timeout_through_the_program(user_namespace: int, marker: str) -> None:
    plan = Plan.from_argv(
        ["--userns", str(user_namespace), "--unshare-pid", "--ro-bind", "/", "/",
         "--", "sleep", marker]
    )  # fmt: skip
    with pytest.raises(TimeoutExpired):
        run_plan(plan, timeout=0.3)
    assert processes_with(marker) == []


# --- the caller ------------------------------------------------------------------------------


def status_fields(*names: str) -> dict[str, str]:
    text = Path("/proc/self/status").read_text()
    return {name: re.findall(f"^{name}:\t(.*)$", text, re.M)[0] for name in names}


def caller_state() -> dict[str, Any]:
    """Everything of this process that a spawn must leave as it was."""
    settle()
    # what earlier tests dropped is not to be closed between two looks
    gc.collect()
    # a thread is gone for Python before it is for the kernel
    while len(os.listdir("/proc/self/task")) > threading.active_count():
        time.sleep(0.001)
    libc = ctypes.CDLL(None)
    return {
        "dumpable": libc.prctl(3, 0, 0, 0, 0),
        "status": status_fields(
            "Uid", "Gid", "Groups", "Umask", "Threads", "NoNewPrivs", "Seccomp", "TracerPid",
            "SigPnd", "ShdPnd", "SigBlk", "SigIgn", "SigCgt",
            "CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb",
        ),
        "environ": dict(os.environ),
        "cwd": os.getcwd(),
        "root": os.readlink("/proc/self/root"),
        "fds": {fd: link(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd")},
        "children": [path.read_text() for path in Path("/proc/self/task").glob("*/children")],
        "namespaces": {
            name: os.readlink(f"/proc/self/ns/{name}") for name in os.listdir("/proc/self/ns")
        },
        "mounts": Path("/proc/self/mountinfo").read_text(),
        "session": (os.getsid(0), os.getpgid(0)),
        "limits": Path("/proc/self/limits").read_text(),
    }  # fmt: skip


def link(path: str) -> str:
    """What a descriptor is; the one on the listing itself is gone by now."""
    try:
        return os.readlink(path)
    except FileNotFoundError:
        return "the listing"


def as_other_user() -> Sandbox:
    return Sandbox.minimal().replace(
        unshare=Sandbox.minimal().unshare | {Namespace.USER}, uid=4321, gid=4321
    )


HOST = Sandbox(filesystem=(Bind("/", "/"), Dev(), Proc()))
KINDS: dict[str, tuple[Sandbox, list[str], float | None]] = {
    "minimal": (Sandbox.minimal(), ["true"], None),
    "host network": (Sandbox.minimal().network("host"), ["true"], None),
    "cowork": (Sandbox.cowork("s"), ["true"], None),
    "no namespaces": (HOST, ["true"], None),
    "own user namespace": (
        HOST.replace(unshare=frozenset({Namespace.USER})),
        ["true"],
        None,
    ),
    "other ids": (as_other_user(), ["id", "-u"], None),
    "no user namespaces inside": (
        as_other_user().replace(disable_userns=True),
        ["true"],
        None,
    ),
    "command as pid 1": (Sandbox.minimal().replace(as_pid_1=True), ["true"], None),
    "outliving": (Sandbox.minimal().replace(die_with_parent=False), ["true"], None),
    "seccomp": (Sandbox.minimal().replace(seccomp=(ALLOW, ALLOW)), ["true"], None),
    "host name": (Sandbox.minimal().replace(hostname="inside"), ["hostname"], None),
    "capabilities": (
        Sandbox.minimal().replace(
            unshare=Sandbox.minimal().unshare | {Namespace.USER},
            caps_drop=frozenset(),
            caps_add=frozenset({"cap_net_admin"}),
        ),
        ["true"],
        None,
    ),
    "lock file": (
        Sandbox.minimal().replace(lock_files=("/usr/bin/env",)),
        ["true"],
        None,
    ),
    "many mounts": (
        Sandbox.minimal().add(*(Tmpfs(f"/tmp/{i}") for i in range(50))),
        ["true"],
        None,
    ),
    "missing command": (Sandbox.minimal(), ["no-such-command"], None),
    "missing source": (Sandbox.minimal().add(Bind("/no/such", "/a")), ["true"], None),
    "failing mount": (Sandbox.minimal().add(Dir("/usr/no")), ["true"], None),
    "signal": (Sandbox.minimal(), ["sh", "-c", "kill -9 $$"], None),
    "timeout": (Sandbox.minimal(), ["sleep", "1000"], 0.2),
    "input and output": (Sandbox.minimal(), ["cat"], None),
}


@pytest.mark.parametrize("kind", KINDS)
def test_caller_is_as_before(as_user: AsUser, kind: str) -> None:
    spec, command, timeout = KINDS[kind]

    def probe() -> tuple[dict[str, Any], dict[str, Any], str]:
        outcome = "ran"
        # modules that are loaded late open files
        run(["true"], Sandbox.minimal())
        before = caller_state()
        for _ in range(3):
            try:
                run(command, spec, input=b"x" * 100_000, timeout=timeout)
            except NsrunError as error:
                outcome = type(error).__name__
        return before, caller_state(), outcome

    before, after, outcome = as_user(probe)
    assert after == before
    expected = {"missing command", "missing source", "failing mount"}
    assert (outcome == "NsrunError") == (kind in expected), outcome
    assert (outcome == "TimeoutExpired") == (kind == "timeout"), outcome


def test_ids_inside(as_user: AsUser) -> None:
    assert as_user(lambda: sh("id -u; id -g", as_other_user()).stdout) == "4321\n4321\n"


@pytest.mark.parametrize("command", ["true", "no-such-command"])
def test_errno_of_the_thread_is_kept(as_user: AsUser, command: str) -> None:
    """The child shares the caller's memory, its errno included."""

    def probe() -> int:
        # cffi saves and restores errno around its calls; what is looked at is the copy that
        # the last call left, which is the thread's own at its return
        plan = Plan.from_spec(Sandbox.minimal(), [command])
        child = _native.Child()
        ffi.errno = 77
        child.start(plan.native, (0, 1, 2))
        value = int(ffi.errno)
        child.close()
        return value

    assert as_user(probe) == 77


# --- many at once ------------------------------------------------------------------------------


def test_memory_is_used_again(in_child: AsUser) -> None:
    """What each sandbox shares with us is given back, or kept for the next one."""

    def size_of_memory() -> int:
        settle()
        return int(status_fields("VmSize")["VmSize"].split()[0])

    def probe() -> int:
        spec = Sandbox.minimal()
        for _ in range(20):
            run(["true"], spec)
        before = size_of_memory()
        for _ in range(100):
            run(["true"], spec)
        return size_of_memory() - before

    # 100 of them would take 110 MiB; a few may be kept that were not before
    grown = in_child(probe)
    assert grown < 20_000, f"{grown} KiB more after 100 sandboxes"


def test_from_many_threads_at_once(as_user: AsUser) -> None:
    def one(number: int) -> bool:
        result = sh(f"cat; echo {number} >&2; exit {number % 100}", input=f"{number}\n" * 5000)
        return (result.returncode, result.stdout, result.stderr) == (
            number % 100,
            f"{number}\n" * 5000,
            f"{number}\n",
        )

    def probe() -> tuple[list[bool], int]:
        settle()
        before = len(os.listdir("/proc/self/fd"))
        with ThreadPoolExecutor(8) as pool:
            done = list(pool.map(one, range(120)))
        settle()
        return done, len(os.listdir("/proc/self/fd")) - before

    assert as_user(probe) == ([True] * 120, 0)


def test_other_threads_live_on_during_a_long_command() -> None:
    """The call must not hold Python's lock."""
    counted = 0
    stop = threading.Event()

    def count() -> None:
        nonlocal counted
        while not stop.wait(0.001):
            counted += 1

    thread = threading.Thread(target=count)
    thread.start()
    sh("sleep 0.5")
    stop.set()
    thread.join()
    assert counted > 10


def test_environment_changes_in_other_threads(as_user: AsUser) -> None:
    """What is passed is a copy: no torn strings, whatever other threads set meanwhile."""

    def probe() -> bool:
        stop = threading.Event()

        def change() -> None:
            while not stop.is_set():
                os.environ["CHANGING"] = "x" * 1000
                os.environ.pop("CHANGING")

        thread = threading.Thread(target=change)
        thread.start()
        spec = Sandbox.minimal().env(FIXED="value")
        texts = [sh("echo $FIXED", spec).stdout for _ in range(50)]
        stop.set()
        thread.join()
        return texts == ["value\n"] * 50

    assert as_user(probe)
