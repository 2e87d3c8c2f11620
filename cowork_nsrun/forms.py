"""How values of the spec are written in a profile: one form for each kind of type.

A form writes a value as JSON and TOML have it, reads it back, and describes itself for the
schema.  :func:`form_of` finds the form of a type, :func:`fields_of` those of a class.
"""

from __future__ import annotations

import base64
import binascii
import inspect
import os
import re
import types
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, replace
from difflib import get_close_matches
from enum import StrEnum
from functools import cache
from typing import Annotated, Any, Literal, Protocol, Union, get_args, get_origin, get_type_hints

from cowork_nsrun.errors import SpecError
from cowork_nsrun.spec import LIMITS, SIZE_PATTERN, Kind, Limits, Operation, PathLike, Range

INT_BITS = 64
BASE64 = "_base64"
BASE64_PATTERN = "^(?:[A-Za-z0-9+/]{4})*(?:[A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?$"
OPERATIONS: tuple[Any, ...] = get_args(Operation)
_MODE_PATTERN = "^0?[0-7]{1,4}$"

# what a JSON or TOML parser gives
Raw = Any
Schema = dict[str, Any]


# --- text and base64 ----------------------------------------------------------------------

Encode = Callable[[str | bytes], str]


class _NotText(ValueError):
    """Bytes that no text stands for."""


def as_text(value: str | bytes) -> str:
    """The value itself, or its UTF-8, as a document can hold it."""
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
class Source:
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


def _hint(word: str, known: Collection[str]) -> str:
    near = get_close_matches(word, known, n=1)
    return f"did you mean {near[0]}?" if near else f"there are: {', '.join(known)}"


def as_table(raw: Raw, place: str) -> dict[str, Raw]:
    """The very value, if it is a table."""
    if not isinstance(raw, dict):
        raise _wrong(place or "the profile", "a table", raw)
    return raw


def made_by(make: Callable[..., Any], values: Mapping[str, Any], place: str) -> Any:
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


class Form(Protocol):
    """How one kind of value is written.

    ``holds_text``: it has strings in it that may be bytes of no encoding; ``_base64``
    behind the key then says that they are base64.
    """

    @property
    def holds_text(self) -> bool: ...
    def dump(self, value: Any, encode: Encode) -> Raw: ...
    def load(self, raw: Raw, place: str, source: Source) -> Any: ...
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

    def load(self, raw: Raw, place: str, source: Source) -> str:
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

    def load(self, raw: Raw, place: str, source: Source) -> bytes:
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

    def load(self, raw: Raw, place: str, source: Source) -> Any:
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

    def load(self, raw: Raw, place: str, source: Source) -> Any:
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

    def load(self, raw: Raw, place: str, source: Source) -> int:
        if not isinstance(raw, str) or not re.fullmatch(_MODE_PATTERN, raw, re.ASCII):
            raise _wrong(place, "a string of octal digits such as '0755'", raw)
        return int(raw, 8)

    def schema(self, *, binary: bool = False) -> Schema:
        return {"type": "string", "pattern": _MODE_PATTERN}


@dataclass(frozen=True, slots=True)
class Choice:
    values: tuple[str, ...]
    holds_text = False

    def dump(self, value: str, encode: Encode) -> Raw:
        return str(value)

    def load(self, raw: Raw, place: str, source: Source) -> str:
        if not isinstance(raw, str):
            raise _wrong(place, "a string", raw)
        if raw not in self.values:
            raise SpecError(place, f"{raw!r} is unknown; {_hint(raw, self.values)}")
        return raw

    def schema(self, *, binary: bool = False) -> Schema:
        return {"type": "string", "enum": list(self.values)}


@dataclass(frozen=True, slots=True)
class _List:
    item: Form
    make: type[tuple[Any, ...]] | type[frozenset[Any]]

    @property
    def holds_text(self) -> bool:
        return self.item.holds_text

    def dump(self, value: Collection[Any], encode: Encode) -> Raw:
        items = sorted(value) if self.make is frozenset else value
        return [self.item.dump(item, encode) for item in items]

    def load(self, raw: Raw, place: str, source: Source) -> Any:
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

    def load(self, raw: Raw, place: str, source: Source) -> tuple[tuple[str, Any], ...]:
        return tuple(
            (
                source.text(name, place),
                None
                if self.or_none and item is False
                else self.value.load(item, _join(place, name), source),
            )
            for name, item in as_table(raw, place).items()
        )

    def schema(self, *, binary: bool = False) -> Schema:
        value = self.value.schema(binary=binary)
        if self.or_none:
            value = {"anyOf": [value, {"const": False}]}
        return {"type": "object", "additionalProperties": value}


