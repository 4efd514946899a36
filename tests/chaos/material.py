"""What the soak distils: samples of which a few are broken, and students whose steps take their time."""

from __future__ import annotations

import math
import time
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

SHAPE = (1, 8, 8)
BROKEN = 5
"""The sample that cannot be decoded: one in a thousand, since a worker whose rows happen to hold 1 % of them stops."""


class Samples:
    """[1, 8, 8] float32 in [0, 1], labels 0 to 9; one cannot be decoded."""

    num_classes = 10

    def __init__(self, count: int, delay: float) -> None:
        self._pixels = np.random.default_rng(5).random((count, *SHAPE), np.float32)
        self.labels = np.arange(count) % 10
        self._delay = delay

    def __len__(self) -> int:
        return len(self._pixels)

    def __getitem__(self, sample_id: int) -> dict[str, NDArray[np.float32]]:
        time.sleep(self._delay)
        if sample_id == BROKEN:
            raise ValueError(f"sample {sample_id} is cut short")
        return {"pixels": self._pixels[sample_id]}


def samples(count: str, delay: str = "0") -> Samples:
    """`delay`: seconds that each read takes, as from a slow disk."""
    return Samples(int(count), float(delay))


def paced(  # type: ignore[no-untyped-def]
    input_shape: tuple[int, ...],
    num_classes: int,
    hidden: int = 32,
    pause: float = 0.0,
    hurry: str = "",
    norm: bool = False,
):
    """A network of one hidden layer with dropout, whose steps take `pause` seconds until the file `hurry` is there."""
    from torch import Tensor, nn

    class Paced(nn.Sequential):
        def forward(self, input: Tensor) -> Tensor:
            if self.training and pause and not Path(hurry).exists():
                time.sleep(pause)
            return super().forward(input)

    middle = [nn.BatchNorm1d(hidden)] if norm else []
    return Paced(
        nn.Flatten(),
        nn.Linear(math.prod(input_shape), hidden),
        *middle,
        nn.ReLU(),
        nn.Dropout(0.1),
        nn.Linear(hidden, num_classes),
    )
