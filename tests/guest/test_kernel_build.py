"""make guest-kernel: what it asks of a kernel's source, what it refuses, what it keeps.

A kernel takes minutes to build, so the source is a stand-in whose Makefile has the targets that
are called; what comes out is looked at by nsrun itself, as an image of a user's own.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import pytest
from kernel_images import COMPRESSORS, bzimage, elf

from cowork_nsrun.guest.kernel import BUILT_IN, NEEDED, NETWORK, WELCOME, Roots, find_kernels
from cowork_nsrun.program import find_program

ROOT = Path(__file__).parents[2]
PARTS = ROOT / "packaging" / "guest-kernel"
RELEASE = "9.9.1-nsrun"
#: grants all that it is asked for, but what "edit" changes; has a mitigation that we don't name
MAKEFILE = f"""\
allnoconfig:
	sed -E -f edit $(KCONFIG_ALLCONFIG) > .config
	grep -q LATER .config || echo "# CONFIG_MITIGATION_LATER is not set" >> .config
	mkdir -p include/config
	echo {RELEASE}$(LOCALVERSION) > include/config/kernel.release
bzImage:
	@echo the compiler says something
	test ! -e broken
	mkdir -p arch/x86/boot
	cp image arch/x86/boot/bzImage
"""


@dataclass(frozen=True)
class Sources:
    """A tree with the parts of ours that are needed, and a home beside it."""

    top: Path

    @property
    def boot(self) -> Path:
        return self.top / "build/guest-kernel/boot"

    @property
    def wishes(self) -> Path:
        return self.top / "packaging/guest-kernel/guest.config"

    @property
    def home(self) -> Path:
        return self.top / "home"

    def linux(self, edit: str = "", extra: str = "") -> str:
        """A tarball of a kernel's source, which treats the wishes by a script for sed."""
        source = self.top / "linux-9.9"
        shutil.rmtree(source, ignore_errors=True)
        source.mkdir()
        (source / "Makefile").write_text(MAKEFILE)
        (source / "edit").write_text(f"{edit}\n")
        (source / "image").write_bytes(bzimage(COMPRESSORS["gzip"](elf()), release=RELEASE))
        if extra:
            (source / extra).touch()
        tarball = self.top / "linux-9.9.tar.xz"
        with tarfile.open(tarball, "w:xz") as archive:
            archive.add(source, source.name)
        return str(tarball)

    def build(
        self, source: str, *options: str, **variables: str
    ) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(self.wishes.with_name("build.py"))]
        return subprocess.run([*command, "--source", source, "--jobs", "1", *options],
                              capture_output=True, text=True, check=False,
                              env={**os.environ, "HOME": str(self.home), "XDG_CACHE_HOME": "",
                                   **variables})  # fmt: skip


@pytest.fixture
def sources(tmp_path: Path) -> Sources:
    made = Sources(tmp_path)
    shutil.copytree(PARTS, made.wishes.parent)
    made.home.mkdir()
    return made


def options() -> dict[str, str]:
    return dict(re.findall(r"CONFIG_(\w+)=(\S+)", (PARTS / "guest.config").read_text()))


def test_it_asks_for_all_that_a_guest_is_judged_by() -> None:
    have = options()
    for name in (*NEEDED.values(), *WELCOME.values(), NETWORK[1], *BUILT_IN):
        assert have[name] == "y", name
    assert have["MODULES"] == "n"


def test_installed_it_is_a_kernel_for_guests(sources: Sources) -> None:
    done = sources.build(sources.linux(), "--install")
    assert done.returncode == 0, done.stderr
    image = sources.home / ".cache/nsrun" / f"vmlinuz-{RELEASE}"
    assert sorted(image.parent.iterdir()) == [image.with_name(f"config-{RELEASE}"), image]
    (kernel,) = find_kernels(roots=Roots(sources.top, {"HOME": str(sources.home)}))
    assert (kernel.path, kernel.release, kernel.unfit) == (image, RELEASE, "")
    assert (kernel.modules, kernel.network) == ((), ())
    # by the name that stays, as docs/microvm.md has it
    for named in (None, sources.boot / "vmlinuz"):
        env = {**os.environ, "HOME": str(sources.home), "XDG_CACHE_HOME": ""}
        if named:
            env["NSRUN_GUEST_KERNEL"] = str(named)
        said = subprocess.run([find_program(), "--probe"], capture_output=True, check=True, env=env)
        probes = {probe["name"]: probe for probe in json.loads(said.stdout)["probes"]}
        assert probes["guest-kernel"]["verdict"] == "ok"
        assert str(named or image) in probes["guest-kernel"]["evidence"]


