"""Sandboxes that are made ahead: a command in one of them costs little more than its exec."""

from __future__ import annotations

import errno
import logging
import os
import signal
import threading
import time
import weakref
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, overload

from cowork_nsrun._native import Flow, PlanFlag
from cowork_nsrun.by_keeper import Keeper
from cowork_nsrun.closing import Closing
from cowork_nsrun.enforce import enforce
from cowork_nsrun.errors import NsrunError, SpecError
from cowork_nsrun.handle import Handle, Stdio, start
from cowork_nsrun.plan import Extras, Plan
from cowork_nsrun.process import Argv, Process, Result, as_data, finish, popen, run
from cowork_nsrun.spec import BindFd, Overlay, ReadOnlyOverlay, Sandbox, TmpOverlay
from cowork_nsrun.streams import Ends, Stream

log = logging.getLogger(__name__)

SIZE_MAX = 1024
RETRY_AFTER = 1.0
PLACEHOLDER = ("nsrun-stub",)


@dataclass(frozen=True, slots=True)
class PoolStats:
    """What a pool has done.

    Attributes:
        parked: sandboxes that wait for a command now.
        handed: commands that got one of them.
        fresh: commands for which a sandbox was made, since none was ready or none fit.
        discarded: sandboxes that got too old, or whose sources had changed.
        failed: sandboxes that could not be made.
    """

    parked: int
    handed: int
    fresh: int
    discarded: int
    failed: int


@dataclass(frozen=True, slots=True)
class _Parked:
    handle: Handle
    since: float


