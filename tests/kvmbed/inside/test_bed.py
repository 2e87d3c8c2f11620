"""The bed is what the tests in it take it for."""

from __future__ import annotations

import fcntl
import mmap
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

CGROUPS = Path("/sys/fs/cgroup")
USERNS = Path("/proc/sys/kernel/unprivileged_userns_clone")
KVM_GET_API_VERSION = 0xAE00
KVM_CREATE_VM = 0xAE01
KVM_CREATE_VCPU = 0xAE41
KVM_GET_VCPU_MMAP_SIZE = 0xAE04
UNPRIVILEGED = os.geteuid() != 0

needs_user = pytest.mark.skipif(not UNPRIVILEGED, reason="root may do everything")


def own_cgroup() -> Path:
    line = Path("/proc/self/cgroup").read_text().strip()
    assert line.startswith("0::/"), f"not cgroup v2 alone: {line}"
    return CGROUPS / line.removeprefix("0::/")


def is_delegated() -> bool:
    """As the driver was asked; a command that is elsewhere than it says fails here."""
    found = own_cgroup().parent.name == f"user@{os.geteuid()}.service"
    assert found == (os.environ["BED_DELEGATED"] == "yes"), own_cgroup()
    return found


def test_kernel_and_cgroup_controllers() -> None:
    assert os.uname().release.startswith("6.1."), os.uname()
    controllers = (CGROUPS / "cgroup.controllers").read_text().split()
    assert {"memory", "pids", "cpu", "cpuset", "io"} <= set(controllers)


def test_kvm_makes_a_machine() -> None:
    """For root, and for a user who is in group kvm; for another the door is closed."""
    group = Path("/dev/kvm").stat().st_gid
    if UNPRIVILEGED and group not in os.getgroups():
        with pytest.raises(PermissionError):
            os.open("/dev/kvm", os.O_RDWR)
        return
    kvm = os.open("/dev/kvm", os.O_RDWR | os.O_CLOEXEC)
    assert fcntl.ioctl(kvm, KVM_GET_API_VERSION) == 12
    vm = fcntl.ioctl(kvm, KVM_CREATE_VM, 0)
    vcpu = fcntl.ioctl(vm, KVM_CREATE_VCPU, 0)
    with mmap.mmap(vcpu, fcntl.ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE)) as run:
        assert len(run) >= mmap.PAGESIZE
    for fd in (vcpu, vm, kvm):
        os.close(fd)


@pytest.fixture
def child_cgroup() -> Iterator[Path]:
    path = own_cgroup().parent / f"test-{os.getpid()}"
    path.mkdir()
    yield path
    path.rmdir()


@needs_user
def test_delegated_subtree_has_controllers(request: pytest.FixtureRequest) -> None:
    if not is_delegated():
        pytest.skip("this run has no delegated subtree")
    child_cgroup = request.getfixturevalue("child_cgroup")
    controllers = (child_cgroup / "cgroup.controllers").read_text().split()
    assert {"memory", "pids", "cpu"} <= set(controllers)
    (child_cgroup / "pids.max").write_text("1")
    (child_cgroup / "memory.max").write_text("64M")
    enter = f"echo $$ > {child_cgroup}/cgroup.procs && cat /proc/self/cgroup"
    # the shell itself is the one process that is allowed
    done = subprocess.run(["sh", "-c", enter], capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "fork" in done.stderr.lower(), done
    (child_cgroup / "pids.max").write_text("max")
    done = subprocess.run(["sh", "-c", enter], capture_output=True, text=True, check=False)
    assert done.stdout.strip().endswith(child_cgroup.name), done


@needs_user
def test_nothing_above_is_delegated() -> None:
    """Also the control: the right to write comes from --delegated, not from the bed."""
    top = own_cgroup().parent if is_delegated() else own_cgroup()
    with pytest.raises(PermissionError):
        (top.parent / "mine").mkdir()
    with pytest.raises(PermissionError):
        (top / "memory.max").write_text("1G")
    if not is_delegated():
        with pytest.raises(PermissionError):
            (top / "mine").mkdir()


@needs_user
def test_user_namespaces_as_the_setting_says() -> None:
    allowed = USERNS.read_text().strip() == "1"
    done = subprocess.run(["unshare", "-U", "true"], capture_output=True, text=True, check=False)
    assert (done.returncode == 0) == allowed, done
    if not allowed:
        assert "not permitted" in done.stderr, done
