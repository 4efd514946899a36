from __future__ import annotations

import math

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
from student_trainer.learning.losses import LOSSES, check_losses, total_loss
from student_trainer.learning.targets import DenseTarget, Target, TopKTarget, target_of
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


LABELS = torch.tensor([0, -1, 3, 10, -1, 2])


def kl(teacher: Tensor, student: Tensor, temperature: float) -> Tensor:
    p = functional.log_softmax(teacher.double() / temperature, dim=1)
    q = functional.log_softmax(student.double() / temperature, dim=1)
    return (p.exp() * (p - q)).sum(dim=1)


@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_is_one_finite_number_a_row_with_finite_gradients(name: str) -> None:
    student = logits(1).requires_grad_()
    rows = LOSSES[name].function(student, dense(2), LABELS, 2.0)
    assert rows.shape == (B,)
    rows.sum().backward()
    assert torch.isfinite(rows).all()
    assert student.grad is not None
    assert torch.isfinite(student.grad).all()


@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_does_not_see_a_shift_of_the_logits(name: str) -> None:
    target = dense(2)
    shifted = DenseTarget(target.logits + 7)
    before = LOSSES[name].function(logits(1), target, LABELS, 2.0)
    after = LOSSES[name].function(logits(1) - 5, shifted, LABELS, 2.0)
    torch.testing.assert_close(before, after, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", [name for name, loss in LOSSES.items() if "dense" in loss.needs] + ["forward_kl"])
def test_a_soft_loss_is_zero_for_the_teacher_itself(name: str) -> None:
    target = dense(2)
    rows = LOSSES[name].function(target.logits, target, LABELS, 3.0)
    torch.testing.assert_close(rows, torch.zeros(B), atol=1e-5, rtol=0)


@pytest.mark.parametrize("temperature", [1.0, 2.0, 4.0])
def test_forward_kl_is_t_squared_times_the_divergence(temperature: float) -> None:
    rows = LOSSES["forward_kl"].function(logits(1), dense(2), LABELS, temperature)
    torch.testing.assert_close(
        rows.double(), temperature**2 * kl(logits(2), logits(1), temperature), rtol=1e-4, atol=1e-5
    )


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


def test_the_total_weighs_the_entries_and_the_teachers() -> None:
    total = total_loss(
        settings(
            [
                {"name": "forward_kl", "weight": 0.75, "temperature": 2.0},
                {"name": "cross_entropy", "weight": 0.25},
                {"name": "forward_kl", "weight": 0.5},
            ],
            weights=(1.0, 3.0),
        ),
        labelled_fraction=0.5,
    )
    value, terms = total(logits(1), {"t0.logits": dense(2), "t1.logits": dense(3)}, LABELS)
    soft = [0.25 * kl(logits(2), logits(1), t) + 0.75 * kl(logits(3), logits(1), t) for t in (2.0, 1.0)]
    hard = LOSSES["cross_entropy"].function(logits(1), None, LABELS, 1.0, labelled_fraction=0.5).mean()
    expected = 0.75 * 4 * soft[0].mean() + 0.25 * hard + 0.5 * soft[1].mean()
    torch.testing.assert_close(value.double(), expected.double(), rtol=1e-4, atol=1e-5)
    assert set(terms) == {"forward_kl", "cross_entropy", "forward_kl@1.0"}


def test_a_row_of_weight_0_counts_for_nothing_and_the_mean_is_over_all_rows() -> None:
    run = settings([{"name": "forward_kl", "weight": 0.75}, {"name": "cross_entropy"}])
    weights = torch.tensor([1.0, 1.0, 0.0, 1.0, 1.0, 0.0])
    student, targets = logits(1).requires_grad_(), {"t0.logits": dense(2)}
    value, rows = total_loss(run, 1.0)(student, targets, LABELS, weights)
    whole, _ = total_loss(run, 1.0)(logits(1), targets, LABELS)
    soft, hard = kl(logits(2), logits(1), 1.0), LOSSES["cross_entropy"].function(logits(1), None, LABELS, 1.0)
    expected = ((0.75 * soft + hard) * weights).sum() / B
    torch.testing.assert_close(value.double(), expected.double(), rtol=1e-4, atol=1e-5)
    assert value < whole
    assert all((each[[2, 5]] == 0).all() for each in rows.values())
    value.backward()
    assert student.grad is not None
    assert student.grad.abs().sum(dim=1).gt(0).tolist() == weights.gt(0).tolist()
    ones, _ = total_loss(run, 1.0)(logits(1), targets, LABELS, torch.ones(B))
    assert torch.equal(ones, whole)


ALL = {"teacher", "dense", "logits", "labels"}


@pytest.mark.parametrize(
    ("loss", "available", "temperatures", "says"),
    [
        ({"name": "forward_lk"}, ALL, None, "did you mean 'forward_kl'?"),
        ({"name": "forward_kl", "temprature": 2}, ALL, None, "did you mean 'temperature'?"),
        ({"name": "forward_kl"}, {"labels"}, None, "soft targets"),
        ({"name": "cross_entropy"}, {"teacher"}, None, "no sample shows one"),
        ({"name": "logit_mse"}, {"teacher", "logits"}, None, "float32 or float16"),
        ({"name": "logit_mse"}, {"teacher", "dense"}, None, "gives probabilities"),
        ({"name": "forward_kl", "temperature": 3.0}, ALL, (1.0, 2.0), "declares 1.0, 2.0"),
    ],
)
def test_a_loss_whose_needs_are_not_met_is_refused_by_name(
    loss: dict[str, object], available: set[str], temperatures: tuple[float, ...] | None, says: str
) -> None:
    with pytest.raises(ConfigError, match=f"(?s)losses.*{says}"):
        check_losses(settings([loss]), available, temperatures)


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


needy.needs = {"features"}  # type: ignore[attr-defined]


def test_a_loss_of_ones_own_is_imported_and_held_to_its_needs() -> None:
    run = settings([{"name": f"{__name__}:shifted", "by": 2.0}])
    check_losses(run, ALL)
    with pytest.raises(ConfigError, match=r"test_losses:shifted needs all classes' logits"):
        check_losses(run, {"teacher"})
    with pytest.raises(ConfigError, match="key 'bye' is unknown"):
        check_losses(settings([{"name": f"{__name__}:shifted", "bye": 2.0}]), ALL)
    value, _ = total_loss(run, 1.0)(logits(1), {"t0.logits": DenseTarget(logits(1))}, LABELS)
    assert value.item() == 2.0


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("summed", r"gave a tensor of shape \(\): it has to give one number per row, 6 here"),
        ("failing", "raised .*no such class"),
        ("needy", r"its needs are \{'features'\}; they may be some of teacher, dense, logits, labels"),
    ],
)
def test_a_loss_of_ones_own_that_is_none_is_one_line(name: str, says: str) -> None:
    with pytest.raises(ConfigError, match=f"test_losses:{name}.* {says}"):
        total_loss(settings([{"name": f"{__name__}:{name}"}]), 1.0)(logits(1), {"t0.logits": dense(2)}, LABELS)


@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_whose_needs_are_met_is_taken(name: str) -> None:
    check_losses(settings([{"name": name}]), ALL)
    assert LOSSES[name].needs <= ALL


def test_dense_values_of_a_record_are_a_dense_target() -> None:
    values = Output.of("logits", logits(3).numpy(), CodecSpec()).values()
    assert isinstance(values, Dense)
