"""Targets that some rows of a batch have none of: those of a teacher that does not count in all of its orders.

Letters: B rows of a batch, M of them that have a target.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Self

import torch
from torch import Tensor

from student_trainer.learning.target_protocol import OverRows, Target


@dataclass(frozen=True, slots=True, eq=False)
class PartTarget(OverRows):
    """A target of M rows, and which of the batch's B these are."""

    rows: Target
    """Of M rows; each is a sample."""
    at: Tensor
    """[M] int64, rising."""
    num_rows: int
    """B."""

    field: ClassVar[str] = ""

    def picked(self, output: Tensor) -> Tensor:
        """Return [M, ...]: what of a student's [B, ...] lies against its rows."""
        return output.index_select(0, self.at)

    def labels_of(self, labels: Tensor) -> Tensor:
        """Return [M] of [B]."""
        return labels.index_select(0, self.at)

    def per_sample(self, rows: Tensor) -> Tensor:
        """Return [B] of [M] costs: 0 where there is no target."""
        return rows.new_zeros(self.num_rows).index_copy(0, self.at, rows)

    def present(self) -> Tensor:
        """Return [B] float64: 1 where there is a target, else 0."""
        zeros = torch.zeros(self.num_rows, dtype=torch.float64, device=self.at.device)
        return zeros.index_fill(0, self.at, 1.0)

    @property
    def shape(self) -> tuple[int, ...]:
        """(B, ...): of what a student gives for it."""
        return (self.num_rows, *self.rows.shape[1:])

    def to(self, device: torch.device) -> Self:
        """Return it on a device, as narrow as it is; copies from pinned memory do not wait."""
        return replace(self, rows=self.rows.to(device), at=self.at.to(device, non_blocking=True))

    def between(self, low: int, high: int) -> Self:
        """Return what the samples [low, high) of the B have, as views."""
        first, behind = torch.searchsorted(self.at, torch.tensor([low, high])).tolist()
        return replace(self, rows=self.rows.between(first, behind), at=self.at[first:behind] - low, num_rows=high - low)

    def flat(self) -> Target:
        """Return the M rows' classes of several places with each place as a row."""
        return self.rows.flat()
