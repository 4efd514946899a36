"""Classifiers of samples: how good one is, and how near to its teacher.

Letters: N samples of a batch, C classes. Accuracy alone misleads (a student of the teacher's argmax has the best
accuracy and the worst probabilities), so NLL and calibration stand beside it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from schemas.class_maps import mapped_labels
from schemas.errors import ConfigError
from schemas.softmax import log_softmax, logsumexp
from student_trainer.scores.seen import Metric, Seen, shown

NUM_BINS = 15
"""Equal-width bins of confidence of the expected calibration error (Guo et al. 2017)."""


class Classes(Metric):
    """A row of classes for each sample, against the dataset's labels.

    num_labelled, num_commonest (of the commonest class), accuracy, nll (natural log), ece.
    """

    gives = ("num_labelled", "accuracy", "nll", "ece", "num_commonest")

    def __init__(self, on: str = "") -> None:
        self._on = on
        self._num_labelled = 0
        self._hits = self._nll = 0.0
        self._of_class = np.zeros(1, np.int64)  # [C] from the first batch on
        self._bins = np.zeros((3, NUM_BINS))  # count, sum of confidence, sum of hits

    def update(self, seen: Seen) -> None:
        """Raises ConfigError for another output than [N, C], and where the dataset has more classes."""
        log_probs, labels = _student(seen, self._on), seen.labels
        rows = np.flatnonzero(labels >= 0)
        if not len(rows):
            return
        num_classes = max(seen.dataset.num_classes, int(labels.max()) + 1)
        if num_classes > log_probs.shape[1]:
            raise ConfigError(
                f"dataset {seen.dataset.uri} has {num_classes} classes, the student {log_probs.shape[1]}; "
                "evaluate on a dataset of the same classes"
            )
        self._num_labelled += len(rows)
        self._of_class = self._of_class + np.bincount(labels[rows], minlength=log_probs.shape[1])
        best = log_probs.argmax(axis=1)[rows]
        hits = best == labels[rows]
        self._hits += _sum(hits)
        self._nll += _sum(-log_probs[rows, labels[rows]])
        confidence = np.exp(log_probs[rows, best])
        place = np.minimum((confidence * NUM_BINS).astype(np.int64), NUM_BINS - 1)
        for row, weights in enumerate((np.ones(len(rows)), confidence, hits)):
            self._bins[row] += np.bincount(place, weights, NUM_BINS)

    def compute(self) -> dict[str, float]:
        """Without labels num_labelled alone."""
        count = self._num_labelled
        if not count:
            return {"num_labelled": 0}
        return {
            "num_labelled": count,
            "accuracy": self._hits / count,
            "nll": self._nll / count,
            "ece": float(np.abs(self._bins[1] - self._bins[2]).sum() / count),
            "num_commonest": int(self._of_class.max()),
        }


class Agreement(Metric):
    """A row of classes for each sample, against a teacher's.

    agreement_top1 (same likeliest class), agreement_top5 (the teacher's likeliest class is among the student's five),
    kl (mean KL(teacher || student) at T = 1, natural log), teacher_accuracy (against the dataset's labels). Of a
    teacher of some classes alone, the student's distribution given that it is one of these is compared, and labels of
    others say nothing about the teacher.
    """

    gives = ("agreement_top1", "agreement_top5", "kl", "teacher_accuracy")
    compares = True

    def __init__(self, on: str = "", against: str = "") -> None:
        self._on, self._against = on, against
        self._num_samples = self._num_labelled = 0
        self._top1 = self._top5 = self._kl = self._teacher_hits = 0.0

    def update(self, seen: Seen) -> None:
        """Raises ConfigError for other outputs than [N, C] of both, of as many classes."""
        classes = seen.classes_of_teacher(self._against, self._on)
        log_probs = _among(_student(seen, self._on), classes)
        teacher = _log_probs(seen, seen.of_teacher(self._against, self._on), "teacher")
        if teacher.shape != log_probs.shape:
            raise ConfigError(
                f"the teacher gives {teacher.shape[1]} classes, the student {log_probs.shape[1]}; compare those of one "
                "task"
            )
        teacher_best = teacher.argmax(axis=1)
        likeliest = np.argsort(-log_probs, axis=1, kind="stable")[:, :5]
        labels = mapped_labels(seen.labels, classes)
        rows = np.flatnonzero(labels >= 0)
        self._num_samples += len(log_probs)
        self._num_labelled += len(rows)
        self._top1 += _sum(likeliest[:, 0] == teacher_best)
        self._top5 += _sum((likeliest == teacher_best[:, None]).any(axis=1))
        self._kl += _sum((np.exp(teacher) * (teacher - log_probs)).sum(axis=1))
        self._teacher_hits += _sum(teacher_best[rows] == labels[rows])

    def compute(self) -> dict[str, float]:
        """Without labels no teacher_accuracy."""
        sums = {"agreement_top1": self._top1, "agreement_top5": self._top5, "kl": self._kl}
        scores = {name: total / self._num_samples for name, total in sums.items() if self._num_samples}
        if self._num_labelled:
            scores["teacher_accuracy"] = self._teacher_hits / self._num_labelled
        return scores


def _student(seen: Seen, on: str) -> NDArray[np.float64]:
    return _log_probs(seen, seen.output(on), "student")


def _log_probs(seen: Seen, logits: NDArray[Any], who: str) -> NDArray[np.float64]:
    """Return [N, C]; -inf is a class that cannot be, unless none can."""
    if logits.ndim != 2 or not logits.shape[1]:
        raise ConfigError(
            f"the {who} gives rows of {shown(logits.shape)}, not one row of classes a sample; for a row at each "
            "position there is position_nll, for features `features`"
        )
    seen.refuse(~np.isfinite(logits.max(axis=1)), who)
    return log_softmax(logits)


def _among(log_probs: NDArray[np.float64], classes: tuple[int, ...]) -> NDArray[np.float64]:
    """Return [N, K] log-probabilities of [N, C] given that it is one of K classes; () = all."""
    if not classes:
        return log_probs
    if classes[-1] >= log_probs.shape[1]:
        raise ConfigError(
            f"the teacher's class map has class {classes[-1]}, the student {log_probs.shape[1]} classes; compare those "
            "of one task"
        )
    some = log_probs[:, classes]
    among: NDArray[np.float64] = some - logsumexp(some)[:, None]
    return among


def _sum(values: NDArray[Any]) -> float:
    return float(values.sum(dtype=np.float64))
