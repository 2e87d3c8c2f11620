"""A process of our own: not for a program that only uses this package."""

from __future__ import annotations

import logging

log = logging.getLogger(__name__)


def name_process(name: str) -> None:
    """Show a name in ps and top instead of the interpreter's: PR_SET_NAME of prctl(2).

    By python-prctl, of the extra ``serve``; without it the interpreter's name stays.

    Arguments:
        name: the kernel keeps 15 bytes of it.
    """
    try:
        import prctl  # noqa: PLC0415 - optional, and built against libcap
    except ImportError as error:
        log.info("the process keeps the interpreter's name: %s", error)
        return
    prctl.set_name(name)
