"""Students: small networks, built by name from the shape of a sample and the number of classes."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from itertools import pairwise
from math import isqrt, prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from pipeline.user_code import said
from schemas.errors import ConfigError, DistillogError
from student_trainer.learning.pixels import Pixels
from student_trainer.learning.student_inputs import InputField, StudentInputs
from student_trainer.learning.transformer import transformer
from student_trainer.run.choices import choose
from student_trainer.run.student_settings import StudentSettings
from student_trainer.run.toml_tables import unknown

Build = Callable[..., nn.Module]
"""(input_shape without the batch, num_classes, **params) -> a module: [B, *input_shape] float32 -> [B, C] logits.

Of several fields `input_shape` is a dict, field -> its shape, and student_inputs.py says how the module is called.
One with a parameter `vocabulary` is told how many tokens the dataset's token IDs are of, where the run does not say it.
Images of bytes are floats in [0, 1] when they come to it (pixels.py); of other fields it gets what they hold."""


def linear(input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
    """Logistic regression on the flattened sample."""
    return nn.Sequential(nn.Flatten(), nn.Linear(prod(input_shape), num_classes))


def mlp(
    input_shape: tuple[int, ...], num_classes: int, hidden: Sequence[int] = (64,), dropout: float = 0.0
) -> nn.Module:
    """Fully connected layers with ReLU (and dropout, where asked) on the flattened sample."""
    layers: list[nn.Module] = [nn.Flatten()]
    for width, following in pairwise([prod(input_shape), *hidden]):
        layers += [nn.Linear(width, following), nn.ReLU()]
        if dropout:
            layers.append(nn.Dropout(dropout))
    return nn.Sequential(*layers, nn.Linear([prod(input_shape), *hidden][-1], num_classes))


_KINDS: dict[int, tuple[type[nn.Module], ...]] = {
    1: (nn.Conv1d, nn.BatchNorm1d, nn.MaxPool1d, nn.AvgPool1d),
    2: (nn.Conv2d, nn.BatchNorm2d, nn.MaxPool2d, nn.AvgPool2d),
}


def cnn(
    input_shape: tuple[int, ...],
    num_classes: int,
    channels: Sequence[int] = (32, 32, 64),
    hidden: int = 128,
    pool: int = 16,
    batch_norm: bool = False,
    dropout: float = 0.0,
) -> nn.Module:
    """3-wide convolutions with ReLU, halved after every one but the first, then one hidden layer with dropout.

    Samples are [channels, length] or [channels, height, width]. Before the hidden layer what is left of length, or of
    height and width, is averaged to `pool` places at most (16 are 4 x 4; 1 is the average over all), so that the layer
    does not grow with the sample. On 8x8 digits, of which 2x2 places are left, the default is conv 32-32-pool-64-pool
    and 62,250 parameters.
    """
    dims = len(input_shape) - 1
    if dims not in _KINDS:
        raise ConfigError(f"[student] cnn takes [channels, length] or [channels, height, width], not {input_shape}")
    if pool < 1:
        raise ConfigError(f"[student] cnn: pool must be at least 1, is {pool}")
    convolution, norm, largest, average = _KINDS[dims]
    layers: list[nn.Module] = []
    for index, (width, following) in enumerate(pairwise([input_shape[0], *channels])):
        layers.append(convolution(width, following, 3, padding=1, bias=not batch_norm))
        if batch_norm:
            layers.append(norm(following))
        layers.append(nn.ReLU())
        if index:
            layers.append(largest(2))
    sides = [side >> max(len(channels) - 1, 0) for side in input_shape[1:]]
    if not all(sides):
        raise ConfigError(f"[student] cnn: {len(channels)} channels halve {input_shape[1:]} to nothing; name fewer")
    most = pool if dims == 1 else isqrt(pool)
    places = [min(side, most) for side in sides]
    if places != sides:
        # Windows of one size that cover a side; adaptive pooling's are not, and no operator of ONNX where they differ.
        strides = [side // count for side, count in zip(sides, places, strict=True)]
        kernel = [side - (count - 1) * by for side, count, by in zip(sides, places, strides, strict=True)]
        layers.append(average(tuple(kernel), tuple(strides)))
    features = (list(channels) or [input_shape[0]])[-1] * prod(places)
    layers += [nn.Flatten(), nn.Linear(features, hidden), nn.ReLU()]
    if dropout:
        layers.append(nn.Dropout(dropout))
    return nn.Sequential(*layers, nn.Linear(hidden, num_classes))


STUDENTS: dict[str, Build] = {"linear": linear, "mlp": mlp, "cnn": cnn, "transformer": transformer}
OF_TOKENS = ("transformer",)
"""Those that take token IDs and their mask; all others take one field of numbers."""
_KEYS = {each.name for each in fields(StudentSettings)} - {"params"}


def check_parameters(
    function: Callable[..., Any], skip: int, params: dict[str, Any], section: str, keys: Iterable[str] = ("name",)
) -> None:
    """Refuse parameters that a function does not take; its first `skip` are given by us, `keys` are the section's."""
    parameters = list(inspect.signature(function).parameters.values())[skip:]
    if any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters):
        return
    for key in params:
        if key not in (known := {parameter.name for parameter in parameters}):
            raise ConfigError(f"{section}: {unknown('key', key, known | set(keys))}")


