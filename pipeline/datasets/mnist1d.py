"""Signals like MNIST-1D (Greydanus 2020, "Scaling down deep learning"): cheap, endless, and hard for a linear model.

Ten small templates, each stretched, shifted, sheared, scaled and buried in noise. Our own templates and draws: every
number comes from the hash, so sample `i` is the same whenever and wherever it is read.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from pipeline.datasets.base import Dataset, Field, Ints, Samples
from pipeline.datasets.params import Params
from pipeline.hashing import hash_int, integers, normal, tag, uniform
from schemas.errors import ConfigError

LENGTH = 40
"""Points of a signal."""

# [10 classes, 12 points]: a pen's way through a narrow slit, around zero.
_TEMPLATES = np.array(
    [
        [0.0, 1.0, 1.6, 1.9, 2.0, 2.0, 2.0, 2.0, 1.9, 1.6, 1.0, 0.0],
        [0.0, -2.0, -2.0, -1.5, -1.0, -0.5, 0.0, 0.4, 0.8, 1.2, 0.6, 0.0],
        [0.0, 1.2, 1.6, 1.5, 0.8, 0.0, -0.6, -1.2, -1.6, -1.5, -0.8, 0.0],
        [0.0, 1.2, 1.6, 1.4, 0.6, 0.0, 0.0, 0.6, 1.4, 1.6, 1.2, 0.0],
        [0.0, -0.6, -1.2, -1.8, -2.4, -2.4, 0.2, 0.2, 0.1, 0.0, 0.0, 0.0],
        [0.0, -2.0, -2.0, -2.0, -1.0, 0.4, 1.2, 1.7, 1.6, 1.0, -0.4, 0.0],
        [0.0, -1.0, -1.6, -1.9, -2.0, -2.0, -2.0, -2.0, -1.9, -1.6, -1.0, 0.0],
        [0.0, 2.0, 2.0, 1.5, 1.0, 0.6, 0.2, -0.1, -0.4, -0.8, -0.4, 0.0],
        [0.0, -1.2, -1.6, -1.4, -0.6, 0.0, 0.0, -0.6, -1.4, -1.6, -1.2, 0.0],
        [0.0, -1.2, -1.6, -0.8, 0.6, 1.6, 1.6, 0.6, -0.8, -1.6, -1.2, 0.0],
    ]
)


@dataclass(frozen=True, slots=True)
class Mnist1d:
    """[1, 40] float32 signals of 10 classes, made as they are read."""

    uri: str
    num_samples: int
    key: int
    num_classes: int = 10
    class_names: tuple[str, ...] = tuple("0123456789")
    thread_safe: ClassVar[bool] = True

    @property
    def fields(self) -> dict[str, Field]:
        """One: "signal"."""
        return {"signal": Field((1, LENGTH), "float32")}

    def labels(self, sample_ids: Ints) -> Ints:
        """[N] int64, each class equally likely."""
        return integers(self.key, sample_ids, "mnist1d.label", 1, 10)[:, 0]

    def read(self, sample_ids: Ints) -> Samples:
        """Computes the signals; none can fail."""
        stretch, start, scale, shear = uniform(self.key, sample_ids, "mnist1d.shape", 4).T[:, :, None]
        width = 11.0 + 7.0 * stretch  # points of the signal that the template covers
        place = (np.arange(LENGTH) - start * (LENGTH - width)) / width * 11.0
        signal = _interpolated(_TEMPLATES[self.labels(sample_ids)], place)
        signal *= 0.6 + 0.8 * scale
        signal += 2.0 * (shear - 0.5) * (np.arange(LENGTH) / (LENGTH - 1) - 0.5)
        # Noise that wanders (a value every 4 points) hides the shape, noise of each point the details.
        knots = normal(self.key, sample_ids, "mnist1d.wander", LENGTH // 4 + 1).astype(np.float64)
        signal += 0.5 * _interpolated(knots, np.arange(LENGTH)[None, :] / 4.0)
        signal += 0.1 * normal(self.key, sample_ids, "mnist1d.noise", LENGTH)
        return Samples({"signal": signal[:, None].astype(np.float32)}, np.arange(len(sample_ids)))


def _interpolated(knots: npt.NDArray[np.float64], place: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """[N, L]: values at `place` [N or 1, L] between `knots` [N, K]; 0 outside [0, K - 1]."""
    last = knots.shape[1] - 1
    inside = (place >= 0) & (place <= last)
    left = np.clip(np.floor(place), 0, last - 1).astype(np.int64)
    rows = np.arange(len(knots))[:, None]
    low, high = knots[rows, left], knots[rows, left + 1]
    return np.asarray((low + (high - low) * (place - left)) * inside)


def mnist1d(path: str, params: dict[str, str]) -> Dataset:
    """`mnist1d?split=train&n=60000&seed=0`: splits `train` and `test` (n = 10000) share no draw."""
    taken = Params("mnist1d", params)
    split = taken.text("split", "train", ("train", "test"))
    num_samples = taken.number("n", 60000 if split == "train" else 10000, 1, 1 << 40)
    seed = taken.number("seed", 0, 0, (1 << 63) - 1)
    taken.done()
    if path:
        raise ConfigError(f"dataset mnist1d takes no path, got {path!r}: write mnist1d?split={split}")
    uri = f"mnist1d?split={split}&n={num_samples}&seed={seed}"
    return Mnist1d(uri, num_samples, hash_int(tag(f"mnist1d.{split}"), seed))
