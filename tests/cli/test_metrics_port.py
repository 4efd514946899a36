"""`--metrics-port` of real processes on the real Kafka."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support.endpoint import Asked
from support.models import classifier
from support.processes import Child, Distillog, distillog_commands
from support.small_runs import run_file
from support.streams import num_orders, publish, stream_with_teacher

from pipeline.broker.local import LocalBroker
from pipeline.kafka.settings import KafkaSettings
from pipeline.streams import Stream

pytestmark = pytest.mark.kafka

Wait = Callable[..., Any]
SERVED = ("--metrics-port", 0)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return classifier(tmp_path / "teacher.onnx")


@pytest.fixture
def stream(distillog: Distillog, fresh_name: Callable[[str], str], model: Path) -> Stream:
    return stream_with_teacher(distillog.settings, fresh_name("metrics"), model)


def shows(asked: Asked, **wanted: float) -> bool:
    """Whether a scrape finds these values now."""
    return asked.values().items() >= wanted.items()


def test_a_worker_shows_what_it_labels_and_a_frozen_one_gives_no_answer(
    distillog: Distillog, stream: Stream, model: Path, eventually: Wait
) -> None:
    name, count = stream.manifest.stream, num_orders(stream)
    worker = distillog.start("teach", name, model, "--threads", 1, *SERVED)
    asked = Asked.of(worker)
    assert asked.answers("/livez")
    eventually(lambda: asked.answers("/readyz"), 60, "a member of the group")
    publish(distillog.settings, stream, range(count))
    eventually(lambda: shows(asked, teach_orders_total=count, teach_samples_total=1297), 60, "all labelled")
    eventually(lambda: shows(asked, teach_partitions=4, teach_lag_orders=0, teach_orders_in_hand=0), 10, "no lag")
    for what in ("loading", "inference", "publishing", "waiting"):
        eventually(lambda what=what: 0 < asked.values()[f"teach_{what}_seconds_total"] < 60, 10, what)
    found = asked.values()
    assert found["teach_samples_per_second"] > 0
    assert found["teach_dead_letters_total"] == 0
    assert asked.labels() == {(("stream", name), ("teacher", "t"))}

    worker.freeze()
    with pytest.raises(TimeoutError):
        asked.get("/livez", timeout=2.0)
    worker.thaw()
    eventually(lambda: asked.answers("/livez"), 10, "its thaw")
    worker.terminate()
    worker.succeed()


def test_a_worker_that_leaves_says_so_while_it_is_still_there(
    distillog: Distillog, fresh_name: Callable[[str], str], model: Path, tmp_path: Path, eventually: Wait
) -> None:
    steering = tmp_path / "steering"
    steering.mkdir()
    dataset = f"support.fault_data:steered?folder={steering}&count=400"
    stream = stream_with_teacher(distillog.settings, fresh_name("metrics"), model, dataset)
    worker = distillog.start("teach", stream.manifest.stream, model, "--threads", 1, *SERVED)
    asked = Asked.of(worker)
    eventually(lambda: asked.answers("/readyz"), 60, "a member of the group")
    (steering / "hold").touch()
    publish(distillog.settings, stream, range(4))
    eventually((steering / "held").exists, 60, "an order in hand")
    eventually(lambda: shows(asked, teach_orders_in_hand=4, teach_lag_orders=4, teach_partitions=4), 10, "a lag")
    worker.terminate()
    assert asked.answers("/livez")
    (steering / "held").unlink()
    worker.succeed()
    assert not asked.answers("/livez", timeout=1.0)


def test_a_run_without_labels_starves_until_they_come_and_the_feeder_shows_its_lead(
    distillog: Distillog, stream: Stream, model: Path, tmp_path: Path, eventually: Wait
) -> None:
    name = stream.manifest.stream
    file = run_file(tmp_path, name, train={"batch_size": 32, "log_every": 1, "passes": 200})
    run = distillog.start("runs", "start", file, "--folder", tmp_path / "runs", *SERVED)
    following = ("--follow", "student", "--lead", "8:12", "--follow-timeout", 5)
    feeder = distillog.start("feed", name, *following, *SERVED)
    of_run, of_feeder = Asked.of(run), Asked.of(feeder)
    eventually(lambda: of_run.values().get("run_starving_seconds", 0) > 2, 60, "a run that starves")
    assert of_run.answers("/livez")
    assert of_run.get("/readyz") == (503, "no batch has come yet\n")
    eventually(lambda: shows(of_feeder, feed_lead_orders=12, feed_orders_total=12, feed_followed_runs=1), 30, "a lead")
    assert of_feeder.answers("/readyz")
    assert of_feeder.values()["feed_credit_seconds_total"] > 0
    assert of_feeder.labels() == {(("stream", name),)}

    distillog.start("teach", name, model, "--threads", 1)
    eventually(lambda: of_run.answers("/readyz"), 60, "labels")
    eventually(lambda: of_run.values().get("run_steps", 0) > 3, 30, "some steps")
    found = of_run.values()
    assert found["run_starving_seconds"] < 1  # a batch may be waited for in the very moment
    assert found["run_samples_total"] >= 32 * 3
    assert found["run_loss"] > 0
    assert found["run_planned_steps"] == 1297 * 200 // 32
    assert of_run.labels() == {(("run", "student"), ("stream", name))}
    run.terminate()
    run.succeed()
    assert feeder.wait() == 0


def test_a_fleet_shows_its_workers_and_the_stream(
    distillog: Distillog, stream: Stream, model: Path, eventually: Wait
) -> None:
    name, count = stream.manifest.stream, num_orders(stream)
    fleet = distillog.start("fleet", name, model, "--threads", 1, "--max", 1, "--name", "w", *SERVED)
    asked = Asked.of(fleet)
    eventually(lambda: asked.answers("/readyz"), 60, "a worker in the group")
    publish(distillog.settings, stream, range(count))
    eventually(lambda: shows(asked, fleet_labelled_orders=count, fleet_lag_orders=0), 60, "all labelled")
    assert shows(asked, fleet_workers=1, fleet_workers_joined=1, fleet_workers_started_total=1, fleet_members=1)
    assert asked.answers("/livez")
    assert asked.labels() == {(("stream", name), ("teacher", "t"))}
    fleet.terminate()
    fleet.succeed()


@pytest.fixture
def away(own_broker: LocalBroker, tmp_path: Path) -> Iterator[Distillog]:
    with distillog_commands(KafkaSettings(own_broker.bootstrap_servers), tmp_path) as commands:
        yield commands


@pytest.mark.faults
def test_the_endpoint_outlives_the_absence_of_the_broker(
    away: Distillog, own_broker: LocalBroker, fresh_name: Callable[[str], str], model: Path, eventually: Wait
) -> None:
    stream = stream_with_teacher(away.settings, fresh_name("metrics"), model)
    name = stream.manifest.stream
    worker = away.start("teach", name, model, "--threads", 1, *SERVED)
    feeder = away.start("feed", name, "--follow", "nobody", *SERVED)
    fleet = away.start("fleet", name, model, "--threads", 1, "--max", 1, *SERVED)
    children: dict[str, tuple[Child, Asked]] = {
        each.arguments[0]: (each, Asked.of(each)) for each in (worker, feeder, fleet)
    }
    for _, asked in children.values():
        eventually(lambda asked=asked: asked.answers("/readyz"), 90, "all ready")
    own_broker.kill()
    deadline = time.monotonic() + 12
    while time.monotonic() < deadline:
        for service, (child, asked) in children.items():
            assert asked.answers("/livez", timeout=2.0), (service, child)
            assert asked.answers("/metrics", timeout=2.0), (service, child)
        time.sleep(0.2)
    own_broker.start()
    for _, asked in children.values():
        eventually(lambda asked=asked: asked.answers("/readyz"), 90, "all ready again")
    for child, _ in children.values():
        child.terminate()
        child.succeed()


def test_a_port_that_is_taken_is_one_line_before_any_work(
    distillog: Distillog, stream: Stream, model: Path, tmp_path: Path
) -> None:
    name, runs = stream.manifest.stream, tmp_path / "runs"
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        commands: list[tuple[object, ...]] = [
            ("feed", name),
            ("teach", name, model),
            ("fleet", name, model),
            ("runs", "start", run_file(tmp_path, name), "--folder", runs),
        ]
        for command in commands:
            words = (f"--metrics-port 127.0.0.1:{port}: cannot listen there", "give another port")
            distillog.refuse(*command, "--metrics-port", port, words=words)
    assert not runs.exists()
    assert "fed 0 of 41 orders" in distillog.succeed("topics", "lag", name)


@pytest.mark.parametrize("value", ["", "x", "70000", "-1", "localhost", "1.5", "127.0.0.1:", "1" * 400, "٣"])
def test_what_is_no_port_is_wrong_usage(value: str, distillog: Distillog) -> None:
    result = distillog.call("feed", "birds", "--metrics-port", value)
    assert (result.exit_code, "is not [HOST:]PORT" in result.output) == (2, True)
