"""What sources of teachers' labels share, wherever those lie: orders, the zip of teachers, identity, hard labels.

N samples in an order, M rows that all teachers kept, P partitions.
"""

from __future__ import annotations

import hashlib
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from pipeline.identity import other_form
from pipeline.sequence import Sequence as OrderSequence
from pipeline.views.check import check_data
from schemas.codecs import SoftRows
from schemas.errors import ManifestMismatch
from schemas.head import Head
from schemas.heads import decode_heads
from schemas.hidden import with_head
from schemas.records import Lineage, Manifest, Publisher, Teacher
from schemas.teacher_output import CLASS_KINDS
from student_trainer.learning.targets import TargetSpec, specs_of_all, target_name
from student_trainer.run.spans import WHOLE_STREAM, refuse_uncovered
from student_trainer.sources.ages import Ages
from student_trainer.sources.base import Cursor, LabelledOrder
from student_trainer.sources.hard_labels import HardLabels
from student_trainer.sources.held import Held, Wait
from student_trainer.sources.ledger import Ledger
from student_trainer.sources.starvation import Starvation
from student_trainer.sources.stream_settings import StreamSettings

Place = dict[str, dict[str, list[int]]]


class OrderReader(Protocol):
    """What gives the soft targets of some teachers, order by order; used by one thread.

    Those of a teacher that does not count in an order are neither read there nor waited for.
    """

    def seek(self, sequence: int, offsets: Sequence[Sequence[int]]) -> None:
        """Go to an order; `offsets` are hints: per teacher, [P] log offsets at or before its records."""

    def next(self, sequence: int, on_wait: Callable[[Wait], None]) -> tuple[Held, ...] | None:
        """Return the soft targets of the next order, one per teacher that counts there, in the order of the teachers.

        Of proven identity; None when told to stop.
        """

    def close(self) -> None:
        """End what it began."""


