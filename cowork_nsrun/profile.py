"""Profiles: a :class:`Sandbox` as TOML or JSON, for files and for people.

A profile's keys are the fields of :class:`Sandbox`, :class:`Limits` and the operations:
what there is, is read from their types.  docs/profiles.md has the format.
"""

from __future__ import annotations

import base64
import binascii
import inspect
import json
import os
import re
import tomllib
import types
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, replace
from difflib import get_close_matches
from enum import StrEnum
from functools import cache
from pathlib import Path
from typing import (
    Annotated,
    Any,
    Literal,
    Protocol,
    Union,
    get_args,
    get_origin,
    get_type_hints,
)

import tomli_w

from cowork_nsrun.errors import SpecError
from cowork_nsrun.spec import (
    LIMITS,
    SIZE_PATTERN,
    Kind,
    Limits,
    Operation,
    PathLike,
    Range,
    Sandbox,
)

Format = Literal["toml", "json"]

PRESETS: Mapping[str, Callable[..., Sandbox]] = types.MappingProxyType(
    {"minimal": Sandbox.minimal, "workspace": Sandbox.workspace, "cowork": Sandbox.cowork}
)
SCHEMA_ID = "sandbox.schema.json"
INT_BITS = 64
_BASE64 = "_base64"
_BASE64_PATTERN = "^(?:[A-Za-z0-9+/]{4})*(?:[A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?$"
_MODE_PATTERN = "^0?[0-7]{1,4}$"

# what a JSON or TOML parser gives
Raw = Any
Schema = dict[str, Any]


# --- in and out ---------------------------------------------------------------------------


def dumps(sandbox: Sandbox, form: Format = "toml") -> str:
    """Write a sandbox; :func:`loads` makes an equal one of it."""
    document = _fields_of(Sandbox).dump(sandbox, _as_text)
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
    return _sandbox(document, _Source(None if base is None else os.path.abspath(base)))


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


# --- text and base64 ----------------------------------------------------------------------

Encode = Callable[[str | bytes], str]


class _NotText(ValueError):
    """Bytes that no text stands for."""


def _as_text(value: str | bytes) -> str:
    try:
        text = os.fsencode(value).decode()
    except UnicodeDecodeError:
        raise _NotText from None
    if "\0" in text:
        raise _NotText
    return text


def _as_base64(value: str | bytes) -> str:
    return base64.b64encode(os.fsencode(value)).decode()


@dataclass(frozen=True, slots=True)
class _Source:
    """Where a profile comes from, and how the strings at this place are written."""

    base: str | None
    binary: bool = False

    def data(self, raw: Raw, place: str) -> bytes:
        if not isinstance(raw, str):
            raise _wrong(place, "a string", raw)
        if not self.binary:
            try:
                return raw.encode()
            except UnicodeEncodeError:
                raise SpecError(place, f"{raw!r} can't be encoded") from None
        try:
            return base64.b64decode(raw, validate=True)
        except (binascii.Error, ValueError) as error:
            raise SpecError(place, f"not base64: {error}") from None

    def text(self, raw: Raw, place: str) -> str:
        return os.fsdecode(self.data(raw, place))

    def host_path(self, raw: Raw, place: str) -> str:
        text = self.text(raw, place)
        if text.startswith("~"):
            text = os.path.expanduser(text)
            if text.startswith("~"):
                raise SpecError(place, f"whose home is {text!r}?")
        if not text or "\0" in text:
            raise SpecError(place, f"a path is wanted, not {text!r}")
        if text.startswith("/"):
            return text
        if self.base is None:
            raise SpecError(place, f"{text!r} is relative, and no profile's directory is known")
        return os.path.abspath(os.path.join(self.base, text))


# --- places and their errors --------------------------------------------------------------


def _join(place: str, key: str) -> str:
    return f"{place}.{key}" if place else key


def _wrong(place: str, wanted: str, raw: Raw) -> SpecError:
    match raw:
        case bool():
            given = "true" if raw else "false"
        case str():
            given = f"the string {raw!r}"
        case int() if raw.bit_length() > INT_BITS:
            given = "a number too large"
        case int() | float():
            given = f"the number {raw}"
        case list():
            given = "an array"
        case dict():
            given = "a table"
        case None:
            given = "null"
        case _:
            given = f"the {type(raw).__name__} {raw}"
    return SpecError(place, f"{wanted} is wanted, not {given}")


