"""A GPT in miniature, over a real Kafka: real text, next tokens, a teacher, a student half as deep, files, ONNX."""

from __future__ import annotations

import ast
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.log_checker import assert_nothing_lost, check_labels
from support.processes import Distillog
from support.small_runs import weights

from pipeline.onnx_runtime import open_session
from pipeline.streams import open_stream
from pipeline.views.check import check_data
from schemas.topk import TopK
from student_trainer.run.settings import run_settings
from student_trainer.trained import load_student

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(300)]

LENGTH, VOCABULARY, K = 24, 320, 8
T = (1.0, 2.0)
OUTPUTS = (
    *("--output", "logits=logits", "--positions", "logits=predicts"),
    *("--codec", f"logits=topk:k={K},temperatures=1|2"),
    *("--output", "hidden=hidden:features", "--positions", "hidden=predicts"),
)
STUDENT = {
    "name": "transformer",
    "inputs": ["input_ids", "attention_mask"],
    "width": 32,
    "causal": True,
    "positions": True,
    "tied": True,
}
NEXT = {"name": "cross_entropy", "labels": "labels"}
TRIPLE = [
    {"name": "forward_kl", "temperature": 2.0, "weight": 5.0},
    NEXT | {"weight": 2.0},
    {"name": "cosine", "on": "hidden", "against": "hidden"},
]


def write_docstrings(folder: Path) -> tuple[Path, Path]:
    """Two folders of what CPython says of its modules: to learn from, and held out."""
    for name, modules in (("read", (ast, json)), ("held", (math, np.random))):
        lines = []
        for module in modules:
            found = [module.__doc__, *(getattr(each, "__doc__", None) for each in vars(module).values())]
            lines += [line.strip() for text in found if isinstance(text, str) for line in text.splitlines()]
        (folder / name).mkdir(parents=True)
        (folder / name / "docs.txt").write_text("\n".join(dict.fromkeys(lines)), encoding="utf-8")
    return folder / "read", folder / "held"


def write_run(folder: Path, name: str, held: str, **sections: Any) -> Path:
    document: dict[str, Any] = {
        "name": name,
        "optimizer": {"name": "adamw", "lr": 0.01},
        "train": {"batch_size": 16, "log_every": 5},
        "checkpoint": {"every": 10, "keep": 2},
        "starve": {"warning": 5.0, "timeout": 90.0},
        "evaluation": {"dataset": held, "metrics": [{"name": "position_nll", "labels": "labels"}]},
        "losses": TRIPLE,
    }
    path = folder / f"{name}.toml"
    path.write_text(run_settings(document | sections).as_toml())
    return path


def dense_log_probs(logits: np.ndarray[Any, np.dtype[np.float32]], temperature: float) -> Any:
    softened = logits.astype(np.float64) / temperature
    softened -= softened.max(axis=-1, keepdims=True)
    return softened - np.log(np.exp(softened).sum(axis=-1, keepdims=True))


