"""Losses against what a teacher answers: its classes, row by row.

Letters: B rows of a batch, C classes, k kept classes, T temperature; z logits, p = softmax(z / T), s the student, t the
teacher. Hinton's loss is `forward_kl` and `cross_entropy` side by side in the run file, each with its weight.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from student_trainer.learning.losses.vectors import deviations, standardised
from student_trainer.learning.targets import DenseTarget, Target, times_log


def forward_kl(
    logits: Tensor, target: Target | None, labels: Tensor, temperature: float, standardise: bool = False
) -> Tensor:
    """T^2 * KL(p_t || p_s), natural log, summed over classes (Hinton et al. 2015).

    Of a top-k target the classes outside the k count as one, with the teacher's exact mass and the sum of the
    student's: a lower bound of the full divergence, never negative (but for fp16's rounding of what was stored), and
    equal to it where k = C. Ignores the labels. `standardise`: of logits less their mean, over their deviation, on both
    sides (Sun et al. 2024); it needs a target of all classes.
    """
    assert target is not None
    if standardise:
        logits, target = standardised(logits), DenseTarget(standardised(target.logits))
    return temperature**2 * target.divergence(functional.log_softmax(logits / temperature, dim=1), temperature)


def reverse_kl(
    logits: Tensor, target: Target | None, labels: Tensor, temperature: float, standardise: bool = False
) -> Tensor:
    """T^2 * KL(p_s || p_t), natural log, summed over classes: it seeks the teacher's modes.

    Ignores the labels. `standardise` as in `forward_kl`.
    """
    assert target is not None
    student, teacher = _log_probs(logits, target, temperature, standardise)
    return temperature**2 * _kl(student, teacher)


def jsd(
    logits: Tensor,
    target: Target | None,
    labels: Tensor,
    temperature: float,
    beta: float = 0.5,
    standardise: bool = False,
) -> Tensor:
    """T^2 * (beta KL(p_t || m) + (1 - beta) KL(p_s || m)), m = beta p_t + (1 - beta) p_s (Agarwal et al. 2023, GKD).

    The generalised Jensen-Shannon divergence, natural log, summed over classes; at most T^2 log 2. With beta near 0,
    over beta, it is the forward KL, near 1, over 1 - beta, the reverse one. Ignores the labels. `standardise` as in
    `forward_kl`.
    """
    assert target is not None
    student, teacher = _log_probs(logits, target, temperature, standardise)
    between = torch.logaddexp(teacher + math.log(beta), student + math.log1p(-beta))
    return temperature**2 * (beta * _kl(teacher, between) + (1 - beta) * _kl(student, between))


def dkd(
    logits: Tensor,
    target: Target | None,
    labels: Tensor,
    temperature: float,
    alpha: float = 1.0,
    beta: float = 8.0,
    standardise: bool = False,
) -> Tensor:
    """T^2 * (alpha KL(b_t || b_s) + beta KL(q_t || q_s)): decoupled distillation (Zhao et al. 2022).

    y is a row's label, b = (p(y), 1 - p(y)), and q the distribution of the others, p given that it is not y. With alpha
    1 and beta 1 - p_t(y) it is the forward KL. A row without a label takes the teacher's likeliest class for y: the
    label is that, too, wherever the teacher is right. `standardise` as in `forward_kl`. The authors let its weight rise
    over 20 epochs.
    """
    assert target is not None
    of = _classes_of(target, labels)
    student, teacher = _log_probs(logits, target, temperature, standardise)
    of_class = _kl(_binary(teacher, of), _binary(student, of))
    of_others = _kl(_others(teacher, of), _others(student, of))
    return temperature**2 * (alpha * of_class + beta * of_others)


def nkd(logits: Tensor, target: Target | None, labels: Tensor, temperature: float, gamma: float = 1.5) -> Tensor:
    """-p_t(y) log p_s(y) at T = 1, and -gamma T^2 sum over the others of q_t log q_s (Yang et al. 2023, NKD).

    y is a row's label, and q the distribution at T of all other classes alone. These are cross entropies: the teacher's
    own logits cost the entropy of q_t, and more than 0. It stands beside `cross_entropy`. A row without a label takes
    the teacher's likeliest class for y, as in `dkd`.
    """
    assert target is not None
    of = _classes_of(target, labels)
    student, teacher = functional.log_softmax(logits, dim=1), functional.log_softmax(target.logits, dim=1)
    of_class = (teacher.gather(1, of).exp() * student.gather(1, of)).squeeze(1)
    of_others = _others(target.logits / temperature, of).exp(), _others(logits / temperature, of)
    return -of_class - gamma * temperature**2 * times_log(*of_others).sum(dim=1)


def dist(
    logits: Tensor,
    target: Target | None,
    labels: Tensor,
    temperature: float,
    beta: float = 1.0,
    gamma: float = 1.0,
) -> Tensor:
    """T^2 * (beta (1 - r over a row's classes) + gamma (1 - r over the batch, mean of classes)) (Huang et al. 2022).

    r is Pearson's correlation of p_s and p_t, [B, C] each. The second term compares the rows of a batch with one
    another; a row's part of it is 1 - B/C * sum over classes of its products, whose mean over B is the term. A row, or
    a class in a batch, of equal numbers has no correlation: it costs 1. Ignores the labels.
    """
    assert target is not None
    student, teacher = ((each / temperature).softmax(dim=1) for each in (logits, target.logits))
    of_rows = (deviations(student, 1) * deviations(teacher, 1)).sum(dim=1)
    of_classes = len(logits) * (deviations(student, 0) * deviations(teacher, 0)).mean(dim=1)
    return temperature**2 * (beta * (1 - of_rows) + gamma * (1 - of_classes))


def logit_mse(logits: Tensor, target: Target | None, labels: Tensor, temperature: float) -> Tensor:
    """Mean over classes of the squared difference of the centred logits (softmax does not see a shift).

    Ignores temperature (no T, so no T^2) and labels.
    """
    assert target is not None
    difference = logits - target.logits
    return (difference - difference.mean(dim=1, keepdim=True)).square().mean(dim=1)


def teacher_argmax(logits: Tensor, target: Target | None, labels: Tensor, temperature: float) -> Tensor:
    """-log p_s(the teacher's likeliest class) at T = 1. Ignores temperature and labels."""
    assert target is not None
    return functional.cross_entropy(logits, target.likeliest(), reduction="none")


def sampled_cross_entropy(logits: Tensor, target: Target | None, labels: Tensor, temperature: float) -> Tensor:
    """-sum over drawn classes c of n_c / N log p_s(c) at T = 1 (Anshumann et al. 2025, "Sparse logit sampling").

    n_c of the N draws from the teacher's probabilities gave c, so this, and its gradient, is the cross entropy of the
    teacher and the student in expectation, whatever N is: the forward KL plus the teacher's entropy, a constant that
    draws do not tell. Logits [B, ..., C]; mean over the places "...". Ignores labels.
    """
    assert target is not None
    log_probs = functional.log_softmax(logits, dim=-1).gather(-1, target.draws)
    return -log_probs.reshape(len(logits), -1).mean(dim=1)


def binary_kl(logits: Tensor, target: Target | None, labels: Tensor, temperature: float) -> Tensor:
    """T^2 * sum over classes of KL(Bernoulli(p_t) || Bernoulli(p_s)), p = sigmoid(logit / T), natural log.

    For classes that do not exclude one another: p_t log(p_t / p_s) + (1 - p_t) log((1 - p_t) / (1 - p_s)) for each (the
    one-versus-all loss of Yang et al. 2023, "Multi-label knowledge distillation"), logits [B, ..., C]; mean over the
    places "...". Ignores labels.
    """
    assert target is not None
    student, teacher = logits / temperature, target.features / temperature
    yes = functional.logsigmoid(teacher) - functional.logsigmoid(student)
    no = functional.logsigmoid(-teacher) - functional.logsigmoid(-student)
    rows = (teacher.sigmoid() * yes + (-teacher).sigmoid() * no).sum(dim=-1)
    return temperature**2 * rows.reshape(len(logits), -1).mean(dim=1)


def _log_probs(logits: Tensor, target: Target, temperature: float, standardise: bool) -> tuple[Tensor, Tensor]:
    """Return [B, C] log p_s and log p_t."""
    both = [logits, target.logits]
    if standardise:
        both = [standardised(each) for each in both]
    student, teacher = (functional.log_softmax(each / temperature, dim=1) for each in both)
    return student, teacher


def _kl(of: Tensor, against: Tensor) -> Tensor:
    """Return [B] KL(of || against) of [B, C] log-probabilities."""
    return times_log(of.exp(), of - against).sum(dim=1)


def _classes_of(target: Target, labels: Tensor) -> Tensor:
    """Return [B, 1] int64: each row's label, or where it has none the teacher's likeliest class."""
    return torch.where(labels >= 0, labels, target.likeliest())[:, None]


def _binary(log_probs: Tensor, of: Tensor) -> Tensor:
    """Return [B, 2]: log p of one class of each row, and log of all others' together."""
    others = torch.logsumexp(log_probs.scatter(1, of, -math.inf), dim=1, keepdim=True)
    return torch.cat([log_probs.gather(1, of), others], dim=1)


def _others(logits: Tensor, of: Tensor) -> Tensor:
    """Return [B, C] log-probabilities given that it is not one class of each row, which has -inf."""
    return functional.log_softmax(logits.scatter(1, of, -math.inf), dim=1)