class _Store:
    """The parked sandboxes, and the thread that makes them."""

    def __init__(self, spec: Sandbox, size: int, max_age: float) -> None:
        self.spec = spec
        self._size = size
        self._max_age = max_age
        self._owner = os.getpid()
        # by one thread more than once: finalizers come here at any point.
        # It is entered itself, not by the condition, where an interrupt could keep it held.
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)
        self._parked: deque[_Parked] = deque()
        self._waste: list[Handle] = []
        self._making: Handle | None = None
        self._closed = False
        self._retry_at = 0.0
        self._counts = {"handed": 0, "fresh": 0, "discarded": 0, "failed": 0}
        self._keeper = Keeper()
        self._null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        self._thread = threading.Thread(target=self._work, name="nsrun-pool", daemon=True)
        try:
            self._thread.start()
        except BaseException:
            os.close(self._null)
            raise

    # --- the thread -----------------------------------------------------------------------

    def _work(self) -> None:
        try:
            while self._work_once():
                pass
        finally:
            os.close(self._null)
            self._keeper.close()

    def _work_once(self) -> bool:
        """Throw away, make one; False once it is closed."""
        with self._lock:
            while not self._waste and not self._closed and not self._room():
                self._changed.wait(self._rest())
                self._expire()
            waste, self._waste = self._waste, []
            closed, room = self._closed, self._room()
        for handle in waste:
            try:
                handle.close()
            except NsrunError as error:
                log.warning("can't end a sandbox that was made ahead: %s", error)
        if room and not closed:
            self._add()
        return not closed

    def _room(self) -> bool:
        return len(self._parked) < self._size and time.monotonic() >= self._retry_at

    def _rest(self) -> float | None:
        """Seconds until there is something to do by itself."""
        ends = [parked.since + self._max_age for parked in self._parked]
        if len(self._parked) < self._size:
            ends.append(self._retry_at)
        return max(0.0, min(ends) - time.monotonic()) if ends else None

    def _expire(self) -> None:
        """Throw away what is too old, or has ended by itself."""
        oldest = time.monotonic() - self._max_age
        while self._parked and self._parked[0].since <= oldest:
            self._waste.append(self._parked.popleft().handle)
            self._counts["discarded"] += 1

    def _add(self) -> None:
        try:
            handle = self._park()
        except (NsrunError, OSError, MemoryError) as error:
            with self._lock:
                if self._closed:
                    return
                self._counts["failed"] += 1
                self._retry_at = time.monotonic() + RETRY_AFTER
            log.warning("can't make a sandbox ahead: %s", error)
            return
        with self._lock:
            if not self._closed and len(self._parked) < self._size:
                self._parked.append(_Parked(handle, time.monotonic()))
                self._changed.notify_all()
                return
        handle.close()

    def _park(self) -> Handle:
        enforced = enforce(self.spec)
        flags = PlanFlag.PARKED | PlanFlag.DEFAULT_SIGNALS
        try:
            extras = Extras(flags, enforced.cgroups, enforced.rlimits, enforced.numbers)
            spec = self.spec if self.spec.timeout is None else self.spec.replace(timeout=None)
            plan = Plan.from_spec(spec, PLACEHOLDER, extras=extras)
        except BaseException:
            enforced.give_back()
            raise
        stdio = (self._null, self._null, self._null)
        handle = start(plan, stdio, enforced.enforcement, self._keeper)
        try:
            with self._may_be_ended(handle):
                parked = handle.wait_parked()
        except BaseException:
            handle.close()
            raise
        if not parked:
            handle.close()
            handle.check()
            raise NsrunError("a sandbox that was made ahead came to its end")
        return handle

    @contextmanager
    def _may_be_ended(self, handle: Handle) -> Iterator[None]:
        """Whoever closes the pool does not wait for it: a microVM may have to boot."""
        with self._lock:
            self._making = handle
            if self._closed:
                handle.signal(signal.SIGKILL)
        try:
            yield
        finally:
            with self._lock:
                self._making = None

    # --- its users ------------------------------------------------------------------------

    def check(self) -> None:
        if os.getpid() != self._owner:
            raise NsrunError("this pool belongs to the process that was forked from")
        if self._closed:
            raise NsrunError("the pool is closed")

    def hand(self, command: Plan, stdio: Stdio, timeout: float | None) -> Handle | None:
        """A sandbox that has got the command; None if none was ready, or it is too large."""
        while True:
            with self._lock:
                self._expire()
                parked = self._parked.popleft() if self._parked else None
            if parked is None:
                self.count("fresh")
                return None
            try:
                if parked.handle.hand(command, stdio, timeout):
                    self.count("handed")
                    return parked.handle
            except NsrunError as error:
                self._put_back(parked)
                if error.errno != errno.E2BIG:
                    raise
                self.count("fresh")
                return None
            with self._lock:
                self._counts["discarded"] += 1
                self._waste.append(parked.handle)

    def _put_back(self, parked: _Parked) -> None:
        with self._lock:
            # its place may have been taken by a new one meanwhile
            if not self._closed and len(self._parked) < self._size:
                self._parked.appendleft(parked)
                return
        parked.handle.close()

    def refill(self) -> None:
        """Once the command that got the last one is on its way: making one takes time."""
        with self._lock:
            self._changed.notify_all()

    def count(self, what: str) -> None:
        with self._lock:
            self._counts[what] += 1

    def stats(self) -> PoolStats:
        with self._lock:
            return PoolStats(len(self._parked), **self._counts)

    def wait_full(self, deadline: float | None) -> bool:
        with self._lock:
            while len(self._parked) < self._size and not self._closed:
                left = None if deadline is None else deadline - time.monotonic()
                if left is not None and left <= 0:
                    return False
                self._changed.wait(left)
            return not self._closed

    def close(self) -> None:
        if os.getpid() != self._owner:
            return
        with self._lock:
            if self._closed:
                return
            self._closed = True
            if self._making is not None:
                self._making.signal(signal.SIGKILL)
            self._waste += [parked.handle for parked in self._parked]
            self._parked.clear()
            self._changed.notify_all()
        # a finalizer may run in that very thread, which then comes to its end by itself
        if self._thread is not threading.current_thread():
            self._thread.join()


