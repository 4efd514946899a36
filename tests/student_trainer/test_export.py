from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn
from train_runs import digits_run, run

from pipeline.datasets import open_dataset
from pipeline.views import view_spec
from pipeline.views.fetch import Fetcher
from schemas.errors import ConfigError
from student_trainer.evaluate import evaluate
from student_trainer.export import TOLERANCE, export_student, latency
from student_trainer.trained import load_student

SAMPLES = np.random.default_rng(0).random((33, 1, 8, 8), np.float32)


@pytest.mark.parametrize(
    "student",
    [
        {"name": "mlp", "hidden": [8]},
        {"name": "cnn", "hidden": 8},
        {"name": "cnn", "hidden": 8, "channels": [4], "pool": 9, "batch_norm": True},  # windows that overlap
    ],
    ids=lambda student: " ".join(map(str, student.values())),
)
def test_a_trained_student_becomes_one_file_that_computes_the_same(tmp_path: Path, student: dict[str, Any]) -> None:
    run(tmp_path / "r", digits_run(student=student))
    trained = load_student(tmp_path / "r")
    assert trained.step == 12
    path = tmp_path / "out" / "student.onnx"
    path.parent.mkdir()
    exported = export_student(trained.model, SAMPLES, trained.network.field, path)
    assert exported.difference <= TOLERANCE
    assert exported.file_bytes == path.stat().st_size
    assert exported.parameters == sum(each.numel() for each in trained.model.parameters())
    assert [each.name for each in path.parent.iterdir()] == ["student.onnx"]
    graph = onnx.load(path).graph
    assert [each.name for each in graph.input] == ["image"]
    assert [each.name for each in graph.output] == ["logits"]
    fetcher = Fetcher(open_dataset("digits?split=test"), view_spec("none", {}))
    assert evaluate(path, fetcher, 77) == pytest.approx(evaluate(trained.model, fetcher, 77), abs=1e-5)
    speed = latency(path, {"image": SAMPLES}, seconds=0.02)
    assert 0 < speed.p50_ms <= speed.p95_ms
    assert speed.samples_per_s > 0


class Restless(nn.Module):
    """Counts its calls, so that no export of it can be right."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(64, 10)
        self.calls = 0

    def forward(self, samples: Tensor) -> Tensor:
        self.calls += 1
        logits: Tensor = self.linear(samples.flatten(1)) * self.calls
        return logits


class Sorted(nn.Module):
    """Branches on its values, which cannot be exported."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(64, 10)

    def forward(self, samples: Tensor) -> Tensor:
        logits: Tensor = self.linear(samples.flatten(1))
        return logits if bool(logits.sum() > 0) else -logits


@pytest.mark.parametrize(("model", "says"), [(Restless(), "not written"), (Sorted(), "cannot be exported")])
def test_a_student_that_does_not_export_faithfully_leaves_no_file(tmp_path: Path, model: nn.Module, says: str) -> None:
    path = tmp_path / "student.onnx"
    with pytest.raises(ConfigError, match=says):
        export_student(model, SAMPLES, "image", path)
    assert list(tmp_path.iterdir()) == []
    assert torch.is_grad_enabled()


def test_a_file_that_is_no_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "bad.onnx").write_bytes(b"not a model")
    with pytest.raises(ConfigError, match=r"bad\.onnx: ONNX Runtime cannot load it"):
        latency(tmp_path / "bad.onnx", {"image": SAMPLES})
