"""What a worker finds out about its model before it labels anything.

A label may depend on its sample and view alone. Dropout left on, batch statistics left on and dynamically quantised
weights break that without an error, so the checks provoke it: the same rows again, in another order, and beside
different, rescaled rows (the last one alone sees dynamic quantisation: up to 0.24 logits measured).
Letters: M rows, C classes.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from pipeline import chance
from schemas.errors import TeacherRejected
from teacher_service.models.session import Inputs, OnnxTeacher

TOLERANCE = 1e-4
"""largest change allowed, as a fraction of the range of the logits"""

_RESCALE = 4.0
_MIN_ROWS_FOR_ACCURACY = 50
CHANCE_QUESTION = "are the classes in the dataset's order, the inputs scaled as in its training?"

Model = Callable[[Inputs], npt.NDArray[np.float32]]


def check_model(model: OnnxTeacher, inputs: Inputs) -> None:
    """Run all checks on the rows of one order.

    Raises:
        TeacherRejected: labels depend on their neighbours or on chance, are no numbers, or are not of their kind.
    """
    values = model.raw(inputs)
    if values.shape[1] != model.teacher.output.num_classes:
        raise TeacherRejected(
            f"{model.path}: gives {values.shape[1]} classes, its record says {model.teacher.output.num_classes}"
        )
    check_kind(values, model.teacher.output.kind)
    problem = check_independence(model.logits, inputs)
    if problem:
        raise TeacherRejected(f"{model.path}: {problem}")


def check_kind(values: npt.NDArray[np.float32], kind: str) -> None:
    """Compare outputs [M, C] with what they are declared to be.

    Raises:
        TeacherRejected: no finite row, rows that sum to 1 declared as logits, or rows that do not as probabilities.
    """
    finite = values[np.isfinite(values).all(axis=1)].astype(np.float64)
    if not len(finite):
        raise TeacherRejected("the model's outputs are not finite (NaN or infinity) on the stream's first samples")
    if values.shape[1] < 2:
        raise TeacherRejected(f"the model's output has {values.shape[1]} class; soft targets need at least 2")
    sums_to_one = bool((finite >= 0).all() and np.allclose(finite.sum(axis=1), 1.0, atol=1e-3))
    if kind == "logits" and sums_to_one:
        raise TeacherRejected(
            "declared as logits, but its rows are positive and sum to 1: they are probabilities; "
            "add the teacher with --kind probabilities"
        )
    if kind == "probabilities" and not sums_to_one:
        raise TeacherRejected("declared as probabilities, but its rows do not sum to 1; add it with --kind logits")
    if kind == "log_probabilities" and not np.allclose(np.exp(finite).sum(axis=1), 1.0, atol=1e-3):
        raise TeacherRejected(
            "declared as log_probabilities, but its rows' exponentials do not sum to 1; add it with --kind logits"
        )


def check_independence(model: Model, inputs: Inputs) -> str:
    """Provoke labels that depend on chance or on their neighbours.

    Returns:
        What is wrong in words, or nothing.
    """
    first = model(inputs)
    spread = float(np.ptp(first[np.isfinite(first)])) or 1.0
    num_rows = len(first)

    def changed(rows: npt.NDArray[np.float32], against: npt.NDArray[np.float32]) -> float:
        with np.errstate(invalid="ignore"):  # rows that are not finite are left out of the labels anyway
            return float(np.nanmax(np.abs(rows - against), initial=0.0)) / spread

    change = changed(model(inputs), first)
    if change > TOLERANCE:
        return (
            f"the same rows give other labels each time ({change:.1e} of the logit range): is dropout left on? "
            "Export the model in evaluation mode"
        )
    reverse = np.arange(num_rows)[::-1]
    change = changed(model({field: values[reverse] for field, values in inputs.items()}), first[reverse])
    if change <= TOLERANCE:
        kept = np.arange(0, num_rows, 2)
        change = changed(model({f: _other_neighbours(v) for f, v in inputs.items()})[kept], first[kept])
    if change > TOLERANCE:
        return (
            f"labels depend on their neighbours in the batch ({change:.1e} of the logit range): batch statistics left "
            "on, or weights quantised dynamically? Export in evaluation mode, quantise statically"
        )
    return ""


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


def accuracy_notice(logits: npt.NDArray[np.float32], labels: npt.NDArray[np.int64]) -> str:
    """Say how often the teacher is right on the rows with labels; a teacher at chance level is probably mapped wrongly.

    Args:
        logits: [M, C]
        labels: [M] int64, -1 = unlabelled
    """
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
