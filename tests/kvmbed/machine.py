"""One run in the bed: QEMU, its channels, and what it gives back."""

from __future__ import annotations

import contextlib
import io
import os
import re
import select
import shlex
import signal
import socket
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from types import FrameType
from typing import BinaryIO, NoReturn

from . import files, images, initramfs

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
CACHE = ROOT / "build" / "kvmbed"
#: exit status as of timeout(1), and of a bed that broke
TIMED_OUT = 124
BROKEN = 125
POLL_S = 0.5
#: main says every 5 seconds that it is there
STILL_S = 180
#: the part of a job's time after which its processes are listed
WATCHED = 0.8
TAIL_LINES = 80


@dataclass(frozen=True)
class Job:
    """What to run in the bed, and as whom.

    ``user`` is a uid, which becomes the gid too; ``groups`` are names of supplementary groups.
    ``delegated`` puts the command below a cgroup that belongs to the user.  ``still_s`` is how
    long nothing may be heard of the machine.  ``results`` is where the files go that the command
    writes to /run/results ($RESULTS); None drops them.
    """

    command: tuple[str, ...]
    user: int = 0
    groups: tuple[str, ...] = ()
    delegated: bool = False
    sysctls: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    timeout_s: float = 600
    still_s: float = STILL_S
    memory_mib: int = 2048
    results: Path | None = None


class Bed:
    """The images, made when first needed."""

    def __init__(self) -> None:
        self.kernel = initramfs.Kernel(CACHE / "kernel")

    def open_images(self, channels: Channels) -> list[int]:
        """The system's and the tree's; a changed source makes only the latter anew.

        Opened, since another run may remove what this one has not used for long.
        """
        kernel = {
            # /lib may be a link
            Path("/lib").resolve() / path.relative_to(CACHE / "kernel" / "lib"): path
            for path in files.walk(self.kernel.modules)
        } | {
            # as installed: microVMs of the bed boot it too
            Path("/boot") / path.name: path
            for path in (self.kernel.image, self.kernel.configuration)
        }
        with images.locked(CACHE):
            found = []
            for kind, content in (
                ("system", {path: path for path in files.system()} | kernel),
                ("tree", {"/" / path.relative_to(ROOT): path for path in files.tree(ROOT)}),
            ):
                begin = time.monotonic()
                image, made = images.cached(CACHE, kind, content)
                if made:
                    size = image.stat().st_blocks * 512 >> 20
                    say(f"made {image.name}, {size} MiB, {time.monotonic() - begin:.1f} s")
                found.append(channels.file(image.name, image.open("rb")))
        return found

    def run(self, job: Job, *outputs: BinaryIO) -> int:
        """Run a job, its output streamed to each file: its exit status, TIMED_OUT or BROKEN."""
        begin = time.monotonic()
        with contextlib.ExitStack() as stack:
            channels = Channels(stack)
            initial = channels.memory("initrd", self._initramfs(job))
            command = self._qemu(job, self.open_images(channels), initial, channels)
            started = time.monotonic()
            messages = channels.memory("messages")
            qemu = stack.enter_context(_started(command, channels.fds, messages))
            channels.given()
            end = _stream(channels, outputs, started + job.timeout_s, job.still_s)
            if end is End.STILL:
                say(f"stood still for {job.still_s:g} s: stopped; its processor:")
                say(channels.processor())
            if end is not End.ENDED:
                qemu.kill()
            qemu.wait()
            status = channels.status()
            if end is End.LATE:
                say(f"no end after {job.timeout_s:g} s: stopped")
                status = TIMED_OUT
            elif end is End.STILL:
                status = BROKEN
            elif status is None:
                status = BROKEN
                say(f"the machine ended without an exit status; its console:\n{channels.tail()}")
            if job.results is not None:
                channels.unpack(job.results)
            say(
                f"exit status {status}; {started - begin:.1f} s to prepare,"
                f" {time.monotonic() - started:.1f} s in the machine"
            )
            return status

    def _initramfs(self, job: Job) -> bytes:
        groups = "--groups " + ",".join(job.groups) if job.groups else "--clear-groups"
        settings = {
            "TREE": str(ROOT),
            "USER_ID": str(job.user),
            "SUPPLEMENTARY": groups,
            "DELEGATED": "yes" if job.delegated else "",
            "SYSCTLS": " ".join(job.sysctls),
            "WATCHED": str(int(job.timeout_s * WATCHED)),
        }
        home = "/home/bed" if job.user else "/root"
        environment = {
            "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "HOME": home,
            "USER": "bed" if job.user else "root",
            "LOGNAME": "bed" if job.user else "root",
            "LANG": "C.UTF-8",
            "TERM": "dumb",
            "COLUMNS": "100",
            "NSRUN_KVMBED": "inside",
            "BED_DELEGATED": settings["DELEGATED"],
            "RESULTS": "/run/results",
            **job.environment,
        }
        words = [f"{name}={value}" for name, value in environment.items()]
        command = f"cd {shlex.quote(str(ROOT))} && exec " + shlex.join(
            ["env", "-i", *words, *job.command]
        )
        lines = (f"{name}={shlex.quote(value)}" for name, value in settings.items())
        return initramfs.initramfs(self.kernel, HERE, "\n".join(lines) + "\n", command + "\n")

    def _qemu(self, job: Job, disks: list[int], initial: int, channels: Channels) -> list[str]:
        words = ["qemu-system-x86_64", "-nodefaults", "-no-user-config", "-display", "none"]
        # one processor: with two a guest of the guest hangs (QEMU 7.2)
        words += ["-M", "q35", "-accel", "tcg,thread=single", "-cpu", "EPYC,+svm", "-smp", "1"]
        words += ["-m", str(job.memory_mib), "-no-reboot", "-nic", "none"]
        words += ["-kernel", str(self.kernel.image), "-initrd", f"/dev/fd/{initial}"]
        words += ["-append", "console=ttyS0 loglevel=4 panic=-1 rdinit=/init"]
        words += ["-chardev", f"file,id=console,path=/dev/fd/{channels.memory('console')}"]
        words += ["-serial", "chardev:console"]
        for disk in disks:
            # changes go to a file without a name
            words += [
                "-drive",
                f"if=virtio,format=raw,snapshot=on,cache=unsafe,file=/dev/fd/{disk}",
            ]
        words += ["-device", "virtio-serial-pci"]
        for name in ("output", "alive", "wake", "monitor"):
            words += ["-chardev", f"socket,id={name},fd={channels.socket(name)}"]
        words += ["-mon", "chardev=monitor,mode=readline"]
        for name in ("results", "status"):
            words += ["-chardev", f"file,id={name},path=/dev/fd/{channels.memory(name)}"]
        for name in ("output", "alive", "wake", "results", "status"):
            words += ["-device", f"virtserialport,chardev={name},name={name}"]
        return words


