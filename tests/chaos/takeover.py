"""How long a killed worker's partitions go without labels: kills with nothing else going on."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass

from kafka import KafkaConsumer, KafkaProducer, TopicPartition
from support.streams import order

from chaos.checker import Facts
from chaos.roles import Events, Role
from pipeline.kafka.settings import KafkaSettings
from pipeline.names import work_orders_topic
from pipeline.sequence import Sequence
from pipeline.streams import open_stream
from pipeline.wait import Deadline

PACE = 24.0
"""Orders a second: two in each partition, and as many as one of the workers takes."""
READY = 90.0
"""Seconds for all workers to label, and for a dead one's partitions to be labelled by others."""
FRESH = 3.0
"""Seconds in which every partition has its next label."""
SETTLED = 3.0
"""Seconds for which one worker has labelled a partition that is to stay where it is."""


@dataclass(frozen=True, slots=True)
class Label:
    """The newest label of a partition."""

    worker: str
    since: float
    """When this worker's first label came after another's: seconds since 1970 by the broker's clock, which is ours."""
    time: float


def num_orders(kills: int) -> int:
    """How many orders so many kills take at most."""
    return int(PACE * READY * (kills + 1))


class Trickle:
    """Publishes a stream's orders at a steady pace: of a backlog, a worker labels the lowest sequences first, and
    partitions that are ahead would seem to wait for their new owner. Use as a context manager."""

    def __init__(self, settings: KafkaSettings, stream: str) -> None:
        self._manifest = open_stream(settings, stream).manifest
        self._producer = KafkaProducer(bootstrap_servers=settings.bootstrap_servers.split(","), acks="all")
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._publish, name="trickle", daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self._producer.close(timeout=10)

    def _publish(self) -> None:
        began = time.monotonic()
        for number in range(Sequence.of(self._manifest).num_orders):
            if self._stop.wait(max(0.0, began + number / PACE - time.monotonic())):
                return
            topic, partition = work_orders_topic(self._manifest.stream), number % self._manifest.partitions
            self._producer.send(topic, value=order(self._manifest, number).encode(), partition=partition)


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

    The dead one is started again before the next is killed.
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
            _all_live(workers)
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
        _all_live(workers)
        who = {partition: one.worker for partition, one in sorted(newest.items())}
        assert not deadline.over, f"after {READY:g} s not all of the workers label without a change: {who}"


def _all_live(workers: list[Role]) -> None:
    for role in workers:
        assert not role.look(), role.unexpected
