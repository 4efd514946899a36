"""The twin of the real log, in memory: the protocols of `pipeline.kafka.log` over lists, where every call can fail.

Nothing happens by time: a call acts at once, a poll waits only while there is nothing, and whatever Kafka would do
because time went by (a session that ends, a record that lands late) is a method here. So it is deterministic, given
the calls.

How calls fail: `faults` is called with the name of each before it acts, and what it raises is what the call raises.
The names are those of the methods ("appender", "append", "poll", "ends", "commit", "committed", ...), and two that
stand for answers that get lost: "acknowledge" (the record is written) and "commit acknowledged" (the commit is taken).
Only `close` cannot fail. As in the protocols, "append" and "acknowledge" fail the record's future, and a member's
commit answers False.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Collection, Iterable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field, replace

from kafka import TopicPartition

from pipeline.kafka.bids import Bid
from pipeline.kafka.log import RECORD_SLACK, Commit, GroupMember, Headers, Membership, TopicIdentity
from pipeline.kafka.shares import Claim, share_out
from pipeline.wait import Deadline
from schemas.errors import (
    BrokerUnavailable,
    DeliveryFailed,
    DistillogError,
    PositionOutOfRange,
    RecordTooLarge,
    StreamConflict,
)


@dataclass(frozen=True, slots=True)
class MemoryRecord:
    """One record."""

    topic: str
    partition: int
    offset: int
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes], ...] = ()


@dataclass(slots=True)
class _Log:
    """A partition."""

    begin: int = 0
    records: list[MemoryRecord] = field(default_factory=list)

    @property
    def end(self) -> int:
        return self.begin + len(self.records)


@dataclass(slots=True)
class _Topic:
    topic_id: str
    logs: list[_Log]


@dataclass(slots=True)
class _Group:
    """What a group's coordinator knows."""

    generation: int = 0
    commits: dict[TopicPartition, Commit] = field(default_factory=dict)
    members: dict[str, MemoryMember] = field(default_factory=dict)
    joining: set[str] | None = None
    """members that wait for the next generation; None: no rebalance is under way"""
    shares: dict[str, list[TopicPartition]] = field(default_factory=dict)
    """what the present generation gave to whom"""


@dataclass(slots=True, eq=False)
class Flight:
    """A record on its way, while the cluster is `holding`."""

    cluster: MemoryCluster
    topic: str
    partition: int
    value: bytes
    key: bytes | None
    headers: Headers
    answer: Future[int]
    sender: MemoryAppender
    offset: int | None = None
    """where it landed; None: not yet"""

    def land(self) -> int:
        """Write it now, and answer nobody; also after its appender was closed, as a zombie's record."""
        if self.offset is None:
            self.offset = self.cluster.write(self.topic, self.partition, self.value, self.key, self.headers)
        return self.offset

    def acknowledge(self) -> None:
        """Write it if that was not done, and say so."""
        offset = self.land()
        if not self.answer.done():
            self.answer.set_result(offset)

    def fail(self, error: DistillogError | None = None) -> None:
        """Answer with an error, whether it landed or not."""
        if not self.answer.done():
            self.answer.set_exception(error or DeliveryFailed("not acknowledged in time"))


