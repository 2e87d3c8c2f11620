"""What kernels and modules are compressed with, each decompressed up to a limit.

None of these formats is trusted: a stream that is damaged, or larger than its reader allows,
is an error that says so.

Each library is imported when there is something to decompress: a machine that is restored
has nothing.
"""

from __future__ import annotations

# ruff: noqa: PLC0415 - see above
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cowork_nsrun.errors import NsrunError

if TYPE_CHECKING:
    import bz2
    import lzma

_LZ4_LEGACY = b"\x02\x21\x4c\x18"
#: of a legacy lz4 block, by its format
_LZ4_BLOCK = 8 << 20
#: what a decompressor may keep in memory to look back into, in bytes
_WINDOW = 512 << 20


class CompressionError(NsrunError):
    """Compressed data is damaged, too large, or of a kind that can't be read here."""


@dataclass(frozen=True, slots=True)
class Compression:
    """One format.

    Attributes:
        name: as people say it.
        magic: how its data begin.
        decompress: takes the data and a limit in bytes; what follows the end is ignored.
    """

    name: str
    magic: bytes
    decompress: Callable[[bytes, int], bytes]


def _checked(name: str, data: bytes, ended: bool, limit: int) -> bytes:
    if len(data) > limit:
        raise CompressionError(f"{name}: more than {limit} bytes come out of it")
    if not ended:
        raise CompressionError(f"{name}: the data end too early")
    return data


def _gzip(data: bytes, limit: int) -> bytes:
    import zlib

    stream = zlib.decompressobj(wbits=zlib.MAX_WBITS | 16)
    try:
        out = stream.decompress(data, limit + 1)
    except zlib.error as error:
        raise CompressionError(f"gzip: {error}") from None
    return _checked("gzip", out, stream.eof, limit)


def _bzip2(data: bytes, limit: int) -> bytes:
    import bz2

    stream = bz2.BZ2Decompressor()
    try:
        out = _drained(stream, data, limit)
    except (OSError, ValueError) as error:
        raise CompressionError(f"bzip2: {error}") from None
    return _checked("bzip2", out, stream.eof, limit)


def _lzma(name: str, form: str) -> Callable[[bytes, int], bytes]:
    def decompress(data: bytes, limit: int) -> bytes:
        import lzma

        try:
            stream = lzma.LZMADecompressor(getattr(lzma, form), memlimit=_WINDOW)
            out = _drained(stream, data, limit)
        except (lzma.LZMAError, EOFError) as error:
            raise CompressionError(f"{name}: {error}") from None
        return _checked(name, out, stream.eof, limit)

    return decompress


def _drained(stream: bz2.BZ2Decompressor | lzma.LZMADecompressor, data: bytes, limit: int) -> bytes:
    """All that comes out, but no more than one byte over the limit."""
    parts = [stream.decompress(data, limit + 1)]
    size = len(parts[0])
    while not stream.eof and size <= limit:
        parts.append(stream.decompress(b"", limit + 1 - size))
        if not parts[-1]:
            break
        size += len(parts[-1])
    return b"".join(parts)


def _zstd(data: bytes, limit: int) -> bytes:
    import zstandard

    stream = zstandard.ZstdDecompressor(max_window_size=_WINDOW).decompressobj()
    out = bytearray()
    try:
        # 4 bytes can become 128 KiB: no more at once than may be over the limit
        for start in range(0, len(data), 1024):
            out += stream.decompress(data[start : start + 1024])
            if stream.eof or len(out) > limit:
                break
    except zstandard.ZstdError as error:
        raise CompressionError(f"zstd: {error}") from None
    return _checked("zstd", bytes(out), stream.eof, limit)


def _lz4(data: bytes, limit: int) -> bytes:
    """The legacy format: blocks of 8 MiB, each behind its compressed size, to the end.

    A kernel's build writes the whole's size behind them, which is no block.
    """
    import lz4.block

    out = bytearray()
    place = len(_LZ4_LEGACY)
    while place + 4 <= len(data):
        (size,) = struct.unpack_from("<I", data, place)
        place += 4
        if place == len(data) and size == len(out) % (1 << 32):
            break
        if size > len(data) - place:
            left = len(data) - place
            raise CompressionError(f"lz4: a block of {size} bytes, and {left} are left")
        try:
            out += lz4.block.decompress(data[place : place + size], uncompressed_size=_LZ4_BLOCK)
        except lz4.block.LZ4BlockError as error:
            raise CompressionError(f"lz4: the block at {place}: {error}") from None
        if len(out) > limit:
            break
        place += size
    return _checked("lz4", bytes(out), True, limit)


KINDS = (
    Compression("gzip", b"\x1f\x8b", _gzip),
    Compression("xz", b"\xfd7zXZ\0", _lzma("xz", "FORMAT_XZ")),
    Compression("zstd", b"\x28\xb5\x2f\xfd", _zstd),
    Compression("lz4", _LZ4_LEGACY, _lz4),
    Compression("bzip2", b"BZh", _bzip2),
    # properties of 0x5d and a dictionary's size, whose low bytes are zero
    Compression("lzma", b"\x5d\0\0", _lzma("lzma", "FORMAT_ALONE")),
)


def kind_of(data: bytes) -> Compression | None:
    """The format that data begin like."""
    return next((kind for kind in KINDS if data.startswith(kind.magic)), None)
