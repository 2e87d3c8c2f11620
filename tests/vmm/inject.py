"""Make a thread of another process make a system call: ptrace(2), x86-64."""

from __future__ import annotations

import ctypes
import errno
import os
import struct
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from vmmlib import HANG

_ATTACH, _DETACH, _GETREGS, _SETREGS, _SINGLESTEP = 16, 17, 12, 13, 9
_SYSCALL_STOPS, _SEIZE, _INTERRUPT = 24, 0x4206, 0x4207
#: of struct user_regs_struct, in 64-bit words
_R10, _RAX, _RDX, _RSI, _RDI, _ORIG_RAX, _RIP, _RSP, _WORDS = 7, 10, 12, 13, 14, 15, 16, 19, 27
_SYSCALL = b"\x0f\x05"
_RED_ZONE = 128
_EPOLL_WAIT = ("232", "281")  # as either libc makes it
_WALL = 0x40000000  # __WALL: waitpid(2) waits for threads as well

_libc = ctypes.CDLL(None, use_errno=True)
_libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
_libc.ptrace.restype = ctypes.c_long


def _ptrace(request: int, thread: int, data: object = None) -> None:
    if _libc.ptrace(request, thread, None, data) < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), f"ptrace {request}")


@contextmanager
def stopped(thread: int) -> Iterator[None]:
    """A thread that stands still meanwhile."""
    _ptrace(_ATTACH, thread)
    try:
        os.waitpid(thread, _WALL)
        yield
    finally:
        _ptrace(_DETACH, thread)


def opens(pid: int, thread: int, path: str, flags: int = os.O_RDONLY) -> int:
    """What openat(2) of a path gives in a thread that waits in a system call.

    0, or an errno; what was opened stays open.
    """
    saved = (ctypes.c_uint64 * _WORDS)()
    regs = (ctypes.c_uint64 * _WORDS)()
    with stopped(thread), open(f"/proc/{pid}/mem", "r+b", buffering=0) as memory:
        _ptrace(_GETREGS, thread, ctypes.byref(saved))
        ctypes.memmove(regs, saved, ctypes.sizeof(saved))
        memory.seek(saved[_RIP] - len(_SYSCALL))
        assert memory.read(len(_SYSCALL)) == _SYSCALL, "it is not in a system call"
        text = os.fsencode(path) + b"\0"
        at = (saved[_RSP] - _RED_ZONE - len(text)) & ~15
        memory.seek(at)
        memory.write(text)
        regs[_RAX], regs[_RDI], regs[_RSI] = 257, 2**64 - 100, at
        regs[_RDX], regs[_R10], regs[_RIP] = flags, 0, saved[_RIP] - len(_SYSCALL)
        # else the kernel would take it for the call that was interrupted, and restart that
        regs[_ORIG_RAX] = 2**64 - 1
        _ptrace(_SETREGS, thread, ctypes.byref(regs))
        _ptrace(_SINGLESTEP, thread)
        _, status = os.waitpid(thread, _WALL)
        assert os.WIFSTOPPED(status), "the call killed it"
        _ptrace(_GETREGS, thread, ctypes.byref(regs))
        _ptrace(_SETREGS, thread, ctypes.byref(saved))
    (value,) = struct.unpack("=q", struct.pack("=Q", regs[_RAX]))
    assert -value != errno.ENOSYS
    return 0 if value >= 0 else -value


def _continue(thread: int) -> None:
    """To its next system call, or the end of that."""
    _ptrace(_SYSCALL_STOPS, thread)


def _enters(thread: int, call: int) -> bool:
    """Whether this thread has come to that system call; if it came to another, it goes on."""
    if os.waitpid(thread, _WALL | os.WNOHANG)[0] != thread:
        return False
    regs = (ctypes.c_uint64 * _WORDS)()
    _ptrace(_GETREGS, thread, ctypes.byref(regs))
    if regs[_ORIG_RAX] == call and regs[_RAX] == 2**64 - errno.ENOSYS:
        return True
    _continue(thread)
    return False


@contextmanager
def held(threads: Sequence[int], call: int, begin: Callable[[], None]) -> Iterator[None]:
    """The first of these threads that comes to this system call after ``begin()`` waits there."""
    for thread in threads:
        _ptrace(_SEIZE, thread)
        _ptrace(_INTERRUPT, thread)
        os.waitpid(thread, _WALL)
        _continue(thread)
    begin()
    end = time.monotonic() + HANG
    while not (there := [thread for thread in threads if _enters(thread, call)]):
        assert time.monotonic() < end, f"none of the threads {threads} came to call {call}"
        time.sleep(0.001)
    for thread in threads:
        if thread not in there[:1]:
            _ptrace(_INTERRUPT, thread)
            os.waitpid(thread, _WALL)
            _ptrace(_DETACH, thread)
    try:
        yield
    finally:
        try:
            _ptrace(_DETACH, there[0])
        except ProcessLookupError:
            # it was killed: its process ends when we have taken note of it
            os.waitpid(there[0], _WALL)


def openers(pid: int) -> list[int]:
    """The threads that may open files: the main one, and the two of a file server.

    These three wait for events, as no processor does.
    """
    while True:
        waiting = [
            int(thread.name)
            for thread in Path(f"/proc/{pid}/task").iterdir()
            if (thread / "syscall").read_text().split()[0] in _EPOLL_WAIT
        ]
        if len(waiting) == 3:
            return [pid, *sorted({*waiting} - {pid})]
        time.sleep(0.01)
