"""What a run settles before its first step: how long it is, what its student takes, where it computes."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.datasets.base import Arrays, Field, vocabulary_of
from pipeline.user_code import said
from pipeline.views.fetch import Fetched, Fetcher
from pipeline.views.patience import fetch_patiently
from schemas.errors import ConfigError
from student_trainer.evaluate import evaluation_data, part_of, predictor, rows_at_once, seen, sole_field
from student_trainer.learning.losses import find_loss
from student_trainer.learning.student_inputs import InputField
from student_trainer.learning.student_outputs import StudentOutputs
from student_trainer.learning.students import OF_TOKENS, STUDENTS, Network, build_student
from student_trainer.processes.world import local_rank, under_torchrun
from student_trainer.run.metric_settings import MetricSettings
from student_trainer.run.settings import RunSettings
from student_trainer.scores.by_default import metrics_by_default
from student_trainer.scores.metrics import Metrics, without_teacher
from student_trainer.sources.base import Known, OrderSource

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
"""Parameters of glibc's `mallopt`."""
_PROBED = 64
"""Samples of the first order that are looked at for their shape; some may be undecodable."""


def plan(settings: RunSettings, source: OrderSource) -> tuple[int, int]:
    """Return the steps of a run, and the rows left at its end that fill no batch.

    Raises:
        ConfigError: the run is longer than its passes over the stream, or they hold no batch.
    """
    train, sequence = settings.train, source.sequence
    rows = sequence.num_samples * sequence.epochs * train.passes
    most = rows // train.batch_size
    if not most:
        raise ConfigError(
            f"[train] batch_size {train.batch_size} is more than the {rows} rows of {_passes(train.passes)}"
        )
    if train.steps > most:
        raise ConfigError(
            f"[train] steps {train.steps} of {train.batch_size} need {train.steps * train.batch_size} rows, but "
            f"{_passes(train.passes)} over {sequence.epochs} epochs of {sequence.num_samples} samples hold {rows}: "
            f"at most {most} steps; raise passes or epochs"
        )
    return (train.steps, 0) if train.steps else (most, rows % train.batch_size)


def _passes(count: int) -> str:
    return "1 pass" if count == 1 else f"{count} passes"


def first_ids(source: Known) -> NDArray[np.int64]:
    """Return [N] int64 IDs of a few samples, the same on every machine."""
    return source.sequence.sample_ids(0)[:_PROBED] % source.fetcher.dataset.num_samples


def _first_views(settings: RunSettings, source: Known) -> Arrays:
    """Return a few samples, as the student gets them."""
    fetched = fetch_patiently(source.fetcher, first_ids(source), 0, settings.student.size)
    if not len(fetched.kept_rows):
        raise ConfigError(
            f"dataset {source.fetcher.dataset.uri}: none of its first samples can be decoded: {fetched.faults[0][1]}"
        )
    return fetched.inputs


def view_fields(settings: RunSettings, source: Known) -> dict[str, Field]:
    """Look at a few samples and return the fields of the view.

    Raises:
        ConfigError: none of them can be decoded.
        DataUnavailable: the dataset cannot be read.
    """
    views = _first_views(settings, source)
    return {name: Field(tuple(values.shape[1:]), str(values.dtype)) for name, values in views.items()}


def inspect_network(settings: RunSettings, source: OrderSource) -> Network:
    """Look at a few samples and return what the student has to take and give.

    Raises:
        ConfigError: no such field, samples of differing shape, integers for a student of ours, or no class count.
        DataUnavailable: the dataset cannot be read.
    """
    inputs = _first_views(settings, source)
    taken = settings.student.inputs or (sole_field(inputs),)
    is_ours = settings.student.name in STUDENTS and settings.student.name not in OF_TOKENS
    for field in taken:
        if field not in inputs:
            raise ConfigError(
                f"[student] inputs: {field!r} is no field of the dataset, which has {', '.join(sorted(inputs))}"
            )
        if is_ours:
            _refuse_untaken(settings.student.name, field, inputs[field])
    vocabulary = vocabulary_of(source.fetcher.dataset)
    num_classes = settings.student.classes or source.num_classes
    if not num_classes and settings.student.name in OF_TOKENS and settings.student.params.get("tied"):
        num_classes = vocabulary.size  # its classes are the tokens
    # A student of a user's own, or of tokens, that learns from features alone need not know of any class.
    needs_classes = is_ours or any("labels" in find_loss(entry.name).needs for entry in settings.losses)
    if not num_classes and needs_classes:
        raise ConfigError(
            f"dataset {source.fetcher.dataset.uri} does not say how many classes it has, nor does a teacher of the "
            "run: say it by [student] classes"
        )
    return Network(
        tuple(InputField(field, inputs[field].shape[1:], str(inputs[field].dtype)) for field in taken),
        num_classes,
        source.fetcher.dataset.class_names,
        vocabulary.size,
        vocabulary.sha256,
    )


