"""What can go wrong, as exceptions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cowork_nsrun.process import Result


class NsrunError(Exception):
    """A sandbox could not be made, or a plan could not be read.

    Attributes:
        text: the whole reason in words, the meaning of ``errno`` included.
        step: number of the set-up step that failed; 0 if the request itself is wrong.
        path: the path it failed at; empty if there is none.
        errno: the system's error number; 0 if there is none.
    """

    def __init__(self, text: str, *, step: int = 0, path: str = "", errno: int = 0) -> None:
        super().__init__(text)
        self.text = text
        self.step = step
        self.path = path
        self.errno = errno


class SpecError(NsrunError, ValueError):
    """A value that no sandbox can have.

    Attributes:
        field: name of the field that holds it, such as ``Bind.dest``; in a profile its
            place, such as ``filesystem[2].dest``.
        problem: what is wrong with it.
        path: the profile that says so; else empty.
    """

    def __init__(self, field: str, problem: str, *, path: str = "", errno: int = 0) -> None:
        text = ": ".join(part for part in (path, field, problem) if part)
        super().__init__(text, path=path, errno=errno)
        self.field = field
        self.problem = problem


class CommandError(NsrunError):
    """A command ended with something other than 0; raised by :meth:`Result.check`.

    Attributes:
        result: what the command left behind.
    """

    def __init__(self, result: Result[Any]) -> None:
        how = f"signal {result.signal}" if result.signal else f"exit status {result.returncode}"
        super().__init__(f"the command ended with {how}")
        self.result = result


class TimeoutExpired(NsrunError):
    """The time was up; everything in the sandbox has been killed.

    Attributes:
        timeout: the limit, in seconds.
        stdout: what was captured until then; None if nothing was to be.
        stderr: the same of standard error.
    """

    def __init__(self, timeout: float, stdout: bytes | None, stderr: bytes | None) -> None:
        super().__init__(f"the command ran for longer than {timeout} seconds")
        self.timeout = timeout
        self.stdout = stdout
        self.stderr = stderr
