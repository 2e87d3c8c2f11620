"""The sandbox of one command: section by section as clients know it, on top of the preset."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from cowork_nsrun.cowork.mounts import Folders, primary
from cowork_nsrun.cowork.paths import PathError, Paths, guest_mount
from cowork_nsrun.errors import NsrunError
from cowork_nsrun.spec import Bind, BindFd, Dir, Operation, Sandbox

NIX = "/nix"
SYSCTL = "/proc/sys"


@dataclass(frozen=True, slots=True)
class Layout:
    """What a sandbox is made of.

    Attributes:
        session: its name.
        folders: what lies below ``/sessions/SESSION/mnt``.
        paths: the resolver; its home is empty inside, or ``own_home``.
        program: what of the host the program needs, read-only; None: nothing more.
        extra: the user's own binds, ahead of the home.
        disabled: destinations of the default layout that are left out.
        own_home: a directory of the session to be its home.
        own_tmp: a directory of the session to be its /tmp.
    """

    session: str
    folders: Folders
    paths: Paths
    program: str | None
    extra: Sequence[Bind] = ()
    disabled: frozenset[str] = frozenset()
    own_home: str | None = None
    own_tmp: str | None = None

    @property
    def cwd(self) -> str:
        """Where commands start."""
        name = primary(self.folders)
        if name is None:
            return f"/sessions/{self.session}/mnt"
        return guest_mount(self.session, name)

    def sandbox(self) -> Sandbox:
        """The spec.

        Raises:
            SpecError: a path that can't be.
        """
        home = self.paths.home
        preset = Sandbox.cowork(
            self.session,
            {name: folder.host for name, folder in self.folders.items()},
            home=home,
            read_only=[name for name, folder in self.folders.items() if folder.read_only],
            program_dir=self.program,
        )
        operations = preset.filesystem
        split = operations.index(Dir(home))
        default = [*operations[:split], *_nix()]
        kept = (operation for operation in default if operation.dest not in self.disabled)
        rest: tuple[Operation, ...] = operations[split:]
        if self.own_home is not None:
            rest = (Bind(self.own_home, home), *rest[1:])
        tmp = () if self.own_tmp is None else (Bind(self.own_tmp, "/tmp"),)
        return preset.replace(
            filesystem=(*kept, *_root_covers(), *tmp, *self.extra, *rest),
            cwd=self.cwd,
            # none are left where the caller has none; root's would undo every read-only mount
            caps_drop=frozenset({"all"}),
        )

    @contextmanager
    def pinned(self) -> Iterator[Sandbox]:
        """The spec with its folders open, so that what was checked is what is mounted.

        Commands write to folders that others may mount: a path can change its meaning.

        Raises:
            NsrunError: a folder is gone, or has become a link to where it may not lead.
        """
        spec = self.sandbox()
        with ExitStack() as stack:
            operations: list[Operation] = []
            for operation in spec.filesystem:
                if isinstance(operation, Bind) and operation.dest.startswith("/sessions/"):
                    fd = self.open_folder(operation.source)
                    stack.callback(os.close, fd)
                    operations.append(BindFd(fd, operation.dest, operation.read_only))
                else:
                    operations.append(operation)
            yield spec.replace(filesystem=operations)

    def open_folder(self, path: str) -> int:
        """A descriptor of a folder, O_PATH.

        Raises:
            NsrunError: it is gone, or has become a link to where it may not lead.
        """
        try:
            fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
        except OSError as error:
            raise NsrunError(
                f"mount {path}: {error.strerror}", path=path, errno=error.errno or 0
            ) from None
        try:
            real = os.readlink(f"/proc/self/fd/{fd}")
            refusal = None if self.paths.in_home(real) else self.paths.refusal(real)
            if refusal is not None:
                raise PathError(f"mount {path} leads to {refusal}")
        except BaseException:
            os.close(fd)
            raise
        return fd


def _root_covers() -> tuple[Bind, ...]:
    """What root may write by its number alone, without any capability; others may not."""
    return (Bind(SYSCTL, SYSCTL, read_only=True),) if os.geteuid() == 0 else ()


def _nix() -> tuple[Bind, ...]:
    """Systems whose /usr and /etc lead to there."""
    return (Bind(NIX, NIX, read_only=True),) if os.path.isdir(f"{NIX}/store") else ()
