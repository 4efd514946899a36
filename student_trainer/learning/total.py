"""The total of a run's losses, a function of what the student gives and what the teachers gave.

Letters: B rows of a batch.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from schemas.errors import ConfigError
from student_trainer.learning.alignment import Alignment, alignments
from student_trainer.learning.ensembles import chosen_teacher, mean_target, shares_of_rows
from student_trainer.learning.part_target import PartTarget
from student_trainer.learning.partner_labels import PARTNERS, PartnerTarget
from student_trainer.learning.schedules import scheduled
from student_trainer.learning.student_outputs import pick
from student_trainer.learning.targets import Target
from student_trainer.learning.terms import Term
from student_trainer.learning.whole_batch import WholeBatch

Total = Callable[
    [Mapping[str, Tensor], Mapping[str, Target], Tensor, Tensor | None, int], tuple[Tensor, dict[str, Tensor]]
]
"""(student's outputs by name, targets by name, labels [B], weights [B] or None for ones, step) -> (scalar, rows by key)

The step, from 0, is that of the schedules."""


def total_loss(
    terms: Sequence[Term],
    labelled_fraction: float,
    projections: Mapping[str, nn.Module] | None = None,
    total_steps: int = 1,
    whole: WholeBatch | None = None,
) -> Total:
    """Return the run's loss; the rows that it gives have their own weights, but not the entry's.

    A row's weight is a factor on each of its losses; the mean is over all B, whatever their weights.
    A soft loss is the mean over its targets, weighted by their shares, unless its term makes one of them, or takes one
    for each row (`ensembles.py`). Where teachers count in some rows alone, it is of each row the mean of those that do,
    so that its scale stays; a row without any costs 0, as where the student has no past yet. Whatever the codec, the
    device and autocast, a loss sees float32: softened in float16, most of a confident teacher's probabilities would be
    0.

    `whole` is the batch of several processes, each of which has a share of it; None: there are all rows.

    Raises:
        ConfigError: a schedule that makes no sense over `total_steps`, the run's.
    """
    names = dict.fromkeys(name for term in terms for name in term.shares)
    parted = {name for term in terms for name in term.parted}
    layers = projections or {}
    functions = [_rows_of(term, labelled_fraction, layers.get(term.key), total_steps, whole) for term in terms]
    factors = [
        scheduled(term.weight, term.weight_schedule, total_steps, f"[[losses]] {term.key}: weight_schedule")
        for term in terms
    ]

    def total(
        outputs: Mapping[str, Tensor],
        targets: Mapping[str, Target],
        labels: Tensor,
        weights: Tensor | None = None,
        step: int = 0,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        # Here and nowhere else: rows travel as narrow as they were stored, and widening a whole batch costs little.
        widened = {name: targets[name].widened() for name in names if name in targets or name not in parted}
        student = _Student(outputs)
        result: Tensor | None = None
        parts: dict[str, Tensor] = {}
        for term, function, factor in zip(terms, functions, factors, strict=True):
            rows = function(student, widened, labels, weights, step)
            if weights is not None:
                rows = rows * weights
            mean = rows.mean()
            parts[term.key] = rows.detach()
            # A product costs microseconds, forward and backward.
            weight = factor(step)
            weighted = mean if weight == 1 else weight * mean
            result = weighted if result is None else result + weighted
        assert result is not None
        return result, parts

    return total


class _Student:
    """What a student gave of a batch, in float32; widened once, and of what targets of positions pick no more."""

    def __init__(self, outputs: Mapping[str, Tensor]) -> None:
        self._outputs = outputs
        self._picked: dict[tuple[str, str, tuple[str, int]], Tensor] = {}

    def at(self, on: str, target: Target | None = None, aligned: Alignment | None = None) -> Tensor:
        """Return what of an output, reduced as the target was, lies against its rows; without one, all of it."""
        key = on, "" if target is None else target.field, ("", 0) if aligned is None else aligned.reduction
        if key not in self._picked:
            output = pick(self._outputs, on)
            output = output if aligned is None else aligned.reduced(output)
            self._picked[key] = (output if target is None else target.picked(output)).float()
        return self._picked[key]


def _rows_of(
    term: Term,
    labelled_fraction: float,
    projection: nn.Module | None,
    total_steps: int,
    whole: WholeBatch | None,
) -> Callable[[_Student, Mapping[str, Target], Tensor, Tensor | None, int], Tensor]:
    """Return (what the student gave, targets, labels [B], weights [B], step) -> [B], which no weight is a factor of."""
    function, of, params = term.loss.function, term.loss.rows, dict(term.params)
    section = f"[[losses]] {term.key}: temperature_schedule"
    temperature_at = scheduled(term.temperature, term.temperature_schedule, total_steps, section)
    if not all(temperature_at(step) > 0 for step in (0, total_steps - 1)):
        raise ConfigError(f"{section}: the temperature falls to 0: let it end above that")
    of_samples = "labels" in term.loss.needs and not term.labels
    if of_samples and "labelled_fraction" in inspect.signature(function).parameters:
        params["labelled_fraction"] = labelled_fraction
    aligned = alignments(term.specs)
    shares = [(name, share, aligned.get(name)) for name, share in term.shares.items()]

    def rows_of(
        student: _Student, targets: Mapping[str, Target], labels: Tensor, weights: Tensor | None, step: int
    ) -> Tensor:
        temperature = temperature_at(step)
        if not shares:
            return function(student.at(term.on), None, labels, temperature, **params)
        if isinstance(partners := targets.get(PARTNERS) if term.mixed else None, PartnerTarget):
            output = student.at(term.on)
            # A loss of labels is linear in these, so each half costs its share of what it would cost alone.
            halves = [function(output, None, each, temperature, **params) for each in (labels, partners.labels)]
            return partners.mixed(*halves)
        compared: dict[tuple[str, Alignment | None], Tensor] = {}

        def against(target: Target, aligned: Alignment | None) -> Tensor:
            key = target.field, aligned
            if key not in compared:
                output = student.at(term.on, target, aligned)
                output = output if aligned is None else aligned.gathered(output)
                compared[key] = output if projection is None else projection(output)
            return compared[key]

        def cost(target: Target, aligned: Alignment | None) -> Tensor:
            if isinstance(target, PartTarget):
                given = target.picked(against(target.rows, aligned))
            else:
                given = against(target, aligned)
            if whole is not None and term.loss.batchwise:
                return whole.rows(term.loss, given, target, labels, temperature, weights, params)
            return of(given, target, labels, temperature, weights, **params)

        present = [each for each in shares if each[0] in targets or each[0] not in term.parted]
        if not present:
            return torch.zeros(labels.shape, device=labels.device)
        of_each = [targets[name] for name, *_ in present]
        own = [share for _, share, _ in present]
        if term.mean:
            own = [share / sum(own) for share in own] if term.parted else own
            return cost(mean_target(of_each, own, term.mean, temperature), present[0][2])
        costs = [cost(targets[name], aligned) for name, _, aligned in present]
        if term.choose:
            return torch.stack(costs).gather(0, chosen_teacher(of_each, labels, term.choose)[None])[0]
        of_rows = shares_of_rows(of_each, own, len(labels)) if term.parted else own
        rows = costs[0] * of_rows[0]
        for more, share in zip(costs[1:], of_rows[1:], strict=True):
            rows = rows + share * more
        return rows

    return rows_of
