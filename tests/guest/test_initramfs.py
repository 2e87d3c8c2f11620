"""The archive: as another reader of cpio sees it, and the same every time."""

from __future__ import annotations

import lzma
import shutil
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st
from kernel_images import elf

from cowork_nsrun.guest.bzimage import KernelError
from cowork_nsrun.guest.initramfs import Cpio, build

Entries = dict[str, tuple[int, bytes]]


def unpack(data: bytes) -> Entries:
    """A strict reader of newc."""
    found: Entries = {}
    place = 0
    while True:
        assert data[place : place + 6] == b"070701"
        words = [int(data[place + 6 + 8 * n : place + 14 + 8 * n], 16) for n in range(13)]
        mode, size, length = words[1], words[6], words[11]
        name = data[place + 110 : place + 110 + length]
        assert name.endswith(b"\0")
        assert words[2:4] == [0, 0]
        assert words[5] == 0, "a time would make it another one each time"
        place = (place + 110 + length + 3) & ~3
        content = data[place : place + size]
        assert len(content) == size
        place = (place + size + 3) & ~3
        if name == b"TRAILER!!!\0":
            assert place == len(data)
            return found
        assert name[:-1].decode() not in found
        found[name[:-1].decode()] = (mode, content)


names = st.text("abcdefghijklmnop-_.", min_size=1, max_size=40).filter(
    lambda name: name.strip(".") != ""
)


@given(st.dictionaries(names, st.tuples(st.binary(max_size=70), st.integers(0, 0o7777))))
def test_every_entry_comes_back(files: dict[str, tuple[bytes, int]]) -> None:
    archive = Cpio()
    for name, (content, mode) in files.items():
        archive.file(name, content, mode)
    data = archive.finish()
    assert len(data) % 4 == 0
    assert unpack(data) == {
        name: (stat.S_IFREG | mode, content) for name, (content, mode) in files.items()
    }


@pytest.fixture
def parts(tmp_path: Path) -> tuple[Path, list[Path]]:
    """An agent, and modules of each kind."""
    agent = tmp_path / "nsrun-agent"
    agent.write_bytes(elf(b"agent"))
    module = elf(b"module")
    (tmp_path / "virtio.ko").write_bytes(module)
    (tmp_path / "virtio-rng.ko.xz").write_bytes(lzma.compress(module))
    (tmp_path / "fuse.ko.zst").write_bytes(zstandard.compress(module))
    return agent, [tmp_path / name for name in ("virtio.ko", "virtio-rng.ko.xz", "fuse.ko.zst")]


def test_what_is_in_it(parts: tuple[Path, list[Path]]) -> None:
    agent, loads = parts
    data = build(agent, loads)
    found = unpack(data)
    assert found["init"] == (stat.S_IFREG | 0o755, elf(b"agent"))
    order = found["lib/modules/order"][1].decode().splitlines()
    assert order == ["virtio.ko", "virtio_rng.ko", "fuse.ko"]
    assert all(found[f"lib/modules/{name}"][1] == elf(b"module") for name in order)
    assert stat.S_ISCHR(found["dev/console"][0])
    # a directory comes before what is in it
    seen: set[str] = set()
    for name in found:
        parent = name.rpartition("/")[0]
        assert not parent or parent in seen
        seen.add(name)
    assert build(agent, loads) == data


def test_another_reader(
    parts: tuple[Path, list[Path]], tmp_path: Path, lack: Callable[[str], NoReturn]
) -> None:
    busybox = shutil.which("busybox")
    if busybox is None:
        lack("no busybox: no other reader of cpio archives")
    place = tmp_path / "unpacked"
    place.mkdir()
    # the device needs root
    command = [busybox, "cpio", "-idm", "init", "lib/*", "tmp"]
    subprocess.run(command, input=build(*parts), cwd=place, check=True, capture_output=True)
    assert (place / "init").read_bytes() == elf(b"agent")
    assert (place / "lib/modules/fuse.ko").read_bytes() == elf(b"module")
    assert stat.S_IMODE((place / "tmp").stat().st_mode) == 0o1777


def test_a_module_that_is_none(parts: tuple[Path, list[Path]]) -> None:
    agent, loads = parts
    loads[2].write_bytes(loads[2].read_bytes()[:-4])
    with pytest.raises(KernelError, match=r"fuse\.ko\.zst: zstd: "):
        build(agent, loads)
    loads[2].write_bytes(b"something else")
    with pytest.raises(KernelError, match=r"fuse\.ko\.zst: not a module"):
        build(agent, loads)
    with pytest.raises(KernelError, match="nsrun-agent: No such file"):
        build(agent.parent / "no/nsrun-agent", loads)
