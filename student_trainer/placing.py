"""Finds where a batch's targets of positions lie, once the views of its samples are there.

Letters: B rows of a batch, P positions of them all. Both sides know the positions of a pure view, so labels only count
them; all of it is computed here, on the CPU and ahead of the step, which need not wait for its device then.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from pipeline.views.positions import choosers, what_is_chosen
from pipeline.views.positions import chosen as chosen_by
from schemas.errors import ConfigError, ManifestMismatch
from schemas.names import did_you_mean
from schemas.positions import Chosen
from student_trainer.batches import RowBatch, cut_of
from student_trainer.columns import Buffer
from student_trainer.learning.positions import LabelTarget, PositionTarget, labels_name
from student_trainer.learning.targets import Target, TargetSpec


@dataclass(frozen=True, eq=False)
class _Chosen:
    """The places of a field that are chosen."""

    mask: NDArray[np.bool_]
    """[B, *places]"""
    pin: bool

    @cached_property
    def at(self) -> Tensor:
        """[P] int64: which of the B x prod(places) they are."""
        return _tensor(np.flatnonzero(self.mask), self.pin)

    @cached_property
    def said(self) -> Chosen:
        """What labels say of them."""
        return what_is_chosen(self.mask)

    @cached_property
    def counts(self) -> Tensor:
        """[B] int64: how many are of each sample."""
        return _tensor(self.said.counts, self.pin)


class Placing:
    """Brings the targets of a run's batches to their places; used by one thread.

    Args:
        specs: of the run's targets, by name.
        labels: fields of hard labels, and how many classes the student tells apart there.
        pin: allocate page-locked memory, which a CUDA copy need not wait for.
    """

    def __init__(self, specs: Mapping[str, TargetSpec], labels: Mapping[str, int], pin: bool = False) -> None:
        self._specs = {name: spec for name, spec in specs.items() if spec.positions}
        self._labels = labels
        self._pin = pin

    def targets(self, rows: RowBatch, inputs: Mapping[str, Tensor]) -> dict[str, Target]:
        """Return the targets of a batch that is seen as these views, hard labels of positions among them.

        Raises:
            ManifestMismatch: the views here choose other positions than the teacher's did.
            ConfigError: a hard label that is none of the student's classes.
        """
        found, fields = dict(rows.targets), dict[str, _Chosen]()
        for name in rows.counts:
            spec = self._specs[name]
            if spec.positions not in fields:
                fields[spec.positions] = self._chosen(name, spec, rows, inputs)
            chosen = fields[spec.positions]
            _refuse_others(name, spec.positions, rows, chosen.said)
            found[name] = PositionTarget(
                found[name], spec.positions, spec.places, chosen.at, chosen.counts, rows.density[name]
            )
        for field, num_classes in self._labels.items():
            found[labels_name(field)] = self._labelled(field, num_classes, rows, inputs[field].numpy(), fields)
        return found

    def _chosen(self, name: str, spec: TargetSpec, rows: RowBatch, inputs: Mapping[str, Tensor]) -> _Chosen:
        field = spec.positions
        if field not in inputs:
            raise ManifestMismatch(
                f"{name} is of the positions that field {field!r} of the view chooses; here is none: "
                f"{did_you_mean(field, inputs)}"
            )
        values = inputs[field].numpy()
        if values.shape[1:] != spec.places:
            raise ManifestMismatch(
                f"{name} is of positions of {list(spec.places)}, but field {field!r}, which chooses them, is of "
                f"{list(values.shape[1:])} here"
            )
        if not (sound := choosers(values)).all():
            row = int(np.flatnonzero(~sound)[0])
            least = values[row].min()
            raise ManifestMismatch(
                f"{_place(rows, row)}: field {field!r} holds {least}; it chooses the positions of {name}, those where "
                "it is not 0, and has to hold no negative number"
            )
        return _Chosen(chosen_by(values), self._pin)

    def _labelled(
        self, field: str, num_classes: int, rows: RowBatch, values: NDArray[Any], fields: Mapping[str, _Chosen]
    ) -> Target:
        wrong = (values < -1) | (values >= num_classes)
        if wrong.any():
            row = int(np.flatnonzero(wrong.reshape(len(values), -1).any(axis=1))[0])
            label = values[row][wrong[row]].flat[0]
            raise ConfigError(
                f"field {field!r} of sample {rows.sample_ids[row]} holds the label {label}; the student has "
                f"{num_classes} classes, and -1 says that there is no label"
            )
        mask, name = values >= 0, labels_name(field)
        chosen = _Chosen(mask, self._pin)
        for other, each in fields.items():
            if np.array_equal(mask, each.mask):  # then what the student gives there is picked once for both
                chosen, name = each, other
        labels = LabelTarget(_tensor(values[chosen.mask].astype(np.int64), self._pin))
        density = len(chosen.at) / len(values)
        return PositionTarget(labels, name, values.shape[1:], chosen.at, chosen.counts, density)


def _refuse_others(name: str, field: str, rows: RowBatch, here: Chosen) -> None:
    counts, marks = rows.counts[name].numpy(), rows.marks[name].numpy()
    unlike = np.flatnonzero((counts != here.counts) | (marks != here.marks))
    if not len(unlike):
        return
    row = int(unlike[0])
    others = "others" if counts[row] == here.counts[row] else here.counts[row]
    raise ManifestMismatch(
        f"{_place(rows, row)}: {name} has {counts[row]} positions, and field {field!r} chooses {others}: the view "
        "here chooses other positions than the teacher's; make both the same (data, view, and what it imports), and "
        "resume the run"
    )


def _place(rows: RowBatch, row: int) -> str:
    return f"{cut_of(rows.cuts, row).address}: sample {rows.sample_ids[row]}"


def _tensor(values: NDArray[np.int64], pin: bool) -> Tensor:
    """Return them in torch's own memory."""
    buffer = Buffer(values, len(values), pin)
    buffer.put(0, values)
    return buffer.tensor
