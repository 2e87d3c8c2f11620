"""The host backend: what it stops, what it refuses, and that nothing outlives it."""

from __future__ import annotations

import errno
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from hostlib import Ended, Lack, Runner, becomes, collect, marked, one_clear_line, running

from cowork_nsrun._native import landlock_abi

EACCES, EPERM, ENOSYS, ESRCH = errno.EACCES, errno.EPERM, errno.ENOSYS, errno.ESRCH
SYSTEM = ("--ro-bind", "/usr", "/usr", "--dev", "/dev", "--proc", "/proc")
HOST = ("--backend", "host", *SYSTEM)
UNCONFINED = ("--backend", "host", "--unconfined", *SYSTEM)
CREATE_RULESET = 444
SCOPES = 6  # the ABI from which signals and abstract sockets can be held back


@dataclass(frozen=True)
class Place:
    own: Path
    outside: Path
    secret: Path

    def attempt(self) -> list[str]:
        return ["files", str(self.outside), str(self.secret), str(self.own)]


@pytest.fixture(autouse=True)
def landlock(lack: Lack) -> None:
    if landlock_abi() < 2:
        lack("no Landlock of ABI 2: the host backend can't confine")


@pytest.fixture
def place(ground: Path, runner: Runner) -> Place:
    """Two directories of the runner's, of which it is shown one."""
    place = Place(ground / "own", ground / "outside", ground / "outside" / "secret")
    for directory in (place.own, place.outside, place.outside / "sub"):
        directory.mkdir()
    for file in (place.secret, place.outside / "file", place.outside / "file2"):
        file.write_text("theirs")
    for path in (ground, *ground.rglob("*")):
        os.chown(path, runner.identity.uid, runner.identity.gid)
    return place


def ran(runner: Runner, walls: Path, options: tuple[str, ...], *words: object) -> dict[str, int]:
    ended = runner.run([*options, "--ro-bind", walls, walls, "--", walls, *words])
    assert ended.status == 0, ended
    return ended.attempts()


# --- files --------------------------------------------------------------------------------

OUT = {
    "read", "list", "read-by-root", "read-by-dots", "read-by-link", "hard-link", "write",
    "append", "create", "mkdir", "symlink", "fifo", "truncate", "move-in", "move-out",
    "remove", "remove-dir",
}  # fmt: skip
IN = {"own-create", "own-mkdir", "own-move", "null", "link-to-it"}


def shown(place: Place) -> tuple[str, ...]:
    return ("--bind", str(place.own), str(place.own))


def test_files_outside_are_out_of_reach(runner: Runner, walls: Path, place: Place) -> None:
    tried = ran(runner, walls, (*HOST, *shown(place)), *place.attempt())
    assert tried.keys() == OUT | IN
    assert {name: tried[name] for name in IN} == dict.fromkeys(IN, 0)
    assert all(tried[name] in {EACCES, errno.EXDEV} for name in OUT), tried
    assert {path.name for path in place.outside.iterdir()} == {"secret", "file", "file2", "sub"}
    assert (place.outside / "file").read_text() == "theirs"


def test_unconfined_they_are_not(runner: Runner, walls: Path, place: Place) -> None:
    """The control: the same attempts, and nothing to stop them."""
    tried = ran(runner, walls, (*UNCONFINED, *shown(place)), *place.attempt())
    assert tried == dict.fromkeys(OUT | IN, 0)


def test_read_only_is_read_only(runner: Runner, walls: Path, place: Place) -> None:
    options = (*HOST, *shown(place), "--ro-bind", str(place.outside), str(place.outside))
    tried = ran(runner, walls, options, *place.attempt())
    readable = {"read", "list", "read-by-dots", "read-by-link", "read-by-root"}
    # a link to what may only be read gives no right to write it: Landlock lets it pass
    assert {name for name in OUT if not tried[name]} - {"hard-link"} == readable


# --- processes, sockets, calls ------------------------------------------------------------


@pytest.fixture
def victim(runner: Runner, walls: Path, marker: str) -> Iterator[int]:
    process = runner.popen(["wait"], program=walls, marker=marker)
    assert process.stdout is not None
    assert process.stdout.readline() == b"waiting 0\n"
    with running(process):
        yield process.pid