class End(Enum):
    """How a run came to its end."""

    ENDED = "by itself"
    LATE = "its time was up"
    STILL = "nothing in it moved any more"


class Channels:
    """Memory files and sockets: nothing that has a name, so nothing to leave behind."""

    def __init__(self, stack: contextlib.ExitStack) -> None:
        self.ends: dict[str, socket.socket] = {}
        self._theirs: list[socket.socket] = []
        self._stack = stack
        self._files: dict[str, BinaryIO] = {}

    def socket(self, name: str) -> int:
        """QEMU's end; ours is in :attr:`ends`."""
        ours, theirs = map(self._stack.enter_context, socket.socketpair())
        self.ends[name] = ours
        self._theirs.append(theirs)
        return theirs.fileno()

    def given(self) -> None:
        """QEMU has its ends."""
        for end in self._theirs:
            end.close()

    def memory(self, name: str, content: bytes = b"") -> int:
        file = os.fdopen(os.memfd_create(name), "w+b")
        file.write(content)
        file.flush()
        return self.file(name, file)

    def file(self, name: str, file: BinaryIO) -> int:
        """Keep a file open until the end of the run, and hand it to QEMU."""
        self._files[name] = self._stack.enter_context(file)
        return file.fileno()

    @property
    def fds(self) -> list[int]:
        files = [file.fileno() for file in self._files.values()]
        return [*(end.fileno() for end in self._theirs), *files]

    def _read(self, name: str) -> bytes:
        file = self._files[name]
        file.seek(0)
        return file.read()

    def status(self) -> int | None:
        text = self._read("status").strip()
        return int(text) if text.isdigit() else None

    def tail(self) -> str:
        """What QEMU and the guest's kernel said last."""
        text = self._read("messages") + self._read("console")
        lines = text.decode(errors="replace").splitlines()
        # of the processor's model, always there, harmless
        told = [line for line in lines if "TCG doesn't support requested feature" not in line]
        return "\n".join(f"  {line}" for line in told[-TAIL_LINES:])

    def processor(self) -> str:
        """What QEMU's monitor says of it."""
        monitor = self.ends["monitor"]
        monitor.settimeout(POLL_S)
        text = b""
        with contextlib.suppress(TimeoutError, ConnectionError):
            for _ in range(2):
                monitor.sendall(b"info registers\ninfo lapic\n")
            while data := monitor.recv(65536):
                text += data
        lines = re.sub(r"\x1b\[[0-9]*.", "", text.decode(errors="replace")).splitlines()
        return "\n".join(f"  {line}" for line in lines)

    def unpack(self, directory: Path) -> None:
        data = self._read("results")
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "console.log").write_bytes(self._read("console"))
        if data:
            with tarfile.open(fileobj=io.BytesIO(data)) as archive:
                # which Debian 12's Python 3.11.2 does not know
                archive.extraction_filter = getattr(tarfile, "data_filter", None)
                archive.extractall(directory)


