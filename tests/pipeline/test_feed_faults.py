"""A feeder whose every call fails once, on the log in memory."""

from __future__ import annotations

import random
from collections import Counter
from concurrent.futures import Future

import pytest
from kafka import TopicPartition
from small_streams import accepted
from support.memory_log import MemoryCluster
from support.streams import bare_manifest, fetcher, manifest

from pipeline.feed import feed
from pipeline.kafka.log import Commit, Headers
from pipeline.names import manifest_topic, run_group, work_orders_topic
from pipeline.sequence import Sequence
from pipeline.streams import Stream
from schemas.commits import RunReport
from schemas.errors import BrokerUnavailable, DeliveryFailed
from schemas.records import WorkOrder

STREAM = Stream(manifest(fetcher("mnist1d?split=train&n=96"), order_size=8, epochs=2, partitions=4), {})
TOPIC = work_orders_topic(STREAM.manifest.stream)
NUM_ORDERS = Sequence.of(STREAM.manifest).num_orders


class Faulty:
    """A cluster whose call of a given number fails, and a run that trains on whatever is there."""

    def __init__(self, fail_at: int = 0, *, follow: bool = False) -> None:
        self.calls: Counter[str] = Counter()
        self.cluster = MemoryCluster(self._called)
        self._fail_at = fail_at
        self._follow = follow
        self.cluster.create_topic(TOPIC, STREAM.manifest.partitions)
        self.cluster.create_topic(manifest_topic(STREAM.manifest.stream))

    def _called(self, call: str) -> None:
        self.calls[call] += 1
        if self.calls.total() == self._fail_at:
            raise BrokerUnavailable(f"call {self._fail_at}, of {call}, failed")
        if call == "committed":
            self._report()

    def _report(self) -> None:
        done = min(partition + 4 * len(chain) for partition, chain in self.chains().items())
        report = RunReport(0, done, 0, float(done), "a1", "here", "training")
        self.cluster.commit(run_group(STREAM.manifest, "run"), TopicPartition("labels", 0), Commit(0, report.encode()))

    def chains(self) -> dict[int, list[int]]:
        """What a reader takes of each partition."""
        found = {}
        for partition in range(4):
            orders = [WorkOrder.decode(r.value or b"", "") for r in self.cluster.records(TOPIC, partition)]
            found[partition] = accepted(orders, partition, 4)
        return found

    def feed(self) -> None:
        """Feed until all is fed, a feeder that gave up started again as a user would."""
        options = {"follow": ("run",), "lead": (4, 8)} if self._follow else {}
        for _ in range(3):
            try:
                assert feed(self.cluster, STREAM, **options).why == "all orders are fed"  # type: ignore[arg-type]
            except (BrokerUnavailable, DeliveryFailed):
                continue
            return
        raise AssertionError("one fault, and three feeders failed")


@pytest.fixture(autouse=True)
def unhurried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.feed.RETRY_PAUSE", 0.0)
    monkeypatch.setattr("pipeline.feed.REFRESH", 0.0)


@pytest.mark.parametrize("follow", [False, True], ids=["all at once", "behind a run"])
def test_whatever_call_fails_every_partition_holds_its_whole_chain(follow: bool) -> None:
    whole = {partition: list(range(partition, NUM_ORDERS, 4)) for partition in range(4)}
    first = Faulty(follow=follow)
    first.feed()
    assert first.chains() == whole
    assert first.calls["append"] == first.calls["acknowledge"] == NUM_ORDERS
    for number in range(1, first.calls.total() + 1):
        faulty = Faulty(number, follow=follow)
        faulty.feed()
        assert faulty.chains() == whole, f"call {number}"


class Batches:
    """An appender that sends four records together; a batch is written, lost, or written and nobody hears of it.

    As the real one it goes on behind a batch that was lost, and what nobody heard of may land late, as a zombie's.
    """

    def __init__(self, cluster: MemoryCluster, chance: random.Random, late: list[tuple[str, int, list[bytes]]]) -> None:
        self._cluster = cluster
        self._chance = chance
        self._late = late
        self._batch: list[tuple[bytes, Future[int]]] = []

    def append(
        self, topic: str, partition: int, value: bytes, key: bytes | None = None, headers: Headers = ()
    ) -> Future[int]:
        answer: Future[int] = Future()
        self._batch.append((value, answer))
        if len(self._batch) == 4:
            self._send(topic, partition)
        return answer

    def _send(self, topic: str, partition: int) -> None:
        batch, self._batch = self._batch, []
        what = self._chance.random()
        for value, answer in batch:
            if what < 0.7:
                answer.set_result(self._cluster.write(topic, partition, value))
            else:
                answer.set_exception(DeliveryFailed("not acknowledged"))
        if what > 0.85:
            self._late.append((topic, partition, [value for value, _ in batch]))

    def close(self, timeout: float = 0.0) -> None:
        """Stop."""


@pytest.mark.parametrize("seeds", [range(start, start + 100) for start in range(0, 400, 100)], ids=str)
def test_no_feeder_leaves_a_hole_whatever_becomes_of_its_batches(seeds: range, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.feed.SEND_TIMEOUT", 0.05)
    made = bare_manifest(num_samples=16, order_size=1, partitions=1)
    topic = work_orders_topic(made.stream)
    for seed in seeds:
        chance, cluster = random.Random(seed), MemoryCluster()
        late: list[tuple[str, int, list[bytes]]] = []

        def land(share: float) -> None:
            for flight in [one for one in late if chance.random() < share]:  # noqa: B023
                late.remove(flight)  # noqa: B023
                for value in flight[2]:
                    cluster.write(flight[0], flight[1], value)  # noqa: B023

        def called(call: str) -> None:
            if call == "reader":  # what is under way lands before the topic is read, or later
                land(0.5)

        cluster.faults = called
        cluster.create_topic(topic)
        cluster.create_topic(manifest_topic(made.stream))
        monkeypatch.setattr(cluster, "appender", lambda **_: Batches(cluster, chance, late))  # noqa: B023
        assert feed(cluster, Stream(made, {})).why == "all orders are fed"
        land(1.0)
        orders = [WorkOrder.decode(one.value or b"", "") for one in cluster.records(topic, 0)]
        assert accepted(orders, 0, 1) == list(range(16)), (seed, [order.sequence for order in orders])
