"""A teacher with logits and two feature outputs, from the ONNX file to the student, over a real Kafka."""

from __future__ import annotations

import json
import shutil
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from support.log_checker import assert_nothing_lost, check_labels
from support.models import classifier
from support.more_outputs import with_outputs
from support.processes import Distillog
from support.small_runs import checkpoints, run_file, weights
from support.streams import fetcher

from pipeline.onnx_runtime import open_session
from pipeline.streams import open_stream
from student_trainer.run.settings import run_settings
from teacher_service.models.session import OnnxTeacher

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(300)]

OUTPUTS = (
    *("--output", "logits=y", "--output", "hidden=hidden:features", "--output", "tokens=tokens:features"),
    *("--codec", "hidden=float32"),
)
DATASET = "digits?split=train"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return with_outputs(classifier(tmp_path / "m.onnx"), "hidden", "tokens", "area", "large")


def make_stream(distillog: Distillog, name: str, *options: object) -> None:
    create = ("topics", "create", name, "--dataset", DATASET, "--partitions", 8, "--order-size", 25)
    distillog.succeed(*create, *options)


def test_each_output_lies_in_the_log_as_the_model_gives_it_though_a_worker_is_killed(
    distillog: Distillog, fresh_name: Callable[[str], str], model: Path, eventually: Callable[..., Any]
) -> None:
    name = fresh_name("outputs")
    make_stream(distillog, name)
    added = distillog.succeed("topics", "add-teacher", name, "t", model, *OUTPUTS)
    texts = [
        "logits = y: logits, 10 classes",
        "hidden = hidden: features, [N, 32], as float32",
        "tokens = tokens: features, [N, 4, 8], as float16",
    ]
    assert f"; {'; '.join(texts)}; batches of 25" in added
    assert "already there, the same" in distillog.succeed("topics", "add-teacher", name, "t", model, *OUTPUTS)
    other = ("topics", "add-teacher", name, "t", model, "--output", "logits=y")
    distillog.refuse(*other, words=("exists and differs: outputs is ",))
    described = [line.strip() for line in distillog.succeed("topics", "describe", name).splitlines()]
    assert described[described.index(texts[0]) :][:4] == [*texts, "batches of 25"]
    (teacher,) = json.loads(distillog.succeed("topics", "describe", name, "--json"))["teachers"]
    assert [(one["name"], one["shape"], one["codec"]) for one in teacher["outputs"]] == [
        ("logits", [10], "float16"),
        ("hidden", [32], "float32"),
        ("tokens", [4, 8], "float16"),
    ]

    teach = ("teach", name, model, "--threads", 1, "--until-idle", "--session-timeout", 6)
    first = distillog.start(*teach, "--worker", "first")
    distillog.succeed("feed", name)
    stream = open_stream(distillog.settings, name)
    source, teacher_model = fetcher(DATASET), OnnxTeacher(model, stream.teacher("t"), threads=1)
    eventually(lambda: len(check_labels(distillog.settings, stream).accepted) >= 3, 60, "some labels")
    first.kill()
    distillog.start(*teach, "--worker", "second").succeed()
    found = check_labels(distillog.settings, stream)
    assert_nothing_lost(found)
    for label in found.accepted.values():
        record = label.record
        expected = teacher_model.label(source.fetch(record.sample_ids, record.view_seed).inputs)
        logits, hidden, tokens = (one.values() for one in record.outputs)
        shifted = expected["logits"] - expected["logits"].max(axis=1, keepdims=True)
        assert logits.columns["logits"].tobytes() == shifted.astype(np.float16).tobytes()
        assert hidden.columns["values"].tobytes() == expected["hidden"].tobytes()
        assert tokens.columns["values"].tobytes() == expected["tokens"].astype(np.float16).tobytes()


