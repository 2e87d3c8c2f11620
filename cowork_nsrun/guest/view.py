"""What a guest may see of the host's files: the bytes that the file server reads.

The format is described in csrc/vmm/fs/view.h.
"""

from __future__ import annotations

import enum
import hashlib
import os
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import BinaryIO

MAGIC = 0x5652534E
VERSION = 1
NAME_MAX = 255  # bytes of a path's part
PATH_MAX = 4096  # bytes of a path, with its NUL


class Access(enum.IntEnum):
    """What a rule leaves of a path."""

    HIDDEN = 0
    READ_ONLY = 1
    WRITABLE = 2


class ExportFlag(enum.IntFlag):
    """How an export is opened and shown."""

    NONE = 0
    READ_ONLY = 1
    NOFOLLOW = 2


@dataclass(frozen=True, slots=True)
class Rule:
    """An exception below an export; of several above a path the longest holds.

    Attributes:
        path: relative to the export: no empty part, ``.`` or ``..``, and no
            symbolic link in it but its last part.
        access: what is left of it.
    """

    path: str
    access: Access

    def __post_init__(self) -> None:
        parts = self.path.split("/")
        if any(part in ("", ".", "..") or len(os.fsencode(part)) > NAME_MAX for part in parts):
            raise ValueError(f"view: rule for {self.path!r}: not a plain relative path")


@dataclass(frozen=True, slots=True)
class Export:
    """A file or directory of the host that is child N of the guest's mount.

    Attributes:
        path: absolute; symbolic links in it are followed.
        read_only: nothing below it may be changed, but where a rule says so.
        rules: exceptions, at most one for each path.
        identity: device and inode that it must have, as ``os.stat`` names them.
        follow: if not, the path's last part may be a symbolic link, which is the export.
    """

    path: str
    read_only: bool = False
    rules: tuple[Rule, ...] = ()
    identity: tuple[int, int] | None = None
    follow: bool = True

    def __post_init__(self) -> None:
        if not PurePosixPath(self.path).is_absolute():
            raise ValueError(f"view: export {self.path!r}: not an absolute path")

    @property
    def flags(self) -> ExportFlag:
        """As the bytes have them."""
        flags = ExportFlag.READ_ONLY if self.read_only else ExportFlag.NONE
        return flags if self.follow else flags | ExportFlag.NOFOLLOW


def _path(path: str) -> bytes:
    data = os.fsencode(path)
    if b"\0" in data or len(data) >= PATH_MAX:
        raise ValueError(f"view: {path!r}: a NUL in it, or longer than a path can be")
    return struct.pack("<I", len(data)) + data


def _export(export: Export) -> bytes:
    device, inode = export.identity or (0, 0)
    head = struct.pack("<IIQQ", export.flags, len(export.rules), device, inode)
    rules = (struct.pack("<I", rule.access) + _path(rule.path) for rule in export.rules)
    return head + _path(export.path) + b"".join(rules)


def view_bytes(exports: Sequence[Export]) -> bytes:
    """The view with these exports, for ``nsrun-vmm --fs TAG=FD``.

    Raises:
        ValueError: a path can't be one.
    """
    body = struct.pack("<I", len(exports)) + b"".join(map(_export, exports))
    return struct.pack("<III", MAGIC, VERSION, 12 + len(body)) + body


def view_digest(exports: Sequence[Export]) -> str:
    """By which views are told apart.

    Raises:
        ValueError: as for :func:`view_bytes`.
    """
    return hashlib.sha256(view_bytes(exports)).hexdigest()


def view_file(exports: Sequence[Export]) -> BinaryIO:
    """A memory file with a view, as the monitor takes it; the caller's to close.

    Raises:
        ValueError: as for :func:`view_bytes`.
    """
    file = open(os.memfd_create("nsrun-view", os.MFD_CLOEXEC), "w+b")  # noqa: SIM115 - given away
    try:
        file.write(view_bytes(exports))
        file.flush()
        file.seek(0)
    except BaseException:
        file.close()
        raise
    return file
