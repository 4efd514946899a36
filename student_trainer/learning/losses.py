"""Losses: what one batch of a student's outputs costs against soft targets and hard labels.

Letters: B rows of a batch, C classes, k kept classes, T temperature. Of positions, B is how many there are.
Each returns [B], one number per row; the trainer weighs and averages. The factor T^2 of softened losses belongs to
the loss, so that a weight means the same at every temperature (Hinton et al. 2015, section 2). Hinton's loss is
`forward_kl` and `cross_entropy` side by side in the run file, each with its weight.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor
from torch.nn import functional

from pipeline.user_code import said
from schemas.errors import ConfigError, DistillogError
from student_trainer.learning.targets import Target, times_log
from student_trainer.run.choices import choose

if TYPE_CHECKING:
    from student_trainer.run.settings import RunSettings


def forward_kl(logits: Tensor, target: Target | None, labels: Tensor, temperature: float) -> Tensor:
    """T^2 * KL(p_t || p_s), natural log, summed over classes (Hinton et al. 2015).

    Of a top-k target the classes outside the k count as one, with the teacher's exact mass and the sum of the
    student's: a lower bound of the full divergence, never negative (but for fp16's rounding of what was stored), and
    equal to it where k = C. Ignores the labels.
    """
    assert target is not None
    return temperature**2 * target.divergence(functional.log_softmax(logits / temperature, dim=1), temperature)


def reverse_kl(logits: Tensor, target: Target | None, labels: Tensor, temperature: float) -> Tensor:
    """T^2 * KL(p_s || p_t), natural log, summed over classes: it seeks the teacher's modes. Ignores the labels."""
    assert target is not None
    student = functional.log_softmax(logits / temperature, dim=1)
    teacher = functional.log_softmax(target.logits / temperature, dim=1)
    return temperature**2 * times_log(student.exp(), student - teacher).sum(dim=1)


def logit_mse(logits: Tensor, target: Target | None, labels: Tensor, temperature: float) -> Tensor:
    """Mean over classes of the squared difference of the centred logits (softmax does not see a shift).

    Ignores temperature (no T, so no T^2) and labels.
    """
    assert target is not None
    difference = logits - target.logits
    return (difference - difference.mean(dim=1, keepdim=True)).square().mean(dim=1)


def cross_entropy(
    logits: Tensor, target: Target | None, labels: Tensor, temperature: float, labelled_fraction: float = 1.0
) -> Tensor:
    """-log p_s(label) at T = 1 / labelled fraction of the data; 0 where a row has no label.

    So the batch's mean is the sum over labelled rows / (B * labelled fraction): a lone label in a batch does not carry
    a whole loss, and its expectation is that of the mean over labelled rows. Ignores temperature and target: the hard
    loss is not multiplied by T^2.
    """
    rows = functional.cross_entropy(logits, labels, ignore_index=-1, reduction="none")
    return rows if labelled_fraction == 1 else rows / labelled_fraction


def teacher_argmax(logits: Tensor, target: Target | None, labels: Tensor, temperature: float) -> Tensor:
    """-log p_s(the teacher's likeliest class) at T = 1. Ignores temperature and labels."""
    assert target is not None
    return functional.cross_entropy(logits, target.likeliest(), reduction="none")


def mse(output: Tensor, target: Target | None, labels: Tensor, temperature: float) -> Tensor:
    """Mean over all numbers of a row of the squared difference of features [B, ...]. Ignores temperature and labels."""
    assert target is not None
    return (output - target.features).square().reshape(len(output), -1).mean(dim=1)


def cosine(output: Tensor, target: Target | None, labels: Tensor, temperature: float) -> Tensor:
    """1 - cosine of features [B, ..., H] along their last axis, mean over all others (DistilBERT, Sanh et al. 2019).

    Ignores temperature and labels.
    """
    assert target is not None
    nearness = functional.cosine_similarity(output, target.features, dim=-1)
    return (1 - nearness).reshape(len(output), -1).mean(dim=1)


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


