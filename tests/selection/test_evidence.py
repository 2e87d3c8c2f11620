"""What the probes say where sysctls, devices and the distribution are others."""

from __future__ import annotations

import errno
import json
import os
from typing import Any

import pytest
from hostlib import Lack
from test_worlds import no_user_namespaces
from worlds import SANDBOX, Tools, World, probe_of


def fake_sysctl(name: str, value: str) -> str:
    """/proc/sys/kernel of the test's own; the kernel here may not have this sysctl."""
    kernel = "/proc/sys/kernel"
    return (
        f"u=$(cat {kernel}/overflowuid) && mount -t tmpfs sysctl {kernel} && "
        f"echo $u > {kernel}/overflowuid && echo $u > {kernel}/overflowgid && "
        f"echo {value} > {kernel}/{name}"
    )


def namespaces(world: World, tools: Tools) -> Any:
    return probe_of(world.probe(tools), "namespaces")


def test_sysctl_of_debian(tools: Tools) -> None:
    """A filter refuses the clone in the sysctl's place; the sysctl is the better evidence."""
    script = fake_sysctl("unprivileged_userns_clone", "0")
    world = World(script=script, deny=no_user_namespaces(errno.EPERM))
    found = namespaces(world, tools)
    assert found["remedy"] == "userns-sysctl"
    assert found["errno"] == errno.EPERM
    assert "kernel.unprivileged_userns_clone is 0" in found["evidence"]
    control = World(
        script=fake_sysctl("unprivileged_userns_clone", "1"), deny=no_user_namespaces(errno.EPERM)
    )
    assert namespaces(control, tools)["remedy"] == "userns-seccomp"


def test_apparmor_of_ubuntu(tools: Tools) -> None:
    """The clone passes, a mount does not: as the kernel does it to an unconfined program.

    That mount is the fresh /proc, which this very fake of a sysctl forbids.
    """
    sysctl = "apparmor_restrict_unprivileged_userns"
    found = namespaces(World(script=fake_sysctl(sysctl, "1")), tools)
    assert (found["verdict"], found["remedy"]) == ("blocked", "userns-apparmor")
    assert f"kernel.{sysctl} is 1" in found["evidence"]
    control = namespaces(World(script=fake_sysctl(sysctl, "0")), tools)
    assert control["remedy"] == "proc-masked"


def test_apparmor_makes_nsrun_hand_over_before_it_is_too_late(
    tools: Tools, set_user_id: object
) -> None:
    script = fake_sysctl("apparmor_restrict_unprivileged_userns", "1")
    world = World(script=script, bwrap=set_user_id)  # type: ignore[arg-type]
    assert world.probe(tools)["selection"]["backend"] == "bwrap"
    words = [*SANDBOX, "sh", "-c", "cat; cat /proc/1/comm"]
    ended = world.run(tools, [tools.nsrun, *words], stdin=b"given\n")
    assert ended.stdout == b"given\nbwrap\n", ended
    assert b"AppArmor" in ended.stderr


def test_real_apparmor(lack: Lack) -> None:
    if not os.path.exists("/proc/sys/kernel/apparmor_restrict_unprivileged_userns"):
        lack("this kernel does not restrict user namespaces by AppArmor: only by a sysctl's fake")


@pytest.mark.parametrize("kind", ["mnt", "pid", "net", "ipc", "uts"])
def test_limits_of_each_kind(tools: Tools, kind: str) -> None:
    """In a user namespace of its own, whose limits are its own to set."""
    script = f"echo 0 > /proc/sys/user/max_{kind}_namespaces"
    # the limit counts for what is made in that namespace, by its root
    ended = World(limit=100).run(
        tools, ["sh", "-c", f"{script} && exec {tools.nsrun} --probe"], root=True
    )
    found = probe_of(json.loads(ended.stdout), "namespaces")
    assert found["remedy"] == f"userns-max-{kind}", ended
    assert found["evidence"] == f"the sysctl user.max_{kind}_namespaces is 0"


def test_namespace_count(tools: Tools) -> None:
    """One is allowed and taken: no sysctl is 0, and it is the limit all the same."""
    script = "echo 1 > /proc/sys/user/max_user_namespaces && unshare -U sleep 60 & "
    script += f"sleep 0.5; {tools.nsrun} --probe; kill $!"
    ended = World(limit=100).run(tools, ["sh", "-c", script], root=True)
    found = probe_of(json.loads(ended.stdout), "namespaces")
    assert found["remedy"] == "userns-limit", ended
    assert "user.max_user_namespaces is 1 here" in found["evidence"]


