"""The written corpus: every option, every error text, and how they interact.

Placeholders: {w} the fixture tree, {obs} the observer, {self} the program,
{selfdir} its directory, {d} the directory of all, {fd:NAME} a descriptor.
"""

from __future__ import annotations

import struct
from dataclasses import replace

from harness import ODD, Case, Fd

OBSERVE = ("--ro-bind", "{obs}", "/obs")
SEE = (*OBSERVE, "--", "/obs")
PROC = ("--proc", "/proc")
DEV = ("--dev", "/dev")
HOST = ("--ro-bind", "/", "/")
ROOT_ONLY = ("root",)
USER_ONLY = ("user",)

# The first version that has an option; Debian's 0.8 has --bind-fd, backported.
NEWER_OPTIONS = {
    "--argv0": (0, 9),
    "--overlay": (0, 11),
    "--overlay-src": (0, 11),
    "--tmp-overlay": (0, 11),
    "--ro-overlay": (0, 11),
    "--level-prefix": (0, 11),
}


def case(name: str, *argv: str, **more: object) -> Case:
    since = max((NEWER_OPTIONS.get(word, (0, 8)) for word in argv), default=(0, 8))
    return replace(Case(name, argv, since=since), **more)  # type: ignore[arg-type]


def see(name: str, *argv: str, **more: object) -> Case:
    """The payload observes, in a root of its own."""
    return case(name, *argv, *SEE, **more)


def look(name: str, *argv: str, **more: object) -> Case:
    """The same with /proc and /dev, so that all of it can be seen."""
    return case(name, *PROC, *DEV, *argv, *SEE, **more)


def do(name: str, options: tuple[str, ...], *action: str, **more: object) -> Case:
    """The payload does one of the observer's actions."""
    return case(name, *options, *OBSERVE, "--", "/obs", *action, **more)


# ---- seccomp programs ------------------------------------------------------


def bpf(*instructions: tuple[int, int, int, int]) -> bytes:
    return b"".join(struct.pack("HBBI", *instruction) for instruction in instructions)


ALLOW_ALL = bpf((0x06, 0, 0, 0x7FFF0000))


def deny(number: int, error: int) -> bytes:
    return bpf(
        (0x20, 0, 0, 0),
        (0x15, 0, 1, number),
        (0x06, 0, 0, 0x50000 | error),
        (0x06, 0, 0, 0x7FFF0000),
    )


NO_UNSHARE = deny(272, 1)
NO_SETHOSTNAME = deny(170, 38)
BAD_BPF = bpf((0x20, 0, 0, 0))


# ---- parsing ----------------------------------------------------------------

NO_ARGUMENT = (
    "--args",
    "--argv0",
    "--bind",
    "--bind-data",
    "--bind-fd",
    "--bind-try",
    "--block-fd",
    "--cap-add",
    "--cap-drop",
    "--chdir",
    "--chmod",
    "--dev",
    "--dev-bind",
    "--dev-bind-try",
    "--dir",
    "--file",
    "--gid",
    "--hostname",
    "--info-fd",
    "--json-status-fd",
    "--lock-file",
    "--mqueue",
    "--overlay",
    "--overlay-src",
    "--perms",
    "--pidns",
    "--proc",
    "--remount-ro",
    "--ro-bind",
    "--ro-bind-data",
    "--ro-bind-fd",
    "--ro-bind-try",
    "--ro-overlay",
    "--seccomp",
    "--add-seccomp-fd",
    "--setenv",
    "--size",
    "--symlink",
    "--sync-fd",
    "--tmp-overlay",
    "--tmpfs",
    "--uid",
    "--unsetenv",
    "--userns",
    "--userns-block-fd",
    "--userns2",
    "--exec-label",
    "--file-label",
)
TWO_ARGUMENTS = (
    "--bind",
    "--bind-try",
    "--dev-bind",
    "--dev-bind-try",
    "--ro-bind",
    "--ro-bind-try",
    "--bind-fd",
    "--ro-bind-fd",
    "--file",
    "--bind-data",
    "--ro-bind-data",
    "--symlink",
    "--setenv",
    "--chmod",
    "--overlay",
)
FD_OPTIONS = (
    "--args",
    "--sync-fd",
    "--block-fd",
    "--userns-block-fd",
    "--info-fd",
    "--json-status-fd",
    "--seccomp",
    "--add-seccomp-fd",
    "--userns",
    "--userns2",
    "--pidns",
)
FD_AND_PATH = ("--file", "--bind-data", "--ro-bind-data", "--bind-fd", "--ro-bind-fd")
BAD_NUMBERS = ("", "x", "-1", "1x", "0x1", " ", "99999999999999999999")
BAD_OCTALS = ("", "8", "x", "10000", "-1", "0x1ff", "07777x")


def parsing() -> list[Case]:
    return [
        case("nothing"),
        case("only-dashes", "--"),
        case("only-options", "--unshare-all"),
        case("help", "--help"),
        case("help-after-options", "--unshare-pid", "--help", "--nonsense"),
        case("help-needs-no-sense", "--bind", "{w}", "/w", "--help"),
        case("version", "--version"),
        case("version-later", "--unshare-pid", "--version"),
        case("version-then-nonsense", "--version", "--nonsense"),
        case("unknown", "--nonsense", "/obs"),
        case("unknown-short", "-h"),
        case("single-dash", "-"),
        case("abbreviated", "--unshare-al", "/obs"),
        case("equals", "--chdir=/", "/obs"),
        case("wrong-case", "--Bind", "/", "/", "/obs"),
        case("triple-dash", "---", "/obs"),
        case("empty-word", ""),
        case("empty-command", *HOST, ""),
        case("command-with-dashes", *OBSERVE, "/obs", "arguments", "--bind", "--", "-x", ""),
        case("two-double-dashes", *OBSERVE, "--", "--", "/obs"),
        case("command-after-dashes-like-option", *OBSERVE, "--", "--help"),
        *(case(f"no-argument{option}", option) for option in NO_ARGUMENT),
        *(case(f"no-argument-after{option}", "--unshare-pid", option) for option in NO_ARGUMENT),
        *(case(f"one-argument{option}", option, "1") for option in TWO_ARGUMENTS),
        case("two-arguments-overlay", "--overlay", "a", "b"),
        case("too-many-words", *("--unshare-pid",) * 9001),
        case("most-words", *("--unshare-pid",) * (9000 - len(SEE)), *SEE),
        case("one-word-more", *("--unshare-pid",) * (9000 - len(SEE) + 1), *SEE),
        see("level-prefix-unused", "--level-prefix"),
        case("level-prefix-error", "--level-prefix", "--nonsense"),
        see("level-prefix-warning", "--level-prefix", "--chdir", "/", "--chdir", "/"),
        see("level-prefix-late", "--chdir", "/", "--chdir", "/", "--level-prefix", "--chdir", "/"),
        case("level-prefix-exec", "--level-prefix", "/nowhere"),
        case("argv0-twice", "--argv0", "a", "--argv0", "b", *SEE),
        see("argv0", "--argv0", "another name"),
        see("argv0-empty", "--argv0", ""),
        case("argv0-own-name", "--nonsense", argv0="other"),
        case("argv0-usage", argv0="other"),
        case("argv0-with-path", "--help", argv0="/a/b/bwrap"),
    ]


def numbers() -> list[Case]:
    bad_fds = [
        case(f"bad-fd{option}-{place}", option, number, "/obs")
        for option in FD_OPTIONS
        for place, number in enumerate(BAD_NUMBERS)
    ]
    bad_pairs = [
        case(f"bad-fd{option}-{place}", option, number, "/x", "/obs")
        for option in FD_AND_PATH
        for place, number in enumerate(BAD_NUMBERS)
    ]
    ids = [
        case(f"bad-id{option}-{place}", "--unshare-user", option, number, "/obs")
        for option in ("--uid", "--gid")
        for place, number in enumerate(BAD_NUMBERS)
    ]
    octals = [
        case(f"bad-octal{option}-{place}", *words, *SEE)
        for place, number in enumerate(BAD_OCTALS)
        for option, words in (
            ("--perms", ("--perms", number, "--dir", "/x")),
            ("--chmod", ("--chmod", number, "/")),
        )
    ]
    sizes = [
        look(f"size-{place}", "--size", number, "--tmpfs", "/x")
        for place, number in enumerate(
            (
                "0",
                "",
                "x",
                "-1",
                "1",
                "4096",
                "0x10000",
                "010000",
                "1M",
                "9223372036854775807",
                "9223372036854775808",
                "18446744073709551615",
                "18446744073709551616",
                " 4096",
                "+4096",
            )
        )
    ]
    odd = [
        see("uid-with-blank", "--unshare-user", "--uid", " 7"),
        see("uid-with-plus", "--unshare-user", "--uid", "+7"),
        see("uid-long", "--unshare-user", "--uid", "4294967303"),
        see("uid-large", "--unshare-user", "--uid", "2147483647"),
        see("uid-too-large", "--unshare-user", "--uid", "4294967295"),
        see("uid-over-int", "--unshare-user", "--uid", "2147483648"),
    ]
    return [*bad_fds, *bad_pairs, *ids, *octals, *sizes, *odd]


def words(*parts: str) -> bytes:
    return "".join(f"{part}\0" for part in parts).encode("latin-1")


