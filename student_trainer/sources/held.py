"""Labels of an order as a reader holds them, and the proof that they are what the manifest promises."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.identity import other_lineage
from pipeline.readers_rule import TeacherPartition
from pipeline.sequence import Sequence as OrderSequence
from schemas.errors import ManifestMismatch
from schemas.records import Lineage, SoftTargets


@dataclass(frozen=True, slots=True, eq=False)
class Held:
    """One teacher's soft targets for an order, and where they lay."""

    value: SoftTargets
    next_offset: int
    """The log's offset after this record."""
    address: str
    """`topic/partition@offset`, or the place in a captured file."""
    num_bytes: int
    raw: bytes = b""
    """The record's own bytes, where its reader was asked to keep them."""


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
    at_end: bool = False
    """whether each of these logs was read to an end that was looked up during the wait, and no hole is proven"""


def check_identity(orders: OrderSequence, sequence: int, lineages: Sequence[Lineage], held: Sequence[Held]) -> None:
    """Compare each record, one per teacher that counts in the order, with the order's and the teacher's own identity.

    Raises:
        ManifestMismatch: a label of another teacher, model, view or samples; it names the address and the difference.
    """
    for lineage, each in zip(lineages, held, strict=True):
        if problem := other_lineage(orders, sequence, lineage, each.value):
            raise ManifestMismatch(f"{each.address}: {problem}; it is not trained on")