def _stream(
    channels: Channels, outputs: Iterable[BinaryIO], deadline: float, still_s: float
) -> End:
    """Copy until the end, or until it is known that none will come.

    An interrupt that comes while a guest of the bed's ends its turn may be lost (QEMU 7.2: where
    SVM changes the processor's pending requests it holds no lock), and with the timer's all that
    waits for it.  It is found by the next one: so there is one of ours now and then.
    """
    output, alive, wake = (channels.ends[name] for name in ("output", "alive", "wake"))
    wake.setblocking(False)
    heard = time.monotonic()
    woken = 0.0
    while time.monotonic() < deadline:
        if time.monotonic() - woken >= POLL_S:
            woken = time.monotonic()
            with contextlib.suppress(BlockingIOError, ConnectionError):
                wake.send(b"\n")
        ready, _, _ = select.select([output, alive], [], [], POLL_S)
        if alive in ready and alive.recv(65536):
            heard = time.monotonic()
        elif time.monotonic() - heard > still_s:
            return End.STILL
        if output not in ready:
            continue
        data = output.recv(65536)
        if not data:
            return End.ENDED
        for file in outputs:
            file.write(data)
            file.flush()
    return End.LATE


@contextlib.contextmanager
def _started(
    command: list[str], fds: list[int], messages: int
) -> Iterator[subprocess.Popen[bytes]]:
    """QEMU, which ends with this process, however that ends."""
    environment = {**os.environ, "TMPDIR": str(CACHE)}
    qemu = subprocess.Popen(
        ["setpriv", "--pdeathsig", "KILL", *command],
        stdin=subprocess.DEVNULL,
        stdout=messages,
        stderr=messages,
        pass_fds=fds,
        env=environment,
        # ctrl-C is for this process, which then ends QEMU
        start_new_session=True,
    )
    try:
        yield qemu
    finally:
        qemu.kill()
        qemu.wait()


def say(text: str) -> None:
    sys.stdout.flush()
    print(f"kvmbed: {text}", file=sys.stderr, flush=True)


def _interrupted(number: int, _frame: FrameType | None) -> NoReturn:
    raise SystemExit(128 + number)


def reported(work: Callable[[], int]) -> int:
    """What the work returns; BROKEN, with one line, for what it lacks or can't do."""
    try:
        return work()
    except subprocess.CalledProcessError as error:
        said = str(error.stderr or "see above").strip()
        say(f"{error.cmd[0]}: status {error.returncode}: {said}")
    except (OSError, LookupError, tarfile.TarError) as error:
        say(f"{type(error).__name__}: {error}")
    return BROKEN


def end_on_signals() -> None:
    """Have finally clauses run for the signals that end a program."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupted)
