"""Sandboxes whose last process has ended, while the kernel takes their namespaces down.

That takes the kernel a while, and nothing of the user's runs there any more, so nobody
need wait for it.  What is left of such a sandbox in this process, an ended child and some
descriptors, is given back by one of the next starts, a few at a time, or by a thread that
lives no longer than there is something to do.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from functools import cache
from typing import Protocol

BATCH = 4
PATIENCE = 0.05
IDLE = 2.0


class Ended(Protocol):
    """A sandbox in which nothing of the user's is left."""

    def try_close(self) -> bool:
        """Give it back if that takes no time; else nothing is done, and False returned."""
        ...

    def close(self) -> None:
        """Give it back."""
        ...

    def forget(self) -> None:
        """For a forked copy of the process that started it."""
        ...


class Teardown:
    """What this process still has to give back."""

    def __init__(self) -> None:
        # by one thread more than once: finalizers come here at any point.
        # It is entered itself, not by the condition, where an interrupt could keep it held.
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)
        self._ending: deque[Ended] = deque()
        self._closing = 0
        self._thread: threading.Thread | None = None
        self._stopping = False

    def add(self, child: Ended) -> None:
        """Give it back soon."""
        with self._lock:
            self._ending.append(child)
            if self._thread is None:
                self._thread = threading.Thread(
                    target=self._work, name="nsrun-teardown", daemon=True
                )
                try:
                    self._thread.start()
                except RuntimeError:
                    # no more threads, or none at all: PEP 554's isolated interpreters
                    self._thread = None
                    self._ending.remove(child)
                    child.close()

    def sweep(self) -> None:
        """Give back what has ended by now, the oldest first, once there are a few."""
        if len(self._ending) < BATCH:
            return
        with self._lock:
            while self._ending and self._ending[0].try_close():
                self._ending.popleft()

    def _work(self) -> None:
        """Look now and then: whoever starts the next one gives the last one back for less."""
        idle = 0.0
        while idle < IDLE:
            with self._lock:
                if not self._stopping:
                    self._changed.wait(PATIENCE)
                if self._stopping:
                    break
            idle = 0.0 if self._close_one() else idle + PATIENCE
        with self._lock:
            self._thread = None

    def _close_one(self) -> bool:
        with self._lock:
            if not self._ending:
                return False
            child = self._ending.popleft()
            self._closing += 1
        try:
            child.close()
        finally:
            with self._lock:
                self._closing -= 1
                self._changed.notify_all()
        return True

    def drain(self) -> None:
        """Wait until nothing is left."""
        while self._close_one():
            pass
        with self._lock:
            while self._closing:
                self._changed.wait()

    def settle(self) -> None:
        """Wait until nothing is left, the thread included."""
        self.drain()
        with self._lock:
            thread = self._thread
            self._stopping = True
            self._changed.notify_all()
        try:
            if thread is not None:
                thread.join()
        finally:
            with self._lock:
                self._stopping = False
        # an interrupt, or another thread, may have left something meanwhile
        self.drain()

    def forget(self) -> None:
        """In a forked copy of the process: these are not ours."""
        while self._ending:
            self._ending.popleft().forget()


@cache
def teardown() -> Teardown:
    """That of this process."""
    return Teardown()


def _after_fork() -> None:
    teardown().forget()
    teardown.cache_clear()


os.register_at_fork(after_in_child=_after_fork)


def settle() -> None:
    """Wait until the kernel has taken down every sandbox whose command has ended.

    Never needed for a command's effects: its processes are gone when its end is known.
    A subinterpreter has to call it before it is ended.
    """
    teardown().settle()
