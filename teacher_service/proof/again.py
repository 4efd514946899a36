"""Labels rows of stored orders once more, as a worker would, and compares. Letters: K rows of an order are looked at.

Rows of several orders go through the model together, in calls of the teacher's own `inference_batch`, the last one
padded, so that one row of each order costs little more than its view.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np

from pipeline.datasets.base import Ints
from pipeline.identity import other_form, other_identity
from pipeline.sequence import Sequence as OrderSequence
from pipeline.stored_labels import Stored
from pipeline.views.fetch import Fetched, Fetcher, joined
from pipeline.views.patience import fetch_patiently
from schemas.codecs import SoftRows
from schemas.errors import DistillogError, ModelFailed
from schemas.records import Manifest, Teacher
from teacher_service.models.labels import Asked, Labels, label
from teacher_service.models.session import OnnxTeacher, Outputs
from teacher_service.proof.compare import Change, Ranges, compare, joined_rows
from teacher_service.proof.rows import Choice

_ROWS = 64
"""In what goes through the model at once, at least: fetching few is mostly overhead."""
_OUTPUT_BYTES = 64 << 20
"""Of all outputs, in float32, that are compared at once; no fewer rows than one call has."""


@dataclass(frozen=True, slots=True, eq=False)
class Piece:
    """The K rows of a stored order that are labelled again."""

    sequence: int
    address: str
    worker: str
    view_seed: int
    rows: Ints
    """[K] int64: which of the order's."""
    sample_ids: Ints
    """[K] int64"""
    outputs: tuple[SoftRows, ...]
    """What is stored of these rows alone, decoded."""


@dataclass(frozen=True, slots=True)
class Difference:
    """In what a stored order is not what the teacher gives here."""

    sequence: int
    address: str
    worker: str
    what: str
    """In words."""
    share: float
    """The largest change, of the output's range; infinity where the two cannot be compared."""


@dataclass(frozen=True, slots=True, eq=False)
class Compared:
    """What came of some pieces."""

    differences: tuple[Difference, ...]
    """One of each order that differs by more than the limit, the worst row's."""
    changes: tuple[dict[str, Change], ...]
    """output -> of the rows that were labelled again, of all pieces together, part by part"""


