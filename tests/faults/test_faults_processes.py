"""Workers, students and brokers that die or freeze: every label is there, and the weights are the same to the bit."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support.log_checker import LogReport, assert_nothing_lost, check_labels, check_orders
from support.models import classifier
from support.processes import Child, Distillog, distillog_commands
from support.small_runs import checkpoints, report, run_file, weights
from support.streams import publish, stream_with_teacher

from pipeline import status
from pipeline.broker.local import LocalBroker
from pipeline.kafka.settings import KafkaSettings
from pipeline.streams import Stream

pytestmark = [pytest.mark.kafka, pytest.mark.faults, pytest.mark.timeout(300)]

PARTITIONS = 8
ORDERS = 60
SMALL = {"order_size": 8, "partitions": PARTITIONS}
Labels = Callable[[Stream], int]
Wait = Callable[..., Any]
Make = Callable[[], Stream]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return classifier(tmp_path / "teacher.onnx")


@pytest.fixture
def make(kafka_settings: KafkaSettings, fresh_name: Callable[[str], str], steering: Path, model: Path) -> Make:
    """Streams alike in all but name and ID: 60 orders of 8 samples."""
    dataset = f"support.fault_data:steered?folder={steering}&count={ORDERS * 8}"
    return lambda: stream_with_teacher(kafka_settings, fresh_name("kill"), model, dataset, SMALL)


def teach(distillog: Distillog, stream: Stream, model: Path, worker: str, *more: object) -> Child:
    return distillog.start("teach", stream.manifest.stream, model, "--worker", worker, "--threads", 1, *more)


def members(settings: KafkaSettings, stream: Stream) -> dict[str, int]:
    """Worker -> its partitions; {} while the group rebalances."""
    (teacher,) = status.lag(settings, stream).teachers
    return {name: worker.partitions for name, worker in teacher.workers.items()}


def both_share(settings: KafkaSettings, stream: Stream) -> bool:
    """Whether each of two workers has partitions, as many as its speed gives it, and none is left over."""
    found = members(settings, stream)
    return len(found) == 2 and all(found.values()) and sum(found.values()) == PARTITIONS


def all_labelled(settings: KafkaSettings, stream: Stream) -> bool:
    """Whether the group has committed everything: a count of records would take repetitions for labels."""
    (teacher,) = status.lag(settings, stream).teachers
    return teacher.labelled == ORDERS


def two_workers_one_held(
    distillog: Distillog, stream: Stream, model: Path, steering: Path, num_labels: Labels, eventually: Wait
) -> tuple[Child, Child, str, str]:
    """Two workers with a share each; one of them is in the middle of an order, all others are fed and unlabelled.

    Returns:
        The one that is held and the other one, and the name of each.
    """
    settings = distillog.settings
    workers = {name: teach(distillog, stream, model, name, "--session-timeout", 6) for name in ("a", "b")}
    eventually(lambda: both_share(settings, stream), 60, "two workers with a share each")
    publish(settings, stream, range(2 * PARTITIONS))  # who labels these shows whose partitions are whose
    eventually(lambda: num_labels(stream) >= 2 * PARTITIONS, 60, "the first orders labelled")
    (steering / "hold").touch()
    publish(settings, stream, range(2 * PARTITIONS, ORDERS))
    eventually((steering / "held").exists, 60, "a worker in the middle of an order")
    pid = int((steering / "held").read_text())
    held, other = sorted(workers, key=lambda name: workers[name].pid != pid)
    return workers[held], workers[other], held, other


def failover(found: LogReport, held: str, since: float) -> tuple[float, float]:
    """Seconds from the fault to the first and to the last label of the held worker's orders by the other one."""
    its = {number % PARTITIONS for number, one in found.accepted.items() if number < 16 and one.worker == held}
    times = [one.time - since for number, one in found.accepted.items() if number % PARTITIONS in its]
    late = [seconds for seconds in times if seconds > 0]
    return min(late), max(late)


@pytest.mark.short
def test_the_orders_of_a_worker_killed_in_the_middle_of_one_are_labelled_by_the_others(
    distillog: Distillog, make: Make, model: Path, steering: Path, num_labels: Labels, eventually: Wait
) -> None:
    stream = make()
    victim, other, name, _ = two_workers_one_held(distillog, stream, model, steering, num_labels, eventually)
    killed = time.time()
    victim.kill()
    eventually(lambda: all_labelled(distillog.settings, stream), 60, "all labels")
    other.terminate()
    other.succeed()

    found = check_labels(distillog.settings, stream)
    assert_nothing_lost(found)
    first, last = failover(found, name, killed)
    print(f"fail-over with a session time-out of 6 s: first label after {first:.1f} s, last after {last:.1f} s")
    assert first < 30


def test_a_worker_frozen_past_its_session_wakes_and_can_only_repeat_what_others_labelled(
    distillog: Distillog, make: Make, model: Path, steering: Path, num_labels: Labels, eventually: Wait
) -> None:
    stream = make()
    zombie, other, name, _ = two_workers_one_held(distillog, stream, model, steering, num_labels, eventually)
    frozen = time.time()
    zombie.freeze()
    eventually(lambda: all_labelled(distillog.settings, stream), 60, "all labels")
    (steering / "held").unlink()
    zombie.thaw()
    eventually(lambda: members(distillog.settings, stream).keys() == {"a", "b"}, 60, "the zombie as a member again")
    for worker in (zombie, other):
        worker.terminate()
        worker.succeed()

    found = check_labels(distillog.settings, stream)
    assert_nothing_lost(found)
    print(f"first label after {failover(found, name, frozen)[0]:.1f} s")


