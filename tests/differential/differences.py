"""The differences that are meant. Each is a row: what differs, why, and exactly
where. A divergence that no row matches fails the test."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable
from dataclasses import dataclass

from harness import NOTHING, Case, Divergence, Program, Result, diverge


@dataclass(frozen=True)
class Comparison:
    """What a row may look at beyond the one fact that differs."""

    reference: Program
    case: Case
    expected: Result
    actual: Result


Matcher = Callable[[Divergence, Comparison], bool]


@dataclass(frozen=True)
class Known:
    name: str
    what: str
    why: str
    matches: Matcher


def root_mount_field(divergence: Divergence, _: Comparison) -> bool:
    """The root mount's root field, and temporary files that bwrap keeps beside it."""
    return (
        re.fullmatch(r"seen\.mounts\./@0\.root", divergence.path) is not None
        and divergence.expected == "/newroot"
        and divergence.actual == "/"
    )


def bind_data_name(divergence: Divergence, _: Comparison) -> bool:
    """The name of an unlinked temporary file, seen only as a mount's root."""
    return (
        divergence.path.startswith("seen.mounts.")
        and divergence.path.endswith(".root")
        and divergence.expected == "/bindfile"
    )


def bind_data_device(divergence: Divergence, _: Comparison) -> bool:
    """bwrap's temporary files lie on the root's tmpfs, ours may have one of their own."""
    return (
        divergence.path.startswith("seen.mounts.")
        and divergence.path.endswith(".device")
        and str(divergence.expected).startswith("made")
        and str(divergence.actual).startswith("made")
        and not divergence.path.startswith("seen.mounts./@")
    )


def internal_descriptors(divergence: Divergence, comparison: Comparison) -> bool:
    """Descriptors of other processes, above stdio or where stdio was closed."""
    found = re.fullmatch(r"seen\.(?:pid1|parent)\.fds\.(\d+)", divergence.path)
    return found is not None and (int(found[1]) > 2 or closed(comparison.case, found[1]))


def closed(case: Case, number: str) -> bool:
    return ("close", number) in itertools.pairwise(case.launch)


def empty_path(_: Divergence, comparison: Comparison) -> bool:
    """bwrap 0.13 refuses an empty path where 0.11 made something of it."""
    return (
        "" in comparison.case.argv
        and comparison.actual.status == 1
        and "a path must not be empty" in comparison.actual.stderr
    )


def absolute_link(divergence: Divergence, comparison: Comparison) -> bool:
    """An absolute link inside leads, before 0.12, to a place outside of the new root."""
    argv = comparison.case.argv
    made = any(
        word == "--symlink" and target.startswith("/") for word, target in itertools.pairwise(argv)
    )
    statuses = (comparison.expected.status, comparison.actual.status)
    led_out = comparison.expected.stderr.endswith(": No such file or directory\n")
    led_to_a_directory = comparison.actual.stderr.endswith(": Is a directory\n")
    elsewhere = divergence.path.startswith(("seen.mounts.", "seen.tree."))
    return made and (
        (statuses == (0, 0) and elsewhere)
        or (statuses == (1, 0) and led_out)
        or (statuses == (0, 1) and led_to_a_directory)
    )


def odd_destination(divergence: Divergence, comparison: Comparison) -> bool:
    """Both refuse a destination with ".." or a slash at its end; where, they differ in.

    bwrap makes the directories before "..", or before the last slash, and looks
    the rest up once more; nsrun looks it up once.
    """
    odd = any("/.." in word or word.endswith("/") for word in comparison.case.argv)
    refused = comparison.expected.status == comparison.actual.status == 1
    return divergence.path == "stderr" and odd and refused


def climbing_out(_: Divergence, comparison: Comparison) -> bool:
    """ ".." at the root stays there since 0.12; before, it climbed out of the new root."""
    return any(word.startswith("/../") or word.endswith("/..") for word in comparison.case.argv)


def covered_mount(divergence: Divergence, comparison: Comparison) -> bool:
    """A mount below a bind that another mount covers: nobody can see into it."""
    found = re.fullmatch(r"seen\.mounts\.(.*)@(\d+)\.options", divergence.path)
    if found is None:
        return False
    place, index = found[1], int(found[2])
    others = (name.rpartition("@") for name in comparison.actual.seen.get("mounts", {}))
    covered = any(path == place and int(number) > index for path, _, number in others)
    before = set(str(divergence.expected).split(","))
    after = set(str(divergence.actual).split(","))
    return covered and after - before <= {"ro", "nosuid", "nodev"} and before - after <= {"rw"}


