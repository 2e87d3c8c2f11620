"""Combinations that nobody thought of: both programs must agree on them, too."""

from __future__ import annotations

import os

import pytest
from differences import compare
from harness import ROOT, USER, Bench, Case, Fd, Identity, Program
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

EXAMPLES = int(os.environ.get("NSRUN_HYPOTHESIS_EXAMPLES", "60"))
BOUNDED = settings(
    max_examples=EXAMPLES,
    deadline=None,
    # the same examples each time, unless somebody asked to look further
    derandomize="NSRUN_HYPOTHESIS_EXAMPLES" not in os.environ,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)

Words = tuple[str, ...]

SOURCES = st.sampled_from(
    [
        "{w}/file",
        "{w}/dir",
        "{w}/dir/sub",
        "{w}/link-file",
        "{w}/link-dir",
        "{w}/dangling",
        "{w}/nowhere",
        "{w}/empty",
        "{w}/ro",
        "{w}",
        "",
    ]
)
# the machine's own files: never writable, since root's chmod there would be real
HOST_SOURCES = st.sampled_from(["/usr", "/dev/null", "/proc", "/"])
NAMES = st.sampled_from(["a", "b", "c", "dir", "file", "link", ".."])
PLACES = st.lists(NAMES, min_size=1, max_size=3).map(lambda names: "/" + "/".join(names))
DESTINATIONS = st.one_of(
    PLACES,
    st.sampled_from(["/tmp", "/w/dir", "/w/new", "/dev/x", "/proc", "relative", "/a/", "//b"]),
)
MODES = st.sampled_from(["0700", "0755", "0000", "1777", "750", "4711", "9", ""])


def option(*names: str) -> st.SearchStrategy[Words]:
    return st.sampled_from(names).map(lambda name: (name,))


def with_word(name: str, values: st.SearchStrategy[str]) -> st.SearchStrategy[Words]:
    return values.map(lambda value: (name, value))


def with_two(
    names: tuple[str, ...], first: st.SearchStrategy[str], second: st.SearchStrategy[str]
) -> st.SearchStrategy[Words]:
    return st.tuples(st.sampled_from(names), first, second)


BINDS = st.one_of(
    with_two(
        ("--bind", "--ro-bind", "--dev-bind", "--bind-try", "--ro-bind-try", "--dev-bind-try"),
        SOURCES,
        DESTINATIONS,
    ),
    with_two(("--ro-bind", "--ro-bind-try"), HOST_SOURCES, DESTINATIONS),
)
MADE = st.one_of(
    with_word("--dir", DESTINATIONS),
    with_word("--tmpfs", DESTINATIONS),
    with_word("--remount-ro", DESTINATIONS),
    with_two(("--symlink",), st.sampled_from(["a", "/b", "../c", "link", ""]), DESTINATIONS),
    # --proc without a new pid namespace is the machine's own /proc
    with_two(("--chmod",), MODES, DESTINATIONS.filter(lambda place: place != "/proc")),
    with_two(
        ("--file", "--bind-data", "--ro-bind-data"),
        st.sampled_from(["{fd:a}", "{fd:b}", "{fd:c}", "88"]),
        DESTINATIONS,
    ),
)
NAMESPACES = option(
    "--unshare-user",
    "--unshare-pid",
    "--unshare-ipc",
    "--unshare-uts",
    "--unshare-net",
    "--unshare-cgroup",
    "--unshare-all",
    "--share-net",
    "--unshare-user-try",
    "--unshare-cgroup-try",
)
PROCESS = st.one_of(
    option(
        "--new-session",
        "--die-with-parent",
        "--clearenv",
        "--as-pid-1",
        "--disable-userns",
        "--level-prefix",
    ),
    with_word("--chdir", DESTINATIONS),
    with_word("--hostname", st.sampled_from(["h", "another.host", ""])),
    with_word("--uid", st.sampled_from(["0", "1000", "12345", "x"])),
    with_word("--gid", st.sampled_from(["0", "1000", "12346", "-1"])),
    with_word("--cap-add", st.sampled_from(["ALL", "CAP_CHOWN", "CAP_SYS_ADMIN", "CAP_NONE"])),
    with_word("--cap-drop", st.sampled_from(["ALL", "CAP_CHOWN", "CAP_SYS_PTRACE"])),
    with_word("--unsetenv", st.sampled_from(["HOME", "PATH", "A"])),
    with_two(
        ("--setenv",),
        st.sampled_from(["HOME", "PATH", "A", "B"]),
        st.sampled_from(["/", "/a", "{w}/home", ""]),
    ),
)
MODIFIERS = st.one_of(
    with_word("--perms", MODES), with_word("--size", st.sampled_from(["4096", "0x8000", "0", "z"]))
)
KERNEL = st.one_of(
    with_word("--proc", st.sampled_from(["/proc", "/a/proc"])),
    with_word("--dev", st.sampled_from(["/dev", "/a/dev"])),
)
ODDITIES = st.one_of(
    option("--nonsense", "--bind", "--"), with_word("--args", st.sampled_from(["{fd:e}", "89"]))
)

CLAUSES = st.one_of(
    BINDS,
    MADE,
    NAMESPACES,
    PROCESS,
    KERNEL,
    st.tuples(MODIFIERS, MADE).map(lambda pair: pair[0] + pair[1]),
)
SOUND = st.lists(CLAUSES, min_size=1, max_size=9)
DOUBTFUL = st.lists(st.one_of(CLAUSES, CLAUSES, MODIFIERS, ODDITIES), min_size=1, max_size=7)
IDENTITIES = st.sampled_from([ROOT, USER])
ARGUMENT_FILE = b"--dir\0/from-file\0--setenv\0F\0file\0"


def agree(
    bench: Bench, reference: Program, candidate: Program, clauses: list[Words], identity: Identity
) -> None:
    words = tuple(word for clause in clauses for word in clause)
    case = Case(
        "generated",
        ("--proc", "/proc", *words, "--ro-bind", "{obs}", "/obs", "--", "/obs"),
        fds={
            "a": Fd("file", b"alpha"),
            "b": Fd("pipe", b"beta"),
            "c": Fd("memfd"),
            "e": Fd("file", ARGUMENT_FILE),
        },
    )
    expected = bench.run(reference, case, identity)
    verdict = compare(reference, case, expected, bench.run(candidate, case, identity))
    assert not verdict.unexpected, "\n".join(
        [" ".join(case.argv), identity.name, *map(str, verdict.unexpected)]
    )


@pytest.mark.usefixtures("as_root")
@BOUNDED
@given(clauses=SOUND, identity=IDENTITIES)
@example(
    clauses=[("--bind", "{w}", "/w"), ("--tmpfs", "/w/dir"), ("--remount-ro", "/w")], identity=USER
)
def test_valid_combinations(
    bench: Bench, newest: Program, candidate: Program, clauses: list[Words], identity: Identity
) -> None:
    agree(bench, newest, candidate, clauses, identity)


@pytest.mark.usefixtures("as_root")
@BOUNDED
@given(clauses=DOUBTFUL, identity=IDENTITIES)
@example(clauses=[("--perms", "0700"), ("--bind", "{w}", "/w")], identity=ROOT)
def test_slightly_invalid_combinations(
    bench: Bench, newest: Program, candidate: Program, clauses: list[Words], identity: Identity
) -> None:
    agree(bench, newest, candidate, clauses, identity)
