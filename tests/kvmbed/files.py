"""Which files of this machine a guest needs: Debian packages, Python, the tree."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections import deque
from collections.abc import Iterable, Iterator
from pathlib import Path

#: beside Debian's essential ones; what they depend on comes with them
PACKAGES = (
    "bubblewrap",
    "busybox-static",
    "curl",
    "e2fsprogs",
    "gcc",
    "git",
    "iproute2",
    "kmod",
    "libc6-dev",
    "libcap2-bin",
    "libslirp0",
    "make",
    "man-db",
    "mount",
    "musl-tools",
    "passwd",
    "procps",
    "python3",
    "strace",
)
#: written by installation scripts, so in no package's list
GENERATED = (
    *("/etc/alternatives", "/etc/ld.so.cache", "/etc/passwd", "/etc/group", "/etc/nsswitch.conf"),
    *("/etc/hosts", "/etc/localtime", "/etc/timezone", "/usr/lib/locale/C.utf8"),
)
#: links from / into /usr, where there are any
TOP = ("/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32")
#: the directories themselves are kept
USELESS = re.compile(
    r"/usr/share/(doc|doc-base|info|locale|man|icons|lintian|bug|gitweb)/."
    r"|/usr/lib/systemd/system/|/etc/(g?shadow|ssh|sudoers)"
)
USELESS_PYTHON = {"test", "tests", "site-packages", "idlelib", "turtledemo", "lib2to3", "ensurepip"}


def _output(*words: str) -> str:
    return subprocess.run(words, check=True, capture_output=True, text=True).stdout


def _names(relation: str) -> Iterator[list[str]]:
    """Each alternative list of one Depends field: "a (>= 1) | b, c" is [a, b], [c]."""
    for group in filter(str.strip, relation.split(",")):
        yield [re.split(r"[ (:\[]", name.strip(), maxsplit=1)[0] for name in group.split("|")]


def _with_dependencies(wanted: Iterable[str]) -> set[str]:
    fields = (
        "${Package}\t${db:Status-Status}\t${Essential}\t${Provides}\t${Pre-Depends},${Depends}\n"
    )
    needs: dict[str, str] = {}
    provided: dict[str, str] = {}
    todo = deque(wanted)
    for line in _output("dpkg-query", "-W", "-f", fields).splitlines():
        package, status, essential, provides, relation = line.split("\t")
        if status != "installed":
            continue
        needs[package] = relation
        provided.update((name, package) for names in _names(provides) for name in names)
        if essential == "yes":
            todo.append(package)
    found: set[str] = set()
    while todo:
        name = todo.popleft()
        package = name if name in needs else provided.get(name, "")
        if not package or package in found:
            continue
        found.add(package)
        for names in _names(needs[package]):
            todo.extend(name for name in names if name in needs or name in provided)
    return found


def _real(path: str) -> Path:
    """The same file by a path without links above it (/lib/x is /usr/lib/x)."""
    return Path(os.path.realpath(os.path.dirname(path))) / os.path.basename(path)


def _chain(path: Path) -> Iterator[Path]:
    """The path, and what it links to, to the end."""
    while path.is_symlink():
        yield path
        path = _real(str(path.parent / path.readlink()))
    if path.exists():
        yield path


def walk(top: Path, skip: frozenset[str] = frozenset()) -> Iterator[Path]:
    """Everything below a directory, itself included, but what has one of these names."""
    yield top
    if top.is_symlink() or not top.is_dir():
        return
    for entry in os.scandir(top):
        if entry.name not in skip:
            yield from walk(Path(entry.path), skip)


def _packages() -> Iterator[Path]:
    packages = sorted(_with_dependencies(PACKAGES))
    for line in _output("dpkg-query", "-L", *packages).splitlines():
        if line.startswith("/") and not USELESS.match(line):
            yield _real(line)


def _python() -> Iterator[Path]:
    """The Python that .venv is made of, and the libraries that it is linked to."""
    base = Path(sys.base_prefix).resolve()
    if base.is_relative_to("/usr") and not base.is_relative_to("/usr/local"):
        version = f"python{sys.version_info[0]}.{sys.version_info[1]}"
        roots = [
            Path("/usr/bin") / version,
            Path("/usr/lib") / version,
            Path("/usr/include") / version,
        ]
    else:
        roots = [base]
    found = [
        path
        for root in roots
        for path in walk(root, frozenset(USELESS_PYTHON))
        if not path.name.startswith("config-")
    ]
    yield from found
    program = Path(sys.executable)
    yield from (path for path in _chain(program) if not path.is_relative_to(sys.prefix))
    binaries = [str(program), *(str(path) for path in found if path.suffix == ".so")]
    for library in re.findall(r"(/\S+) \(0x", _output("ldd", *binaries)):
        yield from _chain(_real(library))


def _alternatives(found: set[Path]) -> list[Path]:
    """Links as /usr/bin/awk, where what they lead to is there."""
    links = [path for top in ("/usr/bin", "/usr/sbin") for path in Path(top).iterdir()]
    return [
        path
        for path in links
        if path.is_symlink()
        and str(path.readlink()).startswith("/etc/alternatives/")
        and path.resolve() in found
    ]


def system() -> set[Path]:
    """The operating system that the tests need, as absolute paths of this machine."""
    found = {*_packages(), *_python()}
    for name in GENERATED:
        found.update(part for path in walk(Path(name)) for part in _chain(path))
    found.update(path for path in map(Path, TOP) if path.is_symlink())
    found.update(_alternatives(found))
    return {path for path in found if os.path.lexists(path)}


def tree(root: Path) -> set[Path]:
    """The sources that git knows or would, .venv, and the kernel that make guest-kernel built."""
    names = _output("git", "-C", str(root), "ls-files", "-coz", "--exclude-standard")
    found = {root / name for name in names.split("\0") if name}
    for made in (root / ".venv", root / "build/guest-kernel/boot"):
        if made.exists():
            found.update(walk(made))
    return {path for path in found if os.path.lexists(path)}
