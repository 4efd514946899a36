"""Features of a student, held against a teacher's of the same shape, or against what a teacher's were reduced to.

Letters: N samples of a batch, H numbers of a vector.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from schemas.errors import ConfigError
from schemas.reductions import Reduction
from student_trainer.scores.seen import Metric, Seen, shown


class Features(Metric):
    """Features [N, ..., H], against a teacher's; the student's first `reduce`d, such as by `mean@1`.

    num_cosines and cosine: the mean over vectors of H numbers, of every sample and, where there are several, every
    place of it; where either side's vector is 0 it has no direction, and is not counted. mse: the mean over all numbers
    of the squared difference.
    """

    gives = ("num_cosines", "cosine", "mse")
    compares = True

    def __init__(self, on: str = "", against: str = "", reduce: str = "") -> None:
        self._on, self._against = on, against
        self._reduction = Reduction.parse(reduce) if reduce else None
        self._num_cosines = self._num_numbers = 0
        self._cosines = self._squares = 0.0

    def update(self, seen: Seen) -> None:
        """Raises ConfigError where the shapes differ, or the student's has no such axis."""
        student, teacher = self._reduced(seen.output(self._on)), seen.of_teacher(self._against, self._on)
        if student.shape != teacher.shape:
            raise ConfigError(
                f"the student gives rows of {shown(student.shape)}, the teacher of {shown(teacher.shape)}: compare "
                "features of one shape"
            )
        for of_student, of_teacher in seen.side_by_side(student, teacher):
            self._squares += float(np.square(of_student - of_teacher).sum())
            self._num_numbers += of_student.size
            lengths = np.sqrt(np.square(of_student).sum(axis=1)), np.sqrt(np.square(of_teacher).sum(axis=1))
            there = (lengths[0] > 0) & (lengths[1] > 0)
            cosines = (of_student * of_teacher).sum(axis=1)[there] / lengths[0][there] / lengths[1][there]
            self._cosines += float(np.clip(cosines, -1, 1).sum())
            self._num_cosines += len(cosines)

    def _reduced(self, output: NDArray[Any]) -> NDArray[Any]:
        if self._reduction is None:
            return output
        if output.ndim <= self._reduction.axis or not output.size:
            raise ConfigError(f"reduce: the student gives rows of {shown(output.shape)}, {self._reduction} needs more")
        return self._reduction(output)

    def compute(self) -> dict[str, float]:
        """Without a vector that has a direction no cosine."""
        scores: dict[str, float] = {"num_cosines": self._num_cosines}
        if self._num_cosines:
            scores["cosine"] = self._cosines / self._num_cosines
        if self._num_numbers:
            scores["mse"] = self._squares / self._num_numbers
        return scores
