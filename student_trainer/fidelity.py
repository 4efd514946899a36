"""How near a file with fewer bits stays to the one in float32, and the samples that it is calibrated on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.fault_limit import FaultLimit
from pipeline.sequence import Sequence as Orders
from pipeline.views.fetch import Fetcher
from pipeline.views.patience import fetch_patiently
from schemas.errors import ConfigError, NotFinite
from student_trainer.evaluate import predictor
from student_trainer.learning.student_outputs import pick
from student_trainer.quantising import Batch

_AT_ONCE = 64
"""Calibration samples of one call."""


@dataclass(frozen=True, slots=True)
class Scores:
    """A file on the evaluation's data, beside the one in float32."""

    num_samples: int
    accuracy: float | None
    """None: no labels, or not one row of classes a sample."""
    agreement: float
    """Share of rows, of positions where there are some, in which both have the same likeliest class; of features the
    mean cosine of both."""
    error: float
    """Root mean square of the difference of all outputs' numbers, over that of the numbers."""

    def drop(self, of_float: Scores) -> float:
        """Points lost; without the last digits, so that one sample of 100 is 1 point and no more."""
        if self.accuracy is None or of_float.accuracy is None:
            return round(100 * (1 - self.agreement), 9)
        return round(100 * (of_float.accuracy - self.accuracy), 9)


class Measure:
    """The evaluation's data under its view, which files are run on."""

    def __init__(
        self, fetcher: Fetcher, size: tuple[int, ...], batch_size: int, of_float: Path, features: bool = False
    ) -> None:
        """`features`: what the files give counts no classes."""
        self._fetcher, self._size, self._batch_size, self._features = fetcher, size, batch_size, features
        self._float = predictor(of_float)

    def scores(self, path: Path) -> Scores:
        """Run a file, and the one in float32, over all samples.

        Raises:
            NotFinite: the file gives NaN or infinity.
        """
        run, dataset, faults = predictor(path), self._fetcher.dataset, FaultLimit("decoded")
        num_samples = rows = labelled = hits = 0
        same = off = whole = 0.0
        for start in range(0, dataset.num_samples, self._batch_size):
            sample_ids = np.arange(start, min(start + self._batch_size, dataset.num_samples))
            fetched = fetch_patiently(self._fetcher, sample_ids, 0, self._size)
            faults.leave_out(dataset.uri, None, sample_ids, fetched.faults)
            if not len(fetched.kept_rows):
                continue
            found, wanted = pick(run(fetched.inputs), ""), pick(self._float(fetched.inputs), "")
            if not np.isfinite(found).all():
                raise NotFinite(f"{path.name}: gives NaN or infinity on {dataset.uri}; export it in float32 alone")
            best = found.argmax(axis=-1)
            num_samples, rows = num_samples + len(found), rows + best.size
            same += float((_cosines(found, wanted) if self._features else best == wanted.argmax(axis=-1)).sum())
            off += float(np.square(found.astype(np.float64) - wanted).sum())
            whole += float(np.square(wanted, dtype=np.float64).sum())
            if best.ndim == 1 and not self._features:
                labels = fetched.labels
                labelled += int((labels >= 0).sum())
                hits += int((best == labels)[labels >= 0].sum())
        accuracy = hits / labelled if labelled else None
        return Scores(num_samples, accuracy, same / max(1, rows), float(np.sqrt(off / whole)) if whole else 0.0)


def _cosines(found: NDArray[Any], wanted: NDArray[Any]) -> NDArray[np.float64]:
    """Return [N, ...] of vectors [N, ..., H]; 1 where both are 0, and 0 where one of them is."""
    found, wanted = found.astype(np.float64), wanted.astype(np.float64)
    lengths = np.sqrt(np.square(found).sum(axis=-1) * np.square(wanted).sum(axis=-1))
    none = (found == 0).all(axis=-1) & (wanted == 0).all(axis=-1)
    return np.where(none, 1.0, (found * wanted).sum(axis=-1) / np.where(lengths > 0, lengths, 1.0))


def calibration(fetcher: Fetcher, size: tuple[int, ...], fields: Sequence[str], count: int, seed: int) -> list[Batch]:
    """Return samples to calibrate on, as many as there are at most; those that cannot be decoded are left out."""
    total = fetcher.dataset.num_samples
    sample_ids = np.sort(Orders(total, min(count, total), 1, seed, 1).sample_ids(0))
    batches = []
    for start in range(0, len(sample_ids), _AT_ONCE):
        fetched = fetch_patiently(fetcher, sample_ids[start : start + _AT_ONCE], 0, size)
        if len(fetched.kept_rows):
            batches.append({name: fetched.inputs[name] for name in fields})
    if not batches:
        raise ConfigError(f"dataset {fetcher.dataset.uri}: none of {len(sample_ids)} samples to calibrate on is whole")
    return batches
