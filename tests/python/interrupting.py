"""A KeyboardInterrupt between two lines that are chosen."""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection
from types import FrameType
from typing import Any


def interrupted(work: Callable[[], object], files: Collection[str | None], at: int) -> int:
    """Do the work, and interrupt it before its ``at``-th line in these files; the lines until then.

    Arguments:
        at: one that does not come lets the work come to its end.
    """
    count = 0

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal count
        if frame.f_code.co_filename not in files:
            return None
        if event == "line":
            count += 1
            if count == at:
                sys.settrace(None)
                raise KeyboardInterrupt
        return trace

    sys.settrace(trace)
    try:
        work()
    except KeyboardInterrupt:
        pass
    finally:
        sys.settrace(None)
    return count
