"""Profiles: what is written is read back, what is wrong is named by its place."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import tomllib
from contextlib import suppress
from importlib import resources
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cowork_nsrun import (
    Bind,
    BindData,
    BindFd,
    Chmod,
    Dev,
    Dir,
    Egress,
    File,
    Limits,
    Mqueue,
    Namespace,
    Overlay,
    Proc,
    ReadOnlyOverlay,
    RemountReadOnly,
    Sandbox,
    SpecError,
    Symlink,
    Tmpfs,
    TmpOverlay,
    profile,
)
from cowork_nsrun.forms import OPERATIONS, op_name
from cowork_nsrun.spec import LIMITS, Operation

ROOT = Path(__file__).parents[2]
DOCUMENT = ROOT / "docs" / "profiles.md"
SCHEMA = profile.schema()
FORMS: tuple[profile.Format, ...] = ("toml", "json")


def validator() -> jsonschema.Draft202012Validator:
    return jsonschema.Draft202012Validator(SCHEMA)


def parsed(text: str, form: profile.Format) -> Any:
    return json.loads(text) if form == "json" else tomllib.loads(text)


# --- sandboxes of all kinds ---------------------------------------------------------------

unicode_words = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]))
# as names of files come from the kernel: bytes of any encoding
words = unicode_words | st.binary(max_size=20).filter(lambda b: b"\0" not in b).map(os.fsdecode)
paths = words.map(lambda text: "/" + text)
modes = st.integers(0, 0o7777)
contents = st.binary(max_size=50) | unicode_words.map(str.encode)
layers = st.lists(paths, min_size=2, max_size=3).map(tuple)
operations: st.SearchStrategy[Operation] = st.one_of(
    st.builds(Bind, paths, paths, read_only=st.booleans(), optional=st.booleans()),
    st.builds(Bind, paths, paths, devices=st.booleans()),
    st.builds(BindFd, st.integers(0, 2**31 - 1), paths, st.booleans()),
    st.builds(RemountReadOnly, paths),
    st.builds(Proc, paths),
    st.builds(Dev, paths),
    st.builds(Mqueue, paths),
    st.builds(Tmpfs, paths, st.none() | st.integers(1, 2**63 - 1), modes),
    st.builds(Dir, paths, modes),
    st.builds(File, paths, contents, modes),
    st.builds(BindData, paths, contents, st.booleans(), modes),
    st.builds(Symlink, words.filter(bool), paths),
    st.builds(Chmod, paths, modes),
    st.builds(Overlay, paths, layers, paths, paths),
    st.builds(TmpOverlay, paths, layers),
    st.builds(ReadOnlyOverlay, paths, layers),
)
limits = st.builds(
    Limits,
    **{
        name: st.none()
        | (
            st.floats(limit.low, limit.high)
            if limit.unit == "processors"
            else st.integers(int(limit.low), int(limit.high))
        )
        for name, limit in LIMITS.items()
    },
    best_effort=st.booleans(),
)
names = words.filter(lambda text: text and "=" not in text)
caps = st.sampled_from(["cap_chown", "cap_kill", "cap_net_raw", "cap_sys_admin"])
own_namespaces = st.frozensets(st.sampled_from(Namespace)).map(
    lambda some: some | {Namespace.USER, Namespace.PID, Namespace.UTS}
)
ports = st.lists(st.integers(1, 2**16 - 1), max_size=3).map(tuple)
straight = paths.filter(lambda path: ".." not in path.split("/"))
rules = st.lists(
    st.sampled_from(["example.com", "*.example.com:443", "192.0.2.0/24", "[2001:db8::1]:80"]),
    max_size=2,
).map(tuple)
egress = st.builds(Egress, allow=rules, deny=rules, allow_private=st.booleans())
sandboxes = (
    st.builds(
        Sandbox,
        filesystem=st.lists(operations, max_size=6).map(tuple),
        unshare=own_namespaces,
        unshare_try=st.frozensets(st.sampled_from([Namespace.USER, Namespace.CGROUP])),
        disable_userns=st.booleans(),
        uid=st.none() | st.integers(0, 2**31 - 1),
        gid=st.none() | st.integers(0, 2**31 - 1),
        hostname=st.none() | words,
        cwd=st.none() | paths,
        clear_env=st.booleans(),
        environment=st.dictionaries(names, st.none() | words, max_size=5),
        caps_add=st.frozensets(caps.map(lambda name: name.replace("cap", "CAP_MORE"))),
        caps_drop=st.frozensets(caps),
        seccomp_profile=st.sampled_from(["default", "nesting", "strict", "none"]),
        seccomp=st.lists(st.binary(min_size=8, max_size=8), max_size=2).map(tuple),
        landlock=st.just(True),
        tcp_connect=st.none() | ports,
        tcp_bind=st.none() | ports,
        deny_read=st.lists(straight, max_size=2).map(tuple),
        deny_write=st.lists(straight, max_size=2).map(tuple),
        new_session=st.booleans(),
        die_with_parent=st.booleans(),
        close_fds=st.booleans(),
        lock_files=st.lists(words, max_size=2).map(tuple),
        limits=limits,
        timeout=st.none() | st.floats(0, 10**9, exclude_min=True),
    )
    | st.builds(
        Sandbox,
        filesystem=st.lists(operations, max_size=2),
        unshare=own_namespaces.map(lambda some: some | {Namespace.NET}),
        as_pid_1=st.just(True),
        egress=st.none() | egress,
        backend=st.sampled_from(["host", "unconfined"]),
        private_tmp=st.booleans(),
    )
    | st.builds(
        Sandbox,
        unshare=own_namespaces.map(lambda some: some | {Namespace.NET}),
        backend=st.sampled_from(["auto", "namespaces"]),
        veth=st.booleans(),
    )
)


@pytest.mark.parametrize("form", FORMS)
@settings(deadline=None)
@given(sandbox=sandboxes)
def test_any_sandbox_comes_back(form: profile.Format, sandbox: Sandbox) -> None:
    text = profile.dumps(sandbox, form)
    text.encode()
    assert profile.loads(text, form) == sandbox
    validator().validate(parsed(text, form))


def test_every_operation_and_field_is_generated() -> None:
    """What is forgotten above would not be tested."""
    source = Path(__file__).read_text()
    for operation in OPERATIONS:
        assert f"st.builds({operation.__name__}," in source
    for item in dataclasses.fields(Sandbox):
        assert f" {item.name}=" in source


@pytest.mark.parametrize(
    "sandbox",
    [Sandbox(), Sandbox.minimal(), Sandbox.workspace("/usr"), Sandbox.cowork("s", {"a": "/a"})],
)
@pytest.mark.parametrize("form", FORMS)
def test_presets_come_back(sandbox: Sandbox, form: profile.Format) -> None:
    assert profile.loads(profile.dumps(sandbox, form), form) == sandbox


def test_what_is_written_is_short_and_legible() -> None:
    spec = Sandbox(
        filesystem=(
            Tmpfs("/", size=4096, mode=0o1777),
            File("/a", b"two\nlines\n"),
            File("/b", b"\xff"),
        ),
        unshare=frozenset(Namespace),
        limits=Limits(memory=2**20),
        seccomp=(bytes(8),),
    ).env(A="1", B=None)
    assert json.loads(profile.dumps(spec, "json")) == {
        "filesystem": [
            {"op": "tmpfs", "dest": "/", "size": 4096, "mode": "01777"},
            {"op": "file", "dest": "/a", "content": "two\nlines\n"},
            {"op": "file", "dest": "/b", "content_base64": "/w=="},
        ],
        "unshare": ["cgroup", "ipc", "net", "pid", "user", "uts"],
        "environment": {"A": "1", "B": False},
        "seccomp_base64": ["AAAAAAAAAAA="],
        "limits": {"memory": 2**20},
    }


# --- profiles that people write -----------------------------------------------------------


def test_preset_with_overrides(tmp_path: Path) -> None:
    (tmp_path / "src").mkdir()
    file = tmp_path / "p.toml"
    file.write_text(
        """
        preset = "workspace"
        path = "src"
        network = "host"
        timeout = 5
        filesystem = [
            { op = "bind", source = "../x" },
            { op = "tmpfs", dest = "/s", size = "1.5K" },
        ]
        environment = { TERM = false, A = "b" }
        limits = { memory = "1G", cpu = 2 }
        """
    )
    above = tmp_path.parent / "x"
    expected = (
        Sandbox.workspace(tmp_path / "src")
        .network("host")
        .bind(above)
        .tmpfs("/s", size=1536)
        .env(TERM=None, A="b")
        .limit(memory=2**30, cpu=2.0)
        .replace(timeout=5.0)
    )
    assert profile.load(file) == expected


def test_cowork_in_a_profile() -> None:
    document = {
        "preset": "cowork",
        "session": "s",
        "mounts": {"work": "w", "docs": "/docs"},
        "read_only": ["docs"],
        "home": "~",
        "extra": [{"op": "bind", "source": "/opt", "read_only": True}],
    }
    expected = Sandbox.cowork(
        "s",
        {"work": "/base/w", "docs": "/docs"},
        home=Path.home(),
        read_only=["docs"],
        extra=[Bind("/opt", "/opt", read_only=True)],
    )
    assert profile.loads(json.dumps(document), "json", base="/base") == expected
    validator().validate(document)


def test_home_and_absolute_paths_need_no_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/u")
    text = 'filesystem = [{ op = "bind", source = "~/a" }, { op = "bind", source = "/b/../c" }]'
    assert profile.loads(text).filesystem == (
        Bind("/home/u/a", "/home/u/a"),
        Bind("/b/../c", "/b/../c"),
    )


def test_arguments_of_presets_are_no_fields() -> None:
    own = {item.name for item in dataclasses.fields(Sandbox)} | {"preset", "network", "$schema"}
    for preset in profile.PRESETS:
        assert not own & profile._arguments_of(preset).keys.keys()


def op(**keys: Any) -> dict[str, Any]:
    return {"filesystem": [op_dir("/a"), keys]}


def op_dir(dest: str) -> dict[str, Any]:
    return {"op": "dir", "dest": dest}


# document, place, part of the problem, and whether a schema can tell
WRONG: dict[str, tuple[Any, str, str, bool]] = {
    "an array": ([], "the profile", "a table is wanted, not an array", True),
    "unknown key": ({"unshrae": []}, "unshrae", "unknown; did you mean unshare?", True),
    "nothing like it": ({"xyzzy": 1}, "xyzzy", "unknown; there are: preset", True),
    "unknown key of an operation": (
        op(op="bind", sorce="/a", dest="/b"),
        "filesystem[1].sorce",
        "unknown; did you mean source?",
        True,
    ),
    "unknown limit": ({"limits": {"mem": 1}}, "limits.mem", "unknown", True),
    "unknown operation": (op(op="bnd"), "filesystem[1].op", "did you mean bind?", True),
    "operation without op": (op(dest="/a"), "filesystem[1].op", "is missing", True),
    "op of another type": (op(op=1), "filesystem[1].op", "a string is wanted", True),
    "missing field": (op(op="symlink", dest="/a"), "filesystem[1].target", "is missing", True),
    "missing dest": (op(op="dir"), "filesystem[1].dest", "is missing", True),
    "relative dest": (op(op="dir", dest="a"), "filesystem[1].dest", "absolute path", True),
    "relative source": (
        op(op="bind", source="a"), "filesystem[1].source", "'a' is relative", False,
    ),
    "empty source": (op(op="bind", source=""), "filesystem[1].source", "a path is wanted", True),
    "nobody's home": (
        op(op="bind", source="~no-such-user/a"), "filesystem[1].source", "whose home", False,
    ),
    "mode as a number": (
        op(op="dir", dest="/a", mode=755),
        "filesystem[1].mode",
        "a string of octal digits such as '0755' is wanted, not the number 755",
        True,
    ),
    "mode that is not octal": (
        op(op="dir", dest="/a", mode="789"), "filesystem[1].mode", "octal", True,
    ),
    "mode with a newline": (
        op(op="dir", dest="/a", mode="755\n"), "filesystem[1].mode", "octal", False,
    ),
    "size of another kind": (
        op(op="tmpfs", dest="/a", size="64MB"), "filesystem[1].size", "K, M, G or T", True,
    ),
    "size of a part": (
        op(op="tmpfs", dest="/a", size="0.3K"), "filesystem[1].size", "whole number", False,
    ),
    "size of nothing": (op(op="tmpfs", dest="/a", size=0), "filesystem[1].size", "between", True),
    "flag as a number": (
        op(op="bind", source="/a", read_only=1), "filesystem[1].read_only", "true or false", True,
    ),
    "content twice": (
        op(op="file", dest="/a", content="", content_base64=""),
        "filesystem[1].content",
        "there twice",
        True,
    ),
    "content that is no base64": (
        op(op="file", dest="/a", content_base64="=a"),
        "filesystem[1].content_base64",
        "base64",
        True,
    ),
    "base64 of a flag": (
        op(op="bind", source="/a", read_only_base64="YQ=="),
        "filesystem[1].read_only_base64",
        "unknown",
        True,
    ),
    "a layer of another type": (
        op(op="tmp_overlay", dest="/a", layers=["/a", 1]),
        "filesystem[1].layers[1]",
        "a string is wanted, not the number 1",
        True,
    ),
    "string for an array": ({"caps_drop": "all"}, "caps_drop", "an array is wanted", True),
    "unknown namespace": ({"unshare": ["tim"]}, "unshare[0]", "'tim' is unknown", True),
    "table for a string": ({"cwd": {}}, "cwd", "a string is wanted, not a table", True),
    "true for a number": ({"uid": True}, "uid", "a whole number is wanted, not true", True),
    "a fraction for a number": ({"uid": 1.5}, "uid", "a whole number is wanted", True),
    "null": ({"cwd": None}, "cwd", "a string is wanted, not null", True),
    "a variable's number": ({"environment": {"A": 1}}, "environment.A", "a string is wanted", True),
    "true for a variable": ({"environment": {"A": True}}, "environment.A", "not true", True),
    "a variable named =": ({"environment": {"=": "a"}}, "environment", "a variable's name", False),
    "userns forbidden without one": ({"disable_userns": True}, "disable_userns", "'user'", False),
    "no time at all": ({"timeout": 0}, "timeout", "more than 0", True),
    "too little memory": ({"limits": {"memory": 1}}, "limits.memory", "not between", True),
    "half a process": ({"limits": {"pids": 0.5}}, "limits.pids", "a whole number", True),
    "a huge number": ({"limits": {"memory": 2**70}}, "limits.memory", "too large", True),
    "unknown preset": ({"preset": "max"}, "preset", "'max' is unknown", True),
    "argument of another preset": (
        {"preset": "minimal", "session": "s"}, "session", 'needs preset = "cowork"', True,
    ),
    "argument without a preset": ({"path": "/usr"}, "path", 'needs preset = "workspace"', True),
    "preset without its argument": ({"preset": "workspace"}, "path", "is missing", True),
    "workspace that is absent": (
        {"preset": "workspace", "path": "/no/such"}, "path", "not a directory", False,
    ),
    "session with a slash": (
        {"preset": "cowork", "session": "a/b"}, "session", "one name of a directory", False,
    ),
    "unknown network": ({"network": "all"}, "network", "'all' is unknown", True),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_named_by_its_place(name: str) -> None:
    document, place, problem, told = WRONG[name]
    with pytest.raises(SpecError) as caught:
        profile.loads(json.dumps(document), "json")
    assert caught.value.field == place
    assert problem in caught.value.problem
    assert validator().is_valid(document) is not told


@pytest.mark.parametrize(
    ("text", "form", "problem"),
    [
        ("a = ", "toml", "not TOML: Invalid value (at end of document)"),
        ("{", "json", "not JSON: "),
        ('{"cwd": "/a", "cwd": "/b"}', "json", "cwd: there twice"),
        ("cwd = 2020-01-01", "toml", "cwd: a string is wanted, not the date 2020-01-01"),
        ('{"timeout": NaN}', "json", "NaN is no number"),
        ("timeout = nan", "toml", "timeout: nan is not between"),
        ("[" * 100000, "json", "nested too deeply"),
        ("a = " + "[" * 100000, "toml", "nested too deeply"),
        ('{"timeout": ' + "9" * 5000 + "}", "json", "not JSON: "),
        ("cwd = 0x" + "f" * 9000, "toml", "cwd: a string is wanted, not a number too large"),
        ("uid = 0x" + "f" * 9000, "toml", "uid: a whole number is wanted, not a number too large"),
        ('{"cwd": "/\\ud800"}', "json", "can't be encoded"),
        ("null", "json", "the profile: a table is wanted, not null"),
    ],
)
def test_no_text_does_harm(text: str, form: profile.Format, problem: str) -> None:
    with pytest.raises(SpecError) as caught:
        profile.loads(text, form)
    assert problem in str(caught.value)


known_keys = st.sampled_from([*SCHEMA["properties"], "op", "dest", "source", "content_base64"])
scalars = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.sampled_from(["bind"])
)
documents = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(max_size=5) | known_keys, inner, max_size=4)
    ),
    max_leaves=10,
)


@settings(deadline=None, max_examples=300)
@given(st.dictionaries(known_keys, documents, max_size=4) | documents)
def test_any_document_is_read_or_refused(document: Any) -> None:
    try:
        made = profile.loads(json.dumps(document), "json", base="/")
    except SpecError:
        return
    assert profile.loads(profile.dumps(made)) == made


@pytest.mark.parametrize("form", FORMS)
@settings(deadline=None)
@given(text=st.text())
def test_any_text_is_read_or_refused(form: profile.Format, text: str) -> None:
    with suppress(SpecError):
        profile.loads(text, form)


# --- files --------------------------------------------------------------------------------


def test_errors_name_the_file(tmp_path: Path) -> None:
    file = tmp_path / "p.toml"
    file.write_text("uid = -1")
    with pytest.raises(SpecError) as caught:
        profile.load(file)
    assert str(caught.value) == f"{file}: uid: -1 is not between 0 and 2147483647"
    assert (caught.value.path, caught.value.field) == (str(file), "uid")


@pytest.mark.parametrize(
    ("name", "data", "problem"),
    [
        ("p.yaml", b"", "a name that ends in .toml or .json is wanted"),
        ("p.toml", b"\xff", "not UTF-8"),
        ("absent/p.json", None, "No such file or directory"),
    ],
)
def test_files_that_are_none(tmp_path: Path, name: str, data: bytes | None, problem: str) -> None:
    file = tmp_path / name
    if data is not None:
        file.write_bytes(data)
    with pytest.raises(SpecError) as caught:
        profile.load(file)
    assert str(caught.value).startswith(f"{file}: {problem}")


# --- schema -------------------------------------------------------------------------------


def test_schema_is_one() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)


def test_published_schema_is_the_types_own() -> None:
    """Else: nsrun profile schema > cowork_nsrun/sandbox.schema.json"""
    published = resources.files("cowork_nsrun") / "sandbox.schema.json"
    assert published.read_text() == profile.schema_text()
    assert (ROOT / "cowork_nsrun" / "sandbox.schema.json").read_text() == profile.schema_text()


def test_schema_says_what_each_key_is() -> None:
    for name, key in SCHEMA["properties"].items():
        assert key.get("description"), name
    for name in LIMITS:
        assert SCHEMA["properties"]["limits"]["properties"][name]["description"], name


def nodes(document: Any) -> list[tuple[Any, Any]]:
    """Every place in a document: a container, and the key or index in it."""
    pairs = document.items() if isinstance(document, dict) else enumerate(document)
    found = []
    for key, item in list(pairs):
        found.append((document, key))
        if isinstance(item, dict | list):
            found += nodes(item)
    return found


junk: st.SearchStrategy[Any] = st.sampled_from(
    [None, True, False, 0, -1, 2**65, 0.5, "", "a", "/a", "0755", "64M", "pid", [], ["a"], {}]
)


@settings(deadline=None, max_examples=300)
@given(st.data())
def test_schema_is_no_stricter_than_the_reader(data: st.DataObject) -> None:
    """A document with one thing changed: if it is read, then it is valid."""
    document = json.loads(profile.dumps(data.draw(sandboxes), "json"))
    places = nodes(document)
    if places:
        container, key = data.draw(st.sampled_from(places))
        if data.draw(st.booleans()):
            del container[key]
        else:
            container[key] = data.draw(junk)
    try:
        profile.loads(json.dumps(document), "json")
    except SpecError:
        return
    validator().validate(document)


# --- the document -------------------------------------------------------------------------


def blocks(form: str) -> list[str]:
    return re.findall(rf"^```{form}\n(.*?)^```$", DOCUMENT.read_text(), re.M | re.S)


@pytest.mark.parametrize("form", FORMS)
def test_examples_are_profiles(form: profile.Format, tmp_path: Path) -> None:
    texts = blocks(form)
    assert texts
    for text in texts:
        file = tmp_path / f"example.{form}"
        file.write_text(text)
        spec = profile.load(file)
        assert profile.loads(profile.dumps(spec)) == spec
        validator().validate(parsed(text, form))


def test_documented_limits_are_the_table() -> None:
    rows = re.findall(r"^\| `(\w+)` \| (\w+) \| (\w+) \|$", DOCUMENT.read_text(), re.M)
    listed = {name: (None if held == "cgroup" else held, unit) for name, held, unit in rows}
    assert listed == {name: (limit.rlimit, limit.unit) for name, limit in LIMITS.items()}


def test_every_operation_is_documented() -> None:
    text = DOCUMENT.read_text()
    for operation in OPERATIONS:
        assert f"`{op_name(operation)}`" in text
