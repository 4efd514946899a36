"""The topk codec; with `bits=8` it is that of topk8.py. Letters: M rows, C classes, k kept classes, T temperature.

A row is cut down to its k likeliest classes by `kept_classes` here, or where a teacher's record says so by ONNX Runtime
(`teacher_service/models/topk_graph.py`). What both give is `Kept`, which a codec rounds.

Columns: indices [M, ..., k] in the narrowest width that holds C - 1, log_probs [M, ..., k] float16 at T = 1, and a
log_tail@T [M, ...] float32 for each declared T, where "..." are the axes of a row before its last, the classes. The
tails are exact, from all C logits in float64, because neither 1 - sum(exp(stored)) nor the tail of another temperature
gives them: the first is wrong by percent to orders of magnitude. A log p below -65,504 is stored as that.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import numpy.typing as npt

from schemas.columns import Columns, FloatArray, IntArray, concatenated, narrowest
from schemas.errors import ConfigError, EncodeError
from schemas.finite import all_finite, to_float16
from schemas.hashing import UInt64s
from schemas.softmax import logsumexp

if TYPE_CHECKING:
    from schemas.codecs import CodecSpec

_TAIL = "log_tail@"
_CHUNK = 2**15
"""Values handled at a time: topk needs several 8-byte arrays of that size, and they should stay in the cache."""


@dataclass(frozen=True, slots=True, eq=False)
class TopK:
    """The k most probable classes of each row, and what the teacher gave to all the others together."""

    indices: IntArray
    """[M, ..., k] int64, most probable first, the lower class first where two are equal."""
    log_probs: FloatArray
    """[M, ..., k] float32: log p at T = 1, as rounded by the wire; of topk8 without a tail at T = 1 less the first."""
    log_tails: dict[float, FloatArray]
    """Temperature -> [M, ...] float32: log of the teacher's exact mass outside the k; -inf where k == C."""
    num_classes: int

    chosen: ClassVar[None] = None

    @property
    def columns(self) -> Columns:
        """Classes, log-probabilities, and a tail for each temperature, rising."""
        columns: Columns = {"indices": self.indices, "log_probs": self.log_probs}
        for temperature in self.temperatures:
            columns[_TAIL + repr(float(temperature))] = self.log_tails[temperature]
        return columns

    @property
    def temperatures(self) -> tuple[float, ...]:
        """Those of the tails, rising."""
        return tuple(sorted(self.log_tails))

    def take(self, rows: IntArray) -> TopK:
        """Return the rows at [K] places."""
        tails = {temperature: tail[rows] for temperature, tail in self.log_tails.items()}
        return TopK(self.indices[rows], self.log_probs[rows], tails, self.num_classes)

    def log_probs_at(self, temperature: float) -> FloatArray:
        """Return [M, ..., k] float32: log p at T = `temperature`, which must be declared (else ConfigError).

        a - logsumexp(a) + log(1 - r_T) with a = log_probs / T: the kept classes share what the tail r_T leaves.
        """
        tail = self.log_tails.get(temperature)
        if tail is None:
            declared = ", ".join(f"{t:g}" for t in sorted(self.log_tails))
            raise ConfigError(f"the stream's topk labels have no tail for temperature {temperature:g}: use {declared}")
        scaled = self.log_probs.astype(np.float64) / temperature
        # expm1, since 1 - exp(tail) loses digits where the tail holds nearly everything.
        kept = np.log(-np.expm1(tail.astype(np.float64)))
        return (scaled + (kept - logsumexp(scaled))[..., None]).astype(np.float32)


@dataclass(frozen=True, slots=True, eq=False)
class Kept:
    """What was kept of rows [M, ..., C], before a codec rounds it."""

    classes: IntArray
    """[M, ..., k] int64, most probable first, the lower class first where two are equal."""
    log_probs: npt.NDArray[np.float64]
    """[M, ..., k]: log p at T = 1."""
    log_tails: dict[float, FloatArray]
    """Temperature -> [M, ...] float32, as `TopK` has them."""
    num_classes: int

    @property
    def tails(self) -> Columns:
        """The tails' columns."""
        return {_TAIL + repr(float(temperature)): tail for temperature, tail in self.log_tails.items()}

    def reshaped(self, *leading: int) -> Kept:
        """Return the same with other axes before the last."""
        shape = (*leading, self.classes.shape[-1])
        tails = {temperature: tail.reshape(leading) for temperature, tail in self.log_tails.items()}
        return Kept(self.classes.reshape(shape), self.log_probs.reshape(shape), tails, self.num_classes)


