"""Deny lists: what they keep, against programs that know of them; and what they can't."""

from __future__ import annotations

import errno
import logging
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hostlib import becomes, build
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cowork_nsrun import (
    Bind,
    Dev,
    Dir,
    Namespace,
    NsrunError,
    Pool,
    RemountReadOnly,
    Sandbox,
    SpecError,
    Symlink,
    Tmpfs,
    popen,
    run,
)
from cowork_nsrun.cli import main
from cowork_nsrun.denies import PLACEHOLDER_MODE
from cowork_nsrun.spec import PROTECTED

InPython = Callable[[Callable[[], Any]], Any]
LIMIT = 60
TESTS_ATTACKER = Path(__file__).parent.parent / "hostile" / "attacker.c"


@pytest.fixture
def place(open_directory: Path, request: pytest.FixtureRequest) -> Path:
    """A project that any user may write to."""
    name = "".join(c if c.isalnum() else "-" for c in request.node.name)
    top = open_directory / f"denies-{name}"
    for directory in (top, top / ".git", top / ".git" / "hooks", top / "sub", top / "sub" / "deep"):
        directory.mkdir()
        directory.chmod(0o777)
    for file in ("secret", ".git/config", ".git/hooks/old", "sub/deep/key", "plain"):
        (top / file).write_text(f"content of {file}")
        (top / file).chmod(0o666)
    return top


def tree(top: Path) -> dict[str, str]:
    """Every name with its kind and content, as the host has it."""
    found = {}
    for path in sorted(top.rglob("*")):
        if path.is_symlink():
            found[str(path.relative_to(top))] = f"-> {os.readlink(path)}"
        else:
            found[str(path.relative_to(top))] = path.read_text() if path.is_file() else "directory"
    return found


def workspace(top: Path, **changes: Any) -> Sandbox:
    return Sandbox.workspace(top).replace(**changes)


def attempts(spec: Sandbox, script: str) -> dict[str, int]:
    """Each line "NAME COMMAND" of the script by itself; what the command ended with."""
    words = []
    for line in filter(None, map(str.strip, script.splitlines())):
        name, _, command = line.partition(" ")
        words.append(f"( {command} ) >/dev/null 2>&1; echo {name} $?")
    result = run(["bash", "-c", "\n".join(words)], spec, text=True, timeout=LIMIT)
    assert result.returncode == 0, result
    return {name: int(code) for name, code in (line.split() for line in result.stdout.splitlines())}


def failed(spec: Sandbox, script: str) -> set[str]:
    return {name for name, code in attempts(spec, script).items() if code}


# --- writing ------------------------------------------------------------------------------

WRITE = """
    append echo evil >> .git/config
    truncate : > .git/config
    replace echo evil > new && mv new .git/config
    unlink rm -f .git/config
    mode chmod 777 .git/config
    times touch .git/config
    by-link ln -s .git/config alias && echo evil >> alias
    hard ln .git/config other
    by-root echo evil >> /proc/self/root$PWD/.git/config
    by-cwd echo evil >> /proc/self/cwd/.git/config
    by-dots echo evil >> sub/../.git/config
    make echo evil > .git/hooks/pre-commit
    make-dir mkdir .git/hooks/d
    inside echo evil >> .git/hooks/old
    remove-dir rm -r .git/hooks
    move-it mv .git/hooks .git/other
    move-parent mv .git .other
    exchange python3 -c 'import os; os.rename(".git", ".gone")'
    link-over rm -rf .git/hooks; ln -s /tmp .git/hooks && test -L .git/hooks
    mount mount --bind sub .git/hooks
    unmount umount .git/hooks
    own-unmount unshare -Urm umount .git/hooks
    own-bind unshare -Urm sh -c 'umount -l .git/hooks; mount --bind sub .git/hooks && echo > .git/hooks/x && test -e sub/x'
    own-remount unshare -Urm sh -c 'mount -o remount,bind,rw .git/hooks && echo > .git/hooks/x'
"""  # noqa: E501
FINE = """
    others echo 1 > .git/HEAD
    plain echo 2 >> plain
    new mkdir -p sub/new && mv sub/new sub/newer
    readable cat .git/config .git/hooks/old
"""


