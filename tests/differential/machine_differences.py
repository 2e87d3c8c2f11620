"""What a microVM has otherwise than nsrun's own namespaces have it: a row for each kind of
fact, with its tag, the reason, and exactly where.  A divergence that no row matches fails."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import lru_cache
from itertools import pairwise
from pathlib import Path

from differences import Comparison, Known, Matcher, closed
from harness import NOTHING, Case, Divergence

from cowork_nsrun.guest.compile import EXPORTS


class Tag(Enum):
    """What is said of a whole case; the last one that a row of it has."""

    SAME = "same"
    TRANSLATED = "translated"
    DIFFERS = "differs"
    REFUSED = "refused by name"


@dataclass(frozen=True)
class Row(Known):
    tag: Tag


#: file systems that a kernel makes of its own
KERNELS = {"devtmpfs", "proc", "sysfs", "cgroup2", "devpts", "mqueue", "securityfs", "tracefs",
           "debugfs", "configfs", "bpf", "pstore", "hugetlbfs"}  # fmt: skip
KERNELS_OWN = ("/proc", "/sys", "/dev")
#: of the list of soft and hard limits: processes, open files, pending signals
MACHINES_LIMITS = {12, 13, 14, 15, 22, 23}
#: options of a mount that forbid something
WALLS = {"ro", "nosuid", "nodev", "noexec"}
#: the same of statfs(2)
STATFS_WALLS = os.ST_RDONLY | os.ST_NOSUID | os.ST_NODEV | os.ST_NOEXEC
DEV_NULL = os.makedev(1, 3)
FUSE_MAGIC = "65735546"
TMPFS_MAGIC = "1021994"
MOUNT = re.compile(r"seen\.mounts\.(?P<point>.*)@(?P<depth>\d+)(?P<same>'*)\.(?P<fact>\w+)")


def words(case: Case) -> tuple[str, ...]:
    """Of the command line, with the paths of its descriptors, and of what --args may read."""
    texts = (spec.content.decode("latin-1") for spec in case.fds.values())
    paths = {f"{{fd:{name}}}": spec.path for name, spec in case.fds.items() if spec.path}
    given = (paths.get(word, word) for word in case.argv)
    return (*given, *(word for text in texts for word in text.split("\0")))


def unshares(case: Case, name: str) -> bool:
    return bool({f"--unshare-{name}", "--unshare-all"} & set(words(case)))


def paths(pattern: str) -> Matcher:
    compiled = re.compile(pattern)
    return lambda divergence, _: compiled.fullmatch(divergence.path) is not None


# ---- translated: the guest has its own -------------------------------------------


def mount_kind(comparison: Comparison, divergence: Divergence, *, actual: bool) -> str:
    """Type and source of the mount that a divergence is about; empty if it is not there."""
    key = divergence.path.removeprefix("seen.mounts.").rpartition(".")[0]
    seen = (comparison.actual if actual else comparison.expected).seen
    text = seen.get("mounts", {}).get(key, {}).get("fs", "")
    return str(text)


def shared_files(divergence: Divergence, comparison: Comparison) -> bool:
    """A bind's file system: the file server's, in which the source is an export."""
    found = MOUNT.fullmatch(divergence.path)
    kind = mount_kind(comparison, divergence, actual=True)
    return (
        found is not None
        and found["fact"] in ("root", "fs", "device")
        and kind.startswith("virtiofs nsrun ")
        and (found["fact"] != "root" or re.match(r"/\d+", str(divergence.actual)) is not None)
    )


def file_systems(divergence: Divergence, comparison: Comparison) -> bool:
    """What statfs(2) says: of a bind its own type; of a tmpfs a part of the memory there is."""
    found = re.fullmatch(r"seen\.stat\.(.*)\.(type|bytes|flags)", divergence.path)
    if found is None or NOTHING in (divergence.expected, divergence.actual):
        return False
    kind = comparison.actual.seen["stat"][found[1]].get("type")
    if found[2] == "flags":
        forbids = int(divergence.expected, 16) & STATFS_WALLS
        return kind == FUSE_MAGIC and forbids & ~int(divergence.actual, 16) == 0
    return kind == FUSE_MAGIC or (kind == TMPFS_MAGIC and found[2] == "bytes")


def own_kernel(divergence: Divergence, comparison: Comparison) -> bool:
    """Sizes, names and options of the kernel's own file systems."""
    found = MOUNT.fullmatch(divergence.path)
    expected, actual = (
        mount_kind(comparison, divergence, actual=side).partition(" ")[0] for side in (False, True)
    )
    return (
        found is not None
        and found["fact"] in ("fs", "device", "options")
        and expected == actual
        and actual in KERNELS
        and as_closed(found["point"], comparison)
    )