def _refuse_untaken(student: str, field: str, values: NDArray[Any]) -> None:
    """Refuse, as ConfigError, a field that is not for a student of ours."""
    images_of_bytes = values.dtype == np.uint8 and values.ndim == 4
    if values.dtype.kind != "f" and not images_of_bytes:
        raise ConfigError(
            f"[student] {student} takes floats, or images of bytes, but field {field!r} is {values.dtype} "
            f"{list(values.shape[1:])}; take a view that makes floats of it"
        )
    if values.ndim < 2:
        raise ConfigError(f"[student] {student} takes arrays, but field {field!r} is one number a sample")


def choose_device(settings: RunSettings) -> torch.device:
    """Return where the student trains; of several processes on one machine each has a GPU of its own.

    Raises:
        ConfigError: no CUDA where it is asked for, or fp16 without it, or fewer GPUs than processes.
    """
    name = settings.train.device
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError("[train] device: PyTorch finds no CUDA device; set cpu or auto")
    if settings.train.precision == "fp16" and name == "cpu":
        raise ConfigError("[train] precision: fp16 needs CUDA; set bf16 or float32")
    if name == "cpu" or not under_torchrun():
        return torch.device(name)
    number, there = local_rank(), torch.cuda.device_count()
    if number >= there:
        raise ConfigError(
            f"[train] device: torchrun started process {number + 1} of this machine, which has {there} GPUs: start as "
            "many as there are (--nproc-per-node), or set cpu"
        )
    torch.cuda.set_device(number)  # what a user's own student allocates goes there, too
    return torch.device(name, number)


@dataclass(frozen=True, slots=True, eq=False)
class Evaluation:
    """What a run is evaluated on."""

    fetcher: Fetcher
    """Under the training view without its randomness, unless another is asked for."""
    metrics: tuple[MetricSettings, ...]
    """What it measures while it trains."""


def prepare_evaluation(
    settings: RunSettings, source: OrderSource, network: Network, device: torch.device
) -> Evaluation | None:
    """Open the evaluation dataset, and show what is measured its first samples: not after the training.

    None where there is no dataset, or all metrics compare with a teacher, which a run does not have.

    Raises:
        ConfigError: it cannot be opened, has more classes than the student, or no samples that the student takes; or a
            metric that does not fit what a student, made for this alone, gives for them; or nobody says what is
            measured, and no loss makes a classifier of the student.
        DataUnavailable: it cannot be read.
    """
    evaluation, what = settings.evaluation, "[evaluation] dataset"
    if not evaluation.dataset:
        Metrics(evaluation.metrics)
        return None
    metrics = without_teacher(evaluation.metrics)
    fetcher = evaluation_data(settings, source.fetcher.view, evaluation.dataset)
    fetched = first_samples(what, fetcher, network, settings.student.size, _PROBED)
    if evaluation.metrics and not metrics:
        return None
    student = build_student(settings.student, network, settings.train.seed).to(device).eval()
    predict = predictor(StudentOutputs(student, settings.student.outputs), network.fields)
    fetched = part_of(fetched, slice(rows_at_once(predict, fetched.inputs, _PROBED)))
    outputs = predict(fetched.inputs)
    metrics = metrics or metrics_by_default(settings, outputs, "[[evaluation.metrics]]")
    Metrics(metrics).rehearse(seen(fetcher, np.arange(_PROBED), fetched, outputs))
    return Evaluation(fetcher, metrics)