def source_before_records(divergence: Divergence, comparison: Comparison) -> bool:
    """Sources are looked at before anything is started, so there is no child to report."""
    return (
        divergence.path.startswith("records.")
        and comparison.actual.status == 1
        and "Can't find source path" in comparison.actual.stderr
    )


def unmapped_root(divergence: Divergence, comparison: Comparison) -> bool:
    """Without id maps nothing can be made; bwrap fails one directory earlier."""
    words = ": Value too large for defined data type\n"
    return (
        divergence.path == "stderr"
        and "--userns-block-fd" in comparison.case.argv
        and "Creating newroot failed" in str(divergence.expected)
        and str(divergence.actual).endswith(words)
    )


def pidns_one_line(divergence: Divergence, _: Comparison) -> bool:
    """The child's reason is the message; that its pid did not arrive follows from it."""
    echo = "bwrap: Unexpected short read from pid socket\n"
    return divergence.path == "stderr" and str(divergence.expected) == (
        str(divergence.actual) + echo
    )


def locked_first(divergence: Divergence, comparison: Comparison) -> bool:
    """Locks are taken before the command starts: it never runs without them."""
    return (
        divergence.path.startswith("seen")
        and comparison.actual.status == comparison.expected.status == 1
        and "lock file" in comparison.actual.stderr
    )


def overlay_names(divergence: Divergence, _: Comparison) -> bool:
    """Layers are named as the caller named them, not below bwrap's /oldroot."""

    def plain(text: object) -> str:
        words = str(text).replace("/oldroot/", "/")
        return re.sub(r"/?tmp-overlay-(upper|work)-\d+", r"tmp-overlay-\1", words)

    return (divergence.path == "stderr" or divergence.path.endswith(".fs")) and plain(
        divergence.expected
    ) == plain(divergence.actual)


def other_name(divergence: Divergence, comparison: Comparison) -> bool:
    """bwrap says bwrap whatever its argv[0]; we say it only if that is our name."""
    renamed = comparison.case.argv0 != "{self}" or "/proc/self/exe" in comparison.case.argv
    return renamed and own_prefix(divergence, comparison)


def reaper_environment(divergence: Divergence, _: Comparison) -> bool:
    """The caller's environment, legible in pid 1, is none of the payload's business."""
    return divergence.path == "seen.pid1.environ" and divergence.actual in ("", NOTHING)


def older_version(divergence: Divergence, comparison: Comparison) -> bool:
    """Version and usage texts of an older bwrap."""
    return (
        comparison.reference.version < (0, 11)
        and divergence.path in ("stdout", "stderr")
        and (
            "usage: " in str(divergence.expected)
            or str(divergence.expected).startswith("bubblewrap 0.")
        )
    )


def older_reaper(divergence: Divergence, comparison: Comparison) -> bool:
    """An older pid 1 keeps capabilities when root asks for another uid."""
    return comparison.reference.version < (0, 9) and divergence.path.startswith(
        ("seen.pid1.", "seen.may./proc/1/mem")
    )


def version_text(divergence: Divergence, _: Comparison) -> bool:
    """Ours names the newest bwrap whose options it has."""
    number = r"bubblewrap \d+\.\d+\.\d+"
    return (
        divergence.path == "stdout"
        and re.fullmatch(number + "\n", str(divergence.expected)) is not None
        and re.fullmatch(rf"{number}\n|nsrun \S+ \({number}\)\n", str(divergence.actual))
        is not None
    )


def usage_text(divergence: Divergence, _: Comparison) -> bool:
    """Our usage lists more options; its first line is the same."""
    first, ours = (
        str(text).partition("\n")[0].replace("/nsrun ", "/bwrap ")
        for text in (divergence.expected, divergence.actual)
    )
    return divergence.path in ("stdout", "stderr") and first.startswith("usage: ") and first == ours


def own_prefix(divergence: Divergence, _: Comparison) -> bool:
    """Called by its own name nsrun says so."""
    return divergence.path == "stderr" and divergence.actual == re.sub(
        r"^((?:<\d>)?)bwrap: ", r"\1nsrun: ", str(divergence.expected), flags=re.M
    )


