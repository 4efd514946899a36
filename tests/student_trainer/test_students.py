from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn
from train_runs import digits_run, run

from schemas.errors import ConfigError
from student_trainer.learning.optimizers import OPTIMIZERS, build_optimizer
from student_trainer.learning.students import OF_TOKENS, STUDENTS, Network, build_student, num_parameters
from student_trainer.learning.trainee import weights_sha256
from student_trainer.run.settings import OptimizerSettings
from student_trainer.run.student_settings import StudentSettings
from student_trainer.trained import load_student

OF_NUMBERS = sorted(set(STUDENTS) - set(OF_TOKENS))
DIGITS = Network.of("image", (1, 8, 8), 10)


def my_student(input_shape: tuple[int, ...], num_classes: int, width: int = 4) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.LazyLinear(width), nn.BatchNorm1d(width), nn.Linear(width, num_classes))


@pytest.mark.parametrize("name", OF_NUMBERS)
@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 9, 12), (1, 40)])
def test_a_student_gives_logits_for_images_and_signals(name: str, shape: tuple[int, ...]) -> None:
    model = build_student(StudentSettings(name), Network.of("x", shape, 7), 0)
    assert model(torch.zeros(5, *shape)).shape == (5, 7)


@pytest.mark.parametrize(
    ("settings", "parameters"),
    [
        (StudentSettings("cnn", params={"dropout": 0.3}), 62_250),
        (StudentSettings("mlp", params={"hidden": [64]}), 4_810),
    ],
)
def test_the_networks_of_the_demo_have_their_size(settings: StudentSettings, parameters: int) -> None:
    assert sum(each.numel() for each in build_student(settings, DIGITS, 0).parameters()) == parameters


@pytest.mark.parametrize(
    ("shape", "pool", "parameters"),
    [
        ((3, 160, 160), 16, 161_130),  # without the pooling 13.1 million
        ((3, 37, 61), 16, 161_130),
        ((3, 160, 160), 1, 38_250),
        ((1, 300), 16, 141_930),
    ],
)
def test_a_cnn_does_not_grow_with_its_samples(shape: tuple[int, ...], pool: int, parameters: int) -> None:
    model = build_student(StudentSettings("cnn", params={"pool": pool}), Network.of("x", shape, 10), 0)
    assert num_parameters(model) == parameters
    assert model(torch.zeros(2, *shape)).shape == (2, 10)


def test_every_place_of_a_sample_reaches_a_pooled_cnns_logits() -> None:
    settings = StudentSettings("cnn", params={"channels": [4], "hidden": 8, "pool": 9})
    model = build_student(settings, Network.of("x", (1, 7, 11), 3), 0)
    sample = torch.zeros(1, 1, 7, 11, requires_grad=True)
    with torch.no_grad():
        for each in model.parameters():
            each.abs_()  # no ReLU cuts anything off
    model(sample).sum().backward()
    assert sample.grad is not None
    assert (sample.grad > 0).all()


def test_a_cnn_normalises_its_batches_where_asked() -> None:
    settings = StudentSettings("cnn", params={"batch_norm": True})
    kinds = [type(each).__name__ for each in build_student(settings, DIGITS, 0).modules()]
    assert kinds.count("BatchNorm2d") == kinds.count("Conv2d") == 3
    kinds = [type(each).__name__ for each in build_student(settings, Network.of("x", (1, 40), 10), 0).modules()]
    assert kinds.count("BatchNorm1d") == kinds.count("Conv1d") == 3


@pytest.mark.parametrize("name", OF_NUMBERS)
def test_initial_weights_are_those_of_the_seed(name: str) -> None:
    first, same, other = (weights_sha256(build_student(StudentSettings(name), DIGITS, seed)) for seed in (3, 3, 4))
    assert first == same != other


def no_network(input_shape: tuple[int, ...], num_classes: int) -> tuple[int, ...]:
    return input_shape


