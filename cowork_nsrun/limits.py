"""Limits that hold for all processes of a sandbox together: cgroups, v2 or v1.

A program makes one :class:`Cgroups`, and from it one :class:`Cgroup` for each sandbox.  The
sandbox's first process enters it, by writing ``0`` to ``cgroup.procs`` in each of its paths.

>>> with Cgroups() as cgroups, cgroups.open(memory=64 << 20, pids=32) as cgroup:
...     start_something_in(cgroup.paths)  # doctest: +SKIP

Facts: Documentation/admin-guide/cgroup-v2.rst and cgroup-v1/ of the kernel, cgroups(7).
"""

from __future__ import annotations

import errno
import itertools
import logging
import os
import re
import secrets
import signal
import threading
import time
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property

from cowork_nsrun.closing import Closing
from cowork_nsrun.errors import NsrunError, SpecError
from cowork_nsrun.janitor import Janitor
from cowork_nsrun.places import Hierarchy, Missing, Place, Places, read_words

log = logging.getLogger(__name__)

PARENT_VARIABLE = "NSRUN_CGROUP"
LIMITS = ("memory", "pids", "cpu")
USAGE = "usage"
INNER = "inside"
PERIOD_US = 100_000
QUOTA_MIN_US = 1_000
PIDS_MAX = 1 << 22
MEMORY_MAX = (1 << 63) - 1
LIVING_MAX = 32768
PATIENCE = 10.0
NAME = re.compile(r"nsrun-([0-9]+)-([0-9]+)-([0-9]+)-[0-9a-f]+-[0-9]+")


class LimitError(NsrunError):
    """A limit can't be had here.

    Attributes:
        limit: ``memory``, ``pids`` or ``cpu``; ``usage`` where only counting was asked for.
        problem: why, the path and the meaning of ``errno`` included.
        remedy: what to do, in words.
    """

    def __init__(self, limit: str, problem: str, path: str, number: int, remedy: str) -> None:
        super().__init__(f"limit {limit}: {problem}; {remedy}", path=path, errno=number)
        self.limit = limit
        self.problem = problem
        self.remedy = remedy


@dataclass(frozen=True, slots=True)
class Availability:
    """Whether a limit can be had.

    Attributes:
        limit: ``memory``, ``pids`` or ``cpu``.
        held_by: ``cgroup v2`` or ``cgroup v1``; None if by neither.
        path: the cgroup that new ones are made in, or at which it fails.
        evidence: what was found.
        remedy: what to do if it can't be had, else empty.
    """

    limit: str
    held_by: str | None
    path: str
    evidence: str
    remedy: str


@dataclass(frozen=True, slots=True)
class CgroupUsage:
    """What the processes of a cgroup used; None where the kernel does not tell.

    Attributes:
        cpu_ns: processor time of all of them, in nanoseconds.
        memory_peak: the most memory at one time, in bytes.
        oom_kills: how many of them were killed for want of memory.
        pids_refused: how often a process or thread was refused for want of pids.
    """

    cpu_ns: int | None
    memory_peak: int | None
    oom_kills: int | None
    pids_refused: int | None


@dataclass(frozen=True, slots=True)
class _Source:
    """Where a field of :class:`CgroupUsage` comes from: a number, or the one behind a key."""

    field: str
    version: int
    controller: str
    file: str
    key: str | None = None
    factor: int = 1

    @property
    def is_event(self) -> bool:
        """It counts what happened, not what was used."""
        return self.field in {"oom_kills", "pids_refused"}

    def is_in(self, place: Place) -> bool:
        # v2 shows the files of every controller that the parent gives, asked for or not
        return place.version == self.version and (
            self.version == 2 or self.controller in place.controllers
        )


SOURCES = (
    _Source("cpu_ns", 2, "cpu", "cpu.stat", "usage_usec", 1000),
    _Source("memory_peak", 2, "memory", "memory.peak"),
    _Source("oom_kills", 2, "memory", "memory.events", "oom_kill"),
    _Source("pids_refused", 2, "pids", "pids.events", "max"),
    _Source("cpu_ns", 1, "cpuacct", "cpuacct.usage"),
    _Source("memory_peak", 1, "memory", "memory.max_usage_in_bytes"),
    _Source("oom_kills", 1, "memory", "memory.oom_control", "oom_kill"),
    _Source("pids_refused", 1, "pids", "pids.events", "max"),
)


