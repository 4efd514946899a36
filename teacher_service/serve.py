"""Everything between `distillog teach` and the work loop: find the teacher, check the data and the model, work."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from pipeline.kafka.cluster import KafkaCluster
from pipeline.kafka.settings import KafkaSettings
from pipeline.limits import SAME_LABEL
from pipeline.sequence import Sequence
from pipeline.streams import Stream, open_stream
from pipeline.views.check import check_data
from pipeline.views.fetch import Fetched, Fetcher
from schemas.errors import DataUnavailable, DistillogError, ManifestMismatch, TeacherRejected
from schemas.records import Teacher
from teacher_service.metrics import WorkerReport
from teacher_service.models.checks import NO_CLASSES, accuracy_notice, check_model
from teacher_service.models.choosing import check_cuts
from teacher_service.models.files import model_sha256, refuse_another
from teacher_service.models.generations import Open
from teacher_service.models.labels import Asked, label
from teacher_service.models.session import Inputs, OnnxTeacher, Outputs
from teacher_service.moving import Moving
from teacher_service.proof.agreement import check_agreement
from teacher_service.proof.compare import Ranges
from teacher_service.worker import Worker, WorkerOptions

log = logging.getLogger(__name__)

T = TypeVar("T")

MEASURE_SECONDS = 0.2
"""Seconds for which loading and inference are repeated to know how fast they are."""


@dataclass(frozen=True, slots=True)
class TeachOptions:
    """What a user may say about one worker."""

    teacher: str | None = None
    """name of the teacher; found by the file's hash if not said"""
    dataset: str | None = None
    """where the stream's dataset lies on this machine, if elsewhere than the manifest says"""
    provider: str = "auto"
    threads: int = 0
    """threads of one inference; 0 = as many as there are cores"""
    loaders: int = 1
    """threads that share the samples of an order"""
    loader_processes: bool = False
    """whether these are processes instead"""
    agreement: float = SAME_LABEL
    """how far, as a share of an output's range, its labels may be off another worker's in the log"""
    worker: WorkerOptions = field(default_factory=WorkerOptions)


def prepare_worker(
    settings: KafkaSettings,
    stream_name: str,
    model_path: Path,
    options: TeachOptions,
    message: Callable[[str], None] = log.info,
    progress: Callable[[WorkerReport, int], None] = lambda report, partitions: None,
    open_model: Open = OnnxTeacher,
) -> Worker:
    """Check everything that can be checked before joining the group, the model warmed up by it.

    `open_model` gets the file, the teacher's record, the execution provider and the number of threads.

    Raises:
        StreamNotFound, ManifestMismatch, TeacherRejected, DataUnavailable, ConfigError, BrokerUnavailable: as named.
        LabelsDiffer: other workers of the teacher gave other labels than this one would.
    """
    stream = open_stream(settings, stream_name)
    teacher = find_teacher(stream, model_path, options.teacher)
    fetcher = check_data(stream.manifest, options.dataset, options.loaders, options.loader_processes)
    model = open_model(model_path, teacher, options.provider, options.threads)
    notice, measured, ranges, inputs = _check_on_first_orders(stream, fetcher, model)
    message(f"teacher {teacher.name!r} of stream {stream_name!r} on {model.provider}; worker {options.worker.name}")
    if notice:
        message(notice)
    cluster = KafkaCluster(settings)
    moving = Moving(cluster, stream, model, inputs, open_model)
    newest = moving.first(model)
    if newest is not model:
        message(f"labels by generation {newest.teacher.generation}, the newest that is there")

    def of_generation(number: int) -> OnnxTeacher | None:
        return newest if number == newest.teacher.generation else moving.of(model, number)

    worker, limit = options.worker.name, options.agreement
    if agrees := check_agreement(cluster, stream, fetcher, model, ranges, worker, limit, of_generation):
        message(agrees)
    return Worker(cluster, stream, fetcher, newest, options.worker, progress, measured, moving)