def overlay_layers(divergence: Divergence, _: Comparison) -> bool:
    """As many lower layers, each an export; all other options are the same.

    A colon in a name has a backslash before it, which mountinfo writes as a number.
    """
    lower = re.compile(r"(?<=,lowerdir=)[^,]*")
    expected, actual = str(divergence.expected), str(divergence.actual)
    names = lower.search(actual)
    return (
        divergence.path.endswith(".fs")
        and expected.startswith("overlay ")
        and lower.sub("", expected) == lower.sub("", actual)
        and names is not None
        and all(re.fullmatch(rf"{EXPORTS}/\d+", name) for name in names[0].split(":"))
        and names[0].count(":") == len(re.findall(r"(?<!\\134):", lower.findall(expected)[0]))
    )


def made_numbers(divergence: Divergence, _: Comparison) -> bool:
    """Numbers in order of first use: one file system more is before them."""
    found = MOUNT.fullmatch(divergence.path)
    both = (str(divergence.expected), str(divergence.actual))
    return (
        found is not None
        and found["fact"] == "device"
        and all(text.startswith("made") for text in both)
    )


# of one case after the other: its hundreds of differences ask for the same
@lru_cache(maxsize=1)
def kernels_places(given: tuple[str, ...]) -> set[str]:
    """Where binds of a case bring the kernel's own directories, which the guest has of its own."""
    inside = {dest for source, dest in binds(given) if below_any(source, KERNELS_OWN)}
    return brought(given, KERNELS_OWN) | inside


def below_any(path: str, tops: Iterable[str]) -> bool:
    return any(path.startswith(f"{top}/") for top in tops)


def binds(given: Sequence[str]) -> list[tuple[str, str]]:
    """Source and destination of each bind, without slashes at their ends."""
    return [
        (source.rstrip("/"), dest.rstrip("/"))
        for option, source, dest in zip(given, given[1:], given[2:], strict=False)
        if re.fullmatch(r"--(ro-|dev-)?bind(-try|-fd)?", option)
    ]


def brought(given: Sequence[str], points: Iterable[str]) -> set[str]:
    """Where binds of a case bring such mount points, themselves or by what is below them."""
    return {
        dest + point.removeprefix(source) or "/"
        for source, dest in binds(given)
        for point in points
        if f"{point}/".startswith(f"{source}/")
    }


@lru_cache(maxsize=1)
def mounts_brought(given: tuple[str, ...]) -> set[str]:
    """Where binds of a case bring mounts of the host's."""
    lines = Path("/proc/self/mountinfo").read_text(encoding="latin-1").splitlines()
    return brought(given, {line.split()[4] for line in lines})


def visible(mounts: Iterable[str], path: str) -> str:
    """The key of the mount that a path leads to.

    Keys are in the order of the tree of mounts, each with its depth.
    """
    below: dict[str, dict[str, str]] = {}
    chain: list[str] = []
    for key in mounts:
        point, _, depth = key.rstrip("'").rpartition("@")
        del chain[int(depth) :]
        below.setdefault(chain[-1] if chain else "", {})[point] = key
        chain.append(key)
    here = below.get("", {}).get("/", "")
    parts = path.strip("/").split("/")
    for place in ("/", *("/" + "/".join(parts[:count]) for count in range(1, len(parts) + 1))):
        while place in below.get(here, {}):
            here = below[here][place]
    return here


def walls(mount: Mapping[str, str]) -> set[str]:
    """What a mount forbids."""
    return set(mount.get("options", "").split(",")) & WALLS


def as_closed(path: str, comparison: Comparison) -> bool:
    """What a path leads to forbids as much in the guest, and is a mount of the plan's if it was."""
    sides = [side.seen.get("mounts", {}) for side in (comparison.expected, comparison.actual)]
    keys = [visible(mounts, path) for mounts in sides]
    expected, actual = (mounts.get(key, {}) for mounts, key in zip(sides, keys, strict=True))
    if not walls(expected) <= walls(actual):
        return False
    # its device is none that the host has
    if not str(expected.get("device", "")).startswith("made"):
        return True
    points = {key.rpartition("@")[0] for key in keys}
    kinds = {str(mount.get("fs", "")).partition(" ")[0] for mount in (expected, actual)}
    return len(points) == len(kinds) == 1


