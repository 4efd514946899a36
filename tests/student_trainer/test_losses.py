from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from schemas.codecs import CodecSpec, Dense, TopK
from schemas.errors import ConfigError
from schemas.records import Output
from student_trainer.learning.in_parts import refuse_in_parts
from student_trainer.learning.losses import LOSSES, NEEDS
from student_trainer.learning.losses.loss import Loss
from student_trainer.learning.targets import (
    DenseTarget,
    FeatureTarget,
    Target,
    TargetSpec,
    TopKTarget,
    target_name,
    target_of,
)
from student_trainer.learning.terms import resolve
from student_trainer.learning.total import total_loss
from student_trainer.run.settings import RunSettings, run_settings

B, C = 6, 11


def logits(seed: int, classes: int = C, spread: float = 3.0) -> Tensor:
    return torch.randn(B, classes, generator=torch.Generator().manual_seed(seed)) * spread


def dense(seed: int) -> DenseTarget:
    return DenseTarget(logits(seed))


def top_k(teacher: Tensor, k: int, temperature: float) -> TopKTarget:
    """As exact as float64 makes it: the wire's rounding is the codec's own test."""
    full = functional.log_softmax(teacher.double(), dim=1)
    indices = full.argsort(dim=1, descending=True, stable=True)[:, :k]
    softened = functional.log_softmax(teacher.double() / temperature, dim=1)
    tail = torch.logsumexp(softened.scatter(1, indices, -math.inf), dim=1)
    return TopKTarget(indices, full.gather(1, indices).float(), {temperature: tail.float()}, teacher.shape[1])


WITHOUT_SOFTMAX = {"features", "multilabel"}
OF_FEATURES = {name: min(WITHOUT_SOFTMAX & loss.needs) for name, loss in LOSSES.items() if WITHOUT_SOFTMAX & loss.needs}
"""Losses on what no softmax is taken of, and the kind of output that they take."""
LABELS = torch.tensor([0, -1, 3, 10, -1, 2])
WITHOUT_DRAWS = [name for name, loss in LOSSES.items() if "draws" not in loss.needs]
"""Those on draws alone are tested in test_sampled_targets.py."""


def kl(teacher: Tensor, student: Tensor, temperature: float) -> Tensor:
    p = functional.log_softmax(teacher.double() / temperature, dim=1)
    q = functional.log_softmax(student.double() / temperature, dim=1)
    return (p.exp() * (p - q)).sum(dim=1)


@pytest.mark.parametrize("name", WITHOUT_DRAWS)
def test_a_loss_is_one_finite_number_a_row_with_finite_gradients(name: str) -> None:
    student = logits(1).requires_grad_()
    target = FeatureTarget(logits(2)) if name in OF_FEATURES else dense(2)
    rows = LOSSES[name].function(student, target, LABELS, 2.0)
    assert rows.shape == (B,)
    rows.sum().backward()
    assert torch.isfinite(rows).all()
    assert student.grad is not None
    assert torch.isfinite(student.grad).all()


