"""Make the C source of ``cowork_nsrun._native._core`` (run by ``cffi-gen-src``)."""

from pathlib import Path

from cffi import FFI

HEADER = Path(__file__).parents[2] / "csrc" / "include" / "nsrun.h"

# Warnings of the parser come back through one C callback.
CALLBACKS = """
extern "Python" void nsr_py_warn(void *arg, const char *text);
"""


def declarations() -> str:
    """The public header as cffi can read it: without the preprocessor's lines."""
    lines = HEADER.read_text(encoding="utf-8").splitlines()
    body = "\n".join(line for line in lines if not line.startswith("#"))
    return "typedef int... pid_t;\n" + body + CALLBACKS


def ffibuilder() -> FFI:
    """What ``cffi-gen-src exec-python`` looks for."""
    ffi = FFI()
    ffi.cdef(declarations())
    ffi.set_source("cowork_nsrun._native._core", '#include "nsrun.h"')
    return ffi
