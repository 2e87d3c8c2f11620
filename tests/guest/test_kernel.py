"""Which kernels are found in a system of the test's own, and what is said against them."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NoReturn

import pytest
from kernel_images import COMPRESSORS, bzimage, elf

from cowork_nsrun.guest import image, initramfs
from cowork_nsrun.guest.bzimage import KernelError
from cowork_nsrun.guest.kernel import (
    BUILT_IN,
    NEEDED,
    VARIABLE,
    Kernel,
    Roots,
    choose,
    find_kernels,
)
from cowork_nsrun.guest.modules import read_tree
from cowork_nsrun.program import find_program

ROOT = Path(__file__).parents[2]
DEPENDENCIES = {
    "virtio": "",
    "virtio_ring": "virtio",
    "virtio_mmio": "virtio_ring virtio",
    "vsock": "",
    "vmw_vsock_virtio_transport": "vsock virtio_ring virtio",
    "fuse": "",
    "virtiofs": "fuse virtio_ring virtio",
    "overlay": "",
    "unneeded": "virtio",
    "failover": "",
    "net_failover": "failover",
    "virtio_net": "net_failover failover virtio_ring virtio",
}
#: for a guest with a network card alone
CARD = ["failover", "net_failover", "virtio_net"]
CONFIG = "".join(f"CONFIG_{name}=y\n" for name in BUILT_IN) + "# CONFIG_SMP is not set\n"


class System:
    """A directory like a system's root."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.roots = Roots(root, {"HOME": str(root / "home")})

    def file(self, path: str, content: bytes | str = b"") -> Path:
        place = self.root / path.lstrip("/")
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(content.encode() if isinstance(content, str) else content)
        return place

    def kernel(self, release: str, path: str | None = None) -> Path:
        content = bzimage(COMPRESSORS["gzip"](elf()), release=release)
        return self.file(path or f"/boot/vmlinuz-{release}", content)

    def modules(self, release: str, leave_out: Iterable[str] = (), builtin: Iterable[str] = (),
                top: str = "/lib/modules", suffix: str = "") -> None:  # fmt: skip
        lines = []
        for name, needs in DEPENDENCIES.items():
            if name in {*leave_out, *builtin}:
                continue
            files = [f"kernel/{each}.ko{suffix}" for each in needs.split() if each not in builtin]
            lines.append(f"kernel/{name}.ko{suffix}: {' '.join(files)}\n")
            self.file(f"{top}/{release}/kernel/{name}.ko{suffix}", elf())
        self.file(f"{top}/{release}/modules.dep", "".join(lines))
        names = (f"kernel/{name.replace('_', '-')}.ko\n" for name in builtin)
        self.file(f"{top}/{release}/modules.builtin", "".join(names))

    def found(self, running: str = "") -> list[Kernel]:
        return find_kernels(roots=self.roots, running=running)

    def only(self) -> Kernel:
        (kernel,) = self.found()
        return kernel


@pytest.fixture
def system(tmp_path: Path) -> System:
    return System(tmp_path)


def test_a_kernel_with_its_modules(system: System) -> None:
    system.kernel("6.1.0-test")
    system.modules("6.1.0-test")
    kernel = system.only()
    assert (kernel.fit, kernel.release, kernel.origin) == (True, "6.1.0-test", "installed")
    names = [path.stem for path in kernel.modules]
    assert set(names) == set(DEPENDENCIES) - {"unneeded", *CARD}
    for name in names:
        assert all(names.index(other) < names.index(name) for other in DEPENDENCIES[name].split())


def test_names_that_look_like_numbers(system: System) -> None:
    names = ["6\u00b2", "6.9", "6.10", "\u0663", ""]
    for name in names:
        system.kernel("6.1.0-test", f"/boot/vmlinuz-{name}")
    found = [kernel.path.name.removeprefix("vmlinuz-") for kernel in system.found()]
    assert sorted(found) == sorted(names)
    assert found.index("6.10") < found.index("6.9")


def test_modules_of_a_network_card(system: System, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(system.root / "cache"))
    agent = system.file("/nsrun-agent", elf(b"agent"))
    system.kernel("6.1-x")
    system.modules("6.1-x")
    kernel = system.only()
    assert [path.stem for path in kernel.network or ()] == CARD
    for network in (False, True):
        with image.prepare(kernel, agent, network=network) as made:
            assert (b"virtio_net.ko" in made.initramfs.read()) == network
    system.modules("6.1-x", builtin=CARD)
    assert system.only().network == ()
    system.modules("6.1-x", leave_out=["virtio_net"])
    kernel = system.only()
    assert (kernel.fit, kernel.network) == (True, None)
    with pytest.raises(KernelError, match=r"vmlinuz-6\.1-x: it has no virtio_net"):
        image.prepare(kernel, agent, network=True)