def below_kernels(divergence: Divergence, comparison: Comparison) -> bool:
    """A mount or file in a /proc, /sys or /dev that is bound: the guest's."""
    found = re.fullmatch(r"seen\.(mounts|tree|asked_tree)\.(/.*?)(@\d+'*)?\.\w+", divergence.path)
    return (
        found is not None
        and any(
            f"{found[2]}/".startswith(f"{place}/")
            for place in kernels_places(words(comparison.case))
        )
        and (found[1] != "mounts" or as_closed(found[2], comparison))
    )


def mounts_below(divergence: Divergence, comparison: Comparison) -> bool:
    """The host's mounts below a bind: files of one export, on which others may lie."""
    found = MOUNT.fullmatch(divergence.path)
    return (
        found is not None
        and found["point"] in mounts_brought(words(comparison.case))
        and as_closed(found["point"], comparison)
    )


def propagation(divergence: Divergence, _: Comparison) -> bool:
    """Outside, mounts made later on the host would come into a bind."""
    found = MOUNT.fullmatch(divergence.path)
    return (
        found is not None
        and found["fact"] == "propagation"
        and isinstance(divergence.expected, list)
        and all(tag.startswith("master:") for tag in divergence.expected)
        and divergence.actual == []
    )


def standard_input(divergence: Divergence, comparison: Comparison) -> bool:
    """What is read there comes through a pipe."""
    given = comparison.actual.seen.get("fds", {}).get("0", {})
    return divergence.path.startswith("seen.fds.0.") and given.get("type") == "fifo"


#: said by a shell that opens by name what it has as a descriptor
DENIED = re.compile(r"^.*: cannot create /dev/std(?:out|err): Permission denied\n", re.MULTILINE)


def streams_by_name(divergence: Divergence, _: Comparison) -> bool:
    """A pipe of another user's outside; all else that is said is the same."""
    same = [re.escape(text) for text in DENIED.split(str(divergence.expected))]
    return (
        divergence.path == "stderr"
        and len(same) > 1
        and re.fullmatch(".*\n".join(same), str(divergence.actual)) is not None
    )


def host_name(divergence: Divergence, comparison: Comparison) -> bool:
    """The host's name in a UTS namespace of the guest's, which the command may change."""
    if unshares(comparison.case, "uts"):
        return False
    match divergence.path:
        case "seen.namespaces.uts.inode":
            return (divergence.expected, divergence.actual) == ("host", "new")
        case "seen.namespaces.uts.owner":
            return bool(divergence.actual == "own")
        case "seen.may.hostname" | "seen.may./proc/sys/kernel/hostname":
            return bool(divergence.actual == "errno 0")
    return False


def network(divergence: Divergence, comparison: Comparison) -> bool:
    """Whoever shares the network has the machine's, with one card."""
    given = words(comparison.case)
    shared = "--share-net" in given or not unshares(comparison.case, "net")
    return shared and divergence.path.startswith(("seen.net", "seen.namespaces.net."))


def limits(divergence: Divergence, _: Comparison) -> bool:
    """What depends on a machine's memory, and the hard limit of open files."""
    expected, actual = divergence.expected, divergence.actual
    return (
        divergence.path == "seen.process.rlimits"
        and isinstance(expected, list)
        and isinstance(actual, list)
        and all(
            place in MACHINES_LIMITS or one == other
            for place, (one, other) in enumerate(zip(expected, actual, strict=True))
        )
    )


TERMINALS = re.compile(
    r"seen\.(fds\.[012]\.rdev|process\.(sid|pgid|stat\.foreground)|tree\./dev/console\.[ug]id)"
)


def terminal(divergence: Divergence, comparison: Comparison) -> bool:
    """The terminal is the guest's, and so is its session; it belongs to who runs the command."""
    return comparison.case.tty and TERMINALS.fullmatch(divergence.path) is not None


# ---- differs ------------------------------------------------------------------------


def new_session(divergence: Divergence, comparison: Comparison) -> bool:
    """The terminal stays the command's, but is not the host's."""
    facts = {"seen.process.dev_tty": ("errno 6", "ok"),
             "seen.process.stat.terminal": ("none", "some")}  # fmt: skip
    return (
        comparison.case.tty
        and "--new-session" in words(comparison.case)
        and facts.get(divergence.path) == (divergence.expected, divergence.actual)
    )


def descriptors(divergence: Divergence, _: Comparison) -> bool:
    found = re.fullmatch(r"seen\.fds\.(\d+)\.\w+", divergence.path)
    return found is not None and int(found[1]) > 2 and divergence.actual is NOTHING


