"""Python that does its start ahead: for ``Pool(spec, warm=python("json", "numpy"))``.

What is here runs in the sandbox too, by :func:`python`, with the standard library alone, from
Python 3.9 on.  There it loads the modules, waits until a command comes, and then is that command:
its arguments are an interpreter's (``-c CODE``, ``-m MODULE``, a script, or ``-``).

Processes that go on from one start share what that start has drawn or read: the seed of
``hash``, addresses, the stack's canary, locale and encodings, ``sys.flags``, and whatever modules
have kept.  Drawn anew are the random numbers of ``random``, ``tempfile``, OpenSSL and
``numpy.random``.  A module that has kept something else that no two processes may share says how
it is renewed:

    try:
        from nsrun_warm import after_resume
    except ImportError:  # not started by this
        pass
    else:
        after_resume(renew)  # is called in each process, before its command

How a program of another kind waits is in docs/microvm.md.
"""

from __future__ import annotations

import importlib
import os
import runpy
import sys
import types

TYPE_CHECKING = False  # as typing's, which takes a while to load
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

#: names the descriptor to say "ready" on, and to hear from how it goes on
VARIABLE = "NSRUN_WARM_FD"
#: bytes of what is heard, at most
MESSAGE = 64 << 10
STREAMS = 3

_hooks: list[Callable[[], object]] = []


def python(*modules: str, interpreter: str = "python3") -> tuple[str, ...]:
    """The words of a program that loads these modules, and waits.

    Arguments:
        modules: names, as for ``import``.
        interpreter: found along the PATH in the sandbox, or a path there.
    """
    from pathlib import Path  # noqa: PLC0415 - of no use inside

    source = Path(__file__).read_text(encoding="utf-8")
    return (interpreter, "-c", source, *modules, "--")


def after_resume(function: Callable[[], object]) -> Callable[[], object]:
    """Have it called in each process that goes on from here, before anything else is done."""
    _hooks.append(function)
    return function


def _wait(fd: int) -> list[str]:
    """Say that all is ready; when it goes on, be another command, whose arguments these are."""
    import gc  # noqa: PLC0415 - where nothing waits, none of these is needed
    import socket  # noqa: PLC0415

    # what is there already is not looked at again, and so stays shared
    gc.collect()
    gc.freeze()
    with socket.socket(fileno=fd) as line:
        line.send(b"ready")
        data, fds, _, _ = socket.recv_fds(line, MESSAGE, STREAMS)
    if len(fds) != STREAMS:
        raise SystemExit("nsrun: nobody said how to go on")
    for number, given in enumerate(fds):
        os.dup2(given, number)
        os.close(given)
    return _become(data)


def _become(data: bytes) -> list[str]:
    """Environment and directory are the command's; returns its arguments."""
    n_arguments, n_variables = (int.from_bytes(data[at : at + 4], sys.byteorder) for at in (0, 4))
    # a directory, and nothing behind the last NUL
    words = data[8:].split(b"\0")
    if words[-1] or len(words) != n_arguments + n_variables + 2:
        raise SystemExit("nsrun: a message that can't be")
    directory = words[-2]
    here = os.environb.get(b"PWD")
    os.environb.clear()
    for word in words[n_arguments:-2]:
        name, _, value = word.partition(b"=")
        os.environb[name] = value
    if directory:
        os.chdir(directory)
        here = os.getcwdb()
    if here is not None:
        os.environb[b"PWD"] = here
    return [os.fsdecode(word) for word in words[:n_arguments]]


def _renew() -> None:
    """What was drawn at the start would be the same in all."""
    loaded = sys.modules
    if "random" in loaded:
        loaded["random"].seed()
    if hasattr(loaded.get("tempfile"), "_name_sequence"):
        loaded["tempfile"]._name_sequence = None  # type: ignore[attr-defined] # made when needed
    if hasattr(loaded.get("ssl"), "RAND_add"):
        # what is mixed in has OpenSSL's other generators draw anew
        loaded["ssl"].RAND_add(os.urandom(64), 64.0)
    if "numpy.random" in loaded:
        loaded["numpy.random"].seed()
    for function in _hooks:
        function()


def _run(arguments: Sequence[str]) -> None:
    """As an interpreter with these arguments does."""
    how, *rest = arguments or ("-",)
    sys.argv[:] = [how, *rest]
    if how == "-m" and rest:
        sys.argv[:] = rest
        sys.path[0] = os.getcwd()
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    elif how in {"-c", "-"}:
        if how == "-c":
            if not rest:
                raise SystemExit("nsrun: -c: code is wanted")
            sys.argv[:] = [how, *rest[1:]]
        code = rest[0] if how == "-c" else sys.stdin.read()
        main = types.ModuleType("__main__")
        sys.modules["__main__"] = main
        exec(compile(code, "<string>" if how == "-c" else "<stdin>", "exec"), main.__dict__)
    elif how.startswith("-"):
        raise SystemExit(f"nsrun: {how}: -c CODE, -m MODULE, a script or - is wanted")
    else:
        sys.path[0] = os.path.dirname(os.path.abspath(how))
        runpy.run_path(how, run_name="__main__")


def _main() -> None:
    """As a program: the modules, "--", and then, if nothing waits, the arguments."""
    at = sys.argv.index("--")
    modules, arguments = sys.argv[1:at], sys.argv[at + 1 :]
    hooks = types.ModuleType("nsrun_warm")
    hooks.after_resume = after_resume  # type: ignore[attr-defined]
    sys.modules["nsrun_warm"] = hooks
    for name in modules:
        importlib.import_module(name)
    line = os.environ.pop(VARIABLE, None)
    if line is not None:
        arguments = _wait(int(line))
        _renew()
    _run(arguments)


if __name__ == "__main__":
    _main()
