"""What each codec keeps of a teacher's own outputs, and what it costs: measured, without any stream.

Letters: M rows (samples, or where positions are chosen these), C classes, T temperature.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from pipeline.datasets import open_dataset
from pipeline.datasets.base import Ints, once_readable
from pipeline.hashing import hash64, tag
from pipeline.views import view_spec
from pipeline.views.fetch import Fetcher
from schemas.codecs import CodecSpec, Hidden, Sampled, SoftRows, Steps, TopK, storable
from schemas.errors import BadSamples, ConfigError, EncodeError, TeacherRejected
from schemas.head import Head
from schemas.positions import Chosen
from schemas.records import Output, SoftTargets, TeacherOutput
from schemas.softmax import LEAST_LOG_PROB, log_softmax
from teacher_service.models.assess import some_samples
from teacher_service.models.declared import NOTHING, Declared
from teacher_service.models.describe import describe_on
from teacher_service.models.heads import COMPARED_ROWS, with_heads
from teacher_service.models.session import Inputs, OnnxTeacher

CODECS = ("float32", "float16", "int8", "int4", "topk:k=10", "topk:k=10,bits=8", "sampled:n=50", "head")
"""Tried if none is named; with the temperatures that are asked for, and k no more than there are classes; head where
the output has a linear layer at its end."""
NUM_SAMPLES = 256
_SECONDS = 0.1
"""For each speed."""
_ROWS = 64
"""Compared at a time."""
_OUTSIDE = 10
"""Of how many likeliest classes the rest is the tail, where a codec keeps all; at most C - 1."""

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class CodecFigures:
    """What a codec does to one output."""

    codec: CodecSpec
    bytes_per_sample: float
    """of a whole record"""
    encoded_per_s: float
    """samples"""
    decoded_per_s: float
    kl: dict[float, float | None]
    """T -> mean KL(dense || kept) at T, natural log; classes that are not kept have equal parts of what they are
    together. None: it cannot be had at T. {} without classes."""
    top1: float | None
    """share of the rows whose likeliest class is the dense one's; None where the codec does not tell it"""
    tail_error: float | None
    """mean over the rows of the relative error of the mass outside the likeliest classes, at the first of T that the
    codec serves; None where nothing is outside"""
    error: float | None
    """of what has no classes: root of the mean squared difference, over the standard deviation"""


@dataclass(frozen=True, slots=True)
class OutputFigures:
    """An output of a teacher, and what codecs do to it."""

    output: TeacherOutput
    num_samples: int
    num_rows: int
    codecs: tuple[CodecFigures, ...]


def codec_table(
    model: Path,
    dataset: str,
    declared: Declared = NOTHING,
    *,
    view: str = "none",
    view_params: Mapping[str, Any] | None = None,
    codecs: Sequence[str] = (),
    temperatures: Sequence[float] = (1.0,),
    num_samples: int = NUM_SAMPLES,
    seed: int = 0,
) -> tuple[OutputFigures, ...]:
    """Measure what codecs do to the outputs of a teacher on samples of a dataset.

    Args:
        model: the ONNX file.
        dataset: URI.
        declared: what is said of its inputs and outputs; the rest is found by itself.
        view: as `topics create` has it.
        view_params: its parameters.
        codecs: texts such as `topk:k=10`; none = `CODECS`.
        temperatures: at which soft targets are compared.
        num_samples: how many samples are looked at, of a dataset that has as many.
        seed: of the views.

    Raises:
        ConfigError: something that is not there, or that a codec does not take.
        TeacherRejected: the file cannot serve.
        BadSamples, DataUnavailable: the dataset cannot be decoded, or not read.
    """
    if not temperatures or not all(1e-3 <= each <= 1e3 for each in temperatures):
        raise ConfigError(f"temperatures lie between 0.001 and 1000, not {list(temperatures)}")
    fetcher = Fetcher(open_dataset(dataset), view_spec(view, view_params or {}))
    with once_readable(fetcher.dataset.uri):
        ids = some_samples(fetcher.dataset, num_samples)
        teacher = OnnxTeacher(model, describe_on(model, "t", fetcher, ids, seed, len(ids), "", declared))
        fetched = fetcher.fetch(ids, seed, teacher.size)
    if not len(fetched.kept_rows):
        raise BadSamples(f"dataset {fetcher.dataset.uri}: none of its first samples can be decoded")
    ids = ids[fetched.kept_rows]
    chosen, values = teacher.what_is_chosen(fetched.inputs), teacher.label(fetched.inputs)
    rising = tuple(sorted(set(temperatures)))
    found = []
    for one in teacher.teacher.outputs:
        by_head = _by_head(teacher, one, fetched.inputs, required=any(text.startswith("head") for text in codecs))
        found.append(_of_output(one, values[one.name], chosen.get(one.name), ids, codecs, rising, by_head))
    return tuple(found)


