"""A kernel's modules: which are built in, what each needs, in which order they are loaded."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from cowork_nsrun.guest import compression
from cowork_nsrun.guest.bzimage import KernelError

#: what no module is larger than, packed or not, in bytes
MODULE_LIMIT = 64 << 20
_INDEX_LIMIT = 32 << 20
_SUFFIX = re.compile(r"\.ko(\.(gz|xz|zst))?$")


def name_of(path: str) -> str:
    """``virtio_rng`` of ``kernel/drivers/char/hw_random/virtio-rng.ko.xz``."""
    return _SUFFIX.sub("", path.rpartition("/")[2]).replace("-", "_")


def _lines(path: Path) -> list[str]:
    with path.open("rb") as file:
        return file.read(_INDEX_LIMIT).decode(errors="surrogateescape").splitlines()


@dataclass(frozen=True, slots=True)
class Tree:
    """The modules below one ``/lib/modules/RELEASE``.

    Attributes:
        top: that directory.
        builtin: names of what the kernel has without a module.
        files: of each module, relative to the top.
        needs: the files of what has to be loaded before it, nearest first, as modules.dep has it.
    """

    top: Path
    builtin: frozenset[str]
    files: Mapping[str, str]
    needs: Mapping[str, str]

    def has(self, name: str) -> bool:
        """Whether the kernel has it, built in or as a module."""
        return name in self.builtin or name in self.files

    def load_order(self, wanted: Iterable[str]) -> list[Path]:
        """The files of modules, each behind all that it needs; without what is built in.

        Raises:
            KernelError: there is no such module, or one needs itself.
        """
        order: dict[str, None] = {}
        for name in wanted:
            self._add(name, order)
        return [self.top / self.files[name] for name in order]

    def _add(self, name: str, order: dict[str, None]) -> None:
        """What is not in the order yet of a module and of all that it needs.

        However long the way through the file is: it may be anybody's.
        """
        # the modules above, each with what is left of its needs
        way: dict[str, Iterator[str]] = {}
        self._enter(name, way, order)
        while way:
            last, left = next(reversed(way.items()))
            other = next(left, None)
            if other is not None:
                self._enter(other, way, order)
            else:
                del way[last]
                order[last] = None

    def _enter(self, name: str, way: dict[str, Iterator[str]], order: dict[str, None]) -> None:
        if name in order or name in self.builtin:
            return
        if name not in self.files:
            raise KernelError(f"{self.top}/modules.dep has no {name}", path=str(self.top))
        if name in way:
            raise KernelError(f"{self.top}/modules.dep: {name} needs itself", path=str(self.top))
        # the farthest first: "virtio_blk: virtio_ring virtio"
        way[name] = map(name_of, reversed(self.needs[name].split()))


def read_tree(top: Path) -> Tree:
    """Read modules.dep and modules.builtin.

    Raises:
        OSError: one can't be read.
    """
    files: dict[str, str] = {}
    needs: dict[str, str] = {}
    for line in _lines(top / "modules.dep"):
        path, colon, rest = line.partition(":")
        if not colon or ".." in path.split("/") or path.startswith("/"):
            continue
        files[name_of(path)] = path
        needs[name_of(path)] = rest
    builtin = frozenset(name_of(line) for line in _lines(top / "modules.builtin") if line)
    return Tree(top, builtin, files, needs)


def content(path: Path) -> bytes:
    """A module as the kernel takes it, decompressed.

    Raises:
        KernelError: it can't be read, or is no module.
    """
    try:
        with path.open("rb") as file:
            data = file.read(MODULE_LIMIT + 1)
    except OSError as error:
        raise KernelError(
            f"{path}: {error.strerror}", path=str(path), errno=error.errno or 0
        ) from None
    kind = compression.kind_of(data)
    try:
        module = data if kind is None else kind.decompress(data, MODULE_LIMIT)
    except compression.CompressionError as error:
        raise KernelError(f"{path}: {error}", path=str(path)) from None
    if not module.startswith(b"\x7fELF") or len(module) > MODULE_LIMIT:
        raise KernelError(f"{path}: not a module", path=str(path))
    return module
