"""Parts of a student that do not learn, and parts that learn in a way of their own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from support.students import Reader
from torch import nn
from train_runs import digits_run, run

from schemas.errors import CheckpointError, ConfigError
from student_trainer.batches import Batch
from student_trainer.checkpoint import load_checkpoint
from student_trainer.learning.frozen import freeze
from student_trainer.learning.optimizers import build_optimizer
from student_trainer.learning.students import Network, build_student
from student_trainer.learning.terms import resolve
from student_trainer.learning.trainee import Trainee
from student_trainer.run.optimizer_settings import GroupSettings, OptimizerSettings
from student_trainer.run.settings import RunSettings, run_settings

CNN = {"name": "cnn", "channels": [4, 4], "hidden": 8, "batch_norm": True, "dropout": 0.1}
"""Convolutions 0 and 3, batch norms 1 and 4, linear layers 8 and 11."""
CPU = torch.device("cpu")


def cnn_run(**sections: Any) -> RunSettings:
    document = digits_run().as_dict()
    sections["student"] = CNN | sections.get("student", {})
    return run_settings(document | sections)


def weights(run: Path) -> dict[str, torch.Tensor]:
    tensors: dict[str, torch.Tensor] = load_checkpoint(run / "checkpoints")[1]["model"]
    return tensors


def test_what_is_frozen_stays_to_the_bit_and_all_else_learns(tmp_path: Path) -> None:
    frozen = ["0", "1", "8.bias"]
    settings = cnn_run(student={"frozen": frozen}, evaluation={"dataset": "digits?split=test", "every": 4})
    run(tmp_path / "r", settings)
    before = build_student(settings.student, Network.of("image", (1, 8, 8), 10), settings.train.seed).state_dict()
    after = weights(tmp_path / "r")
    same = {name for name in before if torch.equal(before[name], after[name])}
    assert same == {"0.weight", *(name for name in before if name.startswith("1.")), "8.bias"}
    optimizer = load_checkpoint(tmp_path / "r/checkpoints")[1]["optimizer"]
    num_learned = len([name for name, _ in build(CNN).named_parameters()]) - 4
    assert [len(group["params"]) for group in optimizer["param_groups"]] == [num_learned]


def build(student: dict[str, Any]) -> nn.Module:
    return build_student(digits_run(student=student).student, Network.of("image", (1, 8, 8), 10), 0)


def test_batch_norms_of_a_frozen_module_compute_as_in_an_evaluation_and_others_do_not() -> None:
    model = nn.ModuleDict({"body": nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)), "head": nn.BatchNorm1d(2)})
    freeze(model, ["body", "head.weight"])
    samples = torch.randn(8, 2, generator=torch.Generator().manual_seed(0))
    for _ in range(2):
        model.train()
        given = model["body"](samples)
        assert torch.equal(given, model["body"][0](samples) / torch.tensor(1 + 1e-5).sqrt())
        model["head"](samples)
    assert model["body"][1].running_mean.tolist() == [0, 0]
    assert model["head"].running_mean.abs().sum() > 0


def test_a_frozen_run_that_is_resumed_has_the_same_bits(tmp_path: Path) -> None:
    def steps(count: int) -> RunSettings:
        return cnn_run(
            student={"frozen": ["0", "1"]},
            train={"batch_size": 50, "steps": count},
            schedule={"name": "constant", "warmup": 3},
            optimizer={"name": "adamw", "lr": 0.01, "groups": [{"match": ["*.bias"], "lr": 0.1, "weight_decay": 0.0}]},
        )

    run(tmp_path / "r", steps(5))
    assert run(tmp_path / "r", steps(11)).weights_sha256 == run(tmp_path / "straight", steps(11)).weights_sha256


@pytest.mark.parametrize(
    ("frozen", "says"),
    [
        (["8.wieght"], r"there is no '8\.wieght' in the network: did you mean '8\.weight'\?"),
        ([""], "there is no ''"),
        (["0", "1", "3", "4", "8", "11"], "nothing is left to learn"),
    ],
)
def test_what_cannot_be_frozen_is_one_line(tmp_path: Path, frozen: list[str], says: str) -> None:
    with pytest.raises(ConfigError, match=rf"\[student\] frozen: {says}"):
        run(tmp_path / "r", cnn_run(student={"frozen": frozen}))
    assert not (tmp_path / "r").exists()


class TwoHeads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.other = nn.Linear(64, 10), nn.Linear(64, 10)

    def forward(self, samples: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"logits": self.one(samples.flatten(1)), "other": self.other(samples.flatten(1))}


def two_heads(input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
    return TwoHeads()


def test_losses_that_none_of_what_learns_has_a_part_in_are_refused_before_a_step(tmp_path: Path) -> None:
    student = {"name": f"{__name__}:two_heads", "frozen": ["one"]}
    document = digits_run().as_dict() | {"student": student}
    with pytest.raises(ConfigError, match=r"frozen: none of the \[\[losses\]\] depends on what learns"):
        run(tmp_path / "r", run_settings(document))
    assert not (tmp_path / "r").exists()


def groups(*entries: GroupSettings, name: str = "sgd", **params: Any) -> OptimizerSettings:
    return OptimizerSettings(name, 0.1, groups=entries, params=params)


def of(optimizer: torch.optim.Optimizer, model: nn.Module, **layers: nn.Module) -> list[set[str]]:
    """Names of the parameters of each group."""
    names = {each: name for name, each in model.named_parameters()}
    for key, layer in layers.items():
        names |= {each: f"projections.{key}.{name}" for name, each in layer.named_parameters()}
    return [{names[each] for each in group["params"]} for group in optimizer.param_groups]


def test_a_parameter_is_in_the_first_group_that_matches_and_all_others_in_the_last() -> None:
    model, layer = Reader(3, 20, 4, 1), nn.Linear(4, 6)
    settings = groups(
        GroupSettings(("*.bias", "*.2.*"), 0.5, {"weight_decay": 0.0}),
        GroupSettings(("projections.hint.*", "classifier.*"), params={"momentum": 0.0}),
        momentum=0.9,
        weight_decay=0.1,
    )
    optimizer = build_optimizer(settings, model, {"hint": layer})
    assert of(optimizer, model, hint=layer) == [
        {
            *("encoder.layers.0.0.bias", "encoder.layers.0.2.weight", "encoder.layers.0.2.bias", "classifier.bias"),
            "projections.hint.bias",
        },
        {"projections.hint.weight", "classifier.weight"},
        {"embeddings.weight", "encoder.layers.0.0.weight"},
    ]
    keys = ("lr", "weight_decay", "momentum")
    assert [tuple(group[key] for key in keys) for group in optimizer.param_groups] == [
        (0.5, 0.0, 0.9), (0.1, 0.1, 0.0), (0.1, 0.1, 0.9),
    ]  # fmt: skip


def test_groups_that_have_all_parameters_leave_no_empty_one() -> None:
    model = nn.Linear(2, 2)
    optimizer = build_optimizer(groups(GroupSettings(("*",), 0.5), name="adamw"), model)
    assert of(optimizer, model) == [{"weight", "bias"}]


def split(parameters: list[nn.Parameter], lr: float, momentum: float = 0.0) -> torch.optim.Optimizer:
    """An optimizer of a user's own that makes several groups by itself; matrices learn at a tenth of the rate."""
    kinds = [([each for each in parameters if each.ndim > 1], lr / 10), ([e for e in parameters if e.ndim < 2], lr)]
    made = [{"params": some, "lr": rate} for some, rate in kinds if some]
    return torch.optim.SGD(made, lr=lr, momentum=momentum)


