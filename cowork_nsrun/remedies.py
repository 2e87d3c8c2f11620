"""What helps, in commands for the distribution at hand."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

OS_RELEASE = (Path("/etc/os-release"), Path("/usr/lib/os-release"))
_CONTAINER_MARKS = (Path("/.dockerenv"), Path("/run/.containerenv"))
_CHROMEOS_MARKS = (Path("/dev/.cros_milestone"), Path("/opt/google/cros-containers"))


class Family(StrEnum):
    """Distributions whose commands are the same."""

    DEBIAN = "Debian or Ubuntu"
    FEDORA = "Fedora"
    ARCH = "Arch"
    SUSE = "openSUSE"
    NIXOS = "NixOS"
    CHROMEOS = "ChromeOS (Crostini)"
    OTHER = "this distribution"


_BY_ID = {
    "debian": Family.DEBIAN,
    "ubuntu": Family.DEBIAN,
    "fedora": Family.FEDORA,
    "rhel": Family.FEDORA,
    "centos": Family.FEDORA,
    "arch": Family.ARCH,
    "archlinux": Family.ARCH,
    "suse": Family.SUSE,
    "opensuse": Family.SUSE,
    "nixos": Family.NIXOS,
}
_INSTALL = {
    Family.DEBIAN: "sudo apt-get install -y {}",
    Family.CHROMEOS: "sudo apt-get install -y {}",
    Family.FEDORA: "sudo dnf install -y {}",
    Family.ARCH: "sudo pacman -S --needed {}",
    Family.SUSE: "sudo zypper install -y {}",
    Family.NIXOS: "nix-env -iA nixos.{}",
}
_KERNEL_PACKAGE = {
    Family.DEBIAN: "linux-image-amd64",
    Family.FEDORA: "kernel-core",
    Family.ARCH: "linux",
    Family.SUSE: "kernel-default",
}


@dataclass(frozen=True, slots=True)
class System:
    """Where a remedy would be tried.

    Attributes:
        family: by ``ID``, else by the first of ``ID_LIKE`` that is known.
        name: ``PRETTY_NAME`` of os-release.
        container: the kind of container around this process; None: there seems to be none.
    """

    family: Family
    name: str
    container: str | None


@dataclass(frozen=True, slots=True)
class Remedy:
    """What helps.

    Attributes:
        text: one sentence.
        commands: to paste into a shell, in order; may be empty.
    """

    text: str
    commands: tuple[str, ...] = ()


def read_os_release(text: str) -> dict[str, str]:
    """os-release(5): shell-like assignments; what is not one is left out."""
    values = {}
    for line in text.splitlines():
        name, equals, value = line.strip().partition("=")
        if not equals or not name.isidentifier():
            continue
        try:
            values[name] = "".join(shlex.split(value))
        except ValueError:
            continue
    return values


def _family(values: Mapping[str, str]) -> Family:
    names = [values.get("ID", ""), *values.get("ID_LIKE", "").split()]
    for name in names:
        plain = name.lower()
        family = _BY_ID.get(plain) or _BY_ID.get(plain.partition("-")[0])
        if family is not None:
            return family
    return Family.OTHER


def _container() -> str | None:
    docker, podman = _CONTAINER_MARKS
    if podman.exists():
        return "podman"
    if docker.exists():
        return "docker"
    return os.environ.get("container") or None  # noqa: SIM112 - systemd's name for it


def this_system() -> System:
    """The one that this process runs on."""
    text = ""
    for path in OS_RELEASE:
        try:
            text = path.read_text(encoding="utf-8", errors="replace")
        except OSError:
            continue
        break
    values = read_os_release(text)
    family = _family(values)
    if family is Family.DEBIAN and any(mark.exists() for mark in _CHROMEOS_MARKS):
        family = Family.CHROMEOS
    return System(family, values.get("PRETTY_NAME", values.get("ID", "")), _container())


def _sysctl(system: System, name: str, value: str) -> Remedy:
    text = f"Set the sysctl {name} to {value}, now and at each boot."
    if system.family is Family.NIXOS:
        return Remedy(
            f'{text} In /etc/nixos/configuration.nix: boot.kernel.sysctl."{name}" = {value};',
            ("sudo nixos-rebuild switch",),
        )
    file = "/etc/sysctl.d/90-nsrun.conf"
    return Remedy(
        text,
        (f"echo '{name} = {value}' | sudo tee -a {file}", f"sudo sysctl -p {file}"),
    )


def _container_flags(system: System) -> Remedy:
    if system.container == "podman":
        flags = "--security-opt seccomp=unconfined --security-opt unmask=ALL"
        return Remedy("Start the container with fewer restrictions.", (f"podman run {flags} ...",))
    flags = (
        "--security-opt seccomp=unconfined --security-opt apparmor=unconfined "
        "--security-opt systempaths=unconfined"
    )
    return Remedy(
        "Start the container with fewer restrictions, or run nsrun outside of it.",
        (f"docker run {flags} ...",),
    )


def _install(system: System, package: str | None, what: str) -> Remedy:
    command = _INSTALL.get(system.family)
    if package is None or command is None:
        return Remedy(f"Install {what} with the system's package manager.")
    return Remedy(f"Install {what}.", (command.format(package),))


def _apparmor(system: System) -> Remedy:
    return Remedy(
        "Load an AppArmor profile for nsrun alone (see 'nsrun doctor --apparmor'; it needs an "
        "nsrun in a place that only root can write to), or install bwrap with the profile of "
        "the distribution.",
        (
            "nsrun doctor --apparmor | sudo tee /etc/apparmor.d/nsrun >/dev/null",
            "sudo apparmor_parser -r /etc/apparmor.d/nsrun",
        ),
    )


def _kvm_module(system: System) -> Remedy:
    if system.family is Family.CHROMEOS:
        return Remedy(
            "Crostini's virtual machine has no nested virtualization on most devices; "
            "namespaces need none."
        )
    if system.container:
        return Remedy(
            "Pass the device into the container.",
            (f"{system.container} run --device /dev/kvm ...",),
        )
    return Remedy("Load KVM's module.", ("sudo modprobe -a kvm_intel kvm_amd; ls -l /dev/kvm",))


def _kvm_permission(system: System) -> Remedy:
    if system.family is Family.NIXOS:
        return Remedy(
            'In /etc/nixos/configuration.nix: users.users.NAME.extraGroups = [ "kvm" ]; '
            "then log in again.",
            ("sudo nixos-rebuild switch",),
        )
    return Remedy(
        "Join the group that /dev/kvm belongs to, then log in again.",
        ("sudo chgrp kvm /dev/kvm && sudo chmod 0660 /dev/kvm", 'sudo usermod -aG kvm "$USER"'),
    )


def _guest_kernel(system: System) -> Remedy:
    return _install(system, _KERNEL_PACKAGE.get(system.family), "a Linux kernel with its modules")


def remedy(name: str, system: System) -> Remedy:
    """What helps against what a probe found, by :attr:`Probe.remedy`.

    Raises:
        KeyError: no remedy has that name.
    """
    fixed = {
        "userns-chroot": Remedy("Run nsrun outside of the chroot: unshare and pivot_root, as "
                                "containers do, or systemd-nspawn instead of chroot."),
        "userns-kernel": Remedy("Use a kernel with CONFIG_USER_NS=y, or a set-user-id bwrap."),
        "userns-limit": Remedy(
            "End sandboxes that are not needed, or raise the limit of each namespace around "
            "this one.",
            ("sudo sysctl user.max_user_namespaces=100000",),
        ),
        "userns-unknown": Remedy(
            "Ask the kernel's log which module refused it.",
            ("sudo dmesg | grep -iE 'apparmor|selinux|avc|userns' | tail",),
        ),
        "proc-missing": Remedy("Mount /proc.", ("sudo mount -t proc proc /proc",)),
        "bwrap-blocked": Remedy("What bwrap needs is what namespaces need: see there."),
        "kvm-virtualization": Remedy(
            "Turn virtualization on (VT-x, AMD-V, SVM) in the firmware's set-up, or nested "
            "virtualization in the hypervisor that this machine runs on."
        ),
        "kvm-device": Remedy(
            "Make the device anew.",
            ("sudo rm /dev/kvm && sudo mknod -m 0660 /dev/kvm c 10 232 && "
             "sudo chgrp kvm /dev/kvm",),
        ),
        "kvm-unfit": Remedy("Run on a machine with hardware virtualization; this KVM emulates."),
        "guest-kernel-permission": Remedy(
            "Let this user read the kernel: a copy of his own.",
            ('install -d ~/.cache/nsrun && sudo install -o "$USER" -m 0400 '
             '"/boot/vmlinuz-$(uname -r)" ~/.cache/nsrun/',),
        ),
        "guest-kernel-unfit": Remedy(
            "Install the rest of the kernel's modules, or another kernel, or name one by "
            "NSRUN_GUEST_KERNEL.",
            ("nsrun vm kernels",),
        ),
        "landlock-kernel": Remedy("Use Linux 5.19 or later with CONFIG_SECURITY_LANDLOCK=y."),
        "landlock-boot": Remedy(
            "Add landlock to the kernel's lsm= list, and boot again.",
            ("cat /sys/kernel/security/lsm",),
        ),
        "seccomp-kernel": Remedy("Use a kernel with CONFIG_SECCOMP_FILTER=y."),
        "not-built": Remedy("This version of nsrun has no such backend; use another."),
    }  # fmt: skip
    if name in fixed:
        return fixed[name]
    if name.startswith("userns-max-"):
        kind = name.removeprefix("userns-max-")
        return _sysctl(system, f"user.max_{kind}_namespaces", "100000")
    made = {
        "userns-sysctl": lambda: _sysctl(system, "kernel.unprivileged_userns_clone", "1"),
        "userns-apparmor": lambda: _apparmor(system),
        "userns-seccomp": lambda: _container_flags(system),
        "proc-masked": lambda: _container_flags(system),
        "bwrap-install": lambda: _install(system, "bubblewrap", "bwrap"),
        "kvm-module": lambda: _kvm_module(system),
        "kvm-permission": lambda: _kvm_permission(system),
        "guest-kernel-install": lambda: _guest_kernel(system),
    }
    return made[name]()
