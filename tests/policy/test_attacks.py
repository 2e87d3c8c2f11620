"""Programs that make the refused calls, and the same where no profile is loaded."""

from __future__ import annotations

import errno
import os
import platform
import shutil
import struct
from pathlib import Path

import pytest
from hostlib import Ended, Lack, Runner

from cowork_nsrun import _native

SIGSYS_KILLED = 1000 + 31
PROFILES = ("default", "nesting", "strict")
ALL, NOT_NESTING, STRICT = set(PROFILES), {"default", "strict"}, {"strict"}
X86 = platform.machine() == "x86_64"


def each(words: str) -> list[str]:
    return words.split()


#: attempt: who refuses it, and with what
ATTACKS: dict[str, tuple[set[str], int]] = {
    **dict.fromkeys(
        each(
            "clone-user clone-net clone-user-high clone-many-high unshare-user unshare-mount "
            "unshare-time unshare-thread setns sethostname setdomainname mount umount2 pivot_root "
            "open_tree open_tree_attr move_mount mount_setattr fsopen fsconfig fsmount fspick "
            "fanotify_init fchmod-suid fchmodat-suid-high fchmodat2-suid openat-suid tmpfile-suid "
            "mknodat-suid mknodat-device mknodat-disk"
        ),
        (NOT_NESTING, errno.EPERM),
    ),
    "clone3-user": (NOT_NESTING, errno.ENOSYS),
    "openat2-suid": (NOT_NESTING, errno.ENOSYS),
    **dict.fromkeys(
        each(
            "bpf perf_event_open userfaultfd add_key request_key keyctl init_module finit_module "
            "delete_module kexec_load kexec_file_load reboot swapon swapoff acct quotactl "
            "settimeofday clock_settime syslog vhangup open_by_handle_at tiocsti tiocsti-high "
            "tiocsti-all-high tioclinux tioclinux-high tiocsetd personality-exec "
            "personality-exec-high personality-exec-bit31"
        ),
        (ALL, errno.EPERM),
    ),
    **dict.fromkeys(
        each("io_uring_setup io_uring_enter io_uring_register lookup_dcookie"), (ALL, errno.ENOSYS)
    ),
    **dict.fromkeys(
        each("af_alg af_packet af_packet-high af_vsock af_key"), (ALL, errno.EAFNOSUPPORT)
    ),
    **dict.fromkeys(
        each(
            "chroot get_mempolicy move_pages adjtimex name_to_handle_at fchmod-sgid ptrace "
            "process_vm_readv process_vm_writev pidfd_getfd kcmp personality-fixed"
        ),
        (STRICT, errno.EPERM),
    ),
    "vmsplice": (STRICT, errno.ENOSYS),
    "netlink-events": (STRICT, errno.EPROTONOSUPPORT),
    "personality-query": (set(), 0),
}
if X86:
    ATTACKS |= {
        "x32": (ALL, errno.ENOSYS),
        "i386": (ALL, SIGSYS_KILLED),
        "chmod-suid": (NOT_NESTING, errno.EPERM),
        "open-suid": (NOT_NESTING, errno.EPERM),
        "creat-suid": (NOT_NESTING, errno.EPERM),
        "mknod-device": (NOT_NESTING, errno.EPERM),
        "iopl": (ALL, errno.EPERM),
        "ioperm": (ALL, errno.EPERM),
        "modify_ldt": (ALL, errno.ENOSYS),
    }

#: what works for anybody in a sandbox without a profile, so that a user's attempts mean something
FOR_ANYBODY = each(
    "clone-user clone-user-high clone3-user unshare-user io_uring_setup keyctl add_key tiocsetd "
    "fchmod-suid openat-suid tmpfile-suid openat2-suid mknodat-suid ptrace process_vm_readv "
    "pidfd_getfd kcmp personality-exec personality-exec-bit31 netlink-events vmsplice"
)

WORDS = each(
    "--ro-bind / / --dev /dev --proc /proc --tmpfs /tmp --unshare-pid --unshare-uts "
    "--unshare-ipc --unshare-net --new-session"
)
Matrix = dict[str, dict[str, int]]


def attempts(runner: Runner, caller: Path, profile: str) -> dict[str, int]:
    """All attempts in one sandbox, by root with all capabilities."""
    words = [*WORDS, "--ro-bind", str(caller.parent), "/tmp/caller"]
    words += ["--cap-add", "ALL"] if runner.identity.is_root else []
    words += ["--seccomp-profile", profile]
    ended = runner.run([*words, "/tmp/caller/attacker"])
    assert ended.status == 0, ended
    return ended.attempts()


_seen: dict[tuple[str, Path], Matrix] = {}


