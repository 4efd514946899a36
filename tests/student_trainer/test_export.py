from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from train_runs import digits_run, run

from pipeline.datasets import open_dataset
from pipeline.onnx_runtime import open_session
from pipeline.views import view_spec
from pipeline.views.fetch import Fetcher
from schemas.errors import ConfigError
from student_trainer.evaluate import evaluate
from student_trainer.export import TOLERANCE, Projection, export_student, latency, save_weights
from student_trainer.learning.student_outputs import StudentOutputs
from student_trainer.learning.students import Network, build_student
from student_trainer.run.settings import run_settings
from student_trainer.trained import Trained, load_student

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
    exported = export_student(trained.model, {"image": SAMPLES}, path)
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


@pytest.mark.parametrize(("model", "says"), [(Restless(), "not written"), (Sorted(), r"exported: \S.*data-dependent")])
def test_a_student_that_does_not_export_faithfully_leaves_no_file(tmp_path: Path, model: nn.Module, says: str) -> None:
    path = tmp_path / "student.onnx"
    with pytest.raises(ConfigError, match=says):
        export_student(model, {"image": SAMPLES}, path)
    assert list(tmp_path.iterdir()) == []
    assert torch.is_grad_enabled()


def test_a_file_that_is_no_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "bad.onnx").write_bytes(b"not a model")
    with pytest.raises(ConfigError, match=r"bad\.onnx: ONNX Runtime cannot load it"):
        latency(tmp_path / "bad.onnx", {"image": SAMPLES})


PROJECTED = {"name": "cosine", "key": "tokens-to-t", "on": "tokens", "against": "tokens", "projection": "linear"}


def projected_run(folder: Path) -> Trained:
    """A student of several outputs and inner ones, as if it had learned from a teacher's wider features."""
    settings = run_settings(
        digits_run().as_dict()
        | {"student": {"name": "support.students:encoder", "outputs": {"inner": "inner"}}}
        | {"losses": [{"name": "cross_entropy"}, PROJECTED]}
    )
    network = Network.of("image", (1, 8, 8), 10)
    torch.manual_seed(3)
    layers = {"tokens-to-t": Projection("tokens", nn.Linear(6, 5))}
    model = build_student(settings.student, network, 0).eval()
    outputs = StudentOutputs(model, settings.student.outputs)
    return Trained(model, outputs, network, settings, layers, view_spec("none", {}), 0)


def exported_outputs(path: Path) -> dict[str, Any]:
    session = open_session(path)
    names = [each.name for each in session.get_outputs()]
    return dict(zip(names, session.run(names, {"image": SAMPLES}), strict=True))


def test_a_file_has_the_outputs_that_are_asked_for_and_the_projections(tmp_path: Path) -> None:
    trained, path = projected_run(tmp_path), tmp_path / "student.onnx"
    inner = trained.settings.student.outputs
    export_student(trained.model, {"image": SAMPLES}, path, inner=inner)
    assert list(exported_outputs(path)) == ["logits"]

    done = export_student(
        trained.model,
        {"image": SAMPLES},
        path,
        outputs=["tokens", "inner", "logits"],
        inner=inner,
        projections=trained.projections,
    )
    assert done.difference <= TOLERANCE
    found = exported_outputs(path)
    assert {name: values.shape for name, values in found.items()} == {
        "tokens": (33, 4, 6), "inner": (33, 24), "logits": (33, 10), "tokens-to-t": (33, 4, 5),
    }  # fmt: skip
    with torch.no_grad():
        given = StudentOutputs(trained.model, inner)(torch.tensor(SAMPLES))
        given["tokens-to-t"] = trained.projections["tokens-to-t"].layer(given["tokens"])
    for name, values in found.items():
        np.testing.assert_allclose(values, given[name].numpy(), atol=1e-5)


