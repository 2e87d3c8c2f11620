"""The service's log: one file, three levels, nothing secret in it.

``lifecycle`` and ``error`` are always written, ``debug`` when it is switched on; errors also go
to standard error, debug to standard output.  A line is
``2026-01-31T12:00:00.000Z [level] [cowork-vm-service] message``.
"""

from __future__ import annotations

import logging
import os
import re
import socket
import stat
import sys
import time
from contextlib import suppress
from logging.handlers import RotatingFileHandler
from pathlib import Path

NAME = "cowork-vm-service"
LIFECYCLE = logging.INFO + 5
FILE_MAX = 4 * 1024 * 1024  # bytes, of the file and of each older one
FILES_KEPT = 3
LINE_MAX = 8192

log = logging.getLogger("cowork_nsrun.cowork")

_LEVELS = {logging.DEBUG: "debug", LIFECYCLE: "lifecycle"}
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")


def lifecycle(message: str, *args: object) -> None:
    """What is always written and is no error."""
    log.log(LIFECYCLE, message, *args)


class _Formatter(logging.Formatter):
    """One record, one line, whatever a client put into it."""

    def format(self, record: logging.LogRecord) -> str:
        created = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        level = _LEVELS.get(record.levelno, "error" if record.levelno > LIFECYCLE else "debug")
        text = record.getMessage()
        if record.exc_info:
            text += "\n" + self.formatException(record.exc_info)
        text = _CONTROL.sub(lambda match: repr(match[0])[1:-1], text)[:LINE_MAX]
        line = f"{created}.{int(record.msecs):03d}Z [{level}] [{NAME}] {text}"
        return line.encode(errors="backslashreplace").decode()


class _File(RotatingFileHandler):
    """A full disk, or a directory that is gone, is no reason to stop."""

    def _open(self):  # type: ignore[no-untyped-def]
        # what clients do is nobody else's business
        return open(
            self.baseFilename,
            self.mode,
            encoding="utf-8",
            opener=lambda path, flags: os.open(path, flags | os.O_NOFOLLOW, 0o600),
        )

    def handleError(self, record: logging.LogRecord) -> None:
        pass


class _Stream(logging.Handler):
    """Our own output, which may be a pipe that nobody reads: nothing waits for it."""

    def __init__(self, fd: int) -> None:
        super().__init__()
        self._fd = -1
        self._socket: socket.socket | None = None
        mode = os.fstat(fd).st_mode
        if stat.S_ISSOCK(mode):
            self._socket = socket.socket(fileno=os.dup(fd))
        elif stat.S_ISFIFO(mode):
            # opened anew: the flag is not to be the other holders' as well
            self._fd = os.open(f"/proc/self/fd/{fd}", os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        else:
            self._fd = os.dup(fd)

    def emit(self, record: logging.LogRecord) -> None:
        data = (self.format(record) + "\n").encode()
        with suppress(OSError):
            if self._socket is not None:
                self._socket.send(data, socket.MSG_DONTWAIT)
            else:
                os.write(self._fd, data)

    def close(self) -> None:
        super().close()
        if self._socket is not None:
            self._socket.close()
        elif self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


class Log:
    """The handlers of :data:`log`, from when it is made until :meth:`close`."""

    def __init__(self, directory: Path, debug: bool) -> None:
        self._handlers: list[logging.Handler] = []
        self.path = directory / "cowork_vm_daemon.log"
        problem = self._add_file()
        for stream, wanted in ((sys.stderr, _is_error), (sys.stdout, _is_debug)):
            with suppress(OSError, ValueError, AttributeError):  # it is closed
                self._add(_Stream(stream.fileno()), wanted)
        log.propagate = False
        self.set_debug(debug)
        if problem is not None:
            log.error("no log file %s: %s", self.path, problem)

    def _add_file(self) -> OSError | None:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            file = _File(self.path, maxBytes=FILE_MAX, backupCount=FILES_KEPT, encoding="utf-8")
        except OSError as error:
            return error
        self._add(file, lambda record: True)
        return None

    def _add(self, handler: logging.Handler, wanted: logging.Filter | object) -> None:
        handler.setFormatter(_Formatter())
        handler.addFilter(wanted)  # type: ignore[arg-type] # a callable is one too
        log.addHandler(handler)
        self._handlers.append(handler)

    def set_debug(self, enabled: bool) -> None:
        """Write debug lines from now on, or no more."""
        log.setLevel(logging.DEBUG if enabled else LIFECYCLE)

    def close(self) -> None:
        """Give the files back."""
        for handler in self._handlers:
            log.removeHandler(handler)
            handler.close()
        self._handlers.clear()


def _is_error(record: logging.LogRecord) -> bool:
    return record.levelno > LIFECYCLE


def _is_debug(record: logging.LogRecord) -> bool:
    return record.levelno < LIFECYCLE
