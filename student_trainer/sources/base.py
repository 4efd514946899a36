"""The seam between reading and training: what an order source gives, and what a run tells while it trains.

Letters: M rows of an order. A source gives rows with their labels; views are nobody's business here (`loading.py`).
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from pipeline.sequence import Sequence
    from pipeline.views.fetch import Fetcher
    from schemas.codecs import SoftRows
    from schemas.head import Head
    from student_trainer.learning.targets import TargetSpec

BRING_BACK = "bring it back and resume the run"
"""What to do about storage that is away once a run has begun: it stays, while a start that fails leaves nothing."""


@dataclass(frozen=True, slots=True)
class Cursor:
    """The next row to train on."""

    pass_number: int
    """How often the stream was gone over before, from 0."""
    sequence: int
    """The order that the next row is of."""
    row: int
    """Its place among the order's rows, from 0."""
    place: Any = field(default=None, compare=False)
    """JSON values: a hint where the order is found, which none but the source that gave it reads. None: it has none."""
    too_old: int = field(default=0, compare=False)
    """Rows before it that the run left out, since their labels were too old."""

    @classmethod
    def start(cls) -> Cursor:
        """Return the cursor of a run that has not begun."""
        return cls(0, 0, 0)

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        at = {"pass_number": self.pass_number, "sequence": self.sequence, "row": self.row, "place": self.place}
        return at | ({"too_old": self.too_old} if self.too_old else {})

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Cursor:
        """Undo `as_dict`."""
        pass_number, sequence, row = (int(values[key]) for key in ("pass_number", "sequence", "row"))
        return cls(pass_number, sequence, row, values.get("place"), int(values.get("too_old", 0)))


@dataclass(frozen=True, slots=True, eq=False)
class LabelledOrder:
    """The rows of an order that a run trains on, with all that is said of them."""

    pass_number: int
    sequence: int
    view_seed: int
    sample_ids: NDArray[np.int64]
    """[M] int64."""
    labels: NDArray[np.int64]
    """[M] int64 true labels; -1 = unlabelled, or outside the run's label budget."""
    targets: Mapping[str, SoftRows] = field(default_factory=dict)
    """"TEACHER.OUTPUT" -> M rows, or their positions, of the teachers that count in this order; empty without
    teachers. Where the view mixes samples, the labels of their partners under `PARTNERS`, too."""
    place: Any = None
    """A cursor's `place` behind this order."""
    address: str = ""
    """Where the labels of the teachers lie, which have seen each of these samples; "" where none has."""
    generations: Mapping[str, int] = field(default_factory=dict)
    """Teacher -> the generation by which it labelled this order, of those that count in it."""
    too_old: int = 0
    """Rows that it would have, but that a teacher's labels are too old: it has none of them then."""


class Known(Protocol):
    """What is known of a run's orders before any is read."""

    sequence: Sequence
    """Which samples each order holds."""
    fetcher: Fetcher
    """The dataset under its view."""
    num_classes: int
    """C, the number of the student's logits, unless a loss on another of its outputs asks for others there."""
    targets: Mapping[str, TargetSpec]
    """"TEACHER.OUTPUT" -> what it is, of all outputs of the run's teachers; its orders have those that losses use."""
    has_labels: bool
    """Whether a sample shows its true label."""
    label_classes: int
    """How many classes true labels have."""


class OrderSource(Known, Protocol):
    """Where a run's orders come from: a stream, or the dataset alone."""

    heads: Mapping[str, Head]
    """SHA-256 -> the last layer of a teacher, of those by which the targets of its orders are rebuilt."""
    too_old: int
    """Rows that it left out of the orders it gave, since their labels were too old."""

    def records(self) -> tuple[bytes, ...]:
        """Return the records that say what it reads, for a process that reads none: of a stream its manifest's and its
        teachers', of a dataset none."""

    @property
    def labelled_fraction(self) -> float:
        """Samples that show a label / all samples of the sequence; the first to ask may wait until they are counted."""

    def orders(self, cursor: Cursor) -> Generator[LabelledOrder]:
        """Yield the orders from the cursor's on, whole, in sequence, pass after pass, until the last pass ends.

        Called once, consumed and closed by one background thread. `close` from another thread ends a wait at once. The
        cursor's `place` saves a search; without it, or with one that another source gave, the same orders come.
        """

    def describe(self, like: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Return what it reads as JSON values: a run resumes only where this is equal.

        Content, neither places nor the kind of source: stream_id, manifest and teachers' hashes, fingerprints; no paths
        or addresses. `like` is a description to compare with: what an older algorithm made of the content is made by
        that one again.
        """

    def close(self) -> None:
        """Stop, from any thread, more than once if need be."""


class Reporter(Protocol):
    """Whoever tells others where the run stands. Its methods are called by the training thread and return at once."""

    def trained(self, cursor: Cursor) -> None:
        """Take note before each step, and after the last: the cursor is where the next one starts.

        Called again, with the same cursor, twice a second while a step's batch is waited for.

        May raise a DistillogError that has to end the run (two processes train one run); it ends with a checkpoint.
        """

    def checkpointed(self, cursor: Cursor) -> None:
        """Take note that a checkpoint with this cursor is on disk."""

    def state(self, state: str) -> None:
        """Take note of "training", "evaluating", "done", "stopped" or "failed"."""
