"""The seam between reading and training: what an order source gives, and what a run tells while it trains.

Letters: M kept rows of an order, P partitions.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from pipeline.sequence import Sequence
    from pipeline.views.fetch import Fetcher
    from schemas.codecs import SoftRows

BRING_BACK = "bring it back and resume the run"
"""What to do about storage that is away once a run has begun: it stays, while a start that fails leaves nothing."""


@dataclass(frozen=True, slots=True)
class Cursor:
    """The next row to train on, and where in the logs its record is looked for."""

    pass_number: int
    """How often the stream was gone over before, from 0."""
    sequence: int
    """The order that the next row is of."""
    row: int
    """Its place among the order's kept rows, from 0."""
    offsets: tuple[tuple[int, ...], ...] = ()
    """Per teacher and partition: the log offset after the last record that was trained on to its end, 0 at the start
    of a pass. Never a read-ahead position: what lies between was not trained on. () without teachers."""

    @classmethod
    def start(cls, num_teachers: int = 0, partitions: int = 0) -> Cursor:
        """Return the cursor of a run that has not begun."""
        return cls(0, 0, 0, ((0,) * partitions,) * num_teachers)

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {
            "pass_number": self.pass_number,
            "sequence": self.sequence,
            "row": self.row,
            "offsets": [list(each) for each in self.offsets],
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Cursor:
        """Undo `as_dict`."""
        offsets = tuple(tuple(int(offset) for offset in each) for each in values["offsets"])
        return cls(int(values["pass_number"]), int(values["sequence"]), int(values["row"]), offsets)


@dataclass(frozen=True, slots=True, eq=False)
class ReadyOrder:
    """An order whose samples were fetched and whose labels, of every teacher, lie ready."""

    pass_number: int
    sequence: int
    sample_ids: NDArray[np.int64]
    """[M] int64."""
    inputs: dict[str, NDArray[Any]]
    """Field -> [M, ...]."""
    labels: NDArray[np.int64]
    """[M] int64 true labels; -1 = unlabelled, or outside the run's label budget."""
    targets: tuple[SoftRows, ...]
    """One per teacher, of M rows, in the order of [[teachers]]; () for source = "dataset"."""
    next_offsets: tuple[int, ...]
    """Per teacher: the log offset after this order's record; () for source = "dataset"."""


class OrderSource(Protocol):
    """Where a run's orders come from: a stream, or the dataset alone."""

    sequence: Sequence
    """Which samples each order holds."""
    fetcher: Fetcher
    """The dataset under its view."""
    num_classes: int
    """C, the number of the student's logits."""
    num_teachers: int
    available: frozenset[str]
    """What losses may need of it: "teacher" (soft targets), "dense", "logits" (true ones), "labels"."""
    temperatures: tuple[float, ...] | None
    """The temperatures that the targets hold the tail mass of; None: any will do."""

    @property
    def labelled_fraction(self) -> float:
        """Samples that show a label / all samples of the sequence; the first to ask may wait until they are counted."""

    def orders(self, cursor: Cursor) -> Iterator[ReadyOrder]:
        """Yield the orders from the cursor's on, whole, in sequence, pass after pass, until the last pass ends.

        Called once, and consumed by one background thread. `close` from another thread ends a wait at once.
        """

    def describe(self, like: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Return what it reads as JSON values: a run resumes only where this is equal.

        Content, not places: stream_id, manifest and teachers' hashes, fingerprints; no paths or addresses. `like` is
        a description to compare with: what an older algorithm made of the content is made by that one again.
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
