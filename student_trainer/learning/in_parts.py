"""Refuses losses that compare the rows of a whole batch where a step has no more than a part of it."""

from __future__ import annotations

from collections.abc import Sequence

from schemas.errors import ConfigError
from student_trainer.learning.terms import Term


def refuse_positions_in_parts(terms: Sequence[Term]) -> None:
    """Raise ConfigError where a loss compares positions with one another, of which each process has any number."""
    of_positions = [term for term in terms if any(spec.positions for spec in term.specs.values())]
    refuse_in_parts(of_positions, "each process has positions of its own: train in one process")


def refuse_parted_in_parts(terms: Sequence[Term]) -> None:
    """Raise ConfigError where a loss compares the rows of several processes, and a teacher counts in some alone."""
    reason = "a teacher with `from` or `until` has some of them alone: train in one process"
    refuse_in_parts([term for term in terms if term.parted and not term.own], reason)


def refuse_in_parts(terms: Sequence[Term], reason: str) -> None:
    """Raise ConfigError where a loss compares the rows of the whole batch, of which a step has no more than a part.

    Args:
        terms: the run's.
        reason: why it has, and what to do, as it ends "but ".
    """
    for term in terms:
        if term.loss.batchwise:
            raise ConfigError(
                f"[[losses]] {term.key}: compares the rows of a whole batch with one another, but {reason}"
            )