LOSSES = [
    {"name": "forward_kl", "temperature": 2.0},
    {"name": "mse", "on": "inner", "against": "hidden", "projection": "linear", "weight": 0.5},
    {"name": "cosine", "on": "tokens", "against": "t.tokens", "projection": "linear"},
    {"name": "mse", "key": "tokens", "on": "tokens", "against": "tokens", "projection": "linear"},
    {"name": "cross_entropy", "weight": 0.1},
]
OF_TEST = {
    "dataset": "digits?split=test",
    "batch_size": 200,
    "metrics": [
        {"name": "classes"},
        {"name": "features", "on": "tokens"},
        {"name": "support.metrics:Spread", "of": "inner"},
    ],
}
STUDENT = {"name": "support.students:encoder", "outputs": {"inner": "inner"}}


def student_run(folder: Path, stream: str, name: str, losses: list[dict[str, Any]], **student: Any) -> Path:
    document = tomllib.loads(run_file(folder, stream, name).read_text())
    document |= {"losses": losses, "student": STUDENT | student, "evaluation": OF_TEST}
    path = folder / f"{name}.toml"
    path.write_text(run_settings(document).as_toml())
    return path


@pytest.mark.faults
@pytest.mark.short
def test_a_student_learns_from_logits_and_features_while_a_worker_is_killed_and_a_replay_gives_the_same_bits(
    distillog: Distillog, fresh_name: Callable[[str], str], model: Path, tmp_path: Path, eventually: Callable[..., Any]
) -> None:
    name, runs = fresh_name("outputs"), tmp_path / "runs"
    make_stream(distillog, name)
    distillog.succeed("topics", "add-teacher", name, "t", model, *OUTPUTS)
    workers = [
        distillog.start("teach", name, model, "--worker", worker, "--threads", 1, "--session-timeout", 6)
        for worker in ("a", "b")
    ]
    file = student_run(tmp_path, name, "live", LOSSES, width=8)
    live = distillog.start("runs", "start", file, "--folder", runs, "--quiet")
    distillog.succeed("feed", name)
    stream = open_stream(distillog.settings, name)
    eventually(lambda: len(check_labels(distillog.settings, stream).accepted) >= 8, 60, "some labels")
    workers[0].kill()
    live.succeed()
    workers[1].terminate()
    workers[1].succeed()
    assert_nothing_lost(check_labels(distillog.settings, stream))

    distillog.succeed("runs", "start", student_run(tmp_path, name, "replay", LOSSES, width=8), "--folder", runs)
    assert weights(runs, "replay") == weights(runs, "live")
    metrics = [json.loads(line) for line in (runs / "replay/metrics.jsonl").read_text().splitlines()]
    costs = [line["losses"] for line in metrics if "losses" in line]
    assert set(costs[0]) == {"forward_kl", "mse", "cosine", "tokens", "cross_entropy"}
    assert costs[-1]["forward_kl"] < costs[0]["forward_kl"]
    assert costs[-1]["cosine"] < costs[0]["cosine"]

    for extra in checkpoints(runs, "replay")[-1:]:
        shutil.rmtree(extra)  # as if it had died before its last checkpoint
    distillog.succeed("runs", "resume", "replay", "--folder", runs)
    assert weights(runs, "replay") == weights(runs, "live")
    state = torch.load(checkpoints(runs, "replay")[-1] / "state.pt", weights_only=True)
    assert set(state["projections"]) == {"mse", "cosine", "tokens"}
    scores = json.loads(distillog.succeed("runs", "evaluate", "replay", "--folder", runs, "--json"))
    assert (scores["num_samples"], scores["labelled"], "cosine" in scores) == (500, 500, False)
    (written,) = (line for line in metrics if "evaluation" in line)
    assert scores == pytest.approx({"step": written["step"], **written["evaluation"]}, rel=1e-4)
    compare = ("--teacher", model, *OUTPUTS[:6], "--json")
    beside = json.loads(distillog.succeed("runs", "evaluate", "replay", "--folder", runs, *compare))
    assert beside.keys() - scores.keys() == {"num_cosines", "cosine", "mse"}
    assert {key: beside[key] for key in scores} == pytest.approx(scores)
    exported = json.loads(distillog.succeed("runs", "export", "replay", "--folder", runs, "--json"))
    assert [one.name for one in open_session(Path(exported["path"])).get_outputs()] == ["logits"]

    asked = ("--output", "inner", "--output", "logits", "--projections", "--safetensors", tmp_path / "w.safetensors")
    exported = json.loads(distillog.succeed("runs", "export", "replay", *asked, "--folder", runs, "--json"))
    given = {one.name: one.shape[1:] for one in open_session(Path(exported["path"])).get_outputs()}
    assert list(given) == ["inner", "logits", "mse", "cosine", "tokens"]
    assert exported["difference"] < 1e-4
    layers = {f"projections.{key}.{name}" for key in state["projections"] for name in ("weight", "bias")}
    assert set(load_file(exported["safetensors"])) == {*state["model"], *layers}


