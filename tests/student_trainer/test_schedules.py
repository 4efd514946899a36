from __future__ import annotations

import warnings

import pytest
import torch

from schemas.errors import ConfigError
from student_trainer.learning.schedules import SCHEDULES, build_schedule
from student_trainer.run.choices import Choice


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("total", [1, 2, 3, 10, 1000])
def test_a_factor_stays_between_zero_and_one(name: str, total: int) -> None:
    schedule = build_schedule(Choice(name), total)
    assert all(0 <= schedule(step) <= 1 for step in range(total))


@pytest.mark.parametrize("name", ["constant", "cosine", "linear"])
def test_a_warm_up_rises_and_reaches_the_peak(name: str) -> None:
    schedule = build_schedule(Choice(name, {"warmup": 4}), 20)
    factors = [schedule(step) for step in range(5)]
    assert factors == sorted(factors)
    assert factors[0] > 0
    assert factors[4] == 1


def test_cosine_ends_at_its_floor() -> None:
    schedule = build_schedule(Choice("cosine", {"floor": 0.1}), 50)
    assert schedule(0) == 1
    assert schedule(49) == pytest.approx(0.1)


def test_linear_goes_from_its_start_to_its_end_and_stays_there() -> None:
    rise = build_schedule(Choice("linear", {"start": 0.0, "end": 1.0, "steps": 5}), 20)
    assert [rise(step) for step in range(7)] == [0, 0.25, 0.5, 0.75, 1, 1, 1]
    fall = build_schedule(Choice("linear", {"end": 0.2, "warmup": 2}), 7)
    assert [fall(step) for step in range(7)] == pytest.approx([1 / 3, 2 / 3, 1, 0.8, 0.6, 0.4, 0.2])


@pytest.mark.parametrize("total", [10, 137, 2000])
def test_one_cycle_has_the_shape_of_torch(total: int) -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    reference = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=1.0, total_steps=total, cycle_momentum=False)
    schedule = build_schedule(Choice("one_cycle"), total)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # torch asks for optimizer.step() between
        for step in range(total):
            assert schedule(step) == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-9, abs=1e-12)
            if step + 1 < total:
                reference.step()


def halves(step: int, total: int, every: int) -> float:
    return float(0.5 ** (step // every))


def broken(step: int, total: int) -> float:
    raise KeyError("no such step")


def test_a_schedule_of_ones_own_is_imported() -> None:
    schedule = build_schedule(Choice(f"{__name__}:halves", {"every": 2}), 6)
    assert [schedule(step) for step in range(6)] == [1.0, 1.0, 0.5, 0.5, 0.25, 0.25]


@pytest.mark.parametrize(
    ("choice", "says"),
    [
        (Choice("cosin"), "did you mean 'cosine'?"),
        (Choice("cosine", {"warmpu": 3}), "did you mean 'warmup'?"),
        (Choice("cosine", {"floor": -1.0}), "negative"),
        (Choice("one_cycle", {"div_factor": 0}), "one_cycle"),
        (Choice("linear", {"end": -1.0}), "negative"),
        (Choice("linear", {"steps": -1}), "steps must not be negative"),
        (Choice("constant", {"warmup": "much"}), "constant"),
        (Choice("cosine", {"warmup": 10}), "does not end within the run's 10"),
        (Choice(f"{__name__}:broken"), "KeyError"),
        (Choice("nowhere:at_all"), "cannot be imported"),
    ],
)
def test_a_schedule_that_makes_no_sense_is_refused(choice: Choice, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        build_schedule(choice, 10)
