"""Selection, cache, remedies and doctor as Python sees them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hostlib import Lack
from worlds import Tools, World

from cowork_nsrun import NsrunError, apparmor, selection
from cowork_nsrun.doctor import SCHEMA
from cowork_nsrun.probe import ask_program, probe_own
from cowork_nsrun.program import find_program
from cowork_nsrun.remedies import Family, read_os_release, remedy, this_system
from cowork_nsrun.selection import Backend, Runner, Selection, select

OS_RELEASES = {
    "debian": ('ID=debian\nPRETTY_NAME="Debian GNU/Linux 12"', "apt-get install -y bubblewrap"),
    "ubuntu": ("ID=ubuntu\nID_LIKE=debian", "apt-get install -y bubblewrap"),
    "mint": ('ID=linuxmint\nID_LIKE="ubuntu debian"', "apt-get install -y bubblewrap"),
    "pop": ('ID=pop\nID_LIKE="ubuntu debian"', "apt-get install -y bubblewrap"),
    "fedora": ("ID=fedora", "dnf install -y bubblewrap"),
    "rocky": ('ID="rocky"\nID_LIKE="rhel centos fedora"', "dnf install -y bubblewrap"),
    "arch": ("ID=arch", "pacman -S --needed bubblewrap"),
    "manjaro": ("ID=manjaro\nID_LIKE=arch", "pacman -S --needed bubblewrap"),
    "opensuse": (
        'ID="opensuse-tumbleweed"\nID_LIKE="opensuse suse"',
        "zypper install -y bubblewrap",
    ),
    "nixos": ("ID=nixos", "nix-env -iA nixos.bubblewrap"),
    "unheard of": ("ID=plan9", "package manager"),
}
CACHE = Path("nsrun/selection")


# --- remedies ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("text", "command"), OS_RELEASES.values(), ids=OS_RELEASES.keys())
def test_remedy_of_the_distribution(tools: Tools, text: str, command: str) -> None:
    file = tools.directory / "os-release"
    file.write_text(text + "\n")
    script = f"mount --bind {file} $(readlink -f /etc/os-release)"
    ended = World(script=script, limit=0).doctor(tools)
    assert command in ended.stdout.decode(), ended
    hints = World(script=script, limit=0).doctor(tools, "--fix-hint").stdout.decode()
    assert command in hints
    assert subprocess.run(["sh", "-n"], input=hints, text=True, check=False).returncode == 0


def test_chromeos(tools: Tools) -> None:
    """Crostini says that it is Debian; what it lacks, no apt-get brings."""
    file = tools.directory / "os-release"
    file.write_text("ID=debian\n")
    script = f"mount --bind {file} $(readlink -f /etc/os-release) && "
    script += "mount -t tmpfs dev /dev && mknod -m 666 /dev/null c 1 3 && "
    script += "touch /dev/.cros_milestone && mkdir /dev/pts /dev/shm && "
    script += "echo 'flags : vmx' >/dev/shm/c && mount --bind /dev/shm/c /proc/cpuinfo"
    data = json.loads(World(script=script).doctor(tools, "--json").stdout)
    assert data["system"]["family"] == "ChromeOS (Crostini)"
    assert "nested virtualization" in str(data["checks"])


REMEDIES = (Path(__file__).parents[2] / "csrc/core").glob("probe*.c")
NAMED = {
    word
    for source in REMEDIES
    for word in source.read_text().split('"')
    if word.startswith(("userns-", "proc-m", "bwrap-", "kvm-", "guest-kernel-", "landlock-",
                        "seccomp-", "not-built")) and " " not in word and "%" not in word
    and word not in ("kvm-guest",)
}  # fmt: skip


def test_every_remedy_says_who_tries_it() -> None:
    """docs/selection.md: a test, or why there is none."""
    text = (Path(__file__).parents[2] / "docs/selection.md").read_text()
    table = text.partition("## Remedies")[2]
    assert [name for name in sorted(NAMED) if f"`{name}`" not in table] == []


@pytest.mark.parametrize("name", sorted([*NAMED, "userns-max-user", "userns-max-net"]))
@pytest.mark.parametrize("text", [text for text, _ in OS_RELEASES.values()])
def test_every_remedy_of_the_core_has_a_text(name: str, text: str) -> None:
    assert len(NAMED) > 12
    here = this_system()
    values = read_os_release(text)
    family = next((f for f in Family if f.name.lower() == values["ID"]), here.family)
    found = remedy(name, type(here)(family, "", None))
    assert found.text.endswith(".") or found.text.endswith(";")
    for command in found.commands:
        assert subprocess.run(["sh", "-nc", command], check=False).returncode == 0


def test_os_release_is_read_strictly() -> None:
    text = 'ID=\'a b\'\n# ID=x\nBROKEN="\nX Y=1\n=z\nID_LIKE="c\\"d"\nNO\n'
    assert read_os_release(text) == {"ID": "a b", "ID_LIKE": 'c"d'}


# --- doctor -----------------------------------------------------------------------------------


def test_json_is_as_published(tools: Tools) -> None:
    schema = json.loads(SCHEMA.read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    for world in (World(), World(limit=0), World(env={"COWORK_VM_BACKEND": "junk"})):
        data = json.loads(world.doctor(tools, "--json").stdout)
        jsonschema.validate(data, schema)
    data["checks"][0]["level"] = "FINE"
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(data, schema)
    assert json.loads(World().doctor(tools, "--schema").stdout) == schema


def test_piped_it_is_plain(tools: Tools) -> None:
    text = World().doctor(tools).stdout.decode()
    assert "\x1b" not in text
    assert text.splitlines()[-1] == "Isolation: namespaces"


def test_kvm_is_information_unless_asked_for(tools: Tools) -> None:
    def levels(*words: str) -> set[str]:
        data = json.loads(World().doctor(tools, "--json", *words).stdout)
        return {c["level"] for c in data["checks"] if c["section"] == "KVM (optional)"}

    assert levels() <= {"INFO", "PASS"}
    assert "FAIL" in levels("--backend", "kvm")


# --- selection and its cache --------------------------------------------------------------------


@pytest.fixture
def runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    tmp_path.chmod(0o700)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    return tmp_path


@pytest.fixture
def elsewhere(tmp_path_factory: pytest.TempPathFactory, lack: Lack) -> dict[str, str]:
    """An environment in which the nsrun program has to be asked: a bwrap that works."""
    if not Path("/usr/bin/bwrap").exists():
        lack("no /usr/bin/bwrap: the cache of selections")
    return {**os.environ, "PATH": "/usr/bin:/bin"}


def test_own_namespaces_are_not_cached(runtime: Path) -> None:
    assert select() == Selection(Backend.NAMESPACES, "namespaces, the first choice", Runner.PROCESS)
    assert not (runtime / CACHE).exists()
    assert probe_own().ok


def test_asked_once_per_configuration(runtime: Path, elsewhere: dict[str, str]) -> None:
    first = select("bwrap", environ=elsewhere)
    assert (first.backend, first.runner, first.bwrap) == (
        Backend.BWRAP, Runner.BWRAP, "/usr/bin/bwrap")  # fmt: skip
    file = runtime / CACHE
    assert file.stat().st_mode & 0o777 == 0o600
    assert file.parent.stat().st_mode & 0o777 == 0o700
    # an answer that only the cache can have given
    data = json.loads(file.read_text())
    (key,) = data
    data[key]["reason"] = "remembered"
    file.write_text(json.dumps(data))
    assert select("bwrap", environ=elsewhere).reason == "remembered"
    assert select("bwrap", environ=elsewhere, cache=False) == first
    assert select("BWRAP", environ=elsewhere).reason != "remembered", "another request"
    changed = {**elsewhere, "PATH": "/bin:/usr/bin"}
    assert select("bwrap", environ=changed).reason != "remembered", "another PATH"
    assert select("bwrap", environ=elsewhere).reason == "remembered"
    selection.forget()
    assert not file.exists()
    assert select("bwrap", environ=elsewhere) == first


def test_another_bwrap_is_another_configuration(
    runtime: Path, tmp_path: Path, elsewhere: dict[str, str]
) -> None:
    directory = tmp_path / "bin"
    directory.mkdir()
    program = directory / "bwrap"
    program.write_text("#!/bin/sh\nexit 0\n")
    program.chmod(0o755)
    env = {**elsewhere, "PATH": f"{directory}:/usr/bin:/bin"}
    assert select("bwrap", environ=env).backend is Backend.BWRAP
    program.write_text("#!/bin/sh\nexit 1\n")
    assert select("bwrap", environ=env).backend is None


@pytest.mark.parametrize(
    "content", ["", "{", "[]", '{"x": 1}', "null", '"a"', '{"a": {"backend": "x"}}', "\xff"]
)
def test_what_we_did_not_write_is_not_believed(
    runtime: Path, elsewhere: dict[str, str], content: str
) -> None:
    first = select("bwrap", environ=elsewhere)
    file = runtime / CACHE
    (key,) = json.loads(file.read_text())
    file.write_text(content.replace('"x"', f'"{key}"').replace('"a"', f'"{key}"'))
    assert select("bwrap", environ=elsewhere) == first


def test_others_can_plant_nothing(
    runtime: Path, tmp_path_factory: pytest.TempPathFactory, elsewhere: dict[str, str]
) -> None:
    first = select("bwrap", environ=elsewhere)
    file = runtime / CACHE
    planted = json.loads(file.read_text())
    for entry in planted.values():
        entry["reason"] = "planted"
    foreign = tmp_path_factory.mktemp("foreign") / "file"
    foreign.write_text(json.dumps(planted))

    file.unlink()
    file.symlink_to(foreign)
    assert select("bwrap", environ=elsewhere) == first, "the file is a link"
    assert "planted" in foreign.read_text(), "it was not written through"

    file.unlink()
    file.write_text(json.dumps(planted))
    file.chmod(0o622)
    assert select("bwrap", environ=elsewhere) == first, "others can write to the file"

    file.unlink(missing_ok=True)
    file.write_text(json.dumps(planted))
    file.chmod(0o600)
    file.parent.chmod(0o777)
    assert select("bwrap", environ=elsewhere) == first, "others can write to the directory"
    file.parent.chmod(0o700)
    assert select("bwrap", environ=elsewhere).reason == "planted", "control"
    runtime.chmod(0o777)
    assert select("bwrap", environ=elsewhere) == first, "others can replace the directory"
    runtime.chmod(0o700)

    if os.geteuid() == 0:
        os.chown(file.parent, 12345, 12345)
        assert select("bwrap", environ=elsewhere) == first, "the directory is another's"


def test_without_a_runtime_directory(
    monkeypatch: pytest.MonkeyPatch, elsewhere: dict[str, str]
) -> None:
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    assert select("bwrap", environ=elsewhere).backend is Backend.BWRAP


def test_nothing_will_run_it(runtime: Path) -> None:
    found = select("kvm")
    assert found.backend is None
    with pytest.raises(NsrunError, match="--backend asks for kvm, which can't run here"):
        found.require()
    assert select("junk").backend is None
    assert select(environ={**os.environ, "COWORK_VM_BACKEND": "junk"}).backend is None
    assert select("auto", environ={"COWORK_VM_BACKEND": "junk"}).backend is Backend.NAMESPACES


def test_the_program_answers_like_this_process() -> None:
    report = ask_program()
    assert report.executable == Path(find_program())
    assert report["namespaces"].ok == probe_own().ok
    with pytest.raises(NsrunError, match="--probe"):
        ask_program(program="/nonexistent")


def test_probing_leaves_this_process_alone() -> None:
    def state() -> Any:
        status = Path("/proc/self/status").read_text().splitlines()
        kept = [
            line
            for line in status
            if line.startswith(("SigB", "SigI", "SigC", "Cap", "NoNew", "Seccomp"))
        ]
        return kept, sorted(os.listdir("/proc/self/fd")), os.getcwd(), dict(os.environ)

    def children() -> set[str]:
        tasks = Path("/proc/self/task").iterdir()
        return {pid for task in tasks for pid in (task / "children").read_text().split()}

    before, others = state(), children()
    for _ in range(3):
        assert probe_own().ok
    assert state() == before
    # what other tests started may end meanwhile
    assert children() <= others


# --- the profile --------------------------------------------------------------------------------


@pytest.fixture
def system_place(lack: Lack) -> Iterator[Path]:
    """A directory below / that is root's alone."""
    if os.geteuid() != 0:
        lack("not root: a profile for a path that is root's")
    place = Path("/opt/nsrun-test-profile")
    place.mkdir(mode=0o755)
    program = place / "nsrun"
    program.write_bytes(b"")
    program.chmod(0o755)
    yield program
    program.unlink(missing_ok=True)
    place.rmdir()


