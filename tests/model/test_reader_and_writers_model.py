"""The reader's rule and the writers' chain, together, over the log in memory.

Real: everything of a worker but its threads and its model (`Leases` with its chains, `Intake`, `Publisher`), and the
student's `ReadersRule` and `Look`. Simulated: the log (`support/memory_log.py`), operators that rewind, and a reader
that crashes. Every call can fail, records land late or never, producers are replaced, constructors fail, workers are
killed or become zombies. P partitions, N orders of one sample each.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from kafka import TopicPartition
from support.memory_log import Flight, MemoryCluster
from support.streams import bare_manifest, order, teacher_record
from support.worker_by_hand import WorkerByHand

from pipeline.kafka.log import Commit
from pipeline.names import dead_letters_topic, manifest_topic, soft_targets_topic, teacher_group, work_orders_topic
from pipeline.readers_rule import Look, ReadersRule
from schemas.commits import decode_next_sequence, encode_next_sequence
from schemas.errors import BrokerUnavailable, DecodeError
from schemas.records import SoftTargets, WorkOrder

LOST = b"lost by the broker"
CALLS = (
    "appender",
    "append",
    "acknowledge",
    "poll",
    "commit",
    "commit acknowledged",
    "committed",
    "ends",
    "reader",
    "members",
)


@pytest.fixture(autouse=True, scope="module")
def quiet() -> Iterator[None]:
    """Workers warn of what happens here all the time."""
    logger = logging.getLogger("teacher_service")
    logger.setLevel(logging.ERROR)
    yield
    logger.setLevel(logging.NOTSET)


@dataclass
class Reader:
    """A student: one rule a partition, what is held, and what was trained on."""

    rules: list[ReadersRule]
    held: list[list[int]]
    trained: list[int] = field(default_factory=list)
    offsets: list[int] = field(default_factory=list)
    """behind the last record trained on, by partition"""


class ReaderAndWriters(RuleBasedStateMachine):
    @initialize(partitions=st.integers(1, 3), num_orders=st.integers(1, 14), honest=st.booleans())
    def create(self, partitions: int, num_orders: int, honest: bool) -> None:
        self.manifest = bare_manifest(num_samples=num_orders, order_size=1, partitions=partitions, stream="s")
        self.teacher = teacher_record(name="t")
        self.partitions, self.num_orders = partitions, num_orders
        self.honest = honest
        self.planted = False
        self.failing: dict[str, int] = {}
        self.cluster = MemoryCluster(self.fault)
        self.orders, self.targets = work_orders_topic("s"), soft_targets_topic("s", "t")
        self.letters = dead_letters_topic("s")
        self.group = teacher_group(self.manifest, "t")
        self.cluster.create_topic(manifest_topic("s"))
        for topic, count in ((self.orders, partitions), (self.targets, partitions), (self.letters, 1)):
            self.cluster.create_topic(topic, count)
        self.fed = 0
        self.feed(num_orders // 2)
        self.workers: list[WorkerByHand] = []
        self.join()
        self.reader = self.new_reader(0, [], [0] * partitions)
        self.saved: tuple[list[int], list[int]] = ([], [0] * partitions)
        self.seen: tuple[int, int] | None = None
        self.looks: list[tuple[int, Look]] = []
        self.proven: int | None = None

    # --- the feeder --------------------------------------------------------------------------------------------------

    @rule(count=st.integers(1, 4))
    def feed(self, count: int) -> None:
        for sequence in range(self.fed, min(self.fed + count, self.num_orders)):
            self.write_order(sequence)
        self.fed = min(self.fed + count, self.num_orders)

    @precondition(lambda self: self.fed)
    @rule(data=st.data())
    def feed_again(self, data: st.DataObject) -> None:
        """Another feeder, or one that was not answered."""
        for sequence in range(data.draw(st.integers(0, self.fed - 1)), self.fed):
            self.write_order(sequence)

    @precondition(lambda self: self.fed < self.num_orders - self.partitions)
    @rule(ahead=st.integers(1, 3))
    def feed_early(self, ahead: int) -> None:
        """A feeder whose first record failed, and that publishes again from there."""
        early = self.fed + ahead * self.partitions
        if early < self.num_orders:
            self.write_order(early)
        self.feed(self.partitions)

    @rule(data=st.data())
    def write_garbage(self, data: st.DataObject) -> None:
        self.cluster.write(self.orders, data.draw(st.integers(0, self.partitions - 1)), b"garbage")

    def write_order(self, sequence: int) -> None:
        self.cluster.write(self.orders, sequence % self.partitions, order(self.manifest, sequence).encode())

    # --- the writers -------------------------------------------------------------------------------------------------

    def fault(self, call: str) -> None:
        if self.failing.get(call):
            self.failing[call] -= 1
            raise BrokerUnavailable(f"injected: {call}")

    @rule(
        call=st.sampled_from(CALLS),
        count=st.integers(1, 3),
    )
    def let_calls_fail(self, call: str, count: int) -> None:
        self.failing[call] = count

    @precondition(lambda self: len(self.workers) < 3)
    @rule()
    def join(self) -> None:
        self.failing.clear()
        self.workers.append(WorkerByHand(self.cluster, self.manifest, self.teacher))
        self.settle()

    def settle(self) -> None:
        """Everybody polls until the group stands."""
        for _ in range(4):
            for worker in self.workers:
                worker.publish(1)
                worker.poll()

    def draw_worker(self, data: st.DataObject) -> WorkerByHand:
        return self.workers[data.draw(st.integers(0, len(self.workers) - 1))]

    @rule(data=st.data())
    def poll(self, data: st.DataObject) -> None:
        self.draw_worker(data).poll()

    @rule()
    def all_poll(self) -> None:
        for worker in self.workers:
            worker.poll()

    @rule(data=st.data(), labels=st.integers(0, 6), turns=st.integers(0, 12))
    def label_and_publish(self, data: st.DataObject, labels: int, turns: int) -> None:
        worker = self.draw_worker(data)
        worker.label(labels)
        worker.publish(turns)

    @rule(data=st.data())
    def commit(self, data: st.DataObject) -> None:
        self.draw_worker(data).commit()

    @rule(data=st.data(), rounds=st.integers(1, 3))
    def work(self, data: st.DataObject, rounds: int) -> None:
        """Some rounds without interruption."""
        worker = self.draw_worker(data)
        for _ in range(rounds):
            worker.poll()
            worker.label(4)
            worker.publish(12)
            worker.commit()

    @rule(holding=st.booleans())
    def hold(self, holding: bool) -> None:
        """From now on records stay on their way, or do not."""
        self.cluster.holding = holding

    @precondition(lambda self: self.flying())
    @rule(data=st.data(), what=st.sampled_from(["land", "acknowledge", "fail"]))
    def end_a_flight(self, data: st.DataObject, what: str) -> None:
        """A record lands, long after its sender gave it up or died, or is acknowledged, or fails, landed or not.

        Those of one producer and partition land in their order: an idempotent producer sees to it.
        """
        flight = data.draw(st.sampled_from(self.flying()))
        for before in self.cluster.flights[: self.cluster.flights.index(flight)]:
            if (before.sender, before.topic, before.partition) == (flight.sender, flight.topic, flight.partition):
                before.land()
        getattr(flight, what)()

    def flying(self) -> list[Flight]:
        return [flight for flight in self.cluster.flights if flight.offset is None or not flight.answer.done()]

    @rule(data=st.data())
    def forget_positions(self, data: st.DataObject) -> None:
        """The client goes on from any position at the next rebalance, as kafka-python may."""
        for partition in range(self.partitions):
            end = len(self.cluster.records(self.orders, partition))
            self.cluster.stale[TopicPartition(self.orders, partition)] = data.draw(st.integers(0, end))

    @rule(data=st.data(), knows=st.booleans())
    def lose_a_session(self, data: st.DataObject, knows: bool) -> None:
        """A worker is taken for dead: it works on as a zombie until it polls, or is."""
        worker = self.draw_worker(data)
        self.cluster.expire(worker.member)
        if knows:
            self.workers.remove(worker)
        if not self.workers:
            self.join()

    @rule(data=st.data())
    def rewind(self, data: st.DataObject) -> None:
        """An operator stops all workers, sets an earlier commit, and starts one."""
        partition = TopicPartition(self.orders, data.draw(st.integers(0, self.partitions - 1)))
        for worker in self.workers:
            self.cluster.expire(worker.member)
        self.workers.clear()
        if (there := self.committed().get(partition)) is not None:
            offset = data.draw(st.integers(0, there.offset))
            sequence = self.next_sequence(partition.partition, offset)
            self.set_commit(partition, Commit(offset, encode_next_sequence(sequence)))
        self.join()

    @rule()
    def expire_offsets(self) -> None:
        """The group was idle for days."""
        for worker in self.workers:
            self.cluster.expire(worker.member)
        self.workers.clear()
        self.cluster.flights.clear()
        self.cluster.expire_offsets(self.group)
        self.join()

    def set_commit(self, partition: TopicPartition, commit: Commit) -> None:
        self.failing.clear()
        self.cluster.admin().commit(self.group, {partition: commit})

    def expected_by(self, partition: int, commit: Commit) -> int:
        """The sequence that a commit says is expected."""
        sequence = decode_next_sequence(commit.metadata, partition, self.partitions, commit.offset)
        assert sequence is not None
        return sequence

    def committed(self) -> dict[TopicPartition, Commit]:
        return dict(self.cluster._group(self.group).commits)

    def next_sequence(self, partition: int, offset: int) -> int:
        """What a worker that read the work orders up to an offset expects."""
        expected = partition
        for record in self.cluster.records(self.orders, partition)[:offset]:
            try:
                expected += self.partitions * (WorkOrder.decode(record.value or b"", "").sequence == expected)
            except DecodeError:
                continue
        return expected

    # --- planted losses ----------------------------------------------------------------------------------------------

    @precondition(lambda self: not self.honest and any(self.labels(p) for p in range(self.partitions)))
    @rule(data=st.data())
    def lose_a_record(self, data: st.DataObject) -> None:
        """The broker loses a record, read already or not; the offsets of the others stay."""
        partition = data.draw(st.sampled_from([p for p in range(self.partitions) if self.labels(p)]))
        offset = data.draw(st.integers(0, len(self.labels(partition)) - 1))
        self.cluster.overwrite(TopicPartition(self.targets, partition), offset, LOST)
        self.planted = True

    def labels(self, partition: int) -> list[int | None]:
        """The log of soft targets: sequences, and None where the broker lost one."""
        found = self.cluster.records(self.targets, partition)
        return [None if one.value == LOST else SoftTargets.decode(one.value or b"", "").sequence for one in found]

    # --- the reader --------------------------------------------------------------------------------------------------

    def new_reader(self, sequence: int, trained: list[int], offsets: list[int]) -> Reader:
        firsts = [sequence + (partition - sequence) % self.partitions for partition in range(self.partitions)]
        rules = [ReadersRule(first, offset, self.partitions) for first, offset in zip(firsts, offsets, strict=True)]
        return Reader(rules, [[] for _ in rules], list(trained), list(offsets))

    @rule(data=st.data(), count=st.integers(1, 5))
    def read(self, data: st.DataObject, count: int) -> None:
        """A poll returns some records of one partition; what can be trained on, is."""
        self.read_on(data.draw(st.integers(0, self.partitions - 1)), count)

    def read_on(self, partition: int, count: int) -> None:
        reader = self.reader
        reading = reader.rules[partition]
        logged = self.labels(partition)
        for offset in range(reading.position, min(reading.position + count, len(logged))):
            sequence = logged[offset]
            if sequence is None:
                reading.skip_to(offset + 1)
            elif reading.accept(offset, sequence):
                reader.held[partition].append(offset + 1)
        while (waiting := reader.held[len(reader.trained) % self.partitions]) and len(reader.trained) < self.num_orders:
            sequence = len(reader.trained)
            reader.offsets[sequence % self.partitions] = waiting.pop(0)
            offset = reader.offsets[sequence % self.partitions] - 1
            assert self.labels(sequence % self.partitions)[offset] in (sequence, None)  # it may be lost by now
            reader.trained.append(sequence)

    @rule()
    def checkpoint(self) -> None:
        self.saved = (list(self.reader.trained), list(self.reader.offsets))

    @rule()
    def crash(self) -> None:
        """The reader dies and resumes from its checkpoint."""
        trained, offsets = self.saved
        self.reader = self.new_reader(len(trained), trained, offsets)
        self.seen, self.looks = None, []

    @rule()
    def look_at_the_commit(self) -> None:
        partition = len(self.reader.trained) % self.partitions
        there = self.committed().get(TopicPartition(self.orders, partition))
        self.seen = (partition, -1 if there is None else self.expected_by(partition, there))

    @precondition(lambda self: self.seen is not None)
    @rule()
    def look_at_the_end(self) -> None:
        """Later than at the commit; judged at once or later still."""
        assert self.seen is not None
        partition, next_sequence = self.seen
        self.looks.append((partition, Look(next_sequence, len(self.labels(partition)))))

    @rule()
    def judge(self) -> None:
        if (gap := self.gap()) is not None:
            self.proven = gap

    def gap(self) -> int | None:
        """The sequence that the reader can prove missing."""
        missing = len(self.reader.trained)
        partition = missing % self.partitions
        reading = self.reader.rules[partition]
        if missing < self.num_orders and not self.reader.held[partition]:
            assert reading.expected == missing
            if any(reading.is_gap(look) for place, look in self.looks if place == partition):
                return missing
        return None

    # --- what must hold ----------------------------------------------------------------------------------------------

    @invariant()
    def no_commit_covers_what_a_reader_cannot_read(self) -> None:
        if not hasattr(self, "reader") or self.planted:
            return
        for partition, commit in self.committed().items():
            expected = partition.partition
            for sequence in self.labels(partition.partition):
                expected += self.partitions * (sequence == expected)
            assert self.expected_by(partition.partition, commit) <= expected

    @invariant()
    def a_worker_ends_only_with_what_it_may_end_with(self) -> None:
        for worker in list(getattr(self, "workers", ())):
            if worker.ended is not None:
                # Three deliveries in a row that failed: it is started again.
                assert "times in a row" in str(worker.ended), worker.ended
                self.cluster.expire(worker.member)
                self.workers.remove(worker)
        if hasattr(self, "reader") and not self.workers:
            self.join()

    @invariant()
    def every_sequence_is_trained_on_once_and_in_order(self) -> None:
        if hasattr(self, "reader"):
            assert self.reader.trained == list(range(len(self.reader.trained)))

    @invariant()
    def no_gap_is_proven_where_nothing_was_lost(self) -> None:
        if hasattr(self, "reader") and not self.planted:
            assert self.proven is None

    def teardown(self) -> None:
        """All grows quiet: the stream is trained on to its end, or a loss is proven; repaired, it is."""
        if not hasattr(self, "reader"):
            return
        self.feed(self.num_orders)
        for _ in range(self.num_orders + 1):
            self.drain()
            self.looks = []
            self.look_at_the_commit()
            self.look_at_the_end()
            gap = self.gap()
            if gap is None:
                break
            assert self.planted
            self.repair(gap)
        assert self.reader.trained == list(range(self.num_orders))

    def repair(self, gap: int) -> None:
        """What SequenceGap asks for: stop the workers, and rewind."""
        partition = gap % self.partitions
        for worker in self.workers:
            self.cluster.expire(worker.member)
        self.workers.clear()
        offset = next(
            offset
            for offset in range(len(self.cluster.records(self.orders, partition)))
            if self.next_sequence(partition, offset) == gap and self.next_sequence(partition, offset + 1) > gap
        )
        self.set_commit(TopicPartition(self.orders, partition), Commit(offset, encode_next_sequence(gap)))
        self.join()

    def drain(self) -> None:
        """Nothing fails any more: the workers that are there label all there is, and the reader reads it."""
        self.failing.clear()
        self.cluster.holding = False
        for flight in self.flying():
            flight.acknowledge()
        for _ in range(8 + 2 * self.num_orders):
            for worker in self.workers:
                worker.poll()
                worker.label(100)
                worker.publish(200)
                worker.commit()
        for worker in self.workers:
            assert worker.ended is None
            assert not worker.leases.in_hand
        for partition in range(self.partitions):
            self.read_on(partition, len(self.labels(partition)))


class TestReaderAndWriters(ReaderAndWriters.TestCase):  # type: ignore[misc]
    settings = settings(max_examples=100, stateful_step_count=60, deadline=None)


@pytest.mark.faults
class TestReaderAndWritersForLong(ReaderAndWriters.TestCase):  # type: ignore[misc]
    settings = settings(max_examples=1000, stateful_step_count=60, deadline=None)
