"""A tiny masked language model, from the ONNX file to the student, over a real Kafka: labels of masked words alone."""

from __future__ import annotations

import json
import shutil
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.log_checker import assert_nothing_lost, check_labels
from support.masked_text import LENGTH, VOCABULARY, export_teacher
from support.processes import Distillog
from support.small_runs import checkpoints, run_file, weights

from pipeline.onnx_runtime import open_session
from pipeline.streams import open_stream
from pipeline.views.check import check_data
from schemas.softmax import log_softmax
from student_trainer.run.settings import run_settings

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(300)]

K = 8
OUTPUTS = (
    *("--output", "logits=scores", "--positions", "logits=masked", "--codec", f"logits=topk:k={K},temperatures=1|2"),
    *("--output", "hidden=last_hidden_state:features", "--positions", "hidden=masked"),
)
LOSSES = [
    {"name": "forward_kl", "temperature": 2.0, "weight": 5.0},
    {"name": "cross_entropy", "labels": "labels", "weight": 2.0},
    {"name": "cosine", "on": "hidden", "against": "hidden", "projection": "linear"},
]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_teacher(tmp_path_factory.mktemp("teacher") / "masked.onnx")


def make_stream(distillog: Distillog, name: str, model: Path) -> str:
    create = ("topics", "create", name, "--dataset", "support.masked_text:texts?count=600")
    view = ("--view", "support.masked_text:masked")
    distillog.succeed(*create, *view, "--partitions", 8, "--order-size", 25, "--epochs", 4)
    return distillog.succeed("topics", "add-teacher", name, "t", model, *OUTPUTS)


def student_run(folder: Path, stream: str, name: str) -> Path:
    document = tomllib.loads(run_file(folder, stream, name, train={"batch_size": 32}).read_text())
    document |= {
        "losses": LOSSES,
        "student": {"name": "support.masked_text:student", "inputs": ["tokens", "attention"]},
        "optimizer": {"name": "adamw", "lr": 0.01},
        "evaluation": {
            "dataset": "support.masked_text:texts?count=100",
            "metrics": [{"name": "position_nll", "labels": "labels"}],
        },
    }
    path = folder / f"{name}.toml"
    path.write_text(run_settings(document).as_toml())
    return path


@pytest.mark.faults
@pytest.mark.short
def test_labels_are_those_of_the_masked_words_and_a_student_learns_them_to_the_same_bits_under_kills_and_on_replay(
    distillog: Distillog, fresh_name: Callable[[str], str], model: Path, tmp_path: Path, eventually: Callable[..., Any]
) -> None:
    name, runs = fresh_name("masked"), tmp_path / "runs"
    added = make_stream(distillog, name, model)
    assert "masked" in added
    teach = ("teach", name, model, "--threads", 1, "--session-timeout", 6, "--worker")
    first, second = (distillog.start(*teach, worker) for worker in ("a", "b"))
    live = distillog.start("runs", "start", student_run(tmp_path, name, "live"), "--folder", runs, "--quiet")
    distillog.succeed("feed", name)
    stream = open_stream(distillog.settings, name)
    eventually(lambda: len(check_labels(distillog.settings, stream).accepted) >= 8, 60, "some labels")
    first.kill()
    live.succeed()
    second.terminate()
    second.succeed()

    found = check_labels(distillog.settings, stream)
    assert_nothing_lost(found)
    session, fetcher = open_session(model), check_data(stream.manifest)
    for label in list(found.accepted.values())[:5]:
        record = label.record
        inputs = fetcher.fetch(record.sample_ids, record.view_seed).inputs
        scores, hidden = session.run(None, {field: inputs[field] for field in ("tokens", "attention")})
        chosen = inputs["masked"] != 0
        logits, features = record.outputs
        assert scores.shape == (25, LENGTH, VOCABULARY)
        assert logits.chosen.counts.tolist() == chosen.sum(axis=1).tolist() == features.chosen.counts.tolist()
        wanted = log_softmax(scores[chosen])
        kept = logits.values().columns
        assert np.array_equal(kept["indices"][:, 0], wanted.argmax(axis=1))
        assert np.allclose(
            kept["log_probs"], np.take_along_axis(wanted, np.asarray(kept["indices"]), axis=1), atol=2e-2
        )
        assert features.values().columns["values"].tobytes() == hidden[chosen].astype(np.float16).tobytes()

    distillog.succeed("runs", "start", student_run(tmp_path, name, "replay"), "--folder", runs)
    assert weights(runs, "replay") == weights(runs, "live")
    for extra in checkpoints(runs, "replay")[-1:]:
        shutil.rmtree(extra)  # as if it had died before its last checkpoint
    distillog.succeed("runs", "resume", "replay", "--folder", runs)
    assert weights(runs, "replay") == weights(runs, "live")

    metrics = [json.loads(line) for line in (runs / "live/metrics.jsonl").read_text().splitlines()]
    costs = [line["losses"] for line in metrics if "losses" in line]
    assert set(costs[0]) == {"forward_kl", "cross_entropy", "cosine"}
    scores = json.loads(distillog.succeed("runs", "evaluate", "live", "--folder", runs, "--json"))
    assert scores["position_nll"] < np.log(VOCABULARY) / 2, scores
