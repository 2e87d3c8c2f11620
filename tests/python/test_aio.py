"""The asyncio twins, in real loops."""

from __future__ import annotations

import asyncio
import errno
import gc
import os
import random
import signal
import struct
import time
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from leftovers import census, processes_with, wait_until_gone

from cowork_nsrun import (
    PIPE,
    STDOUT,
    Ending,
    Namespace,
    NsrunError,
    Sandbox,
    SpecError,
    TimeoutExpired,
    aio,
)

AsUser = Callable[[Callable[[], Any]], Any]
MINIMAL = Sandbox.minimal()
MIB = 1 << 20
ALLOW = struct.pack("<HBBI", 0x06, 0, 0, 0x7FFF0000)


def go(work: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(work)


def test_run(as_user: AsUser) -> None:
    async def work() -> tuple[int, bytes, bytes, Ending]:
        script = "cat; echo err >&2; exit 3"
        result = await MINIMAL.arun(["sh", "-c", script], input=b"in")
        assert 0 < (result.timings.spawn_ns or 0) < result.timings.total_ns
        return result.returncode, result.stdout, result.stderr, result.ending

    assert as_user(lambda: go(work())) == (3, b"in", b"err\n", Ending.EXITED)


def test_streams_are_asyncio_s(as_user: AsUser) -> None:
    async def work() -> list[Any]:
        async with await MINIMAL.apopen(["cat"], stdin=PIPE, stdout=PIPE) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write(b"one\n")
            first = await process.stdout.readline()
            process.stdin.write(b"two\n")
            process.stdin.close()
            return [first, await process.stdout.read(), await process.wait(), process.returncode]

    assert as_user(lambda: go(work())) == [b"one\n", b"two\n", 0, 0]


def test_much_each_way_at_once() -> None:
    async def work() -> int:
        data = bytes(50 * MIB)
        async with await aio.popen(["cat"], MINIMAL, stdin=PIPE, stdout=PIPE) as process:
            out, err = await process.communicate(data)
        assert (out == data, err) == (True, b"")
        return len(out)

    assert go(work()) == 50 * MIB


def test_run_feeds_and_collects_much(as_user: AsUser) -> None:
    async def work() -> tuple[bool, bool]:
        data = bytes(range(256)) * (20 * MIB // 256)
        result = await MINIMAL.arun(["tee", "/dev/stderr"], input=data)
        return result.stdout == data, result.stderr == data

    assert as_user(lambda: go(work())) == (True, True)


def test_streams_that_are_closed_before_the_end(as_user: AsUser) -> None:
    """The end of a stream is not the command's."""

    async def work() -> list[tuple[int, bytes, bytes]]:
        scripts = (
            "echo out; echo err >&2; exec >&- 2>&-; sleep 0.2; exit 4",
            "head -c 3; exec <&-; sleep 0.2; exit 4",
        )
        runs = [MINIMAL.arun(["sh", "-c", script], input=bytes(20 * MIB)) for script in scripts]
        found = await asyncio.gather(*runs)
        return [(result.returncode, result.stdout, result.stderr) for result in found]

    assert as_user(lambda: go(work())) == [(4, b"out\n", b"err\n"), (4, bytes(3), b"")]


def test_many_at_once(as_user: AsUser) -> None:
    """Numbers of descriptors come round quickly: nobody's reader is taken for another's."""

    async def one(number: int) -> bytes:
        if number % 5 == 0:
            with pytest.raises(NsrunError) as caught:
                await MINIMAL.arun(["no-such-program"])
            assert caught.value.errno == errno.ENOENT
        return (await MINIMAL.arun(["echo", str(number)])).stdout

    async def work() -> list[bytes]:
        found: list[bytes] = []
        for begin in range(0, 120, 24):
            found += await asyncio.gather(*map(one, range(begin, begin + 24)))
        return found

    def probe() -> bool:
        before = census()
        asyncio.run(work())
        warm = census().fds == before.fds
        return go(work()) == [b"%d\n" % n for n in range(120)] and warm

    assert as_user(probe)


def test_signals_reach_everybody(as_user: AsUser) -> None:
    async def work() -> tuple[list[bytes], int]:
        script = (
            "trap 'exit 9' TERM; setsid sh -c 'trap \"echo session; exit\" TERM; echo ready; "
            "while :; do sleep 0.02; done' & echo ready; while :; do sleep 0.02; done"
        )
        process = await aio.popen(["sh", "-c", script], MINIMAL, stdout=PIPE, stderr=STDOUT)
        async with process:
            assert process.stdout is not None
            ready = [await process.stdout.readline() for _ in range(2)]
            process.terminate()
            return ready, await process.wait()

    ready, code = as_user(lambda: go(work()))
    assert (ready, code) == ([b"ready\n"] * 2, 9)


def test_terminal() -> None:
    async def work() -> bytes:
        script = "trap 'stty size; exit' WINCH; echo ready; while :; do sleep 0.02; done"
        async with await MINIMAL.apopen(["sh", "-c", script], pty=True) as process:
            assert process.terminal is not None
            seen = b""
            while b"ready" not in seen:
                seen += process.terminal.read() or b""
                await asyncio.sleep(0.01)
            process.resize(55, 66)
            await process.wait()
            return seen + (process.terminal.read() or b"")

    assert b"55 66" in go(work())


def test_timeouts(as_user: AsUser, marker: str) -> None:
    async def work() -> tuple[bytes | None, Ending, Ending]:
        script = f"echo early; sleep {marker}"
        with pytest.raises(TimeoutExpired) as caught:
            await MINIMAL.arun(["sh", "-c", script], timeout=0.3)
        endings = []
        for spec in (MINIMAL, MINIMAL.replace(unshare=MINIMAL.unshare - {Namespace.PID})):
            async with await aio.popen(["sleep", marker], spec, timeout=0.2) as process:
                await process.wait()
                endings.append(process.result().ending)
            if Namespace.PID in spec.unshare:
                assert processes_with(marker) == []
        return caught.value.stdout, endings[0], endings[1]

    late = Ending.TIMED_OUT
    assert as_user(lambda: go(work())) == (b"early\n", late, late)
    # without a pid namespace the command dies of its reaper's death, which alone is waited for
    wait_until_gone(marker)


def test_end_in_time_is_no_timeout() -> None:
    async def work() -> Ending:
        async with await aio.popen(["true"], MINIMAL, timeout=0.2) as process:
            time.sleep(0.4)
            await process.wait()
            return process.result().ending

    assert go(work()) == Ending.EXITED


def test_what_can_t_be() -> None:
    async def work() -> None:
        with pytest.raises(SpecError, match="stdin"):
            await MINIMAL.apopen(["true"], stdin=STDOUT)
        async with await MINIMAL.apopen(["sleep", "1000"]) as process:
            with pytest.raises(SpecError, match="input"):
                await process.communicate(b"x")
            with pytest.raises(SpecError, match="pty"):
                process.resize(1, 1)
            with pytest.raises(NsrunError, match="not ended"):
                process.result()
        assert process.returncode == 128 + signal.SIGKILL

    before = census()
    go(work())
    assert census().fds == before.fds


@pytest.mark.parametrize("what", ["run", "popen", "communicate", "wait"])
def test_cancelled_at_any_time(as_user: AsUser, marker: str, what: str) -> None:
    """A task that is cancelled leaves nothing, whenever that is."""

    async def task() -> None:
        if what == "run":
            await MINIMAL.arun(["sleep", marker], input=b"some")
        while True:
            async with await MINIMAL.apopen(
                ["sleep", marker] if what != "popen" else ["true"],
                stdin=PIPE, stdout=PIPE, stderr=PIPE,
            ) as process:  # fmt: skip
                if what == "communicate":
                    await process.communicate(b"x" * MIB)
                if what == "wait":
                    await process.wait()

    async def work() -> int:
        rng = random.Random(7)
        cancelled = 0
        for _ in range(30):
            running = asyncio.ensure_future(task())
            await asyncio.sleep(rng.random() * 0.03)
            running.cancel()
            with pytest.raises(asyncio.CancelledError):
                await running
            cancelled += 1
        return cancelled

    def probe() -> tuple[int, bool, list[int]]:
        before = census()
        count = go(work())
        gc.collect()
        after = census()
        return count, (after.fds, after.children) == (before.fds, before.children), []

    assert as_user(probe) == (30, True, [])
    assert processes_with(marker) == []


def test_cancelled_at_each_step(marker: str) -> None:
    """After one turn of the loop, after two, after three..."""

    async def task() -> None:
        async with await MINIMAL.apopen(
            ["sleep", marker], stdin=PIPE, stdout=PIPE, stderr=PIPE
        ) as process:
            await process.communicate(b"x")

    async def work() -> None:
        for turns in range(25):
            running = asyncio.ensure_future(task())
            for _ in range(turns):
                await asyncio.sleep(0)
            running.cancel()
            with pytest.raises(asyncio.CancelledError):
                await running

    before = census()
    go(work())
    gc.collect()
    after = census()
    assert (after.fds, after.children) == (before.fds, before.children)


def test_exception_inside_async_with(marker: str) -> None:
    async def work() -> None:
        async with await MINIMAL.apopen(["sleep", marker], stdout=PIPE):
            raise ZeroDivisionError

    before = census()
    with pytest.raises(ZeroDivisionError):
        go(work())
    assert census().fds == before.fds
    assert processes_with(marker) == []


def test_loop_that_ends_before_the_command(marker: str) -> None:
    """Dropped with its loop, it is killed."""

    async def work() -> None:
        await MINIMAL.apopen(["sleep", marker])

    before = census()
    go(work())
    gc.collect()
    assert processes_with(marker) == []
    after = census()
    assert (after.fds, after.children) == (before.fds, before.children)


def test_needs_no_child_watcher_and_no_main_thread(in_child: AsUser) -> None:
    """SIGCHLD is ignored, and the loop runs in another thread."""

    async def work() -> bytes:
        return (await MINIMAL.arun(["echo", "on"])).stdout

    def probe() -> list[Any]:
        import threading  # noqa: PLC0415 - of the forked process

        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        found: list[Any] = []
        thread = threading.Thread(target=lambda: found.append(go(work())))
        thread.start()
        thread.join()
        return found

    assert in_child(probe) == [b"on\n"]
    assert os.getpid()
