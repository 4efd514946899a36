"""Several teachers in one loss: one target of their mean, or of each sample the best one's alone."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional
from train_runs import digits_run

from schemas.codecs import CODECS, CodecSpec, encode_values
from schemas.errors import ConfigError
from student_trainer.learning.ensembles import chosen_teacher, mean_target
from student_trainer.learning.losses import need_labels
from student_trainer.learning.positions import PositionTarget
from student_trainer.learning.targets import DenseTarget, Target, TargetSpec, target_of
from student_trainer.learning.terms import resolve
from student_trainer.learning.total import total_loss
from student_trainer.run.settings import RunSettings, run_settings

B, C = 6, 5
SHARES = (0.25, 0.75)
DENSE = TargetSpec("logits", (C,), C, CodecSpec(), default=True)
TOPK = replace(DENSE, codec=CodecSpec("topk", 2, (1.0, 2.0)))
MASKED = replace(DENSE, positions="mask", places=(3,))
FEATURES = TargetSpec("features", (4,), 0, CodecSpec())


def draw(seed: int, *shape: int) -> Tensor:
    return torch.tensor(np.random.default_rng(seed).normal(0, 2, shape or (B, C)).astype(np.float32))


def stored(logits: Tensor, spec: CodecSpec) -> Target:
    """What a loss sees of logits that travelled by a codec."""
    codec = CODECS[spec.name]
    rows = codec.decode(encode_values(logits.numpy(), spec, C), C)
    columns = {name: torch.tensor(np.asarray(column)) for name, column in rows.columns.items()}
    return target_of(rows, columns).widened()


def run(*teachers: str, weights: bool = True, **loss: Any) -> RunSettings:
    document = digits_run().as_dict() | {"source": "stream", "data": {"stream": "s"}, "evaluation": {}}
    named = [{"name": name, "weight": weight} for name, weight in zip(teachers, (1.0, 3.0), strict=False)]
    document["teachers"] = named if weights else [{"name": name} for name in teachers]
    return run_settings(document | {"losses": [{"name": "forward_kl", **loss}], "student": {"name": "linear"}})


@given(st.integers(0, 1 << 30), st.sampled_from([1.0, 2.0, 4.0]))
def test_a_mean_is_that_of_the_probabilities_at_the_losss_temperature_or_of_the_logits(seed: int, t: float) -> None:
    a, b = draw(seed), 20 * draw(seed + 1)
    targets = [DenseTarget(a), DenseTarget(b)]
    of_probabilities = mean_target(targets, SHARES, "probabilities", t).logits / t
    expected = 0.25 * functional.softmax(a.double() / t, dim=1) + 0.75 * functional.softmax(b.double() / t, dim=1)
    assert torch.allclose(of_probabilities.double().softmax(1), expected, atol=1e-6)
    of_logits = mean_target(targets, SHARES, "logits", t).logits
    assert torch.allclose(of_logits, 0.25 * a + 0.75 * b, atol=1e-5)


def test_codecs_that_hold_all_classes_give_the_same_mean() -> None:
    a, b = draw(0), draw(1)
    for mean in ("probabilities", "logits"):
        exact = mean_target([DenseTarget(a), DenseTarget(b)], SHARES, mean, 2.0).logits.softmax(1)
        halves = [stored(each, CodecSpec("float16")) for each in (a, b)]
        assert torch.allclose(mean_target(halves, SHARES, mean, 2.0).logits.softmax(1), exact, atol=2e-3)


def test_of_positions_the_mean_is_of_each_position() -> None:
    at, counts = torch.tensor([0, 2, 3]), torch.tensor([1, 2])
    a, b = (PositionTarget(DenseTarget(draw(seed, 3, C)), "mask", (2,), at, counts, 1.5) for seed in (0, 1))
    joined = mean_target([a, b], (0.5, 0.5), "logits", 1.0)
    assert isinstance(joined, PositionTarget)
    assert joined.field == "mask"
    assert torch.allclose(joined.logits, (a.logits + b.logits) / 2)


@pytest.mark.parametrize("mean", ["probabilities", "logits"])
def test_a_runs_loss_with_a_mean_is_one_loss_against_it_and_no_mean_of_losses(mean: str) -> None:
    specs = {"a.logits": DENSE, "b.logits": DENSE}
    targets: dict[str, Target] = {"a.logits": DenseTarget(draw(0)), "b.logits": DenseTarget(draw(1))}
    student, labels = draw(2).requires_grad_(), torch.full((B,), -1)

    def rows(**loss: Any) -> Tensor:
        terms = resolve(run("a", "b", temperature=2.0, **loss), specs)
        return total_loss(terms, 1.0)({"logits": student}, targets, labels, None)[1]["forward_kl"]

    joined = mean_target(list(targets.values()), SHARES, mean, 2.0)
    (alone,) = resolve(run("a", temperature=2.0), {"a.logits": DENSE})
    against = alone.loss.rows(student, joined, labels, 2.0)
    assert torch.allclose(rows(mean=mean), against)
    assert not torch.allclose(rows(mean=mean), rows())


def test_of_each_sample_the_surer_teacher_teaches_or_who_knows_its_label() -> None:
    a = torch.tensor([[9.0, 0, 0, 0, 0], [1, 0, 0, 0, 0], [4, 0, 0, 0, 0], [3, 0, 0, 0, 0]])
    b = torch.tensor([[0, 2.0, 0, 0, 0], [0, 5, 0, 0, 0], [0, 0, 9, 0, 0], [3, 0, 0, 0, 0]])
    labels = torch.tensor([-1, 0, 0, -1])
    for spec in (CodecSpec(), CodecSpec("float16"), CodecSpec("topk", 3, (1.0,))):
        targets = [stored(each, spec) for each in (a, b)]
        assert chosen_teacher(targets, labels, "confidence").tolist() == [0, 1, 1, 0]
        assert chosen_teacher(targets, labels, "label").tolist() == [0, 0, 0, 0]
        assert chosen_teacher(targets[::-1], labels, "label").tolist() == [1, 1, 1, 0]


def test_a_label_that_no_codec_kept_is_as_good_as_none() -> None:
    a, b = torch.tensor([[5.0, 4, 0, 0, 0]]), torch.tensor([[9.0, 4, 0, 0, 0]])
    targets = [stored(each, CodecSpec("topk", 2, (1.0,))) for each in (a, b)]
    assert chosen_teacher(targets, torch.tensor([4]), "label").tolist() == [1]
    assert chosen_teacher(targets, torch.tensor([1]), "label").tolist() == [0]


def test_a_runs_loss_with_a_choice_is_the_chosen_teachers_row_and_its_gradient_of_that_alone() -> None:
    a, b, student = draw(0), draw(1), draw(2).requires_grad_()
    targets: dict[str, Target] = {"a.logits": DenseTarget(a), "b.logits": DenseTarget(b)}
    specs, labels = {"a.logits": DENSE, "b.logits": DENSE}, torch.full((B,), -1)
    terms = resolve(run("a", "b", weights=False, choose="confidence"), specs)
    loss, rows = total_loss(terms, 1.0)({"logits": student}, targets, labels, None)
    loss.backward()
    surer = torch.where((a.softmax(1).amax(1) >= b.softmax(1).amax(1))[:, None], a, b)
    alone = functional.kl_div(student.log_softmax(1), surer.softmax(1), reduction="none").sum(1)
    assert torch.allclose(rows["forward_kl"], alone, atol=1e-5)
    assert student.grad is not None
    assert torch.allclose(student.grad, (student.softmax(1) - surer.softmax(1)).detach() / B, atol=1e-6)


REFUSED: dict[str, tuple[dict[str, Any], dict[str, TargetSpec], str]] = {
    "a mean of topk": ({"mean": "logits"}, {"b.logits": TOPK}, "the codec of b.logits keeps only some"),
    "a mean of features": (
        {"name": "mse", "against": "hidden", "mean": "logits"},
        {"a.hidden": FEATURES, "b.hidden": FEATURES},
        'mean = "logits" is of classes that exclude one another, but a.hidden holds features',
    ),
    "no true logits": ({"name": "logit_mse", "mean": "probabilities"}, {}, 'no true logits; say mean = "logits"'),
    "a class map": ({"mean": "logits"}, {"b.logits": replace(DENSE, classes=(0, 1))}, "b.logits has a class map"),
    "weights of a choice": ({"choose": "confidence"}, {}, r"leave out the weights in \[\[teachers\]\]"),
    "a choice without a tail": (
        {"choose": "confidence", "temperature": 2.0},
        {"b.logits": replace(TOPK, codec=CodecSpec("topk", 2, (2.0,)))},
        "needs probabilities at temperature 1",
    ),
    "a choice by draws": (
        {"name": "sampled_cross_entropy", "choose": "confidence"},
        {name: replace(DENSE, codec=CodecSpec("sampled", 9)) for name in ("a.logits", "b.logits")},
        "a.logits holds draws of them",
    ),
    "a choice of positions": (
        {"choose": "confidence"},
        {"a.logits": MASKED, "b.logits": MASKED},
        "one teacher for each sample, but a.logits has several rows",
    ),
    "other positions": (
        {"mean": "logits"},
        {"a.logits": MASKED, "b.logits": replace(MASKED, positions="other")},
        "compares teachers on the same positions",
    ),
    "labels": ({"name": "cross_entropy", "mean": "logits"}, {}, "learns from labels: leave out `mean`"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_makes_no_sense_of_the_targets_is_refused_by_name(name: str) -> None:
    loss, others, says = REFUSED[name]
    with pytest.raises(ConfigError, match=says) as caught:
        resolve(run("a", "b", **loss), {"a.logits": DENSE, "b.logits": DENSE, **others})
    assert "\n" not in str(caught.value)


def test_a_choice_by_label_needs_labels_and_looks_at_them() -> None:
    settings = run("a", "b", weights=False, choose="label")
    assert need_labels(settings)
    with pytest.raises(ConfigError, match="needs labels, but no sample shows one"):
        resolve(settings, {"a.logits": DENSE, "b.logits": DENSE}, has_labels=False)


@pytest.mark.parametrize(("key", "value"), [("mean", "median"), ("choose", "vote")])
def test_an_unknown_mean_or_choice_is_refused(key: str, value: str) -> None:
    with pytest.raises(ConfigError, match=f"{key} '{value}' is unknown"):
        run("a", **{key: value})


def test_a_mean_and_a_choice_exclude_one_another() -> None:
    with pytest.raises(ConfigError, match="mean and choose exclude one another"):
        run("a", mean="logits", choose="confidence")
