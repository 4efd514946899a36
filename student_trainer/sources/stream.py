"""source = "stream": the orders of a stream, with the soft targets of its teachers, as they are being written.

N samples in an order, M rows that all teachers kept, P partitions.
"""

from __future__ import annotations

import hashlib
import logging
import threading
from collections.abc import Generator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.kafka.cluster import KafkaCluster
from pipeline.kafka.settings import KafkaSettings
from pipeline.sequence import Sequence as OrderSequence
from pipeline.streams import open_stream
from pipeline.views.check import check_data
from schemas.codecs import CODECS, SoftRows
from schemas.errors import ConfigError, ManifestMismatch
from schemas.teacher_output import CLASS_KINDS
from student_trainer.learning.targets import TargetSpec, specs_of_all, target_name
from student_trainer.sources.base import Cursor, LabelledOrder
from student_trainer.sources.hard_labels import HardLabels
from student_trainer.sources.held import Held
from student_trainer.sources.reader import SoftTargetReader
from student_trainer.sources.starvation import Starvation
from student_trainer.sources.stream_settings import StreamSettings

log = logging.getLogger(__name__)

Place = dict[str, dict[str, list[int]]]
_STARVING = 1.0
"""Seconds of a wait from which on the run counts as starving."""


class StreamSource:
    """An `OrderSource` over a stream.

    Raises:
        StreamNotFound: no such stream, or no such teacher in it.
        ManifestMismatch: the data or views here are not those of the manifest.
        ConfigError: a label budget that does not fit.
        DataUnavailable: the dataset cannot be read now.
        BrokerUnavailable: no answer from Kafka.
    """

    def __init__(self, kafka: KafkaSettings, settings: StreamSettings) -> None:
        self._kafka = kafka
        self._starve = settings.starve
        self._passes = settings.passes
        self.stream = open_stream(kafka, settings.stream)
        """As its manifest topic describes it."""
        manifest = self.stream.manifest
        self.teachers = tuple(self.stream.teacher(name) for name in settings.teachers)
        """In the order in which they were asked for."""
        self.sequence = OrderSequence.of(manifest)
        self.fetcher = check_data(manifest, settings.dataset or None, settings.loaders, settings.loader_processes)
        self.targets: Mapping[str, TargetSpec] = specs_of_all(self.teachers, manifest.codec)
        """All outputs of these teachers."""
        self._read = settings.chosen(self.targets)
        self.label_classes = self.stream.manifest.num_classes or self.fetcher.dataset.num_classes
        self.num_classes = self._num_classes()
        self.label_classes = self.label_classes or self.num_classes or settings.classes
        self._labels = HardLabels.of(self.fetcher.dataset, settings.labelled, settings.label_seed)
        self.has_labels = self._labels.any
        self._check_labels = settings.check_labels
        self._stop = threading.Event()
        self._reader: SoftTargetReader | None = None
        self._rows_left_out = 0

    def records(self) -> tuple[bytes, ...]:
        """Return the records of the manifest and of the teachers."""
        return self.stream.manifest.encode(), *(teacher.encode() for teacher in self.teachers)

    @property
    def labelled_fraction(self) -> float:
        """Samples that show a label / all samples."""
        return self._labels.fraction

    @property
    def starving(self) -> bool:
        """Whether the next label is missing for more than a second now; may be asked by any thread."""
        return self._reader is not None and self._reader.waiting > _STARVING

    def orders(self, cursor: Cursor) -> Generator[LabelledOrder]:
        """Yield every order from the cursor's on, pass after pass, as the labels come.

        Raises:
            Starved: no label for `[starve] timeout` seconds.
            ManifestMismatch: a record, or a sample here, is not what the manifest says.
            SequenceGap, LogTrimmed, StreamChanged, DataUnavailable, BrokerUnavailable: as `SoftTargetReader`.
        """
        names = [teacher.name for teacher in self.teachers]
        reader = self._reader = SoftTargetReader(KafkaCluster(self._kafka), self.stream, names, self._stop)
        try:
            starvation = Starvation(self._starve, self.stream.manifest.stream)
            sequence, last = cursor.sequence, self.sequence.num_orders - 1
            offsets = self._offsets(cursor.place)
            reader.seek(sequence, offsets)
            for pass_number in range(cursor.pass_number, self._passes):
                for number in range(sequence, last + 1):
                    held = reader.next(number, starvation)
                    if held is None:
                        return
                    for each, starts in zip(held, offsets, strict=True):
                        starts[self.sequence.partition(number)] = each.next_offset
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
        partitions = self.stream.manifest.partitions
        starts = [found.get(teacher.name) for teacher in self.teachers]
        return [
            list(each) if isinstance(each, list) and len(each) == partitions else [0] * partitions for each in starts
        ]

    def describe(self, like: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Return which stream and teachers, by content; `like` changes nothing here."""
        manifest = self.stream.manifest
        return {
            "stream": manifest.stream,
            "stream_id": manifest.stream_id,
            "manifest_sha256": hashlib.sha256(manifest.encode()).hexdigest(),
            "view": asdict(manifest.view),
            "teachers": {teacher.name: teacher.sha256 for teacher in self.teachers},
        }

    def statistics(self) -> dict[str, float]:
        """Return what was counted so far: records, those dropped by reason, rows left out, seconds waited."""
        reader = self._reader
        if reader is None:
            return {}
        return {
            "records": reader.num_records,
            "duplicates": reader.num_duplicates,
            "early": reader.num_early,
            "foreign": reader.num_foreign,
            "undecodable": reader.num_undecodable,
            "rows_left_out": self._rows_left_out,
            "waited_s": reader.waited + reader.waiting,
            "longest_wait_s": max(reader.longest_wait, reader.waiting),
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
        for each, own in zip(held, kept, strict=True):
            if len(own) != len(rows):  # a row that one teacher could not decode is no row of the zip
                places = np.searchsorted(own, rows)
                targets |= {name: targets[name].take(places) for name in targets if _is_of(name, each)}
        sample_ids = first.sample_ids[rows]
        labels = self._labels.read(sample_ids, self._stop)
        if self._check_labels and labels.max(initial=-1) >= self.label_classes:
            row = int(labels.argmax())
            raise ConfigError(
                f"dataset {self.fetcher.dataset.uri}: sample {sample_ids[row]} has label {labels[row]}, but there are "
                f"{self.label_classes} classes, from 0 on; number the classes so, or take no loss on labels"
            )
        addresses = ", ".join(each.address for each in held)
        return LabelledOrder(
            pass_number, first.sequence, first.view_seed, sample_ids, labels, targets, place, addresses
        )

    def _values(self, held: Held) -> dict[str, SoftRows]:
        """Return what losses are against, by name.

        Raises:
            ManifestMismatch: the record has other outputs than its teacher's record says.
        """
        name, codec = held.value.teacher, self.stream.manifest.codec
        there = [
            (each.name, each.codec, each.num_classes, each.row_shape, each.chosen is not None)
            for each in held.value.outputs
        ]
        declared = [
            (
                each.name,
                each.stored_as(codec).name,
                each.codec_classes,
                each.stored_shape,
                bool(each.positions),
            )
            for each in self.stream.teacher(name).outputs
        ]
        if there != declared:
            raise ManifestMismatch(
                f"{held.address}: {_shown(there)}; the record of teacher {name!r} says {_shown(declared)}; it is not "
                "trained on"
            )
        found = {}
        for output in held.value.outputs:
            target = target_name(name, output.name)
            if target not in self._read:
                continue
            rows, spec = output.values(), self.targets[target]
            # Of another k, or of more temperatures, a row has another size: it would be spread over a batch's columns.
            if not CODECS[spec.codec.name].is_of(output.columns, spec.codec):
                raise ManifestMismatch(
                    f"{held.address}: its columns are of other settings, {target} is stored as {spec.codec}; it is "
                    "not trained on"
                )
            found[target] = rows
        return found


def _is_of(name: str, held: Held) -> bool:
    return name.partition(".")[0] == held.value.teacher


def _shown(outputs: Sequence[tuple[str, str, int, tuple[int, ...], bool]]) -> str:
    """Name, codec, classes and shape of outputs, and whether they are of positions, as text."""
    texts = []
    for name, codec, num_classes, shape, of_positions in outputs:
        what = f"{num_classes} classes as {codec}" if num_classes else f"features as {codec}"
        texts.append(f"{name} of {what}, rows of {list(shape)}" + (", of positions" if of_positions else ""))
    return ", ".join(texts) or "no output"


def _kept_rows(held: Held) -> NDArray[np.int64]:
    """[M] int64"""
    kept = held.value.kept_rows
    return np.arange(len(held.value.sample_ids)) if kept is None else kept
