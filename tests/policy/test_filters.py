"""Every call with arguments at the edges: the filters say what the table says."""

from __future__ import annotations

import errno
import re
import subprocess
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from typing import NoReturn

import pytest
from cbpf import ALLOW, ERRNO, KILL_PROCESS, LOW, Program

from cowork_nsrun import _native

ROOT = Path(__file__).parents[2]
POLICY = ROOT / "csrc" / "policy"
Lack = Callable[[str], NoReturn]
PROFILES = ("default", "nesting", "strict")
X32 = 0x40000000
I386 = 0x40000003
ARCHES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
HEADERS = {
    "x86_64": (
        "/usr/include/x86_64-linux-gnu/asm/unistd_64.h",
        "/usr/include/asm/unistd_64.h",
    ),
    "aarch64": ("/usr/include/asm-generic/unistd.h",),
}
# what the kernel's headers of older systems don't have yet
NEWER = {"fchmodat2": 452, "open_tree_attr": 467}
SIGN = 1 << 63

Numbers = dict[str, int]
Filters = dict[tuple[str, str], Program]


def rules() -> list[_native.SeccompRule]:
    return [rule for *_, group in _native.seccomp_groups() for rule in group]


def holds(test: _native.SeccompTest, args: tuple[int, ...]) -> bool:
    value = args[test.arg]
    match test.kind:
        case "any":
            return bool(value & LOW & test.mask)
        case "bits":
            return value & LOW & test.mask == test.value
        case "above":
            return value > test.value
        case _:
            return value != test.value


def expected(profile: str, call: str, args: tuple[int, ...]) -> set[int]:
    """What may be answered: where several rows refuse, each is right."""
    acting = [
        rule
        for rule in rules_of(call)
        if profile in rule.profiles and all(holds(test, args) for test in rule.tests)
    ]
    if not acting or any(not rule.errno for rule in acting):
        return {ALLOW}
    return {ERRNO | rule.errno for rule in acting}


TABLE: dict[str, list[_native.SeccompRule]] = {}
for _rule in rules():
    TABLE.setdefault(_rule.call, []).append(_rule)


def rules_of(call: str) -> list[_native.SeccompRule]:
    return TABLE.get(call, [])


def edges(call: str) -> Iterator[tuple[int, ...]]:
    """Arguments around everything that a row of the call asks for."""
    values: list[set[int]] = [{0} for _ in range(6)]
    for rule in rules_of(call):
        for test in rule.tests:
            near = {test.value - 1, test.value, test.value + 1, test.mask, ~test.mask, LOW, 1, 4}
            near |= {1 << bit for bit in range(32)} | {test.mask & ~(1 << bit) for bit in range(32)}
            near |= {test.value | 1 << bit for bit in range(32)}
            values[test.arg] |= {n & (2**64 - 1) for n in near}
    # the kernel sees an int, the register has 64 bits
    values = [{n | high for n in arg for high in (0, 1 << 32, SIGN)} for arg in values]
    if sum(len(arg) > 3 for arg in values) > 1:
        # of two arguments together, fewer of each
        values = [{n for n in arg if n.bit_count() < 4 or n & LOW == LOW} for arg in values]
    yield from product(*(sorted(arg) if len(arg) > 3 else [0] for arg in values))


def numbers_of(arch: str) -> Numbers:
    path = next((path for path in HEADERS[arch] if Path(path).exists()), None)
    if path is None:
        return {}
    text = Path(path).read_text(encoding="ascii")
    found = re.findall(r"^#define __NR(?:3264)?_(\w+)\s+(\d+)", text, re.M)
    return {**NEWER, **{name: int(number) for name, number in found}}


@pytest.fixture(scope="session")
def generator(tmp_path_factory: pytest.TempPathFactory, lack: Lack) -> Path:
    if not Path("/usr/include/seccomp.h").exists():
        lack("no libseccomp-dev: the filters of other architectures are not made")
    out = tmp_path_factory.mktemp("gen") / "seccompgen"
    sources = [str(POLICY / name) for name in ("seccompgen.c", "bpfopt.c", "seccomp_rules.c")]
    include = f"-I{ROOT / 'csrc/include'}"
    subprocess.run(
        ["cc", "-D_GNU_SOURCE", include, *sources, "-lseccomp", "-o", str(out)], check=True
    )
    return out