class MemoryCluster:
    """A Cluster in memory."""

    address = "memory"

    def __init__(self, faults: Callable[[str], None] = lambda call: None) -> None:
        self.faults = faults
        self.holding = False
        """records stay on their way, in `flights`, until the test lets them land"""
        self.flights: list[Flight] = []
        self.max_poll_records = 100_000
        """of each partition"""
        self.stale: dict[TopicPartition, int] = {}
        """positions from which partitions go on at the next rebalance, whatever is committed (kafka-python does so)"""
        self._changed = threading.Condition(threading.RLock())
        self._topics: dict[str, _Topic] = {}
        self._groups: dict[str, _Group] = {}
        self._numbers = itertools.count(1)

    # What a test does by hand.

    def create_topic(self, topic: str, partitions: int = 1) -> None:
        """Make a topic."""
        with self._changed:
            assert topic not in self._topics
            self._topics[topic] = _Topic(f"id-{next(self._numbers)}", [_Log() for _ in range(partitions)])
            self._changed.notify_all()

    def add_partitions(self, topic: str, partitions: int) -> None:
        """Let a topic have more."""
        with self._changed:
            logs = self._topics[topic].logs
            logs += [_Log() for _ in range(partitions - len(logs))]

    def delete_topic(self, topic: str) -> None:
        """Remove a topic; groups keep what they committed for it."""
        with self._changed:
            del self._topics[topic]

    def delete_records(self, partition: TopicPartition, before: int) -> None:
        """Trim a log, as retention does."""
        with self._changed:
            log = self._log(partition)
            assert log.begin <= before <= log.end
            del log.records[: before - log.begin]
            log.begin = before

    def expire_offsets(self, group: str) -> None:
        """Forget what a group committed, as a broker does after idle days."""
        with self._changed:
            self._group(group).commits.clear()

    def commit(self, group: str, partition: TopicPartition, commit: Commit) -> None:
        """Let a group have committed, whoever did so."""
        with self._changed:
            self._group(group).commits[partition] = commit

    def expire(self, member: MemoryMember) -> None:
        """End a member's session; it does not know before its next poll."""
        with self._changed:
            self._remove(member)

    def write(self, topic: str, partition: int, value: bytes, key: bytes | None = None, headers: Headers = ()) -> int:
        """Append a record, whoever wrote it; returns its offset."""
        with self._changed:
            log = self._log(TopicPartition(topic, partition))
            log.records.append(MemoryRecord(topic, partition, log.end, key, value, tuple(headers)))
            self._changed.notify_all()
            return log.end - 1

    def overwrite(self, partition: TopicPartition, offset: int, value: bytes) -> None:
        """Let a broker lose a record: other bytes stand in its place."""
        with self._changed:
            log = self._log(partition)
            log.records[offset - log.begin] = replace(log.records[offset - log.begin], value=value)

    def records(self, topic: str, partition: int) -> list[MemoryRecord]:
        """What a partition holds."""
        with self._changed:
            return list(self._log(TopicPartition(topic, partition)).records)

    # What a cluster makes.

    def appender(self, *, max_record_bytes: int, batch_bytes: int = 0) -> MemoryAppender:
        """A new writer."""
        self.faults("appender")
        return MemoryAppender(self, max_record_bytes)

    def reader(self, *, fetch_bytes: int = 0) -> MemoryReader:
        """A new reader."""
        self.faults("reader")
        return MemoryReader(self)

    def member(
        self,
        group: str,
        topic: str,
        *,
        name: str,
        session_timeout: float,
        fetch_bytes: int = 0,
        bid: Callable[[], Bid] = Bid,
    ) -> MemoryMember:
        """A member to be; it joins with its first poll."""
        self.faults("member")
        return MemoryMember(self, group, topic, name, bid)

    def admin(self, patience: float = 30.0) -> MemoryAdmin:
        """A new admin."""
        self.faults("admin")
        return MemoryAdmin(self)

    # What its clients share; the lock is held.

    def _log(self, partition: TopicPartition) -> _Log:
        topic = self._topics.get(partition.topic)
        if topic is None or not 0 <= partition.partition < len(topic.logs):
            raise BrokerUnavailable(f"no partition {partition.topic}/{partition.partition}")
        return topic.logs[partition.partition]

    def _group(self, group: str) -> _Group:
        return self._groups.setdefault(group, _Group())

    def _remove(self, member: MemoryMember) -> None:
        group = self._group(member.group)
        if group.members.pop(member.member_id, None) is not None:
            group.shares.pop(member.member_id, None)
            group.joining = (group.joining or set()) - {member.member_id} if group.members else None
            self._complete(group)
            self._changed.notify_all()

    def _complete(self, group: _Group) -> None:
        """Begin the next generation if everybody has joined."""
        if group.joining is None or group.joining != set(group.members):
            return
        (topic,) = {member.topic for member in group.members.values()}
        there = self._topics.get(topic)
        claims = {name: one.claim() for name, one in group.members.items()}
        shares = share_out(len(there.logs) if there else 0, claims)
        group.shares = {name: [TopicPartition(topic, one) for one in share] for name, share in shares.items()}
        group.generation += 1
        group.joining = None
        self._changed.notify_all()


