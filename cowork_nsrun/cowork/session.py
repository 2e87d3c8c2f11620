"""Sessions: each with its own folders and commands, none with another's."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field

from cowork_nsrun.cowork.child import Child, State
from cowork_nsrun.cowork.group import SessionGroup
from cowork_nsrun.cowork.mounts import Folder
from cowork_nsrun.cowork.paths import check_name
from cowork_nsrun.cowork.protocol import RequestError

SESSIONS_MAX = 1024
CHILDREN_MAX = 512  # commands that run at one time
ENDED_KEPT = 4096  # commands whose end is remembered


@dataclass(slots=True)
class Session:
    """A session.

    Attributes:
        name: its name, one component of a path.
        standing: folders that ``mountPath`` gave it, for its next commands.
        mounted: folders that its last command had: name to the host's path.
        children: its commands that have not ended.
        group: what holds its limits.
    """

    name: str
    standing: dict[str, Folder] = field(default_factory=dict)
    mounted: dict[str, str] = field(default_factory=dict)
    children: dict[str, Child] = field(default_factory=dict)
    group: SessionGroup = field(default_factory=SessionGroup)
    used_at: float = field(default_factory=time.monotonic)


class Sessions:
    """All sessions, and the commands in them by their ids."""

    def __init__(self) -> None:
        self._sessions: dict[str, Session] = {}
        self._running: dict[str, Child] = {}
        self._ended: OrderedDict[str, Child] = OrderedDict()

    def __iter__(self) -> Iterator[Session]:
        return iter(self._sessions.values())

    def get(self, name: str) -> Session | None:
        """A session that is known."""
        return self._sessions.get(name)

    def open(self, name: str) -> Session:
        """A session, known or new.

        Raises:
            PathError: it can't be called so.
            RequestError: there are too many that run something.
        """
        session = self._sessions.get(check_name("session", name))
        if session is None:
            self._make_room()
            session = self._sessions[name] = Session(name)
        session.used_at = time.monotonic()
        return session

    def _make_room(self) -> None:
        if len(self._sessions) < SESSIONS_MAX:
            return
        idle = [session for session in self if not session.children]
        if not idle:
            raise RequestError(f"there are {SESSIONS_MAX} sessions already, all of them running")
        del self._sessions[min(idle, key=lambda session: session.used_at).name]

    def forget(self, name: str) -> None:
        """A session's folders are not remembered any more."""
        session = self._sessions.get(name)
        if session is not None and not session.children:
            del self._sessions[name]

    def forget_mounts(self) -> None:
        """As when the machine has been stopped: what ``mountPath`` gave is gone."""
        for session in self:
            session.standing.clear()

    # --- commands -------------------------------------------------------------------------

    @property
    def running(self) -> list[Child]:
        """The commands that have not ended."""
        return list(self._running.values())

    def child(self, ident: str) -> Child | None:
        """The command of that id, if it has not ended."""
        return self._running.get(ident)

    def find(self, ident: str) -> Child | None:
        """The command of that id, also when it has ended, for a while."""
        return self._running.get(ident) or self._ended.get(ident)

    def add(self, child: Child) -> None:
        """A command begins.

        Raises:
            RequestError: one of that id runs, or too many do.
        """
        if child.ident in self._running:
            raise RequestError(f"process {child.ident[:80]!r} is running already")
        if len(self._running) >= CHILDREN_MAX:
            raise RequestError(f"{CHILDREN_MAX} processes are running already")
        self._ended.pop(child.ident, None)
        self._running[child.ident] = child
        self._sessions[child.session].children[child.ident] = child

    def remove(self, child: Child) -> None:
        """A command has ended."""
        assert child.state is State.ENDED
        if self._running.get(child.ident) is child:
            del self._running[child.ident]
            self._ended[child.ident] = child
        session = self._sessions.get(child.session)
        if session is not None and session.children.get(child.ident) is child:
            del session.children[child.ident]
        while len(self._ended) > ENDED_KEPT:
            self._ended.popitem(last=False)
