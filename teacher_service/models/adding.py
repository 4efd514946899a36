"""Adding an ONNX file to a stream as a teacher: it is described, tried on samples, and refused where that speaks."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, replace
from pathlib import Path

from pipeline import create
from pipeline.kafka.found import find_cluster
from pipeline.sequence import Sequence
from pipeline.streams import Stream, open_stream
from pipeline.views.check import check_data
from pipeline.views.fetch import Fetcher
from schemas.errors import DataUnavailable, EncodeError, StreamConflict, TeacherRejected
from schemas.records import Manifest, Teacher
from teacher_service.models.assess import Assessment, Way, assess
from teacher_service.models.choosing import CutFound, choose_cuts
from teacher_service.models.declared import NOTHING, Declared
from teacher_service.models.describe import describe_model
from teacher_service.models.heads import layers_of
from teacher_service.models.session import OnnxTeacher


@dataclass(frozen=True, slots=True, eq=False)
class Added:
    """A teacher that is in its stream."""

    teacher: Teacher
    """As it was declared and found."""
    new: bool
    """Whether this call added it; else it was there, the same."""
    found: Assessment | None
    """What its trial on samples came to; None where it was there."""
    cuts: tuple[CutFound, ...] = ()
    """What was measured of who cuts its outputs down to their likeliest classes."""


def add_teacher(
    stream: str,
    name: str,
    model: Path | str,
    declared: Declared = NOTHING,
    *,
    classes: int | None = None,
    as_declared: bool = False,
    dataset: str | None = None,
    cut: str = "auto",
    bootstrap_servers: str | None = None,
    kafka_config: Path | str | None = None,
) -> Added:
    """Register an ONNX file as a teacher of a stream, as `distillog topics add-teacher`, and make its topic.

    The same call again changes nothing.

    Args:
        stream: the stream's name.
        name: the teacher's.
        model: the file.
        declared: what is said of its inputs and outputs; the rest is found by itself.
        classes: refuse a teacher of another number of classes.
        as_declared: take it so even where another way is clearly better, or outputs are not finite.
        dataset: URI of the stream's data at another place.
        cut: who keeps the likeliest classes, of outputs stored by topk: `numpy`, `graph` (ONNX Runtime), or `auto`: the
            graph where it is clearly faster on some samples.
        bootstrap_servers: as `--bootstrap-servers`, else as every command finds the cluster.
        kafka_config: as `--kafka-config`.

    Raises:
        TeacherRejected: it cannot serve, or would clearly be better if declared in another way, which is named.
        StreamConflict: one of that name exists and differs, or its classes are others.
        StreamNotFound, ManifestMismatch, ConfigError, NotAuthorized: as the command.
        DataUnavailable, BrokerUnavailable: no answer.
    """
    model = Path(model)
    settings = find_cluster(bootstrap_servers, kafka_config)
    opened = open_stream(settings, stream)
    fetcher = check_data(opened.manifest, dataset)
    teacher = describe_model(model, name, opened.manifest, fetcher, declared)
    there = teacher.class_output.num_classes if teacher.class_output else 0
    if classes not in (None, there):
        raise StreamConflict(f"--classes {classes}: {model} gives {there} classes")
    teacher, cuts = _cut(opened, model, teacher, cut, fetcher)
    found = None
    is_new = create.is_new(opened, teacher)
    by_head = any(one.head_sha256 for one in teacher.outputs)
    opened_model = OnnxTeacher(model, teacher) if is_new or by_head else None
    if is_new and opened_model is not None:
        view_seed = Sequence.of(opened.manifest).view_seed(0)
        found = assess(opened_model, opened.manifest.codec, fetcher, view_seed)
        if found.better is not None and not as_declared:
            better = replace(teacher, inputs=found.better.inputs)
            options = declared.options(better)
            command = ["distillog", "topics", "add-teacher", stream, name, str(model), *options]
            command += [*(("--classes", str(classes)) if classes else ()), *(("--dataset", dataset) if dataset else ())]
            how = f"if added by `{shlex.join(command)}`"
            if problem := _too_new(opened.manifest, better):
                how = f"by `{shlex.join(options)}`, but {problem}, or put that into the model"
            raise TeacherRejected(_refusal(model, found, found.better, how))
        if found.has_holes and not as_declared:
            raise TeacherRejected(
                f"{model}: {holes(found, teacher)}; workers stop where more than 1 % of the samples cannot be "
                "labelled (--as-declared takes it as declared)"
            )
    layers = tuple(layers_of(opened_model).values()) if opened_model is not None else ()
    return Added(teacher, create.add_teacher(settings, opened, teacher, layers), found, cuts)


def _cut(
    stream: Stream, path: Path, teacher: Teacher, cut: str, fetcher: Fetcher
) -> tuple[Teacher, tuple[CutFound, ...]]:
    """Return the teacher with who cuts its outputs; `auto` leaves out what the stream's records cannot say."""
    manifest = stream.manifest
    for one in teacher.outputs:  # first: what does not fit a codec is no matter of cutting
        one.refuse_codec(one.stored_as(manifest.codec))
    view_seed = Sequence.of(manifest).view_seed(0)
    try:
        found = choose_cuts(path, teacher, manifest.codec, cut, fetcher, view_seed, stream.teachers.get(teacher.name))
    except OSError as error:
        raise DataUnavailable(f"dataset {fetcher.dataset.uri}: cannot be read: {error}") from None
    return (teacher, ()) if cut == "auto" and _too_new(manifest, found[0]) else found


def _too_new(manifest: Manifest, teacher: Teacher) -> str:
    """Say what of a teacher's declaration the stream's records cannot hold, "" where they hold all of it."""
    try:
        teacher.encode(manifest.schema_fingerprints)
    except EncodeError as error:
        return str(error)
    return ""


def _refusal(model: Path, found: Assessment, better: Way, how: str) -> str:
    """Say which way is clearly better, on the samples that both were tried on."""
    as_declared = found.declared.first(better.num_samples).accuracy
    return (
        f"{model} is right for {as_declared:.1%} of {better.num_samples} labelled samples as declared, and for "
        f"{better.accuracy:.1%} {how} (--as-declared takes it as declared)"
    )


def holes(found: Assessment, teacher: Teacher) -> str:
    """Say for how many samples a teacher's outputs cannot be stored."""
    way = found.declared
    halves = [
        one.name
        for one in teacher.outputs
        if one.head_sha256 or (not one.codec_classes and str(one.codec) == "float16")
    ]
    why = f", or beyond float16 (else --codec {halves[0]}=float32)" if halves else ""
    return f"outputs are not finite (NaN or infinity{why}) for {way.num_unfit} of {way.num_samples} samples"
