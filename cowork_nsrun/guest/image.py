"""What a guest boots: a kernel taken out of its image, and an initial file system."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from cowork_nsrun.closing import Closing
from cowork_nsrun.guest import bzimage, cache, initramfs
from cowork_nsrun.guest.bzimage import KernelError
from cowork_nsrun.guest.kernel import Kernel


@dataclass(frozen=True, slots=True)
class Image(Closing):
    """Two open files, for a monitor to map.

    Attributes:
        vmlinux: the ELF kernel.
        initramfs: the cpio archive.
    """

    vmlinux: BinaryIO
    initramfs: BinaryIO

    def close(self) -> None:
        """Close both."""
        self.vmlinux.close()
        self.initramfs.close()


def prepare(kernel: Kernel, agent: Path, *, network: bool = False) -> Image:
    """Make both files, or take them from the cache.

    Arguments:
        kernel: a fit one.
        agent: the program that becomes the guest's first process.
        network: whether the guest is to drive a network card.

    Raises:
        KernelError: something can't be read, or is damaged.
    """
    if not kernel.fit:
        raise KernelError(f"{kernel.path}: {kernel.unfit}", path=str(kernel.path))
    if network and kernel.network is None:
        text = f"{kernel.path}: it has no virtio_net, so its guest can have no network card"
        raise KernelError(text, path=str(kernel.path))
    modules = kernel.modules + ((kernel.network or ()) if network else ())
    vmlinux = _opened("vmlinux", [kernel.path], lambda: _vmlinux(kernel.path))
    try:
        parts = [agent, *modules]
        archive = _opened("initramfs", parts, lambda: initramfs.build(agent, modules))
    except BaseException:
        vmlinux.close()
        raise
    return Image(vmlinux, archive)


def _vmlinux(path: Path) -> bytes:
    try:
        return bzimage.vmlinux(bzimage.read(path))
    except KernelError as error:
        text = error.text if error.path else f"{path}: {error.text}"
        raise KernelError(text, path=str(path), errno=error.errno) from None


def _opened(kind: str, made_of: list[Path], make: Callable[[], bytes]) -> BinaryIO:
    try:
        key = cache.key(cache.identity(path) for path in made_of)
    except OSError as error:
        name = str(error.filename)
        raise KernelError(f"{name}: {error.strerror}", path=name, errno=error.errno or 0) from None

    def write(file: BinaryIO) -> None:
        file.write(make())

    return cache.opened(kind, key, write)
