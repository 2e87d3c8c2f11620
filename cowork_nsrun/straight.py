"""Commands whose sandbox has nothing outside: the core takes them from start to end.

That is what most of :func:`cowork_nsrun.run` is for.  Its cost is the interpreter's: what that
does itself takes several times as long as it seems, since the sandboxes push its code out of the
processor's caches.  Whatever else there may be, limits, a proxy, a microVM, is left to
:mod:`cowork_nsrun.handle`.
"""

from __future__ import annotations

import os
import time
import weakref
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from cowork_nsrun import _native, compiling
from cowork_nsrun.errors import NsrunError
from cowork_nsrun.handle import EARLY_END
from cowork_nsrun.runner import doubt, in_process
from cowork_nsrun.teardown import teardown

if TYPE_CHECKING:
    from cowork_nsrun.spec import Sandbox

# Python ignores SIGPIPE and SIGXFSZ for itself, a command expects them
FLAGS = int(_native.PlanFlag.DEFAULT_SIGNALS)

# by identity.  Not held by this: what an interrupt takes from its caller's hands has to end.
# A WeakSet would take as long as all the rest of a start.
_running: dict[int, weakref.ref[_native.Run]] = {}


def _after_fork() -> None:
    # a copy of our ends would keep sandboxes alive whose owner has died
    for known in list(_running.values()):
        run = known()
        if run is not None:
            run.forget()
    _running.clear()


os.register_at_fork(after_in_child=_after_fork)


def start(
    spec: Sandbox,
    argv: Sequence[str | os.PathLike[str]],
    *,
    data: bytes | None,
    capture: bool,
    cwd: str | os.PathLike[str] | None,
    env: Mapping[str, str] | None,
) -> _native.Run | None:
    """Start a command, if it is one for this; None: nothing was done.

    Raises:
        SpecError: a value that can't be, named.
        NsrunError: the sandbox could not be made.
        OSError: there are no pipes to be had.
    """
    template = compiling.lone_template(spec)
    inherited, environment = compiling.inherited()
    if template is None or not in_process(spec.backend, inherited):
        return None
    words = compiling.checked_argv(argv)
    if env is not None or not template.inherits:
        environment = compiling.environment_block(spec, env)
    start_in = None if cwd is None else compiling.checked_cwd(cwd)
    teardown().sweep()
    run = _native.Run(data, capture)
    _running[id(run)] = weakref.ref(run)
    try:
        run.start(template.native, words, environment, start_in, FLAGS)
    except BaseException as error:
        _running.pop(id(run), None)
        run.close()
        # another may be allowed what this process is not
        refused = isinstance(error, NsrunError) and error.step == _native.STEP_CLONE
        if refused or isinstance(error, _native.NeedsProgram):
            return None
        raise
    return run


def finish(run: _native.Run, deadline: float | None) -> tuple[tuple[bytes, bytes], bool]:
    """Serve it to its end, and have what is left of it given back; its output, and "in time".

    Arguments:
        deadline: by ``time.monotonic()``; then everything inside is killed.

    Raises:
        NsrunError: it was not started, or its streams can't be served; nothing is left then.
    """
    in_time = True
    try:
        while not run.serve(deadline):
            if deadline is not None and time.monotonic() >= deadline:
                run.kill()
                in_time, deadline = False, None
        return take(run, in_time), in_time
    except BaseException as error:
        give_up(run, error)
        raise


def take(run: _native.Run, in_time: bool) -> tuple[bytes, bytes]:
    """The output of one that has ended; what is left of it is given back.

    Raises:
        NsrunError: it was not started.
    """
    if in_time and not run.began:
        raise NsrunError(EARLY_END)
    output = run.take_output()
    _running.pop(id(run), None)
    if run.alone:
        # before it is: from then on another thread may be closing it
        run.given_away = True
        teardown().add(run)
    return output


def give_up(run: _native.Run, error: BaseException) -> None:
    """Kill it, and wait until it is gone."""
    _running.pop(id(run), None)
    if not run.given_away:
        run.close()
    if isinstance(error, NsrunError) and error.step:
        doubt(error)
