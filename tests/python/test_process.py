"""Process: streams, signals, times, terminals, and what the host program may do meanwhile."""

from __future__ import annotations

import errno
import gc
import os
import random
import resource
import signal
import struct
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from leftovers import census, cgroups_of, processes_with, wait_until_gone, wait_until_session_gone

from cowork_nsrun import (
    DEVNULL,
    PIPE,
    STDOUT,
    CommandError,
    Ending,
    Namespace,
    NsrunError,
    Process,
    Sandbox,
    SpecError,
    TimeoutExpired,
    popen,
    run,
)
from cowork_nsrun.enforce import Enforced
from cowork_nsrun.handle import start
from cowork_nsrun.plan import Plan

AsUser = Callable[[Callable[[], Any]], Any]
MINIMAL = Sandbox.minimal()
MIB = 1 << 20
ALLOW = struct.pack("<HBBI", 0x06, 0, 0, 0x7FFF0000)
UNPRIVILEGED = 12345


def sh(script: str, spec: Sandbox = MINIMAL, **options: Any) -> Process[bytes]:
    """A shell that runs, its output in a pipe."""
    process: Process[bytes] = popen(
        ["sh", "-c", script], spec, **{"stdout": PIPE, "stderr": STDOUT, **options}
    )
    return process


def line(process: Process[bytes]) -> bytes:
    """One line of its output."""
    assert process.stdout is not None
    answer: bytes = process.stdout.readline()
    return answer


# --- streams --------------------------------------------------------------------------------


def test_pipes_are_files(as_user: AsUser) -> None:
    def probe() -> tuple[bytes, bytes, int]:
        with popen(["cat"], MINIMAL, stdin=PIPE, stdout=PIPE) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write(b"one\n")
            process.stdin.flush()
            first = process.stdout.readline()
            process.stdin.write(b"two\n")
            process.stdin.close()
            return first, process.stdout.read(), process.wait()

    assert as_user(probe) == (b"one\n", b"two\n", 0)


def test_text_is_utf_8_whatever_it_is(as_user: AsUser) -> None:
    def probe() -> tuple[str, str]:
        script = r"cat; printf 'a\377b'"
        with popen(["sh", "-c", script], MINIMAL, stdin=PIPE, stdout=PIPE, text=True) as process:
            return process.communicate("é")

    assert as_user(probe) == ("éa\\xffb", "")


def test_files_descriptors_devnull_and_stdout(tmp_path: Path) -> None:
    (tmp_path / "in").write_text("from a file")
    with open(tmp_path / "in") as given, open(tmp_path / "out", "wb") as taken:
        sh("cat; echo err >&2", stdin=given, stdout=taken, stderr=STDOUT).wait()
        sh("cat; echo lost", stdin=DEVNULL, stdout=DEVNULL).wait()
        sh("echo by number", stdout=taken.fileno()).wait()
    assert (tmp_path / "out").read_text() == "from a fileerr\nby number\n"


def test_streams_may_cross(tmp_path: Path, in_child: AsUser) -> None:
    """The caller's 1 as the command's 2, and the other way round."""

    def probe() -> None:
        for number, name in ((1, "one"), (2, "two")):
            os.dup2(os.open(tmp_path / name, os.O_WRONLY | os.O_CREAT, 0o600), number)
        sh("echo to 1; echo to 2 >&2", stdout=2, stderr=1).wait()

    in_child(probe)
    assert (tmp_path / "one").read_text() == "to 2\n"
    assert (tmp_path / "two").read_text() == "to 1\n"


def test_streams_that_can_t_be() -> None:
    before = census()
    for options, field in (
        ({"stdin": STDOUT}, "stdin"),
        ({"stdout": STDOUT}, "stdout"),
        ({"stdout": -77}, "stdout"),
        ({"stdin": PIPE, "pty": True}, "stdin"),
        ({"stdout": None, "stderr": None, "pty": (0x10000, 1)}, "pty"),
        ({"stdout": None, "stderr": None, "pty": (-1, 1)}, "pty"),
    ):
        with pytest.raises(SpecError) as caught:
            sh("true", **options)
        assert caught.value.field == field
    with pytest.raises(NsrunError, match="Bad file descriptor"):
        sh("true", stdout=999)
    assert census() == before


