"""A dataset's URI: `name[:path][?param=value&...]`, or `module:factory[?...]` for one's own."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import parse_qsl

from schemas.errors import ConfigError

FOLDERS = ("audio", "images", "npy")
"""Names behind which a path is a folder of this machine."""


def split_uri(uri: str) -> tuple[str, str, dict[str, str]]:
    """(name, path, parameters). Raises ConfigError for parameters that are none, or given twice."""
    place, _, query = uri.partition("?")
    name, _, path = place.partition(":")
    try:
        pairs = parse_qsl(query, keep_blank_values=True, strict_parsing=bool(query))
    except ValueError as error:
        raise ConfigError(f"dataset {uri!r}: after the ? write name=value, joined by &") from error
    params = dict(pairs)
    if len(params) != len(pairs):
        raise ConfigError(f"dataset {uri!r} gives a parameter twice")
    return name, path, params


def absolute(uri: str) -> str:
    """The URI with its folder, if it names one, as an absolute path: whoever reads it may stand elsewhere."""
    place, mark, query = uri.partition("?")
    name, _, path = place.partition(":")
    return f"{name}:{Path(path).absolute()}{mark}{query}" if name in FOLDERS and path else uri


def differ_in_place(uri: str, other: str) -> bool:
    """Whether two URIs name folders, of one kind and with the same parameters: copies of the same data, maybe."""
    (name, _, params), (other_name, _, other_params) = split_uri(uri), split_uri(other)
    return name == other_name and name in FOLDERS and params == other_params
