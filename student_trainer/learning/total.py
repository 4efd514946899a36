"""The total of a run's losses, a function of what the student gives and what the teachers gave.

Letters: B rows of a batch.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence

from torch import Tensor, nn

from student_trainer.learning.student_outputs import pick
from student_trainer.learning.targets import Target
from student_trainer.learning.terms import Term

Total = Callable[[Mapping[str, Tensor], Mapping[str, Target], Tensor, Tensor | None], tuple[Tensor, dict[str, Tensor]]]
"""(student's outputs by name, targets by name, labels [B], weights [B] or None for ones) -> (scalar, rows by key)"""


def total_loss(
    terms: Sequence[Term], labelled_fraction: float, projections: Mapping[str, nn.Module] | None = None
) -> Total:
    """Return the run's loss; the rows that it gives have their own weights, but not the entry's.

    A row's weight is a factor on each of its losses; the mean is over all B, whatever their weights.
    A soft loss is the mean over its targets, weighted by their shares. Whatever the codec, the device and autocast,
    a loss sees float32: softened in float16, most of a confident teacher's probabilities would be 0.
    """
    names = dict.fromkeys(name for term in terms for name in term.shares)
    given = dict.fromkeys(term.on for term in terms)
    functions = [_rows_of(term, labelled_fraction, (projections or {}).get(term.key)) for term in terms]

    def total(
        outputs: Mapping[str, Tensor], targets: Mapping[str, Target], labels: Tensor, weights: Tensor | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        # Here and nowhere else: rows travel as narrow as they were stored, and widening a whole batch costs little.
        widened = {name: targets[name].widened() for name in names}
        student = {on: pick(outputs, on).float() for on in given}
        result: Tensor | None = None
        parts: dict[str, Tensor] = {}
        for term, function in zip(terms, functions, strict=True):
            rows = function(student[term.on], widened, labels)
            if weights is not None:
                rows = rows * weights
            mean = rows.mean()
            parts[term.key] = rows.detach()
            # A product costs microseconds, forward and backward.
            weighted = mean if term.weight == 1 else term.weight * mean
            result = weighted if result is None else result + weighted
        assert result is not None
        return result, parts

    return total


def _rows_of(
    term: Term, labelled_fraction: float, projection: nn.Module | None
) -> Callable[[Tensor, Mapping[str, Target], Tensor], Tensor]:
    """Return (student's output, all targets, labels [B]) -> [B]."""
    function, of, temperature, params = term.loss.function, term.loss.rows, term.temperature, dict(term.params)
    if "labels" in term.loss.needs and "labelled_fraction" in inspect.signature(function).parameters:
        params["labelled_fraction"] = labelled_fraction
    shares = list(term.shares.items())

    def rows_of(output: Tensor, targets: Mapping[str, Target], labels: Tensor) -> Tensor:
        if not shares:
            return function(output, None, labels, temperature, **params)
        if projection is not None:
            output = projection(output)
        (first, share), *others = shares
        rows = of(output, targets[first], labels, temperature, **params) * share
        for name, share in others:
            rows = rows + share * of(output, targets[name], labels, temperature, **params)
        return rows

    return rows_of
