"""What the tests of the vsock device share."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from typing import NoReturn

Lack = Callable[[str], NoReturn]


def find_compiler(lack: Lack) -> str:
    """The system's compiler; musl's would not find the kernel's headers."""
    found = [name for name in ("cc", "gcc", "clang") if shutil.which(name)]
    if not found:
        lack("no C compiler: what drives the vsock device cannot be built")
    return found[0]
