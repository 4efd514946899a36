"""What goes into a student: one field, or several by name or in order, from the dataset to the exported file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from support.students import Read, token_files
from torch import Tensor, nn
from train_runs import digits_run, run

from pipeline.datasets import open_dataset
from pipeline.views import view_spec
from pipeline.views.fetch import Fetcher
from schemas.errors import ConfigError
from student_trainer.evaluate import evaluate
from student_trainer.export import TOLERANCE, export_student, latency
from student_trainer.learning.student_inputs import InputField, StudentInputs
from student_trainer.learning.student_outputs import probe
from student_trainer.learning.students import Network, build_student
from student_trainer.run.settings import RunSettings, run_settings
from student_trainer.run.student_settings import StudentSettings
from student_trainer.trained import load_student

FIELDS = ["input_ids", "attention_mask"]


def tokens_run(folder: Path, **sections: dict[str, Any]) -> RunSettings:
    uri = token_files(folder / "tokens")
    student = {"name": "support.students:reader", "inputs": FIELDS} | sections.pop("student", {})
    document = digits_run().as_dict() | {"optimizer": {"name": "adamw", "lr": 0.02}}
    document |= {"data": {"dataset": uri}, "evaluation": {"dataset": uri}, "student": student}
    return run_settings(document | sections)


def draw(*shape: int) -> Tensor:
    return torch.tensor(np.random.default_rng(0).random(shape, np.float32))


class ByName(nn.Module):
    def forward(self, b: Tensor, *, a: Tensor, c: Tensor | None = None) -> Tensor:
        return b - a


class OfAnyName(nn.Module):
    def forward(self, **fields: Tensor) -> Tensor:
        return fields["b"] - fields["a"]


class InOrder(nn.Module):
    def forward(self, first: Tensor, b: Tensor) -> Tensor:
        return b - first


class Alone(nn.Module):
    def forward(self, b: Tensor) -> Tensor:
        return b


@pytest.mark.parametrize("model", [ByName(), OfAnyName(), InOrder()], ids=lambda model: type(model).__name__)
def test_several_fields_go_by_name_where_all_are_taken_by_name_else_in_order(model: nn.Module) -> None:
    inputs = {"b": torch.tensor([5.0]), "c": torch.tensor([9.0]), "a": torch.tensor([2.0])}
    assert StudentInputs(model, ["a", "b"]).hand(inputs, model).item() == 3


class Swallowing(nn.Module):
    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None, **kwargs: Tensor) -> Tensor:
        return input_ids if attention_mask is None else input_ids * attention_mask


def test_a_field_that_keywords_would_swallow_is_refused() -> None:
    model, inputs = Swallowing(), {"input_ids": torch.tensor([5.0]), "attention_mask": torch.tensor([2.0])}
    assert StudentInputs(model, ["attention_mask", "input_ids"]).hand(inputs, model).item() == 10
    with pytest.raises(ConfigError, match=r"'mask' would be lost among .*: choose one of attention_mask, input_ids"):
        StudentInputs(model, ["input_ids", "mask"])


def test_one_field_is_handed_on_whatever_its_parameter_is_called() -> None:
    inputs = {"a": torch.tensor([2.0]), "b": torch.tensor([5.0])}
    assert StudentInputs(model := Alone(), ["a"]).hand(inputs, model).item() == 2


def test_a_student_of_several_fields_trains_evaluates_and_exports(tmp_path: Path) -> None:
    settings = tokens_run(tmp_path)
    whole = run(tmp_path / "r", settings)
    assert whole.metrics["accuracy"] > 0.6
    trained = load_student(tmp_path / "r")
    assert trained.network.inputs == tuple(InputField(name, (6,), "int64") for name in FIELDS)
    fetcher = Fetcher(open_dataset(settings.data.dataset), view_spec("none", {}))
    scores = evaluate(trained.model, fetcher, 64, fields=trained.network.fields)
    assert scores == pytest.approx(whole.metrics)

    inputs = {name: fetcher.fetch(np.arange(30), 0).inputs[name] for name in FIELDS}
    path = tmp_path / "student.onnx"
    assert export_student(trained.model, inputs, path).difference <= TOLERANCE
    graph = onnx.load(path).graph
    assert [each.name for each in graph.input] == FIELDS
    assert all(each.type.tensor_type.shape.dim[0].dim_param for each in graph.input)
    assert [each.name for each in graph.output] == ["logits"]
    assert evaluate(path, fetcher, 77) == pytest.approx(scores, abs=1e-5)
    assert latency(path, inputs, seconds=0.02).p50_ms > 0


def test_a_resumed_run_of_several_fields_has_the_same_bits(tmp_path: Path) -> None:
    def steps(count: int) -> RunSettings:
        return tokens_run(tmp_path, train={"batch_size": 50, "steps": count}, schedule={"name": "constant"})

    run(tmp_path / "r", steps(5))
    assert run(tmp_path / "r", steps(12)).weights_sha256 == run(tmp_path / "straight", steps(12)).weights_sha256


def test_what_a_student_is_built_for_outlives_json() -> None:
    network = Network((InputField("a", (3, 4), "uint8"), InputField("b", (), "float32")), 5, ("x", "y"))
    assert Network.from_dict(json.loads(json.dumps(network.as_dict()))) == network
    assert network.input_shape == {"a": (3, 4), "b": ()}
    assert Network.of("a", (3, 4), 5).input_shape == (3, 4)


class Both(nn.Module):
    """An image and a number beside it, by name."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(2, 2)

    def forward(self, extra: Tensor, image: Tensor) -> Read:
        assert image.dtype == extra.dtype == torch.float32
        means = image.mean((1, 2, 3))
        return Read(self.head(torch.stack([means, extra], 1)), means)


