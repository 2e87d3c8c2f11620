"""Warm templates: a machine saved with a program in it that has done its start.

The program waits on its standard input, a socket, for what makes it a command: arguments,
environment, directory and streams.  Each clone gets that anew.  A clone is good only as long as
every file that the guest has looked at is what it was then: the monitor compares them when the
machine is saved, when it is restored, and once more when the command comes.

:mod:`cowork_nsrun.warm` is the program's side for Python.
"""

from __future__ import annotations

import hashlib
import logging
import os
import select
import struct
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import BinaryIO

from cowork_nsrun._native import Words
from cowork_nsrun.errors import NsrunError
from cowork_nsrun.guest import cache, template
from cowork_nsrun.guest.agent import Command
from cowork_nsrun.guest.compile import Translation
from cowork_nsrun.guest.exec import own_settings
from cowork_nsrun.guest.kernel import Kernel
from cowork_nsrun.guest.limits import Limits
from cowork_nsrun.guest.machine import (
    Guest,
    Machine,
    Size,
    machine_settings,
    wait_for_agent,
)
from cowork_nsrun.guest.view import view_digest, view_file
from cowork_nsrun.guest.vmm import GuestError, find_beside
from cowork_nsrun.plan import Plan

log = logging.getLogger(__name__)

#: part of every key: what a program is told in another way needs another start
FORMAT = "1"
#: of files in the cache's directory, which have no name there
KIND = "warm"
#: names the descriptor by which a program says that it is ready, and hears how it goes on
VARIABLE = "NSRUN_WARM_FD"
#: seconds that a program may take for its start
PATIENCE = 600.0
#: bytes of its output that are shown if it fails
_SHOWN = 2000
_HEAD = struct.Struct("=2I")


def message(arguments: Sequence[str], environment: Mapping[str, str], cwd: str | None) -> bytes:
    """What a program is told when it goes on.

    Two numbers (u32): how many arguments, and how many variables.  Then each argument, each
    variable as NAME=value, and the directory (empty: where it is), all with a NUL behind it.
    """
    variables = [f"{name}={value}" for name, value in environment.items()]
    words = [*arguments, *variables, cwd or ""]
    body = b"".join(os.fsencode(word) + b"\0" for word in words)
    return _HEAD.pack(len(arguments), len(variables)) + body


@dataclass(frozen=True, slots=True)
class Saved:
    """A warm template.

    Attributes:
        file: the saved machine.
        key: of all that it depends on, but the files that the guest has looked at.
    """

    file: BinaryIO
    key: str


@dataclass(frozen=True, slots=True)
class Clone:
    """A machine for one command.

    Attributes:
        guest: it shares the plan's files, and no more.
        first: the number of the first of them.
        saved: the template, if it was made just now.
        cold: why no program waits in it; "": one does, and the machine stands still.
    """

    guest: Guest
    first: int
    saved: Saved | None
    cold: str


def clone(
    kernel: Kernel | None, plan: Plan, translation: Translation, saved: Saved | None, cold: str
) -> Clone:
    """A machine in which the plan's program waits, or one in which nothing does yet.

    Arguments:
        plan: its command is the program, with all arguments that it has until it is ready.
        saved: a template of before, if there is one.
        cold: why none is to be made now; "": it can be tried.

    Raises:
        NsrunError: no machine can be made at all.
    """
    if saved is not None and saved.key == _key(kernel, plan, translation):
        try:
            return Clone(_restored(saved, translation), 0, None, "")
        except GuestError as error:
            log.info("a warm template is thrown away: %s", error)
    if not cold:
        try:
            made = _made(kernel, plan, translation)
            return Clone(_restored(made, translation), 0, made, "")
        except NsrunError as error:
            cold = error.text[:_SHOWN]
            log.info("no warm template: %s", cold)
    return _cold_one(kernel, translation, cold)


def wake(guest: Guest) -> bool:
    """Let a machine go on whose program waits; False if a file has changed meanwhile."""
    try:
        guest.monitor.check()
        guest.monitor.resume()
    except GuestError as error:
        log.info("a clone is thrown away: %s", error)
        return False
    return True


