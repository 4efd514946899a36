"""The log as the project's glue sees it: append, read, belong to a group, ask.

Worker, feeder and student are written against these protocols alone. `cluster.py` is them over kafka-python; the tests
have a twin of it in memory, in which every call can be made to fail, and one contract test holds both to the same
behaviour. The group protocol behind `Member` (classic groups, an assignor of our own) is the seam's own business.

Every method but `close` may raise, beside what it names:
    BrokerUnavailable: no answer in time, or one that may come right by itself: ask again.
    ConfigError: the cluster refuses the settings, or a right (NotAuthorized): asking again cannot help.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Protocol

from kafka import TopicPartition

from pipeline.kafka.bids import Bid

Headers = Sequence[tuple[str, bytes]]

DELIVERY_TIMEOUT = 120.0
"""Seconds until an unacknowledged record counts as failed; less turns slow brokers into storms of republishing."""

RECORD_SLACK = 65_536
"""Bytes by which a record may be larger than what was announced: keys, headers, and what a dead letter says beside the
bytes that it carries."""


class Record(Protocol):
    """One record of a log."""

    @property
    def topic(self) -> str:
        """Name of the topic."""

    @property
    def partition(self) -> int:
        """Number of the partition."""

    @property
    def offset(self) -> int:
        """Its number in the partition, from 0."""

    @property
    def key(self) -> bytes | None:
        """What was given as its key."""

    @property
    def value(self) -> bytes | None:
        """Its bytes."""

    @property
    def headers(self) -> Headers:
        """What was given as its headers."""


Polled = Mapping[TopicPartition, Sequence[Record]]
"""Partition -> records in the order of their offsets."""


@dataclass(frozen=True, slots=True)
class Commit:
    """What a group says of a partition."""

    offset: int
    """The offset to go on from."""
    metadata: str = ""


@dataclass(frozen=True, slots=True)
class Membership:
    """A member's standing in its group; another one after every rebalance."""

    generation: int
    member_id: str


@dataclass(frozen=True, slots=True)
class GroupMember:
    """A member as its group's coordinator knows it."""

    member_id: str
    name: str
    host: str
    bid: Bid
    """what it said at the last sharing out; says nothing while a rebalance is under way"""
    partitions: tuple[int, ...]
    """what it was given then"""


@dataclass(frozen=True, slots=True)
class TopicIdentity:
    """What a topic is: one that is deleted and made again has another ID."""

    topic_id: str
    partitions: int


class Appender(Protocol):
    """Writes records, each acknowledged by all in-sync replicas.

    One that failed once is poisoned: close it and take a new one.
    """

    def append(
        self, topic: str, partition: int, value: bytes, key: bytes | None = None, headers: Headers = ()
    ) -> Future[int]:
        """Send a record; returns at once.

        The future holds the record's offset when it is acknowledged, or an error of ours (BrokerUnavailable,
        RecordTooLarge, ConfigError, DeliveryFailed). Its callbacks run on the client's thread and must not wait. It is
        not cancellable.
        """

    def close(self, timeout: float = 0.0) -> None:
        """Stop for good; what is unacknowledged after `timeout` seconds is given up (it may have been written)."""


class Positioned(Protocol):
    """What `Reader` and `Member` share: reading on from positions that were set by hand. Used by one thread."""

    def seek(self, partition: TopicPartition, offset: int) -> None:
        """Read on from an offset; ValueError if the partition is not assigned (any more)."""

    def position(self, partition: TopicPartition) -> int | None:
        """The offset that is read next, behind whatever is never handed out, too; None if not known yet."""

    def known_end(self, partition: TopicPartition) -> int | None:
        """Offset behind its last record, as the last poll that heard of it told; None if none did. Asks nobody."""

    def poll(self, timeout: float) -> Polled:
        """Return records that follow the positions, after `timeout` seconds at most; nothing is no end of the log.

        Raises:
            PositionOutOfRange: a position is below the first record left, or behind the end.
        """

    def pause(self, partitions: Collection[TopicPartition]) -> None:
        """Hand out nothing of these until they are resumed."""

    def resume(self, partitions: Collection[TopicPartition]) -> None:
        """Undo `pause`."""

    def begins(self, partitions: Collection[TopicPartition]) -> dict[TopicPartition, int]:
        """Offset of the first record left of each."""

    def ends(self, partitions: Collection[TopicPartition]) -> dict[TopicPartition, int]:
        """Offset behind the last record of each."""

    def close(self) -> None:
        """Close it; a member leaves its group at once."""


