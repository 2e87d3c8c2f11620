"""Threads that take no signals."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable


def start_thread(target: Callable[..., None], *args: object, name: str = "") -> threading.Thread:
    """Start a daemon thread to which no signal is delivered.

    Python's handlers run in the main thread.  A signal that another thread takes does not
    wake that up from a system call, and would be handled whenever it ends: signal(7).
    """
    thread = threading.Thread(target=target, args=args, name=name or None, daemon=True)
    # a new thread has its maker's mask
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    try:
        thread.start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return thread