class MemoryAppender:
    """An Appender that acknowledges at once, unless the cluster is `holding`."""

    def __init__(self, cluster: MemoryCluster, max_record_bytes: int) -> None:
        self._cluster = cluster
        self._limit = max_record_bytes + RECORD_SLACK
        self._mine: list[Future[int]] = []
        self._poisoned = False
        self._closed = False

    def append(
        self, topic: str, partition: int, value: bytes, key: bytes | None = None, headers: Headers = ()
    ) -> Future[int]:
        """Send a record."""
        answer: Future[int] = Future()
        answer.set_running_or_notify_cancel()
        flight = Flight(self._cluster, topic, partition, value, key, headers, answer, self)
        try:
            self._cluster.faults("append")
            if self._closed or self._poisoned:
                raise BrokerUnavailable("the appender is closed, or failed before: take a new one")
            if len(value) > self._limit:
                raise RecordTooLarge(f"a record of {len(value)} bytes is over the limit of {self._limit}")
            self._mine.append(answer)
            if self._cluster.holding:
                self._cluster.flights.append(flight)
                answer.add_done_callback(self._note)
                return answer
            flight.land()
            self._cluster.faults("acknowledge")
        except DistillogError as error:
            self._poisoned = True
            flight.fail(error)
        else:
            flight.acknowledge()
        return answer

    def _note(self, answer: Future[int]) -> None:
        self._poisoned = self._poisoned or answer.exception() is not None

    def close(self, timeout: float = 0.0) -> None:
        """Stop; what is on its way is given up, and may still land."""
        self._closed = True
        for answer in self._mine:
            if not answer.done():
                answer.set_exception(BrokerUnavailable("the appender was closed"))


class _Positioned:
    def __init__(self, cluster: MemoryCluster) -> None:
        self._cluster = cluster
        self._positions: dict[TopicPartition, int | None] = {}
        """of what is assigned"""
        self._ends: dict[TopicPartition, int] = {}
        """as the last poll found them"""
        self._paused: set[TopicPartition] = set()
        self._closed = False

    def _begin(self, call: str) -> None:
        self._cluster.faults(call)
        if self._closed:
            raise BrokerUnavailable("it is closed")

    def seek(self, partition: TopicPartition, offset: int) -> None:
        """Read on from an offset."""
        self._begin("seek")
        if partition not in self._positions:
            raise ValueError(f"{partition.topic}/{partition.partition} is not assigned")
        self._positions[partition] = offset

    def position(self, partition: TopicPartition) -> int | None:
        """The offset that is read next."""
        return self._positions.get(partition)

    def known_end(self, partition: TopicPartition) -> int | None:
        """Offset behind its last record."""
        return self._ends.get(partition) if partition in self._positions else None

    def poll(self, timeout: float) -> dict[TopicPartition, list[MemoryRecord]]:
        """Return records that follow the positions."""
        self._begin("poll")
        deadline = Deadline(timeout)
        with self._cluster._changed:
            before = self._standing()
            while True:
                found = self._take() if self._synchronise() else {}
                if found or self._standing() != before:
                    return found
                if not self._cluster._changed.wait(deadline.left) and deadline.over:
                    return {}

    def _synchronise(self) -> bool:
        """Do what a group asks for; whether records may be handed out."""
        return True

    def _standing(self) -> Membership | None:
        """What a poll returns for as soon as it changes."""
        return None

    def _take(self) -> dict[TopicPartition, list[MemoryRecord]]:
        found: dict[TopicPartition, list[MemoryRecord]] = {}
        for partition, position in self._positions.items():
            topic = self._cluster._topics.get(partition.topic)
            if position is None or partition in self._paused or topic is None:
                continue
            if partition.partition >= len(topic.logs):
                continue
            log = topic.logs[partition.partition]
            if not log.begin <= position <= log.end:
                where = f"{partition.topic}/{partition.partition}@{position}"
                raise PositionOutOfRange(f"no such offset in the log (any more): {where}")
            self._ends[partition] = log.end
            if records := log.records[position - log.begin :][: self._cluster.max_poll_records]:
                found[partition] = records
        for partition, records in found.items():
            self._positions[partition] = records[-1].offset + 1
        return found

    def pause(self, partitions: Collection[TopicPartition]) -> None:
        """Hand out nothing of these."""
        self._paused |= set(partitions) & set(self._positions)

    def resume(self, partitions: Collection[TopicPartition]) -> None:
        """Undo `pause`."""
        self._paused -= set(partitions)

    def begins(self, partitions: Collection[TopicPartition]) -> dict[TopicPartition, int]:
        """Offset of the first record left of each."""
        self._begin("begins")
        with self._cluster._changed:
            return {partition: self._cluster._log(partition).begin for partition in partitions}

    def ends(self, partitions: Collection[TopicPartition]) -> dict[TopicPartition, int]:
        """Offset behind the last record of each."""
        self._begin("ends")
        with self._cluster._changed:
            return {partition: self._cluster._log(partition).end for partition in partitions}

    def close(self) -> None:
        """Close it."""
        self._closed = True