@dataclass(frozen=True, slots=True)
class Network:
    """What a student is built for."""

    inputs: tuple[InputField, ...]
    """The fields that it takes, in this order."""
    num_classes: int
    class_names: tuple[str, ...] = ()
    """One a class; none where the dataset does not say."""
    num_tokens: int = 0
    """How many tokens its token IDs are of; 0 where the dataset does not say."""
    tokenizer: str = ""
    """SHA-256 of the tokenizer that makes them, as hex digits; "" where the dataset does not say."""

    @classmethod
    def of(cls, field: str, shape: tuple[int, ...], num_classes: int, dtype: str = "float32") -> Network:
        """Return that of a student that takes one field."""
        return cls((InputField(field, shape, dtype),), num_classes)

    @property
    def fields(self) -> tuple[str, ...]:
        """Their names."""
        return tuple(each.name for each in self.inputs)

    @property
    def input_shape(self) -> tuple[int, ...] | dict[str, tuple[int, ...]]:
        """What a student is built from: the shape of its one field, or of each of several."""
        return self.inputs[0].shape if len(self.inputs) == 1 else {each.name: each.shape for each in self.inputs}

    def zeros(self, rows: int, device: torch.device | None = None) -> dict[str, Tensor]:
        """Return samples that are all 0: [rows, *shape] of each field."""
        return {
            each.name: torch.zeros(rows, *each.shape, dtype=getattr(torch, each.dtype), device=device)
            for each in self.inputs
        }

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        values = {key: value for key, value in asdict(self).items() if value or key not in ("num_tokens", "tokenizer")}
        return values | {"inputs": list(values["inputs"]), "class_names": list(self.class_names)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Network:
        """Undo `as_dict`, also once JSON made lists of all tuples."""
        inputs = (InputField(each["name"], tuple(each["shape"]), each["dtype"]) for each in values["inputs"])
        return cls(
            tuple(inputs),
            int(values["num_classes"]),
            tuple(values["class_names"]),
            int(values.get("num_tokens", 0)),
            str(values.get("tokenizer", "")),
        )


def build_student(settings: StudentSettings, network: Network, seed: int) -> nn.Module:
    """Build a student whose initial weights depend on the seed alone.

    Raises:
        ConfigError: no such student, or one that does not take these parameters, this shape or several fields; a mean
            or deviation that does not fit; a lazy module that no sample comes to.
    """
    function = choose("[student]", "student", settings.name, STUDENTS, lambda found: found)
    check_parameters(function, 2, settings.params, f"[student] {settings.name}", _KEYS)
    if settings.name in STUDENTS and settings.name not in OF_TOKENS and len(network.inputs) != 1:
        raise ConfigError(
            f"[student] {settings.name} takes one field, and inputs names {', '.join(network.fields)}: leave one, or "
            "take a student of your own"
        )
    params = dict(settings.params)
    if network.num_tokens and "vocabulary" not in params and "vocabulary" in inspect.signature(function).parameters:
        params["vocabulary"] = network.num_tokens
    pixels = Pixels(network.inputs, settings.mean, settings.std)
    torch.manual_seed(seed)
    try:
        student = function(network.input_shape, network.num_classes, **params)
    except (MemoryError, ConfigError):
        raise
    except Exception as error:  # a student may be of the user's own
        shape = network.input_shape
        raise ConfigError(f"[student] {settings.name} cannot be built for samples of {shape}: {said(error)}") from error
    if not isinstance(student, nn.Module):
        raise ConfigError(f"[student] {settings.name} gave a {type(student).__name__}, not a torch.nn.Module")
    pixels.before(student)
    _give_shapes(student, settings, network)
    return student


def fails(settings: StudentSettings, network: Network, error: Exception) -> ConfigError:
    """Return what to raise where a student, which may be of the user's own, raised `error` on samples."""
    return ConfigError(f"[student] {settings.name} fails on samples of {network.input_shape}: {said(error)}")


def _give_shapes(student: nn.Module, settings: StudentSettings, network: Network) -> None:
    """Let lazy modules, such as LazyLinear, make their weights, of a sample of zeros, and change nothing else."""
    if not _lazy(student):
        return
    training = student.training
    student.eval()
    try:
        with torch.no_grad():
            StudentInputs(student, network.fields).hand(network.zeros(1), student)
    except (DistillogError, MemoryError):
        raise
    except Exception as error:
        raise fails(settings, network, error) from error
    student.train(training)
    if left := _lazy(student):
        raise ConfigError(
            f"[student] {settings.name}: {left} has no shape, since what is lazy gets its own of the first sample that "
            "comes to it, and in an evaluation none does: take a module that is told its sizes"
        )


def _lazy(student: nn.Module) -> str:
    """Name a parameter or buffer that has no shape yet; "": there is none."""
    named = (*student.named_parameters(), *student.named_buffers())
    return next((name for name, each in named if is_lazy(each)), "")


def num_parameters(model: nn.Module) -> int:
    """Return how many numbers a student learns."""
    return sum(each.numel() for each in model.parameters())
