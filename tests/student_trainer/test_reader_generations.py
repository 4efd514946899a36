"""The student's reader over the log in memory, of a teacher that moves while it is read."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import ExitStack, closing, suppress
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from reader_logs import label, make_stream
from support.generations import by, generation, moved, write_generation, write_manifest_log
from support.memory_log import MemoryCluster

from pipeline.names import dead_letters_topic, manifest_topic, soft_targets_topic, work_orders_topic
from schemas.errors import BrokerUnavailable, ManifestMismatch
from schemas.records import SoftTargets
from student_trainer.sources.held import Wait
from student_trainer.sources.reader import SoftTargetReader

STREAM = make_stream("s", ("cnn", "vit"))
BEGUN = moved(STREAM, "cnn", 0)
"""As a student opens it: a run publishes, and has not yet."""
N, P = 20, STREAM.manifest.partitions


@pytest.fixture(autouse=True)
def quiet(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    with caplog.at_level(logging.ERROR):
        yield


class Bench:
    """The logs of a teacher that moves and of one that stays, in memory."""

    def __init__(self, failing: range = range(0), only: str = "") -> None:
        self.calls = 0
        self._failing, self._only = failing, only
        self._lock = threading.Lock()
        self.cluster = MemoryCluster(self._fault)
        self.cluster.create_topic(work_orders_topic("s"), P)
        for topic in (manifest_topic("s"), dead_letters_topic("s")):
            self.cluster.create_topic(topic)
        for teacher in ("cnn", "vit"):
            self.cluster.create_topic(soft_targets_topic("s", teacher), P)
        write_manifest_log(self.cluster, BEGUN)

    def write(self, value: SoftTargets) -> None:
        self.cluster.write(soft_targets_topic("s", value.teacher), value.sequence % P, value.encode())

    def labels(self, *generations: int) -> None:
        """Write the orders 0, 1, ... by these, behind the record of each; the other teacher's, too."""
        newest = 0
        for sequence, number in enumerate(generations):
            while newest < number:
                newest += 1
                write_generation(self.cluster, generation(STREAM, "cnn", newest))
            self.write(by(label(STREAM, "cnn", sequence), STREAM, number))
            self.write(label(STREAM, "vit", sequence))

    def _fault(self, call: str) -> None:
        with self._lock:  # the lookout asks in a thread of its own
            self.calls += 1
            number = self.calls - 1
        if number in self._failing and self._only in call:
            raise BrokerUnavailable(f"injected: call {number}, {call}")

    def reader(self) -> SoftTargetReader:
        """A reader at order 0; one that could not begin is started again."""
        for _ in range(10):
            with suppress(BrokerUnavailable), ExitStack() as stack:
                reader = stack.enter_context(closing(SoftTargetReader(self.cluster, BEGUN, ("cnn", "vit"))))
                reader.seek(0)
                stack.pop_all()
                return reader
        raise AssertionError("no reader could begin")

    def read(self, num_orders: int = N) -> list[tuple[int, int]]:
        """(sequence, generation) of each order."""
        waits: list[Wait] = []
        with closing(self.reader()) as reader:
            found = []
            for sequence in range(num_orders):
                held = reader.next(sequence, waits.append)
                assert held is not None
                assert held[1].value.generation == 0
                found.append((held[0].value.sequence, held[0].value.generation))
        return found


def test_labels_of_generations_that_came_since_are_read_whichever_comes_first() -> None:
    """A worker that lags labels by an older one behind a newer one's labels."""
    bench, numbers = Bench(), [0, 0, 0, 0, 1, 1, 0, 1, 3, 3, 2, 3, 3, 3, 3, 3, 4, 4, 3, 4]
    bench.labels(*numbers)
    assert bench.read() == list(enumerate(numbers))


def test_the_first_record_of_an_order_counts_whatever_its_generation() -> None:
    bench = Bench()
    bench.labels(0, 0, 1, 1)
    for number in (0, 2, 1):  # zombies of both, and one that is nobody's
        bench.write(by(label(STREAM, "cnn", 2), STREAM, number))
    bench.labels(*[])
    assert bench.read(4) == [(0, 0), (1, 0), (2, 1), (3, 1)]


@given(st.lists(st.integers(0, 5), min_size=1, max_size=N))
def test_any_mixture_is_read_whole(numbers: list[int]) -> None:
    bench = Bench()
    bench.labels(*numbers)
    assert bench.read(len(numbers)) == list(enumerate(numbers))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"generation": 2}, "generation is 2, and teacher 'cnn' has 1"),
        ({"generation": 1, "teacher_sha256": "ab" * 32}, "teacher_sha256 is abab"),
        ({"generation": 0}, "teacher_sha256 is "),
        ({"generation": 2**62}, "teacher 'cnn' has 1"),
    ],
)
def test_a_label_is_of_the_model_of_its_generation_or_not_trained_on(changes: dict[str, object], said: str) -> None:
    bench = Bench()
    bench.labels(0, 0, 1)
    bench.write(replace(by(label(STREAM, "cnn", 3), STREAM, 1), **changes))
    bench.write(label(STREAM, "vit", 3))
    with pytest.raises(ManifestMismatch, match=rf"s\.soft-targets\.cnn/0@1: .*{said}.* it is not trained on"):
        bench.read(4)


def test_what_another_run_calls_a_generation_is_none() -> None:
    bench = Bench()
    bench.labels(0, 0)
    write_generation(bench.cluster, generation(STREAM, "cnn", 1, run_id="b" * 16))
    bench.write(by(label(STREAM, "cnn", 2), STREAM, 1))
    bench.write(label(STREAM, "vit", 2))
    with pytest.raises(ManifestMismatch, match="generation is 1, and teacher 'cnn' has 0"):
        bench.read(3)


@pytest.mark.parametrize("length", [1, 3])
def test_a_fault_at_any_call_loses_nothing_and_accepts_nothing_else(length: int) -> None:
    bench, numbers = Bench(), [0, 0, 1, 1, 2, 2]
    bench.labels(*numbers)
    bench.read(6)
    for number in range(bench.calls):
        failing = Bench(range(number, number + length))
        failing.labels(*numbers)
        assert failing.read(6) == list(enumerate(numbers)), f"call {number}"


def test_a_reader_that_cannot_read_the_manifest_says_what_it_waits_for_and_goes_on() -> None:
    bench, waits = Bench(), []
    bench.labels(0, 0, 1)

    def begins_to_answer(wait: Wait) -> None:
        waits.append(wait)
        if len(waits) == 2:
            bench._failing = range(0)

    with closing(bench.reader()) as reader:
        for sequence in range(2):
            assert reader.next(sequence, waits.append)
        assert not waits
        bench._failing, bench._only = range(10**9), "begins"
        held = reader.next(2, begins_to_answer)
    assert held is not None
    assert held[0].value.generation == 1
    assert [(wait.sequence, wait.logs) for wait in waits] == [(2, (("cnn", 2), ("vit", 2)))] * 2
    assert "reading s.manifest for generation 1 of teacher 'cnn': injected" in waits[0].trouble


def test_a_reader_that_is_told_to_stop_waits_no_longer_for_the_manifest() -> None:
    bench, stop = Bench(), threading.Event()
    bench.labels(1)
    with closing(SoftTargetReader(bench.cluster, BEGUN, ("cnn", "vit"), stop)) as reader:
        reader.seek(0)
        bench._failing, bench._only = range(10**9), "begins"
        assert reader.next(0, lambda wait: stop.set()) is None
