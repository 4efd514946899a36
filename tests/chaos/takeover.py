"""How long a killed worker's partitions go without labels: kills with nothing else going on."""

from __future__ import annotations

import time
from dataclasses import dataclass

from kafka import KafkaConsumer, TopicPartition

from chaos.checker import Facts
from chaos.roles import Events, Role
from pipeline.wait import Deadline

READY = 90.0
"""Seconds for all workers to label, and for a dead one's partitions to be labelled by others."""
FRESH = 3.0
"""Seconds in which a partition of a backlog has its next label."""
SETTLED = 3.0
"""Seconds for which one worker has labelled a partition that is to stay where it is."""


@dataclass(frozen=True, slots=True)
class Label:
    """The newest label of a partition."""

    worker: str
    since: float
    """When this worker's first label came after another's: seconds since 1970 by the broker's clock, which is ours."""
    time: float


class Labellers:
    """Who labels which partition, as the log says."""

    def __init__(self, servers: str, facts: Facts) -> None:
        self.newest: dict[int, Label] = {}
        self._topic = f"{facts.stream}.soft-targets.{facts.teacher}"
        self._consumer = KafkaConsumer(
            bootstrap_servers=servers.split(","), group_id=None, enable_auto_commit=False, auto_offset_reset="earliest"
        )
        self._consumer.assign([TopicPartition(self._topic, number) for number in range(facts.partitions)])

    def read(self) -> dict[int, Label]:
        """Return partition -> its newest label up to now."""
        for records in self._consumer.poll(timeout_ms=50).values():
            for one in records:
                worker = dict(one.headers)["worker"].decode()
                at, before = one.timestamp / 1000, self.newest.get(one.partition)
                since = before.since if before and before.worker == worker else at
                self.newest[one.partition] = Label(worker, since, at)
        return self.newest

    def close(self) -> None:
        self._consumer.close()


def measure(labellers: Labellers, workers: list[Role], kills: int, events: Events) -> list[float]:
    """Kill one worker after another; seconds until each of its partitions is labelled by another one.

    All of a backlog: every partition has orders waiting. The dead one is started again before the next is killed.
    """
    found: list[float] = []
    for number in range(kills):
        _all_label(labellers, workers)
        victim = workers[number % len(workers)]
        victim.kill()
        killed = time.time()
        arrived = Deadline(0.5)
        while not arrived.over:
            labellers.read()  # what it sent just before it died
        its = {partition for partition, one in labellers.newest.items() if one.worker == victim.name}
        deadline = Deadline(READY)
        while left := {partition for partition in its if labellers.read()[partition].worker == victim.name}:
            assert not deadline.over, f"partitions {sorted(left)} of killed worker {victim.name}: no label in {READY} s"
        found.append(max(labellers.newest[partition].since for partition in its) - killed)
        events.add("takeover", worker=victim.name, partitions=len(its), seconds=round(found[-1], 2))
        victim.start()
    return found


def _all_label(labellers: Labellers, workers: list[Role]) -> None:
    """Wait until every worker has partitions, all are labelled, and none has moved for a while."""
    deadline = Deadline(READY)
    while True:
        newest, now = labellers.read(), time.time()
        busy = {one.worker for one in newest.values()}
        if busy == {role.name for role in workers} and all(
            now - one.time < FRESH and one.time - one.since > SETTLED for one in newest.values()
        ):
            return
        assert not deadline.over, f"after {READY:g} s not all of the workers label without a change: {newest}"
