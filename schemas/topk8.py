"""The codec topk8, written `topk:k=10,bits=8`: topk in about half the bytes. Letters: M rows, C classes, k kept, T.

| column | is |
|---|---|
| `indices` | [M, ..., bytes] uint8: the k class IDs of a row, likeliest first, each in ceil(log2 C) bits (bits.py) |
| `below` | [M, ..., k] uint8: how far log p lies below the likeliest's: reach * code / 255 |
| `reach` | [M, ...] float16: that of the least likely of the k |
| `log_tail@T` | [M, ...] float32 for each declared T, exact, as in topk |

A distance is known to within half a step, reach / 510. (Steps that grow with the distance, since an error costs by the
probability that it is of, were measured: they lose.) Where log p itself lies the tail says, since the k have together
what it leaves; so it needs no number of its own. A class further below than 24 max(T), whose probability is beneath
e^-24 of the likeliest's at every declared temperature, is stored as that far: such as one of many masked by -1e9, which
would else leave the others no steps.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from schemas.bits import bits_of, bytes_of, has_spare_bits, pack_bits, unpack_bits
from schemas.columns import Columns
from schemas.finite import all_finite
from schemas.softmax import logsumexp
from schemas.topk import Kept, TopK, TopKCodec, check_tails, tails_of

if TYPE_CHECKING:
    from schemas.codecs import CodecSpec

_STEPS = 255
_FURTHEST = 24.0
"""Times the highest declared temperature: how far below the likeliest class another is told apart."""


class TopK8Codec(TopKCodec):
    """The codec: along the last axis, all rows alike."""

    def columns(self, kept: Kept, spec: CodecSpec) -> Columns:
        """Return the columns of rows of which those classes were kept."""
        distance = np.minimum(kept.log_probs[..., :1] - kept.log_probs, _FURTHEST * max(spec.temperatures))
        reach = _rounded_up(distance[..., -1])
        share = np.divide(distance, reach[..., None], out=np.zeros_like(distance), where=reach[..., None] > 0)
        packed = pack_bits(kept.classes.reshape(-1, spec.k), bits_of(kept.num_classes - 1))
        return {
            "indices": packed.reshape(*reach.shape, packed.shape[1]),
            "below": np.rint(_STEPS * share).astype(np.uint8),
            "reach": reach,
        } | kept.tails

    def check(self, columns: Columns, num_classes: int, num_rows: int) -> None:
        """Raise ValueError with the reason where the columns are not such as `encode` makes."""
        check_tails(columns, "below", "indices", "reach")
        packed, below, reach = columns["indices"], columns["below"], columns["reach"]
        if below.ndim < 2 or below.shape[0] != num_rows or packed.shape[:-1] != below.shape[:-1]:
            raise ValueError(f"indices {packed.shape} and below {below.shape} do not fit {num_rows} rows")
        k, width = below.shape[-1], bits_of(num_classes - 1)
        if not 1 <= k <= num_classes or not all(below.shape[1:]):
            raise ValueError(f"{k} kept of {num_classes} classes")
        if packed.shape[-1] != bytes_of(k, width):
            raise ValueError(f"indices of {packed.shape[-1]} bytes a row, not of {k} class IDs of {width} bits")
        if packed.dtype != np.uint8 or below.dtype != np.uint8 or reach.dtype != np.float16:
            raise ValueError(f"indices are {packed.dtype}, below {below.dtype} and reach {reach.dtype}")
        flat = packed.reshape(-1, packed.shape[-1])
        if has_spare_bits(flat, k, width) or (unpack_bits(flat, k, width) >= num_classes).any():
            raise ValueError(f"a class ID is not below {num_classes}")
        if below[..., 0].any() or (below[..., 1:] < below[..., :-1]).any():
            raise ValueError("the classes are not by descending probability")
        if reach.shape != below.shape[:-1] or not all_finite(reach) or (reach < 0).any():
            raise ValueError("a reach is below 0 or not finite")

    def is_of(self, columns: Columns, spec: CodecSpec) -> bool:
        """Whether columns that passed `check` are of such settings."""
        return columns["below"].shape[-1] == spec.k and tails_of(columns).keys() == set(spec.temperatures)

    def decode(self, columns: Columns, num_classes: int) -> TopK:
        """Return the rows of columns that passed `check`."""
        packed, below, reach = columns["indices"], columns["below"], columns["reach"]
        kept = unpack_bits(packed.reshape(-1, packed.shape[-1]), below.shape[-1], bits_of(num_classes - 1))
        share = below.astype(np.float32) / np.float32(_STEPS)
        log_probs = share * -reach.astype(np.float32)[..., None]
        tails = tails_of(columns)
        if 1.0 in tails:
            mass = np.maximum(-np.expm1(tails[1.0].astype(np.float64)), np.finfo(np.float32).tiny)
            log_probs += (np.log(mass) - logsumexp(log_probs.astype(np.float64))).astype(np.float32)[..., None]
        return TopK(kept.reshape(below.shape), log_probs, tails, num_classes)

    def bytes_per_row(self, spec: CodecSpec, shape: tuple[int, ...], num_classes: int) -> int:
        """Return the bytes of one row on the wire, without headers."""
        of_one = bytes_of(spec.k, bits_of(num_classes - 1)) + spec.k + 2 + 4 * len(spec.temperatures)
        return math.prod(shape[:-1]) * of_one


def _rounded_up(numbers: npt.NDArray[np.float64]) -> npt.NDArray[np.float16]:
    """Return numbers of at most 65,504 as float16, none of them less than it was."""
    rounded = numbers.astype(np.float16)
    return np.where(rounded < numbers, np.nextafter(rounded, np.float16(np.inf)), rounded)
