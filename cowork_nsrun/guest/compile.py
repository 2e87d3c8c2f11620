"""A plan of the host's as one that a guest can run: its sources become exports.

What a guest can't have is refused by name.  What is the kernel's own (``/proc``, ``/sys``,
``/dev``, the processes, IPC objects) is the guest's.  Every path that a later operation
covers is taken out of the export below it, or is read-only there, so that the file server
keeps the plan even where the guest's kernel does not.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from cowork_nsrun import _native
from cowork_nsrun._native import Number, Op, OpFlag, OpType, PlanFlag, String, Words
from cowork_nsrun.errors import NsrunError
from cowork_nsrun.guest.limits import Limits, of_cgroups
from cowork_nsrun.guest.network import resolv_conf
from cowork_nsrun.guest.tree import Mount, Tree, above, is_below, make_mount_point
from cowork_nsrun.guest.view import Access, Export, Rule
from cowork_nsrun.namespaces import CLONE, Namespace
from cowork_nsrun.plan import Plan

#: where the guest has the exports, by their numbers
EXPORTS = "/run/nsrun/exports"
RESOLV_CONF = "/etc/resolv.conf"
#: what a plan's data may come to that is read from descriptors, in bytes
DATA_LIMIT = 32 << 20

#: directories of the kernel's own making, and devices that every machine has
_KERNELS = ("/proc", "/sys", "/dev")
_DEVICES = frozenset(
    f"/dev/{name}" for name in ("null", "zero", "full", "random", "urandom", "tty", "pts",
                                "ptmx", "mqueue", "fd", "stdin", "stdout", "stderr")
)  # fmt: skip
_OVERLAYS = {OpType.TMP_OVERLAY, OpType.RO_OVERLAY}
_DIRECTORIES = {OpType.TMPFS, OpType.PROC, OpType.DEV, OpType.MQUEUE, *_OVERLAYS}
_FD_OPTIONS = {
    Number.USERNS_FD: "--userns",
    Number.USERNS2_FD: "--userns2",
    Number.PIDNS_FD: "--pidns",
    Number.USERNS_BLOCK_FD: "--userns-block-fd",
    # whoever has a pid from there looks at /proc/PID/ns and /proc/PID/root
    Number.INFO_FD: "--info-fd",
}


class Refused(NsrunError):
    """A plan asks for what no microVM can give; the text names it."""


@dataclass(slots=True)
class _Export:
    path: str
    identity: tuple[int, int]
    read_only: bool
    rules: dict[str, Access] = field(default_factory=dict)

    def final(self) -> Export:
        """For the file server."""
        rules = tuple(Rule(path, access) for path, access in sorted(self.rules.items()))
        return Export(self.path, self.read_only, rules, self.identity)


@dataclass(frozen=True, slots=True)
class Translation:
    """A plan for a guest.

    Attributes:
        exports: what the guest is to see of the host's files.
        network: whether the plan wants the network that its caller has.
        limits: what the cgroups that it would enter hold it to.
        hold: what to read a byte from before the start (``--block-fd``); None: nothing.
        outlet: a Unix socket to whose other end the command's connections are to be handed
            (``NSR_LISTEN_FD``); None: it makes none.
        status: where records of what happens are to be written (``--json-status-fd``);
            None: nobody asks.
    """

    exports: tuple[Export, ...]
    network: bool
    limits: Limits
    hold: int | None
    outlet: int | None
    status: int | None
    _native: _native.Plan
    _operations: tuple[Op, ...]

    def plan(self, first: int = 0) -> bytes:
        """The plan's bytes, where the first export has that number."""
        made = _native.Plan(self._native)
        made.clear_ops()
        for op in self._operations:
            made.add_op(_renumbered(op, first))
        made.check()
        return made.write()


def translate(plan: Plan, *, cwd: str | None = None) -> Translation:
    """Make a guest's plan.

    Arguments:
        plan: it is not changed.
        cwd: of the caller, where the command starts if the plan names no directory.

    Raises:
        Refused: a guest can't run it.
        NsrunError: a source is not there, or a descriptor can't be read.
    """
    return _Compiler(plan, os.getcwd() if cwd is None else cwd).result()