def test_processes_outside(
    runner: Runner, walls: Path, victim: int, note_lack: Callable[[str], None]
) -> None:
    tried = ran(runner, walls, HOST, "process", victim)
    held = {"environ": EACCES, "mem": EACCES, "vm-read": EPERM, "trace": EPERM, "limit": EPERM}
    if landlock_abi() >= SCOPES:
        held["signal"] = EPERM
    else:
        note_lack("Landlock before ABI 6: signals to processes outside")
    assert {name: tried[name] for name in held} == held
    assert tried["own-limit"] == 0


def test_unconfined_processes_are_reached(runner: Runner, walls: Path, victim: int) -> None:
    tried = ran(runner, walls, UNCONFINED, "process", victim)
    assert set(tried.values()) == {0}, tried


@pytest.fixture
def listening(ground: Path) -> Iterator[tuple[str, str]]:
    path, name = ground / "socket", f"nsrun-test-{os.getpid()}-{time.monotonic_ns()}"
    with socket.socket(socket.AF_UNIX) as named, socket.socket(socket.AF_UNIX) as abstract:
        named.bind(str(path))
        path.chmod(0o777)
        abstract.bind(f"\0{name}")
        named.listen()
        abstract.listen()
        yield str(path), name


def test_unix_sockets_outside(runner: Runner, walls: Path, listening: tuple[str, str]) -> None:
    assert ran(runner, walls, HOST, "unix", *listening) == {
        "path": EACCES,
        "abstract": EACCES,
        "pair": 0,
    }
    control = ran(runner, walls, UNCONFINED, "unix", *listening)
    assert control == dict.fromkeys(("path", "abstract", "pair"), 0)


@pytest.fixture
def ports() -> Iterator[tuple[int, int]]:
    """One that somebody listens at, one that is free."""
    with socket.create_server(("127.0.0.1", 0)) as server, socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        number = free.getsockname()[1]
        free.close()
        yield server.getsockname()[1], number


def test_tcp_ports(runner: Runner, walls: Path, ports: tuple[int, int], lack: Lack) -> None:
    if landlock_abi() < 4:
        lack("Landlock before ABI 4: TCP ports")
    connect, bind = ports

    def tried(*options: str) -> dict[str, int]:
        return ran(runner, walls, (*HOST, *options), "tcp", connect, bind)

    assert tried() == {"connect": 0, "bind": 0}
    assert tried("--tcp-connect", "none") == {"connect": EACCES, "bind": 0}
    assert tried("--tcp-bind", "none") == {"connect": 0, "bind": EACCES}
    assert tried("--tcp-connect", "1", "--tcp-bind", "1") == {"connect": EACCES, "bind": EACCES}
    only = ("--tcp-connect", str(connect), "--tcp-bind", str(bind))
    assert tried(*only) == {"connect": 0, "bind": 0}


def test_calls(runner: Runner, walls: Path) -> None:
    tried = ran(runner, walls, HOST, "calls")
    assert tried["uring"] == ENOSYS
    assert tried["mount"] == tried["tmpfs"] == EPERM


def test_no_capability_and_no_new_one(runner: Runner, place: Place) -> None:
    script = "grep -E '^(Cap|NoNewPrivs|Seccomp:)' /proc/self/status"
    ended = runner.run([*HOST, "sh", "-c", script])
    fields = dict(line.split(":\t") for line in ended.stdout.splitlines())
    assert fields.pop("NoNewPrivs") == "1"
    assert fields.pop("Seccomp") == "2"
    if runner.identity.is_root:
        assert int(fields["CapBnd"], 16) == 0
    fields.pop("CapBnd")
    assert {int(value, 16) for value in fields.values()} == {0}


def test_a_descriptor_has_to_be_of_what_is_there(runner: Runner, place: Place) -> None:
    """Who checked a directory binds what it has checked, though its name leads elsewhere by now."""
    fd = os.open(place.own, os.O_PATH)
    try:
        words = [*HOST, "--bind-fd", str(fd), str(place.own), "sh", "-c", "echo x > file; echo y"]
        ended = runner.run([*words[:-3], "--chdir", str(place.own), *words[-3:]], pass_fds=[fd])
        assert (ended.status, ended.stdout) == (0, "y\n"), ended
        place.own.rename(place.own.with_name("moved"))
        place.own.symlink_to(place.outside)
        ended = runner.run(words, pass_fds=[fd])
        assert (ended.status, ended.stdout) == (1, ""), ended
        assert f"{place.outside} changed while" in ended.stderr
    finally:
        os.close(fd)


