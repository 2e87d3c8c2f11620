"""``nsrun serve``: from the command line to the exit status."""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import sys
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

import cowork_nsrun
from cowork_nsrun.cowork import config, endpoint
from cowork_nsrun.cowork.backends import Backend, decide, make
from cowork_nsrun.cowork.log import NAME, Log, lifecycle, log
from cowork_nsrun.cowork.paths import Paths
from cowork_nsrun.cowork.server import Server
from cowork_nsrun.cowork.service import Service, Settings
from cowork_nsrun.cowork.storage import Storage
from cowork_nsrun.errors import NsrunError
from cowork_nsrun.probe import VARIABLE
from cowork_nsrun.supervise import name_process

FAILED = 1
CLOSING = 2.0  # seconds for clients to take their last events
LEAVING = 5.0  # seconds for threads to end
THREADS = 128  # each may hang at a file system that does not answer; more than a connection has
DEBUG_VARIABLES = ("COWORK_VM_DEBUG", "CLAUDE_LINUX_DEBUG")
TMP_VARIABLE = "COWORK_SESSION_TMP"
EGRESS_VARIABLE = "COWORK_EGRESS_ALLOW"


def config_directory(environ: Mapping[str, str], home: str) -> Path:
    """The app's: below XDG_CONFIG_HOME, as the app itself has it."""
    base = environ.get("XDG_CONFIG_HOME", "")
    return (Path(base) if base.startswith("/") else Path(home) / ".config") / "Claude"


def state_directory(environ: Mapping[str, str], home: str) -> Path:
    """Where sessions keep what is theirs."""
    base = environ.get("XDG_STATE_HOME", "")
    state = Path(base) if base.startswith("/") else Path(home) / ".local" / "state"
    return state / "nsrun" / "cowork"


def _settings(environ: Mapping[str, str], paths: Paths, directory: Path) -> Settings:
    mounts = config.load(directory / config.FILE, paths)
    for warning in mounts.warnings:
        log.error("%s", warning)
    storage = Storage(state_directory(environ, paths.home) / "sessions")
    allowed = tuple(word for word in environ.get(EGRESS_VARIABLE, "").split(",") if word)
    return Settings(paths, environ, mounts, storage, environ.get(TMP_VARIABLE) == "1", allowed)


def serve(words: Sequence[str]) -> int:
    """Carry out ``nsrun serve WORDS``; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="nsrun serve",
        description="Serve the desktop app's Cowork mode on a Unix socket, until SIGTERM.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "-socket", "--socket", metavar="PATH",
        help=f"listen there; by default on {endpoint.DEFAULT_NAME} in XDG_RUNTIME_DIR or /tmp",
    )  # fmt: skip
    options = parser.parse_args(words)
    environ = dict(os.environ)
    home = environ.get("HOME") or os.path.expanduser("~")
    paths = Paths.of_home(home)
    directory = config_directory(environ, paths.home)
    debug = any(environ.get(name) == "1" for name in DEBUG_VARIABLES)
    logs = Log(directory / "logs", debug)
    status = FAILED
    try:
        status = _serve(options.socket, environ, paths, directory, logs)
    except SystemExit:
        status = 0
    except NsrunError as error:
        log.error("%s", error)
    except Exception:  # noqa: BLE001 - the log is where it is looked for
        log.exception("uncaughtException")
    finally:
        lifecycle("exit code=%d", status)
        logs.close()
    return status


def _serve(
    path: str | None, environ: Mapping[str, str], paths: Paths, directory: Path, logs: Log
) -> int:
    shown = path or str(endpoint.default_path(environ))
    lifecycle("startup (pid=%d sock=%s version=%s)", os.getpid(), shown, cowork_nsrun.__version__)
    name_process("nsrun-serve")
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _leave)
    found = endpoint.activated(environ)
    if found is None:
        found = endpoint.listen(shown)
    elif path is not None and found.path != os.path.abspath(path):
        found.close()
        raise NsrunError(f"-socket {path}: the socket that was handed over is {found.path!r}")
    try:
        # read here, once: what starts commands is not to read it in its own way
        backend = make(decide(os.environ.pop(VARIABLE, None)))
        settings = _settings(environ, paths, directory)
        asyncio.run(_run(found, settings, backend, logs))
    finally:
        found.close()
    return 0


async def _run(found: endpoint.Endpoint, settings: Settings, backend: Backend, logs: Log) -> None:
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(_unhandled)
    loop.set_default_executor(ThreadPoolExecutor(THREADS, "cowork"))
    service = Service(settings, backend, logs)
    server = Server(service)
    ended = asyncio.Event()
    # not by add_signal_handler(): its one pipe can be full of other news, and the signal lost
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda got, _: loop.call_soon_threadsafe(_signalled, got, ended))
    # create_unix_server() removes the socket since Python 3.13, which may be systemd's
    listener = await loop.create_server(server.connection, sock=found.socket)
    lifecycle("listening %s", found.path)
    with suppress(OSError, ValueError):
        sys.stdout.write(f"[{NAME}] Service started on {found.path}\n")
        sys.stdout.flush()
    try:
        await ended.wait()
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)
        listener.close()
        await service.stop()
        await service.settle(CLOSING)
        server.close()
        found.close()
        _leave_at_last()


def _leave_at_last() -> None:
    """Python waits for its threads, and one may hang at a file system for ever."""

    def leave() -> None:
        log.error("a file system does not answer: not waited for")
        lifecycle("exit code=0")
        os._exit(0)

    timer = threading.Timer(LEAVING, leave)
    timer.daemon = True
    timer.start()


def _leave(number: int, frame: object) -> NoReturn:
    """Before there is anything to be stopped."""
    raise SystemExit(0)


def _signalled(number: int, ended: asyncio.Event) -> None:
    lifecycle("%s received", signal.Signals(number).name)
    ended.set()


def _unhandled(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    error = context.get("exception")
    log.error("unhandledRejection: %s", context.get("message"), exc_info=error)
