"""The codecs float32 and float16: every number of a row. Letters: M rows, C classes.

One column, values [M, ...]. float16 ends at 65,504, and logits may not: over classes each row [M, ..., C] is stored
less its maximum over C, which no softmax and no centred loss can see, and what is still below -65,504 becomes that.
Numbers that are no classes are stored as they are, so float16 does not hold all of them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import numpy.typing as npt

from schemas.columns import Array, Columns, FloatArray, IntArray, concatenated
from schemas.finite import all_finite, to_float16
from schemas.hashing import UInt64s

if TYPE_CHECKING:
    from schemas.codecs import CodecSpec

BEYOND_FLOAT16 = 65_520.0
"""What float16 rounds to infinity, and all above."""


@dataclass(frozen=True, slots=True, eq=False)
class Dense:
    """A teacher's output over classes, all of them."""

    logits: Array
    """[M, ..., C] float32, or float16 with each row's maximum at 0, as stored: a read-only view of the record's bytes.
    Widening it is left to whoever computes with it: PyTorch does it twenty times as fast as NumPy, and on a GPU half
    the bytes cross the bus."""

    chosen: ClassVar[None] = None

    @property
    def columns(self) -> Columns:
        """The logits."""
        return {"logits": self.logits}

    @property
    def temperatures(self) -> None:
        """All classes are there: any temperature will do."""

    def take(self, rows: IntArray) -> Dense:
        """Return the rows at [K] places."""
        return Dense(self.logits[rows])


@dataclass(frozen=True, slots=True, eq=False)
class Features:
    """A teacher's output that is no classes."""

    values: Array
    """[M, ...] float32 or float16, as stored: a read-only view of the record's bytes."""

    chosen: ClassVar[None] = None

    @property
    def columns(self) -> Columns:
        """The values."""
        return {"values": self.values}

    @property
    def temperatures(self) -> None:
        """Nothing is softened."""

    def take(self, rows: IntArray) -> Features:
        """Return the rows at [K] places."""
        return Features(self.values[rows])


class Plain:
    """A codec that stores every number in one dtype."""

    def __init__(self, dtype: str) -> None:
        self._dtype = np.dtype(dtype)

    def storable(self, values: FloatArray, num_classes: int) -> npt.NDArray[np.bool_]:
        """Return [M] bool: all rows, but for float16 without classes those beyond its range."""
        if num_classes or self._dtype == np.float32:
            return np.ones(len(values), np.bool_)
        return np.asarray((np.abs(values) < BEYOND_FLOAT16).all(axis=tuple(range(1, values.ndim))))

    def encode(self, values: FloatArray, spec: CodecSpec, num_classes: int, seeds: UInt64s | None = None) -> Columns:
        """Return the column of [M, ...] float32."""
        if self._dtype == np.float32:
            return {"values": values}
        if not num_classes:
            return {"values": values.astype(np.float16)}
        with np.errstate(over="ignore"):  # a row may reach from one end of float32 to the other
            return {"values": to_float16(values - values.max(axis=-1, keepdims=True))}

    def joined(self, parts: Sequence[Columns]) -> Columns:
        """Return the columns of the rows of several."""
        return concatenated(parts)

    def check(self, columns: Columns, num_classes: int, num_rows: int) -> None:
        """Raise ValueError where the columns are not such as `encode` makes."""
        if columns.keys() != {"values"}:
            raise ValueError(f"columns {sorted(columns)}, not only 'values'")
        values = columns["values"]
        shape = values.shape
        fits = shape[:1] == (num_rows,) and all(shape[1:]) and (not num_classes or shape[1:][-1:] == (num_classes,))
        if values.dtype != self._dtype or not fits:
            wanted = f"({num_rows}, ..., {num_classes})" if num_classes else f"({num_rows}, ...)"
            raise ValueError(f"values are {values.dtype} of shape {shape}, not {self._dtype} of {wanted}")
        if not all_finite(values):
            raise ValueError("values hold NaN or infinity")

    def is_of(self, columns: Columns, spec: CodecSpec) -> bool:
        """Whether columns that passed `check` are of such settings: there are none."""
        return True

    def row_shape(self, columns: Columns, num_classes: int) -> tuple[int, ...]:
        """Return the shape of a row."""
        return columns["values"].shape[1:]

    def decode(self, columns: Columns, num_classes: int) -> Dense | Features:
        """Return the rows."""
        return Dense(columns["values"]) if num_classes else Features(columns["values"])

    def bytes_per_row(self, spec: CodecSpec, shape: tuple[int, ...], num_classes: int) -> int:
        """Return the bytes of one row on the wire, without headers."""
        return math.prod(shape) * self._dtype.itemsize
