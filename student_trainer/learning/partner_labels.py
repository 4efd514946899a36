"""Hard labels of samples that a view mixes: beside each sample's own label its partner's, and their shares.

Letters: B rows of a batch, M rows of an order.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from schemas.columns import Columns, IntArray
from schemas.errors import ConfigError
from student_trainer.learning.target_protocol import WithoutClasses

PARTNERS = "labels of partners"
"""The name under which they are handed on; no teacher's has a blank."""


@dataclass(frozen=True, slots=True, eq=False)
class PartnerLabels:
    """Those of an order's rows, in the form that soft targets have."""

    labels: NDArray[np.int64]
    """[M]; -1 = unlabelled, or outside the run's label budget."""
    share: NDArray[np.float32]
    """[M] of the sample itself; its partner has the rest."""

    chosen: ClassVar[None] = None
    temperatures: ClassVar[None] = None

    @property
    def columns(self) -> Columns:
        """Both."""
        return {"labels": self.labels, "share": self.share}

    def take(self, rows: IntArray) -> PartnerLabels:
        """Return the rows at [K] places."""
        return replace(self, labels=self.labels[rows], share=self.share[rows])


@dataclass(frozen=True, slots=True, eq=False)
class PartnerTarget(WithoutClasses):
    """Those of a batch, handed on as a target is."""

    labels: Tensor
    """[B] int64."""
    share: Tensor
    """[B] float32."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(B,)"""
        return tuple(self.labels.shape)

    @property
    def features(self) -> Tensor:
        """Raise ConfigError."""
        raise ConfigError("the target is of hard labels, and no features")

    def mixed(self, own: Tensor, partner: Tensor) -> Tensor:
        """Return [B]: what a row costs of what it would cost with its own label, and with its partner's."""
        return self.share * own + (1 - self.share) * partner

    def to(self, device: torch.device) -> PartnerTarget:
        """Return it on a device; copies from pinned memory do not wait."""
        return PartnerTarget(*(each.to(device, non_blocking=True) for each in (self.labels, self.share)))

    def widened(self) -> PartnerTarget:
        """Return it."""
        return self
