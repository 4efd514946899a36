"""A dataset's URI: `name[:path][?param=value&...]`, or `module:factory[?...]` for one's own."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import parse_qsl, quote

from schemas.errors import ConfigError

FOLDERS = ("audio", "images", "npy", "text", "text_table", "tokens")
"""Names behind which a path is a folder, or a file, of this machine."""
PATHS = ("tokenizer",)
"""Parameters of these that are files of this machine."""
PIN = "vocabulary"
"""The parameter by which a manifest says which tokenizer its dataset is read with: the SHA-256 of that file."""


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
    """The URI with its folder and files, if it names any, as absolute paths: whoever reads it may stand elsewhere."""
    place, mark, query = uri.partition("?")
    name, _, path = place.partition(":")
    if name not in FOLDERS or not path:
        return uri
    parts = query.split("&") if query else []
    for number, part in enumerate(parts):
        key, equals, value = part.partition("=")
        if key in PATHS and value:
            file = split_uri(f"{name}?{part}")[2][key]
            parts[number] = f"{key}{equals}{quote(str(Path(file).absolute()))}"
    return f"{name}:{Path(path).absolute()}{mark}{'&'.join(parts)}"


def pinned(uri: str, vocabulary: str) -> str:
    """The URI with the SHA-256 of its tokenizer, if it has one: no other is taken for it."""
    if not vocabulary or PIN in split_uri(uri)[2]:
        return uri
    return f"{uri}{'&' if '?' in uri else '?'}{PIN}={vocabulary}"


def differ_in_place(uri: str, other: str) -> bool:
    """Whether two URIs name folders, of one kind and with the same parameters: copies of the same data, maybe."""
    (name, _, params), (other_name, _, other_params) = split_uri(uri), split_uri(other)
    return name == other_name and name in FOLDERS and without_paths(params) == without_paths(other_params)


def without_paths(params: dict[str, str]) -> dict[str, str]:
    """Parameters but for those that say where something lies, or that are held against data by themselves."""
    return {key: value for key, value in params.items() if key not in (*PATHS, PIN)}
