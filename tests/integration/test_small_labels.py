"""Labels of few bits, from the ONNX file to the student, over a real Kafka."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from support.log_checker import assert_nothing_lost, check_labels
from support.models import classifier
from support.more_outputs import with_outputs
from support.processes import Distillog
from support.small_runs import run_file, weights
from support.streams import fetcher

from pipeline.streams import open_stream
from student_trainer.run.settings import load_run, run_settings
from teacher_service.models.labels import Asked, label
from teacher_service.models.session import OnnxTeacher

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(200)]

DATASET = "digits?split=train"
OUTPUTS = ("--output", "drawn=y", "--output", "few=y", "--output", "hidden=hidden:features")
CODECS = ("--codec", "drawn=sampled:n=9", "--codec", "few=topk:k=4,bits=8", "--codec", "hidden=int4")
LOSSES = [
    {"name": "sampled_cross_entropy", "against": "drawn"},
    {"name": "forward_kl", "against": "few"},
    {"name": "mse", "on": "inner", "against": "hidden", "projection": "linear"},
]


def test_a_student_learns_from_drawn_and_packed_labels_that_whoever_computes_them_has_the_same(
    distillog: Distillog, fresh_name: Callable[[str], str], tmp_path: Path
) -> None:
    name, runs = fresh_name("small"), tmp_path / "runs"
    model = with_outputs(classifier(tmp_path / "m.onnx"), "hidden")
    create = ("topics", "create", name, "--dataset", DATASET, "--partitions", 4, "--order-size", 100)
    distillog.succeed(*create)
    distillog.refuse(
        *("topics", "add-teacher", name, "t", model, "--output", "logits=y", "--codec", "logits=topk:k=11,bits=8"),
        words=("topk:k=11,bits=8", "only 10 classes"),
    )
    added = distillog.succeed("topics", "add-teacher", name, "t", model, *OUTPUTS, *CODECS, "--cut", "graph")
    assert "output few: the likeliest classes are kept by graph: NumPy" in added
    assert "already there" in distillog.succeed("topics", "add-teacher", name, "t", model, *OUTPUTS, *CODECS)
    distillog.succeed("feed", name)
    distillog.succeed("teach", name, model, "--threads", 1, "--until-idle")

    stream, source = open_stream(distillog.settings, name), fetcher(DATASET)
    found = check_labels(distillog.settings, stream)
    assert_nothing_lost(found)
    described = json.loads(distillog.succeed("topics", "describe", name, "--json"))["teachers"][0]["outputs"]
    assert [each["codec"] for each in described] == ["sampled:n=9", "topk:k=4,bits=8,temperatures=1", "int4"]
    assert [each["cut"] for each in described] == ["numpy", "graph", "numpy"]
    verified = json.loads(distillog.succeed("verify", name, model, "--threads", 1, "--json"))
    assert verified["same_bits"] == verified["rows"] > 0
    here = OnnxTeacher(model, stream.teacher("t"), threads=1)
    for each in list(found.accepted.values())[:2]:
        record = each.record
        asked = Asked(record.sample_ids, record.view_seed)
        labels = label(here, source.fetch(asked.sample_ids, asked.view_seed), stream.manifest.codec, asked)
        assert [one.datum() for one in labels.outputs] == [one.datum() for one in record.outputs]

    for run in ("first", "again"):
        file = run_file(tmp_path, name, run, evaluation={"dataset": "digits?split=test", "batch_size": 250})
        document = load_run(file).as_dict()
        document |= {"losses": LOSSES, "student": {"name": "support.students:encoder", "outputs": {"inner": "inner"}}}
        file.write_text(run_settings(document).as_toml())
        distillog.succeed("runs", "start", file, "--folder", runs, "--quiet")
    assert weights(runs, "first") == weights(runs, "again")
    lines = [json.loads(line) for line in (runs / "first/metrics.jsonl").read_text().splitlines()]
    costs = [line["losses"] for line in lines if "losses" in line]
    assert costs[-1]["sampled_cross_entropy"] < costs[0]["sampled_cross_entropy"]
    assert costs[-1]["forward_kl"] < costs[0]["forward_kl"]