def find_teacher(stream: Stream, model_path: Path, name: str | None) -> Teacher:
    """Find the teacher whose model this file is, by name or by content.

    Raises:
        ManifestMismatch: the file is not the model that the stream's record names.
        StreamNotFound: no teacher of that name.
    """
    sha256 = model_sha256(model_path)
    if name is None:
        found = [teacher for teacher in stream.teachers.values() if teacher.sha256 == sha256]
        if len(found) == 1:
            return found[0]
        if found:
            names = ", ".join(teacher.name for teacher in found)
            raise ManifestMismatch(f"{model_path} is the model of several teachers ({names}): say which with --teacher")
        known = [f"{t.name} ({t.model_file}, {t.sha256[:12]})" for t in stream.teachers.values()]
        there = ", ".join([*known, *(f"{name} (needs a newer Distillog)" for name in stream.unread)]) or "none"
        raise ManifestMismatch(
            f"{model_path} ({sha256[:12]}) is no teacher of stream {stream.manifest.stream!r} (there: {there}); "
            f"add it with `distillog topics add-teacher {stream.manifest.stream} NAME {model_path}`"
        )
    teacher = stream.teacher(name)
    refuse_another(model_path, teacher, sha256)
    return teacher


def _check_on_first_orders(
    stream: Stream, fetcher: Fetcher, model: OnnxTeacher
) -> tuple[str, tuple[float, float], Ranges, Inputs]:
    """Check data and model.

    Returns:
        A notice, the seconds that a sample takes to load and to infer, the ranges of the outputs, and the first order's
        views.

    The first time of each is left out, since it counts what happens once (caches, allocations).
    """
    sequence = Sequence.of(stream.manifest)
    try:
        first, view_seed = sequence.sample_ids(0), sequence.view_seed(0)
        fetched = fetcher.fetch(first, view_seed, model.size, mix=False)  # a mix of two classes is neither of them
        second = sequence.sample_ids(min(1, sequence.orders_per_epoch - 1))
        loading, _ = _timed(lambda: fetcher.fetch(second, view_seed, model.size))
    except OSError as error:
        raise DataUnavailable(f"dataset {fetcher.dataset.uri}: cannot be read: {error}") from None
    if not len(fetched.kept_rows):
        reason = fetched.faults[0][1]
        raise DataUnavailable(f"dataset {fetcher.dataset.uri}: no sample of the first order can be decoded: {reason}")
    try:
        check_model(model, fetched.inputs)
        check_cuts(model, stream.manifest.codec, fetched.inputs)
        inference, _ = _timed(lambda: label(model, fetched, stream.manifest.codec, Asked(first, view_seed)))
        ranges = Ranges(model.teacher, stream.manifest.codec)
        notice = _accuracy(model, fetched, ranges)
    except (DistillogError, MemoryError):
        raise
    except Exception as error:  # ONNX Runtime's exceptions have no common base
        raise TeacherRejected(
            f"{model.path}: fails on samples of the first order ({' '.join(str(error).split())[:300]}); a teacher has "
            "to label every sample, on a machine whose memory and device it fits"
        ) from error
    return notice, (loading / len(second), inference / len(fetched.kept_rows)), ranges, fetched.inputs


def _accuracy(model: OnnxTeacher, fetched: Fetched, ranges: Ranges) -> str:
    """Say how often the teacher is right on views that have labels, and take in the ranges of its outputs."""
    classes = model.teacher.class_output

    def look(rows: slice, labels: Outputs) -> npt.NDArray[np.float32] | None:
        ranges.see(labels)
        return None if classes is None else model.rebuilt({classes.name: labels[classes.name]})[classes.name]

    of_calls = [each for each in model.in_calls(fetched.inputs, look) if each is not None]
    if classes is None or not (fetched.labels >= 0).any():
        return "" if classes else NO_CLASSES
    return accuracy_notice(np.concatenate(of_calls), fetched.labels, classes.class_map)


def _timed(work: Callable[[], T]) -> tuple[float, T]:
    """Do something: how long it takes, in seconds, and what it gives.

    It is done again while it takes no time to speak of, and the shortest counts, as noise only adds.
    """
    begun = time.monotonic()
    result = work()
    shortest = time.monotonic() - begun
    while (before := time.monotonic()) - begun < MEASURE_SECONDS:
        work()
        shortest = min(shortest, time.monotonic() - before)
    return shortest, result
