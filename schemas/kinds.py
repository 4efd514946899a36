"""Whether what a teacher's output holds is of the kind that it is declared as."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from schemas.errors import TeacherRejected
from schemas.finite import finite_rows
from schemas.teacher_output import SOFTMAX_KINDS, TeacherOutput


def check_kind(values: npt.NDArray[np.float32], output: TeacherOutput) -> None:
    """Compare an output [M, ..., C], or the positions [P, C] that are labelled, with what it is declared to be.

    Rows of which no position is chosen say nothing.

    Raises:
        TeacherRejected: no finite row, rows that sum to 1 declared as logits, or rows that do not as probabilities;
            multilabel logits that are none.
    """
    what = f"output {output.output!r}"
    if not len(values):
        return
    rows = values[finite_rows(values)].astype(np.float64)
    if not len(rows):
        raise TeacherRejected(f"{what} is not finite (NaN or infinity) on the stream's first samples")
    if output.class_axis is None:
        return
    if output.kind not in SOFTMAX_KINDS:
        if ((rows >= 0) & (rows <= 1)).all():
            raise TeacherRejected(
                f"{what} is declared as multilabel logits, but all of it lies between 0 and 1: they are probabilities; "
                "take the model's output before its sigmoid"
            )
        return
    if output.codec_classes < 2:
        count = f"{output.codec_classes} class" + (" of the dataset's" if output.class_map else "")
        raise TeacherRejected(f"{what} has {count}; soft targets of classes need at least 2")
    sums_to_one = bool((rows >= 0).all() and np.allclose(rows.sum(axis=-1), 1.0, atol=1e-3))
    if output.kind == "logits" and sums_to_one:
        raise TeacherRejected(
            f"{what} is declared as logits, but its rows are positive and sum to 1: they are probabilities; "
            f"{_instead(output, 'probabilities')}"
        )
    if output.kind == "probabilities" and not sums_to_one:
        raise TeacherRejected(
            f"{what} is declared as probabilities, but its rows do not sum to 1; {_instead(output, 'logits')}"
        )
    if output.kind == "log_probabilities" and not np.allclose(np.exp(rows).sum(axis=-1), 1.0, atol=1e-3):
        raise TeacherRejected(
            f"{what} is declared as log_probabilities, but its rows' exponentials do not sum to 1; "
            f"{_instead(output, 'logits')}"
        )


def _instead(output: TeacherOutput, kind: str) -> str:
    return f"say --kind {kind}, or --output {output.name}={output.output}:{kind}"
