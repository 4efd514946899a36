"""The generations of a stream's teacher, in the manifest's topic."""

from __future__ import annotations

from pipeline.generations import claim_teacher, publish_generation, refuse_unmovable
from pipeline.kafka.settings import KafkaSettings
from pipeline.streams import Stream, open_stream
from schemas.errors import StreamChanged, StreamConflict
from schemas.records import Generation, Lineage, Publisher


class StreamLedger:
    """A `Ledger` of one teacher."""

    writes = True

    def __init__(self, kafka: KafkaSettings, stream: Stream, teacher: str) -> None:
        self._kafka = kafka
        self._stream = stream
        self._teacher = teacher

    def lineage(self) -> Lineage:
        """Return the teacher with what is there by now.

        Raises:
            StreamNotFound: the stream has no such teacher.
            StreamChanged: it was deleted and made again.
            BrokerUnavailable, NotAuthorized: as `open_stream`.
        """
        stream = open_stream(self._kafka, self._stream.manifest.stream)
        if stream.manifest.stream_id != self._stream.manifest.stream_id:
            name = self._stream.manifest.stream
            raise StreamChanged(f"stream {name!r} was deleted and made again while this run used it; start anew")
        return stream.lineage(self._teacher)

    def refuse_unmovable(self) -> None:
        """Raise ConfigError where the teacher cannot have generations."""
        refuse_unmovable(self._stream, self._teacher)

    def claim(self, publisher: Publisher) -> Lineage:
        """Write who publishes for the teacher, unless somebody does; raises as `claim_teacher`, but for other runs."""
        try:
            return claim_teacher(self._kafka, self._stream, publisher)
        except StreamConflict:
            there = self.lineage()
            if there.publisher is None or there.publisher.run_id == publisher.run_id:
                raise
            return there

    def publish(self, generation: Generation) -> None:
        """Write the next generation; raises as `publish_generation`."""
        publish_generation(self._kafka, self._stream, generation)