class MemoryReader(_Positioned):
    """A Reader."""

    def assign(self, partitions: Collection[TopicPartition]) -> None:
        """Read these from now on, and no others."""
        self._begin("assign")
        self._positions = {partition: self._positions.get(partition) for partition in partitions}
        self._paused &= set(partitions)

    def partitions(self, topic: str) -> set[int]:
        """The topic's partitions."""
        self._begin("partitions")
        with self._cluster._changed:
            there = self._cluster._topics.get(topic)
            return set(range(len(there.logs))) if there else set()


class MemoryMember(_Positioned):
    """A Member: it joins, rejoins and learns what it owns in its own polls."""

    def __init__(self, cluster: MemoryCluster, group: str, topic: str, name: str, bid: Callable[[], Bid]) -> None:
        super().__init__(cluster)
        self.name = name
        self.bid = bid
        self.group = group
        self.topic = topic
        self.member_id = ""
        self.generation = -1
        self._joining = False

    @property
    def owned(self) -> set[TopicPartition]:
        """What it owns, as far as it knows."""
        return set(self._positions)

    def claim(self) -> Claim:
        """What it says as it joins."""
        return Claim(self.generation, tuple(sorted(one.partition for one in self.owned)), self.bid())

    def rejoin(self) -> None:
        """Ask for the partitions to be shared out anew."""
        with self._cluster._changed:
            group = self._cluster._group(self.group)
            if self.member_id in group.members and group.joining is None:
                group.joining = set()
                self._cluster._changed.notify_all()

    @property
    def membership(self) -> Membership | None:
        """None while it is no member, or a rebalance is under way."""
        if self._joining or self.generation < 0:
            return None
        return Membership(self.generation, self.member_id)

    def assignment(self) -> set[TopicPartition]:
        """What it owns, as far as it knows."""
        return self.owned

    def _standing(self) -> Membership | None:
        return self.membership

    def _synchronise(self) -> bool:
        group = self._cluster._group(self.group)
        if self.member_id not in group.members:
            # Lost: it claims nothing of what it owned, and comes back as somebody new.
            self._positions, self._paused, self.generation = {}, set(), -1
            self.member_id = f"{self.name}-{next(self._cluster._numbers)}"
            group.members[self.member_id] = self
            group.joining = group.joining or set()
        if group.joining is None and self.generation != group.generation:
            self._settle(group)
        if group.joining is not None and self.member_id not in group.joining:
            self._joining = True
            group.joining.add(self.member_id)
            self._cluster._complete(group)
            if group.joining is None:
                self._settle(group)
                # What it has let go of is given to others in the next round.
                return self._synchronise() if group.joining is not None else True
        return not self._joining

    def _settle(self, group: _Group) -> None:
        """Take up what the new generation gave."""
        share = group.shares[self.member_id]
        let_go = self.owned - set(share)
        before = self._positions
        self._positions = {}
        for partition in share:
            committed = group.commits.get(partition)
            fresh = self._cluster.stale.pop(partition, committed.offset if committed else None)
            self._positions[partition] = before.get(partition, fresh)
        self._paused &= set(share)
        self.generation = group.generation
        self._joining = False
        if let_go:
            group.joining = set()
            self._cluster._changed.notify_all()

    def commit(self, commits: Mapping[TopicPartition, Commit], timeout: float) -> bool:
        """Commit as this member; False: not taken, or nobody knows."""
        try:
            self._begin("commit")
            with self._cluster._changed:
                group = self._cluster._group(self.group)
                if self.member_id not in group.members or self.generation != group.generation:
                    return False
                group.commits |= commits
            self._cluster.faults("commit acknowledged")
        except BrokerUnavailable:
            return False
        return True

    def close(self) -> None:
        """Leave the group at once."""
        with self._cluster._changed:
            self._cluster._remove(self)
        super().close()