class TeachersSource(ABC):
    """An `OrderSource` of a stream's labels, less the place where those lie.

    Whatever it gives is content: equal labels are equal orders, and their `place` is the log's. So a run may change at
    any checkpoint where it reads.

    Args:
        manifest: the stream's.
        lineages: of the teachers whose labels it reads, in the order in which they were asked for.
        settings: of the run.

    Raises:
        ManifestMismatch: the data or views here are not those of the manifest.
        ConfigError: a label budget that does not fit, or an order in which no teacher counts that is learned from.
        DataUnavailable: the dataset cannot be read now.
    """

    def __init__(self, manifest: Manifest, lineages: Sequence[Lineage], settings: StreamSettings) -> None:
        self.manifest = manifest
        self.teachers = tuple(lineage.teacher for lineage in lineages)
        """As their records say."""
        self.lineages: Mapping[str, Lineage] = {one.teacher.name: one for one in lineages}
        """By teacher, as they were known when the source was opened."""
        self.publishers: Mapping[str, Publisher] = {
            one.teacher.name: one.publisher for one in lineages if one.publisher is not None
        }
        """By teacher: who published for it when the source was opened."""
        self._ages = Ages(
            settings.max_ages, self.publishers, settings.publishes, bool(settings.publishes) and self.grows
        )
        self._by_name = {teacher.name: teacher for teacher in self.teachers}
        self._starve = settings.starve
        self._passes = settings.passes
        self.sequence = OrderSequence.of(manifest)
        self.fetcher = check_data(manifest, settings.dataset or None, settings.loaders, settings.loader_processes)
        self.targets: Mapping[str, TargetSpec] = specs_of_all(self.teachers, manifest.codec)
        """All outputs of these teachers."""
        self._read = settings.chosen(self.targets)
        read = {name.partition(".")[0] for name in self._read} or set(self._by_name)
        spans = {name: settings.spans.get(name, WHOLE_STREAM) for name in self._by_name}
        refuse_uncovered({name: span for name, span in spans.items() if name in read}, self.sequence.num_orders)
        self._head_of = {
            target_name(teacher.name, one.name): one.head_sha256
            for teacher in self.teachers
            for one in teacher.outputs
            if one.head_sha256 is not None
        }
        self.label_classes = manifest.num_classes or self.fetcher.dataset.num_classes
        self.num_classes = self._num_classes()
        self.label_classes = self.label_classes or self.num_classes or settings.classes
        limit = self.label_classes if settings.check_labels else None
        self._labels = HardLabels.of(self.fetcher.dataset, settings.labelled, settings.label_seed, limit)
        self.has_labels = self._labels.any
        self._stop = threading.Event()
        self._rows_left_out = 0
        self.too_old = 0
        """Rows that it left out of the orders it gave, since their labels were too old."""
        self.left_out: Cursor | None = None
        """Behind the last order that gave no rows for that, of those that others of its pass come behind."""
        # Last: what is refused before need not wait for it.
        self.heads: Mapping[str, Head] = self._read_heads()
        """SHA-256 -> the last layer, of those that losses need."""

    grows = False
    """Whether somebody may write what it reads yet."""

    @abstractmethod
    def ledger(self, teacher: str) -> Ledger:
        """Return where the generations of a teacher are written down, of any of the stream's.

        Raises:
            StreamNotFound: there is no such teacher.
        """

    @abstractmethod
    def _layers(self, teacher: Teacher) -> Mapping[str, bytes]:
        """Return SHA-256 -> bytes of the last layers that a teacher's labels need; they have these sums."""

    def _read_heads(self) -> dict[str, Head]:
        needed = {self._head_of[name] for name in self._read if name in self._head_of}
        found: dict[str, Head] = {}
        for teacher in self.teachers:
            if needed & set(teacher.heads):
                there = self._layers(teacher)
                found |= decode_heads(teacher, {sha256: there[sha256] for sha256 in needed & set(there)})
        return found

    @abstractmethod
    def _open_reader(self) -> OrderReader:
        """Return what reads the labels; called once, by the thread that uses it."""

    def records(self) -> tuple[bytes, ...]:
        """Return the records of the manifest and of the teachers."""
        return self.manifest.encode(), *(teacher.encode() for teacher in self.teachers)

    def replay_of(self) -> list[dict[str, str]]:
        """Return which streams these labels were copied from, the nearest first; []: they are the stream's own."""
        return [{"stream": one.stream, "stream_id": one.stream_id} for one in self.manifest.replay_of]

    @property
    def labelled_fraction(self) -> float:
        """Samples that show a label / all samples."""
        return self._labels.fraction

    def orders(self, cursor: Cursor) -> Generator[LabelledOrder]:
        """Yield every order from the cursor's on, pass after pass, as the labels come.

        Raises:
            Starved: no label for `[starve] timeout` seconds, or none was captured.
            ManifestMismatch: a record, or a sample here, is not what the manifest says.
            DistillogError: as its reader.
        """
        self._ages.wait(lambda teacher: self.ledger(teacher).lineage(), self._stop, self._starve)
        reader = self._open_reader()
        try:
            starvation = Starvation(self._starve, self.manifest.stream, self._said)
            sequence, last = cursor.sequence, self.sequence.num_orders - 1
            offsets = self._offsets(cursor.place)
            places = {name: place for place, name in enumerate(self._by_name)}
            reader.seek(sequence, offsets)
            for pass_number in range(cursor.pass_number, self._passes):
                for number in range(sequence, last + 1):
                    held = reader.next(number, starvation)
                    if held is None:
                        return
                    for each in held:
                        offsets[places[each.value.teacher]][self.sequence.partition(number)] = each.next_offset
                    yield self._labelled(pass_number, held, self._place(offsets) if number < last else None)
                sequence, offsets = 0, self._offsets(None)
                if pass_number + 1 < self._passes:
                    reader.seek(sequence, offsets)
        finally:
            reader.close()

    def _place(self, offsets: list[list[int]]) -> Place:
        """Per teacher and partition: the log offset behind the last record that is not needed any more."""
        return {"offsets": {each.name: starts.copy() for each, starts in zip(self.teachers, offsets, strict=True)}}

    def _offsets(self, place: Any) -> list[list[int]]:
        """Undo `_place`; what it did not make, or for other teachers, says nothing: then all are 0."""
        found = place.get("offsets") if isinstance(place, dict) else None
        found = found if isinstance(found, dict) else {}
        partitions = self.manifest.partitions
        starts = [found.get(teacher.name) for teacher in self.teachers]
        return [
            list(each) if isinstance(each, list) and len(each) == partitions else [0] * partitions for each in starts
        ]

    def describe(self, like: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Return which stream and teachers, by content; `like` changes nothing here."""
        manifest = self.manifest
        return {
            "stream": manifest.stream,
            "stream_id": manifest.stream_id,
            "manifest_sha256": hashlib.sha256(manifest.encode()).hexdigest(),
            "view": asdict(manifest.view),
            "teachers": {teacher.name: teacher.sha256 for teacher in self.teachers},
        }

    def close(self) -> None:
        """End `orders`, and its waits for labels and storage."""
        self._stop.set()

    def _num_classes(self) -> int:
        """C of the student: of the teachers' classes that its first loss against some is against; of maps, the data's.

        Losses on other outputs of the student's may be against other classes: `fit` holds each against its own.
        """
        of_classes = [name for name in self._read if self.targets[name].kind in CLASS_KINDS]
        of_classes = [name for name in of_classes if self.targets[name].default] or of_classes
        whole = [self.targets[name].shape[-1] for name in of_classes if not self.targets[name].classes]
        if of_classes and (first := self.targets[of_classes[0]]).classes:
            beyond = max(first.classes) + 1
            if len(first.whole) > 1:  # of positions or places, whose classes need not be those of labels
                whole.append(beyond)
            elif self.label_classes:
                whole.insert(0, max(self.label_classes, beyond))
        return next(iter(whole), self.label_classes)

    def _labelled(self, pass_number: int, held: Sequence[Held], place: Place | None) -> LabelledOrder:
        first = held[0].value
        targets = {name: rows for each in held for name, rows in self._values(each).items()}
        kept = [_kept_rows(each) for each in held]
        rows = kept[0]
        for other in kept[1:]:
            rows = np.intersect1d(rows, other, assume_unique=True)
        self._rows_left_out += len(first.sample_ids) - len(rows)
        addresses = ", ".join(each.address for each in held)
        generations = {each.value.teacher: each.value.generation for each in held}
        if self._ages.too_old(each.value for each in held):
            self.too_old += len(rows)
            if first.sequence + 1 < self.sequence.num_orders:
                self.left_out = Cursor(pass_number, first.sequence + 1, 0)
            ids, seed = first.sample_ids[:0], first.view_seed
            order = LabelledOrder(pass_number, first.sequence, seed, ids, ids, {}, place, addresses, generations)
            return replace(order, too_old=len(rows))
        for each, own in zip(held, kept, strict=True):
            if len(own) != len(rows):  # a row that one teacher could not decode is no row of the zip
                places = np.searchsorted(own, rows)
                targets |= {name: targets[name].take(places) for name in targets if _is_of(name, each)}
        sample_ids = first.sample_ids[rows]
        labels = self._labels.read(sample_ids, self._stop)
        targets |= self._labels.of_partners(self.fetcher, sample_ids, first.view_seed, self._stop)
        return LabelledOrder(
            pass_number, first.sequence, first.view_seed, sample_ids, labels, targets, place, addresses, generations
        )

    def _said(self) -> str:
        rows = f"{self.too_old:,} rows were left out so far, since their labels were older than max_age"
        return f"; {rows}: look what workers say of new generations" if self.too_old else ""

    def _values(self, held: Held) -> dict[str, SoftRows]:
        """Return what losses are against, by name.

        Raises:
            ManifestMismatch: the record has other outputs than its teacher's record says.
        """
        teacher = self._by_name[held.value.teacher]
        if problem := other_form(teacher, self.manifest.codec, held.value):
            raise ManifestMismatch(f"{held.address}: {problem}; it is not trained on")
        values = {target_name(teacher.name, output.name): output for output in held.value.outputs}
        return {name: self._whole(name, output.values()) for name, output in values.items() if name in self._read}

    def _whole(self, name: str, rows: SoftRows) -> SoftRows:
        """Return rows with the last layer that they need, if they need one."""
        return with_head(rows, self.heads[self._head_of[name]]) if name in self._head_of else rows


def _is_of(name: str, held: Held) -> bool:
    return name.partition(".")[0] == held.value.teacher


def _kept_rows(held: Held) -> NDArray[np.int64]:
    """[M] int64"""
    kept = held.value.kept_rows
    return np.arange(len(held.value.sample_ids)) if kept is None else kept
