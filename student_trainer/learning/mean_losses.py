"""The losses for a loop of one's own: each is the mean over a batch's rows, a scalar to call `backward` on.

Letters: B rows of a batch, C classes. Where a row has classes at several places, [B, ..., C], its loss is the mean over
them; against a target of positions, the mean is over all positions of the batch. What each loss is, and its factor T^2,
`losses.py` says; as in a run, logits and soft targets are widened to float32, and the mean is over all B rows, or all
positions, whatever their weights.

Each raises ConfigError for shapes that do not fit together, for a temperature that is not positive, or that a stream's
top-k codec does not declare, and where a loss needs all classes and only some were kept.
"""

from __future__ import annotations

import torch
from torch import Tensor

from schemas.errors import ConfigError
from student_trainer.learning.losses import LOSSES
from student_trainer.learning.losses import cross_entropy as rows_of_labels
from student_trainer.learning.targets import Target


def forward_kl(
    student_logits: Tensor, target: Target, temperature: float = 1.0, weights: Tensor | None = None
) -> Tensor:
    """T^2 * KL(teacher || student) of logits [B, C] against a batch's target; `weights` [B], 1 each where left out."""
    return _soft("forward_kl", student_logits, target, temperature, weights)


def reverse_kl(
    student_logits: Tensor, target: Target, temperature: float = 1.0, weights: Tensor | None = None
) -> Tensor:
    """T^2 * KL(student || teacher) of logits [B, C] against a batch's target; it needs a codec of all classes."""
    return _soft("reverse_kl", student_logits, target, temperature, weights)


def logit_mse(student_logits: Tensor, target: Target, weights: Tensor | None = None) -> Tensor:
    """Squared difference of centred logits [B, C]; it needs a codec of all classes, and a teacher that gives logits."""
    return _soft("logit_mse", student_logits, target, 1.0, weights)


def teacher_argmax(student_logits: Tensor, target: Target, weights: Tensor | None = None) -> Tensor:
    """-log of the student's probability of the teacher's likeliest class, of logits [B, C]."""
    return _soft("teacher_argmax", student_logits, target, 1.0, weights)


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


def cross_entropy(
    student_logits: Tensor,
    labels: Tensor,
    labelled_fraction: float = 1.0,
    weights: Tensor | None = None,
    density: Tensor | float | None = None,
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
    try:
        return _of_labels(student_logits, labels, labelled_fraction, weights, density)
    except IndexError:
        lowest, highest = labels.min().item(), labels.max().item()
        raise ConfigError(
            f"labels are {lowest} to {highest}, and the student's {student_logits.shape[-1]} classes 0 to "
            f"{student_logits.shape[-1] - 1}: give -1 where there is no label"
        ) from None


def _of_labels(
    student_logits: Tensor,
    labels: Tensor,
    labelled_fraction: float,
    weights: Tensor | None,
    density: Tensor | float | None,
) -> Tensor:
    if labels.ndim == 1:
        return _mean(rows_of_labels(student_logits.float(), None, labels, 1.0, labelled_fraction), weights)
    rows = rows_of_labels(student_logits.flatten(0, -2).float(), None, labels.flatten().long(), 1.0)
    rows = rows.view(len(labels), -1).sum(dim=1)
    if density is None:
        return _mean(rows * (len(labels) / (labels >= 0).sum().clamp(min=1)), weights)
    # Where it is 0 there is no label, and each row is 0.
    found = torch.as_tensor(density, dtype=rows.dtype, device=rows.device)
    return _mean(rows / torch.where(found > 0, found, 1), weights)


def _soft(name: str, output: Tensor, target: Target, temperature: float, weights: Tensor | None) -> Tensor:
    if tuple(output.shape) != target.shape:  # some would be spread over the others without a word
        raise _unlike(output, "the target", target.shape)
    if not temperature > 0:
        raise ConfigError(f"temperature must be positive, is {temperature}")
    no_labels = output.new_empty(len(output))
    picked = target.picked(output).float()
    return _mean(LOSSES[name].rows(picked, target.widened(), no_labels, temperature), weights)


def _mean(rows: Tensor, weights: Tensor | None) -> Tensor:
    if weights is not None and weights.shape != rows.shape:
        raise ConfigError(f"weights are {list(weights.shape)}: one for each of the {len(rows)} rows")
    return (rows if weights is None else rows * weights).mean()


def _unlike(output: Tensor, what: str, shape: tuple[int, ...]) -> ConfigError:
    return ConfigError(f"the student's output is {list(output.shape)}, {what} {list(shape)}")
