"""Label budgets: which few samples of a dataset keep their labels."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from pipeline.datasets.base import Ints
from pipeline.hashing import hash64, tag
from schemas.errors import ConfigError


def label_budget(blocks: Iterable[Ints], budget: int, seed: int) -> Ints:
    """[budget] int64, rising: the IDs that keep their labels, as many of each class as can be.

    `blocks` are the labels of all samples, in the order of their IDs, cut anyhow; -1 is unlabelled. A class with fewer
    samples than its share gives all it has, the others share the rest. A larger budget with the same seed contains the
    smaller one. Raises ConfigError when there are fewer labels than the budget.

    Only `budget` candidates are kept from block to block. That changes nothing: more samples never bring a sample
    nearer to being chosen.
    """
    chosen = _Candidates(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.uint64))
    start = num_labels = 0
    for labels in blocks:
        ids = np.flatnonzero(labels >= 0) + start
        start += len(labels)
        num_labels += len(ids)
        shown = labels[ids - (start - len(labels))]
        draws = hash64(seed, tag("label_budget"), ids)
        near = chosen.may_change(shown, draws, budget)
        chosen = chosen.joined(ids[near], shown[near], draws[near]).first(budget)
    if not 0 < budget <= num_labels:
        raise ConfigError(f"a label budget of {budget} does not fit: the dataset has {num_labels} labels")
    return np.sort(chosen.ids)


class _Candidates:
    """Samples that may be chosen: first of every class, then second of every class, each class by hash.

    Within a rank by hash too, so that no class is always first.
    """

    def __init__(self, ids: Ints, labels: Ints, draws: npt.NDArray[np.uint64], ranks: Ints | None = None) -> None:
        self.ids, self.labels, self.draws = ids, labels, draws
        self._ranks = ranks
        """[n] place within the class by hash, once they are chosen; the last is the last chosen"""

    def joined(self, ids: Ints, labels: Ints, draws: npt.NDArray[np.uint64]) -> _Candidates:
        return _Candidates(
            np.concatenate([self.ids, ids]),
            np.concatenate([self.labels, labels]),
            np.concatenate([self.draws, draws]),
        )

    def first(self, budget: int) -> _Candidates:
        """The first `budget` of them, in the order in which they are chosen."""
        order = np.lexsort((self.draws, self.labels))
        ordered = self.labels[order]
        ranks = np.arange(len(order)) - np.searchsorted(ordered, ordered)
        places = np.lexsort((self.draws[order], ranks))[: max(budget, 0)]
        chosen = order[places]
        return _Candidates(self.ids[chosen], self.labels[chosen], self.draws[chosen], ranks[places])

    def may_change(self, labels: Ints, draws: npt.NDArray[np.uint64], budget: int) -> npt.NDArray[np.bool_]:
        """Which of further samples could be chosen: those that come before the last of their class, or of all."""
        if self._ranks is None or len(self.ids) < max(budget, 1):
            return np.ones(len(labels), bool)
        last_rank, last_draw = self._ranks[-1], self.draws[-1]
        classes, inverse = np.unique(self.labels, return_inverse=True)
        counts = np.bincount(inverse)
        highest = np.zeros(len(classes), np.uint64)
        np.maximum.at(highest, inverse, self.draws)
        # A class that gave all ranks takes in what comes before its last; one that lacks the last rank, what comes
        # before the last chosen too; one that lacks more gave all it had, and takes in anything.
        limit = np.where(counts == last_rank, np.maximum(highest, last_draw), highest)
        place = np.searchsorted(classes, labels).clip(max=len(classes) - 1)
        near: npt.NDArray[np.bool_] = (classes[place] != labels) | (counts < last_rank)[place] | (draws <= limit[place])
        return near