def test_nesting_depth(tools: Tools) -> None:
    """32 levels are the kernel's limit."""
    script = f'S=\'if unshare -U -r true 2>/dev/null; then exec unshare -U -r sh -c "$S"; fi; ' \
             f"{tools.nsrun} --probe'; export S; sh -c \"$S\""  # fmt: skip
    ended = World().run(tools, ["sh", "-c", script])
    found = probe_of(json.loads(ended.stdout), "namespaces")
    assert found["remedy"] == "userns-limit", ended
    assert "32 levels" in found["evidence"]


def test_no_proc(tools: Tools) -> None:
    world = World(script="umount -l /proc")
    report = world.probe(tools)
    found = probe_of(report, "namespaces")
    assert (found["verdict"], found["remedy"]) == ("missing", "proc-missing")
    assert report["selection"]["backend"] is None


def test_chroot(tools: Tools) -> None:
    """A chroot that is no mount point: the kernel makes no user namespace in it."""
    place = tools.directory / "chroot"
    for name in ("proc", "dev"):
        (place / name).mkdir(parents=True, exist_ok=True)
    script = f"cp {tools.nsrun} {place}/nsrun && mount -t proc proc {place}/proc"
    script += f" && mount --bind /dev {place}/dev"
    words = ["chroot", "--userspec=12345:12346", place, "/nsrun", "--probe"]
    ended = World(script=script).run(tools, words, root=True)
    found = probe_of(json.loads(ended.stdout), "namespaces")
    assert found["remedy"] == "userns-chroot", ended


def kvm(world: World, tools: Tools) -> Any:
    return probe_of(world.probe(tools), "kvm")


HIDE_KVM = "mount -t tmpfs dev /dev && mknod -m 666 /dev/null c 1 3 && mkdir /dev/pts /dev/shm"


def test_kvm_absent(tools: Tools) -> None:
    flags = "echo 'flags : fpu vmx' > /dev/shm/cpuinfo; mount --bind /dev/shm/cpuinfo /proc/cpuinfo"
    found = kvm(World(script=f"{HIDE_KVM}; {flags}"), tools)
    assert (found["verdict"], found["remedy"]) == ("missing", "kvm-module")
    plain = flags.replace("vmx", "vmx_like sse")
    found = kvm(World(script=f"{HIDE_KVM}; {plain}"), tools)
    assert (found["verdict"], found["remedy"]) == ("missing", "kvm-virtualization")


def test_kvm_without_permission(tools: Tools) -> None:
    found = kvm(World(script=f"{HIDE_KVM}; mknod -m 0640 /dev/kvm c 10 232"), tools)
    assert (found["verdict"], found["remedy"]) == ("blocked", "kvm-permission")
    assert "uid 0 and gid 0, mode 0640" in found["evidence"]


def test_kvm_is_something_else(tools: Tools) -> None:
    found = kvm(World(script=f"{HIDE_KVM}; mknod -m 0666 /dev/kvm c 1 3"), tools)
    assert (found["verdict"], found["remedy"]) == ("blocked", "kvm-device")
    assert found["errno"] == errno.ENOTTY


def test_kvm_itself(tools: Tools, lack: Lack) -> None:
    if not os.path.exists("/dev/kvm"):
        lack("no /dev/kvm: that it is recognized")
    found = kvm(World(script=f"{HIDE_KVM}; mknod -m 0666 /dev/kvm c 10 232"), tools)
    assert found["verdict"] == "ok", found


def test_small_guest(tools: Tools, lack: Lack) -> None:
    """It comes to an end with one answer or the other, and always the same."""
    world = World(script=f"{HIDE_KVM}; mknod -m 0666 /dev/kvm c 10 232")
    if kvm(world, tools)["verdict"] != "ok":
        lack("no /dev/kvm: the small guest that tells whether it runs a kernel")
    found = [probe_of(world.probe(tools), "kvm-guest") for _ in range(3)]
    assert found[0]["verdict"] in ("ok", "blocked")
    assert found[0]["remedy"] == (None if found[0]["verdict"] == "ok" else "kvm-unfit")
    assert found[0] == found[1] == found[2]


def test_no_guest_without_kvm(tools: Tools) -> None:
    found = probe_of(World(script=HIDE_KVM).probe(tools), "kvm-guest")
    assert (found["verdict"], found["evidence"]) == ("unknown", "not tried without KVM")


