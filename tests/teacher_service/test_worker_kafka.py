"""Teacher workers on the real Kafka."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from kafka import TopicPartition
from kafka import errors as kafka_error
from support.faulty_cluster import FaultyCluster
from support.models import classifier
from support.streams import (
    dead_letters,
    fetcher,
    num_orders,
    order,
    publish,
    soft_targets,
    stream_with_teacher,
)

from pipeline.kafka.admin import KafkaAdmin
from pipeline.kafka.clients import new_admin
from pipeline.kafka.cluster import KafkaCluster
from pipeline.kafka.consumers import KafkaMember
from pipeline.kafka.coordinator import ask_coordinator
from pipeline.kafka.settings import KafkaSettings
from pipeline.names import dead_letters_topic, soft_targets_topic, teacher_group, work_orders_topic
from pipeline.onnx_runtime import open_session
from pipeline.streams import Stream
from schemas.codecs import Dense
from schemas.errors import BadSamples, ManifestMismatch, SequenceGap, TeacherRejected
from schemas.records import SoftTargets, WorkOrder
from teacher_service.metrics import WorkerReport
from teacher_service.models.declared import Scaling
from teacher_service.models.session import OnnxTeacher
from teacher_service.serve import TeachOptions, prepare_worker
from teacher_service.worker import Worker, WorkerOptions

pytestmark = pytest.mark.kafka

P = 4


class Running:
    """A worker in a thread, and what became of it."""

    def __init__(self, settings: KafkaSettings, stream: Stream, model: Path, until_idle: bool, name: str) -> None:
        self.num_partitions = -1
        options = TeachOptions(threads=1, worker=WorkerOptions(name, until_idle=until_idle))
        self.worker: Worker = prepare_worker(settings, stream.manifest.stream, model, options, progress=self._show)
        self.error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def _show(self, report: WorkerReport, partitions: int) -> None:
        self.num_partitions = partitions

    def _run(self) -> None:
        try:
            self.worker.run()
        except BaseException as error:
            self.error = error

    @property
    def report(self) -> WorkerReport:
        return self.worker.report

    def end(self, timeout: float = 60.0) -> WorkerReport:
        self._thread.join(timeout)
        assert not self._thread.is_alive(), "the worker did not end"
        if self.error is not None:
            raise self.error
        return self.report

    def stop(self) -> WorkerReport:
        self.worker.stop()
        return self.end()


class Place:
    """A stream with teacher "t" on the session's Kafka."""

    def __init__(self, settings: KafkaSettings, name: str, model: Path, **options: Any) -> None:
        self.settings = settings
        self.model = model
        self.stream = stream_with_teacher(settings, name, model, **options)
        self.manifest = self.stream.manifest
        self.targets = soft_targets_topic(name, "t")
        self.letters = dead_letters_topic(name)
        self.group = teacher_group(self.manifest, "t")
        self.num_orders = num_orders(self.stream)
        self._workers: list[Running] = []

    def publish(self, *values: Any) -> None:
        publish(self.settings, self.stream, values)

    def feed(self) -> None:
        self.publish(*range(self.num_orders))

    def start(self, until_idle: bool = False, name: str = "w") -> Running:
        running = Running(self.settings, self.stream, self.model, until_idle, name)
        self._workers.append(running)
        return running

    def work(self) -> WorkerReport:
        return self.start(until_idle=True).end()

    def labelled(self) -> dict[int, list[int]]:
        return {p: [one.sequence for one in found] for p, found in soft_targets(self.settings, self.targets).items()}

    def accepted(self) -> list[int]:
        """What a reader takes: of each partition the expected sequence and nothing else."""
        taken = []
        for partition, sequences in self.labelled().items():
            expected = partition
            for sequence in sequences:
                if sequence == expected:
                    taken.append(sequence)
                    expected += P
        return sorted(taken)

    def commits(self) -> dict[int, tuple[int, int]]:
        """partition -> committed offset, and the sequence beside it"""
        admin = new_admin(self.settings)
        try:
            found = ask_coordinator(lambda: admin.list_group_offsets(self.group))[self.group]
        finally:
            admin.close()
        return {tp.partition: (one.offset, json.loads(one.metadata)["next_sequence"]) for tp, one in found.items()}

    def close(self) -> None:
        for running in self._workers:
            running.worker.stop()
            running._thread.join(30.0)


