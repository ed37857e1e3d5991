"""JSON that is read from storage: parsed with bounds, and checked against types.

A stranger may have written the JSON. Everything that is wrong with it is a ValueError with a short message. The
base package reads notes, too, so this needs no pydantic.
"""

from __future__ import annotations

import json
import math
import re
import types
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from functools import lru_cache
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints, is_typeddict

MAX_BYTES = 100_000_000
"""Largest JSON in bytes. The rejects in the footer of a chunk of 100,000 pairs take about 60 MB."""

MAX_VALUES = 4_000_000
"""Largest number of values: each takes up to 100 bytes of memory, so that few bytes of JSON can become many."""

MAX_DEPTH = 32
"""Largest nesting of arrays and objects; the product writes five levels."""

_STRINGS = re.compile(rb'"(?:[^"\\]++|\\.)*+"?', re.DOTALL)
_NO_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))

_T = TypeVar("_T")


def parse_json(data: bytes) -> Any:
    """Parse JSON in UTF-8. Numbers are finite.

    Raises:
        ValueError: it is damaged, or exceeds one of the bounds.
    """
    if len(data) > MAX_BYTES:
        raise ValueError(f"it has {len(data):,} bytes; at most {MAX_BYTES:,} are read")
    if sum(map(data.count, (b",", b"[", b"{"))) > MAX_VALUES:
        raise ValueError(f"it has more than {MAX_VALUES:,} values")
    _check_depth(data)
    try:
        text = data.decode("utf-8-sig")
        value = json.loads(text, parse_constant=_parse_number, parse_float=_parse_number, parse_int=_parse_int)
        if b"\\u" in data:
            json.dumps(value, ensure_ascii=False).encode()
    except UnicodeError:
        raise ValueError("it is not UTF-8") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"it is no JSON: {error}" if data.strip() else "it is empty") from None
    return value


def parse_object(data: bytes) -> dict[str, Any]:
    """Parse JSON that is an object.

    Raises:
        ValueError: see `parse_json`; or it is another type.
    """
    value = parse_json(data)
    if not isinstance(value, dict):
        raise ValueError(f"it is {_name_type(value)}, not an object")
    return value


def convert_json(kind: type[_T], value: Any, name: str = "it") -> _T:
    """Return parsed JSON as a value of a type.

    Arrays become tuples. Objects become dataclasses, whose unknown names are an error, or TypedDicts, which keep
    unknown names. Integers have 64 bits.

    Args:
        kind: a dataclass, a TypedDict, or a plain type as they use them. ``Annotated[str, re.compile(...)]`` and
            ``Annotated[int, range(...)]`` limit the values.
        value: of `parse_json`.
        name: of the value, for the error.

    Raises:
        ValueError: the value has another type, or lacks a name.
    """
    converted: _T = _convert(kind, value, name)
    return converted


def _check_depth(data: bytes) -> None:
    """Check the nesting without recursion: remove strings, then the innermost brackets again and again."""
    if data.count(b"[") + data.count(b"{") <= MAX_DEPTH:
        return
    brackets = _STRINGS.sub(b"", data).translate(None, _NO_BRACKETS)
    for _ in range(MAX_DEPTH):
        brackets = brackets.replace(b"[]", b"").replace(b"{}", b"")
    if brackets:
        raise ValueError(f"it is nested more than {MAX_DEPTH} levels deep, or its brackets do not match")


def _parse_number(text: str) -> float:
    """Parse a number with a fraction or an exponent, or one of the constants NaN, Infinity and -Infinity."""
    if not math.isfinite(number := float(text)):
        raise ValueError(f"it has the number {text[:20]}")
    return number


def _parse_int(text: str) -> int:
    if len(text) > 20:  # more digits than 64 bits have
        raise ValueError(f"it has the number {text[:20]}...")
    return int(text)