@pytest.mark.parametrize("root", [True, False])
def test_walls_of_a_monitor(tools: Tools, root: bool) -> None:
    """Namespaces are root's; what Landlock has is compared with its version."""
    ended = World().run(tools, [tools.nsrun, "--probe"], root=root)
    report = json.loads(ended.stdout)
    found, landlock = probe_of(report, "monitor-walls"), probe_of(report, "landlock")
    assert found["verdict"] == landlock["verdict"]
    assert found["remedy"] == landlock["remedy"]
    assert ("namespaces of its own: net ipc uts" in found["evidence"]) is root
    if landlock["verdict"] == "ok":
        abi = int(landlock["evidence"].rpartition(" ")[2])
        assert (", not TCP" in found["evidence"]) is (abi < 4)
        assert (", not signals" in found["evidence"]) is (abi < 6)


def guest_kernel(script: str, tools: Tools) -> Any:
    clean = (
        "mount -t tmpfs boot /boot; if [ -d /lib/modules ]; then mount -t tmpfs m /lib/modules; fi"
    )
    return probe_of(World(script=f"{clean}; {script}").probe(tools), "guest-kernel")


def test_guest_kernel(tools: Tools) -> None:
    assert guest_kernel("true", tools)["remedy"] == "guest-kernel-install"
    found = guest_kernel("echo > /boot/vmlinuz-6.1; chmod 0600 /boot/vmlinuz-6.1", tools)
    assert (found["verdict"], found["remedy"]) == ("blocked", "guest-kernel-permission")
    readable = "echo > /boot/vmlinuz-6.1; chmod 0644 /boot/vmlinuz-6.1"
    found = guest_kernel(readable, tools)
    assert (found["verdict"], found["remedy"]) == ("missing", "guest-kernel-unfit")
    assert "/boot/vmlinuz-6.1 (no modules)" in found["evidence"]
    some = 'for i in virtio_mmio fuse virtiofs; do echo "kernel/$i.ko:"; done'
    package = f"{readable}; m=/boot/lib/modules/6.1; mkdir -p $m /boot/boot; {some} >$m/modules.dep"
    package += "; mv /boot/vmlinuz-6.1 /boot/boot; export NSRUN_GUEST_KERNEL=/boot/boot/vmlinuz-6.1"
    last = "echo kernel/vmw_vsock_virtio_transport.ko >$m/modules.builtin"
    found = guest_kernel(f"{package}; >$m/modules.builtin", tools)
    assert "(no vmw_vsock_virtio_transport.ko)" in found["evidence"]
    found = guest_kernel(f"{package}; {last}", tools)
    assert (found["verdict"], found["evidence"]) == ("ok", "/boot/boot/vmlinuz-6.1")


def test_landlock_missing(tools: Tools) -> None:
    create_ruleset = 444
    for error, remedy in ((errno.ENOSYS, "kernel"), (errno.EOPNOTSUPP, "boot")):
        report = World(deny=(f"{create_ruleset}={error}",)).probe(tools)
        for name in ("landlock", "monitor-walls"):
            found = probe_of(report, name)
            assert (found["verdict"], found["remedy"]) == ("missing", f"landlock-{remedy}")
        assert "no Landlock" in found["evidence"]


# --- overrides --------------------------------------------------------------------------------


@pytest.mark.parametrize("word", ["bwrap", "BWRAP", "Bwrap"])
def test_launchers_word_for_namespaces(tools: Tools, word: str) -> None:
    """COWORK_VM_BACKEND=bwrap asks for namespaces; no bwrap need be installed for that."""
    env = {"COWORK_VM_BACKEND": word}
    report = World().probe(tools, env=env)
    assert report["selection"]["backend"] == "namespaces"
    assert report["selection"]["wanted_by"] == "COWORK_VM_BACKEND"
    ended = World().run(tools, [tools.nsrun, *SANDBOX, "cat", "/proc/1/comm"], env=env)
    assert ended.stdout == b"nsrun\n"


@pytest.mark.parametrize("word", ["kvm", "KVM"])
def test_what_is_asked_for_or_nothing(tools: Tools, word: str) -> None:
    for env, words in (({"COWORK_VM_BACKEND": word}, []), ({}, ["--backend", word])):
        report = World(script=HIDE_KVM).probe(tools, *words, env=env)
        assert report["selection"]["backend"] is None
        ended = World(script=HIDE_KVM).run(tools, [tools.nsrun, *words, *SANDBOX, "true"], env=env)
        assert ended.returncode == 1
        assert f"asks for {word}, which can't run here: ".encode() in ended.stderr, ended
        doctor = World(script=HIDE_KVM).doctor(tools, *words, env=env)
        assert doctor.returncode == 1
        assert b"[FAIL] " in doctor.stdout
        assert doctor.stdout.decode().splitlines()[-1].startswith("Isolation: none (")


