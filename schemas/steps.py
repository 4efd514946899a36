"""The codecs int8 and int4: every number of a row as a whole number of steps. Letters: M rows, C classes, L steps.

A row's range is cut into L = 255, or 15, equal steps, and a number is stored as the nearest one: it is known to within
half a step, (max - min) / 2L, whatever the row holds. Over classes a row is one [C], counted down from its maximum,
which no softmax sees; so the range alone is stored, as `scale`. Of anything else a row is all of [...], counted up from
its minimum, which is stored as `zero`. Both are float32 and the codes are counted by what was stored, so their own
rounding adds nothing but float32's last bits; a range below 3e-36 counts as none.

| column | is | of |
|---|---|---|
| `codes` | [M, ...] uint8; of int4 [M, ..., D // 2], D being the last axis: codes i and, above it, D // 2 + i | both |
| `odd` | [M, ...] uint8, the last of the D | int4 where D is odd |
| `scale` | [M, ...] float32, a step: of classes one for each [C], else one a row | both |
| `zero` | [M] float32, the minimum | what has no classes |

Rows of one number have [M] `codes`, whatever the codec.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import numpy.typing as npt

from schemas.columns import Array, Columns, FloatArray, IntArray, concatenated
from schemas.finite import all_finite
from schemas.hashing import UInt64s

if TYPE_CHECKING:
    from schemas.codecs import CodecSpec

_MOST = 3e38
"""The widest range that is stored: L steps of it stay below float32's end, 3.4e38."""
_END = 3.4e38
"""What is above may be infinite when it is widened."""
_LEAST = np.float32(3e-36)
"""The narrowest range whose steps are normal numbers."""
_CHUNK = 2**16
"""Values handled at a time, so that what is made of them on the way stays in the cache."""


@dataclass(frozen=True, slots=True, eq=False)
class Steps:
    """A teacher's output as it is stored; `values` widens it, and in training PyTorch does, on the batch's device."""

    codes: Array
    """[M, ...] uint8; with two in each byte [M, ..., D // 2]."""
    odd: Array | None
    """[M, ...] uint8: the last of an odd D."""
    scale: FloatArray
    """[M, ...] of classes, else [M]: float32."""
    zero: FloatArray | None
    """[M] float32; None: they are of classes."""
    packed: bool
    """Whether codes are two in each byte."""

    chosen: ClassVar[None] = None

    @property
    def columns(self) -> Columns:
        """As on the wire."""
        columns: Columns = {"codes": self.codes, "scale": self.scale}
        if self.odd is not None:
            columns["odd"] = self.odd
        if self.zero is not None:
            columns["zero"] = self.zero
        return columns

    @property
    def temperatures(self) -> None:
        """All classes are there: any temperature will do."""

    def take(self, rows: IntArray) -> Steps:
        """Return the rows at [K] places."""
        odd = None if self.odd is None else self.odd[rows]
        zero = None if self.zero is None else self.zero[rows]
        return Steps(self.codes[rows], odd, self.scale[rows], zero, self.packed)

    def values(self) -> FloatArray:
        """Return [M, ..., C] float32, each row's maximum at 0, or of what has no classes [M, ...]."""
        codes = self.codes
        if self.packed and codes.ndim > 1:
            parts = [codes & np.uint8(15), codes >> np.uint8(4)]
            codes = np.concatenate(parts if self.odd is None else [*parts, self.odd[..., None]], axis=-1)
        if self.zero is None:
            return codes.astype(np.float32) * -self.scale[..., None]
        per_row = (-1, *[1] * (codes.ndim - 1))
        wide: FloatArray = codes.astype(np.float32) * self.scale.reshape(per_row) + self.zero.reshape(per_row)
        return wide