class _Compiler:
    """One translation."""

    def __init__(self, plan: Plan, cwd: str) -> None:
        self.plan = plan
        self.native = _native.Plan()
        self.native.read(plan.to_bytes())
        self.cwd = cwd
        self.used_up: set[int] = set()
        self.tree = Tree()
        self.exports: list[_Export] = []
        self.operations: list[Op] = []
        #: what follows the operation that is looked at
        self.coming: Sequence[Op] = ()

    def result(self) -> Translation:
        _refuse(self.plan)
        hold, outlet, status = self._numbers()
        operations = self.plan.operations
        for place, op in enumerate(operations, 1):
            self.coming = operations[place:]
            self._operation(op)
        if Namespace.NET not in self.plan.unshare:
            self._name_server()
        self._start_directory()
        self._host_name()
        return Translation(
            exports=tuple(export.final() for export in self.exports),
            network=Namespace.NET not in self.plan.unshare,
            limits=of_cgroups(self.plan.native.words(Words.CGROUPS)),
            hold=hold,
            outlet=outlet,
            status=status,
            _native=self.native,
            _operations=tuple(self.operations),
        )

    # --- beside the files -----------------------------------------------------------------

    def _numbers(self) -> tuple[int | None, ...]:
        """Descriptors of this process that have a meaning here: hold, outlet, status."""
        # held open by this process, as long as it runs
        self.native.set_number(Number.SYNC_FD, -1)
        seccomp = self.plan.number(Number.SECCOMP_FD)
        if seccomp >= 0:
            self.native.add_seccomp(_read(seccomp, "--seccomp"))
            self.native.set_number(Number.SECCOMP_FD, -1)
        self.native.clear(Words.CGROUPS)
        hold = self.plan.number(Number.BLOCK_FD)
        self.native.set_number(Number.BLOCK_FD, -1)
        # the guest's agent has its own
        outlet = self.plan.number(Number.LISTEN_FD)
        self.native.set_number(Number.LISTEN_FD, -1)
        status = self.plan.number(Number.JSON_STATUS_FD)
        self.native.set_number(Number.JSON_STATUS_FD, -1)
        # the host side dies with its parent; in the guest nobody else could be meant
        self.native.set_number(Number.FLAGS, self.plan.flags & ~PlanFlag.TELL_EXEC)
        return tuple(fd if fd >= 0 else None for fd in (hold, outlet, status))

    def _start_directory(self) -> None:
        """Where the core would start on the host: in the caller's directory, or at home."""
        if self.plan.cwd is not None:
            return
        for path in (self.cwd, self.plan.environment.get("HOME", "")):
            if path.startswith("/") and self.tree.is_directory(path):
                self.native.set_string(String.CHDIR, path)
                return

    def _name_server(self) -> None:
        """A name server on the host's own loopback is reached by another address."""
        place = self.tree.resolve(RESOLV_CONF)
        if place.host is None:
            return
        try:
            text = Path(place.host).read_text(encoding="utf-8", errors="surrogateescape")
        except OSError:
            return
        changed = resolv_conf(text)
        if changed is not None:
            data = changed.encode(errors="surrogateescape")
            self._data(Op(OpType.BIND_DATA, place.path, flags=OpFlag.RDONLY, perms=0o444,
                          data=data))  # fmt: skip

    def _host_name(self) -> None:
        """Who shares the host's name sees it, and so does who has a copy of it."""
        if self.plan.hostname is not None:
            return
        name = os.uname().nodename
        unshare = self.native.number(Number.UNSHARE)
        self.native.set_number(Number.UNSHARE, unshare | CLONE[Namespace.UTS])
        self.native.set_string(String.HOSTNAME, name)
        self.operations.append(Op(OpType.HOSTNAME, source=name))

    # --- operations -----------------------------------------------------------------------

    def _operation(self, op: Op) -> None:
        if op.type is OpType.BIND:
            self._bind(op)
        elif op.type in _OVERLAYS:
            self._overlay(op)
        elif op.type is OpType.OVERLAY:
            raise Refused(
                f"--overlay {op.dest}: the upper layer would lie on a shared file system, which "
                "overlayfs does not take in a guest; --tmp-overlay can be had",
                path=op.dest or "",
            )
        elif op.type in {OpType.FILE, OpType.BIND_DATA}:
            self._data(op)
        else:
            self._other(op)

    def _other(self, op: Op) -> None:
        if op.dest is not None:
            is_name = op.type in {OpType.SYMLINK, OpType.DIR}
            place = self.tree.name(op.dest) if is_name else self.tree.resolve(op.dest)
            if op.type in _DIRECTORIES:
                self._cover(op, directory=True, access=Access.HIDDEN)
                self.tree.add(Mount(place.path))
            elif op.type is OpType.SYMLINK and place.host is None:
                assert op.source is not None
                self.tree.links[place.path] = op.source
                self.tree.directories.update(above(os.path.dirname(place.path)))
            elif op.type is OpType.DIR:
                self.tree.directories.update(above(place.path))
            elif op.type is OpType.REMOUNT_RO:
                self._seal(place.path)
        self.operations.append(op)

    def _data(self, op: Op) -> None:
        """Content from a descriptor goes into the plan."""
        dest = op.dest
        assert dest is not None
        if op.fd >= 0:
            option = "--file" if op.type is OpType.FILE else "--bind-data"
            op = replace(op, fd=-1, data=_read(op.fd, f"{option} to {dest}"))
        if op.type is OpType.BIND_DATA:
            place = self.tree.resolve(dest)
            self._cover(op, directory=False, access=Access.HIDDEN)
            self.tree.add(Mount(place.path))
        self.operations.append(op)

    def _overlay(self, op: Op) -> None:
        assert op.dest is not None
        layers = []
        # what is there twice overlayfs refuses, as long as it is the same in the guest, too
        exports: dict[tuple[int, int], str] = {}
        for layer in op.layers:
            source = _Source.find(layer, f"--overlay-src {layer}")
            if source.identity not in exports:
                exports[source.identity] = self._export(source, read_only=True)
            layers.append(exports[source.identity])
        self._cover(op, directory=True, access=Access.HIDDEN)
        self.tree.add(Mount(self.tree.resolve(op.dest).path))
        self.operations.append(replace(op, layers=tuple(layers)))

    def _bind(self, op: Op) -> None:
        assert op.dest is not None
        self._use_up(op)
        source = _Source.of(op)
        if source is None:
            return
        place = self.tree.resolve(op.dest)
        read_only = OpFlag.RDONLY in op.flags
        itself = place.host is not None and os.path.realpath(place.host) == source.path
        access = Access.HIDDEN
        if itself:
            access = Access.READ_ONLY if read_only else Access.WRITABLE
        self._cover(op, directory=source.is_directory, access=access)
        flags = op.flags & ~OpFlag.SOURCE_FD
        if source.is_kernels:
            self.tree.add(Mount(place.path))
            # an optional one may be the host's alone
            self.operations.append(replace(op, source=source.path, fd=-1, flags=flags))
            return
        flags &= ~OpFlag.TRY
        name = self._export(source, read_only=read_only)
        self.operations.append(replace(op, source=name, fd=-1, flags=flags))
        self.tree.add(Mount(place.path, source.path, not read_only, len(self.exports) - 1))
        self._own_kernel(source, op, place.path)

    def _use_up(self, op: Op) -> None:
        """A descriptor is the source of one bind: the core closes it."""
        if OpFlag.SOURCE_FD not in op.flags:
            return
        if op.fd in self.used_up:
            number = errno.EBADF
            raise NsrunError(f"Can't stat fd {op.fd}: {os.strerror(number)}", errno=number)
        self.used_up.add(op.fd)

    def _own_kernel(self, source: _Source, op: Op, dest: str) -> None:
        """Where the host's own /proc, /sys and /dev come with a bind of /, put the guest's."""
        assert op.dest is not None
        later = {other.dest for other in self.coming}
        for path in _KERNELS:
            if source.is_directory and is_below(path, source.path):
                at = os.path.join(dest, os.path.relpath(path, source.path))
                self.exports[-1].rules[os.path.relpath(path, source.path)] = Access.HIDDEN
                if at in later:
                    continue
                flags = op.flags & ~(OpFlag.TRY | OpFlag.SOURCE_FD)
                self.operations.append(Op(OpType.BIND, at, path, flags=flags))
                self.tree.add(Mount(at))

    def _export(self, source: _Source, *, read_only: bool) -> str:
        """A new export; returns its path in the guest, with its number in this plan."""
        self.exports.append(_Export(source.path, source.identity, read_only))
        return f"{EXPORTS}/{len(self.exports) - 1}"

    # --- what covers what -----------------------------------------------------------------

    def _cover(self, op: Op, *, directory: bool, access: Access) -> None:
        """Something is mounted at its dest: what is below that is the export's no more."""
        assert op.dest is not None
        place = self.tree.resolve(op.dest)
        mount = place.mount
        if mount.number is None or place.host is None or not place.relative:
            return
        if not os.path.lexists(place.host):
            if not mount.writable:
                return  # nobody can make it there, and so the guest will say
            assert mount.host is not None
            try:
                make_mount_point(
                    mount.host, place.relative, directory=directory, parents=_parents_mode(op)
                )
            except OSError as error:
                raise NsrunError(
                    f"Can't make {place.host} to mount on: {error.strerror}",
                    path=place.host,
                    errno=error.errno or 0,
                ) from None
        self.exports[mount.number].rules[place.relative] = access

    def _seal(self, path: str) -> None:
        """--remount-ro of a mount: nothing can be changed there by anybody."""
        for mount in reversed(self.tree.mounts):
            if mount.dest == path:
                inside = any(
                    is_below(other.dest, path) and other is not mount for other in self.tree.mounts
                )
                if mount.number is not None and not inside:
                    self.exports[mount.number].read_only = True
                    mount.writable = False
                return