@pytest.mark.parametrize(
    ("outputs", "says"),
    [
        (["tokns"], "gives no 'tokns': did you mean 'tokens'"),
        (["inner", "inner"], "two of its inputs and outputs would be called 'inner'"),
        (["tokens-to-t"], "the student gives no 'tokens-to-t'"),
        (["image"], "the student gives no 'image': choose one of "),
    ],
)
def test_outputs_that_no_file_can_have_are_refused(tmp_path: Path, outputs: list[str], says: str) -> None:
    trained, path = projected_run(tmp_path), tmp_path / "student.onnx"
    inner = trained.settings.student.outputs
    with pytest.raises(ConfigError, match=says):
        export_student(
            trained.model, {"image": SAMPLES}, path, outputs=outputs, inner=inner, projections=trained.projections
        )
    assert not path.exists()


class Tied(nn.Module):
    """A batch norm's statistics, a layer that has two names, an operator that becomes several."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(1)
        self.into, self.back = nn.Linear(64, 10), nn.Linear(10, 64)
        self.again = self.into

    def forward(self, samples: Tensor) -> Tensor:
        hidden = self.into(self.norm(samples).flatten(2)).unsqueeze(1)
        hidden = nn.functional.scaled_dot_product_attention(hidden, hidden, hidden)
        logits: Tensor = self.again(self.back(hidden)).flatten(1)
        return logits


def test_weights_are_written_under_their_own_names(tmp_path: Path) -> None:
    model, layer = Tied(), nn.Linear(3, 2)
    save_weights(model, {"hint": Projection("", layer)}, tmp_path / "student.safetensors")
    found = load_file(tmp_path / "student.safetensors")
    expected = {**model.state_dict(), "projections.hint.weight": layer.weight, "projections.hint.bias": layer.bias}
    assert list(map(str, sorted(found))) == sorted(expected)
    assert all(torch.equal(values, expected[name]) for name, values in found.items())
    first = (tmp_path / "student.safetensors").read_bytes()
    save_weights(model, {"hint": Projection("", layer)}, tmp_path / "student.safetensors")
    assert (tmp_path / "student.safetensors").read_bytes() == first


ELSEWHERE = """
import sys
from pathlib import Path
from test_export import SAMPLES, Tied, projected_run, export_student, save_weights
import torch
folder = Path(sys.argv[1])
trained = projected_run(folder)
export_student(trained.model, {"image": SAMPLES}, folder / "encoder.onnx", {"says": "so"},
               outputs=["inner", "logits"], inner=trained.settings.student.outputs, projections=trained.projections)
torch.manual_seed(1)
export_student(Tied(), {"image": SAMPLES}, folder / "tied.onnx")
save_weights(trained.model, trained.projections, folder / "encoder.safetensors")
"""


@pytest.mark.faults
@pytest.mark.short
def test_equal_weights_give_equal_files_that_say_nothing_of_where_they_were_made(tmp_path: Path) -> None:
    made = []
    for number, folder in enumerate(("one/deep/inside", "other")):
        place = tmp_path / folder
        place.mkdir(parents=True)
        # A copy of the code of each: another path in every trace, another order in every set.
        tests = place / "code"
        shutil.copytree(Path(__file__).parents[1] / "support", tests / "support")
        for name in ("test_export.py", "train_runs.py"):
            shutil.copy(Path(__file__).with_name(name), tests)
        environment = os.environ | {"PYTHONPATH": str(tests), "PYTHONHASHSEED": str(number + 1)}
        subprocess.run([sys.executable, "-c", ELSEWHERE, place], check=True, cwd=place, env=environment, timeout=100)
        names = ("encoder.onnx", "tied.onnx", "encoder.safetensors")
        made.append({name: (place / name).read_bytes() for name in names})
    assert made[0] == made[1]
    said = [b"/", b"\\\\", b".py", b"Traceback", b"torch.nn", b"forward", b"+cpu", b"+cu"]
    for name, content in made[0].items():
        model = onnx.load_from_string(content) if name.endswith(".onnx") else None
        for each in model.graph.initializer if model else ():
            each.ClearField("raw_data")  # numbers may look like any word
        text = model.SerializeToString() if model else content[: 8 + int.from_bytes(content[:8], "little")]
        assert [word for word in said if word in text] == [], name
