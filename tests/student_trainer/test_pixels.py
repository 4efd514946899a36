"""Images of bytes reach a student as floats in [0, 1], normalised as it asks, wherever it is called."""

from __future__ import annotations

from pathlib import Path

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
from student_trainer.export import TOLERANCE, export_student
from student_trainer.launch import export_run
from student_trainer.learning.students import Network, build_student
from student_trainer.learning.trainee import weights_sha256
from student_trainer.run.settings import RunSettings
from student_trainer.run.student_settings import StudentSettings
from student_trainer.trained import load_student

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
BYTES = np.random.default_rng(0).integers(0, 256, (9, 3, 16, 16), np.uint8)


class Shown(nn.Module):
    """Keeps what comes to it."""

    def __init__(self, input_shape: tuple[int, ...], num_classes: int) -> None:
        super().__init__()
        self.linear = nn.Linear(2, num_classes)
        self.seen = torch.empty(0)

    def forward(self, samples: Tensor) -> Tensor:
        self.seen = samples
        logits: Tensor = self.linear(torch.zeros(len(samples), 2))
        return logits


def what_comes(values: Tensor, **settings: tuple[float, ...]) -> Tensor:
    network = Network.of("image", tuple(values.shape[1:]), 5, str(values.dtype).removeprefix("torch."))
    student = build_student(StudentSettings(f"{__name__}:Shown", **settings), network, 0)  # type: ignore[arg-type]
    student(values)
    assert isinstance(student, Shown)
    return student.seen


def test_images_of_bytes_become_floats_from_0_to_1() -> None:
    seen = what_comes(torch.tensor(BYTES))
    assert seen.dtype == torch.float32
    assert (seen.numpy() == BYTES.astype(np.float32) / 255).all()


def test_a_mean_and_a_deviation_are_of_each_channel_or_of_all() -> None:
    floats = torch.tensor(BYTES) / 255
    for values in (torch.tensor(BYTES), floats):
        seen = what_comes(values, mean=MEAN, std=STD)
        wanted = (floats - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]
        assert torch.equal(seen, wanted)
        assert torch.equal(what_comes(values, std=(0.5,)), floats / 0.5)


def test_mean_and_deviation_are_made_once_whatever_comes_between(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    student = build_student(StudentSettings("mlp", mean=MEAN, std=STD), Network.of("image", (3, 16, 16), 5, "uint8"), 0)
    images = torch.tensor(BYTES)
    with torch.inference_mode():
        before = student(images)
    export_student(student, {"image": BYTES}, tmp_path / "student.onnx")
    monkeypatch.setattr(torch, "tensor", lambda *words, **options: pytest.fail("made again"))
    for _ in range(2):
        logits = student.train()(images)
        logits.sum().backward()
    assert torch.equal(student.eval()(images), before)
    assert all("mean" not in name for name in student.state_dict())


def test_other_fields_come_as_they_are() -> None:
    for values in (torch.rand(3, 1, 8, 8), torch.arange(12, dtype=torch.uint8).reshape(3, 4), torch.arange(3)[:, None]):
        assert what_comes(values) is values


@pytest.mark.parametrize(
    ("shape", "settings", "says"),
    [
        ((3, 8, 8), {"mean": (0.5, 0.5)}, r"mean has 2 numbers, its images 3 channels"),
        ((40,), {"std": (0.5,)}, r"mean and std are of images \[C, H, W\], and its samples are \(40,\)"),
    ],
)
def test_a_normalisation_that_does_not_fit_is_refused(shape, settings, says) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ConfigError, match=says):
        build_student(StudentSettings("mlp", **settings), Network.of("x", shape, 5, "uint8"), 0)


def test_a_deviation_of_nothing_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"\[student\]: std must be positive, has 0"):
        digits_run(student={"std": [0.25, 0.0]})


def colours_run(dtype: str, **student: object) -> RunSettings:
    data = {"dataset": f"support.colours:colours?dtype={dtype}", "view": {"name": "crop_flip", "flip": 0.5}}
    return digits_run(data=data, student={"dropout": 0.0, **student}, optimizer={"lr": 0.3})


def test_a_run_learns_from_bytes_what_it_learns_from_floats(tmp_path: Path) -> None:
    of_bytes = run(tmp_path / "bytes", colours_run("uint8"))
    again = run(tmp_path / "again", colours_run("uint8"))
    of_floats = run(tmp_path / "floats", colours_run("float32", std=[255.0]))
    assert weights_sha256(of_bytes.model) == weights_sha256(again.model)
    for ours, theirs in zip(of_bytes.model.parameters(), of_floats.model.parameters(), strict=True):
        assert torch.allclose(ours, theirs, atol=1e-5)
    assert list(of_bytes.model.state_dict()) == list(of_floats.model.state_dict())


def test_an_exported_student_takes_the_views_bytes_and_normalises_them_itself(tmp_path: Path) -> None:
    run(tmp_path / "r", colours_run("uint8", mean=list(MEAN), std=list(STD)))
    trained = load_student(tmp_path / "r")
    path = tmp_path / "student.onnx"
    assert export_student(trained.model, {"image": BYTES}, path).difference <= TOLERANCE
    (image,) = onnx.load(path).graph.input
    assert image.type.tensor_type.elem_type == onnx.TensorProto.UINT8
    fetcher = Fetcher(open_dataset("support.colours:colours"), view_spec("none", {}))
    assert evaluate(path, fetcher, 50) == pytest.approx(evaluate(trained.model, fetcher, 50), abs=1e-5)


def test_an_exported_student_says_how_it_is_fed(tmp_path: Path) -> None:
    run(tmp_path / "r", colours_run("uint8"))
    export_run(tmp_path / "r", dataset="support.colours:colours")
    said = {one.key: one.value for one in onnx.load(tmp_path / "r" / "student.onnx").metadata_props}
    assert said["distillog.inputs"] == (
        '[{"field": "image", "dtype": "uint8", "shape": [3, 16, 16], "layout": "nchw", "scale": 1.0}]'
    )