KNOWN: tuple[Known, ...] = (
    Known(
        "root-mount-field",
        "mountinfo's root field of / is /newroot in bwrap, / in nsrun",
        "nsrun makes the tmpfs the root itself, without bwrap's two directories below it",
        root_mount_field,
    ),
    Known(
        "bind-data-name",
        "root field of a --bind-data mount",
        "the name of a temporary file that is unlinked at once, random in bwrap",
        bind_data_name,
    ),
    Known(
        "bind-data-device",
        "which anonymous file system holds --bind-data files",
        "bwrap keeps them beside its root directory; only the numbers differ",
        bind_data_device,
    ),
    Known(
        "pid1-descriptors",
        "descriptors above 2 in pid 1",
        "bwrap reports by an eventfd, nsrun by other means; the payload cannot use either",
        internal_descriptors,
    ),
    Known(
        "pid1-environ",
        "/proc/1/environ is empty",
        "what --clearenv takes from the payload should not be legible one process further up",
        reaper_environment,
    ),
    Known(
        "older-usage",
        "usage and version of an older bwrap",
        "nsrun is compared with 0.8 for its behaviour, not for the list of options",
        older_version,
    ),
    Known(
        "older-reaper",
        "capabilities of pid 1 in bwrap 0.8, and what follows from them",
        "0.11 drops them: so does nsrun",
        older_reaper,
    ),
    Known(
        "empty-path",
        "an empty path is refused",
        "as bwrap 0.13 does: 0.11 takes it for the root or fails later",
        empty_path,
    ),
    Known(
        "absolute-link",
        "an absolute symlink inside is followed inside",
        "as bwrap 0.12 does (RESOLVE_IN_ROOT): 0.11 looks for its target outside and fails",
        absolute_link,
    ),
    Known(
        "odd-destination",
        "the message when a destination with .. or a slash at its end is refused",
        "nsrun looks it up once, so it can stop at another step; both stop",
        odd_destination,
    ),
    Known(
        "climbing-out",
        "a destination that climbs by .. to the root or beyond is the new root",
        "as bwrap 0.12 does (RESOLVE_IN_ROOT): 0.11 ends up outside, or loses its way back",
        climbing_out,
    ),
    Known(
        "covered-mount",
        "mounts below a bind that another mount covers are restricted as well",
        "as bwrap 0.13 does: one recursive mount_setattr(2) instead of a remount for each",
        covered_mount,
    ),
    Known(
        "source-before-records",
        "no --info-fd or --json-status-fd record when a source is absent",
        "sources are resolved before the clone, so no child exists that could be named",
        source_before_records,
    ),
    Known(
        "unmapped-root",
        "the directory named when --userns-block-fd was answered without id maps",
        "nsrun needs no directory for its root, so the first one it fails at is the payload's",
        unmapped_root,
    ),
    Known(
        "pidns-one-line",
        "a failing --pidns says why in one line",
        "bwrap adds that it got no pid, which says nothing more",
        pidns_one_line,
    ),
    Known(
        "locked-first",
        "a lock file that can't be locked stops the command from running at all",
        "bwrap starts the command first and then kills it",
        locked_first,
    ),
    Known(
        "overlay-names",
        "names of an overlay's layers in its mount options",
        "bwrap mounts from below /oldroot; nsrun from the caller's own root",
        overlay_names,
    ),
    Known(
        "other-name",
        "prefix of messages under a name that is neither bwrap nor nsrun",
        "only the name bwrap stands for bwrap",
        other_name,
    ),
    Known(
        "version",
        "the version's number",
        "nsrun accepts newer options than the reference has",
        version_text,
    ),
    Known("usage", "the usage text after its first line", "nsrun has more options", usage_text),
)

OWN_NAME = Known("own-name", "prefix of messages", "called as nsrun, it says nsrun", own_prefix)


@dataclass(frozen=True)
class Verdict:
    unexpected: list[Divergence]
    applied: list[str]


def judge(
    divergences: list[Divergence], comparison: Comparison, known: tuple[Known, ...] = KNOWN
) -> Verdict:
    unexpected: list[Divergence] = []
    applied: list[str] = []
    for divergence in divergences:
        row = next((row for row in known if row.matches(divergence, comparison)), None)
        if row is None:
            unexpected.append(divergence)
        else:
            applied.append(row.name)
    return Verdict(unexpected, applied)


def compare(
    reference: Program,
    case: Case,
    expected: Result,
    actual: Result,
    known: tuple[Known, ...] = KNOWN,
) -> Verdict:
    return judge(diverge(expected, actual), Comparison(reference, case, expected, actual), known)