def closed_streams(divergence: Divergence, comparison: Comparison) -> bool:
    """A standard stream that the caller left closed, or that --args has read to its end."""
    found = re.fullmatch(r"seen\.fds\.([012])\.\w+", divergence.path)
    return (
        found is not None
        and (
            closed(comparison.case, found[1])
            or ("--args", found[1]) in pairwise(comparison.case.argv)
        )
        and comparison.actual.seen["fds"][found[1]]["rdev"] == DEV_NULL
    )


def process_state(divergence: Divergence, comparison: Comparison) -> bool:
    """Of the caller: ignored and blocked signals, niceness, limits of open files."""
    facts = {
        "ignore": r"process\.(ignored|status\.SigIgn)",
        "block": r"process\.(blocked|status\.SigBlk)",
        "nice": r"process\.(nice|stat\.priority)",
        "files": r"process\.rlimits",
    }
    return any(
        set_up in comparison.case.launch and re.fullmatch(rf"seen\.{fact}", divergence.path)
        for set_up, fact in facts.items()
    )


def status_records(divergence: Divergence, comparison: Comparison) -> bool:
    """The first of them, but not the exit code behind it."""
    found = re.fullmatch(r"records\.(\w+)\.(documents|shape)\b.*", divergence.path)
    if found is None or "--json-status-fd" not in words(comparison.case):
        return False
    expected, actual = (
        side.records[found[1]]["documents"] for side in (comparison.expected, comparison.actual)
    )
    return (
        [list(document) for document in actual[:1]] == [["stand-in-pid"]]
        and "child-pid" in expected[0]
        and actual[1:] == expected[1:]
    )


HOST_SIDE = re.compile(
    r"nsrun: (\S+: too many symbolic links|--[a-z-]+( to \S*)?: fd \d+: .*"
    r"|--json-status-fd \d+: Bad file descriptor)\n",
    re.DOTALL,
)


def read_by_the_host_side(divergence: Divergence, comparison: Comparison) -> bool:
    """Both end with status 1; the reason is found before there is a sandbox."""
    return (
        divergence.path == "stderr"
        and comparison.expected.status == comparison.actual.status == 1
        and HOST_SIDE.fullmatch(str(divergence.actual)) is not None
    )


# ---- refused by name ------------------------------------------------------------------


def refusal(*options: str, reason: str) -> Matcher:
    """The message names an option that the case has, and nothing has run."""
    pattern = re.compile(rf"nsrun: .*({'|'.join(options)})\b.*{reason}.*", re.DOTALL)

    def matches(divergence: Divergence, comparison: Comparison) -> bool:
        actual = comparison.actual
        return (
            pattern.fullmatch(actual.stderr) is not None
            and actual.status == 1
            and not actual.seen
            and not actual.stdout
            and divergence.path.partition(".")[0]
            in ("status", "stdout", "stderr", "lingered", "seen", "records", "host")
        )

    return matches


def row(tag: Tag, name: str, what: str, why: str, matches: Matcher) -> Row:
    return Row(name, what, why, matches, tag)


