"""What is written about the options is what the parser knows, in every place."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cowork_nsrun import LimitError, NsrunError, Plan
from cowork_nsrun._native import cap_mask
from cowork_nsrun.program import find_program

ROOT = Path(__file__).parents[2]
TABLE = ROOT / "csrc" / "core" / "options.def"
ROW = re.compile(r'^O\("(--[a-z0-9-]+)", "([A-Z0-9 ]*)", (\d)', re.M)
SHARE = Path(find_program()).parents[1] / "share"
MAN = SHARE / "man" / "man1" / "nsrun.1"
BASH = SHARE / "bash-completion" / "completions" / "nsrun.bash"
ZSH = SHARE / "zsh" / "site-functions" / "_nsrun"
Lack = Callable[[str], Any]


def table() -> dict[str, list[str]]:
    """Options and the names of their arguments."""
    rows = {name: args.split() for name, args, _ in ROW.findall(TABLE.read_text())}
    assert len(rows) > 60
    return rows


def test_counts_of_arguments_are_their_names() -> None:
    for name, args, count in ROW.findall(TABLE.read_text()):
        assert len(args.split()) == int(count), name


def test_help_lists_the_table() -> None:
    out = subprocess.run([find_program(), "--help"], capture_output=True, text=True, check=True)
    listed = re.findall(r"^    (--[a-z0-9-]+)((?: [A-Z0-9]+(?![A-Za-z0-9]))*)", out.stdout, re.M)
    assert {name: args.split() for name, args in listed} == table()


def test_man_page_lists_the_table() -> None:
    text = MAN.read_text().replace("\\-", "-")
    listed = re.findall(r"^\.B (--[a-z0-9-]+)(?: \\fI([A-Z0-9 ]+)\\fR)?$", text, re.M)
    assert {name: args.split() for name, args in listed} == table()


def test_man_page_is_well_formed(lack: Lack) -> None:
    if not shutil.which("man"):
        lack("no man: the man page is not rendered")
    out = subprocess.run(
        ["man", "--warnings", "-l", MAN], capture_output=True, text=True, check=True
    )
    assert out.stderr == ""
    assert "--remount-ro DEST" in re.sub(r".\x08", "", out.stdout)


def test_bash_completion_lists_the_table() -> None:
    listed = re.findall(r"^    \[(--[a-z0-9-]+)\]='([a-z_ ]*)'$", BASH.read_text(), re.M)
    assert {name: len(kinds.split()) for name, kinds in listed} == {
        name: len(args) for name, args in table().items()
    }


def complete(*words: str) -> list[str]:
    """What bash offers for the last word."""
    script = (
        'source "$1"; shift; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); '
        '_nsrun; printf "%s\\n" "${COMPREPLY[@]}"'
    )
    command = ["bash", "--norc", "-c", script, "bash", str(BASH), "nsrun", *words]
    # compopt speaks to readline, which is not there
    out = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=True
    )
    return out.stdout.split()


def test_bash_completes_options_and_words() -> None:
    assert sorted(complete("--")) == sorted(table())
    assert complete("") == ["run", "doctor", "profile", "serve", "sessions", "version"]
    assert complete("--unshare-all", "--proc", "/proc", "--as-p") == ["--as-pid-1"]


def test_bash_completes_arguments(tmp_path: Path) -> None:
    (tmp_path / "one").touch()
    assert complete("--ro-bind", "/usr", f"{tmp_path}/o") == [f"{tmp_path}/one"]
    assert complete("--cap-drop", "cap_sys_adm") == ["cap_sys_admin"]
    assert "0" in complete("--args", "")
    assert complete("--setenv", "PAT") == ["PATH"]
    assert complete("--perms", "0") == []


def test_completed_capabilities_are_known() -> None:
    names = complete("--cap-add", "")
    assert len(names) > 40
    masks = {name: cap_mask(name) for name in names if name != "ALL"}
    assert sorted(masks.values()) == [1 << number for number in range(len(masks))]


def test_zsh_completion_lists_the_table() -> None:
    listed = {
        name: args.split(":")[1::2]
        for name, args in re.findall(
            r"^    '\*(--[a-z0-9-]+)\[(?:[^\]\\]|\\.)*\]((?::[^']*)?(?:'\\''[^']*)*)'$",
            ZSH.read_text(),
            re.M,
        )
    }
    assert listed == table()


def test_zsh_takes_the_completion(lack: Lack) -> None:
    if not shutil.which("zsh"):
        lack("no zsh: its completion is not loaded")
    script = f"autoload -Uz compinit; compinit -u -D; source {ZSH} 2>/dev/null; whence -w _nsrun"
    out = subprocess.run(["zsh", "-fc", script], capture_output=True, text=True, check=True)
    assert out.stdout == "_nsrun: function\n"


def test_completion_descriptions_are_the_table_s() -> None:
    text = ZSH.read_text()
    assert "--tmpfs[Mount a new tmpfs at DEST]" in text


def test_every_option_is_parsed() -> None:
    """None of the documented names is unknown to the parser."""
    for name in table():
        with pytest.raises(NsrunError) as caught:
            Plan.from_argv([name], {})
        assert "Unknown option" not in caught.value.text, name


# --- README -----------------------------------------------------------------------------------


def shell_lines() -> list[str]:
    blocks = re.findall(r"^```sh\n(.*?)^```$", (ROOT / "README.md").read_text(), re.M | re.S)
    return [line for block in blocks for line in block.splitlines() if line.strip()]


def test_readme_s_commands_exist() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.M))
    lines = shell_lines()
    assert len(lines) >= 3
    for line in lines:
        word, *rest = line.split()
        if word == "make":
            assert rest[0] in targets, line
        else:
            program = word.removeprefix(".venv/bin/")
            assert shutil.which(program, path=Path(find_program()).parent), line


def test_readme_s_nsrun_options_exist() -> None:
    help_text = "".join(
        subprocess.run([find_program(), *words], capture_output=True, text=True, check=True).stdout
        for words in (["--help"], ["run", "--help"])
    )
    for line in shell_lines():
        if line.startswith(("nsrun", ".venv/bin/nsrun")):
            for option in re.findall(r"(?<= )--[a-z-]+", line.split(" -- ")[0]):
                assert option in help_text, line


def test_readme_s_python_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lack: Lack) -> None:
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"^```python\n(.*?)^```$", (ROOT / "README.md").read_text(), re.M | re.S)
    assert blocks
    for block in blocks:
        try:
            exec(compile(block, "README.md", "exec"), {})
        except LimitError as error:
            lack(f"README's limits can't be had here: {error}")


def tutorial() -> list[str]:
    text = (ROOT / "docs" / "tutorial.md").read_text()
    return re.findall(r"^```python\n(.*?)^```$", text, re.M | re.S)


@pytest.mark.parametrize("number", range(len(tutorial())))
def test_tutorial_s_python_runs(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    exec(compile(tutorial()[number], "tutorial.md", "exec"), {})


def test_tutorial_begins_with_ten_lines() -> None:
    assert len(tutorial()) >= 9
    first = tutorial()[0].strip().splitlines()
    assert len([line for line in first if line]) <= 10
    assert "timeout=" in first[4] + first[3]
    assert ".limit(" in first[2] + first[1]


def test_files_that_the_documents_name_exist() -> None:
    for document in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\(([^)#:]+)\)", document.read_text()):
            assert (document.parent / target).exists(), f"{document.name}: {target}"