def test_it_is_built_when_something_changed_and_only_then(sources: Sources) -> None:
    def built(source: str) -> bool:
        done = sources.build(source)
        assert done.returncode == 0, done.stderr
        return "building" in done.stderr

    source = sources.linux()
    assert built(source)
    assert not built(source)
    text = sources.wishes.read_text()
    sources.wishes.write_text(f"# a word more\n{text}")
    assert not built(source)
    sources.wishes.write_text(f"{text}CONFIG_HWMON=n\n")
    assert built(source)
    config = (sources.boot / f"config-{RELEASE}").read_text()
    assert "# CONFIG_HWMON is not set" in config
    assert "CONFIG_MITIGATION_LATER=y" in config
    assert built(sources.linux(edit="s/^x/y/"))
    assert not built(source)
    assert not (sources.boot.parent / "work.part").exists()


@pytest.mark.parametrize(
    ("edit", "told"),
    [
        ("/CONFIG_VIRTIO_MMIO=/d", "CONFIG_VIRTIO_MMIO=y: it is n"),
        ("s/(CONFIG_FUSE_FS)=y/\\1=m/", "CONFIG_FUSE_FS=y: it is m"),
        ("s/# (CONFIG_MODULES) .*/\\1=y/", "CONFIG_MODULES=n: it is y"),
        ("s/(CONFIG_NR_CPUS)=.*/\\1=8/", "CONFIG_NR_CPUS=64: it is 8"),
        ("/RETPOLINE/d", "CONFIG_RETPOLINE=y | CONFIG_MITIGATION_RETPOLINE=y: it is n"),
        # of a kernel newer than our list
        ("s/(CONFIG_MITIGATION_LATER)=y/\\1=n/", "CONFIG_MITIGATION_LATER=y: it is n"),
    ],
)
def test_an_option_that_does_not_take_stops_the_build(
    sources: Sources, edit: str, told: str
) -> None:
    done = sources.build(sources.linux(edit))
    assert done.returncode == 1
    assert told in done.stderr
    assert "Traceback" not in done.stderr
    assert not sources.boot.exists()
    # one at a time: nothing else was refused
    assert len([line for line in done.stderr.splitlines() if line.startswith("  ")]) == 1


def test_one_of_an_options_names_is_enough(sources: Sources) -> None:
    done = sources.build(sources.linux("/CONFIG_RETPOLINE/d; /MITIGATION_SLS/d"))
    assert done.returncode == 0, done.stderr


def test_a_build_that_fails_says_why_and_leaves_the_last_one(sources: Sources) -> None:
    assert sources.build(sources.linux()).returncode == 0
    before = (sources.boot / "key").read_text()
    done = sources.build(sources.linux(extra="broken"))
    assert done.returncode == 1
    assert "the compiler says something" in done.stderr
    assert "make bzImage: status" in done.stderr
    assert (sources.boot / "key").read_text() == before


def test_variables_of_the_callers_change_nothing(sources: Sources) -> None:
    done = sources.build(sources.linux(), LOCALVERSION="-mine", MAKEFLAGS="--no-such-option")
    assert done.returncode == 0, done.stderr
    assert (sources.boot / "vmlinuz").readlink() == Path(f"vmlinuz-{RELEASE}")


@pytest.mark.parametrize("line", ["CONFIG_SMP", "SMP=y", "CONFIG_SMP=y", "CONFIG_A=y | CONFIG_B=n"])
def test_a_line_that_is_none_is_named(sources: Sources, line: str) -> None:
    with sources.wishes.open("a") as file:
        file.write(f"{line}\n")
    number = len(sources.wishes.read_text().splitlines())
    done = sources.build(sources.linux())
    assert done.returncode == 1
    assert f"guest.config:{number}: " in done.stderr


def test_no_source(sources: Sources) -> None:
    done = sources.build("./nothing.tar")
    assert (done.returncode, "no tarball of a kernel's source" in done.stderr) == (1, True)
    done = sources.build("")
    assert (done.returncode, "run: scripts/setup guest-kernel" in done.stderr) == (1, True)


# --- scripts/setup guest-kernel, with a PATH of the test's own ----------------------------------

#: package, and the program or the word for the compiler by which it is missed
WANTED = {"flex": "flex", "bison": "bison", "bc": "bc", "make": "make", "gcc": "gcc",
          "xz-utils": "xz", "bzip2": "bzip2"}  # fmt: skip
