"""The endpoint and what each service shows there, without a cluster."""

from __future__ import annotations

import re
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from support.endpoint import Asked

from pipeline import feed_metrics, metrics_server
from pipeline.feed_metrics import Feeding
from pipeline.metrics import Heart, Metric
from pipeline.metrics_server import Endpoint, serve
from schemas.errors import ConfigError
from student_trainer import metrics as run_metrics
from student_trainer.metrics import Training
from student_trainer.sources.base import Cursor
from teacher_service import metrics as teach_metrics
from teacher_service.fleet import metrics as fleet_metrics
from teacher_service.fleet.metrics import Supervising
from teacher_service.metrics import Labelling, WorkerReport

SERVICES: dict[str, tuple[tuple[Metric[Any], ...], Callable[[], Any]]] = {
    "feed": (feed_metrics.METRICS, lambda: Feeding(orders=20)),
    "teach": (teach_metrics.METRICS, lambda: Labelling(WorkerReport())),
    "fleet": (fleet_metrics.METRICS, Supervising),
    "run": (run_metrics.METRICS, lambda: Training(batch_size=8)),
}
PAGE = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text(encoding="utf-8")


@dataclass
class Work:
    """Something that is asked."""

    count: float | None = 3
    why_not: str = ""
    heart: Heart = field(default_factory=lambda: Heart(60.0))

    @property
    def unready(self) -> str:
        return self.why_not


METRICS: tuple[Metric[Work], ...] = (
    Metric("things_total", "things that were done", lambda work: work.count),
    Metric("speed", "things per second", lambda work: None),
)


@pytest.fixture
def serving() -> Iterator[tuple[Endpoint, Asked]]:
    said: list[str] = []
    with serve(("127.0.0.1", 0), "test", said.append) as endpoint:
        (line,) = said
        yield endpoint, Asked.said(line)


@pytest.fixture
def endpoint(serving: tuple[Endpoint, Asked]) -> Endpoint:
    return serving[0]


@pytest.fixture
def asked(serving: tuple[Endpoint, Asked]) -> Asked:
    return serving[1]


def test_a_service_that_has_not_begun_lives_and_is_not_ready(asked: Asked) -> None:
    assert asked.get("/livez") == (200, "alive\n")
    assert asked.get("/readyz") == (503, "has not begun\n")
    assert asked.get("/metrics") == (200, "")


def test_a_metric_is_served_under_the_labels_and_one_that_there_is_not_is_absent(
    endpoint: Endpoint, asked: Asked
) -> None:
    work = Work()
    endpoint.show(METRICS, work, {"stream": "birds", "run": 'a"b'})
    (one,) = asked.samples()
    assert (one.name, one.labels, one.value) == ("distillog_test_things_total", {"stream": "birds", "run": 'a"b'}, 3)
    assert "# TYPE distillog_test_things_total counter" in asked.get("/metrics?name[]=x")[1]
    work.count = None
    assert asked.values() == {}


def test_health_is_what_the_work_says_of_itself(endpoint: Endpoint, asked: Asked) -> None:
    work = Work(heart=Heart(0.05))
    endpoint.show(METRICS, work, {})
    assert asked.get("/readyz") == (200, "ready\n")
    work.why_not = "nothing came"
    assert asked.get("/readyz") == (503, "nothing came\n")
    assert asked.get("/livez")[0] == 200  # the loop has not begun
    work.heart.beat()
    time.sleep(0.1)
    code, said = asked.get("/livez")
    assert (code, "the loop has not gone round for 0 s" in said) == (503, True)
    work.heart.beat()
    assert asked.get("/livez")[0] == 200
    time.sleep(0.1)
    work.heart.rest()
    assert asked.get("/livez")[0] == 200


def test_there_is_nothing_else(asked: Asked) -> None:
    assert asked.get("/")[0] == 404
    assert asked.get("/metrics/../secrets")[0] == 404
    assert asked.get("/metrics", "POST")[0] == 501
    assert asked.get("/livez", "HEAD") == (200, "")


def test_a_port_that_is_taken_is_refused(asked: Asked) -> None:
    host, port = asked.place
    refused = rf"--metrics-port {host}:{port}: cannot listen there \(Address already in use\)"
    with pytest.raises(ConfigError, match=refused), serve((host, port), "test", print):
        pass


def test_an_address_of_another_machine_is_refused() -> None:
    refused = r"--metrics-port 192\.0\.2\.1:0: cannot listen there"
    with pytest.raises(ConfigError, match=refused), serve(("192.0.2.1", 0), "test", print):
        pass


def test_ipv6_is_served_too() -> None:
    said: list[str] = []
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("this machine has no IPv6")
    with serve(("::1", 0), "test", said.append):
        assert Asked.said(said[0]).answers("/livez")


def test_connections_that_say_nothing_or_too_little_hold_up_nobody_and_are_cut(
    asked: Asked, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metrics_server, "DEADLINE", 1.0)
    idle = [socket.create_connection(asked.place, timeout=10) for _ in range(metrics_server.MOST - 1)]
    try:
        idle[0].send(b"GET /met")
        assert asked.get("/livez")[0] == 200
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            try:
                idle[0].send(b"r")  # each byte would put off a deadline of the next one
                if idle[0].recv(1, socket.MSG_DONTWAIT) == b"":
                    break
            except BlockingIOError:
                time.sleep(0.1)
            except ConnectionError:
                break
        else:
            raise AssertionError("a connection that drips was not cut")
        assert all(one.recv(1) == b"" for one in idle[1:])
    finally:
        for one in idle:
            one.close()


