"""A checkpoint whose student has changed since is refused in one line that names what differs."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor, nn
from train_runs import digits_run, run

from schemas.errors import CheckpointError
from student_trainer.learning.students import STUDENTS, cnn
from student_trainer.learning.trainee import weights_sha256
from student_trainer.run.settings import RunSettings, run_settings
from student_trainer.trained import load_student


def layers(**found: nn.Module) -> nn.Module:
    return nn.Sequential(OrderedDict(flat=nn.Flatten(), **found))


def as_trained() -> nn.Module:
    return layers(hidden=nn.Linear(64, 8), between=nn.ReLU(), head=nn.Linear(8, 10))


class Reordered(nn.Module):
    """The same layers, the last registered first."""

    def __init__(self) -> None:
        super().__init__()
        self.head, self.hidden = nn.Linear(8, 10), nn.Linear(64, 8)

    def forward(self, samples: Tensor) -> Tensor:
        logits: Tensor = self.head(self.hidden(samples.flatten(1)).relu())
        return logits


def frozen() -> nn.Module:
    model = as_trained()
    next(model.parameters()).requires_grad_(False)
    return model


class Choosy(nn.Module):
    """Loads nothing, and says so in its own way."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.head = nn.Linear(64, 8), nn.Linear(8, 10)

    def forward(self, samples: Tensor) -> Tensor:
        logits: Tensor = self.head(self.hidden(samples.flatten(1)))
        return logits

    def load_state_dict(self, *_: Any, **__: Any) -> Any:
        raise KeyError("no")


_build: Callable[[], nn.Module] = as_trained


def own_student(input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
    """As a file of a user's that is edited between two processes."""
    return _build()


@pytest.fixture
def edit(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], nn.Module]], None]:
    import test_weights  # as the run finds it: pytest's own import may be another module

    return lambda build: monkeypatch.setattr(test_weights, "_build", build)


def own_run(steps: int = 12) -> RunSettings:
    document = digits_run(train={"steps": steps}).as_dict() | {"student": {"name": "test_weights:own_student"}}
    return run_settings(document)


def refused(act: Callable[[], Any], name: str) -> str:
    with pytest.raises(CheckpointError) as caught:
        act()
    text = str(caught.value)
    assert "\n" not in text
    assert f"checkpoints/step-00000012: does not fit the student {name} that its settings make now: " in text
    assert "bring back the version that it was trained with, or train anew" in text
    return text


EDITS: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "wider": (
        lambda: layers(hidden=nn.Linear(64, 16), between=nn.ReLU(), head=nn.Linear(16, 10)),
        "hidden.weight was (8, 64), is (16, 64) (and 2 more)",
    ),
    "renamed": (
        lambda: layers(inner=nn.Linear(64, 8), between=nn.ReLU(), head=nn.Linear(8, 10)),
        "inner.weight was not there, is (8, 64) (and 3 more)",
    ),
    "less": (
        lambda: layers(hidden=nn.Linear(64, 8), between=nn.ReLU(), head=nn.Linear(8, 10, bias=False)),
        "head.bias was (10,), is not there",
    ),
    "more": (
        lambda: layers(hidden=nn.Linear(64, 8), between=nn.BatchNorm1d(8), head=nn.Linear(8, 10)),
        "between.weight was not there, is (8,) (and 4 more)",
    ),
    "choosy": (Choosy, "KeyError: 'no'"),
}


@pytest.mark.parametrize("name", EDITS)
def test_an_edited_student_does_not_take_its_old_weights(
    tmp_path: Path, edit: Callable[[Callable[[], nn.Module]], None], name: str
) -> None:
    run(tmp_path / "r", own_run())
    build, says = EDITS[name]
    edit(build)
    for act in (lambda: load_student(tmp_path / "r"), lambda: run(tmp_path / "r", own_run(20))):
        text = refused(act, "test_weights:own_student")
        assert f"make now: {says}. Probably the code of test_weights:own_student has changed" in text


@pytest.mark.parametrize(
    ("build", "says"),
    [
        (Reordered, "make now: its weights have another order. "),
        (frozen, "make now: its optimizer does not take the saved state (loaded state dict contains a parameter group"),
    ],
)
def test_a_resume_refuses_what_an_evaluation_may_take(
    tmp_path: Path, edit: Callable[[Callable[[], nn.Module]], None], build: Callable[[], nn.Module], says: str
) -> None:
    begun = run(tmp_path / "r", own_run())
    edit(build)
    assert weights_sha256(load_student(tmp_path / "r").model) == begun.weights_sha256
    assert says in refused(lambda: run(tmp_path / "r", own_run(20)), "test_weights:own_student")


def test_a_default_of_a_student_of_ours_that_has_changed_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    document = digits_run().as_dict() | {"student": {"name": "cnn", "channels": [4], "hidden": 8}}
    settings = run_settings(document)
    with monkeypatch.context() as before:
        before.setitem(STUDENTS, "cnn", partial(cnn, pool=64))  # all places of 8 x 8, as before there was a pool
        run(tmp_path / "r", settings)
    longer = run_settings(document | {"train": document["train"] | {"steps": 20}})
    for act in (lambda: load_student(tmp_path / "r"), lambda: run(tmp_path / "r", longer)):
        text = refused(act, "cnn")
        assert "make now: 4.weight was not there, is (8, 64) (and 7 more). " in text
        assert "another version of Distillog builds cnn otherwise (a default, as of cnn's pool, has changed)" in text


def test_a_shape_that_the_first_sample_gives_differs_from_none(
    tmp_path: Path, edit: Callable[[Callable[[], nn.Module]], None]
) -> None:
    begun = run(tmp_path / "r", own_run())
    edit(lambda: layers(hidden=nn.LazyLinear(8), between=nn.ReLU(), head=nn.Linear(8, 10)))
    assert weights_sha256(load_student(tmp_path / "r").model) == begun.weights_sha256
    edit(lambda: layers(inner=nn.LazyLinear(8), between=nn.ReLU(), head=nn.Linear(8, 10)))
    text = refused(lambda: load_student(tmp_path / "r"), "test_weights:own_student")
    assert "inner.weight was not there, is (8, 64) (and 3 more)" in text
    edit(lambda: layers(hidden=nn.LazyLinear(8), between=nn.ReLU(), head=nn.Linear(8, 9)))
    text = refused(lambda: load_student(tmp_path / "r"), "test_weights:own_student")
    assert "head.weight was (10, 8), is (9, 8) (and 1 more)" in text