def argument_files() -> list[Case]:
    def with_file(name: str, content: bytes, *rest: str, kind: str = "file") -> Case:
        return case(
            f"args-{name}", "--args", "{fd:a}", *(rest or SEE), fds={"a": Fd(kind, content)}
        )

    return [
        with_file("empty", b""),
        with_file("memfd", words("--dir", "/made"), kind="memfd"),
        with_file("pipe", words("--dir", "/made"), kind="pipe"),
        with_file("no-final-nul", words("--dir")[:-1] + b"\0/made"),
        with_file("stops-at-word", words("--dir", "/made", "word", "--dir", "/not-made")),
        with_file("stops-at-dashes", words("--dir", "/made", "--", "--dir", "/not-made")),
        with_file("command-in-file", words("--dir", "/made", "/obs")),
        with_file("command-only-in-file", words(*OBSERVE, "/obs"), "--dir", "/more"),
        with_file("nested", words("--args", "20"), *SEE),
        with_file("unknown", words("--nonsense")),
        with_file("missing-argument", words("--dir")),
        with_file("missing-second", words("--bind", "/")),
        with_file("help", words("--help")),
        with_file("version", words("--version")),
        with_file("empty-words", b"\0\0"),
        with_file("perms-do-not-carry", words("--perms", "0711"), "--dir", "/made", *SEE),
        with_file("size-does-not-carry", words("--size", "4096"), "--tmpfs", "/made", *SEE),
        with_file("perms-before-carry", words("--dir", "/made"), *SEE),
        case(
            "args-perms-before",
            "--perms",
            "0711",
            "--args",
            "{fd:a}",
            "--dir",
            "/outer",
            *SEE,
            fds={"a": Fd("file", words("--dir", "/made"))},
        ),
        case(
            "args-overlay-src-does-not-carry",
            "--args",
            "{fd:a}",
            "--tmp-overlay",
            "/x",
            *SEE,
            fds={"a": Fd("file", words("--overlay-src", "/usr"))},
            since=(0, 11),
        ),
        case(
            "args-twice",
            "--args",
            "{fd:a}",
            "--dir",
            "/between",
            "--args",
            "{fd:b}",
            *SEE,
            fds={"a": Fd("file", words("--dir", "/one")), "b": Fd("pipe", words("--dir", "/two"))},
        ),
        case(
            "args-order",
            "--args",
            "{fd:a}",
            "--tmpfs",
            "/one",
            *SEE,
            fds={"a": Fd("file", words("--tmpfs", "/one", "--dir", "/one/hidden"))},
        ),
        case("args-not-open", "--args", "77", *SEE),
        case("args-directory", "--args", "{fd:a}", *SEE, fds={"a": Fd("open", path="{w}/dir")}),
        case("args-write-only", "--args", "{fd:a}", *SEE, fds={"a": Fd("write", path="{w}/file")}),
        case(
            "args-same-twice",
            "--args",
            "{fd:a}",
            "--args",
            "{fd:a}",
            *SEE,
            fds={"a": Fd("file", words("--dir", "/one"))},
        ),
        case("args-stdin", "--args", "0", *SEE, stdin=words("--dir", "/from-stdin")),
        case(
            "args-too-many",
            "--args",
            "{fd:a}",
            *SEE,
            fds={"a": Fd("file", words(*("--unshare-pid",) * 9001))},
        ),
        case(
            "args-many",
            "--args",
            "{fd:a}",
            *SEE,
            fds={
                "a": Fd("file", words(*(word for n in range(600) for word in ("--dir", f"/d{n}"))))
            },
        ),
        case(
            "args-setenv",
            "--args",
            "{fd:a}",
            *SEE,
            fds={"a": Fd("file", words("--setenv", "A", "b\nc"))},
        ),
        case(
            "args-webkit",
            "--args",
            "{fd:a}",
            "/obs",
            fds={"a": Fd("memfd", words(*OBSERVE, "--unshare-all", *PROC, *DEV))},
        ),
    ]


WARNED = (
    ("--chdir", "/", "/"),
    ("--sync-fd", "{fd:a}", "{fd:b}"),
    ("--block-fd", "{fd:a}", "{fd:b}"),
    ("--info-fd", "{fd:s}", "{fd:s}"),
    ("--json-status-fd", "{fd:s}", "{fd:s}"),
    ("--uid", "0", "0"),
    ("--gid", "0", "0"),
    ("--hostname", "one", "two"),
    ("--seccomp", "{fd:a}", "{fd:b}"),
)


def repeated() -> list[Case]:
    descriptors = {"a": Fd("file", ALLOW_ALL), "b": Fd("file", ALLOW_ALL), "s": Fd("sink")}
    warned = [
        look(
            f"twice{option}",
            "--unshare-user",
            "--unshare-uts",
            option,
            one,
            option,
            two,
            fds=descriptors,
        )
        for option, one, two in WARNED
    ]
    return [
        *warned,
        look("thrice-chdir", "--chdir", "/a", "--chdir", "/b", "--chdir", "/"),
        look("twice-hostname-order", "--unshare-uts", "--hostname", "a", "--hostname", "b"),
        look(
            "twice-userns-block-fd",
            "--unshare-user",
            "--info-fd",
            "{fd:s}",
            "--userns-block-fd",
            "{fd:a}",
            "--userns-block-fd",
            "{fd:b}",
            fds={**descriptors},
        ),
        case("twice-userns", "--userns", "1", "--userns", "x", *SEE),
        case("twice-pidns", "--pidns", "1", "--pidns", "x", *SEE),
        case("twice-userns2", "--userns2", "1", "--userns2", "x", *SEE),
        case("twice-exec-label", "--exec-label", "a", *SEE),
        case("twice-file-label", "--file-label", "a", *SEE),
        look(
            "repeated-flags",
            *("--unshare-pid",) * 2,
            *("--new-session",) * 2,
            *("--die-with-parent",) * 2,
        ),
        look(
            "warned-closed-fd",
            "--info-fd",
            "{fd:s}",
            "--info-fd",
            "{fd:t}",
            fds={"s": Fd("sink"), "t": Fd("sink")},
        ),
    ]


# ---- namespaces ----------------------------------------------------------------

NAMESPACE_OPTIONS = (
    "--unshare-user",
    "--unshare-user-try",
    "--unshare-ipc",
    "--unshare-pid",
    "--unshare-net",
    "--unshare-uts",
    "--unshare-cgroup",
    "--unshare-cgroup-try",
    "--unshare-all",
    "--share-net",
)


def namespaces() -> list[Case]:
    return [
        *(look(f"only{option}", option) for option in NAMESPACE_OPTIONS),
        *(see(f"bare{option}", option) for option in NAMESPACE_OPTIONS),
        see("bare"),
        look("plain"),
        look("all-share-net", "--unshare-all", "--share-net"),
        look("share-net-first", "--share-net", "--unshare-all"),
        look("net-share-net", "--unshare-net", "--share-net"),
        look("every-one", *NAMESPACE_OPTIONS[:8]),
        look("user-and-try", "--unshare-user", "--unshare-user-try"),
        look("pid-user", "--unshare-pid", "--unshare-user"),
        look("uid", "--unshare-user", "--uid", "1000"),
        look("gid", "--unshare-user", "--gid", "1000"),
        look("uid-gid", "--unshare-user", "--uid", "1000", "--gid", "1001"),
        look("uid-zero", "--unshare-user", "--uid", "0", "--gid", "0"),
        see("uid-no-dev", "--unshare-user", "--uid", "1000", *PROC),
        look("uid-all", "--unshare-all", "--uid", "1000", "--gid", "1000"),
        look("uid-order", "--uid", "1000", "--unshare-user"),
        look("uid-without-userns", "--uid", "1000"),
        look("gid-without-userns", "--gid", "1000"),
        look("uid-own-root", "--uid", "0", "--gid", "0"),
        look("uid-own-user", "--uid", "12345", "--gid", "12346"),
        look("hostname", "--unshare-uts", "--hostname", "sandbox"),
        look("hostname-all", "--unshare-all", "--hostname", "sandbox"),
        look("hostname-empty", "--unshare-uts", "--hostname", ""),
        look("hostname-longest", "--unshare-uts", "--hostname", "h" * 64),
        look("hostname-too-long", "--unshare-uts", "--hostname", "h" * 65),
        look("hostname-without-uts", "--hostname", "sandbox"),
        look(
            "hostname-before-failure",
            "--unshare-uts",
            "--hostname",
            "h" * 65,
            "--bind",
            "/nowhere",
            "/x",
        ),
        look("disable-userns", "--unshare-user", "--disable-userns"),
        look("disable-userns-all", "--unshare-all", "--disable-userns"),
        look("disable-userns-uid", "--unshare-user", "--disable-userns", "--uid", "1000"),
        look("disable-userns-try", "--unshare-user-try", "--disable-userns"),
        look("disable-userns-alone", "--disable-userns"),
        look("disable-assert", "--unshare-user", "--disable-userns", "--assert-userns-disabled"),
        look("assert-alone", "--assert-userns-disabled"),
        look("assert-user", "--unshare-user", "--assert-userns-disabled"),
        look("disable-userns-no-proc", "--unshare-user", "--disable-userns", "--tmpfs", "/proc"),
        see("disable-userns-bare", "--unshare-user", "--disable-userns"),
        look("disable-userns-caps", "--unshare-user", "--disable-userns", "--cap-add", "ALL"),
        case(
            "disable-userns-block",
            "--unshare-user",
            "--disable-userns",
            "--info-fd",
            "{fd:s}",
            "--userns-block-fd",
            "{fd:p}",
            *SEE,
            fds={"s": Fd("sink"), "p": Fd("pipe", b"x")},
        ),
        case("pid-host-proc", "--unshare-user", *PROC, *SEE),
        see("pid-1-without-proc", "--unshare-pid"),
        look("as-pid-1", "--unshare-pid", "--as-pid-1"),
        look("as-pid-1-all", "--unshare-all", "--as-pid-1"),
        look("as-pid-1-alone", "--as-pid-1"),
        look("as-pid-1-lock", "--unshare-pid", "--as-pid-1", "--lock-file", "/obs"),
        look(
            "as-pid-1-session", "--unshare-pid", "--as-pid-1", "--new-session", "--die-with-parent"
        ),
        look(
            "as-pid-1-sync",
            "--unshare-pid",
            "--as-pid-1",
            "--sync-fd",
            "{fd:a}",
            fds={"a": Fd("file", b"x")},
        ),
        look("share-net-alone", "--unshare-user", "--share-net"),
        look("net-user-caps", "--unshare-user", "--unshare-net", "--cap-add", "CAP_NET_ADMIN"),
    ]