@dataclass(frozen=True, slots=True)
class Key:
    """A name in a :class:`Record`, and what may stand there."""

    form: Form
    required: bool
    default: Any = None
    help: str = ""


@dataclass(frozen=True, slots=True)
class Record:
    """Something that is made of named values: a dataclass, or the arguments of a preset."""

    make: Callable[..., Any]
    keys: Mapping[str, Key]
    help: str = ""
    holds_text = False  # its keys say so for themselves

    def dump(self, value: Any, encode: Encode) -> dict[str, Raw]:
        table = {}
        for name, key in self.keys.items():
            item = getattr(value, name)
            if not key.required and item == key.default:
                continue
            try:
                table[name] = key.form.dump(item, as_text)
            except _NotText:
                table[name + BASE64] = key.form.dump(item, _as_base64)
        return table

    def values(self, raw: Raw, place: str, source: Source) -> dict[str, Any]:
        """What is in a table, each value read, none added."""
        values: dict[str, Any] = {}
        for key, item in as_table(raw, place).items():
            name, binary = key, False
            if key not in self.keys:
                name, binary = key.removesuffix(BASE64), True
                if name == key or name not in self.keys or not self.keys[name].form.holds_text:
                    problem = f"unknown; {_hint(key, self.keys)}"
                    raise SpecError(_join(place, key), problem)
            if name in values:
                raise SpecError(_join(place, name), f"there twice, once as {name}{BASE64}")
            at = replace(source, binary=binary)
            values[name] = self.keys[name].form.load(item, _join(place, key), at)
        return values

    def load(self, raw: Raw, place: str, source: Source) -> Any:
        values = self.values(raw, place, source)
        if "source" in values and "dest" in self.keys:
            values.setdefault("dest", values["source"])
        return self.complete(values, place)

    def complete(self, values: Mapping[str, Any], place: str) -> Any:
        for name, key in self.keys.items():
            if key.required and name not in values:
                raise SpecError(_join(place, name), "is missing")
        return made_by(self.make, values, place)

    def schema(self, *, binary: bool = False) -> Schema:
        own, needed, either = {}, [], []
        for name, key in self.keys.items():
            own[name] = _described(key)
            if not key.required or (name == "dest" and "source" in self.keys):
                continue
            if key.form.holds_text:
                either.append({"oneOf": [{"required": [name]}, {"required": [name + BASE64]}]})
            else:
                needed.append(name)
        texts = {name: key.form for name, key in self.keys.items() if key.form.holds_text}
        result: Schema = {
            "type": "object",
            "description": self.help,
            "properties": own,
            # apart, so that editors don't offer what is seldom wanted
            "patternProperties": {
                f"^{name}{BASE64}$": form.schema(binary=True) for name, form in texts.items()
            },
            "required": needed,
            "allOf": either,
            "additionalProperties": False,
        }
        return {name: value for name, value in result.items() if value not in ("", {}, [])}


def _described(key: Key) -> Schema:
    schema = key.form.schema()
    if key.help and "$ref" not in schema:
        schema = {"description": key.help, **schema}
    if not key.required and isinstance(key.default, bool | int | float):
        schema["default"] = key.form.dump(key.default, as_text)
    return schema


@dataclass(frozen=True, slots=True)
class _Operations:
    """One of several classes, told apart by ``op``."""

    classes: tuple[Any, ...]
    holds_text = False

    def dump(self, value: Any, encode: Encode) -> Raw:
        operation: Any = type(value)
        return {"op": op_name(operation), **fields_of(operation).dump(value, encode)}

    def load(self, raw: Raw, place: str, source: Source) -> Any:
        table = dict(as_table(raw, place))
        known = {op_name(item): item for item in self.classes}
        if "op" not in table:
            raise SpecError(_join(place, "op"), f"is missing; there are: {', '.join(known)}")
        op = table.pop("op")
        if not isinstance(op, str):
            raise _wrong(_join(place, "op"), "a string", op)
        if op not in known:
            raise SpecError(_join(place, "op"), f"{op!r} is unknown; {_hint(op, known)}")
        return fields_of(known[op]).load(table, place, source)

    def schema(self, *, binary: bool = False) -> Schema:
        refs = [{"$ref": f"#/$defs/{op_name(item)}"} for item in self.classes]
        return refs[0] if len(refs) == 1 else {"anyOf": refs}