USED = ("bash", "flock", "mkdir", "uname", "awk", "rm", "mv", "dirname", "touch", "env")
#: what is written to a compiler must be read, or the writer fails
READ = "while read -r; do :; done"
#: knows one package by its version in "version", and counts what it is asked to download
APT = {
    "apt-get": 'case "$*" in download*) echo >>"$HERE/downloads"; touch "${3}_1_all.deb" ;; esac',
    "apt-cache": 'case $1 in depends) echo "  Depends: linux-source-9.9" ;; '
                 'show) read -r v <"$HERE/version"; echo "Version: $v" ;; esac',
    "dpkg": 'mkdir -p "$3/usr/src" && touch "$3/usr/src/linux-source-9.9.tar.xz"',
}  # fmt: skip


class Machine:
    """scripts/setup where only some programs are."""

    def __init__(self, top: Path) -> None:
        self.top = top
        self.bin = top / "bin"
        self.bin.mkdir()
        (top / "scripts").mkdir()
        shutil.copy(ROOT / "scripts/setup", top / "scripts")
        for name in USED:
            found = shutil.which(name)
            assert found is not None, name
            (self.bin / name).symlink_to(found)

    def add(self, names: Iterable[str], text: str = "exit 0") -> None:
        for name in names:
            (self.bin / name).write_text(f"#!{self.bin}/bash\n{text}\n")
            (self.bin / name).chmod(0o755)

    def setup(self, **variables: str) -> subprocess.CompletedProcess[str]:
        env = {"PATH": str(self.bin), "HERE": str(self.top), "PYTHON3": sys.executable}
        return subprocess.run([str(self.bin / "bash"), str(self.top / "scripts/setup"),
                               "guest-kernel"], env={**env, **variables}, capture_output=True,
                              text=True, check=False)  # fmt: skip


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    made = Machine(tmp_path)
    made.add(WANTED.values())
    made.add(["cc"], READ)
    return made


@pytest.mark.parametrize("package", WANTED)
def test_setup_names_what_is_missing(
    machine: Machine, package: str, lack: Callable[[str], NoReturn]
) -> None:
    if shutil.which(WANTED[package], path="/usr/sbin:/sbin"):
        lack("scripts/setup looks into /sbin, which has all programs here: none can be missing")
    (machine.bin / WANTED[package]).unlink()
    done = machine.setup(LINUX_SOURCE="./linux.tar.xz")
    command = f"sudo apt-get install -y --no-install-recommends {package}\n"
    assert (done.returncode, done.stderr) == (1, f"setup: not found: {package}; run: {command}")


def test_setup_names_all_that_is_missing_at_once(machine: Machine) -> None:
    """A library and each program that /sbin doesn't have; its order is that of the list."""
    names = ["flex", "bison", "bc"]
    gone = [name for name in names if not shutil.which(name, path="/usr/sbin:/sbin")]
    for name in gone:
        (machine.bin / name).unlink()
    machine.add(["cc"], f'{READ}; [[ "$*" != *-lelf* ]]')
    done = machine.setup(LINUX_SOURCE="./linux.tar.xz")
    packages = " ".join([*gone, "libelf-dev"])
    command = f"sudo apt-get install -y --no-install-recommends {packages}\n"
    assert (done.returncode, done.stderr) == (1, f"setup: not found: {packages}; run: {command}")


def test_setup_names_a_missing_library(machine: Machine) -> None:
    machine.add(["cc"], f'{READ}; [[ "$*" != *-lelf* ]]')
    done = machine.setup(LINUX_SOURCE="./linux.tar.xz")
    assert done.returncode == 1
    assert "run: sudo apt-get install -y --no-install-recommends libelf-dev\n" in done.stderr


def test_setup_without_packages_of_debian(machine: Machine) -> None:
    done = machine.setup()
    assert done.returncode == 1
    assert "run it where apt-get and dpkg are" in done.stderr
    assert machine.setup(LINUX_SOURCE="./linux.tar.xz").returncode == 0


def test_setup_takes_a_source_once_a_version(machine: Machine) -> None:
    for name, text in APT.items():
        machine.add([name], text)
    source = machine.top / "build/guest-kernel/source"
    for version, downloads in (("1.0-1", 1), ("1.0-1", 1), ("1.0-2", 2)):
        (machine.top / "version").write_text(f"{version}\n")
        done = machine.setup()
        assert done.returncode == 0, done.stderr
        assert (source / "package").read_text() == f"linux-source-9.9 {version}\n"
        assert (source / "usr/src/linux-source-9.9.tar.xz").exists()
        assert len((machine.top / "downloads").read_text().splitlines()) == downloads


def test_setup_where_apt_knows_no_source(machine: Machine) -> None:
    machine.add(APT)
    machine.add(["apt-cache"], "exit 100")
    done = machine.setup()
    assert done.returncode == 1
    assert "apt knows no package for the kernel of guests; run: sudo apt-get update" in done.stderr
