"""What losses ask of a target, and what targets have in common.

Letters: B rows of a batch, C classes, T temperature.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any, ClassVar, Protocol, Self

import torch
from torch import Tensor

from schemas.errors import ConfigError


class Target(Protocol):
    """A teacher's soft targets for a batch."""

    @property
    def field(self) -> str:
        """The view's field that says where its rows lie in a student's output; "": they are the B."""

    def picked(self, output: Tensor) -> Tensor:
        """Return what of a student's [B, ...] lies against its rows."""

    def labels_of(self, labels: Tensor) -> Tensor:
        """Return the hard labels of its rows, where [B] are those of the samples."""

    def per_sample(self, rows: Tensor) -> Tensor:
        """Return [B] of what each of its rows costs: their mean is the mean over all rows."""

    @property
    def logits(self) -> Tensor:
        """[B, ..., C], float32 for a loss. Raises ConfigError where there are none, or only some classes were kept."""

    @property
    def features(self) -> Tensor:
        """[B, ...], float32 for a loss, of what no softmax is taken of; else raises ConfigError."""

    @property
    def draws(self) -> Tensor:
        """[B, ..., N] int64: classes drawn from the teacher's probabilities at T = 1. Raises ConfigError without."""

    def flat(self) -> Target:
        """Return classes of several places, [B, ..., C], with each place as a row."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(B, ..., C), or (B, ...) of features: of what a student gives for it."""

    def to(self, device: torch.device) -> Self:
        """Return it on a device, as narrow as it is; copies from pinned memory do not wait."""

    def widened(self) -> Target:
        """Return it in float32, as losses take it; of the same shape, at the same places."""

    def between(self, low: int, high: int) -> Self:
        """Return what the samples [low, high) of the B have, as views; of targets on the CPU."""

    def divergence(self, student: Tensor, temperature: float) -> Tensor:
        """Return [B] KL(teacher || student) at T of the student's [B, C] log-probabilities at T."""

    def likeliest(self) -> Tensor:
        """Return [B] int64: the teacher's likeliest class."""


class OfSamples:
    """What targets have in common whose rows are the B."""

    __slots__ = ()

    field: ClassVar[str] = ""

    def picked(self, output: Tensor) -> Tensor:
        """Return the output."""
        return output

    def labels_of(self, labels: Tensor) -> Tensor:
        """Return the labels."""
        return labels

    def per_sample(self, rows: Tensor) -> Tensor:
        """Return the rows."""
        return rows

    def between(self, low: int, high: int) -> Self:
        """Return the rows [low, high), as views: of each tensor that it has, whose first dimension is the rows'."""
        return replace(self, **{each.name: _between(getattr(self, each.name), low, high) for each in fields(self)})  # type: ignore[type-var, arg-type]


def _between(value: Any, low: int, high: int) -> Any:
    if isinstance(value, Mapping):
        return {key: _between(each, low, high) for key, each in value.items()}
    return value[low:high] if isinstance(value, Tensor) else value


class OverRows:
    """What targets have in common that are another's rows, which lie elsewhere than at each of the B."""

    __slots__ = ()

    rows: Target

    @property
    def logits(self) -> Tensor:
        """Of the rows, [.., C], or raises ConfigError as they do."""
        return self.rows.logits

    @property
    def features(self) -> Tensor:
        """Of the rows, or raises ConfigError as they do."""
        return self.rows.features

    @property
    def draws(self) -> Tensor:
        """Of the rows, [.., N], or raises ConfigError as they do."""
        return self.rows.draws

    def widened(self) -> Self:
        """Return it in float32."""
        return replace(self, rows=self.rows.widened())  # type: ignore[type-var]

    def divergence(self, student: Tensor, temperature: float) -> Tensor:
        """Return KL(teacher || student) at T of each row, of the student's log-probabilities of these at T."""
        return self.rows.divergence(student, temperature)

    def likeliest(self) -> Tensor:
        """Return the teacher's likeliest class of each row, int64."""
        return self.rows.likeliest()


class WithoutDraws(OfSamples):
    """What targets have in common that hold no classes drawn at random."""

    __slots__ = ()

    @property
    def draws(self) -> Tensor:
        """Raise ConfigError."""
        raise ConfigError("the target holds no draws: that of the codec sampled does")


class OfClasses(WithoutDraws):
    """What targets of classes have in common."""

    __slots__ = ()

    @property
    def features(self) -> Tensor:
        """Raise ConfigError."""
        raise ConfigError("the target is of classes, and no features")


class WithoutClasses(WithoutDraws):
    """What targets have in common that hold no teacher's classes."""

    __slots__ = ()

    @property
    def logits(self) -> Tensor:
        """Raise ConfigError."""
        raise ConfigError("the target is of features, multilabel logits or labels, which no softmax is taken of")

    def flat(self) -> Self:
        """Raise ConfigError, as `logits` does."""
        self.logits  # noqa: B018
        return self

    def divergence(self, student: Tensor, temperature: float) -> Tensor:
        """Raise ConfigError, as `logits` does."""
        return self.logits

    def likeliest(self) -> Tensor:
        """Raise ConfigError, as `logits` does."""
        return self.logits
