"""The kernels that a guest could boot: where they are, and why one is unfit."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from cowork_nsrun.guest import bzimage, compression, modules
from cowork_nsrun.guest.bzimage import KernelError

VARIABLE = "NSRUN_GUEST_KERNEL"

#: what a guest can't be run without, by module, with the option that builds it in
NEEDED: Mapping[str, str] = {
    "virtio_mmio": "VIRTIO_MMIO",
    "vmw_vsock_virtio_transport": "VIRTIO_VSOCKETS",
    "fuse": "FUSE_FS",
    "virtiofs": "VIRTIO_FS",
}
#: what is loaded where the kernel has it
WELCOME: Mapping[str, str] = {
    "virtio_balloon": "VIRTIO_BALLOON",
    "virtio_rng": "HW_RANDOM_VIRTIO",
    "virtio_blk": "VIRTIO_BLK",
    "overlay": "OVERLAY_FS",
    "unix": "UNIX",
}
#: what drives a network card, with its option; only loaded where a guest has one
NETWORK = ("virtio_net", "VIRTIO_NET")
#: no module: options without which no guest starts, and what they are for
BUILT_IN: Mapping[str, str] = {
    "ACPI": "its devices are described by ACPI",
    "BLK_DEV_INITRD": "it starts from an initial file system",
    "DEVTMPFS": "the agent mounts one on /dev",
    "TMPFS": "sandboxes are built on one",
}
_HEADER_READ = 1 << 17
_CONFIG_LIMIT = 8 << 20


@dataclass(frozen=True, slots=True)
class Kernel:
    """One kernel that was found.

    Attributes:
        path: its image.
        origin: why it was looked at, in words.
        release: as ``uname -r`` prints it; empty if that is not known.
        modules: files of the modules that a guest loads, in order.
        network: further ones, for a guest with a network card; None: it can't drive one.
        unfit: why it can't be booted here; empty if it can.
        remedy: what helps, words or a command; empty: nothing to say.
    """

    path: Path
    origin: str
    release: str = ""
    modules: tuple[Path, ...] = ()
    network: tuple[Path, ...] | None = None
    unfit: str = ""
    remedy: str = ""

    @property
    def fit(self) -> bool:
        """Whether a guest can boot it."""
        return not self.unfit


@dataclass(frozen=True, slots=True)
class Roots:
    """Where kernels are looked for; other directories in tests."""

    root: Path = field(default_factory=lambda: Path("/"))
    environ: Mapping[str, str] = field(default_factory=lambda: os.environ)

    @property
    def own(self) -> Path:
        """The user's copies, and what ``make guest-kernel`` made."""
        base = self.environ.get("XDG_CACHE_HOME", "")
        if not os.path.isabs(base):
            base = os.path.join(self.environ.get("HOME") or os.path.expanduser("~"), ".cache")
        return Path(base) / "nsrun"

    def below(self, path: str) -> Path:
        """A path of the system's."""
        return self.root / path.lstrip("/")

    def places(self) -> Iterator[tuple[Path, str]]:
        """Each image, with its origin; the most wanted first, some more than once."""
        for path in _newest(self.own.glob("vmlinu[xz]-*")):
            yield path, "the user's own"
        for path in _newest(self.below("/boot").glob("vmlinuz*")):
            yield path, "installed"
        for top in ("/lib/modules", "/usr/lib/modules"):
            for path in _newest(self.below(top).glob("*/vmlinuz")):
                yield path, "installed"
        for system in ("booted-system", "current-system"):
            path = self.below("/run") / system / "kernel"
            if os.path.lexists(path):
                yield path, f"NixOS, {system}"


def _newest(paths: Iterator[Path]) -> list[Path]:
    """By version, the newest first; 6.10 is newer than 6.9."""

    def version(path: Path) -> list[tuple[bool, int, str]]:
        parts = re.findall(r"\d+|\D+", str(path))
        return [(part.isdigit(), int(part) if part.isdigit() else 0, part) for part in parts]

    try:
        return sorted(paths, key=version, reverse=True)
    except OSError:
        return []


