"""What two equal runs may differ in is taken out here, and only here: process
numbers, namespace inodes, mount numbers, device numbers of file systems that
the sandbox made, peer groups."""

from __future__ import annotations

import errno
import json
import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

#: of a payload in a pid namespace of its own
LARGEST_OWN_PPID = 2
#: of a sandbox without /proc: before Linux 6.8 there is no listmount(2)
UNLISTED = "nothing"
STATUS_FIELDS = (
    "Name",
    "Umask",
    "TracerPid",
    "Uid",
    "Gid",
    "Groups",
    "Threads",
    "SigPnd",
    "ShdPnd",
    "SigBlk",
    "SigIgn",
    "SigCgt",
    "CapInh",
    "CapPrm",
    "CapEff",
    "CapBnd",
    "CapAmb",
    "NoNewPrivs",
    "Seccomp",
    "Seccomp_filters",
    "Speculation_Store_Bypass",
    "SpeculationIndirectBranch",
    "Cpus_allowed",
    "THP_enabled",
)


@dataclass(frozen=True)
class Context:
    """What the harness knows about one run from outside."""

    monitor: int
    namespaces: dict[int, str]
    devices: frozenset[str]


@dataclass
class Numbering:
    """Stable names in order of first use."""

    prefix: str
    names: dict[str, str] = field(default_factory=dict)

    def __call__(self, value: str) -> str:
        return self.names.setdefault(value, f"{self.prefix}{len(self.names)}")


def normalise_observation(raw: dict[str, Any], context: Context) -> dict[str, Any]:
    spaces = normalise_namespaces(raw["namespaces"], context)
    new_pids = has_new_pids(spaces["pid"]["inode"], raw["process"])
    own_proc = new_pids and shows_own_processes(raw["process"])
    pids = pid_names(raw["process"], context, new_pids)
    source, mounts = mount_listing(raw)
    seen: dict[str, Any] = {
        "fds": {
            str(entry["fd"]): {k: v for k, v in entry.items() if k != "fd"} for entry in raw["fds"]
        },
        "process": normalise_process(raw["process"], pids),
        "identity": raw["identity"],
        "caps": raw["caps"],
        "prctl": raw["prctl"],
        "namespaces": spaces,
        "mounts": normalise_mounts(mounts, context.devices),
        "mount_source": source,
        "stat": raw["stat"],
        "tree": raw["tree"],
        "asked_tree": raw["asked_tree"],
        "may": raw["may"],
        "hostname": raw["hostname"],
        "domainname": raw["domainname"],
    }
    if spaces["net"]["inode"] != "host":
        seen["net"] = raw["net"]
    if own_proc:
        seen["pids"] = raw["pids"]
        seen["pid1"] = normalise_other(raw["pid1"])
    if "parent" in raw and (own_proc or not new_pids):
        seen["parent"] = normalise_other(raw["parent"])
    return seen


# ---- namespaces and process numbers ------------------------------------------


def normalise_namespaces(raw: dict[str, Any], context: Context) -> dict[str, Any]:
    own = raw["user"]["inode"]

    def name(value: Any) -> Any:
        if not isinstance(value, int):
            return value
        return context.namespaces.get(value, "own" if value == own else "new")

    spaces = {
        kind: {
            "inode": "new"
            if entry["inode"] == own and name(own) == "own"
            else name(entry["inode"]),
            "owner": name(entry.get("owner")),
        }
        for kind, entry in raw.items()
    }
    spaces["pid_for_children"]["as_pid"] = str(
        raw["pid_for_children"]["inode"] == raw["pid"]["inode"]
    )
    return spaces


def has_new_pids(inode: str, process: dict[str, Any]) -> bool:
    """Without /proc, and before Linux 6.11, only the numbers tell."""
    if inode.startswith("errno"):
        return bool(process["ppid"] <= LARGEST_OWN_PPID)
    return inode != "host"


def shows_own_processes(process: dict[str, Any]) -> bool:
    """Whether /proc is that of the payload's pid namespace, not one bound from the host."""
    return f"\nPid:\t{process['pid']}\n" in process["status"]


def pid_names(process: dict[str, Any], context: Context, new_pids: bool) -> dict[int, Any]:
    """In a new pid namespace the numbers mean something; on the host they don't."""
    if new_pids:
        return {}
    return {
        process["ppid"]: "parent",
        context.monitor: "monitor",
        process["pid"]: "self",
        0: "outside",
    }


def normalise_process(raw: dict[str, Any], pids: dict[int, Any]) -> dict[str, Any]:
    def name(pid: int) -> Any:
        return pids.get(pid, "other") if pids else pid

    kept = {key: value for key, value in raw.items() if key not in ("status", "stat")}
    kept |= {key: name(raw[key]) for key in ("pid", "ppid", "sid", "pgid")}
    kept["environ"] = dict(enumerate(raw["environ"]))
    kept["status"] = normalise_status(raw["status"])
    kept["stat"] = normalise_stat(raw["stat"], name)
    return kept


def normalise_status(text: str) -> dict[str, str] | str:
    if text.startswith("errno"):
        return text
    fields = dict(line.split(":\t", 1) for line in text.splitlines() if ":\t" in line)
    kept = {key: fields[key] for key in STATUS_FIELDS if key in fields}
    # how many pid namespaces lie between the process and this /proc
    kept["NSpid levels"] = str(len(fields.get("NSpid", "").split()))
    return kept


