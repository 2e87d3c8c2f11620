"""Every system call of the set-up made to fail in turn.

Either nsrun ends with 1 and one clear line, and the payload never runs, or the
call is in TOLERATED, which says why, and the sandbox is the same. Never a hang,
never a weaker sandbox, never anything left behind.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import signal
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hostlib import (
    Ended,
    Runner,
    becomes,
    host_mounts,
    kill_marked,
    marked,
    new_marker,
    one_clear_line,
)
from seen import differences, observation

#: calls whose failure changes nothing that anybody can see, and why
TOLERATED = {
    "brk": "the allocator falls back to mmap",
    "mmap": "the allocator falls back to what it has",
    "set_tid_address": "set-up of libc",
    "ioctl": "whether stdout is a terminal: without an answer there is no console",
    "readlink": "a name of the terminal or of the working directory",
    "getcwd": "the payload starts in $HOME or /",
    "chdir": "the working directory is the next of cwd, $HOME and /",
    "access": "which of the optional namespaces the kernel has",
    "capset": "the monitor's step back; a filter around root may forbid it, as with bwrap",
    "prctl": "an ambient capability that cannot be raised is left out, as by bwrap",
    "faccessat": "a part of /proc that cannot be written needs no cover",
    "unshare": "the check that no user namespace can be made: a failure is what it wants",
    "ppoll": "the second look for a parent that has died already",
    "openat2": "the look whether a directory is there: else it is made and opened again",
    "open_tree": "a kernel that refuses the new calls is served by mount(2)",
    "move_mount": "the same, asked before the clone",
    "mount_setattr": "the same, asked before the clone",
    "open_tree_attr": "before Linux 6.15 two calls do its work",
    "write": "an exit status that is not told comes by wait(2)",
    "stat": "a namespace file that is absent is left out of the info",
    "statx": "the identity of /: without it the careful way is taken",
    "munmap": "memory goes with the process",
    "readv": "a sysctl or /proc that cannot be read does not say no",
    "read": "the same; and the end of a pipe counts as an answer",
    "open": "the same",
}
#: what may differ in a run that goes on, and why it is no weaker
FEWER_CAPS = r"\.may\.\w+: 'errno 0' became|"  # fewer rights follow from fewer capabilities
FEWER_CAPS += r"\.(process|pid1)\.status\.Cap(Prm|Eff|Amb|Inh)|\.caps\.(?!bounding)"
COVERED = r"\.mounts\.\S+@\d+\.options"  # a mount under another one: mount(2) cannot name it
HARMLESS = {
    "open_tree": COVERED,
    "move_mount": COVERED,
    "mount_setattr": COVERED,
    "prctl": FEWER_CAPS,
    "capset": r"\.parent\.",
    "chdir": r"\.process\.(cwd|environ)",
    "getcwd": r"\.process\.(cwd|environ)",
}
#: they have no failure that can be met: Linux closes even where close(2) reports
#: an error, and libc crashes without its thread pointer
INFALLIBLE = {
    *("close", "arch_prctl", "umask", "getpid", "getppid", "getuid", "geteuid", "getgid"),
    *("getegid", "rt_sigprocmask", "rt_sigaction", "clock_gettime"),
}
#: other errors are answers, as to bwrap: EPERM and EINVAL end the search for the
#: kernel's last capability, EPERM is what root is told by a filter around it,
#: and EACCES that a part of /proc needs no cover
ANSWERS = {
    "prctl": (errno.ENOMEM, errno.EIO),
    "capset": (errno.ENOMEM, errno.EIO),
    "faccessat": (errno.EPERM, errno.EIO),
    "access": (errno.ENOENT, errno.EACCES),
}
#: further errors, by the call's place in the list
ROTATION = (errno.ENOMEM, errno.ENOSPC, errno.EMFILE, errno.EACCES, errno.EIO, errno.EINVAL)
#: what a seccomp filter or an old kernel answers to the calls of the newer API
NEW_CALLS = ("open_tree", "move_mount", "mount_setattr", "open_tree_attr", "openat2", "close_range")
LINE = re.compile(r"^(\d+) (\d+) (\d+)$", re.MULTILINE)


@dataclass(frozen=True)
class Call:
    process: int
    index: int
    name: str


@dataclass
class Scene:
    """One argv with its fds; they are made anew for each run."""

    words: list[str]
    contents: dict[str, bytes] = field(default_factory=dict)
    sinks: tuple[str, ...] = ()

    @contextlib.contextmanager
    def opened(self) -> Iterator[tuple[list[str], list[int]]]:
        numbers: dict[str, int] = {}
        for name, content in self.contents.items():
            numbers[name] = os.memfd_create(name)
            os.write(numbers[name], content)
            os.lseek(numbers[name], 0, os.SEEK_SET)
        for name in self.sinks:
            numbers[name] = os.memfd_create(name)
        try:
            yield [word.format(**numbers) for word in self.words], list(numbers.values())
        finally:
            for fd in numbers.values():
                os.close(fd)


def system_calls() -> dict[int, str]:
    for header in ("x86_64-linux-gnu/asm/unistd_64.h", "asm/unistd_64.h"):
        path = Path("/usr/include") / header
        if path.exists():
            found = re.findall(r"#define __NR_(\w+) (\d+)", path.read_text(encoding="ascii"))
            return {467: "open_tree_attr", **{int(number): name for name, number in found}}
    pytest.fail("no asm/unistd_64.h: the kernel's headers (linux-libc-dev)")


def standard(place: Path) -> Scene:
    words = ["--unshare-user", "--unshare-pid", "--unshare-ipc", "--unshare-uts"]
    words += ["--ro-bind", "/", "/", "--dev", "/dev", "--proc", "/proc", "--tmpfs", "/tmp"]
    return Scene(words)


def cowork(place: Path) -> Scene:
    words = ["--chdir", "/sessions/s", "--tmpfs", "/", "--ro-bind", "/usr", "/usr"]
    words += ["--ro-bind", "/etc", "/etc", "--dev", "/dev", "--proc", "/proc", "--tmpfs", "/tmp"]
    words += ["--tmpfs", "/run", "--symlink", "usr/bin", "/bin", "--dir", "/home/u"]
    words += ["--dir", "/sessions/s/mnt", "--bind", str(place / "data"), "/sessions/s/mnt/data"]
    return Scene([*words, "--unshare-pid", "--die-with-parent", "--new-session"])


def files(place: Path) -> Scene:
    words = ["--unshare-pid", "--unshare-net", "--unshare-uts", "--hostname", "faulty"]
    words += ["--proc", "/proc", "--perms", "0640", "--file", "{file}", "/etc/made"]
    words += ["--ro-bind-data", "{data}", "/etc/bound", "--symlink", "made", "/etc/link"]
    words += ["--chmod", "0600", "/etc/made", "--overlay-src", str(place / "data")]
    words += ["--tmp-overlay", "/over", "--bind", str(place / "data"), "/data"]
    words += ["--remount-ro", "/data", "--cap-drop", "ALL"]
    return Scene(words, {"file": b"file\n", "data": b"data\n"})


def status(place: Path) -> Scene:
    words = ["--unshare-pid", "--proc", "/proc", "--info-fd", "{info}"]
    words += ["--json-status-fd", "{json}", "--lock-file", "/o/observer", "--close-fds"]
    return Scene(words, sinks=("info", "json"))


def locked_down(place: Path) -> Scene:
    words = ["--unshare-user", "--disable-userns", "--assert-userns-disabled", "--uid", "1000"]
    words += ["--unshare-pid", "--as-pid-1", "--die-with-parent", "--dev", "/dev"]
    return Scene([*words, "--proc", "/proc", "--clearenv", "--cap-add", "CAP_NET_RAW"])


SCENES = {scene.__name__: scene for scene in (standard, cowork, files, status, locked_down)}


@dataclass
class Stage:
    """Runs one scene under the injector, all of it with one marker."""

    runner: Runner
    inject: Path
    scene: Scene
    payload: list[str]
    private: Path
    marker: str

    def run(self, *order: object) -> tuple[Ended, str]:
        log = os.memfd_create("log")
        with self.scene.opened() as (words, fds):
            ended = self.runner.run(
                [*words, *self.payload],
                prefix=[self.inject, str(log), *map(str, order)],
                pass_fds=[log, *fds],
                marker=self.marker,
                env={"TMPDIR": str(self.private), "HOME": "/"},
            )
        os.lseek(log, 0, os.SEEK_SET)
        text = os.read(log, 1 << 20).decode("ascii")
        os.close(log)
        return ended, text

    def calls(self, names: dict[int, str]) -> list[Call]:
        _, text = self.run("list")
        found = [Call(int(p), int(n), names.get(int(nr), nr)) for p, n, nr in LINE.findall(text)]
        return [call for call in found if call.name not in INFALLIBLE]

    def left_behind(self) -> list[str]:
        gone = becomes(lambda: not marked(self.marker))
        left = [] if gone else [f"processes {marked(self.marker)}"]
        return left + [str(path) for path in self.private.iterdir()]


@pytest.fixture(params=SCENES)
def stage(
    request: pytest.FixtureRequest, runner: Runner, inject: Path, observer: Path, ground: Path
) -> Iterator[Stage]:
    for name in ("data", "tmp", "o"):
        (ground / name).mkdir()
        os.chown(ground / name, runner.identity.uid, runner.identity.gid)
    scene = SCENES[request.param](ground)
    scene.words[:0] = [] if scene.words[0] == "--chdir" else ["--tmpfs", "/"]
    if request.param == "standard":
        scene.words[:2] = []
    place = "/tmp/o" if request.param == "standard" else "/o"
    payload = ["--ro-bind", str(observer.parent), place, f"{place}/{observer.name}"]
    if "--lock-file" in scene.words:
        lock = scene.words.index("--lock-file")
        scene.words[lock + 1] = f"{place}/{observer.name}"
    made = Stage(runner, inject, scene, payload, ground / "tmp", new_marker())
    yield made
    kill_marked(made.marker)


def errors_for(call: Call, place: int) -> set[int]:
    if call.name in ANSWERS:
        return set(ANSWERS[call.name])
    extra = {errno.ENOSYS} if call.name in NEW_CALLS else set()
    return {errno.EPERM, ROTATION[place % len(ROTATION)], *extra}


def judge(call: Call, error: int, good: object, ended: Ended) -> str:
    """What is wrong with this run; "" if nothing is."""
    what = f"{call.name} ({call.index} of process {call.process}) = {errno.errorcode[error]}: "
    seen = observation(ended.stdout)
    if seen is None:
        fine = ended.status == 1 and one_clear_line(ended) and not ended.stdout
        return "" if fine else f"{what}no payload, but {ended.status} {ended.stderr!r}"
    if ended.status != 0 or ended.stderr:
        return f"{what}the payload ran, but {ended.status} {ended.stderr!r}"
    if call.name not in TOLERATED:
        return f"{what}ignored, and not in the table"
    harmless = re.compile(HARMLESS.get(call.name, "$^"))
    changed = [line for line in differences(good, seen) if not harmless.match(line)]
    return f"{what}another sandbox: {changed[:4]}" if changed else ""


def test_each_call_fails_clearly_or_changes_nothing(stage: Stage) -> None:
    mounts = host_mounts()
    ended, _ = stage.run("list")
    good = observation(ended.stdout)
    assert good is not None, ended
    problems, struck = [], 0
    calls = stage.calls(system_calls())
    for place, call in enumerate(calls):
        for error in sorted(errors_for(call, place)):
            ended, log = stage.run("fail", call.process, call.index, error)
            struck += log == "done\n"
            problems.append(judge(call, error, good, ended))
    assert struck > 1.9 * len(calls), "the injector missed calls"
    assert host_mounts() == mounts
    assert not stage.left_behind()
    found = [problem for problem in problems if problem]
    assert not found, "\n".join(["", *found])


def test_control_the_observation_tells_a_weaker_sandbox(stage: Stage) -> None:
    good = observation(stage.run("list")[0].stdout)
    stage.scene.words += ["--bind", "/usr", "/o2"]
    changed = observation(stage.run("list")[0].stdout)
    assert differences(good, changed)


def test_a_process_killed_at_any_call_ends_the_run(stage: Stage) -> None:
    """SIGKILL for monitor, pid 1 or payload in turn: no hang, and nothing stays."""
    stage.scene.words += [] if "--die-with-parent" in stage.scene.words else ["--die-with-parent"]
    calls = stage.calls(system_calls())
    for call in calls[:: max(1, len(calls) // 60)]:
        ended, _ = stage.run("signal", call.process, call.index, int(signal.SIGKILL))
        assert ended.status != 0 or observation(ended.stdout), (call, ended)
    assert not stage.left_behind()
