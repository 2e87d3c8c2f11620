"""Events to those who subscribed; one that doesn't read is dropped, and holds up nobody."""

from __future__ import annotations

import asyncio
from typing import Protocol

from cowork_nsrun.cowork.log import log
from cowork_nsrun.cowork.protocol import Event, encode

HIGH = 1 << 20  # bytes that may wait for a subscriber before commands are made to wait
MOST = 16 << 20  # bytes at which a subscriber is dropped
PATIENCE = 0.5  # seconds without any progress until a subscriber is not waited for
SLOW = 2.0  # seconds that one which others have outrun is waited for


class Subscriber(Protocol):
    """A connection, as the hub sees it."""

    def send(self, data: bytes) -> None:
        """Queue a frame."""

    @property
    def backlog(self) -> int:
        """Bytes that wait to be taken."""

    @property
    def taken(self) -> int:
        """Bytes that were ever taken."""

    def drop(self, reason: str) -> None:
        """Close it at once."""


class Hub:
    """The subscribers, and what is sent to them."""

    def __init__(self) -> None:
        self._subscribers: dict[Subscriber, None] = {}
        self._stalled: set[Subscriber] = set()
        self._slow_since: dict[Subscriber, float] = {}
        self._moved = asyncio.Event()

    def __len__(self) -> int:
        return len(self._subscribers)

    def __contains__(self, subscriber: object) -> bool:
        return subscriber in self._subscribers

    def add(self, subscriber: Subscriber) -> None:
        """It gets every event from now on, once each."""
        self._subscribers[subscriber] = None

    def remove(self, subscriber: Subscriber) -> None:
        """It gets no more."""
        self._subscribers.pop(subscriber, None)
        self.moved(subscriber)

    def moved(self, subscriber: Subscriber) -> None:
        """It has taken most of what waited for it, or is gone."""
        self._stalled.discard(subscriber)
        self._slow_since.pop(subscriber, None)
        self._moved.set()

    def emit(self, event: Event) -> None:
        """Send an event to all of them."""
        if not self._subscribers:
            return
        data = encode(event)
        for subscriber in list(self._subscribers):
            if subscriber.backlog + len(data) > MOST:
                self.remove(subscriber)
                subscriber.drop(f"{subscriber.backlog} bytes of events were not read")
            else:
                subscriber.send(data)

    async def room(self) -> None:
        """Until those subscribers that read have read most of it."""
        while slow := self._slow():
            before = {subscriber: subscriber.taken for subscriber in slow}
            self._moved.clear()
            try:
                await asyncio.wait_for(self._moved.wait(), PATIENCE)
            except TimeoutError:
                for subscriber in slow:
                    if subscriber.taken == before[subscriber]:
                        self._give_up(subscriber)

    def _slow(self) -> list[Subscriber]:
        """Those that are waited for."""
        behind = [subscriber for subscriber in self._subscribers if subscriber.backlog > HIGH]
        now = asyncio.get_running_loop().time()
        for subscriber in behind:
            since = self._slow_since.setdefault(subscriber, now)
            if now - since > SLOW and len(behind) < len(self._subscribers):
                self._give_up(subscriber)
        return [subscriber for subscriber in behind if subscriber not in self._stalled]

    def _give_up(self, subscriber: Subscriber) -> None:
        if subscriber in self._subscribers and subscriber not in self._stalled:
            log.debug("a subscriber reads too slowly: it is not waited for")
            self._stalled.add(subscriber)
