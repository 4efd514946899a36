"""The losses for a loop of one's own: each is the mean over a batch's rows, a scalar to call `backward` on.

Letters: B rows of a batch, C classes. Where a row has classes at several places, [B, ..., C], its loss is the mean over
them; against a target of positions, the mean is over all positions of the batch. What each loss is, and its factor T^2,
`losses/` says; as in a run, logits and soft targets are widened to float32, and the mean is over all B rows, or all
positions, whatever their weights. Where a loss compares rows with one another, those of weight 0 are left out.

Each raises ConfigError for shapes that do not fit together, for a parameter that makes no sense, for a temperature that
is not positive, or that a stream's top-k codec does not declare, and where a loss needs all classes and only some were
kept.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from schemas.errors import ConfigError
from student_trainer.learning.losses import LOSSES
from student_trainer.learning.losses import cross_entropy as rows_of_labels
from student_trainer.learning.positions import PositionTarget
from student_trainer.learning.targets import Target


def forward_kl(
    student_logits: Tensor,
    target: Target,
    temperature: float = 1.0,
    weights: Tensor | None = None,
    standardise: bool = False,
) -> Tensor:
    """T^2 * KL(teacher || student) of logits [B, C] against a batch's target; `weights` [B], 1 each where left out.

    `standardise`: of standardised logits; it needs a codec of all classes.
    """
    return _soft("forward_kl", student_logits, target, temperature, weights, standardise=standardise)


def reverse_kl(
    student_logits: Tensor,
    target: Target,
    temperature: float = 1.0,
    weights: Tensor | None = None,
    standardise: bool = False,
) -> Tensor:
    """T^2 * KL(student || teacher) of logits [B, C] against a batch's target; it needs a codec of all classes."""
    return _soft("reverse_kl", student_logits, target, temperature, weights, standardise=standardise)


def jsd(
    student_logits: Tensor,
    target: Target,
    temperature: float = 1.0,
    weights: Tensor | None = None,
    beta: float = 0.5,
    standardise: bool = False,
) -> Tensor:
    """T^2 * the generalised Jensen-Shannon divergence of logits [B, C]; it needs a codec of all classes."""
    return _soft("jsd", student_logits, target, temperature, weights, beta=beta, standardise=standardise)


def dkd(
    student_logits: Tensor,
    target: Target,
    labels: Tensor,
    temperature: float = 1.0,
    weights: Tensor | None = None,
    alpha: float = 1.0,
    beta: float = 8.0,
    standardise: bool = False,
) -> Tensor:
    """Decoupled distillation of logits [B, C], with labels [B] int64, -1 where there is none; needs all classes."""
    params = {"alpha": alpha, "beta": beta, "standardise": standardise}
    return _labelled("dkd", student_logits, target, labels, temperature, weights, **params)


def nkd(
    student_logits: Tensor,
    target: Target,
    labels: Tensor,
    temperature: float = 1.0,
    weights: Tensor | None = None,
    gamma: float = 1.5,
) -> Tensor:
    """Normalised distillation of logits [B, C], with labels [B] int64, -1 where there is none; needs all classes."""
    return _labelled("nkd", student_logits, target, labels, temperature, weights, gamma=gamma)


def dist(
    student_logits: Tensor,
    target: Target,
    temperature: float = 1.0,
    weights: Tensor | None = None,
    beta: float = 1.0,
    gamma: float = 1.0,
) -> Tensor:
    """T^2 * what correlations lack over classes, and over the batch, of logits [B, C]; it needs all classes."""
    return _soft("dist", student_logits, target, temperature, weights, beta=beta, gamma=gamma)


def logit_mse(student_logits: Tensor, target: Target, weights: Tensor | None = None) -> Tensor:
    """Squared difference of centred logits [B, C]; it needs a codec of all classes, and a teacher that gives logits."""
    return _soft("logit_mse", student_logits, target, 1.0, weights)


def teacher_argmax(student_logits: Tensor, target: Target, weights: Tensor | None = None) -> Tensor:
    """-log of the student's probability of the teacher's likeliest class, of logits [B, C]."""
    return _soft("teacher_argmax", student_logits, target, 1.0, weights)


def sampled_cross_entropy(student_logits: Tensor, target: Target, weights: Tensor | None = None) -> Tensor:
    """-log of the student's probability of the classes drawn by the codec sampled, mean over the draws, of [B, C]."""
    return _soft("sampled_cross_entropy", student_logits, target, 1.0, weights)


def binary_kl(
    student_logits: Tensor, target: Target, temperature: float = 1.0, weights: Tensor | None = None
) -> Tensor:
    """T^2 * sum over classes of the KL of Bernoullis of multilabel logits [B, C] against a batch's target of such."""
    return _soft("binary_kl", student_logits, target, temperature, weights)


def mse(student_output: Tensor, target: Target, weights: Tensor | None = None) -> Tensor:
    """Squared difference of features [B, ...], mean over all numbers of a row."""
    return _soft("mse", student_output, target, 1.0, weights)


def cosine(student_output: Tensor, target: Target, weights: Tensor | None = None) -> Tensor:
    """1 - cosine of features [B, ..., H] along their last axis, mean over all others."""
    return _soft("cosine", student_output, target, 1.0, weights)


def attention_transfer(student_output: Tensor, target: Target, weights: Tensor | None = None) -> Tensor:
    """Squared difference of attention maps of features [B, channels, H, W], whose channels may differ, or [B, H, W]."""
    return _soft("attention_transfer", student_output, target, 1.0, weights)


