"""The initial file system of the bed: busybox, modules in order, and the run's settings."""

from __future__ import annotations

import shutil
import stat
from pathlib import Path

#: what to load; what they need comes before them
MODULES = (
    *("virtio_pci", "virtio_blk", "virtio_console", "ext4"),
    *("kvm_amd", "fuse", "virtiofs", "overlay", "vhost_vsock", "vsock_loopback"),
)


class Cpio:
    """A "newc" archive (Documentation/driver-api/early-userspace/buffer-format.rst)."""

    def __init__(self) -> None:
        self.data = bytearray()
        self.count = 0

    def _entry(self, name: str, mode: int, content: bytes) -> None:
        self.count += 1
        encoded = name.encode() + b"\0"
        fields = (self.count, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(encoded), 0)
        self.data += b"070701" + b"".join(b"%08X" % field for field in fields) + encoded
        self.data += bytes(-len(self.data) % 4) + content
        self.data += bytes(-len(self.data) % 4)

    def directory(self, name: str) -> None:
        self._entry(name, stat.S_IFDIR | 0o755, b"")

    def file(self, name: str, content: bytes, mode: int = 0o644) -> None:
        self._entry(name, stat.S_IFREG | mode, content)

    def finish(self) -> bytes:
        self._entry("TRAILER!!!", 0, b"")
        return bytes(self.data)


class Kernel:
    """Debian's kernel package, unpacked by scripts/setup."""

    def __init__(self, top: Path) -> None:
        images = sorted((top / "boot").glob("vmlinuz-*"))
        if not images:
            raise FileNotFoundError(f"no kernel in {top}/boot: run scripts/setup kvm")
        self.image = images[-1]
        self.version = self.image.name.removeprefix("vmlinuz-")
        self.configuration = top / "boot" / f"config-{self.version}"
        self.modules = top / "lib" / "modules" / self.version

    def load_order(self, wanted: tuple[str, ...]) -> list[Path]:
        """The modules' files, each after all that it depends on (modules.dep)."""
        needs: dict[str, list[str]] = {}
        paths: dict[str, str] = {}
        for line in (self.modules / "modules.dep").read_text().splitlines():
            path, _, rest = line.partition(":")
            paths[_module(path)] = path
            # the nearest comes first: virtio_blk: virtio_ring virtio
            needs[path] = rest.split()[::-1]
        builtin = {_module(line) for line in (self.modules / "modules.builtin").read_text().split()}
        order: list[str] = []
        for name in wanted:
            if name in builtin:
                continue
            if name not in paths:
                raise LookupError(f"{self.version} has no module {name}")
            self._visit(paths[name], needs, order)
        return [self.modules / path for path in order]

    def _visit(self, path: str, needs: dict[str, list[str]], order: list[str]) -> None:
        if path in order:
            return
        for other in needs[path]:
            self._visit(other, needs, order)
        order.append(path)


def _module(path: str) -> str:
    return Path(path).name.split(".")[0].replace("-", "_")


def initramfs(kernel: Kernel, here: Path, settings: str, command: str) -> bytes:
    """Everything before the disks are there. A few MB, made anew for each run."""
    archive = Cpio()
    for name in ("bed", "bed/modules", "dev", "proc", "sys", "root"):
        archive.directory(name)
    busybox = shutil.which("busybox")
    if busybox is None:
        raise FileNotFoundError("no busybox: run scripts/setup kvm")
    archive.file("bed/busybox", Path(busybox).read_bytes(), 0o755)
    for number, module in enumerate(kernel.load_order(MODULES)):
        archive.file(f"bed/modules/{number:03d}-{module.name}", module.read_bytes())
    archive.file("init", (here / "init").read_bytes(), 0o755)
    archive.file("bed/main", (here / "main").read_bytes(), 0o755)
    archive.file("bed/settings", settings.encode())
    archive.file("bed/command", command.encode())
    return archive.finish()
