"""Samples as a network sees them: read, viewed, and with their labels.

N: samples asked for; M: those that could be read.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from pipeline.datasets.base import (
    Arrays,
    Dataset,
    Faults,
    HasPictures,
    Ints,
    Samples,
    is_thread_safe,
    vocabulary_of,
)
from pipeline.views import find_view, max_positions
from pipeline.views.children import Children
from pipeline.views.loaders import Loaders
from pipeline.views.mixing import Mixture, mixed
from pipeline.views.positions import too_many
from pipeline.views.user import BadRows
from schemas.errors import ManifestMismatch
from schemas.records import ViewSpec

log = logging.getLogger(__name__)

_PARTS = 4
"""Of a request, for each loader: the slowest part is then no more than a fraction of what each of them does."""


@dataclass(frozen=True, slots=True, eq=False)
class Fetched:
    """The views of some samples."""

    inputs: Arrays
    """name -> [M, ...]"""
    labels: Ints
    """[M] int64, -1 where unlabelled, or of two classes that are mixed"""
    kept_rows: Ints
    """[M] int64, rising: which rows of the request these are."""
    faults: Faults
    """(row, reason) of the others."""


class Fetcher:
    """A dataset under a view. The result for an ID is the same in any batch, and with any number of loaders.

    `loaders` threads share the samples of each request, where both dataset and view say that they are `thread_safe`; or
    as many `processes`, each of which opens both for itself, whatever they say. A view that mixes samples takes
    partners from all, or from `partners`, rising IDs.

    Raises ConfigError for an unknown view, or one whose parameters do not fit the dataset, ManifestMismatch for one of
    another version than this code's.
    """

    def __init__(
        self,
        dataset: Dataset,
        view: ViewSpec,
        loaders: int = 1,
        processes: bool = False,
        partners: Ints | None = None,
    ) -> None:
        self.dataset = dataset
        self.view = view
        found = find_view(view.name)
        if found.version != view.version:
            raise ManifestMismatch(
                f"view {view.name} has version {view.version} in the manifest, {found.version} here: "
                "use the Distillog (or the view's own code) that the stream was created with"
            )
        self._apply = found.apply
        self._parts = found.parts
        self._after = found.after
        params = view.params
        self._params = found.of_data(params, vocabulary_of(dataset)) if found.of_data else dict(params)
        self._mix = found.mix(view.params) if found.mix else None
        self._partners = partners
        if found.fits:
            found.fits(params, dataset)
        self._max_positions = max_positions(view)
        unsafe = [] if is_thread_safe(dataset) else [f"dataset {dataset.uri}"]
        unsafe += [] if found.thread_safe else [f"view {view.name}"]
        if loaders > 1 and unsafe and not processes:
            log.warning(
                "%s: no `thread_safe = True`, so one loader reads, not %d; loaders that are processes need none",
                " and ".join(unsafe),
                loaders,
            )
            loaders = 1
        # Of each child a thread waits for the answers.
        self._loaders = Loaders(loaders)
        self._children = Children(dataset, view, loaders, partners) if processes else None
        self._usual = found.usual
        self._begun = False

    @property
    def mixes(self) -> bool:
        """Whether a view is of two samples."""
        return self._mix is not None

    def mixture(self, sample_ids: Ints, view_seed: int) -> tuple[Ints, Mixture] | None:
        """Return what [N] samples are mixed with: [N] IDs of their partners, themselves where they are whole; or None.

        Knows no pixel: a partner may turn out undecodable, and then no view comes of the sample.
        """
        if self._mix is None:
            return None
        known = self._partners
        found = self._mix(sample_ids, view_seed, self.dataset.num_samples if known is None else len(known))
        partner = found.partner if known is None else known[found.partner]
        return np.where(found.share < 1, partner, sample_ids), found

    @property
    def busy(self) -> float:
        """CPU seconds of the loaders' threads and processes, but for those of who calls `fetch`."""
        return self._loaders.busy + (self._children.busy if self._children else 0.0)

    def close(self) -> None:
        """End the loaders' threads and processes; from then on one loader reads, in the thread that calls."""
        children, self._children = self._children, None
        self._loaders.close()
        if children:
            children.close()

    def hold_to(self, kinds: Sequence[str]) -> None:
        """Have samples of each user's view in the row of views be of these kinds, as another fetcher has them."""
        for usual, kind in zip(self._usual, kinds, strict=True):
            usual.kind = kind

    def fetch(self, sample_ids: Ints, view_seed: int, size: tuple[int, ...] | None = None, mix: bool = True) -> Fetched:
        """The views of [N] int64 IDs, at the spatial `size` if one is given.

        Without `mix` each is seen alone, also where the view mixes it with another sample. A mix of two classes has the
        label -1, and one whose partner cannot be decoded is a fault.

        An ID outside the dataset is a fault of its row, as is a sample that cannot be decoded, or for which a user's
        view raises, gives another shape than for others, or chooses more positions than its `max_positions`. Raises
        OSError when the data cannot be read now, LoaderLost where a loader's process ended.

        To be called by one thread at a time.
        """
        if not self._begun:
            fetched = self._fetch(sample_ids, view_seed, size, mix)
            # What all samples of a user's view are held to is the first that came of it: no matter for a race.
            self._begun = len(fetched.kept_rows) > 0
            return fetched
        if children := self._children:
            children.start([usual.kind for usual in self._usual])
        fetch = partial(children.fetch if children else self._fetch, view_seed=view_seed, size=size, mix=mix)
        if self._loaders.count == 1 or len(sample_ids) < 2:
            return fetch(sample_ids)
        rows = -(-len(sample_ids) // (_PARTS * self._loaders.count))
        starts = range(0, len(sample_ids), rows)
        return joined(starts, self._loaders.map(fetch, [sample_ids[start : start + rows] for start in starts]))

    def _fetch(self, sample_ids: Ints, view_seed: int, size: tuple[int, ...] | None, mix: bool) -> Fetched:
        pairs = self.mixture(sample_ids, view_seed) if mix else None
        if pairs is None:
            return self._seen(sample_ids, view_seed, size)
        partner_ids, mixture = pairs
        # A view is the same for whoever asks for it, so a sample that is several ones' partner is seen once.
        ids, places = np.unique(np.concatenate([sample_ids, partner_ids]), return_inverse=True)
        seen = self._seen(ids, view_seed, size)
        found = np.full(len(ids), -1)
        found[seen.kept_rows] = np.arange(len(seen.kept_rows))
        own, partner = found[places].reshape(2, -1)
        kept_rows = np.flatnonzero((own >= 0) & (partner >= 0))
        reasons = {int(ids[row]): reason for row, reason in seen.faults}
        faults: list[tuple[int, str]] = []
        for row in np.flatnonzero((own < 0) | (partner < 0)).tolist():
            other = int(partner_ids[row])
            alone = own[row] < 0
            faults.append(
                (row, reasons[sample_ids[row]] if alone else f"is mixed with sample {other}: {reasons[other]}")
            )
        own, partner = own[kept_rows], partner[kept_rows]
        of_own, of_partners = ({name: each[rows] for name, each in seen.inputs.items()} for rows in (own, partner))
        labels = np.where(seen.labels[own] == seen.labels[partner], seen.labels[own], -1)
        inputs = mixed(self.view.name, of_own, of_partners, mixture.of(kept_rows)) if len(kept_rows) else of_own
        return Fetched(inputs, labels, kept_rows, tuple(faults))

    def _seen(self, sample_ids: Ints, view_seed: int, size: tuple[int, ...] | None) -> Fetched:
        known = np.flatnonzero((sample_ids >= 0) & (sample_ids < self.dataset.num_samples))
        params, size = self._params, size or None
        ids = sample_ids if len(known) == len(sample_ids) else sample_ids[known]
        in_parts = self._read_parts(ids, view_seed, params, size)
        samples = in_parts or self.dataset.read(ids)
        fields, kept_rows = samples.fields, known[samples.kept_rows]
        reasons = {int(known[row]): reason for row, reason in samples.faults}
        if len(known) < len(sample_ids):
            outside = np.setdiff1d(np.arange(len(sample_ids)), known).tolist()
            reasons |= {row: f"no sample {sample_ids[row]} in {self.dataset.uri}" for row in outside}
        try:
            apply = self._after if in_parts else self._apply
            inputs = apply(fields, sample_ids[kept_rows], view_seed, params, size) if apply else fields
        except BadRows as bad:
            reasons |= {int(kept_rows[row]): reason for row, reason in bad.reasons.items()}
            inputs, kept_rows = bad.inputs, np.delete(kept_rows, list(bad.reasons))
        if self._max_positions and len(kept_rows) and (bold := too_many(self.view.name, inputs, self._max_positions)):
            reasons |= {int(kept_rows[row]): reason for row, reason in bold.items()}
            inputs = {name: np.delete(values, list(bold), axis=0) for name, values in inputs.items()}
            kept_rows = np.delete(kept_rows, list(bold))
        labels = self.dataset.labels(sample_ids[kept_rows])
        # Files may hold numbers of another machine's byte order, which PyTorch does not take.
        inputs = {name: values.astype(values.dtype.newbyteorder("="), copy=False) for name, values in inputs.items()}
        return Fetched(inputs, labels, kept_rows, tuple(sorted(reasons.items())))

    def _read_parts(
        self, sample_ids: Ints, view_seed: int, params: dict[str, Any], size: tuple[int, ...] | None
    ) -> Samples | None:
        """What the view begins with, where that is a part of a picture that lies encoded: no more of it is decoded."""
        if not (self._parts and isinstance(self.dataset, HasPictures)):
            return None
        parts = self._parts(sample_ids, view_seed, params)
        return self.dataset.read_parts(sample_ids, parts, None if self._after else size)


def joined(starts: Sequence[int], parts: Sequence[Fetched]) -> Fetched:
    """Return the parts of a request, one or more, which begin at these rows of it, as one."""
    # A part without a row may have no view's shape.
    whole = [part.inputs for part in parts if len(part.kept_rows)] or [parts[0].inputs]
    inputs = {name: np.concatenate([each[name] for each in whole]) for name in whole[0]}
    kept_rows = np.concatenate([start + part.kept_rows for start, part in zip(starts, parts, strict=True)])
    faults = tuple((start + row, why) for start, part in zip(starts, parts, strict=True) for row, why in part.faults)
    return Fetched(inputs, np.concatenate([part.labels for part in parts]), kept_rows, faults)
