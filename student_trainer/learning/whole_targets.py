"""Targets that hold all of a teacher's output, in whatever width. Letters: B rows, C classes, T temperature."""

from __future__ import annotations

import weakref
from collections.abc import MutableMapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from schemas.codecs import Dense, Features, Hidden, Steps
from schemas.errors import ConfigError
from schemas.head import Head
from student_trainer.learning.target_protocol import OfClasses, WithoutClasses, WithoutDraws


@dataclass(frozen=True, slots=True, eq=False)
class DenseTarget(OfClasses):
    """A teacher's logits for a batch."""

    logits: Tensor
    """[B, ..., C] float32 for a loss; as stored, perhaps float16, until `total_loss` widens them."""

    @classmethod
    def of(cls, rows: Dense, columns: dict[str, Tensor]) -> DenseTarget:
        """Return the target that B such rows are, of their columns as tensors."""
        return cls(columns["logits"])

    @property
    def shape(self) -> tuple[int, ...]:
        """(B, ..., C)."""
        return tuple(self.logits.shape)

    def to(self, device: torch.device) -> DenseTarget:
        """Return it on a device, as narrow as it is; copies from pinned memory do not wait."""
        return DenseTarget(self.logits.to(device, non_blocking=True))

    def widened(self) -> DenseTarget:
        """Return it in float32."""
        return DenseTarget(self.logits.float())

    def flat(self) -> DenseTarget:
        """Return it with each place as a row."""
        return DenseTarget(self.logits.flatten(0, -2))

    def divergence(self, student: Tensor, temperature: float) -> Tensor:
        """Return [B] KL(teacher || student) at T."""
        teacher = functional.log_softmax(self.logits / temperature, dim=1)
        return times_log(teacher.exp(), teacher - student).sum(dim=1)

    def likeliest(self) -> Tensor:
        """Return [B] int64: the teacher's likeliest class."""
        return self.logits.argmax(dim=1)


@dataclass(frozen=True, slots=True, eq=False)
class FeatureTarget(WithoutClasses):
    """A teacher's features, values or multilabel logits for a batch."""

    features: Tensor
    """[B, ...] float32 for a loss; as stored, perhaps float16, until `total_loss` widens them."""

    @classmethod
    def of(cls, rows: Features, columns: dict[str, Tensor]) -> FeatureTarget:
        """Return the target that B such rows are, of their columns as tensors."""
        return cls(columns["values"])

    @property
    def shape(self) -> tuple[int, ...]:
        """(B, ...)."""
        return tuple(self.features.shape)

    def to(self, device: torch.device) -> FeatureTarget:
        """Return it on a device, as narrow as it is; copies from pinned memory do not wait."""
        return FeatureTarget(self.features.to(device, non_blocking=True))

    def widened(self) -> FeatureTarget:
        """Return it in float32."""
        return FeatureTarget(self.features.float())


@dataclass(frozen=True, slots=True, eq=False)
class StepsTarget(WithoutDraws):
    """A teacher's output in steps, as `schemas.steps.Steps` has it: a quarter, or an eighth, of what it is in float32.

    Losses see what `widened` makes of it, on the device where it is.
    """

    codes: Tensor
    """[B, ...] uint8; with two in each byte [B, ..., D // 2]."""
    odd: Tensor | None
    """[B, ...] uint8: the last of an odd D."""
    scale: Tensor
    """[B, ...] of classes, else [B]: float32."""
    zero: Tensor | None
    """[B] float32; None: they are of classes."""
    packed: bool
    """Whether codes are two in each byte."""

    @classmethod
    def of(cls, rows: Steps, columns: dict[str, Tensor]) -> StepsTarget:
        """Return the target that B such rows are, of their columns as tensors."""
        return cls(columns["codes"], columns.get("odd"), columns["scale"], columns.get("zero"), rows.packed)

    @property
    def shape(self) -> tuple[int, ...]:
        """(B, ..., C), or (B, ...) of features."""
        if not self.packed or self.codes.ndim == 1:
            return tuple(self.codes.shape)
        return (*self.codes.shape[:-1], 2 * self.codes.shape[-1] + (self.odd is not None))

    @property
    def logits(self) -> Tensor:
        """[B, ..., C] float32, or raises ConfigError."""
        return self.widened().logits

    @property
    def features(self) -> Tensor:
        """[B, ...] float32, or raises ConfigError."""
        return self.widened().features

    def to(self, device: torch.device) -> StepsTarget:
        """Return it on a device, as narrow as it is; copies from pinned memory do not wait."""
        odd, zero = (None if each is None else each.to(device, non_blocking=True) for each in (self.odd, self.zero))
        codes, scale = (each.to(device, non_blocking=True) for each in (self.codes, self.scale))
        return StepsTarget(codes, odd, scale, zero, self.packed)

    def widened(self) -> DenseTarget | FeatureTarget:
        """Return it in float32: the bits of `Steps.values`."""
        codes = self.codes
        if self.packed and codes.ndim > 1:
            parts = [codes & 15, codes >> 4]
            codes = torch.cat(parts if self.odd is None else [*parts, self.odd[..., None]], dim=-1)
        if self.zero is None:
            return DenseTarget(codes.float() * -self.scale[..., None])
        per_row = (-1, *[1] * (codes.ndim - 1))
        return FeatureTarget(codes.float() * self.scale.view(per_row) + self.zero.view(per_row))

    def flat(self) -> DenseTarget | FeatureTarget:
        """Return it in float32 with each place as a row, or raise ConfigError."""
        return self.widened().flat()

    def divergence(self, student: Tensor, temperature: float) -> Tensor:
        """Return [B] KL(teacher || student) at T, or raise ConfigError."""
        return self.widened().divergence(student, temperature)

    def likeliest(self) -> Tensor:
        """Return [B] int64: the teacher's likeliest class, or raise ConfigError."""
        return self.widened().likeliest()


