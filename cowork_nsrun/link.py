"""A sandbox's own network, by veth(4): a namespace made before it, in which it is started.

The namespace is a thread's.  What that thread starts is in it, and once the thread has ended
nothing but the sandbox holds it: with the sandbox the kernel removes namespace and devices,
also when the owner was killed.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from typing import TYPE_CHECKING, Protocol, TypeVar

from cowork_nsrun.errors import NsrunError

if TYPE_CHECKING:
    from cowork_nsrun.policy.veth import Veth

CLONE_NEWNET = 0x40000000


class _Closes(Protocol):
    def close(self) -> None: ...


T = TypeVar("T", bound=tuple[_Closes, object])


class Link:
    """The namespace and the devices; takes root.

    Attributes:
        veth: their names and addresses.

    Raises:
        NsrunError: the kernel refuses, or pyroute2 is missing.
    """

    def __init__(self) -> None:
        try:
            from cowork_nsrun.policy.veth import Veth  # noqa: PLC0415 - it brings in a lot
        except ImportError as error:
            raise NsrunError(f"network veth: {error}") from None
        self._thread = ThreadPoolExecutor(1, "nsrun-veth")
        try:
            fd = self._thread.submit(_own_namespace).result()
            try:
                self.veth: Veth = Veth.open(fd)
            finally:
                os.close(fd)
        except BaseException:
            self._thread.shutdown()
            raise

    def start(self, work: Callable[[], T]) -> T:
        """What starts the sandbox, once, in its network; the namespace is the sandbox's then."""
        future = self._thread.submit(work)
        try:
            return future.result()
        except BaseException:
            wait((future,))
            if future.exception() is None:
                # an interrupt: nobody will hear of what was started
                future.result()[0].close()
            raise
        finally:
            self._thread.shutdown()

    def close(self) -> None:
        """Remove the devices, at once."""
        self._thread.shutdown()
        self.veth.close()


def _own_namespace() -> int:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(CLONE_NEWNET):
        number = ctypes.get_errno()
        raise NsrunError(
            f"network veth: unshare(CLONE_NEWNET): {os.strerror(number)}; it takes root on the "
            "host (CAP_SYS_ADMIN, CAP_NET_ADMIN)",
            errno=number,
        )
    return os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