class ByHead(NamedTuple):
    """What the codec head stores of rows, and what it is rebuilt by."""

    hidden: npt.NDArray[np.float32]
    """[M, ..., H]"""
    head: Head


def _by_head(model: OnnxTeacher, one: TeacherOutput, inputs: Inputs, *, required: bool) -> ByHead | None:
    """Cut the graph before an output's last layer, and label by that; None where it has none.

    Raises:
        TeacherRejected, ConfigError: it has none, and it is `required`.
    """
    alone = replace(model.teacher, outputs=(replace(one, codec=CodecSpec("head"), head_sha256=None),))
    first = {field: values[:COMPARED_ROWS] for field, values in inputs.items()}
    try:
        described = with_heads(model.path, alone, first, model.answers(first))
    except (TeacherRejected, ConfigError):
        if required:
            raise
        return None
    cut = OnnxTeacher(model.path, described)
    return ByHead(cut.label(inputs)[one.name], cut.heads[one.name])


def _of_output(
    one: TeacherOutput,
    values: npt.NDArray[np.float32],
    chosen: Chosen | None,
    ids: Ints,
    codecs: Sequence[str],
    temperatures: tuple[float, ...],
    by_head: ByHead | None,
) -> OutputFigures:
    specs = [CodecSpec.parse(text) for text in codecs] if codecs else _usual(one, temperatures, by_head)
    classes = bool(one.codec_classes)
    found = tuple(
        measure(values, spec, temperatures, ids, one.name, classes=classes, chosen=chosen, by_head=by_head)
        for spec in specs
    )
    return OutputFigures(one, len(ids), len(values), found)


def _usual(one: TeacherOutput, temperatures: tuple[float, ...], by_head: ByHead | None) -> list[CodecSpec]:
    """Return those of `CODECS` that an output can travel by, with the temperatures that are asked for."""
    found = []
    for spec in map(CodecSpec.parse, CODECS):
        if spec.of_hidden:
            found += [spec] if by_head else []
            continue
        if spec.k and not one.codec_classes:
            continue
        kept = spec.k if spec.draws else min(spec.k, one.codec_classes)
        found.append(CodecSpec(spec.name, kept, spec.temperatures if spec.keeps_all or spec.draws else temperatures))
    return found


def measure(
    values: npt.NDArray[np.float32],
    spec: CodecSpec,
    temperatures: Sequence[float],
    sample_ids: Ints,
    name: str = "logits",
    *,
    classes: bool = True,
    chosen: Chosen | None = None,
    by_head: ByHead | None = None,
) -> CodecFigures:
    """Return what a codec does to [M, ..., C] float32, or [M, ...] without classes, of samples.

    Raises:
        ConfigError: it does not take them, or it is head and they have none.
    """
    stored, num_classes = values, values.shape[-1] if classes else 0
    if spec.of_hidden:
        if by_head is None:
            raise ConfigError(f"output {name!r} has no last layer to rebuild it by: leave codec head out")
        stored, spec = by_head.hidden, CodecSpec("head", by_head.head.width)
    if not storable(stored, spec, num_classes).all():
        raise ConfigError(f"output {name!r} is not finite, or beyond what {spec} holds: leave that codec out")
    seeds = hash64(tag("codec_table"), np.arange(len(values))) if spec.draws else None
    zeros = "0" * 64

    def encode() -> bytes:
        output = Output.of(name, stored, spec, classes=classes, num_classes=num_classes, chosen=chosen, seeds=seeds)
        return SoftTargets("0" * 16, 0, 0, sample_ids, 0, None, "t", zeros, (output,)).encode()

    try:
        record = encode()
    except EncodeError as error:
        raise ConfigError(str(error)) from None
    encoding, decoding = (_seconds(work) for work in (encode, lambda: _decoded(record)))
    rows = _decoded(record)
    rows = getattr(rows, "rows", rows)  # those of positions
    if isinstance(rows, Hidden) and by_head is not None:
        rows = replace(rows, head=by_head.head)
    count = len(sample_ids)
    kept = _Kept(values, rows, temperatures) if classes else None
    return CodecFigures(
        spec,
        len(record) / count,
        count / encoding,
        count / decoding,
        {} if kept is None else kept.kl,
        None if kept is None else kept.top1,
        None if kept is None else kept.tail_error,
        None if classes else _error(values, rows),
    )


def _decoded(record: bytes) -> SoftRows:
    return SoftTargets.decode(record, "a record of the table").outputs[0].values()


