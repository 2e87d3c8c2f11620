"""Put a command's terminal through to this program's own: what ``nsrun run --pty`` does."""

from __future__ import annotations

import os
import select
import signal
import sys
import termios
import tty
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from cowork_nsrun.process import Process
from cowork_nsrun.streams import TERMINAL_SIZE

CHUNK = 1 << 18
END_OF_FILE = b"\x04"


def window_size() -> tuple[int, int]:
    """Rows and columns of the terminal on standard input; 24 by 80 where there is none."""
    try:
        columns, rows = os.get_terminal_size(0)
    except OSError:
        return TERMINAL_SIZE
    return rows, columns


@contextmanager
def _raw(fd: int) -> Iterator[None]:
    """Every key goes to the command, ctrl-C too: termios(3)."""
    if not os.isatty(fd):
        yield
        return
    before = termios.tcgetattr(fd)
    tty.setraw(fd)
    try:
        yield
    finally:
        termios.tcsetattr(fd, termios.TCSADRAIN, before)


@contextmanager
def _following_size(process: Process[Any]) -> Iterator[None]:
    def resized(_number: int, _frame: FrameType | None) -> None:
        process.resize(*window_size())

    before = signal.signal(signal.SIGWINCH, resized)
    try:
        yield
    finally:
        signal.signal(signal.SIGWINCH, before)


def relay(process: Process[Any]) -> None:
    """Copy both ways until nobody has the command's terminal open any more."""
    assert process.terminal is not None
    terminal = process.terminal.fileno()
    with _raw(0), _following_size(process):
        sources = [terminal, 0]
        while terminal in sources:
            ready, _, _ = select.select(sources, [], [])
            if 0 in ready and not _type(terminal):
                sources.remove(0)
            if terminal in ready:
                data = process.terminal.read(CHUNK)
                if not data:
                    sources.remove(terminal)
                else:
                    sys.stdout.buffer.write(data)
                    sys.stdout.buffer.flush()


def _type(terminal: int) -> bool:
    """Pass on what was typed; False at the end of the input, which is passed on as well."""
    data = os.read(0, CHUNK)
    left = memoryview(data or END_OF_FILE)
    while left:
        left = left[os.write(terminal, left) :]
    return bool(data)
