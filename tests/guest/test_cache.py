"""What is kept: whole files only, whoever makes them, and not for ever."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO

import pytest

from cowork_nsrun.guest import cache


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "nsrun/guest"


class Maker:
    """Writes its text, and counts how often."""

    def __init__(self, text: bytes = b"made") -> None:
        self.text = text
        self.times = 0

    def __call__(self, file: BinaryIO) -> None:
        self.times += 1
        file.write(self.text)


def read(kind: str, key: str, make: Maker) -> bytes:
    with cache.opened(kind, key, make) as file:
        return file.read()


def test_made_once(place: Path) -> None:
    make = Maker()
    assert [read("a", "1", make) for _ in range(3)] == [b"made"] * 3
    assert make.times == 1
    assert read("a", "2", Maker(b"other")) == read("b", "1", Maker(b"other")) == b"other"
    assert place.stat().st_mode & 0o777 == 0o700


def test_many_at_once() -> None:
    make = Maker(bytes(1 << 20))
    with ThreadPoolExecutor(16) as threads:
        found = list(threads.map(lambda _: read("a", "1", make), range(64)))
    assert set(found) == {make.text}
    assert make.times == 1


def test_a_maker_that_is_killed_leaves_nothing(place: Path) -> None:
    script = (
        "import time\n"
        "from cowork_nsrun.guest import cache\n"
        "def make(file):\n"
        "    file.write(b'half'); file.flush()\n"
        "    print('writing', flush=True)\n"
        "    time.sleep(1000)\n"
        "cache.opened('a', '1', make)\n"
    )
    command = [sys.executable, "-I", "-c", script]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as maker:
        assert maker.stdout is not None
        assert maker.stdout.readline() == b"writing\n"
        assert any(name.startswith(".part") for name in os.listdir(place))
        maker.send_signal(signal.SIGKILL)
    assert read("a", "1", Maker()) == b"made"
    assert sorted(os.listdir(place)) == ["a-1", "lock-a"]


def test_a_maker_that_fails_leaves_nothing(place: Path) -> None:
    def make(file: BinaryIO) -> None:
        file.write(b"half")
        raise ValueError("no more")

    with pytest.raises(ValueError, match="no more"):
        cache.opened("a", "1", make)
    assert os.listdir(place) == ["lock-a"]
    assert read("a", "1", Maker()) == b"made"


def test_the_last_used_stay(place: Path) -> None:
    for number in range(cache.KEPT):
        read("a", str(number), Maker())
    read("b", "1", Maker())
    first = place / "a-0"
    for name in place.glob("a-*"):
        os.utime(name, (1, 1))
    read("a", "0", Maker())
    with cache.opened("a", "1", Maker()) as opened:
        os.utime(place / "a-1", (0, 0))
        read("a", "new", Maker(b"new"))
        assert first.exists()
        assert (place / "b-1").exists()
        assert not (place / "a-1").exists()
        assert len(list(place.glob("a-*"))) == cache.KEPT
        # whoever has it open keeps it
        assert opened.read() == b"made"


def test_a_place_that_others_can_write_to_is_not_used(place: Path) -> None:
    place.mkdir(parents=True)
    place.chmod(0o777)
    (place / "a-1").write_bytes(b"planted")
    make = Maker()
    assert [read("a", "1", make) for _ in range(2)] == [b"made"] * 2
    assert make.times == 2
    assert (place / "a-1").read_bytes() == b"planted"


def test_a_link_is_not_followed(place: Path, tmp_path: Path) -> None:
    read("a", "1", Maker())
    (tmp_path / "planted").write_bytes(b"planted")
    (place / "a-2").symlink_to(tmp_path / "planted")
    assert read("a", "2", Maker()) == b"made"


def test_no_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/self")
    assert read("a", "1", Maker()) == b"made"


def test_identity(tmp_path: Path) -> None:
    """Whatever is done to a file, its identity is another one then."""
    path = tmp_path / "file"
    path.write_bytes(b"some text")
    seen = {cache.identity(path)}
    when = path.stat()
    path.write_bytes(b"sOme text")
    os.utime(path, ns=(when.st_atime_ns, when.st_mtime_ns))
    seen.add(cache.identity(path))
    other = tmp_path / "other"
    other.write_bytes(b"some text")
    os.utime(other, ns=(when.st_atime_ns, when.st_mtime_ns))
    other.rename(path)
    seen.add(cache.identity(path))
    assert len(seen) == 3
    assert cache.identity(path) in seen
    assert cache.key(["a", "b"]) != cache.key(["ab"])