def test_open_files_are_closed(runner: Runner, place: Place) -> None:
    """An open file is a right that no rule takes back; unconfined it stays, as with bwrap."""
    with place.secret.open() as file:
        fd = file.fileno()
        read = [*shown(place), "bash", "-c", f"cat <&{fd}"]
        assert runner.run([*HOST, *read], pass_fds=[fd]).stdout == ""
        assert runner.run([*UNCONFINED, *read], pass_fds=[fd]).stdout == "theirs"


def test_environment_and_session(runner: Runner) -> None:
    script = 'echo "$SSH_AUTH_SOCK$DBUS_SESSION_BUS_ADDRESS$KEPT" $(cut -d" " -f1,6 /proc/$$/stat)'
    env = {"SSH_AUTH_SOCK": "/a", "DBUS_SESSION_BUS_ADDRESS": "/b", "KEPT": "kept"}
    words = runner.run([*HOST, "sh", "-c", script], env=env).stdout.split()
    assert words[0] == "kept"
    assert words[1] == words[2]
    assert runner.run([*UNCONFINED, "sh", "-c", script], env=env).stdout.startswith("/a/bkept")


def test_what_landlock_does_not_know(runner: Runner, place: Place) -> None:
    """As docs/backends.md says: names and modes are not held back."""
    words = (*HOST, *shown(place), "sh", "-c", f"stat {place.secret} && chmod 777 {place.secret}")
    assert runner.run(words).status == 0
    assert place.secret.stat().st_mode & 0o777 == 0o777


# --- what can't be had ----------------------------------------------------------------------

REFUSED = {
    "--unshare-pid": ["--unshare-pid"],
    "--unshare-net": ["--unshare-net"],
    "--unshare-user": ["--unshare-user"],
    "--unshare-ipc": ["--unshare-ipc"],
    "--unshare-uts": ["--unshare-uts"],
    "--unshare-cgroup": ["--unshare-cgroup"],
    "--tmpfs": ["--tmpfs", "/tmp"],
    "--symlink": ["--symlink", "a", "/b"],
    "--dir": ["--dir", "/b"],
    "--file": ["--file", "0", "/b"],
    "--bind-data": ["--bind-data", "0", "/b"],
    "--mqueue": ["--mqueue", "/b"],
    "--chmod": ["--chmod", "0700", "/b"],
    "--remount-ro": ["--remount-ro", "/"],
    "--tmp-overlay": ["--overlay-src", "/usr", "--tmp-overlay", "/b"],
    "--overlay": ["--overlay-src", "/usr", "--overlay", "/a", "/b", "/c"],
    "--bind /usr /lib can't": ["--bind", "/usr", "/lib"],
    "--ro-bind /usr /mnt can't": ["--ro-bind", "/usr", "/mnt"],
    "--bind /dev": ["--bind", "/dev", "/dev"],
    "--proc": ["--proc", "/p"],
    "--dev": ["--dev", "/d"],
    "--cap-add": ["--cap-add", "CAP_CHOWN"],
    "--info-fd": ["--info-fd", "2"],
    "--json-status-fd": ["--json-status-fd", "2"],
    "--lock-file": ["--lock-file", "/usr"],
    "--userns": ["--userns", "0"],
    "--pidns": ["--pidns", "0"],
    "--assert-userns-disabled": ["--assert-userns-disabled"],
    "--uid": ["--uid", "77"],
}


def fails(ended: Ended, *texts: str) -> None:
    assert ended.status == 1, ended
    assert one_clear_line(ended), ended
    assert ended.stdout == ""
    for text in texts:
        assert text in ended.stderr, ended


@pytest.mark.parametrize("named", REFUSED)
def test_what_it_can_not_express_is_refused_by_name(runner: Runner, named: str) -> None:
    ended = runner.run(["--backend", "host", *REFUSED[named], "echo", "ran"])
    fails(ended, named)


def test_read_only_within_writable_is_refused(ground: Path, runner: Runner) -> None:
    inner = ground / "inner"
    inner.mkdir()
    words = ["--bind", str(ground), str(ground), "--ro-bind", str(inner), str(inner), "true"]
    ended = runner.run([*HOST, *words])
    assert ended.status == 1
    assert f"--ro-bind {inner} can't be had with --backend host" in ended.stderr
    other_way_round = ["--ro-bind", str(ground), str(ground), "--bind", str(inner), str(inner)]
    assert runner.run([*HOST, *other_way_round, "true"]).status == 0