def test_more_connections_than_there_may_be_are_turned_away(asked: Asked, eventually: Callable[..., Any]) -> None:
    held = [socket.create_connection(asked.place, timeout=10) for _ in range(metrics_server.MOST)]
    try:
        assert not asked.answers("/livez")
    finally:
        for one in held:
            one.close()
    eventually(lambda: asked.answers("/livez"), 20, "room for another one")


@pytest.mark.parametrize("service", SERVICES)
def test_a_metric_has_a_name_of_prometheus_form_once_and_can_be_read_at_any_time(service: str) -> None:
    metrics, make = SERVICES[service]
    names = [each.name for each in metrics]
    assert len(set(names)) == len(names)
    assert all(re.fullmatch(r"[a-z]+(_[a-z]+)*", name) for name in names)
    for each in metrics:
        value = each.read(make())
        assert value is None or isinstance(value, int | float)
        assert not each.name.endswith("_total") or not value


@pytest.mark.parametrize("service", SERVICES)
def test_the_docs_list_the_metrics_that_there_are(service: str) -> None:
    listed = {name: means for name, means in re.findall(rf"^\| `distillog_{service}_(\w+)` \| (.*) \|$", PAGE, re.M)}
    assert listed == {each.name: each.means for each in SERVICES[service][0]}


def cursor(sequence: int) -> Cursor:
    return Cursor(0, sequence, 0)


def test_a_run_counts_the_steps_that_it_took_and_starves_while_it_asks_for_a_batch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    read = {each.name: each.read for each in run_metrics.METRICS}
    training = Training(batch_size=8)
    assert training.unready == "no batch has come yet"
    training.state("training")
    start = cursor(0)
    training.trained(start)
    assert (read["samples_total"](training), training.starving) == (0, 0.0)
    for _ in range(20):
        now += 0.5
        training.trained(start)
    assert (training.starving, training.unready) == (10.0, "no batch has come yet")
    training.trained(behind := cursor(1))
    training.wrote({"step": 7, "total_steps": 9, "loss": 0.5, "lr": 0.1, "timing": {"samples_per_s": 40.0}})
    training.wrote({"step": 7, "evaluation": {"accuracy": 1.0}})
    assert (read["samples_total"](training), training.starving, training.unready) == (8, 0.0, "")
    assert (read["samples_per_second"](training), read["steps"](training), read["next_order"](training)) == (40.0, 7, 1)
    for _ in range(12):
        now += 0.5
        training.trained(behind)
    assert (training.starving, training.unready) == (6.0, "no batch has come for 6 s")
    assert read["samples_per_second"](training) == 0
    now += 30.0  # the batch is there, and its step takes long
    assert (training.starving, training.unready) == (0.0, "")
    training.state("evaluating")
    now += 3600.0
    assert (training.heart.alive, read["samples_per_second"](training)) == (True, 0)
    training.state("training")
    now += run_metrics.STEP
    assert not training.heart.alive
    training.state("done")
    assert (training.heart.alive, training.unready) == (True, "the run is done")
    left = {name: value for name, value in ((name, of(training)) for name, of in read.items()) if value}
    assert left == {"samples_total": 8, "steps": 7, "planned_steps": 9, "next_order": 1}


def test_what_the_run_tells_is_passed_on() -> None:
    told: list[object] = []

    class Reporter:
        trained = checkpointed = state = staticmethod(told.append)

    training = Training(batch_size=8)
    training.to = Reporter()
    training.state("training")
    training.trained(cursor(3))
    training.checkpointed(cursor(2))
    assert told == ["training", cursor(3), cursor(2)]


def test_a_loss_that_overflowed_is_absent() -> None:
    training = Training(batch_size=8)
    training.wrote({"step": 1, "loss": None})
    assert training.current("loss") is None


def test_a_reading_that_is_old_says_nothing_of_now() -> None:
    read = {each.name: each.read for each in fleet_metrics.METRICS}
    now = Supervising(running=2, joined=2)
    assert now.unready == "Kafka has not said how the stream stands"
    now.figures = figures(time.monotonic())
    assert (now.unready, read["lag_orders"](now), read["fed_orders"](now)) == ("", 5, 9)
    now.joined = 0
    assert now.unready == "none of its workers is in the group"
    now.figures = figures(time.monotonic() - fleet_metrics.OLD)
    assert (now.unready, read["lag_orders"](now)) == ("Kafka has not said how the stream stands", None)
    now.figures = figures(time.monotonic())
    now.end()
    assert (now.unready, read["lag_orders"](now), read["workers"](now)) == ("has ended", None, 0)


def figures(at: float) -> Any:
    from pipeline.stream_status import StreamStatus, TeacherStatus
    from teacher_service.fleet.readings import Figures

    teacher = TeacherStatus("cnn", "group", "Stable", (), labelled=4, lag=5, offsets=(), published=4)
    return Figures(at, StreamStatus("s", "id", 20, 9, (teacher,), {}, (), dead_letters=0), teacher)


def test_a_worker_that_left_and_a_feeder_that_ended_hold_nothing() -> None:
    labelling = Labelling(WorkerReport(orders=3), in_group=True, partitions=4, in_hand=2, lag=7, speed=9.0)
    assert labelling.unready == ""
    labelling.end()
    assert labelling.unready == "is no member of its group"
    assert {each.name for each in teach_metrics.METRICS if each.read(labelling)} == {"orders_total"}
    feeding = Feeding(orders=20, published=7, next_sequence=7, position=3, followed=1)
    assert (feeding.ahead, feeding.unready) == (4, "")
    feeding.end()
    left = {each.name: each.read(feeding) for each in feed_metrics.METRICS if each.read(feeding)}
    assert (left, feeding.unready) == ({"orders_total": 7, "stream_orders": 20, "fed_orders": 7}, "has ended")