_LAYERS: MutableMapping[Head, dict[torch.device, tuple[Tensor, Tensor | None]]] = weakref.WeakKeyDictionary()
"""Layer -> device -> weights [H, C] and bias [C] there, in float32, for as long as anybody has it."""


def _layer(head: Head, device: torch.device) -> tuple[Tensor, Tensor | None]:
    on_devices = _LAYERS.setdefault(head, {})
    if device not in on_devices:
        weight, bias = (
            None if each is None else torch.from_numpy(each.astype(np.float32)).to(device)
            for each in (head.weight, head.bias)
        )
        assert weight is not None
        on_devices[device] = weight.T, bias
    return on_devices[device]


@dataclass(frozen=True, slots=True, eq=False)
class HeadTarget(OfClasses):
    """What a teacher's last layer is given for a batch, and that layer.

    Losses see the logits, which `widened` rebuilds on the device where it is, of these rows alone.
    """

    hidden: Tensor
    """[B, ..., H] float16."""
    head: Head
    """The layer: which is the same for all batches, and travels with none."""

    @classmethod
    def of(cls, rows: Hidden, columns: dict[str, Tensor]) -> HeadTarget:
        """Return the target that B such rows are, of their columns as tensors; ConfigError without their layer."""
        if rows.head is None:
            raise ConfigError("hidden rows of the codec head are no target without the last layer of their teacher")
        return cls(columns["hidden"], rows.head)

    @property
    def shape(self) -> tuple[int, ...]:
        """(B, ..., C)."""
        return (*self.hidden.shape[:-1], self.head.num_classes)

    @property
    def logits(self) -> Tensor:
        """[B, ..., C] float32."""
        return self.widened().logits

    def to(self, device: torch.device) -> HeadTarget:
        """Return it on a device, as narrow as it is; copies from pinned memory do not wait."""
        return HeadTarget(self.hidden.to(device, non_blocking=True), self.head)

    def widened(self) -> DenseTarget:
        """Return the logits: hidden @ weight.T + bias, in float32 also where a student computes in half precision."""
        weight, bias = _layer(self.head, self.hidden.device)
        with torch.no_grad(), torch.autocast(self.hidden.device.type, enabled=False):
            logits = self.hidden.float() @ weight
            return DenseTarget(logits if bias is None else logits.add_(bias))

    def flat(self) -> DenseTarget:
        """Return its logits with each place as a row."""
        return self.widened().flat()

    def divergence(self, student: Tensor, temperature: float) -> Tensor:
        """Return [B] KL(teacher || student) at T."""
        return self.widened().divergence(student, temperature)

    def likeliest(self) -> Tensor:
        """Return [B] int64: the teacher's likeliest class."""
        return self.widened().likeliest()


def times_log(probability: Tensor, log_ratio: Tensor) -> Tensor:
    """p * x, and 0 (with gradient 0) where p is 0, whatever x is there."""
    positive = probability > 0
    return torch.where(positive, probability * torch.where(positive, log_ratio, 0.0), 0.0)
