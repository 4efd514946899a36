"""The parameters of a dataset's URI, read by name; what nobody reads is refused."""

from __future__ import annotations

from schemas.errors import ConfigError
from schemas.names import did_you_mean


class Params:
    """Takes parameters by name and type; `done` refuses the rest. Raises ConfigError."""

    def __init__(self, dataset: str, params: dict[str, str]) -> None:
        self._dataset = dataset
        self._left = dict(params)
        self._known: list[str] = []

    def text(self, name: str, default: str, choices: tuple[str, ...] = ()) -> str:
        """A parameter as it was written, one of `choices` where some are given."""
        self._known.append(name)
        value = self._left.pop(name, default)
        if choices and value not in choices:
            raise ConfigError(f"dataset {self._dataset}: {name} is {value!r}: {did_you_mean(value, choices)}")
        return value

    def number(self, name: str, default: int, low: int, high: int) -> int:
        """A whole number within [low, high]."""
        value = self.text(name, str(default))
        if not (value.isascii() and value.isdigit() and low <= int(value) <= high):
            raise ConfigError(f"dataset {self._dataset}: {name} is {value!r}: give a whole number, {low} to {high}")
        return int(value)

    def done(self) -> None:
        """Refuses parameters that were not taken."""
        for name in self._left:
            raise ConfigError(f"dataset {self._dataset} has no parameter {name!r}: {did_you_mean(name, self._known)}")
