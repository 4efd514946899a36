"""A choice of the run file: by the name of one of ours, or by the import path of a user's own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from pipeline.user_code import imported
from schemas.errors import ConfigError
from student_trainer.run.toml_tables import unknown

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Choice:
    """A member of one of the dicts (students, views, schedules, ...), or an import path, with its parameters."""

    name: str
    """Its key in the dict, or `my_package.my_module:my_function`."""
    params: dict[str, Any] = field(default_factory=dict)
    """All other keys of the section."""


def choose(section: str, kind: str, name: str, table: Mapping[str, T], own: Callable[[Callable[..., Any]], T]) -> T:
    """Find what a run file names.

    Args:
        section: of the run file, such as `[student]`, for messages.
        kind: what is chosen, such as "student".
        name: as the run file has it.
        table: those of ours.
        own: what becomes of a function that `package.module:function` names.

    Raises:
        ConfigError: nothing of that name, or it cannot be imported.
    """
    if ":" in name:
        return own(imported(section, name))
    if name not in table:
        raise ConfigError(
            f"{section}: {unknown(kind, name, table)} (one of your own: its import path, package.module:name)"
        )
    return table[name]