def joined_namespaces() -> list[Case]:
    user, pid = {"n": Fd("namespace", path="user")}, {"n": Fd("namespace", path="pid")}
    both = {"n": Fd("namespace", path="user"), "m": Fd("namespace", path="user")}
    return [
        look("userns", "--userns", "{fd:n}", fds=user, holder="hold-user"),
        look(
            "userns-unshare-rest",
            "--userns",
            "{fd:n}",
            "--unshare-pid",
            "--unshare-ipc",
            "--unshare-net",
            fds=user,
            holder="hold-user",
        ),
        # 0.11.0 takes no notice of --userns 0: no reference here that does
        look(
            "userns-zero",
            "--userns",
            "{fd:n}",
            fds={"n": Fd("namespace", path="user", number=0)},
            holder="hold-user",
            since=(0, 12),
        ),
        look("userns-uid", "--userns", "{fd:n}", "--uid", "7", fds=user, holder="hold-user"),
        look(
            "userns-own-uid", "--userns", "{fd:n}", "--uid", "12345", fds=user, holder="hold-user"
        ),
        look(
            "userns-with-unshare",
            "--userns",
            "{fd:n}",
            "--unshare-user",
            fds=user,
            holder="hold-user",
        ),
        look(
            "userns-with-unshare-try",
            "--unshare-user-try",
            "--userns",
            "{fd:n}",
            fds=user,
            holder="hold-user",
        ),
        look(
            "userns-with-all", "--unshare-all", "--userns", "{fd:n}", fds=user, holder="hold-user"
        ),
        look("userns-not-a-namespace", "--userns", "{fd:n}", fds={"n": Fd("file", b"x")}),
        look(
            "userns-wrong-kind",
            "--userns",
            "{fd:n}",
            fds={"n": Fd("namespace", path="mnt")},
            holder="hold-user",
        ),
        look("userns-not-open", "--userns", "77"),
        look("userns-own", "--userns", "{fd:n}", fds={"n": Fd("open", path="/proc/self/ns/user")}),
        look(
            "userns-caps",
            "--userns",
            "{fd:n}",
            "--cap-add",
            "CAP_SYS_ADMIN",
            fds=user,
            holder="hold-user",
        ),
        look(
            "userns-disable", "--userns", "{fd:n}", "--disable-userns", fds=user, holder="hold-user"
        ),
        look(
            "userns2",
            "--userns",
            "{fd:n}",
            "--userns2",
            "{fd:m}",
            fds=both,
            holder="hold-user",
            lingers=True,
        ),
        look("userns2-alone", "--userns2", "{fd:n}", fds=user, holder="hold-user"),
        look(
            "userns2-not-a-namespace",
            "--userns2",
            "{fd:n}",
            fds={"n": Fd("file", b"x")},
            lingers=True,
        ),
        look("userns2-not-open", "--userns2", "77", lingers=True),
        look("pidns", "--pidns", "{fd:n}", fds=pid, holder="hold-pid", users=ROOT_ONLY),
        look(
            "pidns-nested",
            "--pidns",
            "{fd:n}",
            "--unshare-pid",
            fds=pid,
            holder="hold-pid",
            users=ROOT_ONLY,
        ),
        do(
            "pidns-status",
            ("--pidns", "{fd:n}", "--json-status-fd", "{fd:s}"),
            "exit",
            "7",
            fds={**pid, "s": Fd("sink")},
            holder="hold-pid",
            users=ROOT_ONLY,
        ),
        do(
            "pidns-session",
            ("--pidns", "{fd:n}", "--new-session", "--die-with-parent"),
            "signal",
            "15",
            fds=pid,
            holder="hold-pid",
            users=ROOT_ONLY,
        ),
        look(
            "pidns-refused",
            "--pidns",
            "{fd:n}",
            fds=pid,
            holder="hold-pid",
            users=USER_ONLY,
            lingers=True,
        ),
        look(
            "pidns-not-a-namespace", "--pidns", "{fd:n}", fds={"n": Fd("file", b"x")}, lingers=True
        ),
        look("pidns-not-open", "--pidns", "77", lingers=True),
        look(
            "pidns-userns",
            "--pidns",
            "{fd:n}",
            "--unshare-user",
            fds=pid,
            holder="hold-pid",
            users=ROOT_ONLY,
            lingers=True,
        ),
    ]


# ---- environment, directory, process ---------------------------------------------


def environment() -> list[Case]:
    return [
        see("setenv", "--setenv", "A", "1"),
        see("setenv-replace", "--setenv", "LANG", "x"),
        see("setenv-empty", "--setenv", "A", ""),
        see("setenv-many", "--setenv", "B", "1", "--setenv", "A", "2", "--setenv", "B", "3"),
        see("setenv-equals-in-value", "--setenv", "A", "x=y=z"),
        see("setenv-bad-name", "--setenv", "A=B", "1"),
        see("setenv-empty-name", "--setenv", "", "1"),
        see("unsetenv", "--unsetenv", "LANG"),
        see("unsetenv-absent", "--unsetenv", "NOWHERE"),
        see("unsetenv-bad-name", "--unsetenv", "A=B"),
        see("unsetenv-empty-name", "--unsetenv", ""),
        see("clearenv", "--clearenv"),
        see("clearenv-then-set", "--clearenv", "--setenv", "A", "1", "--setenv", "PATH", "/x"),
        see("set-then-clearenv", "--setenv", "A", "1", "--clearenv"),
        see("setenv-pwd", "--setenv", "PWD", "/elsewhere"),
        see("unsetenv-pwd", "--unsetenv", "PWD", env={"PWD": "/somewhere"}),
        see("inherited-pwd", env={"PWD": "/somewhere", "OLDPWD": "/before"}),
        see(
            "set-unset-set",
            "--setenv",
            "A",
            "1",
            "--unsetenv",
            "A",
            "--setenv",
            "A",
            "2",
            "--setenv",
            "Z",
            "9",
        ),
        see("unset-first", "--unsetenv", "PATH", "--setenv", "PATH", "/p"),
        see("setenv-late", *OBSERVE, "--setenv", "A", "1", "--dir", "/x", "--setenv", "B", "2"),
        see("odd-bytes", "--setenv", "A", "\u00e9 \n\t\"'"),
        see("no-environment", env={"PATH": None, "HOME": None, "LANG": None, "TERM": None}),
        look("environment-of-pid-1", "--unshare-pid", "--clearenv", "--setenv", "A", "1"),
        # commands are looked up inside, with the environment as it was made
        case("path-lookup", *HOST, "true"),
        case("path-lookup-set", *HOST, "--setenv", "PATH", "{w}", "shebang", "word"),
        case("path-lookup-nowhere", *HOST, "--setenv", "PATH", "/nowhere", "true"),
        case(
            "path-lookup-empty", *HOST, "--setenv", "PATH", "", "--chdir", "{w}", "shebang", "word"
        ),
        case("path-lookup-unset", *HOST, "--unsetenv", "PATH", "true"),
        case(
            "path-lookup-relative",
            *HOST,
            "--setenv",
            "PATH",
            ".",
            "--chdir",
            "{w}",
            "shebang",
            "word",
        ),
        case(
            "path-lookup-empty-element",
            *HOST,
            "--setenv",
            "PATH",
            "/nowhere::",
            "--chdir",
            "{w}",
            "shebang",
            "w",
        ),
        case(
            "path-lookup-inside",
            *OBSERVE,
            "--dir",
            "/b",
            "--setenv",
            "PATH",
            "/b:/",
            "obs",
            "arguments",
        ),
        case("path-lookup-not-executable", *HOST, "--setenv", "PATH", "{w}", "not-executable"),
        case("path-lookup-goes-on", *HOST, "--setenv", "PATH", "{w}:/usr/bin:/bin", "true"),
        case("path-lookup-directory", *HOST, "--setenv", "PATH", "{w}:{w}/dir", "sub"),
        case(
            "path-lookup-not-a-directory",
            *HOST,
            "--setenv",
            "PATH",
            "{w}/file:/usr/bin:/bin",
            "true",
        ),
        case("path-lookup-loop", *HOST, "--setenv", "PATH", "{w}/loop:/usr/bin", "true"),
        case("path-lookup-long", *HOST, "n" * 300),
        case(
            "path-lookup-script", *HOST, "--setenv", "PATH", "{w}:/usr/bin:/bin", "script", "word"
        ),
    ]


def directories() -> list[Case]:
    return [
        see("cwd-absent-home-absent"),
        see("cwd-absent-home-there", "--dir", "{w}/home"),
        see("cwd-there", "--bind", "{w}", "{w}"),
        see("cwd-made", "--dir", "{w}"),
        see("cwd-host", *HOST, "--dev", "/dev", "--tmpfs", "/tmp"),
        see("cwd-root", cwd="/"),
        see("cwd-link", "--bind", "{w}", "{w}", cwd="{w}/link-dir"),
        see("cwd-file-there", "--ro-bind", "{w}/file", "{w}"),
        see(
            "cwd-no-permission",
            "--bind",
            "{w}",
            "{w}",
            "--perms",
            "0000",
            "--dir",
            "/a",
            cwd="{w}/private",
        ),
        see("home-unset", env={"HOME": None}),
        see("home-empty", env={"HOME": ""}),
        see("home-relative", env={"HOME": "home"}),
        see("home-set-inside", "--dir", "/h", "--setenv", "HOME", "/h"),
        see("home-set-not-there", "--setenv", "HOME", "/h"),
        see("home-cleared", "--dir", "{w}/home", "--clearenv"),
        see("home-is-file", "--setenv", "HOME", "/obs"),
        see("chdir", "--dir", "/x", "--chdir", "/x"),
        see("chdir-before", "--chdir", "/x", "--dir", "/x"),
        see("chdir-absent", "--chdir", "/x"),
        see("chdir-file", "--chdir", "/obs"),
        see("chdir-relative", "--dir", "/x", "--chdir", "x"),
        see("chdir-relative-cwd", "--bind", "{w}", "{w}", "--chdir", "dir"),
        see("chdir-empty", "--chdir", ""),
        see("chdir-dots", "--dir", "/x/y", "--chdir", "/x/../x/./y//"),
        see("chdir-link", "--bind", "{w}", "/w", "--chdir", "/w/link-dir"),
        see("chdir-loop", "--bind", "{w}", "/w", "--chdir", "/w/loop"),
        see("chdir-no-permission", "--perms", "0000", "--dir", "/x", "--chdir", "/x"),
        see("chdir-root", "--chdir", "/"),
        see("chdir-relative-then-home", "--dir", "{w}/home", "--chdir", "dir"),
    ]


CAPS = (
    "ALL",
    "CAP_SYS_ADMIN",
    "cap_net_raw",
    "Cap_Setfcap",
    "CAP_CHOWN",
    "21",
    "cap_sys_admin,cap_chown",
    "",
    "x",
    "SYS_ADMIN",
    "CAP_CHECKPOINT_RESTORE",
    "64",
    "63",
    "cap_63",
    "all",
    "40",
    "0",
    "-1",
)


