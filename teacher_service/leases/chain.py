"""The writers' chain of one partition under one lease: accept, label, publish, acknowledge, commit.

Whoever holds a partition publishes to it in the order of its sequences, one unacknowledged order at a time, through one
producer, and commits only the contiguous prefix that was acknowledged (docs/design.md). A `Chain` is all of that and
nothing else: no Kafka, no clock, no thread. Polling, loading, inference and publishing hand it jobs, each of which
knows the chain that it belongs to; so a job of a lease that has ended counts for nothing wherever it turns up, and what
`done` says cannot cover an order whose own acknowledgement did not come back to this very chain.

No order begins before the group knows who holds the partition. So whoever takes it over knows how the last lease ended:
without grace, if its holder is no member any more. Then an order may have killed or hung the holder, and the partition
is on probation: one order at a time, each attempt committed before it begins.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Collection
from dataclasses import dataclass, field
from enum import Enum

from schemas.commits import NO_NOTE, LeaseNote
from schemas.errors import DecodeError
from schemas.records import WorkOrder

PROBATION = 8
"""orders to commit until a partition is free again"""
SUSPICIOUS = 2
"""attempts at which an order is suspected, and is to be labelled apart from everything else"""


class Verdict(Enum):
    """What the reader's rule says of a record."""

    ACCEPT = "accept"
    DROP = "drop"
    """lower than expected: a repetition"""
    AHEAD = "ahead"
    """higher than expected: records between are missing here"""


@dataclass(frozen=True, slots=True)
class Mark:
    """A commit: the offset to go on from, the sequence expected there, and how the partition is held."""

    offset: int
    sequence: int
    note: LeaseNote = NO_NOTE


def is_abandoned(note: LeaseNote, me: str, members: Collection[str]) -> bool:
    """Whether a lease ended without grace: its holder neither said that it leaves nor is a member that let it go.

    Args:
        note: as the group committed it.
        me: member ID of the next holder.
        members: those of the group at present.
    """
    return note.holder not in ("", me) and note.holder not in members


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
    num_deadly: int = 0
    """of the faults, rows that ended the process that labelled them"""


@dataclass(slots=True, eq=False)
class _Taken:
    """A job between its acceptance and its acknowledgement."""

    job: Job
    mark: Mark
    """what may be committed when it and all before it are acknowledged"""
    begun: bool = False
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
    """its note is that of this lease"""
    stride: int
    """P: a partition's sequences lie so far apart"""
    committed: Mark | None = None
    """the last commit known to have succeeded; None: the group has none"""
    done: Mark = field(init=False)
    """the contiguous acknowledged prefix: what may be committed (`to_commit` adds the note)"""
    read: Mark = field(init=False)
    """what is expected from the log next"""
    over: bool = field(default=False, init=False)
    """the lease has ended: nothing that belongs to it counts any more"""
    _holder: str = field(init=False)
    _suspect: int | None = field(default=None, init=False)
    """the sequence that is to be labelled apart"""
    _taken: deque[_Taken] = field(default_factory=deque, init=False)
    """in the log's order; only the first may be on its way"""
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False)

    def __post_init__(self) -> None:
        self.done = self.read = Mark(self.start.offset, self.start.sequence)
        self._holder = self.start.note.holder

    @property
    def in_hand(self) -> int:
        """Jobs accepted and not acknowledged yet."""
        return len(self._taken)

    @property
    def waiting(self) -> int:
        """Of these, jobs that may not begin yet."""
        with self._lock:
            return sum(not taken.begun for taken in self._taken)

    @property
    def holder(self) -> str:
        """Member ID of the worker that holds it; "" once it is to leave."""
        return self._holder

    @property
    def held(self) -> bool:
        """Whether the group knows the holder."""
        return self.committed is not None and self.committed.note.holder == self._holder

    @property
    def to_commit(self) -> Mark:
        """What may be committed now, and on probation the attempt that is to begin after it."""
        with self._lock:
            return Mark(self.done.offset, self.done.sequence, self._note())

    @property
    def dirty(self) -> bool:
        """Whether there is something to commit."""
        return self.to_commit != self.committed

    def _note(self) -> LeaseNote:
        start = self.start.note
        num_done = (self.done.sequence - self.start.sequence) // self.stride
        if start.probation is None or start.probation + num_done >= PROBATION:
            return LeaseNote(self._holder)
        # The first order in hand is the one expected: of others none was begun. Whoever leaves was not ended by it.
        attempts = bool(self._holder) and any(isinstance(taken.job.order, WorkOrder) for taken in self._taken)
        return LeaseNote(self._holder, start.probation + num_done, (0 if num_done else start.attempts) + attempts)

    @property
    def on_trial(self) -> bool:
        """Whether an order of it began on probation, and has not ended."""
        with self._lock:
            on_probation = self.committed is not None and self.committed.note.probation is not None
            return on_probation and any(taken.begun for taken in self._taken)

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

    def to_begin(self) -> list[Job]:
        """Return the jobs that may begin now, each once: what has to be committed before them was."""
        with self._lock:
            if self.over or self.committed is None or not self.held:
                return []
            jobs = []
            on_probation, note = self.committed.note.probation is not None, self._note()
            for taken in self._taken:
                if taken.begun:
                    continue
                job = taken.job
                if on_probation and isinstance(job.order, WorkOrder):
                    if self.committed.sequence != job.sequence or self.committed.note != note:
                        break
                    self._suspect = job.sequence if note.attempts >= SUSPICIOUS else None
                taken.begun = True
                jobs.append(job)
            return jobs

    def suspects(self, job: Job) -> bool:
        """Whether a job that began is to be labelled apart: attempts before ended with their worker."""
        return isinstance(job.order, WorkOrder) and job.sequence == self._suspect

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

    def leave(self, gave_up: bool = False) -> None:
        """Begin nothing more, and let the next commit say that nobody holds the partition.

        Args:
            gave_up: on an order that was given its time and may hang: the commit does not say it then, so that whoever
                takes the partition over takes its worker for ended by that order.
        """
        with self._lock:
            self._taken = deque(taken for taken in self._taken if taken.begun)
            if not gave_up:
                self._holder = ""

    def end(self) -> None:
        """End the lease: the partition is another's, or begins again at the committed offset."""
        with self._lock:
            self.over = True
            self._taken.clear()