class TopKCodec:
    """The codec: along the last axis, all rows alike."""

    def storable(self, values: FloatArray, num_classes: int) -> npt.NDArray[np.bool_]:
        """Return [M] bool: all rows."""
        return np.ones(len(values), np.bool_)

    def encode(self, values: FloatArray, spec: CodecSpec, num_classes: int, seeds: UInt64s | None = None) -> Columns:
        """Return the columns of finite [M, ..., C] float32; k > C raises EncodeError."""
        try:
            spec.refuse_classes(num_classes)
        except ConfigError as error:
            raise EncodeError(str(error)) from None
        kept = kept_classes(values.reshape(-1, num_classes), spec.k, spec.temperatures)
        return self.columns(kept.reshaped(*values.shape[:-1]), spec)

    def columns(self, kept: Kept, spec: CodecSpec) -> Columns:
        """Return the columns of rows of which those classes were kept."""
        indices = kept.classes.astype(narrowest(kept.num_classes - 1))
        return {"indices": indices, "log_probs": to_float16(kept.log_probs)} | kept.tails

    def joined(self, parts: Sequence[Columns]) -> Columns:
        """Return the columns of the rows of several."""
        return concatenated(parts)

    def check(self, columns: Columns, num_classes: int, num_rows: int) -> None:
        """Raise ValueError with the reason where the columns are not such as `encode` makes."""
        check_tails(columns, "indices", "log_probs")
        indices, log_probs = columns["indices"], columns["log_probs"]
        if indices.ndim < 2 or indices.shape != log_probs.shape or indices.shape[0] != num_rows:
            raise ValueError(f"indices {indices.shape} and log_probs {log_probs.shape} do not fit {num_rows} rows")
        if not 1 <= indices.shape[-1] <= num_classes or not all(indices.shape[1:]):
            raise ValueError(f"{indices.shape[-1]} kept of {num_classes} classes")
        if indices.dtype != narrowest(num_classes - 1) or log_probs.dtype != np.float16:
            raise ValueError(f"indices are {indices.dtype} and log_probs {log_probs.dtype}")
        if indices.size and (indices.max() >= num_classes or indices.min() < 0):
            raise ValueError(f"a class ID is not below {num_classes}")
        if not all_finite(log_probs) or (log_probs > 0).any():
            raise ValueError("a log-probability is above 0 or not finite")

    def is_of(self, columns: Columns, spec: CodecSpec) -> bool:
        """Whether columns that passed `check` are of such settings."""
        return columns["log_probs"].shape[-1] == spec.k and tails_of(columns).keys() == set(spec.temperatures)

    def row_shape(self, columns: Columns, num_classes: int) -> tuple[int, ...]:
        """Return the shape of a row of all C classes."""
        return (*columns["indices"].shape[1:-1], num_classes)

    def decode(self, columns: Columns, num_classes: int) -> TopK:
        """Return the rows of columns that passed `check`."""
        indices, log_probs = columns["indices"], columns["log_probs"]
        return TopK(indices.astype(np.int64), log_probs.astype(np.float32), tails_of(columns), num_classes)

    def bytes_per_row(self, spec: CodecSpec, shape: tuple[int, ...], num_classes: int) -> int:
        """Return the bytes of one row on the wire, without headers."""
        of_one = spec.k * (narrowest(num_classes - 1).itemsize + 2) + 4 * len(spec.temperatures)
        return math.prod(shape[:-1]) * of_one


def tails_of(columns: Columns) -> dict[float, FloatArray]:
    """Return temperature -> log tail, of columns that passed `check`."""
    return {float(name.removeprefix(_TAIL)): tail for name, tail in columns.items() if name.startswith(_TAIL)}


