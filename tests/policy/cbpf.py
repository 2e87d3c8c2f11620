"""A classic BPF machine as seccomp has it: seccomp(2), linux/filter.h."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass

ALLOW = 0x7FFF0000
ERRNO = 0x00050000
KILL_PROCESS = 0x80000000
LOW = 0xFFFFFFFF

_LD_ABS, _AND, _RET = 0x20, 0x54, 0x06
_JA = 0x05
_JUMPS = {
    0x15: lambda a, k: a == k,
    0x25: lambda a, k: a > k,
    0x35: lambda a, k: a >= k,
    0x45: lambda a, k: bool(a & k),
}


@dataclass(frozen=True)
class Program:
    """Instructions (code, jt, jf, k)."""

    code: tuple[tuple[int, int, int, int], ...]

    @classmethod
    def from_bytes(cls, data: bytes) -> Program:
        return cls(tuple(struct.iter_unpack("=HBBI", data)))

    def run(self, arch: int, number: int, args: Sequence[int] = ()) -> tuple[int, int]:
        """What the filter answers, and how many instructions it took."""
        words = [*args, *[0] * (6 - len(args))]
        data = struct.pack("<IIQ6Q", number & LOW, arch, 0, *words)
        at = steps = acc = 0
        while True:
            code, jt, jf, k = self.code[at]
            at, steps = at + 1, steps + 1
            if code == _LD_ABS:
                assert k % 4 == 0, "seccomp loads aligned words alone"
                (acc,) = struct.unpack_from("<I", data, k)
            elif code == _AND:
                acc &= k
            elif code == _RET:
                return k, steps
            elif code == _JA:
                at += k
            else:
                at += jt if _JUMPS[code](acc, k) else jf
