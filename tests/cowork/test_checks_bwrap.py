"""Acceptance checks 50 to 58: the sandbox, inside and as a value."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from cowork_client import Refused
from cowork_fixtures import Daemon, Lack, Start

from cowork_nsrun._native import PlanFlag
from cowork_nsrun.cowork import config
from cowork_nsrun.cowork.config import UserMounts
from cowork_nsrun.cowork.layout import Layout
from cowork_nsrun.cowork.mounts import Folder
from cowork_nsrun.cowork.paths import Paths
from cowork_nsrun.plan import Plan
from cowork_nsrun.spec import Bind


def _expected(home: str, session: str, middle: list[str], cwd: str) -> list[str]:
    """Section 4.2 of the specification, on a system with a merged /usr."""
    links = [
        word
        for path in ("/bin", "/lib", "/lib64", "/sbin")
        if os.path.islink(path)
        for word in ("--symlink", os.readlink(path), path)
    ]
    real = os.path.realpath("/etc/resolv.conf")
    directory = os.path.dirname(real)
    resolver = ["--ro-bind", directory, directory] if real.startswith("/run/") else []
    # beyond the specification: root writes there by its number alone
    covers = [] if os.geteuid() else ["--ro-bind", "/proc/sys", "/proc/sys"]
    return [
        *("--chdir", cwd, "--tmpfs", "/", "--ro-bind", "/usr", "/usr", "--ro-bind", "/etc", "/etc"),
        *("--dev", "/dev", "--proc", "/proc", "--tmpfs", "/tmp", "--tmpfs", "/run", *links),
        *(*resolver, *covers, *middle[: middle.index("|")], "--dir", home),
        *("--ro-bind", "/usr/bin", "/usr/bin"),
        *("--dir", f"/sessions/{session}", "--dir", f"/sessions/{session}/mnt"),
        *(*middle[middle.index("|") + 1 :], "--unshare-pid", "--die-with-parent", "--new-session"),
        *("--", "/usr/bin/bash", "-c", "x"),
    ]


def _same(layout: Layout, argv: list[str]) -> None:
    ours = Plan.from_spec(layout.sandbox(), ["/usr/bin/bash", "-c", "x"], env={})
    theirs = Plan.from_argv(argv, {})
    assert ours.operations == theirs.operations
    assert (ours.cwd, ours.unshare) == (theirs.cwd, theirs.unshare)
    assert ours.flags & ~(PlanFlag.CLOSE_FDS | PlanFlag.CAPS_TOUCHED) == theirs.flags


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    (tmp_path / "u").mkdir()
    return Paths.of_home(tmp_path / "u")


def test_50_the_command_line(paths: Paths, lack: Lack) -> None:
    if not os.path.islink("/bin") or os.path.isdir("/nix/store"):
        lack("cowork check 50: /bin is no link here, or there is a /nix")
    folders = {
        ".claude": Folder("/h/.claude", False),
        "uploads": Folder("/h/up", True),
        "proj": Folder("/h/proj", False),
        "z": Folder("/h/z", False),
    }
    mounts = [
        "|",
        *("--bind", "/h/.claude", "/sessions/n/mnt/.claude"),
        *("--ro-bind", "/h/up", "/sessions/n/mnt/uploads"),
        *("--bind", "/h/proj", "/sessions/n/mnt/proj", "--bind", "/h/z", "/sessions/n/mnt/z"),
    ]
    layout = Layout("n", folders, paths, "/usr/bin")
    _same(layout, _expected(paths.home, "n", mounts, "/sessions/n/mnt/proj"))
    _same(Layout("n", {}, paths, "/usr/bin"), _expected(paths.home, "n", ["|"], "/sessions/n/mnt"))
    with pytest.raises(AssertionError):
        _same(layout, _expected(paths.home, "n", mounts, "/sessions/n/mnt/z"))


def test_50_only_the_mode_ro_is_read_only(daemon: Daemon) -> None:
    modes = {"a": "ro", "b": "rw", "c": "RO", "d": None}
    mounts = {name: {"path": name, "mode": mode} for name, mode in modes.items()}
    script = "cd ..; for i in *; do echo > $i/f && echo $i; done 2>/dev/null; true"
    assert daemon.sh(daemon.subscriber(), script, additionalMounts=mounts) == "b\nc\nd\n"


def test_51_inside(daemon: Daemon) -> None:
    (daemon.home / "secret").write_text("x")
    (daemon.home / ".ssh").mkdir()
    ro = daemon.folder("ro")
    (ro / "f").write_text("read\n")
    mounts = {
        "proj": {"path": "proj", "mode": "rw"},
        "ro": {"path": "ro", "mode": "ro"},
    }
    script = """
        pwd
        ls -A ~
        for file in /usr/x /etc/x ../ro/x; do (echo > $file) 2>/dev/null && echo wrote $file; done
        cat ../ro/f
        echo made > made
        echo > /tmp/t && echo > /run/r && echo temporary
        ls /proc | grep -c '^[0-9]*$'
        cmp /etc/resolv.conf /etc/resolv.conf && echo resolver
        test -e /sys || echo no sys
        grep NoNewPrivs /proc/self/status
    """
    out = daemon.sh(daemon.subscriber(), script, additionalMounts=mounts).splitlines()
    assert out[:3] == ["/sessions/s1/mnt/proj", "read", "temporary"]
    assert 1 <= int(out[3]) <= 5
    assert out[4:] == ["resolver", "no sys", "NoNewPrivs:\t1"]
    assert (daemon.home / "proj/made").read_text() == "made\n"
    # what it looked for is there to be found, outside
    assert sorted(entry.name for entry in daemon.home.iterdir() if entry.name[0] != ".") == [
        "proj", "ro", "secret",
    ]  # fmt: skip
    assert daemon.sh(daemon.subscriber(), "ls /tmp/t /run/r 2>/dev/null || true") == ""


def _install_sdk(daemon: Daemon) -> None:
    sdk = daemon.folder(".config/Claude/claude-code-vm/1.2.3") / "claude"
    sdk.write_text('#!/bin/sh\necho "sdk $0 $1"\n')
    sdk.chmod(0o755)


def test_52_claude_and_nothing_else(daemon: Daemon) -> None:
    _install_sdk(daemon)
    events = daemon.subscriber()
    out, err, end = daemon.run(events, "/no/claude", ["x"])
    assert (err, end["exitCode"]) == ("Error: /no/claude not found\n", 127)
    subpath = ".config/Claude/claude-code-vm"
    for version in ("../1.2.3", "", ".."):
        with pytest.raises(Refused):
            events.call("installSdk", {"sdkSubpath": subpath, "version": version})
    assert events.call("installSdk", {"sdkSubpath": subpath, "version": "9"}) == {}
    assert events.call("installSdk", {"sdkSubpath": subpath, "version": "1.2.3"}) == {}
    assert events.call("installSdk", {"sdkSubpath": "none", "version": "9"}) == {}
    out, _, _ = daemon.run(events, "/usr/local/bin/claude", ["x"])
    assert out == f"sdk {daemon.home}/{subpath}/1.2.3/claude x\n"
    assert daemon.run(events, "bash", ["-c", "echo $0", "bash"])[0] == "bash\n"


def test_52_a_program_in_the_home_shows_no_more_than_itself(daemon: Daemon) -> None:
    tool = daemon.home / "tool"
    tool.write_text("#!/bin/sh\nls -A ~\n")
    tool.chmod(0o755)
    (daemon.home / "secret").touch()
    assert daemon.run(daemon.subscriber(), str(tool))[0] == "tool\n"


def test_52_a_program_in_a_folder(daemon: Daemon) -> None:
    tool = daemon.folder() / "tool"
    tool.write_text("#!/bin/sh\necho $0\n")
    tool.chmod(0o755)
    guest = "/sessions/s1/mnt/proj/tool"
    mounts = {"proj": {"path": "proj"}}
    assert daemon.run(daemon.subscriber(), guest, additionalMounts=mounts)[0] == f"{guest}\n"


def test_53_missing_folders_and_links_to_themselves(daemon: Daemon) -> None:
    (daemon.home / ".mcpb-cache").symlink_to(daemon.home / ".mcpb-cache")
    mounts = {name: {"path": name} for name in (".mcpb-cache", "deep/er/folder"[:4])}
    mounts["deeper"] = {"path": "deep/er/folder"}
    script = "ls -A /sessions/s1/mnt"
    out = daemon.sh(daemon.subscriber(), script, additionalMounts=mounts)
    assert out.split() == [".mcpb-cache", "deep", "deeper"]
    assert (daemon.home / ".mcpb-cache").is_dir()
    assert not (daemon.home / ".mcpb-cache").is_symlink()
    assert (daemon.home / "deep/er/folder").is_dir()


def test_54_mount_path_is_one_sessions(daemon: Daemon) -> None:
    daemon.folder("x")
    events = daemon.subscriber()
    daemon.run(events, "true", id="pa", name="A")
    mount = {"processId": "pa", "subpath": "x", "mountName": "X", "mode": "ro"}
    assert events.call("mountPath", mount) == {"guestPath": "/sessions/A/mnt/X"}
    script = "ls -A /sessions/*/mnt; (echo > /sessions/A/mnt/X/f) 2>/dev/null || echo refused"
    assert daemon.sh(events, script, name="B") == "refused\n"
    assert daemon.sh(events, script, name="A") == "X\nrefused\n"
    events.call("mountPath", {**mount, "mode": "rw"})
    assert daemon.sh(events, script, name="A") == "X\n"
    events.call("stopVM")
    assert daemon.sh(events, script, name="A") == "refused\n"


@pytest.mark.parametrize("name", ["a/b", "..", "../../usr", ".", "", "a\0b"])
def test_55_names(daemon: Daemon, name: str) -> None:
    events = daemon.subscriber()
    with pytest.raises(Refused):
        events.call("spawn", {"id": "a", "name": name, "command": "true"})
    with pytest.raises(Refused):
        events.call("mountPath", {"processId": name, "subpath": "x", "mountName": "m"})
    if name:
        with pytest.raises(Refused):
            events.call("mountPath", {"processId": "s", "subpath": "x", "mountName": name})
    params = {"id": "a", "name": "s", "command": "true", "additionalMounts": {name: {"path": "x"}}}
    answer = events.call("spawn", params)
    assert answer == {"failedMounts": [name]}


# --- the user's configuration -----------------------------------------------------------------


def _load(paths: Paths, **section: Any) -> UserMounts:
    file = Path(paths.home) / "config.json"
    file.write_text(json.dumps({"preferences": {"coworkBwrapMounts": section}}))
    return config.load(file, paths)


def test_56_forms(paths: Paths, lack: Lack) -> None:
    home = paths.home
    found = _load(
        paths,
        additionalROBinds=["/opt", {"src": "/srv", "dst": "/data"}, 5, {"src": "/x"}, None],
        additionalBinds=[f"{home}/w", {"src": f"{home}/tmp", "dst": "/tmp"}],
        disabledDefaultBinds=["/tmp"],
        other=1,
    )
    assert found == UserMounts(
        (Bind("/opt", "/opt", read_only=True), Bind("/srv", "/data", read_only=True)),
        (Bind(f"{home}/w", f"{home}/w"), Bind(f"{home}/tmp", "/tmp")),
        frozenset({"/tmp"}),
    )
    assert found.warnings == ()
    if not os.path.islink("/bin") or os.path.isdir("/nix/store"):
        lack("cowork check 56: /bin is no link here, or there is a /nix")
    extra = (*found.read_only, *found.writable)
    words = [w for b in extra for w in ("--ro-bind" if b.read_only else "--bind", b.source, b.dest)]
    argv = _expected(home, "n", [*words, "|"], "/sessions/n/mnt")
    at = argv.index("/tmp")
    del argv[at - 1 : at + 1]
    _same(Layout("n", {}, paths, "/usr/bin", extra, found.disabled), argv)


def test_56_reasons(paths: Paths, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to("/proc")
    found = _load(
        paths,
        additionalROBinds=["/proc", "/proc/self", "x", "", "/../dev", str(link), "~/x"],
        additionalBinds=[
            "/opt",
            {"src": "/opt", "dst": "/x"},
            {"src": paths.home, "dst": "/sys/x"},
        ],
        disabledDefaultBinds=["/", "/dev", "/proc", "x", "/usr/../dev/"],
    )
    assert (found.read_only, found.writable, found.disabled) == ((), (), frozenset())
    assert found.warnings == (
        'BwrapConfig: rejected mount "/proc": Path is forbidden: /proc',
        'BwrapConfig: rejected mount "/proc/self": Path is under forbidden path: /proc',
        'BwrapConfig: rejected mount "x": Path must be absolute',
        'BwrapConfig: rejected mount "": Path must be absolute',
        'BwrapConfig: rejected mount "/../dev": Path is forbidden: /dev',
        f'BwrapConfig: rejected mount "{link}": Symlink resolves to forbidden path: /proc',
        'BwrapConfig: rejected mount "~/x": Path must be absolute',
        'BwrapConfig: rejected mount "/opt": Read-write mounts must be under $HOME',
        'BwrapConfig: rejected mount src "/opt": Read-write mounts must be under $HOME',
        'BwrapConfig: rejected mount dst "/sys/x": Path is under forbidden path: /sys',
        'BwrapConfig: rejected disabled path "/": cannot disable critical mount: /',
        'BwrapConfig: rejected disabled path "/dev": cannot disable critical mount: /dev',
        'BwrapConfig: rejected disabled path "/proc": cannot disable critical mount: /proc',
        'BwrapConfig: rejected disabled path "x": Path must be absolute',
        'BwrapConfig: rejected disabled path "/usr/../dev/": cannot disable critical mount: /dev',
    )


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "5", '{"preferences": 5}', '{"preferences": {"coworkBwrapMounts": []}}',
             '{"preferences": {"coworkBwrapMounts": {"additionalBinds": {}}}}', "[" * 100_000],
)  # fmt: skip
def test_56_files_with_nothing_in_them(paths: Paths, text: str) -> None:
    file = Path(paths.home) / "config.json"
    file.write_text(text)
    assert config.load(file, paths) == UserMounts()
    assert config.load(Path(paths.home) / "missing", paths) == UserMounts()


def _configured(start: Start, home: Path, **section: Any) -> Daemon:
    file = home / ".config/Claude/claude_desktop_linux_config.json"
    file.parent.mkdir(parents=True)
    file.write_text(json.dumps({"preferences": {"coworkBwrapMounts": section}}))
    return start()


def test_57_a_missing_source(start: Start, tmp_path: Path) -> None:
    home = tmp_path / "home"
    (home / "there").mkdir(parents=True)
    (home / "there/f").write_text("seen\n")
    gone = str(home / "gone")
    daemon = _configured(
        start, home,
        additionalBinds=[gone, str(home / "there")], additionalROBinds=["/proc"],
    )  # fmt: skip
    events = daemon.subscriber()
    assert daemon.sh(events, f"cat {home}/there/f; ls {home}") == "seen\nthere\n"
    assert daemon.sh(events, "echo again") == "again\n"
    assert daemon.log.count(f'BwrapConfig: "{gone}" is not there') == 1
    assert 'BwrapConfig: rejected mount "/proc"' in daemon.log


def test_57_a_home_behind_a_link(tmp_path: Path) -> None:
    real = tmp_path / "var/u"
    real.mkdir(parents=True)
    (tmp_path / "home").symlink_to(tmp_path / "var")
    paths = Paths.of_home(tmp_path / "home/u")
    found = _load(paths, additionalBinds=[f"{paths.home}/w", f"{paths.real_home}/w"])
    assert [bind.source for bind in found.writable] == [f"{paths.home}/w", f"{real}/w"]


def test_57_the_recipe_for_tmp(start: Start, tmp_path: Path) -> None:
    home = tmp_path / "home"
    (home / "kept-tmp").mkdir(parents=True)
    daemon = _configured(
        start, home,
        disabledDefaultBinds=["/tmp"],
        additionalBinds=[{"src": str(home / "kept-tmp"), "dst": "/tmp"}],
    )  # fmt: skip
    events = daemon.subscriber()
    daemon.sh(events, "echo kept > /tmp/f")
    assert daemon.sh(events, "cat /tmp/f") == "kept\n"


def test_58_disabled(paths: Paths) -> None:
    found = _load(paths, disabledDefaultBinds=["/", "/dev", "/proc", "/etc/../usr", "/bin"])
    assert found.disabled == {"/usr", "/bin"}
    layout = Layout("n", {}, paths, None, disabled=found.disabled)
    dests = [operation.dest for operation in layout.sandbox().filesystem]
    assert {"/usr", "/bin"} & set(dests) == set()
    assert {"/", "/dev", "/proc", "/etc", "/lib"} <= set(dests)


def test_a_folder_that_becomes_a_link_is_not_followed(paths: Paths) -> None:
    """Between the check and the mount, a command of another session may change what it owns."""
    folder = Path(paths.home) / "p"
    folder.mkdir()
    layout = Layout("n", {"p": Folder(str(folder), False)}, paths, None)
    with layout.pinned() as spec:
        assert "p" in {os.path.basename(op.dest) for op in spec.filesystem}
    folder.rmdir()
    folder.symlink_to("/etc")
    with pytest.raises(Exception, match="belongs to the system"), layout.pinned():
        pass
    before = len(os.listdir("/proc/self/fd"))
    with layout_of_two(paths).pinned():
        assert len(os.listdir("/proc/self/fd")) == before + 2
    assert len(os.listdir("/proc/self/fd")) == before


def layout_of_two(paths: Paths) -> Layout:
    folders = {}
    for name in "ab":
        (Path(paths.home) / name).mkdir()
        folders[name] = Folder(f"{paths.home}/{name}", False)
    return Layout("n", folders, paths, None)


def test_54_the_project_stays_the_place_to_work_in(daemon: Daemon) -> None:
    events = daemon.subscriber()
    events.call("mountPath", {"processId": "s1", "subpath": "out", "mountName": "outputs"})
    mounts = {"proj": {"path": "proj"}}
    assert daemon.sh(events, "pwd; ls ..", additionalMounts=mounts) == (
        "/sessions/s1/mnt/proj\noutputs\nproj\n"
    )
    assert daemon.sh(events, "pwd") == "/sessions/s1/mnt/outputs\n"
