"""Where cgroups can be made: the hierarchies that are mounted, and our place in them.

Nothing is guessed: mount points come from ``/proc/self/mountinfo`` and our own cgroups from
``/proc/self/cgroup``, proc_pid_mountinfo(5) and cgroups(7).  Nothing is changed here but by
:meth:`Places.enable`.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

NO_PROCESSES = (
    "start it with 'systemd-run --user --scope COMMAND', give its service Delegate=yes and "
    "DelegateSubgroup=main, or name in NSRUN_CGROUP a cgroup that you may write to and that "
    "holds no processes itself"
)
ESCAPE = re.compile(rb"\\([0-3][0-7]{2})")


class Missing(Exception):
    """There is no place for a controller.

    Attributes:
        evidence: what was found instead.
        path: the directory or file that it hangs on; may be empty.
        errno: the error that its use would give, 0 if there is none.
        remedy: what to do.
    """

    def __init__(self, evidence: str, path: str, number: int, remedy: str) -> None:
        super().__init__(evidence)
        self.evidence = evidence
        self.path = path
        self.errno = number
        self.remedy = remedy


@dataclass(frozen=True, slots=True)
class Mount:
    """One line of mountinfo.

    Attributes:
        device: as ``st_dev`` has it.
        root: the directory of the file system that is mounted.
        point: where.
        kind: the type of the file system.
        options: those of the file system; v1 names its controllers there.
    """

    device: int
    root: str
    point: str
    kind: str
    options: frozenset[str]


@dataclass(frozen=True, slots=True)
class Hierarchy:
    """One mounted tree of cgroups.

    Attributes:
        version: 1 or 2.
        controllers: those of a v1 hierarchy.
        candidates: directories that new cgroups may be made in, the best first.
        own: the directory of this process; None if no mount shows it.
        explicit: the only candidate was named by the user.
    """

    version: int
    controllers: frozenset[str]
    candidates: tuple[str, ...]
    own: str | None
    explicit: bool


@dataclass(frozen=True, slots=True)
class Place:
    """A cgroup that a new one can be made in.

    Attributes:
        path: its directory.
        version: 1 or 2.
        controllers: those that were asked for, v1: all of the hierarchy's.
        enable: those of them that it has yet to give to its children, v2.
    """

    path: str
    version: int
    controllers: frozenset[str]
    enable: tuple[str, ...] = ()


def _unescape(word: bytes) -> str:
    return os.fsdecode(ESCAPE.sub(lambda match: bytes([int(match[1], 8)]), word))


def parse_mountinfo(data: bytes) -> list[Mount]:
    """The mounts of a mountinfo file, the latest last; lines that can't be read are left out."""
    mounts = []
    for line in data.split(b"\n"):
        before, dash, after = line.partition(b" - ")
        # the source may be empty, so each single space counts
        words, rest = before.split(b" "), after.split(b" ")
        device = re.fullmatch(rb"([0-9]{1,9}):([0-9]{1,9})", words[2]) if len(words) >= 6 else None
        if not dash or device is None or len(rest) < 3:
            continue
        mounts.append(
            Mount(
                os.makedev(int(device[1]), int(device[2])),
                _unescape(words[3]),
                _unescape(words[4]),
                _unescape(rest[0]),
                frozenset(_unescape(rest[2]).split(",")),
            )
        )
    return mounts


def parse_membership(data: bytes) -> dict[frozenset[str], str]:
    """The cgroups of a process: controllers of the hierarchy (none: v2) to its path."""
    cgroups = {}
    for line in data.split(b"\n"):
        words = os.fsdecode(line).split(":", 2)
        if len(words) == 3 and words[0].isdigit() and words[2].startswith("/"):
            cgroups[frozenset(filter(None, words[1].split(",")))] = words[2]
    return cgroups


def directory_of(mount: Mount, path: str) -> str | None:
    """Where a mount shows the cgroup that /proc/self/cgroup calls ``path``, or None.

    Both roots are told relative to the reader's cgroup namespace: where the mount is of a
    directory above it, its root begins with ``/..`` and the way down has no name here.
    """
    if mount.root == "/":
        below = path
    elif path == mount.root or path.startswith(mount.root + "/"):
        below = path[len(mount.root) :]
    else:
        return None
    if ".." in below.split("/"):
        return None
    return mount.point.rstrip("/") + below.rstrip("/") or "/"


def read_words(path: str) -> list[str]:
    """The words of a control file; none if it is not there."""
    try:
        with open(path, "rb") as file:
            return os.fsdecode(file.read()).split()
    except OSError:
        return []


def _is_on(path: str, device: int) -> bool:
    try:
        return os.stat(path).st_dev == device
    except OSError:
        return False


