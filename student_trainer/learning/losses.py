"""Losses: what one batch of student logits costs against soft targets and hard labels.

Letters: B rows of a batch, C classes, k kept classes, T temperature.
Each returns [B], one number per row; the trainer weighs and averages. The factor T^2 of softened losses belongs to
the loss, so that a weight means the same at every temperature (Hinton et al. 2015, section 2). Hinton's loss is
`forward_kl` and `cross_entropy` side by side in the run file, each with its weight.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor
from torch.nn import functional

from pipeline.user_code import said
from schemas.errors import ConfigError, DistillogError
from student_trainer.learning.targets import Target, target_name, times_log
from student_trainer.run.choices import choose
from student_trainer.run.toml_tables import unknown

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


@dataclass(frozen=True, slots=True)
class Loss:
    """A loss and what its targets must hold."""

    function: Callable[..., Tensor]
    """(student logits [B, C] float32, target or None, labels [B] int64, temperature, **params) -> [B] float32."""
    needs: frozenset[str]
    """Of "teacher" (any soft targets), "dense" (all C), "logits" (not logs of probabilities), "labels"."""


LOSSES: dict[str, Loss] = {
    "forward_kl": Loss(forward_kl, frozenset({"teacher"})),
    "reverse_kl": Loss(reverse_kl, frozenset({"teacher", "dense"})),
    "logit_mse": Loss(logit_mse, frozenset({"teacher", "dense", "logits"})),
    "teacher_argmax": Loss(teacher_argmax, frozenset({"teacher"})),
    "cross_entropy": Loss(cross_entropy, frozenset({"labels"})),
}

_LACKING = {
    "teacher": 'a teacher\'s soft targets, but source = "dataset" has none',
    "dense": "all classes' logits, but a teacher's codec keeps only some; make the stream with float32 or float16",
    "logits": "true logits, but a teacher gives probabilities; use forward_kl",
    "labels": "labels, but no sample shows one; raise data.labelled or take a labelled dataset",
}


def find_loss(name: str) -> Loss:
    """Find a loss by its name, or a user's own by its import path.

    A user's function takes what `Loss.function` takes, and says in its attribute `needs` what its targets must hold;
    without that it needs a teacher.

    Raises:
        ConfigError: nothing of that name, or needs that are none.
    """
    return choose("[[losses]]", "loss", name, LOSSES, lambda function: _own(name, function))


def _own(name: str, function: Callable[..., Any]) -> Loss:
    needs = getattr(function, "needs", ("teacher",))
    if isinstance(needs, str) or not isinstance(needs, Collection) or not set(needs) <= _LACKING.keys():
        raise ConfigError(f"[[losses]] {name}: its needs are {needs!r}; they may be some of {', '.join(_LACKING)}")

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


def check_losses(
    settings: RunSettings, available: Collection[str], temperatures: Collection[float] | None = None
) -> None:
    """Refuse losses that the source's targets cannot serve.

    Args:
        settings: the run's.
        available: what the source has: of "teacher", "dense", "logits", "labels".
        temperatures: the T whose tail mass top-k targets hold; None where any T will do.

    Raises:
        ConfigError: an unknown loss or parameter, or a need that is not met; names the loss.
    """
    for entry in settings.losses:
        loss = find_loss(entry.name)
        parameters = set(list(inspect.signature(loss.function).parameters)[4:]) - {"labelled_fraction"}
        for key in entry.params:
            if key not in parameters:
                raise ConfigError(f"[[losses]] {entry.name}: {unknown('key', key, parameters | _LOSS_KEYS)}")
        for need in sorted(loss.needs - set(available), key=list(_LACKING).index):
            raise ConfigError(f"[[losses]] {entry.name} needs {_LACKING[need]}")
        if temperatures is not None and entry.name == "forward_kl" and entry.temperature not in temperatures:
            declared = ", ".join(str(each) for each in sorted(temperatures))
            raise ConfigError(
                f"[[losses]] {entry.name}: temperature {entry.temperature} has no stored tail mass; "
                f"the stream's codec declares {declared}"
            )


def need_labels(settings: RunSettings) -> bool:
    """Whether a loss of the run looks at true labels."""
    return any("labels" in find_loss(entry.name).needs for entry in settings.losses)


_LOSS_KEYS = {"name", "weight", "temperature"}

Total = Callable[[Tensor, Mapping[str, Target], Tensor, Tensor | None], tuple[Tensor, dict[str, Tensor]]]
"""(logits [B, C], targets by name, labels [B], weights [B] or None for ones) -> (scalar, each entry's rows [B])"""


def total_loss(settings: RunSettings, labelled_fraction: float) -> Total:
    """Return the run's loss; the rows that it gives have their own weights, but not the entry's.

    A row's weight is a factor on each of its losses; the mean is over all B, whatever their weights.
    A soft loss is the mean over the teachers, weighted by their weights. Whatever the codec, the device and autocast,
    a loss sees float32: softened in float16, most of a confident teacher's probabilities would be 0.
    """
    of_all = sum(teacher.weight for teacher in settings.teachers)
    shares = {target_name(teacher.name): teacher.weight / of_all for teacher in settings.teachers}
    terms: list[tuple[str, Callable[..., Tensor], float, float, bool, dict[str, Any]]] = []
    for entry in settings.losses:
        loss = find_loss(entry.name)
        params = dict(entry.params)
        if "labels" in loss.needs and "labelled_fraction" in inspect.signature(loss.function).parameters:
            params["labelled_fraction"] = labelled_fraction
        # The same loss may stand twice, at two temperatures, so its name alone is no key.
        key = entry.name if entry.name not in {term[0] for term in terms} else f"{entry.name}@{entry.temperature}"
        terms.append((key, loss.function, entry.weight, entry.temperature, "teacher" in loss.needs, params))

    def total(
        logits: Tensor, targets: Mapping[str, Target], labels: Tensor, row_weights: Tensor | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        # Here and nowhere else: rows travel as narrow as they were stored, and widening a whole batch costs little.
        logits, widened = logits.float(), [(targets[name].widened(), share) for name, share in shares.items()]
        result: Tensor | None = None
        parts: dict[str, Tensor] = {}
        for key, function, weight, temperature, soft, params in terms:
            if soft:
                (target, share), *others = widened
                rows = function(logits, target, labels, temperature, **params) * share
                for target, share in others:
                    rows = rows + share * function(logits, target, labels, temperature, **params)
            else:
                rows = function(logits, None, labels, temperature, **params)
            if row_weights is not None:
                rows = rows * row_weights
            mean = rows.mean()
            parts[key] = rows.detach()
            weighted = mean if weight == 1 else weight * mean  # a product costs microseconds, forward and backward
            result = weighted if result is None else result + weighted
        assert result is not None
        return result, parts

    return total