def test_denied_writing(in_python: InPython, place: Path) -> None:
    before = tree(place)
    spec = workspace(place, deny_write=(f"{place}/.git/config", f"{place}/.git/hooks"))
    # what a bind of its own covers is written elsewhere: in a namespace that nobody else sees
    named = {line.split()[0] for line in WRITE.strip().splitlines()}
    assert in_python(lambda: failed(spec, WRITE)) >= named - {"own-bind"}
    assert in_python(lambda: failed(spec, FINE)) == set()
    after = tree(place)
    denied = {name for name in before if name.startswith((".git/config", ".git/hooks"))}
    assert {name: after.get(name) for name in denied} == {name: before[name] for name in denied}
    assert not {name for name in after if name.startswith(".git/hooks")} - denied


@pytest.mark.parametrize(
    "line", [line for line in WRITE.strip().splitlines() if "mount" not in line],
    ids=lambda line: line.split()[0],
)  # fmt: skip
def test_control_of_denied_writing(place: Path, line: str) -> None:
    assert failed(workspace(place), line) == set()


ABSENT = """
    create echo evil > .vscode
    mkdir mkdir .vscode
    tasks mkdir -p .vscode && echo evil > .vscode/tasks.json
    move mkdir d && echo evil > d/tasks.json && mv -T d .vscode && test -e .vscode/tasks.json
    link ln -s sub .vscode && test -L .vscode
    away mv .vscode gone
    remove rmdir .vscode
    nested mkdir -p .claude && echo evil > .claude/settings.json
    unmount unshare -Urm umount .vscode
"""


def test_what_is_not_there_does_not_come_into_being(in_python: InPython, place: Path) -> None:
    before = tree(place)
    spec = workspace(place, deny_write=(f"{place}/.vscode", f"{place}/.claude/settings.json"))
    named = {line.split()[0] for line in ABSENT.strip().splitlines()}
    assert in_python(lambda: failed(spec, ABSENT)) >= named - {"mkdir"} - {"d"}
    after = tree(place)
    after.pop("d", None), after.pop("d/tasks.json", None)
    # and the host never hears of it
    assert after == before


def test_control_of_what_is_not_there(place: Path) -> None:
    lines = [line for line in ABSENT.strip().splitlines() if "mount" not in line]
    for line in lines:
        if line.split()[0] in {"create", "tasks", "link", "nested"}:
            assert failed(workspace(place), line) == set()
            subprocess.run(["rm", "-rf", place / ".vscode", place / ".claude"], check=True)


def test_a_project_is_protected_and_git_goes_on(in_python: InPython, place: Path) -> None:
    subprocess.run(["rm", "-rf", place / ".git"], check=True)

    def work() -> tuple[set[str], set[str], str]:
        git = "git -c user.name=n -c user.email=e -c safe.directory=*"
        run(["git", "init", "-q", "."], workspace(place)).check()
        spec = workspace(place).protect()
        script = f"""
            add {git} add -A
            commit {git} commit -q -m first
            branch {git} checkout -q -b other
            status test -z "$({git} status --porcelain)"
        """
        evil = "\n".join(
            f"n{i} echo evil >> {name} || mkdir -p {name} && echo evil > {name}/x"
            for i, name in enumerate(PROTECTED)
        )
        seen = run(["sh", "-c", f"{git} status"], spec, text=True).stderr
        return failed(spec, script), failed(spec, evil), seen

    wrong, stopped, seen = in_python(work)
    assert wrong == set()
    assert stopped == {f"n{i}" for i in range(len(PROTECTED))}
    assert seen == ""
    assert not {path.name for path in place.iterdir()} & {".vscode", ".mcp.json", ".claude"}


# --- reading -------------------------------------------------------------------------------

