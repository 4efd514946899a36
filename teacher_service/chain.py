"""The writers' chain of one partition under one lease: accept, label, publish, acknowledge, commit.

Whoever holds a partition publishes to it in the order of its sequences, one unacknowledged order at a time, through one
producer, and commits only the contiguous prefix that was acknowledged (docs/design.md). A `Chain` is all of that and
nothing else: no Kafka, no clock, no thread. Polling, loading, inference and publishing hand it jobs, each of which
knows the chain that it belongs to; so a job of a lease that has ended counts for nothing wherever it turns up, and what
`done` says cannot cover an order whose own acknowledgement did not come back to this very chain.
"""

from __future__ import annotations

import threading
from collections import deque
from dataclasses import dataclass, field
from enum import Enum

from schemas.errors import DecodeError
from schemas.records import WorkOrder


class Verdict(Enum):
    """What the reader's rule says of a record."""

    ACCEPT = "accept"
    DROP = "drop"
    """lower than expected: a repetition"""
    AHEAD = "ahead"
    """higher than expected: records between are missing here"""


@dataclass(frozen=True, slots=True)
class Mark:
    """A commit: the offset to go on from, and the sequence expected there."""

    offset: int
    sequence: int


@dataclass(frozen=True, slots=True, eq=False)
class Job:
    """One record of the work orders that was accepted; its chain and offset say which, for ever."""

    chain: Chain
    offset: int
    sequence: int
    """for a record that is no work order: the sequence expected in its place"""
    order: WorkOrder | DecodeError
    """the error for a record that is no work order: it carries the bytes and the reason"""


@dataclass(frozen=True, slots=True, eq=False)
class Parcel:
    """What a job came to: the records to publish."""

    job: Job
    letters: tuple[bytes, ...] = ()
    """encoded dead letters, which are acknowledged before the soft targets go out"""
    value: bytes | None = None
    """encoded soft targets; None for a record that is no work order"""
    num_rows: int = 0
    num_faults: int = 0
    reason: str = ""
    """of the last fault"""


@dataclass(slots=True, eq=False)
class _Taken:
    """A job between its acceptance and its acknowledgement."""

    job: Job
    mark: Mark
    """what may be committed when it and all before it are acknowledged"""
    parcel: Parcel | None = None
    sent: bool = False


@dataclass(slots=True, eq=False)
class Chain:
    """One partition under one lease; a new lease is a new chain.

    Callable from any thread.
    """

    partition: int
    producer: int
    """the generation of the producer that all its records leave through"""
    start: Mark
    stride: int
    """P: a partition's sequences lie so far apart"""
    committed: Mark | None = None
    """the last commit known to have succeeded; None: the group has none"""
    done: Mark = field(init=False)
    """the contiguous acknowledged prefix: what may be committed"""
    read: Mark = field(init=False)
    """what is expected from the log next"""
    over: bool = field(default=False, init=False)
    """the lease has ended: nothing that belongs to it counts any more"""
    _taken: deque[_Taken] = field(default_factory=deque, init=False)
    """in the log's order; only the first may be on its way"""
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False)

    def __post_init__(self) -> None:
        self.done = self.read = self.start

    @property
    def in_hand(self) -> int:
        """Jobs accepted and not acknowledged yet."""
        return len(self._taken)

    @property
    def dirty(self) -> bool:
        """Whether there is something to commit."""
        return self.done != self.committed

    def judge(self, sequence: int) -> Verdict:
        """Apply the reader's rule to the next record of the log."""
        if sequence == self.read.sequence:
            return Verdict.ACCEPT
        return Verdict.DROP if sequence < self.read.sequence else Verdict.AHEAD

    def accept(self, offset: int, order: WorkOrder | DecodeError) -> Job:
        """Take the record at an offset: the order expected, or one that is no order and moves the offset alone."""
        with self._lock:
            job = Job(self, offset, self.read.sequence, order)
            step = self.stride if isinstance(order, WorkOrder) else 0
            self.read = Mark(offset + 1, self.read.sequence + step)
            self._taken.append(_Taken(job, self.read))
            return job

    def drop(self, offset: int) -> None:
        """Step over a repetition; nothing waits for it, so it is done with whatever was accepted before it."""
        with self._lock:
            self.read = Mark(offset + 1, self.read.sequence)
            if self._taken:
                self._taken[-1].mark = self.read
            else:
                self.done = self.read

    def labelled(self, parcel: Parcel) -> None:
        """A job's records are ready."""
        with self._lock:
            for taken in self._taken:
                if taken.job is parcel.job:
                    taken.parcel = parcel

    def to_send(self) -> Parcel | None:
        """Return what goes out now, once; None while the first job is on its way, or not labelled yet."""
        with self._lock:
            if self.over or not self._taken:
                return None
            first = self._taken[0]
            if first.parcel is None or first.sent:
                return None
            first.sent = True
            return first.parcel

    def acknowledged(self, job: Job) -> bool:
        """All records of a job are in the log; False if that counts for nothing here."""
        with self._lock:
            if self.over or not self._taken or self._taken[0].job is not job or not self._taken[0].sent:
                return False
            self.done = self._taken.popleft().mark
            return True

    def end(self) -> None:
        """End the lease: the partition is another's, or begins again at the committed offset."""
        with self._lock:
            self.over = True
            self._taken.clear()
