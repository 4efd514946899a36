"""What a worker finds out about its model before it labels anything.

A label may depend on its sample and view alone. Dropout left on, batch statistics left on and dynamically quantised
weights break that without an error, so the checks provoke it: the same rows again, in another order, and beside
different, rescaled rows (the last one alone sees dynamic quantisation: up to 0.24 logits measured).
Letters: M rows, P positions of theirs that are labelled, C classes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline import chance
from pipeline.datasets.base import Ints
from schemas.class_maps import mapped_labels
from schemas.errors import TeacherRejected
from schemas.kinds import check_kind
from schemas.positions import positions_of
from teacher_service.models.session import Inputs, OnnxTeacher, Outputs

TOLERANCE = 1e-4
"""largest change allowed, as a fraction of the range of an output"""
OUTPUT_BYTES = 256 << 20
"""Of all outputs of the rows that a model is checked with; no fewer rows than one call has."""

_RESCALE = 4.0
_MIN_ROWS_FOR_ACCURACY = 50
NO_CLASSES = "no accuracy: none of the teacher's outputs gives a sample one row of classes"
CHANCE_QUESTION = "are the classes in the dataset's order, the inputs scaled as in its training?"

Counts = Mapping[str, Ints]
"""output per position -> [M] how many of each row"""
Model = Callable[[Inputs], tuple[Outputs, Counts]]


def check_model(model: OnnxTeacher, inputs: Inputs) -> None:
    """Run all checks on the rows of one order, or on the first of them where its outputs are large.

    Raises:
        TeacherRejected: labels depend on their neighbours or on chance, are no numbers, or are not of their kind.
    """
    row_bytes = sum(4 * math.prod(output.shape) for output in model.teacher.outputs)
    inputs = first_rows(inputs, model.teacher.inference_batch, row_bytes)
    values = model.raw(inputs)
    for output in model.teacher.outputs:
        check_kind(values[output.name], output)
    problem = check_independence(lambda given: (model.label(given), model.num_positions(given)), inputs)
    if problem:
        raise TeacherRejected(f"{model.path}: {problem}")


def first_rows(inputs: Inputs, batch: int, row_bytes: int) -> dict[str, npt.NDArray[Any]]:
    """Return as many of the first rows as give OUTPUT_BYTES of outputs, one call's at least."""
    rows = max(batch, OUTPUT_BYTES // max(1, row_bytes))
    return {field: values[:rows] for field, values in inputs.items()}


def check_independence(model: Model, inputs: Inputs) -> str:
    """Provoke labels that depend on chance or on their neighbours.

    Returns:
        What is wrong in words, or nothing.
    """
    first, counts = model(inputs)
    num_rows = len(next(iter(inputs.values())))

    def changed(given: Outputs, rows: Ints) -> tuple[float, str]:
        """The largest change of `rows` of the first answer, as a fraction of its output's range, and which output's."""
        return max((_change(given[name], first[name], _places(counts.get(name), rows)), name) for name in first)

    every = np.arange(num_rows)
    change, name = changed(model(inputs)[0], every)
    if change > TOLERANCE:
        return (
            f"the same rows give other labels each time (output {name!r}, {change:.1e} of its range): is dropout left "
            "on? Export the model in evaluation mode"
        )
    change, name = changed(model({field: values[::-1] for field, values in inputs.items()})[0], every[::-1])
    if change <= TOLERANCE:
        kept = every[::2]
        beside, counted = model({field: _other_neighbours(values) for field, values in inputs.items()})
        change, name = changed({name: beside[name][_places(counted.get(name), kept)] for name in beside}, kept)
    if change > TOLERANCE:
        return (
            f"labels depend on their neighbours in the batch (output {name!r}, {change:.1e} of its range): batch "
            "statistics left on, or weights quantised dynamically? Export in evaluation mode, quantise statically"
        )
    return ""


def _places(counts: Ints | None, rows: Ints) -> Ints:
    """Where what is of some rows lies in an answer."""
    return rows if counts is None else positions_of(counts, rows)


def _change(given: npt.NDArray[np.float32], first: npt.NDArray[np.float32], rows: Ints) -> float:
    """The largest change of what lies in some places, as a fraction of the range of all."""
    finite = first[np.isfinite(first)]
    spread = float(np.ptp(finite)) if finite.size else 0.0
    with np.errstate(invalid="ignore"):  # rows that are not finite are left out of the labels anyway
        return float(np.nanmax(np.abs(given - first[rows]), initial=0.0)) / (spread or 1.0)


def _other_neighbours(values: npt.NDArray[np.generic]) -> npt.NDArray[np.generic]:
    """Every second row replaced: by another sample rescaled, by white images of bytes, or by values that occur.

    Other whole numbers may be IDs, of which others than those that occur may not exist.
    """
    others = values.copy()
    if values.dtype.kind == "f":
        others[1::2] = np.roll(values[1::2], 1, axis=0) * values.dtype.type(_RESCALE)
    elif values.dtype == np.uint8 and values.ndim == 4:
        others[1::2] = 255
    else:
        others[1::2] = values.max(axis=0)
    return others


def accuracy_notice(
    logits: npt.NDArray[np.float32], labels: npt.NDArray[np.int64], class_map: tuple[int, ...] = ()
) -> str:
    """Say how often the teacher is right on the rows with labels; a teacher at chance level is probably mapped wrongly.

    Args:
        logits: [M, C] as they are stored
        labels: [M] int64 classes of the dataset, -1 = unlabelled
        class_map: the teacher's; a sample of a class that it does not have is unlabelled to it
    """
    labels = mapped_labels(labels, class_map)
    labelled = labels >= 0
    count = int(labelled.sum())
    if not count:
        return ""
    accuracy = float((logits[labelled].argmax(axis=1) == labels[labelled]).mean())
    text = f"top-1 accuracy of the teacher on the first {count} labelled views: {accuracy:.1%}"
    found = chance_level(accuracy, labels[labelled], logits.shape[1])
    return f"{text} (chance level: {found}; {CHANCE_QUESTION})" if found else text


def chance_level(accuracy: float, labels: npt.NDArray[np.int64], num_classes: int) -> str:
    """Say where a teacher is no better than chance on labels [M], all known and not too few; else ""."""
    if len(labels) < _MIN_ROWS_FOR_ACCURACY:
        return ""
    if found := chance.chance_level(accuracy, int(np.bincount(labels).max()), len(labels)):
        return found
    return f"no better than a guess among {num_classes} classes" if accuracy < 1.5 / num_classes else ""