def capabilities() -> list[Case]:
    adds = [look(f"cap-add-{place}", "--cap-add", cap) for place, cap in enumerate(CAPS)]
    drops = [look(f"cap-drop-{place}", "--cap-drop", cap) for place, cap in enumerate(CAPS)]
    orders = [
        look("cap-drop-add", "--cap-drop", "ALL", "--cap-add", "CAP_CHOWN"),
        look("cap-add-drop", "--cap-add", "CAP_CHOWN", "--cap-drop", "ALL"),
        look("cap-add-all-drop-one", "--cap-add", "ALL", "--cap-drop", "CAP_CHOWN"),
        look("cap-user-all", "--unshare-user", "--cap-add", "ALL"),
        look(
            "cap-user-some",
            "--unshare-user",
            "--cap-drop",
            "ALL",
            "--cap-add",
            "CAP_SETFCAP",
            "--cap-add",
            "CAP_CHOWN",
        ),
        look("cap-user-drop", "--unshare-user", "--cap-drop", "ALL"),
        look("cap-user-drop-one", "--unshare-user", "--cap-drop", "CAP_CHOWN"),
        look("cap-user-uid", "--unshare-user", "--uid", "1000", "--cap-add", "CAP_CHOWN"),
        look(
            "cap-user-uid-zero",
            "--unshare-user",
            "--uid",
            "0",
            "--gid",
            "0",
            "--cap-add",
            "CAP_CHOWN",
        ),
        look("cap-setfcap-zero", "--unshare-user", "--uid", "0", "--cap-add", "CAP_SETFCAP"),
        look("cap-all-pid", "--unshare-all", "--cap-add", "ALL"),
        look("cap-as-pid-1", "--unshare-all", "--as-pid-1", "--cap-add", "CAP_CHOWN"),
        look("cap-sys-ptrace", "--unshare-all", "--cap-add", "CAP_SYS_PTRACE"),
        look("cap-drop-sys-admin-proc", "--unshare-pid", "--cap-drop", "CAP_SYS_ADMIN"),
    ]
    inherited = [
        look("bounding-cut", launch=("bounding", "ff"), users=ROOT_ONLY),
        look(
            "bounding-cut-user", "--unshare-user", launch=("bounding", "fffffff"), users=ROOT_ONLY
        ),
        look(
            "bounding-cut-drop",
            "--cap-drop",
            "CAP_CHOWN",
            launch=("bounding", "1fffeffffff"),
            users=ROOT_ONLY,
        ),
        look(
            "bounding-cut-add",
            "--cap-add",
            "CAP_SYS_BOOT",
            launch=("bounding", "2fffff"),
            users=ROOT_ONLY,
        ),
        look(
            "bounding-cut-drop-all",
            "--cap-drop",
            "ALL",
            launch=("bounding", "2fffff"),
            users=ROOT_ONLY,
        ),
        look("bounding-no-admin", launch=("bounding", "2001ff"), users=ROOT_ONLY),
        look("bounding-empty", launch=("bounding", "0"), users=ROOT_ONLY),
        look("bounding-empty-user", "--unshare-user", launch=("bounding", "0"), users=ROOT_ONLY),
    ]
    # root under another number: what is root's own in /proc can be written, and is covered
    called = [
        case(
            f"called-1234-{name}",
            *PROC,
            *words,
            *SEE,
            launch=("called", "1234"),
            users=ROOT_ONLY,
        )
        for name, words in {
            "plain": ["--unshare-pid"],
            "shared-pid": [],
            "dev": [*DEV, "--unshare-pid"],
            "zero": ["--unshare-pid", "--uid", "0", "--gid", "0"],
            "nobody": ["--unshare-pid", "--uid", "65534"],
            "dev-nobody": [*DEV, "--unshare-pid", "--uid", "65534"],
        }.items()
    ]
    return [*adds, *drops, *orders, *inherited, *called]


# Not 17: before 0.11.1 bwrap waits for ever if it inherits an ignored SIGCHLD.
IGNORABLE = ("2", "10", "13", "15", "34", "64")
SIGNALS = ("2", "10", "13", "15", "17", "34", "64")


def processes() -> list[Case]:
    pid = ("--unshare-pid",)
    return [
        look("new-session", "--new-session"),
        look("new-session-pid", "--new-session", "--unshare-pid"),
        look("die-with-parent", "--die-with-parent"),
        look("die-with-parent-pid", "--die-with-parent", "--unshare-pid"),
        look("die-with-parent-user", "--die-with-parent", "--unshare-user", "--cap-add", "ALL"),
        look("die-with-parent-uid", "--die-with-parent", "--unshare-all", "--uid", "1000"),
        look("die-with-parent-session", "--die-with-parent", "--new-session", "--unshare-all"),
        look("lock-dies", "--die-with-parent", "--new-session", "--lock-file", "/obs"),
        *(look(f"blocked-{number}", *pid, launch=("block", number)) for number in SIGNALS),
        *(look(f"blocked-no-pid-{number}", launch=("block", number)) for number in SIGNALS),
        *(look(f"ignored-{number}", *pid, launch=("ignore", number)) for number in IGNORABLE),
        *(look(f"ignored-no-pid-{number}", launch=("ignore", number)) for number in IGNORABLE),
        do("blocked-sigchld-exit", pid, "exit", "7", launch=("block", "17")),
        *(
            look(
                f"umask-{mask}",
                "--dir",
                "/x",
                "--file",
                "{fd:a}",
                "/f",
                "--symlink",
                "a",
                "/l",
                launch=("umask", mask),
                fds={"a": Fd("file", b"x")},
            )
            for mask in ("0", "22", "77", "777", "27")
        ),
        look("nice", launch=("nice", "5")),
        look("files-limit", launch=("files", "450")),
        look("closed-stdin", launch=("close", "0")),
        look("closed-stderr", launch=("close", "2")),
        look("closed-stdin-stderr", "--unshare-pid", launch=("close", "0", "close", "2")),
        do(
            "closed-all",
            pid,
            "write-file",
            "/tmp/x",
            "y",
            launch=("close", "0", "close", "1", "close", "2"),
        ),
        do("closed-all-exit", (), "exit", "9", launch=("close", "0", "close", "1", "close", "2")),
        look(
            "closed-stdin-file",
            "--file",
            "{fd:a}",
            "/x",
            launch=("close", "0"),
            fds={"a": Fd("file", b"x")},
        ),
        *(do(f"exit-{code}", (), "exit", str(code)) for code in (0, 1, 2, 126, 127, 128, 200, 255)),
        *(do(f"exit-pid-{code}", pid, "exit", str(code)) for code in range(0, 256, 15)),
        *(
            do(f"signal-{number}", (), "signal", number)
            for number in ("1", "6", "9", "11", "15", "34", "64")
        ),
        *(
            do(f"signal-pid-{number}", pid, "signal", number)
            for number in ("1", "2", "6", "9", "11", "15", "34", "64")
        ),
        *(
            do(f"signal-as-pid-1-{number}", (*pid, "--as-pid-1"), "signal", number)
            for number in ("9", "15")
        ),
        do("exit-as-pid-1", (*pid, "--as-pid-1"), "exit", "77"),
        do("orphan", pid, "orphan", "60", "late", "3"),
        do("orphan-no-pid", (), "orphan", "60", "late", "3"),
        do("orphan-dies", (*pid, "--die-with-parent"), "orphan", "300", "late", "3"),
        do("orphan-as-pid-1", (*pid, "--as-pid-1"), "orphan", "300", "late", "3"),
        do("orphan-locked", ("--lock-file", "/obs"), "orphan", "60", "late", "3"),
        do("stdin", (), "cat-fd", "0", stdin=b"through\n"),
        do("stdin-pid", pid, "cat-fd", "0", stdin=b"through\n" * 9000),
        case("exec-absent", "/nowhere"),
        case("exec-absent-pid", *pid, "/nowhere"),
        case("exec-absent-relative", *OBSERVE, "nowhere/x"),
        case("exec-directory", "--dir", "/x", "/x"),
        case("exec-directory-pid", *pid, "--dir", "/x", "/x"),
        case("exec-not-executable", *HOST, "{w}/not-executable"),
        case("exec-not-a-directory", *OBSERVE, "/obs/x"),
        case("exec-no-interpreter", *HOST, "{w}/bad-interpreter"),
        case("exec-garbage", *HOST, "{w}/garbage"),
        case("exec-empty-file", *HOST, "{w}/locked"),
        case("exec-script", *HOST, "{w}/script", "word"),
        case("exec-script-pid", *pid, *HOST, "{w}/script", "word"),
        case("exec-script-argv0", "--argv0", "named", *HOST, "{w}/script", "word"),
        case("exec-script-no-shell", "--ro-bind", "{w}/script", "/script", "/script"),
        case("exec-blank", *HOST, "{w}/blank"),
        see(
            "bind-odd-name",
            *PROC,
            "--bind",
            f"{{w}}/{ODD}",
            f"/{ODD}/x\ty",
            "--remount-ro",
            f"/{ODD}/x\ty",
        ),
        case("exec-shebang", *HOST, "{w}/shebang", "word"),
        case("exec-loop", *HOST, "{w}/loop"),
        case("exec-long", *HOST, "/" + "n" * 300),
        case(
            "exec-status", *OBSERVE, "--json-status-fd", "{fd:s}", "/nowhere", fds={"s": Fd("sink")}
        ),
        case(
            "exec-relative",
            "--ro-bind",
            "{obs}",
            "/b/obs",
            "--chdir",
            "/b",
            "./obs",
            "arguments",
            "word",
        ),
        look(
            "descriptors",
            fds={
                "a": Fd("file", b"abc"),
                "b": Fd("pipe", b"x"),
                "c": Fd("open", path="{w}/dir"),
                "d": Fd("path", path="/"),
                "e": Fd("memfd", b"x", number=100),
            },
        ),
        look(
            "descriptors-pid",
            "--unshare-pid",
            fds={"a": Fd("file", b"abc"), "c": Fd("open", path="/", number=3)},
        ),
        look(
            "low-descriptors",
            "--unshare-all",
            fds={c: Fd("file", b"x", number=n) for n, c in enumerate("abcdefgh", 3)},
        ),
        look("terminal", "--unshare-pid", tty=True),
        look("terminal-session", "--unshare-pid", "--new-session", tty=True),
        look("terminal-no-pid", tty=True),
        look("terminal-all", "--unshare-all", "--die-with-parent", tty=True),
        see("terminal-no-proc", *DEV, tty=True),
    ]


# ---- monitoring -----------------------------------------------------------------


