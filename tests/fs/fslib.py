"""The file server behind /dev/fuse: build it with sanitizers, mount it, look into it."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from cowork_nsrun.guest.view import Export, view_bytes

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
MONITOR = ROOT / "csrc" / "vmm"
SERVER = MONITOR / "fs"
#: address or thread
SANITIZER = os.environ.get("NSRUN_FS_SANITIZER", "address")
#: all of it, not the part that ordinary runs have time for
FULL = bool(os.environ.get("NSRUN_FS_FULL"))
FLAGS = (
    *("-std=c17", "-D_GNU_SOURCE", "-g", "-O1", "-Wall", "-Wextra", "-Wshadow", "-Werror"),
    *("-fno-omit-frame-pointer", "-fno-sanitize-recover=all", "-pthread", f"-I{SERVER}"),
    f"-I{MONITOR}",
)
KINDS = {"address": "address,undefined", "thread": "thread", "none": ""}
OPTIONS = {
    "ASAN_OPTIONS": "abort_on_error=0:exitcode=99",
    "UBSAN_OPTIONS": "print_stacktrace=1",
    "TSAN_OPTIONS": "halt_on_error=1:exitcode=99",
}
#: seconds after which something counts as hung, far more than anything takes
HANG = 300


def links(sanitizer: str) -> bool:
    """Whether the compiler has the sanitizer's library."""
    with tempfile.TemporaryDirectory() as name:
        flags = [f"-fsanitize={KINDS[sanitizer]}"] if KINDS[sanitizer] else []
        command = ["cc", *flags, "-x", "c", "-", "-o", f"{name}/a"]
        source = b"int main(void) { return 0; }\n"
        return (
            subprocess.run(command, input=source, capture_output=True, check=False).returncode == 0
        )


def build(source: str, directory: Path, sanitizer: str) -> Path:
    """tests/fs/SOURCE.c with the server in it, and for the mounter the monitor's walls."""
    built = directory / source
    flags = [f"-fsanitize={KINDS[sanitizer]}"] if KINDS[sanitizer] else []
    files = [HERE / f"{source}.c", *sorted(SERVER.glob("*.c"))]
    if source == "mounter":
        files += [MONITOR / "walls.c", HERE.parent / "vmm" / "fail.c"]
    subprocess.run(["cc", *FLAGS, *flags, *map(str, files), "-o", str(built)], check=True)
    return built


@dataclass(frozen=True)
class Mounted:
    """A mount of the server's, in a mount namespace of the mounter's own.

    Attributes:
        pid: of the mounter.
        place: where it is in that namespace.
    """

    pid: int
    place: Path

    @property
    def path(self) -> Path:
        """The way to it from here."""
        return Path(f"/proc/{self.pid}/root{self.place}")

    def __truediv__(self, name: str) -> Path:
        return self.path / name

    def run(
        self, command: Sequence[str | Path], where: str = "0", check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        """A command inside, with its directory on the mount."""
        words = ["nsenter", "--target", str(self.pid), "--mount", f"--wdns={self.place / where}"]
        return subprocess.run(
            [*words, "--", *map(str, command)],
            capture_output=True,
            text=True,
            check=check,
            timeout=HANG,
        )


Mount = Callable[..., contextlib.AbstractContextManager[Mounted]]


@contextlib.contextmanager
def mounted(
    mounter: Path, exports: Sequence[Export], *, threads: int = 2, files: int | None = None
) -> Iterator[Mounted]:
    """The server with that view; in the end it must not have complained.

    Args:
        threads: how many serve.
        files: RLIMIT_NOFILE of the server.
    """
    with tempfile.TemporaryDirectory(prefix="nsrun-fs-") as name:
        view, place = Path(name, "view"), Path(name, "mount")
        view.write_bytes(view_bytes(exports))
        place.mkdir()

        words = [str(mounter), str(view), str(place), str(threads)]
        if files is not None:
            words = ["sh", "-c", f'ulimit -n {files}; exec "$0" "$@"', *words]
        process = subprocess.Popen(
            words,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, **OPTIONS},
        )
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == b"ready\n", process.communicate()[1].decode()
            yield Mounted(process.pid, place)
            _, errors = process.communicate(b"", timeout=HANG)
            assert (process.returncode, errors.decode()) == (0, "")
        finally:
            # a request that is never answered keeps whoever made it
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout, process.stderr):
                if pipe is not None:
                    pipe.close()


def lacking() -> str | None:
    """What this machine lacks for mounts of the server."""
    if os.geteuid() != 0:
        return "a mount of the file server through /dev/fuse needs root"
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        return "no /dev/fuse: the file server is not tested through it"
    for tool in ("cc", "nsenter"):
        if not shutil.which(tool):
            return f"no {tool}: the file server is not tested through /dev/fuse"
    return None
