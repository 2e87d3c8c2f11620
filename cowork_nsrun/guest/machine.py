"""A microVM that runs plans: boot it, wait for its agent, give it plans."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from cowork_nsrun.closing import Closing
from cowork_nsrun.errors import NsrunError
from cowork_nsrun.guest.agent import Agent, Command, Settings
from cowork_nsrun.guest.compile import Translation
from cowork_nsrun.guest.image import prepare
from cowork_nsrun.guest.kernel import choose
from cowork_nsrun.guest.network import Network
from cowork_nsrun.guest.view import Export, view_bytes
from cowork_nsrun.guest.vmm import GuestError, Monitor, StreamRefused, find_beside
from cowork_nsrun.guest.vmm import Settings as MonitorSettings

#: of a guest's memory, in MiB: what it never touches costs nothing
MEMORY_MIB = 1024
#: processors at most; more are asked for by number
CPUS = 4
#: seconds that a guest may take to boot
BOOT_PATIENCE = 120.0
_TAG = "nsrun"
_NAPS = (0.002, 0.005, 0.01, 0.02)


@dataclass(frozen=True, slots=True)
class Size:
    """What a machine is given.

    Attributes:
        memory_mib: memory in MiB; None: :data:`MEMORY_MIB`, or half of the host's if that is less.
        cpus: processors; None: the host's, at most :data:`CPUS`.
    """

    memory_mib: int | None = None
    cpus: int | None = None

    def memory(self) -> int:
        """In MiB."""
        if self.memory_mib is not None:
            return self.memory_mib
        host = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") >> 20
        return min(MEMORY_MIB, max(128, host // 2))

    def processors(self) -> int:
        """As many as this process may use, within bounds."""
        return self.cpus or min(CPUS, len(os.sched_getaffinity(0)))


def _view(exports: tuple[Export, ...]) -> BinaryIO:
    """A memory file with a view."""
    file = open(os.memfd_create("nsrun-view", os.MFD_CLOEXEC), "w+b")  # noqa: SIM115 - given away
    file.write(view_bytes(exports))
    file.flush()
    file.seek(0)
    return file


class Machine(Closing):
    """A guest with an agent.  It ends with this object, and with this process.

    Arguments:
        kernel: an image to boot; by default the first fit one that is found.
        size: memory and processors.
        network: what its network card is joined to, which ends with it; None: it has no card.

    Raises:
        NsrunError: there is no fit kernel, or it can't be started.
    """

    def __init__(
        self,
        kernel: str | Path | None = None,
        size: Size | None = None,
        network: Network | None = None,
    ) -> None:
        size = size or Size()
        agent = find_beside("nsrun-agent")
        with (
            prepare(choose(kernel), agent, network=network is not None) as image,
            _view(()) as view,
        ):
            settings = MonitorSettings(
                memory_mib=size.memory(),
                cpus=size.processors(),
                cmdline="quiet nsrun.fs" if network is None else "quiet nsrun.fs nsrun.net",
                shares={_TAG: view},
                network=network,
            )
            self.monitor = Monitor(image, settings)
        self.agent = Agent(self.monitor.connect)

    def wait_ready(self, timeout: float = BOOT_PATIENCE) -> None:
        """Wait until the agent listens.

        Raises:
            GuestError: the guest died, or took too long.
        """
        end = time.monotonic() + timeout
        tries = 0
        while True:
            try:
                self.agent.info()
            except StreamRefused:
                if time.monotonic() > end:
                    raise GuestError(
                        f"the guest's agent was not there after {timeout:g} seconds",
                        self.monitor.console,
                    ) from None
            else:
                return
            time.sleep(_NAPS[min(tries, len(_NAPS) - 1)])
            tries += 1

    def run(
        self,
        translation: Translation,
        settings: Settings,
        *,
        stdin: bool = True,
        stdout: bool = True,
        stderr: bool = True,
        terminal: bool = False,
    ) -> Command:
        """Start a plan; what it shows of the host is shared first.

        Raises:
            NsrunError: the guest can't be given it.
        """
        first = 0
        if translation.exports:
            try:
                with _view(translation.exports) as view:
                    first = self.monitor.export(view)
            except ValueError as error:
                raise NsrunError(str(error)) from None
        return self.agent.start(
            translation.plan(first),
            settings,
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            terminal=terminal,
        )

    def explain(self, error: NsrunError) -> NsrunError:
        """The guest's death, if that is what an error of the agent's is about."""
        if self.monitor.wait(0.5) is None:
            return error
        return self.monitor.failure()

    def close(self) -> None:
        """End it at once: nothing in it is worth more than the host's files."""
        self.monitor.close()