class Reader(Positioned, Protocol):
    """Reads partitions of its own choice, without a group."""

    def assign(self, partitions: Collection[TopicPartition]) -> None:
        """Read these from now on, and no others; positions are to be set by `seek`."""

    def partitions(self, topic: str) -> set[int]:
        """The topic's partitions; empty if it does not exist."""


class Member(Positioned, Protocol):
    """Reads what its group gives it."""

    @property
    def membership(self) -> Membership | None:
        """None while it is no member, or a rebalance is under way. To be compared after every poll."""

    def assignment(self) -> set[TopicPartition]:
        """What it owns, as far as it knows."""

    def commit(self, commits: Mapping[TopicPartition, Commit], timeout: float) -> bool:
        """Commit as this member; False: not taken, or nobody knows (the next poll finds out why)."""

    def rejoin(self) -> None:
        """Ask for the partitions to be shared out anew; the polls that follow see to it."""


class Admin(Protocol):
    """Answers about the cluster. May be kept for long: it finds groups' coordinators anew when they move."""

    def committed(
        self, groups: Mapping[str, Iterable[TopicPartition] | None]
    ) -> dict[str, dict[TopicPartition, Commit]]:
        """What groups committed for some partitions (None: for all); what has no commit is missing."""

    def commit(self, group: str, commits: Mapping[TopicPartition, Commit]) -> None:
        """Commit for a group that has no members.

        Raises:
            StreamConflict: it has some; Kafka lets nobody else change its offsets then.
        """

    def ends(self, partitions: Iterable[TopicPartition]) -> dict[TopicPartition, int]:
        """Offset behind the last record of each."""

    def num_members(self, groups: Iterable[str]) -> dict[str, int]:
        """How many members each group has."""

    def members(self, group: str) -> list[GroupMember]:
        """Who is in a group; nobody if it does not exist."""

    def remove(self, group: str, member_ids: Collection[str]) -> None:
        """Let members leave that cannot do so themselves; who is no member any more is passed over.

        Only for those whose process is known to have ended: one that lives would work on beside its successors until
        its next heartbeat.
        """

    def identities(self, topics: Iterable[str]) -> dict[str, TopicIdentity | None]:
        """What each topic is; None: it does not exist."""

    def close(self) -> None:
        """Close it."""


class Cluster(Protocol):
    """Makes what is above; each of these may raise BrokerUnavailable or ConfigError as it connects."""

    @property
    def address(self) -> str:
        """Where it is, for messages."""

    def appender(self, *, max_record_bytes: int, batch_bytes: int = 0) -> Appender:
        """A new writer.

        Args:
            max_record_bytes: no record is larger, but for RECORD_SLACK.
            batch_bytes: records of a partition that come close upon each other go together up to this size; 0: each
                goes at once.
        """

    def reader(self, *, fetch_bytes: int = 0) -> Reader:
        """A new reader; `fetch_bytes` of each partition come in one answer (0: the client's default)."""

    def member(
        self,
        group: str,
        topic: str,
        *,
        name: str,
        session_timeout: float,
        fetch_bytes: int = 0,
        bid: Callable[[], Bid] = Bid,
    ) -> Member:
        """Join a group that shares a topic's partitions out by what its members bid (shares.py).

        Args:
            group: the consumer group.
            topic: whose partitions are shared.
            name: shown in group listings.
            session_timeout: seconds of silence after which others take its partitions over.
            fetch_bytes: as `reader`.
            bid: what it says of itself; asked at every join, on another thread, and must not wait.
        """

    def admin(self, patience: float = 30.0) -> Admin:
        """A new admin; a question is given up after `patience` seconds."""