@pytest.mark.parametrize("closed", [(0,), (1,), (2,), (0, 1), (1, 2), (0, 1, 2)])
@pytest.mark.parametrize("pty", [False, True])
def test_caller_without_stdio(in_child: AsUser, closed: tuple[int, ...], pty: bool) -> None:
    """The command's streams are never a pipe of ours that landed at such a number."""

    def probe() -> tuple[bytes, bytes]:
        for fd in closed:
            os.close(fd)
        result = run(["sh", "-c", "cat; echo out; echo err >&2"], MINIMAL, timeout=20)
        process = sh("echo seen", stdout=None if pty else PIPE, stderr=None, pty=pty)
        with process:
            out, _ = process.communicate()
        return result.stdout, out.strip()

    if 0 not in closed:  # what the tests' own stdin has is not for cat
        closed = (0, *closed)
    assert in_child(probe) == (b"out\n", b"seen")


def test_communicate_after_the_end(as_user: AsUser) -> None:
    def probe() -> list[Any]:
        found: list[Any] = []
        with sh("echo out; exit 3") as process:
            assert process.wait() == 3
            found += [process.communicate(), process.communicate()]
        with sh("echo out") as process:
            while process.poll() is None:
                time.sleep(0.001)
            found.append(process.communicate(timeout=0))
        return found

    assert as_user(probe) == [(b"out\n", b""), (b"", b""), (b"out\n", b"")]


def test_communicate_knows_which_stream_is_which() -> None:
    with sh("echo out; echo err >&2", stderr=PIPE) as process:
        assert process.stdout is not None
        process.stdout.close()
        out, err = process.communicate()
    assert out == b""
    assert err in (b"err\n", b"")  # echo may have met the closed pipe first


def test_communicate_with_input_that_nobody_takes() -> None:
    with sh("exec <&-; sleep 0.1", stdin=PIPE) as process:
        assert process.stdin is not None
        process.stdin.write(b"buffered")
        process.wait()
        assert process.communicate() == (b"", b"")
    with pytest.raises(SpecError, match="input"), sh("true") as process:
        process.communicate(b"data")


def test_much_each_way_at_once(as_user: AsUser) -> None:
    """Far more than any pipe holds; what the command did not send yet is not held twice."""
    size = 200 * MIB

    def probe() -> tuple[int, int, int]:
        data = bytes(size)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        with popen(["cat"], MINIMAL, stdin=PIPE, stdout=PIPE) as process:
            out, _ = process.communicate(data)
        after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return len(out), out.count(0), (after - before) // 1024

    length, zeros, grown = as_user(probe)
    assert (length, zeros) == (size, size)
    assert grown < 4 * 200


def test_output_may_be_taken_piece_by_piece() -> None:
    """So that of much output only a piece is held."""
    with popen(["head", "-c", str(300 * MIB), "/dev/zero"], MINIMAL, stdout=PIPE) as process:
        assert process.stdout is not None
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        taken = 0
        while piece := process.stdout.read(MIB):
            taken += len(piece)
        assert process.wait() == 0
    assert taken == 300 * MIB
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024 < 100


# --- ends -----------------------------------------------------------------------------------


def test_wait_poll_and_result() -> None:
    with sh("read line; exit 5", stdin=PIPE) as process:
        assert process.poll() is None
        assert process.returncode is None
        with pytest.raises(TimeoutExpired):
            process.wait(0)
        with pytest.raises(TimeoutExpired):
            process.wait(-1)
        with pytest.raises(TimeoutExpired):
            process.wait(0.01)
        with pytest.raises(NsrunError, match="not ended"):
            process.result()
        assert "running" in repr(process)
        assert process.stdin is not None
        process.stdin.close()
        assert process.wait(60) == 5
        assert process.poll() == 5
        assert "returncode 5" in repr(process)
    result = process.result()
    assert (result.returncode, result.signal, result.ending) == (5, None, Ending.EXITED)
    assert result.usage.cpu_ns > 0
    assert result.timings.total_ns > (result.timings.spawn_ns or 0) > 0
    with pytest.raises(CommandError):
        result.check()


def test_ended_is_seen_without_any_time() -> None:
    """wait(0) is a poll: it takes what there is before it looks at the clock."""
    with sh("echo begun") as process:
        assert line(process) == b"begun\n"
        assert line(process) == b""
        time.sleep(0.3)
        assert process.wait(0) == 0


def test_end_before_the_timeout_is_no_timeout() -> None:
    """Even if its owner only looks after that."""
    looks: list[Callable[[Process[bytes]], Any]] = [
        Process.wait,
        Process.poll,
        Process.communicate,
    ]
    for look in looks:
        process = sh("exit 3", timeout=0.3)
        with process:
            time.sleep(0.6)
            look(process)
            assert process.result().ending == Ending.EXITED
            assert process.returncode == 3