@dataclass(frozen=True, slots=True)
class _Setting:
    """A control file and what to write to it.

    ``optional``: left out where the file is not there.
    """

    file: str
    value: str
    optional: bool = False


def _settings(version: int, limit: str, value: float) -> list[_Setting]:
    if limit == "pids":
        return [_Setting("pids.max", str(value))]
    if limit == "cpu":
        quota = max(round(value * PERIOD_US), QUOTA_MIN_US)
        if version == 2:
            return [_Setting("cpu.max", f"{quota} {PERIOD_US}")]
        return [
            _Setting("cpu.cfs_period_us", str(PERIOD_US)),
            _Setting("cpu.cfs_quota_us", str(quota)),
        ]
    if version == 2:
        return [
            _Setting("memory.max", str(value)),
            _Setting("memory.swap.max", "0", optional=True),
        ]
    return [
        # inherited: with it, what is out of memory would hang and not end
        _Setting("memory.oom_control", "0"),
        _Setting("memory.limit_in_bytes", str(value)),
        # memory and swap together; it may not be less than the limit, so it comes after
        _Setting("memory.memsw.limit_in_bytes", str(value), optional=True),
    ]


def _write(path: str, value: str) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, value.encode())
    finally:
        os.close(fd)


def _value(path: str, key: str | None = None) -> int | None:
    """A number in a control file, by its key where it has several."""
    words = read_words(path)
    if key is None:
        return int(words[0]) if words and words[0].isdigit() else None
    for name, value in zip(words[::2], words[1::2], strict=False):
        if name == key:
            return int(value)
    return None


# --- the end of cgroups ---------------------------------------------------------------------


def _tree(path: str) -> list[str]:
    """The directory and all below, the deepest first."""
    found, queue = [], [path]
    while queue:
        path = queue.pop()
        found.append(path)
        with suppress(OSError), os.scandir(path) as entries:
            queue += [entry.path for entry in entries if entry.is_dir(follow_symlinks=False)]
    return found[::-1]


def _pids(path: str) -> list[int]:
    """Its processes; 0 are those of pid namespaces that are not ours to see."""
    return [int(word) for word in read_words(f"{path}/cgroup.procs")]


def _hold(path: str) -> None:
    """No more processes in it, and as much CPU time as dying takes."""
    for each in _tree(path):
        for file, value in ("pids.max", "0"), ("cpu.max", "max"), ("cpu.cfs_quota_us", "-1"):
            with suppress(OSError):
                _write(f"{each}/{file}", value)


def _kill_once(path: str) -> bool:
    """Kill what is in it and below; True if nothing was."""
    with suppress(OSError):
        _write(f"{path}/cgroup.kill", "1")
    empty = True
    for each in _tree(path):
        pids = _pids(each)
        if pids:
            empty = False
            _kill_pids(each, pids)
    return empty


def _kill_pids(path: str, pids: Collection[int]) -> None:
    # A number may be another process's a moment after it was read.  So: a pidfd first, and
    # then a second look.  If the number has changed hands before it, the pidfd finds no one.
    for some in _batches(pids):
        fds: dict[int, int] = {}
        try:
            for pid in filter(None, some):
                with suppress(OSError):
                    fds[pid] = os.pidfd_open(pid)
            for pid in fds.keys() & set(_pids(path)):
                with suppress(OSError):
                    signal.pidfd_send_signal(fds[pid], signal.SIGKILL)
        finally:
            for fd in fds.values():
                os.close(fd)


def _batches(pids: Collection[int]) -> Iterator[list[int]]:
    rest = list(pids)
    while rest:
        yield rest[:64]
        rest = rest[64:]


def _naps() -> Iterator[None]:
    """Time for others, longer each time, until patience ends."""
    pause, end = 0.0002, time.monotonic() + PATIENCE
    while time.monotonic() < end:
        yield
        time.sleep(pause)
        pause = min(pause * 2, 0.05)


