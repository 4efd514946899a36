"""A member may forget that it was joining its group, or that it has joined: each poll is reminded of both."""

from __future__ import annotations

from typing import Any

from kafka import KafkaConsumer
from kafka.structs import MemberState


class _JustNow:
    """A finished join that looks unfinished, so that the client awaits it instead of beginning another."""

    is_done = False

    def __init__(self, join: Any) -> None:
        self.add_callback = join.add_callback
        self.add_errback = join.add_errback


def before_poll(consumer: KafkaConsumer) -> None:
    """Let the poll that follows take up a join that was completed since the last one.

    kafka-python throws it away and joins again. Where that member leads the group, everybody has to join again for it,
    and if they do so between two of its polls once more, the group never settles (measured: two members that one thread
    polls in turn, 23 generations in 12 s).
    """
    coordinator = consumer._coordinator
    join = coordinator._join_task
    if join is not None and join.is_done and join.succeeded():
        coordinator._join_task = _JustNow(join)


def is_joining(consumer: KafkaConsumer) -> bool:
    """Whether a join is under way, and if so, make sure that the next poll goes on with it; call it after each poll.

    A leader joins again by itself when the topic's metadata change. If the poll in which it does so ends before the
    join does, kafka-python forgets that it was joining: `rejoin_needed` is false, heartbeats are off, and nothing ever
    comes again, without an error (measured).
    """
    if consumer.group_metadata().state != MemberState.REBALANCING:
        return False
    consumer._coordinator.request_rejoin()
    return True
