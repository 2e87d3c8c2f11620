"""Saved machines with stock kernels and our agent: restored, and forked from a zygote.

On KVM that runs stock kernels alone: in the bed.  NSRUN_CLONES=n for more than a few clones.
"""

from __future__ import annotations

import os
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

import pytest

from cowork_nsrun.guest import cache
from cowork_nsrun.guest.agent import Agent
from cowork_nsrun.guest.agent import Settings as CommandSettings
from cowork_nsrun.guest.compile import translate
from cowork_nsrun.guest.kernel import Kernel
from cowork_nsrun.guest.machine import Machine, Size, wait_for_agent
from cowork_nsrun.guest.template import Template, Zygote, key
from cowork_nsrun.guest.view import Export, view_bytes
from cowork_nsrun.guest.vmm import Ended, GuestError, Monitor, Settings, StreamRefused, find_beside
from cowork_nsrun.plan import Plan

HERE = Path(__file__).parent
CLONES = int(os.environ.get("NSRUN_CLONES", "8"))
MEMORY_MIB = 128
SECOND = 1_000_000_000
#: of age that a template has at least when clones are asked for the time, in seconds
AGE = 5
#: of what a clone may be wrong by, in seconds; far less than the age
TOLERANCE = 2
#: seconds that a guest may take to boot, emulated and on a busy machine
PATIENCE = 900.0


def wait_ready(monitor: Monitor) -> None:
    """Until the agent listens."""
    wait_for_agent(monitor, PATIENCE)


def view_of(*exports: Export) -> BinaryIO:
    file = open(os.memfd_create("view"), "w+b")  # noqa: SIM115 - given away
    file.write(view_bytes(exports))
    file.flush()
    file.seek(0)
    return file


@dataclass(frozen=True)
class Drawn:
    random: str
    clock: int
    uptime: int


@dataclass(frozen=True)
class World:
    """What there is to be restored, and what to run in it."""

    kernel: Kernel
    agent: Path
    template: Template
    program: Path

    @contextmanager
    def settings(self) -> Iterator[Settings]:
        """For one more machine of this kind."""
        with view_of() as view:
            yield replace(self.template.settings, shares={"nsrun": view})

    def draw(self, monitor: Monitor) -> Drawn:
        """Run the program, which lies in a directory that is shared for it."""
        argv = ["--unshare-all", "--ro-bind", str(self.program.parent), "/x", "--dev", "/dev"]
        translation = translate(Plan.from_argv([*argv, "--", f"/x/{self.program.name}"]))
        with view_of(*translation.exports) as view:
            first = monitor.export(view)
        settings = CommandSettings(
            os.getuid(), os.getgid(), clock_ns=time.time_ns(), entropy=os.urandom(32)
        )
        plan = translation.plan(first)
        with Agent(monitor.connect).start(plan, settings, stdin=False, stderr=False) as command:
            assert command.stdout is not None
            with command.stdout.makefile("r") as stdout:
                words = stdout.read().split()
            assert command.wait() == 0
        return Drawn(words[0], int(words[1]), int(words[2]))


@pytest.fixture(scope="module")
def program(open_directory: Path, c_compiler: list[str]) -> Path:
    program = open_directory / "draw" / "draw"
    program.parent.mkdir()
    command = [*c_compiler, "-D_GNU_SOURCE", "-o", str(program), str(HERE / "draw.c")]
    subprocess.run(command, check=True)
    return program


@pytest.fixture(scope="module")
def world(kernel: Kernel, program: Path) -> Iterator[World]:
    agent = find_beside("nsrun-agent")
    with view_of() as view:
        settings = Settings(MEMORY_MIB, cmdline="quiet nsrun.fs", shares={"nsrun": view})
        with Template.find(kernel, agent, settings, wait_ready) as template:
            yield World(kernel, agent, template, program)


def check_clones(world: World, clones: list[Monitor]) -> list[Drawn]:
    """Each is asked, and is then ended; what all of them said."""
    time.sleep(AGE)
    drawn = []
    for clone in clones:
        with clone:
            before = time.time_ns()
            drawn.append(world.draw(clone))
            after = time.time_ns()
            least, most = before - TOLERANCE * SECOND, after + TOLERANCE * SECOND
            assert least <= drawn[-1].clock <= most
            # nothing in the kernel's eyes is odd
            assert clone.console == b""
    return drawn


def test_restored(world: World) -> None:
    """Clones draw different bytes, and show the time of now; they are as old as each other."""
    with world.settings() as one, world.settings() as another:
        clones = [world.template.restore(one), world.template.restore(another)]
        first, second = check_clones(world, clones)
    assert first.random != second.random
    assert abs(first.uptime - second.uptime) < 60 * SECOND


