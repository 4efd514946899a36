"""Students that are models of the package transformers, made from configurations: they learn from a log as any other.

Their code is what the docs write.
"""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from support.processes import Distillog
from support.small_texts import SPECIAL, WORDS, text_files

from pipeline.kafka.settings import KafkaSettings
from student_trainer.evaluate import predictor
from student_trainer.launch import export_run
from student_trainer.run.folder import RunFolder, read_settings
from student_trainer.run.settings import RunSettings, run_settings
from student_trainer.sources.stream import StreamSource
from student_trainer.sources.stream_settings import StreamSettings
from student_trainer.train import TrainResult, train
from student_trainer.trained import load_student

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(300)]

LENGTH, WIDTH, VOCABULARY = 24, 16, len(SPECIAL) + len(WORDS)
DOCS = Path(__file__).parents[2] / "docs" / "run-file.md"
MODELS = {  # name -> view, field of positions, module whose value is `hidden`, and of whose weights there is one copy
    "bert": ("masked", "masked", "bert.encoder", ("cls.predictions.decoder", "bert.embeddings.word_embeddings")),
    "gpt2": ("next_token", "predicts", "transformer.ln_f", ("lm_head", "transformer.wte")),
}


@pytest.fixture(autouse=True)
def _my_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    name = "my_package/language_models.py"
    (code,) = re.findall(rf"```python\n(# {name}\n.*?)```", DOCS.read_text(encoding="utf-8"), re.S)
    (tmp_path / "code" / "my_package").mkdir(parents=True)
    (tmp_path / "code" / name).write_text(code, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path / "code")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    importlib.invalidate_caches()
    yield
    for found in [each for each in sys.modules if each.partition(".")[0] == "my_package"]:
        del sys.modules[found]


