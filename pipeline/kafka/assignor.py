"""Shares by speed as kafka-python and the broker know them: a cooperative assignor of our own.

Cooperative (KIP-429): a member keeps working on what it keeps, and a partition that must move is given to nobody until
its owner has let go of it. The stock assignors are not used because they send neither what a member says of itself nor
a generation, by which a member that comes back from a long sleep is told from the partition's present owner.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from kafka import ConsumerRebalanceListener, TopicPartition
from kafka.coordinator.assignors.abstract import AbstractPartitionAssignor, RebalanceProtocol
from kafka.protocol.consumer.metadata import ConsumerProtocolAssignment, ConsumerProtocolSubscription

from pipeline.kafka.bids import Bid, decode_bid, encode_bid
from pipeline.kafka.shares import Claim, share_out

NAME = "distillog-shares"
"""Members that know different assignors cannot be in one group: another name is another way of sharing out."""


class SharesBySpeed(AbstractPartitionAssignor):  # type: ignore[misc]
    """The assignor of all workers of one teacher; one instance per consumer."""

    name = NAME
    version = 2

    def __init__(self, bid: Callable[[], Bid]) -> None:
        self._bid = bid
        self._topic = ""
        self._owned: list[TopicPartition] = []
        self._generation = -1
        self._said: dict[int, int] = {}
        """orders that remained, as this member said when it joined last"""
        self._let_go: dict[int, int] = {}
        """the same of partitions that it owned then: until their next owner knows better"""

    def supported_protocols(self) -> list[RebalanceProtocol]:
        """Cooperative rebalances alone."""
        return [RebalanceProtocol.COOPERATIVE]

    def metadata(self, topics: set[str]) -> Any:
        """Say what this member owns and how fast it is, at every join."""
        (self._topic,) = topics
        bid = self._bid()
        owned = {partition for _, partition in self._owned}
        self._said = {partition: left for partition, left in bid.remaining.items() if partition in owned}
        owned_partitions = ConsumerProtocolSubscription.TopicPartition
        return ConsumerProtocolSubscription(
            version=self.version,
            topics=[self._topic],
            user_data=encode_bid(replace(bid, remaining=self._let_go | self._said)),
            owned_partitions=[
                owned_partitions(topic=topic, partitions=rows) for topic, rows in _by_topic(self._owned).items()
            ],
            generation_id=self._generation,
        )

    def on_assignment(self, assignment: Any, generation: int) -> None:
        """Remember what was given, and when."""
        self._owned = list(assignment.partitions())
        self._generation = generation
        kept = {partition for _, partition in self._owned}
        self._let_go = {partition: left for partition, left in self._said.items() if partition not in kept}

    def forget(self) -> None:
        """Membership was lost: claim nothing at the next join."""
        self._owned, self._generation, self._let_go = [], -1, {}

    def assign(self, cluster: Any, members: list[Any]) -> dict[str, Any]:
        """Share out all partitions; runs in the group's leader alone, and asks nobody anything."""
        # A group is of one stream and one teacher, so of the one topic that this member has asked for, too. Who asked
        # for another one is no worker, and gets nothing.
        topic = self._topic
        partitions = len(cluster.partitions_for_topic(topic) or ())
        ours = [member for member in members if topic in member.metadata.topics]
        shares = share_out(partitions, {member.member_id: _claim(member.metadata, topic) for member in ours})
        given = {member.member_id: [(topic, share)] for member in ours if (share := shares[member.member_id])}
        return {
            member.member_id: ConsumerProtocolAssignment(version=0, assigned_partitions=given.get(member.member_id, []))
            for member in members
        }


class Forgetting(ConsumerRebalanceListener):  # type: ignore[misc]
    """After lost membership the assignor must claim nothing; runs on the client's IO thread."""

    def __init__(self, assignor: SharesBySpeed) -> None:
        self._assignor = assignor

    def on_partitions_revoked(self, revoked: Any) -> None:
        """Nothing to do: the poll that follows compares the assignment."""

    def on_partitions_assigned(self, assigned: Any) -> None:
        """Nothing to do: the poll that follows compares the assignment."""

    def on_partitions_lost(self, lost: Any) -> None:
        """Claim nothing at the next join."""
        self._assignor.forget()


def _claim(metadata: Any, topic: str) -> Claim:
    owned = tuple(p for one in metadata.owned_partitions or () if one.topic == topic for p in one.partitions)
    return Claim(getattr(metadata, "generation_id", -1), owned, decode_bid(metadata.user_data))


def _by_topic(partitions: list[TopicPartition]) -> dict[str, list[int]]:
    by_topic: dict[str, list[int]] = {}
    for topic, partition in sorted(partitions):
        by_topic.setdefault(topic, []).append(partition)
    return by_topic
