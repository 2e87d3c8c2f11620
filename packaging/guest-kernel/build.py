"""Build a kernel for the guests of microVMs: make guest-kernel, make guest-kernel-install.

Takes the source of a Linux kernel and builds what ``guest.config`` asks for, all else off.  The
image and its configuration are in ``build/guest-kernel/boot``, and stay until the source, the
options or the compiler are others.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
WISHES = Path(__file__).with_name("guest.config")
BUILD = ROOT / "build" / "guest-kernel"
IMAGE = "arch/x86/boot/bzImage"
#: what would differ from one build to the next: Documentation/kbuild/reproducible-builds.rst
SAME = {
    "KBUILD_BUILD_TIMESTAMP": "Thu Jan  1 00:00:00 UTC 1970",
    "KBUILD_BUILD_USER": "nsrun",
    "KBUILD_BUILD_HOST": "nsrun",
    "KBUILD_BUILD_VERSION": "1",
    "LC_ALL": "C",
}
#: nothing else of the caller's is heard: Kbuild obeys dozens of variables
PASSED_ON = ("PATH", "HOME", "TMPDIR")
LOG_TAIL = 30

_OPTION = re.compile(r"CONFIG_(\w+)=(\S.*)")
_OFF = re.compile(r"# CONFIG_(\w+) is not set")


class BuildError(Exception):
    """The kernel can't be built; the text says why, and what helps."""


@dataclass(frozen=True, slots=True)
class Wish:
    """One option that the kernel is to have.

    Attributes:
        names: its name, without ``CONFIG_``, in one kernel or the other.
        value: as in a ``.config``; ``n``: it must be off or not there.
    """

    names: tuple[str, ...]
    value: str

    def __str__(self) -> str:
        return " | ".join(f"CONFIG_{name}={self.value}" for name in self.names)

    def granted(self, found: Iterable[str]) -> bool:
        """By the values that its names have: it is there by one, or away by all."""
        return self.value in found if self.value != "n" else set(found) == {"n"}


def read_wishes(text: str) -> list[Wish]:
    """The lines of ``guest.config``.

    Raises:
        BuildError: a line is none, or an option has two.
    """
    wishes: list[Wish] = []
    seen: set[str] = set()
    for number, line in enumerate(text.splitlines(), 1):
        if not line or line.startswith("#"):
            continue
        matches = [_OPTION.fullmatch(part) for part in line.split(" | ")]
        options = [(match[1], match[2]) for match in matches if match]
        if len(options) != len(matches) or len({value for _, value in options}) != 1:
            raise BuildError(f"{WISHES.name}:{number}: no option with a value: {line}")
        names = tuple(name for name, _ in options)
        if not seen.isdisjoint(names):
            raise BuildError(f"{WISHES.name}:{number}: there already: {line}")
        seen.update(names)
        wishes.append(Wish(names, options[0][1]))
    return wishes


def seed(wishes: Iterable[Wish]) -> str:
    """What ``make allnoconfig`` begins with; names that a kernel doesn't know are passed over."""
    return "".join(
        f"# CONFIG_{name} is not set\n" if wish.value == "n" else f"CONFIG_{name}={wish.value}\n"
        for wish in wishes
        for name in wish.names
    )


def refused(wishes: Iterable[Wish], config: str) -> list[str]:
    """What a ``.config`` has otherwise than wished, in words."""
    matches = map(_OPTION.fullmatch, config.splitlines())
    have = {match[1]: match[2] for match in matches if match}
    wrong: list[str] = []
    for wish in wishes:
        found = [have.get(name, "n") for name in wish.names]
        if not wish.granted(found):
            wrong.append(f"{wish}: it is {', '.join(sorted(set(found)))}")
    return wrong


def mitigations(wishes: Iterable[Wish], config: str) -> list[Wish]:
    """What a ``.config`` leaves off of the mitigations of processors' faults, unasked.

    Newer kernels have ones that ``guest.config`` can't know; by default they are on.
    """
    known = {name for wish in wishes for name in wish.names}
    matches = map(_OFF.fullmatch, config.splitlines())
    names = [match[1] for match in matches if match and match[1].startswith("MITIGATION_")]
    return [Wish((name,), "y") for name in names if name not in known]


def say(text: str) -> None:
    """A line for who waits."""
    print(f"guest-kernel: {text}", file=sys.stderr, flush=True)


def environment(variables: Mapping[str, str]) -> dict[str, str]:
    """What the kernel's build gets."""
    return {name: variables[name] for name in PASSED_ON if name in variables} | SAME