def no_key(input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
    raise KeyError("layers")


def test_a_student_of_ones_own_is_imported() -> None:
    settings = StudentSettings(f"{__name__}:my_student", params={"width": 6})
    model = build_student(settings, DIGITS, 0)
    assert model(torch.zeros(2, 1, 8, 8)).shape == (2, 10)


def lazy(input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
    """Its first batch norm would remember a sample that it saw in training."""
    flat = (nn.Flatten(), nn.BatchNorm1d(64), nn.LazyLinear(6), nn.LazyBatchNorm1d(), nn.Dropout(0.5))
    return nn.Sequential(*flat, nn.LazyLinear(num_classes))


class Beside(nn.Module):
    """A lazy layer beside the way to the logits."""

    def __init__(self) -> None:
        super().__init__()
        self.head, self.exit = nn.LazyLinear(10), nn.LazyLinear(10)

    def forward(self, samples: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.head(samples.flatten(1))
        return logits + self.exit(samples.flatten(1)) if self.training else logits


def beside(input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
    return Beside()


def misshapen(input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
    return nn.Sequential(nn.LazyLinear(6), nn.Linear(7, num_classes))


def test_lazy_modules_have_the_seeds_weights_and_nothing_else_is_changed() -> None:
    settings = StudentSettings(f"{__name__}:lazy")
    first, same, other = (build_student(settings, DIGITS, seed) for seed in (3, 3, 4))
    assert weights_sha256(first) == weights_sha256(same) != weights_sha256(other)
    assert first.training
    assert first[2].weight.shape == (6, 64)
    assert first[1].num_batches_tracked == first[3].num_batches_tracked == 0
    assert first[3].running_mean.tolist() == [0.0] * 6


def test_a_student_of_lazy_modules_is_trained_saved_and_loaded(tmp_path: Path) -> None:
    settings = replace(digits_run(), student=StudentSettings(f"{__name__}:lazy"))
    result = run(tmp_path / "r", settings)
    assert weights_sha256(load_student(tmp_path / "r").model) == result.weights_sha256


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (StudentSettings("mpl"), "did you mean 'mlp'?"),
        (StudentSettings("resnet50"), "choose one of cnn, linear, mlp, transformer.*import path, package.module:name"),
        (StudentSettings("mlp", params={"hiden": [3]}), "did you mean 'hidden'?"),
        (StudentSettings("mlp", params={"hidden": ["a"]}), "cannot be built"),
        (StudentSettings("cnn", params={"channels": [4] * 6}), "name fewer"),
        (StudentSettings("cnn", params={"pool": 0}), "pool must be at least 1, is 0"),
        (StudentSettings("nowhere.at_all:student"), "cannot be imported"),
        (StudentSettings(f"{__name__}:missing"), "cannot be imported"),
        (StudentSettings(f"{__name__}:DIGITS"), "is not callable"),
        (StudentSettings(f"{__name__}:no_network"), "gave a tuple, not a torch.nn.Module"),
        (StudentSettings(f"{__name__}:no_key"), "cannot be built for samples of .*KeyError: 'layers'"),
        (StudentSettings(f"{__name__}:my_student", params={"widht": 3}), "did you mean 'width'?"),
        (StudentSettings(f"{__name__}:beside"), "beside: exit.weight has no shape"),
        (StudentSettings(f"{__name__}:misshapen"), r"misshapen fails on samples of \(1, 8, 8\): RuntimeError"),
    ],
)
def test_a_student_that_cannot_be_built_is_one_line(settings: StudentSettings, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        build_student(settings, DIGITS, 0)


OF_TORCH = ("RMSprop", "Adam", "Adagrad", "NAdam", "SGD", "Rprop")


@pytest.mark.parametrize("name", [*OPTIMIZERS, *(f"torch.optim.{name}" for name in OF_TORCH), "torch.optim:RMSprop"])
def test_an_optimizer_learns(name: str) -> None:
    model = nn.Linear(3, 1)
    optimizer = build_optimizer(OptimizerSettings(name, lr=0.05), model)
    samples = torch.eye(3)
    losses = []
    for _ in range(50):
        optimizer.zero_grad()
        loss = (model(samples) - 1).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 2


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (OptimizerSettings("adam"), "did you mean 'adamw'?.*package.module:name"),
        (OptimizerSettings("torch.optim:LBFGS"), "several times a step"),
        (OptimizerSettings("torch.optim.RMSpropp"), r"\[optimizer\] torch.optim:RMSpropp cannot be imported"),
        (OptimizerSettings("torch.optim.RMSprop", params={"alpha": -1.0}), "torch.optim.RMSprop: .*alpha"),
        (OptimizerSettings("torch.optim.SparseAdam"), "torch.optim.SparseAdam: .*does not support dense gradients"),
        (OptimizerSettings("torch.optim:Adam", params={"lrr": 1}), r"key 'lrr' is unknown"),
        (OptimizerSettings("torch.optim:Adam", params={"eps": -1.0}), r"\[optimizer\] torch.optim:Adam: .*epsilon"),
        (OptimizerSettings("builtins:print"), "builtins:print"),
        (OptimizerSettings("sgd", params={"momentun": 0.9}), "did you mean 'momentum'?"),
        (OptimizerSettings("sgd", params={"momentum": -1.0}), r"\[optimizer\] sgd"),
        (OptimizerSettings("adamw", params={"betas": []}), r"\[optimizer\] adamw"),
    ],
)
def test_an_optimizer_that_makes_no_sense_is_one_line(settings: OptimizerSettings, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        build_optimizer(settings, nn.Linear(2, 2))


def test_the_weights_hash_sees_buffers_names_and_single_bits() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    before = weights_sha256(model)
    model.get_buffer("1.num_batches_tracked").add_(1)
    after = weights_sha256(model)
    with torch.no_grad():
        model.get_parameter("0.weight").view(torch.int32)[0, 0] ^= 1
    assert len({before, after, weights_sha256(model)}) == 3
    assert weights_sha256(model.to(torch.bfloat16)) != after
