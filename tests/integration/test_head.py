"""Labels by the codec head, from the ONNX file to the student, over a real Kafka."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from kafka import TopicPartition
from kafka.admin import ConfigResource, ConfigResourceType
from support.heads import bound
from support.log_checker import assert_nothing_lost, check_labels
from support.models import classifier
from support.processes import Distillog
from support.small_runs import run_file, weights
from support.streams import fetcher

import distillog as library
from pipeline.captured.contents import Contents, head_name
from pipeline.kafka.clients import new_admin, new_producer
from pipeline.names import heads_topic, soft_targets_topic, work_orders_topic
from pipeline.streams import open_stream
from schemas.head import Head, HeadChunk
from student_trainer.learning.targets import HeadTarget
from student_trainer.run.settings import load_run, run_settings
from teacher_service.models.session import OnnxTeacher

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(200)]

DATASET = "digits?split=train"
STUDENT = {"name": "mlp", "hidden": [16], "dropout": 0.0}


@pytest.fixture
def labelled(distillog: Distillog, fresh_name: Callable[[str], str], tmp_path: Path) -> tuple[str, Path]:
    """A stream of 13 orders, labelled by head, and its teacher."""
    name, model = fresh_name("head"), classifier(tmp_path / "m.onnx")
    create = ("topics", "create", name, "--dataset", DATASET, "--partitions", 4, "--order-size", 100)
    distillog.refuse(*create, "--codec", "head", words=("head", "add-teacher"))
    distillog.succeed(*create)
    other = classifier(tmp_path / "p.onnx", tail="probabilities")
    refused = ("topics", "add-teacher", name, "p")
    of_head = ("--codec", "head")
    distillog.refuse(*refused, other, *of_head, "--kind", "probabilities", words=("head rebuilds logits",))
    other = classifier(tmp_path / "p.onnx", nan_above=0.9)
    distillog.refuse(*refused, other, *of_head, words=("'holed' (Where) is no linear layer", "use another codec"))
    distillog.succeed("topics", "add-teacher", name, "t", model, "--codec", "head")
    distillog.succeed("feed", name)
    distillog.succeed("teach", name, model, "--threads", 1, "--until-idle")
    return name, model


def test_a_student_learns_from_hidden_rows_in_the_log_and_in_files_to_the_same_bits(
    distillog: Distillog, labelled: tuple[str, Path], tmp_path: Path
) -> None:
    (name, model), runs, folder = labelled, tmp_path / "runs", tmp_path / "labels"
    stream = open_stream(distillog.settings, name)
    found = check_labels(distillog.settings, stream)
    assert_nothing_lost(found)
    described = json.loads(distillog.succeed("topics", "describe", name, "--json"))["teachers"][0]["outputs"][0]
    sha256 = described["head_sha256"]
    assert described["codec"] == "head:h=32"
    assert f"(sha256 {sha256}) in topic {heads_topic(name, 't')}" in distillog.succeed("topics", "describe", name)
    distillog.succeed("verify", name, model, "--threads", 1, "--quiet")

    # What a loop of one's own gets is the teacher's own logits, within the error of float16.
    teacher = stream.teacher("t")
    here = OnnxTeacher(model, teacher, threads=1)
    plain = tuple(replace(each, codec=None, head_sha256=None) for each in teacher.outputs)
    whole = OnnxTeacher(model, replace(teacher, outputs=plain), threads=1)
    batches = library.labelled_batches(
        name, teachers="t", batch_size=64, bootstrap_servers=distillog.settings.bootstrap_servers
    )
    first = next(iter(batches))
    views = fetcher(DATASET).fetch(first.sample_ids.numpy(), 0, None)
    exact, hidden = whole.raw(views.inputs)["logits"], here.label(views.inputs)["logits"]
    error = np.abs(first.targets["t"]["logits"].logits.numpy() - exact)
    assert (error <= 2 * bound(here.heads["logits"], hidden)).all()
    assert not isinstance(first.targets["t"]["logits"], HeadTarget)  # as losses take it

    for run in ("log", "files"):
        file = run_file(tmp_path, name, run, student=STUDENT)
        losses = [{"name": "forward_kl", "temperature": 3.3}, {"name": "dkd", "temperature": 1.7}]
        file.write_text(run_settings(load_run(file).as_dict() | {"losses": losses}).as_toml())
    distillog.succeed("runs", "start", tmp_path / "log.toml", "--folder", runs, "--quiet")
    distillog.succeed("capture", name, folder, "--quiet")
    head = folder / head_name("t", 0)
    assert [each.sha256 for each in Contents.read(folder).teachers["t"].heads] == [sha256]
    assert Head.decode(head.read_bytes(), "here").sha256 == sha256
    from_files = ("--set", "source=files", "--set", f"data.files={folder}", "--folder", runs, "--quiet")
    distillog.succeed("runs", "start", tmp_path / "files.toml", *from_files)
    assert weights(runs, "files") == weights(runs, "log")

    raw = head.read_bytes()
    head.write_bytes(raw[:-1] + b"\x01")
    distillog.refuse("capture", name, folder, "--check", words=(head.name, "is damaged"))
    damaged = ("runs", "start", run_file(tmp_path, name, "damaged"), *from_files)
    distillog.refuse(*damaged, words=(head.name, "is damaged"))
    head.unlink()
    distillog.refuse(*damaged, words=(head.name, "is missing"))
    distillog.succeed("capture", name, folder, "--quiet")
    assert head.read_bytes() == raw


def test_a_layer_that_is_lost_or_forged_ends_a_run_before_it_begins_and_is_brought_back(
    distillog: Distillog, labelled: tuple[str, Path], tmp_path: Path
) -> None:
    (name, model), runs = labelled, tmp_path / "runs"
    stream = open_stream(distillog.settings, name)
    (sha256,) = stream.teacher("t").heads
    start = ("runs", "start", run_file(tmp_path, name, train={"steps": 5}), "--folder", runs, "--quiet")
    partition = TopicPartition(heads_topic(name, "t"), 0)
    with closing(new_admin(distillog.settings)) as admin:
        admin.delete_records({partition: 1})
    distillog.refuse(*start, words=(sha256[:12], "is not there", "add-teacher"))
    forged = HeadChunk(stream.manifest.stream_id, "t", sha256, 0, 1, b"nothing of the kind")
    producer = new_producer(distillog.settings)
    for value in (b"no chunk", forged.encode()):
        producer.send(partition.topic, value=value, partition=0).get(timeout=30)
    producer.close(timeout=5)
    distillog.refuse(*start, words=(sha256[:12], "is not what its SHA-256 says", "add-teacher"))
    again = distillog.succeed("topics", "add-teacher", name, "t", model, "--codec", "head")
    assert "already there, the same" in again
    distillog.succeed(*start)
    larger = ConfigResource(ConfigResourceType.TOPIC, work_orders_topic(name), {"max.message.bytes": "2000000"})
    with closing(new_admin(distillog.settings)) as admin:
        admin.alter_configs([larger])
    assert distillog.succeed("topics", "add-teacher", name, "t", model, "--codec", "head") == again

    distillog.succeed("topics", "remove-teacher", name, "t", "--yes")
    with closing(new_admin(distillog.settings)) as admin:
        assert not {heads_topic(name, "t"), soft_targets_topic(name, "t")} & set(admin.list_topics())


@pytest.mark.faults
@pytest.mark.short
def test_two_processes_learn_what_one_does_of_a_layer_that_they_are_told_of_once(
    distillog: Distillog, labelled: tuple[str, Path], tmp_path: Path
) -> None:
    (name, _), runs = labelled, tmp_path / "runs"
    files = {run: run_file(tmp_path, name, run, student=STUDENT, train={"steps": 20}) for run in ("one", "two")}
    distillog.succeed("runs", "start", files["one"], "--folder", runs, "--quiet")
    distillog.torchrun(2, "runs", "start", files["two"], "--folder", runs, "--quiet").succeed()
    losses = [
        [json.loads(line)["loss"] for line in (runs / run / "metrics.jsonl").read_text().splitlines() if "loss" in line]
        for run in ("one", "two")
    ]
    assert losses[0]
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
