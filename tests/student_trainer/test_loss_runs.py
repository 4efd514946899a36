"""A run learns from losses of every kind together, with schedules, and goes on with the same bits."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from train_runs import digits_run, run

from schemas.codecs import CodecSpec, Dense, Features
from schemas.errors import ConfigError
from student_trainer.checkpoint import load_checkpoint
from student_trainer.learning.students import Network
from student_trainer.learning.targets import TargetSpec
from student_trainer.learning.terms import resolve
from student_trainer.learning.trainee import Trainee
from student_trainer.processes.world import Alone
from student_trainer.run.settings import RunSettings, run_settings
from student_trainer.sources.base import Cursor, LabelledOrder
from student_trainer.sources.dataset import DatasetSource
from student_trainer.trained import load_student

MAPS = (6, 4, 4)


class BrokenDigits:
    """Real digits, of which one in 331 cannot be decoded."""

    num_classes = 10

    def __init__(self) -> None:
        digits = load_digits()
        self.images, self.labels = digits.images.astype(np.float32) / 16, digits.target

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, sample_id: int) -> dict[str, Any]:
        if sample_id % 331 == 7:
            raise ValueError("cut short")
        return {"image": self.images[sample_id][None]}


class Student(nn.Module):
    """Channels and widths that are not the teacher's."""

    def __init__(self) -> None:
        super().__init__()
        self.maps = nn.Sequential(nn.Conv2d(1, 3, 3, padding=1, stride=2), nn.Tanh())
        self.head = nn.Linear(48, 10)

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        maps = self.maps(image)
        return {"logits": self.head(maps.flatten(1)), "maps": maps}


def student(input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
    return Student()


class Taught(DatasetSource):
    """A teacher that knows the labels, whose maps are the image's patches."""

    targets = MappingProxyType(
        {
            "t.logits": TargetSpec("logits", (10,), 10, CodecSpec(), default=True),
            "t.maps": TargetSpec("features", MAPS, 0, CodecSpec()),
        }
    )

    def orders(self, cursor: Cursor) -> Iterator[LabelledOrder]:  # type: ignore[override]
        digits = load_digits()
        for order in super().orders(cursor):
            ids = order.sample_ids
            logits = np.eye(10, dtype=np.float32)[digits.target[ids]] * 5 + np.sin(ids)[:, None].astype(np.float32)
            patches = digits.images[ids].reshape(-1, 4, 2, 4, 2).transpose(0, 2, 4, 1, 3).reshape(-1, 4, 4, 4) / 16
            maps = np.concatenate([patches, patches[:, :2]], axis=1).astype(np.float32)
            yield replace(order, targets={"t.logits": Dense(logits), "t.maps": Features(maps)})


RISE = {"name": "linear", "start": 0.0, "end": 1.0, "steps": 20}
OF_MAPS = {"on": "maps", "against": "maps"}
LOSSES = [
    {"name": "cross_entropy", "label_smoothing": 0.05},
    {"name": "forward_kl", "temperature": 2.0, "standardise": True},
    {"name": "jsd", "beta": 0.3},
    {"name": "dkd", "temperature": 4.0, "weight": 0.1, "weight_schedule": RISE},
    {"name": "nkd", "temperature": 2.0, "temperature_schedule": {"name": "linear", "end": 0.5}},
    {"name": "dist", "temperature": 2.0},
    {"name": "mse", "projection": "conv", **OF_MAPS},
    {"name": "attention_transfer", "weight": 10.0, **OF_MAPS},
    {"name": "rkd_distance", **OF_MAPS},
    {"name": "rkd_angle", **OF_MAPS},
    {"name": "similarity", "weight": 10.0, **OF_MAPS},
]


def of_all_kinds(**train: Any) -> RunSettings:
    document = digits_run(
        data={"dataset": f"{__name__}:BrokenDigits", "view": {"name": "none"}, "labelled": 1500, "stream": "s"},
        optimizer={"name": "torch.optim.NAdam", "lr": 0.01},
        schedule={"name": "linear", "warmup": 5},
        train={"steps": 40, "ema": 0.9, "batch_size": 32} | train,
        checkpoint={"every": 20},
    ).as_dict()
    document["optimizer"].pop("momentum")
    more = {"source": "stream", "student": {"name": f"{__name__}:student"}, "teachers": [{"name": "t"}]}
    return run_settings(document | more | {"losses": LOSSES})


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    path, settings = tmp_path_factory.mktemp("kinds") / "r", of_all_kinds()
    result = run(path, settings, Taught(settings))
    assert result.undecodable_rows > 0
    return path, result.weights_sha256


def test_a_run_learns_from_all_of_them(whole: tuple[Path, str]) -> None:
    lines = [json.loads(line) for line in (whole[0] / "metrics.jsonl").read_text().splitlines()]
    first, last = lines[0]["losses"], lines[-1]["losses"]
    assert set(first) == {str(loss["name"]) for loss in LOSSES}
    assert all(math.isfinite(value) for line in lines for value in line["losses"].values())
    fallen = {name for name in first if last[name] < first[name]}
    assert fallen >= set(first) - {"nkd", "rkd_angle", "rkd_distance", "similarity"}, (first, last)
    assert fallen & {"rkd_angle", "rkd_distance", "similarity"}


def test_it_goes_on_with_the_same_bits(tmp_path: Path, whole: tuple[Path, str]) -> None:
    path, settings = tmp_path / "r", of_all_kinds()
    shutil.copytree(whole[0], path)
    shutil.rmtree(path / "checkpoints/step-00000040")
    assert run(path, settings, Taught(settings)).weights_sha256 == whole[1]


def test_a_conv_projection_is_in_the_checkpoint_and_loads_as_one(whole: tuple[Path, str]) -> None:
    layer = load_student(whole[0]).projections["mse"].layer
    assert isinstance(layer, nn.Conv2d)
    saved = load_checkpoint(whole[0] / "checkpoints")[1]["projections"]["mse"]
    assert torch.equal(layer.weight, saved["weight"])
    assert layer.weight.shape == (6, 3, 1, 1)


def test_a_loss_that_compares_rows_is_refused_where_a_batch_is_learned_in_parts(tmp_path: Path) -> None:
    settings = of_all_kinds(micro_batch=16)
    says = (
        r"dist: compares the rows of a whole batch with one another, but \[train\] micro_batch has it learned in parts"
    )
    with pytest.raises(ConfigError, match=says):
        run(tmp_path / "r", settings, Taught(settings))


class Two(Alone):
    """As if there were another process."""

    size = 2


def test_a_loss_that_compares_positions_is_refused_on_several_processes_before_a_step() -> None:
    settings = of_all_kinds()
    of_positions = replace(Taught.targets["t.maps"], positions="chosen", places=(3,))
    terms = resolve(settings, {**Taught.targets, "t.maps": of_positions})
    network = Network.of("image", (1, 8, 8), 10)
    says = (
        "rkd_distance: compares the rows of a whole batch with one another, but each process has positions of its own"
    )
    with pytest.raises(ConfigError, match=says):
        Trainee(settings, network, 40, 1.0, torch.device("cpu"), terms, world=Two())