def test_pid_1_keeps_the_time_itself(as_user: AsUser) -> None:
    """The owner neither waits nor polls: it is busy."""

    def probe() -> tuple[bytes, Ending, int]:
        with sh("trap '' TERM; echo begun; sleep 1000; echo late", timeout=0.4) as process:
            assert process.stdout is not None
            out = process.stdout.read()  # its end is the sandbox's
            process.wait()
            return out, process.result().ending, process.result().returncode

    assert as_user(probe) == (b"begun\n", Ending.TIMED_OUT, 128 + signal.SIGKILL)


@pytest.mark.parametrize("number", [signal.SIGALRM, signal.SIGIO, signal.SIGKILL, signal.SIGTERM])
@pytest.mark.parametrize("timeout", [None, 60])
def test_command_can_t_pretend_to_be_late(
    as_user: AsUser, number: int, timeout: float | None
) -> None:
    """Nor does it end pid 1 by what pid 1 listens to."""

    def probe() -> tuple[int, Ending]:
        with sh(f"kill -{int(number)} 1; sleep 0.05; exit 4", timeout=timeout) as process:
            process.wait()
            return process.result().returncode, process.result().ending

    assert as_user(probe) == (4, Ending.EXITED)


def test_control_a_late_command_is_told_apart() -> None:
    with sh("sleep 1000", timeout=0.1) as process:
        process.wait()
        assert process.result().ending == Ending.TIMED_OUT


def test_timeout_of_communicate() -> None:
    with sh("echo some; sleep 1000") as process:
        with pytest.raises(TimeoutExpired) as caught:
            process.communicate(timeout=0.3)
        assert caught.value.stdout == b"some\n"
        assert process.returncode == 128 + signal.SIGKILL
        assert process.communicate() == (b"", b"")


def test_without_a_pid_namespace(as_user: AsUser) -> None:
    spec = MINIMAL.replace(unshare=MINIMAL.unshare - {Namespace.PID})

    def probe() -> tuple[int, Ending]:
        with sh("exec sleep 1000", spec, timeout=0.2) as process:
            process.wait()
            return process.result().returncode, process.result().ending

    assert as_user(probe) == (128 + signal.SIGKILL, Ending.TIMED_OUT)


def test_waiting_in_many_threads() -> None:
    """Each with a time of its own, while the command's runs out, again and again."""
    for _ in range(20):
        process = sh("sleep 1000", timeout=0.05)
        with process, ThreadPoolExecutor(8) as threads:
            waits = [threads.submit(process.wait, None if i % 2 else 60) for i in range(6)]
            polls = [threads.submit(process.poll) for _ in range(50)]
            for future in waits:
                assert future.result() == 128 + signal.SIGKILL
            for poll in polls:
                poll.result()
        assert process.result().ending == Ending.TIMED_OUT


def test_everything_at_once_in_many_threads() -> None:
    before = census()
    rng = random.Random(3)
    for _ in range(15):
        process = sh("cat; sleep 1000", stdin=PIPE)
        actions: list[Callable[[], Any]] = [
            partial(process.communicate, b"x" * MIB),
            partial(process.communicate, b"y" * MIB),
            process.wait,
            process.poll,
            process.terminate,
            process.close,
            process.kill,
        ]
        rng.shuffle(actions)
        with ThreadPoolExecutor(len(actions)) as threads:
            futures = [threads.submit(action) for action in actions]
            for future in futures:
                assert not future.exception() or isinstance(
                    future.exception(), NsrunError | ValueError
                ), repr(future.exception())
        process.close()
        assert process.returncode is not None
    assert census() == before


def test_closing_while_another_thread_communicates() -> None:
    """The files are not closed under its hands."""
    for _ in range(20):
        process = sh("cat", stdin=PIPE)
        with ThreadPoolExecutor(1) as threads:
            talk = threads.submit(process.communicate, b"z" * (4 * MIB))
            time.sleep(0.002)
            process.close()
            error = talk.exception()
            assert error is None, repr(error)


def test_exception_inside_with(marker: str) -> None:
    before = census()
    with pytest.raises(ZeroDivisionError), sh(f"sleep {marker}"):
        1 / 0  # noqa: B018
    assert processes_with(marker) == []
    assert census() == before


def test_dropped_process_is_killed_and_told_of(marker: str) -> None:
    before = census()
    process = sh(f"echo begun; sleep {marker}", stdout=PIPE)
    assert line(process) == b"begun\n"
    with pytest.warns(ResourceWarning, match="was dropped"):
        del process
    assert processes_with(marker) == []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()
    assert census() == before


