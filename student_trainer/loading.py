"""Loading: batches of rows become batches, with the views of their samples, in order and ahead of the training.

Letters: B rows of a batch, R rows of the batches whose views are fetched together.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.datasets.base import Arrays
from pipeline.fault_limit import FaultLimit
from pipeline.views.fetch import Fetched, Fetcher
from pipeline.views.patience import fetch_patiently
from schemas.errors import BadSamples, ManifestMismatch
from student_trainer.batches import Batch, Cut, RowBatch, cut_of
from student_trainer.columns import Buffer
from student_trainer.placing import Placing
from student_trainer.sources.base import BRING_BACK, Cursor

log = logging.getLogger(__name__)

ROWS_TOGETHER = 256
"""Rows whose views are fetched with one request, where the batches are smaller: a call costs as much as some rows."""
_NAMED = 16
"""Samples that cannot be decoded and are named, at most."""


_NONE = np.empty(0, bool)


@dataclass(slots=True)
class _Request:
    """Rows next to one another that are seen under one view seed."""

    start: int
    """The first of them among the R."""
    cuts: list[Cut] = field(default_factory=list)

    @property
    def num_rows(self) -> int:
        return sum(cut.num_rows for cut in self.cuts)


@dataclass(frozen=True, slots=True, eq=False)
class _Part:
    """A request and what came of it."""

    start: int
    """Of the request's rows, among the R."""
    num_rows: int
    fetched: Fetched

    def between(self, at: int, size: int) -> tuple[slice | NDArray[np.int64], slice]:
        """Which rows of a batch, that begins at row `at` of the R, are fetched here, and which of `inputs` they are."""
        if not self.fetched.faults:
            low, high = max(at - self.start, 0), min(at + size - self.start, self.num_rows)
            return slice(self.start + low - at, self.start + high - at), slice(low, high)
        places = self.start + self.fetched.kept_rows - at
        low, high = np.searchsorted(places, (0, size)).tolist()
        return places[low:high], slice(low, high)