def monitoring() -> list[Case]:
    sink, lock = {"s": Fd("sink")}, ("--bind", "{w}", "/w")
    return [
        *(
            look(f"info{place}", *options, "--info-fd", "{fd:s}", fds=sink)
            for place, options in enumerate(INFO_SETS)
        ),
        *(
            do(f"status{place}", (*options, "--json-status-fd", "{fd:s}"), "exit", "9", fds=sink)
            for place, options in enumerate(INFO_SETS)
        ),
        do("status-signal", ("--json-status-fd", "{fd:s}"), "signal", "9", fds=sink),
        do(
            "status-signal-pid",
            ("--unshare-pid", "--json-status-fd", "{fd:s}"),
            "signal",
            "15",
            fds=sink,
        ),
        do(
            "status-as-pid-1",
            ("--unshare-pid", "--as-pid-1", "--json-status-fd", "{fd:s}"),
            "exit",
            "4",
            fds=sink,
        ),
        case("status-no-exec", "--unshare-pid", "--json-status-fd", "{fd:s}", "/nowhere", fds=sink),
        case(
            "status-bind-fails",
            "--json-status-fd",
            "{fd:s}",
            "--bind",
            "{w}/file",
            "/x/y",
            "--dir",
            "/x/y",
            *SEE,
            fds=sink,
        ),
        case(
            "status-source-absent",
            "--json-status-fd",
            "{fd:s}",
            "--bind",
            "/nowhere",
            "/x",
            *SEE,
            fds=sink,
        ),
        case(
            "info-source-absent", "--info-fd", "{fd:s}", "--bind", "/nowhere", "/x", *SEE, fds=sink
        ),
        look(
            "info-and-status",
            "--info-fd",
            "{fd:s}",
            "--json-status-fd",
            "{fd:t}",
            fds={"s": Fd("sink"), "t": Fd("sink")},
        ),
        look(
            "info-and-status-same",
            "--info-fd",
            "{fd:s}",
            "--json-status-fd",
            "{fd:s}",
            fds=sink,
            lingers=True,
        ),
        look("info-file", "--unshare-all", "--info-fd", "{fd:s}", fds={"s": Fd("sinkfile")}),
        look("info-not-open", "--info-fd", "77", lingers=True),
        look("status-not-open", "--json-status-fd", "77", lingers=True),
        look(
            "info-read-only",
            "--info-fd",
            "{fd:a}",
            fds={"a": Fd("open", path="{w}/file")},
            lingers=True,
        ),
        look(
            "status-read-only",
            "--json-status-fd",
            "{fd:a}",
            fds={"a": Fd("open", path="{w}/file")},
            lingers=True,
        ),
        look("info-stdout", "--info-fd", "1"),
        look("block-eof", "--block-fd", "{fd:p}", fds={"p": Fd("pipe")}),
        look("block-byte", "--block-fd", "{fd:p}", fds={"p": Fd("pipe", b"xyz")}),
        look("block-file", "--block-fd", "{fd:p}", "--unshare-all", fds={"p": Fd("file", b"xyz")}),
        look("block-not-open", "--block-fd", "77"),
        look("sync", "--sync-fd", "{fd:a}", fds={"a": Fd("file", b"x")}),
        look("sync-pid", "--unshare-pid", "--sync-fd", "{fd:a}", fds={"a": Fd("file", b"x")}),
        look("sync-not-open", "--sync-fd", "77"),
        look("sync-pipe", "--sync-fd", "{fd:s}", fds={"s": Fd("sink")}),
        look("sync-session", "--sync-fd", "{fd:a}", "--new-session", fds={"a": Fd("file", b"x")}),
        look("lock", *lock, "--lock-file", "/w/locked"),
        look("lock-pid", *lock, "--unshare-pid", "--lock-file", "/w/locked"),
        look("lock-two", *lock, "--lock-file", "/w/locked", "--lock-file", "/w/file"),
        look("lock-read-only", "--ro-bind", "{w}", "/w", "--lock-file", "/w/locked"),
        look("lock-relative", *lock, "--chdir", "/w", "--lock-file", "w/locked"),
        look(
            "userns-block",
            "--unshare-user",
            "--info-fd",
            "{fd:s}",
            "--userns-block-fd",
            "{fd:p}",
            fds={"s": Fd("sink"), "p": Fd("pipe", b"x")},
        ),
        look(
            "userns-block-pid",
            "--unshare-all",
            "--info-fd",
            "{fd:s}",
            "--userns-block-fd",
            "{fd:p}",
            fds={"s": Fd("sink"), "p": Fd("pipe", b"x")},
        ),
        look(
            "userns-block-no-user",
            "--info-fd",
            "{fd:s}",
            "--userns-block-fd",
            "{fd:p}",
            fds={"s": Fd("sink"), "p": Fd("pipe", b"x")},
        ),
        look(
            "userns-block-no-info",
            "--unshare-user",
            "--userns-block-fd",
            "{fd:p}",
            fds={"p": Fd("pipe", b"x")},
        ),
        look(
            "userns-block-uid",
            "--unshare-user",
            "--uid",
            "1",
            "--info-fd",
            "{fd:s}",
            "--userns-block-fd",
            "{fd:p}",
            fds={"s": Fd("sink"), "p": Fd("pipe", b"x")},
        ),
    ]


INFO_SETS = (
    (),
    ("--unshare-pid",),
    ("--unshare-user",),
    ("--unshare-ipc",),
    ("--unshare-net",),
    ("--unshare-uts",),
    ("--unshare-cgroup",),
    ("--unshare-all",),
    ("--unshare-all", "--share-net"),
    ("--unshare-all", "--uid", "5"),
)


# ---- files and mounts -------------------------------------------------------------

BINDS = ("--bind", "--ro-bind", "--dev-bind", "--bind-try", "--ro-bind-try", "--dev-bind-try")
SOURCES = (
    "{w}/file",
    "{w}/dir",
    "{w}/empty",
    "{w}/link-file",
    "{w}/link-dir",
    "{w}/abs-link",
    "{w}/dangling",
    "{w}/loop",
    "{w}/fifo",
    "{w}/private",
    "{w}/private/secret",
    "{w}/nowhere",
    "{w}/file/below",
    "",
    ".",
    "dir",
    "dir/../file",
    "/dev/null",
    "/dev",
    "/proc",
    "/",
    "{w}/with space, comma",
    "/nowhere/at/all",
    "/dev/shm",
)


def binds() -> list[Case]:
    sources = [
        see(f"source{option}-{place}", *PROC, option, source, "/x")
        for option in BINDS
        for place, source in enumerate(SOURCES)
    ]
    places = [
        see(
            f"place{option}-{place}",
            *PROC,
            "--dir",
            "/made",
            "--symlink",
            "made",
            "/link",
            "--symlink",
            "/made",
            "/abs",
            "--symlink",
            "nowhere",
            "/dangling",
            "--symlink",
            "loop",
            "/loop",
            "--ro-bind-data",
            "{fd:a}",
            "/data",
            option,
            source,
            destination,
            fds={"a": Fd("file", b"x")},
        )
        for option, source in (("--bind", "{w}/dir"), ("--ro-bind", "{w}/file"))
        for place, destination in enumerate(
            (
                "/made",
                "/made/below",
                "/link",
                "/link/below",
                "/abs",
                "/abs/below/it",
                "/data",
                "/data/below",
                "/new/deep/er",
                "new",
                "",
                "/",
                "//made//x/",
                "/made/../y",
                "/../z",
                "/.",
                "/made/.",
                "/new/",
                "/..",
                "/proc/self",
                "/obs",
            )
        )
    ]
    return [*sources, *places, *bind_combinations(), *bind_descriptors()]


def bind_combinations() -> list[Case]:
    return [
        look("host", "--bind", "/", "/"),
        look("host-ro", *HOST),
        look("host-dev", "--dev-bind", "/", "/"),
        case("host-ro-bare", *HOST, "--", "{obs}"),
        case("host-rw-bare", "--bind", "/", "/", "--", "{obs}"),
        case("host-dev-bare", "--dev-bind", "/", "/", "--", "{obs}"),
        see("host-dev-only", "--dev-bind", "/dev", "/dev"),
        see("host-sys", "--ro-bind", "/sys", "/sys", *PROC),
        look(
            "nested-binds",
            "--bind",
            "{w}",
            "/w",
            "--ro-bind",
            "{w}/dir",
            "/w/dir",
            "--bind",
            "{w}/dir/sub",
            "/w/dir/sub",
        ),
        look("covered", "--bind", "{w}", "/w", "--tmpfs", "/w/dir", "--ro-bind", "{w}", "/w"),
        look("ro-then-rw", "--ro-bind", "{w}", "/w", "--bind", "{w}", "/w"),
        look("same-place-thrice", *("--bind", "{w}/dir", "/x") * 3),
        look("file-over-file", "--ro-bind", "{w}/file", "/x", "--bind", "{w}/other", "/x"),
        look("file-over-dir", "--dir", "/x", "--bind", "{w}/file", "/x"),
        look("dir-over-file", "--ro-bind", "{w}/file", "/x", "--bind", "{w}/dir", "/x"),
        look("below-a-file", "--ro-bind", "{w}/file", "/x", "--dir", "/x/y"),
        look("below-read-only", "--ro-bind", "{w}", "/w", "--dir", "/w/new"),
        look("below-read-only-bind", "--ro-bind", "{w}", "/w", "--bind", "{w}/dir", "/w/new"),
        look("below-read-only-there", "--ro-bind", "{w}", "/w", "--bind", "{w}/dir", "/w/empty"),
        look("creates-on-host", "--bind", "{w}", "/w", "--ro-bind", "/dev/null", "/w/absent"),
        look("creates-dir-on-host", "--bind", "{w}", "/w", "--tmpfs", "/w/a/b"),
        look("creates-parents-on-host", "--bind", "{w}", "/w", "--ro-bind", "{w}/file", "/w/p/q/r"),
        look("null-over-file", "--bind", "{w}", "/w", "--ro-bind", "/dev/null", "/w/file"),
        look("null-dev-bind", "--dev-bind", "/dev/null", "/x"),
        look("null-bind", "--bind", "/dev/null", "/x"),
        look("through-host-link", "--bind", "{w}", "/w", "--tmpfs", "/w/link-dir"),
        look(
            "file-through-host-link",
            "--bind",
            "{w}",
            "/w",
            "--ro-bind",
            "{w}/other",
            "/w/link-file",
        ),
        look("deep-tmpfs", "--tmpfs", "/a/b/c", "--bind", "{w}/dir", "/a/b/c/d/e"),
        look(
            "many", *(word for n in range(150) for word in ("--ro-bind", "{w}/file", f"/many/{n}"))
        ),
        look(
            "many-in-host",
            *HOST,
            *(word for n in range(60) for word in ("--ro-bind", "{w}/dir", "/mnt")),
        ),
        look("remount-bind", "--bind", "{w}", "/w", "--remount-ro", "/w"),
        look("remount-root", "--remount-ro", "/"),
        look("remount-root-before", "--remount-ro", "/", "--dir", "/x"),
        look("remount-dir", "--dir", "/x", "--remount-ro", "/x"),
        look("remount-absent", "--remount-ro", "/x/y"),
        look("remount-dev", "--remount-ro", "/dev"),
        look("remount-proc", "--remount-ro", "/proc"),
        look("remount-tmpfs", "--tmpfs", "/x", "--remount-ro", "/x"),
        look(
            "remount-not-submounts",
            "--bind",
            "{w}",
            "/w",
            "--tmpfs",
            "/w/dir",
            "--remount-ro",
            "/w",
        ),
        look("remount-link", "--tmpfs", "/x", "--symlink", "x", "/y", "--remount-ro", "/y"),
        look("remount-trailing", "--tmpfs", "/x", "--remount-ro", "/x/"),
        look("remount-dev-bind", "--dev-bind", "/dev", "/x", "--remount-ro", "/x"),
        look("remount-file", "--bind", "{w}/file", "/f", "--remount-ro", "/f"),
        look("remount-empty", "--remount-ro", ""),
        look("remount-twice", "--tmpfs", "/x", *("--remount-ro", "/x") * 2),
        look("order-error-source-first", "--dir", "/obs/x", "--bind", "/nowhere", "/x"),
        look("order-error-two-sources", "--bind", "/nowhere-1", "/x", "--bind", "/nowhere-2", "/x"),
        look(
            "order-dest-error-then-source", "--chmod", "0700", "/absent", "--bind", "/nowhere", "/x"
        ),
    ]


