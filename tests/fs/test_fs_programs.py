"""Programs that people run on a workspace, on a mount of the server's."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn

import pytest
from fslib import FULL, Mount, Mounted
from jobs import BUILD, GIT
from twin import compare

from cowork_nsrun.guest.view import Export

MANY = 200_000 if FULL else 5_000
SMALL = 10_000 if FULL else 1_000


@pytest.fixture
def host(tmp_path: Path) -> Path:
    path = tmp_path / "host"
    path.mkdir()
    return path


@pytest.fixture
def guest(mount: Mount, host: Path) -> Iterator[Mounted]:
    with mount([Export(str(host))]) as mounted:
        yield mounted


def need(tool: str, lack: Callable[[str], NoReturn]) -> None:
    if not shutil.which(tool):
        lack(f"no {tool}: it is not run on the file server")


def test_git(guest: Mounted, host: Path, lack: Callable[[str], NoReturn]) -> None:
    need("git", lack)
    assert guest.run(["sh", "-c", GIT]).stdout.split() == ["3"]
    # and the host sees the same repository
    checks = [
        "git",
        "-c",
        f"safe.directory={host}/repo",
        "-C",
        str(host / "repo"),
        "fsck",
        "--strict",
    ]
    subprocess.run(checks, check=True, capture_output=True)


SQL = """
PRAGMA journal_mode = {mode};
CREATE TABLE t (id INTEGER PRIMARY KEY, body TEXT);
WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 20000)
    INSERT INTO t SELECT i, hex(randomblob(50)) FROM n;
CREATE INDEX by_body ON t (body);
DELETE FROM t WHERE id % 3 = 0;
VACUUM;
PRAGMA integrity_check;
SELECT count(*) FROM t;
"""


@pytest.mark.parametrize("mode", ["delete", "wal", "truncate"])
def test_sqlite(guest: Mounted, host: Path, lack: Callable[[str], NoReturn], mode: str) -> None:
    need("sqlite3", lack)
    said = guest.run(["sqlite3", "base.db", SQL.format(mode=mode)]).stdout.split()
    assert said == [mode, "ok", "13334"]
    count = ["sqlite3", str(host / "base.db"), "PRAGMA integrity_check; SELECT count(*) FROM t;"]
    assert subprocess.run(count, check=True, capture_output=True, text=True).stdout.split() == [
        "ok",
        "13334",
    ]


def test_sqlite_writers_exclude_each_other(
    guest: Mounted, host: Path, lack: Callable[[str], NoReturn]
) -> None:
    """Two in the guest and one on the host count one number up."""
    need("sqlite3", lack)
    guest.run(["sqlite3", "n.db", "CREATE TABLE n (i INTEGER); INSERT INTO n VALUES (0);"])
    rounds = 400 if FULL else 60
    loop = (
        f"for i in $(seq {rounds}); do sqlite3 -cmd '.log stderr' -cmd '.timeout 60000' n.db "
        "'BEGIN IMMEDIATE; UPDATE n SET i = i + 1; COMMIT;' || exit 1; done"
    )
    enter = ["nsenter", f"--target={guest.pid}", "--mount", f"--wdns={guest.place / '0'}", "--"]
    processes = [
        subprocess.Popen(command, cwd=host, stderr=subprocess.PIPE, text=True)
        for command in ([*enter, "sh", "-c", loop], [*enter, "sh", "-c", loop], ["sh", "-c", loop])
    ]
    said = [process.communicate()[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0], said
    assert guest.run(["sqlite3", "n.db", "SELECT i FROM n"]).stdout == f"{3 * rounds}\n"


def test_a_c_build(guest: Mounted, lack: Callable[[str], NoReturn]) -> None:
    need("make", lack)
    assert guest.run(["sh", "-c", BUILD]).stdout.split() == ["495", "1", "495"]


def test_small_files(guest: Mounted, host: Path) -> None:
    """Made, read, listed, copied, moved, removed."""
    sums = {}
    for number in range(SMALL):
        path = guest / "0" / f"d{number % 100}" / f"f{number}"
        if number < 100:
            path.parent.mkdir()
        data = hashlib.sha256(b"%d" % number).digest() * (number % 40)
        path.write_bytes(data)
        sums[f"d{number % 100}/f{number}"] = data
    found = {
        str(path.relative_to(host)): path.read_bytes() for path in host.rglob("*") if path.is_file()
    }
    assert found == sums
    for name, data in sums.items():
        assert (guest / "0" / name).read_bytes() == data
    guest.run(["sh", "-c", "cp -a . /dev/shm/nsrun-copy.$$ && rm -r /dev/shm/nsrun-copy.$$"])
    guest.run(["sh", "-c", "mkdir -p x; mv d1* x; find . -type f | wc -l; rm -r x d*"])
    assert os.listdir(host) == []


def test_many_files_with_few_descriptors(mount: Mount, host: Path) -> None:
    """A node is no descriptor: all of them are known to the client at once."""
    for directory in range(200):
        (host / f"d{directory}").mkdir()
        for number in range(MANY // 200):
            os.close(os.open(host / f"d{directory}" / f"f{number}", os.O_CREAT | os.O_WRONLY))
    with mount([Export(str(host))], files=128) as guest:
        assert guest.run(
            ["sh", "-c", "find . -type f -printf '%i\\n' | sort -u | wc -l"]
        ).stdout == (f"{MANY}\n")
        held = [os.open(guest / "0" / f"d{n}" / "f0", os.O_PATH) for n in range(200)]
        for directory in range(0, 200, 7):
            for number in range(0, MANY // 200, 11):
                path = guest / "0" / f"d{directory}" / f"f{number}"
                path.write_bytes(b"x")
                path.rename(path.with_name("moved"))
                path.with_name("moved").rename(path)
        for fd in held:
            assert os.fstat(fd).st_nlink == 1
            os.close(fd)
        # as many as a client can have open; the next one is refused, and nothing breaks
        opened: list[int] = []

        def open_all() -> None:
            opened.extend(
                os.open(guest / "0" / f"d{number}" / "f0", os.O_RDONLY) for number in range(200)
            )

        with pytest.raises(OSError, match="Too many open files in system"):
            open_all()
        assert len(opened) > 20
        for fd in opened:
            os.close(fd)
        assert (guest / "0" / "d0" / "f0").read_bytes() == b"x"


def test_deep_directories(mount: Mount, host: Path) -> None:
    """Deeper than a path is long, and each level found again when it is needed."""
    depth = 3000 if FULL else 600
    script = (
        f"import os\nfor _ in range({depth}): os.mkdir('d'); os.chdir('d')\n"
        "open('f', 'w').write('deep'); print(open('f').read())"
    )
    try:
        with mount([Export(str(host))], files=128) as guest:
            assert guest.run([sys.executable, "-c", script]).stdout == "deep\n"
            guest.run(["rm", "-r", "d"])
        assert os.listdir(host) == []
    finally:
        # who removes old directories of tests in Python would not get to its end
        subprocess.run(["rm", "-rf", host / "d"], check=True)


@pytest.mark.parametrize("seed", range(8 if FULL else 2))
def test_random_io(guest: Mounted, host: Path, tmp_path: Path, seed: int) -> None:
    compare(guest / "0" / "f", tmp_path / "plain", seed, 3000 if FULL else 400)
    assert (host / "f").read_bytes() == (tmp_path / "plain").read_bytes()
