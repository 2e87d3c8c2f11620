"""Attackers who change names while the server looks; each has a control that it beats."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from fslib import FULL, Mount

from cowork_nsrun.guest.view import Access, Export, Rule

LIBC = ctypes.CDLL(None, use_errno=True)
EXCHANGE = 2
#: attempts of each victim
TRIES = 20000 if FULL else 2000
MOST_ROUNDS = 200
OUTSIDE = b"outside of every export\n"
#: in another process: it swaps two names until its stdin ends
SWAPPER = """
import ctypes, os, sys, threading
libc = ctypes.CDLL(None)
a, b = os.fsencode(sys.argv[1]), os.fsencode(sys.argv[2])
over = threading.Event()
threading.Thread(target=lambda: (sys.stdin.read(), over.set()), daemon=True).start()
print("ready", flush=True)
n = 0
while not over.is_set():
    n += not libc.renameat2(-100, a, -100, b, 2)
print(n)
"""


@contextmanager
def swapping(a: Path, b: Path) -> Iterator[list[int]]:
    """Exchange two names all the time; how often it was done is known afterwards."""
    done: list[int] = []
    command = [sys.executable, "-c", SWAPPER, str(a), str(b)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        try:
            yield done
        finally:
            done.append(int(process.communicate(b"")[0]))


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A host directory whose "link" leads out of it, beside what lies there."""
    host = tmp_path / "host"
    (host / "dir").mkdir(parents=True)
    (host / "dir" / "f").write_bytes(b"inside\n")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "f").write_bytes(OUTSIDE)
    (host / "link").symlink_to(tmp_path / "out")
    return host


def reads(path: Path) -> set[bytes]:
    """All that an open of this path gives while it is being swapped."""
    found: set[bytes] = set()
    for _ in range(TRIES):
        try:
            fd = os.open(path, os.O_RDONLY)
        except OSError as error:
            found.add(os.strerror(error.errno or 0).encode())
            continue
        found.add(os.read(fd, 100))
        os.close(fd)
    return found


def test_a_directory_swapped_for_a_link(mount: Mount, place: Path) -> None:
    """The server never follows a link; the guest follows it to a path of its own."""
    with mount([Export(str(place))]) as guest:
        # where the link leads there is nothing in a guest
        (place / "link").unlink()
        (place / "link").symlink_to("/no/such/place")
        os.mkdir(place / "nowhere")
        with swapping(place / "dir", place / "link") as swapped:
            found = reads(guest / "0" / "dir" / "f")
    assert swapped[0] > 100
    assert b"inside\n" in found
    assert OUTSIDE not in found


def test_control_a_link_is_followed(place: Path) -> None:
    """Who opens a path on the host, as a naive server would, ends up outside."""
    found: set[bytes] = set()
    with swapping(place / "dir", place / "link"):
        # on a busy machine the other thread may not get a turn within one of these
        for _ in range(MOST_ROUNDS):
            found |= reads(place / "dir" / "f")
            if OUTSIDE in found:
                break
    assert OUTSIDE in found


def test_a_file_swapped_for_a_fifo(mount: Mount, place: Path) -> None:
    """A server that opened the FIFO would wait for ever."""
    os.mkfifo(place / "dir" / "fifo")
    with (
        mount([Export(str(place))]) as guest,
        swapping(place / "dir" / "f", place / "dir" / "fifo"),
    ):
        for _ in range(TRIES):
            try:
                os.close(os.open(guest / "0" / "dir" / "f", os.O_RDONLY | os.O_NONBLOCK))
            except OSError:
                continue


def attempt(action: Callable[[], object]) -> bool:
    try:
        action()
    except OSError:
        return False
    return True