@pytest.mark.short
def test_a_student_killed_and_resumed_ends_with_the_weights_of_one_that_was_not(
    distillog: Distillog, make: Make, model: Path, tmp_path: Path, eventually: Wait
) -> None:
    stream = make()
    publish(distillog.settings, stream, range(ORDERS // 2))
    worker = teach(distillog, stream, model, "a")
    runs, file = tmp_path / "runs", run_file(tmp_path, stream.manifest.stream)
    student = distillog.start("runs", "start", file, "--folder", runs)
    eventually(lambda: checkpoints(runs), 90, "a checkpoint")
    student.kill()
    distillog.succeed("feed", stream.manifest.stream)
    distillog.start("runs", "resume", "student", "--folder", runs).succeed()
    worker.terminate()
    worker.succeed()

    assert_nothing_lost(check_labels(distillog.settings, stream))
    whole = run_file(tmp_path, stream.manifest.stream, "replay")
    distillog.succeed("runs", "start", whole, "--folder", runs, "--quiet")
    assert weights(runs) == weights(runs, "replay")
    assert report(runs)["steps"] == report(runs, "replay")["steps"] == 40


def test_the_weights_are_the_same_to_the_bit_however_many_teachers_live_or_die(
    distillog: Distillog, make: Make, model: Path, tmp_path: Path, num_labels: Labels, eventually: Wait
) -> None:
    shas: dict[str, str] = {}

    def live(case: str, num_workers: int, *, kills: bool) -> None:
        stream = make()
        runs, file = tmp_path / case, run_file(tmp_path, stream.manifest.stream)
        publish(distillog.settings, stream, range(ORDERS // 2))
        workers = [teach(distillog, stream, model, f"{case}{i}", "--session-timeout", 2) for i in range(num_workers)]
        student = distillog.start("runs", "start", file, "--folder", runs)
        if kills:
            eventually(lambda: num_labels(stream), 90, "a label")
            workers.pop().kill()
            eventually(lambda: checkpoints(runs), 90, "a checkpoint")
            student.kill()
            workers.pop().kill()
        distillog.succeed("feed", stream.manifest.stream)
        if kills:
            student = distillog.start("runs", "resume", "student", "--folder", runs)
        student.succeed()
        for worker in workers:
            worker.terminate()
            worker.succeed()
        assert_nothing_lost(check_labels(distillog.settings, stream), case)
        shas[case] = weights(runs)
        replay = run_file(tmp_path, stream.manifest.stream, "replay")
        distillog.succeed("runs", "start", replay, "--folder", runs, "--quiet")
        shas[f"{case}, replayed"] = weights(runs, "replay")

    live("one teacher", 1, kills=False)
    live("three teachers", 3, kills=False)
    live("three teachers with kills", 3, kills=True)
    print(shas)
    assert len(shas) == 6
    assert len(set(shas.values())) == 1


@pytest.fixture
def on_own_broker(own_broker: LocalBroker, tmp_path: Path) -> Iterator[Distillog]:
    with distillog_commands(KafkaSettings(own_broker.bootstrap_servers), tmp_path) as commands:
        yield commands


@pytest.mark.parametrize("how", ["killed", "frozen"])
def test_feeder_worker_and_student_go_on_after_a_broker_was(
    how: str, own_broker: LocalBroker, on_own_broker: Distillog, tmp_path: Path, eventually: Wait
) -> None:
    distillog, settings = on_own_broker, on_own_broker.settings
    model = classifier(tmp_path / "teacher.onnx", (1, 40), slow=3000)
    dataset = f"mnist1d?split=train&n={120 * 8}"
    stream = stream_with_teacher(settings, "broken", model, dataset, SMALL)
    runs, file = tmp_path / "runs", run_file(tmp_path, "broken", starve={"warning": 8.0})
    feeder = distillog.start("feed", "broken", "--follow", "student", "--lead", "8:16")
    worker = teach(distillog, stream, model, "a")
    student = distillog.start("runs", "start", file, "--folder", runs)
    eventually(lambda: checkpoints(runs), 90, "a checkpoint")
    assert student.running
    if how == "killed":
        own_broker.kill()
        own_broker.start()
    else:
        assert own_broker.pid
        os.kill(own_broker.pid, signal.SIGSTOP)
        student.wait_for("warning: no soft targets.*Kafka gives no answer")  # longer than the worker's session
        os.kill(own_broker.pid, signal.SIGCONT)
    student.succeed(150)
    feeder.succeed()
    worker.terminate()
    worker.succeed()

    assert_nothing_lost(check_orders(settings, stream), "orders")
    assert_nothing_lost(check_labels(settings, stream), "labels")
    replay = run_file(tmp_path, "broken", "replay")
    distillog.succeed("runs", "start", replay, "--folder", runs, "--quiet")
    assert weights(runs) == weights(runs, "replay")
    print(f"longest wait of the student: {report(runs)['timing']['longest_wait_s']:.1f} s")
