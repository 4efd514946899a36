"""The losses of a loop of one's own are those of a run, as means over the rows."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from schemas.codecs import CodecSpec
from schemas.errors import ConfigError
from schemas.records import Output
from student_trainer.learning import mean_losses
from student_trainer.learning.losses import LOSSES
from student_trainer.learning.targets import DenseTarget, FeatureTarget, Target, TopKTarget, target_of

B, C = 6, 5
CHANCE = np.random.default_rng(0)
TEACHER = (CHANCE.normal(size=(B, C)) * 3).astype(np.float32)
STUDENT = torch.from_numpy(CHANCE.normal(size=(B, C)).astype(np.float32))
LABELS = torch.tensor([0, 4, -1, 2, -1, 1])
WEIGHTS = torch.tensor([1.0, 0.0, 1.0, 0.5, 1.0, 1.0])


def target(codec: str) -> Target:
    rows = Output.of("logits", TEACHER, CodecSpec.parse(codec)).values()
    return target_of(rows, {name: torch.from_numpy(np.array(values)) for name, values in rows.columns.items()})


FEATURES = target_of(
    Output.of("hidden", TEACHER, CodecSpec(), classes=False).values(), {"values": torch.from_numpy(TEACHER)}
)
DENSE, TOPK = target("float16"), target("topk:k=2,temperatures=1|2")


def mean(name: str, against: Target, **more: Any) -> Tensor:
    loss: Callable[..., Tensor] = getattr(mean_losses, name)
    if "temperature" in inspect.signature(loss).parameters:
        more = {"temperature": 2.0} | more
    if name != "cross_entropy" and "labels" in inspect.signature(loss).parameters:
        more = {"labels": LABELS} | more
    return loss(STUDENT, LABELS if name == "cross_entropy" else against, **more)


def mean_of_rows(name: str, against: Target, weights: Tensor | None) -> Tensor:
    """By the function of a run; where it compares rows, of those alone whose weight is not 0."""
    loss, weighed = LOSSES[name], torch.ones(B) if weights is None else weights
    if not loss.batchwise:
        return (loss.function(STUDENT, against.widened(), LABELS, 2.0) * weighed).sum() / B
    kept = weighed > 0
    soft = FeatureTarget(against.features[kept]) if "features" in loss.needs else DenseTarget(against.logits[kept])
    return (loss.function(STUDENT[kept], soft.widened(), LABELS[kept], 2.0) * weighed[kept]).sum() / B


@pytest.mark.parametrize(
    "name", [name for name in LOSSES if not {"features", "multilabel", "draws"} & LOSSES[name].needs]
)
@pytest.mark.parametrize("weights", [None, WEIGHTS], ids=["no weights", "weights"])
@pytest.mark.parametrize("against", [DENSE, TOPK], ids=["dense", "top-k"])
def test_a_loss_is_the_mean_of_a_runs_rows_over_all_rows(name: str, weights: Tensor | None, against: Target) -> None:
    if against is TOPK and "dense" in LOSSES[name].needs:
        with pytest.raises(ConfigError, match="keeps 2 of 5 classes"):
            mean(name, against, weights=weights)
        return
    torch.testing.assert_close(mean(name, against, weights=weights), mean_of_rows(name, against, weights))


OF_ROWS = {name for name, loss in LOSSES.items() if {"features", "multilabel"} & loss.needs} - {"attention_transfer"}


@pytest.mark.parametrize("name", sorted(OF_ROWS))
@pytest.mark.parametrize("weights", [None, WEIGHTS], ids=["no weights", "weights"])
def test_a_loss_on_features_is_the_mean_of_a_runs_rows_too(name: str, weights: Tensor | None) -> None:
    torch.testing.assert_close(mean(name, FEATURES, weights=weights), mean_of_rows(name, FEATURES, weights))
    with pytest.raises(ConfigError, match="features"):
        mean("forward_kl", FEATURES)


@pytest.mark.parametrize("codec", ["float32", "topk:k=2,temperatures=1|2"])
def test_a_row_with_classes_at_several_places_costs_their_mean(codec: str) -> None:
    places = np.random.default_rng(1).normal(size=(B, 3, 2, C)).astype(np.float32)
    rows = Output.of("logits", places, CodecSpec.parse(codec)).values()
    of_all = target_of(rows, {name: torch.from_numpy(np.array(values)) for name, values in rows.columns.items()})
    student = torch.from_numpy(np.random.default_rng(2).normal(size=places.shape).astype(np.float32))
    flat = LOSSES["forward_kl"].function(student.reshape(-1, C), of_all.flat().widened(), LABELS, 2.0)
    expected = (flat.reshape(B, -1).mean(dim=1) * WEIGHTS).sum() / B
    torch.testing.assert_close(mean_losses.forward_kl(student, of_all, 2.0, WEIGHTS), expected)


def test_a_target_knows_the_shape_of_what_is_compared_with_it() -> None:
    assert isinstance(DENSE, DenseTarget)
    assert isinstance(TOPK, TopKTarget)
    assert DENSE.shape == TOPK.shape == (B, C)


@pytest.mark.parametrize("against", [DENSE, TOPK], ids=["dense", "top-k"])
@pytest.mark.parametrize("logits", [STUDENT[:, :1], STUDENT[:1], torch.zeros(B, C + 1), STUDENT[0]])
def test_logits_of_another_shape_are_refused_instead_of_spread_out(logits: Tensor, against: Target) -> None:
    with pytest.raises(ConfigError, match=r"the student's output is .*, the target \[6, 5\]"):
        mean_losses.forward_kl(logits, against)


def test_other_arguments_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"the student's output is \[6, 5\], labels \[2\]"):
        mean_losses.cross_entropy(STUDENT, LABELS[:2])
    with pytest.raises(ConfigError, match=r"weights are \[6, 1\]: one for each of the 6 rows"):
        mean_losses.forward_kl(STUDENT, DENSE, weights=WEIGHTS[:, None])
    for temperature in (0.0, -1.0, float("nan")):
        with pytest.raises(ConfigError, match="temperature must be positive"):
            mean_losses.forward_kl(STUDENT, DENSE, temperature)
    with pytest.raises(ConfigError, match=r"temperature 3\.0 has no stored tail mass"):
        mean_losses.forward_kl(STUDENT, TOPK, 3.0)


def test_maps_and_relations_take_rows_of_another_width() -> None:
    maps, narrow = torch.rand(B, 4, 3, 2), torch.rand(B, 2, 3, 2)
    same = mean_losses.attention_transfer(narrow, FeatureTarget(narrow.square().mean(dim=1)))
    assert same.item() == pytest.approx(0, abs=1e-12)  # as `attention@1` stores it
    assert mean_losses.attention_transfer(narrow, FeatureTarget(maps)) > 0
    for refused, of in ((maps[..., :1], maps), (maps[:2], maps)):
        with pytest.raises(ConfigError, match=r"the student's output is .*, the target \[6, 4, 3, 2\]"):
            mean_losses.attention_transfer(refused, FeatureTarget(of))
    with pytest.raises(ConfigError, match=r"attention is of rows \[N, C, H, W\], or \[N, H, W\]"):
        mean_losses.attention_transfer(maps[:, :, 0, 0], FeatureTarget(maps))
    assert mean_losses.similarity(narrow, FeatureTarget(maps)) > 0
    with pytest.raises(ConfigError, match=r"the student's output is \[2, 2, 3, 2\], the target"):
        mean_losses.similarity(narrow[:2], FeatureTarget(maps))


def test_parameters_and_labels_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ConfigError, match="jsd: beta has to be a number above 0 and below 1, is 0"):
        mean_losses.jsd(STUDENT, DENSE, beta=0)
    with pytest.raises(ConfigError, match="cross_entropy: label_smoothing has to be"):
        mean_losses.cross_entropy(STUDENT, LABELS, label_smoothing=-0.1)
    with pytest.raises(ConfigError, match="labels are -1 to 5, and the student's 5 classes 0 to 4"):
        mean_losses.dkd(STUDENT, DENSE, torch.tensor([0, 5, -1, 2, -1, 1]))
    with pytest.raises(ConfigError, match=r"the student's output is \[6, 5\], labels \[2\]"):
        mean_losses.nkd(STUDENT, DENSE, LABELS[:2])


def test_labels_of_a_part_of_the_data_count_for_all_of_it() -> None:
    whole = mean_losses.cross_entropy(STUDENT, LABELS)
    torch.testing.assert_close(mean_losses.cross_entropy(STUDENT, LABELS, labelled_fraction=0.25), 4 * whole)


def test_kept_classes_are_counted_at_several_places_too() -> None:
    places = Output.of("logits", TEACHER.reshape(2, 3, C), CodecSpec.parse("topk:k=2")).values()
    kept = target_of(places, {name: torch.from_numpy(np.array(values)) for name, values in places.columns.items()})
    with pytest.raises(ConfigError, match="keeps 2 of 5 classes"):
        kept.logits  # noqa: B018


@pytest.mark.parametrize("shape", [(5,), (5, 3)])
@pytest.mark.parametrize("label", [4, -2])
def test_a_label_of_no_class_is_refused(shape: tuple[int, ...], label: int) -> None:
    labels = torch.zeros(shape, dtype=torch.int64)
    labels[-1] = label
    says = f"labels are {min(label, 0)} to {max(label, 0)}, and the student's 4 classes 0 to 3: give -1 where"
    with pytest.raises(ConfigError, match=says):
        mean_losses.cross_entropy(torch.zeros(*shape, 4), labels)


def test_labels_of_positions_count_alike_on_all_processes_that_say_how_many_there_are() -> None:
    labels = torch.tensor([[0, -1, 2], [-1, -1, -1], [1, 3, 4], [-1, -1, 0]])
    logits = torch.randn(4, 3, C, generator=torch.Generator().manual_seed(3))
    whole = mean_losses.cross_entropy(logits, labels)
    density = (labels >= 0).sum() / 4
    of_ranks = [
        mean_losses.cross_entropy(logits[part], labels[part], density=density) for part in (slice(0, 2), slice(2, 4))
    ]
    torch.testing.assert_close(torch.stack(of_ranks).mean(), whole)
    assert mean_losses.cross_entropy(logits[1:2], labels[1:2], density=0) == 0
