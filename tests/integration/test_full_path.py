"""The whole path as a user walks it: real processes, a real Kafka, one command after the other."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from support.log_checker import assert_nothing_lost, check_labels, check_orders
from support.models import classifier
from support.processes import Distillog
from support.small_runs import report, run_file, weights

from pipeline.streams import list_streams, open_stream
from schemas.records import SoftTargets

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(300)]

VIEW = ("--view", "affine", "--view-param", "rotation=10", "--view-param", "shift=0.1")
SIGNALS = "mnist1d?split=train&n=400"
BYTES = "support.user_data:bytes_0_to_255?count=100"


@pytest.mark.faults
@pytest.mark.short
def test_sample_ids_become_soft_targets_and_those_a_student(
    distillog: Distillog, fresh_name: Callable[[str], str], tmp_path: Path
) -> None:
    """A view, two epochs, two workers, a feeder that follows a student which reads while the labels are written."""
    name, runs, model = fresh_name("full"), tmp_path / "runs", classifier(tmp_path / "teacher.onnx")
    create = ("topics", "create", name, "--dataset", "digits?split=train", "--order-size", 50, "--epochs", 2)
    made = distillog.start(*create, "--partitions", 6, "--codec", "float32", *VIEW).succeed()
    assert "1297 samples x 2 epochs = 52 orders of 50, 6 partitions, codec float32, view affine" in made
    assert "already there, the same" in distillog.succeed(*create, "--partitions", 6, "--codec", "float32", *VIEW)
    assert "added teacher t" in distillog.succeed("topics", "add-teacher", name, "t", model)

    sections = {"train": {"batch_size": 32}, "optimizer": {"lr": 0.2}}
    file = run_file(tmp_path, name, **sections, evaluation={"dataset": "digits?split=test"})
    student = distillog.start("runs", "start", file, "--folder", runs)
    feeder = distillog.start("feed", name, "--follow", "student", "--lead", "12:24", "--json")
    teach = ("teach", name, model, "--threads", 1)
    several = (("--loaders", 2), ("--loaders", 2, "--loader-processes"))
    workers = [distillog.start(*teach, "--worker", f"w{number}", *each) for number, each in enumerate(several)]
    assert "finished at step 81" in student.succeed()
    fed = json.loads(feeder.succeed())
    assert (fed["next"], fed["orders"]) == (52, 52)
    for worker in workers:
        worker.terminate()
        worker.succeed()
        assert "to the dead letters: 0 samples, 0 records" in worker.stderr

    stream = open_stream(distillog.settings, name)
    assert_nothing_lost(check_orders(distillog.settings, stream), "orders")
    labels = check_labels(distillog.settings, stream)
    assert_nothing_lost(labels, "labels")
    for epoch in range(2):
        records = [one.record for number, one in labels.accepted.items() if number // 26 == epoch]
        assert {record.view_seed for record in records} == {records[0].view_seed}
        assert sorted(np.concatenate([record.sample_ids for record in records])) == list(range(1297))

    (lag,) = json.loads(distillog.succeed("topics", "lag", name, "--json"))["teachers"]
    written = 52 + labels.duplicates + labels.early  # a worker that is slow to join may label some orders again
    assert (lag["labelled"], lag["lag"], lag["published"]) == (52, 0, written)
    (run,) = json.loads(distillog.succeed("topics", "describe", name, "--json"))["runs"]
    assert (run["name"], run["state"], run["passes"]) == ("student", "done", 1)
    assert "run student: done, 1 of 1 passes, on " in distillog.succeed("topics", "lag", name)

    found = report(runs)
    assert found["stream"]["records"] == 52
    assert found["dropped_rows"] == 2 * 1297 % 32
    of_test = ("runs", "evaluate", "student", "--folder", runs, "--teacher", model, "--json")
    scores = json.loads(distillog.succeed(*of_test))
    assert scores["num_samples"] == 500
    assert scores["agreement_top1"] > 0.5  # after 81 steps it agrees with its teacher far more than by chance
    assert scores["accuracy"] == found["evaluation"]["accuracy"]
    exported = json.loads(distillog.succeed("runs", "export", "student", "--folder", runs, "--json"))
    assert exported["difference"] < 1e-4

    sections["train"]["loaders"] = 3
    distillog.succeed("runs", "start", run_file(tmp_path, name, "replay", **sections), "--folder", runs)
    assert weights(runs, "replay") == weights(runs)
    # What was a student teaches in turn.
    distillog.succeed("topics", "add-teacher", name, "pupil", exported["path"])
    distillog.succeed("teach", name, exported["path"], "--until-idle", "--threads", 1)
    assert_nothing_lost(check_labels(distillog.settings, stream, "pupil"), "labels of the pupil")

    assert "deleted stream" in distillog.succeed("topics", "delete", name, "--yes")
    assert name not in list_streams(distillog.settings)


FOREIGN = {
    "int32 input of another name, probabilities": (
        {"dtype": "int32", "input_name": "image_bytes", "tail": "probabilities"},
        ("--input", "pixels=image_bytes*1", "--kind", "probabilities"),
    ),
    "a fixed batch of 16": ({"batch": 16}, ()),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_a_foreign_teacher_labels_a_dataset_of_the_users_own(
    name: str, distillog: Distillog, fresh_name: Callable[[str], str], tmp_path: Path
) -> None:
    build, declared = FOREIGN[name]
    stream_name, runs = fresh_name("foreign"), tmp_path / "runs"
    model = classifier(tmp_path / "foreign.onnx", **build)  # type: ignore[arg-type]
    create = ("topics", "create", stream_name, "--dataset", BYTES, "--order-size", 10, "--partitions", 4)
    distillog.succeed(*create, "--codec", "topk:k=3,temperatures=1|2")
    added = distillog.call("topics", "add-teacher", stream_name, "t", model, *declared)
    assert added.exit_code == 0, added.output
    distillog.succeed("feed", stream_name)
    distillog.succeed("teach", stream_name, model, "--until-idle", "--threads", 1)
    labels = check_labels(distillog.settings, open_stream(distillog.settings, stream_name))
    assert_nothing_lost(labels)
    for label in labels.accepted.values():
        assert isinstance(label.record, SoftTargets)
        assert label.record.num_kept == 10
    distillog.succeed("runs", "start", run_file(tmp_path, stream_name), "--folder", runs, "--quiet")
    assert report(runs)["steps"] == 100 // 12


def test_what_a_user_types_wrongly_is_a_usage_error_or_one_line(
    distillog: Distillog, fresh_name: Callable[[str], str], tmp_path: Path
) -> None:
    name = fresh_name("typo")
    create = ("topics", "create", name, "--dataset")
    distillog.refuse(*create, "digit?split=train", words=("digits",))
    distillog.refuse(*create, SIGNALS, "--view", "affin", words=("affine",))
    distillog.refuse(*create, SIGNALS, "--view", "signal", "--view-param", "nois=1", words=("noise",))
    distillog.refuse(*create, SIGNALS, "--codec", "float61", words=("float16",))
    distillog.refuse(*create, SIGNALS, "--partitions", 1000, words=("between 1 and 256",))
    assert name not in list_streams(distillog.settings)
    file = run_file(tmp_path, name)
    start = ("runs", "start", file, "--folder", tmp_path / "runs", "--set")
    distillog.refuse(*start, "train.stepz=5", words=("train", "stepz", "steps"))
    distillog.refuse("runs", "start", tmp_path / "none.toml", words=("none.toml",))
    distillog.refuse("runs", "resume", "none", "--folder", tmp_path / "runs", words=("none", "distillog runs list"))
    for wrong in (("feed",), ("teach", name), ("feed", name, "--lead", "many"), ("topics", "explain", name)):
        assert distillog.call(*wrong).exit_code == 2
