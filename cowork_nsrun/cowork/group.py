"""What a session may use: one cgroup for all of its commands together."""

from __future__ import annotations

import threading

from cowork_nsrun.cowork.log import log
from cowork_nsrun.enforce import shared_cgroups
from cowork_nsrun.errors import NsrunError
from cowork_nsrun.limits import Group, LimitError
from cowork_nsrun.spec import Limits


class SessionGroup:
    """The cgroup of a session, there for as long as a command of it runs; for any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._users: set[str] = set()
        self._group: Group | None = None

    def enter(self, ident: str, limits: Limits) -> Group | None:
        """For a command, until :meth:`leave`; None: no limit is asked for, or can be had.

        Other limits hold once nothing of the session runs any more.

        Raises:
            NsrunError: cgroups could not be cleaned up after a crash.
        """
        with self._lock:
            if self._group is None:
                self._group = _open(limits)
            if self._group is not None:
                self._users.add(ident)
            return self._group

    @property
    def there(self) -> bool:
        """Something may be left by :meth:`leave`."""
        return self._group is not None

    def leave(self, ident: str) -> None:
        """Nothing is left of that command; more than once does nothing."""
        with self._lock:
            self._users.discard(ident)
            if self._users or self._group is None:
                return
            group, self._group = self._group, None
            try:
                group.close()
            except NsrunError as error:
                log.error("%s", error)


def _open(limits: Limits) -> Group | None:
    wanted = dict(limits.cgroup)
    while wanted:
        memory = wanted.get("memory")
        try:
            return shared_cgroups().group(
                memory=None if memory is None else int(memory), cpu=wanted.get("cpu")
            )
        except LimitError as error:
            if wanted.pop(error.limit, None) is None:
                raise
            log.debug("limit left out: %s", error)
    return None
