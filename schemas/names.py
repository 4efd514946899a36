"""Names that people choose, and the hint for a mistyped one."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

from schemas.errors import ConfigError

# No dots: they separate the parts of topic and group names.
_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_-]{0,63}")

_MAX_LABEL = 255


def is_name(name: str) -> bool:
    """Whether it may name a stream, teacher or run."""
    return _NAME.fullmatch(name) is not None


def check_name(kind: str, name: str) -> str:
    """Return `name` if it may name a stream, teacher or run; `kind` says which, for the message of ConfigError."""
    if not is_name(name):
        raise ConfigError(
            f"{kind} name {name!r}: use 1 to 64 letters, digits, '-' and '_', and begin with a letter or digit"
        )
    return name


def check_label(kind: str, name: str) -> str:
    """Return `name` if log lines and record headers can show it, more than which is not asked of it; else ConfigError.

    `kind` says what it names.
    """
    if not (name.isprintable() and 1 <= len(name) <= _MAX_LABEL):
        raise ConfigError(f"{kind} name {name!r}: use 1 to {_MAX_LABEL} characters that can be printed, on one line")
    return name


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Text to put behind an unknown name: the nearest of `known`, or all of them when none is near."""
    names = sorted(filter(None, known))
    if near := difflib.get_close_matches(name, names, n=1):
        return f"did you mean {near[0]!r}?"
    return f"choose one of {', '.join(names)}" if names else "there is none"