@pytest.fixture
def matrix(runner: Runner, caller: Path) -> Matrix:
    """What came of each attempt, by profile; made once for each identity."""
    key = (runner.identity.name, caller)
    if key not in _seen:
        _seen[key] = {name: attempts(runner, caller, name) for name in (*PROFILES, "none")}
    return _seen[key]


def test_each_attempt_is_expected_to_do_something(matrix: Matrix) -> None:
    for results in matrix.values():
        assert set(results) == set(ATTACKS)


@pytest.mark.parametrize("profile", PROFILES)
def test_refused(matrix: Matrix, profile: str) -> None:
    for name, (where, answer) in ATTACKS.items():
        if profile in where:
            assert matrix[profile][name] == answer, name


@pytest.mark.parametrize("profile", PROFILES)
def test_nothing_else_is_refused(matrix: Matrix, profile: str) -> None:
    """What a profile does not claim is as without it."""
    for name, (where, _) in ATTACKS.items():
        if profile not in where:
            assert matrix[profile][name] == matrix["none"][name], name


@pytest.mark.parametrize("name", ATTACKS)
def test_control_without_a_profile_it_goes_on(
    runner: Runner, matrix: Matrix, lack: Lack, name: str
) -> None:
    """It works, or the kernel finds the next thing that is wrong with it."""
    if not runner.identity.is_root and name not in FOR_ANYBODY:
        return
    if matrix["none"][name] == ATTACKS[name][1] and ATTACKS[name][0]:
        lack(f"this kernel refuses {name} as the profiles do: not shown that they act")


def test_table_has_no_call_without_an_attack() -> None:
    """Each call of the table is tried, but for those that are twins of one that is."""
    twins = {
        "set_mempolicy", "mbind", "set_mempolicy_home_node", "migrate_pages", "remap_file_pages",
        "ustat", "sysfs", "uselib", "quotactl_fd", "process_madvise", "clock_adjtime",
        "socketpair",
    }  # fmt: skip
    spoken = {
        "personality",
        "socket",
        "ioctl",
        "fchmodat",
        "openat",
        "openat2",
        "mknodat",
        "fchmod",
    }
    names = {name.partition("-")[0] for name in ATTACKS} | spoken
    if not X86:
        names |= {"iopl", "ioperm", "modify_ldt", "chmod", "open", "creat", "mknod"}
    calls = {rule.call for *_, rules in _native.seccomp_groups() for rule in rules}
    assert calls - names == twins


# --- sandboxes in sandboxes ---------------------------------------------------------------------


def nested(runner: Runner, profile: str, *command: str) -> Ended:
    words = each("--ro-bind / / --dev /dev --proc /proc --unshare-pid --unshare-user")
    return runner.run([*words, "--seccomp-profile", profile, *command])


# no own proc: root's outer one is covered in part, and then the kernel allows no other
INNER = each("--unshare-all --ro-bind / / --dev /dev --tmpfs /tmp")


@pytest.mark.parametrize("profile", ["none", "nesting", "default", "strict"])
@pytest.mark.parametrize("program", ["bwrap", "nsrun", "unshare"])
def test_nested_sandboxes(
    runner: Runner, nsrun: Path, lack: Lack, program: str, profile: str
) -> None:
    found = str(nsrun) if program == "nsrun" else shutil.which(program)
    if found is None:
        lack(f"no {program}: it is not tried inside")
    options = ["-Urm"] if program == "unshare" else INNER
    ended = nested(runner, profile, found, *options, "echo", "inside")
    if profile in {"none", "nesting"}:
        assert (ended.status, ended.stdout) == (0, "inside\n"), ended
    else:
        assert ended.status != 0
        assert ended.stdout == ""


def test_profile_holds_inside_the_nested_sandbox(runner: Runner, nsrun: Path, caller: Path) -> None:
    inner = [*INNER, "--ro-bind", str(caller.parent), "/tmp/c", "/tmp/c/attacker", "keyctl"]
    ended = nested(runner, "nesting", str(nsrun), *inner, "af_vsock", "userfaultfd")
    expected = {"keyctl": errno.EPERM, "af_vsock": errno.EAFNOSUPPORT, "userfaultfd": errno.EPERM}
    assert ended.attempts() == expected, ended


# --- with other programs -----------------------------------------------------------------------


def allow_all() -> bytes:
    return struct.pack("<HBBI", 0x06, 0, 0, 0x7FFF0000)


def refuse_getpgid() -> bytes:
    """EXDEV, which nothing else answers."""
    number = 121 if X86 else 155
    code = [(0x20, 0, 0, 0), (0x15, 0, 1, number), (0x06, 0, 0, 0x00050000 | errno.EXDEV)]
    return b"".join(struct.pack("<HBBI", *row) for row in [*code, (0x06, 0, 0, 0x7FFF0000)])