def test_forked(world: World) -> None:
    """Of so many clones each draws bytes of its own."""
    drawn: list[Drawn] = []
    with world.settings() as settings, Zygote(world.template, settings) as zygote:
        drawn += check_clones(world, [zygote.fork(), zygote.fork(cid=77)])
        for _ in range(CLONES - 2):
            with zygote.fork() as clone:
                drawn.append(world.draw(clone))
                assert abs(time.time_ns() - drawn[-1].clock) < 600 * SECOND
    assert len({one.random for one in drawn}) == CLONES
    clocks = [one.clock for one in drawn]
    assert clocks == sorted(clocks)


def test_a_clone_is_a_whole_machine(world: World) -> None:
    """It runs several commands, refuses what nobody listens on, and is switched off."""
    with (
        world.settings() as settings,
        Zygote(world.template, settings) as zygote,
        zygote.fork() as clone,
    ):
        assert Agent(clone.connect).info().release == world.kernel.release
        with pytest.raises(StreamRefused):
            clone.connect(99)
        assert world.draw(clone).random != world.draw(clone).random
        Agent(clone.connect).power_off()
        assert clone.wait() is Ended.POWER_OFF


def test_clones_outlive_the_zygote(world: World) -> None:
    with world.settings() as settings:
        with Zygote(world.template, settings) as zygote:
            clone = zygote.fork()
        with clone:
            world.draw(clone)
        with pytest.raises(GuestError, match="the zygote is closed"):
            zygote.fork()


def test_a_killed_zygote(world: World) -> None:
    with (
        world.settings() as settings,
        Zygote(world.template, settings) as zygote,
        zygote.fork() as clone,
    ):
        zygote._process.kill()
        with pytest.raises(GuestError, match="ended with status -9"):
            zygote.fork()
        world.draw(clone)


def test_a_file_that_is_no_template(world: World, tmp_path: Path) -> None:
    """It is said what is wrong with it, by both."""
    (tmp_path / "file").write_bytes(b"something else")
    with world.settings() as settings, (tmp_path / "file").open("rb") as file:
        template = Template(file, settings)
        with template.restore() as clone, pytest.raises(GuestError, match="no saved machine"):
            clone.wait_running()
        with Zygote(template) as zygote, pytest.raises(GuestError, match="no saved machine"):
            zygote.fork()


def test_a_killed_clone(world: World) -> None:
    with world.settings() as settings, Zygote(world.template, settings) as zygote:
        with zygote.fork() as clone:
            os.kill(clone.pid, signal.SIGKILL)
            assert clone.wait() is Ended.UNKNOWN
            with pytest.raises(GuestError):
                clone.connect(1024)
        with zygote.fork() as clone:
            world.draw(clone)


