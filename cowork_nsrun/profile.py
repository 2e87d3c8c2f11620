"""Profiles: a :class:`Sandbox` as TOML or JSON, for files and for people.

A profile's keys are the fields of :class:`Sandbox`, :class:`Limits` and the operations:
what there is, is read from their types.  docs/profiles.md has the format.
"""

from __future__ import annotations

import inspect
import json
import os
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, get_type_hints

import tomli_w

from cowork_nsrun.errors import SpecError
from cowork_nsrun.forms import (
    BASE64,
    BASE64_PATTERN,
    OPERATIONS,
    Choice,
    Key,
    Raw,
    Record,
    Schema,
    Source,
    as_table,
    as_text,
    fields_of,
    form_of,
    made_by,
    op_name,
    section,
    summary,
)
from cowork_nsrun.spec import PathLike, Sandbox

Format = Literal["toml", "json"]

PRESETS: Mapping[str, Callable[..., Sandbox]] = MappingProxyType(
    {"minimal": Sandbox.minimal, "workspace": Sandbox.workspace, "cowork": Sandbox.cowork}
)
SCHEMA_ID = "sandbox.schema.json"


# --- in and out ---------------------------------------------------------------------------


def dumps(sandbox: Sandbox, form: Format = "toml") -> str:
    """Write a sandbox; :func:`loads` makes an equal one of it."""
    document = fields_of(Sandbox).dump(sandbox, as_text)
    if form == "json":
        return json.dumps(document, indent=2, ensure_ascii=False) + "\n"
    return tomli_w.dumps(document)


def loads(text: str, form: Format = "toml", *, base: PathLike | None = None) -> Sandbox:
    """Read a profile.

    Arguments:
        base: directory that relative paths of the host are taken from; without one they
            are refused.

    Raises:
        SpecError: with the place of what is wrong.
    """
    try:
        if form == "json":
            document = json.loads(
                text, object_pairs_hook=_without_repetition, parse_constant=_no_constant
            )
        else:
            document = tomllib.loads(text)
    except SpecError:
        raise
    except RecursionError:
        raise SpecError("", "nested too deeply") from None
    except ValueError as error:
        raise SpecError("", f"not {form.upper()}: {error}") from None
    return _sandbox(document, Source(None if base is None else os.path.abspath(base)))


def load(path: PathLike) -> Sandbox:
    """Read a file whose name ends in ``.toml`` or ``.json``.

    Paths of the host in it are relative to its directory; ``~`` is the caller's home.

    Raises:
        SpecError: with the file, and the place in it.
    """
    file = Path(path)
    forms: dict[str, Format] = {".toml": "toml", ".json": "json"}
    form = forms.get(file.suffix.lower())
    try:
        if form is None:
            raise SpecError("", "a name that ends in .toml or .json is wanted")
        return loads(file.read_text(encoding="utf-8"), form, base=file.absolute().parent)
    except SpecError as error:
        raise SpecError(error.field, error.problem, path=str(file)) from None
    except OSError as error:
        raise SpecError(
            "", os.strerror(error.errno or 0), path=str(file), errno=error.errno or 0
        ) from None
    except UnicodeDecodeError as error:
        raise SpecError("", f"not UTF-8: {error.reason}", path=str(file)) from None


def _without_repetition(pairs: list[tuple[str, Raw]]) -> dict[str, Raw]:
    table = dict(pairs)
    if len(table) != len(pairs):
        names = [name for name, _ in pairs]
        raise SpecError(max(names, key=names.count), "there twice")
    return table


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no number")


# --- the whole ----------------------------------------------------------------------------


@cache
def _arguments_of(preset: str) -> Record:
    make = PRESETS[preset]
    hints, helps = get_type_hints(make, include_extras=True), section(make, "Arguments")
    keys = {
        name: Key(
            form_of(hints[name]), item.default is item.empty, item.default, helps.get(name, "")
        )
        for name, item in inspect.signature(make).parameters.items()
    }
    return Record(make, keys, summary(make))


@cache
def _document() -> Record:
    """Every key that a profile can have."""
    arguments = {
        name: replace(key, required=False)
        for preset in PRESETS
        for name, key in _arguments_of(preset).keys.items()
    }
    modes = get_type_hints(Sandbox.network)["mode"]
    keys = {
        "preset": Key(Choice(tuple(PRESETS)), required=False, help="what to begin with"),
        **arguments,
        "network": Key(
            form_of(modes), required=False, help="no network, the host's, or devices to the host"
        ),
        **fields_of(Sandbox).keys,
    }
    return Record(Sandbox, keys, summary(Sandbox))


def _sandbox(raw: Raw, source: Source) -> Sandbox:
    table = {key: item for key, item in as_table(raw, "").items() if key != "$schema"}
    values = _document().values(table, "", source)
    network = values.pop("network", None)
    start = _preset(values)
    # these two are added to what the preset has, the others stand in its place
    for name in ("filesystem", "environment"):
        values[name] = (*getattr(start, name), *values.get(name, ()))
    made: Sandbox = made_by(start.replace, values, "")
    return made if network is None else made.network(network)


def _preset(values: dict[str, Any]) -> Sandbox:
    """What the profile begins with; its arguments are taken out of the values."""
    preset = values.pop("preset", None)
    own = _arguments_of(preset).keys if preset else {}
    owners = {name: [p for p in PRESETS if name in _arguments_of(p).keys] for name in values}
    for name, presets in owners.items():
        if presets and name not in own:
            wanted = " or ".join(f'"{item}"' for item in presets)
            raise SpecError(name, f"needs preset = {wanted}")
    if preset is None:
        return Sandbox()
    arguments = {name: values.pop(name) for name in own if name in values}
    made: Sandbox = _arguments_of(preset).complete(arguments, "")
    return made


def _preset_rules() -> Schema:
    """Which preset needs which arguments, and which argument needs which preset."""
    owners: dict[str, list[str]] = {}
    needs = []
    for preset in PRESETS:
        keys = _arguments_of(preset).keys
        for name in keys:
            owners.setdefault(name, []).append(preset)
        needed = [
            {"anyOf": [{"required": [name]}, {"required": [name + BASE64]}]}
            for name, key in keys.items()
            if key.required
        ]
        if needed:
            chosen = {"properties": {"preset": {"const": preset}}, "required": ["preset"]}
            needs.append({"if": chosen, "then": {"allOf": needed}})
    return {
        "allOf": needs,
        "dependentSchemas": {
            written: {"properties": {"preset": {"enum": presets}}, "required": ["preset"]}
            for name, presets in owners.items()
            for written in (name, name + BASE64)
        },
    }


def _definitions() -> Schema:
    operations: Schema = {}
    for operation in OPERATIONS:
        table = fields_of(operation).schema()
        table["properties"] = {"op": {"const": op_name(operation)}, **table["properties"]}
        table["required"] = ["op", *table.get("required", ())]
        operations[op_name(operation)] = table
    text = {"type": "string", "contentEncoding": "base64", "pattern": BASE64_PATTERN}
    return {"base64": text, **operations}


def schema() -> Schema:
    """The JSON schema of a profile: draft 2020-12."""
    record = _document().schema()
    own = {"type": "string", "description": "where this schema is, for editors"}
    record["properties"] = {"$schema": own, **record["properties"]}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": SCHEMA_ID,
        "title": "nsrun profile",
        **record,
        **_preset_rules(),
        "$defs": _definitions(),
    }


def schema_text() -> str:
    """The text of ``sandbox.schema.json``."""
    return json.dumps(schema(), indent=2, ensure_ascii=False) + "\n"