def _unknown(place: str, key: str, known: Collection[str]) -> SpecError:
    near = get_close_matches(key, known, n=1)
    hint = f"did you mean {near[0]}?" if near else f"there are: {', '.join(known)}"
    return SpecError(_join(place, key), f"unknown; {hint}")


def _table(raw: Raw, place: str) -> dict[str, Raw]:
    if not isinstance(raw, dict):
        raise _wrong(place or "the profile", "a table", raw)
    return raw


def _made(make: Callable[..., Any], values: Mapping[str, Any], place: str) -> Any:
    """``make(**values)``, with what it refuses named by its place in the profile."""
    try:
        return make(**values)
    except SpecError as error:
        name = error.field.rpartition(".")[2]
        raise SpecError(_join(place, name), error.problem) from None


def _is_no_number(raw: Raw) -> bool:
    """A bool, which Python takes for an int, or an int that no field can hold."""
    return isinstance(raw, bool) or (isinstance(raw, int) and raw.bit_length() > INT_BITS)


# --- kinds of values: each knows how to write, read and describe itself --------------------


class _Form(Protocol):
    """How one kind of value is written.

    ``holds_text``: it has strings in it that may be bytes of no encoding; ``_base64``
    behind the key then says that they are base64.
    """

    @property
    def holds_text(self) -> bool: ...
    def dump(self, value: Any, encode: Encode) -> Raw: ...
    def load(self, raw: Raw, place: str, source: _Source) -> Any: ...
    def schema(self, *, binary: bool = False) -> Schema: ...


def _string_schema(*, binary: bool, **more: Any) -> Schema:
    if binary:
        return {"$ref": "#/$defs/base64"}
    return {"type": "string", **more}


@dataclass(frozen=True, slots=True)
class _Text:
    kind: Kind | None = None
    holds_text = True

    def dump(self, value: str, encode: Encode) -> Raw:
        return encode(value)

    def load(self, raw: Raw, place: str, source: _Source) -> str:
        if self.kind == Kind.HOST_PATH:
            return source.host_path(raw, place)
        return source.text(raw, place)

    def schema(self, *, binary: bool = False) -> Schema:
        if self.kind == Kind.INNER_PATH:
            return _string_schema(binary=binary, pattern="^/")
        least = {"minLength": 1} if self.kind == Kind.HOST_PATH else {}
        return _string_schema(binary=binary, **least)


@dataclass(frozen=True, slots=True)
class _Bytes:
    holds_text = True

    def dump(self, value: bytes, encode: Encode) -> Raw:
        return encode(value)

    def load(self, raw: Raw, place: str, source: _Source) -> bytes:
        return source.data(raw, place)

    def schema(self, *, binary: bool = False) -> Schema:
        return _string_schema(binary=binary)


@dataclass(frozen=True, slots=True)
class _Plain:
    """A value that JSON and TOML have: the spec checks its range."""

    of: type
    range: Range | None = None
    holds_text = False

    def dump(self, value: Any, encode: Encode) -> Raw:
        return value

    def load(self, raw: Raw, place: str, source: _Source) -> Any:
        wanted: Any = (int, float) if self.of is float else self.of
        if not isinstance(raw, wanted) or (self.of is not bool and _is_no_number(raw)):
            named = {bool: "true or false", int: "a whole number", float: "a number"}
            raise _wrong(place, named[self.of], raw)
        return raw

    def schema(self, *, binary: bool = False) -> Schema:
        name = {bool: "boolean", int: "integer", float: "number"}[self.of]
        if self.range is None:
            return {"type": name}
        # a range of real numbers that begins at 0 is one of times
        low = "exclusiveMinimum" if self.of is float and not self.range.low else "minimum"
        return {"type": name, low: self.range.low, "maximum": self.range.high}


@dataclass(frozen=True, slots=True)
class _Size:
    """Bytes, or a string such as ``64M``, which the spec takes as it is."""

    range: Range
    holds_text = False

    def dump(self, value: int, encode: Encode) -> Raw:
        return value

    def load(self, raw: Raw, place: str, source: _Source) -> Any:
        if not isinstance(raw, int | str) or _is_no_number(raw):
            raise _wrong(place, "a number of bytes or such as '64M'", raw)
        return raw

    def schema(self, *, binary: bool = False) -> Schema:
        low, high = self.range
        return {
            "anyOf": [
                {"type": "integer", "minimum": low, "maximum": high},
                {"type": "string", "pattern": f"^{SIZE_PATTERN}$"},
            ]
        }


