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
from schemas.codecs import SoftRows
from schemas.errors import ConfigError, ManifestMismatch
from student_trainer.learning.losses import need_labels
from student_trainer.learning.targets import OUTPUT, target_name
from student_trainer.run.settings import RunSettings
from student_trainer.sources.base import Cursor, LabelledOrder
from student_trainer.sources.hard_labels import HardLabels
from student_trainer.sources.held import Held
from student_trainer.sources.reader import SoftTargetReader
from student_trainer.sources.starvation import Starvation

log = logging.getLogger(__name__)

Place = dict[str, dict[str, list[int]]]
_STARVING = 1.0
"""Seconds of a wait from which on the run counts as starving."""


class StreamSource:
    """An `OrderSource` over a stream.

    Raises:
        StreamNotFound: no such stream, or no such teacher in it.
        ManifestMismatch: the data or views here are not those of the manifest.
        ConfigError: teachers with unequal classes, or a label budget that does not fit.
        DataUnavailable: the dataset cannot be read now.
        BrokerUnavailable: no answer from Kafka.
    """

    def __init__(self, kafka: KafkaSettings, settings: RunSettings) -> None:
        self._kafka = kafka
        self._starve = settings.starve
        self._passes = settings.train.passes
        self.stream = open_stream(kafka, settings.data.stream)
        """As its manifest topic describes it."""
        manifest = self.stream.manifest
        self.teachers = tuple(self.stream.teacher(each.name) for each in settings.teachers)
        """In the order of [[teachers]]."""
        self.sequence = OrderSequence.of(manifest)
        self.fetcher = check_data(manifest, settings.data.dataset or None, settings.train.loaders)
        self.num_classes = self.teachers[0].output(OUTPUT).num_classes
        for teacher in self.teachers:
            if teacher.output(OUTPUT).num_classes != self.num_classes:
                raise ConfigError(
                    f"[[teachers]] {self.teachers[0].name!r} has {self.num_classes} classes, {teacher.name!r} has "
                    f"{teacher.output(OUTPUT).num_classes}: one student cannot learn from both"
                )
        self._labels = HardLabels.of(self.fetcher.dataset, settings.data.labelled, settings.data.label_seed)
        self.available = self._available()
        topk = manifest.codec.name == "topk"
        self.temperatures: tuple[float, ...] | None = tuple(manifest.codec.temperatures) if topk else None
        self._need_labels = need_labels(settings)
        self._stop = threading.Event()
        self._reader: SoftTargetReader | None = None
        self._rows_left_out = 0

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

    def _available(self) -> frozenset[str]:
        available = {"teacher"}
        if self.stream.manifest.codec.name != "topk":
            available.add("dense")
        if all(teacher.output(OUTPUT).kind == "logits" for teacher in self.teachers):
            available.add("logits")
        if self._labels.any:
            available.add("labels")
        return frozenset(available)

    def _labelled(self, pass_number: int, held: Sequence[Held], place: Place | None) -> LabelledOrder:
        first = held[0].value
        targets = [self._values(each) for each in held]
        kept = [_kept_rows(each) for each in held]
        rows = kept[0]
        for other in kept[1:]:
            rows = np.intersect1d(rows, other, assume_unique=True)
        self._rows_left_out += len(first.sample_ids) - len(rows)
        if any(len(each) != len(rows) for each in kept):
            # A row that one teacher could not decode is no row of the zip.
            targets = [target.take(np.searchsorted(each, rows)) for target, each in zip(targets, kept, strict=True)]
        sample_ids = first.sample_ids[rows]
        labels = self._labels.read(sample_ids, self._stop)
        if self._need_labels and labels.max(initial=-1) >= self.num_classes:
            row = int(labels.argmax())
            raise ConfigError(
                f"dataset {self.fetcher.dataset.uri}: sample {sample_ids[row]} has label {labels[row]}, the teacher "
                f"gives {self.num_classes} classes; number the classes as the teacher does, or take no loss on labels"
            )
        named = {target_name(teacher.name): each for teacher, each in zip(self.teachers, targets, strict=True)}
        return LabelledOrder(
            pass_number, first.sequence, first.view_seed, sample_ids, labels, named, place, held[0].address
        )

    def _values(self, held: Held) -> SoftRows:
        output = held.value.output(OUTPUT)
        declared = self.stream.teacher(held.value.teacher).output(OUTPUT)
        codec = declared.stored_as(self.stream.manifest.codec)
        if (output.codec, output.num_classes, output.row_shape) != (
            codec.name,
            declared.num_classes,
            declared.stored_shape,
        ):
            raise ManifestMismatch(
                f"{held.address}: {output.num_classes} classes as {output.codec}, the manifest says "
                f"{declared.num_classes} as {codec}; it is not trained on"
            )
        values = output.values()
        if values.temperatures is not None and not set(codec.temperatures) <= set(values.temperatures):
            raise ManifestMismatch(f"{held.address}: tails of {values.temperatures}, the manifest says {codec}")
        return values


def _kept_rows(held: Held) -> NDArray[np.int64]:
    """[M] int64"""
    kept = held.value.kept_rows
    return np.arange(len(held.value.sample_ids)) if kept is None else kept