READ = """
    open cat secret
    list ls sub
    below cat sub/deep/key
    by-link ln -sf secret alias && cat alias
    hard ln secret other && cat other
    move mv secret other && cat other
    copy cp secret copy
    by-root cat /proc/self/root$PWD/secret
    write echo > sub/x
    write-file echo > secret
    move-dir mv sub other-dir
    unmount unshare -Urm sh -c 'umount secret; cat secret | grep content'
    mode chmod 777 secret
"""


def test_denied_reading(in_python: InPython, place: Path) -> None:
    before = tree(place)
    spec = workspace(place, deny_read=(f"{place}/secret", f"{place}/sub"))
    named = {line.split()[0] for line in READ.strip().splitlines()}
    assert in_python(lambda: failed(spec, READ)) == named
    after = tree(place)
    after.pop("alias", None), after.pop("copy", None)
    assert after == before


def test_control_of_denied_reading(place: Path) -> None:
    for line in READ.strip().splitlines():
        if "mount" not in line:
            failed_ones = failed(workspace(place), line)
            assert failed_ones == set()
            subprocess.run(["rm", "-rf", place / "sub"], check=True)
            (place / "sub" / "deep").mkdir(parents=True)
            (place / "sub" / "deep" / "key").write_text("k")
            (place / "secret").write_text("s")
            subprocess.run(["rm", "-rf", place / "other", place / "other-dir"], check=True)


def test_other_names_of_the_same(in_python: InPython, place: Path) -> None:
    """By another bind, and by a link outside of it."""
    spec = workspace(place, deny_read=(f"{place}/sub/deep",), deny_write=(f"{place}/.git/hooks",))
    spec = spec.bind(place, "/again").bind(place / "sub", "/part").bind(place / "sub/deep", "/key")
    script = """
        a cat /again/sub/deep/key
        b cat /part/deep/key
        c cat /key/key
        d echo > /again/.git/hooks/x
        e mv /again/.git /again/.gone
    """
    assert in_python(lambda: failed(spec, script)) == set("abcde")


def test_symbolic_links(in_python: InPython, place: Path) -> None:
    (place / "link").symlink_to("secret")
    (place / "dir").symlink_to("sub")
    spec = workspace(place, deny_read=(f"{place}/link", f"{place}/dir/deep"))
    script = "a cat link\nb cat secret\nc cat sub/deep/key\nd cat dir/deep/key"
    assert in_python(lambda: failed(spec, script)) == set("abcd")


@pytest.mark.parametrize("name", ["link", "dir/config"])
def test_a_link_that_can_be_replaced_is_refused(place: Path, name: str) -> None:
    (place / "link").symlink_to("plain")
    (place / "dir").symlink_to(".git")
    with pytest.raises(SpecError, match="symbolic link where the command can replace it"):
        run(["true"], workspace(place, deny_write=(f"{place}/{name}",)))
    # where it can't be replaced, its target is what is denied
    spec = Sandbox.minimal().bind(place, read_only=True).bind(place / ".git")
    spec = spec.replace(deny_write=(f"{place}/dir/config",))
    assert failed(spec, f"a echo >> {place}/.git/config\nb echo > {place}/.git/n") == {"a"}


def test_links_in_a_circle(place: Path) -> None:
    (place / "one").symlink_to("two")
    (place / "two").symlink_to("one")
    with pytest.raises(SpecError, match=r"Sandbox\.deny_read.*levels of symbolic links"):
        run(["true"], workspace(place, deny_read=(f"{place}/one",)))


# --- what wins --------------------------------------------------------------------------------


def test_the_longer_one_wins(in_python: InPython, place: Path) -> None:
    home = place / "sub"
    spec = Sandbox.minimal().bind(place).bind(home / "deep", read_only=True)
    spec = spec.replace(
        deny_read=(str(home),), deny_write=(f"{home}/deep", f"{place}/.git"), cwd="/"
    )
    spec = spec.bind(place / ".git" / "hooks")
    script = f"""
        hidden ls {home}
        shown cat {home}/deep/key
        read-only echo > {home}/deep/key
        denied echo > {place}/.git/config
        longer echo > {place}/.git/hooks/new
        not-there echo > {home}/x
    """
    wanted = {"hidden", "read-only", "denied", "not-there"}
    assert in_python(lambda: failed(spec, script)) == wanted