@pytest.fixture
def place(
    kafka_settings: KafkaSettings, fresh_name: Callable[[str], str], tmp_path: Path
) -> Iterator[Callable[..., Place]]:
    made: list[Place] = []

    def make(model: Path | None = None, **options: Any) -> Place:
        there = model or classifier(tmp_path / "m.onnx")
        made.append(Place(kafka_settings, fresh_name("teach"), there, **options))
        return made[-1]

    yield make
    for one in made:
        one.close()


def logits(targets: SoftTargets) -> Any:
    values = targets.output("logits").values()
    assert isinstance(values, Dense)
    return values.logits


def one_after_another(partition: int, num_orders: int) -> list[int]:
    return list(range(partition, num_orders, P))


def test_one_worker_labels_every_order_once_and_says_in_its_commits_what_comes_next(
    place: Callable[..., Place],
) -> None:
    here = place()
    here.feed()
    report = here.work()
    assert here.labelled() == {p: one_after_another(p, here.num_orders) for p in range(P)}
    assert report == WorkerReport(orders=here.num_orders, samples=1297, rebalances=report.rebalances)
    assert here.commits() == {
        p: (len(one_after_another(p, here.num_orders)), p + P * len(one_after_another(p, here.num_orders)))
        for p in range(P)
    }
    assert dead_letters(here.settings, here.letters) == []
    assert here.work().orders == 0  # a second worker finds nothing left to do


