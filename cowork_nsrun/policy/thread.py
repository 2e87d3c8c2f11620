"""The proxy in a thread with an event loop of its own, for programs without one."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import threading
from collections.abc import Sequence
from concurrent.futures import Future
from contextlib import ExitStack, suppress

from cowork_nsrun.closing import Closing
from cowork_nsrun.errors import NsrunError
from cowork_nsrun.policy.decisions import Counters, EgressLimits
from cowork_nsrun.policy.dial import Resolver, Upstream
from cowork_nsrun.policy.gate import OnDecision
from cowork_nsrun.policy.proxy import EgressProxy, unix_listener
from cowork_nsrun.policy.rules import EgressRules

Started = Future[tuple[asyncio.AbstractEventLoop, asyncio.Task[None]]]


class EgressThread(Closing):
    """Serve one sandbox from a thread; a context manager.

    It serves from the moment it is made until :meth:`close`.  The thread is a daemon: a program
    that ends without closing it is not held up.

    Arguments:
        rules: what may be reached.
        listeners: the sandbox's listening sockets, which belong to the thread from now on.
        path: a Unix socket to serve too, made here (mode 0600) and removed at the end.
        on_decision: called in the thread; as for :class:`EgressProxy`, like the rest.

    Raises:
        NsrunError: the path can't be listened on, or there is no room for a thread or a loop.
        SpecError: the upstream's URL is wrong.
    """

    def __init__(
        self,
        rules: EgressRules,
        listeners: Sequence[socket.socket] = (),
        *,
        path: str | os.PathLike[str] | None = None,
        on_decision: OnDecision | None = None,
        resolver: Resolver | None = None,
        upstream: Upstream | str | None = None,
        limits: EgressLimits | None = None,
        logger: logging.Logger | None = None,
    ) -> None:
        self._proxy = EgressProxy(
            rules,
            on_decision=on_decision,
            resolver=resolver,
            upstream=upstream,
            limits=limits,
            logger=logger,
        )
        self._log = logger or logging.getLogger(__name__)
        self._listeners = list(listeners)
        with ExitStack() as stack:
            stack.callback(self._proxy.close)
            if path is not None:
                self._listeners.append(unix_listener(path))
                stack.callback(self._remove, path)
            self._undo = stack.pop_all()
        started: Started = Future()
        self._thread = threading.Thread(
            target=self._run, args=[started], name="nsrun-egress", daemon=True
        )
        try:
            self._thread.start()
            self._loop, self._task = started.result()
        except (OSError, RuntimeError) as error:
            for listener in self._listeners:
                listener.close()
            self._undo.close()
            raise NsrunError(
                f"the egress proxy can't start: {error}", errno=getattr(error, "errno", 0) or 0
            ) from error

    def _run(self, started: Started) -> None:
        try:
            asyncio.run(self._main(started))
        except BaseException as error:
            if started.done():
                raise
            started.set_exception(error)

    async def _main(self, started: Started) -> None:
        task = asyncio.create_task(self._proxy.serve(self._listeners))
        started.set_result((asyncio.get_running_loop(), task))
        await asyncio.wait({task})
        if not task.cancelled() and task.exception() is not None:
            self._log.error(
                "the egress proxy ended; the sandbox is cut off", exc_info=task.exception()
            )

    @staticmethod
    def _remove(path: str | os.PathLike[str]) -> None:
        with suppress(FileNotFoundError):
            os.unlink(path)

    @property
    def counters(self) -> Counters:
        """What the proxy has done so far."""
        return self._proxy.counters

    def update(self, rules: EgressRules) -> None:
        """Go by other rules: at once for what comes, and soon for what is connected already."""
        self._proxy.rules = rules
        with suppress(RuntimeError):  # the loop is closed, and so is everything
            self._loop.call_soon_threadsafe(self._proxy.close_disallowed)

    def close(self) -> None:
        """Close all connections and listeners, and end the thread.  Once more does nothing."""
        with suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(self._task.cancel)
        self._thread.join()
        self._undo.close()