def _writable(path: str) -> int:
    """0, or the errno that a change would give."""
    mode = os.W_OK | os.X_OK if os.path.isdir(path) else os.W_OK
    if os.access(path, mode, effective_ids=os.access in os.supports_effective_ids):
        return 0
    try:
        return errno.EROFS if os.statvfs(path).f_flag & os.ST_RDONLY else errno.EACCES
    except OSError as error:
        return error.errno or errno.EACCES


def _upward(path: str, top: str) -> Iterator[str]:
    """The directory, its parent and so on, up to and with the mount point."""
    while True:
        yield path
        if path in (top, "/"):
            return
        path = os.path.dirname(path)


class Places:
    """What was found when this was made; later changes of the mounts are not seen.

    Arguments:
        explicit: directories, at most one a hierarchy, in which new cgroups are to be made
            whatever else could be used.

    Raises:
        Missing: an explicit directory is in no cgroup hierarchy, or /proc can't be read.
    """

    def __init__(self, explicit: Sequence[str] = ()) -> None:
        try:
            with open("/proc/self/mountinfo", "rb") as file:
                mounts = parse_mountinfo(file.read())
            with open("/proc/self/cgroup", "rb") as file:
                self._membership = parse_membership(file.read())
        except OSError as error:
            raise Missing(
                f"{error.filename}: {error.strerror}",
                error.filename,
                error.errno or 0,
                "mount proc, and use a kernel that has cgroups",
            ) from None
        self._mounts = [mount for mount in mounts if mount.kind in ("cgroup", "cgroup2")]
        self._explicit = dict(map(self._explicit_parent, explicit))
        self._hierarchies = [
            self._hierarchy(controllers, path) for controllers, path in self._membership.items()
        ]
        self._found: dict[tuple[Hierarchy, frozenset[str]], Place] = {}

    def _explicit_parent(self, path: str) -> tuple[int, str]:
        remedy = "name directories of a mounted cgroup hierarchy, separated by colons"
        real = os.path.realpath(path)
        for mount in self._mounts:
            if os.path.isabs(path) and _is_on(real, mount.device):
                return mount.device, real
        number = 0 if os.path.isdir(path) else errno.ENOENT
        raise Missing(f"{path} is not the absolute path of a cgroup", path, number, remedy)

    def _hierarchy(self, controllers: frozenset[str], path: str) -> Hierarchy:
        version = 1 if controllers else 2
        own = explicit = None
        candidates: tuple[str, ...] = ()
        for mount in self._mounts:
            if mount.kind != ("cgroup" if controllers else "cgroup2"):
                continue
            if not controllers <= mount.options:
                continue
            explicit = explicit or self._explicit.get(mount.device)
            directory = directory_of(mount, path)
            # what another mount covers is on another device
            if own is None and directory is not None and _is_on(directory, mount.device):
                own = directory
                upward = tuple(_upward(directory, mount.point))
                # a v1 process may have siblings below itself, and stays in its own limits so
                candidates = upward if version == 2 else upward[:1]
        candidates = (explicit,) if explicit else candidates
        return Hierarchy(version, controllers, candidates, own, explicit is not None)

    def hierarchy(self, controller: str) -> Hierarchy:
        """The one that a controller is in.

        Raises:
            Missing: there is none, or it is not mounted where we could see it.
        """
        found = None
        for hierarchy in self._hierarchies:
            if controller in hierarchy.controllers:
                found = hierarchy
                break
            if hierarchy.version == 2:
                found = hierarchy
        if found is None:
            raise Missing(
                f"the kernel has no cgroup controller {controller}", "", errno.ENODEV, NO_PROCESSES
            )
        if not found.candidates:
            names = ",".join(sorted(found.controllers)) or "v2"
            raise Missing(
                f"no mount shows this process's cgroup of the {names} hierarchy",
                "",
                errno.ENOENT,
                "mount it, usually below /sys/fs/cgroup",
            )
        return found

    def place(self, hierarchy: Hierarchy, controllers: frozenset[str]) -> Place:
        """Where a new cgroup can have these controllers.  Looked for once.

        Raises:
            Missing: nowhere.
        """
        key = hierarchy, controllers
        if key not in self._found:
            v1 = hierarchy.version == 1
            self._found[key] = _place_v1(hierarchy) if v1 else _place_v2(hierarchy, controllers)
        return self._found[key]

    def enable(self, place: Place) -> None:
        """Give the place's children the controllers that they lack.

        They stay given.  The kernel refuses it (EBUSY) if a process has come in since.

        Raises:
            OSError: it can't be.
        """
        if not place.enable:
            return
        words = " ".join(f"+{name}" for name in place.enable)
        with open(f"{place.path}/cgroup.subtree_control", "wb", buffering=0) as file:
            file.write(words.encode())
        for key, found in list(self._found.items()):
            if found == place:
                self._found[key] = replace(found, enable=())