def test_profile_for_a_path_of_roots(system_place: Path) -> None:
    text = apparmor.profile(system_place)
    assert f'profile nsrun "{system_place}"' in text
    assert "allow userns," in text.split("profile nsrun_payload")[0]
    assert "audit deny userns," in text.split("profile nsrun_payload")[1]
    assert "sudo apparmor_parser -r /etc/apparmor.d/nsrun" in text
    assert "bwrap" not in text


# rules that parsers of version 3.0 can not read
NEW_RULES = ("userns,", "mqueue,", "io_uring,")


def test_profile_is_one(system_place: Path, lack: Lack, note_lack: Callable[[str], None]) -> None:
    parser = shutil.which("apparmor_parser", path="/usr/sbin:/sbin:/usr/bin:/bin")
    if parser is None:
        lack("no apparmor_parser: the profile is not compiled")
    command = [parser, "--skip-kernel-load", "--skip-cache"]
    text = apparmor.profile(system_place)
    if not Path("/etc/apparmor.d/abi/4.0").exists():
        note_lack("no apparmor_parser 4: the profile is compiled without what 3 can't read")
        known = [line for line in text.splitlines() if not line.endswith(NEW_RULES)]
        text = "\n".join(known).replace("<abi/4.0>", "<abi/3.0>")
    subprocess.run(command, input=text, text=True, check=True)
    broken = subprocess.run(command, input=text.replace("}", "", 1), text=True, check=False)
    assert broken.returncode, "control"


def test_no_profile_for_what_users_can_replace(system_place: Path) -> None:
    system_place.chmod(0o775)
    with pytest.raises(NsrunError, match="others than root can write"):
        apparmor.profile(system_place)
    system_place.chmod(0o755)
    system_place.parent.chmod(0o757)
    with pytest.raises(NsrunError, match=f"can write to {system_place.parent}"):
        apparmor.profile(system_place)
    system_place.parent.chmod(0o755)
    os.chown(system_place, 12345, 0)
    with pytest.raises(NsrunError, match="belongs to uid 12345"):
        apparmor.profile(system_place)
    with pytest.raises(NsrunError, match="No such file"):
        apparmor.profile("/usr/bin/nonexistent-nsrun")


def test_no_profile_in_a_virtual_environment() -> None:
    if sys.prefix == sys.base_prefix:
        pytest.fail("the tests run in the project's virtual environment")
    with pytest.raises(NsrunError, match=r"Install nsrun where only root can write"):
        apparmor.profile(find_program())
