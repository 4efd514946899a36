"""What a student gives, by name: a tensor, several of them, and inner values that forward hooks take.

Letters: N rows.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from schemas.errors import ConfigError, DistillogError
from schemas.names import did_you_mean
from student_trainer.learning.student_inputs import StudentInputs
from student_trainer.learning.students import Network, build_student, fails
from student_trainer.run.student_settings import StudentSettings

T = TypeVar("T")

ONLY = "logits"
"""The name of an output that has none, and the one that is taken where none is named."""

_PROBED = 2
"""Rows of the call that tells what a student gives: one alone is too few for a batch norm."""


def named(result: Any) -> dict[str, Tensor]:
    """Return what a student gave: a tensor, a mapping of tensors, or an object with named fields, some of them tensors.

    Raises:
        ConfigError: it is none of these.
    """
    if isinstance(result, Tensor):
        return {ONLY: result}
    items: Iterable[tuple[Any, Any]] = ()
    if isinstance(result, Mapping):
        items = result.items()
    elif hasattr(result, "_asdict"):
        items = result._asdict().items()
    elif dataclasses.is_dataclass(result):
        items = ((field.name, getattr(result, field.name)) for field in dataclasses.fields(result))
    elif hasattr(result, "__dict__"):
        items = vars(result).items()
    found = {str(name): value for name, value in items if isinstance(value, Tensor)}
    if not found:
        raise ConfigError(
            f"[student] gave a {type(result).__name__}; it has to give a tensor, a dict of tensors, or an object with "
            "named fields"
        )
    return found


def pick(outputs: Mapping[str, T], name: str = "") -> T:
    """Return the output of a name; "": `logits`, or the only one.

    Raises:
        ConfigError: there is none, or several.
    """
    if name in outputs:
        return outputs[name]
    if name:
        raise ConfigError(f"the student gives no {name!r}: {did_you_mean(name, outputs)}")
    if ONLY not in outputs and len(outputs) != 1:
        raise ConfigError(f"the student gives {', '.join(outputs)} and no {ONLY!r}: say which with `on`")
    return outputs[ONLY] if ONLY in outputs else next(iter(outputs.values()))


class StudentOutputs:
    """A student whose inner values are outputs beside its own."""

    def __init__(self, model: nn.Module, inner: Mapping[str, str]) -> None:
        """Hook the modules of `inner` (output -> the module's name, such as `encoder.layers.2`).

        Raises:
            ConfigError: no such module, or an inner value that is called `logits`.
        """
        self.module = model
        self._taken: dict[str, tuple[Tensor, int]] | None = None
        """Name -> value and its version. None but in a call of this one's: whoever evaluates the student calls it
        without."""
        if ONLY in inner:
            raise ConfigError(
                f"[student] outputs.{ONLY}: evaluations and exports take the student's own output of that name, not an "
                "inner value: give it another name"
            )
        modules = dict(model.named_modules())
        for name, path in inner.items():
            if path not in modules or not path:
                known = [each for each in modules if each]
                raise ConfigError(f"[student] outputs.{name}: there is no module {path!r}: {did_you_mean(path, known)}")
            modules[path].register_forward_hook(self._taking(name, path))

    def __call__(self, *args: Tensor, **kwargs: Tensor) -> dict[str, Tensor]:
        """Return the outputs of a forward pass, [N, ...] each; called as the student is.

        Raises:
            ConfigError: an inner value is no tensor, is changed in place, or has the name of the student's own.
        """
        taken = self._taken = {}
        try:
            own = named(self.module(*args, **kwargs))
        finally:
            self._taken = None
        for name, (value, version) in taken.items():
            if value._version != version:
                raise ConfigError(
                    f"[student] outputs.{name}: what its module gives is changed in place by a later one, such as "
                    "ReLU(inplace=True): take that one's output, or let it make a new tensor"
                )
        inner = {name: value for name, (value, _) in taken.items()}
        if twice := own.keys() & inner.keys():
            raise ConfigError(f"[student] outputs.{min(twice)}: the student gives an output of that name itself")
        return {**own, **inner}

    def _taking(self, name: str, path: str) -> Any:
        def take(module: nn.Module, inputs: Any, result: Any) -> None:
            if self._taken is None:
                return
            # Layers of transformers give a tuple, stacks of them named fields, the hidden state first.
            values = tuple(result.values()) if isinstance(result, Mapping) else result
            value = values[0] if isinstance(values, tuple) and values else result
            if not isinstance(value, Tensor):
                raise ConfigError(f"[student] outputs.{name}: {path} gives a {type(value).__name__}, not a tensor")
            if name in self._taken:
                raise ConfigError(f"[student] outputs.{name}: {path} is called more than once a step: which one?")
            self._taken[name] = value, value._version

        return take


def probe(
    settings: StudentSettings, network: Network, seed: int, device: torch.device, half: torch.dtype | None
) -> dict[str, tuple[int, ...]]:
    """Return the shape of a row of each output, of a student that is made for this alone and fed zeros.

    Raises:
        ConfigError: it fails, or gives something else than rows.
    """
    model = build_student(settings, network, seed).to(device).train()
    inputs, called = StudentInputs(model, network.fields), StudentOutputs(model, settings.outputs)
    try:
        with torch.no_grad(), torch.autocast(device.type, half or torch.bfloat16, enabled=half is not None):
            outputs = inputs.hand(network.zeros(_PROBED, device), called)
    except (DistillogError, MemoryError):
        raise
    except Exception as error:  # a student may be of the user's own
        raise fails(settings, network, error) from error
    for name, values in outputs.items():
        if not values.ndim or len(values) != _PROBED:
            raise ConfigError(
                f"[student] {settings.name}: output {name!r} has shape {tuple(values.shape)} for {_PROBED} samples; it "
                "has to give one row for each"
            )
    return {name: tuple(values.shape[1:]) for name, values in outputs.items()}
