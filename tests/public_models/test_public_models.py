"""Models that others published, out of the package index, as teachers over a real Kafka: tokens, states, positions."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from public_models import sentence_encoder, text_recogniser
from support.log_checker import assert_nothing_lost, check_labels
from support.processes import Distillog

from pipeline.onnx_runtime import open_session
from pipeline.streams import open_stream
from pipeline.views.check import check_data
from student_trainer.run.settings import run_settings

pytestmark = [pytest.mark.kafka, pytest.mark.public_models, pytest.mark.timeout(600)]


def label(distillog: Distillog, name: str, model: Path) -> None:
    distillog.succeed("feed", name)
    distillog.start("teach", name, model, "--threads", 1, "--until-idle").succeed()
    assert_nothing_lost(check_labels(distillog.settings, open_stream(distillog.settings, name)))


def run(distillog: Distillog, folder: Path, document: dict[str, Any]) -> list[dict[str, float]]:
    """Train, and return the losses as they were logged."""
    file, runs = folder / f"{document['name']}.toml", folder / "runs"
    file.write_text(run_settings({"source": "stream", "teachers": [{"name": "t"}], **document}).as_toml())
    distillog.succeed("runs", "start", file, "--folder", runs)
    lines = (runs / str(document["name"]) / "metrics.jsonl").read_text().splitlines()
    return [each["losses"] for each in map(json.loads, lines) if "losses" in each]


def test_a_sentence_encoder_teaches_half_of_its_layers_from_tokens(
    distillog: Distillog, fresh_name: Callable[[str], str], tmp_path: Path
) -> None:
    near, far = "How do I catch an exception?", "Use a try statement to handle errors."
    session = open_session(sentence_encoder.export_teacher(tmp_path / "minilm.onnx"))
    ids, mask = map(np.stack, zip(*map(sentence_encoder.tokens, (near, far, "The cat sleeps.")), strict=True))
    _, vectors = session.run(None, {"input_ids": ids, "attention_mask": mask})
    alike = vectors @ vectors.T
    assert alike[0, 1] > 0.3 > alike[0, 2]  # as its users know it

    name = fresh_name("sentences")
    dataset = "public_models.sentence_encoder:manual?count=384"
    distillog.succeed("topics", "create", name, "--dataset", dataset, "--order-size", 32, "--epochs", 4)
    outputs = ("--output", "sentence=sentence_embedding:features", "--output", "hidden=last_hidden_state:features")
    model = tmp_path / "minilm.onnx"
    distillog.succeed("topics", "add-teacher", name, "t", model, *outputs, "--positions", "hidden=attention_mask")
    label(distillog, name, model)
    document: dict[str, Any] = {
        "name": "half",
        "data": {"stream": name},
        "student": {
            "name": "public_models.sentence_encoder:student",
            "inputs": ["input_ids", "attention_mask"],
            "weights": {
                "path": str(sentence_encoder.folder() / "model.safetensors"),
                "layers": {"0": 0, "1": 2, "2": 4},
            },
            "frozen": ["embeddings"],
        },
        "losses": [
            {"name": "cosine", "on": "sentence_embedding", "against": "sentence"},
            {"name": "mse", "on": "last_hidden_state", "against": "hidden"},
        ],
        "optimizer": {"name": "adamw", "lr": 2e-4},
        "train": {"batch_size": 32, "log_every": 4},
    }
    costs = run(distillog, tmp_path, document)
    assert costs[-1]["cosine"] < 0.6 * costs[0]["cosine"]
    assert costs[-1]["mse"] < costs[0]["mse"]
    fresh = {**document, "name": "fresh", "student": {**document["student"], "frozen": []}}
    del fresh["student"]["weights"]
    assert costs[0]["cosine"] < run(distillog, tmp_path, fresh)[0]["cosine"]  # its teacher's layers are a good start


def test_a_text_recogniser_labels_where_the_text_is_and_a_student_learns_from_its_thousands_of_classes(
    distillog: Distillog, fresh_name: Callable[[str], str], tmp_path: Path
) -> None:
    name, model = fresh_name("words"), text_recogniser.model()
    dataset = "public_models.text_recogniser:pictures?count=256"
    distillog.succeed("topics", "create", name, "--dataset", dataset, "--order-size", 32, "--epochs", 4)
    described = (
        *(
            "--input",
            "image=x",
            "--scale",
            "2/255",
            "--mean",
            "1",
            "--output",
            "logits=softmax_11.tmp_0:probabilities@2",
        ),
        *("--positions", "logits=inside", "--codec", "logits=topk:k=4,temperatures=1|2"),
    )
    added = distillog.succeed("topics", "add-teacher", name, "t", model, *described)
    assert "6625 classes" in added
    label(distillog, name, model)
    stream = open_stream(distillog.settings, name)
    fetcher, session = check_data(stream.manifest), open_session(model)
    words = text_recogniser.Words(0, 256).words
    right = 0
    records = [each.record for each in check_labels(distillog.settings, stream).accepted.values()][:4]
    for record in records:
        inputs = fetcher.fetch(record.sample_ids, record.view_seed).inputs
        image = inputs["image"].astype(np.float32) * np.float32(2 / 255) - 1
        probabilities = session.run(None, {"x": image})[0]
        inside = inputs["inside"] != 0
        stored = record.outputs[0].values().columns["indices"]
        assert np.array_equal(stored[:, 0], probabilities[inside].argmax(axis=1))
        texts = map(text_recogniser.read, probabilities.argmax(axis=2))
        right += sum(
            text.strip() == words[sample] for text, sample in zip(texts, record.sample_ids.tolist(), strict=True)
        )
    assert right > 0.9 * sum(len(record.sample_ids) for record in records)  # as its users know it

    document: dict[str, Any] = {
        "name": "reader",
        "data": {"stream": name},
        "student": {"name": "public_models.text_recogniser:student", "inputs": ["image"]},
        "losses": [{"name": "forward_kl", "temperature": 1.0}],
        "optimizer": {"name": "adamw", "lr": 3e-3},
        "train": {"batch_size": 16, "log_every": 4},
    }
    costs = run(distillog, tmp_path, document)
    assert costs[-1]["forward_kl"] < 0.5 * costs[0]["forward_kl"]