def _kill(paths: Collection[str]) -> bool:
    """Kill all that is in them; False if something is not to be killed."""
    for path in paths:
        _hold(path)
    for _ in _naps():
        # every one of them each time, so no early end
        left = [path for path in paths if not _kill_once(path)]
        if not left:
            return True
    return False


def _remove(paths: Iterable[str]) -> list[str]:
    """Remove cgroups with all that is in them.  Those that stayed."""
    left = [path for path in paths if not _removed(path)]
    if left:
        _kill(left)
    for _ in _naps():
        left = [path for path in left if not _removed(path)]
        if not left:
            break
        for path in left:
            _kill_once(path)
    return left


def _removed(path: str) -> bool:
    try:
        os.rmdir(path)
    except FileNotFoundError:
        return True
    except OSError:
        for below in _tree(path):
            with suppress(OSError):
                os.rmdir(below)
        return not os.path.exists(path)
    return True


# --- whose they are -------------------------------------------------------------------------


def _start_time(pid: int) -> int | None:
    """In clock ticks since boot, proc_pid_stat(5); None if it is not to be read."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return int(file.read().rpartition(b")")[2].split()[19])
    except (OSError, IndexError, ValueError):
        return None


def _is_dead(pid: int, start: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except OSError:
        pass  # somebody else's, but there
    now = _start_time(pid)
    return now is not None and now != start


def _sweep(parent: str) -> None:
    """Remove what dead owners of ours left below a cgroup.

    Only those whose pids mean the same as ours, that is of our pid namespace.
    """
    namespace = os.stat("/proc/self/ns/pid").st_ino
    stale = []
    with suppress(OSError), os.scandir(parent) as entries:
        for entry in entries:
            match = NAME.fullmatch(entry.name)
            if match is None or int(match[1]) != namespace:
                continue
            if entry.stat(follow_symlinks=False).st_uid != os.geteuid():
                continue
            if _is_dead(int(match[2]), int(match[3])):
                stale.append(entry.path)
    if stale:
        log.info("cgroups: removing %d of dead owners below %s", len(stale), parent)
        for path in _remove(stale):
            log.warning("cgroups: %s of a dead owner can't be removed", path)


class _Owner:
    """This process, as the owner of cgroups; a fork of it makes its own."""

    def __init__(self, program: str | None) -> None:
        self.pid = os.getpid()
        self._count = itertools.count()
        self._program = program
        self._lock = threading.Lock()
        self._janitor: Janitor | None = None
        self._living: dict[str, Cgroup] = {}
        self._swept: set[str] = set()

    def is_me(self) -> bool:
        return self.pid == os.getpid()

    def new_name(self) -> str:
        return f"{self._prefix}-{next(self._count)}"

    @cached_property
    def _prefix(self) -> str:
        """As NAME has it: pid namespace, pid, start time, and a word of this object's own."""
        start = _start_time(self.pid)
        if start is None:
            raise NsrunError(f"/proc/{self.pid}/stat can't be read: mount proc")
        namespace = os.stat("/proc/self/ns/pid").st_ino
        return f"nsrun-{namespace}-{self.pid}-{start}-{secrets.token_hex(4)}"

    def sweep(self, parents: Iterable[str]) -> None:
        for parent in parents:
            if parent not in self._swept:
                self._swept.add(parent)
                _sweep(parent)

    def announce(self, cgroup: Cgroup) -> None:
        """Before its directories are made."""
        with self._lock:
            if len(self._living) + len(cgroup.paths) > LIVING_MAX:
                raise NsrunError(f"more than {LIVING_MAX} cgroups at one time: close some")
            self._living.update(dict.fromkeys(cgroup.paths, cgroup))
            try:
                self._tell(cgroup.paths)
            except BaseException:
                self._drop(cgroup.paths)
                raise

    def _tell(self, paths: Collection[str]) -> None:
        if self._janitor is not None and self._janitor.alive():
            try:
                self._janitor.expect(paths)
            except OSError as error:
                log.warning("cgroups: another process to remove them is started: %s", error)
            else:
                return
        if self._janitor is not None:
            self._janitor.kill()
            self._janitor = None
        self._janitor = Janitor(self._program or _find_program())
        try:
            self._janitor.expect(self._living)
        except OSError as error:
            raise NsrunError(
                f"the process that removes cgroups after a crash does not listen: {error}",
                errno=error.errno or 0,
            ) from error

    def _drop(self, paths: Iterable[str]) -> list[str]:
        return [path for path in paths if self._living.pop(path, None) is not None]

    def gone(self, paths: Iterable[str]) -> None:
        """After its directories were removed."""
        with self._lock:
            known = self._drop(paths)
            if self._janitor is not None:
                # if it has died, the next is not told of these
                with suppress(OSError):
                    self._janitor.forget(known)

    def living(self) -> set[Cgroup]:
        with self._lock:
            return set(self._living.values())

    def janitor_pidfd(self) -> int | None:
        with self._lock:
            return None if self._janitor is None else self._janitor.pidfd

    def close(self) -> None:
        with self._lock:
            if self._janitor is not None:
                self._janitor.close()
                self._janitor = None

    def abandon(self) -> None:
        """In a fork: the copies of the owner's descriptors are closed, nothing else."""
        if self._janitor is not None:
            self._janitor.abandon()


