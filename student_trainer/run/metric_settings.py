"""`[[evaluation.metrics]]` of a run file, and what `--metric` of the command line says of the same."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl

from schemas.errors import ConfigError
from schemas.names import check_name
from student_trainer.run.toml_tables import build


@dataclass(frozen=True, slots=True)
class MetricSettings:
    """`[[evaluation.metrics]]`: something that is measured."""

    name: str
    """A name of METRICS, or `my_package.my_module:MyMetric`."""
    key: str = ""
    """What its figures' names begin with, `KEY.NAME`; left out: nothing."""
    params: dict[str, Any] = field(default_factory=dict)
    """All other keys: the metric's own parameters."""

    @property
    def title(self) -> str:
        """What it is called in errors."""
        return self.key or self.name

    def __post_init__(self) -> None:
        if self.key:
            check_name("metric", self.key)


def parse_metric(text: str) -> MetricSettings:
    """Parse `NAME[?KEY=VALUE&...]`, each value as TOML has it; a bare word is a text.

    Raises:
        ConfigError: it is not written so.
    """
    what = f"--metric {text}"
    name, _, query = text.partition("?")
    try:
        pairs = parse_qsl(query, keep_blank_values=True, strict_parsing=bool(query))
    except ValueError:
        raise ConfigError(f"{what}: after the ? write key=value, joined by &") from None
    table = {key: _value(value) for key, value in pairs} | {"name": name}
    if len(table) != len(pairs) + 1:
        raise ConfigError(f"{what} says something twice")
    return build(MetricSettings, table, what)


def _value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except (ValueError, RecursionError):
        return text
