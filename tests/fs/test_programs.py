"""Programs that people run on a workspace, on a mount of the server's."""

from __future__ import annotations

import hashlib
import mmap
import os
import random
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn

import pytest
from fslib import FULL, Mount, Mounted

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


GIT = """
set -e
export GIT_CONFIG_GLOBAL=/dev/null GIT_AUTHOR_NAME=a GIT_AUTHOR_EMAIL=a@b
export GIT_COMMITTER_NAME=a GIT_COMMITTER_EMAIL=a@b
git init -q repo
cd repo
for i in $(seq 40); do mkdir -p d$((i % 7)); echo "$i" > d$((i % 7))/f$i; done
git add .
git commit -q -m one
git checkout -q -b side
for i in $(seq 20); do echo more >> d$((i % 7))/f$i; done
git commit -q -a -m two
git mv d0 e0
git commit -q -m three
git checkout -q master 2>/dev/null || git checkout -q main
git merge -q side
git gc -q --aggressive
git fsck --strict
cd ..
git clone -q repo copy
cd copy
git log --oneline | wc -l
git worktree add -q ../tree HEAD
test -z "$(git status --porcelain)"
cd ../tree
git stash list
rm -rf e0
git checkout -q -- e0
git status --porcelain
"""


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
    rounds = 60
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


BUILD = """
set -e
mkdir src
for i in $(seq 30); do
    echo "int f$i(int x) { return x + $i; }" > src/f$i.c
    echo "int f$i(int x);" >> src/all.h
done
{
    echo '#include <stdio.h>'
    echo '#include "all.h"'
    echo 'int main(void) { int n = 0;'
    for i in $(seq 30); do echo "n += f$i(1);"; done
    echo 'printf("%d ", n); return 0; }'
} > src/main.c
cat > Makefile <<'END'
objects = $(patsubst src/%.c,out/%.o,$(wildcard src/*.c))
prog: $(objects)
	cc -o $@ $^
out/%.o: src/%.c
	@mkdir -p out
	cc -c -MD -o $@ $<
END
make -s -j4
./prog
touch src/f3.c
make -j4 | grep -c 'cc -c'
ar rcs lib.a out/f*.o
mv prog prog2
./prog2
"""


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
        with pytest.raises(OSError, match="Too many open files in system"):
            for number in range(200):
                opened.append(os.open(guest / "0" / f"d{number}" / "f0", os.O_RDONLY))
        assert len(opened) > 20
        for fd in opened:
            os.close(fd)
        assert (guest / "0" / "d0" / "f0").read_bytes() == b"x"


def test_deep_directories(mount: Mount, host: Path) -> None:
    """Deeper than a path is long, and each level found again when it is needed."""
    depth = 3000 if FULL else 600
    script = (
        f"i=0; while [ $i -lt {depth} ]; do mkdir d; cd -P ./d; i=$((i + 1)); done;"
        "echo deep > f; cat f"
    )
    with mount([Export(str(host))], files=128) as guest:
        assert guest.run(["sh", "-c", script]).stdout == "deep\n"
        guest.run(["rm", "-r", "d"])
    assert os.listdir(host) == []


# --- random input and output ------------------------------------------------------------------


class Twin:
    """The same changes to a file of the guest's and to a plain one."""

    def __init__(self, guest: Path, plain: Path, chance: random.Random) -> None:
        flags = os.O_RDWR | os.O_CREAT
        self.paths = (guest, plain)
        self.fds = [os.open(path, flags) for path in self.paths]
        self.chance = chance
        self.size = 0

    def span(self, most: int = 1 << 18) -> tuple[int, int]:
        start = self.chance.randrange(most)
        return start, self.chance.randrange(1, most - start + 1)

    def write(self) -> None:
        start, length = self.span()
        data = self.chance.randbytes(length)
        for fd in self.fds:
            assert os.pwrite(fd, data, start) == length
        self.size = max(self.size, start + length)

    def read(self) -> None:
        start, length = self.span()
        ours, plain = (os.pread(fd, length, start) for fd in self.fds)
        assert ours == plain

    def truncate(self) -> None:
        self.size = self.chance.randrange(1 << 18)
        for fd in self.fds:
            os.ftruncate(fd, self.size)

    def map(self) -> None:
        if not self.size:
            return
        start = self.chance.randrange(self.size)
        data = self.chance.randbytes(min(5000, self.size - start))
        for fd in self.fds:
            with mmap.mmap(fd, self.size) as memory:
                memory[start : start + len(data)] = data

    def allocate(self) -> None:
        start, length = self.span()
        for fd in self.fds:
            os.posix_fallocate(fd, start, length)
        self.size = max(self.size, start + length)

    def copy(self) -> None:
        if self.size < 2:
            return
        length = self.chance.randrange(1, self.size // 2 + 1)
        source = self.chance.randrange(self.size // 2 - length + 1)
        target = self.chance.randrange(self.size // 2, self.size)
        for fd in self.fds:
            assert os.copy_file_range(fd, fd, length, source, target) == length
        self.size = max(self.size, target + length)

    def again(self) -> None:
        for index, path in enumerate(self.paths):
            os.fsync(self.fds[index])
            os.close(self.fds[index])
            self.fds[index] = os.open(path, os.O_RDWR)

    def close(self) -> None:
        for fd in self.fds:
            os.close(fd)

    def step(self) -> None:
        steps = (self.write, self.read, self.truncate, self.map, self.allocate, self.copy)
        self.chance.choices((*steps, self.again), weights=(5, 8, 2, 4, 1, 2, 1))[0]()
        assert [os.fstat(fd).st_size for fd in self.fds] == [self.size, self.size]


@pytest.mark.parametrize("seed", range(8 if FULL else 2))
def test_random_io(guest: Mounted, host: Path, tmp_path: Path, seed: int) -> None:
    twin = Twin(guest / "0" / "f", tmp_path / "plain", random.Random(seed))
    for _ in range(3000 if FULL else 400):
        twin.step()
    twin.close()
    assert (host / "f").read_bytes() == (tmp_path / "plain").read_bytes()