def _seconds(work: Callable[[], object]) -> float:
    """The least that it takes, once its data lie in memory."""
    work()
    least, begun = math.inf, time.perf_counter()
    while (now := time.perf_counter()) - begun < _SECONDS or least == math.inf:
        work()
        least = min(least, time.perf_counter() - now)
    return least


def _dense(rows: SoftRows) -> npt.NDArray[np.float32]:
    """All numbers of rows of a codec that keeps them."""
    if isinstance(rows, Hidden) and rows.head is not None:
        return rows.head.logits(rows.hidden)
    return rows.values() if isinstance(rows, Steps) else next(iter(rows.columns.values())).astype(np.float32)


def _error(values: npt.NDArray[np.float32], rows: SoftRows) -> float:
    exact = values.astype(np.float64)
    spread = float(exact.std())
    wrong = float(np.sqrt(np.square(_dense(rows) - exact).mean()))
    return wrong / spread if spread else wrong


class _Kept:
    """Rows of classes held against the dense ones, some at a time."""

    def __init__(self, values: npt.NDArray[np.float32], rows: SoftRows, temperatures: Sequence[float]) -> None:
        num_classes = values.shape[-1]
        exact = values.reshape(-1, num_classes)
        served = [each for each in temperatures if rows.temperatures is None or each in rows.temperatures]
        if isinstance(rows, Sampled):
            served = []
        flat = _flat(rows, num_classes)
        sums: dict[float, float] = dict.fromkeys(served, 0.0)
        hits, tail = 0, 0.0
        for start in range(0, len(exact), _ROWS):
            places = np.arange(start, min(start + _ROWS, len(exact)))
            part = exact[places]
            for temperature in served:
                dense, kept, likeliest = _log_probs(part, flat, places, temperature)
                sums[temperature] += float((np.exp(dense) * (dense - kept)).sum())
                if temperature == served[0]:
                    best = likeliest[:, 0] if isinstance(flat, TopK) else kept.argmax(axis=1)
                    hits += int((best == part.argmax(axis=1)).sum())
                    tail += _tail_errors(dense, kept, likeliest)
        count = max(1, len(exact))
        self.kl = {each: sums[each] / count if each in sums else None for each in temperatures}
        self.top1 = hits / count if served else None
        kept_all = isinstance(flat, TopK) and flat.indices.shape[1] == num_classes
        self.tail_error = tail / count if served and num_classes > 1 and not kept_all else None


def _flat(rows: SoftRows, num_classes: int) -> TopK | npt.NDArray[np.float32]:
    """Rows at several places, as one row for each."""
    if isinstance(rows, TopK):
        k = rows.indices.shape[-1]
        tails = {temperature: tail.reshape(-1) for temperature, tail in rows.log_tails.items()}
        return TopK(rows.indices.reshape(-1, k), rows.log_probs.reshape(-1, k), tails, num_classes)
    return (
        np.empty((0, num_classes), np.float32) if isinstance(rows, Sampled) else _dense(rows).reshape(-1, num_classes)
    )


def _log_probs(
    part: npt.NDArray[np.float32], flat: TopK | npt.NDArray[np.float32], places: Ints, temperature: float
) -> tuple[Floats, Floats, Ints]:
    """Return [R, C] log p at T of the dense rows, the same of what was kept, and [R, k] the likeliest classes."""
    dense = log_softmax(part / np.float32(temperature))
    if not isinstance(flat, TopK):
        most = min(_OUTSIDE, part.shape[1] - 1)
        likeliest = np.argsort(-dense, axis=1, kind="stable")[:, :most]
        return dense, log_softmax(flat[places] / np.float32(temperature)), likeliest
    rows = flat.take(places)
    others = part.shape[1] - rows.indices.shape[1]
    share = rows.log_tails[temperature].astype(np.float64) - math.log(max(1, others))
    kept = np.repeat(np.maximum(share, LEAST_LOG_PROB)[:, None], part.shape[1], axis=1)
    np.put_along_axis(kept, rows.indices, rows.log_probs_at(temperature).astype(np.float64), axis=1)
    return dense, kept, rows.indices


def _tail_errors(dense: Floats, kept: Floats, likeliest: Ints) -> float:
    """Return the sum over rows of the relative error of the mass outside some classes."""
    masses = []
    for log_probs in (dense, kept):
        outside = np.exp(log_probs)
        np.put_along_axis(outside, likeliest, 0.0, axis=1)
        masses.append(outside.sum(axis=1))
    exact, found = masses
    return float(np.abs(np.divide(found, exact, out=np.ones_like(exact), where=exact > 0) - 1).sum())
