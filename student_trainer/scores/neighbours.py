"""Which samples lie near which, to a student and to its teacher: of sentences, pictures or whatever has embeddings.

Letters: N samples of a batch; M vectors over all batches, of H numbers the student's, of W the teacher's; Q pairs.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.hashing import hash64, tag
from schemas.errors import ConfigError
from schemas.finite import finite_rows
from student_trainer.scores.ranks import Floats, spearman
from student_trainer.scores.seen import Metric, Seen, parts, shown

logger = logging.getLogger(__name__)

Ints = NDArray[np.int64]

_NEAR = 10
"""Neighbours of a vector that are looked at."""
_MOST_PAIRS = 1 << 21
"""Pairs of which all are taken: those of 2,048 vectors."""


class Neighbours(Metric):
    """Embeddings [N, H] of the student beside a teacher's [N, W]: whose cosines are high, and whose are the highest.

    num_vectors: M; where either side's vector is 0 it has no direction, and is not counted. pair_spearman: the rank
    correlation of both sides' cosines over all pairs of samples, or over 2^21 of them that hashes draw. near_spearman:
    the same over the pairs of each sample and its ten nearest to the teacher, which are the hard ones: most pairs at
    random have nothing to do with one another. recall_at_1 and recall_at_10: the share of a sample's one and ten
    nearest to the teacher that are so to the student, the mean over samples. Time grows with the square of M.
    """

    gives = ("num_vectors", "pair_spearman", "near_spearman", "recall_at_1", "recall_at_10")
    compares = True

    def __init__(self, on: str = "", against: str = "") -> None:
        self._on, self._against = on, against
        self._student: list[NDArray[np.float32]] = []
        self._teacher: list[NDArray[np.float32]] = []

    def update(self, seen: Seen) -> None:
        """Raises ConfigError for anything but one vector a sample."""
        student, teacher = seen.output(self._on), seen.of_teacher(self._against, self._on)
        for values, who in ((student, "student"), (teacher, "teacher")):
            if values.ndim != 2 or values.dtype.kind != "f":
                raise ConfigError(
                    f"the {who} gives {values.dtype} of {shown(values.shape)}: compare one vector a sample"
                )
            seen.refuse(~finite_rows(values), who)
        there = student.any(axis=1) & teacher.any(axis=1)
        self._student.append(_of_length_1(student[there]))
        self._teacher.append(_of_length_1(teacher[there]))

    def compute(self) -> dict[str, float]:
        """Of fewer than two vectors their number alone; of no more than ten without the ten nearest."""
        scores: dict[str, float] = {"num_vectors": sum(map(len, self._student))}
        if scores["num_vectors"] < 2:
            return scores
        student, teacher = np.concatenate(self._student), np.concatenate(self._teacher)
        near = _nearest(teacher)
        pairs = np.repeat(np.arange(len(near)), near.shape[1]), near.reshape(-1)
        sides = {
            "pair_spearman": (_of_pairs(student), _of_pairs(teacher)),
            "near_spearman": (_cosines(student, *pairs), _cosines(teacher, *pairs)),
        }
        for name, (of_student, of_teacher) in sides.items():
            found = spearman(of_student, of_teacher, "cosines")
            if found is not None:
                scores[name] = found
        found_near = _nearest(student)
        for count in (1, _NEAR):
            if count < len(student):
                shared = (found_near[:, :count, None] == near[:, None, :count]).any(axis=1)
                scores[f"recall_at_{count}"] = float(shared.mean())
        return scores


def _of_length_1(vectors: NDArray[Any]) -> NDArray[np.float32]:
    """[N, H], none of which are 0; scaled first, since squares of very small numbers are none."""
    wide = vectors.astype(np.float64)
    wide /= np.abs(wide).max(axis=1, keepdims=True)
    unit: NDArray[np.float32] = (wide / np.sqrt(np.square(wide).sum(axis=1, keepdims=True))).astype(np.float32)
    return unit


def _nearest(vectors: NDArray[np.float32]) -> Ints:
    """Return [M, 10], or as many as there are others: which are nearest to each vector, the nearest first."""
    return np.concatenate(list(_nearest_by_parts(vectors)))


def _nearest_by_parts(vectors: NDArray[np.float32]) -> Iterator[Ints]:
    count = min(_NEAR, len(vectors) - 1)
    for part in parts(len(vectors), len(vectors)):
        cosines = vectors[part] @ vectors.T
        rows = np.arange(len(cosines))
        cosines[rows, rows + part.start] = -np.inf  # a vector is none of its own neighbours
        likely = np.sort(np.argpartition(-cosines, count - 1, axis=1)[:, :count], axis=1)
        order = np.argsort(-np.take_along_axis(cosines, likely, axis=1), axis=1, kind="stable")
        yield np.take_along_axis(likely, order, axis=1)


def _of_pairs(vectors: NDArray[np.float32]) -> Floats:
    """Return [Q] float64: the cosines of all pairs, or of as many as are taken at most, drawn by hashes."""
    size = len(vectors)
    if size * (size - 1) // 2 <= _MOST_PAIRS:
        every: Floats = (vectors @ vectors.T)[np.triu_indices(size, 1)].astype(np.float64)
        return every
    return _cosines(vectors, *_drawn(size))


def _drawn(size: int) -> tuple[Ints, Ints]:
    """Return [Q] and [Q]: pairs of different ones."""
    draws = np.arange(_MOST_PAIRS, dtype=np.uint64)
    first = hash64(tag("neighbours.first"), draws) % np.uint64(size)
    apart = 1 + hash64(tag("neighbours.apart"), draws) % np.uint64(size - 1)
    return first.astype(np.int64), ((first + apart) % np.uint64(size)).astype(np.int64)


def _cosines(vectors: NDArray[np.float32], first: Ints, second: Ints) -> Floats:
    """Return [Q] float64."""
    found = np.empty(len(first))
    for part in parts(len(first), vectors.shape[1]):
        found[part] = np.einsum("qh,qh->q", vectors[first[part]], vectors[second[part]])
    return found