def memfd(data: bytes) -> int:
    fd = os.memfd_create("program", 0)
    os.write(fd, data)
    os.lseek(fd, 0, os.SEEK_SET)
    return fd


LOOK = """
import ctypes, re
libc = ctypes.CDLL(None, use_errno=True)
got = libc.getpgid(0)
print("getpgid", ctypes.get_errno() if got == -1 else 0)
got = libc.unshare(0x10000000)
print("unshare", ctypes.get_errno() if got == -1 else 0)
for who in ("self", "1"):
    status = open(f"/proc/{who}/status").read()
    print(who, re.search(r"Seccomp_filters:\\s*(\\d+)", status)[1])
"""


@pytest.mark.parametrize("order", ["profile-first", "profile-last"])
@pytest.mark.parametrize("option", ["--seccomp", "--add-seccomp-fd"])
def test_with_a_program_of_the_caller(runner: Runner, option: str, order: str) -> None:
    fd = memfd(refuse_getpgid())
    profile, own = ["--seccomp-profile", "default"], [option, str(fd)]
    words = [*profile, *own] if order == "profile-first" else [*own, *profile]
    base = each("--ro-bind / / --proc /proc --unshare-pid")
    try:
        ended = runner.run([*base, *words, "python3", "-c", LOOK], pass_fds=[fd])
    finally:
        os.close(fd)
    expected = {"getpgid": errno.EXDEV, "unshare": errno.EPERM, "self": 2, "1": 2}
    assert ended.attempts() == expected, ended


def test_both_kinds_are_refused_as_by_bwrap(runner: Runner) -> None:
    one, two = memfd(allow_all()), memfd(allow_all())
    words = ["--seccomp-profile", "default", "--seccomp", str(one), "--add-seccomp-fd", str(two)]
    try:
        ended = runner.run([*words, "true"], pass_fds=[one, two])
    finally:
        os.close(one)
        os.close(two)
    assert ended.status == 1
    assert "--add-seccomp-fd cannot be combined with --seccomp" in ended.stderr


@pytest.mark.parametrize("extra", [[], ["--as-pid-1"], ["--die-with-parent"]], ids=str)
def test_in_every_process_of_the_sandbox(runner: Runner, extra: list[str]) -> None:
    base = each("--ro-bind / / --proc /proc --unshare-pid --seccomp-profile strict")
    script = "grep -h Seccomp: /proc/self/status /proc/1/status; exit 7"
    ended = runner.run([*base, *extra, "sh", "-c", script])
    assert (ended.status, ended.stdout) == (7, "Seccomp:\t2\n" * 2), ended


def test_a_bwrap_command_line_gets_none_unless_it_asks(runner: Runner) -> None:
    words = each("--ro-bind / / --proc /proc --unshare-pid")
    script = ["sh", "-c", "grep Seccomp: /proc/self/status"]
    assert runner.run([*words, *script]).stdout == "Seccomp:\t0\n"
    assert runner.run([*words, "--seccomp-profile", "none", *script]).stdout == "Seccomp:\t0\n"


@pytest.mark.parametrize("signal", ["TERM", "KILL", "INT"])
def test_pid_1_still_reports_under_strict(runner: Runner, signal: str) -> None:
    base = each("--ro-bind / / --proc /proc --unshare-pid --seccomp-profile strict")
    script = f"(sleep 0.2 &) ; (exit 3); kill -{signal} $$"
    number = {"TERM": 15, "KILL": 9, "INT": 2}[signal]
    assert runner.run([*base, "sh", "-c", script]).status == 128 + number


def test_unknown_profile_is_named(runner: Runner) -> None:
    ended = runner.run(["--seccomp-profile", "Default", "true"])
    names = [profile.name for profile in _native.seccomp_profiles()]
    assert ended.status == 1
    assert ended.stderr == (
        "nsrun: --seccomp-profile: there is no profile Default; there are "
        f"{', '.join(names[:-1])} and {names[-1]}\n"
    )


def test_terminals_still_work_under_strict(as_user: Runner) -> None:
    """The modes and size of a terminal, which programs ask for by ioctl."""
    script = (
        "import fcntl, os, pty, struct, termios\n"
        "m, s = pty.openpty()\n"
        "fcntl.ioctl(s, termios.TIOCSWINSZ, struct.pack('4H', 7, 9, 0, 0))\n"
        "print(os.get_terminal_size(m).lines, len(termios.tcgetattr(s)))\n"
    )
    words = each("--ro-bind / / --dev /dev --seccomp-profile strict python3 -c")
    assert as_user.run([*words, script]).stdout == "7 7\n"
