"""Targets of positions: rows of a batch that lie at some places of its samples, such as the masked tokens of texts.

Letters: B rows of a batch, P positions of them all, C classes. A student gives [B, *places, C], or of features
[B, *places, H]; what of it lies at the P positions is compared with the target's P rows.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from schemas.errors import ConfigError
from student_trainer.learning.target_protocol import OverRows
from student_trainer.learning.targets import Target, WithoutClasses


def labels_name(field: str) -> str:
    """Return the name under which the hard labels of a field are handed on; no teacher's has a colon."""
    return f"labels:{field}"


@dataclass(frozen=True, slots=True, eq=False)
class PositionTarget(OverRows):
    """A target of P rows, and where these lie among the places of B samples."""

    rows: Target
    """Of P rows, sample after sample, within one in C order."""
    field: str
    """The view's field that chose them, or of hard labels one that chose the same."""
    places: tuple[int, ...]
    """Shape of that field of a sample."""
    at: Tensor
    """[P] int64, rising: which of the B x prod(places) places they are."""
    counts: Tensor
    """[B] int64: how many are of each sample."""
    density: float
    """How many a sample has, the mean over the batch of all processes; 0 where there is none."""

    def picked(self, output: Tensor) -> Tensor:
        """Return [P, ...]: what of a student's [B, *places, ...] lies at the positions."""
        return output.flatten(0, len(self.places)).index_select(0, self.at)

    def labels_of(self, labels: Tensor) -> Tensor:
        """Return [P]: of hard labels of positions these, else what the sample of each has in [B]."""
        size = torch.Size(self.places).numel()
        return self.rows.labels_of(labels.index_select(0, self.at // size))

    def per_sample(self, rows: Tensor) -> Tensor:
        """Return [B] of [P] costs: of each sample the sum, divided by how many positions one has in the mean.

        So the mean over B, and over all processes, is that over all positions of the whole batch; without any it is 0.
        """
        # `unsafe` leaves out a check of the counts, for which a GPU would be waited for.
        sums = torch.segment_reduce(rows, "sum", lengths=self.counts, unsafe=True, initial=0.0)
        return sums / self.density if self.density else sums

    @property
    def shape(self) -> tuple[int, ...]:
        """(B, *places, C) or (B, *places, H): of what a student gives for it."""
        return (len(self.counts), *self.places, *self.rows.shape[1:])

    def to(self, device: torch.device) -> Self:
        """Return it on a device, as narrow as it is; copies from pinned memory do not wait."""
        at, counts = (each.to(device, non_blocking=True) for each in (self.at, self.counts))
        return replace(self, rows=self.rows.to(device), at=at, counts=counts)

    def between(self, low: int, high: int) -> Self:
        """Return what the samples [low, high) of the B have; the density stays that of the whole batch."""
        first, behind = (int(self.counts[:row].sum()) for row in (low, high))
        size = torch.Size(self.places).numel()
        return replace(
            self,
            rows=self.rows.between(first, behind),
            at=self.at[first:behind] - low * size,
            counts=self.counts[low:high],
        )

    def flat(self) -> Self:
        """Return it: each position is a row."""
        return self


@dataclass(frozen=True, slots=True, eq=False)
class LabelTarget(WithoutClasses):
    """Hard labels, one a row, as a target: nothing else is known of them."""

    labels: Tensor
    """[P] int64, none of them -1."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(P,)"""
        return tuple(self.labels.shape)

    @property
    def features(self) -> Tensor:
        """Raise ConfigError."""
        raise ConfigError("the target is of hard labels, and no features")

    def labels_of(self, labels: Tensor) -> Tensor:
        """Return its own."""
        return self.labels

    def to(self, device: torch.device) -> LabelTarget:
        """Return it on a device; copies from pinned memory do not wait."""
        return LabelTarget(self.labels.to(device, non_blocking=True))

    def widened(self) -> LabelTarget:
        """Return it."""
        return self
