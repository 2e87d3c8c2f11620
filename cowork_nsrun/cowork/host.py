"""Commands on the host, without namespaces: confined by Landlock and seccomp, or by nothing."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial

from cowork_nsrun.cowork.backends import Command, Start
from cowork_nsrun.cowork.layout import Layout
from cowork_nsrun.cowork.log import log
from cowork_nsrun.cowork.namespaces import start_sandboxed
from cowork_nsrun.errors import NsrunError
from cowork_nsrun.spec import Bind, BindFd, Dev, Operation, Proc, Sandbox

# What programs read of the system; the home is not among it.
_SYSTEM = ("/usr", "/bin", "/lib", "/lib64", "/sbin", "/etc", "/nix/store", "/run/current-system")


class HostBackend:
    """Commands on the host.

    Arguments:
        confined: reads the system, the program and the session's folders, writes the
            latter where they are writable; else everything is as for the user.
    """

    name = "host"
    sandboxed = False
    connect_delay = 0.5
    host_limits = True

    def __init__(self, confined: bool) -> None:
        self._confined = confined

    def problem(self) -> str | None:
        """Nothing is known to be wrong before it is tried."""
        return None

    def prepare(self, command: Command) -> Start:
        """Open the folders, and compile the spec.

        Raises:
            NsrunError: a network of certain domains was asked for, or a folder is gone.
        """
        if command.domains is not None:
            raise NsrunError(
                "allowedDomains: the host backend can't hold a command to them; "
                "use a backend with isolation"
            )
        with ExitStack() as stack:
            spec = Sandbox(
                backend="unconfined",
                cwd=command.cwd,
                new_session=True,
                die_with_parent=True,
            )
            if self._confined:
                spec = spec.replace(
                    backend="host",
                    filesystem=tuple(_operations(command.layout, stack)),
                    caps_drop=frozenset({"all"}),
                    seccomp_profile="nesting",
                    private_tmp=True,
                )
            return partial(
                start_sandboxed, command, spec, dict(command.environment), stack.pop_all()
            )

    def end(self, session: str | None) -> None:
        """Nothing is kept."""


def _operations(layout: Layout, stack: ExitStack) -> Iterator[Operation]:
    shown = _SYSTEM if layout.program is None else (*_SYSTEM, layout.program)
    yield from (Bind(path, path, read_only=True, optional=True) for path in shown)
    real = os.path.realpath("/etc/resolv.conf")
    if real.startswith("/run/"):
        yield Bind(real, real, read_only=True, optional=True)
    yield Dev()
    yield Proc()
    for bind in layout.extra:
        if bind.source == bind.dest:
            yield bind
        else:
            log.error('BwrapConfig: "%s" -> "%s" is left out: the host backend shows '
                      "paths where they are", bind.source, bind.dest)  # fmt: skip
    for folder in layout.folders.values():
        fd = layout.open_folder(folder.host)
        stack.callback(os.close, fd)
        # what was opened is what was checked: the core compares it with what is there
        yield BindFd(fd, os.readlink(f"/proc/self/fd/{fd}"), folder.read_only)