def check_tails(columns: Columns, *others: str) -> None:
    """Raise ValueError where the columns are not these others, and a log tail for each of some temperatures.

    Tails have the shape of the first of the others without its last axis.
    """
    texts = [name.removeprefix(_TAIL) for name in columns if name.startswith(_TAIL)]
    if not texts or len(columns) != len(texts) + len(others) or not columns.keys() >= set(others):
        raise ValueError(f"columns {sorted(columns)} are not {', '.join(others)} and tails")
    shape = columns[others[0]].shape[:-1]
    for text in texts:
        tail = columns[_TAIL + text]
        if repr(float(text)) != text or not 0 < float(text) < math.inf:
            raise ValueError(f"{text!r} is no temperature")
        if tail.dtype != np.float32 or tail.shape != shape or not (tail <= 0).all():
            raise ValueError(f"the log tail at temperature {text} is damaged")


def kept_classes(values: FloatArray, k: int, temperatures: tuple[float, ...]) -> Kept:
    """Return what is kept of finite [M, C] float32."""
    num_rows, num_classes = values.shape
    indices, log_probs = np.empty((num_rows, k), np.int64), np.empty((num_rows, k))
    tails = {temperature: np.empty(num_rows, np.float32) for temperature in temperatures}
    rows = max(1, _CHUNK // num_classes)
    for start in range(0, num_rows, rows):
        part = slice(start, start + rows)
        kept = _most_probable(values[part], k)
        indices[part] = kept
        logits = values[part].astype(np.float64)
        head = np.take_along_axis(logits, kept, axis=1)
        np.put_along_axis(logits, kept, -np.inf, axis=1)
        outside = {1.0: logsumexp(logits)}
        outside |= {each: logsumexp(logits / each) for each in temperatures if each != 1}
        log_probs[part], of_part = shares(head, outside, temperatures, num_classes)
        for temperature, tail in of_part.items():
            tails[temperature][part] = tail
    return Kept(indices, log_probs, tails, num_classes)


def shares(
    head: npt.NDArray[np.float64],
    outside: Mapping[float, npt.NDArray[np.float64]],
    temperatures: tuple[float, ...],
    num_classes: int,
) -> tuple[npt.NDArray[np.float64], dict[float, FloatArray]]:
    """Return [M, k] log p at T = 1 of the kept classes, and temperature -> [M] float32 log of the mass of the others.

    Args:
        head: [M, k] logits of the kept classes.
        outside: 1 and each temperature -> [M] log-sum-exp of the other classes' logits / T; -inf where there are none.
        temperatures: of the tails.
        num_classes: C.
    """
    # A tail of exactly nothing is said only where nothing was left out.
    least = -math.inf if head.shape[1] == num_classes else float(np.finfo(np.float32).min)
    log_probs = head - np.logaddexp(logsumexp(head), outside[1.0])[:, None]
    tails = {}
    for temperature in temperatures:
        rest = outside[temperature]
        tail = np.maximum(rest - np.logaddexp(logsumexp(head / temperature), rest), least)
        tails[temperature] = tail.astype(np.float32)
    return log_probs, tails


def _most_probable(values: FloatArray, k: int) -> IntArray:
    """Return [M, k] int64: classes by descending value, then ascending class."""
    values = values + np.float32(0)  # + 0 turns -0.0 into 0.0: they are a tie
    num_rows, num_classes = values.shape
    if k < num_classes:
        edge = np.partition(values, num_classes - k, axis=1)[:, num_classes - k]
        found = np.flatnonzero(values >= edge[:, None])
        if len(found) == num_rows * k:  # no row has more of what lies at the edge than it keeps
            classes: IntArray = found.reshape(num_rows, k) % num_classes
            return classes[np.arange(num_rows)[:, None], _by_key(np.take_along_axis(values, classes, axis=1), k)]
    return _by_key(values, k)


def _by_key(values: FloatArray, k: int) -> IntArray:
    """Return [M, k] int64: places of [M, n] by descending value, then ascending place.

    Both orders at once by one integer key a place: the float's bits, made to sort as integers, above the place counted
    downwards. So ties at the edge of the k are right too, which argpartition leaves to chance.
    """
    bits = values.view(np.uint32)
    ordered = np.where(bits >> 31, ~bits, bits | np.uint32(1 << 31)).astype(np.uint64)
    count = values.shape[1]
    keys = (ordered << np.uint64(32)) | np.arange(count - 1, -1, -1, dtype=np.uint64)
    if k < count:
        keys = np.partition(keys, count - k, axis=1)[:, count - k :]
    keys = np.sort(keys, axis=1)[:, ::-1]
    places: IntArray = count - 1 - (keys & np.uint64(0xFFFFFFFF)).astype(np.int64)
    return places
