"""Class maps, reductions and multilabel outputs, from the ONNX file to the student, over a real Kafka."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.log_checker import assert_nothing_lost, check_labels
from support.models import classifier
from support.more_outputs import with_outputs
from support.processes import Distillog
from support.small_runs import run_file, weights
from support.streams import fetcher

from pipeline.onnx_runtime import open_session
from pipeline.streams import open_stream
from student_trainer.run.settings import run_settings

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(300)]

DATASET = "digits?split=train"
PERMUTED = tuple("9876543210")
SPECIALIST = ("9", "-", "7", "-", "5", "-", "-", "2", "-", "-")
"""Of the same model some classes alone: 7, 4, 2 and 0 are the digits 2, 5, 7 and 9."""
LOSSES = [
    {"name": "forward_kl", "temperature": 2.0},
    {"name": "binary_kl", "against": "tags", "weight": 0.2},
    {"name": "mse", "on": "tokens", "against": "pooled", "projection": "linear"},
]


@pytest.mark.faults
@pytest.mark.short
def test_a_specialist_and_a_permuted_teacher_are_labelled_learned_from_and_compared_with(
    distillog: Distillog, fresh_name: Callable[[str], str], tmp_path: Path, eventually: Callable[..., Any]
) -> None:
    name, runs = fresh_name("maps"), tmp_path / "runs"
    create = ("topics", "create", name, "--dataset", DATASET, "--partitions", 8, "--order-size", 25)
    distillog.succeed(*create)
    models, teachers = {}, {"some": SPECIALIST, "all": PERMUTED}
    for teacher, lines in teachers.items():
        others = ("tokens",) if teacher == "some" else ("tokens", "hidden")  # another file
        models[teacher] = with_outputs(classifier(tmp_path / f"{teacher}.onnx"), *others)
        file = tmp_path / f"{teacher}.txt"
        file.write_text("\n".join(lines) + "\n")
        said = ("--output", "logits=y", "--class-map", f"logits={file}", "--output", "tags=y:multilabel")
        said += ("--class-map", f"tags={file}")
        said += ("--output", "pooled=tokens:features", "--reduce", "pooled=mean@1", "--codec", "pooled=float32")
        added = distillog.succeed("topics", "add-teacher", name, teacher, models[teacher], *said)
        count = {"some": 4, "all": 10}[teacher]
        assert f"logits = y: logits, 10 classes, {count} of them the dataset's" in added
        assert f"tags = y: multilabel, 10 classes, {count} of them the dataset's, as float16" in added
        assert "pooled = tokens: features, mean@1 of [N, 4, 8], as float32" in added
        assert "accuracy as declared" in added
        assert "already there, the same" in distillog.succeed(
            "topics", "add-teacher", name, teacher, models[teacher], *said
        )

    teach = ("teach", name, "--threads", 1, "--session-timeout", 6)
    first = distillog.start(*teach, models["some"], "--worker", "first")
    workers = [
        distillog.start(*teach, models[teacher], "--worker", f"second-{teacher}", "--until-idle")
        for teacher in teachers
        if teacher != "some"
    ]
    distillog.succeed("feed", name)
    stream = open_stream(distillog.settings, name)
    eventually(lambda: len(check_labels(distillog.settings, stream, "some").accepted) >= 3, 60, "some labels")
    first.kill()
    workers.append(distillog.start(*teach, models["some"], "--worker", "third", "--until-idle"))
    for worker in workers:
        worker.succeed()
    found = [check_labels(distillog.settings, stream, teacher) for teacher in teachers]
    for each in found:
        assert_nothing_lost(each)

    digits = fetcher(DATASET)
    columns = {"some": [7, 4, 2, 0], "all": list(range(9, -1, -1))}
    for label in (label for each in found for label in each.accepted.values()):
        record = label.record
        inputs = digits.fetch(record.sample_ids, record.view_seed).inputs["image"]
        session = open_session(models[record.teacher], threads=1)
        padded = np.concatenate([inputs, np.repeat(inputs[-1:], 25 - len(inputs), axis=0)])
        y, tokens = (each[: len(inputs)] for each in session.run(["y", "tokens"], {"x": padded}))
        logits, tags, pooled = (one.values() for one in record.outputs)
        some = y[:, columns[record.teacher]]
        shifted = (some - some.max(axis=1, keepdims=True)).astype(np.float16)
        assert logits.columns["logits"].tobytes() == shifted.tobytes()
        assert tags.columns["values"].tobytes() == some.astype(np.float16).tobytes()
        mean = tokens.mean(axis=1, dtype=np.float64).astype(np.float32)
        assert pooled.columns["values"].tobytes() == mean.tobytes()

    student = {"name": "support.students:encoder"}
    teachers_table = [{"name": teacher} for teacher in teachers]
    for run in ("first", "again"):
        document = tomllib.loads(run_file(tmp_path, name, run).read_text())
        file = tmp_path / f"{run}.toml"
        file.write_text(
            run_settings(document | {"teachers": teachers_table, "losses": LOSSES, "student": student}).as_toml()
        )
        distillog.succeed("runs", "start", file, "--folder", runs)
    assert weights(runs, "first") == weights(runs, "again")
    metrics = [json.loads(line) for line in (runs / "first/metrics.jsonl").read_text().splitlines()]
    costs = [line["losses"] for line in metrics if "losses" in line]
    assert all(costs[-1][loss] < costs[0][loss] for loss in ("forward_kl", "binary_kl", "mse"))

    compare = ("runs", "evaluate", "first", "--folder", runs, "--dataset", "digits?split=test", "--json")
    scores = [
        json.loads(
            distillog.succeed(
                *compare,
                "--teacher",
                models[one],
                "--output",
                "logits=y",
                "--class-map",
                f"logits={tmp_path}/{one}.txt",
            )
        )
        for one in teachers
    ]
    test = fetcher("digits?split=test").fetch(np.arange(500), 0)
    for each, (teacher, classes) in zip(scores, columns.items(), strict=True):
        rows = open_session(models[teacher], threads=1).run(["y"], {"x": test.inputs["image"]})[0][:, classes]
        digit_of = np.sort([int(line) for line in teachers[teacher] if line != "-"])
        known = np.isin(test.labels, digit_of)
        right = digit_of[rows.argmax(axis=1)] == test.labels
        assert each["teacher_accuracy"] == pytest.approx(right[known].mean())
    refused = ("--output", "logits=y", "--class-map", f"logits={tmp_path}/none.txt")
    distillog.refuse(*compare, "--teacher", models["some"], *refused, words=("none.txt: cannot be read",))
