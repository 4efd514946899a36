"""What a reader holds of the logs that it reads, and the proof that it is what the manifest promises."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from kafka import TopicPartition

from pipeline.sequence import Sequence as OrderSequence
from schemas.errors import ManifestMismatch
from schemas.records import SoftTargets, Teacher
from student_trainer.sources.lookout import TeacherPartition
from student_trainer.sources.rule import ReadersRule


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
    epoch = orders.epoch_of(sequence)
    view_seed, sample_ids = orders.view_seed(epoch), orders.sample_ids(sequence)
    for (name, teacher), each in zip(teachers.items(), held, strict=True):
        value = each.value
        _compare(each.address, "sequence", sequence, value.sequence)
        _compare(each.address, "teacher", name, value.teacher)
        _compare(each.address, "teacher_sha256", teacher.sha256, value.teacher_sha256)
        _compare(each.address, "epoch", epoch, value.epoch)
        _compare(each.address, "view_seed", view_seed, value.view_seed)
        if not np.array_equal(sample_ids, value.sample_ids):
            raise ManifestMismatch(
                f"{each.address}: the sample IDs are not those of sequence {sequence}; "
                "the teacher works with another dataset size, order size or seed than the manifest's"
            )


def _compare(address: str, what: str, pinned: object, found: object) -> None:
    if pinned != found:
        raise ManifestMismatch(f"{address}: {what} is {found}, the manifest says {pinned}; it is not trained on")
