"""The fields of the dataset that a student takes, and how it is called with them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from inspect import Parameter
from typing import TypeVar

from torch import Tensor, nn

from schemas.errors import ConfigError
from schemas.names import did_you_mean

T = TypeVar("T")

_BY_NAME = (Parameter.POSITIONAL_OR_KEYWORD, Parameter.KEYWORD_ONLY)


@dataclass(frozen=True, slots=True)
class InputField:
    """A field of the dataset that a student takes, as its view gives it."""

    name: str
    shape: tuple[int, ...]
    """Of one sample."""
    dtype: str
    """NumPy's name of it."""

    def __str__(self) -> str:
        return f"{self.name} {self.dtype}{list(self.shape)}"


class StudentInputs:
    """One field is handed on as it is, several by name where `forward` takes all of these names, else in order.

    Raises:
        ConfigError: `**kwargs` beside named parameters would swallow a field that is none of these.
    """

    def __init__(self, model: nn.Module, fields: Sequence[str]) -> None:
        self.fields = tuple(fields)
        parameters = inspect.signature(model.forward).parameters.values()
        named = [each.name for each in parameters if each.kind in _BY_NAME]
        any_name = any(each.kind is Parameter.VAR_KEYWORD for each in parameters)
        unknown = [field for field in self.fields if field not in named]
        if len(self.fields) > 1 and any_name and named and unknown:
            raise ConfigError(
                f"[student] inputs: {unknown[0]!r} would be lost among the **keywords of the student's forward: fields "
                f"have the names of its parameters: {did_you_mean(unknown[0], named)}"
            )
        self._by_name = len(self.fields) > 1 and (any_name or not unknown)

    def hand(self, inputs: Mapping[str, Tensor], call: Callable[..., T]) -> T:
        """Call the model, or what stands around it, with its fields of `inputs`, [N, ...] each."""
        if self._by_name:
            return call(**{name: inputs[name] for name in self.fields})
        return call(*(inputs[name] for name in self.fields))
