"""How far stored labels are from the same labels made here.

What a codec rounds is no change: a number counts by how much farther the stored one lies from the exact one than the
exact one's own stored form does. So equal machines differ by exactly 0, and a machine that is off by d by little more
than d, also where d turns a rounding over.
Letters: M samples, P positions of theirs, C classes, k kept classes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from schemas.codecs import CodecSpec, Hidden, Sampled, SoftRows, TopK
from schemas.columns import FloatArray
from schemas.finite import finite_rows
from schemas.positions import Positions, positions_of
from schemas.records import Output, Teacher
from schemas.softmax import LEAST_LOG_PROB, logsumexp
from teacher_service.models.session import Outputs

Numbers = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Change:
    """How far M samples' labels of one output are from those made here."""

    share: Numbers
    """[M] float64: the largest change of a sample's numbers, as a share of the output's range; infinity where the two
    have no numbers in common (other positions, a class twice)."""
    same: npt.NDArray[np.bool_]
    """[M]: equal to the bit."""
    overlap: Numbers | None = None
    """[M] float64, of topk: which share of the stored classes is among the k likeliest here, too; of a sample
    the least."""


def compare(stored: SoftRows, made: Output, exact: FloatArray, spread: Numbers) -> Change:
    """Compare what is stored of M samples with what is made of them here.

    Args:
        stored: as the record has it, decoded; by the codec, with the settings and in the shape of `made`.
        made: of the same samples, as a worker here would store it.
        exact: [M, ...] float32 that `made` was made of, or [P, ...].
        spread: the output's range, as `Ranges` has it; of hidden numbers [H].
    """
    rounded = made.values()
    of_classes = bool(made.num_classes)
    if not (isinstance(stored, Positions) and isinstance(rounded, Positions)):
        return _compare_rows(stored, rounded, exact, of_classes, spread)
    there, here = stored.chosen, rounded.chosen
    alike = (there.counts == here.counts) & (there.marks == here.marks)
    samples = np.flatnonzero(alike)
    at = positions_of(here.counts, samples)
    of_places = _compare_rows(stored.take(samples).rows, rounded.rows.take(at), exact[at], of_classes, spread)
    sample_of = np.repeat(samples, here.counts[samples])
    share = np.where(alike, 0.0, np.inf)
    np.maximum.at(share, sample_of, of_places.share)
    same = alike.copy()
    np.logical_and.at(same, sample_of, of_places.same)
    overlap = None
    if of_places.overlap is not None:
        overlap = alike.astype(np.float64)
        np.minimum.at(overlap, sample_of, of_places.overlap)
    return Change(share, same, overlap)


def joined_rows(parts: Sequence[SoftRows]) -> SoftRows:
    """Return the rows of several, one or more, of one form and codec, one behind the other."""
    return _joined(parts)  # type: ignore[no-any-return]


def _joined(parts: Sequence[Any]) -> Any:
    """Join equal fields of forms: arrays along their first dimension, whatever holds arrays part by part."""
    first = parts[0]
    if isinstance(first, np.ndarray):
        return np.concatenate(parts)
    if isinstance(first, dict):
        return {key: _joined([part[key] for part in parts]) for key in first}
    if is_dataclass(first) and not isinstance(first, type):
        return replace(first, **{each.name: _joined([getattr(p, each.name) for p in parts]) for each in fields(first)})
    return first


class Ranges:
    """The ranges of a teacher's outputs, of which `compare` takes shares, over whatever was seen of them."""

    def __init__(self, teacher: Teacher, codec: CodecSpec) -> None:
        """Nothing was seen yet; `codec` is the stream's."""
        self._outputs = [(one, one.stored_as(codec)) for one in teacher.outputs]
        self._lowest: dict[str, Numbers] = {one.name: np.array(np.inf) for one in teacher.outputs}
        self._highest = {name: -lowest for name, lowest in self._lowest.items()}

    def see(self, values: Outputs) -> None:
        """Take in rows, as `OnnxTeacher.in_calls` gives them; those that are not finite count for nothing."""
        for one, spec in self._outputs:
            numbers = values[one.name][finite_rows(values[one.name])].astype(np.float64)
            if not spec.keeps_all:
                numbers = _no_lower(_log_probs(numbers))
            elif one.codec_classes and not spec.of_hidden:
                numbers = _centred(numbers)
            axes = tuple(range(numbers.ndim - 1)) if spec.of_hidden else None
            self._lowest[one.name] = np.minimum(self._lowest[one.name], numbers.min(axes, initial=np.inf))
            self._highest[one.name] = np.maximum(self._highest[one.name], numbers.max(axes, initial=-np.inf))

    def of(self, name: str) -> Numbers:
        """Return an output's range; 1 where it was one number alone, or none.

        Of hidden numbers [H], each its own: in many networks some are a hundred times the others, whose changes would
        be nothing beside them. It reaches to 0, since roundings grow with the distance from there, and is no less than
        the median's: of one that hardly ever moves, all that moves it is much.
        """
        lowest, highest = self._lowest[name], self._highest[name]
        if not lowest.ndim:
            return np.where((lowest < highest) & np.isfinite(highest - lowest), highest - lowest, 1.0)
        own = np.maximum(highest, 0.0) - np.minimum(lowest, 0.0)
        floor = np.median(own)
        return np.maximum(own, floor) if 0 < floor < np.inf else np.where(own > 0, own, 1.0)