def test_what_is_built_in_is_not_loaded(system: System) -> None:
    system.kernel("6.8-test")
    system.modules("6.8-test", builtin=["virtio", "virtio_ring", "fuse"], suffix=".zst")
    names = [path.name for path in system.only().modules]
    assert "virtio_mmio.ko.zst" in names
    assert not {"virtio.ko.zst", "virtio_ring.ko.zst", "fuse.ko.zst"} & set(names)


def test_where_they_are(system: System) -> None:
    system.kernel("6.9.1")
    system.kernel("6.10.1")
    system.kernel("5.15")
    system.kernel("6.12-arch1", "/usr/lib/modules/6.12-arch1/vmlinuz")
    system.kernel("6.6-nix", "/nix/store/x/bzImage")
    system.kernel("6.18-own", "/home/.cache/nsrun/vmlinuz-6.18-own")
    (system.root / "boot/vmlinuz").symlink_to("vmlinuz-5.15")
    (system.root / "run").mkdir()
    (system.root / "run/booted-system").symlink_to("../nix/store/x")
    (system.root / "nix/store/x/kernel").symlink_to("bzImage")
    found = system.found(running="5.15")
    assert [kernel.release for kernel in found] == [
        "6.18-own", "5.15", "6.10.1", "6.9.1", "6.12-arch1", "6.6-nix",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "place", ["/usr/lib/modules", "/home/pkg/lib/modules", "/home/pkg/usr/lib/modules"]
)
def test_modules_of_a_package_that_was_unpacked(system: System, place: str) -> None:
    system.kernel("6.1-x", "/home/pkg/boot/vmlinuz-6.1-x")
    system.modules("6.1-x", top=place)
    (kernel,) = find_kernels(system.root / "home/pkg/boot/vmlinuz-6.1-x", roots=system.roots)
    assert (kernel.fit, kernel.origin) == (True, "asked for")
    assert kernel.modules[0].is_relative_to(system.root / place.lstrip("/"))


def test_modules_of_nixos(system: System) -> None:
    system.kernel("6.6-nix", "/run/booted-system/kernel")
    system.modules("6.6-nix", top="/run/booted-system/kernel-modules/lib/modules")
    assert system.only().fit


def test_the_variable_names_one(system: System) -> None:
    system.kernel("6.1-x")
    other = system.kernel("6.1-y", "/elsewhere/bzImage")
    system.modules("6.1-y")
    roots = Roots(system.root, {**system.roots.environ, VARIABLE: str(other)})
    (kernel,) = find_kernels(roots=roots)
    assert (kernel.path, kernel.release, kernel.fit) == (other, "6.1-y", True)
    assert kernel.origin == VARIABLE


@pytest.mark.parametrize("name", NEEDED)
def test_without_a_module_it_is_unfit(system: System, name: str) -> None:
    system.kernel("6.1-x")
    system.modules("6.1-x", leave_out=[name])
    assert f"no {name}," in system.only().unfit
    assert "modules-extra" in system.only().remedy


def test_without_a_module_that_another_needs(system: System) -> None:
    system.kernel("6.1-x")
    system.modules("6.1-x", leave_out=["virtio_ring"])
    assert system.only().unfit.endswith("modules.dep has no virtio_ring")


def test_modules_in_a_circle(system: System) -> None:
    system.kernel("6.1-x")
    system.modules("6.1-x")
    circle = (f"kernel/{name}.ko: kernel/fuse.ko kernel/virtiofs.ko\n" for name in DEPENDENCIES)
    system.file("/lib/modules/6.1-x/modules.dep", "".join(circle))
    assert "needs itself" in system.only().unfit


def test_modules_in_a_chain_of_any_length(tmp_path: Path) -> None:
    """Deeper than Python's own stack; closed, it is a circle."""
    names = [f"kernel/link{number}.ko" for number in range(10 * sys.getrecursionlimit())]
    lines = [f"{name}: {needed}\n" for name, needed in itertools.pairwise(names)]
    (tmp_path / "modules.builtin").touch()
    (tmp_path / "modules.dep").write_text("".join([*lines, f"{names[-1]}:\n"]))
    order = read_tree(tmp_path).load_order(["link0"])
    assert order == [tmp_path / name for name in reversed(names)]
    (tmp_path / "modules.dep").write_text("".join([*lines, f"{names[-1]}: {names[0]}\n"]))
    with pytest.raises(KernelError, match=r"modules\.dep: link0 needs itself"):
        read_tree(tmp_path).load_order(["link0"])