def find_kernels(path: str | os.PathLike[str] | None = None, *, roots: Roots | None = None,
                 running: str | None = None) -> list[Kernel]:  # fmt: skip
    """Every kernel that there is, in the order in which they would be tried.

    That is: one's own, then the kernel that runs now, then the others by version.

    Arguments:
        path: look at this one alone; by default at ``$NSRUN_GUEST_KERNEL`` if it is set.
        roots: where to look.
        running: the release that counts as the running one.
    """
    roots = roots or Roots()
    named = roots.environ.get(VARIABLE) if path is None else os.fspath(path)
    if named:
        return [examine(Path(named), "asked for" if path is not None else VARIABLE, roots)]
    seen: set[str] = set()
    found: list[Kernel] = []
    for place, origin in roots.places():
        real = os.path.realpath(place)
        if real not in seen:
            seen.add(real)
            found.append(examine(place, origin, roots))
    release = os.uname().release if running is None else running
    # sorted() keeps the order of what is equal
    return sorted(found, key=lambda each: (each.origin != "the user's own",
                                           each.release != release))  # fmt: skip


def choose(path: str | os.PathLike[str] | None = None, *, roots: Roots | None = None) -> Kernel:
    """The first kernel that is fit.

    Raises:
        KernelError: none is; the text names each, and what helps.
    """
    found = find_kernels(path, roots=roots)
    for kernel in found:
        if kernel.fit:
            return kernel
    if not found:
        raise KernelError(
            "no kernel for a guest: nothing in /boot/vmlinuz*, /lib/modules/*/vmlinuz or "
            f"{(roots or Roots()).own}; install a kernel package, or name one by {VARIABLE}"
        )
    why = "; ".join(f"{kernel.path}: {kernel.unfit}" for kernel in found)
    remedy = next((kernel.remedy for kernel in found if kernel.remedy), "")
    raise KernelError(
        f"no fit kernel for a guest: {why}{f'. What helps: {remedy}' if remedy else ''}",
        path=str(found[0].path),
    )


# --- one kernel -------------------------------------------------------------------------------


def examine(path: Path, origin: str, roots: Roots) -> Kernel:
    """Look at one image, and at its modules; what is wrong is in the answer."""
    by_name = re.sub(r"^vmlinu[xz]-?", "", path.name)
    try:
        with path.open("rb") as file:
            start = file.read(_HEADER_READ)
            size = os.fstat(file.fileno()).st_size
    except OSError as error:
        remedy = _copy(path) if isinstance(error, PermissionError) else ""
        return Kernel(path, origin, by_name, unfit=_why(error), remedy=remedy)
    try:
        release = bzimage.look(start, size) or by_name
        loads, network = _modules(path, release, roots)
    except KernelError as error:
        return Kernel(path, origin, by_name, unfit=error.text)
    except _Lacking as lacking:
        return Kernel(path, origin, release, unfit=lacking.reason, remedy=lacking.remedy)
    return Kernel(path, origin, release, loads, network)


def _why(error: OSError) -> str:
    if isinstance(error, PermissionError):
        return "not readable for this user"
    return error.strerror or str(error)


def _copy(path: Path) -> str:
    own = "${XDG_CACHE_HOME:-$HOME/.cache}/nsrun"
    return f'install -d {own} && sudo install -o "$USER" -m 0400 {path} {own}/'


#: modules of every guest, and those for a network card
_Loads = tuple[tuple[Path, ...], tuple[Path, ...] | None]


class _Lacking(Exception):
    def __init__(self, reason: str, remedy: str = "") -> None:
        super().__init__(reason)
        self.reason = reason
        self.remedy = remedy


