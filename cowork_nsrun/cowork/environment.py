"""The environment of a command."""

from __future__ import annotations

from collections.abc import Mapping

TOKEN = "CLAUDE_CODE_OAUTH_TOKEN"
TERM = "xterm-256color"

# A command that finds these believes that it runs inside of another one.
_NEVER = frozenset({"CLAUDECODE", "ELECTRON_RUN_AS_NODE", "ELECTRON_NO_ASAR"})
# What speaks to the service, or of its own standing.
_SERVICE = frozenset(
    {
        "LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES", "NOTIFY_SOCKET", "INVOCATION_ID",
        "JOURNAL_STREAM", "MAINPID", "MANAGERPID", "SYSTEMD_EXEC_PID", "WATCHDOG_PID",
        "WATCHDOG_USEC", "NSRUN_CGROUP",
    }
)  # fmt: skip
# Ways to the user's desktop; some lead out of a sandbox that has the host's network.
_DESKTOP = frozenset(
    {
        "DBUS_SESSION_BUS_ADDRESS", "DBUS_SYSTEM_BUS_ADDRESS", "SSH_AUTH_SOCK", "SSH_AGENT_PID",
        "GPG_AGENT_INFO", "DISPLAY", "WAYLAND_DISPLAY", "WAYLAND_SOCKET", "XAUTHORITY",
        "SESSION_MANAGER", "ICEAUTHORITY", "XDG_RUNTIME_DIR", "PULSE_SERVER",
    }
)  # fmt: skip


def inherited(own: Mapping[str, str], sandboxed: bool) -> dict[str, str]:
    """What of the service's environment a command may see."""
    dropped = _NEVER | _SERVICE | (_DESKTOP if sandboxed else frozenset())
    return {
        name: value
        for name, value in own.items()
        if name not in dropped and not name.startswith(("CLAUDE_CODE_", "COWORK_"))
    }


def build(
    own: Mapping[str, str],
    asked: Mapping[str, str | int | None] | None,
    *,
    token: str | None = None,
    approved: str | None = None,
    sandboxed: bool = True,
) -> dict[str, str]:
    """A command's environment.

    Arguments:
        own: the service's.
        asked: the client's; None removes a variable.  An empty token there means: none.
        token: the token that came with the request.
        approved: the token that the client had approved before.
        sandboxed: the command has its own view of the system.
    """
    env = inherited(own, sandboxed)
    for name, value in (asked or {}).items():
        if not _is_name(name) or name in _NEVER or "\0" in str(value):
            continue
        if value is None:
            env.pop(name, None)
        else:
            env[name] = str(value)
    env["TERM"] = TERM
    if TOKEN not in env:
        found = token or approved or own.get(TOKEN)
        if found and "\0" not in found:
            env[TOKEN] = found
    return env


def _is_name(name: str) -> bool:
    return bool(name) and "=" not in name and "\0" not in name