def test_a_worker_leaves_its_group_before_it_closes_anything_else(
    place: Callable[..., Place], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client may be slow to close; a member that polls no more keeps the others waiting meanwhile."""
    here, closed = place(), []
    for each in (KafkaMember, KafkaAdmin):

        def close(self: Any, name: str = each.__name__, really: Any = each.close) -> None:
            closed.append(name)
            really(self)

        monkeypatch.setattr(each, "close", close)
    here.feed()
    here.work()
    assert closed.index("KafkaMember") < closed.index("KafkaAdmin")


def test_labels_are_those_of_a_bare_onnx_runtime_call(place: Callable[..., Place]) -> None:
    here = place()
    here.publish(0, 1, 2)
    here.work()
    session = open_session(here.model)
    source = fetcher()
    for found in soft_targets(here.settings, here.targets).values():
        for targets in found:
            images = source.fetch(targets.sample_ids, targets.view_seed).inputs["image"]
            assert np.array_equal(logits(targets), session.run(["y"], {"x": images})[0])


def test_two_workers_share_the_partitions(place: Callable[..., Place], eventually: Any) -> None:
    here = place()
    first = here.start(name="first")
    eventually(lambda: first.num_partitions == P, timeout=30, what="the first worker's share")
    second = here.start(name="second")
    # Which are as equal as the two measured themselves.
    eventually(lambda: 0 < first.num_partitions == P - second.num_partitions < P, timeout=30, what="a share for each")
    here.feed()
    eventually(lambda: first.report.orders + second.report.orders == here.num_orders, timeout=30, what="all orders")
    assert first.report.orders
    assert second.report.orders
    second.stop()
    eventually(lambda: first.num_partitions == P, timeout=30, what="everything back at the first worker")
    first.stop()
    assert here.labelled() == {p: one_after_another(p, here.num_orders) for p in range(P)}


def test_a_worker_that_joins_in_the_middle_loses_nothing(
    place: Callable[..., Place], tmp_path: Path, eventually: Any
) -> None:
    here = place(classifier(tmp_path / "slow.onnx", slow=20_000))
    here.feed()
    first = here.start(name="first")
    eventually(lambda: first.report.orders >= 4, timeout=30, what="some orders")
    second = here.start(until_idle=True, name="second")
    second.end()
    first.stop()
    assert here.accepted() == list(range(here.num_orders))
    assert second.report.orders > 0


@pytest.mark.parametrize("what", ["garbage", "nothing", "another stream", "other samples", "another partition"])
def test_a_record_that_is_no_order_of_this_stream_goes_to_the_dead_letters_and_the_rest_goes_on(
    place: Callable[..., Place], what: str
) -> None:
    here = place()
    true = order(here.manifest, 5)
    other_ids = WorkOrder(true.stream_id, 5, true.epoch, true.sample_ids[::-1].copy(), true.view_seed)
    raw = {
        "garbage": b"no Avro at all",
        "nothing": b"",
        "another stream": WorkOrder("f" * 16, 5, true.epoch, true.sample_ids, true.view_seed).encode(),
        "other samples": other_ids.encode(),
        "another partition": order(here.manifest, 6).encode(),
    }[what]
    here.publish(0, 1, (1, raw), 5, 9, 2)
    report = here.work()
    assert here.accepted() == [0, 1, 2, 5, 9]
    (letter,) = dead_letters(here.settings, here.letters)
    assert (letter.topic, letter.partition, letter.offset) == (work_orders_topic(here.manifest.stream), 1, 1)
    assert (letter.sequence, letter.row, letter.raw) == (None, None, raw)
    assert letter.reason
    assert (report.orders, report.not_orders) == (5, 1)
    assert here.commits()[1] == (4, 13)


def test_a_repeated_order_is_dropped(place: Callable[..., Place]) -> None:
    here = place()
    here.publish(0, 0, 4, 0, 4, 8, 8)
    report = here.work()
    assert here.labelled()[0] == [0, 4, 8]
    assert report.repetitions == 4
    assert here.commits()[0] == (7, 12)


def test_a_group_without_offsets_goes_on_behind_its_soft_targets(place: Callable[..., Place]) -> None:
    here = place()
    here.publish(0, 1, 2, 3, 4, 5, 6)
    here.work()
    admin = new_admin(here.settings)
    try:
        orders = [TopicPartition(work_orders_topic(here.manifest.stream), p) for p in range(P)]
        answer = admin.delete_group_offsets(here.group, orders)
        assert set(answer.values()) == {kafka_error.NoError}
    finally:
        admin.close()
    here.publish(7, 8)
    report = here.work()
    assert report.orders == 2
    assert here.labelled() == {0: [0, 4, 8], 1: [1, 5], 2: [2, 6], 3: [3, 7]}
    assert here.commits() == {0: (3, 12), 1: (2, 9), 2: (2, 10), 3: (2, 11)}


def test_a_hole_in_the_orders_stops_the_worker_with_one_line(
    place: Callable[..., Place], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("teacher_service.leases.intake.HOLE_PATIENCE", 1.0)
    here = place()
    here.publish(0, 1, 4, 12, 5)
    with pytest.raises(SequenceGap, match=r"work-orders/0@2: order 8 comes first.*distillog feed") as caught:
        here.work()
    assert "\n" not in str(caught.value)
    assert here.accepted() == [0, 1, 4, 5]
    assert here.commits()[0] == (2, 8)  # not beyond the order that came too early: it is met again


def test_a_worker_waits_for_a_feeder_that_failed_and_tries_again(
    place: Callable[..., Place], caplog: pytest.LogCaptureFixture, eventually: Any
) -> None:
    here = place()
    here.publish(0, 1, 4, 12)
    running = here.start(until_idle=True)
    eventually(lambda: "order 8 comes first; waiting for a feeder" in caplog.text, timeout=30, what="the hole")
    here.publish(5, 8, 12, 16)
    assert running.end().orders == 7
    assert here.accepted() == [0, 1, 4, 5, 8, 12, 16]


def test_orders_that_a_failed_feeder_left_early_are_passed_over_when_the_missing_one_follows(
    place: Callable[..., Place],
) -> None:
    here = place()
    here.publish(0, 4, 12, 16, 8, 12, 16, 20)
    report = here.work()
    assert here.accepted() == [0, 4, 8, 12, 16, 20]
    assert report.orders >= 6
    assert here.commits()[0] == (8, 24)


def test_feeding_again_repairs_a_hole(place: Callable[..., Place], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("teacher_service.leases.intake.HOLE_PATIENCE", 1.0)
    here = place()
    here.publish(0, 8, 12)
    with pytest.raises(SequenceGap):
        here.work()
    here.publish(4, 8, 12)
    here.work()
    assert here.accepted() == [0, 4, 8, 12]


@pytest.mark.parametrize("constructors", [0, 3], ids=["a new producer at once", "none for a while"])
def test_a_failed_delivery_sends_the_worker_back_to_its_commit_and_nothing_is_lost(
    place: Callable[..., Place],
    tmp_path: Path,
    eventually: Any,
    monkeypatch: pytest.MonkeyPatch,
    constructors: int,
) -> None:
    here = place(classifier(tmp_path / "slow.onnx", slow=10_000))
    here.feed()
    cluster = FaultyCluster(KafkaCluster(here.settings))
    monkeypatch.setattr("teacher_service.serve.KafkaCluster", lambda settings: cluster)
    running = here.start(until_idle=True)
    for producers in (2, 3):
        seen = running.report.orders
        eventually(lambda: running.report.orders > seen + 2, timeout=30, what="some orders")  # noqa: B023
        cluster.fail(1, constructors)
        eventually(lambda: cluster.num_appenders == producers, timeout=30, what="another producer")  # noqa: B023
        for partition, (_, sequence) in here.commits().items():
            # Nothing is committed that a reader cannot read.
            assert sequence <= partition + P * len([one for one in here.accepted() if one % P == partition])
    report = running.end()
    assert here.accepted() == list(range(here.num_orders))
    assert report.orders >= here.num_orders
    assert here.commits()[0] == (11, 44)


def test_stopping_finishes_and_commits(place: Callable[..., Place], tmp_path: Path, eventually: Any) -> None:
    here = place(classifier(tmp_path / "slow.onnx", slow=10_000))
    here.feed()
    running = here.start()
    eventually(lambda: running.report.orders >= 5, timeout=30, what="some orders")
    running.stop()
    labelled = here.labelled()
    assert 5 <= sum(map(len, labelled.values())) < here.num_orders
    assert here.commits() == {p: (len(done), p + P * len(done)) for p, done in labelled.items()}
    here.work()
    assert here.labelled() == {p: one_after_another(p, here.num_orders) for p in range(P)}


def test_sigterm_ends_the_command_with_everything_committed(
    place: Callable[..., Place], tmp_path: Path, eventually: Any
) -> None:
    here = place(classifier(tmp_path / "slow.onnx", slow=5_000))
    here.feed()
    command = [sys.executable, "-m", "pipeline.cli", "--bootstrap-servers", here.settings.bootstrap_servers]
    code = "from pipeline.cli import main; main()"
    command = [sys.executable, "-c", code, *command[3:], "teach", here.manifest.stream, str(here.model)]
    process = subprocess.Popen(
        [*command, "--threads", "1", "--worker", "cli"],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    try:
        eventually(lambda: sum(map(len, here.labelled().values())) > 3, timeout=60, what="some labels")
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 0, said
    labelled = here.labelled()
    assert here.commits() == {p: (len(done), p + P * len(done)) for p, done in labelled.items()}
    assert f"labelled {sum(map(len, labelled.values()))} orders" in said


def test_more_than_one_percent_of_failed_rows_stops_the_worker(place: Callable[..., Place]) -> None:
    here = place(dataset="support.user_data:bytes_0_to_255?count=2000&broken=7")
    here.feed()
    with pytest.raises(
        BadSamples, match=r"of the last \d+ samples cannot be labelled, the last because of: sample \d+ is cut short"
    ) as caught:
        here.work()
    assert "\n" not in str(caught.value)
    assert len(here.accepted()) < here.num_orders


def test_a_single_bad_sample_is_left_out_and_the_rest_goes_on(place: Callable[..., Place]) -> None:
    here = place(dataset="support.user_data:bytes_0_to_255?count=640&broken=400")
    here.feed()
    report = here.work()
    (first, second) = sorted(dead_letters(here.settings, here.letters), key=lambda letter: letter.sample_id or 0)
    assert (first.sample_id, second.sample_id) == (5, 405)
    assert here.accepted() == list(range(here.num_orders))
    assert (report.samples, report.faults) == (638, 2)
    kept = [one.num_kept for found in soft_targets(here.settings, here.targets).values() for one in found]
    assert sum(kept) == 638


def test_a_foreign_teacher_of_bytes_and_probabilities_labels_a_users_own_data(
    place: Callable[..., Place], tmp_path: Path
) -> None:
    path = classifier(tmp_path / "foreign.onnx", dtype="int32", input_name="tokens", tail="probabilities")
    here = place(
        path,
        dataset="support.user_data:bytes_0_to_255?count=100",
        kind="probabilities",
        inputs={"pixels": "tokens"},
        scaling={"pixels": Scaling(0.5)},
    )
    here.feed()
    here.work()
    session = open_session(path)
    source = fetcher("support.user_data:bytes_0_to_255?count=100")
    seen = 0
    for found in soft_targets(here.settings, here.targets).values():
        for targets in found:
            pixels = source.fetch(targets.sample_ids, targets.view_seed).inputs["pixels"]
            halves = np.rint(pixels * np.float32(0.5)).astype(np.int32)
            raw = session.run(["y"], {"tokens": halves})[0]
            assert np.allclose(logits(targets), np.log(np.maximum(raw, 1e-12)), atol=1e-6)
            seen += len(raw)
    assert seen == 100


def test_a_teacher_with_a_fixed_batch_labels_orders_of_another_size(
    place: Callable[..., Place], tmp_path: Path
) -> None:
    path = classifier(tmp_path / "fixed.onnx", batch=16, convolution=True)
    here = place(path, options={"order_size": 50})
    here.publish(0, 1, 2)
    here.work()
    session = open_session(path)
    source = fetcher()
    for found in soft_targets(here.settings, here.targets).values():
        for targets in found:
            images = source.fetch(targets.sample_ids, targets.view_seed).inputs["image"]
            padded = np.concatenate([images, np.repeat(images[-1:], 14, axis=0)])
            bare = [session.run(["y"], {"x": padded[at : at + 16]})[0] for at in range(0, 64, 16)]
            assert np.array_equal(logits(targets), np.concatenate(bare)[:50])


def test_another_model_than_the_streams_is_refused(place: Callable[..., Place], tmp_path: Path) -> None:
    here = place()
    other = classifier(tmp_path / "other.onnx", seed=1)
    for name in (None, "t"):
        with pytest.raises(ManifestMismatch, match=r"is no teacher of|is not the model of"):
            prepare_worker(here.settings, here.manifest.stream, other, TeachOptions(teacher=name, threads=1))


def test_a_model_that_fails_on_the_first_order_is_refused_in_one_line(
    place: Callable[..., Place], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = place()

    def fail(model: OnnxTeacher, inputs: Any) -> Any:
        raise RuntimeError("[ONNXRuntimeError] : 2 : INVALID_ARGUMENT : Gather index\nout of range")

    monkeypatch.setattr(OnnxTeacher, "raw", fail)
    with pytest.raises(TeacherRejected, match=r"m\.onnx: fails on samples of the first order \(.*Gather index out of"):
        prepare_worker(here.settings, here.manifest.stream, here.model, TeachOptions(threads=1))