def _place_v1(hierarchy: Hierarchy) -> Place:
    path = hierarchy.candidates[0]
    number = _writable(path)
    if not number:
        return Place(path, 1, hierarchy.controllers)
    user = f"{path}/nsrun-user-{os.geteuid()}"
    raise Missing(
        f"cgroup v1, {path}: {os.strerror(number)}",
        path,
        number,
        f"v1 hierarchies are root's; as root: mkdir {user} && chown {os.geteuid()} {user}, "
        f"then set NSRUN_CGROUP={user} (more directories behind colons)",
    )


@dataclass(frozen=True, slots=True)
class _Refusal:
    path: str
    errno: int
    reason: str
    remedy: str = NO_PROCESSES


def _place_v2(hierarchy: Hierarchy, controllers: frozenset[str]) -> Place:
    refusals: list[_Refusal] = []
    for path in hierarchy.candidates:
        found = _look_at_v2(path, hierarchy, controllers)
        if isinstance(found, Place):
            return found
        refusals.append(found)
    evidence = "; ".join(f"{each.path}: {each.reason}" for each in refusals)
    # one that lacks a word written by root is nearer to the goal than one that is not ours
    best = min(refusals, key=lambda each: each.remedy == NO_PROCESSES)
    raise Missing(f"cgroup v2, {evidence}", best.path, best.errno, best.remedy)


def _look_at_v2(path: str, tree: Hierarchy, controllers: frozenset[str]) -> Place | _Refusal:
    lacking = controllers - set(read_words(f"{path}/cgroup.subtree_control"))
    refused = _entry(path, tree.own)
    if refused is None and lacking:
        refused = _giving(path, tree.explicit, lacking)
    return refused or Place(path, 2, controllers, tuple(sorted(lacking)))


def _giving(path: str, explicit: bool, lacking: frozenset[str]) -> _Refusal | None:
    """Why controllers can't be given to the children of a cgroup."""
    names = " and ".join(sorted(lacking))
    if not lacking <= set(read_words(f"{path}/cgroup.controllers")):
        return _Refusal(path, errno.ENODEV, f"{names} not among its controllers")
    if read_words(f"{path}/cgroup.procs"):
        return _inhabited(path, " ".join(f"+{name}" for name in sorted(lacking)))
    number = _writable(f"{path}/cgroup.subtree_control")
    if number:
        return _Refusal(path, number, f"cgroup.subtree_control: {os.strerror(number)}")
    if not (explicit or _is_delegated(path)):
        return _Refusal(path, errno.EPERM, f"not delegated, and its children have no {names}")
    return None


def _is_delegated(path: str) -> bool:
    """Whether its controllers are ours to give; that root may write to it tells nothing.

    They are if it is a user's own, or has the mark of systemd, systemd.resource-control(5).
    """
    try:
        owner = os.stat(path).st_uid
    except OSError:
        return False
    if owner and owner == os.geteuid():
        return True
    for name in ("trusted.delegate", "user.delegate"):
        with suppress(OSError):
            if os.getxattr(path, name) == b"1":
                return True
    return False


def _inhabited(path: str, words: str) -> _Refusal:
    """It holds processes, so its controllers stay as they are."""
    reason = f"{words} not in cgroup.subtree_control, and it holds processes"
    if os.path.exists(f"{path}/cgroup.type"):
        return _Refusal(path, errno.EBUSY, reason)
    # only the root of all may have both; that is the administrator's to decide
    remedy = f"as root: echo '{words}' > {path}/cgroup.subtree_control"
    return _Refusal(path, errno.EBUSY, reason, remedy)


def _entry(path: str, own: str | None) -> _Refusal | None:
    """Why no cgroup can be made there, or no process of ours could enter it."""
    kind = " ".join(read_words(f"{path}/cgroup.type")) or "domain"
    if kind != "domain":
        return _Refusal(path, errno.EOPNOTSUPP, f"of type {kind}")
    number = _writable(path)
    if number:
        return _Refusal(path, number, os.strerror(number))
    # who moves a process must be able to write to the cgroup above both, cgroups(7)
    common = path if own is None else os.path.commonpath((path, own))
    procs = f"{common}/cgroup.procs"
    number = _writable(procs)
    if number:
        reason = f"processes can't be moved there, {procs}: {os.strerror(number)}"
        return _Refusal(path, number, reason)
    return None