def test_the_order_of_operations_does_not_matter(place: Path) -> None:
    denied = (f"{place}/secret",)
    for operations in (
        (Bind(str(place), str(place)), Bind(f"{place}/secret", f"{place}/secret")),
        (Bind(f"{place}/secret", f"{place}/secret"), Bind(str(place), str(place))),
    ):
        spec = Sandbox.minimal().add(*operations).replace(deny_read=denied)
        assert failed(spec, f"a cat {place}/secret") == {"a"}


def test_denying_to_write_shows_nothing_that_is_hidden(place: Path) -> None:
    spec = workspace(place, deny_read=(f"{place}/sub",), deny_write=(f"{place}/sub/deep",))
    assert failed(spec, "a cat sub/deep/key\nb ls sub") == {"a", "b"}


def test_places_of_the_sandbox_s_own() -> None:
    spec = Sandbox.minimal().add(Dir("/tmp/d"), Symlink("/tmp/d", "/tmp/l"))
    spec = spec.replace(deny_write=("/tmp/d", "/tmp/new", "/home/user"), deny_read=("/etc/passwd",))
    script = """
        a echo > /tmp/d/x
        b echo > /tmp/new
        c echo > /home/user/x
        d cat /etc/passwd
        e echo > /tmp/fine
    """
    assert failed(spec, script) == set("abcd")


def test_already_read_only(place: Path) -> None:
    spec = Sandbox.minimal().bind(place, read_only=True).add(Tmpfs("/t"), RemountReadOnly("/t"))
    spec = spec.replace(deny_write=(f"{place}/absent/x", "/t/y", "/usr/z"))
    run(["true"], spec).check()


def test_the_whole_root_is_refused(place: Path) -> None:
    with pytest.raises(SpecError, match="everything there is"):
        run(["true"], workspace(place, deny_read=("/",)))


def test_patterns(in_python: InPython, place: Path) -> None:
    (place / "sub" / "deep" / ".env").write_text("a")
    (place / ".env.local").write_text("b")
    (place / "loop").symlink_to(place)
    spec = workspace(place, deny_read=(f"{place}/**/.env*",), deny_write=(f"{place}/.git/[ch]*",))
    script = """
        a cat sub/deep/.env
        b cat .env.local
        c echo > .git/config
        d echo > .git/hooks/x
        e cat sub/deep/key && echo > .git/HEAD
    """
    assert in_python(lambda: failed(spec, script)) == set("abcd")


def test_a_pattern_may_mean_nothing(place: Path) -> None:
    spec = workspace(place, deny_read=(f"{place}/**/*.pem", "/absent/*", "/nowhere/x"))
    run(["true"], spec).check()


# --- what can't be kept, said --------------------------------------------------------------


def test_other_hard_links_stay(place: Path, caplog: pytest.LogCaptureFixture) -> None:
    os.link(place / "secret", place / "twin")
    with caplog.at_level(logging.WARNING):
        spec = workspace(place, deny_read=(f"{place}/secret",))
        assert failed(spec, "a cat secret\nb cat twin") == {"a"}
    assert "1 other hard links, which are not denied" in caplog.text


# --- placeholders --------------------------------------------------------------------------


def test_the_last_sandbox_removes_the_placeholder(place: Path) -> None:
    spec = workspace(place, deny_write=(f"{place}/.vscode/tasks.json",))
    name = place / ".vscode"
    with popen(["cat"], spec, stdin=subprocess.PIPE) as first:
        with popen(["cat"], spec, stdin=subprocess.PIPE) as second:
            assert stat.S_IMODE(name.stat().st_mode) == PLACEHOLDER_MODE
            second.kill()
            second.wait()
        assert name.is_dir()
        assert failed(spec, "a mkdir .vscode\nb rmdir .vscode") == {"a", "b"}
        assert name.is_dir()
        first.kill()
        first.wait()
    assert not name.exists()


