"""How the next holder of a partition learns of the last one's end: workers over the log in memory."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
from kafka import TopicPartition
from support.memory_log import MemoryCluster
from support.streams import bare_manifest, order, teacher_record
from support.worker_by_hand import WorkerByHand

from pipeline.kafka.log import Commit
from pipeline.names import dead_letters_topic, soft_targets_topic, teacher_group, work_orders_topic
from schemas.commits import LeaseNote, decode_next_sequence, encode_next_sequence
from schemas.errors import BrokerUnavailable
from teacher_service.leases.chain import PROBATION

P, N = 2, 60
MANIFEST = bare_manifest(num_samples=N, order_size=1, partitions=P)
TEACHER = teacher_record()
ORDERS, GROUP = work_orders_topic("s"), teacher_group(MANIFEST, "t")


class Bench:
    """A stream of two partitions in memory, all of it fed."""

    def __init__(self) -> None:
        self.failing: set[str] = set()
        self.cluster = MemoryCluster(self._fault)
        self.cluster.create_topic(ORDERS, P)
        self.cluster.create_topic(soft_targets_topic("s", "t"), P)
        self.cluster.create_topic(dead_letters_topic("s"))
        for sequence in range(N):
            self.cluster.write(ORDERS, sequence % P, order(MANIFEST, sequence).encode())

    def _fault(self, call: str) -> None:
        if call in self.failing:
            raise BrokerUnavailable(f"injected: {call}")

    def worker(self) -> WorkerByHand:
        return WorkerByHand(self.cluster, MANIFEST, TEACHER)

    def note(self, partition: int = 0) -> LeaseNote:
        commit = self.cluster._group(GROUP).commits[TopicPartition(ORDERS, partition)]
        return LeaseNote.decode(commit.metadata)

    def next(self, partition: int = 0) -> int:
        commit = self.cluster._group(GROUP).commits[TopicPartition(ORDERS, partition)]
        return decode_next_sequence(commit.metadata, partition, P, commit.offset) or 0


@pytest.fixture
def bench() -> Iterator[Bench]:
    logger = logging.getLogger("teacher_service")
    logger.setLevel(logging.ERROR)
    yield Bench()
    logger.setLevel(logging.NOTSET)


def rounds(count: int, *workers: WorkerByHand) -> None:
    for _ in range(count):
        for worker in workers:
            worker.round()


def crash(bench: Bench, worker: WorkerByHand) -> None:
    bench.cluster.expire(worker.member)


def begun(worker: WorkerByHand) -> list[int]:
    """Join, commit, and see what may begin."""
    for _ in range(3):
        worker.publish(1)
        worker.poll()
        worker.commit()
    return sorted(job.sequence for job in worker.jobs)


def test_a_worker_is_known_as_the_holder_before_anything_begins(bench: Bench) -> None:
    worker = bench.worker()
    bench.failing = {"commit"}
    assert begun(worker) == []
    bench.failing = set()
    worker.commit()
    assert bench.note() == LeaseNote(worker.member.member_id)
    assert len(worker.jobs) == N


def test_partitions_of_a_worker_that_died_are_labelled_one_order_at_a_time_for_a_while(bench: Bench) -> None:
    first = bench.worker()
    rounds(3, first)
    crash(bench, first)
    second, there = bench.worker(), [bench.next(partition) for partition in range(P)]
    assert begun(second) == there
    assert bench.note() == LeaseNote(second.member.member_id, 0, 1)
    for number in range(1, PROBATION):
        second.label(P)
        second.publish(24)
        second.commit()
        assert bench.note() == LeaseNote(second.member.member_id, number, 1)
        assert [bench.next(partition) for partition in range(P)] == [one + number * P for one in there]
    second.label(P)
    second.publish(24)
    second.commit()
    assert bench.note() == LeaseNote(second.member.member_id)
    assert len(second.jobs) == N - sum(divmod(one, P)[0] for one in there) - P * PROBATION


def test_attempts_add_up_over_workers_that_die_and_the_second_is_suspicious(bench: Bench) -> None:
    first = bench.worker()
    rounds(3, first)
    crash(bench, first)
    for attempt in (1, 2, 3):
        worker = bench.worker()
        begun(worker)
        assert bench.note() == LeaseNote(worker.member.member_id, 0, attempt)
        assert [job.chain.suspects(job) for job in worker.jobs] == [attempt >= 2] * P
        crash(bench, worker)


def test_an_attempt_whose_commit_was_not_answered_is_counted_once(bench: Bench) -> None:
    first = bench.worker()
    rounds(3, first)
    crash(bench, first)
    second = bench.worker()
    bench.failing = {"commit acknowledged"}
    assert begun(second) == []
    assert bench.note().attempts == 1
    bench.failing = set()
    second.commit()
    assert bench.note().attempts == 1
    assert len(second.jobs) == P


def test_a_worker_that_leaves_with_grace_puts_nothing_on_probation(bench: Bench) -> None:
    first = bench.worker()
    rounds(3, first)
    first.leave()
    assert bench.note().holder == ""
    second = bench.worker()
    begun(second)
    assert bench.note() == LeaseNote(second.member.member_id)
    assert len(second.jobs) > P


def test_a_worker_that_is_not_taken_into_its_group_says_so_long_before_it_gives_up(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    logging.getLogger("teacher_service").setLevel(logging.WARNING)
    worker = bench.worker()
    worker.publish(1)
    now = time.monotonic()
    for seconds in range(40):
        monkeypatch.setattr(
            "teacher_service.leases.leases.time", SimpleNamespace(monotonic=lambda at=seconds: now + at)
        )
        worker.leases.refuse_long_wait(40.0)
    assert [text[:33] for text in caplog.messages] == [f"not taken into group {GROUP}"[:33]] * 2
    monkeypatch.setattr("teacher_service.leases.leases.time", SimpleNamespace(monotonic=lambda: now + 41))
    with pytest.raises(BrokerUnavailable, match="within 40 s; leaving"):
        worker.leases.refuse_long_wait(40.0)


def test_a_partition_that_moves_between_members_is_on_no_probation(bench: Bench) -> None:
    first = bench.worker()
    rounds(2, first)
    before = dict(first.leases.chains)
    second = bench.worker()
    rounds(4, first, second)
    assert [len(worker.leases.chains) for worker in (first, second)] == [1, 1]
    assert all(before[partition] is chain for partition, chain in first.leases.chains.items())  # it goes on
    assert all(bench.note(partition).probation is None for partition in range(P))


def test_probation_goes_on_at_the_next_worker_when_one_leaves_with_grace(bench: Bench) -> None:
    first = bench.worker()
    rounds(3, first)
    crash(bench, first)
    second = bench.worker()
    begun(second)
    second.label(P)
    second.publish(24)
    second.leave()
    assert bench.note() == LeaseNote("", 1, 0)
    third = bench.worker()
    begun(third)
    assert bench.note() == LeaseNote(third.member.member_id, 1, 1)


def test_a_worker_that_comes_back_as_somebody_else_is_on_probation_too(bench: Bench) -> None:
    worker = bench.worker()
    rounds(3, worker)
    before = worker.member.member_id
    crash(bench, worker)
    rounds(3, worker)
    assert worker.member.member_id != before
    assert bench.note().holder == worker.member.member_id
    assert bench.note().probation is not None


def test_a_commit_of_an_older_program_puts_nothing_on_probation(bench: Bench) -> None:
    for partition in range(P):
        commit = Commit(2, encode_next_sequence(partition + 2 * P))
        bench.cluster.commit(GROUP, TopicPartition(ORDERS, partition), commit)
    worker = bench.worker()
    begun(worker)
    assert len(worker.jobs) == N - 2 * P


def test_many_orders_that_wait_on_probation_do_not_hold_up_other_partitions(bench: Bench) -> None:
    bench.cluster.max_poll_records = 1
    first = bench.worker()
    rounds(4, first)
    crash(bench, first)
    second = bench.worker()
    begun(second)
    stuck = [job for job in second.jobs if job.chain.partition == 0]
    second.jobs = [job for job in second.jobs if job not in stuck]
    for _ in range(40):
        second.leases.balance(4, 2)
        second.round()
    assert bench.next(1) == N + 1
    assert second.leases.chains[0].in_hand == PROBATION + 1