def _find_program() -> str:
    # late, since process.py imports this module
    from cowork_nsrun.program import find_program  # noqa: PLC0415

    return find_program()


# --- what others use ------------------------------------------------------------------------


class Cgroup(Closing):
    """One new cgroup, or several of one name where v1 has a hierarchy for each limit.

    Made by :meth:`Cgroups.open`.  Any thread may use it.  In a fork of the process that opened
    it, it can be read, but :meth:`close` does nothing and :meth:`kill` is refused.

    Attributes:
        paths: directories that have the limits.
        inner: a directory in each of them; who is to be limited writes ``0`` to
            ``cgroup.procs`` there.  That ``pids`` is reached does not keep anyone from
            coming in so.  A namespace of cgroups that is made there, or a mount of one, has
            the limits above its root, where they can't be written.
        held: limit to what holds it, ``cgroup v2`` or ``cgroup v1``.
    """

    def __init__(self, owner: _Owner, name: str, found: dict[Place, list[str]]) -> None:
        self.paths = tuple(f"{place.path}/{name}" for place in found)
        self.held = {limit: f"cgroup v{place.version}" for place in found for limit in found[place]}
        self._sources = [
            (source, f"{path}/{source.file}")
            for place, path in zip(found, self.paths, strict=True)
            for source in SOURCES
            if source.is_in(place)
        ]
        self.inner = tuple(f"{path}/{INNER}" for path in self.paths)
        # v1 counts events where they happen, not where the limit is
        self._sources += [
            (source, f"{path}/{source.file}")
            for place, path in zip(found, self.inner, strict=True)
            for source in SOURCES
            if source.is_in(place) and place.version == 1 and source.is_event
        ]
        self._owner = owner
        self._lock = threading.Lock()
        self._closed = False
        self._last = CgroupUsage(None, None, None, None)

    def usage(self) -> CgroupUsage:
        """What its processes have used so far, those that ended included.

        After :meth:`close`, what they had used then.
        """
        if not self._owner.is_me():
            return self._usage()  # the lock's holder may be a thread that a fork does not have
        with self._lock:
            return self._last if self._closed else self._usage()

    def _usage(self) -> CgroupUsage:
        found: dict[str, int] = {}
        for source, path in self._sources:
            value = _value(path, source.key)
            if value is not None:
                found[source.field] = found.get(source.field, 0) + value * source.factor
        return CgroupUsage(
            found.get("cpu_ns"),
            found.get("memory_peak"),
            found.get("oom_kills"),
            found.get("pids_refused"),
        )

    def kill(self) -> None:
        """Kill every process in it and wait until none is left.

        No process can be started in it afterwards.

        Raises:
            NsrunError: some can't be killed within some seconds, or this process is a fork of
                the one that opened it.
        """
        if not self._owner.is_me():
            raise NsrunError("a cgroup is killed by the process that opened it, not by a fork")
        with self._lock:
            if not self._closed and not _kill(self.paths):
                raise self._stuck(self.paths)

    def close(self) -> None:
        """Kill what is in it and remove it.  May be called again.

        Raises:
            NsrunError: it could not be removed within some seconds.
        """
        if not self._owner.is_me():
            return
        with self._lock:
            if self._closed:
                return
            self._last = self._usage()
            left = _remove(self.paths)
            self._owner.gone(set(self.paths) - set(left))
            if left:
                raise self._stuck(left)
            self._closed = True

    @staticmethod
    def _stuck(paths: Iterable[str]) -> NsrunError:
        pids = sorted({pid for path in paths for each in _tree(path) for pid in _pids(each)})
        names = ", ".join(map(str, pids[:8])) or "none that can be seen"
        first = next(iter(paths), "")
        return NsrunError(
            f"cgroup {first}: {os.strerror(errno.EBUSY)}, processes in it that do not die: {names}",
            path=first,
            errno=errno.EBUSY,
        )


