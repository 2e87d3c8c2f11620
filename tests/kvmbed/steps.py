"""What the beds run: machines, and the steps of each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from .machine import ROOT, Job


@dataclass(frozen=True)
class Step:
    """Tests, as pytest's arguments.

    ``timeout_s`` is when they are interrupted; ``needs`` are files without which they are not run.
    """

    name: str
    tests: tuple[str, ...]
    timeout_s: float = 900
    environment: Mapping[str, str] = field(default_factory=dict)
    needs: tuple[str, ...] = ()

    def lacks(self) -> list[str]:
        """What of the tests, and of what they need, is not in this tree."""
        names = (*(name for name in self.tests if not name.startswith("-")), *self.needs)
        return [name for name in names if not (ROOT / name).exists()]


@dataclass(frozen=True)
class Machine:
    """A bed, and the steps that run in it one after the other; without ``job`` the host.

    Each boot of the bed costs ten seconds, and the first guest in it, of which the others are
    clones, twenty.
    """

    job: Job | None
    steps: tuple[Step, ...]


USER = 1000
ROOT_JOB = Job(())
KVM_JOB = Job((), user=USER, groups=("kvm",))
# user namespaces are refused: there is nothing else than KVM
LONE_KVM_JOB = Job((), user=USER, groups=("kvm",), sysctls=("kernel.unprivileged_userns_clone=0",))
DELEGATED_JOB = Job((), user=USER, delegated=True)

INSIDE = ("tests/kvmbed/inside",)
# remedies: as root, who breaks the bed for a user
AS_USER = (*INSIDE, "--ignore=tests/kvmbed/inside/test_remedies.py")
LIMITS = "tests/python/test_limits.py"
# what depends on the kernel; emulated, all of tests/python would take half an hour
CORE = ("tests/python/test_run.py", "tests/python/test_plan.py", "tests/tiers")
VMM = tuple(f"tests/vmm/test_{name}.py" for name in ("stock", "devices", "monitor", "jail"))
EXEC = "tests/guest/test_exec.py"
POOL = "tests/guest/test_pool_machines.py"
WARM = "tests/guest/test_warm_machines.py"
GUEST_LIMITS = "tests/guest/test_machine_limits.py"
MACHINES = "tests/differential/test_machine.py"
#: what make guest-kernel builds; taken into the bed when it is there
OWN_KERNEL = "build/guest-kernel/boot/vmlinuz"
BY_OWN_KERNEL = {"NSRUN_GUEST_KERNEL": str(ROOT / OWN_KERNEL)}

# --every: samples, since all would take minutes or hours; the parts of root and user differ
TESTS = (
    Machine(
        ROOT_JOB,
        (
            Step("microvm-root", (EXEC, "--every=4")),
            Step("pool-root", (POOL, "--every=3", "--first=1")),
            Step("warm-root", (WARM, "--every=2")),
            Step(
                "sessions-root",
                ("tests/cowork/test_machine_sessions.py", "tests/confine/test_threats.py"),
            ),
            # root: a name server has port 53
            Step("net-root", ("tests/guest/test_network.py",)),
            Step("egress-root", ("tests/guest/test_egress.py",)),
            Step("agent-root", ("tests/guest/test_agent_guest.py",)),
            Step("fs-root", ("tests/fs/test_fs_guest.py",)),
            Step("differential-machine", (MACHINES, "--every=146")),
        ),
    ),
    Machine(
        ROOT_JOB,
        (
            Step("core-root", (*CORE, "--every=8")),
            # the cases of the user are run by root too
            Step("hostile-root", ("tests/hostile", "--every=6")),
            Step(
                "differential-root",
                ("tests/differential", f"--ignore={MACHINES}", "--every=43"),
                environment={"NSRUN_HYPOTHESIS_EXAMPLES": "4"},
            ),
            Step("limits-root", (LIMITS, "--every=2")),
            Step("snapshot-root", ("tests/guest/test_template.py",)),
            Step("vsock-root", ("tests/vmm/test_vsock.py",)),
            # small guests run natively too, all of them
            Step("vmm-root", VMM[:2]),
            Step("walls-root", ("tests/vmm/test_walls.py",)),
        ),
    ),
    Machine(
        LONE_KVM_JOB,
        (
            Step("microvm-user", (EXEC,)),
            Step("pool-user", (POOL, "--every=3", "--first=2")),
            Step("egress-user", ("tests/guest/test_egress.py",)),
            Step("bed-kvm", AS_USER),
            Step("vmm-kvm", (*VMM, "--every=4")),
        ),
    ),
    Machine(
        KVM_JOB,
        (
            Step("guest-boot", ("tests/guest/test_vmm.py", "tests/guest/test_intruder.py")),
            Step("limits-guest", (GUEST_LIMITS, "--every=2")),
            Step("kills-user", ("tests/guest/test_kills.py",)),
            Step("walls-kvm", ("tests/vmm/test_walls.py",)),
        ),
    ),
    Machine(None, (Step("driver", ("tests/kvmbed/outside",)),)),
    Machine(ROOT_JOB, (Step("bed-root", INSIDE),)),
    Machine(
        DELEGATED_JOB,
        (
            Step("bed-delegated", AS_USER),
            Step("limits-delegated", (LIMITS, "--every=2", "--first=1")),
        ),
    ),
)
# by make kvm-soak, or by name
SOAKS = (
    # more bytes than vsock's counters hold
    Machine(
        ROOT_JOB,
        (Step("vsock-soak", ("tests/vmm/test_vsock.py",), 7200, {"NSRUN_VSOCK_MIB": "4200"}),),
    ),
    # 10,000 small files, 500 random operations
    Machine(
        ROOT_JOB,
        (Step("fs-soak", ("tests/fs/test_fs_guest.py",), 7200, {"NSRUN_FS_FULL": "1"}),),
    ),
    Machine(
        ROOT_JOB,
        (Step("snapshot-soak", ("tests/guest/test_template.py",), 7200, {"NSRUN_CLONES": "100"}),),
    ),
    # the whole corpus: some hours
    Machine(ROOT_JOB, (Step("differential-machine-soak", (MACHINES,), 36000),)),
    Machine(
        KVM_JOB, (Step("kills-soak", ("tests/guest/test_kills.py",), 7200, {"NSRUN_KILLS": "200"}),)
    ),
    # all of what the tests take samples of
    Machine(
        ROOT_JOB,
        (
            Step("core-soak", CORE, 1800),
            Step("limits-soak", (LIMITS,)),
            Step("hostile-soak", ("tests/hostile",), 3600),
            Step("warm-soak", (WARM,), 1800),
        ),
    ),
    Machine(KVM_JOB, (Step("limits-guest-soak", (GUEST_LIMITS,), 1800),)),
    Machine(LONE_KVM_JOB, (Step("pool-soak", (POOL,), 1800),)),
    # guests of the kernel that make guest-kernel builds; not run where it was not built
    Machine(
        ROOT_JOB,
        (
            Step(
                "own-kernel-boot",
                tuple(f"tests/guest/test_{name}.py" for name in ("vmm", "network", "template")),
                environment=BY_OWN_KERNEL,
                needs=(OWN_KERNEL,),
            ),
            Step("own-kernel-root", (EXEC,), environment=BY_OWN_KERNEL, needs=(OWN_KERNEL,)),
        ),
    ),
    Machine(
        LONE_KVM_JOB,
        (Step("own-kernel-user", (EXEC,), environment=BY_OWN_KERNEL, needs=(OWN_KERNEL,)),),
    ),
)