def test_a_bind_of_the_root_shows_no_devices(runner: Runner) -> None:
    script = "head -c1 /etc/passwd | wc -c; cat /dev/zero; cat /proc/version"
    ended = runner.run(["--backend", "host", "--ro-bind", "/", "/", "sh", "-c", script])
    assert ended.stdout == "1\n"
    assert ended.stderr.count("Permission denied") == 2


# --- kernels without ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "text"),
    [(ENOSYS, "CONFIG_SECURITY_LANDLOCK"), (errno.EOPNOTSUPP, "lsm=")],
    ids=["no-landlock", "not-at-boot"],
)
def test_without_landlock_it_is_refused(runner: Runner, deny: Path, error: int, text: str) -> None:
    prefix = [deny, f"{CREATE_RULESET}={error}", "--"]
    ended = runner.run([*HOST, "echo", "ran"], prefix=prefix)
    assert (ended.status, ended.stdout) == (1, "")
    assert text in ended.stderr
    assert "--backend host" in ended.stderr
    unconfined = runner.run([*UNCONFINED, "echo", "ran"], prefix=prefix)
    assert unconfined.stdout == "ran\n"
    assert "host, not confined" in unconfined.stderr


VERSIONS = pytest.mark.parametrize("version", [1, 2, 3, 5, 6])


@VERSIONS
def test_old_landlock(runner: Runner, abi: Path, walls: Path, place: Place, version: int) -> None:
    """What a version doesn't know is open; what it knows holds."""
    options = (*HOST, *shown(place), "--ro-bind", walls, walls, "--", walls)
    ended = runner.run([*options, *place.attempt()], prefix=[abi, version, "--"])
    if version == 1:
        assert (ended.status, ended.stdout) == (1, "")
        assert "ABI 1, forbids every rename" in ended.stderr
        return
    assert ended.status == 0, ended
    assert f"confined by Landlock ABI {version} and seccomp" in ended.stderr
    tried = ended.attempts()
    assert tried["own-move"] == 0
    assert tried["write"] == tried["create"] == tried["read"] == EACCES
    assert tried["truncate"] == (0 if version < 3 else EACCES)


@VERSIONS
def test_old_landlock_and_signals(
    runner: Runner, abi: Path, walls: Path, victim: int, version: int
) -> None:
    """It is told where they can't be held back."""
    words = [*HOST, "--ro-bind", walls, walls, "--", walls, "process", victim]
    ended = runner.run(words, prefix=[abi, version, "--"])
    if version > 1:
        assert ended.attempts()["signal"] == (0 if version < SCOPES else EPERM)
        assert ("signals" in ended.stderr) == (version < SCOPES)


def test_ports_need_an_abi(runner: Runner, abi: Path) -> None:
    ended = runner.run([*HOST, "--tcp-connect", "80", "true"], prefix=[abi, "3", "--"])
    assert ended.status == 1
    assert "--tcp-connect" in ended.stderr


# --- ends -----------------------------------------------------------------------------------

DAEMON = "(setsid sh -c 'sleep 500 & sleep 500' >/dev/null 2>&1 &); "


def test_what_is_left_running_ends_with_the_command(runner: Runner, marker: str) -> None:
    ended = runner.run([*HOST, "sh", "-c", DAEMON + "exit 7"], marker=marker)
    assert ended.status == 7
    assert marked(marker) == []


def test_a_process_that_is_always_another_one_ends(
    runner: Runner, walls: Path, marker: str
) -> None:
    ended = runner.run([*HOST, "--ro-bind", walls, walls, walls, "runner"], marker=marker)
    assert ended.status == 0
    assert marked(marker) == []


def test_the_control_of_both(runner: Runner, walls: Path, marker: str) -> None:
    """Without us it goes on."""
    runner.run(["-c", DAEMON], program=Path("/bin/sh"), marker=marker)
    assert becomes(lambda: len(marked(marker)) >= 2)


def sleeping(runner: Runner, marker: str, *options: str) -> subprocess.Popen[bytes]:
    script = DAEMON + "echo there; sleep 500"
    process = runner.popen([*HOST, *options, "sh", "-c", script], marker=marker)
    assert process.stdout is not None
    assert process.stdout.readline() == b"there\n"
    return process


