"""The orders of one epoch whose soft targets lie in memory, as records: to compare what is stored, without a stream."""

from __future__ import annotations

import threading
from collections.abc import Generator, Mapping, Sequence
from dataclasses import asdict
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.sequence import Sequence as OrderSequence
from pipeline.views.fetch import Fetcher
from schemas.codecs import CodecSpec, SoftRows
from schemas.head import Head
from schemas.hidden import with_head
from schemas.records import Output, SoftTargets, Teacher
from student_trainer.learning.targets import TargetSpec, specs_of_all, target_name
from student_trainer.sources.base import Cursor, LabelledOrder
from student_trainer.sources.hard_labels import HardLabels


class MemorySource:
    """An `OrderSource` over records of soft targets, decoded order by order as a reader does it.

    Args:
        fetcher: the dataset under its view.
        sequence: of one epoch, whose orders the records are of.
        teacher: whose records they are; each of its outputs names its codec.
        records: of all orders.
        read: names of the outputs that losses are against.
        passes: how often the epoch is gone over.
        heads: SHA-256 of a last layer that the labels need -> itself.
    """

    too_old = 0

    def __init__(
        self,
        fetcher: Fetcher,
        sequence: OrderSequence,
        teacher: Teacher,
        records: Sequence[bytes],
        read: Sequence[str],
        passes: int,
        heads: Mapping[str, Head] = MappingProxyType({}),
    ) -> None:
        self.heads = heads
        self._head_of = {one.name: heads[one.head_sha256] for one in teacher.outputs if one.head_sha256}
        self.fetcher, self.sequence = fetcher, sequence
        self.targets: Mapping[str, TargetSpec] = specs_of_all((teacher,), CodecSpec("float32"))
        self._teacher, self._records, self._read, self._passes = teacher, records, frozenset(read), passes
        self._labels = HardLabels.of(fetcher.dataset, None, 0)
        self.has_labels = self._labels.any
        self.label_classes = fetcher.dataset.num_classes
        first = teacher.outputs[0]
        beyond = max(first.classes) + 1 if first.classes else first.num_classes
        self.num_classes = max(self.label_classes, beyond) if first.classes else beyond
        self.label_classes = self.label_classes or self.num_classes
        self._closed = threading.Event()

    def records(self) -> tuple[bytes, ...]:
        """Return none: no other process reads it."""
        return ()

    @property
    def labelled_fraction(self) -> float:
        """Samples that show a label / all samples."""
        return self._labels.fraction

    def orders(self, cursor: Cursor) -> Generator[LabelledOrder]:
        """Yield every order from the cursor's on, pass after pass."""
        first = cursor.sequence
        for pass_number in range(cursor.pass_number, self._passes):
            for number in range(first, self.sequence.num_orders):
                if self._closed.is_set():
                    return
                yield self._labelled(pass_number, SoftTargets.decode(self._records[number], f"order {number}"))
            first = 0

    def _labelled(self, pass_number: int, value: SoftTargets) -> LabelledOrder:
        ids: NDArray[np.int64] = value.kept_sample_ids
        targets: dict[str, SoftRows] = {
            target_name(self._teacher.name, output.name): self._whole(output)
            for output in value.outputs
            if output.name in self._read
        }
        labels = self._labels.read(ids, self._closed)
        targets |= self._labels.of_partners(self.fetcher, ids, value.view_seed, self._closed)
        return LabelledOrder(pass_number, value.sequence, value.view_seed, ids, labels, targets)

    def _whole(self, output: Output) -> SoftRows:
        rows = output.values()
        return with_head(rows, self._head_of[output.name]) if output.name in self._head_of else rows

    def describe(self, like: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Return what it is of; such a run is not resumed."""
        return {"view": asdict(self.fetcher.view), "teachers": {self._teacher.name: self._teacher.sha256}}

    def close(self) -> None:
        """End `orders`."""
        self._closed.set()