def test_after_a_kill_the_next_one_cleans_up(place: Path) -> None:
    spec = workspace(place, deny_write=(f"{place}/.vscode",))
    pid = os.fork()
    if not pid:
        with popen(["sleep", "500"], spec):
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(pid, 0)
    assert becomes(lambda: list((place / ".vscode").iterdir()) == [])
    assert failed(spec, "a echo > .vscode") == {"a"}
    assert not (place / ".vscode").exists()


def test_what_is_the_user_s_stays(place: Path) -> None:
    (place / ".vscode").mkdir()
    run(["true"], workspace(place).protect()).check()
    assert (place / ".vscode").is_dir()


def test_nothing_is_left_when_it_can_not_start(place: Path) -> None:
    before = tree(place)
    spec = workspace(place, deny_write=(f"{place}/.vscode",))
    with pytest.raises(NsrunError, match="execvp"):
        popen(["no-such-command"], spec)
    with pytest.raises(NsrunError, match="Can't find source path"):
        run(["true"], spec.bind(place / "absent"))
    assert tree(place) == before


def test_a_pool_keeps_them(place: Path) -> None:
    spec = workspace(place, deny_write=(f"{place}/.vscode",), deny_read=(f"{place}/secret",))
    with Pool(spec, 1) as pool:
        for _ in range(3):
            result = pool.run(["sh", "-c", "echo > .vscode; cat secret"], text=True)
            assert result.returncode
            assert result.stdout == ""
    assert not (place / ".vscode").exists()


def test_the_command_line_has_them(place: Path, capfd: pytest.CaptureFixture[str]) -> None:
    script = "cat secret; echo > .git/config; echo > .vscode; echo > /new; echo done > made"
    words = ["run", "--quiet", "--workspace", str(place), "--protect", "--landlock"]
    words += ["--deny-read", f"{place}/sec*", "--deny-write", f"{place}/plain", "--"]
    assert main([*words, "sh", "-c", script + "; echo > plain"]) == 2
    assert len(capfd.readouterr().err.splitlines()) == 5
    assert (place / "made").read_text() == "done\n"
    assert tree(place) == tree(place) | {"plain": "content of plain"}


# --- a neighbour outside ---------------------------------------------------------------------


@pytest.fixture(scope="session")
def swapper(open_directory: Path) -> Path:
    return build(TESTS_ATTACKER, open_directory / "swapper")


@pytest.fixture
def swapped(place: Path, swapper: Path) -> Iterator[Path]:
    """A directory and a link to one outside change their names all the time."""
    outside = place.parent / f"{place.name}-outside"
    outside.mkdir()
    (outside / "config").write_text("outside")
    (place / "evil").symlink_to(outside)
    with subprocess.Popen([swapper, "swap", place / ".git", place / "evil"]) as neighbour:
        yield outside
        neighbour.kill()


def test_links_swapped_in_while_it_starts(place: Path, swapped: Path) -> None:
    """It is refused, or what has the name then is protected; nothing from outside is shown."""
    spec = workspace(place, deny_write=(f"{place}/.git/config",))
    started = 0
    for _ in range(40):
        try:
            result = run(["sh", "-c", "cat .git/config evil/config"], spec, text=True)
        except (NsrunError, SpecError):
            continue
        started += 1
        assert "outside" not in result.stdout
    assert (swapped / "config").read_text() == "outside"
    assert started < 40


# --- against a model ---------------------------------------------------------------------------

NAMES = ("a", "b")
FILES = tuple(f"{x}/{y}/f" for x in NAMES for y in NAMES) + tuple(f"{x}/f" for x in NAMES) + ("f",)
DIRS = tuple(f"{x}/{y}" for x in NAMES for y in NAMES) + NAMES
denied = st.lists(st.sampled_from((*FILES, *DIRS, "a/c", "c", "c/d")), max_size=4, unique=True)


