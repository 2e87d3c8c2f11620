"""Messages: what a request may be, as types that are checked when it is read.

A request is ``{"method", "params"?, "id"?}``, a reply ``{"success": true, "result", "id"?}`` or
``{"success": false, "error", "id"?}``, an event ``{"type", ...}``.  An id is echoed as it was
written, byte for byte.  Unknown members of ``params`` are ignored.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeVar

import msgspec
from msgspec import UNSET, Meta, Raw, Struct, UnsetType

from cowork_nsrun.cowork.frames import frame
from cowork_nsrun.errors import NsrunError

ID_MAX = 64 * 1024  # bytes of a request's id as it is written
TEXT_MAX = 4096

Name = Annotated[str, Meta(max_length=TEXT_MAX)]
Count = Annotated[float, Meta(ge=0, le=2**53)]


class RequestError(NsrunError):
    """What is told to the client as the failure of its request."""


class _Envelope(Struct, frozen=True):
    method: Raw | UnsetType = UNSET
    params: Raw | UnsetType = UNSET
    id: Raw | UnsetType = UNSET


class Request(Struct, frozen=True):
    """A request whose params are not looked at yet.

    Attributes:
        method: its name; None if that is no string.
        shown: the name as an error message shows it.
        params: the params as they are written.
        id: the id as it is written; None if there is none.
    """

    method: str | None
    shown: str
    params: bytes
    id: bytes | None


def read_request(body: bytes) -> Request | None:
    """A request from a frame's body; None if it is not JSON at all.

    Raises:
        RequestError: it is JSON, but no object, or its id is too long.
    """
    try:
        body.decode()
        envelope = msgspec.json.decode(body, type=_Envelope)
    except msgspec.ValidationError as error:
        raise RequestError(f"a request is an object: {error}") from None
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
    except RecursionError:
        raise RequestError("a request is nested too deeply") from None
    ident = None if envelope.id is UNSET else bytes(envelope.id)
    if ident is not None and len(ident) > ID_MAX:
        raise RequestError(f"an id has at most {ID_MAX} bytes")
    method, shown = _method(envelope.method)
    params = b"{}" if envelope.params is UNSET else bytes(envelope.params).strip()
    return Request(method, shown, b"{}" if params in {b"null", b"false"} else params, ident)


def _method(raw: Raw | UnsetType) -> tuple[str | None, str]:
    if raw is UNSET:
        return None, "undefined"
    text = bytes(raw)[:TEXT_MAX].decode(errors="replace").strip()
    try:
        method = msgspec.json.decode(raw, type=str)
    except (msgspec.DecodeError, RecursionError):
        return None, text
    return method, method[:TEXT_MAX]


class Params(Struct, frozen=True, rename="camel"):
    """Params of the methods that need none."""


Read = TypeVar("Read", bound=Params)


def read_params(params: bytes, kind: type[Read]) -> Read:
    """The params as the method's own type.

    Raises:
        RequestError: a member is missing or of another type; it is named, its value is not.
    """
    try:
        return msgspec.json.decode(params, type=kind)
    except RecursionError:
        raise RequestError("params are nested too deeply") from None
    except msgspec.DecodeError as error:
        raise RequestError(f"params: {error}") from None


# --- params, method by method -----------------------------------------------------------------


class Configure(Params, frozen=True):
    """``configure``; 0 and null leave a limit out.  The other members are for virtual machines."""

    memory_mb: Count | None = msgspec.field(name="memoryMB", default=None)
    cpu_count: Count | None = None


class Mount(Struct, frozen=True):
    """One of ``additionalMounts``."""

    path: str | None = None
    mode: str | None = None


class Spawn(Params, frozen=True):
    """``spawn``."""

    id: Name
    name: Name
    command: Name
    args: list[str] | None = None
    cwd: str | None = None
    env: dict[str, str | int | None] | None = None
    additional_mounts: dict[str, Mount | None] | None = None
    is_resume: bool | None = None
    allowed_domains: list[str] | None = None
    shared_cwd_path: str | None = None
    one_shot: bool | None = None
    mount_skeleton_home: bool | None = None
    oauth_token: str | None = None


class ById(Params, frozen=True):
    """``isProcessRunning``, ``closeStdin``."""

    id: Name


class Kill(Params, frozen=True):
    """``kill``."""

    id: Name
    signal: Name | int | None = None


class WriteStdin(Params, frozen=True):
    """``writeStdin``."""

    id: Name
    data: str


class MountPath(Params, frozen=True):
    """``mountPath``."""

    process_id: Name
    subpath: str = ""
    mount_name: Name | None = None
    mode: str | None = None


class ReadFile(Params, frozen=True):
    """``readFile``."""

    file_path: str
    process_name: Name | None = None


class InstallSdk(Params, frozen=True):
    """``installSdk``."""

    sdk_subpath: str
    version: Name


class Token(Params, frozen=True):
    """``addApprovedOauthToken``."""

    token: str


class Debug(Params, frozen=True):
    """``setDebugLogging``."""

    enabled: bool


class Names(Params, frozen=True):
    """``deleteSessionDirs``."""

    names: list[Name] = []


class Prune(Params, frozen=True):
    """``pruneSessionCaches``."""

    only_if_free_bytes_below: Count | None = None
    include_session_tmp: bool | None = None
    session_tmp_older_than_seconds: Count | None = None


# --- replies and events -------------------------------------------------------------------------


class _Success(Struct, frozen=True):
    success: Literal[True]
    result: Any
    id: Raw | UnsetType = UNSET


class _Failure(Struct, frozen=True):
    success: Literal[False]
    error: str
    id: Raw | UnsetType = UNSET


def _echo(ident: bytes | None) -> Raw | UnsetType:
    return UNSET if ident is None else Raw(ident)


def encode(message: object) -> bytes:
    """A message as a frame.

    Raises:
        FrameTooLong: no client would take it.
    """
    return frame(msgspec.json.encode(message))


def success(ident: bytes | None, result: object) -> bytes:
    """The frame of a reply.

    Raises:
        FrameTooLong: no client would take it.
    """
    return encode(_Success(True, result, _echo(ident)))


def failure(ident: bytes | None, error: str) -> bytes:
    """The frame of a failure; a text that is too long is cut."""
    clean = error[:TEXT_MAX].encode(errors="replace").decode()
    return encode(_Failure(False, clean, _echo(ident)))


class Output(Struct, frozen=True, tag_field="type"):
    """What a command wrote."""

    id: str
    data: str


class Stdout(Output, frozen=True, tag="stdout"):
    """To standard output."""


class Stderr(Output, frozen=True, tag="stderr"):
    """To standard error."""


class Exit(Struct, frozen=True, tag_field="type", tag="exit", rename="camel"):
    """The end of a command, after all its output.  One of the two is null."""

    id: str
    exit_code: int | None
    signal: str | None
    oom_kill_count: int | UnsetType = UNSET


class Error(Struct, frozen=True, tag_field="type", tag="error"):
    """A command could not be started."""

    id: str
    message: str
    fatal: bool = True


class NetworkStatus(Struct, frozen=True, tag_field="type", tag="networkStatus"):
    """``connected`` or ``disconnected``."""

    status: Literal["connected", "disconnected"]


Event = Stdout | Stderr | Exit | Error | NetworkStatus
