"""The codec head: what a teacher's last linear layer is given, [M, ..., H] in float16, instead of what it gives.

The layer itself lies once in the stream (`schemas.head`), and whoever reads rebuilds logits = hidden @ weight.T + bias
in float32. A hidden number h is stored with an error of at most max(|h| 2^-11, 2^-25), so logit c is off by at most
sum over j of |weight[c, j]| max(|h[j]| 2^-11, 2^-25), beside what float32 itself rounds.
Letters: M rows, C classes, H numbers of a hidden row.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import numpy.typing as npt

from schemas.columns import Array, Columns, FloatArray, IntArray, concatenated
from schemas.errors import EncodeError
from schemas.finite import all_finite
from schemas.hashing import UInt64s
from schemas.plain import BEYOND_FLOAT16
from schemas.positions import Positions

if TYPE_CHECKING:
    from schemas.codecs import CodecSpec, SoftRows
    from schemas.head import Head

_DTYPE = np.dtype("<f2")


@dataclass(frozen=True, slots=True, eq=False)
class Hidden:
    """What the last layer of a teacher of classes is given."""

    hidden: Array
    """[M, ..., H] float16, as stored: a read-only view of the record's bytes."""
    num_classes: int
    """C of the layer."""
    head: Head | None = None
    """The layer, once whoever reads has it."""

    chosen: ClassVar[None] = None

    @property
    def columns(self) -> Columns:
        """The hidden rows."""
        return {"hidden": self.hidden}

    @property
    def temperatures(self) -> None:
        """All classes can be had: any temperature will do."""

    def take(self, rows: IntArray) -> Hidden:
        """Return the rows at [K] places."""
        return replace(self, hidden=self.hidden[rows])

    def values(self) -> FloatArray:
        """Return the hidden rows, [M, ..., H] float32."""
        return self.hidden.astype(np.float32)


def with_head(rows: SoftRows, head: Head) -> SoftRows:
    """Return hidden rows, or positions of such, with their layer."""
    if isinstance(rows, Positions):
        return replace(rows, rows=with_head(rows.rows, head))
    assert isinstance(rows, Hidden)  # a record is held against its teacher's before
    return replace(rows, head=head)


class HiddenCodec:
    """The codec; values are [M, ..., H], and C is of what the layer makes of them."""

    def storable(self, values: FloatArray, num_classes: int) -> npt.NDArray[np.bool_]:
        """Return [M] bool: all rows but those beyond float16's range."""
        return np.asarray((np.abs(values) < BEYOND_FLOAT16).all(axis=tuple(range(1, values.ndim))))

    def encode(self, values: FloatArray, spec: CodecSpec, num_classes: int, seeds: UInt64s | None = None) -> Columns:
        """Return the column of [M, ..., H] float32."""
        if values.ndim < 2 or values.shape[-1] != spec.k:
            raise EncodeError(f"rows of shape {values.shape[1:]} are none of {spec.k} hidden numbers")
        return {"hidden": values.astype(_DTYPE)}

    def joined(self, parts: Sequence[Columns]) -> Columns:
        """Return the columns of the rows of several."""
        return concatenated(parts)

    def check(self, columns: Columns, num_classes: int, num_rows: int) -> None:
        """Raise ValueError where the columns are not such as `encode` makes."""
        if columns.keys() != {"hidden"}:
            raise ValueError(f"columns {sorted(columns)}, not only 'hidden'")
        hidden = columns["hidden"]
        fits = hidden.ndim >= 2 and hidden.shape[0] == num_rows and all(hidden.shape[1:])
        if hidden.dtype != _DTYPE or not fits or num_classes < 1:
            raise ValueError(
                f"hidden is {hidden.dtype} of shape {hidden.shape} for {num_classes} classes, not float16 of "
                f"({num_rows}, ..., H)"
            )
        if not all_finite(hidden):
            raise ValueError("hidden holds NaN or infinity")

    def is_of(self, columns: Columns, spec: CodecSpec) -> bool:
        """Whether columns that passed `check` are of so many hidden numbers."""
        return int(columns["hidden"].shape[-1]) == spec.k

    def row_shape(self, columns: Columns, num_classes: int) -> tuple[int, ...]:
        """Return the shape of a row of logits."""
        return (*columns["hidden"].shape[1:-1], num_classes)

    def decode(self, columns: Columns, num_classes: int) -> Hidden:
        """Return the rows, without the layer."""
        return Hidden(columns["hidden"], num_classes)

    def bytes_per_row(self, spec: CodecSpec, shape: tuple[int, ...], num_classes: int) -> int:
        """Return the bytes of one row on the wire, without headers."""
        return math.prod(shape[:-1]) * spec.k * _DTYPE.itemsize
