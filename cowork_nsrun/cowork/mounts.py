"""The folders that a session sees, and their preparation on the host."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass

from cowork_nsrun.cowork.log import log
from cowork_nsrun.cowork.paths import PathError, Paths, check_name
from cowork_nsrun.cowork.protocol import Mount as Asked

MOUNTS_MAX = 256


@dataclass(frozen=True, slots=True)
class Folder:
    """A folder of the host, as a session sees it."""

    host: str
    read_only: bool


Folders = Mapping[str, Folder]


@dataclass(frozen=True, slots=True)
class Collected:
    """What a spawn mounts.

    Attributes:
        folders: by name, in order.
        failed: names that were asked for and are not there, with the reason.
    """

    folders: Folders
    failed: Mapping[str, str]

    @property
    def hosts(self) -> dict[str, str]:
        """Name to the host's path."""
        return {name: folder.host for name, folder in self.folders.items()}


def collect(paths: Paths, standing: Folders, asked: Mapping[str, Asked | None] | None) -> Collected:
    """The folders of this spawn, then the session's own; those without a path don't count.

    In this order, so that the one to work in is one that the spawn names, if it names any.
    A name that is no name fails alone, as does a path that can't be mounted.
    """
    folders: dict[str, Folder] = {}
    failed: dict[str, str] = {}
    for name, mount in (asked or {}).items():
        if mount is None or not mount.path:
            continue
        try:
            check_name("mount", name)
            if len(folders) >= MOUNTS_MAX:
                raise PathError(f"more than {MOUNTS_MAX} mounts")
            folders[name] = Folder(paths.folder(mount.path), mount.mode == "ro")
        except PathError as error:
            failed[name] = error.text
    for name, folder in standing.items():
        if name not in failed and len(folders) < MOUNTS_MAX:
            folders.setdefault(name, folder)
    return Collected(folders, failed)


def prepare(paths: Paths, collected: Collected) -> Collected:
    """Make the folders that are missing; those that can't be made are failed ones."""
    folders = dict(collected.folders)
    failed = dict(collected.failed)
    for name, folder in collected.folders.items():
        try:
            _make(paths, folder.host)
        except (OSError, PathError) as error:
            failed[name] = str(error)
            del folders[name]
    for name, reason in failed.items():
        log.error("mount %r is left out: %s", name[:80], reason)
    return Collected(folders, failed)


def _make(paths: Paths, path: str) -> None:
    with suppress(OSError):
        # the app's cache handling leaves such links behind: nothing can be mounted there
        if _is_own_link(path):
            os.unlink(path)
    if not os.path.lexists(path):
        os.makedirs(path, exist_ok=True)
    real = os.path.realpath(path, strict=True)
    if not paths.in_home(real):
        refusal = paths.refusal(real)
        if refusal is not None:
            raise PathError(f"{path} leads to {refusal}")


def _is_own_link(path: str) -> bool:
    target = os.readlink(path)
    return os.path.normpath(os.path.join(os.path.dirname(path), target)) == path


def primary(folders: Mapping[str, object]) -> str | None:
    """The name of the folder to work in: the first that is neither hidden nor ``uploads``."""
    return next((name for name in folders if name[:1] != "." and name != "uploads"), None)