def forgetful(parameters: list[nn.Parameter], lr: float) -> torch.optim.Optimizer:
    return torch.optim.SGD([each for each in parameters if each.ndim > 1], lr=lr)


def test_an_optimizer_that_makes_groups_by_itself_makes_them_of_each_group() -> None:
    model = Reader(3, 20, 4, 1)
    settings = groups(GroupSettings(("encoder.*",), 0.5, {"momentum": 0.9}), name=f"{__name__}:split")
    optimizer = build_optimizer(settings, model)
    inner = "encoder.layers.0."
    assert of(optimizer, model) == [
        {f"{inner}0.weight"},
        {f"{inner}0.bias", f"{inner}2.weight", f"{inner}2.bias"},
        {"embeddings.weight", "classifier.weight"},
        {"classifier.bias"},
    ]
    rates = [(group["lr"], group["momentum"]) for group in optimizer.param_groups]
    assert rates == [(0.05, 0.9), (0.5, 0.9), (pytest.approx(0.01), 0.0), (0.1, 0.0)]


@pytest.mark.parametrize("entries", [(), (GroupSettings(("classifier.*",)),)], ids=["alone", "in groups"])
def test_an_optimizer_that_loses_a_parameter_is_refused_by_its_name(entries: tuple[GroupSettings, ...]) -> None:
    with pytest.raises(ConfigError, match=r"forgetful leaves out encoder\.layers\.0\.0\.bias: .* \[student\] frozen"):
        build_optimizer(groups(*entries, name=f"{__name__}:forgetful"), Reader(3, 20, 4, 1))