def test_the_core_s_part_may_be_finalized_first(marker: str) -> None:
    """A collector of garbage asks nobody which of several objects in a cycle goes first."""
    script = f"""
from cowork_nsrun import Sandbox, popen
process = popen(["sleep", "{marker}"], Sandbox.minimal())
process._handle._child.close()
print(process.poll(), process)
process.close()
"""
    done = subprocess.run(
        [sys.executable, "-I", "-c", script],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"{128 + signal.SIGKILL} ")


def test_dropped_in_a_cycle_and_at_the_interpreter_s_end(marker: str) -> None:
    """Finalizers run where they run: also in threads that hold our own locks."""
    script = f"""
import gc, os, threading
from cowork_nsrun import Sandbox, popen, run, settle
spec = Sandbox.minimal()
gc.set_threshold(1)
def cycles():
    for _ in range(15):
        me = [popen(["sleep", "{marker}"], spec)]
        me.append(me)
        del me
        run(["true"], spec)
threads = [threading.Thread(target=cycles) for _ in range(4)]
for thread in threads: thread.start()
for thread in threads: thread.join()
left = popen(["sleep", "{marker}"], spec)
print("reached")
"""
    done = subprocess.run(
        [sys.executable, "-I", "-W", "ignore", "-c", script],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "reached\n"), done.stderr
    assert done.stderr == ""
    wait_until_gone(marker)


# --- signals --------------------------------------------------------------------------------

FAMILY = """
trap 'echo command' USR1
sh -c 'trap "echo child; exit" USR1; echo ready; while :; do sleep 0.02; done' &
setsid sh -c 'trap "echo session; exit" USR1; echo ready; while :; do sleep 0.02; done' &
sh -c 'sh -c "trap \\"echo grandchild; exit\\" USR1; echo ready; while :; do sleep 0.02; done" & ' &
wait
wait
wait
sleep 0.3
"""


def test_signal_reaches_everybody(as_user: AsUser) -> None:
    def probe() -> list[bytes]:
        # a shell says which of its children a signal ended
        with sh(FAMILY, stderr=DEVNULL) as process:
            for _ in range(3):
                assert line(process) == b"ready\n"
            process.send_signal(signal.SIGUSR1)
            return sorted(line(process) for _ in range(4))

    assert as_user(probe) == [b"child\n", b"command\n", b"grandchild\n", b"session\n"]


def test_signal_with_a_filter_reaches_the_command_alone(as_user: AsUser, marker: str) -> None:
    spec = MINIMAL.replace(seccomp=(ALLOW,))
    script = (
        "trap 'echo command; exit 7' TERM; "
        f"sh -c 'trap \"echo child\" TERM; echo ready; sleep {marker} & wait; echo on; wait' & "
        "echo ready; while :; do sleep 0.02; done"
    )

    def probe() -> tuple[list[bytes], int]:
        with sh(script, spec) as process:
            ready = [line(process), line(process)]
            process.terminate()
            out, _ = process.communicate()
            return [*ready, out], process.wait()

    assert as_user(probe) == ([b"ready\n", b"ready\n", b"command\n"], 7)
    assert processes_with(marker) == []


def test_signals_that_can_t_be_and_after_the_end() -> None:
    with sh("read x", stdin=PIPE) as process:
        for number in (0, -1, 65, 1000):
            with pytest.raises(NsrunError):
                process.send_signal(number)
        process.kill()
        assert process.wait() == 128 + signal.SIGKILL
        process.kill()
        process.terminate()
        process.send_signal(signal.SIGUSR1)