def in_threads(actions: list[Callable[[], object]]) -> list[int]:
    """How often each of them succeeded; all at once, for as many rounds as there are tries."""
    counts = [0] * len(actions)

    def repeat(index: int, action: Callable[[], object]) -> None:
        for _ in range(TRIES):
            counts[index] += attempt(action)

    threads = [threading.Thread(target=repeat, args=pair) for pair in enumerate(actions)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return counts


def exchange(a: Path, b: Path) -> None:
    if LIBC.renameat2(-100, os.fsencode(a), -100, os.fsencode(b), EXCHANGE):
        raise OSError(ctypes.get_errno())


@pytest.mark.parametrize("ruled", [True, False], ids=["view", "control"])
def test_moves_around_what_is_read_only(mount: Mount, tmp_path: Path, ruled: bool) -> None:
    """Renames, exchanges and links by many threads, to bring a hook below .git/hooks."""
    host = tmp_path / "host"
    for name in ("p/.git/hooks", "p/git2/hooks", "q"):
        (host / name).mkdir(parents=True)
    (host / "p/git2/hooks/evil").write_bytes(b"evil")
    (host / "q/evil").write_bytes(b"evil")
    rules = (Rule("p/.git/hooks", Access.READ_ONLY),) if ruled else ()
    with mount([Export(str(host), rules=rules)], threads=4) as mounted:
        guest = mounted / "0"
        counts = in_threads(
            [
                lambda: exchange(guest / "p/.git", guest / "p/git2"),
                lambda: os.rename(guest / "q/evil", guest / "p/.git/hooks/moved"),
                lambda: os.link(guest / "p/git2/hooks/evil", guest / "p/.git/hooks/linked"),
                lambda: exchange(guest / "p", guest / "q"),
                lambda: (guest / "p/.git/hooks/made").write_bytes(b"evil"),
                lambda: exchange(guest / "p/.git/hooks", guest / "p/git2/hooks"),
            ]
        )
        reached = counts[0] + sum(counts[3:]) > 0
        assert reached is not ruled
    assert (os.listdir(host / "p/.git/hooks") == []) is ruled or not ruled


@pytest.mark.parametrize("ruled", [True, False], ids=["view", "control"])
def test_looks_around_what_is_hidden(mount: Mount, tmp_path: Path, ruled: bool) -> None:
    """Directories above and beside are exchanged while others read by every name."""
    host = tmp_path / "host"
    for name in ("a/keys", "b", "c/keys"):
        (host / name).mkdir(parents=True)
    (host / "a/keys/id").write_bytes(OUTSIDE)
    (host / "c/keys/id").write_bytes(b"harmless")
    rules = (Rule("a/keys", Access.HIDDEN),) if ruled else ()
    with mount([Export(str(host), rules=rules)], threads=4) as mounted:
        guest = mounted / "0"
        seen: set[bytes] = set()

        def read(name: str) -> None:
            seen.add((guest / name).read_bytes())

        in_threads(
            [
                lambda: exchange(guest / "a", guest / "c"),
                lambda: exchange(guest / "c", guest / "b"),
                lambda: os.rename(guest / "a/keys", guest / "b/keys"),
                lambda: os.link(guest / "a/keys/id", guest / "b/id"),
                lambda: read("a/keys/id"),
                lambda: read("b/keys/id"),
                lambda: read("c/keys/id"),
            ]
        )
    assert (OUTSIDE in seen) is not ruled


@pytest.mark.parametrize("ruled", [True, False], ids=["view", "control"])
def test_the_host_moves_what_is_hidden(mount: Mount, tmp_path: Path, ruled: bool) -> None:
    """Under another name it is the same inode."""
    host = tmp_path / "host"
    (host / "d").mkdir(parents=True)
    (host / "key").write_bytes(OUTSIDE)
    (host / "other").write_bytes(b"harmless")
    rules = (Rule("key", Access.HIDDEN),) if ruled else ()
    with mount([Export(str(host), rules=rules)]) as mounted:
        with swapping(host / "key", host / "other") as swapped:
            found = reads(mounted / "0" / "other")
        assert swapped[0] > 0
        assert (OUTSIDE in found) is not ruled


@pytest.mark.parametrize("ruled", [True, False], ids=["view", "control"])
def test_open_by_handle(mount: Mount, tmp_path: Path, ruled: bool) -> None:
    """A handle of a hidden directory's file, had from the host, opens nothing in the guest."""
    host = tmp_path / "host"
    (host / "keys").mkdir(parents=True)
    (host / "keys/id").write_bytes(OUTSIDE)
    rules = (Rule("keys", Access.HIDDEN),) if ruled else ()
    script = (
        "import ctypes, os, sys\n"
        "libc = ctypes.CDLL(None, use_errno=True)\n"
        "h = ctypes.create_string_buffer(b'\\x80\\0\\0\\0', 200); m = ctypes.c_int()\n"
        "path = os.fsencode(sys.argv[1])\n"
        "if libc.name_to_handle_at(-100, path, h, ctypes.byref(m), 0): sys.exit(3)\n"
        "top = os.open('.', os.O_RDONLY | os.O_DIRECTORY)\n"
        "fd = libc.open_by_handle_at(top, h, os.O_RDONLY)\n"
        "sys.exit(4) if fd < 0 else print(os.read(fd, 100).decode(), end='')\n"
    )
    with mount([Export(str(host), rules=rules)]) as mounted:
        ours = mounted.run([sys.executable, "-c", script, "keys/id"], check=False)
        theirs = mounted.run([sys.executable, "-c", script, str(host / "keys/id")], check=False)
    assert (ours.stdout.encode() == OUTSIDE) is not ruled
    assert theirs.stdout == ""


def test_identity_while_names_are_exchanged(mount: Mount, tmp_path: Path) -> None:
    """What is read under a name was that name's file, at a time; with few fds at hand."""
    host = tmp_path / "host"
    host.mkdir()
    for name in ("a", "b"):
        (host / name).write_bytes(name.encode() * 100)
    for number in range(200):
        (host / f"n{number}").touch()
    with mount([Export(str(host))], threads=4, files=128) as mounted:
        guest = mounted / "0"
        bad: list[bytes] = []
        over = threading.Event()

        def read() -> None:
            while not over.is_set():
                fd = os.open(guest / "a", os.O_RDONLY)
                data = os.read(fd, 200)
                if data not in (b"a" * 100, b"b" * 100):
                    bad.append(data)
                os.close(fd)

        def churn() -> None:
            while not over.is_set():
                for number in range(200):
                    os.close(os.open(guest / f"n{number}", os.O_RDONLY))

        threads = [threading.Thread(target=work) for work in (read, read, churn)]
        for thread in threads:
            thread.start()
        for _ in range(TRIES):
            exchange(guest / "a", guest / "b")
        over.set()
        for thread in threads:
            thread.join()
    assert bad == []