class MemoryAdmin:
    """An Admin."""

    def __init__(self, cluster: MemoryCluster) -> None:
        self._cluster = cluster

    def committed(
        self, groups: Mapping[str, Iterable[TopicPartition] | None]
    ) -> dict[str, dict[TopicPartition, Commit]]:
        """What groups committed."""
        self._cluster.faults("committed")
        with self._cluster._changed:
            found: dict[str, dict[TopicPartition, Commit]] = {}
            for name, wanted in groups.items():
                group = self._cluster._groups.get(name)
                commits = group.commits if group else {}
                among = set(commits if wanted is None else wanted)
                found[name] = {partition: commit for partition, commit in commits.items() if partition in among}
            return found

    def commit(self, group: str, commits: Mapping[TopicPartition, Commit]) -> None:
        """Commit for a group that has no members."""
        self._cluster.faults("commit")
        with self._cluster._changed:
            for partition in commits:
                self._cluster._log(partition)
            there = self._cluster._group(group)
            if there.members and commits:
                raise StreamConflict(f"group {group} has members: nobody else may change its offsets")
            there.commits |= commits
        self._cluster.faults("commit acknowledged")

    def ends(self, partitions: Iterable[TopicPartition]) -> dict[TopicPartition, int]:
        """Offset behind the last record of each."""
        self._cluster.faults("ends")
        with self._cluster._changed:
            return {partition: self._cluster._log(partition).end for partition in partitions}

    def num_members(self, groups: Iterable[str]) -> dict[str, int]:
        """How many members each group has."""
        self._cluster.faults("num_members")
        with self._cluster._changed:
            return {name: len(self._cluster._group(name).members) for name in groups}

    def members(self, group: str) -> list[GroupMember]:
        """Who is in a group."""
        self._cluster.faults("members")
        with self._cluster._changed:
            there = self._cluster._group(group)
            stable = there.joining is None
            return [
                GroupMember(
                    name,
                    one.name,
                    "memory",
                    one.bid() if stable else Bid(),
                    tuple(at.partition for at in there.shares.get(name, ())) if stable else (),
                )
                for name, one in there.members.items()
            ]

    def remove(self, group: str, member_ids: Collection[str]) -> None:
        """Let members leave that cannot do so themselves."""
        self._cluster.faults("remove")
        with self._cluster._changed:
            there = self._cluster._group(group)
            for one in [there.members[name] for name in member_ids if name in there.members]:
                self._cluster._remove(one)

    def identities(self, topics: Iterable[str]) -> dict[str, TopicIdentity | None]:
        """What each topic is."""
        self._cluster.faults("identities")
        with self._cluster._changed:
            there = {name: self._cluster._topics.get(name) for name in topics}
            return {name: TopicIdentity(one.topic_id, len(one.logs)) if one else None for name, one in there.items()}

    def close(self) -> None:
        """Close it."""