@dataclass(frozen=True)
class Model:
    """Of an entry and a bind the longer one counts; hidden is not written either."""

    reading: tuple[str, ...]
    writing: tuple[str, ...]
    bound: tuple[str, ...]

    def _longest(self, path: str, of: tuple[str, ...]) -> int:
        return max((len(top) for top in of if f"{path}/".startswith(f"{top}/")), default=-1)

    def hidden(self, path: str) -> bool:
        return self._longest(path, self.reading) >= max(0, self._longest(path, self.bound))

    def kept(self, path: str) -> bool:
        return self._longest(path, self.writing) >= max(0, self._longest(path, self.bound))


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    reading=denied,
    writing=denied,
    bound=st.lists(st.sampled_from(DIRS), max_size=2, unique=True),
)
def test_any_lists(
    open_directory: Path, reading: list[str], writing: list[str], bound: list[str]
) -> None:
    top = open_directory / "model"
    for directory in DIRS:
        (top / directory).mkdir(parents=True, exist_ok=True)
    for file in FILES:
        (top / file).write_text("x")
    spec = Sandbox.minimal().bind(top)
    for directory in sorted(bound, key=len):
        spec = spec.bind(top / directory)
    spec = spec.replace(
        cwd="/",
        deny_read=tuple(f"{top}/{name}" for name in reading),
        deny_write=tuple(f"{top}/{name}" for name in writing),
    )
    lines = []
    for number, file in enumerate(FILES):
        lines += [f"r{number} cat {top}/{file}", f"w{number} echo x > {top}/{file}"]
    for number, directory in enumerate(DIRS):
        new = f"{top}/{directory}/new"
        lines.append(f"d{number} touch {new} && rm {new}")
    model = Model(tuple(reading), tuple(writing), tuple(bound))
    wanted = set()
    for number, file in enumerate(FILES):
        wanted |= {f"r{number}"} if model.hidden(file) else set()
        wanted |= {f"w{number}"} if model.hidden(file) or model.kept(file) else set()
    for number, directory in enumerate(DIRS):
        if model.hidden(directory) or model.kept(directory):
            wanted.add(f"d{number}")
    assert failed(spec, "\n".join(lines)) == wanted
    names = {str(path.relative_to(top)) for path in top.rglob("*")}
    assert names == {*FILES, *DIRS}


# --- other ways to the same mounts --------------------------------------------------------------

SYS_OPEN_TREE, SYS_OPEN_TREE_ATTR = 428, 467


def test_where_the_root_is_restricted_in_place(in_python: InPython, place: Path) -> None:
    """A bind of / on / in a new user namespace: there is no new root then."""
    spec = Sandbox(
        filesystem=(Bind("/", "/", read_only=True), Dev(), Bind(str(place), str(place))),
        unshare=frozenset({Namespace.USER}),
        caps_drop=frozenset({"all"}),
        cwd=str(place),
        deny_read=(f"{place}/sub",),
        deny_write=(f"{place}/.git/config", f"{place}/.vscode"),
    )
    script = """
        a cat sub/deep/key
        b echo > .git/config
        c echo > .vscode
        d mv .git gone
        e echo > .git/HEAD
    """
    assert in_python(lambda: failed(spec, script)) == set("abcd")
    assert not (place / ".vscode").exists()


OLD_KERNEL = """
import sys
from cowork_nsrun import Sandbox, run
top = sys.argv[1]
spec = Sandbox.workspace(top).replace(
    deny_read=(f"{top}/sub", f"{top}/secret"), deny_write=(f"{top}/.git/hooks", f"{top}/.vscode"))
script = "cat sub/deep/key secret; echo > .git/hooks/x; mv .git gone; echo > .vscode; echo > .git/n"
print(run(["sh", "-c", script], spec, text=True).stderr)
"""


def test_without_the_new_mount_calls(place: Path, deny: Path) -> None:
    refused = [f"{number}={errno.ENOSYS}" for number in (SYS_OPEN_TREE, SYS_OPEN_TREE_ATTR)]
    command = [deny, *refused, "--", sys.executable, "-c", OLD_KERNEL, place]
    ended = subprocess.run(command, capture_output=True, text=True, check=True, cwd="/")
    assert len(ended.stdout.strip().splitlines()) == 5, ended
    names = tree(place)
    assert ".git/n" in names
    assert not {".vscode", "gone", ".git/hooks/x"} & names.keys()