WRONG: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "no such output of the teacher": ({"name": "mse", "against": "hiden"}, {}, "has no output 'hiden'"),
    "no such output of the student": ({"name": "mse", "on": "inne", "against": "hidden"}, {}, "gives no 'inne'"),
    "another width": ({"name": "mse", "on": "inner", "against": "hidden"}, {}, 'say projection = "linear"'),
    "no such module": ({"name": "forward_kl"}, {"outputs": {"inner": "innr"}}, "there is no module 'innr'"),
    "classes of features": ({"name": "forward_kl", "against": "hidden"}, {}, "needs classes"),
}


def test_what_does_not_fit_is_refused_at_the_start_and_leaves_nothing(
    distillog: Distillog, fresh_name: Callable[[str], str], model: Path, tmp_path: Path
) -> None:
    name, runs = fresh_name("misfit"), tmp_path / "runs"
    make_stream(distillog, name)
    distillog.succeed("topics", "add-teacher", name, "t", model, *OUTPUTS)
    for loss, student, says in WRONG.values():
        file = student_run(tmp_path, name, "misfit", [loss], **student)
        distillog.refuse("runs", "start", file, "--folder", runs, words=(says,))
        assert not (runs / "misfit").exists()


def test_a_teacher_of_features_alone_says_that_it_has_no_accuracy(
    distillog: Distillog, fresh_name: Callable[[str], str], model: Path
) -> None:
    name = fresh_name("features")
    make_stream(distillog, name)
    added = distillog.succeed("topics", "add-teacher", name, "t", model, "--output", "hidden=hidden:features")
    assert "no accuracy: none of the teacher's outputs gives a sample one row of classes" in added
    distillog.succeed("feed", name)
    worker = distillog.start("teach", name, model, "--until-idle", "--threads", 1)
    worker.succeed()
    assert "no accuracy" in worker.stderr + worker.stdout
    assert_nothing_lost(check_labels(distillog.settings, open_stream(distillog.settings, name)))


def test_a_teacher_that_a_log_cannot_hold_is_refused_with_the_way_out(
    distillog: Distillog, fresh_name: Callable[[str], str], model: Path
) -> None:
    name = fresh_name("refused")
    make_stream(distillog, name)
    add = ("topics", "add-teacher", name, "t", model, "--output", "logits=y")
    refused = distillog.refuse(*add, "--output", "large=large:values", words=("beyond float16", "large=float32"))
    assert "of 256 samples" in refused
    distillog.refuse(*add, "--codec", "hidden=float16", words=("of an output that --output names (logits)",), code=2)
    distillog.refuse(*add, "--codec", "logits=topk:k=11", words=("keeps k=11 of only 10 classes",))
    distillog.refuse(
        *add, "--output", "hidden=hidden:features", "--codec", "hidden=topk:k=3", words=("this output has none",)
    )
    wide = fresh_name("wide")
    create = ("topics", "create", wide, "--dataset", DATASET, "--partitions", 2, "--order-size", 1_437)
    distillog.succeed(*create)
    texts = [("--output", f"f{number}=hidden:features", "--codec", f"f{number}=float32") for number in range(8)]
    options = [word for text in texts for word in text]
    refused = distillog.refuse(
        "topics", "add-teacher", wide, "t", model, *options, words=("need records of", "--order-size 1002 or less")
    )
    assert "--codec f0=float16" in refused
