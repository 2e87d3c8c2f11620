"""Random input and output on two files, which must stay the same.

    twin.py FILE PLAIN SEED STEPS

It stands alone, so that it also runs in a guest.
"""

from __future__ import annotations

import mmap
import os
import random
import sys
from pathlib import Path


class Twin:
    """The same changes to both."""

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


def compare(file: Path, plain: Path, seed: int, steps: int) -> None:
    """So many steps, by this seed."""
    twin = Twin(file, plain, random.Random(seed))
    for _ in range(steps):
        twin.step()
    twin.close()
    assert file.read_bytes() == plain.read_bytes()


if __name__ == "__main__":
    compare(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