def _convert(kind: Any, value: Any, name: str) -> Any:
    origin, args = get_origin(kind), get_args(kind)
    if kind is Any:
        return value
    if origin is Annotated:
        return _check_limit(_convert(args[0], value, name), args[1], name)
    if origin in (Union, types.UnionType):
        return _convert_union(args, value, name)
    if origin is Literal:
        if not any(type(value) is type(one) and value == one for one in args):
            raise ValueError(f"{name} is {_show(value)}, not {' or '.join(map(repr, args))}")
        return value
    if is_typeddict(kind) or (isinstance(kind, type) and is_dataclass(kind)):
        return _convert_object(kind, value, name)
    if origin in (tuple, Sequence):
        return _convert_array(args, value, name)
    if origin in (dict, Mapping):
        items = _check_type(dict, value, name).items()
        return {key: _convert(args[1], one, f"{name}[{key[:40]!r}]") for key, one in items}
    if kind is float and type(value) is int and abs(value) < 2**53:
        return value
    _check_type(kind, value, name)
    if kind is int and not -(2**63) <= value < 2**63:
        raise ValueError(f"{name} is {_show(value)}, which is no 64-bit integer")
    return value


def _convert_union(kinds: Sequence[Any], value: Any, name: str) -> Any:
    errors = []
    for kind in kinds:
        try:
            return _convert(kind, value, name)
        except ValueError as error:
            errors.append(error)
    raise errors[0]


def _convert_array(kinds: Sequence[Any], value: Any, name: str) -> tuple[Any, ...]:
    values = _check_type(list, value, name)
    if kinds[0] is str and all(type(one) is str for one in values):
        return tuple(values)  # many, in records of exports
    if len(kinds) == 1 or kinds[1] is ...:
        kinds = [kinds[0]] * len(values)
    if len(kinds) != len(values):
        raise ValueError(f"{name} has {len(values)} values, not {len(kinds)}")
    return tuple(_convert(kind, one, f"{name}[{at}]") for at, (kind, one) in enumerate(zip(kinds, values, strict=True)))


def _convert_object(kind: Any, value: Any, name: str) -> Any:
    values, (hints, required) = _check_type(dict, value, name), _names(kind)
    prefix = "" if name == "it" else f"{name}."
    if missing := sorted(required - values.keys()):
        raise ValueError(f"{prefix}{missing[0]} is missing")
    known = {key: _convert(hints[key], one, f"{prefix}{key}") if key in hints else one for key, one in values.items()}
    if is_typeddict(kind):
        return known
    if unknown := sorted(known.keys() - hints.keys()):
        raise ValueError(f"{prefix}{unknown[0][:40]} is unknown")
    return kind(**known)


@lru_cache(maxsize=64)
def _names(kind: Any) -> tuple[dict[str, Any], frozenset[str]]:
    """Return the types of a class by name, and the names that must exist."""
    hints = get_type_hints(kind, include_extras=True)
    if is_typeddict(kind):
        return hints, frozenset(kind.__required_keys__)
    given = fields(kind)
    required = {one.name for one in given if one.default is MISSING and one.default_factory is MISSING}
    return {one.name: hints[one.name] for one in given}, frozenset(required)


def _check_limit(value: Any, limit: Any, name: str) -> Any:
    if isinstance(limit, re.Pattern) and not limit.fullmatch(value):
        raise ValueError(f"{name} is {_show(value)}, which is no name of this format")
    if isinstance(limit, range) and value not in limit:
        raise ValueError(f"{name} is {value}, not {limit[0]} to {limit[-1]}")
    return value


def _check_type(kind: type, value: Any, name: str) -> Any:
    if type(value) is not kind:
        raise ValueError(f"{name} is {_show(value)}, not {_NAMES[kind]}")
    return value


_NAMES = {
    dict: "an object",
    list: "an array",
    str: "a string",
    int: "an integer",
    float: "a number",
    bool: "true or false",
    type(None): "null",
}


def _name_type(value: Any) -> str:
    return _NAMES[type(value)]


def _show(value: Any) -> str:
    return _name_type(value) if isinstance(value, dict | list) else ascii(value)[:60]
