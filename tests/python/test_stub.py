"""The stub of a parked sandbox and the message that it waits for, with hostile messages."""

from __future__ import annotations

import array
import os
import signal
import socket
import struct
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from leftovers import census

from cowork_nsrun import NsrunError, Sandbox
from cowork_nsrun._native import PlanFlag
from cowork_nsrun.enforce import Enforced
from cowork_nsrun.handle import Handle, start
from cowork_nsrun.plan import Extras, Plan

AsUser = Callable[[Callable[[], Any]], Any]
MINIMAL = Sandbox.minimal()
HEAD = struct.Struct("=6I")
MAX = 96 * 1024
CHDIR = 1


@dataclass(frozen=True)
class Message:
    """hand.h, with each count to be set apart from what is there."""

    words: tuple[bytes, ...] = (b"/bin/true", b"true", b"PATH=/bin", b"PWD=/")
    flags: int = 0
    n_rlimits: int = 0
    n_programs: int = 1
    n_argv: int = 1
    n_env: int = 2
    size: int | None = None
    rlimits: bytes = b""

    def pack(self) -> bytes:
        rest = self.rlimits + b"".join(word + b"\0" for word in self.words)
        size = HEAD.size + len(rest) if self.size is None else self.size
        counts = (self.n_rlimits, self.n_programs, self.n_argv, self.n_env)
        return HEAD.pack(size, self.flags, *counts) + rest


GOOD = Message()


@contextmanager
def parked() -> Iterator[tuple[Handle, socket.socket, int]]:
    """A parked sandbox, our end of its socket, and a null device."""
    null = os.open("/dev/null", os.O_RDWR)
    plan = Plan.from_spec(MINIMAL, ["nsrun-stub"], extras=Extras(PlanFlag.PARKED))
    handle = start(plan, (null, null, null), Enforced().enforcement)
    try:
        assert handle.wait_parked()
        with socket.socket(fileno=os.dup(handle._child._child.park_fd)) as ours:
            yield handle, ours, null
    finally:
        handle.close()
        os.close(null)


def answer(data: bytes, fds: int = 3) -> tuple[bool, int | None, str]:
    """Whether it came to an exec, the exit status, and what the stub said."""
    with parked() as (handle, ours, null):
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [null] * fds))]
        ours.sendmsg([data], rights if fds else [])
        handle.wait(None)
        text = ""
        try:
            handle.check()
        except NsrunError as error:
            text = error.text
        return handle.started, handle.returncode, text


def refused(data: bytes, fds: int = 3) -> None:
    """It leaves by itself, with a word about it where there is one to say."""
    started, code, text = answer(data, fds)
    assert not started
    assert code is None or code < 128, f"ended by signal {signal.Signals((code or 0) - 128)}"
    assert text


def test_control_a_good_message_is_obeyed(as_user: AsUser) -> None:
    assert as_user(lambda: answer(GOOD.pack())) == (True, 0, "")
    limit = struct.pack("=3Q", 7, 50, 60)  # RLIMIT_NOFILE
    script = b'test "$(ulimit -n)" = 50 && test "$PWD" = /usr && exit 5'
    message = Message(
        (b"/usr", b"/bin/sh", b"sh", b"-c", script, b"PATH=/bin", b"PWD=/usr"),
        flags=CHDIR, n_rlimits=1, n_argv=3, rlimits=limit,
    )  # fmt: skip
    assert as_user(lambda: answer(message.pack())) == (True, 5, "")


HOSTILE: Sequence[bytes] = [
    b"x",
    b"\0" * HEAD.size,
    b"\xff" * 4096,
    GOOD.pack()[:-1],
    GOOD.pack() + b"\0",
    GOOD.pack()[: HEAD.size],
    replace(GOOD, size=0).pack(),
    replace(GOOD, size=2**32 - 1).pack(),
    replace(GOOD, n_rlimits=17).pack(),
    replace(GOOD, n_rlimits=1).pack(),
    replace(GOOD, n_programs=0).pack(),
    replace(GOOD, n_argv=0).pack(),
    replace(GOOD, n_env=0).pack(),
    replace(GOOD, n_programs=2**32 - 1).pack(),
    replace(GOOD, n_argv=2**31).pack(),
    replace(GOOD, n_argv=2**32 - 1, n_env=3).pack(),
    replace(GOOD, n_env=8193).pack(),
    replace(GOOD, n_argv=4096, words=(b"",) * 4100).pack(),
    replace(GOOD, n_env=3).pack(),
    replace(GOOD, n_env=1).pack(),
    replace(GOOD, flags=CHDIR).pack(),
    replace(GOOD, words=(*GOOD.words[:-1], b"x" * 70_000)).pack()[:-1] + b"y",
    replace(GOOD, words=(b"/no/such/program", *GOOD.words[1:])).pack(),
    replace(GOOD, words=(b"", *GOOD.words[1:])).pack(),
    replace(GOOD, flags=CHDIR, words=(b"/no/such", *GOOD.words)).pack(),
    replace(GOOD, flags=2).pack(),  # a terminal, which /dev/null is not
    replace(GOOD, n_rlimits=1, rlimits=struct.pack("=3Q", 2**64 - 1, 1, 1)).pack(),
    replace(GOOD, n_rlimits=1, rlimits=struct.pack("=3Q", 7, 2, 1)).pack(),
]


@pytest.mark.parametrize("number", range(len(HOSTILE)))
def test_hostile_messages(number: int) -> None:
    _, code, text = answer(HOSTILE[number])
    assert (code or 0) < 128
    # what is well made comes as far as an exec, which then fails
    assert text


@pytest.mark.parametrize("fds", [0, 1, 2, 4, 100])
def test_other_numbers_of_descriptors(fds: int) -> None:
    refused(GOOD.pack(), fds)


def test_owner_that_says_nothing() -> None:
    before = census()
    with parked() as (_, ours, _):
        ours.shutdown(socket.SHUT_RDWR)
    assert census() == before


words = st.binary(max_size=20).map(lambda b: b.replace(b"\0", b"/"))
counts = st.integers(0, 6) | st.sampled_from([16, 17, 8191, 8192, 8193, 2**31, 2**32 - 1])
messages = st.builds(
    Message,
    words=st.lists(words, max_size=8).map(tuple),
    flags=st.integers(0, 1) | st.integers(0, 2**32 - 1),
    n_rlimits=st.just(0) | counts,
    n_programs=counts,
    n_argv=counts,
    n_env=counts,
    size=st.none() | st.integers(0, 2**32 - 1),
    rlimits=st.binary(max_size=48),
).map(Message.pack)


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.binary(min_size=1, max_size=200) | messages, fds=st.sampled_from([3, 3, 3, 0, 1]))
def test_garbage(data: bytes, fds: int) -> None:
    """It never runs anything (no path of a program is in it), nor is it ended by a signal."""
    started, code, text = answer(data[:MAX], fds)
    assert (code or 0) < 128
    assert text or not started