ROWS: tuple[Row, ...] = (
    row(
        Tag.REFUSED,
        "shared-pids",
        "a command without --unshare-pid",
        "the host's processes can't be seen from another machine",
        refusal("--unshare-pid", reason="does not see them"),
    ),
    row(
        Tag.REFUSED,
        "namespaces-and-records",
        "--userns, --userns2, --pidns, --userns-block-fd, --info-fd",
        "they name namespaces and processes of the host's kernel",
        refusal(
            *("--userns", "--userns2", "--pidns", "--userns-block-fd", "--info-fd"),
            reason="none of the caller's descriptors",
        ),
    ),
    row(
        Tag.REFUSED,
        "devices",
        "--dev-bind of anything but the kernel's own files",
        "a machine has no device of the host's",
        refusal("--dev-bind", reason="none of the host's devices"),
    ),
    row(
        Tag.REFUSED,
        "special-sources",
        "sources that are sockets, FIFOs, devices or of a process",
        "nobody in a machine could reach who is at their other end",
        refusal("--dev-bind", "--bind", reason=" is (a|of) "),
    ),
    row(
        Tag.REFUSED,
        "overlay",
        "--overlay with its upper layer on the host",
        "overlayfs takes no shared file system as its upper layer",
        refusal("--overlay", reason="upper layer would lie on a shared file system"),
    ),
    row(
        Tag.TRANSLATED,
        "shared-files",
        "file system and root of a bind",
        "the host's files come through the file server, each source as an export of it",
        shared_files,
    ),
    row(
        Tag.TRANSLATED,
        "file-systems",
        "type and size of a file system",
        "a bind's is the file server's, and a tmpfs may have half of the guest's memory",
        file_systems,
    ),
    row(
        Tag.TRANSLATED,
        "own-kernel",
        "sizes and options of devtmpfs, proc, sysfs, cgroup2",
        "they are the guest's",
        own_kernel,
    ),
    row(
        Tag.TRANSLATED,
        "overlay-layers",
        "names of an overlay's lower layers",
        "they are exports",
        overlay_layers,
    ),
    row(
        Tag.TRANSLATED,
        "made-numbers",
        "which number a file system of the sandbox's own gets here",
        "the file server's is one more before them",
        made_numbers,
    ),
    row(
        Tag.TRANSLATED,
        "below-kernels",
        "mounts and files of a /proc, /sys or /dev that is bound, or comes with a bind of /",
        "they are the guest's",
        below_kernels,
    ),
    row(
        Tag.TRANSLATED,
        "mounts-below",
        "the host's other mounts below a bind of /",
        "an export is one file system",
        mounts_below,
    ),
    row(
        Tag.TRANSLATED,
        "propagation",
        "binds of a host whose mounts are shared receive from them",
        "the file server shows what is mounted below a source, with no mount in the guest",
        propagation,
    ),
    row(
        Tag.TRANSLATED,
        "standard-input",
        "standard input is a pipe",
        "the agent writes into it what the host side reads",
        standard_input,
    ),
    row(
        Tag.TRANSLATED,
        "streams-by-name",
        "/dev/stdout and /dev/stderr of a user can be opened where the caller's pipe is another's",
        "the agent makes a pipe of the user's own; the host side writes into the caller's",
        streams_by_name,
    ),
    row(
        Tag.TRANSLATED,
        "terminal",
        "number, session and owner of a terminal",
        "the terminal is the guest's",
        terminal,
    ),
    row(
        Tag.TRANSLATED,
        "pid-1",
        "name, signals, command line, environment and descriptors of pid 1",
        "the agent's warden is in the place of nsrun's reaper; its privileges are compared",
        paths(r"seen\.(pid1|parent)\.(status\.(Name|Sig(Blk|Cgt|Ign))|cmdline|environ|fds\b.*)"),
    ),
    row(
        Tag.TRANSLATED,
        "cgroup",
        "name of the cgroup, where that namespace is shared",
        "it is the guest's",
        paths(r"seen\.process\.cgroup"),
    ),
    row(
        Tag.TRANSLATED,
        "limits",
        "limits of processes, pending signals and open files",
        "the guest's kernel makes them of the machine's memory; the caller's are the host side's",
        limits,
    ),
    row(
        Tag.TRANSLATED,
        "host-name",
        "a UTS namespace, and the right to change the name in it",
        "the host's name is given to a namespace of the guest's",
        host_name,
    ),
    row(
        Tag.TRANSLATED,
        "network",
        "cards, addresses and routes where the network is shared",
        "the machine reaches what the caller reaches, by a card of its own",
        network,
    ),
    row(
        Tag.DIFFERS,
        "descriptors",
        "descriptors above 2",
        "open files of the host's can't be handed to another kernel",
        descriptors,
    ),
    row(
        Tag.DIFFERS,
        "new-session",
        "--new-session on a terminal: it is still the controlling one",
        "it is the guest's, whose keys could not be signals else; the host's is out of reach",
        new_session,
    ),
    row(
        Tag.DIFFERS,
        "closed-streams",
        "standard streams that the caller left closed, or that were read by --args",
        "the agent gives /dev/null, which is what a program can rely on",
        closed_streams,
    ),
    row(
        Tag.DIFFERS,
        "process-state",
        "ignored and blocked signals, niceness and limits of the caller",
        "they hold for the process on the host that stands for the command",
        process_state,
    ),
    row(
        Tag.DIFFERS,
        "status-records",
        "the first record of --json-status-fd: stand-in-pid in place of child-pid and namespaces",
        "what /proc shows of the process that stands for the command is the host's",
        status_records,
    ),
    row(
        Tag.DIFFERS,
        "host-side-messages",
        "words about a descriptor that can't be read or written, or about a loop of links",
        "the host side finds it before there is a sandbox that could",
        read_by_the_host_side,
    ),
)


def tag_of(names: Iterable[str]) -> Tag:
    """Of a case by the rows it needed."""
    order = list(Tag)
    tags = [row.tag for row in ROWS if row.name in set(names)]
    return max(tags, key=order.index, default=Tag.SAME)
