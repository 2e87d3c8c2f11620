"""The methods: what each request does."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from cowork_nsrun.cowork import environment, programs, protocol, storage
from cowork_nsrun.cowork.backends import Backend, Command, Running, Start
from cowork_nsrun.cowork.child import Child, State, signal_number
from cowork_nsrun.cowork.config import UserMounts
from cowork_nsrun.cowork.frames import BODY_MAX
from cowork_nsrun.cowork.hub import Hub, Subscriber
from cowork_nsrun.cowork.layout import Layout
from cowork_nsrun.cowork.log import Log, lifecycle, log
from cowork_nsrun.cowork.metrics import Metrics
from cowork_nsrun.cowork.mounts import Collected, Folder, collect, prepare
from cowork_nsrun.cowork.paths import (
    PathError,
    Paths,
    check_name,
    guest_mount,
    is_guest,
    is_within,
    read_text,
    split_guest,
)
from cowork_nsrun.cowork.protocol import RequestError, read_params
from cowork_nsrun.cowork.session import Session, Sessions
from cowork_nsrun.cowork.storage import Storage
from cowork_nsrun.cowork.translate import Translator
from cowork_nsrun.errors import NsrunError
from cowork_nsrun.spec import LIMITS, Limits

STOP_PATIENCE = 10.0  # seconds
STDIN_TOTAL_MAX = 128 << 20  # bytes that may wait for all commands together
READ_MAX = BODY_MAX // 2  # bytes of a file; JSON may need more for them
MIB = 1 << 20

Result = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Reply:
    """A result, and what is to happen once it has been sent."""

    result: Result
    then: Callable[[], None] | None = None


Answer = Result | Reply
Handler = Callable[[protocol.Request, Subscriber], Answer | Awaitable[Answer]]


@dataclass(frozen=True, slots=True)
class Settings:
    """What does not change while the service runs.

    Attributes:
        paths: the resolver.
        environment: the service's own.
        user_mounts: the user's configuration.
        storage: what sessions keep on disk.
        session_tmp: every session gets a /tmp that it keeps.
        always_allowed: what may be reached whatever a client's list says.
    """

    paths: Paths
    environment: Mapping[str, str]
    user_mounts: UserMounts
    storage: Storage
    session_tmp: bool = False
    always_allowed: tuple[str, ...] = ()


class Service:
    """Everything behind the protocol, for all connections together."""

    def __init__(self, settings: Settings, backend: Backend, logs: Log) -> None:
        self.hub = Hub()
        self.metrics = Metrics()
        self.backend = backend
        self.pending_bytes = 0
        self._settings = settings
        self._logs = logs
        self._sessions = Sessions()
        self._tasks: set[asyncio.Task[None]] = set()
        self._limits = Limits()
        self._sdk: str | None = None
        self._approved: str | None = None
        self._running = False
        self._connected = False
        self._connecting: asyncio.TimerHandle | None = None
        self._missing_said: set[str] = set()
        self.methods: dict[str, Handler] = {
            "configure": self._configure,
            "createVM": self._nothing,
            "startVM": self._start_vm,
            "stopVM": self._stop_vm,
            "isRunning": lambda request, caller: {"running": self._running},
            "isGuestConnected": lambda request, caller: {"connected": self._connected},
            "spawn": self._spawn,
            "kill": self._kill,
            "writeStdin": self._write_stdin,
            "closeStdin": self._close_stdin,
            "isProcessRunning": self._is_process_running,
            "mountPath": self._mount_path,
            "readFile": self._read_file,
            "installSdk": self._install_sdk,
            "addApprovedOauthToken": self._approve_token,
            "setDebugLogging": self._set_debug,
            "subscribeEvents": self._subscribe,
            "sendGuestResponse": self._nothing,
            "getSessionsDiskInfo": self._disk_info,
            "deleteSessionDirs": self._delete_dirs,
            "pruneSessionCaches": self._prune,
            "getNetworkDrives": lambda request, caller: {"drives": []},
            "getStatus": self._status,
        }

    # --- the machine --------------------------------------------------------------------

    def _nothing(self, request: protocol.Request, caller: Subscriber) -> Answer:
        return {}

    def _configure(self, request: protocol.Request, caller: Subscriber) -> Answer:
        params = read_params(request.params, protocol.Configure)
        memory = round((params.memory_mb or 0) * MIB)
        memory_limit = LIMITS["memory"]
        cpu = params.cpu_count or 0
        cpu_limit = LIMITS["cpu"]
        self._limits = Limits(
            memory=memory if memory_limit.low <= memory <= memory_limit.high else None,
            cpu=cpu if cpu_limit.low <= cpu <= cpu_limit.high else None,
            best_effort=True,
        )
        return {}

    def _start_vm(self, request: protocol.Request, caller: Subscriber) -> Answer:
        problem = self.backend.problem()
        if problem is not None:
            raise RequestError(problem)
        if self._running:
            return {}
        self._running = True
        if self.backend.connect_delay:
            loop = asyncio.get_running_loop()
            self._connecting = loop.call_later(self.backend.connect_delay, self._connect)
            return {}
        return Reply({}, self._connect)

    def _connect(self) -> None:
        self._connecting = None
        if self._running and not self._connected:
            self._connected = True
            self.hub.emit(protocol.NetworkStatus("connected"))

    async def _stop_vm(self, request: protocol.Request, caller: Subscriber) -> Answer:
        await self.stop()
        return {}

    async def stop(self) -> None:
        """Kill every command, and wait for that, though not for ever."""
        self._running = self._connected = False
        if self._connecting is not None:
            self._connecting.cancel()
            self._connecting = None
        self._sessions.forget_mounts()
        children = self._sessions.running
        for child in children:
            child.kill(9)
        if children:
            ends = [asyncio.ensure_future(child.done.wait()) for child in children]
            _, late = await asyncio.wait(ends, timeout=STOP_PATIENCE)
            for task in late:
                task.cancel()
        await asyncio.to_thread(self.backend.end, None)
        self.hub.emit(protocol.NetworkStatus("disconnected"))

    async def settle(self, seconds: float) -> None:
        """Until the commands' tasks are through, for so long."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=seconds)

    # --- commands -------------------------------------------------------------------------

    def _spawn(self, request: protocol.Request, caller: Subscriber) -> Awaitable[Answer]:
        params = read_params(request.params, protocol.Spawn)
        session = self._sessions.open(params.name)
        shown = os.path.basename(params.command)[:80]
        child = Child(params.id, session.name, shown, self.hub, self._ended)
        # known before anything is waited for: what the client sends next may speak of it
        self._sessions.add(child)
        self.metrics.spawns += 1
        return self._begin(params, session, child)

    async def _begin(self, params: protocol.Spawn, session: Session, child: Child) -> Answer:
        try:
            collected, start = await asyncio.to_thread(self._compose, params, session)
        except BaseException:
            self._abandon(child)
            raise
        session.mounted = collected.hosts
        names = list(collected.failed)
        result: Result = {"failedMounts": names} if names else {}
        if start is None:
            return Reply(result, lambda: self._missing(child, params.command))
        log.debug(
            "spawn %r in %s: %r, mounts: %s",
            child.ident[:80], session.name, child.shown, ", ".join(collected.folders),
        )  # fmt: skip
        return Reply(result, lambda: self._run(child, start))

    def _compose(self, params: protocol.Spawn, session: Session) -> tuple[Collected, Start | None]:
        """What a request comes to, None without such a program; looks at the file system."""
        paths = self._settings.paths
        collected = collect(paths, session.standing, params.additional_mounts)
        try:
            collected = prepare(paths, collected)
            command = self._command(params, collected)
            limits = self._limits
            group = session.group.enter(params.id, limits) if self.backend.host_limits else None
            return collected, self.backend.prepare(replace(command, group=group, limits=limits))
        except programs.NotFound:
            return collected, None
        except (NsrunError, OSError) as error:
            return collected, partial(_fail, str(error))

    def _command(self, params: protocol.Spawn, collected: Collected) -> Command:
        settings = self._settings
        hosts = collected.hosts
        sandboxed = self.backend.sandboxed
        search = settings.environment.get("PATH", os.defpath)
        program = programs.resolve(params.command, settings.paths, hosts, self._sdk, search)
        env = environment.build(
            settings.environment,
            params.env,
            token=params.oauth_token,
            approved=self._approved,
            sandboxed=sandboxed,
        )
        args = list(params.args or ())
        path = program.path
        cwd = settings.paths.home
        if not sandboxed:
            translator = Translator(settings.paths, hosts)
            args = translator.args(args)
            env = translator.environment(env)
            cwd = translator.directory(params.cwd, params.shared_cwd_path)
            path = settings.paths.to_host(path, hosts) or path
        return Command(
            (path, *args),
            env,
            self._layout(params, collected, program),
            cwd,
            _domains(params.allowed_domains, settings.always_allowed),
        )

    def _layout(
        self, params: protocol.Spawn, collected: Collected, program: programs.Program
    ) -> Layout:
        settings = self._settings
        extra, missing = settings.user_mounts.present()
        for source in missing:
            if source not in self._missing_said:
                self._missing_said.add(source)
                log.error('BwrapConfig: "%s" is not there: that mount is left out', source)
        layout = Layout(
            params.name,
            collected.folders,
            settings.paths,
            program.shown,
            extra,
            settings.user_mounts.disabled,
        )
        if not self.backend.sandboxed:
            return layout
        if params.mount_skeleton_home:
            own = settings.storage.directory(params.name, storage.HOME)
            layout = replace(layout, own_home=own)
        if settings.session_tmp:
            own = settings.storage.directory(params.name, storage.TMP)
            layout = replace(layout, own_tmp=own)
        return layout

    def _run(self, child: Child, start: Start) -> None:
        task = asyncio.get_running_loop().create_task(child.live(start))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _missing(self, child: Child, command: str) -> None:
        child.not_found(f"Error: {command} not found\n")

    def _abandon(self, child: Child) -> None:
        child.state = State.ENDED
        child.done.set()
        self._leave(child)

    def _leave(self, child: Child) -> None:
        session = self._sessions.get(child.session)
        self._sessions.remove(child)
        if session is not None and session.group.there:
            # a cgroup may take a moment to go
            asyncio.get_running_loop().run_in_executor(None, session.group.leave, child.ident)

    def _ended(self, child: Child) -> None:
        self._leave(child)
        if child.first_output_at is not None:
            self.metrics.note_first_output(child.first_output_at - child.asked_at)
        elif not child.pid_seen:
            self.metrics.not_started += 1

    def _kill(self, request: protocol.Request, caller: Subscriber) -> Answer:
        params = read_params(request.params, protocol.Kill)
        number = signal_number(params.signal)
        if number is None:
            log.debug("kill %r: no signal %r", params.id[:80], str(params.signal)[:80])
            return {}
        child = self._sessions.child(params.id)
        if child is not None:
            child.kill(number)
        return {}

    def _write_stdin(self, request: protocol.Request, caller: Subscriber) -> Answer:
        params = read_params(request.params, protocol.WriteStdin)
        child = self._sessions.child(params.id)
        if child is not None:
            waiting = sum(other.waiting for other in self._sessions.running)
            if waiting + len(params.data) > STDIN_TOTAL_MAX:
                raise RequestError(f"stdin backpressure: {waiting} bytes wait for all processes")
            child.write(params.data)
        return {}

    def _close_stdin(self, request: protocol.Request, caller: Subscriber) -> Answer:
        child = self._sessions.child(read_params(request.params, protocol.ById).id)
        if child is not None:
            child.close_input()
        return {}

    def _is_process_running(self, request: protocol.Request, caller: Subscriber) -> Answer:
        child = self._sessions.find(read_params(request.params, protocol.ById).id)
        if child is None or child.end is None:
            return {"running": child is not None}
        code = child.end.exit_code
        return {"running": False, "exitCode": code}

    # --- paths ------------------------------------------------------------------------------

    async def _mount_path(self, request: protocol.Request, caller: Subscriber) -> Answer:
        params = read_params(request.params, protocol.MountPath)
        child = self._sessions.find(params.process_id)
        # some clients name the session here, ahead of its first command
        owner = check_name("session", params.process_id if child is None else child.session)
        path = await asyncio.to_thread(self._settings.paths.folder, params.subpath)
        session = self._sessions.open(owner)
        name = params.mount_name or os.path.basename(path)
        session.standing[check_name("mount", name)] = Folder(path, params.mode == "ro")
        if not self.backend.sandboxed:
            return {"guestPath": path}
        return {"guestPath": guest_mount(session.name, name)}

    async def _read_file(self, request: protocol.Request, caller: Subscriber) -> Answer:
        params = read_params(request.params, protocol.ReadFile)
        try:
            return {"content": await asyncio.to_thread(self._read, params.file_path)}
        except PathError as error:
            return {"error": error.text}
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else str(error)
            return {"error": f"{params.file_path[:500]}: {reason}"}

    def _read(self, path: str) -> str:
        host, allowed = self._readable(path)
        return read_text(host, allowed, READ_MAX)

    def _readable(self, path: str) -> tuple[str, tuple[str, ...]]:
        """What may be read under a path, and the directories that it may lie in."""
        paths = self._settings.paths
        if not is_guest(path):
            plain = os.path.abspath(path)
            if not paths.in_home(plain):
                raise PathError("Access denied: path outside home directory")
            return plain, (paths.real_home,)
        parts = split_guest(path)
        session = None if parts is None else self._sessions.get(parts[0])
        host = None if session is None else paths.to_host(path, session.mounted)
        if session is None or host is None:
            raise PathError(f"Cannot translate guest path: {path}")
        # the one that it lies in: another's file system may not answer
        mounted = session.mounted.values()
        inside = [place for place in mounted if is_within(host, os.path.normpath(place))]
        return host, (paths.real_home, *map(os.path.realpath, inside))

    async def _install_sdk(self, request: protocol.Request, caller: Subscriber) -> Answer:
        params = read_params(request.params, protocol.InstallSdk)
        found = await asyncio.to_thread(
            programs.find_sdk, self._settings.paths, params.sdk_subpath, params.version
        )
        if found is None:
            log.error("installSdk: no program in %r, version %r: nothing changes",
                params.sdk_subpath[:200], params.version[:80])  # fmt: skip
        else:
            self._sdk = found
            log.debug("installSdk: %s", found)
        return {}

    def _approve_token(self, request: protocol.Request, caller: Subscriber) -> Answer:
        self._approved = read_params(request.params, protocol.Token).token or None
        return {}

    # --- what sessions keep ---------------------------------------------------------------

    async def _disk_info(self, request: protocol.Request, caller: Subscriber) -> Answer:
        return await asyncio.to_thread(self._disk_info_now)

    def _disk_info_now(self) -> Result:
        found = storage.disk(self._settings.paths.home)
        kept = self._settings.storage
        return {
            "totalBytes": found.total,
            "freeBytes": found.free,
            "sessions": [{"name": name, "bytes": kept.size(name)} for name in kept.names()],
        }

    def _is_busy(self, name: str) -> bool:
        session = self._sessions.get(name)
        return session is not None and bool(session.children)

    async def _delete_dirs(self, request: protocol.Request, caller: Subscriber) -> Answer:
        deleted, errors = [], {}
        for name in read_params(request.params, protocol.Names).names:
            try:
                if not self._settings.storage.has(name):
                    continue
                if self._is_busy(name):
                    raise RequestError("the session is running")
                await asyncio.to_thread(self._settings.storage.delete, name)
                self._sessions.forget(name)
                await asyncio.to_thread(self.backend.end, name)
                deleted.append(name)
            except NsrunError as error:
                errors[name] = error.text
        return {"deleted": deleted, "errors": errors}

    async def _prune(self, request: protocol.Request, caller: Subscriber) -> Answer:
        params = read_params(request.params, protocol.Prune)
        kept = self._settings.storage
        pruned, skipped, errors, freed = [], [], {}, 0
        below = params.only_if_free_bytes_below
        free = (await asyncio.to_thread(storage.disk, self._settings.paths.home)).free
        names = kept.names() if params.include_session_tmp else []
        if below is not None and free >= below:
            names, skipped = [], names
        for name in names:
            if self._is_busy(name):
                skipped.append(name)
                continue
            try:
                age = params.session_tmp_older_than_seconds or 0
                freed += await asyncio.to_thread(kept.prune, name, age)
                pruned.append(name)
            except (NsrunError, OSError) as error:
                errors[name] = str(error)
        return {
            "prunedSessions": pruned,
            "skippedSessions": skipped,
            "freedBytes": freed,
            "errors": errors,
        }

    # --- the service itself ---------------------------------------------------------------

    def _set_debug(self, request: protocol.Request, caller: Subscriber) -> Answer:
        enabled = read_params(request.params, protocol.Debug).enabled
        self._logs.set_debug(enabled)
        lifecycle("debug logging %s", "on" if enabled else "off")
        return {}

    def _subscribe(self, request: protocol.Request, caller: Subscriber) -> Answer:
        # the reply is to come first
        return Reply({}, lambda: self.hub.add(caller))

    def _status(self, request: protocol.Request, caller: Subscriber) -> Answer:
        return {
            "backend": self.backend.name,
            "running": self._running,
            "connected": self._connected,
            "subscribers": len(self.hub),
            "sessions": [
                {
                    "name": session.name,
                    "mounts": session.mounted,
                    "processes": [child.shown_to_client() for child in session.children.values()],
                }
                for session in self._sessions
            ],
            "metrics": self.metrics.shown(),
        }


def _domains(asked: list[str] | None, always: tuple[str, ...]) -> tuple[str, ...] | None:
    """None: no bound was asked for."""
    if asked is None or "*" in asked:
        return None
    return (*asked, *always)


async def _fail(text: str) -> Running:
    raise NsrunError(text)
