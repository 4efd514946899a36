"""A teacher's soft targets wherever they are kept, each order's once, for who looks at them all. P partitions."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from schemas.records import SoftTargets


@dataclass(frozen=True, slots=True, eq=False)
class Stored:
    """One order's soft targets, and where they lie."""

    value: SoftTargets
    address: str
    """As messages write it."""
    worker: str = ""
    """Who wrote them; "" where nothing says it."""


@dataclass(frozen=True, slots=True)
class Damaged:
    """What is kept of an order, and is none: no reader takes it."""

    sequence: int
    address: str
    why: str
    is_order: bool = True
    """False: it is of bytes that no order has, and the sequence is the first of their file."""


@dataclass(slots=True)
class Dropped:
    """Records that no reader takes, by why."""

    repetitions: int = 0
    """of an order that was read already"""
    early: int = 0
    """of an order behind one that is missing"""
    foreign: int = 0
    """of another stream"""
    undecodable: int = 0
    """that are no soft targets"""


class StoredLabels(Protocol):
    """The soft targets of one teacher of a stream, in a range of orders."""

    @property
    def dropped(self) -> Dropped:
        """What was not taken so far."""

    @property
    def first_missing(self) -> int | None:
        """The lowest order of the range that is not there, once `read` has ended; None: all are."""

    def read(self) -> Iterator[Stored | Damaged]:
        """Yield each order that is there, once, in any order; what a reader would drop is dropped and counted."""