def test_what_is_frozen_is_in_no_group() -> None:
    model = Reader(3, 20, 4, 1)
    freeze(model, ["encoder"])
    optimizer = build_optimizer(groups(GroupSettings(("*.bias",))), model)
    assert of(optimizer, model) == [{"classifier.bias"}, {"embeddings.weight", "classifier.weight"}]


def test_the_schedule_is_a_factor_on_each_groups_own_rate() -> None:
    settings = cnn_run(
        optimizer={"name": "sgd", "lr": 0.1, "groups": [{"match": ["*.bias"], "lr": 0.4}]},
        schedule={"name": "cosine", "warmup": 3},
        train={"batch_size": 4, "steps": 8},
    )
    trainee = Trainee(settings, Network.of("image", (1, 8, 8), 10), 8, 1.0, CPU, resolve(settings, {}))
    batch = Batch(torch.arange(4), {"image": torch.rand(4, 1, 8, 8)}, torch.arange(4))
    trainee.take_step(batch, 0)
    assert [group["lr"] for group in trainee.optimizer.param_groups] == [0.4 / 4, 0.1 / 4]
    trainee.take_step(batch, 6)
    assert trainee.optimizer.param_groups[1]["lr"] == trainee.lr(6)
    assert trainee.optimizer.param_groups[0]["lr"] == pytest.approx(4 * trainee.lr(6))


@pytest.mark.parametrize("name", ["sgd", "adamw", "torch.optim:RMSprop"])
def test_groups_of_the_optimizers_own_settings_change_no_bit(tmp_path: Path, name: str) -> None:
    plain = {"name": name, "lr": 0.01, "weight_decay": 0.1} | ({"momentum": 0.9} if name == "sgd" else {})
    grouped = plain | {"groups": [{"match": ["*.bias"], "lr": 0.01}, {"match": ["0.*"], "weight_decay": 0.1}]}
    one, other = (
        run(tmp_path / each, cnn_run(optimizer=settings)) for each, settings in (("a", plain), ("b", grouped))
    )
    assert one.weights_sha256 == other.weights_sha256
    faster = plain | {"groups": [{"match": ["*.bias"], "lr": 0.05}]}
    assert run(tmp_path / "c", cnn_run(optimizer=faster)).weights_sha256 != one.weights_sha256
    with pytest.raises(CheckpointError, match=r"optimizer\.groups"):
        run(tmp_path / "c", cnn_run(optimizer=plain))


@pytest.mark.parametrize(
    ("entries", "says"),
    [
        ([{"match": ["*.bais"]}], r"0: match '\*\.bais' is no name of what learns: did you mean"),
        ([{"match": ["*.bias", "zzz*"]}], r"0: match 'zzz\*' is no name of what learns: choose one of"),
        ([{"match": ["0.*"]}, {"match": ["0.weight"]}], r"1: match: groups before it have all"),
        ([{"match": ["*"], "weight_decya": 0.1}], r"0: key 'weight_decya' is unknown: did you mean 'weight_decay'"),
        ([{"match": ["*"], "momentum": -1.0}], r"\[\[optimizer\.groups\]\] 0: Invalid momentum"),
        ([{"match": ["*"], "lr": 0.0}], "lr must be positive"),
        ([{"match": []}], "match is empty"),
        ([{"lr": 0.1}], "'match' is missing"),
        ([{"match": "*.bias"}], "match must be a list"),
    ],
)
def test_groups_that_make_no_sense_are_one_line(tmp_path: Path, entries: list[dict[str, Any]], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        run(tmp_path / "r", cnn_run(optimizer={"name": "sgd", "lr": 0.1, "groups": entries}))
    assert not (tmp_path / "r").exists()