class BothInOrder(Both):
    def forward(self, picture: Tensor, number: Tensor) -> Read:
        return super().forward(number, picture)


def both(input_shape: dict[str, tuple[int, ...]], num_classes: int, by_name: bool = True) -> nn.Module:
    return Both() if by_name else BothInOrder()


@pytest.mark.parametrize("by_name", [True, False])
def test_the_image_among_several_fields_is_normalised(by_name: bool) -> None:
    settings = StudentSettings(f"{__name__}:both", mean=(0.5,), std=(0.25,), params={"by_name": by_name})
    network = Network((InputField("image", (1, 4, 4), "uint8"), InputField("extra", (), "float32")), 2)
    model = build_student(settings, network, 0)
    images = torch.full((3, 1, 4, 4), 255, dtype=torch.uint8)
    given = StudentInputs(model, network.fields).hand({"extra": torch.ones(3), "image": images}, model)
    assert given.last_hidden_state.tolist() == [2.0] * 3
    assert probe(settings, network, 0, torch.device("cpu"), None) == {"logits": (2,), "last_hidden_state": ()}


@pytest.mark.parametrize("name", ["linear", "mlp", "cnn"])
def test_a_student_of_ours_takes_one_field(name: str) -> None:
    network = Network((InputField("a", (1, 8, 8), "float32"), InputField("b", (1, 8, 8), "float32")), 5)
    with pytest.raises(ConfigError, match=rf"{name} takes one field, and inputs names a, b"):
        build_student(StudentSettings(name), network, 0)


@pytest.mark.parametrize(
    ("student", "says"),
    [
        ({"inputs": []}, r"inputs is missing; the dataset has the fields attention_mask, input_ids"),
        ({"inputs": ["input_ids", "mask"]}, r"inputs: 'mask' is no field of the dataset"),
        ({"inputs": ["input_ids"]}, r"cannot be built .*TypeError"),
        ({"input": "input_ids"}, r"key 'input' is unknown: did you mean 'inputs'\?"),
        ({"name": "mlp"}, r"mlp takes floats"),
    ],
    ids=str,
)
def test_inputs_that_do_not_fit_are_one_line(tmp_path: Path, student: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        run(tmp_path / "r", tokens_run(tmp_path, student=student))
    assert not (tmp_path / "r").exists()


def test_a_field_that_is_named_twice_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"\[student\]: inputs names 'input_ids' twice"):
        tokens_run(tmp_path, student={"inputs": ["input_ids", "input_ids"]})


def test_evaluation_data_without_one_of_the_fields_are_refused(tmp_path: Path) -> None:
    settings = tokens_run(tmp_path, evaluation={"dataset": f"npy:{tmp_path / 'other'}"})
    token_files(tmp_path / "other", length=7)
    with pytest.raises(ConfigError, match=r"has the fields attention_mask int64\[7\].*takes input_ids int64\[6\], att"):
        run(tmp_path / "r", settings)
