"""Streams, teachers, feeding and status from Python: what the commands do, with the same errors."""

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

import pytest
from support.models import classifier
from support.processes import Distillog

import distillog as library
from pipeline.kafka import found
from pipeline.kafka.found import find_cluster
from pipeline.streams import delete_stream, open_stream

pytestmark = pytest.mark.kafka

ROOT = Path(__file__).parents[2]


@pytest.fixture
def address(distillog: Distillog, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("KAFKA_BOOTSTRAP_SERVERS", distillog.settings.bootstrap_servers)
    return distillog.settings.bootstrap_servers


@pytest.fixture
def name(distillog: Distillog, fresh_name: Callable[[str], str]) -> Iterator[str]:
    name = fresh_name("python")
    yield name
    delete_stream(distillog.settings, name)


def test_a_stream_goes_from_nothing_to_labels_without_the_command_line(
    distillog: Distillog, address: str, name: str, tmp_path: Path, eventually: Any
) -> None:
    model = classifier(tmp_path / "teacher.onnx")
    options = {"view": "affine", "view_params": {"rotation": 10}, "epochs": 2, "order_size": 50, "partitions": 4}
    made = library.create_stream(name, "digits?split=train", **options, codec="float32")  # type: ignore[arg-type]
    assert (made.new, made.stream.manifest.epochs, made.fetcher.dataset.num_samples) == (True, 2, 1297)
    of_command = "--view affine --view-param rotation=10 --epochs 2 --order-size 50 --partitions 4 --codec float32"
    create = ("topics", "create", name, "--dataset", "digits?split=train", *of_command.split())
    assert "already there, the same" in distillog.succeed(*create)
    assert not library.create_stream(name, "digits?split=train", **options, codec="float32").new  # type: ignore[arg-type]

    added = library.add_teacher(name, "t", model)
    assert added.new
    assert added.found is not None
    assert added.teacher.sha256 == open_stream(distillog.settings, name).teacher("t").sha256
    assert not library.add_teacher(name, "t", str(model), library.Declared()).new

    stop = threading.Event()
    fed: list[Any] = []
    follow = {"follow": "own", "lead": (8, 16), "stop": stop}
    feeder = threading.Thread(target=lambda: fed.append(library.feed(name, **follow)))  # type: ignore[arg-type]
    feeder.start()
    worker = distillog.start("teach", name, model)
    labels = library.labelled_batches(name, teachers=["t"], batch_size=50, run="own", device="cpu")
    walk = iter(labels)
    for _ in range(10):
        next(walk)
    assert 10 <= library.status(name)["fed"] <= 10 + 16
    stop.set()
    feeder.join(timeout=30)
    assert fed[0].why == "stopped"
    assert library.feed(name).why == "all orders are fed"
    assert len(list(walk)) == len(labels) - 10 == 2 * 1297 // 50 - 10
    worker.terminate()
    worker.succeed()
    here = json.loads(json.dumps(library.status(name)))
    there = json.loads(distillog.succeed("topics", "describe", name, "--json"))
    assert [each["runs"][0].pop("age") >= 0 for each in (here, there)] == [True, True]
    assert here == there
    assert (here["fed"], here["runs"][0]["state"]) == (52, "done")


def test_what_cannot_be_is_refused_as_by_the_command(
    distillog: Distillog, address: str, name: str, tmp_path: Path
) -> None:
    errors = library.errors
    model = classifier(tmp_path / "teacher.onnx")
    with pytest.raises(errors.StreamNotFound, match=f"no stream '{name}'"):
        library.status(name)
    with pytest.raises(errors.ConfigError, match="float16"):
        library.create_stream(name, "digits?split=train", codec="float61")
    with pytest.raises(errors.ConfigError, match="give a positive number"):
        library.create_stream(name, "digits?split=train", retention_hours=-1.0)
    library.create_stream(name, "digits?split=train", partitions=4)
    with pytest.raises(errors.StreamConflict, match="order_size is 256, asked 20"):
        library.create_stream(name, "digits?split=train", partitions=4, order_size=20)
    with pytest.raises(errors.StreamConflict, match=r"--classes 7: .* gives 10 classes"):
        library.add_teacher(name, "t", model, classes=7)
    with pytest.raises(errors.TeacherRejected):
        library.add_teacher(name, "t", model, library.Declared(kind="probabilities"))
    with pytest.raises(errors.ConfigError, match="--lead needs a run"):
        library.feed(name, lead=(8, 16))
    for seconds in (0.0, float("nan"), float("inf")):
        with pytest.raises(errors.ConfigError, match="follow_timeout must be seconds from 1"):
            library.feed(name, follow=["own"], follow_timeout=seconds)
    assert issubclass(errors.StreamConflict, library.DistillogError)


def test_a_cluster_is_found_by_argument_then_environment_then_local_broker(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("KAFKA_BOOTSTRAP_SERVERS", "kafka:1")
    monkeypatch.setattr(found, "running_broker_address", lambda: "local:4")
    assert find_cluster("argument:3").bootstrap_servers == "argument:3"
    assert find_cluster().bootstrap_servers == "kafka:1"
    monkeypatch.setenv("DISTILLOG_BOOTSTRAP_SERVERS", "distillog:2")
    assert find_cluster().bootstrap_servers == "distillog:2"
    monkeypatch.delenv("DISTILLOG_BOOTSTRAP_SERVERS")
    monkeypatch.setenv("KAFKA_BOOTSTRAP_SERVERS", "")
    properties = tmp_path / "kafka.properties"
    properties.write_text("bootstrap.servers=file:5\n")
    assert find_cluster(kafka_config=properties).bootstrap_servers == "file:5"
    monkeypatch.setenv("DISTILLOG_KAFKA_CONFIG", str(properties))
    assert find_cluster().bootstrap_servers == "file:5"
    monkeypatch.delenv("DISTILLOG_KAFKA_CONFIG")
    assert find_cluster().bootstrap_servers == "local:4"
    monkeypatch.setattr(found, "running_broker_address", lambda: None)
    with pytest.raises(library.DistillogError, match="no Kafka address"):
        find_cluster()


STARVING = """
import distillog
labels = distillog.labelled_batches({name!r}, teachers=["t"], batch_size=10, run="own")
held = iter(labels)
print("begun", flush=True)
next(held)
"""


def test_ctrl_c_ends_a_loop_that_waits_and_its_report_says_stopped(
    distillog: Distillog, address: str, name: str, tmp_path: Path, eventually: Any
) -> None:
    library.create_stream(name, "digits?split=train", partitions=4)
    library.add_teacher(name, "t", classifier(tmp_path / "teacher.onnx"))
    command = [sys.executable, "-c", STARVING.format(name=name)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "begun\n"
        eventually(lambda: [one["state"] for one in library.status(name)["runs"]] == ["starving"], 30)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=10)
    finally:
        process.kill()
    assert process.returncode == -signal.SIGINT
    assert err.splitlines()[-1] == "KeyboardInterrupt"
    assert [one["state"] for one in library.status(name)["runs"]] == ["stopped"]


RANK = """
import sys, torch.distributed, distillog
rank, store = int(sys.argv[1]), sys.argv[2]
torch.distributed.init_process_group("gloo", init_method=f"file://{{store}}", rank=rank, world_size=2)
labels = distillog.labelled_batches({name!r}, teachers=["t"], batch_size=32, run="own", device="cpu")
print([batch.sample_ids.tolist() for batch in labels], flush=True)
held = iter(labels)
next(held)
"""


@pytest.mark.faults
@pytest.mark.short
def test_processes_of_torch_distributed_share_each_batch_and_end_with_an_iterator_in_hand(
    distillog: Distillog, address: str, name: str, tmp_path: Path
) -> None:
    library.create_stream(name, "digits?split=train", partitions=4, order_size=100)
    library.add_teacher(name, "t", model := classifier(tmp_path / "teacher.onnx"))
    library.feed(name)
    distillog.succeed("teach", name, model, "--until-idle", "--threads", 1)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", RANK.format(name=name)]
    ranks = [
        subprocess.Popen(
            [*command, str(rank), tmp_path / "store"], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        for rank in range(2)
    ]
    try:
        ends = [process.communicate(timeout=90) for process in ranks]
    finally:
        for process in ranks:
            process.kill()
    assert [process.returncode for process in ranks] == [0, 0], ends
    assert all(b"Traceback" not in err for _, err in ends), ends
    halves = [json.loads(out) for out, _ in ends]
    whole = library.labelled_batches(name, teachers="t", batch_size=32, device="cpu")
    assert [a + b for a, b in zip(*halves, strict=True)] == [batch.sample_ids.tolist() for batch in whole]
    assert [one["state"] for one in library.status(name)["runs"]] == ["stopped"]
