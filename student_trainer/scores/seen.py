"""One batch of an evaluation as metrics see it, and what a metric is.

Letters: N samples of a batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, TypeVar

import numpy as np
from numpy.typing import NDArray

from pipeline.datasets.base import Arrays, Dataset, Ints
from schemas.errors import ConfigError, NotFinite
from schemas.finite import finite_rows
from schemas.names import did_you_mean
from student_trainer.learning.student_outputs import pick

T = TypeVar("T")

Outputs = Mapping[str, NDArray[Any]]
"""name -> [N, ...]"""

_AT_ONCE = 1 << 22
"""Numbers that are float64 at once: 32 MiB."""


@dataclass(frozen=True, slots=True, eq=False)
class Seen:
    """A batch."""

    dataset: Dataset
    sample_ids: Ints
    """[N] int64"""
    inputs: Arrays
    """Field of the view -> [N, ...]"""
    labels: Ints
    """[N] int64: the dataset's, -1 where unlabelled"""
    outputs: Outputs
    """The student's."""
    taught: Outputs
    """The teacher's; {} without one."""
    teacher_classes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    """Output of the teacher's -> the student's classes that its are, rising; () = all, or it has none."""

    def output(self, on: str) -> NDArray[Any]:
        """Return one of the student's outputs [N, ...]; "": `logits`, or the only one.

        Raises:
            ConfigError: no such output, or not one row for each sample.
        """
        return self._rows("the student's output", pick(self.outputs, on))

    def of_teacher(self, against: str, on: str = "") -> NDArray[Any]:
        """Return one of the teacher's outputs [N, ...]; "": the one called `on`, else `logits`, or the only one.

        Raises:
            ConfigError: no such output, or not one row for each sample.
        """
        return self._rows("the teacher's output", _chosen(self.taught, against, on))

    def classes_of_teacher(self, against: str, on: str = "") -> tuple[int, ...]:
        """Return the student's classes that those of one of the teacher's outputs are, rising; () = all.

        Raises:
            ConfigError: no such output.
        """
        return _chosen(self.teacher_classes, against, on)

    def field(self, name: str) -> NDArray[Any]:
        """Return a field of the view [N, ...].

        Raises:
            ConfigError: there is none of that name.
        """
        if name not in self.inputs:
            raise ConfigError(f"the view gives no field {name!r}: {did_you_mean(name, self.inputs)}")
        return self.inputs[name]

    def refuse(self, bad: NDArray[np.bool_], who: str) -> None:
        """Raise NotFinite where a row [N] of what the student or the teacher gives is not finite."""
        rows = np.flatnonzero(bad)
        if len(rows):
            raise NotFinite(
                f"dataset {self.dataset.uri}: the {who} gives NaN or infinity for {len(rows)} of {len(bad)} samples, "
                f"the first is sample {self.sample_ids[rows[0]]}; there is nothing to evaluate, go back to an older "
                f"{who}"
            )

    def side_by_side(
        self, student: NDArray[Any], teacher: NDArray[Any]
    ) -> Iterator[tuple[NDArray[np.float64], NDArray[np.float64]]]:
        """Yield the rows [R, W] of two outputs of one shape [N, ..., W], part by part; of [N] W is 1.

        Raises:
            NotFinite: either has NaN or infinity.
        """
        for values, who in ((student, "student"), (teacher, "teacher")):
            self.refuse(~finite_rows(values), who)
        width = student.shape[-1] if student.ndim > 1 else 1
        students, teachers = student.reshape(-1, width), teacher.reshape(-1, width)
        for part in parts(len(students), width):
            yield students[part].astype(np.float64), teachers[part].astype(np.float64)

    def _rows(self, what: str, values: NDArray[Any]) -> NDArray[Any]:
        if not values.ndim or len(values) != len(self.sample_ids):
            raise ConfigError(
                f"{what} has shape {list(values.shape)} for {len(self.sample_ids)} samples: it has to give one row for "
                "each"
            )
        return values


def _chosen(known: Mapping[str, T], against: str, on: str) -> T:
    """What is known of one of the teacher's outputs."""
    if against and against not in known:
        raise ConfigError(f"the teacher gives no {against!r}: {did_you_mean(against, known)}")
    try:
        return pick(known, against or (on if on in known else ""))
    except ConfigError:
        raise ConfigError(f"the teacher gives {', '.join(known)}: say which with `against`") from None


class Metric:
    """Something that is measured over a dataset: `update` with each of its batches, then `compute`, once.

    All arithmetic is in float64, so that the figures are the same in batches of any size. What is not defined (a mean
    of nothing) is no key of the result. Whatever does not fit raises ConfigError, without the metric's name.
    """

    gives: ClassVar[tuple[str, ...]] = ()
    """The keys that it may give; () where only `compute` knows."""

    compares: bool = False
    """Whether it needs a teacher."""

    def update(self, seen: Seen) -> None:
        """Take in a batch."""
        raise NotImplementedError

    def compute(self) -> dict[str, float]:
        """Return what all batches came to."""
        raise NotImplementedError


def shown(shape: tuple[int, ...]) -> str:
    """Return the shape of a batch as text: [N, 4, 8]."""
    return f"[{', '.join(map(str, ('N', *shape[1:])))}]"


def parts(num_rows: int, width: int) -> Iterator[slice]:
    """Cut rows of `width` numbers into parts of which float64 copies are small."""
    step = max(1, _AT_ONCE // max(1, width))
    for start in range(0, num_rows, step):
        yield slice(start, min(start + step, num_rows))