@pytest.mark.parametrize("word", [" bwrap", "auto", "namespaces", "docker", "bwrap;kvm", "é"])
def test_junk_in_the_variable(tools: Tools, word: str) -> None:
    env = {"COWORK_VM_BACKEND": word}
    ended = World().run(tools, [tools.nsrun, *SANDBOX, "true"], env=env)
    assert ended.returncode == 1
    text = ended.stderr.decode()
    assert "COWORK_VM_BACKEND takes bwrap, kvm or host" in text
    assert "--backend takes auto, namespaces, bwrap, kvm or host" in text
    doctor = World().doctor(tools, env=env)
    assert doctor.returncode == 1
    assert doctor.stdout.decode().splitlines()[-1].startswith("Isolation: none (Unknown backend")


def test_option_wins_over_the_variable(tools: Tools) -> None:
    for variable in ("kvm", "junk"):
        env = {"COWORK_VM_BACKEND": variable}
        for word in ("auto", "Namespaces"):
            words = ["--backend", word, *SANDBOX, "cat", "/proc/1/comm"]
            ended = World().run(tools, [tools.nsrun, *words], env=env)
            assert ended.stdout == b"nsrun\n", ended
    assert World().run(tools, [tools.nsrun, "--backend", "", *SANDBOX, "true"]).returncode == 1
    assert World().run(tools, [tools.nsrun, "--backend"]).stderr == (
        b"nsrun: --backend takes an argument\n"
    )


def test_namespaces_by_name_means_ours(tools: Tools, set_user_id: object) -> None:
    world = World(limit=0, bwrap=set_user_id)  # type: ignore[arg-type]
    ended = world.run(tools, [tools.nsrun, "--backend", "namespaces", *SANDBOX, "true"])
    assert ended.returncode == 1
    assert world.probe(tools, "--backend", "namespaces")["selection"]["backend"] is None


def test_bwrap_by_name_means_the_program(tools: Tools, plain_bwrap: object) -> None:
    world = World(bwrap=plain_bwrap)  # type: ignore[arg-type]
    words = ["--backend", "bwrap", *SANDBOX, "cat", "/proc/1/comm"]
    ended = world.run(tools, [tools.nsrun, *words])
    assert (ended.stdout, ended.stderr) == (b"bwrap\n", b"")
    ended = World().run(tools, [tools.nsrun, *words])
    assert ended.returncode == 1
    assert b"no bwrap on PATH" in ended.stderr


def test_our_own_program_is_no_installed_bwrap(tools: Tools) -> None:
    place = tools.directory / "ourselves"
    place.mkdir()
    (place / "bwrap").symlink_to(tools.nsrun)
    found = probe_of(World(bwrap=place).probe(tools), "bwrap")
    assert (found["verdict"], found["remedy"]) == ("missing", "bwrap-install")


def test_the_host_is_never_taken_by_itself(tools: Tools) -> None:
    world = World(limit=0)
    assert world.probe(tools)["selection"]["backend"] is None
    assert world.probe(tools, "--allow-host")["selection"]["backend"] == "host"


HOST_PLAN = ("--ro-bind", "/usr", "/usr", "--proc", "/proc", "--dev", "/dev")


@pytest.mark.parametrize("word", ["host", "Host"])
def test_the_host_by_name(tools: Tools, word: str) -> None:
    for env, words in (({"COWORK_VM_BACKEND": word}, []), ({}, ["--backend", word])):
        report = World().probe(tools, *words, env=env)
        assert report["selection"]["backend"] == "host"
        ended = World().run(tools, [tools.nsrun, *words, *HOST_PLAN, "true"], env=env)
        assert ended.returncode == 0, ended
        assert b"host, confined by Landlock ABI" in ended.stderr
        ended = World().run(tools, [tools.nsrun, *words, *SANDBOX, "true"], env=env)
        assert ended.returncode == 1
        assert b"can't be had with --backend host" in ended.stderr


def test_the_host_without_landlock(tools: Tools) -> None:
    """Only the variable gets it, and is told."""
    world = World(deny=(f"444={errno.ENOSYS}",))
    env = {"COWORK_VM_BACKEND": "host"}
    ended = world.run(tools, [tools.nsrun, *HOST_PLAN, "true"], env=env)
    assert (ended.returncode, ended.stderr) == (0, b"nsrun: host, not confined\n")
    ended = world.run(tools, [tools.nsrun, "--backend", "host", *HOST_PLAN, "true"], env={})
    assert ended.returncode == 1
    assert b"no Landlock" in ended.stderr
