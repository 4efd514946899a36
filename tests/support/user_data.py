"""Data sets as users write them, found by import path: `support.user_data:bytes_0_to_255?count=100`."""

from __future__ import annotations

from typing import Any

import numpy as np

BROKEN_EVERY = 7


class Items:
    """`__len__` and `__getitem__`, the torch way: [1, 8, 8] float32 whole numbers from 0 to 255, two fields."""

    num_classes = 10

    def __init__(self, count: int, broken: int) -> None:
        self._pixels = np.random.default_rng(7).integers(0, 256, (count, 1, 8, 8)).astype(np.float32)
        self.labels = np.arange(count) % 10
        self._broken = broken

    def __len__(self) -> int:
        return len(self._pixels)

    def __getitem__(self, sample_id: int) -> dict[str, Any]:
        if self._broken and sample_id % self._broken == 5:
            raise ValueError(f"sample {sample_id} is cut short")
        return {"pixels": self._pixels[sample_id]}


def bytes_0_to_255(count: str = "100", broken: str = "0") -> Items:
    """Each sample is good, or with `broken=7` every seventh cannot be decoded."""
    return Items(int(count), int(broken))


class TwoFields:
    """Two vectors of 4 numbers and no label."""

    def __len__(self) -> int:
        return 20

    def __getitem__(self, sample_id: int) -> dict[str, Any]:
        return {"first": np.full(4, sample_id, np.float32), "second": np.arange(4, dtype=np.float32)}


def two_fields() -> TwoFields:
    """Samples of two fields."""
    return TwoFields()
