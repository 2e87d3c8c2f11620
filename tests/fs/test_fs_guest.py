"""The file server as virtio-fs, under a stock kernel: in the bed, on its ext4 disk."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import pytest
from fslib import FULL
from jobs import BRIEF_GIT, BUILD

from cowork_nsrun.program import find_program

HERE = Path(__file__).parent
NSRUN = find_program()
# without its environment, which may lie where a tmpfs is
PYTHON = str(Path(sys.executable).resolve())
SMALL = 10_000 if FULL else 500
SYSTEM = (
    *("--ro-bind", "/", "/", "--dev", "/dev", "--proc", "/proc", "--tmpfs", "/tmp"),
    *("--unshare-pid", "--unshare-net", "--die-with-parent"),
)


@pytest.fixture(scope="module")
def kvm(lack: Callable[[str], NoReturn]) -> None:
    done = subprocess.run([NSRUN, "--probe"], capture_output=True, check=True)
    for probe in json.loads(done.stdout)["probes"]:
        if probe["name"] in ("microvm", "kvm", "kvm-guest", "guest-kernel") and (
            probe["verdict"] != "ok"
        ):
            lack(f"no microVM: {probe['name']}: {probe['evidence']}")


@pytest.fixture
def folder(kvm: None, tmp_path: Path) -> Path:
    made = tmp_path / "folder"
    made.mkdir()
    return made


def command(folder: Path, *words: str, options: tuple[str, ...] = ()) -> list[str]:
    mounts = ["--bind", str(folder), "/mnt", *options, "--chdir", "/mnt", "--"]
    return [str(NSRUN), "--backend", "kvm", *SYSTEM, *mounts, *words]


def run(folder: Path, *words: str, options: tuple[str, ...] = (), stdin: str = "") -> str:
    done = subprocess.run(
        command(folder, *words, options=options),
        input=stdin, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_it_is_virtio_fs(folder: Path) -> None:
    (folder / "f").write_text("from the host")
    said = run(folder, "sh", "-c", "stat -f -c %T /mnt; cat f; echo from the guest > g; id -u")
    assert said.split("\n")[0] in ("fuseblk", "fuse", "virtiofs", "UNKNOWN (0x65735546)")
    assert "from the host" in said
    assert (folder / "g").read_text() == "from the guest\n"


def test_git(folder: Path) -> None:
    assert run(folder, "sh", "-c", BRIEF_GIT).split() == list("12345678")
    where = str(folder / "repo")
    check = ["git", "-c", f"safe.directory={where}", "-C", where, "fsck", "--strict"]
    subprocess.run(check, check=True, capture_output=True)


def test_a_c_build(folder: Path) -> None:
    assert run(folder, "sh", "-c", "FILES=4\n" + BUILD).split() == ["14", "1", "14"]


SQLITE = """
import sqlite3, sys
base = sqlite3.connect("base.db", isolation_level=None)
print(base.execute(f"PRAGMA journal_mode = {sys.argv[1]}").fetchone()[0])
base.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, body BLOB)")
base.execute("BEGIN")
base.executemany("INSERT INTO t (body) VALUES (randomblob(?))", [(n % 200,) for n in range(2000)])
base.execute("COMMIT")
base.execute("DELETE FROM t WHERE id % 3 = 0")
base.execute("VACUUM")
print(base.execute("PRAGMA integrity_check").fetchone()[0])
"""


def test_sqlite(folder: Path) -> None:
    assert run(folder, PYTHON, "-c", SQLITE, "wal").split() == ["wal", "ok"]
    check = "import sqlite3, sys; c = sqlite3.connect(sys.argv[1]); "
    check += "print(*c.execute('PRAGMA integrity_check').fetchone(), "
    check += "*c.execute('SELECT count(*) FROM t').fetchone())"
    there = [PYTHON, "-c", check, str(folder / "base.db")]
    assert subprocess.run(there, capture_output=True, text=True, check=True).stdout == "ok 1334\n"


def test_random_io(folder: Path) -> None:
    """The plain file is on a tmpfs of the guest's."""
    shutil.copy(HERE / "twin.py", folder)
    run(folder, PYTHON, "twin.py", "f", "/tmp/plain", "1", "500" if FULL else "150")


FILES = """
import hashlib, os, sys
n = int(sys.argv[1])
for d in range(100):
    os.mkdir(f"d{d}")
for i in range(n):
    with open(f"d{i % 100}/f{i}", "wb") as file:
        file.write(hashlib.sha256(b"%d" % i).digest() * (i % 10))
count = sum(len(files) for _, _, files in os.walk("."))
for i in range(n):
    with open(f"d{i % 100}/f{i}", "rb") as file:
        assert file.read() == hashlib.sha256(b"%d" % i).digest() * (i % 10)
    if i % 2:
        os.rename(f"d{i % 100}/f{i}", f"d{i % 100}/g{i}")
    elif i % 3:
        os.unlink(f"d{i % 100}/f{i}")
print(count)
"""


def test_small_files(folder: Path) -> None:
    assert run(folder, PYTHON, "-c", FILES, str(SMALL)) == f"{SMALL}\n"
    names = {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    wanted = {
        f"{'g' if i % 2 else 'f'}{i}": hashlib.sha256(b"%d" % i).digest() * (i % 10)
        for i in range(SMALL)
        if i % 2 or not i % 3
    }
    assert names == wanted


LOCKS = """
import fcntl, sys
with open("f", "r+b") as file:
    for lock in (fcntl.flock, fcntl.lockf):
        try:
            lock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            print("got")
        except BlockingIOError:
            print("held")
    print("waits", flush=True)
    fcntl.flock(file, fcntl.LOCK_EX)
    fcntl.lockf(file, fcntl.LOCK_EX)
    print("got")
"""


def test_locks_of_the_hosts(folder: Path) -> None:
    (folder / "f").write_bytes(b"x")
    with open(folder / "f", "r+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        fcntl.lockf(file, fcntl.LOCK_EX)
        with subprocess.Popen(
            command(folder, PYTHON, "-c", LOCKS), stdout=subprocess.PIPE, text=True
        ) as process:
            assert process.stdout is not None
            assert [process.stdout.readline() for _ in range(3)] == ["held\n", "held\n", "waits\n"]
            fcntl.lockf(file, fcntl.LOCK_UN)
            fcntl.flock(file, fcntl.LOCK_UN)
            assert process.stdout.read() == "got\n"
            assert process.wait() == 0


def test_what_the_plan_covers_stays_covered(folder: Path) -> None:
    """Also for a root of the guest's, below the agent's mounts."""
    (folder / "ro").mkdir()
    (folder / "ro" / "f").write_text("kept")
    (folder / "hidden").mkdir()
    (folder / "hidden" / "key").write_text("secret")
    options = ("--ro-bind", str(folder / "ro"), "/mnt/ro", "--tmpfs", "/mnt/hidden")
    script = "ls hidden; cat ro/f; echo x > ro/f; mv ro gone; mv hidden gone; echo y > made; ls"
    done = subprocess.run(
        command(folder, "sh", "-c", script, options=options),
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.stdout.split() == ["kept", "hidden", "made", "ro"] or (
        done.stdout.replace("kept", "kept ").split() == ["kept", "hidden", "made", "ro"]
    )
    assert (folder / "ro" / "f").read_text() == "kept"
    assert sorted(os.listdir(folder)) == ["hidden", "made", "ro"]
