"""Classifiers whose classes do not exclude one another: how near a student's probability of each is to a teacher's.

Letters: N samples of a batch, C classes, R rows: N times the places "..." of [N, ..., C].
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from schemas.errors import ConfigError
from student_trainer.scores.seen import Metric, Seen, shown


class Tags(Metric):
    """Logits [N, ..., C] of classes each for itself, against a teacher's of the kind `multilabel`; p = sigmoid(logit).

    num_tag_rows: R of all batches. binary_kl: their mean of the sum over classes of KL(Bernoulli(p_t) ||
    Bernoulli(p_s)), natural log, as the loss of that name is at T = 1. tag_difference: the mean of |p_t - p_s| over all
    numbers. Of a teacher of some classes alone, the student's logits of these are compared.
    """

    gives = ("num_tag_rows", "binary_kl", "tag_difference")
    compares = True

    def __init__(self, on: str = "", against: str = "") -> None:
        self._on, self._against = on, against
        self._num_rows = self._num_numbers = 0
        self._kl = self._differences = 0.0

    def update(self, seen: Seen) -> None:
        """Raises ConfigError where the shapes, less the classes that a class map leaves out, differ."""
        student, teacher = seen.output(self._on), seen.of_teacher(self._against, self._on)
        classes = seen.classes_of_teacher(self._against, self._on)
        if classes and student.ndim > 1 and classes[-1] < student.shape[-1]:
            student = student[..., classes]
        if student.shape != teacher.shape or student.ndim < 2 or not student.size:
            raise ConfigError(
                f"the student gives rows of {shown(student.shape)}, the teacher of {shown(teacher.shape)}: compare "
                "logits of the same classes"
            )
        for s, t in seen.side_by_side(student, teacher):
            (yes, no), (yes_s, no_s) = ((_log_sigmoid(each), _log_sigmoid(-each)) for each in (t, s))
            self._kl += float((np.exp(yes) * (yes - yes_s) + np.exp(no) * (no - no_s)).sum())
            self._differences += float(np.abs(np.exp(yes) - np.exp(yes_s)).sum())
            self._num_rows += len(s)
            self._num_numbers += s.size

    def compute(self) -> dict[str, float]:
        """Without a row num_tag_rows alone."""
        if not self._num_numbers:
            return {"num_tag_rows": self._num_rows}
        return {
            "num_tag_rows": self._num_rows,
            "binary_kl": self._kl / self._num_rows,
            "tag_difference": self._differences / self._num_numbers,
        }


def _log_sigmoid(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    log_p: NDArray[np.float64] = -np.logaddexp(0.0, -logits)
    return log_p
