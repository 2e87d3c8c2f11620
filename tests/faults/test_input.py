"""Bad input: full disks, limits, unreadable sources, odd names, missing stdio."""

from __future__ import annotations

import itertools
import os
import re
import shutil
import stat
from pathlib import Path

import pytest
from hostlib import Ended, Lack, Runner, one_clear_line

MOST_WORDS = 9000
BIG = b"x" * (1 << 20)
#: raises the nested namespace's limit to nothing, then runs the words
LIMIT = 'echo 0 > /proc/sys/user/max_{kind}_namespaces && exec "$@"'
NAMES = {
    "newline": b"a\nb",
    "space": b" a b ",
    "backslash": b"a\\040b\\",
    "utf-8-broken": b"a\xff\xfeb",
    "comma": b"a,upperdir=x",
    "colon": b"a:b",
    "dash": b"-a",
    "quotes": b"a'\"b",
    "long": b"n" * 255,
}


@pytest.fixture
def inside(attacker: Path) -> list[str]:
    return ["--ro-bind", str(attacker.parent), "/b"]


def fails(ended: Ended, text: str) -> None:
    assert ended.status == 1, ended
    assert one_clear_line(ended), ended
    assert text in ended.stderr, ended
    assert not ended.stdout


def content_fd(content: bytes) -> int:
    fd = os.memfd_create("content")
    os.write(fd, content)
    os.lseek(fd, 0, os.SEEK_SET)
    return fd


def test_full_filesystem_is_an_error_and_no_short_file(runner: Runner, inside: list[str]) -> None:
    fd = content_fd(BIG)
    words = ["--size", "4096", "--tmpfs", "/t", "--file", str(fd), "/t/f"]
    ended = runner.run([*inside, *words, "/b/attacker", "reach", "/t"], pass_fds=[fd])
    os.close(fd)
    fails(ended, "Can't write data to file /t/f: No space left on device")


def test_control_it_fits_in_a_larger_one(runner: Runner, inside: list[str]) -> None:
    fd = content_fd(BIG)
    words = ["--size", "4194304", "--tmpfs", "/t", "--file", str(fd), "/t/f"]
    ended = runner.run([*inside, *words, "/b/attacker", "reach", "/t/f"], pass_fds=[fd])
    os.close(fd)
    assert ended.attempts() == {"reach": 0}, ended


@pytest.mark.parametrize("kind", ["user", "mnt", "pid", "net"])
def test_namespace_limits_are_named(as_root: Runner, inside: list[str], kind: str) -> None:
    words = ["-U", "-r", "sh", "-c", LIMIT.format(kind=kind), "sh", str(as_root.program)]
    words += ["--unshare-user", "--unshare-pid", "--unshare-net", *inside]
    ended = as_root.run([*words, "/b/attacker", "reach", "/"], program=Path("/usr/bin/unshare"))
    fails(ended, "max_*_namespaces exceeded (ENOSPC)")


def test_control_the_nested_user_namespace_itself_is_no_hindrance(
    as_root: Runner, inside: list[str]
) -> None:
    words = ["-U", "-r", str(as_root.program), "--unshare-user", "--unshare-pid", *inside]
    ended = as_root.run([*words, "/b/attacker", "reach", "/"], program=Path("/usr/bin/unshare"))
    assert ended.attempts() == {"reach": 0}, ended


def test_unreadable_source_is_an_error_for_users_alone(
    as_user: Runner, inside: list[str], open_directory: Path
) -> None:
    private = open_directory / "private"
    (private / "below").mkdir(parents=True, exist_ok=True)
    # for its owner too, who may be the user
    private.chmod(0)
    words = [*inside, "--ro-bind", str(private / "below"), "/x", "/b/attacker", "reach", "/x"]
    try:
        fails(as_user.run(words), "Permission denied")
    finally:
        private.chmod(0o700)


