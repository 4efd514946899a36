"""What the log promises (pipeline/kafka/log.py), asked of the real one and of its twin in memory alike."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any, Protocol

import pytest
from kafka import TopicPartition
from support.memory_log import MemoryCluster

from pipeline.kafka.bids import Bid
from pipeline.kafka.clients import admin_client
from pipeline.kafka.cluster import KafkaCluster
from pipeline.kafka.log import Cluster, Commit, Member, Membership, Positioned, Reader, Record
from pipeline.kafka.settings import KafkaSettings
from pipeline.wait import Deadline
from schemas.errors import BrokerUnavailable, DistillogError, PositionOutOfRange, RecordTooLarge, StreamConflict

Eventually = Callable[..., Any]


class Ground(Protocol):
    """A cluster, and what the test does to it by other means."""

    cluster: Cluster

    def create_topic(self, topic: str, partitions: int) -> None: ...
    def delete_topic(self, topic: str) -> None: ...
    def delete_records(self, partition: TopicPartition, before: int) -> None: ...


class MemoryGround:
    def __init__(self) -> None:
        self.cluster = MemoryCluster()
        self.create_topic = self.cluster.create_topic
        self.delete_topic = self.cluster.delete_topic
        self.delete_records = self.cluster.delete_records


class KafkaGround:
    def __init__(self, settings: KafkaSettings) -> None:
        self.cluster = KafkaCluster(settings)
        self._settings = settings

    def create_topic(self, topic: str, partitions: int) -> None:
        with admin_client(self._settings) as admin:
            made = {topic: {"num_partitions": partitions, "replication_factor": 1}}
            admin.create_topics(made, wait_for_metadata=True)

    def delete_topic(self, topic: str) -> None:
        with admin_client(self._settings) as admin:
            admin.delete_topics([topic])

    def delete_records(self, partition: TopicPartition, before: int) -> None:
        with admin_client(self._settings) as admin:
            admin.delete_records({partition: before})


@pytest.fixture(params=["memory", pytest.param("kafka", marks=pytest.mark.kafka)])
def ground(request: pytest.FixtureRequest) -> Ground:
    return MemoryGround() if request.param == "memory" else KafkaGround(request.getfixturevalue("kafka_settings"))


@pytest.fixture
def closing() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def topic(ground: Ground, fresh_name: Callable[[str], str]) -> str:
    name = fresh_name("log")
    ground.create_topic(name, 4)
    return name


@pytest.fixture
def reader(ground: Ground, closing: ExitStack) -> Reader:
    made = ground.cluster.reader()
    closing.callback(made.close)
    return made


def write(ground: Ground, topic: str, *values: bytes, partition: int = 0) -> list[int]:
    """Append some records; returns their offsets."""
    appender = ground.cluster.appender(max_record_bytes=1 << 20)
    try:
        return [appender.append(topic, partition, value).result(30) for value in values]
    finally:
        appender.close(5)


def read(reader: Positioned, partition: TopicPartition, count: int) -> list[Record]:
    """Poll until as many records came of a partition; more is an error."""
    found: list[Record] = []
    deadline = Deadline(20)
    while len(found) < count:
        assert not deadline.over, f"{len(found)} of {count} records came"
        found += reader.poll(0.5).get(partition, [])
    assert len(found) == count
    return found


def values(records: list[Record]) -> list[bytes | None]:
    return [record.value for record in records]


def test_a_record_is_acknowledged_with_its_offset(ground: Ground, topic: str) -> None:
    assert write(ground, topic, b"a", b"b", partition=1) == [0, 1]
    assert write(ground, topic, b"c", partition=1) == [2]
    assert write(ground, topic, b"d", partition=2) == [0]


def test_what_was_written_is_read_in_order_with_its_key(ground: Ground, topic: str, reader: Reader) -> None:
    appender = ground.cluster.appender(max_record_bytes=1 << 20, batch_bytes=4_000)
    sent = [appender.append(topic, 3, b"%d" % number, key=b"k", headers=[("h", b"v")]) for number in range(50)]
    assert [future.result(30) for future in sent] == list(range(50))
    appender.close(5)
    at = TopicPartition(topic, 3)
    reader.assign([at])
    reader.seek(at, 0)
    found = read(reader, at, 50)
    assert values(found) == [b"%d" % number for number in range(50)]
    assert [(r.topic, r.partition, r.offset, r.key) for r in found[:2]] == [(topic, 3, 0, b"k"), (topic, 3, 1, b"k")]
    assert list(found[0].headers) == [("h", b"v")]
    assert reader.position(at) == 50


def test_a_callback_hears_of_the_acknowledgement(ground: Ground, topic: str) -> None:
    appender = ground.cluster.appender(max_record_bytes=1 << 20)
    heard = threading.Event()
    offsets: list[int] = []
    future = appender.append(topic, 0, b"a")
    future.add_done_callback(lambda done: (offsets.append(done.result()), heard.set()))  # type: ignore[func-returns-value]
    assert heard.wait(30)
    assert offsets == [0]
    assert not future.cancel()
    appender.close(5)


def test_a_record_that_is_too_large_fails_by_itself(ground: Ground, topic: str) -> None:
    appender = ground.cluster.appender(max_record_bytes=1000)
    with pytest.raises(RecordTooLarge):
        appender.append(topic, 0, b"x" * 100_000).result(30)
    appender.close()
    assert ends(ground, topic)[0] == 0


def test_a_partition_that_is_not_there_fails_its_record(ground: Ground, topic: str) -> None:
    appender = ground.cluster.appender(max_record_bytes=1000)
    with pytest.raises(DistillogError):
        appender.append(topic, 9, b"x").result(30)
    appender.close()


def test_a_closed_appender_writes_nothing_more(ground: Ground, topic: str) -> None:
    appender = ground.cluster.appender(max_record_bytes=1000)
    appender.append(topic, 0, b"x").result(30)
    appender.close()
    with pytest.raises(BrokerUnavailable):
        appender.append(topic, 0, b"y").result(30)
    appender.close()
    assert ends(ground, topic)[0] == 1


def ends(ground: Ground, topic: str) -> dict[int, int]:
    admin = ground.cluster.admin()
    try:
        found = admin.ends(TopicPartition(topic, partition) for partition in range(4))
        return {partition.partition: end for partition, end in found.items()}
    finally:
        admin.close()


def test_reader_and_admin_agree_on_begins_and_ends(ground: Ground, topic: str, reader: Reader) -> None:
    write(ground, topic, b"a", b"b", b"c", partition=1)
    places = [TopicPartition(topic, partition) for partition in range(4)]
    assert reader.begins(places) == dict.fromkeys(places, 0)
    assert ends(ground, topic) == {0: 0, 1: 3, 2: 0, 3: 0}
    assert {partition.partition: end for partition, end in reader.ends(places).items()} == ends(ground, topic)
    ground.delete_records(places[1], 2)
    assert reader.begins(places)[places[1]] == 2
    assert reader.ends(places)[places[1]] == 3
    assert reader.begins([]) == reader.ends([]) == {}


def test_partitions_are_told_and_a_topic_that_is_not_there_has_none(
    ground: Ground, topic: str, reader: Reader, fresh_name: Callable[[str], str]
) -> None:
    assert reader.partitions(topic) == {0, 1, 2, 3}
    assert reader.partitions(fresh_name("nothing")) == set()


def test_reading_begins_where_it_was_told_to(ground: Ground, topic: str, reader: Reader) -> None:
    write(ground, topic, b"a", b"b", b"c")
    at = TopicPartition(topic, 0)
    reader.assign([at])
    assert reader.position(at) is None
    assert reader.poll(0.1) == {}
    reader.seek(at, 1)
    assert reader.position(at) == 1
    assert values(read(reader, at, 2)) == [b"b", b"c"]
    reader.seek(at, 2)
    assert values(read(reader, at, 1)) == [b"c"]
    assert reader.poll(0.2) == {}
    write(ground, topic, b"d")
    assert values(read(reader, at, 1)) == [b"d"]


def test_the_end_of_a_log_is_known_from_polls_alone(ground: Ground, topic: str, reader: Reader) -> None:
    write(ground, topic, b"a", b"b", b"c")
    at, other = TopicPartition(topic, 0), TopicPartition(topic, 1)
    reader.assign([at])
    reader.seek(at, 1)
    assert reader.known_end(at) is None
    read(reader, at, 2)
    assert reader.known_end(at) == 3
    write(ground, topic, b"d")
    assert reader.known_end(at) == 3
    read(reader, at, 1)
    assert (reader.known_end(at), reader.known_end(other)) == (4, None)
    reader.assign([other])
    assert reader.known_end(at) is None


def test_what_is_not_assigned_cannot_be_sought_and_has_no_position(ground: Ground, topic: str, reader: Reader) -> None:
    first, second = TopicPartition(topic, 0), TopicPartition(topic, 1)
    reader.assign([first])
    reader.assign([second])
    with pytest.raises(ValueError, match="assigned"):
        reader.seek(first, 0)
    assert reader.position(first) is None


@pytest.mark.parametrize("offset", [0, 9])
def test_a_place_that_is_not_in_the_log_is_an_error_and_no_jump(
    offset: int, ground: Ground, topic: str, reader: Reader
) -> None:
    write(ground, topic, b"a", b"b", b"c")
    at = TopicPartition(topic, 0)
    ground.delete_records(at, 2)
    reader.assign([at])
    reader.seek(at, offset)
    with pytest.raises(PositionOutOfRange, match=f"{topic}/0@{offset}"):
        read(reader, at, 1)
    reader.seek(at, 2)
    assert values(read(reader, at, 1)) == [b"c"]


def test_a_paused_partition_hands_out_nothing_until_it_is_resumed(ground: Ground, topic: str, reader: Reader) -> None:
    one, other = TopicPartition(topic, 0), TopicPartition(topic, 1)
    write(ground, topic, b"a", b"b")
    write(ground, topic, b"c", partition=1)
    reader.assign([one, other])
    reader.seek(one, 0)
    reader.seek(other, 0)
    reader.pause([one])
    assert values(read(reader, other, 1)) == [b"c"]
    assert reader.poll(0.2) == {}
    reader.resume([one])
    assert values(read(reader, one, 2)) == [b"a", b"b"]


def test_a_topic_made_again_has_another_identity(ground: Ground, topic: str, eventually: Eventually) -> None:
    admin = ground.cluster.admin()
    first = admin.identities([topic])[topic]
    assert first is not None
    assert first.partitions == 4
    ground.delete_topic(topic)
    eventually(lambda: admin.identities([topic]) == {topic: None}, 10.0, "the topic's end")
    ground.create_topic(topic, 4)
    second = eventually(lambda: admin.identities([topic])[topic], 10.0, "the topic's return")
    assert second.topic_id != first.topic_id
    admin.close()


# Groups.


@pytest.fixture
def group(fresh_name: Callable[[str], str]) -> str:
    return fresh_name("group")


def test_a_group_that_never_was_has_no_commits_and_no_members(ground: Ground, topic: str, group: str) -> None:
    admin = ground.cluster.admin()
    assert admin.committed({group: None}) == {group: {}}
    assert admin.committed({group: [TopicPartition(topic, 0)]}) == {group: {}}
    assert admin.committed({}) == {}
    assert admin.num_members([group]) == {group: 0}
    assert admin.members(group) == []
    admin.close()


def test_anyone_commits_for_a_group_without_members(ground: Ground, topic: str, group: str) -> None:
    admin = ground.cluster.admin()
    first, second = TopicPartition(topic, 0), TopicPartition(topic, 1)
    admin.commit(group, {first: Commit(3, "three"), second: Commit(1)})
    admin.commit(group, {second: Commit(2, "two")})
    whole = {first: Commit(3, "three"), second: Commit(2, "two")}
    assert admin.committed({group: None}) == {group: whole}
    assert admin.committed({group: [second, TopicPartition(topic, 2)]}) == {group: {second: whole[second]}}
    admin.close()


def test_nothing_is_committed_for_a_topic_that_is_not_there(
    ground: Ground, group: str, fresh_name: Callable[[str], str]
) -> None:
    admin = ground.cluster.admin()
    with pytest.raises(BrokerUnavailable):
        admin.commit(group, {TopicPartition(fresh_name("nothing"), 0): Commit(1)})
    assert admin.committed({group: None}) == {group: {}}
    admin.close()


class Members:
    """Members of one group, polled in turn by one thread."""

    def __init__(self, ground: Ground, topic: str, group: str, closing: ExitStack) -> None:
        self._ground, self._topic, self._group, self._closing = ground, topic, group, closing
        self.there: list[Member] = []
        self.handed_out: list[Record] = []
        """what came while they settled"""

    def join(self, bid: Callable[[], Bid] = Bid) -> Member:
        name = f"m{len(self.there)}"
        member = self._ground.cluster.member(self._group, self._topic, name=name, session_timeout=6.0, bid=bid)
        self._closing.callback(member.close)
        self.there.append(member)
        return member

    def settle(self) -> None:
        """Poll until everything is shared out; at no time has a partition two owners."""
        deadline = Deadline(60)
        while True:
            for member in self.there:
                for records in member.poll(0.1).values():
                    self.handed_out += records
            owned = [partition for member in self.there if member.membership for partition in member.assignment()]
            assert len(owned) == len(set(owned))
            if all(member.membership for member in self.there) and len(owned) == 4:
                generations = {member.membership.generation for member in self.there if member.membership}
                if len(generations) == 1:
                    return
            assert not deadline.over, "the group did not settle"

    def settle_after(self, before: Membership) -> None:
        """Poll until everything is shared out in a later generation."""
        deadline = Deadline(60)
        while (now := self.there[0].membership) is None or now.generation <= before.generation:
            for member in self.there:
                member.poll(0.1)
            assert not deadline.over, "nobody shared out anew"
        self.settle()


@pytest.fixture
def members(ground: Ground, topic: str, group: str, closing: ExitStack) -> Members:
    return Members(ground, topic, group, closing)


def test_a_lone_member_owns_everything_and_reads_where_it_was_told_to(
    ground: Ground, topic: str, members: Members
) -> None:
    write(ground, topic, b"a", b"b", b"c", partition=2)
    member = members.join()
    assert member.membership is None
    members.settle()
    assert member.assignment() == {TopicPartition(topic, partition) for partition in range(4)}
    assert member.position(TopicPartition(topic, 2)) is None
    for partition in member.assignment():
        member.seek(partition, 0)
    assert values(read(member, TopicPartition(topic, 2), 3)) == [b"a", b"b", b"c"]


def test_shares_are_equal_and_each_join_and_leave_is_another_generation(
    ground: Ground, topic: str, members: Members
) -> None:
    first = members.join()
    members.settle()
    alone = first.membership
    second = members.join()
    members.settle()
    assert [len(member.assignment()) for member in (first, second)] == [2, 2]
    both = first.membership
    assert alone is not None
    assert both is not None
    assert both.generation > alone.generation
    assert both.member_id == alone.member_id
    second.close()
    members.there.remove(second)
    members.settle()
    left = first.membership
    assert left is not None
    assert left.generation > both.generation


def test_shares_follow_what_members_bid_and_whoever_asks_has_them_shared_out_anew(
    ground: Ground, topic: str, group: str, members: Members
) -> None:
    bids = {"m0": Bid(10.0, {}), "m1": Bid(30.0, {})}
    admin = ground.cluster.admin()
    assert admin.members(group) == []
    first, second = members.join(lambda: bids["m0"]), members.join(lambda: bids["m1"])
    members.settle()
    assert [len(member.assignment()) for member in (first, second)] == [1, 3]
    before = first.membership
    known = {one.name: one for one in admin.members(group)}
    assert {name: (one.bid.speed, len(one.partitions)) for name, one in known.items()} == {
        "m0": (10.0, 1),
        "m1": (30.0, 3),
    }
    assert before is not None
    assert known["m0"].member_id == before.member_id
    bids["m1"] = Bid(3.0, {})
    for asks in (second, first):  # a follower that has news is heard, and so is the leader
        asks.rejoin()
        members.settle_after(before)
        assert [len(member.assignment()) for member in (first, second)] == [3, 1]
        before = first.membership
        assert before is not None
        bids["m0"] = Bid(10.1, {})
    admin.close()


def test_a_member_commits_and_goes_on_where_its_group_left(
    ground: Ground, topic: str, group: str, members: Members
) -> None:
    at = TopicPartition(topic, 1)
    write(ground, topic, b"a", b"b", b"c", partition=1)
    first = members.join()
    members.settle()
    assert first.commit({at: Commit(2, "next")}, 5.0)
    admin = ground.cluster.admin()
    assert admin.committed({group: None}) == {group: {at: Commit(2, "next")}}
    assert admin.num_members([group]) == {group: 1}
    first.close()
    members.there.remove(first)
    assert admin.num_members([group]) == {group: 0}
    second = members.join()
    members.settle()
    for partition in second.assignment() - {at}:
        second.seek(partition, 0)
    assert values(members.handed_out or read(second, at, 1)) == [b"c"]
    assert second.position(at) == 3
    admin.close()


def test_a_partition_that_stays_keeps_its_position(ground: Ground, topic: str, members: Members) -> None:
    first = members.join()
    members.settle()
    for partition in first.assignment():
        write(ground, topic, b"a", b"b", partition=partition.partition)
        first.seek(partition, 1)
    members.join()
    members.settle()
    assert len(first.assignment()) == 2
    assert all(first.position(partition) in (1, 2) for partition in first.assignment())


def test_nobody_else_commits_for_a_group_with_members(ground: Ground, topic: str, group: str, members: Members) -> None:
    members.join()
    members.settle()
    admin = ground.cluster.admin()
    with pytest.raises(StreamConflict, match="has members"):
        admin.commit(group, {TopicPartition(topic, 0): Commit(1)})
    assert admin.committed({group: None}) == {group: {}}
    admin.close()


def test_the_commit_of_a_zombie_is_refused_and_it_comes_back_as_somebody_new(
    ground: Ground, topic: str, group: str, members: Members
) -> None:
    zombie, other = members.join(), members.join()
    members.settle()
    before = zombie.membership
    assert before is not None
    admin = ground.cluster.admin()
    for _ in range(2):  # who is no member any more is passed over
        admin.remove(group, [before.member_id])
    assert not zombie.commit({TopicPartition(topic, 0): Commit(1)}, 5.0)
    assert admin.committed({group: None}) == {group: {}}
    admin.close()
    members.settle()
    assert zombie.membership is not None
    assert zombie.membership.member_id != before.member_id
    assert [len(member.assignment()) for member in (zombie, other)] == [2, 2]


def test_a_member_cannot_seek_what_it_does_not_own(ground: Ground, topic: str, members: Members) -> None:
    first = members.join()
    members.join()
    members.settle()
    foreign = {TopicPartition(topic, partition) for partition in range(4)} - first.assignment()
    with pytest.raises(ValueError, match="assigned"):
        first.seek(min(foreign), 0)
    assert first.position(min(foreign)) is None