def _module_places(path: Path, release: str, roots: Roots) -> Iterator[Path]:
    """Where the modules of an image can be: beside it, in its package, in the system."""
    yield path.parent
    if path.parent.name == "boot":
        yield path.parent.parent / "lib/modules" / release
        yield path.parent.parent / "usr/lib/modules" / release
    yield path.parent / "lib/modules" / release
    # NixOS: the link to the image lies beside one to the modules
    yield path.parent / "kernel-modules/lib/modules" / release
    yield roots.below("/lib/modules") / release
    yield roots.below("/usr/lib/modules") / release


def _modules(path: Path, release: str, roots: Roots) -> _Loads:
    """What is to be loaded into this kernel.

    Raises:
        _Lacking: it is no kernel for a guest.
        KernelError: its modules can't be used.
    """
    config = _configuration(path, release, roots)
    for option, why in BUILT_IN.items():
        if config is not None and config.get(option) != "y":
            raise _Lacking(f"built without CONFIG_{option}: {why}")
    for top in _module_places(path, release, roots):
        if (top / "modules.builtin").exists():
            return _from_tree(top, release)
    if config is None:
        raise _Lacking(
            f"nothing tells what is built into it: no /lib/modules/{release}, and no "
            f"config-{release} beside it",
            "install the kernel's modules, or unpack its whole package: "
            "dpkg -x linux-image-*.deb DIR, and name DIR/boot/vmlinuz-*",
        )
    for name, option in NEEDED.items():
        if config.get(option) != "y":
            state = "a module, and there are no modules" if option in config else "not built"
            raise _Lacking(f"{name} is {state}: no /lib/modules/{release}")
    return (), () if config.get(NETWORK[1]) == "y" else None


def _from_tree(top: Path, release: str) -> _Loads:
    try:
        tree = modules.read_tree(top)
    except FileNotFoundError:
        raise _Lacking(f"{top} has no modules.dep", f"sudo depmod {release}") from None
    except OSError as error:
        raise KernelError(f"{top}: {error.strerror}", path=str(top)) from None
    for name in NEEDED:
        if not tree.has(name):
            raise _Lacking(
                f"it has no {name}, neither built in nor in {top}",
                "install the package with the rest of its modules, such as "
                "linux-modules-extra, or another kernel",
            )
    usual = [*NEEDED, *(name for name in WELCOME if tree.has(name))]
    loads = tree.load_order(usual)
    for path in loads:
        if not os.access(path, os.R_OK):
            raise _Lacking(f"{path} can't be read")
    if not tree.has(NETWORK[0]):
        return tuple(loads), None
    return tuple(loads), tuple(tree.load_order([*usual, NETWORK[0]])[len(loads) :])


def _configuration(path: Path, release: str, roots: Roots) -> dict[str, str] | None:
    """What a kernel was built with of what a guest needs, by option; None: nothing tells."""
    for place in (path.with_name(f"config-{release}"), path.with_name("config"),
                  roots.below("/boot") / f"config-{release}",
                  roots.below("/lib/modules") / release / "config"):  # fmt: skip
        text = _text(place)
        if text is not None:
            return _options(text)
    if release == os.uname().release:
        text = _text(roots.below("/proc/config.gz"))
        if text is not None:
            return _options(text)
    return None


def _text(path: Path) -> str | None:
    try:
        with path.open("rb") as file:
            data = file.read(_CONFIG_LIMIT)
        kind = compression.kind_of(data)
        if kind is not None:
            data = kind.decompress(data, _CONFIG_LIMIT)
    except (OSError, compression.CompressionError):
        return None
    return data.decode(errors="replace")


def _options(text: str) -> dict[str, str]:
    """Those that are asked for; a configuration has ten thousand."""
    found = {}
    lines = f"\n{text}"
    for name in (*BUILT_IN, *NEEDED.values(), NETWORK[1]):
        _, there, rest = lines.partition(f"\nCONFIG_{name}=")
        if there:
            found[name] = rest.partition("\n")[0].strip()
    return found
