"""Last layers, and how far logits that are rebuilt of float16 hidden rows may be off."""

from __future__ import annotations

from typing import Any

import numpy as np

from schemas.head import Head


def layer(num_classes: int, width: int, seed: int = 0) -> Head:
    """A layer with a bias."""
    random = np.random.default_rng(seed)
    weight = random.standard_normal((num_classes, width), np.float32)
    return Head.of(weight, random.standard_normal(num_classes, np.float32))


def bound(head: Head, hidden: Any) -> Any:
    """[..., C]: of float16's rounding, as schemas/hidden.py states it, and of float32 sums of H + 1 numbers."""
    numbers, weight = np.abs(hidden.astype(np.float64)), np.abs(head.weight.astype(np.float64))
    rounding = np.maximum(numbers * 2.0**-11, 2.0**-25) @ weight.T
    summed = numbers @ weight.T + (0 if head.bias is None else np.abs(head.bias.astype(np.float64)))
    return rounding + summed * (head.width + 2) * 2.0**-24 * 1.01
