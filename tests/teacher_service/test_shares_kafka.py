"""Workers of unequal speed on the real broker: who gets what, and who finishes a stream."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from support.models import classifier
from support.streams import fetcher, num_orders, publish, soft_targets, stream_with_teacher

from pipeline.kafka.cluster import KafkaCluster
from pipeline.kafka.settings import KafkaSettings
from pipeline.names import soft_targets_topic
from pipeline.status import lag
from pipeline.streams import Stream
from schemas.errors import WorkerHung
from teacher_service import watchdog
from teacher_service.metrics import WorkerReport
from teacher_service.models.session import Inputs, OnnxTeacher, Outputs
from teacher_service.shares import asking
from teacher_service.worker import Worker, WorkerOptions

pytestmark = pytest.mark.kafka

P = 20
ORDER_SIZE = 32


class Accelerator(OnnxTeacher):
    """A teacher on a machine whose speed the test sets."""

    seconds = 0.0
    """for an order"""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.free = threading.Event()
        self.free.set()
        self.held = threading.Event()
        """an order waits for `free`"""

    def in_calls(self, inputs: Inputs, work: Callable[[slice, Outputs], Any]) -> list[Any]:
        if not self.free.is_set():
            self.held.set()
            self.free.wait(60.0)
        threading.Event().wait(self.seconds)
        return super().in_calls(inputs, work)


def run(worker: Worker) -> None:
    with suppress(WorkerHung):
        worker.run()


class Unequal:
    """A stream with teacher "t", and workers in threads."""

    def __init__(self, settings: KafkaSettings, name: str, model: Path) -> None:
        self.settings = settings
        options = {"partitions": P, "order_size": ORDER_SIZE}
        self.stream: Stream = stream_with_teacher(settings, name, model, options=options)
        self.num_orders = num_orders(self.stream)
        self.partitions: dict[str, int] = {}
        self.reports: dict[str, WorkerReport] = {}
        self._model = model
        self._workers: list[tuple[Worker, threading.Thread, Accelerator]] = []

    def start(self, name: str, seconds: float) -> Accelerator:
        model = Accelerator(self._model, self.stream.teacher("t"), threads=1)
        model.seconds = seconds

        def show(report: WorkerReport, partitions: int) -> None:
            self.partitions[name], self.reports[name] = partitions, report

        worker = Worker(
            KafkaCluster(self.settings),
            self.stream,
            fetcher(),
            model,
            WorkerOptions(name),
            show,
            (0.0, seconds / ORDER_SIZE),
        )
        thread = threading.Thread(target=run, args=(worker,), name=name, daemon=True)
        thread.start()
        self._workers.append((worker, thread, model))
        return model

    def feed(self, *sequences: int) -> None:
        publish(self.settings, self.stream, sequences)

    def labelled(self) -> int:
        (teacher,) = lag(self.settings, self.stream).teachers
        return teacher.labelled

    def close(self) -> None:
        for worker, _, model in self._workers:
            worker.stop()
            model.free.set()
        for _, thread, _ in self._workers:
            thread.join(30.0)


@pytest.fixture
def unequal(
    kafka_settings: KafkaSettings, fresh_name: Callable[[str], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Unequal]:
    monkeypatch.setattr(asking, "HOLD", 1.0)
    monkeypatch.setattr(asking, "IDLE_EVERY", 1.0)
    made = Unequal(kafka_settings, fresh_name("unequal"), classifier(tmp_path / "m.onnx"))
    yield made
    made.close()


def test_eight_to_one_to_one_and_after_a_change_one_to_eight_to_one(unequal: Unequal, eventually: Any) -> None:
    models = {name: unequal.start(name, seconds) for name, seconds in (("a", 0.1), ("b", 0.8), ("c", 0.8))}
    # 16:2:2, or what is within 5 % of it: one partition has an order more than the others.
    within = ({"a": 16, "b": 2, "c": 2}, {"a": 17, "b": 2, "c": 1}, {"a": 17, "b": 1, "c": 2})
    eventually(lambda: unequal.partitions in within, 30, "shares of 8:1:1")
    before = {name: report.rebalances for name, report in unequal.reports.items()}
    models["a"].seconds, models["b"].seconds = 0.8, 0.1
    unequal.feed(*range(unequal.num_orders))
    # The change shows in orders alone, so shares move while they are worked on.
    eventually(lambda: unequal.partitions["a"] < unequal.partitions["b"], 40, "shares that follow the change")
    assert unequal.partitions["a"] < 8
    eventually(lambda: unequal.labelled() == unequal.num_orders, 60, "all orders")
    topic = soft_targets_topic(unequal.stream.manifest.stream, "t")
    chains = {p: [one.sequence for one in found] for p, found in soft_targets(unequal.settings, topic).items()}
    for partition, sequences in chains.items():
        first_copies = [sequence for i, sequence in enumerate(sequences) if sequence not in sequences[:i]]
        assert first_copies == list(range(partition, unequal.num_orders, P))
    assert all(report.rebalances - before[name] < 12 for name, report in unequal.reports.items())


def test_a_member_too_slow_for_one_partition_waits_warm_and_takes_over_when_it_is_alone(
    unequal: Unequal, eventually: Any
) -> None:
    fast, slow = unequal.start("fast", 0.05), unequal.start("slow", 5.0)
    eventually(lambda: unequal.partitions == {"fast": P, "slow": 0}, 30, "a slow one without a share")
    unequal.feed(*range(P))
    eventually(lambda: unequal.labelled() == P, 30, "orders of the fast one")
    slow.seconds = 0.0
    worker, thread, _ = unequal._workers[0]
    worker.stop()
    thread.join(30.0)
    eventually(lambda: unequal.partitions["slow"] == P, 30, "everything at the one that is left")
    unequal.feed(*range(P, unequal.num_orders))
    eventually(lambda: unequal.labelled() == unequal.num_orders, 60, "orders of the other")
    assert fast is not slow


def test_whoever_is_done_takes_over_what_another_holds_up_at_the_end(
    unequal: Unequal, eventually: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watchdog, "MIN_DEADLINE", 10.0)
    slow = unequal.start("slow", 0.1)
    eventually(lambda: unequal.partitions.get("slow") == P, 30, "the first worker's share")
    unequal.start("fast", 0.1)
    eventually(lambda: unequal.partitions == {"slow": P // 2, "fast": P // 2}, 30, "equal shares")
    unequal.feed(*range(P))
    eventually(lambda: unequal.labelled() == P, 60, "the first orders")
    slow.free.clear()
    unequal.feed(*range(P, unequal.num_orders))
    assert slow.held.wait(30.0)
    # Its order never ends. All but the partition of that one is taken over, and that, when the watchdog ends it.
    eventually(lambda: unequal.labelled() >= unequal.num_orders - 1, 60, "the whole stream but the order that hangs")
    eventually(lambda: unequal.labelled() == unequal.num_orders, 60, "that order, too")
    assert not slow.free.is_set()
