"""Student and teacher over the evaluation's samples: how good each is, each class, and where they differ most.

Letters: N samples of a batch, C classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.fault_limit import FaultLimit
from pipeline.progress import Progress
from pipeline.views.fetch import Fetcher
from pipeline.views.patience import fetch_patiently
from schemas.softmax import log_softmax
from student_trainer.evaluate import Predict, seen
from student_trainer.learning.student_outputs import pick
from student_trainer.report.sample import is_picture, stored_text
from student_trainer.scores.classes import Agreement, Classes


@dataclass(frozen=True, slots=True, eq=False)
class Teacher:
    """What a student is held against."""

    path: Path
    """Its ONNX file."""
    file_bytes: int
    """With its external data."""
    predict: Predict
    size: tuple[int, ...] = ()
    """That it asks of the view."""
    classes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    """Output -> the student's classes that its are; () = all."""


@dataclass(frozen=True, slots=True, eq=False)
class Example:
    """A sample on which the student names another class than its teacher; without one, than the label."""

    sample_id: int
    label: int
    """-1: there is none."""
    student: tuple[int, float]
    """Class and probability."""
    teacher: tuple[int, float] | None
    values: Mapping[str, NDArray[Any]]
    """Field of the view -> of this sample."""
    text: str
    """The stored text, where it is one; else ""."""


@dataclass(frozen=True, slots=True, eq=False)
class Looked:
    """What the samples came to."""

    dataset: str
    num_samples: int
    student: dict[str, float]
    """As `Classes` and `Agreement` have it."""
    teacher: dict[str, float]
    """As `Classes` has it; {} without a teacher."""
    classes: list[dict[str, Any]]
    """Of each class with labels: class, name, samples, student, teacher (or None): shares of them that are right."""
    num_compared: int
    """Samples that a teacher labelled; without one, that have a label."""
    num_different: int
    """Those of them that an example could be of."""
    examples: list[Example]
    """The surest first: of the student's probability."""


def look(
    fetcher: Fetcher, predict: Predict, size: tuple[int, ...], batch_size: int, teacher: Teacher | None, count: int
) -> Looked:
    """Run a student of classes, and its teacher, over all samples; equal weights and data give an equal result.

    Args:
        fetcher: the samples, under a view without randomness.
        predict: the student.
        size: the spatial size that it asks of the view.
        batch_size: samples at once.
        teacher: None: there is none to be held against.
        count: of examples, at most.

    Raises:
        ConfigError: a model does not give each sample one row of classes, or other classes than the dataset's.
        NotFinite: a model gives NaN or infinity.
        DataUnavailable: the dataset cannot be read now.
    """
    dataset, faults = fetcher.dataset, FaultLimit("decoded")
    own, its, both = Classes(), Classes(), Agreement()
    num_samples, counts = 0, np.zeros((3, 0), np.int64)  # of each class: samples, right by student, by teacher
    found: list[tuple[float, int, int, tuple[int, float] | None, int]] = []
    num_compared = num_different = 0
    with Progress(title=f"report on {dataset.uri}", after=2.0) as progress:
        for start in range(0, dataset.num_samples, batch_size):
            progress.update(samples=start)
            sample_ids = np.arange(start, min(start + batch_size, dataset.num_samples))
            fetched = fetch_patiently(fetcher, sample_ids, 0, size)
            faults.leave_out(dataset.uri, None, sample_ids, fetched.faults)
            if not len(fetched.kept_rows):
                continue
            taught: Mapping[str, NDArray[Any]] = {}
            if teacher is not None:
                same = fetched if teacher.size == size else fetch_patiently(fetcher, sample_ids, 0, teacher.size)
                taught = teacher.predict(same.inputs)
            batch = seen(
                fetcher, sample_ids, fetched, predict(fetched.inputs), taught, teacher.classes if teacher else None
            )
            own.update(batch)
            num_samples += len(fetched.kept_rows)
            best, sure = _named(batch.output(""))
            named: list[tuple[int, float] | None] = [None] * len(best)
            other = fetched.labels
            rights = [best == other, np.zeros(len(best), bool)]
            if teacher is not None:
                both.update(batch)
                likeliest, share = _named(batch.of_teacher(""))
                if mapped := pick(batch.teacher_classes):
                    likeliest = np.asarray(mapped)[likeliest]
                else:
                    its.update(seen(fetcher, sample_ids, fetched, {"logits": batch.of_teacher("")}))
                named = [(int(each), float(one)) for each, one in zip(likeliest, share, strict=True)]
                rights[1] = likeliest == other
                other = likeliest
            counts = _counted(counts, fetched.labels, rights)
            differ = np.flatnonzero((best != other) & (other >= 0))
            num_compared += int((other >= 0).sum())
            num_different += len(differ)
            for row in differ:
                what = (int(batch.sample_ids[row]), int(best[row]), named[row], int(batch.labels[row]))
                found.append((float(sure[row]), *what))
            found = sorted(found, key=lambda each: (-each[0], each[1]))[:count]
    scores = {**own.compute(), **(both.compute() if teacher else {})}
    classes = _classes(counts, dataset.class_names, teacher is not None)
    examples = [
        Example(sample_id, label, (best, sure), named, *_sample(fetcher, sample_id, size))
        for sure, sample_id, best, named, label in found
    ]
    taught_scores = its.compute() if teacher else {}
    return Looked(dataset.uri, num_samples, scores, taught_scores, classes, num_compared, num_different, examples)


def _named(logits: NDArray[Any]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return [N] the likeliest classes and [N] their probabilities, of [N, C]."""
    log_probs = log_softmax(logits)
    best = log_probs.argmax(axis=1)
    return best, np.exp(log_probs[np.arange(len(best)), best])


def _counted(
    counts: NDArray[np.int64], labels: NDArray[np.int64], rights: list[NDArray[np.bool_]]
) -> NDArray[np.int64]:
    """Add a batch to [3, C] counts, which grow with the labels."""
    known = labels >= 0
    width = max(counts.shape[1], int(labels.max(initial=-1)) + 1)
    rows = [known, *(known & each for each in rights)]
    added = np.stack([np.bincount(labels[each], minlength=width) for each in rows])
    return np.pad(counts, [(0, 0), (0, width - counts.shape[1])]) + added


def _classes(counts: NDArray[np.int64], names: tuple[str, ...], taught: bool) -> list[dict[str, Any]]:
    return [
        {
            "class": number,
            "name": names[number] if number < len(names) else str(number),
            "samples": int(samples),
            "student": float(by_student / samples),
            "teacher": float(by_teacher / samples) if taught else None,
        }
        for number, (samples, by_student, by_teacher) in enumerate(counts.T)
        if samples
    ]


def _sample(fetcher: Fetcher, sample_id: int, size: tuple[int, ...]) -> tuple[dict[str, NDArray[Any]], str]:
    """What there is to be shown of a sample: its view's values, and its text."""
    fetched = fetch_patiently(fetcher, np.array([sample_id]), 0, size)
    values = {name: each[0] for name, each in sorted(fetched.inputs.items())}
    return values, "" if any(is_picture(each) for each in values.values()) else stored_text(fetcher.dataset, sample_id)
