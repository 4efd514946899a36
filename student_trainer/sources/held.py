"""What a reader holds of the logs that it reads, and the proof that it is what the manifest promises."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from kafka import TopicPartition

from pipeline.identity import other_identity
from pipeline.readers_rule import ReadersRule
from pipeline.sequence import Sequence as OrderSequence
from schemas.errors import ManifestMismatch
from schemas.records import SoftTargets, Teacher
from student_trainer.sources.lookout import TeacherPartition


@dataclass(frozen=True, slots=True, eq=False)
class Held:
    """One teacher's soft targets for an order, and where they lay."""

    value: SoftTargets
    next_offset: int
    """The log's offset after this record."""
    address: str
    """`topic/partition@offset`"""
    num_bytes: int


@dataclass(frozen=True, slots=True)
class Wait:
    """What the reader waits for."""

    sequence: int
    logs: tuple[TeacherPartition, ...]
    """(teacher, partition) of each log that lacks it"""
    seconds: float
    """since when"""
    members: dict[str, int]
    """teacher -> members of its group, as far as they are known"""
    trouble: str
    """why Kafka gave no answer lately; empty if it did"""
    dropped: str = ""
    """what is said of records that were dropped for an unknown schema; empty if none was"""


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


def check_identity(orders: OrderSequence, sequence: int, teachers: Mapping[str, Teacher], held: Sequence[Held]) -> None:
    """Compare each record, one per teacher, with the order's and the teacher's own identity.

    Raises:
        ManifestMismatch: a label of another teacher, model, view or samples; it names the address and the difference.
    """
    for teacher, each in zip(teachers.values(), held, strict=True):
        if problem := other_identity(orders, sequence, teacher, each.value):
            raise ManifestMismatch(f"{each.address}: {problem}; it is not trained on")
