"""The ELF kernel out of every kind of image; what is wrong with a damaged one is said."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kernel_images import COMPRESSORS, LZ4_BLOCK, bzimage, elf

from cowork_nsrun.guest import compression
from cowork_nsrun.guest.bzimage import KernelError, header, read, vmlinux

ROOT = Path(__file__).parents[2]
#: more than one lz4 block, and not the same everywhere
LARGE = elf(os.urandom(1 << 16) * 130)
assert len(LARGE) > LZ4_BLOCK


@pytest.mark.parametrize("kind", COMPRESSORS)
def test_each_compression(kind: str) -> None:
    image = bzimage(COMPRESSORS[kind](LARGE))
    found = header(image)
    assert (found.release, found.compression.name) == ("6.1.0-test", kind)
    assert vmlinux(image) == LARGE


def test_an_elf_file_is_taken_as_it_is() -> None:
    assert vmlinux(elf()) == elf()


@pytest.mark.parametrize("kind", COMPRESSORS)
def test_a_limit_holds(kind: str) -> None:
    """A few kilobytes that would become 8 MiB and a byte."""
    data = COMPRESSORS[kind](bytes(LZ4_BLOCK + 1))
    found = compression.kind_of(data)
    assert found is not None
    assert found.decompress(data, LZ4_BLOCK + 1) == bytes(LZ4_BLOCK + 1)
    with pytest.raises(compression.CompressionError, match="bytes come out"):
        found.decompress(data, LZ4_BLOCK)


@pytest.mark.parametrize("kind", COMPRESSORS)
def test_a_payload_cut_off(kind: str) -> None:
    payload = COMPRESSORS[kind](elf(os.urandom(5000)))
    with pytest.raises(KernelError, match=kind):
        vmlinux(bzimage(payload[: len(payload) // 2]))


def _changed(image: bytes, place: int, new: bytes) -> bytes:
    return image[:place] + new + image[place + len(new) :]


GOOD = bzimage(COMPRESSORS["gzip"](elf()))
WRONG = {
    "neither a bzImage nor an ELF": b"#!/bin/sh\n" * 100,
    "EFI program": b"MZ" + bytes(1000),
    "arm64": bytes(0x38) + b"ARMd" + bytes(1000),
    "2.07: older": _changed(GOOD, 0x206, b"\x07\x02"),
    "32-bit": _changed(GOOD, 0x236, b"\0\0"),
    "cut off": GOOD[:2660],
    "and the image has": _changed(GOOD, 0x248, b"\xff\xff\xff\xff"),
    "begins with 2e 2e": bzimage(b"." * 100),
    "no ELF file": bzimage(COMPRESSORS["xz"](b"." * 5000)),
    "lzo": bzimage(b"\x89LZO\0\r\n\x1a\n" + bytes(100)),
    "for arm64": elf(machine=183),
    "no program with segments": _changed(elf(), 16, b"\x03\0"),
    "headers are cut off": _changed(elf(), 32, b"\xff\xff"),
    "segment 0 is cut off": elf()[:-1],
    "nothing to load": _changed(elf(), 64, b"\x04"),
    "header is cut off": elf()[:50],
}


@pytest.mark.parametrize("what", WRONG)
def test_what_is_wrong_is_said(what: str) -> None:
    with pytest.raises(KernelError, match=what):
        vmlinux(WRONG[what])


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(KernelError, match="vmlinuz: No such file"):
        read(tmp_path / "vmlinuz")


@given(st.binary(max_size=4096))
def test_any_bytes(data: bytes) -> None:
    """Nothing but a KernelError comes of them."""
    for image in (data, b"\x7fELF" + data, GOOD[:0x200] + data):
        with pytest.raises(KernelError):
            vmlinux(image)


@given(
    st.sampled_from(sorted(COMPRESSORS)),
    st.lists(st.tuples(st.integers(0, 1 << 16), st.binary(min_size=1, max_size=4)), min_size=1),
)
def test_damaged_images(kind: str, changes: list[tuple[int, bytes]]) -> None:
    """The right kernel, another one that is well formed, or a KernelError."""
    image = bzimage(COMPRESSORS[kind](elf(b"some content " * 50)))
    for place, new in changes:
        image = _changed(image, place % len(image), new)
    try:
        found = vmlinux(image)
    except KernelError:
        return
    assert found.startswith(b"\x7fELF")


def test_a_kernel_of_a_distribution(lack: Callable[[str], NoReturn]) -> None:
    places = (Path("/boot"), ROOT / "build/kvmbed/kernel/boot")
    images = sorted(path for place in places for path in place.glob("vmlinuz-*"))
    if not images:
        lack("no kernel in /boot, and scripts/setup kvm has not unpacked one")
    for image in images:
        data = read(image)
        assert header(data).release == image.name.removeprefix("vmlinuz-")
        kernel = vmlinux(data)
        assert b"Linux version " + header(data).release.encode() in kernel
