"""One partition of a teacher's soft targets, as the reader of a stream holds it."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from kafka import TopicPartition

from pipeline.readers_rule import ReadersRule, TeacherPartition
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

    __slots__ = ("held", "partition", "rule", "teacher", "trimmed")

    def __init__(self, teacher: str, partition: TopicPartition, rule: ReadersRule) -> None:
        self.teacher = teacher
        self.partition = partition
        self.rule = rule
        self.held: deque[Held] = deque()
        self.trimmed: Trimmed | None = None
        """Until the record that is looked for was found in what is left."""

    @property
    def teacher_partition(self) -> TeacherPartition:
        """Teacher and partition."""
        return self.teacher, self.partition.partition
