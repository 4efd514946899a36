"""The student's reader over the log in memory, with a fault at every single call, and a hole that is proven."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator

import pytest
from kafka import TopicPartition
from reader_logs import label, make_stream
from support.memory_log import MemoryCluster

from pipeline.kafka.log import Commit
from pipeline.names import dead_letters_topic, manifest_topic, soft_targets_topic, teacher_group, work_orders_topic
from schemas.commits import encode_next_sequence
from schemas.errors import BrokerUnavailable, LogTrimmed, SequenceGap
from student_trainer.sources.held import Wait
from student_trainer.sources.reader import SoftTargetReader

STREAM = make_stream("s", ("cnn", "vit"))
ORDERS = work_orders_topic("s")
N, P = 20, STREAM.manifest.partitions


@pytest.fixture(autouse=True)
def quiet(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    with caplog.at_level(logging.ERROR):
        yield


class Bench:
    """Two teachers' logs in memory, as zombies and failed producers leave them."""

    def __init__(self, failing: range = range(0)) -> None:
        self.calls: list[str] = []
        self._failing = failing
        self._lock = threading.Lock()
        self.cluster = MemoryCluster(self._fault)
        self.cluster.create_topic(ORDERS, P)
        for topic in (manifest_topic("s"), dead_letters_topic("s")):
            self.cluster.create_topic(topic)
        for teacher, sequences in (
            ("cnn", (0, 1, 2, 6, 3, 4, 5, 3, 6, 9, 0, *range(7, N))),
            ("vit", (*range(10), *range(4, N))),
        ):
            self.cluster.create_topic(soft_targets_topic("s", teacher), P)
            for sequence in sequences:
                self.write(teacher, sequence)

    def write(self, teacher: str, sequence: int) -> None:
        value = label(STREAM, teacher, sequence).encode()
        self.cluster.write(soft_targets_topic("s", teacher), sequence % P, value)

    def _fault(self, call: str) -> None:
        with self._lock:  # the lookout asks in a thread of its own
            self.calls.append(call)
            number = len(self.calls) - 1
        if number in self._failing:
            raise BrokerUnavailable(f"injected: call {number}, {call}")

    def reader(self) -> SoftTargetReader:
        """A reader at order 0; one that could not begin is started again."""
        for _ in range(10):
            try:
                reader = SoftTargetReader(self.cluster, STREAM, ("cnn", "vit"))
            except BrokerUnavailable:
                continue
            try:
                reader.seek(0, ())
            except BrokerUnavailable:
                reader.close()
                continue
            return reader
        raise AssertionError("no reader could begin")


def patience(wait: Wait) -> None:
    assert wait.seconds < 20.0, wait


def read(bench: Bench) -> list[tuple[int, ...]]:
    reader = bench.reader()
    try:
        taken = []
        for sequence in range(N):
            held = reader.next(sequence, patience)
            assert held is not None
            taken.append(tuple(each.value.sequence for each in held))
        return taken
    finally:
        reader.close()


@pytest.mark.parametrize("length", [1, 3])
def test_a_fault_at_any_call_loses_nothing_and_repeats_nothing(length: int) -> None:
    bench = Bench()
    expected = [(sequence, sequence) for sequence in range(N)]
    assert read(bench) == expected
    assert {"identities", "admin", "reader", "assign", "seek", "poll"} <= set(bench.calls)
    for number in range(len(bench.calls)):
        assert read(Bench(range(number, number + length))) == expected


def test_a_hole_is_proven_although_the_answers_to_it_fail_first() -> None:
    bench = Bench()
    topic = TopicPartition(soft_targets_topic("s", "vit"), 1)
    log = bench.cluster.records(topic.topic, 1)
    missing = 13
    for record in log:
        if record.value == label(STREAM, "vit", missing).encode():
            bench.cluster.overwrite(topic, record.offset, b"lost by the broker")
    for partition in range(P):
        commit = Commit(7, encode_next_sequence(partition + 7 * P))
        bench.cluster.admin().commit(teacher_group(STREAM.manifest, "vit"), {TopicPartition(ORDERS, partition): commit})
    bench.calls.clear()
    reader = bench.reader()
    failing = iter(("committed", "ends", "num_members"))
    calls = iter(())

    def fault(call: str) -> None:
        nonlocal calls
        if call == next(calls, None):
            raise BrokerUnavailable(f"injected: {call}")

    bench.cluster.faults = fault
    try:
        for sequence in range(missing):
            assert reader.next(sequence, patience) is not None
        calls = failing
        with pytest.raises(SequenceGap, match=r"soft-targets\.vit/1: sequence 13 of teacher 'vit' is missing.*rewind"):
            reader.next(missing, patience)
    finally:
        reader.close()


def test_a_place_that_retention_removed_is_told_although_the_answers_to_it_fail_first() -> None:
    bench = Bench()
    bench.cluster.delete_records(TopicPartition(soft_targets_topic("s", "cnn"), 2), 1)
    reader = bench.reader()
    failures = iter(["begins", "ends"])
    waiting = next(failures)

    def fault(call: str) -> None:
        nonlocal waiting
        if call == waiting:
            waiting = next(failures, "")
            raise BrokerUnavailable(f"injected: {call}")

    bench.cluster.faults = fault
    try:
        with pytest.raises(LogTrimmed, match=r"cnn/2: the run reads on at offset 0.*below 1"):
            reader.next(0, patience)
        assert not waiting
    finally:
        reader.close()