class Group(Closing):
    """A cgroup that holds limits for several sandboxes together; their own lie below it.

    Made by :meth:`Cgroups.group`.  Any thread may use it, but no fork of the process.  The
    kernel kills one sandbox, all of it, when the memory of all together is used up.

    Attributes:
        held: limit to what holds it, ``cgroup v2`` or ``cgroup v1``.
    """

    def __init__(self, cgroups: Cgroups, cgroup: Cgroup, places: Collection[Place]) -> None:
        self._cgroups = cgroups
        self._cgroup = cgroup
        self._places = tuple(places)
        self.held = cgroup.held

    @property
    def paths(self) -> tuple[str, ...]:
        """The directories that have the limits."""
        return self._cgroup.paths

    def open(
        self, *, memory: int | None = None, pids: int | None = None, cpu: float | None = None
    ) -> Cgroup:
        """A new, empty cgroup in it, with limits of its own, as :meth:`Cgroups.open` has them.

        Raises:
            SpecError: a value that can't be.
            LimitError: a limit that the group was not made for, or the group is gone.
        """
        asked = _checked(memory, pids, cpu)
        found: dict[Place, list[str]] = {place: [] for place in self._places}
        for limit in asked:
            place = next((each for each in self._places if limit in each.controllers), None)
            if place is None:
                problem = f"{self.paths[0]} has no controller for it"
                raise LimitError(limit, problem, self.paths[0], 0, "give the group such a limit")
            found[place].append(limit)
        cgroup = self._cgroups.make(found, asked)
        cgroup.held = {**self.held, **cgroup.held}
        return cgroup

    def usage(self) -> CgroupUsage:
        """What the sandboxes in it have used so far, those that ended included."""
        return self._cgroup.usage()

    def close(self) -> None:
        """Kill what is in it and remove it.  May be called again.

        Raises:
            NsrunError: it could not be removed within some seconds.
        """
        self._cgroup.close()