def normalise_stat(text: str, name: Any) -> dict[str, Any] | str:
    if text.startswith("errno"):
        return text
    fields = text[text.rindex(")") + 2 :].split()
    foreground = int(fields[5])
    return {
        "terminal": "none" if fields[4] == "0" else "some",
        "foreground": foreground if foreground <= 0 else name(foreground),
        "priority": fields[15],
        "exit_signal": fields[35],
    }


def normalise_other(raw: dict[str, Any]) -> dict[str, Any]:
    kept = dict(raw)
    kept["status"] = normalise_status(raw["status"])
    if isinstance(raw["fds"], dict):
        kept["fds"] = {fd: re.sub(r":\[\d+\]", "", target) for fd, target in raw["fds"].items()}
    return kept


# ---- mounts --------------------------------------------------------------------


@dataclass
class Mount:
    number: str
    parent: str
    device: str
    root: str
    point: str
    options: str
    propagation: list[str]
    kind: str
    source: str
    super_options: str

    @classmethod
    def parse(cls, line: str) -> Mount:
        before, _, after = line.partition(" - ")
        number, parent, device, root, point, options, *propagation = before.split(" ")
        kind, source, super_options = after.split(" ")[:3]
        return cls(
            number, parent, device, root, point, options, propagation, kind, source, super_options
        )


def mount_listing(raw: dict[str, Any]) -> tuple[str, str]:
    """Where the lines about mounts are from, and the lines."""
    if "mountinfo" in raw:
        return "proc", raw["mountinfo"]
    if raw.get("listmount") == f"errno {errno.ENOSYS}":
        return UNLISTED, ""
    return "listmount", raw.get("listmount", "")


def normalise_mounts(text: str, host_devices: frozenset[str]) -> dict[str, Any]:
    """The mount tree, without its numbers: a key tells what lies on what."""
    mounts = [Mount.parse(line) for line in text.splitlines()]
    devices, peers = Numbering("made"), Numbering("group")
    told: dict[str, Any] = {}
    for depth, mount in in_tree_order(mounts):
        point = re.sub(r"^/proc/\d+", "/proc/PID", mount.point)
        key = f"{point}@{depth}"
        while key in told:
            key += "'"
        told[key] = {
            "device": mount.device if mount.device in host_devices else devices(mount.device),
            "root": mount.root.removesuffix("//deleted"),
            "options": mount.options,
            "propagation": [peer_group(tag, peers) for tag in mount.propagation],
            "fs": f"{mount.kind} {mount.source} {mount.super_options}",
        }
    return told


def peer_group(tag: str, peers: Numbering) -> str:
    """A group that the mount receives from is the host's: its number must agree."""
    return peers(tag) if tag.startswith("shared:") else tag


def in_tree_order(mounts: list[Mount]) -> Iterator[tuple[int, Mount]]:
    numbers = {mount.number for mount in mounts}
    children: dict[str, list[Mount]] = {}
    for mount in mounts:
        children.setdefault(mount.parent if mount.parent in numbers else "", []).append(mount)

    def below(number: str, depth: int) -> Iterator[tuple[int, Mount]]:
        for mount in sorted(
            children.get(number, []), key=lambda m: (m.point, m.root, m.kind, m.options)
        ):
            yield depth, mount
            yield from below(mount.number, depth + 1)

    return below("", 0)


# ---- records on info and status descriptors -------------------------------------


def normalise_records(text: str, context: Context) -> dict[str, Any]:
    """The form to the letter, the numbers by what they mean."""
    documents: list[Any] = []
    decoder, rest = json.JSONDecoder(), text.strip()
    while rest.startswith("{"):
        document, end = decoder.raw_decode(rest)
        documents.append(
            {key: record_value(key, value, context) for key, value in document.items()}
        )
        rest = rest[end:].strip()
    return {"documents": documents, "shape": without_numbers(text)}


def without_numbers(text: str) -> str:
    return re.sub(r'("(?:child-pid|stand-in-pid|[a-z]+-namespace)": )\d+', r"\1N", text)


def record_value(key: str, value: Any, context: Context) -> Any:
    if key in ("child-pid", "stand-in-pid"):
        return "a pid" if isinstance(value, int) and value > 0 else value
    if key.endswith("-namespace"):
        return context.namespaces.get(value, "new")
    return value


# ---- the host's files afterwards --------------------------------------------------


def read_tree(top: Path) -> dict[str, Any]:
    """All that is below a directory, by os alone: pathlib takes several times as long."""
    return dict(below(str(top), ""))


def below(directory: str, front: str) -> Iterator[tuple[str, dict[str, Any]]]:
    try:
        entries = sorted(os.scandir(directory), key=lambda entry: entry.name)
    except PermissionError:
        return
    for entry in entries:
        yield front + entry.name, describe(entry)
        if entry.is_dir(follow_symlinks=False):
            yield from below(entry.path, f"{front}{entry.name}/")


def describe(entry: os.DirEntry[str]) -> dict[str, Any]:
    info = entry.stat(follow_symlinks=False)
    told: dict[str, Any] = {
        "mode": stat.filemode(info.st_mode),
        "owner": f"{info.st_uid}:{info.st_gid}",
    }
    if stat.S_ISLNK(info.st_mode):
        told["target"] = os.readlink(entry.path)
    elif stat.S_ISREG(info.st_mode):
        with open(entry.path, "rb", buffering=0) as file:
            told["content"] = file.read(200).decode("latin-1")
    elif stat.S_ISCHR(info.st_mode):
        told["device"] = str(info.st_rdev)
    return told
