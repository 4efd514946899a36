"""Who cuts an output down to its likeliest classes, NumPy or the graph: measured on samples, or as the user says.

Both ways keep the same classes and tails, within what is said here, or the graph is refused. Which one it is stands in
the teacher's record, since their bits may differ; so no worker chooses.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.datasets.base import once_readable
from pipeline.user_code import one_line
from pipeline.views.fetch import Fetcher
from schemas.codecs import CodecSpec
from schemas.errors import ConfigError, TeacherRejected
from schemas.finite import finite_rows
from schemas.records import Output, Teacher, TeacherOutput
from schemas.topk import Kept, kept_classes
from teacher_service.models.assess import some_samples
from teacher_service.models.session import Inputs, OnnxTeacher
from teacher_service.models.topk_graph import GraphCut

CUTS = ("auto", "numpy", "graph")
"""What a user may ask for."""
MEASURED_FROM = 4_096
"""Classes: with fewer of them the cut is no part of a teacher's time to speak of, and `auto` is NumPy."""
CLEARLY = 1.25
"""How much faster the graph has to be for `auto` to take it, in the median and in most of the rounds."""
TAIL_ERROR = 1e-3
"""Largest relative difference of the mass outside the kept classes."""

_ROUNDS = 7
_VALUES = 8 << 20
"""In the rows that are measured with, at most; two rows at least."""
_NO_TAIL = -80.0
"""Log of a mass below which float32 sums have no digits to compare."""


@dataclass(frozen=True, slots=True)
class CutFound:
    """What was measured of one output."""

    output: str
    numpy_rows_per_s: float
    graph_rows_per_s: float
    cut: str
    """What was chosen."""

    @property
    def rates(self) -> dict[str, float]:
        """Rows a second, either way."""
        return {"numpy": self.numpy_rows_per_s, "graph": self.graph_rows_per_s}

    def __str__(self) -> str:
        """Say both figures."""
        return (
            f"output {self.output}: the likeliest classes are kept by {self.cut}: NumPy {self.numpy_rows_per_s:,.0f} "
            f"rows/s, graph {self.graph_rows_per_s:,.0f}, on one core"
        )


def choose_cuts(
    path: Path,
    teacher: Teacher,
    codec: CodecSpec,
    cut: str,
    fetcher: Fetcher,
    view_seed: int,
    there: Teacher | None = None,
) -> tuple[Teacher, tuple[CutFound, ...]]:
    """Return the teacher whose outputs say who cuts them, and what was measured.

    Args:
        path: of the model.
        teacher: as it was described.
        codec: the stream's.
        cut: one of CUTS; `auto` is NumPy where the samples give an output no finite row to measure with.
        fetcher: the dataset.
        view_seed: of the views that it is fed.
        there: the teacher of that name that the stream has; `auto` is what it says.

    Raises:
        ConfigError: `graph`, and no output is stored by a codec that keeps the likeliest classes.
        TeacherRejected: the two ways differ here, or the model fails.
    """
    if cut not in CUTS:
        raise ConfigError(f"cut is {cut!r}: one of {', '.join(CUTS)}")
    able = [one for one in teacher.outputs if not one.stored_as(codec).no_cut(one.codec_classes)]
    if cut == "graph" and not able:
        raise ConfigError(
            "--cut graph: no output is stored by topk with fewer classes than it has, which is what the graph cuts; "
            "leave it out"
        )
    if cut == "auto" and there is not None:
        cuts = {one.name: one.cut for one in there.outputs}
        return _with(teacher, {one.name: cuts.get(one.name, "numpy") for one in able}), ()
    if cut == "auto":
        able = [one for one in able if one.codec_classes >= MEASURED_FROM]
    if cut == "numpy" or not able:
        return teacher, ()
    model = OnnxTeacher(path, teacher)
    with once_readable(fetcher.dataset.uri):
        fetched = fetcher.fetch(some_samples(fetcher.dataset, teacher.inference_batch), view_seed, model.size)
    try:
        values = model.label(fetched.inputs)
    except TeacherRejected:
        raise
    except Exception as error:  # ONNX Runtime's exceptions have no common base
        raise TeacherRejected(f"{path}: fails on some samples: {one_line(error)}") from None
    found = []
    for one in able:
        rows = values[one.name].reshape(-1, one.codec_classes)
        rows = rows[finite_rows(rows)]
        if not len(rows):  # these samples choose no position, say; what is not finite others speak of
            if cut == "auto":
                continue
            rows = np.random.default_rng(0).standard_normal((teacher.inference_batch, one.codec_classes), np.float32)
        measured = measure(one, one.stored_as(codec), rows)
        found.append(replace(measured, cut="graph") if cut == "graph" else measured)
    return _with(teacher, {each.output: each.cut for each in found}), tuple(found)


