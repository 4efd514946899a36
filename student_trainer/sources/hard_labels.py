"""Which true labels a run may see: its label budget."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from pipeline.datasets import Dataset
from pipeline.datasets.base import once_readable
from pipeline.datasets.labels import label_budget
from pipeline.progress import Progress
from pipeline.views.fetch import Fetcher
from pipeline.views.patience import labels_patiently
from schemas.codecs import SoftRows
from schemas.errors import ConfigError
from student_trainer.learning.partner_labels import PARTNERS, PartnerLabels
from student_trainer.sources.base import BRING_BACK

_CHUNK = 1 << 20


class HardLabels:
    """The samples that show their label."""

    def __init__(self, dataset: Dataset, shown: NDArray[np.int64] | None, limit: int | None = None) -> None:
        self.shown = shown
        """[budget] int64 rising sample IDs; None: every label there is."""
        self._dataset = dataset
        self._limit = limit

    @classmethod
    def of(cls, dataset: Dataset, budget: int | None, seed: int, limit: int | None = None) -> HardLabels:
        """Choose them: None shows all labels, 0 none, else `budget` of them, stratified by class.

        With a budget it goes over all labels once, block by block, and keeps as many IDs. `limit` is how many classes
        the labels are of that are read; None: nobody minds.

        Raises:
            ConfigError: fewer labels than the budget.
            DataUnavailable: the dataset cannot be read now.
        """
        if budget is None:
            return cls(dataset, None, limit)
        if budget == 0:
            return cls(dataset, np.empty(0, np.int64))
        try:
            return cls(dataset, label_budget(_labels(dataset), budget, seed), limit)
        except ConfigError as error:
            raise ConfigError(f"[data] labelled: {error}") from error

    @cached_property
    def fraction(self) -> float:
        """Samples that show a label / all samples; without a budget all labels are counted, once."""
        if self.shown is not None:
            return len(self.shown) / self._dataset.num_samples
        return sum(int((labels >= 0).sum()) for labels in _labels(self._dataset)) / self._dataset.num_samples

    @cached_property
    def any(self) -> bool:
        """Whether a sample shows its label; without a budget it looks for the first that has one."""
        if self.shown is not None:
            return len(self.shown) > 0
        return any((labels >= 0).any() for labels in _labels(self._dataset))

    def read(self, sample_ids: NDArray[np.int64], stopped: threading.Event | None = None) -> NDArray[np.int64]:
        """Return [N] int64 labels with -1 where a sample is unlabelled or outside the budget.

        Raises:
            DataUnavailable: the dataset cannot be read, or `stopped` is set meanwhile.
            ConfigError: a label is none of the classes.
        """
        labels = np.full(len(sample_ids), -1, np.int64)
        rows = np.flatnonzero(self._shows(sample_ids))
        if len(rows):
            labels[rows] = labels_patiently(self._dataset, sample_ids[rows], stopped, advice=BRING_BACK)
        if self._limit is not None and labels.max(initial=-1) >= self._limit:
            row = int(labels.argmax())
            raise ConfigError(
                f"dataset {self._dataset.uri}: sample {sample_ids[row]} has label {labels[row]}, but there are "
                f"{self._limit} classes, from 0 on; number the classes so, or take no loss on labels"
            )
        return labels

    def of_partners(
        self, fetcher: Fetcher, sample_ids: NDArray[np.int64], view_seed: int, stopped: threading.Event
    ) -> dict[str, SoftRows]:
        """Return what an order's targets have beside soft ones: the partners' labels, where the view mixes samples.

        Raises:
            DataUnavailable, ConfigError: as `read`.
        """
        pairs = fetcher.mixture(sample_ids, view_seed)
        if pairs is None:
            return {}
        return {PARTNERS: PartnerLabels(self.read(pairs[0], stopped), pairs[1].share.astype(np.float32))}

    def _shows(self, sample_ids: NDArray[np.int64]) -> NDArray[np.bool_]:
        """[N]: which of the samples may show a label, if they have one."""
        if self.shown is None or not len(self.shown):
            return np.full(len(sample_ids), self.shown is None)
        places = np.searchsorted(self.shown, sample_ids).clip(max=len(self.shown) - 1)
        shows: NDArray[np.bool_] = self.shown[places] == sample_ids
        return shows


def labelled_ids(dataset: Dataset, labels: HardLabels) -> NDArray[np.int64] | None:
    """Return the rising int64 IDs of all samples that show their label; None: all samples do."""
    if labels.fraction == 1:
        return None
    if labels.shown is not None:
        return labels.shown
    starts = range(0, dataset.num_samples, _CHUNK)
    found = [np.flatnonzero(block >= 0) + start for start, block in zip(starts, _labels(dataset), strict=True)]
    return np.concatenate(found).astype(np.int64)


def _labels(dataset: Dataset) -> Iterator[NDArray[np.int64]]:
    with once_readable(dataset.uri), Progress(title=f"reading the labels of {dataset.uri}", after=2.0) as progress:
        for start in range(0, dataset.num_samples, _CHUNK):
            progress.update(labels=start)
            yield dataset.labels(np.arange(start, min(start + _CHUNK, dataset.num_samples)))