def write_teacher(path: Path) -> Path:
    """`input_ids` [N, L] -> `logits` [N, L, V] and `hidden` [N, L, 16], of each token by itself."""
    chance = np.random.default_rng(5)
    words = chance.normal(0, 1, (VOCABULARY, WIDTH)).astype(np.float32)
    to_words = chance.normal(0, 1, (WIDTH, VOCABULARY)).astype(np.float32)
    nodes = [
        helper.make_node("Gather", ["words", "input_ids"], ["hidden"]),
        helper.make_node("MatMul", ["hidden", "to_words"], ["logits"]),
    ]
    graph = helper.make_graph(
        nodes,
        "teacher",
        [helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["N", LENGTH])],
        [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", LENGTH, size])
            for name, size in (("logits", VOCABULARY), ("hidden", WIDTH))
        ],
        [numpy_helper.from_array(words, "words"), numpy_helper.from_array(to_words, "to_words")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    onnx.checker.check_model(model)
    onnx.save(model, str(path))
    return path


def run_of(name: str, stream: str, uri: str, hidden: str, **sections: Any) -> RunSettings:
    document: dict[str, Any] = {
        "name": "r",
        "source": "stream",
        "data": {"stream": stream},
        "student": {
            "name": f"my_package.language_models:{name}",
            "inputs": ["input_ids", "attention_mask"],
            "outputs": {"hidden": hidden},
            "width": WIDTH,
        },
        "teachers": [{"name": "t"}],
        "losses": [
            {"name": "forward_kl", "temperature": 2.0},
            {"name": "cosine", "on": "hidden", "against": "hidden"},
            {"name": "cross_entropy", "labels": "labels"},
        ],
        "optimizer": {"name": "adamw", "lr": 0.01},
        "train": {"batch_size": 16, "steps": 10, "log_every": 1, "ema": 0.9},
        "checkpoint": {"every": 4, "keep": 9},
        "evaluation": {"dataset": uri, "metrics": [{"name": "position_nll", "labels": "labels"}]},
    }
    for section, values in sections.items():
        document[section] = document.get(section, {}) | values
    return run_settings(document)


def trained(kafka: KafkaSettings, path: Path, settings: RunSettings) -> TrainResult:
    """Start a run, or resume it where its folder exists."""
    resume = (path / "run.toml").exists()
    source = StreamSource(kafka, StreamSettings.of(settings))
    lines: list[dict[str, Any]] = []
    with RunFolder.open(path) if resume else RunFolder.create(path, settings) as folder:
        result = train(settings, folder, source, None, lines.append, resume)
    losses = [line["losses"] for line in lines if "losses" in line]
    assert resume or losses[-1]["forward_kl"] < losses[0]["forward_kl"]
    return result


@pytest.mark.parametrize("name", MODELS)
def test_it_learns_from_a_log_resumes_to_the_same_bits_begins_another_and_is_exported(
    name: str, distillog: Distillog, fresh_name: Callable[[str], str], tmp_path: Path, kafka_settings: KafkaSettings
) -> None:
    view, field, hidden, tied = MODELS[name]
    stream, uri = fresh_name(name), f"text:{text_files(tmp_path / 'books', 100)}?length={LENGTH}"
    model = write_teacher(tmp_path / "teacher.onnx")
    made = ("--dataset", uri, "--view", view, "--order-size", 25, "--epochs", 2)
    distillog.succeed("topics", "create", stream, *made)
    outputs = ("--output", "logits=logits", "--output", "hidden=hidden:features")
    places = ("--positions", f"logits={field}", "--positions", f"hidden={field}")
    codec = ("--codec", "logits=topk:k=6,temperatures=2")
    distillog.succeed("topics", "add-teacher", stream, "t", model, *outputs, *places, *codec)
    distillog.succeed("feed", stream)
    distillog.start("teach", stream, model, "--threads", 1, "--until-idle").succeed()

    settings = run_of(name, stream, uri, hidden)
    whole = trained(kafka_settings, tmp_path / "whole", settings)
    assert np.isfinite(whole.metrics["position_nll"])
    trained(kafka_settings, tmp_path / "cut", replace(settings, train=replace(settings.train, steps=4)))
    (tmp_path / "cut" / "run.toml").write_text((tmp_path / "whole" / "run.toml").read_text())
    resumed = trained(kafka_settings, tmp_path / "cut", read_settings(tmp_path / "cut"))
    assert resumed.weights_sha256 == whole.weights_sha256

    student = load_student(tmp_path / "whole")
    one, other = (student.model.get_parameter(f"{each}.weight") for each in tied)
    assert one is other  # not only equal: a checkpoint of tied weights is of tied weights again
    begun = {"weights": {"path": str(tmp_path / "whole"), "layers": {"0": 1}}, "layers": 1}
    small = run_of(name, stream, uri, hidden, student=begun, train={"steps": 2}, optimizer={"lr": 1e-9})
    path = tmp_path / "small"
    with RunFolder.create(path, small) as folder:
        train(small, folder, StreamSource(kafka_settings, StreamSettings.of(small)), None, None, False)
    there, here = student.model.state_dict(), load_student(path).model.state_dict()
    for each, values in here.items():
        assert torch.allclose(values, there[re.sub(r"(layer|h)\.0\.", r"\1.1.", each)], atol=1e-6), each

    found = export_run(tmp_path / "whole", tmp_path / "student.onnx", outputs=("logits", "hidden"))
    assert found["difference"] < 1e-5
    inputs = {
        "input_ids": np.random.default_rng(0).integers(0, VOCABULARY, (5, LENGTH)),
        "attention_mask": (np.arange(LENGTH) < np.array([[24], [9], [1], [17], [3]])).astype(np.int64),
    }
    expected = predictor(student.outputs, student.network.fields)(inputs)
    given = predictor(tmp_path / "student.onnx")(inputs)
    for output in ("logits", "hidden"):
        real = inputs["attention_mask"] != 0
        assert np.abs(given[output][real] - expected[output][real]).max() < 1e-5
