"""Limits of a command in a guest, whose own cgroups keep them."""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

Number = TypeVar("Number", int, float)


@dataclass(frozen=True, slots=True)
class Limits:
    """Of all of the command's processes together; None: no limit.

    Attributes:
        memory: bytes.
        processes: how many.
        cpu: processors' worth of time.
        timeout: seconds.
    """

    memory: int | None = None
    processes: int | None = None
    cpu: float | None = None
    timeout: float | None = None

    def within(self, other: Limits) -> Limits:
        """Both hold."""
        return Limits(
            _least(self.memory, other.memory),
            _least(self.processes, other.processes),
            _least(self.cpu, other.cpu),
            _least(self.timeout, other.timeout),
        )


def _least(one: Number | None, other: Number | None) -> Number | None:
    return min((each for each in (one, other) if each is not None), default=None)


def of_cgroups(directories: Iterable[str]) -> Limits:
    """What cgroups of the host would hold their processes to: cgroups(7), either version."""
    limits = Limits()
    for directory in directories:
        limits = limits.within(
            Limits(
                _number(directory, "memory.max") or _number(directory, "memory.limit_in_bytes"),
                _number(directory, "pids.max"),
                _cpu(directory),
            )
        )
    return limits


def _words(directory: str, name: str) -> list[str]:
    with suppress(OSError):
        return Path(os.path.join(directory, name)).read_text(encoding="ascii").split()
    return []


def _number(directory: str, name: str) -> int | None:
    words = _words(directory, name)
    if not words or not words[0].isdigit():
        return None
    value = int(words[0])
    # version 1 says "none" by a number that no machine has
    return value if value < 1 << 60 else None


def _cpu(directory: str) -> float | None:
    quota = _words(directory, "cpu.max")
    if len(quota) != 2:
        quota = _words(directory, "cpu.cfs_quota_us") + _words(directory, "cpu.cfs_period_us")
    if len(quota) != 2 or not quota[0].isdigit():
        return None
    return int(quota[0]) / int(quota[1])
