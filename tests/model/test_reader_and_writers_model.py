"""The reader's rule and the writers' chain, together, on a simulated log.

Real: `ReadersRule` and `Look` of the student, `PartitionLedger` of the worker. Simulated: the partitioned log, the
group's commits, producers that lose or delay, owners that become zombies, operators that rewind, and a reader that
crashes. P partitions, N orders.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from student_trainer.rule import Look, ReadersRule
from teacher_service.ledger import Mark, PartitionLedger, Verdict

GONE = None
"""In place of a record that the broker lost."""


@dataclass
class Send:
    """One record on its way from a worker to the log."""

    partition: int
    sequence: int
    landed: bool = False


@dataclass(eq=False)
class Worker:
    """A lease on one partition: what one owner does with it, until it is taken away or fails."""

    partition: int
    ledger: PartitionLedger
    owner: bool = True
    """False: a zombie that does not know it yet"""
    send: Send | None = None
    """the one order that is published and not acknowledged"""


@dataclass
class Reader:
    """A student: one rule a partition, what is held, and what was trained on."""

    rules: list[ReadersRule]
    held: list[list[int]]
    trained: list[int] = field(default_factory=list)
    offsets: list[int] = field(default_factory=list)
    """behind the last record trained on, by partition"""


class ReaderAndWriters(RuleBasedStateMachine):
    @initialize(partitions=st.integers(1, 3), orders=st.integers(1, 14), honest=st.booleans())
    def create(self, partitions: int, orders: int, honest: bool) -> None:
        self.partitions, self.orders = partitions, orders
        self.honest = honest
        self.planted = False
        self.log: list[list[int | None]] = [[] for _ in range(partitions)]
        self.commits = [Mark(0, partition) for partition in range(partitions)]
        self.leases = 0
        self.workers: list[Worker] = []
        self.sends: list[Send] = []
        for partition in range(partitions):
            self.take_over(partition)
        self.reader = self.new_reader(0, [], [0] * partitions)
        self.saved: tuple[list[int], list[int]] = ([], [0] * partitions)
        self.seen: tuple[int, int] | None = None
        self.looks: list[tuple[int, Look]] = []
        self.proven: int | None = None

    # --- the writers -------------------------------------------------------------------------------------------------

    @rule(data=st.data(), informed=st.booleans())
    def change_owners(self, data: st.DataObject, informed: bool) -> None:
        """A partition gets a new owner; the old one may not know, and goes on as a zombie."""
        self.take_over(data.draw(st.integers(0, self.partitions - 1)), informed)

    def take_over(self, partition: int, informed: bool = True) -> Worker:
        for old in [each for each in self.workers if each.partition == partition and each.owner]:
            old.owner = False
            if informed:
                self.workers.remove(old)
        worker = Worker(partition, self.new_ledger(partition, self.commits[partition]))
        self.workers.append(worker)
        return worker

    def new_ledger(self, partition: int, start: Mark) -> PartitionLedger:
        self.leases += 1
        return PartitionLedger(self.leases, start, self.partitions)

    def draw_worker(self, data: st.DataObject) -> Worker:
        return self.workers[data.draw(st.integers(0, len(self.workers) - 1))]

    def can_publish(self, worker: Worker) -> bool:
        return worker.send is None and worker.ledger.read.sequence < self.orders

    def publish_next(self, worker: Worker) -> Send:
        """The next order goes out; never while another one is unacknowledged."""
        offset = worker.ledger.read.offset
        sequence = worker.partition + offset * self.partitions
        assert worker.ledger.judge(sequence) is Verdict.ACCEPT
        worker.ledger.take(offset)
        worker.send = Send(worker.partition, sequence)
        self.sends.append(worker.send)
        return worker.send

    def land_one(self, send: Send) -> None:
        send.landed = True
        self.sends.remove(send)
        self.log[send.partition].append(send.sequence)

    @rule(data=st.data(), count=st.integers(1, 4), then_publish=st.booleans())
    def label(self, data: st.DataObject, count: int, then_publish: bool) -> None:
        """A worker, or a zombie, labels some orders without trouble, and perhaps has one more on its way."""
        worker = self.draw_worker(data)
        while count and self.can_publish(worker):
            self.land_one(self.publish_next(worker))
            self.acknowledge(worker)
            count -= 1
        if then_publish and self.can_publish(worker):
            self.publish_next(worker)

    def acknowledge(self, worker: Worker) -> None:
        worker.send = None
        worker.ledger.settle()

    @precondition(lambda self: self.sends)
    @rule(data=st.data())
    def land(self, data: st.DataObject) -> None:
        """The broker appends a record: now, or long after its sender gave it up or died."""
        self.land_one(self.sends[data.draw(st.integers(0, len(self.sends) - 1))])

    @precondition(lambda self: any(each.send and each.send.landed for each in self.workers))
    @rule()
    def answer(self) -> None:
        """Acknowledgements that were late arrive."""
        for worker in self.workers:
            if worker.send is not None and worker.send.landed:
                self.acknowledge(worker)

    @rule(data=st.data())
    def fail(self, data: st.DataObject) -> None:
        """A send expires, landed or not: back to the committed offset, as far as the worker knows it."""
        worker = self.draw_worker(data)
        start = self.commits[worker.partition] if worker.owner else worker.ledger.committed
        worker.send, worker.ledger = None, self.new_ledger(worker.partition, start)

    @rule(data=st.data(), answered=st.booleans(), fenced=st.booleans())
    def commit(self, data: st.DataObject, answered: bool, fenced: bool) -> None:
        """The acknowledged prefix; the answer may be lost, and a zombie's commit may be accepted or not."""
        worker = self.draw_worker(data)
        if worker.ledger.dirty and (worker.owner or not fenced):
            self.commits[worker.partition] = worker.ledger.done
            if answered:
                worker.ledger.committed = worker.ledger.done

    @rule(data=st.data())
    def kill(self, data: st.DataObject) -> None:
        """A worker dies; a partition without an owner gets one at once."""
        worker = self.draw_worker(data)
        self.workers.remove(worker)
        if worker.owner:
            self.take_over(worker.partition)

    @rule(data=st.data())
    def rewind(self, data: st.DataObject) -> None:
        """An operator stops a partition's owner, sets an earlier commit, and starts another one."""
        partition = data.draw(st.integers(0, self.partitions - 1))
        offset = data.draw(st.integers(0, self.commits[partition].offset))
        self.commits[partition] = Mark(offset, partition + offset * self.partitions)
        self.take_over(partition)

    # --- planted losses ----------------------------------------------------------------------------------------------

    @precondition(lambda self: not self.honest and self.sends)
    @rule(data=st.data())
    def acknowledge_what_is_lost(self, data: st.DataObject) -> None:
        send = self.sends[data.draw(st.integers(0, len(self.sends) - 1))]
        self.sends.remove(send)
        self.planted = True
        for worker in self.workers:
            if worker.send is send:
                self.acknowledge(worker)

    @precondition(lambda self: not self.honest and any(self.log))
    @rule(data=st.data())
    def lose_a_record(self, data: st.DataObject) -> None:
        """The broker loses a record, read already or not; the offsets of the others stay."""
        partition = data.draw(st.sampled_from([p for p, log in enumerate(self.log) if log]))
        offset = data.draw(st.integers(0, len(self.log[partition]) - 1))
        self.log[partition][offset] = GONE
        self.planted = True

    # --- the reader --------------------------------------------------------------------------------------------------

    def new_reader(self, sequence: int, trained: list[int], offsets: list[int]) -> Reader:
        firsts = [sequence + (partition - sequence) % self.partitions for partition in range(self.partitions)]
        rules = [ReadersRule(first, offset, self.partitions) for first, offset in zip(firsts, offsets, strict=True)]
        return Reader(rules, [[] for _ in rules], list(trained), list(offsets))

    @rule(data=st.data(), count=st.integers(1, 5))
    def read(self, data: st.DataObject, count: int) -> None:
        """A poll returns some records of one partition; what can be trained on, is."""
        partition = data.draw(st.integers(0, self.partitions - 1))
        self.poll(partition, count)

    def poll(self, partition: int, count: int) -> None:
        reader = self.reader
        reading = reader.rules[partition]
        for offset in range(reading.position, min(reading.position + count, len(self.log[partition]))):
            sequence = self.log[partition][offset]
            if sequence is GONE:
                reading.skip_to(offset + 1)
            elif reading.accept(offset, sequence):
                reader.held[partition].append(offset + 1)
        while (waiting := reader.held[len(reader.trained) % self.partitions]) and len(reader.trained) < self.orders:
            sequence = len(reader.trained)
            reader.offsets[sequence % self.partitions] = waiting.pop(0)
            offset = reader.offsets[sequence % self.partitions] - 1
            logged = self.log[sequence % self.partitions][offset]
            assert logged in (sequence, GONE)  # it may have been lost since it was read
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
        self.seen = (partition, self.commits[partition].sequence)

    @precondition(lambda self: self.seen is not None)
    @rule()
    def look_at_the_end(self) -> None:
        """Later than at the commit; judged at once or later still."""
        assert self.seen is not None
        partition, next_sequence = self.seen
        self.looks.append((partition, Look(next_sequence, len(self.log[partition]))))

    @rule()
    def judge(self) -> None:
        if (gap := self.gap()) is not None:
            self.proven = gap

    def gap(self) -> int | None:
        """The sequence that the reader can prove missing."""
        missing = len(self.reader.trained)
        partition = missing % self.partitions
        reading = self.reader.rules[partition]
        if missing < self.orders and not self.reader.held[partition]:
            assert reading.expected == missing
            if any(reading.is_gap(look) for place, look in self.looks if place == partition):
                return missing
        return None

    # --- what must hold ----------------------------------------------------------------------------------------------

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
        for _ in range(self.orders + 1):
            self.drain()
            self.looks = []
            self.look_at_the_commit()
            self.look_at_the_end()
            gap = self.gap()
            if gap is None:
                break
            assert self.planted
            partition = gap % self.partitions  # the repair that SequenceGap names
            self.commits[partition] = Mark((gap - partition) // self.partitions, gap)
        assert self.reader.trained == list(range(self.orders))

    def drain(self) -> None:
        """New owners publish what is not committed, and the reader reads all there is."""
        for partition in range(self.partitions):
            worker = self.take_over(partition)
            while self.can_publish(worker):
                self.land_one(self.publish_next(worker))
                self.acknowledge(worker)
            self.commits[partition] = worker.ledger.done
        for partition in range(self.partitions):
            self.poll(partition, len(self.log[partition]))


ReaderAndWriters.TestCase.settings = settings(max_examples=300, stateful_step_count=60, deadline=None)
TestReaderAndWriters = ReaderAndWriters.TestCase
