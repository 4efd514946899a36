"""Reductions: what is done to an output without classes before it is stored, along one axis of [N, ...].

| text | is |
|---|---|
| `mean@1` | the mean over axis 1, as of an image's patches; of padded texts it counts the padding, too |
| `first@1` | the first along axis 1, as the [CLS] of a sentence |
| `attention@1` | the mean of the squares over axis 1: of an image's channels its attention map |

Attention maps are those of Zagoruyko & Komodakis 2017, before any normalisation. The axis counts the batch as 0. Sums
are in float64, so that their order does not show. A variation is one function here, one line in `REDUCTIONS`, and one
for a student's tensors in `student_trainer/learning/alignment.py`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from schemas.columns import FloatArray
from schemas.errors import ConfigError
from schemas.names import did_you_mean

_TEXT = re.compile(r"([a-z_]+)@([1-9]\d?)")


@dataclass(frozen=True, slots=True)
class Reduction:
    """Which reduction, and over which axis."""

    name: str
    axis: int
    """The batch being 0."""

    @classmethod
    def parse(cls, text: str) -> Reduction:
        """Return the reduction of a text; a bad one raises ConfigError."""
        found = _TEXT.fullmatch(text)
        if found is None:
            raise ConfigError(f"reduction {text!r}: write NAME@AXIS, as in mean@1, the batch being axis 0")
        if found[1] not in REDUCTIONS:
            raise ConfigError(f"reduction {text!r}: {did_you_mean(found[1], REDUCTIONS)}")
        return cls(found[1], int(found[2]))

    def __str__(self) -> str:
        return f"{self.name}@{self.axis}"

    def row(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return the shape of a row, given that of one before."""
        return (*shape[: self.axis - 1], *shape[self.axis :])

    def __call__(self, values: FloatArray) -> FloatArray:
        """[M, ...] float32 -> the same without the axis; what float32 does not hold becomes infinite."""
        return REDUCTIONS[self.name](values, self.axis)


def is_reduction(text: str) -> bool:
    """Whether it is the text of one."""
    try:
        Reduction.parse(text)
    except ConfigError:
        return False
    return True


def _mean(values: FloatArray, axis: int) -> FloatArray:
    with np.errstate(invalid="ignore"):
        mean: FloatArray = values.mean(axis=axis, dtype=np.float64).astype(np.float32)
    return mean


def _first(values: FloatArray, axis: int) -> FloatArray:
    return np.ascontiguousarray(values.take(0, axis=axis))


def _attention(values: FloatArray, axis: int) -> FloatArray:
    with np.errstate(over="ignore"):
        return _mean(np.square(values), axis)


REDUCTIONS: dict[str, Callable[[FloatArray, int], FloatArray]] = {
    "mean": _mean,
    "first": _first,
    "attention": _attention,
}
"""Name -> ([M, ...] float32, axis) -> [M, ...] float32 without it."""