NEEDS = ("teacher", "classes", "dense", "logits", "multilabel", "features", "labels")
"""What a loss may need: soft targets, of classes that exclude one another, of all of them, as true logits, of classes
that do not exclude one another, or of no classes; and labels."""


@dataclass(frozen=True, slots=True)
class Loss:
    """A loss and what its targets must hold."""

    function: Callable[..., Tensor]
    """(student's output [B, ...] float32, target or None, labels [B] int64, temperature, **params) -> [B] float32.

    Classes are [B, C]; of a target of positions all of it is [P, ...]."""
    needs: frozenset[str]
    """Some of NEEDS."""

    def rows(self, output: Tensor, target: Target, labels: Tensor, temperature: float, **params: Any) -> Tensor:
        """Return the [B] rows of what a target picked of a student's output.

        Where a row has classes at several places, its cost is their mean. What each position costs is shared out among
        the rows such that their mean is that over all positions of the whole batch.
        """
        labels = target.labels_of(labels)
        if not len(output):  # no position at all, which costs nothing: a loss of a user's own need not know
            rows = output.flatten(1).sum(dim=1)
        elif output.ndim == 2 or "classes" not in self.needs:
            rows = self.function(output, target, labels, temperature, **params)
        else:
            places = output.shape[1:-1].numel()
            labels = labels.repeat_interleave(places)
            rows = self.function(output.flatten(0, -2), target.flat(), labels, temperature, **params)
            rows = rows.view(-1, places).mean(dim=1)
        return target.per_sample(rows)

    @property
    def holds(self) -> frozenset[str]:
        """What it needs of soft targets; empty where it takes none."""
        return self.needs - {"labels"}


LOSSES: dict[str, Loss] = {
    "forward_kl": Loss(forward_kl, frozenset({"teacher", "classes"})),
    "reverse_kl": Loss(reverse_kl, frozenset({"teacher", "classes", "dense"})),
    "logit_mse": Loss(logit_mse, frozenset({"teacher", "classes", "dense", "logits"})),
    "teacher_argmax": Loss(teacher_argmax, frozenset({"teacher", "classes"})),
    "binary_kl": Loss(binary_kl, frozenset({"teacher", "multilabel"})),
    "mse": Loss(mse, frozenset({"teacher", "features"})),
    "cosine": Loss(cosine, frozenset({"teacher", "features"})),
    "cross_entropy": Loss(cross_entropy, frozenset({"labels"})),
}


def find_loss(name: str) -> Loss:
    """Find a loss by its name, or a user's own by its import path.

    A user's function takes what `Loss.function` takes, and says in its attribute `needs` what its targets must hold;
    without that it needs a teacher of classes.

    Raises:
        ConfigError: nothing of that name, or needs that are none.
    """
    return choose("[[losses]]", "loss", name, LOSSES, lambda function: _own(name, function))


def _own(name: str, function: Callable[..., Any]) -> Loss:
    needs = getattr(function, "needs", ("teacher", "classes"))
    if isinstance(needs, str) or not isinstance(needs, Collection) or not set(needs) <= set(NEEDS):
        raise ConfigError(f"[[losses]] {name}: its needs are {needs!r}; they may be some of {', '.join(NEEDS)}")
    if {"dense", "logits"} & set(needs):
        needs = {*needs, "classes"}

    @functools.wraps(function)
    def checked(*args: Any, **params: Any) -> Tensor:
        try:
            rows = function(*args, **params)
        except (MemoryError, DistillogError):
            raise
        except Exception as error:
            raise ConfigError(f"[[losses]] {name} raised {said(error)}") from error
        if not isinstance(rows, Tensor) or rows.shape != args[2].shape:
            got = f"a tensor of shape {tuple(rows.shape)}" if isinstance(rows, Tensor) else type(rows).__name__
            raise ConfigError(f"[[losses]] {name} gave {got}: it has to give one number per row, {len(args[2])} here")
        return rows

    return Loss(checked, frozenset(needs))


def need_labels(settings: RunSettings) -> bool:
    """Whether a loss of the run looks at the samples' true labels."""
    return any("labels" in find_loss(entry.name).needs for entry in settings.losses if not entry.labels)
