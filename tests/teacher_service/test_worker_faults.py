"""A worker over the log in memory, with a fault at every single call."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest
from kafka import TopicPartition
from support.memory_log import MemoryCluster
from support.streams import bare_manifest, order, teacher_record
from support.worker_by_hand import WorkerByHand

from pipeline.kafka.log import Commit
from pipeline.names import dead_letters_topic, manifest_topic, soft_targets_topic, teacher_group, work_orders_topic
from schemas.commits import decode_next_sequence
from schemas.errors import BrokerUnavailable, SequenceGap, StreamChanged
from schemas.records import SoftTargets

P, N = 3, 20
MANIFEST = bare_manifest(num_samples=N, order_size=1, partitions=P)
TEACHER = teacher_record()
ORDERS = work_orders_topic("s")
TARGETS = soft_targets_topic("s", "t")
LETTERS = dead_letters_topic("s")


@pytest.fixture(autouse=True)
def quiet(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    with caplog.at_level(logging.ERROR, "teacher_service"):
        yield


class Bench:
    """A stream in memory, and a count of the calls to it."""

    def __init__(self, failing: range) -> None:
        self.calls: list[str] = []
        self._failing = failing
        self.cluster = MemoryCluster(self._fault)
        for topic, partitions in ((manifest_topic(MANIFEST.stream), 1), (ORDERS, P), (TARGETS, P), (LETTERS, 1)):
            self.cluster.create_topic(topic, partitions)
        # What a log may hold: orders that a failed feeder left early, repetitions, and a record that is none.
        for sequence in (0, 1, 2, 6, 3, 4, 5, 0, 6, 7, *range(14, 17), *range(8, N)):
            self.cluster.write(ORDERS, sequence % P, order(MANIFEST, sequence).encode())
            if sequence == 7:
                self.cluster.write(ORDERS, 1, b"garbage")

    def _fault(self, call: str) -> None:
        self.calls.append(call)
        if len(self.calls) - 1 in self._failing:
            raise BrokerUnavailable(f"injected: call {len(self.calls) - 1}, {call}")

    def committed(self) -> dict[int, int]:
        """Partition -> the sequence that its group expects."""
        found: dict[TopicPartition, Commit] = self.cluster._group(teacher_group(MANIFEST, "t")).commits
        return {
            tp.partition: decode_next_sequence(commit.metadata, tp.partition, P, commit.offset) or 0
            for tp, commit in found.items()
        }

    def readable(self) -> dict[int, int]:
        """Partition -> the sequence that a reader waits for."""
        expected = {partition: partition for partition in range(P)}
        for partition in expected:
            for one in self.cluster.records(TARGETS, partition):
                if SoftTargets.decode(one.value or b"", "").sequence == expected[partition]:
                    expected[partition] += P
        return expected

    def work(self, worker: WorkerByHand, rounds: int) -> None:
        for _ in range(rounds):
            worker.round()
            readable = self.readable()
            assert all(sequence <= readable[partition] for partition, sequence in self.committed().items())


def run(failing: range, workers: int) -> Bench:
    """Label the stream with workers that come one after another; the faults end before the last rounds."""
    bench = Bench(failing)
    there: list[WorkerByHand] = []
    while len(there) < workers:
        try:
            there.append(WorkerByHand(bench.cluster, MANIFEST, TEACHER))
        except BrokerUnavailable:
            continue  # started again
        for worker in there:
            bench.work(worker, 3)
    for _ in range(12):
        for worker in there:
            bench.work(worker, 1)
    done = {0: 21, 1: 22, 2: 20}
    assert [worker.ended for worker in there] == [None] * workers
    assert bench.readable() == done
    assert bench.committed() == done
    assert len(bench.cluster.records(LETTERS, 0)) >= 1
    return bench


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("length", [1, 2])
def test_a_fault_at_any_call_loses_nothing_and_stops_nothing(workers: int, length: int) -> None:
    calls = run(range(0), workers).calls
    assert {"appender", "append", "acknowledge", "poll", "commit", "committed", "ends", "reader"} <= set(calls)
    for number in range(len(calls)):
        run(range(number, number + length), workers)


def test_partitions_that_somebody_added_end_a_worker_in_one_line() -> None:
    bench = Bench(range(0))
    worker = WorkerByHand(bench.cluster, MANIFEST, TEACHER)
    bench.work(worker, 3)
    bench.cluster.add_partitions(ORDERS, P + 2)
    other = WorkerByHand(bench.cluster, MANIFEST, TEACHER)  # who joins makes the group share them out
    for _ in range(6):
        worker.round()
        other.round()
    assert isinstance(other.ended, StreamChanged)  # the first one keeps those that it had
    assert "has more than 3 partitions now" in str(other.ended)


@pytest.mark.parametrize(
    "metadata", ['{"next_sequence":1000000000}', '{"next_sequence":4}', '{"next_sequence":-3}', '{"next_sequence":"3"}']
)
def test_a_commit_that_says_what_cannot_be_is_not_believed(metadata: str) -> None:
    bench = Bench(range(0))
    orders = TopicPartition(ORDERS, 0)
    bench.cluster.admin().commit(teacher_group(MANIFEST, "t"), {orders: Commit(0, metadata)})
    bench.work(WorkerByHand(bench.cluster, MANIFEST, TEACHER), 12)
    assert bench.readable() == bench.committed() == {0: 21, 1: 22, 2: 20}


BEHIND = {"nothing": [], "garbage": [b"garbage"], "a repetition": [0], "one that came earlier still": [5]}


def holed(behind: list[int | bytes]) -> tuple[MemoryCluster, WorkerByHand]:
    """A log of one partition that lacks order 2, and a worker that has met it."""
    cluster = MemoryCluster()
    manifest = bare_manifest(num_samples=9, order_size=1, partitions=1)
    for topic in (ORDERS, TARGETS, LETTERS):
        cluster.create_topic(topic)
    for what in (0, 1, 3, *behind):
        cluster.write(ORDERS, 0, what if isinstance(what, bytes) else order(manifest, what).encode())
    worker = WorkerByHand(cluster, manifest, TEACHER)
    for _ in range(8):
        worker.round()
    return cluster, worker


@pytest.mark.parametrize("case", BEHIND)
def test_nothing_is_committed_beyond_a_hole_whatever_lies_behind_it(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    cluster, worker = holed(BEHIND[case])  # type: ignore[arg-type]
    orders = TopicPartition(ORDERS, 0)
    group = teacher_group(bare_manifest(), "t")
    assert cluster.admin().committed({group: [orders]})[group][orders].offset == 2
    assert worker.intake.waiting
    assert worker.ended is None
    monkeypatch.setattr("teacher_service.leases.intake.HOLE_PATIENCE", 0.0)
    worker.poll()
    assert isinstance(worker.ended, SequenceGap)


@pytest.mark.parametrize("case", BEHIND)
def test_a_hole_that_is_filled_is_none_even_if_its_order_was_not_polled_in_time(
    case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster, worker = holed(BEHIND[case])  # type: ignore[arg-type]
    monkeypatch.setattr("teacher_service.leases.intake.HOLE_PATIENCE", 0.0)
    for sequence in range(2, 9):
        cluster.write(ORDERS, 0, order(bare_manifest(num_samples=9, order_size=1, partitions=1), sequence).encode())
    worker.intake.take({})  # as while its partitions are paused
    for _ in range(8):
        worker.round()
    assert worker.ended is None
    found = [SoftTargets.decode(one.value or b"", "").sequence for one in cluster.records(TARGETS, 0)]
    assert found == list(range(9))
    assert len(cluster.records(LETTERS, 0)) == (case == "garbage")