def test_never_a_recycled_pid(in_child: AsUser) -> None:
    """The numbers come round quickly in a pid namespace of our own, that has few of them."""
    spec = MINIMAL.replace(seccomp=(ALLOW,))  # the command is signalled by number only then

    def probe() -> int:
        if subprocess.run(["unshare", "--pid", "--fork", "true"], check=False).returncode:
            return 0
        script = f"""
import os, signal, sys
from cowork_nsrun import PIPE, Sandbox, popen
open("/proc/sys/kernel/ns_last_pid", "w").write("500")
spec = Sandbox.minimal().replace(seccomp=({spec.seccomp[0]!r},))
process = popen(["sh", "-c", "read x"], spec, stdin=PIPE)
pid = process.pid
process.stdin.close()
while os.path.exists(f"/proc/{{pid}}"):
    pass
# its end is not looked at: the handle takes it for alive
open("/proc/sys/kernel/ns_last_pid", "w").write(str(pid - 1))
other = os.fork()
if not other:
    signal.pause()
assert other == pid, (other, pid)
process.terminate()
process.kill()
process.wait()
print(os.waitpid(other, os.WNOHANG))
os.kill(other, 9)
"""
        done = subprocess.run(
            ["unshare", "--pid", "--fork", "--mount-proc", sys.executable, "-I", "-c", script],
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        assert done.stdout == "(0, 0)\n", done.stderr
        return 1

    if os.geteuid():
        pytest.skip("only root sets the next pid")
    assert in_child(probe) == 1


def test_handler_that_uses_the_process(in_child: AsUser) -> None:
    """A Python signal handler may come wherever its thread is, also within our own locks."""

    def probe() -> list[int]:
        codes = []
        for _ in range(60):
            with sh("while :; do :; done") as process:
                signal.signal(signal.SIGALRM, lambda *_, p=process: (p.poll(), p.kill()))
                signal.setitimer(signal.ITIMER_REAL, 0.001, 0.0005)
                codes.append(process.wait())
                process.close()
                signal.setitimer(signal.ITIMER_REAL, 0)
        return codes

    assert set(in_child(probe)) == {128 + signal.SIGKILL}


def test_handler_that_closes_the_process(in_child: AsUser) -> None:
    def probe() -> list[int]:
        codes = []
        for _ in range(30):
            process = sh("while :; do :; done")
            signal.signal(signal.SIGALRM, lambda *_, p=process: p.close())
            signal.setitimer(signal.ITIMER_REAL, 0.003)
            codes.append(process.wait())
            process.close()
        return codes

    assert set(in_child(probe)) == {128 + signal.SIGKILL}


# --- terminals ------------------------------------------------------------------------------


def read_until(process: Process[bytes], wanted: bytes) -> bytes:
    """What the terminal shows, until that is in it."""
    assert process.terminal is not None
    seen = b""
    while wanted not in seen:
        piece = process.terminal.read(4096)
        assert piece, seen
        seen += piece
    return seen


def terminal(script: str, **options: Any) -> Process[bytes]:
    return sh(script, stdout=None, stderr=None, **{"pty": True, **options})


def test_terminal_and_its_size(as_user: AsUser) -> None:
    def probe() -> bytes:
        script = "trap 'stty size' WINCH; tty; stty size; while :; do sleep 0.02; done"
        with terminal(script, pty=(30, 100)) as process:
            seen = read_until(process, b"30 100")
            process.resize(44, 132)
            return seen + read_until(process, b"44 132")

    assert b"not a tty" not in as_user(probe)


def test_ctrl_c_and_end_of_file(as_user: AsUser) -> None:
    def probe() -> tuple[int, int]:
        with terminal("trap 'exit 9' INT; echo ready; while :; do sleep 0.02; done") as process:
            read_until(process, b"ready")
            assert process.terminal is not None
            process.terminal.write(b"\x03")
            interrupted = process.wait()
        with terminal("echo ready; cat; exit 6") as process:
            read_until(process, b"ready")
            assert process.terminal is not None
            process.terminal.write(b"\x04")
            return interrupted, process.wait()

    assert as_user(probe) == (9, 6)


def test_job_control(as_user: AsUser) -> None:
    """A shell with its own session: it stops and continues what it runs."""

    def probe() -> bytes:
        script = "set -m; sleep 1000 & echo made; kill -STOP %1; sleep 0.1; jobs; kill %1; fg %1"
        with popen(["bash", "-c", script], MINIMAL, pty=True) as process:
            return process.communicate()[0]

    out = as_user(probe)
    assert b"Stopped" in out
    assert b"no job control" not in out


def test_much_output_of_a_terminal() -> None:
    with terminal("stty raw; head -c 3000000 /dev/zero") as process:
        out, _ = process.communicate()
    assert len(out) == 3_000_000


@pytest.mark.parametrize("typed", [b"a line\nand more\n", b"no end of line", b"", b"x\n" * 20_000])
def test_input_is_typed_and_ended(typed: bytes) -> None:
    with terminal("stty -echo; echo ready; wc -c") as process:
        read_until(process, b"ready\r\n")
        out, err = process.communicate(typed)
    assert int(out) == len(typed)
    assert err == b""


def test_terminal_that_was_closed() -> None:
    with terminal("sleep 1000") as process:
        assert process.terminal is not None
        with pytest.raises(SpecError, match="pty"):
            process.resize(-1, 5)
        process.terminal.close()
        assert process.wait() == 128 + signal.SIGHUP
        uses: list[Callable[[], Any]] = [
            partial(process.terminal.read, 1),
            partial(process.terminal.write, b"x"),
            process.terminal.fileno,
        ]
        for use in uses:
            with pytest.raises(ValueError, match="closed"):
                use()
        with pytest.raises(ValueError, match="closed"):
            process.resize(1, 1)
    with pytest.raises(SpecError, match="pty"), sh("true") as process:
        process.resize(1, 1)


# --- the host program -----------------------------------------------------------------------


@pytest.mark.parametrize("when", ["wait", "communicate", "popen"])
def test_interrupt_leaves_nothing(in_child: AsUser, marker: str, when: str) -> None:
    def probe() -> tuple[int, list[int]]:
        settled = census()
        main = os.getpid()
        caught = 0

        def interrupt() -> None:
            if when != "popen":
                while not processes_with(marker):
                    time.sleep(0.005)
            time.sleep(random.random() * 0.01)
            os.kill(main, signal.SIGINT)
            sent.set()

        for _ in range(25):
            process: Process[bytes] | None = None
            sent = threading.Event()
            thread = threading.Thread(target=interrupt)
            try:
                thread.start()
                # in a finalizer it is said and forgotten: Python's own way
                while not sent.is_set():
                    with sh(f"sleep {marker}", stdin=PIPE) as process:
                        if when == "wait":
                            process.wait()
                        elif when == "communicate":
                            process.communicate(b"data" * 100_000)
            except KeyboardInterrupt:
                caught += 1
            thread.join()
            del process  # what an interrupted close() left undone is done now
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)
            gc.collect()
        after = census()
        assert (after.children, after.threads) == (settled.children, settled.threads)
        # one that had no owner yet when the interrupt came: test_interrupt_at_any_line
        assert len(after.fds) <= len(settled.fds) + 4
        return caught, processes_with(marker)

    caught, left = in_child(probe)
    assert left == []
    assert caught > 20


