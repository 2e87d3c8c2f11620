"""The known ways out, each with the weaker sandbox in which it works."""

from __future__ import annotations

import errno
import os
import pty
import re
from dataclasses import dataclass
from pathlib import Path

import pytest
from hostlib import Lack, Runner

NO_CAPS = ("--cap-drop", "ALL")
OWN_USER = ("--unshare-user",)


@dataclass(frozen=True)
class Attempt:
    """Words for the sandbox, and which lines of the attacker must be failures."""

    words: tuple[str, ...]
    attack: tuple[str, ...]
    fails: tuple[str, ...]
    #: the same attack on these words succeeds, as root
    weaker: tuple[str, ...] = ()


ATTEMPTS = {
    "climb": Attempt((), ("climb", "{g}/secret"), ("climb",)),
    "pivot": Attempt(("--tmpfs", "/tmp"), ("pivot", "{g}/secret"), ("reach",)),
    "below-root": Attempt(
        ("--unshare-pid", "--proc", "/proc"), ("enter-own-namespace", "{g}/secret"), ("reach",)
    ),
    "proc-self-root": Attempt(
        ("--proc", "/proc", "--unshare-pid"), ("reach", "/proc/self/root/..{g}/secret"), ("reach",)
    ),
    "uncover": Attempt(
        (*NO_CAPS, "--bind", "{g}", "/h", "--tmpfs", "/h/cover"),
        ("uncover", "/h/cover"),
        ("umount",),
        ("--bind", "{g}", "/h", "--tmpfs", "/h/cover"),
    ),
    "uncover-nested": Attempt(
        ("--bind", "{g}", "/h", "--tmpfs", "/h/cover", "--unshare-pid", "--proc", "/proc"),
        ("nested", "uncover", "/h/cover"),
        ("umount",),
        ("--bind", "{g}", "/h", "--tmpfs", "/h/cover"),
    ),
    "remount": Attempt(
        (*NO_CAPS, "--ro-bind", "{g}", "/h"),
        ("make-writable", "/h"),
        ("remount",),
        ("--ro-bind", "{g}", "/h"),
    ),
    "remount-nested": Attempt(
        ("--ro-bind", "{g}", "/h", "--unshare-pid", "--proc", "/proc"),
        ("nested", "make-writable", "/h"),
        ("remount",),
        ("--ro-bind", "{g}", "/h"),
    ),
    "write": Attempt(
        ("--ro-bind", "{g}", "/h"), ("create", "/h/new"), ("create",), ("--bind", "{g}", "/h")
    ),
    "handle": Attempt(
        (*NO_CAPS, "--ro-bind", "{g}/cover", "/h", "--ro-bind", "{g}/secret", "/s"),
        ("handle", "/h", "/s"),
        ("handle",),
        ("--ro-bind", "{g}/cover", "/h", "--ro-bind", "{g}/secret", "/s"),
    ),
    "device": Attempt(
        ("--bind", "{g}", "/h"), ("device", "/h/node"), ("open",), ("--dev-bind", "{g}", "/h")
    ),
    "device-on-tmpfs": Attempt(
        ("--tmpfs", "/h"), ("device", "/h/node"), ("open",), ("--dev-bind", "{g}", "/h")
    ),
    "proc-sys": Attempt(
        (*NO_CAPS, "--unshare-pid", "--proc", "/proc", *OWN_USER),
        ("write", "/proc/sys/kernel/core_pattern"),
        ("write",),
        ("--bind", "/proc", "/proc"),
    ),
    "sysrq": Attempt(
        (*NO_CAPS, "--unshare-pid", "--proc", "/proc", *OWN_USER),
        ("write", "/proc/sysrq-trigger"),
        ("write",),
    ),
}


def fill(words: tuple[str, ...], ground: Path) -> list[str]:
    return [word.format(g=ground) for word in words]


@pytest.fixture
def secrets(ground: Path, runner: Runner) -> Path:
    (ground / "secret").write_text("of the host\n", encoding="ascii")
    (ground / "cover").mkdir()
    for path in (ground / "secret", ground / "cover"):
        os.chown(path, runner.identity.uid, runner.identity.gid)
    return ground


def attack(runner: Runner, attacker: Path, words: list[str], command: list[str]) -> dict[str, int]:
    argv = ["--ro-bind", attacker.parent, "/bin", *words, "/bin/attacker", *command]
    ended = runner.run(argv)
    assert ended.attempts(), ended
    return ended.attempts()


