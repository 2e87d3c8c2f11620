"""ext4 images of chosen files, made by mke2fs, kept by what is in them."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

#: part of every key: another way to make images makes other images
RECIPE = "1"
#: written anew whenever a package is installed; what it says of the files here stays true
VOLATILE = frozenset([Path("/etc/ld.so.cache")])
FREE = 2 << 30
#: kept of each kind, so that two trees that share a cache don't rebuild in turns
KEPT = 2


@contextlib.contextmanager
def locked(directory: Path) -> Iterator[None]:
    """One builder at a time; what a killed one left is removed."""
    directory.mkdir(parents=True, exist_ok=True)
    fd = os.open(directory / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        for left in directory.glob("*.part"):
            _remove(left)
        yield
    finally:
        os.close(fd)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def key(files: Mapping[Path, Path]) -> str:
    """A digest of the names, owners, sizes and times of source files by guest path."""
    digest = hashlib.sha256(RECIPE.encode())
    for path, source in sorted(files.items()):
        stat = source.lstat()
        content: tuple[object, ...] = ()
        if source.is_symlink():
            content = (os.readlink(source),)
        elif not source.is_dir():
            content = (stat.st_size, stat.st_mtime_ns)
        words = (str(path), stat.st_mode, stat.st_uid, stat.st_gid, *content)
        digest.update(repr(words).encode())
    return digest.hexdigest()[:16]


class Stage:
    """A directory that becomes an image."""

    def __init__(self, top: Path) -> None:
        self.top = top
        self.owners: list[tuple[str, int, int]] = []
        top.mkdir()
        top.chmod(0o755)

    def add(self, path: Path, source: Path) -> None:
        """Copy one file, link or directory entry; directories above it are made."""
        place = self.top / path.relative_to("/")
        stat = source.lstat()
        if source.is_symlink() or source.is_file():
            self._parents(path)
            shutil.copy2(source, place, follow_symlinks=False)
            self._own(path, stat)
        elif source.is_dir():
            self._parents(path / "x")

    def _parents(self, path: Path) -> None:
        for parent in reversed(path.parents):
            place = self.top / parent.relative_to("/")
            if not place.exists():
                place.mkdir()
                # everybody may pass: Python may live below a home directory
                place.chmod(0o755)

    def _own(self, path: Path, stat: os.stat_result) -> None:
        place = self.top / path.relative_to("/")
        if os.geteuid() == 0:
            os.chown(place, stat.st_uid, stat.st_gid, follow_symlinks=False)
            if not place.is_symlink():
                place.chmod(stat.st_mode & 0o7777)
        elif stat.st_uid != os.geteuid():
            self.owners.append((str(path), stat.st_uid, stat.st_gid))

    def pack(self, image: Path) -> None:
        """Write the ext4 image, larger by FREE than its content; sparse."""
        used = count = 0
        for directory, directories, names in os.walk(self.top):
            count += len(directories) + len(names)
            used += sum(
                (os.lstat(os.path.join(directory, name)).st_size // 4096 + 1) * 4096
                for name in (*directories, *names)
            )
        size = (used + used // 10 + FREE) // 4096
        options = ["-q", "-F", "-t", "ext4", "-b", "4096", "-m", "0", "-N", str(count + 100_000)]
        if os.geteuid() != 0:
            options += ["-E", "root_owner=0:0"]
        command = ["mke2fs", *options, "-d", str(self.top), str(image), str(size)]
        subprocess.run(command, check=True, env=_with_sbin(), stdout=subprocess.DEVNULL)
        self._give(image)

    def _give(self, image: Path) -> None:
        """Built without privileges: files get their owners in the image."""
        if not self.owners:
            return
        script = "".join(
            f'sif "{path}" uid {uid}\nsif "{path}" gid {gid}\n' for path, uid, gid in self.owners
        )
        command = ["debugfs", "-w", "-f", "-", str(image)]
        subprocess.run(
            command, input=script, text=True, check=True, env=_with_sbin(), capture_output=True
        )


def _with_sbin() -> dict[str, str]:
    return {**os.environ, "PATH": f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"}


def cached(cache: Path, kind: str, files: Mapping[Path, Path]) -> tuple[Path, bool]:
    """The image of these files (guest path to source), and whether it was made now."""
    steady = {path: source for path, source in files.items() if path not in VOLATILE}
    image = cache / f"{kind}-{key(steady)}.ext4"
    if image.exists():
        os.utime(image)
        return image, False
    part = cache / f"{image.name}.part"
    stage = Stage(cache / f"{kind}.part")
    try:
        for path, source in sorted(files.items()):
            stage.add(path, source)
        stage.pack(part)
        part.rename(image)
    finally:
        _remove(stage.top)
        _remove(part)
    _prune(cache.glob(f"{kind}-*.ext4"))
    return image, True


def _prune(images: Iterable[Path]) -> None:
    by_use = sorted(images, key=lambda path: path.stat().st_mtime, reverse=True)
    for image in by_use[KEPT:]:
        image.unlink()
