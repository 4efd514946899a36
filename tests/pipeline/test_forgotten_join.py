"""A member that forgets that it was joining, or that it has joined."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from pipeline.kafka.clients import admin_client
from pipeline.kafka.cluster import KafkaCluster
from pipeline.kafka.consumers import KafkaMember
from pipeline.kafka.settings import KafkaSettings
from pipeline.wait import Deadline

pytestmark = pytest.mark.kafka
Join = Callable[[], KafkaMember]


@pytest.fixture
def join(kafka_settings: KafkaSettings, fresh_name: Callable[[str], str]) -> Iterator[Join]:
    """Make another member of one group."""
    topic, group = fresh_name("shared"), fresh_name("group")
    with admin_client(kafka_settings) as admin:
        admin.create_topics({topic: {"num_partitions": 4, "replication_factor": 1}}, wait_for_metadata=True)
    made: list[KafkaMember] = []

    def one() -> KafkaMember:
        name = f"m{len(made)}"
        made.append(KafkaCluster(kafka_settings).member(group, topic, name=name, session_timeout=6.0))
        return made[-1]

    yield one
    for member in made:
        member.close()


def settle(*members: KafkaMember) -> int:
    """Poll in turn until all partitions are shared out; returns the generation."""
    deadline = Deadline(20)
    while True:
        for member in members:
            member.poll(0.1)
        standings = [member.membership for member in members]
        if all(standings) and sum(len(member.assignment()) for member in members) == 4:
            return max(standing.generation for standing in standings if standing)
        assert not deadline.over, f"the group did not settle: {standings}"


def test_a_leader_whose_poll_ends_before_its_join_does_comes_back(
    join: Join, eventually: Callable[..., object]
) -> None:
    member = join()
    before = settle(member)
    coordinator = member._consumer._coordinator
    # As after a change of the topic's metadata.
    coordinator._assignment_snapshot = {"another": {0}}
    member.poll(0.0)
    assert member.membership is None
    eventually(lambda: coordinator._join_task.is_done, 10.0, "the end of the join")
    assert settle(member) > before


def test_members_that_one_thread_polls_in_turn_settle(join: Join) -> None:
    first = join()
    before = settle(first)
    # Each time a join is completed between two polls of the first, which leads the group.
    assert settle(first, join()) <= before + 4