@pytest.mark.parametrize("name", sorted(set(WITHOUT_DRAWS) - OF_FEATURES.keys()))
def test_a_loss_does_not_see_a_shift_of_the_logits(name: str) -> None:
    target = dense(2)
    shifted = DenseTarget(target.logits + 7)
    before = LOSSES[name].function(logits(1), target, LABELS, 2.0)
    after = LOSSES[name].function(logits(1) - 5, shifted, LABELS, 2.0)
    torch.testing.assert_close(before, after, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", sorted(set(WITHOUT_DRAWS) - {each for each in LOSSES if LOSSES[each].batchwise}))
def test_a_loss_of_a_large_output_costs_the_same_and_keeps_little_for_its_gradient(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    loss = LOSSES[name]
    target: Target = FeatureTarget(logits(2)) if name in OF_FEATURES else dense(2)
    if loss.needs == {"teacher", "classes"}:
        target = top_k(logits(2), 4, 2.0)
    student = logits(1)
    output = student.clone().requires_grad_()
    if name == "attention_transfer":  # of maps
        target, output = FeatureTarget(logits(2)[..., None]), student[..., None].requires_grad_()

    def measured() -> tuple[Tensor, Tensor, int]:
        held: dict[int, int] = {}

        def hold(value: Tensor) -> Tensor:
            held[value.untyped_storage().data_ptr()] = value.untyped_storage().nbytes()
            return value

        with torch.autograd.graph.saved_tensors_hooks(hold, lambda value: value):
            rows = loss.rows(output, target, LABELS, 2.0)
        held.pop(output.untyped_storage().data_ptr(), None)
        (gradient,) = torch.autograd.grad((rows * torch.arange(1.0, B + 1)).sum(), output)
        return rows.detach(), gradient, sum(held.values())

    rows, gradient, _ = measured()
    monkeypatch.setattr("student_trainer.learning.losses.loss._AT_ONCE", 2 * C)
    rows_in_parts, gradient_in_parts, num_bytes = measured()
    torch.testing.assert_close(rows_in_parts, rows, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(gradient_in_parts, gradient, rtol=1e-5, atol=1e-7)
    assert num_bytes < output.nbytes / 2


def test_a_parameter_of_ones_own_loss_may_have_any_name_also_where_the_output_is_large(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """`checkpoint` has keywords of the same names."""

    def costs(
        output: Tensor, target: Target, labels: Tensor, temperature: float, debug: float, use_reentrant: float
    ) -> Tensor:
        return (debug * output - target.features).square().mean(dim=1) + use_reentrant

    def rows() -> Tensor:
        loss = Loss(costs, frozenset({"teacher", "features"}))
        return loss.rows(logits(1), FeatureTarget(logits(2)), LABELS, 1.0, debug=3.0, use_reentrant=1.0)

    whole = rows()
    monkeypatch.setattr("student_trainer.learning.losses.loss._AT_ONCE", 2 * C)
    torch.testing.assert_close(rows(), whole)


OF_NO_TEACHER_ALONE = {"nkd", "teacher_argmax", "sampled_cross_entropy", "cross_entropy"}
"""Cross entropies, which cost the teacher itself something."""


@pytest.mark.parametrize("name", sorted(LOSSES.keys() - OF_NO_TEACHER_ALONE))
def test_a_soft_loss_is_zero_for_the_teacher_itself(name: str) -> None:
    target = FeatureTarget(logits(2)) if name in OF_FEATURES else dense(2)
    rows = LOSSES[name].function(logits(2), target, LABELS, 3.0)
    rows = rows.mean() if LOSSES[name].batchwise else rows
    torch.testing.assert_close(rows, torch.zeros_like(rows), atol=1e-5, rtol=0)


@pytest.mark.parametrize("temperature", [1.0, 2.0, 4.0])
def test_forward_kl_is_t_squared_times_the_divergence(temperature: float) -> None:
    rows = LOSSES["forward_kl"].function(logits(1), dense(2), LABELS, temperature)
    torch.testing.assert_close(
        rows.double(), temperature**2 * kl(logits(2), logits(1), temperature), rtol=1e-4, atol=1e-5
    )


def bernoulli_kl(teacher: Tensor, student: Tensor, temperature: float) -> Tensor:
    p, q = (torch.distributions.Bernoulli(logits=each.double() / temperature) for each in (teacher, student))
    return torch.distributions.kl_divergence(p, q).sum(dim=-1)


@pytest.mark.parametrize("temperature", [1.0, 2.0, 4.0])
def test_binary_kl_is_t_squared_times_the_sum_of_each_classs_divergence(temperature: float) -> None:
    rows = LOSSES["binary_kl"].function(logits(1), FeatureTarget(logits(2)), LABELS, temperature)
    expected = temperature**2 * bernoulli_kl(logits(2), logits(1), temperature)
    torch.testing.assert_close(rows.double(), expected, rtol=1e-4, atol=1e-5)
    student = logits(1).requires_grad_()
    LOSSES["binary_kl"].function(student, FeatureTarget(logits(2)), LABELS, temperature).sum().backward()
    assert student.grad is not None
    gap = (student.detach() / temperature).sigmoid() - (logits(2) / temperature).sigmoid()
    torch.testing.assert_close(student.grad, temperature * gap, rtol=1e-4, atol=1e-5)


def test_binary_kl_is_finite_where_a_sigmoid_is_0_or_1() -> None:
    student = torch.tensor([[-1e4, 1e4, 0.0], [1e4, -1e4, 200.0]]).requires_grad_()
    rows = LOSSES["binary_kl"].function(student, FeatureTarget(-student.detach()), LABELS, 1.0)
    torch.testing.assert_close(rows, torch.tensor([2e4, 2e4 + 200]))
    rows.sum().backward()
    assert student.grad is not None
    assert student.grad.abs().tolist() == [[1, 1, 0], [1, 1, 1]]


def test_binary_kl_at_several_places_costs_their_mean() -> None:
    student, teacher = (logits(seed, classes=3 * C).reshape(B, 3, C) for seed in (1, 2))
    rows = LOSSES["binary_kl"].rows(student, FeatureTarget(teacher), LABELS, 2.0)
    expected = 4 * bernoulli_kl(teacher, student, 2.0).mean(dim=1)
    torch.testing.assert_close(rows.double(), expected, rtol=1e-4, atol=1e-5)


def test_the_gradient_of_forward_kl_keeps_its_size_at_high_temperature() -> None:
    """For T far above the logits it is (z_s - z_t) / C, both centred (Hinton et al. 2015, equation 4)."""
    student, teacher = logits(1).requires_grad_(), logits(2)
    LOSSES["forward_kl"].function(student, DenseTarget(teacher), LABELS, 1000.0).sum().backward()
    assert student.grad is not None
    gap = student.detach() - teacher
    torch.testing.assert_close(student.grad, (gap - gap.mean(dim=1, keepdim=True)) / C, atol=5e-3, rtol=2e-2)


@given(st.integers(0, 2**31), st.integers(1, C), st.sampled_from([0.5, 1.0, 2.0, 4.0]), st.floats(0.1, 12))
def test_a_top_k_target_gives_a_lower_bound_that_is_exact_with_all_classes(
    seed: int, k: int, temperature: float, spread: float
) -> None:
    teacher, student = logits(seed, spread=spread), logits(seed + 1, spread=spread)
    target = top_k(teacher, k, temperature)
    rows = LOSSES["forward_kl"].function(student, target, LABELS, temperature).double()
    full = temperature**2 * kl(teacher, student, temperature)
    slack = 1e-4 * (1 + full)
    assert (rows <= full + slack).all()
    assert (rows >= -slack).all()
    if k == C:
        torch.testing.assert_close(rows, full, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("tail", [-math.inf, -200.0, 0.0])
def test_gradients_are_finite_when_the_tail_is_empty_or_everything(tail: float) -> None:
    exact = top_k(logits(2), 3, 2.0)
    target = TopKTarget(exact.indices, exact.log_probs, {2.0: torch.full((B,), tail)}, C)
    student = logits(1, spread=40).requires_grad_()
    rows = LOSSES["forward_kl"].function(student, target, LABELS, 2.0)
    rows.sum().backward()
    assert torch.isfinite(rows).all()
    assert student.grad is not None
    assert torch.isfinite(student.grad).all()


@pytest.mark.parametrize("codec", [CodecSpec("float32"), CodecSpec("float16"), CodecSpec("topk", 4, (2.0, 4.0))])
def test_a_target_is_made_of_the_columns_of_any_codec(codec: CodecSpec) -> None:
    teacher = logits(3)
    rows = Output.of("logits", teacher.numpy(), codec).values()
    columns = {name: torch.tensor(column) for name, column in rows.columns.items()}
    target = target_of(rows, columns).to(torch.device("cpu")).widened()
    assert torch.equal(target.likeliest(), teacher.argmax(dim=1))
    cost = target.divergence(functional.log_softmax(teacher / 2, dim=1), 2.0)
    torch.testing.assert_close(cost, torch.zeros(B), atol=1e-3, rtol=0)


def test_a_target_of_some_classes_says_that_it_has_no_logits() -> None:
    with pytest.raises(ConfigError, match="keeps 3 of 11 classes"):
        _ = top_k(logits(3), 3, 1.0).logits


def test_log_probabilities_at_a_temperature_are_those_of_the_schemas() -> None:
    values = Output.of("logits", logits(3).numpy(), CodecSpec("topk", 4, (1.0, 2.0))).values()
    assert isinstance(values, TopK)
    tails = {temperature: torch.tensor(tail) for temperature, tail in values.log_tails.items()}
    target = TopKTarget(torch.tensor(values.indices), torch.tensor(values.log_probs), tails, C)
    np.testing.assert_allclose(target.log_probs_at(2.0).numpy(), values.log_probs_at(2.0), atol=1e-5)
    with pytest.raises(ConfigError, match=r"declares 1\.0, 2\.0"):
        target.log_probs_at(3.0)


def test_cross_entropy_divides_by_the_labelled_fraction_and_skips_rows_without_label() -> None:
    rows = LOSSES["cross_entropy"].function(logits(1), None, LABELS, 9.0, labelled_fraction=0.5)
    assert (rows[LABELS < 0] == 0).all()
    kept = LABELS >= 0
    expected = functional.cross_entropy(logits(1)[kept], LABELS[kept], reduction="none") * 2
    torch.testing.assert_close(rows[kept], expected)


def test_teacher_argmax_is_the_same_of_dense_and_top_k_targets() -> None:
    teacher = logits(2)
    function = LOSSES["teacher_argmax"].function
    expected = functional.cross_entropy(logits(1), teacher.argmax(dim=1), reduction="none")
    targets: list[Target] = [DenseTarget(teacher), top_k(teacher, 2, 1.0)]
    for target in targets:
        torch.testing.assert_close(function(logits(1), target, LABELS, 1.0), expected)


def settings(losses: list[dict[str, object]], weights: tuple[float, ...] = (1.0,)) -> RunSettings:
    teachers = [{"name": f"t{index}", "weight": weight} for index, weight in enumerate(weights)]
    data = {"stream": "s"}
    train = {"batch_size": 4}
    return run_settings(
        {"name": "r", "student": {"name": "mlp"}, "data": data, "train": train, "losses": losses, "teachers": teachers}
    )


def specs(run: RunSettings, kind: str = "logits", codec: str = "float32") -> dict[str, TargetSpec]:
    """Of teachers whose output `logits` has C classes."""
    made = TargetSpec(kind, (C,), C, CodecSpec.parse(codec), default=True)
    return {target_name(teacher.name): made for teacher in run.teachers}


def total_of(run: RunSettings, labelled_fraction: float = 1.0) -> Any:
    """(student's logits, targets, ...) -> the run's loss"""
    total = total_loss(resolve(run, specs(run)), labelled_fraction)
    return lambda student, *rest: total({"logits": student}, *rest)


def test_the_total_weighs_the_entries_and_the_teachers() -> None:
    run = settings(
        [
            {"name": "forward_kl", "weight": 0.75, "temperature": 2.0},
            {"name": "cross_entropy", "weight": 0.25},
            {"name": "forward_kl", "weight": 0.5, "key": "cold"},
        ],
        weights=(1.0, 3.0),
    )
    total = total_of(run, labelled_fraction=0.5)
    value, terms = total(logits(1), {"t0.logits": dense(2), "t1.logits": dense(3)}, LABELS)
    soft = [0.25 * kl(logits(2), logits(1), t) + 0.75 * kl(logits(3), logits(1), t) for t in (2.0, 1.0)]
    hard = LOSSES["cross_entropy"].function(logits(1), None, LABELS, 1.0, labelled_fraction=0.5).mean()
    expected = 0.75 * 4 * soft[0].mean() + 0.25 * hard + 0.5 * soft[1].mean()
    torch.testing.assert_close(value.double(), expected.double(), rtol=1e-4, atol=1e-5)
    assert set(terms) == {"forward_kl", "cross_entropy", "cold"}


def test_weights_and_temperatures_follow_their_schedules() -> None:
    rise, fall = {"name": "linear", "start": 0.0, "end": 1.0, "steps": 5}, {"name": "linear", "end": 0.5}
    run = settings(
        [
            {"name": "forward_kl", "weight": 0.5, "temperature": 4.0, "weight_schedule": rise},
            {"name": "reverse_kl", "temperature": 4.0, "temperature_schedule": fall},
        ]
    )
    total = total_loss(resolve(run, specs(run)), 1.0, total_steps=9)
    given, targets = {"logits": logits(1)}, {"t0.logits": dense(2)}
    for step, (weight, temperature) in {0: (0.0, 4.0), 2: (0.5, 3.5), 4: (1.0, 3.0), 8: (1.0, 2.0)}.items():
        value, rows = total(given, targets, LABELS, None, step)
        of_schedule = LOSSES["reverse_kl"].function(logits(1), dense(2), LABELS, temperature)
        torch.testing.assert_close(rows["reverse_kl"], of_schedule)
        torch.testing.assert_close(value, 0.5 * weight * rows["forward_kl"].mean() + of_schedule.mean())


@pytest.mark.parametrize(
    ("loss", "codec", "says"),
    [
        ({"temperature_schedule": "linear"}, "float32", "temperature_schedule: the temperature falls to 0"),
        ({"temperature_schedule": {"name": "linear", "end": 0.5}}, "topk:k=2,temperatures=1|2", "keeps some classes"),
        (
            {"weight_schedule": "liner"},
            "float32",
            r"weight_schedule: schedule 'liner' is unknown: did you mean 'linear'",
        ),
        ({"weight_schedule": {"name": "linear", "end": -2.0}}, "float32", "weight_schedule linear: it turns negative"),
        ({"weight_schedule": {"name": "constant", "warmup": 9}}, "float32", "does not end within the run's 9"),
        ({"weight_schedule": 0.5}, "float32", "weight_schedule must be a table"),
    ],
)
def test_a_schedule_of_a_loss_that_makes_no_sense_is_refused_before_the_first_step(
    loss: dict[str, Any], codec: str, says: str
) -> None:
    def total() -> None:
        run = settings([{"name": "forward_kl", **loss}])
        total_loss(resolve(run, specs(run, codec=codec)), 1.0, total_steps=9)

    with pytest.raises(ConfigError, match=says) as caught:
        total()
    assert "\n" not in str(caught.value)


def test_a_row_of_weight_0_counts_for_nothing_and_the_mean_is_over_all_rows() -> None:
    run = settings([{"name": "forward_kl", "weight": 0.75}, {"name": "cross_entropy"}])
    weights = torch.tensor([1.0, 1.0, 0.0, 1.0, 1.0, 0.0])
    student, targets = logits(1).requires_grad_(), {"t0.logits": dense(2)}
    value, rows = total_of(run)(student, targets, LABELS, weights)
    whole, _ = total_of(run)(logits(1), targets, LABELS)
    soft, hard = kl(logits(2), logits(1), 1.0), LOSSES["cross_entropy"].function(logits(1), None, LABELS, 1.0)
    expected = ((0.75 * soft + hard) * weights).sum() / B
    torch.testing.assert_close(value.double(), expected.double(), rtol=1e-4, atol=1e-5)
    assert value < whole
    assert all((each[[2, 5]] == 0).all() for each in rows.values())
    value.backward()
    assert student.grad is not None
    assert student.grad.abs().sum(dim=1).gt(0).tolist() == weights.gt(0).tolist()
    ones, _ = total_of(run)(logits(1), targets, LABELS, torch.ones(B))
    assert torch.equal(ones, whole)


@pytest.mark.parametrize(
    ("loss", "of", "says"),
    [
        ({"name": "forward_lk"}, {}, "did you mean 'forward_kl'?"),
        ({"name": "forward_kl", "temprature": 2}, {}, "did you mean 'temperature'?"),
        ({"name": "logit_mse"}, {"codec": "topk:k=2"}, "float32 or float16"),
        ({"name": "logit_mse"}, {"kind": "probabilities"}, "true logits, but t0.logits holds probabilities"),
        (
            {"name": "forward_kl", "temperature": 3.0},
            {"codec": "topk:k=2,temperatures=1|2"},
            "declares 1.0, 2.0",
        ),
        ({"name": "mse"}, {}, "features, but t0.logits holds logits"),
        ({"name": "dist"}, {"codec": "topk:k=2"}, "float32 or float16"),
        ({"name": "forward_kl", "standardise": True}, {"codec": "topk:k=2"}, "float32 or float16"),
        ({"name": "forward_kl", "standardise": 1}, {}, "standardise has to be true or false, is 1"),
        ({"name": "jsd", "beta": 1}, {}, "beta has to be a number above 0 and below 1, is 1"),
        ({"name": "dkd", "alpha": -0.5}, {}, "alpha has to be a number that is not negative, is -0.5"),
        ({"name": "dkd", "beta": "8"}, {}, "beta has to be a number that is not negative, is '8'"),
        ({"name": "cross_entropy", "label_smoothing": 1.0}, {}, "has to be a number from 0 on and below 1, is 1.0"),
    ],
)
def test_a_loss_whose_needs_are_not_met_is_refused_by_name(
    loss: dict[str, object], of: dict[str, str], says: str
) -> None:
    run = settings([loss])
    with pytest.raises(ConfigError, match=f"(?s)losses.*{says}"):
        resolve(run, specs(run, **of))


def test_a_loss_without_teachers_or_labels_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match=r"forward_kl needs a teacher's soft targets"):
        resolve(settings([{"name": "forward_kl"}]), {})
    with pytest.raises(ConfigError, match="cross_entropy needs labels, but no sample shows one"):
        resolve(settings([{"name": "cross_entropy"}]), {}, has_labels=False)


def test_two_losses_of_one_name_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"two are called 'forward_kl': give one a `key` of its own"):
        settings([{"name": "forward_kl"}, {"name": "forward_kl", "temperature": 2.0}])


def shifted(logits: Tensor, target: Target, labels: Tensor, temperature: float, by: float = 0.0) -> Tensor:
    assert isinstance(target, DenseTarget)
    return (logits - target.logits).square().mean(dim=1) + by


shifted.needs = {"teacher", "dense"}  # type: ignore[attr-defined]


def summed(logits: Tensor, target: Target, labels: Tensor, temperature: float) -> Tensor:
    return logits.sum()


def failing(logits: Tensor, target: Target, labels: Tensor, temperature: float) -> Tensor:
    raise ValueError("no such class")


def needy(logits: Tensor, target: Target, labels: Tensor, temperature: float) -> Tensor:
    return logits.sum(dim=1)


needy.needs = {"pixels"}  # type: ignore[attr-defined]


def spread(output: Tensor, target: Target, labels: Tensor, temperature: float) -> Tensor:
    return (output - output.mean(dim=0)).square().mean(dim=1)


spread.needs = {"teacher", "dense"}  # type: ignore[attr-defined]
spread.batchwise = True  # type: ignore[attr-defined]


def unsaid(output: Tensor, target: Target, labels: Tensor, temperature: float) -> Tensor:
    return output.sum(dim=1)


unsaid.batchwise = True  # type: ignore[attr-defined]


def test_a_loss_of_ones_own_may_compare_rows_which_those_of_weight_0_have_no_part_in() -> None:
    weights = torch.tensor([1.0, 1.0, 0.0, 1.0, 0.0, 1.0])
    kept = weights > 0
    student = logits(1)
    value, _ = total_of(settings([{"name": f"{__name__}:spread"}]))(student, {"t0.logits": dense(2)}, LABELS, weights)
    expected = spread(student[kept], dense(2), LABELS, 1.0).sum() / B
    torch.testing.assert_close(value, expected)
    with pytest.raises(ConfigError, match="unsaid: is batchwise, so its needs have to hold dense or features"):
        total_of(settings([{"name": f"{__name__}:unsaid"}]))


def test_a_loss_that_compares_rows_is_refused_where_a_step_has_a_part_of_them() -> None:
    run = settings([{"name": "forward_kl"}, {"name": "dist", "key": "relations"}])
    terms = resolve(run, specs(run))
    refuse_in_parts(terms[:1], "why")
    with pytest.raises(ConfigError, match="relations: compares the rows of a whole batch with one another, but why"):
        refuse_in_parts(terms, "why")


def test_a_loss_of_ones_own_is_imported_and_held_to_its_needs() -> None:
    run = settings([{"name": f"{__name__}:shifted", "by": 2.0}])
    resolve(run, specs(run))
    with pytest.raises(ConfigError, match=r"test_losses:shifted needs all classes' logits"):
        resolve(run, specs(run, codec="topk:k=2"))
    with pytest.raises(ConfigError, match="key 'bye' is unknown"):
        resolve(settings([{"name": f"{__name__}:shifted", "bye": 2.0}]), specs(run))
    value, _ = total_of(run)(logits(1), {"t0.logits": DenseTarget(logits(1))}, LABELS)
    assert value.item() == 2.0


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("summed", r"gave a tensor of shape \(\): it has to give one number per row, 6 here"),
        ("failing", "raised .*no such class"),
        (
            "needy",
            r"its needs are \{'pixels'\}; they may be some of teacher, classes, dense, logits, multilabel",
        ),
    ],
)
def test_a_loss_of_ones_own_that_is_none_is_one_line(name: str, says: str) -> None:
    with pytest.raises(ConfigError, match=f"test_losses:{name}.* {says}"):
        total_of(settings([{"name": f"{__name__}:{name}"}]))(logits(1), {"t0.logits": dense(2)}, LABELS)


@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_whose_needs_are_met_is_taken(name: str) -> None:
    run = settings([{"name": name}])
    kind = OF_FEATURES.get(name, "")
    of_features = {each: TargetSpec(kind, (C,), 0, CodecSpec(), default=True) for each in specs(run)}
    of_classes = specs(run, codec="sampled:n=5" if "draws" in LOSSES[name].needs else "float32")
    (term,) = resolve(run, of_features if kind else of_classes)
    assert term.key == name
    assert LOSSES[name].needs <= set(NEEDS)


def test_dense_values_of_a_record_are_a_dense_target() -> None:
    values = Output.of("logits", logits(3).numpy(), CodecSpec()).values()
    assert isinstance(values, Dense)
