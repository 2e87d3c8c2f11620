"""The one resolver: what a client means by a path, on the host and inside.

A client names folders relative to ``/`` without the leading slash (``home/u/p``), absolutely,
or relative to the home (``.claude``).  Inside, a folder is ``/sessions/SESSION/mnt/NAME``.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass

from cowork_nsrun.errors import NsrunError

COMPONENT_MAX = 255
PATH_MAX = 4096
# What no client's path leads to, however it is written.
SYSTEM = (
    "/bin", "/boot", "/dev", "/etc", "/lib", "/lib32", "/lib64", "/libx32", "/lost+found",
    "/nix", "/proc", "/root", "/run", "/sbin", "/sessions", "/snap", "/sys", "/usr", "/var",
)  # fmt: skip
# Where folders of users may lie, though not as a whole.
HOLDERS = ("/", "/home", "/media", "/mnt", "/opt", "/srv", "/tmp", "/run/media", "/var/home")
# Exceptions below SYSTEM.
USERS = ("/run/media", "/var/home", "/var/tmp")


class PathError(NsrunError):
    """A path or a name that is not taken."""


def check_name(what: str, name: str) -> str:
    """Return a session's or a mount's name: one component of a path.

    Raises:
        PathError: it is not.
    """
    if (
        name in {"", ".", ".."}
        or "/" in name
        or not name.isprintable()
        or len(name.encode(errors="replace")) > COMPONENT_MAX
    ):
        raise PathError(f"{what} {name[:80]!r}: one component of a path is wanted")
    return name


def _check(path: str) -> str:
    if "\0" in path or len(path.encode(errors="surrogatepass")) >= PATH_MAX:
        raise PathError("a path has no NUL byte and less than 4096 bytes")
    if ".." in path.split("/"):
        raise PathError(f"{path!r}: '..' is not taken")
    try:
        os.fsencode(path)
    except UnicodeEncodeError:
        raise PathError(f"{path!r} can't be encoded") from None
    return path


def is_within(path: str, directory: str) -> bool:
    """``path`` is ``directory`` or lies below it; both normalised."""
    return path == directory or path.startswith(directory.rstrip("/") + "/")


@dataclass(frozen=True, slots=True)
class Paths:
    """The resolver for one home.

    Attributes:
        home: the user's home, absolute and normalised.
        real_home: the same without symbolic links; some systems have /home -> /var/home.
    """

    home: str
    real_home: str

    @classmethod
    def of_home(cls, home: str | os.PathLike[str]) -> Paths:
        """The resolver for a home.

        Raises:
            PathError: it is no absolute path, or is /.
        """
        text = os.fspath(home)
        if not text.startswith("/"):
            raise PathError(f"HOME is {text!r}: an absolute path is wanted")
        plain = "/" + os.path.normpath(text).lstrip("/")
        if plain == "/":
            raise PathError("HOME is '/': with it every path would be the user's")
        return cls(plain, os.path.realpath(plain))

    def in_home(self, path: str) -> bool:
        """By name alone, in either spelling of the home."""
        return is_within(path, self.home) or is_within(path, self.real_home)

    # --- a client's path, on the host ---------------------------------------------------

    def locate(self, subpath: str) -> str:
        """The host's path that a client means, by name alone: the home or below, or elsewhere.

        Raises:
            PathError: with ``..`` in it, or to where nothing of a user's lies.
        """
        if not _check(subpath).strip("/"):
            return self.home
        rooted = "/" + os.path.normpath("/" + subpath).lstrip("/")
        if self.in_home(rooted):
            return rooted
        inside = self.home.rstrip("/") + rooted
        if os.path.lexists(rooted) and self.refusal(rooted) is None:
            return rooted
        if os.path.lexists(inside):
            return inside
        # a disk that is not mounted now, not a folder to be made in the home
        top = "/" + rooted.split("/", 2)[1]
        if os.path.lexists(top):
            raise PathError(self.refusal(rooted) or f"{rooted} is not there")
        return inside

    def folder(self, subpath: str) -> str:
        """As :meth:`locate`, and no link leads to where nothing of a user's lies.

        Raises:
            PathError: it does.
        """
        path = self.locate(subpath)
        real = os.path.realpath(path)
        if not self.in_home(real):
            refusal = self.refusal(real)
            if refusal is not None:
                raise PathError(refusal if real == path else f"{path} leads to {refusal}")
        return path

    def refusal(self, path: str) -> str | None:
        """Why a client may not have a path outside the home; None: it may."""
        if path in HOLDERS or is_within(self.home, path) or is_within(self.real_home, path):
            return f"{path}, which holds more than one folder of a user"
        if self.in_home(path) or any(is_within(path, place) for place in USERS):
            return None
        if any(is_within(path, place) for place in SYSTEM):
            return f"{path}, which belongs to the system"
        return None

    # --- inside ---------------------------------------------------------------------------

    def to_host(self, guest: str, mounts: Mapping[str, str]) -> str | None:
        """The host's path of ``/sessions/ID/mnt/NAME/REST``; None if it has none.

        Clients take leading dots away, so NAME is looked for with and without one.
        """
        found = split_guest(guest)
        if found is None:
            return None
        _, name, rest = found
        for key in (name, "." + name, name.removeprefix(".")):
            base = mounts.get(key) if key else None
            if base is not None:
                path = os.path.normpath(os.path.join(base, rest))
                return path if is_within(path, os.path.normpath(base)) else None
        return None

    def to_guest(self, path: str, session: str, mounts: Mapping[str, str]) -> str | None:
        """Where a host's path is seen inside; None if it is not."""
        plain = os.path.normpath(path)
        best = max(
            (item for item in mounts.items() if is_within(plain, item[1])),
            key=lambda item: len(item[1]),
            default=None,
        )
        if best is None:
            return None
        rest = os.path.relpath(plain, best[1])
        return f"{guest_mount(session, best[0])}" + ("" if rest == "." else f"/{rest}")


def guest_mount(session: str, name: str) -> str:
    """Where a mount is seen inside."""
    return f"/sessions/{session}/mnt/{name}"


def is_guest(path: str) -> bool:
    """It is a path inside."""
    return path.startswith("/sessions/")


def split_guest(path: str) -> tuple[str, str, str] | None:
    """Session, name of the mount and the rest of ``/sessions/SESSION/mnt/NAME/REST``."""
    parts = path.split("/", 5)
    if "\0" in path or len(parts) < 5 or parts[:2] != ["", "sessions"] or parts[3] != "mnt":
        return None
    session, name = parts[2], parts[4]
    if not session or name in {"", ".", ".."}:
        return None
    return session, name, (parts[5] if len(parts) > 5 else "").lstrip("/")


def read_text(path: str, allowed: tuple[str, ...], limit: int) -> str:
    """A regular file's content as text, wrong bytes replaced.

    What was opened is looked at, not what a path led to before.

    Raises:
        OSError: it can't be read, is no regular file or longer than ``limit`` bytes.
        PathError: it lies outside of what is allowed.
    """
    # nothing happens to what is only looked at, be it a device or a pipe
    fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        real = os.readlink(f"/proc/self/fd/{fd}")
        if not any(is_within(real, directory) for directory in allowed):
            raise PathError("Access denied: path outside home directory")
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise OSError(errno.EINVAL, "not a regular file", path)
        with open(f"/proc/self/fd/{fd}", "rb") as file:
            data = file.read(limit + 1)
    finally:
        os.close(fd)
    if len(data) > limit:
        raise OSError(errno.EFBIG, f"longer than {limit} bytes", path)
    return data.decode(errors="replace")
