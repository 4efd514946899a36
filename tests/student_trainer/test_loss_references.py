"""Each loss is what its paper says: held against plain loops in NumPy, with gradients that differences confirm."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from student_trainer.learning.losses import LOSSES
from student_trainer.learning.losses.vectors import deviations
from student_trainer.learning.targets import DenseTarget, FeatureTarget, SampledTarget, Target

Array = NDArray[np.float64]
B, C, H, W = 5, 4, 3, 2
LABELS = np.array([0, 3, -1, 2, -1])
T = 2.0


def draw(*shape: int, seed: int) -> Array:
    return np.random.default_rng(seed).normal(0, 2, shape)


def softmax(logits: Array) -> Array:
    exponents = np.exp(logits - logits.max(axis=-1, keepdims=True))
    found: Array = exponents / exponents.sum(axis=-1, keepdims=True)
    return found


def kl(of: Array, against: Array) -> float:
    return sum(float(p * math.log(p / q)) for p, q in zip(of, against, strict=True) if p)


def standard(row: Array) -> Array:
    found: Array = (row - row.mean()) / math.sqrt(((row - row.mean()) ** 2).mean())
    return found


def label_of(row: int, teacher: Array) -> int:
    return int(LABELS[row]) if LABELS[row] >= 0 else int(teacher[row].argmax())


def of_rows(cost: Callable[[Array, Array, int], float], temperature: float = T) -> Callable[[Array, Array], Array]:
    """Of probabilities at T of a row, the student's and the teacher's."""

    def rows(student: Array, teacher: Array) -> Array:
        p, q = softmax(student / temperature), softmax(teacher / temperature)
        return np.array([temperature**2 * cost(p[row], q[row], label_of(row, teacher)) for row in range(len(p))])

    return rows


def jsd(beta: float) -> Callable[[Array, Array, int], float]:
    def cost(student: Array, teacher: Array, label: int) -> float:
        between = beta * teacher + (1 - beta) * student
        return beta * kl(teacher, between) + (1 - beta) * kl(student, between)

    return cost


def dkd(alpha: float, beta: float) -> Callable[[Array, Array, int], float]:
    def cost(student: Array, teacher: Array, label: int) -> float:
        binary = [np.array([p[label], p.sum() - p[label]]) for p in (teacher, student)]
        others = [np.delete(p, label) / np.delete(p, label).sum() for p in (teacher, student)]
        return alpha * kl(binary[0], binary[1]) + beta * kl(others[0], others[1])

    return cost


def nkd(student: Array, teacher: Array) -> Array:
    rows = []
    for row in range(len(student)):
        label = label_of(row, teacher)
        of_class = -softmax(teacher[row])[label] * math.log(softmax(student[row])[label])
        others = [softmax(np.delete(each[row], label) / T) for each in (student, teacher)]
        rows.append(of_class - 1.5 * T**2 * float((others[1] * np.log(others[0])).sum()))
    return np.array(rows)


def dist(student: Array, teacher: Array) -> float:
    p, q = softmax(student / T), softmax(teacher / T)
    over_classes = np.mean([1 - np.corrcoef(p[row], q[row])[0, 1] for row in range(len(p))])
    over_batch = np.mean([1 - np.corrcoef(p[:, c], q[:, c])[0, 1] for c in range(p.shape[1])])
    return T**2 * float(0.5 * over_classes + 2.0 * over_batch)


def attention_transfer(student: Array, teacher: Array) -> Array:
    def attention(maps: Array) -> Array:
        places = np.array([[sum(v * v for v in maps[:, h, w]) for w in range(W)] for h in range(H)])
        found: Array = places / math.sqrt((places**2).sum())
        return found

    return np.array([((attention(s) - attention(t)) ** 2).mean() for s, t in zip(student, teacher, strict=True)])


def huber(difference: float) -> float:
    return 0.5 * difference**2 if abs(difference) < 1 else abs(difference) - 0.5


def rkd_distance(student: Array, teacher: Array) -> Array:
    def distances(rows: Array) -> Array:
        flat = rows.reshape(len(rows), -1)
        found = np.array([[math.dist(one, other) for other in flat] for one in flat])
        scaled: Array = found / found[found > 0].mean()
        return scaled

    pairs = zip(distances(student), distances(teacher), strict=True)
    return np.array([np.mean([huber(s - t) for s, t in zip(*row, strict=True)]) for row in pairs])


def rkd_angle(student: Array, teacher: Array) -> Array:
    def angle(flat: Array, i: int, j: int, k: int) -> float:
        one, other = flat[j] - flat[i], flat[k] - flat[i]
        lengths = float(np.linalg.norm(one) * np.linalg.norm(other))
        return float(one @ other) / lengths if lengths else 0.0

    flat = [each.reshape(len(each), -1) for each in (student, teacher)]
    others = [(j, k) for j in range(len(student)) for k in range(len(student))]
    of_corner = [[huber(angle(flat[0], i, j, k) - angle(flat[1], i, j, k)) for j, k in others] for i in range(B)]
    return np.array(of_corner).mean(axis=1)


def similarity(student: Array, teacher: Array) -> Array:
    def products(rows: Array) -> Array:
        flat = rows.reshape(len(rows), -1)
        found = np.array([[float(one @ other) for other in flat] for one in flat])
        scaled: Array = found / np.sqrt((found**2).sum(axis=1, keepdims=True))
        return scaled

    difference = products(student) - products(teacher)
    return np.array([(row**2).sum() / len(student) for row in difference])


def smoothed(student: Array, teacher: Array) -> Array:
    p = np.log(softmax(student))
    rows = [0.9 * -p[row, label] + 0.1 * -p[row].mean() if label >= 0 else 0.0 for row, label in enumerate(LABELS)]
    return np.array(rows)


def standardised(rows: Callable[[Array, Array], Array]) -> Callable[[Array, Array], Array]:
    return lambda student, teacher: rows(*(np.array([standard(row) for row in each]) for each in (student, teacher)))


def drawn(teacher: Array) -> list[list[int]]:
    """Some draws of each row: its likeliest class twice, and its least likely one."""
    return [[int(row.argmax()), int(row.argmax()), int(row.argmin())] for row in teacher]


def sampled(student: Array, teacher: Array) -> Array:
    q = softmax(student)
    return np.array([-sum(math.log(q[row, each]) for each in of) / len(of) for row, of in enumerate(drawn(teacher))])


STANDARDISE = {"standardise": True}
FORWARD, REVERSE = (of_rows(lambda s, t, label: kl(t, s)), of_rows(lambda s, t, label: kl(s, t)))
REFERENCES: dict[str, tuple[str, dict[str, Any], Callable[[Array, Array], Array | float]]] = {
    "forward_kl": ("forward_kl", {}, FORWARD),
    "forward_kl standardised": ("forward_kl", STANDARDISE, standardised(FORWARD)),
    "reverse_kl": ("reverse_kl", {}, REVERSE),
    "reverse_kl standardised": ("reverse_kl", STANDARDISE, standardised(REVERSE)),
    "jsd": ("jsd", {}, of_rows(jsd(0.5))),
    "jsd near the teacher": ("jsd", {"beta": 0.1} | STANDARDISE, standardised(of_rows(jsd(0.1)))),
    "dkd": ("dkd", {}, of_rows(dkd(1, 8))),
    "dkd of other parts": ("dkd", {"alpha": 0.5, "beta": 0} | STANDARDISE, standardised(of_rows(dkd(0.5, 0)))),
    "nkd": ("nkd", {}, nkd),
    "dist": ("dist", {"beta": 0.5, "gamma": 2.0}, dist),
    "sampled_cross_entropy": ("sampled_cross_entropy", {}, sampled),
    "attention_transfer": ("attention_transfer", {}, attention_transfer),
    "rkd_distance": ("rkd_distance", {}, rkd_distance),
    "rkd_angle": ("rkd_angle", {}, rkd_angle),
    "similarity": ("similarity", {}, similarity),
    "cross_entropy smoothed": ("cross_entropy", {"label_smoothing": 0.1}, smoothed),
}


def pair(name: str, student: int = 1, teacher: int = 2) -> tuple[Array, Array]:
    """What a student gives, and a teacher; of features with other widths where a loss takes them."""
    loss = LOSSES[name]
    if "features" not in loss.needs:
        return draw(B, C, seed=student), draw(B, C, seed=teacher)
    if name == "attention_transfer":
        return draw(B, C, H, W, seed=student), draw(B, C + 3, H, W, seed=teacher)
    return draw(B, H, seed=student), draw(B, *((2, H) if loss.batchwise else (H,)), seed=teacher)


def target_of(name: str, teacher: Tensor) -> Target:
    if "draws" in LOSSES[name].needs:
        return SampledTarget(torch.tensor(drawn(teacher.numpy())), teacher.shape[1])
    features = {"features", "multilabel"} & LOSSES[name].needs
    return FeatureTarget(teacher) if features else DenseTarget(teacher)


def rows_of(name: str, student: Tensor, teacher: Tensor, **params: Any) -> Tensor:
    return LOSSES[name].function(student, target_of(name, teacher), torch.tensor(LABELS), T, **params)


@pytest.mark.parametrize("case", REFERENCES)
@pytest.mark.parametrize("seed", [1, 7])
def test_a_loss_is_what_a_loop_over_its_formula_gives(case: str, seed: int) -> None:
    name, params, reference = REFERENCES[case]
    student, teacher = pair(name, seed, seed + 1)
    rows = rows_of(name, torch.tensor(student), torch.tensor(teacher), **params)
    expected = reference(student, teacher)
    assert rows.shape == (B,)
    if isinstance(expected, float):  # of correlations over the batch the mean alone is said
        assert rows.mean().item() == pytest.approx(expected, rel=1e-9)
    else:
        np.testing.assert_allclose(rows.numpy(), expected, rtol=1e-9, atol=1e-12)


def test_every_loss_is_held_against_a_loop_here_or_in_test_losses() -> None:
    elsewhere = {"logit_mse", "teacher_argmax", "binary_kl", "mse", "cosine", "cross_entropy"}
    assert {name for name, _, _ in REFERENCES.values()} | elsewhere == set(LOSSES)


@pytest.mark.parametrize("case", [*REFERENCES, *LOSSES])
def test_a_gradient_is_what_differences_say(case: str) -> None:
    name, params, _ = REFERENCES.get(case, (case, {}, None))
    student, teacher = pair(name)
    given = torch.tensor(student, requires_grad=True)
    assert torch.autograd.gradcheck(lambda output: rows_of(name, output, torch.tensor(teacher), **params), given)


MINIMAL = [name for name in LOSSES if name not in ("nkd", "teacher_argmax", "sampled_cross_entropy", "cross_entropy")]


@pytest.mark.parametrize("name", MINIMAL)
def test_a_student_that_gives_what_its_teacher_does_costs_nothing_and_stays(name: str) -> None:
    teacher = torch.tensor(pair(name)[1])
    student = teacher.clone().requires_grad_()
    cost = rows_of(name, student, teacher).mean()
    cost.backward()
    assert cost.item() == pytest.approx(0, abs=1e-12)
    assert student.grad is not None
    assert student.grad.abs().max() < 1e-12
    elsewhere = rows_of(name, teacher + torch.tensor(draw(*teacher.shape, seed=9)), teacher).mean()
    assert elsewhere > 1e-6


EXTREMES: dict[str, Callable[[Tensor], Tensor]] = {
    "one-hot in fp16's range": lambda x: torch.where(x == x.amax(dim=-1, keepdim=True), 65504.0, -65504.0),
    "as large as fp16": lambda x: x.sign() * 65504,
    "as small as fp16": lambda x: x.sign() * 6e-8,
    "ties": lambda x: x.round(),
    "all rows equal": lambda x: x[:1].expand_as(x).contiguous(),
    "rows of equal numbers": lambda x: torch.full_like(x, 0.1),
    "zeros": torch.zeros_like,
    "as it is": lambda x: x,
}


@pytest.mark.parametrize("case", [*LOSSES, *(case for case in REFERENCES if "standardised" in case)])
def test_a_loss_and_its_gradient_are_finite_at_extremes(case: str) -> None:
    name, params, _ = REFERENCES.get(case, (case, {}, None))

    def is_finite(of_student: str, of_teacher: str) -> bool:
        student, teacher = (torch.tensor(each, dtype=torch.float32) for each in pair(name))
        student = EXTREMES[of_student](student).requires_grad_()
        rows = rows_of(name, student, EXTREMES[of_teacher](teacher), **params)
        rows.mean().backward()
        assert student.grad is not None
        return bool(torch.isfinite(rows).all() and torch.isfinite(student.grad).all())

    assert [pair for pair in itertools.product(EXTREMES, EXTREMES) if not is_finite(*pair)] == []


@pytest.mark.parametrize("name", ["dist", "similarity", "rkd_distance", "rkd_angle", "attention_transfer"])
@pytest.mark.parametrize("start", ["rows of equal numbers", "zeros"])
def test_a_gradient_stays_small_where_a_student_begins_with_equal_numbers(name: str, start: str) -> None:
    """A head of zeros has no direction; a quotient by its length would have a gradient without bound."""
    student, teacher = (torch.tensor(each, dtype=torch.float32) for each in pair(name))
    student = EXTREMES[start](student).requires_grad_()
    rows_of(name, student, teacher).mean().backward()
    assert student.grad is not None
    assert student.grad.abs().max() < 100


@pytest.mark.parametrize("count", [3, 7, 10, 100])
def test_equal_numbers_have_no_deviations_but_for_rounding(count: int) -> None:
    for number in (0.1, 1 / count, 65504.0, 6e-8):
        equal = torch.full((1, count), number, requires_grad=True)
        found = deviations(equal, 1)
        found.square().sum().backward()
        assert found.abs().max() <= 1e-6 * number
        assert equal.grad is not None
        assert equal.grad.abs().max() <= 1e-5 * number


BATCHWISE = [name for name, loss in LOSSES.items() if loss.batchwise]


@pytest.mark.parametrize("name", BATCHWISE)
@settings(max_examples=20)
@given(st.lists(st.sampled_from([0.0, 1.0]), min_size=B, max_size=B), st.integers(0, 99))
def test_rows_of_weight_0_are_compared_with_none(name: str, weights: list[float], seed: int) -> None:
    student, teacher = (torch.tensor(each) for each in pair(name, seed, seed + 1))
    student.requires_grad_()
    kept = torch.tensor(weights) > 0
    labels = torch.tensor(LABELS)
    rows = LOSSES[name].rows(student, target_of(name, teacher), labels, T, torch.tensor(weights))
    assert (rows[~kept] == 0).all()
    if kept.any():
        alone = LOSSES[name].function(student[kept], target_of(name, teacher[kept]), labels[kept], T)
        torch.testing.assert_close(rows[kept], alone)
    rows.sum().backward()
    assert student.grad is not None
    assert torch.isfinite(student.grad).all()
    assert (student.grad[~kept] == 0).all()


@pytest.mark.parametrize("name", BATCHWISE)
def test_weights_without_a_0_leave_relations_as_they_are(name: str) -> None:
    student, teacher = (torch.tensor(each) for each in pair(name))
    given = [LOSSES[name].rows(student, target_of(name, teacher), torch.tensor(LABELS), T, weights)
             for weights in (None, torch.full((B,), 0.5))]  # fmt: skip
    assert torch.equal(given[0], given[1])


@pytest.mark.parametrize("name", BATCHWISE)
def test_a_batch_of_one_row_has_no_relations_and_a_finite_cost(name: str) -> None:
    student, teacher = (torch.tensor(each[:1], requires_grad=number == 0) for number, each in enumerate(pair(name)))
    rows = rows_of(name, student, teacher) if name != "dist" else LOSSES[name].function(
        student, target_of(name, teacher), torch.tensor(LABELS[:1]), T
    )  # fmt: skip
    rows.mean().backward()
    assert torch.isfinite(rows).all()
    assert student.grad is not None
    assert torch.isfinite(student.grad).all()


def test_dkd_is_the_forward_kl_where_its_parts_are_weighed_as_that_weighs_them() -> None:
    """KL = KL(b_t || b_s) + (1 - p_t(y)) KL(q_t || q_s) (Zhao et al. 2022, equation 5)."""
    student, teacher = (torch.tensor(each) for each in pair("dkd"))
    of_class, of_others = (rows_of("dkd", student, teacher, alpha=a, beta=b) for a, b in ((1.0, 0.0), (0.0, 1.0)))
    q = softmax(teacher.numpy() / T)
    rest = torch.tensor([1 - q[row, label_of(row, teacher.numpy())] for row in range(B)])
    torch.testing.assert_close(of_class + rest * of_others, rows_of("forward_kl", student, teacher))


@pytest.mark.parametrize(("beta", "like"), [(1e-4, "forward_kl"), (1 - 1e-4, "reverse_kl")])
def test_jsd_near_its_ends_is_a_part_of_a_kl(beta: float, like: str) -> None:
    student, teacher = (torch.tensor(each) for each in pair("jsd"))
    rows = rows_of("jsd", student, teacher, beta=beta) / min(beta, 1 - beta)
    torch.testing.assert_close(rows, rows_of(like, student, teacher), rtol=1e-2, atol=1e-3)


def test_a_standardised_loss_does_not_see_how_large_a_teachers_logits_are() -> None:
    student, teacher = (torch.tensor(each) for each in pair("forward_kl"))
    rows = rows_of("forward_kl", student, teacher, standardise=True)
    torch.testing.assert_close(rows_of("forward_kl", student * 0.1 + 3, teacher * 7 - 2, standardise=True), rows)
