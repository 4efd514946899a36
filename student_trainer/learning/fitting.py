"""Holds the terms of a run's loss against what its student gives, and makes the layers that lead to a teacher's width.

All that does not fit is refused before the first step.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import nn

from pipeline.hashing import hash_int, tag
from schemas.errors import ConfigError
from student_trainer.learning.alignment import alignments
from student_trainer.learning.losses import Loss
from student_trainer.learning.losses.loss import whole
from student_trainer.learning.own_targets import own_spec
from student_trainer.learning.student_outputs import pick
from student_trainer.learning.targets import TargetSpec
from student_trainer.learning.terms import Term, rows_shown

_PROJECTION = tag("student_trainer.projection")


def fit(
    terms: Sequence[Term],
    given: Mapping[str, tuple[int, ...]],
    num_classes: int,
    seed: int,
    of_peers: Mapping[str, Mapping[str, tuple[int, ...]]] | None = None,
) -> dict[str, nn.Linear | nn.Conv2d]:
    """Hold the terms against what the student gives, and make the projections of those that ask for one.

    Args:
        terms: the run's.
        given: shape of a row of each of the student's outputs.
        num_classes: of the labels.
        seed: the run's; the initial weights of a projection depend on it and the term's key alone.
        of_peers: name of each other student -> what it gives.

    Returns:
        Key -> layer from the student's width to the teacher's, or from its channels to those.

    Raises:
        ConfigError: no such output, or another shape than the targets'.
    """
    projections: dict[str, nn.Linear | nn.Conv2d] = {}
    for term in terms:
        what = f"[[losses]] {term.key}"
        try:
            shape = pick(given, term.on)
        except ConfigError as error:
            raise ConfigError(f"{what}: {error}") from None
        if term.labels:
            needed = (*term.places, shape[-1] if shape else num_classes)  # it may know any number of classes
            shown = rows_shown((*term.places, "classes"))
            _refuse_shape(what, term.loss, shape, f"the labels of field {term.labels!r}", needed, shown)
        elif term.mixed or not term.shares:  # it may know more classes than the labels have
            wanted = (max(num_classes, *shape),) if len(shape) == 1 else (num_classes,)
            _refuse_shape(what, term.loss, shape, "the labels' classes", wanted)
        specs = {name: own_spec(term, name, given, of_peers or {}) for name in term.shares} if term.own else term.specs
        aligned = alignments(specs)
        for name, spec in specs.items():
            try:
                row = aligned[name].row(shape)
            except ConfigError as error:
                raise ConfigError(
                    f"{what}: the student gives rows of {rows_shown(shape)}, and {name} {error}"
                ) from None
            if "labels" in term.loss.needs and len(spec.whole) != 1:
                raise ConfigError(
                    f"{what}: a sample has one label, the rows of {rows_shown(spec.whole)} several places"
                )
            if "labels" in term.loss.needs and spec.classes and row != shape:
                raise ConfigError(f"{what}: labels are of all {shape[-1]} classes, and {name} is of {row[-1]} of them")
            by_label = "labels" in term.loss.needs or term.choose == "label"
            if by_label and "classes" in term.loss.needs and row and row[-1] < num_classes:
                raise ConfigError(f"{what}: labels are of {num_classes} classes, {name} is of {row[-1]}")
            projects = _PROJECTS.get(term.projection)
            if projects is None or not projects(row, spec):
                _refuse_shape(what, term.loss, row, name, spec.whole, places=len(spec.places))
            elif term.key not in projections:
                torch.manual_seed(hash_int(seed, _PROJECTION, tag(term.key)) >> 1)
                projections[term.key] = layer_of(term.projection, row, spec.whole)
    return projections


_PROJECTS: Mapping[str, Callable[[tuple[int, ...], TargetSpec], bool]] = {
    "linear": lambda row, spec: bool(row and spec.whole) and row[:-1] == spec.whole[:-1],
    "conv": lambda row, spec: len(row) == 3 == len(spec.shape) and not spec.places and row[1:] == spec.shape[1:],
}
"""Projection -> whether it leads from a student's rows to a target's."""


def layer_of(projection: str, row: tuple[int, ...], wanted: tuple[int, ...]) -> nn.Linear | nn.Conv2d:
    """Return a new layer that leads from rows of one shape to those of another, which differ as the projection says."""
    if projection == "conv":
        return nn.Conv2d(row[0], wanted[0], kernel_size=1)
    return nn.Linear(row[-1], wanted[-1])


def _refuse_shape(
    what: str,
    loss: Loss,
    shape: tuple[int, ...],
    against: str,
    wanted: tuple[int, ...],
    shown: str = "",
    places: int = 0,
) -> None:
    """Raise ConfigError where rows of the student's are of another shape than those that they are against.

    `places`: how many of the axes are places, of which some positions are taken; the rows are of all others.
    """
    try:
        alike = loss.compared(shape[places:]) == loss.compared(wanted[places:])
    except ConfigError as error:
        raise ConfigError(
            f"{what}: {error}; the student gives {rows_shown(shape)}, {against} is {rows_shown(wanted)}"
        ) from None
    if alike and shape[:places] == wanted[:places]:
        return
    hint = ""
    if "features" in loss.needs and loss.compared is whole:
        if shape[:-1] == wanted[:-1]:
            hint = '; where widths alone differ, say projection = "linear"'
        elif len(shape) == len(wanted) == 3 and shape[1:] == wanted[1:]:
            hint = '; where channels alone differ, say projection = "conv"'
    raise ConfigError(
        f"{what}: the student gives rows of {rows_shown(shape)}, against {against} of "
        f"{shown or rows_shown(wanted)}{hint}"
    )


def label_limits(terms: Sequence[Term], given: Mapping[str, tuple[int, ...]]) -> dict[str, int]:
    """Return the fields of hard labels of positions, and how many classes the student, which fits, tells apart."""
    limits: dict[str, int] = {}
    for term in terms:
        if term.labels:
            limits[term.labels] = min(pick(given, term.on)[-1], limits.get(term.labels, sys.maxsize))
    return limits