def test_what_can_not_be_saved(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A machine with a stream, and one that shares files; both go on."""
    monkeypatch.setattr("cowork_nsrun.guest.template.PATIENCE", 0.5)
    with world.settings() as settings, world.template.restore(settings) as clone:
        with (tmp_path / "file").open("xb") as file:
            with closing(clone.connect(1024)):
                clone.pause()
                with pytest.raises(GuestError, match="vsock: streams are open"):
                    clone.save(file)
                clone.resume()
            world.draw(clone)
            with pytest.raises(GuestError, match="fs: files are shared"):
                Template.save(clone, file)
            clone.resume()
        assert (tmp_path / "file").stat().st_size == 0
        world.draw(clone)


def test_saved_once_more(world: World, tmp_path: Path) -> None:
    """A clone that shared nothing can be a template itself."""
    with world.settings() as settings, world.template.restore(settings) as clone:
        Agent(clone.connect).info()
        with (tmp_path / "file").open("x+b") as file:
            again = Template.save(clone, file)
            with world.settings() as other, again.restore(other) as second:
                world.draw(second)


def test_it_is_kept(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second time none is made; the file is this user's alone."""

    def never(_: Monitor) -> None:
        raise AssertionError("it is made a second time")

    settings = world.template.settings
    with Template.find(world.kernel, world.agent, settings, never) as again:
        assert os.fstat(again.file.fileno()).st_ino == os.fstat(world.template.file.fileno()).st_ino
    assert cache.directory().stat().st_mode & 0o777 == 0o700
    name = cache.directory() / f"template-{key(world.kernel, world.agent, settings)}"
    assert name.stat().st_mode & 0o777 == 0o600
    assert name.stat().st_blocks * 512 < MEMORY_MIB << 20


def test_what_makes_it_another(world: World, tmp_path: Path) -> None:
    """Each thing that it depends on changes its name."""
    settings = world.template.settings
    agent = shutil.copy(world.agent, tmp_path / "agent")
    kernel = replace(world.kernel, path=Path(shutil.copy(world.kernel.path, tmp_path / "kernel")))
    keys = [
        key(world.kernel, world.agent, settings),
        key(world.kernel, Path(agent), settings),
        key(kernel, world.agent, settings),
        key(world.kernel, world.agent, replace(settings, memory_mib=MEMORY_MIB + 1)),
        key(world.kernel, world.agent, replace(settings, cpus=2)),
        key(world.kernel, world.agent, replace(settings, cmdline="quiet")),
        key(world.kernel, world.agent, replace(settings, shares={})),
    ]
    assert len(set(keys)) == len(keys)
    assert keys[0] == key(world.kernel, world.agent, replace(settings, cid=9))


OWNER = """
import os, sys, time
from cowork_nsrun.guest.template import Template, Zygote
from cowork_nsrun.guest.vmm import Settings
with open(sys.argv[1], "rb") as file, open(sys.argv[2], "rb") as view:
    settings = Settings(128, cmdline="quiet nsrun.fs", shares={"nsrun": view})
    template = Template(file, settings)
    with Zygote(template) as zygote:
        clones = [zygote.fork(), zygote.fork(), template.restore()]
        for clone in clones:
            clone.wait_running()
        print(zygote._process.pid, *(clone.pid for clone in clones), flush=True)
        time.sleep(1000)
"""


def test_a_killed_owner_leaves_nothing(world: World) -> None:
    with world.settings() as settings:
        fds = [world.template.file.fileno(), settings.shares["nsrun"].fileno()]
        command = [sys.executable, "-I", "-c", OWNER, *(f"/proc/self/fd/{fd}" for fd in fds)]
        owner = subprocess.Popen(command, stdout=subprocess.PIPE, pass_fds=fds)
    assert owner.stdout is not None
    pids = [int(word) for word in owner.stdout.readline().split()]
    assert len(pids) == 4
    handles = [os.pidfd_open(pid) for pid in pids]
    owner.kill()
    owner.wait()
    owner.stdout.close()
    for handle in handles:
        select.select([handle], [], [])
        os.close(handle)


def test_two_processes_make_it_once(world: World, tmp_path: Path) -> None:
    """Both want the same template at the same time; one boots, both have it."""
    made = tmp_path / "made"
    script = (
        "import os, sys\n"
        "from pathlib import Path\n"
        "sys.path.insert(0, sys.argv[1])\n"
        "from test_template import *\n"
        "from cowork_nsrun.guest.kernel import choose\n"
        "def ready(monitor):\n"
        "    wait_ready(monitor)\n"
        "    os.close(os.open(sys.argv[2], os.O_CREAT | os.O_EXCL))\n"
        "with view_of() as view:\n"
        "    settings = Settings(128, cmdline='quiet nsrun.fs', shares={'nsrun': view})\n"
        "    with Template.find(choose(), find_beside('nsrun-agent'), settings, ready) as found:\n"
        "        print(os.fstat(found.file.fileno()).st_ino)\n"
    )
    command = [sys.executable, "-I", "-c", script, str(HERE), str(made)]
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache")}
    both = [
        subprocess.Popen(command, stdout=subprocess.PIPE, env=environment, text=True)
        for _ in range(2)
    ]
    inodes = {one.communicate()[0] for one in both}
    assert [one.returncode for one in both] == [0, 0]
    assert len(inodes) == 1
    assert made.exists()


def is_clone(machine: Machine) -> bool:
    return b"--restore" in Path(f"/proc/{machine.monitor.pid}/cmdline").read_bytes().split(b"\0")


def test_machines_become_templates(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first one boots, the next is its clone; a template that was damaged is removed."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    size = Size(memory_mib=MEMORY_MIB, cpus=2)
    with Machine(world.kernel.path, size) as first:
        assert not is_clone(first)
        first.wait_ready()
        [template] = cache.directory().glob("template-*")
        with Machine(world.kernel.path, size) as second:
            assert is_clone(second)
            second.wait_ready()
            assert world.draw(first.monitor).random != world.draw(second.monitor).random
    with template.open("r+b") as file:
        file.write(b"something else")
    with Machine(world.kernel.path, size) as third:
        assert not is_clone(third)
    assert not template.exists()
