"""source = "stream": the orders of a stream, with the soft targets of its teachers, as they are being written.

N samples in an order, M rows that all teachers kept, P partitions.
"""

from __future__ import annotations

from collections.abc import Mapping

from pipeline.heads import read_heads
from pipeline.kafka.cluster import KafkaCluster
from pipeline.kafka.settings import KafkaSettings
from pipeline.streams import open_stream
from schemas.records import Teacher
from student_trainer.sources.reader import SoftTargetReader
from student_trainer.sources.stream_ledger import StreamLedger
from student_trainer.sources.stream_settings import StreamSettings
from student_trainer.sources.teachers import TeachersSource

_STARVING = 1.0
"""Seconds of a wait from which on the run counts as starving."""


class StreamSource(TeachersSource):
    """An `OrderSource` over a stream.

    Its `orders` raise, beside what all such sources do, SequenceGap, LogTrimmed, StreamChanged, DataUnavailable and
    BrokerUnavailable as `SoftTargetReader`.

    Raises:
        StreamNotFound: no such stream, or no such teacher in it.
        BrokerUnavailable: no answer from Kafka.
        ManifestMismatch, ConfigError, DataUnavailable: as `TeachersSource`.
    """

    grows = True

    def __init__(self, kafka: KafkaSettings, settings: StreamSettings) -> None:
        self._kafka = kafka
        self.stream = open_stream(kafka, settings.stream)
        """As its manifest topic describes it."""
        self._reader: SoftTargetReader | None = None
        self._spans = settings.spans
        super().__init__(self.stream.manifest, [self.stream.lineage(name) for name in settings.teachers], settings)

    def ledger(self, teacher: str) -> StreamLedger:
        """Return where the generations of a teacher are written down: the manifest's topic."""
        self.stream.teacher(teacher)
        return StreamLedger(self._kafka, self.stream, teacher)

    def _layers(self, teacher: Teacher) -> Mapping[str, bytes]:
        return read_heads(KafkaCluster(self._kafka, self._stop.is_set), self.manifest, teacher)

    def _open_reader(self) -> SoftTargetReader:
        names = [teacher.name for teacher in self.teachers]
        cluster = KafkaCluster(self._kafka)
        self._reader = SoftTargetReader(cluster, self.stream, names, self._stop, spans=self._spans)
        return self._reader

    @property
    def starving(self) -> bool:
        """Whether the next label is missing for more than a second now; may be asked by any thread."""
        return self._reader is not None and self._reader.waiting > _STARVING

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