def bind_descriptors() -> list[Case]:
    def with_fd(name: str, option: str, spec: Fd, *more: str) -> Case:
        return look(f"{name}{option}", *more, option, "{fd:a}", "/x", fds={"a": spec})

    specs = {
        "dir": Fd("open", path="{w}/dir"),
        "dir-path": Fd("path", path="{w}/dir"),
        "file": Fd("open", path="{w}/file"),
        "file-path": Fd("path", path="{w}/file"),
        "write-file": Fd("write", path="{w}/file"),
        "unlinked": Fd("file", b"x"),
        "pipe": Fd("pipe", b"x"),
        "memfd": Fd("memfd", b"x"),
        "root": Fd("path", path="/"),
        "link": Fd("path", path="{w}/link-dir"),
        "fifo": Fd("path", path="{w}/fifo"),
        "null": Fd("open", path="/dev/null"),
        "odd-name": Fd("open", path="{w}/with space, comma"),
    }
    return [
        *(
            with_fd(f"bind-fd-{name}", option, spec)
            for name, spec in specs.items()
            for option in ("--bind-fd", "--ro-bind-fd")
        ),
        look("bind-fd-not-open", "--bind-fd", "77", "/x"),
        look(
            "bind-fd-same-twice",
            "--bind-fd",
            "{fd:a}",
            "/x",
            "--bind-fd",
            "{fd:a}",
            "/y",
            fds={"a": specs["dir"]},
        ),
        look(
            "bind-fd-two",
            "--bind-fd",
            "{fd:a}",
            "/x",
            "--ro-bind-fd",
            "{fd:b}",
            "/y/z",
            fds={"a": specs["dir"], "b": specs["file"]},
        ),
    ]


def made_files() -> list[Case]:
    data = {"a": Fd("file", b"some data\n")}
    kinds = {
        "tmpfs": ("--tmpfs",),
        "dir": ("--dir",),
        "mqueue": ("--mqueue",),
        "proc": ("--proc",),
        "dev": ("--dev",),
        "file": ("--file", "{fd:a}"),
        "bind-data": ("--bind-data", "{fd:a}"),
        "ro-bind-data": ("--ro-bind-data", "{fd:a}"),
        "symlink": ("--symlink", "target"),
    }
    destinations = (
        "/x",
        "/x/y/z",
        "/made",
        "/made/x",
        "/obs",
        "/obs/x",
        "/link",
        "/link/x",
        "/dangling",
        "/loop",
        "x",
        "",
        "/",
        "/x/",
        "/made/../y",
        "/data",
        "/data/x",
        "/file",
    )
    placed = [
        look(
            f"made-{kind}-{place}",
            "--dir",
            "/made",
            "--symlink",
            "made",
            "/link",
            "--symlink",
            "nowhere",
            "/dangling",
            "--symlink",
            "loop",
            "/loop",
            "--bind-data",
            "{fd:b}",
            "/data",
            "--file",
            "{fd:c}",
            "/file",
            *OBSERVE,
            "--unshare-ipc",
            *option,
            destination,
            fds={**data, "b": Fd("file", b"first"), "c": Fd("file", b"second")},
            # 0.8 does not look at what lies where a link is to be made
            since=(0, 11) if kind == "symlink" else (0, 8),
        )
        for kind, option in kinds.items()
        for place, destination in enumerate(destinations)
    ]
    permitted = [
        look(f"perms-{mode}-{kind}", "--perms", mode, *option, "/p/q/r", fds=data)
        for mode in ("0", "0700", "0750", "0755", "0770", "0777", "1777", "6755", "0005", "0050")
        for kind, option in kinds.items()
        if kind in ("tmpfs", "dir", "file", "bind-data", "ro-bind-data")
    ]
    refused = [
        look(f"perms-before-{kind}", "--perms", "0700", *option, "/p", fds=data)
        for kind, option in kinds.items()
        if kind in ("mqueue", "proc", "dev", "symlink")
    ]
    return [*placed, *permitted, *refused, *modifiers(), *more_files(data)]


def modifiers() -> list[Case]:
    """--perms and --size are for the next option only."""
    flags = (
        "--unshare-pid",
        "--setenv A 1",
        "--bind {w} /x",
        "--chmod 0700 /",
        "--remount-ro /",
        "--hostname x",
        "--uid 0",
        "--chdir /",
        "--lock-file /obs",
        "--cap-drop ALL",
        "--new-session",
        "--symlink a /b",
        "--overlay-src /usr",
        "--seccomp 0",
        "--level-prefix",
        "--clearenv",
        "--die-with-parent",
        "--file {fd:a} /f",
        "--dir /d",
        "--args {fd:e}",
        "--size 4096",
        "--perms 0700",
    )
    fds = {"a": Fd("file", b"x"), "e": Fd("file", b"")}
    followed = [
        case(
            f"{modifier.split()[0]}-then-{place}",
            *modifier.split(),
            *flag.split(),
            "--tmpfs",
            "/t",
            *SEE,
            fds=fds,
            since=(0, 11) if "overlay" in flag or "level" in flag else (0, 8),
        )
        for modifier in ("--perms 0711", "--size 8192")
        for place, flag in enumerate(flags)
    ]
    return [
        *followed,
        look("perms-size-tmpfs", "--perms", "0700", "--size", "65536", "--tmpfs", "/x"),
        look("size-perms-tmpfs", "--size", "65536", "--perms", "0700", "--tmpfs", "/x"),
        look("perms-only-next", "--perms", "0700", "--dir", "/x", "--dir", "/y"),
        look("size-only-next", "--size", "65536", "--tmpfs", "/x", "--tmpfs", "/y"),
        look("size-dir", "--size", "65536", "--dir", "/x"),
        case("perms-dangling", *PROC, *OBSERVE, "--perms", "0700", "--", "/obs"),
        case("size-dangling", *PROC, *OBSERVE, "--size", "4096", "--", "/obs"),
        case("perms-dangling-command", *PROC, *OBSERVE, "--perms", "0700", "/obs"),
        case("overlay-src-dangling", *OBSERVE, "--overlay-src", "/usr", "/obs"),
        case("perms-then-help", "--perms", "0700", "--help"),
        case("perms-then-version", "--perms", "0700", "--version"),
        case("perms-then-unknown", "--perms", "0700", "--nonsense"),
    ]


