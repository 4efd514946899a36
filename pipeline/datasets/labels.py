"""Label budgets: which few samples of a data set keep their labels."""

from __future__ import annotations

import numpy as np

from pipeline.datasets.base import Ints
from pipeline.hashing import hash64, tag
from schemas.errors import ConfigError


def label_budget(labels: Ints, budget: int, seed: int) -> Ints:
    """[budget] int64, rising: the IDs that keep their labels, as many of each class as can be.

    `labels` is [n] int64, -1 for unlabelled. A class with fewer samples than its share gives all it has, the others
    share the rest. A larger budget with the same seed contains the smaller one. Raises ConfigError when there are
    fewer labels than the budget.
    """
    ids = np.flatnonzero(labels >= 0)
    if not 0 < budget <= len(ids):
        raise ConfigError(f"a label budget of {budget} does not fit: the data set has {len(ids)} labels")
    draws = hash64(seed, tag("label_budget"), ids)
    order = np.lexsort((draws, labels[ids]))
    ordered = labels[ids][order]
    rank = np.arange(len(ids)) - np.searchsorted(ordered, ordered)
    # First of every class, then second of every class; within a rank by hash, so that no class is always first.
    chosen = order[np.lexsort((draws[order], rank))[:budget]]
    return np.sort(ids[chosen]).astype(np.int64)
