"""Who labels which partitions: a cooperative, sticky assignor with equal shares.

Cooperative (KIP-429): a member keeps working on what it keeps, and a partition that must move is given to nobody until
its owner has let go of it. The stock assignor is not used because it sends no generation, by which a member that comes
back from a long sleep is told from the partition's present owner.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kafka import ConsumerRebalanceListener, TopicPartition
from kafka.coordinator.assignors.abstract import AbstractPartitionAssignor, RebalanceProtocol
from kafka.protocol.consumer.metadata import ConsumerProtocolAssignment, ConsumerProtocolSubscription

Claims = Mapping[str, tuple[int, list[TopicPartition]]]
"""member -> (generation of its last assignment, the partitions that it says it owns)"""


def equal_quotas(members: list[str], num_partitions: int) -> dict[str, int]:
    """Partitions for each member: equal, the remainder to the first in order of name."""
    share, rest = divmod(num_partitions, len(members))
    return {member: share + (number < rest) for number, member in enumerate(sorted(members))}


def share_out(partitions: list[TopicPartition], claims: Claims) -> dict[str, list[TopicPartition]]:
    """Give each partition to at most one member, moving as few as the quotas allow.

    A partition that must move is held back for one round: it stays out of the result while its owner still works on it.
    """
    owners: dict[TopicPartition, str] = {}
    for member in sorted(claims, key=lambda member: (-claims[member][0], member)):
        for partition in claims[member][1]:
            owners.setdefault(partition, member)  # of two claimants the newer generation owns it
    owned: dict[str, list[TopicPartition]] = {member: [] for member in claims}
    for partition in sorted(partitions):
        if partition in owners:
            owned[owners[partition]].append(partition)

    # The members that own most get the remainder, so that nothing moves for its sake.
    by_wealth = sorted(claims, key=lambda member: (-len(owned[member]), member))
    quotas = equal_quotas([f"{rank:06d}" for rank in range(len(by_wealth))], len(partitions))
    quota = {member: quotas[f"{rank:06d}"] for rank, member in enumerate(by_wealth)}

    shares = {member: owned[member][: quota[member]] for member in claims}
    free = [partition for partition in sorted(partitions) if partition not in owners]
    for partition in free:
        poorest = min(claims, key=lambda member: (len(shares[member]) - quota[member], member))
        shares[poorest].append(partition)
    return shares


class EqualShares(AbstractPartitionAssignor):  # type: ignore[misc]
    """The assignor of all workers of one teacher; one instance per consumer."""

    name = "distillog-equal"
    version = 2

    def __init__(self) -> None:
        self._owned: list[TopicPartition] = []
        self._generation = -1

    def supported_protocols(self) -> list[RebalanceProtocol]:
        """Cooperative rebalances alone."""
        return [RebalanceProtocol.COOPERATIVE]

    def metadata(self, topics: set[str]) -> Any:
        """Say what this member owns, at every join."""
        by_topic: dict[str, list[int]] = {}
        for topic, partition in self._owned:
            by_topic.setdefault(topic, []).append(partition)
        owned = ConsumerProtocolSubscription.TopicPartition
        return ConsumerProtocolSubscription(
            version=self.version,
            topics=sorted(topics),
            user_data=b"",
            owned_partitions=[owned(topic=topic, partitions=sorted(rows)) for topic, rows in by_topic.items()],
            generation_id=self._generation,
        )

    def on_assignment(self, assignment: Any, generation: int) -> None:
        """Remember what was given, and when."""
        self._owned = list(assignment.partitions())
        self._generation = generation

    def forget(self) -> None:
        """Membership was lost: claim nothing at the next join."""
        self._owned, self._generation = [], -1

    def assign(self, cluster: Any, members: list[Any]) -> dict[str, Any]:
        """Share out all partitions; runs in the group's leader alone."""
        topics = sorted({topic for member in members for topic in member.metadata.topics})
        partitions = [
            TopicPartition(topic, partition)
            for topic in topics
            for partition in sorted(cluster.partitions_for_topic(topic) or ())
        ]
        claims = {member.member_id: self._claim(member.metadata) for member in members}
        shares = share_out(partitions, claims)
        return {member: self._assignment(share) for member, share in shares.items()}

    @staticmethod
    def _claim(metadata: Any) -> tuple[int, list[TopicPartition]]:
        owned = [TopicPartition(o.topic, p) for o in metadata.owned_partitions or () for p in o.partitions]
        return getattr(metadata, "generation_id", -1), owned

    @staticmethod
    def _assignment(share: list[TopicPartition]) -> Any:
        by_topic: dict[str, list[int]] = {}
        for topic, partition in share:
            by_topic.setdefault(topic, []).append(partition)
        return ConsumerProtocolAssignment(version=0, assigned_partitions=list(by_topic.items()), user_data=b"")


class Forgetting(ConsumerRebalanceListener):  # type: ignore[misc]
    """After lost membership the assignor must claim nothing; runs on the client's IO thread."""

    def __init__(self, assignor: EqualShares) -> None:
        self._assignor = assignor

    def on_partitions_revoked(self, revoked: Any) -> None:
        """Nothing to do: the poll that follows compares the assignment."""

    def on_partitions_assigned(self, assigned: Any) -> None:
        """Nothing to do: the poll that follows compares the assignment."""

    def on_partitions_lost(self, lost: Any) -> None:
        """Claim nothing at the next join."""
        self._assignor.forget()
