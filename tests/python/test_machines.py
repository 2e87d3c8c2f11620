"""Processes and pools in any order of calls, against a model of what must come of them."""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from leftovers import census

from cowork_nsrun import PIPE, Ending, NsrunError, Pool, Process, Sandbox, TimeoutExpired, popen

MINIMAL = Sandbox.minimal()
# each line of input has an answer; "exit N" ends it so, and its output, which no child holds open
SHELL = (
    "trap 'exit 42' TERM; trap '' HUP; while read word n; do "
    'case "$word" in exit) exit "$n";; say) echo "$n";; '
    "child) sleep 1000 > /dev/null & echo made;; esac; "
    "done; exit 9"
)
KEPT = 4  # processes at one time
BOUNDS = settings(
    max_examples=15,
    stateful_step_count=25,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)


@dataclass
class Known:
    """A process, and what the model knows of it."""

    process: Process[bytes]
    expected: set[int] = field(default_factory=set)  # exit codes that may come; empty: it runs

    def tell(self, line: str) -> bytes:
        """Say something to it and hear the answer."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(line.encode() + b"\n")
        self.process.stdin.flush()
        answer: bytes = self.process.stdout.readline()
        return answer


class ProcessMachine(RuleBasedStateMachine):
    """Some processes at a time, each of which does what it is told."""

    def __init__(self) -> None:
        super().__init__()
        self.known: list[Known] = []
        popen(["true"], MINIMAL).close()
        self.before = census()

    def start(self) -> Process[bytes]:
        """A new one."""
        return popen(["sh", "-c", SHELL], MINIMAL, stdin=PIPE, stdout=PIPE)

    @precondition(lambda self: len(self.known) < KEPT)
    @rule()
    def begin(self) -> None:
        self.known.append(Known(self.start()))

    def running(self, number: int) -> Known | None:
        running = [known for known in self.known if not known.expected]
        return running[number % len(running)] if running else None

    def any(self, number: int) -> Known | None:
        return self.known[number % len(self.known)] if self.known else None

    @rule(number=st.integers(0, KEPT), n=st.integers(0, 99))
    def talk(self, number: int, n: int) -> None:
        if known := self.running(number):
            assert known.tell(f"say {n}") == b"%d\n" % n

    @rule(number=st.integers(0, KEPT))
    def make_child(self, number: int) -> None:
        if known := self.running(number):
            assert known.tell("child") == b"made\n"

    @rule(number=st.integers(0, KEPT), code=st.integers(0, 99))
    def ask_to_exit(self, number: int, code: int) -> None:
        if known := self.running(number):
            assert known.tell(f"exit {code}") == b""
            known.expected = {code}

    @rule(number=st.integers(0, KEPT))
    def close_stdin(self, number: int) -> None:
        if known := self.running(number):
            assert known.process.stdin is not None
            known.process.stdin.close()
            known.expected = {9}

    @rule(number=st.integers(0, KEPT))
    def kill(self, number: int) -> None:
        if known := self.any(number):
            known.process.kill()
            known.expected = known.expected | {128 + signal.SIGKILL}

    @rule(number=st.integers(0, KEPT))
    def terminate(self, number: int) -> None:
        if known := self.running(number):
            assert known.tell("say 1") == b"1\n"  # so that its trap is set
            known.process.terminate()
            known.expected = {42}

    @rule(number=st.integers(0, KEPT))
    def hang_up_is_ignored(self, number: int) -> None:
        if known := self.running(number):
            assert known.tell("say 1") == b"1\n"
            known.process.send_signal(signal.SIGHUP)

    @rule(number=st.integers(0, KEPT))
    def poll(self, number: int) -> None:
        if known := self.any(number):
            self.check(known, known.process.poll())

    @rule(number=st.integers(0, KEPT), timeout=st.sampled_from([0.0, 0.005, -1.0]))
    def wait_a_little(self, number: int, timeout: float) -> None:
        if known := self.any(number):
            with suppress(TimeoutExpired):
                self.check(known, known.process.wait(timeout))

    @rule(number=st.integers(0, KEPT))
    def wait(self, number: int) -> None:
        if (known := self.any(number)) and known.expected:
            self.check(known, known.process.wait())
            result = known.process.result()
            assert result.ending in (Ending.EXITED, Ending.SIGNALED)
            assert known.process.communicate() == (b"", b"")

    @rule(number=st.integers(0, KEPT))
    def leave(self, number: int) -> None:
        if known := self.any(number):
            self.known.remove(known)
            known.process.close()
            self.check(known, known.process.returncode, {128 + signal.SIGKILL})
            for call in (known.process.kill, known.process.close, known.process.poll):
                call()

    def check(
        self, known: Known, code: int | None, more: frozenset[int] | set[int] = frozenset()
    ) -> None:
        """Its end is one that the model foretells, and the same for good."""
        if code is None:
            return
        assert code in known.expected | more
        assert known.process.returncode == code
        known.expected = {code}

    @invariant()
    def descriptors_are_counted(self) -> None:
        if not self.known:
            assert census() == self.before

    def teardown(self) -> None:
        for known in self.known:
            known.process.close()
        self.known.clear()
        self.end()
        assert census() == self.before

    def end(self) -> None:
        """What else there is to close."""


class PoolMachine(ProcessMachine):
    """The same processes from a pool, whose source is replaced, whose sandboxes get too old."""

    def __init__(self) -> None:
        super().__init__()
        self.file = Path(f"/tmp/nsrun-machine-{os.getpid()}")
        self.version = 0
        self.replace_source()
        spec = MINIMAL.bind(str(self.file), "/version", read_only=True)
        self.pool = Pool(spec, 2, max_age=0.15)

    def start(self) -> Process[bytes]:
        return self.pool.popen(["sh", "-c", SHELL], stdin=PIPE, stdout=PIPE)

    @rule()
    def replace_source(self) -> None:
        self.version += 1
        new = self.file.with_suffix(".new")
        new.write_text(str(self.version))
        new.rename(self.file)

    @rule()
    def see_the_newest_source(self) -> None:
        assert self.pool.run(["cat", "/version"]).stdout == str(self.version).encode()

    @rule()
    def fill(self) -> None:
        assert self.pool.wait_full(60)

    @rule(words=st.sampled_from([1, 200_000]))
    def command_of_any_size(self, words: int) -> None:
        argv = ["sh", "-c", "echo $#", "sh", *["x"] * min(words, 9000)]
        assert self.pool.run(argv).stdout.strip() == str(min(words, 9000)).encode()

    @rule()
    def absent(self) -> None:
        with pytest.raises(NsrunError, match="no-such-program"):
            self.pool.run(["no-such-program"])

    @invariant()
    def descriptors_are_counted(self) -> None:
        stats = self.pool.stats() if hasattr(self, "pool") else None
        assert stats is None or stats.parked <= 2

    def end(self) -> None:
        self.pool.close()
        self.file.unlink()


TestProcessMachine = ProcessMachine.TestCase
TestPoolMachine = PoolMachine.TestCase
ProcessMachine.TestCase.settings = BOUNDS
PoolMachine.TestCase.settings = BOUNDS
