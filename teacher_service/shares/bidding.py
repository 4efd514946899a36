"""What a worker bids for its share of the partitions, and what its group would gain by sharing them out anew."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from kafka import TopicPartition

from pipeline.kafka.bids import Bid
from pipeline.kafka.log import Admin
from pipeline.kafka.shares import Claim, gain
from pipeline.names import teacher_group, work_orders_topic
from pipeline.sequence import Sequence
from schemas.commits import decode_next_sequence
from schemas.records import Manifest, Teacher
from teacher_service.leases.chain import Chain


class Bidding:
    """Of one worker."""

    def __init__(
        self,
        manifest: Manifest,
        teacher: Teacher,
        chains: Mapping[int, Chain],
        admin: Admin,
        speed: Callable[[], float],
        stuck: Callable[[], set[int]],
    ) -> None:
        """Look at what others keep.

        Args:
            manifest, teacher: whose orders the worker labels.
            chains: by partition; those of the moment.
            admin: asked by `gain`.
            speed: samples per second; 0: not known.
            stuck: partitions of which an order may never end.
        """
        self.last = Bid()
        """what was said when the partitions were shared out last"""
        self._group = teacher_group(manifest, teacher.name)
        topic = work_orders_topic(manifest.stream)
        self._orders = [TopicPartition(topic, partition) for partition in range(manifest.partitions)]
        self._num_orders = Sequence.of(manifest).num_orders
        self._chains = chains
        self._admin = admin
        self._speed = speed
        self._stuck = stuck

    def bid(self) -> Bid:
        """What this worker says of itself when the partitions are shared out; called by the client's thread."""
        left = {chain.partition: self._left(chain.done.sequence) for chain in list(self._chains.values())}
        self.last = Bid(self._speed(), left, tuple(sorted(self._stuck() & left.keys())))
        return self.last

    @property
    def freed(self) -> bool:
        """Whether partitions are free to move that were not when they were shared out last."""
        return bool(self.last.pinned) and not self._stuck() & set(self.last.pinned)

    def gain(self, me: str, own_speed: float) -> float:
        """By which factor the group would be done sooner if the partitions were shared out anew; 1 if nobody knows.

        Args:
            me: this worker's member ID.
            own_speed: samples per second; others are as fast as they said when they joined.

        Raises:
            BrokerUnavailable: no answer.
        """
        members = self._admin.members(self._group)
        committed = self._admin.committed({self._group: self._orders}).get(self._group, {})
        members = [one for one in members if one.bid.speed or one.partitions]  # others are no workers
        if not members or not all(member.bid.speed for member in members):
            return 1.0  # a rebalance is under way
        left: dict[int, int] = {}
        for at, commit in committed.items():
            sequence = decode_next_sequence(commit.metadata, at.partition, len(self._orders), commit.offset)
            if sequence is not None:
                left[at.partition] = self._left(sequence)
        claims = {}
        for one in members:
            speed, pinned = one.bid.speed, one.bid.pinned
            if one.member_id == me:
                speed, pinned = own_speed, tuple(self._stuck())
            of_member = {partition: left[partition] for partition in one.partitions if partition in left}
            claims[one.member_id] = Claim(0, one.partitions, Bid(speed, of_member, pinned))
        return gain(len(self._orders), claims)

    def _left(self, sequence: int) -> int:
        """Orders of a partition from one of them to the stream's end."""
        return len(range(sequence, self._num_orders, len(self._orders)))
