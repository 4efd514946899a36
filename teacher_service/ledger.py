"""What a worker knows about one partition: the writers' chain, without any Kafka in it.

The chain (see docs/design.md): only a partition's owner publishes to it, in order, one unacknowledged order at a time;
only the contiguous acknowledged prefix is committed; after any failure the owner goes back to the committed offset.
A ledger lives as long as one lease: what went out under an older lease never comes back into it.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from enum import Enum


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


class PartitionLedger:
    """Offsets and sequences of one partition under one lease.

    Every record read is either dropped, or accepted with `take` and settled later with `settle`, in the same order.
    """

    __slots__ = ("_flying", "_stride", "committed", "done", "lease", "read")

    def __init__(self, lease: int, start: Mark, stride: int) -> None:
        self.lease = lease
        self.committed = start
        """the last commit known to have succeeded"""
        self.done = start
        """the contiguous acknowledged prefix: what may be committed"""
        self.read = start
        """what is expected from the log next"""
        self._stride = stride
        self._flying: deque[Mark] = deque()

    @property
    def num_flying(self) -> int:
        """Records accepted and not settled yet."""
        return len(self._flying)

    @property
    def dirty(self) -> bool:
        """Whether there is something to commit."""
        return self.done != self.committed

    def judge(self, sequence: int) -> Verdict:
        """Apply the reader's rule to the next record of the log."""
        if sequence == self.read.sequence:
            return Verdict.ACCEPT
        return Verdict.DROP if sequence < self.read.sequence else Verdict.AHEAD

    def take(self, offset: int, *, is_order: bool = True) -> None:
        """Accept the record at an offset; one that is no order moves the offset alone."""
        self.read = Mark(offset + 1, self.read.sequence + (self._stride if is_order else 0))
        self._flying.append(self.read)

    def drop(self, offset: int) -> None:
        """Step over a repetition; nothing waits for it, so it settles with whatever was taken before."""
        self.read = Mark(offset + 1, self.read.sequence)
        if self._flying:
            self._flying[-1] = self.read
        else:
            self.done = self.read

    def settle(self) -> None:
        """The oldest accepted record is acknowledged (labelled, or in the dead letters)."""
        self.done = self._flying.popleft()