def _compare_rows(stored: SoftRows, rounded: SoftRows, exact: FloatArray, of_classes: bool, spread: Numbers) -> Change:
    """Compare rows [M, ...], each of a sample or of a position."""
    same = np.ones(len(exact), np.bool_)
    for name, column in rounded.columns.items():
        same &= _all(stored.columns[name] == column)
    share = np.zeros(len(exact))
    other = np.flatnonzero(~same)
    there, here, numbers = stored.take(other), rounded.take(other), exact[other].astype(np.float64)
    if isinstance(there, TopK) and isinstance(here, TopK):
        overlap = np.ones(len(exact))
        share[other], overlap[other] = _of_top_k(there, here, numbers, spread)
        return Change(share, same, overlap)
    if isinstance(there, Sampled) and isinstance(here, Sampled):
        share[other] = _of_draws(there.draws, here.draws, exact.shape[-1])
        return Change(share, same)
    # No softmax sees what is added to all classes, and most codecs do not hold it.
    brought = _centred if of_classes and not isinstance(there, Hidden) else np.asarray
    was, is_ = (brought(_all_numbers(rows)).astype(np.float64) for rows in (there, here))
    numbers = brought(numbers)
    share[other] = _largest((np.abs(was - numbers) - np.abs(is_ - numbers)) / spread)
    return Change(share, same)


def _all_numbers(rows: SoftRows) -> npt.NDArray[Any]:
    """Return [M, ...] of a form that holds them all: as `logits`, or as `values`, which may have to be widened."""
    found: Any = getattr(rows, "logits", None)
    found = getattr(rows, "values", None) if found is None else found
    return np.asarray(found() if callable(found) else found)


def _of_top_k(stored: TopK, rounded: TopK, exact: Numbers, spread: Numbers) -> tuple[Numbers, Numbers]:
    """Return [M] share and [M] overlap.

    A stored class counts by its own log-probability here, and by how far that lies below the k-th likeliest: of two
    classes at the edge that are nearly as likely, either may be stored.
    """
    log_probs = _log_probs(exact)
    here = np.take_along_axis(log_probs, rounded.indices, axis=-1)
    at = np.take_along_axis(log_probs, stored.indices, axis=-1)
    rounding = np.abs(rounded.log_probs - _less_first(rounded, here))
    # Of a class that is not among those kept here nobody knows what its rounding would be.
    in_both = stored.indices[..., :, None] == rounded.indices[..., None, :]
    own = np.where(in_both.any(-1), (in_both * rounding[..., None, :]).sum(-1), rounding.max(-1, keepdims=True))
    parts = [
        _largest(np.abs(stored.log_probs - _less_first(stored, at)) - own),
        _largest(_no_lower(here[..., -1:]) - _no_lower(at)),
    ]
    for temperature, tail in stored.log_tails.items():
        parts.append(_largest(np.abs(_no_lower(tail) - _no_lower(rounded.log_tails[temperature]))))
    share = np.maximum.reduce(parts) / spread
    classes = np.sort(stored.indices, axis=-1)
    share[~_all(classes[..., 1:] != classes[..., :-1])] = np.inf
    overlap = in_both.any(axis=-1).mean(axis=-1)
    return share, np.asarray(overlap.min(axis=tuple(range(1, overlap.ndim)), initial=1.0))


def _of_draws(stored: npt.NDArray[Any], made: npt.NDArray[Any], num_classes: int) -> Numbers:
    """Return [M] of [M, ..., N] draws, rising: which share is of other classes, beyond those that roundings may move.

    Draws that are as near to the end of a class as a machine is off fall into the next one: one may, and of many
    classes, whose ends lie close together, one for each hundred, but no more than a fifth.
    """
    num_draws = stored.shape[-1]
    allowed = max(1, min(num_draws // 5, num_classes // 100))
    moved = np.zeros(stored.shape[:-1], np.int64)
    for place in np.ndindex(moved.shape):
        moved[place] = num_draws - sum((Counter(stored[place].tolist()) & Counter(made[place].tolist())).values())
    return _largest(np.maximum(moved - allowed, 0) / num_draws)


def _less_first(rows: TopK, log_probs: Numbers) -> Numbers:
    """Return [M, ..., k] exact log-probabilities as the rows have them: less the first's, where the first is 0."""
    return log_probs - np.where(rows.log_probs[..., :1] == 0, log_probs[..., :1], 0.0)


def _log_probs(logits: Numbers) -> Numbers:
    """[M, ..., C] log-probabilities at T = 1."""
    return logits - logsumexp(logits)[..., None]


def _no_lower(log_probs: npt.NDArray[Any]) -> Numbers:
    """Log-probabilities, what is next to nothing as one number."""
    return np.maximum(log_probs.astype(np.float64), LEAST_LOG_PROB)


def _centred(logits: npt.NDArray[Any]) -> Numbers:
    """[M, ..., C] less each row's maximum over C."""
    numbers = logits.astype(np.float64)
    return np.asarray(numbers - numbers.max(axis=-1, keepdims=True, initial=-np.inf))


def _largest(change: Numbers) -> Numbers:
    """[M] of [M, ...], 0 at least."""
    return np.asarray(change.max(axis=tuple(range(1, change.ndim)), initial=0.0))


def _all(flags: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """[M] of [M, ...]"""
    return np.asarray(flags.all(axis=tuple(range(1, flags.ndim))))