@dataclass(frozen=True, slots=True)
class _Source:
    """What a bind shows."""

    path: str
    identity: tuple[int, int]
    is_directory: bool
    is_kernels: bool

    @classmethod
    def of(cls, op: Op) -> _Source | None:
        """The source of a bind; None: it is optional, and not there.

        Raises:
            Refused: no guest can have it.
            NsrunError: it is not there.
        """
        name = f"/proc/self/fd/{op.fd}" if OpFlag.SOURCE_FD in op.flags else op.source or ""
        if OpFlag.TRY in op.flags and _is_absent(name):
            return None
        devices = OpFlag.DEVICES in op.flags
        option = "--dev-bind" if devices else "--bind"
        found = cls.find(name, f"{option} {name} {op.dest}")
        if devices and not found.is_kernels:
            raise Refused(
                f"{option} {name}: a microVM has none of the host's devices; --bind can be had",
                path=name,
            )
        return found

    @classmethod
    def find(cls, name: str, option: str) -> _Source:
        """Resolve a source as the core does.

        Raises:
            Refused: no guest can have it.
            NsrunError: it is not there.
        """
        try:
            found = os.stat(name)
            path = os.path.realpath(name, strict=True)
        except OSError as error:
            raise NsrunError(
                f"Can't find source path {name}: {error.strerror}",
                path=name,
                errno=error.errno or 0,
            ) from None
        kernels = _is_kernels(path)
        if not kernels:
            _refuse_kind(found.st_mode, path, option)
        identity = (found.st_dev, found.st_ino)
        return cls(path, identity, stat.S_ISDIR(found.st_mode), kernels)


