"""Acceptance checks 43 to 49: what a path means, on both sides."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from cowork_client import Refused
from cowork_fixtures import Daemon

from cowork_nsrun.cowork.paths import PathError, Paths, check_name
from cowork_nsrun.cowork.translate import Translator, split_tools


@pytest.fixture
def home(tmp_path: Path) -> Path:
    made = tmp_path / "u"
    made.mkdir()
    return made


@pytest.fixture
def paths(home: Path) -> Paths:
    return Paths.of_home(home)


def test_43_spellings(paths: Paths, home: Path) -> None:
    relative = str(home).lstrip("/")
    for spelling in (f"{relative}/x", f"{home}/x", "x", "./x", f"/{relative}//x/"):
        assert paths.locate(spelling) == f"{home}/x"
    assert paths.locate("") == paths.locate("/") == str(home)
    assert paths.locate(".claude") == f"{home}/.claude"


@pytest.mark.parametrize("bad", ["../../etc", "a/../../../etc", "x\0y", "a" * 5000, "\ud800"])
def test_43_refused(paths: Paths, bad: str) -> None:
    with pytest.raises(PathError):
        paths.locate(bad)


@pytest.mark.parametrize(
    "bad", ["etc", "/etc/ssh", "usr/bin", "proc/1", "/dev", "sys", "home", "tmp", "/run/user/0"]
)
def test_43_the_system_is_refused(paths: Paths, bad: str) -> None:
    with pytest.raises(PathError, match=r"system|more than one|not there"):
        paths.folder(bad)


def test_43_in_a_service(daemon: Daemon) -> None:
    client = daemon.subscriber()
    for subpath in ("../../etc", "etc", "/proc/self"):
        with pytest.raises(Refused):
            client.call("mountPath", {"processId": "s1", "subpath": subpath, "mountName": "m"})
    mounts = {"m": {"path": "../../etc", "mode": "rw"}, "ok": {"path": "ok"}}
    answer = client.call(
        "spawn",
        {"id": "a", "name": "s1", "command": "ls", "args": [".."], "additionalMounts": mounts},
    )
    assert answer == {"failedMounts": ["m"]}
    assert client.until_exit("a")[0] == "ok\n"


def test_44_off_home_folders(daemon: Daemon, tmp_path: Path) -> None:
    disk = tmp_path / "disk/project"
    disk.mkdir(parents=True)
    (disk / "file").write_text("truly\n")
    events = daemon.subscriber()
    mounts = {"project": {"path": str(disk).lstrip("/"), "mode": "rw"}}
    assert daemon.sh(events, "cat file; echo new > made", additionalMounts=mounts) == "truly\n"
    assert (disk / "made").read_text() == "new\n"
    gone = {"project": {"path": "mnt/no-such-disk/p", "mode": "rw"}}
    answer = events.call(
        "spawn", {"id": "a", "name": "s1", "command": "true", "additionalMounts": gone}
    )
    assert answer == {"failedMounts": ["project"]}
    assert not (daemon.home / "mnt").exists()


def test_44_links_out_of_the_home(daemon: Daemon, tmp_path: Path) -> None:
    (daemon.home / "etc-link").symlink_to("/etc")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (daemon.home / "link").symlink_to(elsewhere)
    events = daemon.subscriber()
    mounts = {"bad": {"path": "etc-link"}, "good": {"path": "link"}}
    answer = events.call(
        "spawn",
        {"id": "a", "name": "s", "command": "/bin/sh", "args": ["-c", "ls ..; echo > new"],
         "additionalMounts": mounts},
    )  # fmt: skip
    assert answer == {"failedMounts": ["bad"]}
    assert events.until_exit("a")[0] == "good\n"
    assert (elsewhere / "new").exists()


def _translator(home: Path, **mounts: str) -> Translator:
    return Translator(Paths.of_home(home), {"p": f"{home}/proj", ".d": f"{home}/dot", **mounts})


def test_45_directories(home: Path) -> None:
    plugin = home / "proj/plugin"
    (plugin / ".claude-plugin").mkdir(parents=True)
    (plugin / ".claude-plugin/plugin.json").touch()
    (plugin / "skills").mkdir()
    translate = _translator(home).args
    guest = "/sessions/n/mnt"
    assert translate(["--add-dir", f"{guest}/p/x", "a"]) == ["--add-dir", f"{home}/proj/x", "a"]
    assert translate(["b", "--add-dir", f"{guest}/zzz", "a"]) == ["b", "a"]
    assert translate(["--plugin-dir", f"{guest}/p/plugin/skills"]) == ["--plugin-dir", str(plugin)]
    assert translate(["--plugin-dir", f"{guest}/p/other"]) == ["--plugin-dir", f"{home}/proj/other"]
    assert translate(["--plugin-dir", f"{guest}/zzz"]) == []
    assert translate(["x", "--add-dir"]) == ["x", "--add-dir"]
    untouched = ["--add-dir", "/host", f"--add-dir={guest}/p", f"{guest}/p"]
    assert translate(untouched) == untouched


def test_45_a_plugin_is_not_looked_for_above_the_home(home: Path) -> None:
    (home.parent / "manifest.json").touch()
    assert _translator(home).args(["--plugin-dir", "/sessions/n/mnt/p"])[1] == f"{home}/proj"


def test_46_tools(home: Path) -> None:
    translate = _translator(home, p="/h/p").tools
    value = "Read,Bash(a, b),Edit(//sessions/n/mnt/p/**),Write(/sessions/n/mnt/zzz/**)"
    assert translate(value) == "Read,Bash(a, b),Edit(/h/p/**)"
    assert translate("") == ""
    assert translate("mcp__a-b(/sessions/n/mnt/zzz)") == "mcp__a-b(/sessions/n/mnt/zzz)"
    assert translate("Edit(/sessions/n/mnt/p/../../x)") == ""
    assert split_tools("a(b,c),d)),e,") == ["a(b,c)", "d))", "e", ""]


def test_46_untouched_in_a_sandbox(daemon: Daemon) -> None:
    args = ["--allowedTools", "Edit(//sessions/n/mnt/p/**)", "--add-dir", "/sessions/s1/mnt/zzz"]
    words = ["-c", 'printf "%s\\n" "$@"', "sh", *args]
    assert daemon.run(daemon.subscriber(), "/bin/sh", words)[0].splitlines() == args


def test_46_translated_on_the_host(host: Daemon) -> None:
    args = ["--allowedTools", "Edit(//sessions/n/mnt/p/**),X", "--add-dir", "/sessions/s1/mnt/zzz"]
    words = ["-c", 'printf "%s\\n" "$@"', "sh", *args]
    mounts = {"p": {"path": "proj"}}
    out = host.run(host.subscriber(), "/bin/sh", words, additionalMounts=mounts)[0]
    assert out.splitlines() == ["--allowedTools", f"Edit({host.home}/proj/**),X"]


def test_47_guest_to_host_and_back(paths: Paths, home: Path) -> None:
    mounts = {"p": "/h/p", ".claude": "/h/c", "skills": "/h/s"}

    def host(path: str) -> str | None:
        return paths.to_host(path, mounts)

    assert host("/sessions/n/mnt/p") == "/h/p"
    assert host("/sessions/n/mnt/p/a/./b") == "/h/p/a/b"
    assert host("/sessions/n/mnt/claude/x") == host("/sessions/n/mnt/.claude/x") == "/h/c/x"
    assert host("/sessions/n/mnt/.skills") == "/h/s"
    assert host("/sessions/n/mnt/p/a/../b") == "/h/p/b"
    for bad in (
        "/sessions/n/mnt/p/../x", "/sessions/n/mnt/p/../../../etc/passwd", "/sessions/n/mnt/no",
        "/sessions/n/mnt", "/sessions/n/p", "/elsewhere", "", "/sessions/n/mnt/..", "/sessions/n",
        "/sessions/n/mnt/.", "/sessions//mnt/p",
    ):  # fmt: skip
        assert host(bad) is None
    assert paths.to_host("/sessions/n/mnt/p", {}) is None
    assert paths.to_guest("/h/p/a", "n", mounts) == "/sessions/n/mnt/p/a"
    assert paths.to_guest("/h/p", "n", mounts) == "/sessions/n/mnt/p"
    assert paths.to_guest("/h/pp", "n", mounts) is None
    assert home


def test_48_directory_on_the_host(host: Daemon) -> None:
    home, project = str(host.home), str(host.folder())
    events = host.subscriber()
    mounts = {".claude": {"path": ".claude"}, "uploads": {"path": "up"}, "p": {"path": "proj"}}

    def cwd(where: str | None, chosen: dict[str, dict[str, str]] = mounts, **params: Any) -> str:
        return host.run(events, "/bin/pwd", cwd=where, additionalMounts=chosen, **params)[0].strip()

    assert cwd("/sessions/s1") == project
    assert cwd("/sessions/s1/mnt/p") == project
    assert cwd("/sessions/s1/mnt/p/missing") == home
    hidden = {name: mounts[name] for name in (".claude", "uploads")}
    assert cwd("/sessions/s1", hidden) == home
    assert cwd(None) == home
    assert cwd("/usr") == "/usr"
    assert cwd("/usr", sharedCwdPath=project.lstrip("/")) == project
    assert cwd("/usr", sharedCwdPath="no-such-folder") == home
    assert cwd("/no-such") == home


def test_49_read_file(daemon: Daemon, tmp_path: Path) -> None:
    events = daemon.subscriber()
    (daemon.folder() / "f").write_text("inside €")
    daemon.sh(events, "true", additionalMounts={"proj": {"path": "proj"}})
    outside = tmp_path / "outside"
    outside.write_text("secret")
    (daemon.home / "link").symlink_to(outside)
    (daemon.home / "good-link").symlink_to("proj/f")
    os.mkfifo(daemon.home / "pipe")
    (daemon.home / "wrong").write_bytes(b"a\xffb")

    def read(path: str) -> dict[str, str]:
        return events.call("readFile", {"processName": "s1", "filePath": path})

    assert read(f"{daemon.home}/proj/f") == {"content": "inside €"}
    assert read(f"{daemon.home}/good-link") == {"content": "inside €"}
    assert read("/sessions/s1/mnt/proj/f") == {"content": "inside €"}
    assert read(f"{daemon.home}/wrong") == {"content": "a\ufffdb"}
    denied = {"error": "Access denied: path outside home directory"}
    for path in ("/etc/passwd", f"{daemon.home}/link", f"{daemon.home}/../outside", str(outside)):
        assert read(path) == denied
    for path in ("/sessions/s1/mnt/zzz/f", "/sessions/other/mnt/proj/f", "/sessions/s1/f"):
        assert read(path) == {"error": f"Cannot translate guest path: {path}"}
    assert read("/sessions/s1/mnt/proj/../../../../etc/passwd").keys() == {"error"}
    assert "No such file" in read(f"{daemon.home}/none")["error"]
    assert "not a regular file" in read(f"{daemon.home}/pipe")["error"]
    assert "not a regular file" in read(str(daemon.home))["error"]


def test_49_a_session_reads_no_links_out(daemon: Daemon) -> None:
    """What a command leaves in its folder must not lead the service elsewhere."""
    events = daemon.subscriber()
    script = "ln -s /etc/passwd link; ln -s /etc dir"
    daemon.sh(events, script, additionalMounts={"proj": {"path": "proj"}})
    for name in ("link", "dir/passwd"):
        answer = events.call("readFile", {"filePath": f"/sessions/s1/mnt/proj/{name}"})
        assert answer == {"error": "Access denied: path outside home directory"}


def test_49_a_long_file(daemon: Daemon) -> None:
    file = daemon.home / "long"
    file.write_bytes(b"x" * (4 << 20))
    client = daemon.client()
    assert len(client.call("readFile", {"filePath": str(file)})["content"]) == 4 << 20
    file.write_bytes(b"\1" * (4 << 20))  # six bytes each in JSON
    with pytest.raises(Refused, match="too long"):
        client.call("readFile", {"filePath": str(file)})
    file.write_bytes(b"x" * (11 << 20))
    assert "longer than" in client.call("readFile", {"filePath": str(file)})["error"]


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "a\0", "a\n", "x" * 256, "\x1b[2J"])
def test_names(name: str) -> None:
    with pytest.raises(PathError):
        check_name("session", name)
    assert check_name("session", "wise-eager-fox") == "wise-eager-fox"
    assert check_name("mount", "Größe 2") == "Größe 2"


def test_a_home_behind_a_link(tmp_path: Path) -> None:
    real = tmp_path / "var/home/u"
    real.mkdir(parents=True)
    (tmp_path / "home").symlink_to(tmp_path / "var/home")
    paths = Paths.of_home(tmp_path / "home/u")
    assert paths.folder(str(real / "x")) == str(real / "x")
    assert paths.folder(str(tmp_path / "home/u/x")) == str(tmp_path / "home/u/x")


@pytest.mark.parametrize("home", ["/", "relative", "//"])
def test_homes_that_are_none(home: str) -> None:
    with pytest.raises(PathError, match="HOME"):
        Paths.of_home(home)
