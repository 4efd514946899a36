"""TOML tables to frozen dataclasses and back, with errors that name the key and its nearest neighbour.

A dataclass with a field `params` takes the keys that it does not declare; any other refuses them. A field `from_` is
the key `from`, which is no name in Python. Every number is finite and fits into 64 bits, wherever it stands: what a
computation makes of another one is found out late, or never.
"""

from __future__ import annotations

import dataclasses
import math
import tomllib
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

from schemas.errors import ConfigError
from schemas.names import did_you_mean

_KINDS = {str: "a text", int: "an integer", float: "a number", bool: "true or false"}


def unknown(what: str, name: str, known: Iterable[str]) -> str:
    """Return one line that says `name` is unknown and which known name is nearest."""
    return f"{what} {name!r} is unknown: {did_you_mean(name, known)}"


T = TypeVar("T")


def key_of(field: dataclasses.Field[Any]) -> str:
    """Return the key that a field of a dataclass is."""
    return field.name.rstrip("_")


def build(cls: type[T], table: Mapping[str, Any], where: str) -> T:
    """Make a dataclass of a TOML table.

    Raises:
        ConfigError: an unknown key, a missing key, a value of another type or one that the dataclass refuses;
            the text begins with `where`.
    """
    fields = {key_of(field): field for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    hints = typing.get_type_hints(cls)
    values: dict[str, Any] = {}
    extra: dict[str, Any] = {}
    for key, value in table.items():
        if key in fields and key != "params":
            values[fields[key].name] = _convert(hints[fields[key].name], value, where, key)
        elif "params" in fields:
            _check_numbers(value, where, key)
            extra[key] = value
        else:
            raise ConfigError(f"{where}: {unknown('key', key, fields)}")
    if "params" in fields:
        values["params"] = extra
    for name, field in fields.items():
        given = field.name in values or field.default is not dataclasses.MISSING
        if not given and field.default_factory is dataclasses.MISSING:
            raise ConfigError(f"{where}: {name!r} is missing")
    try:
        return cls(**values)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from None


def _convert(hint: Any, value: Any, where: str, key: str) -> Any:
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):  # only `T | None` is used: TOML knows no null
        (hint,) = (arg for arg in typing.get_args(hint) if arg is not type(None))
        return _convert(hint, value, where, key)
    if origin is tuple:
        inner = typing.get_args(hint)[0]
        if not isinstance(value, list):
            raise ConfigError(f"{where}: {key} must be a list, is {value!r}")
        return tuple(_convert(inner, each, where, f"{key}.{index}") for index, each in enumerate(value))
    if origin is dict:
        inner = typing.get_args(hint)[1]
        if not isinstance(value, dict):
            raise ConfigError(f"{where}: {key} must be a table, is {value!r}")
        return {name: _convert(inner, each, where, f"{key}.{name}") for name, each in value.items()}
    if dataclasses.is_dataclass(hint):
        short = next((field.name for field in dataclasses.fields(hint) if field.name in ("name", "path")), None)
        if isinstance(value, str) and short:
            value = {short: value}  # `view = "none"` is short for `view = {name = "none"}`
        if not isinstance(value, dict):
            raise ConfigError(f"{where}: {key} must be a table, is {value!r}")
        return build(typing.cast(type[Any], hint), value, f"{where} [{key}]")
    whole = hint is float and type(value) is int  # TOML writes it without a point
    if type(value) is not hint and not whole:
        raise ConfigError(f"{where}: {key} must be {_KINDS[hint]}, is {value!r}")
    _check_numbers(value, where, key)
    return float(value) if whole else value


def _check_numbers(value: Any, where: str, key: str) -> None:
    """Refuse a number, in whatever lists and tables, that is NaN, infinite or over 64 bits."""
    if isinstance(value, Mapping):
        for name, each in value.items():
            _check_numbers(each, where, f"{key}.{name}")
    elif isinstance(value, list):
        for index, each in enumerate(value):
            _check_numbers(each, where, f"{key}.{index}")
    elif isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f"{where}: {key} must be a finite number, is {value}")
    elif isinstance(value, int) and not -(1 << 63) <= value < 1 << 63:
        raise ConfigError(f"{where}: {key} must be an integer of 64 bits, is {_shortened(value)}")


def _shortened(value: int) -> str:
    return str(value) if abs(value) < 10**40 else f"one of {value.bit_length()} bits"


def flatten(value: Any) -> Any:
    """Turn dataclasses back into the tables they came from: `build`'s inverse (None is left out)."""
    if dataclasses.is_dataclass(value):
        table = {key_of(field): flatten(getattr(value, field.name)) for field in dataclasses.fields(value)}
        table |= table.pop("params", {})
        return {key: each for key, each in table.items() if each is not None}
    if isinstance(value, tuple | list):
        return [flatten(each) for each in value]
    if isinstance(value, Mapping):
        return {key: flatten(each) for key, each in value.items()}
    return value


def override(document: dict[str, Any], assignments: Sequence[str]) -> None:
    """Apply `a.b=value` assignments, each value read as TOML (a bare word counts as text), to a document in place.

    A number addresses a list's entry: `losses.0.weight=0.5`.

    Raises:
        ConfigError: no `=`, or a path through something that is no table.
    """
    for assignment in assignments:
        path, equals, text = assignment.partition("=")
        keys = path.strip().split(".")
        if not equals or not all(keys):
            raise ConfigError(f"--set {assignment}: write it as section.key=value")
        try:
            value = tomllib.loads(f"value = {text}")["value"]
        except tomllib.TOMLDecodeError:
            value = text.strip()
        except (ValueError, RecursionError):  # an integer of more digits than Python reads, or endless brackets
            raise ConfigError(f"--set {path}: {text[:20]}... is no number, list or text that a setting takes") from None
        table: Any = document
        for depth, key in enumerate(keys):
            place = f"--set {assignment}: {'.'.join(keys[:depth])}"
            last = depth == len(keys) - 1
            if isinstance(table, list):
                if not key.isdecimal() or int(key) >= len(table):
                    raise ConfigError(f"{place} is a list of {len(table)}; name one by its number, from 0")
                if last:
                    table[int(key)] = value
                else:
                    table = table[int(key)]
            elif isinstance(table, dict):
                if last:
                    table[key] = value
                else:
                    table = table.setdefault(key, {})
            else:
                raise ConfigError(f"{place} is no table")