@pytest.mark.faults
@pytest.mark.short
def test_a_causal_student_half_as_deep_has_the_same_bits_live_replayed_and_from_files(
    distillog: Distillog,
    fresh_name: Callable[[str], str],
    tmp_path: Path,
    eventually: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    read, held = write_docstrings(tmp_path)
    tokenizer, runs, stream = tmp_path / "tokenizer.json", tmp_path / "runs", fresh_name("gpt")
    distillog.succeed("tokenizer", "train", read, "--kind", "bpe", "--vocab-size", VOCABULARY, "--output", tokenizer)
    uri, held_uri = (f"text:{each}?length={LENGTH}&tokenizer={tokenizer}" for each in (read, held))

    teacher = write_run(
        tmp_path,
        "teacher",
        held_uri,
        source="dataset",
        data={"dataset": uri, "view": "next_token", "order_size": 50, "labelled": 0},
        student=STUDENT | {"layers": 4},
        losses=[NEXT],
        train={"batch_size": 16, "steps": 80},
    )
    distillog.succeed("runs", "start", teacher, "--folder", runs)
    model = tmp_path / "teacher.onnx"
    hidden = ("--output", "logits", "--output", "hidden")
    distillog.succeed("runs", "export", "teacher", "--folder", runs, "--onnx", model, *hidden)

    sizes = ("--partitions", 4, "--order-size", 25, "--epochs", 3)
    distillog.succeed("topics", "create", stream, "--dataset", uri, "--view", "next_token", *sizes)
    assert "predicts" in distillog.succeed("topics", "add-teacher", stream, "t", model, *OUTPUTS)
    teach = ("teach", stream, model, "--threads", 1, "--session-timeout", 6, "--worker")
    first, second = (distillog.start(*teach, worker) for worker in ("a", "b"))
    student = STUDENT | {"layers": 2, "weights": {"path": str(runs / "teacher"), "layers": {"0": 0, "1": 2}}}
    small: dict[str, Any] = {"source": "stream", "data": {"stream": stream}, "student": student}
    small["teachers"] = [{"name": "t"}]
    run_file = write_run(tmp_path, "live", held_uri, **small)
    live = distillog.start("runs", "start", run_file, "--folder", runs, "--quiet")
    distillog.succeed("feed", stream)
    opened = open_stream(distillog.settings, stream)
    eventually(lambda: len(check_labels(distillog.settings, opened).accepted) >= 6, 90, "some labels")
    first.kill()
    live.succeed()
    second.terminate()
    second.succeed()
    labels = check_labels(distillog.settings, opened)
    assert_nothing_lost(labels)

    # What lies in the log is what the teacher says, held against all of its classes in float64.
    fetcher, session = check_data(opened.manifest), open_session(model)
    record = labels.accepted[min(labels.accepted)].record
    seen = fetcher.fetch(record.sample_ids, record.view_seed).inputs
    (logits,) = session.run(["logits"], {name: seen[name] for name in ("input_ids", "attention_mask")})
    rows = logits[seen["predicts"] != 0]
    assert not seen["predicts"][:, -1].any()
    assert np.array_equal(record.outputs[0].chosen.counts, (seen["labels"] >= 0).sum(axis=1))
    stored = record.outputs[0].values().rows
    assert isinstance(stored, TopK)
    for temperature in T:
        outside = np.exp(dense_log_probs(rows, temperature))
        np.put_along_axis(outside, stored.indices, 0.0, axis=1)
        tails = np.exp(stored.log_tails[temperature].astype(np.float64))
        np.testing.assert_allclose(tails, outside.sum(axis=1), rtol=1e-5)

    distillog.succeed("runs", "start", write_run(tmp_path, "replay", held_uri, **small), "--folder", runs)
    assert weights(runs, "replay") == weights(runs, "live")
    files = tmp_path / "labels"
    distillog.succeed("capture", stream, files)
    captured = small | {"source": "files", "data": {"files": str(files)}}
    distillog.succeed("runs", "start", write_run(tmp_path, "files", held_uri, **captured), "--folder", runs)
    assert weights(runs, "files") == weights(runs, "live")

    scores = json.loads(distillog.succeed("runs", "evaluate", "live", "--folder", runs, "--json"))
    assert scores["perplexity"] == pytest.approx(math.exp(scores["position_nll"]))
    assert scores["position_nll"] < math.log(VOCABULARY) - 0.5, scores

    served = tmp_path / "student.onnx"
    distillog.succeed("runs", "export", "live", "--folder", runs, "--onnx", served)
    trained = load_student(runs / "live")
    inputs = {name: seen[name] for name in trained.network.fields}
    with torch.no_grad():
        expected = trained.outputs(**{name: torch.tensor(values) for name, values in inputs.items()})["logits"].numpy()
    session = open_session(served)
    (given,) = session.run(["logits"], inputs)
    assert np.abs(given - expected).max() < 1e-4 * np.ptp(expected)
    changed = inputs | {"input_ids": inputs["input_ids"].copy()}
    changed["input_ids"][:, LENGTH // 2 :] = 1
    (other,) = session.run(["logits"], changed)
    assert np.array_equal(other[:, : LENGTH // 2], given[:, : LENGTH // 2])  # what follows is not seen
    assert not np.array_equal(other[:, LENGTH // 2 :], given[:, LENGTH // 2 :])