def op_name(operation: type) -> str:
    """``BindFd``: ``bind_fd``."""
    return re.sub(r"(?<!^)(?=[A-Z])", "_", operation.__name__).lower()


# --- from types to forms ------------------------------------------------------------------


def form_of(hint: Any, span: Range | None = None) -> Form:  # noqa: PLR0911 - one a kind of type
    """The form of a type; ``span`` is a range that is known from elsewhere."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return _annotated(arguments[0], hint.__metadata__, span)
    if origin is Literal:
        return Choice(arguments)
    if origin in {types.UnionType, Union}:
        return _union(arguments, span)
    if origin in {tuple, frozenset, Collection, Sequence, Mapping}:
        return _container(origin, arguments)
    if hint in {str, bytes}:
        return _Text() if hint is str else _Bytes()
    if hint in {bool, int, float}:
        return _Plain(hint, span)
    if hint in OPERATIONS:
        return _Operations((hint,))
    return Choice(tuple(hint)) if issubclass(hint, StrEnum) else fields_of(hint)


def _annotated(hint: Any, marks: Sequence[Any], span: Range | None) -> Form:
    kind = next((mark for mark in marks if isinstance(mark, Kind)), None)
    span = span or next((mark for mark in marks if isinstance(mark, Range)), None)
    if kind == Kind.MODE:
        return _Mode()
    if kind == Kind.SIZE:
        assert span
        return _Size(span)
    return _Text(kind) if hint is str else form_of(hint, span)


def _union(arguments: Sequence[Any], span: Range | None) -> Form:
    """None aside, the first of the types; a profile has one way to say a thing."""
    given = tuple(item for item in arguments if item is not types.NoneType)
    if given == get_args(PathLike):
        return _Text(Kind.HOST_PATH)
    if set(given) == set(OPERATIONS):
        return _Operations(given)
    return form_of(given[0], span)


def _container(origin: Any, arguments: Sequence[Any]) -> Form:
    if origin is Mapping or get_origin(arguments[0]) is tuple:
        name, value = arguments if origin is Mapping else get_args(arguments[0])
        assert name is str
        form = form_of(value)
        assert isinstance(form, _Text)
        return _Pairs(form, types.NoneType in get_args(value))
    return _List(form_of(arguments[0]), frozenset if origin is frozenset else tuple)


def section(function_or_class: Any, title: str) -> dict[str, str]:
    """What a docstring says about each name below ``title``."""
    text = inspect.getdoc(function_or_class) or ""
    match = re.search(rf"^{title}:\n((?:    .*\n?|\n)*)", text, re.M)
    rows = re.findall(r"^    (\w+): ((?:.*\n?)(?:^     +.*\n?)*)", match[1] if match else "", re.M)
    return {name: _sentence(words) for name, words in rows}


def _sentence(text: str) -> str:
    plain = re.sub(r":\w+:`([^`]*)`", r"\1", text).replace("``", "")
    return " ".join(plain.split())


def summary(function_or_class: Any) -> str:
    """The first sentence of a docstring."""
    return _sentence((inspect.getdoc(function_or_class) or "").partition("\n\n")[0])


@cache
def fields_of(cls: type) -> Record:
    """A dataclass as a table."""
    hints, helps = get_type_hints(cls, include_extras=True), section(cls, "Attributes")
    keys = {}
    for item in fields(cls):
        limit = LIMITS.get(item.name) if cls is Limits else None
        span = Range(limit.low, limit.high) if limit else None
        form, help_text = form_of(hints[item.name], span), helps.get(item.name, "")
        keys[item.name] = Key(form, item.default is MISSING, item.default, help_text)
    return Record(cls, keys, summary(cls))
