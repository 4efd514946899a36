"""One partition of a teacher's soft targets, as the reader of a stream holds it."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from kafka import TopicPartition

from pipeline.names import log_name, soft_targets_topic
from pipeline.readers_rule import Look, ReadersRule, TeacherPartition
from schemas.errors import LogTrimmed
from schemas.records import Manifest
from student_trainer.sources.held import Held


@dataclass(frozen=True, slots=True)
class Trimmed:
    """What retention had removed of a log when a reader's place was not in it any more."""

    sought: int
    """the offset to read on from"""
    begin: int
    """of what was left"""
    end: int


class PartitionLog:
    """One partition of one teacher's soft targets."""

    __slots__ = ("_unseen", "held", "partition", "rule", "teacher", "trimmed")

    def __init__(self, teacher: str, partition: TopicPartition, rule: ReadersRule) -> None:
        self.teacher = teacher
        self.partition = partition
        self.rule = rule
        self.held: deque[Held] = deque()
        self.trimmed: Trimmed | None = None
        """Until the record that is looked for was found in what is left."""
        self._unseen = -1
        """The offset where a record cannot lie before, though the log may not reach so far yet; -1: it does."""

    @classmethod
    def at(cls, manifest: Manifest, teacher: str, number: int, expected: int, offset: int, late: bool) -> PartitionLog:
        """Return one to be read from an order on, which lies at or behind an offset; of a late teacher it may come."""
        partition = TopicPartition(soft_targets_topic(manifest.stream, teacher), number)
        least = max(offset, (expected - number) // manifest.partitions)
        made = cls(teacher, partition, ReadersRule(expected, least, manifest.partitions))
        made._unseen = least if late and not offset else -1
        return made

    def waits_at(self, end: int) -> bool:
        """Read on at the log's end, where it does not reach yet to what nobody has read of it; else False."""
        if self.rule.position != self._unseen:
            return False
        self.rule.position = self._unseen = end
        return True

    def found_again(self, begin: int, end: int) -> int | None:
        """Return where to read on in a log whose bounds are these, where its place is out of them; None: it is not.

        Raises:
            LogTrimmed: the log ends before it.
        """
        sought = self.rule.position
        if sought > end:
            if self.waits_at(end):
                return end
            raise LogTrimmed(
                f"{log_name(self.partition)}: the run reads on at offset {sought}, but the log ends at {end}: Kafka "
                "lost records (unclean leader election?), or the checkpoint is of another cluster"
            )
        if sought >= begin:
            return None
        # What was removed may have been repetitions: what is left says whether it was needed.
        self.trimmed = Trimmed(sought, begin, end)
        self.rule.skip_to(begin)
        return begin

    def refuse_trimmed(self, position: int) -> None:
        """Raise LogTrimmed where what is left of a trimmed log was read to its end then, without what is needed.

        `position` is what is read next.
        """
        if self.held:
            self.trimmed = None
        if self.trimmed is None:
            return
        self.rule.skip_to(position)
        if self.rule.position >= self.trimmed.end:
            raise LogTrimmed(
                f"{log_name(self.partition)}: the run reads on at offset {self.trimmed.sought}, but retention removed "
                f"all records below {self.trimmed.begin}, sequence {self.rule.expected} among them; train from the "
                "start on a new stream, or with a longer --retention-hours"
            )

    def gap_text(self, stream: str, look: Look) -> str:
        """Return what is said of the record that is expected, where it is proven missing by a look."""
        topic, number, expected = self.partition.topic, self.partition.partition, self.rule.expected
        return (
            f"{topic}/{number}: sequence {expected} of teacher {self.teacher!r} is missing: its group committed past "
            f"it (next {look.next_sequence}), and the log was read to its end (offset {look.end}) without it; stop the "
            f"teacher's workers and run `distillog topics rewind {stream} {self.teacher} {expected}`"
        )

    @property
    def teacher_partition(self) -> TeacherPartition:
        """Teacher and partition."""
        return self.teacher, self.partition.partition
