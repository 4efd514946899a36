"""What a step of a student comes to, and what a part of its batch is to it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from student_trainer.batches import Batch


@dataclass(frozen=True, slots=True, eq=False)
class Step:
    """What a step came to, on the device: to read any of it is to wait for the device."""

    loss: Tensor
    """Scalar float32: the total."""
    rows: dict[str, Tensor]
    """Key of the loss -> [B] float32, times the rows' weights, without the loss's own."""
    refused: Tensor
    """Scalar float32: 1 where the loss or the gradient was not finite and the step was not taken."""
    gradient_norm: Tensor | None = None
    """Scalar float32: L2 norm of all gradients together before they were clipped; None: they are not."""

    def bad_rows(self) -> Tensor:
        """Return [B] bool: where a loss is not finite. All False where only the gradient is not."""
        return ~torch.stack([torch.isfinite(rows) for rows in self.rows.values()]).all(dim=0)


@dataclass(frozen=True, slots=True, eq=False)
class Shown:
    """A part of a batch, and what a student gives for it."""

    part: Batch
    outputs: Mapping[str, Tensor]
    """Output -> [B, ...], with gradients."""
    of_copies: dict[str, Mapping[str, Tensor]]
    """The same of its copies, by whose weights they have, without."""