def first_samples(what: str, fetcher: Fetcher, network: Network, size: tuple[int, ...], count: int) -> Fetched:
    """Fetch the first samples of a dataset, and see that they are what a student takes.

    Args:
        what: the dataset's part in this, for the message.
        fetcher: the dataset, as it is to be seen.
        network: the student's.
        size: the spatial size that the student asks of the view.
        count: how many are asked for; all of a smaller dataset.

    Raises:
        ConfigError: the view mixes samples; the field is missing, or is of another shape or dtype; the tokens are of
            another vocabulary; there are more classes, or they have other names, or another order; or no sample can be
            decoded.
        DataUnavailable: it cannot be read.
    """
    uri, num_classes = fetcher.dataset.uri, fetcher.dataset.num_classes
    if fetcher.mixes:
        raise ConfigError(
            f"{what} {uri}: view {fetcher.view.name} mixes samples, and a mix of two classes is neither of them: leave "
            "its alpha out"
        )
    if num_classes > network.num_classes > 0:
        raise ConfigError(
            f"{what} {uri} has {num_classes} classes, the student {network.num_classes}; evaluate on a dataset of the "
            "same classes"
        )
    tokenizer = vocabulary_of(fetcher.dataset).sha256
    if tokenizer and network.tokenizer and tokenizer != network.tokenizer:
        raise ConfigError(
            f"{what} {uri} is read with the tokenizer {tokenizer[:16]}..., the student learned with "
            f"{network.tokenizer[:16]}... (SHA-256): another vocabulary gives other token IDs; name that file"
        )
    fetched = fetch_patiently(fetcher, np.arange(min(count, fetcher.dataset.num_samples)), 0, size)
    if not len(fetched.kept_rows):
        raise ConfigError(f"{what} {uri}: none of its first samples can be decoded: {fetched.faults[0][1]}")
    there = [InputField(name, each.shape[1:], str(each.dtype)) for name, each in sorted(fetched.inputs.items())]
    if not set(network.inputs) <= set(there):
        raise ConfigError(
            f"{what} {uri} has the fields {', '.join(map(str, there))} under view {fetcher.view.name!r}, the student "
            f"takes {', '.join(map(str, network.inputs))}; give data, or a view, of the same kind and size"
        )
    names = fetcher.dataset.class_names
    if names and network.class_names and names != network.class_names:
        pairs = enumerate(zip_longest(network.class_names, names, fillvalue="nothing"))
        number, (learned, there_is) = next((number, pair) for number, pair in pairs if pair[0] != pair[1])
        raise ConfigError(
            f"{what} {uri} has other classes than the student learned: number {number} is {there_is!r} there, and "
            f"{learned!r} to the student; every score would be wrong: name its classes in the same way"
        )
    return fetched


@contextmanager
def enough_memory(student: str) -> Iterator[None]:
    """Turn memory that runs out, while a student and its samples are made, into one line.

    Raises:
        ConfigError: in place of a MemoryError, or of what PyTorch raises then.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "allocate" not in str(error):
            raise
        raise ConfigError(
            f"[student] {student} needs more memory than there is: {said(error)}; ask for a smaller size or network"
        ) from error


def keep_freed_memory() -> None:
    """Let glibc keep what is freed, up to 1 GiB, where the environment says nothing of it.

    A step on the CPU frees and asks for the same memory again and again. By default much of it goes back to the system
    each time, and comes back page by page: up to a quarter of a step of 30 ms.
    """
    if not any(name.startswith("MALLOC_") for name in os.environ):
        with suppress(OSError, AttributeError):  # another system, or another C library
            mallopt = ctypes.CDLL(None).mallopt
            mallopt(_M_MMAP_THRESHOLD, 32 << 20)  # the most that it takes
            mallopt(_M_TRIM_THRESHOLD, 1 << 30)


def set_threads(count: int) -> None:
    """Fix PyTorch's threads: another number gives other bits."""
    torch.set_num_threads(count)
    with suppress(RuntimeError):  # too late once anything ran in parallel, and then it is no matter
        torch.set_num_interop_threads(1)
