"""How the service does: counts, and how long commands took to answer."""

from __future__ import annotations

import statistics
import time
from collections import deque
from dataclasses import dataclass, field
from typing import Any

KEPT = 1000  # commands whose times count


@dataclass(slots=True)
class Metrics:
    """Counters since the start.

    Attributes:
        requests: all that were read.
        failures: those answered by a failure.
        spawns: commands asked for.
        not_started: those that could not be started.
        dropped: subscribers that did not read.
    """

    requests: int = 0
    failures: int = 0
    spawns: int = 0
    not_started: int = 0
    dropped: int = 0
    started_at: float = field(default_factory=time.monotonic)
    _first_output: deque[float] = field(default_factory=lambda: deque(maxlen=KEPT))

    def note_first_output(self, seconds: float) -> None:
        """From the request to the first output event."""
        self._first_output.append(seconds)

    def shown(self) -> dict[str, Any]:
        """As a client gets them; times in milliseconds."""
        times = sorted(self._first_output)
        middle = statistics.median(times) * 1000 if times else None
        last = times[int(len(times) * 0.99)] * 1000 if times else None
        return {
            "uptimeSeconds": round(time.monotonic() - self.started_at, 3),
            "requests": self.requests,
            "failures": self.failures,
            "spawns": self.spawns,
            "notStarted": self.not_started,
            "subscribersDropped": self.dropped,
            "firstOutputMs": {"median": middle, "p99": last, "count": len(times)},
        }
