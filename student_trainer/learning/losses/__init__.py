"""Losses by name: a function each, in responses, features, relations or labels, and a line in LOSSES."""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Any

from torch import Tensor

from pipeline.user_code import said
from schemas.errors import ConfigError, DistillogError
from student_trainer.learning.losses.features import attention_transfer, cosine, mse, places_of_map
from student_trainer.learning.losses.labels import cross_entropy
from student_trainer.learning.losses.loss import (
    BELOW_1,
    BETWEEN_0_AND_1,
    NEEDS,
    NOT_NEGATIVE,
    TRUE_OR_FALSE,
    Loss,
)
from student_trainer.learning.losses.relations import of_any_shape, rkd_angle, rkd_distance, similarity
from student_trainer.learning.losses.responses import (
    binary_kl,
    dist,
    dkd,
    forward_kl,
    jsd,
    logit_mse,
    nkd,
    reverse_kl,
    sampled_cross_entropy,
    teacher_argmax,
)
from student_trainer.run.choices import choose

if TYPE_CHECKING:
    from student_trainer.run.settings import RunSettings

__all__ = ["LOSSES", "NEEDS", "Loss", "cross_entropy", "find_loss", "need_labels"]

_CLASSES = frozenset({"teacher", "classes"})
_DENSE = _CLASSES | {"dense"}
_FEATURES = frozenset({"teacher", "features"})
_STANDARDISE = {"standardise": TRUE_OR_FALSE}
_PARTS = {"alpha": NOT_NEGATIVE, "beta": NOT_NEGATIVE}

LOSSES: dict[str, Loss] = {
    "forward_kl": Loss(forward_kl, _CLASSES, limits=_STANDARDISE, dense_if="standardise"),
    "reverse_kl": Loss(reverse_kl, _DENSE, limits=_STANDARDISE),
    "jsd": Loss(jsd, _DENSE, limits={"beta": BETWEEN_0_AND_1} | _STANDARDISE),
    "dkd": Loss(dkd, _DENSE | {"labels"}, limits=_PARTS | _STANDARDISE),
    "nkd": Loss(nkd, _DENSE | {"labels"}, limits={"gamma": NOT_NEGATIVE}),
    "dist": Loss(dist, _DENSE, batchwise=True, limits={"beta": NOT_NEGATIVE, "gamma": NOT_NEGATIVE}),
    "logit_mse": Loss(logit_mse, _DENSE | {"logits"}),
    "teacher_argmax": Loss(teacher_argmax, _CLASSES),
    "sampled_cross_entropy": Loss(sampled_cross_entropy, frozenset({"teacher", "draws"})),
    "binary_kl": Loss(binary_kl, frozenset({"teacher", "multilabel"})),
    "mse": Loss(mse, _FEATURES),
    "cosine": Loss(cosine, _FEATURES),
    "attention_transfer": Loss(attention_transfer, _FEATURES, compared=places_of_map),
    "rkd_distance": Loss(rkd_distance, _FEATURES, batchwise=True, compared=of_any_shape),
    "rkd_angle": Loss(rkd_angle, _FEATURES, batchwise=True, compared=of_any_shape),
    "similarity": Loss(similarity, _FEATURES, batchwise=True, compared=of_any_shape),
    "cross_entropy": Loss(cross_entropy, frozenset({"labels"}), limits={"label_smoothing": BELOW_1}),
}


def find_loss(name: str) -> Loss:
    """Find a loss by its name, or a user's own by its import path.

    A user's function takes what `Loss.function` takes, and says in its attribute `needs` what its targets must hold;
    without that it needs a teacher of classes. Where its attribute `batchwise` is true it compares rows with one
    another.

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
    batchwise = bool(getattr(function, "batchwise", False))
    if batchwise and not {"dense", "logits", "features"} & set(needs):
        raise ConfigError(f"[[losses]] {name}: is batchwise, so its needs have to hold dense or features")

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

    return Loss(checked, frozenset(needs), batchwise)


def need_labels(settings: RunSettings) -> bool:
    """Whether a loss of the run looks at the samples' true labels."""
    return any(
        "labels" in find_loss(entry.name).needs or entry.choose == "label"
        for entry in settings.losses
        if not entry.labels
    )