def more_files(data: dict[str, Fd]) -> list[Case]:
    w = ("--bind", "{w}", "/w")
    return [
        look("file-not-open", "--file", "77", "/x"),
        look("file-directory-fd", "--file", "{fd:a}", "/x", fds={"a": Fd("open", path="{w}/dir")}),
        look(
            "file-write-only-fd", "--file", "{fd:a}", "/x", fds={"a": Fd("write", path="{w}/file")}
        ),
        look("data-not-open", "--bind-data", "77", "/x"),
        look(
            "data-directory-fd",
            "--ro-bind-data",
            "{fd:a}",
            "/x",
            fds={"a": Fd("open", path="{w}/dir")},
        ),
        look("file-pipe", "--file", "{fd:a}", "/x", fds={"a": Fd("pipe", b"piped")}),
        look("data-pipe", "--ro-bind-data", "{fd:a}", "/x", fds={"a": Fd("pipe", b"piped")}),
        look("file-empty", "--file", "{fd:a}", "/x", fds={"a": Fd("memfd")}),
        look(
            "file-large",
            "--file",
            "{fd:a}",
            "/x",
            fds={"a": Fd("memfd", b"0123456789abcdef" * 40000)},
        ),
        look(
            "data-large",
            "--bind-data",
            "{fd:a}",
            "/x",
            fds={"a": Fd("memfd", b"0123456789abcdef" * 40000)},
        ),
        do("file-read-back", ("--file", "{fd:a}", "/x"), "read-file", "/x", fds=data),
        do("data-read-back", ("--ro-bind-data", "{fd:a}", "/x"), "read-file", "/x", fds=data),
        do("data-writable", ("--bind-data", "{fd:a}", "/x"), "write-file", "/x", "y", fds=data),
        do("data-read-only", ("--ro-bind-data", "{fd:a}", "/x"), "write-file", "/x", "y", fds=data),
        do("root-writable", (), "write-file", "/x", "y"),
        do("root-read-only", ("--remount-ro", "/"), "write-file", "/x", "y"),
        do("bind-writable", w, "write-file", "/w/new", "y"),
        do("bind-read-only", ("--ro-bind", "{w}", "/w"), "write-file", "/w/new", "y"),
        look("file-on-host", *w, "--file", "{fd:a}", "/w/made", fds=data),
        look("file-on-host-there", *w, "--file", "{fd:a}", "/w/file", fds=data),
        look("file-on-host-link", *w, "--file", "{fd:a}", "/w/link-file", fds=data),
        look("data-on-host", *w, "--ro-bind-data", "{fd:a}", "/w/made", fds=data),
        look("dir-on-host", *w, "--dir", "/w/made/deep", "--perms", "0711", "--dir", "/w/dir"),
        look(
            "symlink-on-host",
            *w,
            "--symlink",
            "file",
            "/w/made",
            "--symlink",
            "dir",
            "/w/link-dir",
            since=(0, 11),
        ),
        look("symlink-same", "--symlink", "a", "/l", "--symlink", "a", "/l", since=(0, 11)),
        look("symlink-other", "--symlink", "a", "/l", "--symlink", "b", "/l", since=(0, 11)),
        look("symlink-over-dir", "--dir", "/l", "--symlink", "a", "/l", since=(0, 11)),
        look("symlink-longer", "--symlink", "abc", "/l", "--symlink", "ab", "/l", since=(0, 11)),
        look("symlink-empty", "--symlink", "", "/l"),
        look("chmod-dir", "--dir", "/x", "--chmod", "0700", "/x"),
        look("chmod-root", "--chmod", "0700", "/"),
        look("chmod-absent", "--chmod", "0700", "/x/y"),
        look("chmod-link", "--dir", "/x", "--symlink", "x", "/l", "--chmod", "1711", "/l"),
        look("chmod-dangling", "--symlink", "x", "/l", "--chmod", "0700", "/l"),
        look("chmod-file", "--file", "{fd:a}", "/x", "--chmod", "4755", "/x", fds=data),
        look("chmod-read-only", "--ro-bind", "{w}", "/w", "--chmod", "0700", "/w/dir"),
        look("chmod-on-host", *w, "--chmod", "0700", "/w/dir"),
        look("chmod-tmpfs", "--tmpfs", "/x", "--chmod", "1777", "/x"),
        look("chmod-empty", "--chmod", "0700", ""),
        look("chmod-nothing", "--chmod", "0", "/dev"),
        look("dir-twice", "--dir", "/x", "--perms", "0700", "--dir", "/x"),
        look("dir-through-link", "--dir", "/x", "--symlink", "/x", "/l", "--dir", "/l/y"),
        look("proc-twice", "--unshare-pid", "--proc", "/proc2"),
        look("dev-twice", "--dev", "/dev2"),
        see("proc-elsewhere", "--proc", "/p", "--unshare-all"),
        see("dev-elsewhere", *PROC, "--dev", "/d/e/v", "--unshare-all"),
        see("dev-no-proc", *DEV),
        see("dev-first", *DEV, *PROC),
        see("dev-over-host", *HOST, *DEV, *PROC),
        see("proc-only-user", *PROC, "--unshare-user"),
        see("proc-only-pid", *PROC, "--unshare-pid"),
        see("proc-user-pid", *PROC, "--unshare-pid", "--unshare-user"),
        see("proc-bind-host", "--ro-bind", "/proc", "/proc", "--unshare-pid"),
        see("mqueue", *PROC, "--mqueue", "/mq"),
        see("mqueue-ipc", *PROC, "--mqueue", "/mq", "--unshare-ipc"),
        look("tmpfs-over-root", "--tmpfs", "/", *DEV, *OBSERVE),
        look("tmpfs-tmp-run", "--tmpfs", "/tmp", "--tmpfs", "/run", "--dir", "/run/user/1000"),
        look("stat-all", "--tmpfs", "/t", "--size", "40960", "--tmpfs", "/s"),
        case(
            "no-proc-stat",
            "--size",
            "40960",
            "--tmpfs",
            "/s",
            "--ro-bind",
            "{w}",
            "/w",
            *OBSERVE,
            "/obs",
            "--stat",
            "/",
            "--stat",
            "/s",
            "--stat",
            "/w",
            "--stat",
            "/nowhere",
        ),
        case("tree-of-bind", "--bind", "{w}/dir", "/w", *OBSERVE, "/obs", "--tree", "/w"),
    ]


def overlays() -> list[Case]:
    low = ("--overlay-src", "{w}/low1", "--overlay-src", "{w}/low2")
    tree = ("--tree", "/o")

    def lay(name: str, *options: str) -> Case:
        return case(name, *PROC, *options, *OBSERVE, "--", "/obs", *tree)

    return [
        lay("overlay", *low, "--overlay", "{w}/rw", "{w}/ovl", "/o"),
        lay("overlay-one", *low[:2], "--overlay", "{w}/rw", "{w}/ovl", "/o/deep"),
        lay("tmp-overlay", *low, "--tmp-overlay", "/o"),
        lay("tmp-overlay-one", *low[:2], "--tmp-overlay", "/o"),
        lay("tmp-overlay-two", *low, "--tmp-overlay", "/o", *low[:2], "--tmp-overlay", "/o2"),
        lay("ro-overlay", *low, "--ro-overlay", "/o"),
        lay("ro-overlay-one", *low[:2], "--ro-overlay", "/o"),
        lay("overlay-none", "--overlay", "{w}/rw", "{w}/ovl", "/o"),
        lay("tmp-overlay-none", "--tmp-overlay", "/o"),
        lay("ro-overlay-none", "--ro-overlay", "/o"),
        lay("overlay-src-then-bind", *low, "--bind", "{w}", "/o"),
        lay("overlay-src-then-perms", *low, "--perms", "0700", "--tmp-overlay", "/o"),
        lay("perms-then-overlay-src", "--perms", "0700", *low, "--tmp-overlay", "/o"),
        lay("overlay-src-absent", "--overlay-src", "/nowhere", "--tmp-overlay", "/o"),
        lay("overlay-rw-absent", *low, "--overlay", "/nowhere", "{w}/ovl", "/o"),
        lay("overlay-work-absent", *low, "--overlay", "{w}/rw", "/nowhere", "/o"),
        lay("overlay-overlapping", *low, "--overlay", "{w}/rw", "{w}/rw", "/o"),
        lay("overlay-same-lower", *low[:2], *low[:2], "--ro-overlay", "/o"),
        lay("overlay-file-lower", "--overlay-src", "{w}/file", "--tmp-overlay", "/o"),
        lay(
            "overlay-odd-name",
            "--overlay-src",
            f"{{w}}/{ODD}",
            "--overlay-src",
            "{w}/low1",
            "--ro-overlay",
            "/o",
        ),
        lay("overlay-odd-upper", *low, "--overlay", f"{{w}}/{ODD}", "{w}/ovl", "/o"),
        lay("overlay-odd-place", *low, "--tmp-overlay", f"/o/{ODD}"),
        lay("overlay-over-host", "--bind", "{w}", "/o", *low, "--tmp-overlay", "/o/dir"),
        lay("overlay-user", "--unshare-user", *low, "--tmp-overlay", "/o"),
        lay("overlay-remount", *low, "--tmp-overlay", "/o", "--remount-ro", "/o"),
        do(
            "overlay-write",
            (*low, "--overlay", "{w}/rw", "{w}/ovl", "/o"),
            "write-file",
            "/o/new",
            "written",
            since=(0, 11),
        ),
        do(
            "overlay-change",
            (*low, "--overlay", "{w}/rw", "{w}/ovl", "/o"),
            "write-file",
            "/o/one",
            "new",
            since=(0, 11),
        ),
        do(
            "ro-overlay-write",
            (*low, "--ro-overlay", "/o"),
            "write-file",
            "/o/new",
            "written",
            since=(0, 11),
        ),
        do(
            "tmp-overlay-write",
            (*low, "--tmp-overlay", "/o"),
            "write-file",
            "/o/one",
            "new",
            since=(0, 11),
        ),
    ]


def lockdown() -> list[Case]:
    def filters(*contents: bytes) -> dict[str, Fd]:
        return {name: Fd("file", content) for name, content in zip("abcd", contents, strict=False)}

    return [
        look("seccomp", "--seccomp", "{fd:a}", fds=filters(ALLOW_ALL)),
        look("seccomp-deny", "--seccomp", "{fd:a}", fds=filters(NO_UNSHARE)),
        look("seccomp-pid", "--unshare-pid", "--seccomp", "{fd:a}", fds=filters(NO_UNSHARE)),
        look(
            "seccomp-all",
            "--unshare-all",
            "--seccomp",
            "{fd:a}",
            "--cap-add",
            "ALL",
            fds=filters(NO_SETHOSTNAME),
        ),
        look(
            "seccomp-as-pid-1",
            "--unshare-pid",
            "--as-pid-1",
            "--seccomp",
            "{fd:a}",
            fds=filters(NO_UNSHARE),
        ),
        look("seccomp-pipe", "--seccomp", "{fd:a}", fds={"a": Fd("pipe", ALLOW_ALL)}),
        look("seccomp-empty", "--seccomp", "{fd:a}", fds=filters(b"")),
        look("seccomp-odd-length", "--seccomp", "{fd:a}", fds=filters(b"12345")),
        look("seccomp-invalid", "--seccomp", "{fd:a}", fds=filters(BAD_BPF)),
        look("seccomp-not-open", "--seccomp", "77"),
        look("seccomp-directory", "--seccomp", "{fd:a}", fds={"a": Fd("open", path="{w}/dir")}),
        look(
            "seccomp-invalid-pid",
            "--unshare-pid",
            "--seccomp",
            "{fd:a}",
            fds=filters(BAD_BPF),
            racy_stderr=True,
        ),
        look("add-seccomp", "--add-seccomp-fd", "{fd:a}", fds=filters(NO_UNSHARE)),
        look(
            "add-seccomp-two",
            "--add-seccomp-fd",
            "{fd:a}",
            "--add-seccomp-fd",
            "{fd:b}",
            fds=filters(NO_UNSHARE, NO_SETHOSTNAME),
        ),
        look(
            "add-seccomp-pid",
            "--unshare-pid",
            "--add-seccomp-fd",
            "{fd:a}",
            fds=filters(NO_UNSHARE),
        ),
        look("add-seccomp-odd", "--add-seccomp-fd", "{fd:a}", fds=filters(b"1234567")),
        look("add-seccomp-empty", "--add-seccomp-fd", "{fd:a}", fds=filters(b"")),
        look("add-seccomp-not-open", "--add-seccomp-fd", "77"),
        look(
            "add-seccomp-directory",
            "--add-seccomp-fd",
            "{fd:a}",
            fds={"a": Fd("open", path="{w}/dir")},
        ),
        look("add-seccomp-invalid", "--add-seccomp-fd", "{fd:a}", fds=filters(BAD_BPF)),
        look(
            "add-seccomp-same-twice",
            "--add-seccomp-fd",
            "{fd:a}",
            "--add-seccomp-fd",
            "{fd:a}",
            fds=filters(ALLOW_ALL),
        ),
        look(
            "seccomp-then-add",
            "--seccomp",
            "{fd:a}",
            "--add-seccomp-fd",
            "{fd:b}",
            fds=filters(ALLOW_ALL, ALLOW_ALL),
        ),
        look(
            "add-then-seccomp",
            "--add-seccomp-fd",
            "{fd:a}",
            "--seccomp",
            "{fd:b}",
            fds=filters(ALLOW_ALL, ALLOW_ALL),
        ),
        look(
            "seccomp-status",
            "--seccomp",
            "{fd:a}",
            "--json-status-fd",
            "{fd:s}",
            fds={**filters(ALLOW_ALL), "s": Fd("sink")},
        ),
        case("seccomp-no-exec", "--seccomp", "{fd:a}", *SEE, fds=filters(deny(59, 1))),
        case(
            "seccomp-no-exec-status",
            "--seccomp",
            "{fd:a}",
            "--json-status-fd",
            "{fd:s}",
            *SEE,
            fds={**filters(deny(59, 13)), "s": Fd("sink")},
        ),
        look("exec-label", "--exec-label", "x"),
        look("file-label", "--file-label", "x"),
    ]


