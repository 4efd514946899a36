"""A moving average of the weights is what a run gives, and has no part in what it learns."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from train_runs import digits_run, run

from pipeline.views.fetch import Fetcher
from schemas.errors import CheckpointError, ConfigError
from student_trainer.batches import Batch
from student_trainer.checkpoint import load_checkpoint
from student_trainer.evaluate import evaluate, evaluation_data
from student_trainer.learning.average import Average, averaged
from student_trainer.learning.first_weights import begin_with
from student_trainer.learning.students import Network, build_student
from student_trainer.learning.terms import resolve
from student_trainer.learning.trainee import Trainee, weights_sha256
from student_trainer.learning.weights import tensors_sha256
from student_trainer.run.settings import RunSettings, run_settings
from student_trainer.run.student_settings import WeightsSettings
from student_trainer.trained import load_student

EMA = 0.4
CNN = {"name": "cnn", "channels": [4], "hidden": 8, "batch_norm": True}

IMAGE = Network.of("image", (1, 8, 8), 10)


def cnn_run(ema: float | None = EMA, **train: Any) -> RunSettings:
    """With batch norm, whose running statistics are averaged, too."""
    settings = digits_run(evaluation={"dataset": "digits?split=test", "every": 4})
    document = settings.as_dict() | {"student": CNN, "checkpoint": {"every": 1, "keep": 99}}
    document["train"] |= train if ema is None else {"ema": ema, **train}
    return run_settings(document)


def batch(step: int, poison: bool = False) -> Batch:
    generator = torch.Generator().manual_seed(step)
    inputs = torch.randn(8, 1, 8, 8, generator=generator)
    if poison:
        inputs[3] = torch.nan
    return Batch(torch.arange(8), {"image": inputs}, torch.randint(10, (8,), generator=generator))


def trainee(settings: RunSettings) -> Trainee:
    return Trainee(settings, IMAGE, 40, 1.0, torch.device("cpu"), resolve(settings, {}))


def floats(model: nn.Module) -> dict[str, Tensor]:
    return {name: each.clone().double() for name, each in model.state_dict().items() if each.is_floating_point()}


@pytest.mark.parametrize("ema", [EMA, 0.99])
def test_it_is_the_average_of_weights_and_running_statistics_over_the_steps(ema: float) -> None:
    learner = trainee(cnn_run(ema))
    expected: dict[str, Tensor] = {}
    for step in range(12):
        learner.take_step(batch(step), step)
        keep = min(ema, (1 + step) / (10 + step)) if expected else 0.0
        now = floats(learner.model)
        expected = {name: keep * expected.get(name, each) + (1 - keep) * each for name, each in now.items()}
    found = learner.state()["average"]
    assert found.keys() == expected.keys()
    for name, each in expected.items():
        torch.testing.assert_close(found[name].double(), each, rtol=1e-5, atol=1e-6)


def test_the_student_has_it_for_a_while_and_then_its_own_weights_to_the_bit() -> None:
    learner = trainee(cnn_run())
    for step in range(3):
        learner.take_step(batch(step), step)
    own = weights_sha256(learner.model)
    state = learner.state()
    with learner.averaged():
        assert weights_sha256(learner.model) == tensors_sha256(averaged(state)) != own
    assert weights_sha256(learner.model) == own
    other = trainee(cnn_run(None))
    for step in range(3):
        other.take_step(batch(step), step)
    assert weights_sha256(other.model) == own
    with other.averaged():
        assert weights_sha256(other.model) == own


@pytest.mark.parametrize("bad_step", [0, 2])
def test_a_refused_step_leaves_it_as_it_was(bad_step: int) -> None:
    learner = trainee(cnn_run())
    for step in range(bad_step):
        learner.take_step(batch(step), step)
    before = {name: each.clone() for name, each in averaged(learner.state()).items()}
    for step in (bad_step, bad_step + 1):
        assert learner.take_step(batch(step, poison=step == bad_step), step).refused
    torch.testing.assert_close(averaged(learner.state()), before, rtol=0, atol=0)


def test_what_is_frozen_and_what_no_checkpoint_holds_is_left_out() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Linear(2, 2))
    model[0].requires_grad_(False)
    model.register_buffer("mask", torch.zeros(2).expand(3, 2))
    model.register_buffer("scratch", torch.zeros(2), persistent=False)
    average = Average(model, EMA)
    average.update(0, torch.zeros(()))
    named = {"1.weight", "1.bias", "1.running_mean", "1.running_var", "2.weight", "2.bias"}
    assert average.state().keys() == named


def test_of_half_precision_it_is_kept_in_float32() -> None:
    model = nn.Linear(1, 1, bias=False).to(torch.bfloat16)
    average = Average(model, 0.999)
    for step in range(200):
        nn.init.constant_(model.weight, 1.0 if step else 0.0)
        average.update(step, torch.zeros(()))
    assert average.state()["weight"].dtype == torch.float32
    assert 0.5 < average.state()["weight"].item() < 1
    assert averaged({"model": model.state_dict(), "average": average.state()})["weight"].dtype == torch.bfloat16


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("average") / "r"
    run(path, cnn_run())
    return path


@pytest.mark.parametrize("step", [1, 7, 12])
def test_a_resumed_run_has_the_same_average_to_the_bit(tmp_path: Path, whole: Path, step: int) -> None:
    path = tmp_path / "r"
    shutil.copytree(whole, path)
    for place in (path / "checkpoints").iterdir():
        if int(place.name.removeprefix("step-")) > step:
            shutil.rmtree(place)
    result = run(path, cnn_run())
    states = [load_checkpoint(each / "checkpoints")[1] for each in (path, whole)]
    torch.testing.assert_close(states[0]["average"], states[1]["average"], rtol=0, atol=0)
    assert result.weights_sha256 == tensors_sha256(averaged(states[1]))


def fetcher(settings: RunSettings) -> Fetcher:
    return evaluation_data(settings, load_view(settings), "digits?split=test")


def load_view(settings: RunSettings) -> Any:
    from pipeline.views import view_spec

    return view_spec(settings.data.view.name, settings.data.view.params)


def test_it_is_what_a_run_evaluates_reports_exports_and_hands_on(tmp_path: Path, whole: Path) -> None:
    plain = run(tmp_path / "plain", cnn_run(None))
    settings = cnn_run()
    again = run(tmp_path / "r", settings)
    _, state = load_checkpoint(tmp_path / "r/checkpoints")
    assert tensors_sha256(state["model"]) == plain.weights_sha256  # it learns as if there were none
    given = load_student(tmp_path / "r")
    assert weights_sha256(given.model) == weights_sha256(again.model) == again.weights_sha256 != plain.weights_sha256
    data, size = fetcher(settings), settings.evaluation.batch_size
    assert evaluate(given.model, data, size) == again.metrics != plain.metrics
    lines = [json.loads(line) for line in (tmp_path / "r/metrics.jsonl").read_text().splitlines()]
    assert {line["ema"] for line in lines if "evaluation" in line} == {EMA}
    begun = build_student(settings.student, IMAGE, 5)
    assert begin_with(begun, WeightsSettings(str(tmp_path / "r"))).sha256 == again.weights_sha256
    assert weights_sha256(begun) == again.weights_sha256


@pytest.mark.parametrize("ema", [0.0, 1.0, -0.5])
def test_a_decay_that_makes_no_sense_is_refused(ema: float) -> None:
    with pytest.raises(ConfigError, match=rf"\[train\]: ema must be above 0 and below 1, is {ema}"):
        cnn_run(ema)


def test_a_resume_cannot_begin_one(tmp_path: Path) -> None:
    settings = cnn_run(None, steps=2)
    run(tmp_path / "r", settings)
    with pytest.raises(CheckpointError, match=r"train\.ema was None, is 0\.4"):
        run(tmp_path / "r", replace(settings, train=replace(settings.train, ema=EMA)))


def test_a_constant_of_infinity_is_no_part_of_it() -> None:
    model = nn.Linear(3, 2)
    model.register_buffer("mask", torch.tensor([0.0, -torch.inf]))
    average, taken = Average(model, 0.5), torch.zeros(())
    for step in range(3):
        average.update(step, taken)
    with average.in_place():
        assert model.mask.tolist() == [0.0, -torch.inf]  # type: ignore[operator]
    assert set(average.state()) == {"weight", "bias"}