@pytest.mark.parametrize(
    "words",
    [
        ("--file", "{fd}", "/f"),
        ("--bind-data", "{fd}", "/f"),
        ("--ro-bind-data", "{fd}", "/f"),
        ("--seccomp", "{fd}"),
        ("--add-seccomp-fd", "{fd}"),
        ("--args", "{fd}"),
        ("--bind-fd", "{fd}", "/f"),
        ("--userns", "{fd}"),
        ("--userns2", "{fd}"),
        ("--pidns", "{fd}"),
        ("--info-fd", "{fd}"),
        ("--json-status-fd", "{fd}"),
    ],
    ids=lambda words: words[0],
)
@pytest.mark.parametrize("fd", [*range(3, 12), 77, 100000, 2147483647])
def test_fd_that_is_not_open_is_an_error_whatever_its_number(
    runner: Runner, inside: list[str], words: tuple[str, ...], fd: int
) -> None:
    """Also where nsrun's own fds come to lie on that number."""
    filled = [word.format(fd=fd) for word in words]
    ended = runner.run([*inside, "--unshare-pid", *filled, "/b/attacker", "reach", "/"])
    fails(ended, "")


def test_failed_start_kills_nobody_else(runner: Runner, inside: list[str], lack: Lack) -> None:
    """kill(2) of a negative number, an error taken for a pid, reaches a whole group."""
    strace = shutil.which("strace")
    if strace is None:
        lack("no strace: who is killed after a failed start")
    fd = content_fd(b"")
    prefix = [strace, "-f", "-qq", "-e", "trace=kill,tkill,tgkill", "-e", "signal=none"]
    words = [*inside, "--pidns", str(fd), "/b/attacker", "reach", "/"]
    ended = runner.run(words, prefix=prefix, pass_fds=[fd])
    os.close(fd)
    assert ended.status == 1
    assert not re.search(r"kill\((-|0|1,)", ended.stderr), ended.stderr


@pytest.mark.parametrize("option", ["--block-fd", "--sync-fd"])
@pytest.mark.parametrize("fd", range(3, 12))
def test_fd_that_is_only_waited_for_or_kept_may_be_closed(
    runner: Runner, inside: list[str], option: str, fd: int
) -> None:
    words = [*inside, "--unshare-pid", option, str(fd), "/b/attacker", "signal-pid-1"]
    ended = runner.run(words)
    assert (ended.status, ended.stderr) == (7, "") or one_clear_line(ended), ended


@pytest.mark.parametrize("closed", list(itertools.product([0, 1], repeat=3)), ids=str)
def test_every_combination_of_closed_stdio(
    runner: Runner, inside: list[str], ground: Path, closed: tuple[int, ...]
) -> None:
    redirections = " ".join(f"{fd}>&-" for fd, is_closed in enumerate(closed) if is_closed)
    fd = content_fd(b"data")
    words = ["--unshare-pid", "--proc", "/proc", "--dev", "/dev", "--bind", str(ground), "/g"]
    words += ["--file", str(fd), "/f", "/b/attacker", "create", "/g/made"]
    script = f'exec "$@" {redirections}'
    argv = ["-c", script, "sh", str(runner.program), *inside, *words]
    ended = runner.run(argv, program=Path("/bin/sh"), pass_fds=[fd])
    os.close(fd)
    assert ended.status == 0, ended
    assert (ground / "made").exists()