# ---- the argvs of real clients -------------------------------------------------------

USR = ("--ro-bind", "/usr", "/usr", "--ro-bind", "/etc", "/etc")
LINKS = tuple(
    word
    for name in ("bin", "lib", "lib64", "sbin")
    for word in ("--symlink", f"usr/{name}", f"/{name}")
)
BOUND = tuple(
    word
    for name in ("bin", "lib", "lib64", "sbin")
    for word in ("--ro-bind-try", f"/{name}", f"/{name}")
)


def cowork(*links: str) -> tuple[str, ...]:
    return (
        "--tmpfs",
        "/",
        *USR,
        *DEV,
        *PROC,
        "--tmpfs",
        "/tmp",
        "--tmpfs",
        "/run",
        *links,
        "--dir",
        "{w}/home",
        "--dir",
        "/sessions/x",
        "--dir",
        "/sessions/x/mnt",
        "--bind",
        "{w}/dir",
        "/sessions/x/mnt/proj",
        "--chdir",
        "/sessions/x/mnt/proj",
        "--unshare-pid",
        "--die-with-parent",
        "--new-session",
    )


def clients() -> list[Case]:
    codex = (
        "--new-session",
        "--die-with-parent",
        *HOST,
        *DEV,
        "--bind",
        "{w}",
        "{w}",
        "--ro-bind",
        "{w}/dir",
        "{w}/dir",
        "--ro-bind",
        "/dev/null",
        "{w}/.codex",
        "--unshare-user",
        "--unshare-pid",
        "--unshare-net",
        *PROC,
        "--argv0",
        "codex-linux-sandbox",
        "--chdir",
        "{w}",
    )
    runtime = (
        "--new-session",
        "--die-with-parent",
        "--unshare-net",
        "--bind",
        "{w}/rw",
        "{w}/rw",
        *HOST,
        "--setenv",
        "HTTP_PROXY",
        "http://localhost:3128",
        "--bind",
        "{w}",
        "{w}",
        "--ro-bind",
        "{w}/file",
        "{w}/file",
        "--tmpfs",
        "{w}/private",
        "--ro-bind",
        "/dev/null",
        "{w}/other",
        *DEV,
        "--unshare-pid",
        *PROC,
    )
    flatpak = words(
        *USR,
        *LINKS,
        *PROC,
        "--unshare-pid",
        *DEV,
        "--unshare-ipc",
        "--unshare-net",
        "--tmpfs",
        "/tmp",
        "--dir",
        "/app",
        "--dir",
        "/run/user/1000",
        "--ro-bind-data",
        "20",
        "/.flatpak-info",
        "--symlink",
        "../run",
        "/var/run",
        "--seccomp",
        "22",
        "--setenv",
        "XDG_RUNTIME_DIR",
        "/run/user/1000",
        "--sync-fd",
        "23",
        "--info-fd",
        "24",
        "--perms",
        "0700",
        "--dir",
        "/run/flatpak",
        "--cap-drop",
        "ALL",
        "--chmod",
        "0750",
        "/app",
        *OBSERVE,
        "--remount-ro",
        "/",
        "--die-with-parent",
    )
    webkit = words(
        "--die-with-parent",
        "--unshare-pid",
        "--unshare-uts",
        "--unshare-net",
        "--ro-bind",
        "/usr",
        "/usr",
        *LINKS,
        "--ro-bind-try",
        "/nowhere",
        "/nowhere",
        *DEV,
        *PROC,
        "--tmpfs",
        "/tmp",
        "--unsetenv",
        "TMPDIR",
        "--dir",
        "/run/user",
        "--ro-bind-fd",
        "21",
        "/app",
        "--seccomp",
        "22",
        "--info-fd",
        "23",
        *OBSERVE,
    )
    nested_inner = (*HOST, *PROC, *DEV, "--unshare-all", "--cap-drop", "ALL", "--", "{obs}")
    return [
        case("cowork-links", *cowork(*LINKS), *SEE),
        case("cowork-binds", *cowork(*BOUND), *SEE),
        case(
            "cowork-sh",
            *cowork(*LINKS),
            "--",
            "sh",
            "-c",
            "pwd; id -u; ls -a / /dev /sessions/x/mnt/proj; stat -c '%n %A %u %g' /* /run /tmp",
        ),
        case("codex", *codex, *SEE),
        case("sandbox-runtime", *runtime, *SEE),
        case(
            "sandbox-runtime-sh",
            *runtime,
            "--",
            "/bin/sh",
            "-c",
            "echo ok; cat {w}/file; cat {w}/other; echo x > {w}/made",
        ),
        case(
            "flatpak",
            "--args",
            "{fd:args}",
            "--",
            "/obs",
            fds={
                "data": Fd("file", b"[Application]\n"),
                "args": Fd("memfd", flatpak),
                "filter": Fd("memfd", NO_UNSHARE),
                "sync": Fd("pipe"),
                "info": Fd("sink"),
            },
        ),
        case(
            "webkit",
            "--args",
            "{fd:args}",
            "--",
            "/obs",
            fds={
                "args": Fd("memfd", webkit),
                "app": Fd("path", path="{w}/dir"),
                "filter": Fd("memfd", ALLOW_ALL),
                "info": Fd("sinkfile"),
            },
        ),
        case(
            "thumbnailer",
            "--ro-bind",
            "/usr",
            "/usr",
            "--ro-bind-try",
            "/etc/ld.so.cache",
            "/etc/ld.so.cache",
            *LINKS,
            *PROC,
            *DEV,
            "--chdir",
            "/",
            "--setenv",
            "GIO_USE_VFS",
            "local",
            "--unshare-all",
            "--die-with-parent",
            "--setenv",
            "TMPDIR",
            "/tmp",
            "--bind",
            "{w}/rw",
            "/tmp",
            "--ro-bind",
            "{w}/file",
            "/tmp/in",
            "--seccomp",
            "{fd:a}",
            *SEE,
            fds={"a": Fd("file", ALLOW_ALL)},
        ),
        case("capsh", *HOST, *PROC, *DEV, "/sbin/capsh", "--print"),
        case(
            "nested", *HOST, *PROC, *DEV, "--unshare-user", "--unshare-pid", "{self}", *nested_inner
        ),
        case(
            "nested-own-exe",
            *HOST,
            *PROC,
            *DEV,
            "--unshare-all",
            "{self}",
            *HOST,
            "--unshare-user",
            *PROC,
            "/proc/self/exe",
            "--tree",
            "/nowhere",
        ),
        case(
            "nested-bare",
            *HOST,
            "--dev",
            "/dev",
            "--unshare-user",
            "--unshare-pid",
            "--proc",
            "/proc",
            "{self}",
            *nested_inner,
        ),
        case(
            "nested-thrice",
            *HOST,
            *PROC,
            *DEV,
            "--unshare-all",
            "{self}",
            *HOST,
            *PROC,
            *DEV,
            "--unshare-all",
            "{self}",
            *nested_inner,
        ),
        case(
            "nested-setfcap",
            *HOST,
            *PROC,
            *DEV,
            "--unshare-all",
            "--uid",
            "0",
            "--cap-add",
            "CAP_SETFCAP",
            "--cap-add",
            "CAP_SYS_ADMIN",
            "{self}",
            *nested_inner,
        ),
        case(
            "nested-disabled",
            *HOST,
            *PROC,
            *DEV,
            "--unshare-all",
            "--disable-userns",
            "{self}",
            "--unshare-user",
            *HOST,
            "--",
            "{obs}",
        ),
        case(
            "shell-pipeline",
            *HOST,
            *PROC,
            *DEV,
            "--unshare-all",
            "/bin/sh",
            "-c",
            "echo a | cat | tr a b; exit 5",
        ),
        case(
            "shell-background",
            *HOST,
            *PROC,
            *DEV,
            "--unshare-pid",
            "/bin/sh",
            "-c",
            "(sleep .05; echo late) & exit 3",
        ),
        case(
            "device-use",
            *HOST,
            *PROC,
            *DEV,
            "--unshare-all",
            "/bin/sh",
            "-c",
            "echo x > /dev/null; head -c4 /dev/zero | wc -c; cat /dev/fd/0; "
            "echo e > /dev/stderr; mktemp -p /dev/shm -u y",
        ),
        case("device-use-bound", *HOST, "/bin/sh", "-c", "echo x > /dev/null"),
        case(
            "device-use-dev-bound",
            "--dev-bind",
            "/",
            "/",
            "/bin/sh",
            "-c",
            "echo x > /dev/null && echo ok",
        ),
    ]


def shared_host() -> list[Case]:
    """The same on a host whose mounts are shared, as systemd leaves them."""
    chosen = {
        "plain",
        "host-ro",
        "host",
        "host-dev",
        "nested-binds",
        "many-in-host",
        "source--bind-20",
        "cowork-binds",
        "codex",
        "sandbox-runtime",
        "host-sys",
        "remount-bind",
        "only--unshare-all",
        "tmpfs-over-root",
        "nested",
    }
    pool = [*namespaces(), *binds(), *made_files(), *clients()]
    return [
        replace(one, name=f"shared-{one.name}", holder="hold-shared")
        for one in pool
        if one.name in chosen
    ]


def whole() -> list[Case]:
    return [
        *parsing(),
        *numbers(),
        *argument_files(),
        *repeated(),
        *namespaces(),
        *joined_namespaces(),
        *environment(),
        *directories(),
        *capabilities(),
        *processes(),
        *monitoring(),
        *binds(),
        *made_files(),
        *overlays(),
        *lockdown(),
        *clients(),
        *shared_host(),
    ]


CORPUS = tuple(whole())