INTERRUPT_ANYWHERE = """
import gc, signal, sys, warnings
sys.path.insert(0, {tests!r})
from interrupting import interrupted
from leftovers import census
from cowork_nsrun import PIPE, Sandbox, popen, run
import cowork_nsrun.handle, cowork_nsrun.process, cowork_nsrun.streams
warnings.simplefilter("ignore")
OURS = {{m.__file__ for m in (cowork_nsrun.handle, cowork_nsrun.process, cowork_nsrun.streams)}}
spec = Sandbox.minimal()

def work():
    with popen(["cat"], spec, stdin=PIPE, stdout=PIPE) as process:
        process.communicate(b"some")
    with popen(["sleep", "1000"], spec, stdout=PIPE) as process:
        process.poll()
        process.kill()
        process.wait()

work()
lines = interrupted(work, OURS, -1)
before, changed = census(), 0
for at in range(1, lines + 5, {step}):
    interrupted(work, OURS, at)
    gc.collect()
    after = census()
    if after != before:
        changed += 1
        assert after.children == before.children, (at, after, before)
        assert (after.threads, after.cgroups) == (before.threads, before.cgroups), at
        before = after
print("lines", lines > 200, changed < lines / 50)
"""


def test_interrupt_at_any_line() -> None:
    """A KeyboardInterrupt may come between any two lines of ours: nothing hangs or runs on.

    A descriptor may stay, if it comes when that has no owner yet, or none any more.
    """
    script = INTERRUPT_ANYWHERE.format(tests=str(Path(__file__).parent), step=4)
    done = subprocess.run(
        [sys.executable, "-I", "-c", script],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.stdout == "lines True True\n", done.stderr[-2000:]


def test_fork_while_sandboxes_run(in_child: AsUser, marker: str) -> None:
    """The copy can't use them, holds nothing of them, and ends none of them."""

    def probe() -> list[Any]:
        # such as the janitor's socket, where an earlier test had limits
        others = set(os.listdir("/proc/self/fd"))
        process = sh(f"echo begun; sleep {marker}")
        assert line(process) == b"begun\n"
        refused = []
        child = os.fork()
        if not child:
            try:
                for use in (process.wait, process.poll, process.kill, process.close):
                    try:
                        use()
                    except NsrunError as error:
                        refused.append("forked" in str(error))
                ours = [
                    os.readlink(f"/proc/self/fd/{fd}")
                    for fd in os.listdir("/proc/self/fd")
                    if fd not in others and os.path.exists(f"/proc/self/fd/{fd}")
                ]
                held = [name for name in ours if "pidfd" in name or "socket" in name]
                with warnings.catch_warnings():
                    warnings.simplefilter("error")
                    del process
                    gc.collect()
                mine = run(["echo", "child"], MINIMAL).stdout
                os._exit(0 if refused == [True] * 4 and not held and mine == b"child\n" else 1)
            finally:
                os._exit(2)
        _, status = os.waitpid(child, 0)
        running = processes_with(marker)
        process.kill()
        return [status, len(running) > 0, process.wait()]

    assert in_child(probe) == [0, True, 128 + signal.SIGKILL]


def test_owner_killed_while_its_fork_lives(marker: str) -> None:
    """A fork's copies of our ends don't keep the sandboxes of a dead owner alive."""
    script = f"""
import os, signal
from cowork_nsrun import PIPE, Sandbox, popen
process = popen(["sleep", "{marker}"], Sandbox.minimal().replace(die_with_parent=True))
if not os.fork():
    signal.pause()
print(os.getpid(), flush=True)
signal.pause()
"""
    owner = subprocess.Popen(
        [sys.executable, "-I", "-c", script], stdout=subprocess.PIPE, start_new_session=True
    )
    try:
        assert owner.stdout is not None
        assert owner.stdout.readline()
        assert processes_with(marker)
        owner.kill()
        owner.wait()
        wait_until_gone(marker)
    finally:
        os.killpg(owner.pid, signal.SIGKILL)
        assert owner.stdout is not None
        owner.stdout.close()


@pytest.mark.parametrize("way", ["ignored", "handler", "thread"])
def test_host_that_reaps_our_children(as_user: AsUser, in_child: AsUser, way: str) -> None:
    """Its SIGCHLD is ignored, or a handler or thread of it takes every child's end first."""

    def reap(*_: Any) -> None:
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            pass

    def reap_until(done: threading.Event) -> None:
        while not done.is_set():
            reap()

    def probe() -> list[tuple[int, bytes, Ending]]:
        done = threading.Event()
        thread = threading.Thread(target=reap_until, args=(done,))
        if way == "ignored":
            signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        elif way == "handler":
            signal.signal(signal.SIGCHLD, reap)
        else:
            thread.start()
        results = []
        bare = MINIMAL.replace(unshare=MINIMAL.unshare - {Namespace.PID})
        for spec in (MINIMAL, bare):
            for _ in range(15):
                result = run(["sh", "-c", "echo out; exit 3"], spec, timeout=60)
                results.append((result.returncode, result.stdout, result.ending))
                with sh("sleep 1000", spec) as process:
                    process.kill()
                    assert process.wait() == 128 + signal.SIGKILL
        done.set()
        if thread.ident:
            thread.join()
        return results

    assert set(in_child(probe)) == {(3, b"out\n", Ending.EXITED)}


KILLED_AT_RANDOM = """
import random, sys, threading
from cowork_nsrun import Limits, Pool, Sandbox, popen, run
spec = Sandbox.minimal().replace(die_with_parent=True)
if {limited}:
    spec = spec.limit(memory="64M", pids=20)
pool = Pool(spec, 3)
print("begun", flush=True)
def work():
    while True:
        p = popen(["sleep", "{marker}"], spec)
        q = pool.popen(["sleep", "{marker}"])
        run(["true"], spec)
        p.close()
for _ in range(3):
    threading.Thread(target=work).start()
"""


@pytest.mark.parametrize("limited", [False, True])
def test_owner_killed_at_any_time_leaves_nothing(marker: str, limited: bool) -> None:
    """Sandboxes that run, start and wait; and cgroups, where root has them."""
    limited = limited and os.geteuid() == 0
    script = KILLED_AT_RANDOM.format(marker=marker, limited=limited)
    mounts = len(Path("/proc/self/mountinfo").read_text().splitlines())
    rng = random.Random(5)
    for _ in range(8):
        owner = subprocess.Popen(
            [sys.executable, "-I", "-W", "ignore", "-c", script],
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        assert owner.stdout is not None
        assert owner.stdout.readline() == b"begun\n"
        time.sleep(rng.random() * 0.15)
        owner.kill()
        owner.wait()
        owner.stdout.close()
        wait_until_session_gone(owner.pid)
        wait_until_gone(marker)
        wait_until_no_cgroup(owner.pid)
    assert len(Path("/proc/self/mountinfo").read_text().splitlines()) == mounts


def wait_until_no_cgroup(pid: int) -> None:
    while cgroups_of(pid):
        time.sleep(0.01)


@pytest.mark.parametrize("isolated", [True, False])
def test_subinterpreter(isolated: bool) -> None:
    """Also in one that may not have threads; one that may is ended once they have."""
    name, how, expected = "_xxsubinterpreters", f"isolated={isolated}", "inside\n"
    if sys.version_info >= (3, 13):
        name, how = "_interpreters", "'isolated'" if isolated else "'legacy'"
        if isolated:
            # one with a lock of its own, which a module made by cffi can't have
            expected = "module _core does not support loading in subinterpreters\n"
    script = f"""
import {name} as interpreters
import cowork_nsrun
i = interpreters.create({how})
interpreters.run_string(i, '''
try:
    from cowork_nsrun import Sandbox, run, settle
    print(run(["echo", "inside"], Sandbox.minimal(), text=True).stdout, end="")
    settle()
except BaseException as error:
    print(error)
''')
interpreters.destroy(i)
"""
    done = subprocess.run(
        [sys.executable, "-I", "-c", script], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == expected, done


# --- argv, environment, descriptors ----------------------------------------------------------


def test_odd_words(as_user: AsUser) -> None:
    def probe() -> list[Any]:
        words = ["", " ", "\n", "a=b", "\udcff", "é", "-", "--", "x" * 100_000]
        script = 'printf "%s|" "$@"; printf "%s" "$ODD" | wc -c'
        env = {"PATH": "/usr/bin:/bin", "ODD": "\udcfe" + "y" * 100_000, "": "no"}
        del env[""]
        result = run(["sh", "-c", script, "sh", *words], MINIMAL, env=env)
        expected = b"".join(os.fsencode(word) + b"|" for word in words) + b"100001\n"
        return [result.stdout == expected, result.returncode]

    assert as_user(probe) == [True, 0]


def test_words_that_no_exec_takes(as_user: AsUser) -> None:
    def probe() -> list[int]:
        found = []
        for argv in (["true", "x" * 200_000], ["true", *["y" * 1000] * 10_000]):
            for call in (run, popen):
                with pytest.raises(NsrunError) as caught:
                    call(argv, MINIMAL)
                found.append(caught.value.errno)
        return found

    assert set(as_user(probe)) == {errno.E2BIG}


def test_no_words_at_all() -> None:
    for argv in ([], [""]):
        with pytest.raises(NsrunError):
            popen(argv, MINIMAL)
    with pytest.raises(NsrunError):
        popen(["a\0b"], MINIMAL)


def test_many_open_descriptors(in_child: AsUser) -> None:
    def probe() -> bytes:
        resource.setrlimit(resource.RLIMIT_NOFILE, (12_000, 12_000))
        for _ in range(10_000):
            os.dup(2)
        return run(["sh", "-c", "echo /proc/self/fd/*"], MINIMAL).stdout

    if resource.getrlimit(resource.RLIMIT_NOFILE)[1] < 12_000 and os.geteuid():
        pytest.skip("the hard limit is too low")
    assert len(in_child(probe).split()) <= 4


@pytest.mark.parametrize("pty", [False, True])
@pytest.mark.parametrize("limited", [False, True])
def test_out_of_descriptors_at_each_step(in_child: AsUser, pty: bool, limited: bool) -> None:
    """One more descriptor each time: an error that says so and nothing left, until it works."""
    if limited and os.geteuid():
        pytest.skip("no cgroups for the unprivileged")
    spec = MINIMAL.limit(pids=50) if limited else MINIMAL
    if os.geteuid() == 0 and not limited:
        spec = spec.replace(unshare=spec.unshare | {Namespace.USER})

    def probe() -> tuple[int, int]:
        run(["true"], spec)
        before = census()
        full = os.open("/dev/null", os.O_RDONLY)
        filled = [full]
        resource.setrlimit(
            resource.RLIMIT_NOFILE, (200, resource.getrlimit(resource.RLIMIT_NOFILE)[1])
        )
        failures = successes = 0
        errors = set()
        try:
            while True:
                filled.append(os.dup(full))
        except OSError:
            pass
        while filled:
            os.close(filled.pop())
            try:
                options: dict[str, Any] = {"pty": True} if pty else {"stdout": PIPE, "stdin": PIPE}
                popen(["true"], spec, **options).close()
                successes += 1
                if successes > 3:
                    break
            except (NsrunError, OSError) as error:
                errors.add(error.errno)
                failures += 1
        for fd in filled:
            os.close(fd)
        assert errors == {errno.EMFILE}
        assert census() == before
        return failures, successes

    failures, successes = in_child(probe)
    assert failures > 3
    assert successes > 3


def test_killed_at_any_moment_of_its_start(as_user: AsUser) -> None:
    """Also between pid 1's intent to make the command's process and its making: no hang."""

    def probe() -> int:
        rng = random.Random(1)
        plan = Plan.from_spec(MINIMAL, ["sleep", "1000"])
        for _ in range(700):
            handle = start(plan, (0, 1, 2), Enforced().enforcement)
            end = time.perf_counter() + rng.random() * 0.003
            while time.perf_counter() < end:
                pass
            handle.close()
        return 700

    assert as_user(probe) == 700