class Cgroups(Closing):
    """Makes cgroups.  One for a whole process is enough, and any thread may use it.

    What there is, is looked for when this is made.  The first cgroup also removes what owners
    that died left behind in the same place, and starts a process that would do so for this one.
    A fork that uses it gets a process of its own and does not touch its parent's cgroups.

    New cgroups are made next to this process's own, or next to one above it that has the
    controllers and that it may write to (v2), or below its own (v1).  The process itself is
    never moved, and controllers are only given by cgroups that hold no processes.

    Arguments:
        parent: directories to make cgroups in, instead: one, or one for each v1 hierarchy,
            separated by colons.  None takes the environment variable ``NSRUN_CGROUP``.
        program: the nsrun program, if not the one that came with this package.
    """

    def __init__(
        self, parent: str | os.PathLike[str] | None = None, *, program: str | None = None
    ) -> None:
        words = os.environ.get(PARENT_VARIABLE, "") if parent is None else os.fspath(parent)
        self._program = program
        self._places: Places | Missing
        try:
            self._places = Places([word for word in words.split(":") if word])
        except Missing as missing:
            self._places = missing
        self._owner = _Owner(program)

    def available(self) -> dict[str, Availability]:
        """For each limit, what would hold it here, or why nothing can."""
        return {limit: self._available(limit) for limit in LIMITS}

    def _available(self, limit: str) -> Availability:
        try:
            found = self._find([limit], account=False)
        except LimitError as error:
            return Availability(limit, None, error.path, error.problem, error.remedy)
        place = next(place for place, limits in found.items() if limit in limits)
        by = f"cgroup v{place.version}"
        return Availability(limit, by, place.path, f"{by} below {place.path}", "")

    def _find(self, limits: Collection[str], account: bool) -> dict[Place, list[str]]:
        """Places, and the limits that each of them holds.

        Raises:
            LimitError: one of the limits has no place.
        """
        if isinstance(self._places, Missing):
            raise _error(next(iter(limits), USAGE), self._places)
        trees: dict[Hierarchy, frozenset[str]] = {}
        for limit in limits:
            try:
                self._add(self._places, trees, limit)
            except Missing as missing:
                raise _error(limit, missing) from None
        first: Missing | None = None
        for controller in self._helpful(account, trees):
            try:
                self._add(self._places, trees, controller, as_it_is=True)
            except Missing as missing:
                first = first or missing
        if first is not None and not trees:
            raise _error(USAGE, first)
        return {
            self._places.place(tree, names): [limit for limit in limits if limit in names]
            for tree, names in trees.items()
        }

    @staticmethod
    def _add(
        places: Places,
        trees: dict[Hierarchy, frozenset[str]],
        controller: str,
        *,
        as_it_is: bool = False,
    ) -> None:
        """Have one more controller; with ``as_it_is`` only if no cgroup must be changed for it."""
        tree = places.hierarchy(controller)
        # v2 counts CPU time without any controller
        more = set() if (tree.version, controller) == (2, "cpuacct") else {controller}
        names = trees.get(tree, frozenset()) | more
        if not (places.place(tree, names).enable and as_it_is):
            trees[tree] = names

    @staticmethod
    def _helpful(account: bool, trees: Collection[Hierarchy]) -> tuple[str, ...]:
        """Controllers that are good to have.

        v1 needs pids so that nothing escapes a kill by forking, and cpuacct to know the time.
        """
        if account:
            return ("cpuacct", "memory", "pids")
        return ("pids", "cpuacct") if any(tree.version == 1 for tree in trees) else ()

    def open(
        self,
        *,
        memory: int | None = None,
        pids: int | None = None,
        cpu: float | None = None,
        account: bool = False,
    ) -> Cgroup:
        """A new, empty cgroup with these limits.  None is no limit.

        Arguments:
            memory: bytes of memory, with what the kernel holds for the processes; nothing of it
                is swapped.  Rounded down to whole pages.
            pids: processes and threads at one time.
            cpu: processors' worth of time, such as 0.5, in periods of 100 ms; at least 0.01.
            account: also count what no limit asks for, where the kernel does.

        Raises:
            SpecError: a value that can't be.
            LimitError: a limit can't be had; it says which, why, and what to do.
            NsrunError: the process that would clean up can't be started.
        """
        asked = _checked(memory, pids, cpu)
        if not asked and not account:
            raise SpecError("limits", "none is given")
        return self.make(self._find(list(asked), account), asked)

    def group(
        self, *, memory: int | None = None, pids: int | None = None, cpu: float | None = None
    ) -> Group:
        """A new cgroup with these limits, in which sandboxes get cgroups of their own.

        Arguments and errors are those of :meth:`open`.
        """
        asked = _checked(memory, pids, cpu)
        if not asked:
            raise SpecError("limits", "none is given")
        found = self._find(list(asked), account=False)
        cgroup = self.make(found, asked, group=True)
        below = [
            Place(path, place.version, place.controllers)
            for place, path in zip(found, cgroup.paths, strict=True)
        ]
        return Group(self, cgroup, below)

    def make(
        self, found: dict[Place, list[str]], asked: Mapping[str, float], *, group: bool = False
    ) -> Cgroup:
        """A new cgroup at these places; for :meth:`open`, :meth:`group` and :class:`Group`.

        Raises:
            LimitError: a limit can't be had.
            NsrunError: the process that would clean up can't be started.
        """
        owner = self._mine()
        owner.sweep(place.path for place in found)
        cgroup = Cgroup(owner, owner.new_name(), found)
        owner.announce(cgroup)
        try:
            for place, path in zip(found, cgroup.paths, strict=True):
                self._make(place, path, {limit: asked[limit] for limit in found[place]}, group)
        except BaseException:
            cgroup.close()
            raise
        return cgroup

    def _make(self, place: Place, path: str, limits: dict[str, float], group: bool) -> None:
        limit, at = next(iter(limits), USAGE), f"{place.path}/cgroup.subtree_control"
        try:
            assert not isinstance(self._places, Missing)
            self._places.enable(place)
            at = path
            os.mkdir(path, 0o755)
            for limit, value in limits.items():
                for setting in _settings(place.version, limit, value):
                    at = f"{path}/{setting.file}"
                    if not setting.optional or os.path.exists(at):
                        _write(at, setting.value)
            if group:
                at = f"{path}/cgroup.subtree_control"
                if place.version == 2:
                    _write(at, " ".join(f"+{name}" for name in sorted(place.controllers)))
                return
            # a sandbox is killed as a whole, for want of its own memory or of its group's
            at = f"{path}/memory.oom.group"
            if place.version == 2 and os.path.exists(at):
                _write(at, "1")
            at = f"{path}/{INNER}"
            os.mkdir(at, 0o755)
        except OSError as error:
            number = error.errno or 0
            raise LimitError(
                limit, f"{at}: {os.strerror(number)}", at, number, _remedy(number, place.path)
            ) from error

    def _mine(self) -> _Owner:
        """The state of this very process."""
        owner = self._owner
        if not owner.is_me():
            # two threads may both come here: then both work, each with its own
            owner.abandon()
            owner = self._owner = _Owner(self._program)
        return owner

    def janitor_pidfd(self) -> int | None:
        """A pidfd of the process that cleans up after this one; None if none runs yet."""
        return self._mine().janitor_pidfd()

    def close(self) -> None:
        """Close every cgroup that is still open.  May be called again.

        Raises:
            NsrunError: one could not be removed; it is tried further in the background.
        """
        owner = self._mine()
        problem: NsrunError | None = None
        for cgroup in owner.living():
            try:
                cgroup.close()
            except NsrunError as error:
                problem = error
        owner.close()
        if problem is not None:
            raise problem