def rkd_distance(student_output: Tensor, target: Target, weights: Tensor | None = None) -> Tensor:
    """Difference of the distances between the batch's rows, of features [B, ...] of any two widths."""
    return _soft("rkd_distance", student_output, target, 1.0, weights)


def rkd_angle(student_output: Tensor, target: Target, weights: Tensor | None = None) -> Tensor:
    """Difference of the angles between the batch's rows, of features [B, ...] of any two widths."""
    return _soft("rkd_angle", student_output, target, 1.0, weights)


def similarity(student_output: Tensor, target: Target, weights: Tensor | None = None) -> Tensor:
    """Squared difference of the similarities of the batch's rows, of features [B, ...] of any two widths."""
    return _soft("similarity", student_output, target, 1.0, weights)


def cross_entropy(
    student_logits: Tensor,
    labels: Tensor,
    labelled_fraction: float = 1.0,
    weights: Tensor | None = None,
    density: Tensor | float | None = None,
    label_smoothing: float = 0.0,
) -> Tensor:
    """-log of the student's probability of the hard label, of logits [B, C] and labels [B] int64; 0 where it is -1.

    `labelled_fraction` is that of the data: its inverse makes the expectation that of the mean over labelled rows. Of
    logits [B, ..., C] and labels [B, ...] of any integers it is the mean over all positions of the batch that have a
    label, and 0 where none has; there the fraction is no matter. `density` is how many of them a sample has, the mean
    over the batch; on several processes over that of all, so that the mean of their losses is that over all positions;
    None: over these B. Labels of no class raise ConfigError on the CPU.
    """
    if student_logits.shape[:-1] != labels.shape:
        raise _unlike(student_logits, "labels", tuple(labels.shape))
    LOSSES["cross_entropy"].refuse("cross_entropy", {"label_smoothing": label_smoothing})
    try:
        return _of_labels(student_logits, labels, labelled_fraction, weights, density, label_smoothing)
    except IndexError:
        raise _no_class(student_logits, labels) from None


def _of_labels(
    student_logits: Tensor,
    labels: Tensor,
    labelled_fraction: float,
    weights: Tensor | None,
    density: Tensor | float | None,
    label_smoothing: float,
) -> Tensor:
    logits, smoothing = student_logits.float(), label_smoothing
    if labels.ndim == 1:
        return _mean(rows_of_labels(logits, None, labels, 1.0, labelled_fraction, smoothing), weights)
    rows = rows_of_labels(logits.flatten(0, -2), None, labels.flatten().long(), 1.0, label_smoothing=smoothing)
    rows = rows.view(len(labels), -1).sum(dim=1)
    if density is None:
        return _mean(rows * (len(labels) / (labels >= 0).sum().clamp(min=1)), weights)
    # Where it is 0 there is no label, and each row is 0.
    found = torch.as_tensor(density, dtype=rows.dtype, device=rows.device)
    return _mean(rows / torch.where(found > 0, found, 1), weights)


def _labelled(
    name: str,
    logits: Tensor,
    target: Target,
    labels: Tensor,
    temperature: float,
    weights: Tensor | None,
    **params: Any,
) -> Tensor:
    if logits.ndim != 2 or labels.shape != logits.shape[:1]:  # a sample has one label, several places have several
        raise _unlike(logits, "labels", tuple(labels.shape))
    if labels.device.type == "cpu" and len(labels) and not -1 <= labels.min() <= labels.max() < logits.shape[1]:
        raise _no_class(logits, labels)
    return _soft(name, logits, target, temperature, weights, labels, **params)


def _soft(
    name: str,
    output: Tensor,
    target: Target,
    temperature: float,
    weights: Tensor | None,
    labels: Tensor | None = None,
    **params: Any,
) -> Tensor:
    loss, given, wanted = LOSSES[name], tuple(output.shape), target.shape
    rows = 1 + (len(target.places) if isinstance(target, PositionTarget) else 0)
    if given[:rows] != wanted[:rows] or loss.compared(given[rows:]) != loss.compared(wanted[rows:]):
        raise _unlike(output, "the target", wanted)  # some would be spread over the others without a word
    if not temperature > 0:
        raise ConfigError(f"temperature must be positive, is {temperature}")
    loss.refuse(name, params)
    _refuse_other_weights(weights, len(output))
    labels = output.new_empty(len(output)) if labels is None else labels
    picked = target.picked(output).float()
    return _mean(loss.rows(picked, target.widened(), labels, temperature, weights, **params), weights)


def _mean(rows: Tensor, weights: Tensor | None) -> Tensor:
    _refuse_other_weights(weights, len(rows))
    return (rows if weights is None else rows * weights).mean()


def _refuse_other_weights(weights: Tensor | None, count: int) -> None:
    if weights is not None and weights.shape != (count,):
        raise ConfigError(f"weights are {list(weights.shape)}: one for each of the {count} rows")


def _no_class(logits: Tensor, labels: Tensor) -> ConfigError:
    return ConfigError(
        f"labels are {labels.min().item()} to {labels.max().item()}, and the student's {logits.shape[-1]} classes 0 to "
        f"{logits.shape[-1] - 1}: give -1 where there is no label"
    )


def _unlike(output: Tensor, what: str, shape: tuple[int, ...]) -> ConfigError:
    return ConfigError(f"the student's output is {list(output.shape)}, {what} {list(shape)}")
