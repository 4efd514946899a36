"""A group's leader may forget that it was joining: the join is asked for again."""

from __future__ import annotations

from kafka import KafkaConsumer
from kafka.structs import MemberState


def is_rebalancing(consumer: KafkaConsumer) -> bool:
    """Whether a join is under way, and if so, make sure that the next poll goes on with it; call it after each poll.

    A leader joins again by itself when the topic's metadata change. If the poll in which it does so ends before the
    join does, kafka-python forgets that it was joining: `rejoin_needed` is false, heartbeats are off, and nothing ever
    comes again, without an error (measured).
    """
    if consumer.group_metadata().state != MemberState.REBALANCING:
        return False
    consumer._coordinator.request_rejoin()
    return True
