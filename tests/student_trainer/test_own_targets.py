"""A student that teaches itself: the deeper exit the shallower one, the average and the past the present."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from train_runs import digits_run, run

from schemas.errors import ConfigError
from student_trainer.batches import Batch
from student_trainer.learning.average import averaged
from student_trainer.learning.students import Network
from student_trainer.learning.terms import resolve
from student_trainer.learning.trainee import Trainee
from student_trainer.run.settings import RunSettings, run_settings

IMAGE = Network.of("image", (1, 8, 8), 10)
ROWS = 8
HARD = {"name": "cross_entropy"}


class Exits(nn.Module):
    """Two exits, the deeper one behind dropout and a batch norm."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU())
        self.exit = nn.Linear(16, num_classes)
        self.deep = nn.Sequential(nn.Linear(16, 16), nn.BatchNorm1d(16), nn.Dropout(0.2), nn.Linear(16, num_classes))

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        hidden = self.trunk(image)
        return {"logits": self.deep(hidden), "exit": self.exit(hidden), "hidden": hidden}


def exits(input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
    return Exits(num_classes)


def exits_run(*losses: dict[str, Any], **train: Any) -> RunSettings:
    document = digits_run(train={"batch_size": ROWS, **train}).as_dict()
    document |= {"student": {"name": "test_own_targets:exits"}, "losses": [HARD, *losses]}
    return run_settings(document)


class InPlace(Exits):
    def forward(self, image: Tensor) -> dict[str, Tensor]:
        return super().forward(image.mul_(0.5))


def in_place(input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
    return InPlace(num_classes)


def against(own: str, **keys: Any) -> dict[str, Any]:
    return {"name": "forward_kl", "on": "exit", "against": own, "temperature": 2.0, "weight": 0.5, **keys}


def batch(step: int) -> Batch:
    generator = torch.Generator().manual_seed(step)
    images = torch.randn(ROWS, 1, 8, 8, generator=generator)
    return Batch(torch.arange(ROWS), {"image": images}, torch.randint(10, (ROWS,), generator=generator))


def trainee(settings: RunSettings, epoch_rows: int = 10**6) -> Trainee:
    terms = resolve(settings, {})
    return Trainee(settings, IMAGE, 40, 1.0, torch.device("cpu"), terms, epoch_rows=epoch_rows)


def kl(teacher: Tensor, student: Tensor, temperature: float = 2.0) -> Tensor:
    """T^2 KL(teacher || student), [B]."""
    soft = functional.log_softmax(teacher / temperature, dim=1)
    own = functional.log_softmax(student / temperature, dim=1)
    return temperature**2 * (soft.exp() * (soft - own)).sum(dim=1)


def gives(weights: dict[str, Tensor], step: int) -> dict[str, Tensor]:
    """What such weights give for a step's views in evaluation mode."""
    model = Exits(10)
    model.load_state_dict(weights)
    with torch.no_grad():
        found: dict[str, Tensor] = model.eval()(batch(step).inputs["image"])
        return found


def stepped(learner: Trainee, step: int) -> tuple[dict[str, Tensor], Tensor]:
    """Take a step; what the student gave in it, and the rows of its loss against itself."""
    shown: list[dict[str, Tensor]] = []
    hook = learner.model.register_forward_hook(lambda module, inputs, outputs: shown.append(outputs))
    rows = learner.take_step(batch(step), step).rows["forward_kl"]
    hook.remove()
    return {name: each.detach() for name, each in shown[0].items()}, rows


def copied(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: each.clone() for name, each in state.items()}


def test_the_deeper_exit_is_a_constant_to_the_shallower_one() -> None:
    settings = exits_run(against("self.logits", weight=1.0))
    document = settings.as_dict() | {"losses": [against("self.logits", weight=1.0)]}
    learner = trainee(run_settings(document))
    before = copied(learner.model.state_dict())
    step = learner.take_step(batch(0), 0)
    assert step.loss > 0
    for name, each in learner.model.named_parameters():
        assert torch.equal(each, before[name]) == name.startswith("deep"), name


def test_a_shallow_feature_learns_from_a_deep_one_through_a_projection() -> None:
    wide = {"name": "mse", "on": "exit", "against": "self.hidden", "projection": "linear"}
    learner = trainee(exits_run(wide))
    (layer,) = learner._projections.values()
    assert isinstance(layer, nn.Linear)
    assert (layer.in_features, layer.out_features) == (10, 16)
    assert "mse" in learner.take_step(batch(0), 0).rows


def test_the_average_teaches_from_the_second_step_on_as_it_stands_before_it() -> None:
    learner = trainee(exits_run(against("average.logits"), ema=0.5))
    for step in range(4):
        before = copied(averaged(learner.state()))
        shown, rows = stepped(learner, step)
        if not step:
            assert not rows.any()
        else:
            torch.testing.assert_close(rows, kl(gives(before, step)["logits"], shown["exit"]))


def test_the_past_is_what_the_weights_were_when_the_last_epoch_ended() -> None:
    learner = trainee(exits_run(against("past.exit")), epoch_rows=20)
    after: list[dict[str, Tensor]] = []
    for step in range(9):
        shown, rows = stepped(learner, step)
        after.append(copied(learner.model.state_dict()))
        # Epochs of 20 rows end within the steps 2, 4 and 7, of 8 rows each.
        ended = next((end for end in (7, 4, 2) if end < step), None)
        if ended is None:
            assert not rows.any()
            assert "past" not in learner.state() or step == 2
        else:
            torch.testing.assert_close(rows, kl(gives(after[ended], step)["exit"], shown["exit"]))


def forty(folder: Path) -> Path:
    """40 samples: an epoch of 5 steps."""
    folder.mkdir()
    generator = np.random.default_rng(0)
    np.save(folder / "image.npy", generator.random((40, 1, 8, 8), dtype=np.float32))
    np.save(folder / "labels.npy", generator.integers(0, 10, 40))
    return folder


def test_a_student_that_changes_its_input_under_its_copies_is_refused_at_the_first_step() -> None:
    for own, train in (("past.logits", {}), ("average.logits", {"ema": 0.5}), ("self.logits", {})):
        document = exits_run(against(own), **train).as_dict() | {"student": {"name": "test_own_targets:in_place"}}
        learner = trainee(run_settings(document))
        if own == "self.logits":  # nobody else sees it
            learner.take_step(batch(0), 0)
            continue
        with pytest.raises(ConfigError, match="in_place: changes its input 'image' in place"):
            learner.take_step(batch(0), 0)


@pytest.mark.parametrize("step", [4, 5, 11])
def test_a_resumed_run_has_the_same_past_to_the_bit(tmp_path: Path, step: int) -> None:
    settings = exits_run(against("past.logits"), against("average.logits", key="mean"), ema=0.9, steps=12)
    document = settings.as_dict()
    document["data"] |= {"dataset": f"npy:{forty(tmp_path / 'data')}", "view": {"name": "none"}}
    document["checkpoint"] = {"every": 1, "keep": 99}
    settings = run_settings(document)
    whole = run(tmp_path / "r", settings)
    shutil.copytree(tmp_path / "r", tmp_path / "s")
    for place in (tmp_path / "s" / "checkpoints").iterdir():
        if int(place.name.removeprefix("step-")) > step:
            shutil.rmtree(place)
    again = run(tmp_path / "s", settings)
    assert again.weights_sha256 == whole.weights_sha256
    without = run(tmp_path / "t", run_settings(document | {"losses": [HARD]}))
    assert without.weights_sha256 != whole.weights_sha256


@pytest.mark.parametrize(
    ("losses", "train", "says"),
    [
        ([HARD, against("self.nothing")], {}, "against 'self.nothing': the student gives no 'nothing'"),
        ([HARD, against("self.exit")], {}, "is the output that the loss is on"),
        ([HARD, against("average.exit")], {}, r"keeps no average: say its decay by \[train\] ema"),
        ([against("past.exit")], {}, "the student has no past to begin with"),
        ([HARD, against("self.hidden")], {}, r"rows of \[N, 10\], against self.hidden of \[N, 16\]"),
        ([HARD, against("self.logits", mean="logits")], {}, "is one target: leave out `mean`"),
        ([HARD, against("self.logits") | {"name": "sampled_cross_entropy"}], {}, "is not stored: use forward_kl"),
    ],
)
def test_what_cannot_be_is_refused(losses: list[dict[str, Any]], train: dict[str, Any], says: str) -> None:
    document = exits_run(**train).as_dict() | {"losses": losses}
    with pytest.raises(ConfigError, match=says):
        trainee(run_settings(document))