def _key(kernel: Kernel | None, plan: Plan, translation: Translation) -> str:
    """All that a template depends on and that can be known before the program runs."""
    with view_file(()) as view:
        settings = machine_settings(Size(), view)
        base = "" if kernel is None else template.key(kernel, find_beside("nsrun-agent"), settings)
    caller = replace(own_settings(Limits()), clock_ns=None, entropy=None, rows=0, columns=0)
    words = hashlib.sha256(plan.to_bytes()).hexdigest()
    return cache.key([FORMAT, base, repr(caller), words, view_digest(translation.exports)])


def _cold_one(kernel: Kernel | None, translation: Translation, why: str) -> Clone:
    with ExitStack() as on_error:
        machine = on_error.enter_context(Machine(kernel))
        machine.wait_ready()
        first = machine.share(translation.exports, last=True)
        on_error.pop_all()
    return Clone(machine, first, None, why)


def _made(kernel: Kernel | None, plan: Plan, translation: Translation) -> Saved:
    """Have the program do its start in a machine of its own, and save that.

    Raises:
        NsrunError: it does not get ready, or holds something that can't be saved.
    """
    key = _key(kernel, plan, translation)
    file = cache.unnamed(KIND)
    try:
        with Machine(kernel) as machine:
            machine.wait_ready()
            first = machine.share(translation.exports, last=True, keep=True)
            with machine.agent.start(
                _with_line(translation.plan(first)),
                replace(own_settings(Limits()), warm=True),
                stdin=False,
            ) as command:
                _wait_warm(command, machine)
            template.Template.save(machine.monitor, file)
    except BaseException:
        file.close()
        raise
    return Saved(file, key)


def _with_line(data: bytes) -> bytes:
    """A plan's bytes, with the variable that tells its program of the line."""
    plan = Plan.from_bytes(data)
    plan.native.add_words(Words.ENV, [f"{VARIABLE}=0"])
    return plan.to_bytes()


def _wait_warm(command: Command, machine: Guest) -> None:
    """Until the program is ready; what it says meanwhile is read, and shown if it fails."""
    end = time.monotonic() + PATIENCE
    streams = {stream.fileno(): stream for stream in (command.stdout, command.stderr) if stream}
    poller = select.poll()
    for fd in (command.fileno(), *streams):
        poller.register(fd, select.POLLIN)
    said = b""
    status = None
    # what it said before its end is read to that
    while not command.warm and (status is None or streams):
        for fd, _ in poller.poll(max(0.0, end - time.monotonic()) * 1000):
            if fd in streams:
                data = streams[fd].recv(1 << 16)
                said = (said + data)[-_SHOWN:]
                if not data:
                    poller.unregister(fd)
                    del streams[fd]
            elif status is None:
                status = _status(command, machine)
                if status is not None:
                    poller.unregister(fd)
        if time.monotonic() > end:
            raise NsrunError(f"the program is not ready after {PATIENCE:g} seconds{_quoted(said)}")
    if status is not None:
        text = f"the program ended with status {status} before it was ready{_quoted(said)}"
        raise NsrunError(text)


def _status(command: Command, machine: Guest) -> int | None:
    try:
        return command.poll()
    except NsrunError as error:
        raise machine.explain(error) from None


def _quoted(said: bytes) -> str:
    lines = said.decode(errors="replace").splitlines()
    return "".join(f"\n  {line}" for line in lines[-12:])


def _restored(saved: Saved, translation: Translation) -> Guest:
    """A clone that stands still.

    Raises:
        GuestError: the template is of no use: most likely a file has changed.
    """
    with ExitStack() as on_error, view_file(translation.exports) as view, view_file(()) as none:
        settings = machine_settings(Size(), view)
        monitor = on_error.enter_context(template.Template(saved.file, settings).restore())
        monitor.wait_running()
        # it has what it serves from the start, and gets no more
        monitor.export(none, last=True)
        guest = Guest(monitor, shared={translation.exports: 0})
        wait_for_agent(monitor)
        monitor.pause()
        on_error.pop_all()
    return guest
