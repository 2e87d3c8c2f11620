"""The sandbox of one command: section by section as clients know it, on top of the preset."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

from cowork_nsrun.cowork.mounts import Folders, primary
from cowork_nsrun.cowork.paths import guest_mount
from cowork_nsrun.spec import Bind, Dir, Limits, Namespace, Operation, Sandbox

NIX = "/nix"


@dataclass(frozen=True, slots=True)
class Layout:
    """What a sandbox is made of.

    Attributes:
        session: its name.
        folders: what lies below ``/sessions/SESSION/mnt``.
        home: the user's home; inside it is empty, or ``own_home``.
        program: what of the host the program needs, read-only; None: nothing more.
        extra: the user's own binds, ahead of the home.
        disabled: destinations of the default layout that are left out.
        own_home: a directory of the session to be its home.
        own_tmp: a directory of the session to be its /tmp.
    """

    session: str
    folders: Folders
    home: str
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

    def sandbox(self, limits: Limits) -> Sandbox:
        """The spec.

        Raises:
            SpecError: a path that can't be.
        """
        preset = Sandbox.cowork(
            self.session,
            {name: folder.host for name, folder in self.folders.items()},
            home=self.home,
            read_only=[name for name, folder in self.folders.items() if folder.read_only],
            program_dir=self.program,
        )
        operations = preset.filesystem
        split = operations.index(Dir(self.home))
        default = [*operations[:split], *_nix()]
        kept = (operation for operation in default if operation.dest not in self.disabled)
        rest: tuple[Operation, ...] = operations[split:]
        if self.own_home is not None:
            rest = (Bind(self.own_home, self.home), *rest[1:])
        tmp = () if self.own_tmp is None else (Bind(self.own_tmp, "/tmp"),)
        return preset.replace(
            filesystem=(*kept, *tmp, *self.extra, *rest), cwd=self.cwd, limits=limits
        )


def _nix() -> tuple[Bind, ...]:
    """Systems whose /usr and /etc lead to there."""
    return (Bind(NIX, NIX, read_only=True),) if os.path.isdir(f"{NIX}/store") else ()


def offline(spec: Sandbox) -> Sandbox:
    """The same with no network but its own loopback device."""
    return spec.replace(unshare=spec.unshare | {Namespace.NET})
