"""Out of a bootable kernel image the kernel itself, an ELF file that a monitor can load.

A bzImage (Documentation/arch/x86/boot.rst of Linux) is a header, a program that decompresses,
and the compressed kernel.  The monitor does not run that program: it starts the ELF file.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path

from cowork_nsrun.errors import NsrunError
from cowork_nsrun.guest import compression

#: what no kernel image is larger than, in bytes
IMAGE_LIMIT = 256 << 20
#: the same of what comes out of it
VMLINUX_LIMIT = 512 << 20

_SECTOR = 512
_SETUP_SECTS = 0x1F1
_MAGIC = 0x202
_VERSION = 0x206
_KERNEL_VERSION = 0x20E
_XLOADFLAGS = 0x236
_PAYLOAD = 0x248
_HEADER_END = 0x250
_WITH_PAYLOAD = 0x208
_WITH_XLOADFLAGS = 0x20C
_XLF_KERNEL_64 = 1

_ELF = b"\x7fELF"
# no distribution uses it, and no library for it is at hand everywhere
_LZO = b"\x89LZO\0\r"
_ELF_HEADER = struct.Struct("<16sHHIQQQIHHHHHH")
_PROGRAM_HEADER = struct.Struct("<IIQQQQQQ")
_ET_EXEC = 2
_PT_LOAD = 1
_EM_X86_64 = 62
_MACHINES = {3: "i386", 40: "arm", 183: "arm64", 243: "riscv", 258: "loongarch"}


class KernelError(NsrunError):
    """A kernel can't be used for a guest; the text says why."""


@dataclass(frozen=True, slots=True)
class Header:
    """What a bzImage says of itself.

    Attributes:
        release: the kernel's, as ``uname -r`` prints it; empty if it doesn't say.
        compression: the payload's.
        payload: where it is in the image.
    """

    release: str
    compression: compression.Compression
    payload: slice


def read(path: Path) -> bytes:
    """The bytes of an image.

    Raises:
        KernelError: it can't be read, or is no regular file of a kernel's size.
    """
    try:
        with path.open("rb") as file:
            data = file.read(IMAGE_LIMIT + 1)
    except OSError as error:
        raise KernelError(
            f"{path}: {error.strerror}", path=str(path), errno=error.errno or 0
        ) from None
    if len(data) > IMAGE_LIMIT:
        raise KernelError(
            f"{path}: larger than any kernel, {IMAGE_LIMIT >> 20} MiB", path=str(path)
        )
    return data


def _word(data: bytes, place: int, layout: str = "<H") -> int:
    (value,) = struct.unpack_from(layout, data, place)
    return int(value)


def _release(data: bytes) -> str:
    """The first word of the version's text, which lies in the setup part."""
    place = _word(data, _KERNEL_VERSION)
    if not place:
        return ""
    text = data[place + _SECTOR : place + _SECTOR + 256].split(b"\0")[0].split(b" ")[0]
    return text.decode("ascii", "replace")


def look(start: bytes, size: int) -> str:
    """The release of a kernel, by the image's start and its size; empty if it doesn't say.

    Raises:
        KernelError: it can't be booted here, as far as its start tells.
    """
    if start.startswith(_ELF):
        _machine(start)
        return ""
    return header(start, size).release


def header(data: bytes, size: int | None = None) -> Header:
    """Read the header of a bzImage.

    Arguments:
        data: the image, or its first kilobytes.
        size: of the whole, where that is not all of it.

    Raises:
        KernelError: it is none, or one that can't be booted here.
    """
    if len(data) < _HEADER_END or data[_MAGIC : _MAGIC + 4] != b"HdrS":
        raise KernelError(_not_a_kernel(data))
    version = _word(data, _VERSION)
    if version < _WITH_PAYLOAD:
        raise KernelError(
            f"boot protocol {version >> 8}.{version & 255:02}: older than 2.08, Linux 2.6.26"
        )
    if version >= _WITH_XLOADFLAGS and not _word(data, _XLOADFLAGS) & _XLF_KERNEL_64:
        raise KernelError("a 32-bit kernel; one for x86-64 is needed")
    offset, length = struct.unpack_from("<II", data, _PAYLOAD)
    size = len(data) if size is None else size
    # 0 stands for 4, for old boot loaders' sake
    start = ((data[_SETUP_SECTS] or 4) + 1) * _SECTOR + offset
    if not length or start + length > size:
        raise KernelError(
            f"the payload is at {start}, {length} bytes, and the image has {size}: cut off?"
        )
    payload = slice(start, start + length)
    kind = compression.kind_of(data[start : start + 16])
    if kind is None:
        magic = data[start : start + 6]
        if magic == _LZO:
            raise KernelError("compressed with lzo, which can't be read here")
        raise KernelError(f"the payload's compression is unknown, it begins with {magic.hex(' ')}")
    return Header(_release(data), kind, payload)


def _not_a_kernel(data: bytes) -> str:
    if data[0x38:0x3C] == b"ARMd":
        return "an arm64 kernel; one for x86-64 is needed"
    if data[:2] == b"MZ":
        return "an EFI program, not a kernel image"
    return "neither a bzImage nor an ELF file"


def vmlinux(data: bytes) -> bytes:
    """The ELF kernel in an image, which may be one already.

    Raises:
        KernelError: there is none for this architecture, or it is damaged.
    """
    if data.startswith(_ELF):
        return _checked(data)
    found = header(data)
    try:
        kernel = found.compression.decompress(data[found.payload], VMLINUX_LIMIT)
    except compression.CompressionError as error:
        raise KernelError(f"the payload is damaged: {error}") from None
    if not kernel.startswith(_ELF):
        raise KernelError("what was compressed is no ELF file")
    return _checked(kernel)


def _machine(kernel: bytes) -> tuple[int, ...]:
    """The ELF header's words, of a program for this architecture."""
    if len(kernel) < _ELF_HEADER.size:
        raise KernelError("the ELF header is cut off")
    ident, *words = _ELF_HEADER.unpack_from(kernel)
    if words[1] != _EM_X86_64 or ident[4:6] != b"\x02\x01":
        name = _MACHINES.get(words[1], f"ELF machine {words[1]}")
        raise KernelError(f"a kernel for {name}; one for x86-64 is needed")
    return tuple(words)


def _checked(kernel: bytes) -> bytes:
    """An ELF file whose segments are there."""
    kind, _, _, _, table, _, _, _, size, count, *_ = _machine(kernel)
    if kind != _ET_EXEC or size != _PROGRAM_HEADER.size or not count:
        raise KernelError("the ELF file is not a kernel: no program with segments")
    if table + count * size > len(kernel):
        raise KernelError("the ELF file's program headers are cut off")
    loaded = 0
    for number in range(count):
        kind, _, offset, _, _, in_file, in_memory, _ = _PROGRAM_HEADER.unpack_from(
            kernel, table + number * size
        )
        if kind != _PT_LOAD:
            continue
        loaded += 1
        if offset + in_file > len(kernel) or in_file > in_memory or in_memory > VMLINUX_LIMIT:
            raise KernelError(f"the ELF file's segment {number} is cut off or too large")
    if not loaded:
        raise KernelError("the ELF file has nothing to load")
    return kernel