def test_without_modules(system: System) -> None:
    system.kernel("6.1-x")
    assert "no /lib/modules/6.1-x" in system.only().unfit
    system.file("/boot/config-6.1-x", CONFIG)
    assert "virtio_mmio is not built" in system.only().unfit
    as_modules = "".join(f"CONFIG_{option}=m\n" for option in NEEDED.values())
    system.file("/boot/config-6.1-x", CONFIG + as_modules)
    assert "virtio_mmio is a module, and there are no modules" in system.only().unfit
    system.file("/boot/config-6.1-x", CONFIG + as_modules.replace("=m", "=y"))
    assert system.only().fit
    assert system.only().modules == ()


def test_without_modules_dep(system: System) -> None:
    system.kernel("6.1-x")
    system.modules("6.1-x")
    (system.root / "lib/modules/6.1-x/modules.dep").unlink()
    assert system.only().unfit.endswith("6.1-x has no modules.dep")
    assert system.only().remedy == "sudo depmod 6.1-x"


@pytest.mark.parametrize("option", BUILT_IN)
def test_an_option_that_no_guest_starts_without(system: System, option: str) -> None:
    system.kernel("6.1-x")
    system.modules("6.1-x")
    system.file("/boot/config-6.1-x", CONFIG.replace(f"_{option}=y", f"_{option}=m"))
    assert f"built without CONFIG_{option}" in system.only().unfit


def test_wrong_images(system: System) -> None:
    system.file("/boot/vmlinuz-1", elf(machine=183))
    system.file("/boot/vmlinuz-2", b"")
    system.file("/boot/vmlinuz-3", bzimage(b"?" * 100))
    system.file("/boot/vmlinuz-4").unlink()
    (system.root / "boot/vmlinuz-4").symlink_to("nowhere")
    said = {kernel.path.name: kernel.unfit for kernel in system.found()}
    assert "for arm64" in said["vmlinuz-1"]
    assert "neither a bzImage nor" in said["vmlinuz-2"]
    assert "compression is unknown" in said["vmlinuz-3"]
    assert "No such file" in said["vmlinuz-4"]
    with pytest.raises(KernelError, match=r"no fit kernel.*vmlinuz-4: .*vmlinuz-1: "):
        choose(roots=system.roots)


def test_nothing_is_there(system: System) -> None:
    assert system.found() == []
    with pytest.raises(KernelError, match="install a kernel package"):
        choose(roots=system.roots)


def test_one_that_only_root_may_read(open_directory: Path, lack: Callable[[str], NoReturn]) -> None:
    """As Ubuntu installs it."""
    if os.geteuid() != 0:
        lack("a file that is root's alone: it takes root to make it")
    system = System(open_directory / "roots-own-kernel")
    system.kernel("6.8.0-31-generic").chmod(0o600)
    system.modules("6.8.0-31-generic")
    os.seteuid(65534)
    try:
        kernel = system.only()
    finally:
        os.seteuid(0)
    assert kernel.unfit == "not readable for this user"
    assert "sudo install" in kernel.remedy
    assert str(kernel.path) in kernel.remedy
    own = system.file("/home/.cache/nsrun/vmlinuz-6.8.0-31-generic", kernel.path.read_bytes())
    assert choose(roots=system.roots).path == own


def test_prepare(system: System, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(system.root / "cache"))
    system.kernel("6.1-x")
    system.modules("6.1-x")
    agent = system.file("/nsrun-agent", elf(b"agent"))
    kernel = system.only()
    for _ in range(2):
        with image.prepare(kernel, agent) as made:
            assert made.vmlinux.read() == elf()
            assert made.initramfs.read() == initramfs.build(agent, kernel.modules)
    agent.write_bytes(elf(b"another agent"))
    with image.prepare(kernel, agent) as made:
        assert b"another agent" in made.initramfs.read()
    # a kernel, an archive for each agent, and the locks of both kinds
    kept = sorted(name.partition("-")[0] for name in os.listdir(system.root / "cache/nsrun/guest"))
    assert kept == ["initramfs", "initramfs", "lock", "lock", "vmlinux"]
    kernel.path.write_bytes(kernel.path.read_bytes()[:-200])
    with pytest.raises(KernelError, match=r"vmlinuz-6\.1-x: .*cut off"):
        image.prepare(kernel, agent)


def test_the_command(system: System) -> None:
    """As a program reads it, and as a person does through a pipe."""
    path = system.kernel("6.1-x", "/pkg/boot/vmlinuz-6.1-x")
    system.modules("6.1-x", top="/pkg/lib/modules")
    words = [find_program(), "vm", "kernels", str(path)]
    done = subprocess.run([*words, "--json"], capture_output=True, text=True, check=True)
    (entry,) = json.loads(done.stdout)
    assert (entry["release"], entry["fit"], entry["unfit"]) == ("6.1-x", True, None)
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert done.stdout.split("\t")[:2] == ["6.1-x", str(path)]
    (system.root / "pkg/lib/modules/6.1-x/modules.dep").unlink()
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "unfit: " in done.stdout
    assert "sudo depmod" in done.stdout
