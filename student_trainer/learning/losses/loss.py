"""What a loss is: what one batch of a student's outputs costs, and what it asks of its targets and its parameters.

Letters: B rows of a batch, C classes, k kept classes, T temperature. Of positions, B is how many there are.
Each function returns [B], one number per row; the trainer weighs and averages. The factor T^2 of softened losses
belongs to the loss, so that a weight means the same at every temperature (Hinton et al. 2015, section 2).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from schemas.errors import ConfigError
from student_trainer.learning.target_protocol import OverRows
from student_trainer.learning.targets import DenseTarget, FeatureTarget, Target

NEEDS = ("teacher", "classes", "dense", "logits", "multilabel", "features", "labels", "draws")
"""What a loss may need: soft targets, of classes that exclude one another, of all of them, as true logits, of classes
that do not exclude one another, or of no classes; labels; and classes drawn at random."""


_AT_ONCE = 1 << 20
"""Numbers of a student's output that a loss without a view to other rows is computed of at once. A loss needs some
arrays of that size for its gradient; of the logits of a large vocabulary at each position they would be most of what a
step needs. On a GPU it is 64 times as many, which keep it busy."""


class Limit(NamedTuple):
    """What a parameter of a loss may be."""

    holds: Callable[[Any], bool]
    says: str
    """As it ends "it has to be"."""


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


NOT_NEGATIVE = Limit(lambda value: _number(value) and value >= 0, "a number that is not negative")
BETWEEN_0_AND_1 = Limit(lambda value: _number(value) and 0 < value < 1, "a number above 0 and below 1")
BELOW_1 = Limit(lambda value: _number(value) and 0 <= value < 1, "a number from 0 on and below 1")
TRUE_OR_FALSE = Limit(lambda value: isinstance(value, bool), "true or false")


def whole(row: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape of a row: all of it is compared, number by number."""
    return row


@dataclass(frozen=True, slots=True)
class Loss:
    """A loss and what its targets must hold."""

    function: Callable[..., Tensor]
    """(student's output [B, ...] float32, target or None, labels [B] int64, temperature, **params) -> [B] float32.

    Classes are [B, C]; of a target of positions all of it is [P, ...]."""
    needs: frozenset[str]
    """Some of NEEDS."""
    batchwise: bool = False
    """Whether it compares the rows of the whole batch with one another. What a row costs is then its part: the mean
    over the rows is the loss."""
    compared: Callable[[tuple[int, ...]], tuple[int, ...]] = whole
    """Shape of a row -> what of it the student's and the teacher's have to have in common. May raise ConfigError."""
    limits: Mapping[str, Limit] = field(default_factory=dict)
    """What parameters may be; any other is the function's own business."""
    dense_if: str = ""
    """The parameter with which it needs `dense`, too."""

    def rows(
        self,
        output: Tensor,
        target: Target,
        labels: Tensor,
        temperature: float,
        weights: Tensor | None = None,
        /,
        **params: Any,
    ) -> Tensor:
        """Return the [B] rows of what a target picked of a student's output.

        Where a row has classes at several places, its cost is their mean. What each position costs is shared out among
        the rows such that their mean is that over all positions of the whole batch. Where rows are compared with one
        another, those of weight 0 are left out and cost 0, and the others what they would in a batch of their own;
        else the weights [B] are not looked at.
        """
        labels = target.labels_of(labels)
        # Of positions each has the weight of its sample.
        weights = target.labels_of(weights) if self.batchwise and weights is not None else None
        if not len(output):  # no position at all, which costs nothing: a loss of a user's own need not know
            rows = output.flatten(1).sum(dim=1)
        elif output.ndim == 2 or "classes" not in self.needs:
            rows = self._costs(output, target, labels, temperature, weights, params)
        else:
            places = output.shape[1:-1].numel()
            labels = labels.repeat_interleave(places)
            weights = None if weights is None else weights.repeat_interleave(places)
            rows = self._costs(output.flatten(0, -2), target.flat(), labels, temperature, weights, params)
            rows = rows.view(-1, places).mean(dim=1)
        return target.per_sample(rows)

    def _costs(
        self,
        output: Tensor,
        target: Target,
        labels: Tensor,
        temperature: float,
        weights: Tensor | None,
        params: Mapping[str, Any],
    ) -> Tensor:
        if weights is None or bool(weights.all()):
            return self._in_parts(output, target, labels, temperature, params)
        kept = weights.nonzero().flatten()
        if not len(kept):
            return (output * 0).reshape(len(output), -1).sum(dim=1)
        others = FeatureTarget(target.features[kept]) if "features" in self.needs else DenseTarget(target.logits[kept])
        costs = self.function(output[kept], others, labels[kept], temperature, **params)
        return costs.new_zeros(len(output)).index_copy(0, kept, costs)

    def _in_parts(
        self, output: Tensor, target: Target, labels: Tensor, temperature: float, params: Mapping[str, Any]
    ) -> Tensor:
        """Return what `function` gives, to the last digits of float32: which parts there are the shape alone says.

        Where the output is large it is computed some rows at a time, and once more for the gradient, so that what it
        takes between is there of these rows alone.
        """
        most = _AT_ONCE * (64 if output.is_cuda else 1)
        function = partial(self.function, **params)  # `checkpoint` takes keywords of its own, such as `debug`
        if self.batchwise or output.numel() <= most:
            return function(output, target, labels, temperature)
        of = target.rows if isinstance(target, OverRows) else target
        rows, first = max(1, most // output[0].numel()), 0
        costs = []
        # Not slices: the gradient of each would be as large as all.
        for part in torch.split(output, rows):
            behind = first + len(part)
            given = part, of.between(first, behind), labels[first:behind], temperature
            costs.append(checkpoint(function, *given, use_reentrant=False))
            first = behind
        return torch.cat(costs)

    @property
    def holds(self) -> frozenset[str]:
        """What it needs of soft targets; empty where it takes none."""
        return self.needs - {"labels"}

    def needs_with(self, params: Mapping[str, Any]) -> frozenset[str]:
        """Return what it needs with these parameters."""
        return self.needs | {"dense"} if params.get(self.dense_if) is True else self.needs

    def refuse(self, what: str, params: Mapping[str, Any]) -> None:
        """Raise ConfigError for a parameter that makes no sense; `what` begins the text."""
        for key, limit in self.limits.items():
            if key in params and not limit.holds(params[key]):
                raise ConfigError(f"{what}: {key} has to be {limit.says}, is {params[key]!r}")
