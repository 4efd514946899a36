"""Which true labels a run may see: its label budget."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.datasets import Dataset
from pipeline.datasets.labels import label_budget
from schemas.errors import ConfigError

_CHUNK = 1 << 20


@dataclass(frozen=True, slots=True, eq=False)
class HardLabels:
    """The samples that show their label."""

    shown: NDArray[np.int64] | None
    """[budget] int64 rising sample IDs; None: every label there is."""
    fraction: float
    """Samples that show a label / all samples."""

    @classmethod
    def of(cls, dataset: Dataset, budget: int | None, seed: int) -> HardLabels:
        """Choose them: None shows all labels, 0 none, else `budget` of them, stratified by class.

        Raises:
            ConfigError: fewer labels than the budget.
        """
        if budget == 0:
            return cls(np.empty(0, np.int64), 0.0)
        if budget is None:
            count = sum(int((labels >= 0).sum()) for labels in _labels(dataset))
            return cls(None, count / dataset.num_samples)
        try:
            shown = label_budget(np.concatenate(list(_labels(dataset))), budget, seed)
        except ConfigError as error:
            raise ConfigError(f"[data] labelled: {error}") from error
        return cls(shown, budget / dataset.num_samples)

    def hide(self, sample_ids: NDArray[np.int64], labels: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return [N] labels with -1 where a sample is outside the budget."""
        if self.shown is None:
            return labels
        if not len(self.shown):
            return np.full_like(labels, -1)
        places = np.searchsorted(self.shown, sample_ids).clip(max=len(self.shown) - 1)
        return np.where(self.shown[places] == sample_ids, labels, -1)


def labelled_ids(dataset: Dataset, labels: HardLabels) -> NDArray[np.int64]:
    """Return the rising int64 IDs of all samples that show their label."""
    if labels.shown is not None:
        return labels.shown
    return np.flatnonzero(np.concatenate(list(_labels(dataset))) >= 0).astype(np.int64)


def _labels(dataset: Dataset) -> list[NDArray[np.int64]]:
    starts = range(0, dataset.num_samples, _CHUNK)
    return [dataset.labels(np.arange(start, min(start + _CHUNK, dataset.num_samples))) for start in starts]
