"""A feeder whose every call fails once, on the log in memory."""

from __future__ import annotations

from collections import Counter

import pytest
from kafka import TopicPartition
from small_streams import accepted
from support.memory_log import MemoryCluster
from support.streams import fetcher, manifest

from pipeline.feed import feed
from pipeline.kafka.log import Commit
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
