"""The user's own mounts: ``preferences.coworkBwrapMounts`` of a JSON file.

``additionalROBinds`` and ``additionalBinds`` are lists of paths, or of ``{"src", "dst"}``;
``disabledDefaultBinds`` names places of the default layout that are left out.  An entry that is
wrong is left out and said; so the file can't keep the service from working.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cowork_nsrun.cowork.log import log
from cowork_nsrun.cowork.paths import Paths, is_within
from cowork_nsrun.spec import Bind

FILE = "claude_desktop_linux_config.json"
FILE_MAX = 1 << 20
FORBIDDEN = ("/", "/proc", "/dev", "/sys")
CRITICAL = frozenset({"/", "/dev", "/proc"})


@dataclass(frozen=True, slots=True)
class UserMounts:
    """What the file asks for.

    Attributes:
        read_only: binds, in order.
        writable: binds that come after those.
        disabled: destinations of default operations to leave out.
        warnings: what was wrong in it, in words.
    """

    read_only: tuple[Bind, ...] = ()
    writable: tuple[Bind, ...] = ()
    disabled: frozenset[str] = frozenset()
    warnings: tuple[str, ...] = field(default=(), compare=False)

    def present(self) -> tuple[tuple[Bind, ...], tuple[str, ...]]:
        """The binds whose source is there, and the sources that are not."""
        binds = (*self.read_only, *self.writable)
        missing = tuple(bind.source for bind in binds if not os.path.exists(bind.source))
        return tuple(bind for bind in binds if bind.source not in missing), missing


def load(path: Path, paths: Paths) -> UserMounts:
    """Read the file; without one, or with one that is no such file, there is nothing in it."""
    try:
        with path.open("rb") as file:
            data = file.read(FILE_MAX + 1)
        if len(data) > FILE_MAX:
            raise ValueError(f"longer than {FILE_MAX} bytes")
        content = json.loads(data)
    except FileNotFoundError:
        return UserMounts()
    except (OSError, ValueError, RecursionError) as error:
        return UserMounts(warnings=(f"BwrapConfig: {path} is not read: {error}",))
    section = _member(_member(content, "preferences"), "coworkBwrapMounts")
    return _Reader(paths).read(section)


def _member(value: object, name: str) -> object:
    return value.get(name) if isinstance(value, dict) else None


class _Reader:
    def __init__(self, paths: Paths) -> None:
        self._paths = paths
        self._warnings: list[str] = []

    def read(self, section: object) -> UserMounts:
        found = UserMounts(
            self._binds(_member(section, "additionalROBinds"), read_only=True),
            self._binds(_member(section, "additionalBinds"), read_only=False),
            self._disabled(_member(section, "disabledDefaultBinds")),
            tuple(self._warnings),
        )
        log.debug(
            "custom mount config: %d RO, %d RW, %d disabled",
            len(found.read_only),
            len(found.writable),
            len(found.disabled),
        )
        return found

    def _binds(self, entries: object, read_only: bool) -> tuple[Bind, ...]:
        if not isinstance(entries, list):
            return ()
        binds = (self._bind(entry, read_only) for entry in entries)
        return tuple(bind for bind in binds if bind is not None)

    def _bind(self, entry: Any, read_only: bool) -> Bind | None:
        if isinstance(entry, str):
            source = dest = entry
            what = ("mount", "mount")
        elif isinstance(entry, dict) and all(isinstance(entry.get(k), str) for k in ("src", "dst")):
            source, dest = entry["src"], entry["dst"]
            what = ("mount src", "mount dst")
        else:
            return None
        if not self._accept(what[0], source, writable=not read_only):
            return None
        if not self._accept(what[1], dest, writable=False):
            return None
        return Bind(source, dest, read_only=read_only)

    def _accept(self, what: str, path: str, writable: bool) -> bool:
        reason = self.refusal(path, writable)
        if reason is not None:
            self._warnings.append(f'BwrapConfig: rejected {what} "{path}": {reason}')
        return reason is None

    def refusal(self, path: str, writable: bool) -> str | None:
        """Why a path can't be mounted; None: it can."""
        if not path.startswith("/") or not _is_usable(path):
            return "Path must be absolute"
        plain = _normal(path)
        if plain in FORBIDDEN:
            return f"Path is forbidden: {plain}"
        for place in FORBIDDEN[1:]:
            if is_within(plain, place):
                return f"Path is under forbidden path: {place}"
        real = os.path.realpath(plain)
        if real in FORBIDDEN or any(is_within(real, place) for place in FORBIDDEN[1:]):
            return f"Symlink resolves to forbidden path: {real}"
        if writable and not self._paths.in_home(real):
            return "Read-write mounts must be under $HOME"
        return None

    def _disabled(self, entries: object) -> frozenset[str]:
        disabled = set()
        for entry in entries if isinstance(entries, list) else ():
            if not isinstance(entry, str):
                continue
            plain = _normal(entry)
            if not entry.startswith("/"):
                reason = "Path must be absolute"
            elif plain in CRITICAL:
                reason = f"cannot disable critical mount: {plain}"
            else:
                disabled.add(plain)
                continue
            self._warnings.append(f'BwrapConfig: rejected disabled path "{entry}": {reason}')
        return frozenset(disabled)


def _normal(path: str) -> str:
    return "/" + os.path.normpath(path).lstrip("/")


def _is_usable(path: str) -> bool:
    try:
        return "\0" not in path and len(os.fsencode(path)) < 4096
    except UnicodeEncodeError:
        return False
