"""Acceptance checks 38 to 42: what a command finds in its environment."""

from __future__ import annotations

import pytest
from cowork_fixtures import SERVE, Daemon, Start

TOKEN = "CLAUDE_CODE_OAUTH_TOKEN"


def _env(daemon: Daemon, **params: object) -> dict[str, str]:
    out = daemon.run(daemon.subscriber(), "/usr/bin/env", ["-0"], **params)[0]
    pairs = (entry.partition("=") for entry in out.split("\0") if entry)
    return {name: value for name, _, value in pairs}


@pytest.mark.parametrize("backend", ["bwrap", "host"])
def test_38_what_is_never_there(start: Start, backend: str) -> None:
    never = ("CLAUDECODE", "CLAUDE_CODE_SSE_PORT", "ELECTRON_RUN_AS_NODE", "ELECTRON_NO_ASAR")
    daemon = start(backend, env={**dict.fromkeys(never, "1"), "KEPT": "kept", "TERM": "dumb"})
    env = _env(daemon, env={"CLAUDECODE": "1", "CLAUDE_CODE_X": "kept", "N": 5, "PATH": None})
    assert env.keys() & set(never) == set()
    assert (env["TERM"], env["KEPT"], env["CLAUDE_CODE_X"]) == ("xterm-256color", "kept", "kept")
    assert env["N"] == "5"
    assert "PATH" not in env


def test_38_ways_to_the_desktop_end_at_the_sandbox(start: Start) -> None:
    own = {"DBUS_SESSION_BUS_ADDRESS": "unix:abstract=/x", "SSH_AUTH_SOCK": "/x", "DISPLAY": ":0"}
    assert _env(start("bwrap", env=own)).keys() & own.keys() == set()


def test_38_they_are_kept_on_the_host_as_it_is(
    start: Start, without_landlock: tuple[str, ...]
) -> None:
    daemon = start("host", command=(*without_landlock, *SERVE), env={"DISPLAY": ":0"})
    assert _env(daemon)["DISPLAY"] == ":0"


def test_38_the_confined_host_can_not_reach_them(start: Start) -> None:
    assert "DISPLAY" not in _env(start("host", env={"DISPLAY": ":0"}))


@pytest.mark.parametrize("backend", ["bwrap", "host"])
def test_39_40_tokens(start: Start, backend: str) -> None:
    daemon = start(backend, env={TOKEN: "d"})
    assert _env(daemon)[TOKEN] == "d"
    assert _env(daemon, env={TOKEN: "a"})[TOKEN] == "a"
    assert _env(daemon, env={TOKEN: ""})[TOKEN] == ""
    assert _env(daemon, oauthToken="t")[TOKEN] == "t"
    assert _env(daemon, oauthToken="t", env={TOKEN: "a"})[TOKEN] == "a"
    assert _env(daemon, oauthToken="t", env={TOKEN: ""})[TOKEN] == ""
    daemon.client().call("addApprovedOauthToken", {"token": "p"})
    assert _env(daemon)[TOKEN] == "p"
    assert _env(daemon, oauthToken="t")[TOKEN] == "t"
    assert _env(daemon, env={TOKEN: ""})[TOKEN] == ""


def test_40_without_any_token(daemon: Daemon) -> None:
    assert TOKEN not in _env(daemon)
    assert _env(daemon, oauthToken="t")[TOKEN] == "t"


def test_41_config_dir_on_the_host(host: Daemon) -> None:
    home = str(host.home)
    mounts = {".claude": {"path": ".claude", "mode": "rw"}}

    def config(value: str) -> str | None:
        env = _env(host, env={"CLAUDE_CONFIG_DIR": value}, additionalMounts=mounts)
        return env.get("CLAUDE_CONFIG_DIR")

    assert config("/sessions/s1/mnt/nope") is None
    assert config("/sessions/s1/mnt/.claude") == f"{home}/.claude"
    assert config("/sessions/s1/mnt/claude/x") == f"{home}/.claude/x"
    assert config(f"{home}{home}/.claude") == f"{home}/.claude"
    assert config(f"{home}/.claude") == f"{home}/.claude"
    assert config("/elsewhere") == "/elsewhere"


def test_41_config_dir_in_a_sandbox(daemon: Daemon) -> None:
    value = "/sessions/s1/mnt/nope"
    assert _env(daemon, env={"CLAUDE_CONFIG_DIR": value})["CLAUDE_CONFIG_DIR"] == value


def test_42_memory_on_the_host(host: Daemon) -> None:
    name = "CLAUDE_COWORK_MEMORY_PATH_OVERRIDE"

    def memory(value: str) -> str | None:
        return _env(host, env={name: value}, name="n").get(name)

    assert memory("/sessions/n/mnt/.auto-memory/a") == f"{host.home}/.auto-memory/a"
    assert memory("/sessions/n/bad") is None
    assert memory("/sessions/n/mnt/../../etc") is None
    assert memory("/anywhere") == "/anywhere"