def tool_version(tool: str) -> str:
    """The first line of what it says of itself."""
    try:
        done = subprocess.run([tool, "--version"], check=True, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise BuildError(f"{tool}: {error}; scripts/setup guest-kernel says what to do") from None
    return done.stdout.partition("\n")[0]


def find_source(named: str) -> Path:
    """The tarball of the kernel's source: as named, or out of the distribution's package."""
    if "/" in named:
        path = Path(named)
        if not path.is_file():
            raise BuildError(f"{path}: no tarball of a kernel's source (LINUX_SOURCE)")
        return path
    # Ubuntu has it in a directory, with a link beside that
    source = BUILD / "source"
    found = [path for path in source.glob("usr/src/**/linux-source-*.tar.*") if path.is_file()]
    if not found:
        raise BuildError(f"no linux-source-*.tar.* below {source}; run: scripts/setup guest-kernel")
    return found[0]


def key_of(source: Path, wishes: Iterable[Wish]) -> str:
    """A digest of all that the image depends on."""
    with source.open("rb") as file:
        content = hashlib.file_digest(file, "sha256").hexdigest()
    parts = [content, seed(wishes), repr(SAME), tool_version("gcc"), tool_version("ld")]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


class Tree:
    """An unpacked source, and the log of what is done with it."""

    def __init__(self, top: Path, log: Path) -> None:
        self.top = top
        self.log = log

    def run(self, what: str, *command: str) -> None:
        """Run a command in it.

        Raises:
            BuildError: it failed; the text has the end of what it said.
        """
        with self.log.open("ab") as log:
            status = subprocess.run(command, cwd=self.top, env=environment(os.environ), stdout=log,
                                    stderr=log, stdin=subprocess.DEVNULL,
                                    check=False).returncode  # fmt: skip
        if status:
            tail = self.log.read_text(errors="replace").splitlines()[-LOG_TAIL:]
            raise BuildError("\n".join([*tail, f"{what}: status {status}; all of it: {self.log}"]))

    def unpack(self, source: Path) -> None:
        """Fill it."""
        self.top.mkdir(parents=True)
        self.run("tar", "tar", "-xf", str(source.resolve()), "--strip-components=1",
                 "--no-same-owner")  # fmt: skip

    def configure(self, wishes: Iterable[Wish]) -> None:
        """Write its ``.config``.

        Raises:
            BuildError: this kernel does not have it so.
        """
        all_wishes = list(wishes)
        while True:
            (self.top / "seed.config").write_text(seed(all_wishes))
            self.run("make allnoconfig", "make", "KCONFIG_ALLCONFIG=seed.config", "allnoconfig")
            config = (self.top / ".config").read_text()
            more = mitigations(all_wishes, config)
            if not more:
                break
            all_wishes += more
        wrong = refused(all_wishes, config)
        if wrong:
            raise BuildError("\n".join([f"this kernel does not grant what {WISHES.name} asks for:",
                                        *(f"  {each}" for each in wrong)]))  # fmt: skip

    def release(self) -> str:
        """As ``uname -r`` will print it."""
        path = self.top / "include/config/kernel.release"
        release = path.read_text().strip()
        if not re.fullmatch(r"[\w.+~-]+", release):
            raise BuildError(f"{path}: not the name of a release: {release!r}")
        return release


def keep(tree: Tree, boot: Path) -> None:
    """Copy what guests need of a tree, named as distributions do, with a name that stays."""
    boot.mkdir()
    shutil.copyfile(tree.top / IMAGE, boot / f"vmlinuz-{tree.release()}")
    shutil.copyfile(tree.top / ".config", boot / f"config-{tree.release()}")
    (boot / "vmlinuz").symlink_to(f"vmlinuz-{tree.release()}")


def build(source: Path, wishes: list[Wish], jobs: int, boot: Path, key: str) -> None:
    """Make the kernel, and put it and its configuration where an older one may be."""
    work = BUILD / "work.part"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    tree = Tree(work / "linux", BUILD / "log")
    tree.log.write_bytes(b"")
    say(f"unpacking {source.name}")
    tree.unpack(source)
    tree.configure(wishes)
    say(f"building, {jobs} jobs; log: {tree.log}")
    tree.run("make bzImage", "make", f"-j{jobs}", "bzImage")
    made = work / "boot"
    keep(tree, made)
    (made / "key").write_text(key)
    shutil.rmtree(boot, ignore_errors=True)
    made.rename(boot)
    shutil.rmtree(work)


def up_to_date(boot: Path, key: str) -> bool:
    """Whether what was built last is what would be built now."""
    try:
        return (boot / "key").read_text() == key
    except FileNotFoundError:
        return False


def cache_directory(variables: Mapping[str, str]) -> Path:
    """Where nsrun looks for a user's own kernels, as cowork_nsrun/guest/kernel.py has it."""
    base = variables.get("XDG_CACHE_HOME", "")
    home = variables.get("HOME") or os.path.expanduser("~")
    return (Path(base) if os.path.isabs(base) else Path(home) / ".cache") / "nsrun"


def install(image: Path, to: Path) -> Path:
    """Copy an image and its configuration; the image last, since it is unfit without."""
    to.mkdir(mode=0o700, parents=True, exist_ok=True)
    config = image.with_name(image.name.replace("vmlinuz-", "config-", 1))
    for each in (config, image):
        part = to / f"{each.name}.part"
        shutil.copyfile(each, part)
        part.rename(to / each.name)
    return to / image.name


@contextmanager
def alone() -> Iterator[None]:
    """One build at a time; others wait."""
    BUILD.mkdir(parents=True, exist_ok=True)
    with (BUILD / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def provide(source: str, jobs: int, and_install: bool) -> None:
    """Build what is not there, and say where it is."""
    boot = BUILD / "boot"
    wishes = read_wishes(WISHES.read_text())
    with alone():
        tarball = find_source(source)
        key = key_of(tarball, wishes)
        if not up_to_date(boot, key):
            build(tarball, wishes, jobs, boot, key)
        image = (boot / "vmlinuz").resolve()
        if and_install:
            image = install(image, cache_directory(os.environ))
    say(f"{image}, {image.stat().st_size / (1 << 20):.1f} MiB")
    if not and_install:
        say(f"to try it: export NSRUN_GUEST_KERNEL={image}")
        say("to have guests boot it by default: make guest-kernel-install")


def main() -> int:
    """0; 1 with a message."""
    parser = argparse.ArgumentParser(prog="make guest-kernel", description=__doc__)
    parser.add_argument("--source", default="", help="a tarball, by a path with a slash")
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--install", action="store_true", help="for this user's guests")
    options = parser.parse_args()
    try:
        provide(options.source, options.jobs, options.install)
    except (BuildError, OSError) as error:
        say(str(error))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
