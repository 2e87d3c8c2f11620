"""Which microVM serves a session's next command, and what is remembered; nothing is booted."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

import pytest

from cowork_nsrun import NsrunError
from cowork_nsrun.cowork.backends import Command
from cowork_nsrun.cowork.layout import Layout
from cowork_nsrun.cowork.machines import IDLE_MAX, Machines, _Kept
from cowork_nsrun.cowork.paths import Paths
from cowork_nsrun.guest.machine import Machine


class Slot:
    """In the place of a machine: alive until it is closed."""

    def __init__(self) -> None:
        self.alive = True

    def close(self) -> None:
        self.alive = False


class Booter:
    """Makes slots; a boot waits while :attr:`go` is not set, and fails if :attr:`error` is."""

    def __init__(self) -> None:
        self.go = threading.Event()
        self.go.set()
        self.begun = threading.Semaphore(0)
        self.made: list[Slot] = []
        self.error: NsrunError | None = None

    def boot(self, command: Command, network: bool) -> _Kept:
        self.begun.release()
        self.go.wait()
        if self.error is not None:
            raise self.error
        self.made.append(Slot())
        machine = cast(Machine, self.made[-1])
        return _Kept(command.session, network, command.limits, machine, users=1)


def command(session: str) -> Command:
    layout = Layout(session, {}, Paths("/home/u", "/home/u"), "/bin/true")
    return Command(("/bin/true",), {}, layout, "/")


@contextmanager
def held(booter: Booter, machines: Machines, session: str) -> Iterator[list[_Kept]]:
    """Within it a command waits for its machine to boot; after it, the list has that."""
    found: list[_Kept] = []
    wanted = command(session)
    booter.go.clear()
    comer = threading.Thread(target=lambda: found.append(machines.enter(wanted, network=False)))
    comer.start()
    booter.begun.acquire()
    try:
        yield found
    finally:
        booter.go.set()
        comer.join()


def test_nothing_is_remembered_of_sessions_that_ended() -> None:
    booter = Booter()
    machines = Machines(booter.boot)
    for number in range(50):
        kept = machines.enter(command(f"s{number}"), network=False)
        assert machines.known == {f"s{number}"}
        machines.leave(kept)
        machines.end(f"s{number}")
        # also for a session that has none
        machines.end(f"none{number}")
    assert machines.known == frozenset()
    assert not any(slot.alive for slot in booter.made)


def test_nothing_is_remembered_of_a_machine_that_does_not_boot() -> None:
    booter = Booter()
    machines = Machines(booter.boot)
    booter.error = NsrunError("no kernel")
    for number in range(50):
        with pytest.raises(NsrunError):
            machines.enter(command(f"s{number}"), network=False)
    assert machines.known == frozenset()


def test_idle_machines_are_bounded() -> None:
    booter = Booter()
    machines = Machines(booter.boot)
    for number in range(3 * IDLE_MAX):
        machines.leave(machines.enter(command(f"s{number}"), network=False))
    assert machines.known == {f"s{number}" for number in range(2 * IDLE_MAX, 3 * IDLE_MAX)}
    assert sum(slot.alive for slot in booter.made) == IDLE_MAX


@pytest.mark.parametrize("ended", ["s", None])
def test_a_session_that_ends_while_it_boots_keeps_nothing(ended: str | None) -> None:
    booter = Booter()
    machines = Machines(booter.boot)
    with held(booter, machines, "s") as found:
        assert machines.known == {"s"}
        machines.end(ended)
    (kept,) = found
    assert machines.known == frozenset()
    # its own command has it to its end, the next one gets another
    assert booter.made[0].alive
    other = machines.enter(command("s"), network=False)
    assert other is not kept
    machines.leave(kept)
    assert [slot.alive for slot in booter.made] == [False, True]


def test_another_sessions_end_is_no_matter() -> None:
    booter = Booter()
    machines = Machines(booter.boot)
    with held(booter, machines, "s") as found:
        machines.end("other")
    assert machines.enter(command("s"), network=False) is found[0]
    assert len(booter.made) == 1


def test_commands_at_once_share_one_boot() -> None:
    booter = Booter()
    machines = Machines(booter.boot)
    found: list[_Kept] = []
    wanted = command("s")
    with held(booter, machines, "s") as first:
        others = [
            threading.Thread(target=lambda: found.append(machines.enter(wanted, network=False)))
            for _ in range(5)
        ]
        for other in others:
            other.start()
    for other in others:
        other.join()
    assert found == first * 5
    assert len(booter.made) == 1
