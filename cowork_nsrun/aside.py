"""Work in a thread that an event loop waits for."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


async def to_its_end(work: Callable[[], T], undo: Callable[[T], object]) -> T:
    """What comes of ``work`` in a thread.

    A thread can't be cancelled.  If the caller is, what came of the work is undone, in a
    thread too, before the cancellation goes on.
    """
    task = asyncio.ensure_future(asyncio.to_thread(work))
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait((task,))
        if not task.cancelled() and task.exception() is None:
            await asyncio.to_thread(undo, task.result())
        raise