class StepsCodec:
    """A codec that stores each number as one of so many steps of its row."""

    def __init__(self, bits: int) -> None:
        self._packed = bits == 4
        self._steps = 2**bits - 1

    def storable(self, values: FloatArray, num_classes: int) -> npt.NDArray[np.bool_]:
        """Return [M] bool: all rows, but without classes those whose range is beyond float32."""
        if num_classes:
            return np.ones(len(values), np.bool_)
        flat = _flat(values, 0)
        low, high = flat.min(axis=1), flat.max(axis=1)
        with np.errstate(over="ignore", invalid="ignore"):  # rows that are not finite are told apart elsewhere
            return np.asarray((high - low <= _MOST) & (low >= -_MOST) & (high <= _MOST))

    def encode(self, values: FloatArray, spec: CodecSpec, num_classes: int, seeds: UInt64s | None = None) -> Columns:
        """Return the columns of finite [M, ..., C] float32, or without classes [M, ...]."""
        flat = _flat(values, num_classes)
        codes = np.empty(flat.shape, np.uint8)
        scale, zero = np.empty((2, len(flat)), np.float32)
        for rows in _chunks(flat):
            part = flat[rows]
            low, high = part.min(axis=1), part.max(axis=1)
            zero[rows] = low
            with np.errstate(over="ignore"):  # a row may reach from one end of float32 to the other
                spread = np.minimum(high - low, np.float32(_MOST))
                above = high[:, None] - part if num_classes else part - low[:, None]
            scale[rows] = np.where(spread < _LEAST, np.float32(0), spread / np.float32(self._steps))
            above *= np.divide(1, scale[rows], out=np.zeros_like(spread), where=scale[rows] > 0)[:, None]
            np.minimum(np.rint(above, out=above), np.float32(self._steps), out=above)
            codes[rows] = above
        columns = self._laid_out(codes.reshape(values.shape))
        if num_classes:
            return columns | {"scale": scale.reshape(values.shape[:-1])}
        return columns | {"scale": scale, "zero": zero}

    def _laid_out(self, codes: npt.NDArray[np.uint8]) -> Columns:
        """Return the columns of [M, ...] codes."""
        if not self._packed or codes.ndim == 1:
            return {"codes": codes}
        half, odd = divmod(codes.shape[-1], 2)
        columns: Columns = {"codes": codes[..., :half] | codes[..., half : 2 * half] << np.uint8(4)}
        return columns | {"odd": codes[..., -1].copy()} if odd else columns

    def joined(self, parts: Sequence[Columns]) -> Columns:
        """Return the columns of the rows of several."""
        return concatenated(parts)

    def check(self, columns: Columns, num_classes: int, num_rows: int) -> None:
        """Raise ValueError where the columns are not such as `encode` makes."""
        wanted = {"codes", "scale"} | (set() if num_classes else {"zero"})
        if not wanted <= columns.keys() or columns.keys() - wanted - ({"odd"} if self._packed else set()):
            raise ValueError(f"columns {sorted(columns)}, not {sorted(wanted)}")
        codes, odd, scale = columns["codes"], columns.get("odd"), columns["scale"]
        row = self.row_shape(columns, num_classes)
        if codes.dtype != np.uint8 or codes.shape[:1] != (num_rows,) or not all(row):
            raise ValueError(f"codes are {codes.dtype} of shape {codes.shape}, not uint8 of {num_rows} rows")
        if num_classes and row[-1:] != (num_classes,):
            raise ValueError(f"rows are of {row}, not of {num_classes} classes")
        if odd is not None:
            if odd.dtype != np.uint8 or codes.ndim < 2 or odd.shape != codes.shape[:-1]:
                raise ValueError(f"the odd codes are {odd.dtype} of shape {odd.shape}, the others of {codes.shape}")
            if odd.size and odd.max() > self._steps:
                raise ValueError(f"an odd code is above {self._steps}")
        per = (num_rows, *row[:-1]) if num_classes else (num_rows,)
        for name in wanted - {"codes"}:
            if columns[name].dtype != np.float32 or columns[name].shape != per or not all_finite(columns[name]):
                raise ValueError(f"{name} is {columns[name].dtype} of shape {columns[name].shape}, or not finite")
        reach = scale.astype(np.float64) * self._steps
        highest = reach if num_classes else reach + columns["zero"]
        if (scale < 0).any() or (np.maximum(reach, highest) > _END).any():
            raise ValueError("a scale is below 0, or reaches beyond float32")

    def is_of(self, columns: Columns, spec: CodecSpec) -> bool:
        """Whether columns that passed `check` are of such settings: there are none."""
        return True

    def row_shape(self, columns: Columns, num_classes: int) -> tuple[int, ...]:
        """Return the shape of a row."""
        codes = columns["codes"]
        if not self._packed or codes.ndim < 2:
            return codes.shape[1:]
        return (*codes.shape[1:-1], 2 * codes.shape[-1] + ("odd" in columns))

    def decode(self, columns: Columns, num_classes: int) -> Steps:
        """Return the rows of columns that passed `check`."""
        return Steps(columns["codes"], columns.get("odd"), columns["scale"], columns.get("zero"), self._packed)

    def bytes_per_row(self, spec: CodecSpec, shape: tuple[int, ...], num_classes: int) -> int:
        """Return the bytes of one row on the wire, without headers."""
        *before, last = shape or (1,)
        places = math.prod(before)
        of_codes = places * (-(-last // 2) if self._packed else last)
        return of_codes + (4 * places if num_classes else 8)


def _flat(values: FloatArray, num_classes: int) -> FloatArray:
    """Return [M, ..., C] as rows of C, without classes [M, ...] as M rows."""
    return values.reshape(-1, num_classes) if num_classes else values.reshape(len(values), math.prod(values.shape[1:]))


def _chunks(rows: FloatArray) -> Iterator[slice]:
    step = max(1, _CHUNK // rows.shape[1])
    return (slice(start, start + step) for start in range(0, len(rows), step))