class Again:
    """What a worker would give for stored orders; used by one thread."""

    def __init__(
        self,
        manifest: Manifest,
        fetcher: Fetcher,
        model: OnnxTeacher,
        ranges: Ranges | None = None,
        data_retry: float = 60.0,
    ) -> None:
        """Label the first order, by the ranges of which changes are measured, unless they are known.

        Raises:
            DataUnavailable, ModelFailed: as `compare`.
        """
        self._manifest = manifest
        self._orders = OrderSequence.of(manifest)
        self._fetcher = fetcher
        self._model = model
        self._data_retry = data_retry
        batch = model.teacher.inference_batch
        row_bytes = sum(4 * math.prod(output.shape) for output in model.teacher.outputs)
        self.rows_at_once = batch * max(1, min(-(-_ROWS // batch), _OUTPUT_BYTES // (batch * row_bytes)))
        """Rows that go through the model, and are compared, together: whole calls of it."""
        self._ranges = ranges or Ranges(model.teacher, manifest.codec)
        if ranges is None:
            first = Asked(self._orders.sample_ids(0), self._orders.view_seed(0))
            self._label(self._fetch(first.sample_ids, self._orders.view_seed(0), 0), 0, first, self._ranges.see)

    def piece(self, stored: Stored, choice: Choice, teacher: Teacher | None = None) -> Piece | Difference:
        """Return the rows of an order that are labelled again, or in what its record is none of the teacher's.

        `teacher` is as it was when it labelled the order; None: as it is here.
        """
        value, teacher = stored.value, teacher or self._model.teacher
        problem = "sequence lies behind the stream's end" if value.sequence >= self._orders.num_orders else ""
        problem = problem or other_identity(self._orders, value.sequence, teacher, value)
        if problem := problem or other_form(teacher, self._manifest.codec, value):
            return Difference(value.sequence, stored.address, stored.worker, problem, np.inf)
        places = choice.of_order(value.stream_id, value.sequence, len(value.sample_ids), value.kept_rows)
        rows = places if value.kept_rows is None else value.kept_rows[places]
        outputs = tuple(output.values().take(places) for output in value.outputs)
        return Piece(
            value.sequence, stored.address, stored.worker, value.view_seed, rows, value.sample_ids[rows], outputs
        )

    def compare(self, pieces: Sequence[Piece], limit: float) -> Compared:
        """Label the rows of one or more pieces again, all together, and compare.

        Raises:
            DataUnavailable: the dataset cannot be read.
            ModelFailed: the model raised.
        """
        pieces = sorted(pieces, key=lambda piece: piece.view_seed)
        parts = []
        for view_seed, group in groupby(pieces, key=lambda piece: piece.view_seed):
            of_seed = list(group)
            ids = np.concatenate([piece.sample_ids for piece in of_seed])
            parts.append(self._fetch(ids, view_seed, of_seed[0].sequence))
        num_rows = [len(piece.rows) for piece in pieces]
        of_piece = np.repeat(np.arange(len(pieces)), num_rows)
        ids, rows = (np.concatenate([getattr(piece, name) for piece in pieces]) for name in ("sample_ids", "rows"))
        starts = np.cumsum([0, *(len(part.kept_rows) + len(part.faults) for part in parts)])[:-1].tolist()
        fetched = joined(starts, parts)
        asked = Asked(ids, np.repeat([piece.view_seed for piece in pieces], num_rows))
        stored = [joined_rows(of_one) for of_one in zip(*(piece.outputs for piece in pieces), strict=True)]
        worst: dict[int, Difference] = {}

        def note(row: int, what: str, share: float) -> None:
            piece = pieces[of_piece[row]]
            if piece.sequence not in worst or share > worst[piece.sequence].share:
                text = f"row {rows[row]}, sample {ids[row]}: {what}"
                worst[piece.sequence] = Difference(piece.sequence, piece.address, piece.worker, text, share)

        faults = list(fetched.faults)
        changes = []
        for start in range(0, len(fetched.kept_rows), self.rows_at_once):
            calls: list[Outputs] = []
            rows_now = slice(start, start + self.rows_at_once)
            labels = self._label(_part(fetched, rows_now), pieces[0].sequence, asked, calls.append)
            exact = self._joined(calls)
            faults += labels.faults
            changes.append(
                {
                    made.name: compare(there.take(labels.kept), made, exact[made.name], self._ranges.of(made.name))
                    for there, made in zip(stored, labels.outputs, strict=True)
                }
            )
            for name, change in changes[-1].items():
                for at in np.flatnonzero(~(change.share <= limit)).tolist():
                    share = float(change.share[at])
                    note(int(labels.kept[at]), f"output {name!r} {_said(share)}", share)
        for row, reason in faults:
            note(row, f"it is labelled, and cannot be here: {reason}", np.inf)
        return Compared(tuple(worst.values()), tuple(changes))

    def _fetch(self, sample_ids: Ints, view_seed: int, sequence: int) -> Fetched:
        return fetch_patiently(
            self._fetcher,
            sample_ids,
            view_seed,
            self._model.size,
            seconds=self._data_retry,
            what=f"order {sequence}",
        )

    def _label(self, fetched: Fetched, sequence: int, asked: Asked, also: Callable[[Outputs], None]) -> Labels:
        try:
            return label(self._model, fetched, self._manifest.codec, asked, also)
        except (DistillogError, MemoryError):
            raise
        except Exception as error:  # ONNX Runtime's exceptions have no common base
            raise ModelFailed(
                f"{self._model.path}: fails on order {sequence} ({' '.join(str(error).split())[:300]}); go where "
                "the model can run"
            ) from error

    def _joined(self, calls: Sequence[Outputs]) -> Outputs:
        """Return output -> what the labels of some calls, or of none, were encoded of."""
        exact = {}
        for one in self._model.teacher.outputs:
            none = np.empty((0, *one.encoded_shape), np.float32)
            exact[one.name] = np.concatenate([none, *(call[one.name] for call in calls)])
        return exact


def _part(fetched: Fetched, rows: slice) -> Fetched:
    """Return some of the rows, without the faults of all."""
    inputs = {name: values[rows] for name, values in fetched.inputs.items()}
    return Fetched(inputs, fetched.labels[rows], fetched.kept_rows[rows], ())


def _said(share: float) -> str:
    return f"is off by {share:.1e} of its range" if np.isfinite(share) else "has other positions, or a class twice"