@dataclass(frozen=True, slots=True)
class _Mode:
    """Octal digits in a string: the number 755 would be another mode than it looks."""

    holds_text = False

    def dump(self, value: int, encode: Encode) -> Raw:
        return f"0{value:03o}"

    def load(self, raw: Raw, place: str, source: _Source) -> int:
        if not isinstance(raw, str) or not re.fullmatch(_MODE_PATTERN, raw, re.ASCII):
            raise _wrong(place, "a string of octal digits such as '0755'", raw)
        return int(raw, 8)

    def schema(self, *, binary: bool = False) -> Schema:
        return {"type": "string", "pattern": _MODE_PATTERN}


@dataclass(frozen=True, slots=True)
class _Choice:
    values: tuple[str, ...]
    holds_text = False

    def dump(self, value: str, encode: Encode) -> Raw:
        return str(value)

    def load(self, raw: Raw, place: str, source: _Source) -> str:
        if not isinstance(raw, str):
            raise _wrong(place, "a string", raw)
        if raw not in self.values:
            raise SpecError(place, f"{raw!r} is unknown; there are: {', '.join(self.values)}")
        return raw

    def schema(self, *, binary: bool = False) -> Schema:
        return {"type": "string", "enum": list(self.values)}


@dataclass(frozen=True, slots=True)
class _List:
    item: _Form
    make: type[tuple[Any, ...]] | type[frozenset[Any]]

    @property
    def holds_text(self) -> bool:
        return self.item.holds_text

    def dump(self, value: Collection[Any], encode: Encode) -> Raw:
        items = sorted(value) if self.make is frozenset else value
        return [self.item.dump(item, encode) for item in items]

    def load(self, raw: Raw, place: str, source: _Source) -> Any:
        if not isinstance(raw, list):
            raise _wrong(place, "an array", raw)
        return self.make(
            self.item.load(item, f"{place}[{at}]", source) for at, item in enumerate(raw)
        )

    def schema(self, *, binary: bool = False) -> Schema:
        return {"type": "array", "items": self.item.schema(binary=binary)}


@dataclass(frozen=True, slots=True)
class _Pairs:
    """Names and values as a table; ``false`` stands for None, which TOML has not."""

    value: _Text
    or_none: bool
    holds_text = True

    def dump(self, value: Sequence[tuple[str, Any]], encode: Encode) -> Raw:
        return {
            encode(name): False if item is None else self.value.dump(item, encode)
            for name, item in value
        }

    def load(self, raw: Raw, place: str, source: _Source) -> tuple[tuple[str, Any], ...]:
        return tuple(
            (
                source.text(name, place),
                None
                if self.or_none and item is False
                else self.value.load(item, _join(place, name), source),
            )
            for name, item in _table(raw, place).items()
        )

    def schema(self, *, binary: bool = False) -> Schema:
        value = self.value.schema(binary=binary)
        if self.or_none:
            value = {"anyOf": [value, {"const": False}]}
        return {"type": "object", "additionalProperties": value}


@dataclass(frozen=True, slots=True)
class _Key:
    form: _Form
    required: bool
    default: Any = None
    help: str = ""