@pytest.fixture(scope="session")
def filters(generator: Path) -> Filters:
    """By architecture and profile."""
    made: Filters = {}
    for arch in ARCHES:
        text = subprocess.run([generator, arch], check=True, capture_output=True, text=True).stdout
        for name, body in re.findall(r"f_(\w+)\[\] = \{\n(.*?)\};", text, re.S):
            rows = re.findall(r"\{ (\w+), (\d+), (\d+), (\w+) \}", body)
            code = tuple((int(c, 16), int(t), int(f), int(k, 16)) for c, t, f, k in rows)
            made[arch, name] = Program(code)
    assert {name for _, name in made} == set(PROFILES)
    return made


@pytest.fixture(params=sorted(ARCHES))
def arch(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def numbers(arch: str, lack: Lack) -> Numbers:
    found = numbers_of(arch)
    if not found:
        lack(f"no kernel headers with the call numbers of {arch}")
    assert len(found) > 300
    return found


def test_installed_filters_are_what_is_tested(generator: Path, filters: Filters) -> None:
    arch = subprocess.run(["uname", "-m"], check=True, capture_output=True, text=True).stdout
    for name in PROFILES:
        installed = Program.from_bytes(_native.seccomp_profile(name).bpf)
        assert installed == filters[arch.strip(), name]


@pytest.mark.parametrize("profile", PROFILES)
def test_filters_say_what_the_table_says(
    filters: Filters, arch: str, numbers: Numbers, profile: str
) -> None:
    program = filters[arch, profile]
    cases = refused = 0
    for call, number in numbers.items():
        for args in edges(call):
            answer, _ = program.run(ARCHES[arch], number, args)
            assert answer in expected(profile, call, args), (call, [hex(a) for a in args])
            cases += 1
            refused += answer != ALLOW
    assert cases > 5000
    assert refused > 500


def test_every_row_is_met(numbers: Numbers, arch: str) -> None:
    """The cases above make each row act, and each row's call exists."""
    for rule in rules():
        if rule.call not in numbers:
            continue
        assert any(all(holds(t, args) for t in rule.tests) for args in edges(rule.call)), rule
    missing = set(TABLE) - set(numbers)
    old = {"open", "creat", "chmod", "mknod", "iopl", "ioperm", "modify_ldt", "ustat", "sysfs"}
    assert missing <= (old | {"uselib"} if arch == "aarch64" else set())


def test_unknown_numbers_are_allowed(filters: Filters, arch: str, numbers: Numbers) -> None:
    """A deny-list says nothing about calls of later kernels."""
    for name in PROFILES:
        for number in set(range(1024)) - set(numbers.values()):
            assert filters[arch, name].run(ARCHES[arch], number)[0] == ALLOW, number


def test_other_architectures_are_killed(filters: Filters, arch: str) -> None:
    others = {I386, 0x40000028, *ARCHES.values()} - {ARCHES[arch]}
    for name, other, number in product(PROFILES, others, range(512)):
        assert filters[arch, name].run(other, number)[0] == KILL_PROCESS


def test_x32_calls_are_not_there(filters: Filters) -> None:
    for name, number in product(PROFILES, [*range(1024), 0x3FFFFFFF, 0x7FFFFFFF]):
        answer, _ = filters["x86_64", name].run(ARCHES["x86_64"], X32 | number)
        assert answer == ERRNO | errno.ENOSYS
    # a tracer's word for a call that is skipped
    assert filters["x86_64", "strict"].run(ARCHES["x86_64"], -1)[0] == ALLOW


#: said again by hand, so that a wrong row is not its own witness: call, arguments, profiles
REFUSED = [
    ("unshare", (0x10000000,), "default strict"),
    ("unshare", (0x10000000 | 1 << 40,), "default strict"),
    ("unshare", (0x80,), "default strict"),
    ("clone", (0x10000000 | 17,), "default strict"),
    ("clone", (0x7C020000 | 0xFFFFFFFF << 32,), "default strict"),
    ("clone3", (0, 88), "default strict"),
    ("setns", (3, 0), "default strict"),
    ("mount", (), "default strict"),
    ("umount2", (), "default strict"),
    ("open_tree_attr", (), "default strict"),
    ("ioctl", (0, 0x5412), "default nesting strict"),
    ("ioctl", (0, 0x5412 | 1 << 32), "default nesting strict"),
    ("ioctl", (0, 0x5412 | 0xFFFFFFFF << 32), "default nesting strict"),
    ("ioctl", (0, 0x541C | 1 << 63), "default nesting strict"),
    ("socket", (38, 5, 0), "default nesting strict"),
    ("socket", (38 | 1 << 32, 5, 0), "default nesting strict"),
    ("socket", (17, 3, 0), "default nesting strict"),
    ("socket", (40, 1, 0), "default nesting strict"),
    ("socket", (3, 1, 0), "default nesting strict"),
    ("socket", (9 | 1 << 40, 1, 0), "default nesting strict"),
    ("socket", (16, 3, 12), "strict"),
    ("io_uring_setup", (), "default nesting strict"),
    ("keyctl", (), "default nesting strict"),
    ("bpf", (), "default nesting strict"),
    ("openat", (-100, 0, 0o101, 0o4755), "default strict"),
    ("openat", (-100, 0, 0o20200002, 0o4755), "default strict"),
    ("fchmodat", (-100, 0, 0o4755 | 1 << 32), "default strict"),
    ("fchmodat2", (-100, 0, 0o4755), "default strict"),
    ("fchmodat", (-100, 0, 0o2755), "strict"),
    ("mknodat", (-100, 0, 0o20666, 0x103), "default strict"),
    ("mknodat", (-100, 0, 0o60666, 0x103), "default strict"),
    ("personality", (0x0400000,), "default nesting strict"),
    ("personality", (0x80400000,), "default nesting strict"),
    ("personality", (0x0040000,), "strict"),
    ("ptrace", (), "strict"),
    ("chroot", (), "strict"),
]  # fmt: skip
# what pid 1, the stub and the payload do once the filter is there
NEEDED = """
wait4 write exit_group exit kill rt_sigreturn rt_sigaction rt_sigprocmask read fcntl getpid getppid
execve execveat recvmsg dup3 close close_range prlimit64 prctl chdir setsid ppoll seccomp
restart_syscall setitimer pread64 writev clock_gettime
"""
ALLOWED = [
    ("clone", (0x003D0F00,)),  # a thread of pthread_create
    ("clone", (17,)),  # fork
    ("unshare", (0x400 | 0x200,)),  # files and directories of one thread
    ("ioctl", (0, 0x5413)),
    ("ioctl", (0, 0x5401)),
    *[("socket", (family, 1, 0)) for family in (1, 2, 10, 16)],
    ("socketpair", (1, 1, 0)),
    ("personality", (0xFFFFFFFF,)),
    ("personality", (0,)),
    ("openat", (-100, 0, 0, 0o4755)),  # no file is made: the mode is noise
    ("openat", (-100, 0, 0o101, 0o644)),
    ("fchmodat", (-100, 0, 0o1777)),
    ("mknodat", (-100, 0, 0o10666)),  # a FIFO
    ("mknodat", (-100, 0, 0o140666)),  # a socket
    *[(name, ()) for name in NEEDED.split()],
    ("ioctl", (0, 0x540E, 0)),  # TIOCSCTTY
]  # fmt: skip


def test_what_matters_said_by_hand(filters: Filters, arch: str, numbers: Numbers) -> None:
    for call, args, where in REFUSED:
        words = [arg & (2**64 - 1) for arg in args]
        for name in PROFILES:
            answer, _ = filters[arch, name].run(ARCHES[arch], numbers[call], words)
            assert (answer != ALLOW) == (name in where.split()), (name, call, args)
    for (call, args), name in product(ALLOWED, PROFILES):
        words = [arg & (2**64 - 1) for arg in args]
        assert filters[arch, name].run(ARCHES[arch], numbers[call], words)[0] == ALLOW, (call, name)


def test_common_calls_take_few_instructions(filters: Filters, arch: str, numbers: Numbers) -> None:
    """A tree, not a list: a few dozen steps for any call that asks for no argument."""
    for name, number in product(PROFILES, numbers.values()):
        answer, steps = filters[arch, name].run(ARCHES[arch], number)
        if answer == ALLOW:
            assert steps < 80, (name, number)


def test_control_the_machine_notices_a_weaker_filter(
    filters: Filters, numbers: Numbers, arch: str
) -> None:
    """With every EPERM made an ALLOW, the comparison fails."""
    weak = Program(
        tuple(
            (c, t, f, ALLOW if (c, k) == (0x06, ERRNO | errno.EPERM) else k)
            for c, t, f, k in filters[arch, "default"].code
        )
    )
    answer, _ = weak.run(ARCHES[arch], numbers["mount"])
    assert answer not in expected("default", "mount", (0,) * 6)