class Pool(Closing):
    """Sandboxes of one spec that wait for their command; each is used once.

    A parked sandbox is a small program in its finished namespaces, and in its own cgroup
    where the spec has limits.  It holds nothing of this process, ends with it, however
    that ends, and is thrown away when it is older than ``max_age`` or when a bound file
    or directory is not the one any more that it was.  What the host mounts below a bound
    directory after a sandbox was parked is not seen in it.

    With backend ``kvm`` it is a microVM with its agent running and the spec's files shared,
    held by a process of the pool's; a command gets the time and fresh random numbers as in any
    other.  User, umask and environment of that process are those of the first machine's time.
    A spec with descriptors or a ``veth`` network is refused.

    Use it as a context manager, or close it.  Any thread may use it; a forked copy of
    the program can't.

    Arguments:
        spec: the sandbox.
        size: how many are kept ready, 1 to 1024.
        max_age: seconds after which one is thrown away.

    Raises:
        SpecError: a value that can't be.
    """

    def __init__(self, spec: Sandbox, size: int = 4, *, max_age: float = 300.0) -> None:
        if isinstance(size, bool) or not isinstance(size, int) or not 1 <= size <= SIZE_MAX:
            raise SpecError("size", f"a number from 1 to {SIZE_MAX} is wanted, not {size!r}")
        if not max_age > 0:
            raise SpecError("max_age", f"must be more than 0 seconds, not {max_age!r}")
        _check_spec(spec)
        self._store = _Store(spec, size, max_age)
        self._finalizer = weakref.finalize(self, self._store.close)

    @property
    def spec(self) -> Sandbox:
        """What its sandboxes are."""
        return self._store.spec

    def stats(self) -> PoolStats:
        """What it has done so far."""
        return self._store.stats()

    def wait_full(self, timeout: float | None = None) -> bool:
        """Wait until all are ready; False if ``timeout`` seconds were not enough."""
        self._store.check()
        return self._store.wait_full(None if timeout is None else time.monotonic() + timeout)

    @overload
    def popen(
        self,
        argv: Argv,
        *,
        stdin: Stream = None,
        stdout: Stream = None,
        stderr: Stream = None,
        pty: bool | tuple[int, int] = False,
        cwd: str | os.PathLike[str] | None = None,
        env: Mapping[str, str] | None = None,
        timeout: float | None = None,
        text: Literal[False] = False,
    ) -> Process[bytes]: ...
    @overload
    def popen(
        self,
        argv: Argv,
        *,
        stdin: Stream = None,
        stdout: Stream = None,
        stderr: Stream = None,
        pty: bool | tuple[int, int] = False,
        cwd: str | os.PathLike[str] | None = None,
        env: Mapping[str, str] | None = None,
        timeout: float | None = None,
        text: Literal[True],
    ) -> Process[str]: ...
    def popen(
        self,
        argv: Argv,
        *,
        stdin: Stream = None,
        stdout: Stream = None,
        stderr: Stream = None,
        pty: bool | tuple[int, int] = False,
        cwd: str | os.PathLike[str] | None = None,
        env: Mapping[str, str] | None = None,
        timeout: float | None = None,
        text: bool = False,
    ) -> Process[bytes] | Process[str]:
        """Start a command in a sandbox that is ready, else in a new one.

        Arguments and errors are those of :func:`cowork_nsrun.popen`.
        """
        begin = time.monotonic_ns()
        self._store.check()
        timeout = self.spec.timeout if timeout is None else timeout
        flags = PlanFlag.TERMINAL if pty else PlanFlag.NONE
        command = Plan.for_parked(self.spec, argv, cwd=cwd, env=env, extras=Extras(flags))
        ends = Ends(stdin, stdout, stderr, pty)
        try:
            can_time = self.spec.ends_all
            handle = self._store.hand(command, ends.stdio, timeout if can_time else None)
            if handle is not None:
                try:
                    handle.wait_started()
                finally:
                    self._store.refill()
                return Process(
                    handle,
                    argv=command.argv,
                    ours=ends.take(),
                    text=text,
                    timeout=timeout,
                    begin=begin,
                )
        except BaseException:
            ends.close()
            raise
        ends.close()
        self._store.refill()
        options: dict[str, Any] = {"text": text}
        return popen(
            argv,
            self.spec,
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            pty=pty,
            cwd=cwd,
            env=env,
            timeout=timeout,
            **options,
        )

    @overload
    def run(
        self,
        argv: Argv,
        *,
        input: bytes | str | None = None,
        capture: bool = True,
        cwd: str | os.PathLike[str] | None = None,
        env: Mapping[str, str] | None = None,
        timeout: float | None = None,
        text: Literal[False] = False,
    ) -> Result[bytes]: ...
    @overload
    def run(
        self,
        argv: Argv,
        *,
        input: bytes | str | None = None,
        capture: bool = True,
        cwd: str | os.PathLike[str] | None = None,
        env: Mapping[str, str] | None = None,
        timeout: float | None = None,
        text: Literal[True],
    ) -> Result[str]: ...
    def run(
        self,
        argv: Argv,
        *,
        input: bytes | str | None = None,
        capture: bool = True,
        cwd: str | os.PathLike[str] | None = None,
        env: Mapping[str, str] | None = None,
        timeout: float | None = None,
        text: bool = False,
    ) -> Result[bytes] | Result[str]:
        """Run a command in a sandbox that is ready, else in a new one, to its end.

        Arguments and errors are those of :func:`cowork_nsrun.run`.
        """
        begin = time.monotonic_ns()
        self._store.check()
        timeout = self.spec.timeout if timeout is None else timeout
        command = Plan.for_parked(self.spec, argv, cwd=cwd, env=env)
        flow = Flow.opened(as_data(input), capture)
        try:
            handle = self._store.hand(command, flow.stdio, None)
        except BaseException:
            flow.close()
            raise
        if handle is not None:
            try:
                return finish(handle, command, flow, timeout=timeout, text=text, begin=begin)
            finally:
                self._store.refill()
        flow.close()
        self._store.refill()
        options: dict[str, Any] = {"text": text}
        return run(
            argv,
            self.spec,
            input=input,
            capture=capture,
            cwd=cwd,
            env=env,
            timeout=timeout,
            **options,
        )

    def close(self) -> None:
        """End the sandboxes that wait; those that run a command are not the pool's any more."""
        self._finalizer()


