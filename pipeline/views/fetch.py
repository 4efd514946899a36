"""Samples as a network sees them: read, viewed, and with their labels.

N: samples asked for; M: those that could be read.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pipeline.datasets.base import Arrays, Dataset, Faults, Ints
from pipeline.views import find_view
from pipeline.views.user import BadRows
from schemas.errors import ManifestMismatch
from schemas.records import ViewSpec


@dataclass(frozen=True, slots=True, eq=False)
class Fetched:
    """The views of some samples."""

    inputs: Arrays
    """name -> [M, ...]"""
    labels: Ints
    """[M] int64, -1 where unlabelled"""
    kept_rows: Ints
    """[M] int64, rising: which rows of the request these are."""
    faults: Faults
    """(row, reason) of the others."""


class Fetcher:
    """A dataset under a view. The result for an ID is the same in any batch.

    Raises ConfigError for an unknown view, ManifestMismatch for one of another version than this code's.
    """

    def __init__(self, dataset: Dataset, view: ViewSpec) -> None:
        self.dataset = dataset
        self.view = view
        found = find_view(view.name)
        if found.version != view.version:
            raise ManifestMismatch(
                f"view {view.name} has version {view.version} in the manifest, {found.version} here: "
                "use the Distillog (or the view's own code) that the stream was created with"
            )
        self._apply = found.apply

    def fetch(self, sample_ids: Ints, view_seed: int, size: tuple[int, ...] | None = None) -> Fetched:
        """The views of [N] int64 IDs, at the spatial `size` if one is given.

        An ID outside the dataset is a fault of its row, as is a sample that cannot be decoded, or for which a user's
        view raises or gives another shape than for others. Raises OSError when the data cannot be read now.
        """
        known = np.flatnonzero((sample_ids >= 0) & (sample_ids < self.dataset.num_samples))
        samples = self.dataset.read(sample_ids if len(known) == len(sample_ids) else sample_ids[known])
        fields, kept_rows = samples.fields, known[samples.kept_rows]
        reasons = {int(known[row]): reason for row, reason in samples.faults}
        if len(known) < len(sample_ids):
            outside = np.setdiff1d(np.arange(len(sample_ids)), known).tolist()
            reasons |= {row: f"no sample {sample_ids[row]} in {self.dataset.uri}" for row in outside}
        params, size = dict(self.view.params), size or None
        try:
            inputs = self._apply(fields, sample_ids[kept_rows], view_seed, params, size)
        except BadRows as bad:
            reasons |= {int(kept_rows[row]): reason for row, reason in bad.reasons.items()}
            inputs, kept_rows = bad.inputs, np.delete(kept_rows, list(bad.reasons))
        labels = self.dataset.labels(sample_ids[kept_rows])
        return Fetched(inputs, labels, kept_rows, tuple(sorted(reasons.items())))