def _parents_mode(op: Op) -> int:
    """Of the directories that are made on the way, as in the core: closed to whom the last is."""
    mode = 0o755
    if not op.perms & 0o070:
        mode &= ~0o050
    if not op.perms & 0o007:
        mode &= ~0o005
    return mode


def _is_absent(path: str) -> bool:
    """Nothing is there.  Whatever else keeps one from looking is no such thing, as in the core."""
    try:
        os.stat(path)
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return False


def _is_kernels(path: str) -> bool:
    """Whether the guest's own is meant by a path of the host's."""
    if path in _KERNELS or path in _DEVICES or is_below(path, "/sys"):
        return True
    return is_below(path, "/proc") and not path.split("/")[2].isdigit()


def _refuse_kind(mode: int, path: str, option: str) -> None:
    kinds = {
        stat.S_IFSOCK: "a socket, which nobody in a microVM could reach",
        stat.S_IFIFO: "a FIFO, which nobody in a microVM could reach",
        stat.S_IFCHR: "a device, which a microVM has not",
        stat.S_IFBLK: "a device, which a microVM has not",
    }
    what = kinds.get(stat.S_IFMT(mode))
    if is_below(path, "/proc"):
        what = "of a process, which a microVM does not see"
    elif is_below(path, "/dev") and not is_below(path, "/dev/shm"):
        what = "of the host's devices, which a microVM has not"
    if what is not None:
        raise Refused(f"{option}: {path} is {what}", path=path)


def _refuse(plan: Plan) -> None:
    """What a whole plan asks for and no guest can give."""
    if Namespace.PID not in plan.unshare:
        raise Refused(
            "the host's processes are shared (no --unshare-pid), and a microVM does not see them"
        )
    for number, option in _FD_OPTIONS.items():
        if plan.number(number) != -1:
            raise Refused(f"{option}: a microVM has none of the caller's descriptors")
    if plan.flags & (PlanFlag.ON_HOST | PlanFlag.PARKED):
        raise Refused("this plan is for the host, or for a sandbox that waits: not for a microVM")


def _chunks(fd: int) -> Iterator[bytes]:
    while data := os.read(fd, 1 << 20):
        yield data


def _read(fd: int, option: str) -> bytes:
    """All of a descriptor's content, as the core reads it; the descriptor is used up."""
    data = bytearray()
    try:
        for chunk in _chunks(fd):
            data += chunk
            if len(data) > DATA_LIMIT:
                raise NsrunError(f"{option}: more than {DATA_LIMIT >> 20} MiB in fd {fd}")
    except OSError as error:
        raise NsrunError(f"{option}: fd {fd}: {error.strerror}", errno=error.errno or 0) from None
    return bytes(data)


def _renumbered(op: Op, first: int) -> Op:
    """With the numbers that the exports have in the guest."""
    if op.layers:
        return replace(op, layers=tuple(_moved(layer, first) for layer in op.layers))
    if op.type is OpType.BIND and op.source is not None and is_below(op.source, EXPORTS):
        return replace(op, source=_moved(op.source, first))
    return op


def _moved(path: str, first: int) -> str:
    top, _, number = path.rpartition("/")
    return f"{top}/{int(number) + first}"
