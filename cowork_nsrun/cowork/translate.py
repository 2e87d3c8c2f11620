"""Guest paths in a command's words, for a backend whose commands see the host as it is."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cowork_nsrun.cowork.mounts import primary
from cowork_nsrun.cowork.paths import PathError, Paths, is_guest, is_within

CONFIG_DIR = "CLAUDE_CONFIG_DIR"
MEMORY = "CLAUDE_COWORK_MEMORY_PATH_OVERRIDE"
_DIRECTORIES = frozenset({"--add-dir", "--plugin-dir"})
_TOOLS = frozenset({"--allowedTools", "--disallowedTools"})
_TOOL = re.compile(r"(\w+)\(([^)]*)\)", re.ASCII)
_PLUGIN_MARKS = (".claude-plugin/plugin.json", "manifest.json")
_PLUGIN_CLIMB = 3


@dataclass(frozen=True, slots=True)
class Translator:
    """Translates for one session.

    Attributes:
        paths: the resolver.
        mounts: name of a mount to the host's path.
    """

    paths: Paths
    mounts: Mapping[str, str]

    def args(self, words: Sequence[str]) -> list[str]:
        """The command's arguments; a directory that is not mounted goes with its flag."""
        result = []
        rest = iter(words)
        for word in rest:
            if word not in _DIRECTORIES | _TOOLS:
                result.append(word)
                continue
            value = next(rest, None)
            if value is None:
                result.append(word)
            elif word in _TOOLS:
                result += [word, self.tools(value)]
            elif not is_guest(value):
                result += [word, value]
            else:
                path = self.paths.to_host(value, self.mounts)
                if path is not None:
                    result += [word, self._plugin(path) if word == "--plugin-dir" else path]
        return result

    def _plugin(self, path: str) -> str:
        """The directory of the plugin that a path is part of; the path if there is none."""
        candidate = path
        for _ in range(_PLUGIN_CLIMB):
            if any(os.path.exists(os.path.join(candidate, mark)) for mark in _PLUGIN_MARKS):
                return candidate
            parent = os.path.dirname(candidate)
            if parent == candidate or not self.paths.in_home(parent):
                break
            candidate = parent
        return path

    def tools(self, value: str) -> str:
        """A list of tools; an entry whose path is not mounted is left out."""
        if not value:
            return value
        entries = (self._tool(entry) for entry in split_tools(value))
        return ",".join(entry for entry in entries if entry is not None)

    def _tool(self, entry: str) -> str | None:
        match = _TOOL.fullmatch(entry)
        if match is None:
            return entry
        pattern = re.sub("^/+", "/", match[2])
        if not is_guest(pattern):
            return entry
        path = self.paths.to_host(pattern, self.mounts)
        return None if path is None else f"{match[1]}({path})"

    def directory(self, cwd: str | None, shared: str | None) -> str:
        """Where the command starts: an existing directory, or the home."""
        wanted: str | None = cwd or self.paths.home
        if shared:
            try:
                wanted = self.paths.folder(shared)
            except PathError:
                wanted = None
        elif wanted is not None and is_guest(wanted):
            wanted = self.paths.to_host(wanted, self.mounts) or self._primary()
        if wanted is None or "\0" in wanted or not os.path.isdir(wanted):
            return self.paths.home
        return wanted

    def _primary(self) -> str | None:
        name = primary(self.mounts)
        return None if name is None else self.mounts[name]

    def environment(self, env: Mapping[str, str]) -> dict[str, str]:
        """The variables that hold paths; what is not mounted is removed."""
        result = dict(env)
        for name, translate in ((CONFIG_DIR, self._config), (MEMORY, self._memory)):
            if name in result:
                value = translate(result.pop(name))
                if value is not None:
                    result[name] = value
        return result

    def _config(self, value: str) -> str | None:
        if is_guest(value):
            return self.paths.to_host(value, self.mounts)
        if not is_within(value, self.paths.home):
            return value
        try:
            # some clients put the home in front of a path that has it already
            return self.paths.locate(value.removeprefix(self.paths.home))
        except PathError:
            return None

    def _memory(self, value: str) -> str | None:
        if not is_guest(value):
            return value
        found = self.paths.to_host(value, self.mounts)
        if found is not None:
            return found
        parts = value.split("/", 4)
        if len(parts) < 5 or parts[3] != "mnt" or not parts[4]:
            return None
        try:
            return self.paths.locate(parts[4])
        except PathError:
            return None


def split_tools(value: str) -> list[str]:
    """Split at commas that are not in parentheses."""
    entries, depth = [""], 0
    for char in value:
        depth = max(0, depth + (char == "(") - (char == ")"))
        if char == "," and not depth:
            entries.append("")
        else:
            entries[-1] += char
    return entries
