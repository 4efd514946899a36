"""The reader's rule and the proof of a hole, for one partition of one teacher's log, without any Kafka in it.

P partitions: partition p holds the sequences p, p + P, p + 2P, ... in order, with repetitions. The reader accepts the
sequence it expects and drops every other, lower or higher. The writers' chain makes that lossless: whatever was dropped
as too early comes again, whatever a zombie repeats is ignored.
"""

from __future__ import annotations

from dataclasses import dataclass

TeacherPartition = tuple[str, int]
"""Teacher and partition."""


@dataclass(frozen=True, slots=True)
class Look:
    """What was seen of a partition while its reader waited: the commit first, the end of the log after it.

    The order of the two is the proof: what a commit counts was acknowledged before it, so it lies below that end.
    """

    next_sequence: int
    """The sequence that the teacher group's commit expects next."""
    end: int
    """Offset behind the last record of the soft targets."""


class ReadersRule:
    """One partition: the sequence expected next, and the offset of the record looked at next."""

    __slots__ = ("expected", "num_duplicates", "num_early", "position", "stride")

    def __init__(self, expected: int, position: int, stride: int) -> None:
        self.expected = expected
        self.position = position
        self.stride = stride
        self.num_duplicates = 0
        """Records dropped that were lower than expected."""
        self.num_early = 0
        """Records dropped that were higher than expected."""

    def accept(self, offset: int, sequence: int) -> bool:
        """Judge the record at an offset; True: it is the expected one, and the next is expected now."""
        self.position = offset + 1
        if sequence == self.expected:
            self.expected += self.stride
            return True
        if sequence < self.expected:
            self.num_duplicates += 1
        else:
            self.num_early += 1
        return False

    def skip_to(self, position: int) -> None:
        """Step over what is no record of the stream's."""
        self.position = max(self.position, position)

    def is_gap(self, look: Look) -> bool:
        """Whether the expected sequence is proven missing: committed past, and read to the end without it."""
        return look.next_sequence > self.expected and self.position >= look.end
