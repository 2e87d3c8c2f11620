"""The socket: its place, its rules, one service at a time, and nothing of others removed."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import stat
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from cowork_nsrun.cowork.log import log
from cowork_nsrun.errors import NsrunError

DEFAULT_NAME = "cowork-vm-service.sock"
PATH_MAX = 107  # bytes, unix(7)
BACKLOG = 128
FIRST_FD = 3  # sd_listen_fds(3)


class EndpointError(NsrunError):
    """The socket can't be listened on."""


def default_path(environ: Mapping[str, str]) -> Path:
    """In the user's runtime directory, else in /tmp."""
    return Path(environ.get("XDG_RUNTIME_DIR") or "/tmp") / DEFAULT_NAME


@dataclass(slots=True)
class Endpoint:
    """A listening socket and what goes with it.

    Attributes:
        socket: listens.
        path: where; empty if it came without one.
    """

    socket: socket.socket
    path: str
    _identity: tuple[int, int] | None = None
    _lock: int = -1
    _lock_path: str = field(default="")

    def close(self) -> None:
        """Listen no more; the socket's file goes if it is still ours."""
        self.socket.close()
        if self._identity is not None and _identity(self.path) == self._identity:
            with suppress(OSError):
                os.unlink(self.path)
        self._identity = None
        if self._lock >= 0:
            # while it is held: who waits for it looks whether the file is still the same
            with suppress(OSError):
                os.unlink(self._lock_path)
            os.close(self._lock)
            self._lock = -1


def listen(path: str | os.PathLike[str]) -> Endpoint:
    """Listen at a path; what a dead service left there is replaced.

    Raises:
        EndpointError: the directory, or what is at the path, is not as it has to be, or
            another service has it.
    """
    text = os.path.abspath(path)
    if len(os.fsencode(text)) > PATH_MAX:
        raise EndpointError(f"{text}: a socket's path has at most {PATH_MAX} bytes", path=text)
    check_directory(os.path.dirname(text))
    lock_path = text + ".lock"
    lock = _lock(lock_path, text)
    try:
        _remove_stale(text)
        listener = _bind(text)
    except BaseException:
        with suppress(OSError):
            os.unlink(lock_path)
        os.close(lock)
        raise
    return Endpoint(listener, text, _identity(text), lock, lock_path)


def check_directory(directory: str) -> None:
    """Refuse a directory in which others could replace the socket.

    Raises:
        EndpointError: it is missing, another's, or others may write there.
    """
    try:
        found = os.stat(directory)
    except OSError as error:
        raise EndpointError(
            f"{directory}: {error.strerror}; make the socket's directory first",
            path=directory,
            errno=error.errno or 0,
        ) from None
    if not stat.S_ISDIR(found.st_mode):
        raise EndpointError(f"{directory} is no directory", path=directory)
    if found.st_uid not in {0, os.geteuid()}:
        raise EndpointError(f"{directory} belongs to user {found.st_uid}", path=directory)
    if found.st_mode & 0o022 and not found.st_mode & stat.S_ISVTX:
        raise EndpointError(
            f"{directory} can be written by others: chmod go-w {directory}", path=directory
        )


def _lock(path: str, shown: str) -> int:
    """The lock of a socket's path, held as long as the descriptor is open."""
    while True:
        try:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise EndpointError(
                f"{path}: {error.strerror}", path=path, errno=error.errno or 0
            ) from None
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(fd)
            raise EndpointError(
                f"another service listens on {shown}", path=shown, errno=errno.EADDRINUSE
            ) from None
        found = os.fstat(fd)
        if (found.st_dev, found.st_ino) == _identity(path):
            return fd
        os.close(fd)


def _identity(path: str) -> tuple[int, int] | None:
    try:
        found = os.lstat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _remove_stale(path: str) -> None:
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(found.st_mode):
        raise EndpointError(f"{path} is there and is no socket: remove it", path=path)
    if found.st_uid != os.geteuid():
        raise EndpointError(f"{path} belongs to user {found.st_uid}", path=path)
    # a service that knows nothing of our lock
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(path)
        except (ConnectionRefusedError, FileNotFoundError):
            with suppress(FileNotFoundError):
                os.unlink(path)
            return
        except OSError as error:
            raise EndpointError(
                f"{path}: {error}: something else seems to listen there", path=path
            ) from None
    raise EndpointError(f"another service listens on {path}", path=path, errno=errno.EADDRINUSE)


def _bind(path: str) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    before = os.umask(0o077)  # from its first moment: mode 0700
    try:
        listener.bind(path)
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        raise EndpointError(
            f"{path}: {error.strerror}", path=path, errno=error.errno or 0
        ) from None
    finally:
        os.umask(before)
    return listener


def activated(environ: Mapping[str, str]) -> Endpoint | None:
    """The socket that systemd has opened for us; None: it has not.

    Raises:
        EndpointError: it has opened something else.
    """
    if environ.get("LISTEN_PID") != str(os.getpid()):
        return None
    if environ.get("LISTEN_FDS") != "1":
        raise EndpointError(f"LISTEN_FDS is {environ.get('LISTEN_FDS')!r}: one socket is wanted")
    os.set_inheritable(FIRST_FD, False)
    try:
        listener = socket.socket(fileno=FIRST_FD)
    except OSError as error:
        raise EndpointError(f"LISTEN_FDS: {error}", errno=error.errno or 0) from None
    listening = listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    if (listener.family, listener.type) != (socket.AF_UNIX, socket.SOCK_STREAM) or not listening:
        raise EndpointError("LISTEN_FDS: a listening Unix stream socket is wanted")
    listener.setblocking(False)
    name = listener.getsockname()
    path = name if isinstance(name, str) else ""
    log.debug("socket activation: %s", path)
    return Endpoint(listener, path)
