"""Kernel images made for tests: the smallest ones that are well formed."""

from __future__ import annotations

import bz2
import gzip
import lzma
import struct
from collections.abc import Callable

import lz4.block
import zstandard

LZ4_BLOCK = 8 << 20


def elf(content: bytes = b"\xf4" * 64, *, machine: int = 62) -> bytes:
    """An ELF file of one segment, loaded at 16 MiB."""
    ident = b"\x7fELF\x02\x01\x01" + bytes(9)
    start, place = 64 + 56, 16 << 20
    header = struct.pack(
        "<16sHHIQQQIHHHHHH", ident, 2, machine, 1, place, 64, 0, 0, 64, 56, 1, 0, 0, 0
    )
    segment = struct.pack("<IIQQQQQQ", 1, 5, start, place, place, len(content), len(content), 4096)
    return header + segment + content


def _lz4_legacy(data: bytes) -> bytes:
    blocks = [
        lz4.block.compress(data[at : at + LZ4_BLOCK], store_size=False)
        for at in range(0, len(data), LZ4_BLOCK)
    ]
    return b"\x02\x21\x4c\x18" + b"".join(struct.pack("<I", len(block)) + block for block in blocks)


def _sized(compress: Callable[[bytes], bytes]) -> Callable[[bytes], bytes]:
    """A kernel's build puts the size behind all but gzip, which has it."""
    return lambda data: compress(data) + struct.pack("<I", len(data))


COMPRESSORS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "xz": _sized(
        lambda data: lzma.compress(
            data,
            check=lzma.CHECK_CRC32,
            filters=[{"id": lzma.FILTER_X86}, {"id": lzma.FILTER_LZMA2, "dict_size": 1 << 20}],
        )
    ),
    "lzma": _sized(lambda data: lzma.compress(data, lzma.FORMAT_ALONE)),
    "bzip2": _sized(bz2.compress),
    "zstd": _sized(lambda data: zstandard.ZstdCompressor(write_content_size=False).compress(data)),
    "lz4": _sized(_lz4_legacy),
}


def bzimage(payload: bytes, *, release: str = "6.1.0-test", version: int = 0x20F) -> bytes:
    """A setup part of 4 sectors, then a little program, the payload and a little more."""
    setup = bytearray(5 * 512)
    setup[0x1F1] = 4
    setup[0x1FE:0x200] = b"\x55\xaa"
    setup[0x202:0x206] = b"HdrS"
    struct.pack_into("<HxxxxxxH", setup, 0x206, version, 0x600)
    struct.pack_into("<H", setup, 0x236, 1)
    text = f"{release} (someone@somewhere) #1 SMP".encode()
    setup[0x800 : 0x800 + len(text)] = text
    program = bytes(100)
    struct.pack_into("<II", setup, 0x248, len(program), len(payload))
    return bytes(setup) + program + payload + bytes(32)
