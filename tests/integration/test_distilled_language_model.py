"""DistilBERT in miniature, over a real Kafka: texts, hidden words, a teacher, a student half as deep."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.log_checker import assert_nothing_lost, check_labels
from support.processes import Distillog
from support.small_runs import checkpoints, weights
from support.small_texts import WORDS, text_files, tokenizer_file

from pipeline.streams import open_stream
from student_trainer.run.settings import run_settings

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(300)]

LENGTH, MOST = 24, 4
VIEW = ("--view", "masked", "--view-param", f"most={MOST}")
OUTPUTS = (
    *("--output", "logits=logits", "--positions", "logits=masked", "--codec", "logits=topk:k=6,temperatures=1|2"),
    *("--output", "hidden=hidden:features", "--positions", "hidden=masked"),
)
STUDENT = {
    "name": "transformer",
    "inputs": ["input_ids", "attention_mask"],
    "width": 16,
    "positions": True,
    "tied": True,
}
MLM = {"name": "cross_entropy", "labels": "labels"}
TRIPLE = [
    {"name": "forward_kl", "temperature": 2.0, "weight": 5.0},
    MLM | {"weight": 2.0},
    {"name": "cosine", "on": "hidden", "against": "hidden"},
]


def write_run(folder: Path, name: str, uri: str, **sections: Any) -> Path:
    document: dict[str, Any] = {
        "name": name,
        "optimizer": {"name": "adamw", "lr": 0.01},
        "train": {"batch_size": 16, "log_every": 5},
        "checkpoint": {"every": 5, "keep": 3},
        "evaluation": {"dataset": uri, "metrics": [{"name": "position_nll", "labels": "labels"}]},
    }
    for section, values in sections.items():
        document[section] = document.get(section, {}) | values if isinstance(values, dict) else values
    path = folder / f"{name}.toml"
    path.write_text(run_settings(document).as_toml())
    return path


@pytest.mark.faults
@pytest.mark.short
def test_a_student_of_every_second_layer_learns_from_the_log_and_its_replay_gives_the_same_bits(
    distillog: Distillog,
    fresh_name: Callable[[str], str],
    tmp_path: Path,
    eventually: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    books, runs, stream = text_files(tmp_path / "books", 200), tmp_path / "runs", fresh_name("texts")
    uri = f"text:{books}?length={LENGTH}"
    view = {"name": "masked", "most": MOST}
    large = write_run(
        tmp_path,
        "large",
        uri,
        source="dataset",
        data={"dataset": uri, "view": view, "order_size": 50, "labelled": 0},
        student=STUDENT | {"layers": 4},
        losses=[MLM],
        train={"steps": 60},
    )
    distillog.succeed("runs", "start", large, "--folder", runs)
    model = tmp_path / "large.onnx"
    export = ("runs", "export", "large", "--folder", runs, "--onnx", model, "--output", "logits", "--output", "hidden")
    distillog.succeed(*export)

    sizes = ("--partitions", 4, "--order-size", 25, "--epochs", 4)
    distillog.succeed("topics", "create", stream, "--dataset", uri, *VIEW, *sizes)
    added = distillog.succeed("topics", "add-teacher", stream, "t", model, *OUTPUTS)
    assert "masked" in added
    student = STUDENT | {"layers": 2, "weights": {"path": str(runs / "large"), "layers": {"0": 0, "1": 2}}}
    small = {"source": "stream", "data": {"stream": stream}, "student": student, "teachers": [{"name": "t"}]}
    starve = {"starve": {"warning": 5.0, "timeout": 90.0}}
    teach = ("teach", stream, model, "--threads", 1, "--session-timeout", 6, "--worker")
    first, second = (distillog.start(*teach, worker) for worker in ("a", "b"))
    run_file = write_run(tmp_path, "live", uri, **small, **starve, losses=TRIPLE)
    live = distillog.start("runs", "start", run_file, "--folder", runs, "--quiet")
    distillog.succeed("feed", stream)
    opened = open_stream(distillog.settings, stream)
    eventually(lambda: len(check_labels(distillog.settings, opened).accepted) >= 6, 90, "some labels")
    first.kill()
    live.succeed()
    second.terminate()
    second.succeed()
    found = check_labels(distillog.settings, opened)
    assert_nothing_lost(found)
    counts = np.concatenate([label.record.outputs[0].chosen.counts for label in found.accepted.values()])
    assert 1 <= counts.min() <= counts.max() <= MOST

    distillog.succeed("runs", "start", write_run(tmp_path, "replay", uri, **small, losses=TRIPLE), "--folder", runs)
    assert weights(runs, "replay") == weights(runs, "live")
    shutil.rmtree(checkpoints(runs, "replay")[-1])  # as if it had died before its last checkpoint
    distillog.succeed("runs", "resume", "replay", "--folder", runs)
    assert weights(runs, "replay") == weights(runs, "live")
    scores = json.loads(distillog.succeed("runs", "evaluate", "live", "--folder", runs, "--json"))
    assert scores["position_nll"] < 0.8 * np.log(len(WORDS)), scores

    tokenizer_file(books / "tokenizer.json", (*WORDS[::-1],))
    late = write_run(tmp_path, "late", uri, **small, losses=TRIPLE)
    for command in (("teach", stream, model), ("runs", "start", late, "--folder", runs)):
        distillog.refuse(*command, words=("tokenizer", "SHA-256", "another vocabulary gives other token IDs"))
