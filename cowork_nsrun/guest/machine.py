"""A microVM that runs plans: boot it, wait for its agent, give it plans."""

from __future__ import annotations

import logging
import os
import re
import threading
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

from cowork_nsrun.closing import Closing
from cowork_nsrun.errors import NsrunError
from cowork_nsrun.guest import cache, template
from cowork_nsrun.guest.agent import Agent, Command, Outlet, Settings
from cowork_nsrun.guest.compile import EXPORTS, Translation
from cowork_nsrun.guest.kernel import Kernel, choose
from cowork_nsrun.guest.network import Network
from cowork_nsrun.guest.view import Export, view_file
from cowork_nsrun.guest.vmm import GuestError, Monitor, NoAnswer, StreamRefused, find_beside
from cowork_nsrun.guest.vmm import Settings as MonitorSettings

log = logging.getLogger(__name__)

#: of a guest's memory, in MiB: what it never touches costs nothing
MEMORY_MIB = 1024
#: processors at most; more are asked for by number
CPUS = 4
#: seconds that a guest may take to boot
BOOT_PATIENCE = 120.0
#: seconds after which it is asked again whether it has booted
_ASKED_AGAIN = 10.0
_TAG = "nsrun"
_EXPORT = re.compile(rf"{EXPORTS}/(\d+)")
_NAPS = (0.002, 0.005, 0.01, 0.02)


def wait_for_agent(monitor: Monitor, timeout: float = BOOT_PATIENCE) -> None:
    """Wait until the agent in a machine listens.

    Arguments:
        monitor: the machine's.
        timeout: seconds.

    Raises:
        GuestError: the guest died, or took too long; with what its console said last.
    """
    agent = Agent(monitor.connect)
    end = time.monotonic() + timeout
    tries = 0
    while True:
        try:
            agent.info(min(timeout, _ASKED_AGAIN))
        except (StreamRefused, NoAnswer):
            if time.monotonic() > end:
                raise GuestError(
                    f"the guest's agent was not there after {timeout:g} seconds", monitor.console
                ) from None
        else:
            return
        time.sleep(_NAPS[min(tries, len(_NAPS) - 1)])
        tries += 1


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


def machine_settings(size: Size, view: BinaryIO, network: Network | None = None) -> MonitorSettings:
    """What a machine of that size has, and shows of the host at first."""
    return MonitorSettings(
        memory_mib=size.memory(),
        cpus=size.processors(),
        cmdline="quiet nsrun.fs" + (" nsrun.net" if network is not None else ""),
        shares={_TAG: view},
        network=network,
    )


class Guest(Closing):
    """A machine with an agent.  It ends with this object, and with this process.

    Arguments:
        monitor: its own from now on.
        network: the same; None: it has none.
        shared: what has been shared already, with the number of the first of them, and that
            was the last; None: nothing yet.
    """

    def __init__(
        self,
        monitor: Monitor,
        network: Network | None = None,
        shared: Mapping[tuple[Export, ...], int] | None = None,
    ) -> None:
        self.monitor = monitor
        self.network = network
        self.agent = Agent(monitor.connect)
        self._sharing = threading.Lock()
        self._numbers = dict(shared or {})
        self._shut = shared is not None

    def run(
        self,
        translation: Translation,
        settings: Settings,
        *,
        stdin: bool = True,
        stdout: bool = True,
        stderr: bool = True,
        terminal: bool = False,
        outlet: Outlet | None = None,
        last: bool = False,
    ) -> Command:
        """Start a plan; what it shows of the host is shared first.

        The arguments are those of :meth:`Agent.start`, and:

        Arguments:
            last: no later plan may show anything else: see :meth:`Monitor.export`.

        Raises:
            NsrunError: the guest can't be given it.
        """
        return self.agent.start(
            translation.plan(self.share(translation.exports, last=last)),
            settings,
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            terminal=terminal,
            outlet=outlet,
        )

    def share(self, exports: tuple[Export, ...], *, last: bool = False, keep: bool = False) -> int:
        """The number of the first of them; what was shared before is not shared again.

        Arguments:
            last: as for :meth:`run`.
            keep: the machine is to be saved, see :meth:`Monitor.export`.

        Raises:
            NsrunError: the monitor refuses them, or is gone.
        """
        with self._sharing:
            if (exports and exports not in self._numbers) or (last and not self._shut):
                try:
                    with view_file(exports) as view:
                        self._numbers[exports] = self.monitor.export(view, last=last, keep=keep)
                except ValueError as error:
                    raise NsrunError(str(error)) from None
                self._shut |= last
            return self._numbers.get(exports, 0)

    @property
    def alive(self) -> bool:
        """It has not ended yet."""
        return self.monitor.wait(0) is None

    def explain(self, error: NsrunError) -> NsrunError:
        """The guest's death, if that is what an error of the agent's is about.

        Else the error, with the host's paths in place of what the guest has for them.
        """
        if self.monitor.wait(0.5) is None:
            text, path = (_EXPORT.sub(self._source, words) for words in (error.text, error.path))
            if text == error.text:
                return error
            return NsrunError(text, step=error.step, path=path, errno=error.errno)
        network = None if self.network is None else self.network.failure()
        return network or self.monitor.failure()

    def _source(self, export: re.Match[str]) -> str:
        """The host's path of an export; its name in the guest, if there is none such."""
        number = int(export[1])
        for exports, first in tuple(self._numbers.items()):
            if first <= number < first + len(exports):
                return exports[number - first].path
        return export[0]

    def close(self) -> None:
        """End it at once: nothing in it is worth more than the host's files."""
        self.monitor.close()
        self._close_network()

    def _close_network(self) -> None:
        if self.network is not None:
            self.network.close()