def test_the_monitor_s_death_is_the_end(runner: Runner, marker: str) -> None:
    with running(sleeping(runner, marker)) as process:
        process.kill()
        assert becomes(lambda: marked(marker) == [])


def test_the_reaper_s_death_is_the_end(runner: Runner, marker: str) -> None:
    process = sleeping(runner, marker)
    tasks = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    assert len(tasks) == 1
    os.kill(int(tasks[0]), signal.SIGKILL)
    assert collect(process).status == 137
    assert marked(marker) == []


def test_killed_at_any_time(runner: Runner, ground: Path, marker: str) -> None:
    """No process, no temporary directory, whenever the monitor dies."""
    words = [*HOST, "--private-tmp", "sh", "-c", DAEMON + "sleep 500"]
    for step in range(40):
        process = runner.popen(words, marker=marker, env={"TMPDIR": str(ground)})
        time.sleep(step * 0.0003)
        process.kill()
        process.communicate()
    assert becomes(lambda: marked(marker) == [])
    # made just before there was a second process to remove it
    left = [path for path in ground.iterdir() if list(path.iterdir())]
    assert left == []


def test_time_ends_it(runner: Runner, marker: str) -> None:
    ended = runner.run([*HOST, "--timeout", "0.3", "sh", "-c", DAEMON + "sleep 500"], marker=marker)
    assert ended.status == 124
    assert marked(marker) == []


def test_exit_status_and_signals(runner: Runner) -> None:
    assert runner.run([*HOST, "sh", "-c", "exit 300"]).status == 300 % 256
    assert runner.run([*HOST, "sh", "-c", "kill -TERM $$"]).status == 128 + signal.SIGTERM
    missing = runner.run([*HOST, "no-such-command"])
    assert missing.status == 1
    assert "execvp no-such-command: No such file or directory" in missing.stderr


SYS_SIGNALFD4, ADD_RULE, RESTRICT_SELF, PIDFD_OPEN, SETSID = 289, 445, 446, 434, 112


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (ADD_RULE, "Can't confine COMMAND with Landlock: /"),
        (RESTRICT_SELF, "Can't confine COMMAND with Landlock: landlock_restrict_self"),
        (SYS_SIGNALFD4, "Can't start the reaper"),
        (SETSID, "Can't start the reaper"),
        (PIDFD_OPEN, "Can't watch the reaper"),
    ],
)
def test_a_failure_leaves_nothing(
    runner: Runner, deny: Path, ground: Path, call: int, text: str
) -> None:
    ended = runner.run(
        [*HOST, "--private-tmp", "echo", "ran"],
        prefix=[deny, f"{call}={errno.EINVAL}", "--"],
        env={"TMPDIR": str(ground)},
    )
    assert (ended.status, ended.stdout) == (1, ""), ended
    assert text in ended.stderr
    assert "Invalid argument" in ended.stderr
    assert list(ground.iterdir()) == []


# --- the temporary directory ---------------------------------------------------------------


def test_private_tmp_goes_away(runner: Runner, walls: Path, ground: Path) -> None:
    options = (*HOST, "--private-tmp", "--ro-bind", str(walls), str(walls))
    script = f'test "$TMPDIR" != {ground}; echo "$TMPDIR"; {walls} deep "$TMPDIR" 3000; ls /tmp'
    ended = runner.run([*options, "sh", "-c", script], env={"TMPDIR": str(ground)})
    assert ended.attempts() == {"deep": 0}, ended
    made = Path(ended.stdout.split()[0])
    assert made.parent == ground
    assert not made.exists()
    assert "Permission denied" in ended.stderr
    assert [path for path in ground.iterdir() if path.name.startswith("nsrun")] == []


def test_private_tmp_goes_away_with_the_monitor(runner: Runner, ground: Path, marker: str) -> None:
    script = 'echo "$TMPDIR"; touch "$TMPDIR/f"; sleep 500'
    options = (*HOST, "--private-tmp", "sh", "-c", script)
    process = runner.popen(options, marker=marker, env={"TMPDIR": str(ground)})
    with running(process):
        assert process.stdout is not None
        made = Path(process.stdout.readline().decode().strip())
        assert becomes((made / "f").exists)
        process.kill()
        assert becomes(lambda: not made.exists())
