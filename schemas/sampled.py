"""The codec sampled: classes drawn at random from the teacher's probabilities. Letters: M rows, C classes, N draws.

N draws with replacement from p_t at T = 1 (Anshumann et al. 2025, "Sparse logit sampling"): the mean over them of
any function of a class is an unbiased estimate of its expectation under p_t, which the likeliest alone do not give.
What is drawn is a pure function of the row's values and its seed, a hash that whoever encodes hands in: draw n at place
j of a row takes the class in which the cumulated probabilities pass the hash of (seed, j, n).

| column | is |
|---|---|
| `n` | [1] uint8: N |
| `lengths` | [M, ...] uint8: how many classes were drawn for each row, at each of its places |
| `indices` | [Q] these classes, row by row and rising, in the narrowest width |
| `draws` | [Q] uint8: how often each was drawn; N for a row, or place, together |
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import numpy.typing as npt

from schemas.columns import Array, Columns, FloatArray, IntArray, concatenated, narrowest
from schemas.errors import EncodeError
from schemas.hashing import UInt64s, hash64, unit

if TYPE_CHECKING:
    from schemas.codecs import CodecSpec

_CHUNK = 2**15
"""Values handled at a time: their probabilities, in float64, should stay in the cache."""


@dataclass(frozen=True, slots=True, eq=False)
class Sampled:
    """What was drawn for M rows."""

    draws: npt.NDArray[np.int32]
    """[M, ..., N]: the classes, rising, each as often as it was drawn."""
    num_classes: int

    chosen: ClassVar[None] = None

    @property
    def columns(self) -> Columns:
        """The draws."""
        return {"draws": self.draws}

    @property
    def temperatures(self) -> tuple[float, ...]:
        """That of the probabilities that they were drawn from."""
        return (1.0,)

    def take(self, rows: IntArray) -> Sampled:
        """Return the rows at [K] places."""
        return Sampled(self.draws[rows], self.num_classes)


class SampledCodec:
    """The codec: along the last axis, all rows alike."""

    def storable(self, values: FloatArray, num_classes: int) -> npt.NDArray[np.bool_]:
        """Return [M] bool: all rows."""
        return np.ones(len(values), np.bool_)

    def encode(self, values: FloatArray, spec: CodecSpec, num_classes: int, seeds: UInt64s | None = None) -> Columns:
        """Return the columns of finite [M, ..., C] float32, drawn by [M] seeds; EncodeError where those are missing."""
        if not num_classes:
            raise EncodeError(f"codec {spec} draws classes, and this output has none: use float16 or float32")
        if seeds is None or seeds.shape != values.shape[:1]:
            raise EncodeError(f"codec {spec} draws by a seed for each of the {len(values)} rows")
        leading, num_draws = values.shape[:-1], spec.k
        flat = values.reshape(-1, num_classes)
        classes = np.empty((len(flat), num_draws), np.int64)
        hashes = _hashes(seeds, math.prod(leading[1:]), num_draws)
        step = max(1, _CHUNK // num_classes)
        for start in range(0, len(flat), step):
            part = slice(start, start + step)
            classes[part] = _drawn(flat[part], hashes[part])
        classes.sort(axis=1)
        first = np.ones(classes.shape, np.bool_)
        np.not_equal(classes[:, 1:], classes[:, :-1], out=first[:, 1:])
        places = np.flatnonzero(first)
        return {
            "n": np.array([num_draws], np.uint8),
            "lengths": first.sum(axis=1, dtype=np.uint8).reshape(leading),
            "indices": classes.reshape(-1)[places].astype(narrowest(num_classes - 1)),
            "draws": np.diff(places, append=classes.size).astype(np.uint8),
        }

    def joined(self, parts: Sequence[Columns]) -> Columns:
        """Return the columns of the rows of several, one or more, of one N."""
        return concatenated(parts) | {"n": parts[0]["n"]}

    def check(self, columns: Columns, num_classes: int, num_rows: int) -> None:
        """Raise ValueError with the reason where the columns are not such as `encode` makes."""
        if columns.keys() != {"n", "lengths", "indices", "draws"}:
            raise ValueError(f"columns {sorted(columns)} are not those of sampled")
        number, lengths, indices, draws = (columns[name] for name in ("n", "lengths", "indices", "draws"))
        if number.dtype != np.uint8 or number.shape != (1,) or not number[0]:
            raise ValueError("n is not one number of draws")
        if lengths.dtype != np.uint8 or lengths.shape[:1] != (num_rows,) or not all(lengths.shape[1:]):
            raise ValueError(f"lengths are {lengths.dtype} of shape {lengths.shape}, not uint8 of {num_rows} rows")
        if num_classes < 1 or indices.dtype != narrowest(num_classes - 1) or draws.dtype != np.uint8:
            raise ValueError(f"indices are {indices.dtype} and draws {draws.dtype}, of {num_classes} classes")
        if indices.ndim != 1 or indices.shape != draws.shape or lengths.sum(dtype=np.int64) != len(indices):
            raise ValueError(f"indices {indices.shape} and draws {draws.shape} are not of those lengths")
        if not len(indices):
            if lengths.size:
                raise ValueError("nothing was drawn for any row")
            return
        if not lengths.all() or not draws.all():
            raise ValueError("nothing was drawn for a row, or a class not once")
        if indices.max() >= num_classes or indices.min() < 0:
            raise ValueError(f"a class ID is not below {num_classes}")
        starts = np.cumsum(lengths.reshape(-1), dtype=np.int64) - lengths.reshape(-1)
        if (np.add.reduceat(draws, starts, dtype=np.int64) != number[0]).any():
            raise ValueError(f"a row has not {number[0]} draws")
        rising = indices[1:] > indices[:-1]
        rising[starts[1:] - 1] = True
        if not rising.all():
            raise ValueError("the classes of a row are not rising")

    def is_of(self, columns: Columns, spec: CodecSpec) -> bool:
        """Whether columns that passed `check` are of so many draws."""
        return int(columns["n"][0]) == spec.k

    def row_shape(self, columns: Columns, num_classes: int) -> tuple[int, ...]:
        """Return the shape of a row of all C classes."""
        return (*columns["lengths"].shape[1:], num_classes)

    def decode(self, columns: Columns, num_classes: int) -> Sampled:
        """Return the rows of columns that passed `check`."""
        drawn = np.repeat(columns["indices"].astype(np.int32), columns["draws"])
        return Sampled(drawn.reshape(*columns["lengths"].shape, int(columns["n"][0])), num_classes)

    def bytes_per_row(self, spec: CodecSpec, shape: tuple[int, ...], num_classes: int) -> int:
        """Return the most bytes of one row on the wire, without headers: every draw another class."""
        most = min(spec.k, num_classes)
        return math.prod(shape[:-1]) * (1 + most * (narrowest(num_classes - 1).itemsize + 1))


def _hashes(seeds: UInt64s, places: int, num_draws: int) -> npt.NDArray[np.float64]:
    """Return [M x places, N] in [0, 1)."""
    of_places, of_draws = np.arange(places, dtype=np.uint64)[None, :, None], np.arange(num_draws, dtype=np.uint64)
    return unit(hash64(seeds[:, None, None], of_places, of_draws)).reshape(-1, num_draws)


def _drawn(values: FloatArray, uniform: npt.NDArray[np.float64]) -> IntArray:
    """Return [R, N]: for each of [R, N] in [0, 1) the class of [R, C] in which the cumulated probabilities pass it.

    A class of probability 0 is never drawn. Each row's arithmetic is its own, so that it has the same draws in any
    company: a bisection of all rows at once, of which NumPy has none.
    """
    num_rows, num_classes = values.shape
    weights = values.astype(np.float64)
    weights -= weights.max(axis=1, keepdims=True)
    np.exp(weights, out=weights)
    passed: Array = np.cumsum(weights, axis=1, out=weights)
    sought = uniform * passed[:, -1:]
    # A product that was rounded up to the whole would lie behind the last class that has any probability.
    sought = np.minimum(sought, np.nextafter(passed[:, -1:], 0))
    passed, rows = passed.reshape(-1), num_classes * np.arange(num_rows, dtype=np.int64)[:, None]
    low = np.zeros(uniform.shape, np.int64)
    high = np.full(uniform.shape, num_classes - 1, np.int64)
    for _ in range(max(0, num_classes - 1).bit_length()):
        middle = (low + high) >> 1
        beyond = passed.take(rows + middle) <= sought
        np.copyto(low, middle + 1, where=beyond)
        np.copyto(high, middle, where=~beyond)
    return low