@pytest.mark.parametrize("name", ATTEMPTS)
def test_no_way_out(
    request: pytest.FixtureRequest, runner: Runner, secrets: Path, attacker: Path, name: str
) -> None:
    attempt = ATTEMPTS[name]
    if name == "proc-sys" and runner.identity.is_root:
        reason = "files of /proc/sys ask for uid 0 of the host, which root's payload is: as bwrap"
        request.applymarker(pytest.mark.xfail(reason=reason))
    words, command = fill(attempt.words, secrets), fill(attempt.attack, secrets)
    results = attack(runner, attacker, words, command)
    for line in attempt.fails:
        assert results.get(line) != 0, f"{name}: {line} succeeded"


@pytest.mark.parametrize("name", [name for name, attempt in ATTEMPTS.items() if attempt.weaker])
def test_control_the_weaker_sandbox_lets_it_out(
    as_root: Runner, ground: Path, attacker: Path, name: str
) -> None:
    attempt = ATTEMPTS[name]
    (ground / "secret").write_text("of the host\n", encoding="ascii")
    (ground / "cover").mkdir()
    command = [word for word in fill(attempt.attack, ground) if word != "nested"]
    results = attack(as_root, attacker, fill(attempt.weaker, ground), command)
    assert [results[line] for line in attempt.fails] == [0] * len(attempt.fails), results


def test_control_a_plain_chroot_does_not_hold(
    as_root: Runner, ground: Path, attacker: Path
) -> None:
    (ground / "secret").write_text("of the host\n", encoding="ascii")
    (ground / "jail").mkdir()
    ended = as_root.run(["in-chroot", ground / "jail", ground / "secret"], program=attacker)
    assert ended.attempts() == {"climb": 0}


@pytest.mark.parametrize("close", [True, False], ids=["close-fds", "control"])
def test_inherited_fds_are_no_way_out(
    runner: Runner, secrets: Path, attacker: Path, close: bool
) -> None:
    fds = [os.open(secrets / "cover", os.O_RDONLY), os.open("/proc/self/ns/uts", os.O_RDONLY)]
    words = ["--close-fds"] if close else []
    argv = [*words, "--ro-bind", attacker.parent, "/bin", "/bin/attacker", "leftover-fds", "secret"]
    try:
        ended = runner.run(argv, pass_fds=fds)
    finally:
        for fd in fds:
            os.close(fd)
    expected = {} if close else {"climb": 0}
    if not close and runner.identity.is_root:
        expected[f"setns-{fds[1]}"] = 0
    assert (ended.status, ended.attempts()) == (0, expected), ended


def test_payload_gets_no_fd_of_nsruns_own(runner: Runner, attacker: Path) -> None:
    words = ["--bind", "/", "/", "--tmpfs", "/tmp", "--ro-bind", str(attacker.parent), "/tmp/b"]
    words += ["--unshare-pid", "--proc", "/proc", "--dev", "/dev"]
    ended = runner.run([*words, "/tmp/b/attacker", "leftover-fds", "etc/passwd"])
    assert (ended.status, ended.attempts()) == (0, {}), ended


def need_tiocsti(lack: Lack) -> None:
    sysctl = Path("/proc/sys/dev/tty/legacy_tiocsti")
    if sysctl.exists() and sysctl.read_text(encoding="ascii").strip() == "0":
        lack("kernel refuses TIOCSTI to everybody (dev.tty.legacy_tiocsti=0)")


def on_terminal(runner: Runner, argv: list[str]) -> str:
    """As the leader of a session with this terminal, like a shell's command."""
    pid, master = pty.fork()
    if pid == 0:
        try:
            if runner.changes_user:
                os.setgroups([])
                os.setgid(runner.identity.gid)
                os.setuid(runner.identity.uid)
            os.execv(argv[0], argv)
        finally:
            # never on as a second test run
            os._exit(127)
    text = b""
    while True:
        try:
            got = os.read(master, 4096)
        except OSError:
            break
        text += got
    os.waitpid(pid, 0)
    os.close(master)
    return text.decode("latin-1")


@pytest.mark.parametrize("apart", [True, False], ids=["new-session", "control"])
def test_terminal_input_cannot_be_injected_from_a_new_session(
    runner: Runner, attacker: Path, lack: Lack, apart: bool
) -> None:
    need_tiocsti(lack)
    words = ["--new-session"] if apart else []
    argv = [str(runner.program), *words, "--unshare-user", "--ro-bind", str(attacker.parent)]
    text = on_terminal(runner, [*argv, "/bin", "/bin/attacker", "tiocsti"])
    found = re.search(r"tiocsti (\d+)", text)
    assert found is not None, text
    assert int(found[1]) == (errno.EPERM if apart else 0)