class Loader:
    """Fetches the views of a run's rows; used by one thread, closed by any.

    A sample that cannot be decoded stays in its batch with weight 0, whatever its loss: batches are full, and equal for
    everybody. In its place stands `stand_in`, since batch norm sees it all the same. Of a sample that a teacher has
    seen, that is a mismatch instead.

    Args:
        fetcher: the dataset under its view.
        size: the spatial size that the student asks of the view.
        first_ids: [N] samples, the first of which that can be decoded is the stand-in.
        pin: allocate page-locked memory, which a CUDA copy need not wait for.
        placing: finds the places of targets of positions; left out: there are no such targets.
    """

    def __init__(
        self,
        fetcher: Fetcher,
        size: tuple[int, ...],
        first_ids: NDArray[np.int64],
        pin: bool = False,
        placing: Placing | None = None,
    ) -> None:
        self._fetcher = fetcher
        self._size = size
        self._first_ids = first_ids
        self._pin = pin
        self._placing = placing or Placing({}, {})
        self._stopped = threading.Event()
        self._limit = FaultLimit("decoded")
        self._named: set[int] = set()
        self._stand_in: Arrays = {}

    @property
    def busy(self) -> float:
        """CPU seconds of threads beside the one that uses it."""
        return self._fetcher.busy

    def close(self) -> None:
        """End a wait for storage, and the loaders' threads."""
        self._stopped.set()
        self._fetcher.close()

    def batches(self, groups: Iterable[Sequence[tuple[RowBatch, Cursor]]]) -> Iterator[tuple[Batch, Cursor]]:
        """Yield the batches of each group, whose views are fetched together, in order.

        Raises:
            ManifestMismatch: a sample cannot be decoded here, and a teacher has seen it; or its view chooses other
                positions than the teacher's.
            ConfigError: a hard label of a position is none of the student's classes.
            BadSamples: more than 1 % of the recent rows cannot be decoded, or no stand-in can.
            DataUnavailable: the dataset cannot be read.
        """
        for group in groups:
            batches = [rows for rows, _ in group]
            ids = np.concatenate([rows.sample_ids.numpy() for rows in batches])
            parts = [self._fetch(request, ids) for request in _requests(batches)]
            at = 0
            for rows, cursor in group:
                yield self._batch(rows, at, parts), cursor
                at += len(rows.sample_ids)

    def _fetch(self, request: _Request, ids: NDArray[np.int64]) -> _Part:
        """Fetch the rows of a request, of the IDs [R]."""
        ids = ids[request.start : request.start + request.num_rows]
        first = request.cuts[0]
        fetched = fetch_patiently(
            self._fetcher,
            ids,
            first.view_seed,
            self._size,
            self._stopped,
            advice=BRING_BACK,
            readable=bool(first.address),
        )
        uri = self._fetcher.dataset.uri
        if fetched.faults and first.address:
            row, reason = fetched.faults[0]
            address = cut_of(request.cuts, row).address
            raise ManifestMismatch(
                f"{address}: the teacher has seen sample {ids[row]}, which cannot be decoded here ({reason}): the data "
                f"of {uri} are not the same on both machines, or their storage fails; set it right and resume the run"
            )
        for row, reason in fetched.faults:
            self._name(int(ids[row]), f"dataset {uri}: sample {ids[row]} counts for nothing (weight 0): {reason}")
        last = fetched.faults[-1][1] if fetched.faults else ""
        self._limit.add(first.sequence, len(ids), len(fetched.faults), last)
        return _Part(request.start, len(ids), fetched)

    def _name(self, sample_id: int, text: str) -> None:
        if sample_id in self._named or len(self._named) == _NAMED:
            return
        self._named.add(sample_id)
        log.warning("%s%s", text, "; further samples are not named" if len(self._named) == _NAMED else "")

    def _batch(self, rows: RowBatch, at: int, parts: Sequence[_Part]) -> Batch:
        """The batch of B rows that begin at row `at` of the R."""
        size = len(rows.sample_ids)
        missing = np.ones(size, bool) if any(part.fetched.faults for part in parts) else _NONE
        buffers: dict[str, Buffer] = {}
        for part in parts:
            into, taken = part.between(at, size)
            if taken.start >= taken.stop:
                continue
            if len(missing):
                missing[into] = False
            for name, values in part.fetched.inputs.items():
                if name not in buffers:
                    buffers[name] = Buffer(values, size, self._pin)
                buffers[name].array[into] = values[taken]
        weights = None
        if missing.any():
            weights = torch.empty(size, dtype=torch.float32, pin_memory=self._pin)
            weights.numpy()[:] = ~missing
            for name, values in self._filler().items():
                if name not in buffers:
                    buffers[name] = Buffer(values, size, self._pin)
                buffers[name].array[missing] = values
        inputs = {name: buffer.tensor for name, buffer in buffers.items()}
        targets = self._placing.targets(rows, inputs)
        return Batch(rows.sample_ids, inputs, rows.labels, targets, rows.cuts, weights, rows.whole)

    def _filler(self) -> Arrays:
        """Field -> [1, ...]: the same for all batches, processes and numbers of loaders, and finite as samples are."""
        if not self._stand_in:
            fetched = fetch_patiently(self._fetcher, self._first_ids, 0, self._size, self._stopped, advice=BRING_BACK)
            if not len(fetched.kept_rows):
                raise BadSamples(
                    f"dataset {self._fetcher.dataset.uri}: none of its first samples can be decoded any more: "
                    f"{fetched.faults[0][1]}"
                )
            self._stand_in = {name: values[:1].copy() for name, values in fetched.inputs.items()}
        return self._stand_in


def _requests(batches: Sequence[RowBatch]) -> list[_Request]:
    """Join what is seen under one view seed, whichever order or batch it is of."""
    requests: list[_Request] = []
    at = 0
    for cut in (cut for rows in batches for cut in rows.cuts):
        last = requests[-1].cuts[0] if requests else None
        if last is None or (last.view_seed, bool(last.address)) != (cut.view_seed, bool(cut.address)):
            requests.append(_Request(at))
        requests[-1].cuts.append(cut)
        at += cut.num_rows
    return requests
