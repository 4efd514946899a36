"""Classifiers of positions, such as masked language models: how good one is where a field of the view holds labels.

Letters: N samples of a batch, P labelled positions, C classes.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from schemas.errors import ConfigError
from schemas.softmax import log_softmax
from student_trainer.scores.seen import Metric, Seen, parts, shown

NONE = -1
"""The label of a position that has none."""


class PositionNll(Metric):
    """Rows of classes [N, ..., C] against a field of whole numbers [N, ...], of which -1 is no label.

    num_positions, and means over all labelled positions of the dataset: position_nll (natural log), perplexity (exp of
    it), position_accuracy. Rows at positions without a label are not looked at. The dataset's own labels play no part.
    """

    gives = ("num_positions", "position_nll", "perplexity", "position_accuracy")

    def __init__(self, labels: str, on: str = "") -> None:
        self._labels, self._on = labels, on
        self._num_positions = 0
        self._nll = self._hits = 0.0

    def update(self, seen: Seen) -> None:
        """Raises ConfigError for a field of another shape, of no whole numbers, or with a label that is no class."""
        output, field = seen.output(self._on), seen.field(self._labels)
        if field.dtype.kind not in "iu":
            raise ConfigError(
                f"field {self._labels!r} is {field.dtype}: labels of positions are whole numbers, -1 where there is "
                "none"
            )
        if output.ndim < 2 or field.shape != output.shape[:-1]:
            raise ConfigError(
                f"the student gives rows of {shown(output.shape)}, field {self._labels!r} has labels of "
                f"{shown(field.shape)}: each label needs one row of classes"
            )
        num_classes, labels = output.shape[-1], field.reshape(-1).astype(np.int64)
        wrong = np.flatnonzero((labels < NONE) | (labels >= num_classes))
        if len(wrong):
            sample = seen.sample_ids[wrong[0] // (labels.size // len(field))]
            raise ConfigError(
                f"field {self._labels!r} has label {labels[wrong[0]]} in sample {sample}; there are labels from 0 to "
                f"{num_classes - 1}, the student's classes, and {NONE}, which is none"
            )
        places = np.flatnonzero(labels != NONE)
        nll, hits = np.empty(len(places)), np.empty(len(places), bool)
        rows = output.reshape(-1, num_classes)
        for part in parts(len(places), num_classes):
            nll[part], hits[part] = self._of_rows(seen, rows[places[part]], places[part], labels[places[part]])
        self._num_positions += len(places)
        self._nll += float(nll.sum())
        self._hits += float(hits.sum())

    def _of_rows(
        self, seen: Seen, rows: NDArray[Any], places: NDArray[np.int64], labels: NDArray[np.int64]
    ) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        """-log p of the labels, and whether each is the likeliest, of [P, C]."""
        finite = np.isfinite(rows.max(axis=1))
        if not finite.all():
            size = math.prod(seen.field(self._labels).shape[1:])
            bad = np.zeros(len(seen.sample_ids), bool)
            bad[places[~finite] // size] = True
            seen.refuse(bad, "student")
        log_probs = log_softmax(rows)
        return -log_probs[np.arange(len(rows)), labels], log_probs.argmax(axis=1) == labels

    def compute(self) -> dict[str, float]:
        """Without labels num_positions alone."""
        count = self._num_positions
        if not count:
            return {"num_positions": 0}
        nll = self._nll / count
        accuracy = self._hits / count
        return {
            "num_positions": count, "position_nll": nll, "perplexity": math.exp(nll), "position_accuracy": accuracy
        }  # fmt: skip
