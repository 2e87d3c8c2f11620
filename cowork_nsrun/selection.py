"""Which backend runs a sandbox, and why.

The core decides, on its own probes; this module asks it in the order that suits a
Python program: its own clone, the ``nsrun`` program's, an installed bwrap.  An answer
that took the ``nsrun`` program to find is remembered until the machine boots, something
that it rests on changes, or :func:`forget` says that a spawn disproved it.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import stat
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from enum import StrEnum
from glob import glob
from pathlib import Path
from typing import Any

from cowork_nsrun import _native
from cowork_nsrun.errors import NsrunError
from cowork_nsrun.probe import VARIABLE, Probe, ask_program, own
from cowork_nsrun.program import find_program
from cowork_nsrun.remedies import remedy, this_system

log = logging.getLogger(__name__)

CACHE_FORMAT = 1
CACHE_ENTRIES = 16
CACHE_SIZE = 1 << 16

_FACTS = (
    "/proc/sys/kernel/random/boot_id",
    "/proc/sys/kernel/osrelease",
    "/proc/sys/kernel/unprivileged_userns_clone",
    "/proc/sys/kernel/apparmor_restrict_unprivileged_userns",
    "/proc/sys/kernel/apparmor_restrict_unprivileged_unconfined",
    "/proc/self/attr/current",
    *(f"/proc/sys/user/max_{kind}_namespaces"
      for kind in ("user", "mnt", "pid", "net", "ipc", "uts", "cgroup")),
)  # fmt: skip
_STATUS = ("Uid:", "Groups:", "CapEff:", "CapBnd:", "NoNewPrivs:", "Seccomp:", "Seccomp_filters:")


class Backend(StrEnum):
    """What runs plans."""

    NAMESPACES = "namespaces"
    BWRAP = "bwrap"
    KVM = "kvm"
    HOST = "host"


class Runner(StrEnum):
    """Who makes the sandbox."""

    PROCESS = "this process"
    PROGRAM = "the nsrun program"
    BWRAP = "an installed bwrap"
    MACHINE = "a microVM"


@dataclass(frozen=True, slots=True)
class Selection:
    """What will run a sandbox.

    Attributes:
        backend: None if nothing will.
        reason: one sentence.
        runner: who makes the sandbox; None if nobody does.
        wanted: the word that asked for a backend; None if none did.
        wanted_by: ``--backend``, ``COWORK_VM_BACKEND`` or ``default``.
        failed: names of the probes that stood in the way, the first choice's first.
        remedy: name of what would help, for :func:`cowork_nsrun.remedies.remedy`.
        bwrap: the installed bwrap, if that is what runs it.
    """

    backend: Backend | None
    reason: str
    runner: Runner | None = None
    wanted: str | None = None
    wanted_by: str = "default"
    failed: tuple[str, ...] = ()
    remedy: str | None = None
    bwrap: str | None = None

    def require(self) -> Selection:
        """Return this very selection if something will run a sandbox.

        Raises:
            NsrunError: nothing will; with the reason and what would help.
        """
        if self.backend is not None:
            return self
        helps = "" if self.remedy is None else f" {remedy(self.remedy, this_system()).text}"
        raise NsrunError(f"{self.reason}.{helps} See 'nsrun doctor'.")


def select(
    backend: str | None = None,
    *,
    allow_host: bool = False,
    environ: Mapping[str, str] | None = None,
    cache: bool = True,
) -> Selection:
    """What will run a sandbox that this process starts; never raises for "nothing will".

    Arguments:
        backend: ``auto``, ``namespaces``, ``bwrap``, ``kvm`` or ``host``, in any case; it
            wins over ``COWORK_VM_BACKEND`` in the environment.
        allow_host: the confined host may be the last choice.
        environ: the environment that counts; by default the caller's.
        cache: an earlier answer is good enough.

    Raises:
        NsrunError: the nsrun program can't be asked.
    """
    env = os.environ if environ is None else environ
    variable = env.get(VARIABLE)
    by = "--backend" if backend is not None else VARIABLE if variable else "default"
    wanted = backend if backend is not None else variable or None
    try:
        here, found = _native.select_own(backend, variable)
    except NsrunError as error:
        return Selection(None, error.text, wanted=wanted, wanted_by=by)
    if here:
        asked = f", asked for by {by}" if wanted else ", the first choice"
        return Selection(
            Backend.NAMESPACES, f"namespaces{asked}", Runner.PROCESS, wanted=wanted, wanted_by=by
        )
    refused = None if found is None else own(found)
    key = _key([backend, variable, allow_host, env.get("PATH")], env)
    selection = _cached(key) if cache else None
    if selection is None:
        selection = _ask(backend, allow_host, env, refused)
        if cache:
            _remember(key, selection)
    return selection


def _ask(
    backend: str | None, allow_host: bool, env: Mapping[str, str], refused: Probe | None
) -> Selection:
    report = ask_program(backend, allow_host=allow_host, environ=env)
    answer = report.answer
    chosen = None if answer.backend is None else Backend(answer.backend)
    reason = answer.reason
    if chosen is Backend.NAMESPACES and refused is not None:
        reason += f"; by the nsrun program, since this one is refused them: {refused.evidence}"
    runners = {
        Backend.NAMESPACES: Runner.PROGRAM,
        Backend.BWRAP: Runner.BWRAP,
        Backend.KVM: Runner.MACHINE,
    }
    return Selection(
        backend=chosen,
        reason=reason,
        runner=None if chosen is None else runners.get(chosen),
        wanted=answer.wanted,
        wanted_by=answer.wanted_by,
        failed=answer.failed,
        remedy=answer.remedy,
        bwrap=str(report.bwrap) if chosen is Backend.BWRAP else None,
    )


# --- what is remembered ---------------------------------------------------------------------


def forget() -> None:
    """Drop what is remembered: a sandbox could not be made as it said."""
    with suppress(OSError), _directory() as directory:
        os.unlink("selection", dir_fd=directory)


def _text_of(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="surrogateescape")
    except (OSError, ValueError):
        return ""


def _identity(path: str | None) -> list[int | str | None]:
    try:
        found = os.stat(path or "")
    except OSError:
        return [path]
    return [path, found.st_dev, found.st_ino, found.st_mode, found.st_uid, found.st_mtime_ns]


def _guest_kernels(env: Mapping[str, str]) -> list[Any]:
    """What a microVM could boot, as far as it can change without a boot of this machine."""
    cache = env.get("XDG_CACHE_HOME") or os.path.join(env.get("HOME", ""), ".cache")
    images = sorted(glob("/boot/vmlinuz*"))
    return [
        env.get("NSRUN_GUEST_KERNEL"),
        [_identity(path) for path in ("/lib/modules", os.path.join(cache, "nsrun"), *images)],
    ]


def _key(request: list[Any], env: Mapping[str, str]) -> str:
    """A digest of all that an answer rests on."""
    status = [line for line in _text_of("/proc/self/status").splitlines()
              if line.startswith(_STATUS)]  # fmt: skip
    namespaces = [_identity(f"/proc/self/ns/{name}")[1:3] for name in ("user", "mnt")]
    programs = [sys.executable, find_program(), shutil.which("bwrap", path=env.get("PATH"))]
    facts = [
        CACHE_FORMAT,
        request,
        [_text_of(path) for path in _FACTS],
        status,
        namespaces,
        [_identity(path) for path in programs],
        _identity("/dev/kvm"),
        _guest_kernels(env),
    ]
    return hashlib.sha256(json.dumps(facts).encode("ascii")).hexdigest()


@contextmanager
def _directory() -> Iterator[int]:
    """``$XDG_RUNTIME_DIR/nsrun``, ours alone; made if need be.

    Raises:
        OSError: there is no such place, or others can write to it.
    """
    runtime = os.environ.get("XDG_RUNTIME_DIR", "")
    if not os.path.isabs(runtime):
        raise FileNotFoundError("XDG_RUNTIME_DIR")
    flags = os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    parent = os.open(runtime, flags)
    try:
        _must_be_ours(parent, stat.S_IWGRP | stat.S_IWOTH)
        with suppress(FileExistsError):
            os.mkdir("nsrun", 0o700, dir_fd=parent)
        directory = os.open("nsrun", flags, dir_fd=parent)
    finally:
        os.close(parent)
    try:
        _must_be_ours(directory, stat.S_IRWXG | stat.S_IRWXO)
        yield directory
    finally:
        os.close(directory)


def _must_be_ours(fd: int, forbidden: int) -> None:
    found = os.fstat(fd)
    if found.st_uid != os.geteuid() or found.st_mode & forbidden:
        raise PermissionError("not this user's alone")


def _entries(directory: int) -> dict[str, Any]:
    """What the file holds; nothing, if it is not what we would have written."""
    try:
        fd = os.open("selection", os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK,
                     dir_fd=directory)  # fmt: skip
    except OSError:
        return {}
    with open(fd, "rb") as file:
        _must_be_ours(fd, stat.S_IRWXG | stat.S_IRWXO)
        try:
            data = json.loads(file.read(CACHE_SIZE))
        except ValueError:
            return {}
    return data if isinstance(data, dict) else {}


def _cached(key: str) -> Selection | None:
    try:
        with _directory() as directory:
            entry = _entries(directory).get(key)
    except OSError as error:
        log.debug("no remembered selection: %s", error)
        return None
    if entry is None:
        return None
    try:
        return Selection(
            backend=None if entry["backend"] is None else Backend(entry["backend"]),
            reason=str(entry["reason"]),
            runner=None if entry["runner"] is None else Runner(entry["runner"]),
            wanted=entry["wanted"],
            wanted_by=str(entry["wanted_by"]),
            failed=tuple(map(str, entry["failed"])),
            remedy=entry["remedy"],
            bwrap=entry["bwrap"],
        )
    except (KeyError, TypeError, ValueError):
        return None


def _remember(key: str, selection: Selection) -> None:
    try:
        with _directory() as directory:
            entries = _entries(directory)
            entries.pop(key, None)
            newest = dict(list(entries.items())[1 - CACHE_ENTRIES :])
            newest[key] = asdict(selection)
            _replace(directory, json.dumps(newest).encode("ascii"))
    except OSError as error:
        log.debug("the selection is not remembered: %s", error)


def _replace(directory: int, data: bytes) -> None:
    name = f"selection.{os.getpid()}.{os.urandom(4).hex()}"
    fd = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC,
                 0o600, dir_fd=directory)  # fmt: skip
    try:
        with open(fd, "wb") as file:
            file.write(data)
        os.rename(name, "selection", src_dir_fd=directory, dst_dir_fd=directory)
    except OSError:
        with suppress(OSError):
            os.unlink(name, dir_fd=directory)
        raise