class Machine(Guest):
    """A guest that is made here.

    Arguments:
        kernel: what to boot, or its image; by default the first fit one that is found.
        size: memory and processors.
        network: whether it reaches what this process reaches.
        loopback: and the host's 127.0.0.1, as 10.0.2.2.

    It is a clone of a template, if there is one; else it boots, and once it is ready becomes
    the template of those that come after it.

    Raises:
        NsrunError: there is no fit kernel, or it can't be started.
    """

    def __init__(
        self,
        kernel: Kernel | str | Path | None = None,
        size: Size | None = None,
        *,
        network: bool = False,
        loopback: bool = False,
    ) -> None:
        size = size or Size()
        found = kernel if isinstance(kernel, Kernel) else choose(kernel)
        agent = find_beside("nsrun-agent")
        with ExitStack() as on_error, view_file(()) as view:
            self._loopback = loopback
            self.network = Network(loopback=loopback) if network else None
            on_error.callback(self._close_network)
            settings = machine_settings(size, view, self.network)
            self._template: str | None = template.key(found, agent, settings)
            monitor = self._restored(settings) or self._booted(found, agent, settings)
            on_error.pop_all()
        super().__init__(monitor, self.network)

    def _booted(self, kernel: Kernel, agent: Path, settings: MonitorSettings) -> Monitor:
        # a machine that is restored needs no image
        from cowork_nsrun.guest.image import prepare  # noqa: PLC0415

        with prepare(kernel, agent, network=self.network is not None) as image:
            return Monitor(image, replace(settings, network=self.network))

    def _restored(self, settings: MonitorSettings) -> Monitor | None:
        """A clone, or None; then a template is wanted."""
        assert self._template is not None
        file = cache.found(template.KIND, self._template)
        if file is None:
            return None
        with file:
            monitor = template.Template(file, settings).restore()
        try:
            monitor.wait_running()
        except GuestError as error:
            log.warning("a template is of no use, and is removed: %s", error)
            cache.drop(template.KIND, self._template)
            monitor.close()
            if self.network is not None:
                # the one that there was went with the monitor
                self.network.close()
                self.network = Network(loopback=self._loopback)
            return None
        self._template = None
        return monitor

    def _keep(self) -> None:
        """It is as new: others can begin here."""
        key, self._template = self._template, None
        if key is None:
            return
        try:
            cache.keep(template.KIND, key, self._save)
        except GuestError as error:
            log.info("no template was made: %s", error)

    def _save(self, file: BinaryIO) -> None:
        template.Template.save(self.monitor, file)

    def wait_ready(self, timeout: float = BOOT_PATIENCE) -> None:
        """Wait until the agent listens.

        Raises:
            GuestError: the guest died, or took too long.
        """
        wait_for_agent(self.monitor, timeout)
        self._keep()
