"""Which file a command is."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from cowork_nsrun.cowork.paths import PathError, Paths, is_guest, is_within

CLAUDE = "claude"
_SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib64", "/opt", "/nix")


class NotFound(PathError):
    """There is no such program."""


@dataclass(frozen=True, slots=True)
class Program:
    """A command's file.

    Attributes:
        path: as the command is started by, inside too.
        shown: what of the host has to be seen for that, read-only; None: nothing more.
    """

    path: str
    shown: str | None


def find_sdk(paths: Paths, subpath: str, version: str) -> str | None:
    """The command line program that the app has downloaded; None if it is not there.

    Raises:
        PathError: a path or a version that is not taken.
    """
    if "/" in version or version in {"", ".", ".."} or "\0" in version:
        raise PathError(f"version {version[:80]!r}: one component of a path is wanted")
    program = Path(paths.folder(subpath)) / version / CLAUDE
    return str(program) if program.is_file() and os.access(program, os.X_OK) else None


def resolve(
    command: str, paths: Paths, mounts: dict[str, str], sdk: str | None, search: str | None
) -> Program:
    """The file that a command names.

    ``claude`` is the app's own, if it has been installed; nothing else is redirected.

    Arguments:
        mounts: name to the host's path of the folders that it will see.
        search: a PATH.

    Raises:
        NotFound: there is none.
    """
    if not command or "\0" in command:
        raise NotFound(f"{command[:80]!r} is no command")
    name = os.path.basename(command)
    if name == CLAUDE and sdk is not None:
        return Program(sdk, os.path.dirname(sdk))
    if is_guest(command):
        host = paths.to_host(command, mounts)
        if host is not None and os.path.exists(host):
            return Program(command, None)
    elif command.startswith("/") and os.path.exists(command):
        return Program(command, _shown(command, paths))
    found = shutil.which(name, path=search) if name else None
    if found is None:
        raise NotFound(f"{command} not found")
    found = os.path.abspath(found)
    return Program(found, _shown(found, paths))


def _shown(path: str, paths: Paths) -> str:
    """Its directory; the file alone where its directory is a place of the user's."""
    directory = os.path.dirname(os.path.normpath(path))
    if any(is_within(directory, place) for place in _SYSTEM):
        return directory
    holds_home = any(is_within(home, directory) for home in (paths.home, paths.real_home))
    hidden = paths.in_home(directory) or paths.refusal(directory) is not None
    return os.path.normpath(path) if holds_home or hidden else directory