def _check_spec(spec: Sandbox) -> None:
    for operation in spec.filesystem:
        if isinstance(operation, Overlay | TmpOverlay | ReadOnlyOverlay):
            raise SpecError("spec.filesystem", "a pool can't tell whether an overlay is still true")
    if not spec.close_fds:
        raise SpecError("spec.close_fds", "a pool has no descriptors to pass on")
    if spec.as_pid_1:
        raise SpecError("spec.as_pid_1", "in a pool, pid 1 is not the command")
    if spec.backend == "kvm":
        _check_machine(spec)


def _check_machine(spec: Sandbox) -> None:
    if any(isinstance(operation, BindFd) for operation in spec.filesystem):
        raise SpecError("spec.filesystem", "a pool of microVMs has no descriptors of the caller's")
    if spec.veth:
        raise SpecError("spec.veth", "a pool of microVMs has its owner's network, or none")


class PoolExecutor(Executor):
    """Runs commands in a pool's sandboxes: an executor whose calls are command lines.

    >>> with Pool(Sandbox.minimal()) as pool, PoolExecutor(pool) as executor:
    ...     future = executor.submit(["echo", "hello"], text=True)
    ...     future.result().stdout
    'hello\\n'

    Arguments:
        pool: where the commands run.  It is not closed by this.
        max_workers: how many run at one time; by default what ThreadPoolExecutor takes.
    """

    def __init__(self, pool: Pool, max_workers: int | None = None) -> None:
        self._pool = pool
        self._threads = ThreadPoolExecutor(max_workers, thread_name_prefix="nsrun-command")

    def submit(  # type: ignore[override] # a command is no function
        self, argv: Argv, /, **options: Any
    ) -> Future[Result[Any]]:
        """Run a command some time; ``options`` are those of :meth:`Pool.run`."""
        return self._threads.submit(lambda: self._pool.run(argv, **options))

    def map(  # type: ignore[override] # commands are no functions
        self, argvs: Iterable[Argv], /, *, timeout: float | None = None, **options: Any
    ) -> Iterator[Result[Any]]:
        """Run commands, and give their results in the same order.

        Arguments:
            timeout: seconds for each command.
        """
        futures = [self.submit(argv, timeout=timeout, **options) for argv in argvs]
        return (future.result() for future in futures)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """As :meth:`concurrent.futures.Executor.shutdown`."""
        self._threads.shutdown(wait, cancel_futures=cancel_futures)
