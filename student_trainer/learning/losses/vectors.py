"""Centred and normalised rows, with gradients that stay bounded where a row has no direction."""

from __future__ import annotations

import math

import torch
from torch import Tensor

_ROUNDING = 1e-6
"""What is left of equal numbers, less their mean, is no more than this share of them."""


def unit(values: Tensor, dim: int, of: Tensor | None = None) -> Tensor:
    """Divide by the Euclidean norm along an axis.

    Where that is 0, or of values that were centred nothing but rounding beside the norm of what they were (`of`), it is
    divided by 1 instead: the quotient's own gradient grows without bound there.
    """
    norm = torch.linalg.vector_norm(values, dim=dim, keepdim=True)
    least = 0.0 if of is None else _ROUNDING * torch.linalg.vector_norm(of.detach(), dim=dim, keepdim=True)
    return values / torch.where(norm > least, norm, 1.0)


def deviations(values: Tensor, dim: int) -> Tensor:
    """Return what `unit` makes of the differences from the mean along an axis; two such have Pearson's r as product."""
    return unit(values - values.mean(dim=dim, keepdim=True), dim, of=values)


def standardised(logits: Tensor) -> Tensor:
    """Return (z - mean) / deviation of each row of [B, C] logits (Sun et al. 2024, "Logit standardization").

    The deviation is that of all C classes (divided by C). A row of equal logits becomes one of zeros.
    """
    return deviations(logits, 1) * math.sqrt(logits.shape[1])