@dataclass(frozen=True, slots=True)
class _Record:
    """Something that is made of named values: a dataclass, or the arguments of a preset."""

    make: Callable[..., Any]
    keys: Mapping[str, _Key]
    help: str = ""
    holds_text = False  # its keys say so for themselves

    def dump(self, value: Any, encode: Encode) -> dict[str, Raw]:
        table = {}
        for name, key in self.keys.items():
            item = getattr(value, name)
            if not key.required and item == key.default:
                continue
            try:
                table[name] = key.form.dump(item, _as_text)
            except _NotText:
                table[name + _BASE64] = key.form.dump(item, _as_base64)
        return table

    def values(self, raw: Raw, place: str, source: _Source) -> dict[str, Any]:
        """What is in a table, each value read, none added."""
        values: dict[str, Any] = {}
        for key, item in _table(raw, place).items():
            name, binary = key, False
            if key not in self.keys:
                name, binary = key.removesuffix(_BASE64), True
                if name == key or name not in self.keys or not self.keys[name].form.holds_text:
                    raise _unknown(place, key, self.keys)
            if name in values:
                raise SpecError(_join(place, name), f"there twice, once as {name}{_BASE64}")
            at = replace(source, binary=binary)
            values[name] = self.keys[name].form.load(item, _join(place, key), at)
        return values

    def load(self, raw: Raw, place: str, source: _Source) -> Any:
        values = self.values(raw, place, source)
        if "source" in values and "dest" in self.keys:
            values.setdefault("dest", values["source"])
        return self.complete(values, place)

    def complete(self, values: Mapping[str, Any], place: str) -> Any:
        for name, key in self.keys.items():
            if key.required and name not in values:
                raise SpecError(_join(place, name), "is missing")
        return _made(self.make, values, place)

    def schema(self, *, binary: bool = False) -> Schema:
        own, needed, either = {}, [], []
        for name, key in self.keys.items():
            own[name] = _described(key)
            if not key.required or (name == "dest" and "source" in self.keys):
                continue
            if key.form.holds_text:
                either.append({"oneOf": [{"required": [name]}, {"required": [name + _BASE64]}]})
            else:
                needed.append(name)
        texts = {name: key.form for name, key in self.keys.items() if key.form.holds_text}
        result: Schema = {
            "type": "object",
            "description": self.help,
            "properties": own,
            # apart, so that editors don't offer what is seldom wanted
            "patternProperties": {
                f"^{name}{_BASE64}$": form.schema(binary=True) for name, form in texts.items()
            },
            "required": needed,
            "allOf": either,
            "additionalProperties": False,
        }
        return {name: value for name, value in result.items() if value not in ("", {}, [])}


def _described(key: _Key) -> Schema:
    schema = key.form.schema()
    if key.help and "$ref" not in schema:
        schema = {"description": key.help, **schema}
    if not key.required and isinstance(key.default, bool | int | float):
        schema["default"] = key.form.dump(key.default, _as_text)
    return schema


