"""The guest's initial file system: the agent, and the modules that it loads.

A "newc" cpio archive (Documentation/driver-api/early-userspace/buffer-format.rst of Linux),
the same bytes for the same content.
"""

from __future__ import annotations

import stat
from collections.abc import Sequence
from pathlib import Path

from cowork_nsrun.guest import modules
from cowork_nsrun.guest.bzimage import KernelError

#: names of the modules, one a line, in the order in which they are to be loaded
ORDER = "lib/modules/order"
_DIRECTORIES = ("dev", "etc", "proc", "root", "run", "sys", "tmp", "lib", "lib/modules")
_AGENT_LIMIT = 64 << 20
_MAX_SIZE = (1 << 32) - 1


class Cpio:
    """An archive under construction."""

    def __init__(self) -> None:
        self._data = bytearray()
        self._count = 0

    def _entry(self, name: str, mode: int, content: bytes, numbers: Sequence[int] = (0, 0)) -> None:
        if len(content) > _MAX_SIZE:
            raise ValueError(f"{name}: too large for a cpio archive")
        encoded = name.encode(errors="surrogateescape") + b"\0"
        self._count += 1
        # inode, mode, uid, gid, links, mtime, size, device, special device, length, checksum
        fields = (self._count, mode, 0, 0, 1, 0, len(content), 0, 0, *numbers, len(encoded), 0)
        self._data += b"070701" + b"".join(b"%08X" % field for field in fields) + encoded
        self._data += bytes(-len(self._data) % 4) + content
        self._data += bytes(-len(self._data) % 4)

    def directory(self, name: str, mode: int = 0o755) -> None:
        """An empty directory; those above it come first."""
        self._entry(name, stat.S_IFDIR | mode, b"")

    def file(self, name: str, content: bytes, mode: int = 0o644) -> None:
        """A regular file."""
        self._entry(name, stat.S_IFREG | mode, content)

    def device(self, name: str, major: int, minor: int, mode: int = 0o600) -> None:
        """A character device."""
        self._entry(name, stat.S_IFCHR | mode, b"", (major, minor))

    def finish(self) -> bytes:
        """The whole archive."""
        self._entry("TRAILER!!!", 0, b"")
        return bytes(self._data)


def build(agent: Path, loads: Sequence[Path]) -> bytes:
    """The archive of an agent and modules, in the order in which they are loaded.

    Raises:
        KernelError: one can't be read, or is no module.
    """
    try:
        with agent.open("rb") as file:
            program = file.read(_AGENT_LIMIT)
    except OSError as error:
        raise KernelError(
            f"{agent}: {error.strerror}", path=str(agent), errno=error.errno or 0
        ) from None
    archive = Cpio()
    for name in _DIRECTORIES:
        archive.directory(name, 0o1777 if name == "tmp" else 0o755)
    # the kernel opens it for the first process, before anybody could mount anything
    archive.device("dev/console", 5, 1)
    archive.file("init", program, 0o755)
    names = [f"{modules.name_of(str(path))}.ko" for path in loads]
    for name, path in zip(names, loads, strict=True):
        archive.file(f"lib/modules/{name}", modules.content(path))
    archive.file(ORDER, "".join(f"{name}\n" for name in names).encode())
    return archive.finish()
