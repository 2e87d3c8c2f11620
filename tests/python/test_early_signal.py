"""A signal that is sent before the command has started reaches the command all the same."""

from __future__ import annotations

import errno
import os
import select
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import pytest

from cowork_nsrun import NsrunError, _native
from cowork_nsrun._native import PlanFlag
from cowork_nsrun.plan import Extras, Plan
from cowork_nsrun.program import find_program

AsUser = Callable[[Callable[[], Any]], Any]

#: what needs no signal: the end of its input ends it
COMMAND = ("--ro-bind", "/", "/", "sh", "-c", "read -r line; exit 7")
#: one BPF instruction that allows every call; pid 1 can't be trusted with it: nsrun.h
ALLOW_ALL = bytes.fromhex("06000000 0000ff7f")
TERMINATED = 128 + signal.SIGTERM

#: in which the signal goes to the command alone, whose pid only a record tells
KINDS = {
    "no pid namespace": ("--die-with-parent",),
    "that, and not tied to its owner": (),
    "a filter of the user's": ("--unshare-user", "--unshare-pid", "--add-seccomp-fd", "{filter}"),
}


@contextmanager
def pipe() -> Iterator[tuple[int, int]]:
    """Both ends, closed in the end if they are open yet."""
    ends = os.pipe()
    try:
        yield ends
    finally:
        for fd in ends:
            with suppress(OSError):
                os.close(fd)


class Held:
    """A sandbox whose command waits for ``go``, and then for its input's end."""

    def __init__(self, options: Sequence[str], fds: dict[str, int], flags: PlanFlag) -> None:
        words = [option.format(**fds) for option in options]
        argv = ["--block-fd", str(fds["block"]), *words, *COMMAND]
        self.plan = Plan.from_argv(argv).with_extras(Extras(flags))
        self.stdio = (fds["stdin"], 1, 2)
        self.child = _native.Child()

    def start(self, *, by_program: bool) -> None:
        if by_program:
            self.child.start_program(self.plan.native, find_program(), self.stdio)
        else:
            self.child.start(self.plan.native, self.stdio)

    def read_until(self, reached: Callable[[], bool]) -> None:
        while not reached():
            poller = select.poll()
            poller.register(self.child.fd, select.POLLIN)
            poller.poll()
            if self.child.read():
                return


def outcome(
    options: Sequence[str], *, by_program: bool, flags: PlanFlag = PlanFlag.TELL_EXEC
) -> tuple[bool, int]:
    """What was said of a signal sent to a held command, and how that ended."""
    with pipe() as block, pipe() as stdin, pipe() as bpf:
        os.write(bpf[1], ALLOW_ALL)
        os.close(bpf[1])
        held = Held(options, {"block": block[0], "stdin": stdin[0], "filter": bpf[0]}, flags)
        held.start(by_program=by_program)
        try:
            sent = held.child.signal(signal.SIGTERM)
            os.write(block[1], b"\0")
            held.read_until(lambda: held.child.exec_seen)
            os.close(stdin[1])
            held.read_until(lambda: False)
            return sent, held.child.exit_status
        finally:
            held.child.close()


@pytest.mark.parametrize("by_program", [False, True], ids=["in process", "by the program"])
@pytest.mark.parametrize("kind", KINDS)
def test_it_is_kept_for_the_command(kind: str, by_program: bool, as_user: AsUser) -> None:
    assert as_user(lambda: outcome(KINDS[kind], by_program=by_program)) == (True, TERMINATED)


def test_nobody_asked_to_be_told_of_the_exec(as_user: AsUser) -> None:
    """Its pid would never be known, and what is sent be lost: refused."""

    def probe() -> int:
        with pytest.raises(NsrunError) as caught:
            outcome(KINDS["no pid namespace"], by_program=False, flags=PlanFlag.NONE)
        return caught.value.errno

    assert as_user(probe) == errno.ENOTSUP


def test_the_program_does_not_take_it_for_itself(as_user: AsUser) -> None:
    """A command that is pid 1 ignores what it has no handler for; it must not lose its monitor."""
    options = ("--unshare-user", "--unshare-pid", "--as-pid-1", "--die-with-parent")
    assert as_user(lambda: outcome(options, by_program=True)) == (True, 7)


def test_a_sandbox_that_waits_for_its_command_has_nobody_to_get_it(as_user: AsUser) -> None:
    def probe() -> bool:
        plan = Plan.from_argv(["--ro-bind", "/", "/", "--die-with-parent", "stub"])
        child = _native.Child()
        child.start(plan.with_extras(Extras(PlanFlag.PARKED)).native, (0, 1, 2))
        try:
            return child.signal(signal.SIGTERM)
        finally:
            child.close()

    assert as_user(probe) is False