@pytest.mark.parametrize("count", [MOST_WORDS, MOST_WORDS + 1])
def test_words_are_counted_over_all_lists(runner: Runner, inside: list[str], count: int) -> None:
    tail = ["/b/attacker", "reach", "/"]
    own = [*inside, "--args", "FD", *tail]
    options = b"--dir\0/d\0" * ((count - len(own)) // 2)
    options += b"--clearenv\0" * ((count - len(own)) % 2)
    fd = content_fd(options)
    own[own.index("FD")] = str(fd)
    ended = runner.run(own, pass_fds=[fd])
    os.close(fd)
    if count > MOST_WORDS:
        fails(ended, "Exceeded maximum number of arguments 9000")
    else:
        assert ended.attempts() == {"reach": 0}, ended


def test_ten_thousand_words_on_the_command_line(runner: Runner) -> None:
    ended = runner.run([*["--dir", "/d"] * 5000, "true"])
    fails(ended, "Exceeded maximum number of arguments 9000")


@pytest.mark.parametrize("option", ["--dir", "--tmpfs", "--ro-bind"])
@pytest.mark.parametrize("length", [4096, 5000, 100000])
def test_path_too_long(runner: Runner, inside: list[str], option: str, length: int) -> None:
    path = "/" + "d/" * (length // 2)
    source = ["/"] if option == "--ro-bind" else []
    ended = runner.run([*inside, option, *source, path, "/b/attacker", "reach", "/"])
    fails(ended, "")
    assert len(ended.stderr) < 16384


def test_path_of_the_greatest_length_is_made(runner: Runner, inside: list[str]) -> None:
    path = "/" + "d/" * 2046
    ended = runner.run([*inside, "--dir", path, "/b/attacker", "reach", path])
    assert ended.attempts() == {"reach": 0}, ended


def as_word(name: bytes) -> str:
    return os.fsdecode(name)


@pytest.mark.parametrize("kind", NAMES)
def test_odd_names(runner: Runner, inside: list[str], ground: Path, kind: str) -> None:
    name = as_word(NAMES[kind])
    (ground / name).mkdir()
    (ground / name / "file").write_text("here", encoding="ascii")
    words = [*inside, "--ro-bind", str(ground / name), f"/{name}", "--dir", f"/d/{name}"]
    ended = runner.run([*words, "/b/attacker", "reach", f"/{name}/file"])
    assert ended.attempts() == {"reach": 0}, ended


@pytest.mark.parametrize("kind", NAMES)
def test_odd_names_as_layers(as_root: Runner, inside: list[str], ground: Path, kind: str) -> None:
    layers = []
    for number in ("1", "2"):
        layer = ground / number / as_word(NAMES[kind])
        layer.mkdir(parents=True)
        (layer / f"file{number}").write_text("here", encoding="ascii")
        layers += ["--overlay-src", str(layer)]
    for files in ("file1", "file2"):
        ended = as_root.run(
            [*inside, *layers, "--ro-overlay", "/o", "/b/attacker", "reach", f"/o/{files}"]
        )
        assert ended.attempts() == {"reach": 0}, ended


@pytest.mark.parametrize("kind", NAMES)
def test_odd_name_that_is_absent_is_reported(runner: Runner, ground: Path, kind: str) -> None:
    path = str(ground / as_word(NAMES[kind]))
    ended = runner.run(["--ro-bind", path, "/x", "true"])
    assert ended.status == 1
    assert ended.stderr == f"nsrun: Can't find source path {path}: No such file or directory\n"


def test_fifo_is_bound_as_a_file(runner: Runner, inside: list[str], ground: Path) -> None:
    os.mkfifo(ground / "fifo")
    os.chown(ground / "fifo", runner.identity.uid, runner.identity.gid)
    words = [*inside, "--bind", str(ground / "fifo"), "/x", "/b/attacker", "reach", "/x"]
    assert runner.run(words).attempts() == {"reach": 0}
    assert stat.S_ISFIFO((ground / "fifo").stat().st_mode)


def test_mount_limit_is_told_with_its_sysctl(
    as_root: Runner, inside: list[str], lack: Lack
) -> None:
    limit = Path("/proc/sys/fs/mount-max")
    before = limit.read_text(encoding="ascii")
    if not os.access(limit, os.W_OK):
        lack("fs.mount-max cannot be changed here")
    mounts = len(Path("/proc/self/mountinfo").read_text(encoding="latin-1").splitlines())
    try:
        limit.write_text(str(mounts + 3), encoding="ascii")
        words = [word for i in range(8) for word in ("--ro-bind", "/", f"/{i}")]
        ended = as_root.run([*inside, *words, "/b/attacker", "reach", "/"])
    finally:
        limit.write_text(before, encoding="ascii")
    fails(ended, "/proc/sys/fs/mount-max")


def layers(ground: Path, count: int) -> list[str]:
    """So many directories with names of 200 bytes, as --overlay-src options."""
    made = [ground / f"{index:0200}" for index in range(count)]
    for path in made:
        path.mkdir(parents=True)
    return [word for path in made for word in ("--overlay-src", str(path))]


def test_more_layers_than_a_page_holds_are_refused(
    runner: Runner, inside: list[str], ground: Path
) -> None:
    """mount(2) reads one page and would lose the rest without a word."""
    words = [*layers(ground, 30), "--ro-overlay", "/o", "/b/attacker", "reach", "/o"]
    fails(runner.run([*inside, *words]), "the kernel reads 4094")


def test_control_fewer_layers_are_mounted(runner: Runner, inside: list[str], ground: Path) -> None:
    words = [*layers(ground, 10), "--ro-overlay", "/o", "/b/attacker", "reach", "/o"]
    assert runner.run([*inside, *words]).status == 0
