"""Scores of a student, such as similarities or relevance: whether they order samples as others do.

Letters: N samples of a batch, M pairs of scores over all batches.
"""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
from numpy.typing import NDArray

from schemas.errors import ConfigError
from student_trainer.scores.seen import Metric, Seen, shown

logger = logging.getLogger(__name__)

Floats = NDArray[np.float64]


class Spearman(Metric):
    """One number a sample [N] or [N, 1], against a field of the view (`labels`) or a teacher's output (`against`).

    num_scores: M, of all samples whose label is not NaN, which is none. pearson: the covariance of student's and other
    scores over the product of their standard deviations. spearman: pearson of their ranks 1 to M, where equal scores
    have the mean of the ranks that they take up together. Both are in [-1, 1], and not defined for fewer than two
    scores or where one side's are all equal; a warning says so then.
    """

    gives = ("num_scores", "spearman", "pearson")

    def __init__(self, on: str = "", labels: str = "", against: str = "") -> None:
        if bool(labels) == bool(against):
            raise ConfigError("say what scores are held against: `labels`, a field, or `against`, a teacher's output")
        self._on, self._labels, self._against = on, labels, against
        self.compares = bool(against)
        self._student: list[Floats] = []
        self._others: list[Floats] = []

    def update(self, seen: Seen) -> None:
        """Raises ConfigError for anything but one number a sample, and for an infinite label."""
        student = _numbers("the student gives", seen.output(self._on))
        seen.refuse(~np.isfinite(student), "student")
        if self._against:
            others = _numbers("the teacher gives", seen.of_teacher(self._against))
            seen.refuse(~np.isfinite(others), "teacher")
        else:
            others = _numbers(f"field {self._labels!r} has", seen.field(self._labels))
            endless = np.flatnonzero(np.isinf(others))
            if len(endless):
                raise ConfigError(f"field {self._labels!r} is infinite for sample {seen.sample_ids[endless[0]]}")
        there = ~np.isnan(others)
        self._student.append(student[there])
        self._others.append(others[there])

    def compute(self) -> dict[str, float]:
        """Without two different scores on each side num_scores alone."""
        student, others = (np.concatenate(each or [np.empty(0)]) for each in (self._student, self._others))
        scores: dict[str, float] = {"num_scores": len(student)}
        found = spearman(student, others, "scores")
        return scores if found is None else {**scores, "spearman": found, "pearson": pearson(student, others)}


def spearman(student: Floats, others: Floats, what: str) -> float | None:
    """Return the rank correlation of numbers [M] and [M]; None, and a warning, where it is not defined."""
    why = _undefined(student, others, what)
    if why:
        logger.warning("there is no rank correlation: %s", why)
        return None
    return pearson(ranks(student), ranks(others))


def ranks(values: Floats) -> Floats:
    """Return the ranks [M] of numbers [M], from 1; equal ones have the mean of theirs."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    mean: Floats = last - (counts - 1) / 2
    return mean[inverse]


def pearson(x: Floats, y: Floats) -> float:
    """Return the correlation of numbers [M] and [M], neither of which are all equal."""
    return float(np.clip(_unit(x) @ _unit(y), -1, 1))


def _unit(values: Floats) -> Floats:
    """Less their mean, and of length 1; scaled first, since squares of very large or small numbers are none."""
    values = values / np.abs(values).max()
    values = values - values.mean()
    values = values / np.abs(values).max()
    unit: Floats = values / np.sqrt(values @ values)
    return unit


def _undefined(student: Floats, others: Floats, what: str) -> str:
    if len(student) < 2:
        return f"{len(student)} samples have a score to compare with"
    for whose, values in (("the student's", student), ("those to compare with", others)):
        if values.min() == values.max():
            return f"{whose} are all equal, of {len(values)} {what}"
    return ""


def _numbers(what: str, values: NDArray[Any]) -> Floats:
    if values.shape not in ((len(values),), (len(values), 1)) or values.dtype.kind not in "biuf":
        raise ConfigError(f"{what} {values.dtype} of {shown(values.shape)}: scores are one number a sample")
    return values.reshape(-1).astype(np.float64)
