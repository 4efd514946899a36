"""How a student's output is brought to what a teacher's soft targets are of: reduced as they are, and to their classes.

Letters: B rows of a batch, C classes of the student, K of them that the targets are of.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from schemas.errors import ConfigError
from schemas.reductions import Reduction
from student_trainer.learning.targets import TargetSpec

REDUCTIONS: dict[str, Callable[[Tensor, int], Tensor]] = {
    "mean": lambda values, axis: values.mean(dim=axis),
    "first": lambda values, axis: values.select(axis, 0),
    "attention": lambda values, axis: values.square().mean(dim=axis),
}
"""As those of `schemas.reductions`, of a student's tensors."""


class Alignment:
    """What is done to a student's output before it is compared with an output of a teacher's."""

    def __init__(self, reduction: str = "", axes: int = 0, classes: Sequence[int] = ()) -> None:
        """As a `TargetSpec` has them."""
        self.reduction = reduction, axes
        """As text, and of how many axes what it reduces: where both are equal, so is what comes of an output."""
        self._reduction = Reduction.parse(reduction) if reduction else None
        self._axes = axes
        self._classes = torch.tensor(classes, dtype=torch.int64)
        """[K], rising; [0] where the targets are of all."""
        self._beyond = max(classes, default=-1) + 1

    def as_dict(self) -> dict[str, Any]:
        """Return what it was made of, for JSON."""
        return {"reduction": self.reduction[0], "axes": self._axes, "classes": self._classes.tolist()}

    def row(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return the shape that a row of a student's output comes to.

        Raises:
            ConfigError: the targets are of classes that it does not have.
        """
        if self._reduction is not None and len(shape) == self._axes:
            return self._reduction.row(shape)
        if not self._beyond:
            return shape
        if not shape or shape[-1] < self._beyond:
            raise ConfigError(f"are of classes up to {self._beyond - 1}")
        return (*shape[:-1], len(self._classes))

    def __call__(self, output: Tensor) -> Tensor:
        """Return of a student's [B, ...] what is compared."""
        return self.gathered(self.reduced(output))

    def reduced(self, output: Tensor) -> Tensor:
        """Return [B, ...] reduced, unless it has as few axes as the targets have by itself."""
        if self._reduction is None or output.ndim - 1 != self._axes:
            return output
        return REDUCTIONS[self._reduction.name](output.float(), self._reduction.axis)

    def gathered(self, output: Tensor) -> Tensor:
        """Return of [..., C] logits the [..., K] of the targets' classes.

        A softmax over them is the student's distribution given that it is one of these (Hinton et al. 2015, section 5,
        on specialists).
        """
        if not self._beyond or len(self._classes) == output.shape[-1]:
            return output
        if self._classes.device != output.device:
            self._classes = self._classes.to(output.device)
        return output.index_select(-1, self._classes)


def alignments(specs: Mapping[str, TargetSpec]) -> dict[str, Alignment]:
    """Return that of each target: one object for all that are equal, by which results may be kept."""
    keys = {name: (spec.reduction, spec.axes, spec.classes) for name, spec in specs.items()}
    made = {key: Alignment(*key) for key in keys.values()}
    return {name: made[key] for name, key in keys.items()}