def check_cuts(model: OnnxTeacher, codec: CodecSpec, inputs: Inputs) -> None:
    """Hold what the graph keeps here, of the rows of one call, against NumPy.

    Raises:
        TeacherRejected: they differ, so that labels made here would not be those of other machines.
    """
    teacher = model.teacher
    if not any(one.cut == "graph" for one in teacher.outputs):
        return
    values = model.label({field: rows[: teacher.inference_batch] for field, rows in inputs.items()})
    for one in teacher.outputs:
        rows, spec = values[one.name], one.stored_as(codec)
        rows = rows[finite_rows(rows)]
        if one.cut != "graph" or not len(rows):
            continue
        flat = rows.reshape(-1, one.codec_classes)[: max(2, _VALUES // one.codec_classes)]
        numpy = kept_classes(flat, spec.k, spec.temperatures)
        if problem := difference(numpy, model.cut(one, spec, flat)):
            raise TeacherRejected(
                f"{model.path}: output {one.name!r} is cut otherwise by ONNX Runtime here: {problem}; install another "
                "version of it"
            )


def _with(teacher: Teacher, cuts: Mapping[str, str]) -> Teacher:
    outputs = tuple(replace(one, cut=cuts.get(one.name, "numpy")) for one in teacher.outputs)
    return replace(teacher, outputs=outputs)


def measure(one: TeacherOutput, spec: CodecSpec, rows: npt.NDArray[np.float32]) -> CutFound:
    """Time both ways on one core, by turns, on one or more finite rows [R, C]; and hold them against each other.

    Raises:
        TeacherRejected: they differ.
    """
    rows = np.ascontiguousarray(rows[: max(2, _VALUES // rows.shape[1])])
    cut = GraphCut(spec, rows.shape[1], threads=1)
    if problem := difference(kept_classes(rows, spec.k, spec.temperatures), cut(rows)):
        raise TeacherRejected(f"output {one.name!r} is cut otherwise in the graph: {problem}; use --cut numpy")
    seconds = _by_turns([lambda: Output.of("o", rows, spec), lambda: Output.of_kept("o", cut(rows), spec)])
    numpy, graph = (len(rows) / statistics.median(each) for each in seconds)
    wins = sum(was > CLEARLY * is_ for was, is_ in zip(*seconds, strict=True))
    clearly = graph > CLEARLY * numpy and 2 * wins > _ROUNDS
    return CutFound(one.name, numpy, graph, "graph" if clearly else "numpy")


def difference(numpy: Kept, graph: Kept) -> str:
    """Say in what two cuts of the same rows differ, "" where they agree as well as they have to."""
    others = (numpy.classes != graph.classes).any(axis=-1)
    if others.any():
        return f"other classes are kept of {int(others.sum())} of {others.size} rows"
    for temperature, tail in numpy.log_tails.items():
        there = tail.astype(np.float64) > _NO_TAIL
        error = np.abs(np.expm1(graph.log_tails[temperature].astype(np.float64) - tail))[there].max(initial=0.0)
        if not error <= TAIL_ERROR:
            return f"the mass of the others at T = {temperature:g} is off by {error:.1e} of itself"
    return ""


def _by_turns(works: Sequence[Callable[[], Any]]) -> list[list[float]]:
    """Return for each its seconds, round by round; the first round, with what happens once, is left out."""
    seconds: list[list[float]] = [[] for _ in works]
    for number in range(_ROUNDS + 1):
        for work, taken in zip(works, seconds, strict=True):
            began = time.perf_counter()
            work()
            if number:
                taken.append(time.perf_counter() - began)
    return seconds