def _checked(memory: int | None, pids: int | None, cpu: float | None) -> dict[str, float]:
    """The limits that are given."""
    if memory is not None and not os.sysconf("SC_PAGE_SIZE") <= memory <= MEMORY_MAX:
        raise SpecError("memory", f"{memory} bytes: at least one page, less than 2**63")
    if pids is not None and not 1 <= pids <= PIDS_MAX:
        raise SpecError("pids", f"{pids}: 1 to {PIDS_MAX}")
    if cpu is not None and not QUOTA_MIN_US / PERIOD_US <= cpu <= PIDS_MAX:
        raise SpecError("cpu", f"{cpu} processors: at least {QUOTA_MIN_US / PERIOD_US}")
    given = {"memory": memory, "pids": pids, "cpu": cpu}
    return {limit: value for limit, value in given.items() if value is not None}


def _error(limit: str, missing: Missing) -> LimitError:
    return LimitError(limit, missing.evidence, missing.path, missing.errno, missing.remedy)


def _remedy(number: int, parent: str) -> str:
    """For what failed although it looked well."""
    return {
        errno.EINVAL: f"the limit may not be above that of {parent}",
        errno.ENOENT: "the cgroup is gone, or its controllers are: start the program anew",
        errno.EAGAIN: f"{parent} may have no more cgroups below it: cgroup.max.descendants",
        errno.EBUSY: f"processes came into {parent}: name another in {PARENT_VARIABLE}",
    }.get(number, f"name another parent in {PARENT_VARIABLE}")