@dataclass(frozen=True, slots=True)
class _Operations:
    """One of several classes, told apart by ``op``."""

    classes: tuple[Any, ...]
    holds_text = False

    def dump(self, value: Any, encode: Encode) -> Raw:
        operation: Any = type(value)
        return {"op": _op(operation), **_fields_of(operation).dump(value, encode)}

    def load(self, raw: Raw, place: str, source: _Source) -> Any:
        table = dict(_table(raw, place))
        known = {_op(item): item for item in self.classes}
        if "op" not in table:
            raise SpecError(_join(place, "op"), f"is missing; there are: {', '.join(known)}")
        op = table.pop("op")
        if not isinstance(op, str):
            raise _wrong(_join(place, "op"), "a string", op)
        if op not in known:
            near = get_close_matches(op, known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"there are: {', '.join(known)}"
            raise SpecError(_join(place, "op"), f"{op!r} is unknown; {hint}")
        return _fields_of(known[op]).load(table, place, source)

    def schema(self, *, binary: bool = False) -> Schema:
        refs = [{"$ref": f"#/$defs/{_op(item)}"} for item in self.classes]
        return refs[0] if len(refs) == 1 else {"anyOf": refs}


def _op(operation: type) -> str:
    """``BindFd``: ``bind_fd``."""
    return re.sub(r"(?<!^)(?=[A-Z])", "_", operation.__name__).lower()


# --- from types to forms ------------------------------------------------------------------

_OPERATIONS: tuple[Any, ...] = get_args(Operation)


def _form(hint: Any, span: Range | None = None) -> _Form:  # noqa: PLR0911 - one a kind of type
    """The form of a type; ``span`` is a range that is known from elsewhere."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return _annotated(arguments[0], hint.__metadata__, span)
    if origin is Literal:
        return _Choice(arguments)
    if origin in {types.UnionType, Union}:
        return _union(arguments, span)
    if origin in {tuple, frozenset, Collection, Sequence, Mapping}:
        return _container(origin, arguments)
    if hint in {str, bytes}:
        return _Text() if hint is str else _Bytes()
    if hint in {bool, int, float}:
        return _Plain(hint, span)
    if hint in _OPERATIONS:
        return _Operations((hint,))
    return _Choice(tuple(hint)) if issubclass(hint, StrEnum) else _fields_of(hint)


def _annotated(hint: Any, marks: Sequence[Any], span: Range | None) -> _Form:
    kind = next((mark for mark in marks if isinstance(mark, Kind)), None)
    span = span or next((mark for mark in marks if isinstance(mark, Range)), None)
    if kind == Kind.MODE:
        return _Mode()
    if kind == Kind.SIZE:
        assert span
        return _Size(span)
    return _Text(kind) if hint is str else _form(hint, span)


def _union(arguments: Sequence[Any], span: Range | None) -> _Form:
    """None aside, the first of the types; a profile has one way to say a thing."""
    given = tuple(item for item in arguments if item is not types.NoneType)
    if given == get_args(PathLike):
        return _Text(Kind.HOST_PATH)
    if set(given) == set(_OPERATIONS):
        return _Operations(given)
    return _form(given[0], span)


def _container(origin: Any, arguments: Sequence[Any]) -> _Form:
    if origin is Mapping or get_origin(arguments[0]) is tuple:
        name, value = arguments if origin is Mapping else get_args(arguments[0])
        assert name is str
        form = _form(value)
        assert isinstance(form, _Text)
        return _Pairs(form, types.NoneType in get_args(value))
    return _List(_form(arguments[0]), frozenset if origin is frozenset else tuple)


def _section(function_or_class: Any, title: str) -> dict[str, str]:
    """What a docstring says about each name below ``title``."""
    text = inspect.getdoc(function_or_class) or ""
    match = re.search(rf"^{title}:\n((?:    .*\n?|\n)*)", text, re.M)
    rows = re.findall(r"^    (\w+): ((?:.*\n?)(?:^     +.*\n?)*)", match[1] if match else "", re.M)
    return {name: _sentence(words) for name, words in rows}


def _sentence(text: str) -> str:
    plain = re.sub(r":\w+:`([^`]*)`", r"\1", text).replace("``", "")
    return " ".join(plain.split())


def _summary(function_or_class: Any) -> str:
    return _sentence((inspect.getdoc(function_or_class) or "").partition("\n\n")[0])


@cache
def _fields_of(cls: type) -> _Record:
    hints, helps = get_type_hints(cls, include_extras=True), _section(cls, "Attributes")
    keys = {}
    for item in fields(cls):
        limit = LIMITS.get(item.name) if cls is Limits else None
        span = Range(limit.low, limit.high) if limit else None
        form, help_text = _form(hints[item.name], span), helps.get(item.name, "")
        keys[item.name] = _Key(form, item.default is MISSING, item.default, help_text)
    return _Record(cls, keys, _summary(cls))


@cache
def _arguments_of(preset: str) -> _Record:
    make = PRESETS[preset]
    hints, helps = get_type_hints(make, include_extras=True), _section(make, "Arguments")
    keys = {
        name: _Key(
            _form(hints[name]), item.default is item.empty, item.default, helps.get(name, "")
        )
        for name, item in inspect.signature(make).parameters.items()
    }
    return _Record(make, keys, _summary(make))


# --- the whole ----------------------------------------------------------------------------


@cache
def _document() -> _Record:
    """Every key that a profile can have."""
    arguments = {
        name: replace(key, required=False)
        for preset in PRESETS
        for name, key in _arguments_of(preset).keys.items()
    }
    modes = get_type_hints(Sandbox.network)["mode"]
    keys = {
        "preset": _Key(_Choice(tuple(PRESETS)), required=False, help="what to begin with"),
        **arguments,
        "network": _Key(_form(modes), required=False, help="no network, or the host's"),
        **_fields_of(Sandbox).keys,
    }
    return _Record(Sandbox, keys, _summary(Sandbox))


def _sandbox(raw: Raw, source: _Source) -> Sandbox:
    table = {key: item for key, item in _table(raw, "").items() if key != "$schema"}
    values = _document().values(table, "", source)
    network = values.pop("network", None)
    start = _preset(values)
    # these two are added to what the preset has, the others stand in its place
    for name in ("filesystem", "environment"):
        values[name] = (*getattr(start, name), *values.get(name, ()))
    made: Sandbox = _made(start.replace, values, "")
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
            {"anyOf": [{"required": [name]}, {"required": [name + _BASE64]}]}
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
            for written in (name, name + _BASE64)
        },
    }


def _definitions() -> Schema:
    operations: Schema = {}
    for operation in _OPERATIONS:
        table = _fields_of(operation).schema()
        table["properties"] = {"op": {"const": _op(operation)}, **table["properties"]}
        table["required"] = ["op", *table.get("required", ())]
        operations[_op(operation)] = table
    text = {"type": "string", "contentEncoding": "base64", "pattern": _BASE64_PATTERN}
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
