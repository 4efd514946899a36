"""From an ONNX file that somebody made to a teacher's record: names, dtypes, layout, batch, classes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.onnx_runtime import open_session
from pipeline.sequence import Sequence
from pipeline.views.fetch import Fetcher
from pipeline.views.positions import choosers, chosen
from schemas.codecs import CodecSpec
from schemas.errors import ConfigError, DataUnavailable, TeacherRejected
from schemas.kinds import check_kind
from schemas.names import check_name, did_you_mean
from schemas.records import Manifest, Teacher, TeacherOutput
from schemas.reductions import Reduction
from schemas.teacher_output import CLASS_KINDS, SOFTMAX_KINDS
from teacher_service.models.checks import OUTPUT_BYTES, first_rows
from teacher_service.models.class_map_files import read_class_map
from teacher_service.models.class_names import class_map_by_names
from teacher_service.models.declared import NOTHING, Declared, DeclaredOutput
from teacher_service.models.feeding import channels_last, feed_inputs
from teacher_service.models.files import model_sha256
from teacher_service.models.heads import with_heads
from teacher_service.models.session import OnnxTeacher, pick, show, static_shape

DEFAULT_BATCH = 256

_FLOATS = ("tensor(float)", "tensor(float16)", "tensor(double)")
"""What is stored of an output's own type, or rounded to it; larger whole numbers would change."""
_FIRST_ROWS = 16
"""Of the first call, which tells how large the outputs are."""


def describe_model(
    path: Path, name: str, manifest: Manifest, fetcher: Fetcher, declared: Declared = NOTHING
) -> Teacher:
    """Make the record of a teacher from its file, a few real samples and what the user declares.

    Raises:
        TeacherRejected: the file cannot serve this stream.
        ConfigError: a field, input or output that does not exist, or something that only the user can say.
        DataUnavailable: the samples that it is tried on cannot be read.
    """
    sequence = Sequence.of(manifest)
    ids, view_seed = sequence.sample_ids(0), sequence.view_seed(0)
    return describe_on(path, name, fetcher, ids, view_seed, manifest.order_size, manifest.stream_id, declared)


def describe_on(
    path: Path,
    name: str,
    fetcher: Fetcher,
    sample_ids: npt.NDArray[np.int64],
    view_seed: int,
    order_size: int,
    stream_id: str,
    declared: Declared,
) -> Teacher:
    """As `describe_model`, on samples of one's own: for a teacher that is compared with, without any stream."""
    check_name("teacher", name)
    sha256 = model_sha256(path)
    session = open_session(path, refusal=TeacherRejected)
    there = {one.name: one for one in session.get_inputs()}
    seen = _fetch(fetcher, sample_ids[:2], view_seed, None)
    pairs = _pair(path, dict(declared.inputs), list(seen), list(there))
    types = {one.name: one.type for one in session.get_outputs()}
    given = _outputs(path, types, list(seen), declared)
    fixed = {static_shape(one.shape)[0] for one in there.values() if one.shape} - {None}
    batch = _batch(path, fixed, declared.batch)
    ids = sample_ids[: max(batch or min(order_size, DEFAULT_BATCH), 64)]

    sizes = {fed: static_shape(there[one].shape) for fed, one in pairs.items()}
    size = _spatial(seen, sizes, declared.layout)
    samples = _fetch(fetcher, ids, view_seed, size or None)
    inputs = feed_inputs(path, there, pairs, samples, declared, size)
    model = OnnxTeacher(path, Teacher(stream_id, name, sha256, path.name, inputs, given, batch or _FIRST_ROWS))
    row_bytes = _row_bytes(_answers(model, {field: values[:_FIRST_ROWS] for field, values in samples.items()}))
    batch = batch or min(order_size, DEFAULT_BATCH, max(1, OUTPUT_BYTES // max(1, row_bytes)))
    samples = first_rows(samples, batch, row_bytes)
    answers = _answers(model.fed_as(inputs, batch), samples)
    sayings = [(one.class_map, one.class_names) for one in declared.outputs] or [(None, None)]
    outputs: list[TeacherOutput] = []
    for output, (file, names) in zip(given, sayings, strict=True):
        values = answers[output.output]
        if file:
            before = any(each.codec_classes and len(each.shape) == 1 for each in outputs)
            of_labels = values.ndim == 2 and output.kind in SOFTMAX_KINDS and not before
            output = replace(output, class_map=read_class_map(Path(file), fetcher.dataset, of_labels))
        elif names:
            axis = values.ndim - 1 if output.class_axis is None else output.class_axis
            count = values.shape[axis] if axis < values.ndim else 0
            what = f"--class-names {output.name}={names}"
            metadata = session.get_modelmeta().custom_metadata_map
            output = replace(output, class_map=class_map_by_names(names, metadata, fetcher.dataset, count, what))
        outputs.append(_described(path, output, values, samples, fetcher.dataset.num_classes))
    return with_heads(path, replace(model.teacher, outputs=tuple(outputs), inference_batch=batch), samples, answers)


def _row_bytes(answers: Mapping[str, npt.NDArray[np.float32]]) -> int:
    return sum(values[0].nbytes for values in answers.values())


def _outputs(path: Path, there: Mapping[str, str], fields: list[str], declared: Declared) -> tuple[TeacherOutput, ...]:
    """The outputs to publish of those that are there (name -> type), by what was said; of no shape or map yet."""
    asked = declared.outputs
    if not asked and len(there) > 1:
        raise ConfigError(f"{path} has several outputs ({', '.join(there)}): say which with --output")
    asked = asked or (DeclaredOutput(next(iter(there))),)
    if declared.kind and (len(asked) > 1 or asked[0].kind):
        raise ConfigError("--kind is for a teacher of one output; say it of each with --output NAME=ONNX_OUTPUT:KIND")
    if declared.codec and (len(asked) > 1 or asked[0].codec):
        raise ConfigError("--codec CODEC is for a teacher of one output; say it of each with --codec NAME=CODEC")
    if isinstance(declared.codec, CodecSpec):
        asked = (replace(asked[0], codec=declared.codec),)
    found: list[TeacherOutput] = []
    for one in asked:
        if one.output not in there:
            raise ConfigError(f"{path} has no output {one.output!r}: {did_you_mean(one.output, there)}")
        kind = one.kind or declared.kind or "logits"
        classes = kind in CLASS_KINDS
        if there[one.output] not in _FLOATS:
            raise TeacherRejected(f"{path}: output {one.output!r} is {there[one.output]}: labels are tensors of floats")
        if one.axis is not None and not classes:
            raise ConfigError(f"--output {one}: {kind} have no axis of classes")
        name = check_name("output", one.name or ("logits" if classes else kind))
        if name in [other.name for other in found]:
            hint = f"write NAME={one.output} with a name of its own"
            raise ConfigError(f"--output {one}: two outputs would be called {name!r}; {hint}")
        if one.positions and one.positions not in fields:
            raise ConfigError(
                f"--positions {name}={one.positions}: the view gives no field {one.positions!r}: "
                f"{did_you_mean(one.positions, fields)}"
            )
        codec = one.codec_spec or (None if kind in SOFTMAX_KINDS else CodecSpec("float16"))
        axis = one.axis if classes else None
        if one.class_map and not classes:
            raise ConfigError(f"--class-map {name}={one.class_map}: {kind} have no classes")
        if one.class_names and not classes:
            raise ConfigError(f"--class-names {name}={one.class_names}: {kind} have no classes")
        if one.reduction and classes:
            raise ConfigError(
                f"--reduce {name}={one.reduction}: {kind} are of classes; features and values are reduced"
            )
        reduction = str(Reduction.parse(one.reduction)) if one.reduction else ""
        per = "position" if one.positions else "sample"
        output = TeacherOutput(name, one.output, kind, (), axis, int(classes), codec, per, one.positions)
        found.append(replace(output, reduction=reduction))
    return tuple(found)


def _described(
    path: Path,
    output: TeacherOutput,
    values: npt.NDArray[np.float32],
    samples: Mapping[str, npt.NDArray[Any]],
    num_classes: int,
) -> TeacherOutput:
    """Add what the answer [M, ...] tells, which has to be of the declared kind; the dataset has `num_classes`, or 0."""
    shape = values.shape[1:]
    if not all(shape):
        raise TeacherRejected(f"{path}: output {output.output!r} has shape {show(values.shape)}: nothing to store")
    if not output.num_classes:
        if output.reduction and Reduction.parse(output.reduction).axis > len(shape):
            raise ConfigError(
                f"--reduce {output.name}={output.reduction}: output {output.output!r} of {path} has shape "
                f"{show(values.shape)}, of which the batch is axis 0"
            )
        output = replace(output, shape=shape)
    else:
        axis = len(shape) if output.class_axis is None else output.class_axis
        if not 1 <= axis <= len(shape):
            raise TeacherRejected(
                f"{path}: output {output.output!r} has shape {show(values.shape)}: it has no axis {axis} of classes, "
                "of which the batch is 0"
                if shape
                else f"{path}: output {output.output!r} gives one number for each "
                "sample, which are no classes; add it as values"
            )
        listed = len(output.class_map)
        if output.class_axis is None and num_classes in shape[:-1] and shape[-1] not in (num_classes, listed):
            there = f"--output {output.name}={output.output}:{output.kind}@"
            raise ConfigError(
                f"{path}: output {output.output!r} has shape {show(values.shape)}: the dataset's {num_classes} classes "
                f"are not its last axis; say which axis counts classes, {there}{shape.index(num_classes) + 1} or "
                f"{there}{len(shape)}"
            )
        if listed not in (0, shape[axis - 1]):
            raise ConfigError(
                f"--class-map of {output.name}: the file has {listed} lines, and output {output.output!r} of {path} "
                f"{shape[axis - 1]} classes along axis {axis} of {show(values.shape)}: write one line for each"
            )
        output = replace(output, shape=shape, class_axis=axis - 1, num_classes=shape[axis - 1])
    mask = _positions(path, output, samples[output.positions]) if output.positions else None
    check_kind(pick(values, output, mask), output)
    return output


def _positions(path: Path, output: TeacherOutput, field: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    """Return [M, *places]: which positions of an output are labelled; refuses a field [M, ...] that cannot choose."""
    said = f"--positions {output.name}={output.positions}"
    shape, of_field = show([None, *output.shape]), show([None, *field.shape[1:]])
    if not output.places:
        left = "left" if output.reduction else "in it"
        reduced = f", and is reduced by {output.reduction}" if output.reduction else ""
        raise ConfigError(
            f"{said}: output {output.output!r} has shape {shape}{reduced}: a sample has no positions {left}"
        )
    if field.shape[1:] != output.places:
        raise ConfigError(
            f"{said}: the field has shape {of_field}, output {output.output!r} has shape {shape}: to choose its "
            f"positions a field is {show([None, *output.places])}"
        )
    if not choosers(field).all():
        raise ConfigError(
            f"{said}: the field holds negative numbers or NaN: it chooses the positions where it is not 0, so give one "
            "that is 0 elsewhere"
        )
    return chosen(field)


def _pair(path: Path, declared: dict[str, str], fields: list[str], inputs: list[str]) -> dict[str, str]:
    """Field of the view -> ONNX input, for every input of the model."""
    for field, one in declared.items():
        if field not in fields:
            raise ConfigError(f"the view gives no field {field!r}: {did_you_mean(field, fields)}")
        if one not in inputs:
            raise ConfigError(f"{path} has no input {one!r}: {did_you_mean(one, inputs)}")
        if list(declared.values()).count(one) > 1:
            raise ConfigError(f"{path}: input {one!r} is given two fields; each input takes one")
    pairs = dict(declared)
    free_fields = [field for field in fields if field not in pairs]
    free_inputs = [one for one in inputs if one not in pairs.values()]
    for one in list(free_inputs):
        if one in free_fields:
            pairs[one] = one
            free_fields.remove(one)
            free_inputs.remove(one)
    if len(free_inputs) == 1 and len(free_fields) == 1:
        pairs[free_fields[0]] = free_inputs[0]
    elif free_inputs:
        raise ConfigError(
            f"{path}: nothing says which field feeds input {free_inputs[0]!r} "
            f"(fields: {', '.join(fields)}): say it with --input FIELD={free_inputs[0]}"
        )
    return pairs


def _batch(path: Path, fixed: set[int | None], asked: int | None) -> int | None:
    """Rows of each call where the model fixes them, or the user does; None: nobody."""
    if len(fixed) > 1:
        raise TeacherRejected(f"{path}: its inputs have different fixed batches: {sorted(map(str, fixed))}")
    own = next(iter(fixed), None)
    if own is not None and asked not in (None, own):
        raise TeacherRejected(f"{path} has a fixed batch of {own}; --batch {asked} cannot be had")
    if asked is not None and asked < 1:
        raise ConfigError(f"--batch must be at least 1, not {asked}")
    return own or asked


def _spatial(
    samples: Mapping[str, npt.NDArray[Any]], shapes: Mapping[str, tuple[int | None, ...]], layout: str | None
) -> tuple[int, ...]:
    """Spatial size to ask of the view: where an image input is fixed to another size than the view's own samples."""
    for field, shape in shapes.items():
        values = samples[field]
        if values.ndim != 4 or len(shape) != 4 or channels_last(values.shape[1:]):
            continue  # views resize images, and take them as [C, H, W]
        nhwc = layout == "nhwc" or (layout is None and shape[-1] == values.shape[1] != shape[1])
        wanted = shape[1:3] if nhwc else shape[2:4]
        if None not in wanted and wanted != values.shape[2:]:
            return tuple(size for size in wanted if size is not None)
    return ()


def _fetch(
    fetcher: Fetcher, ids: npt.NDArray[np.int64], view_seed: int, size: tuple[int, ...] | None
) -> dict[str, npt.NDArray[Any]]:
    try:
        fetched = fetcher.fetch(ids, view_seed, size)
    except OSError as error:
        raise DataUnavailable(f"dataset {fetcher.dataset.uri}: cannot be read: {error}") from None
    if not len(fetched.kept_rows):
        raise DataUnavailable(
            f"dataset {fetcher.dataset.uri}: none of {len(ids)} samples can be decoded: {fetched.faults[0][1]}"
        )
    return fetched.inputs


def _answers(model: OnnxTeacher, samples: Mapping[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[np.float32]]:
    try:
        return model.answers(samples)
    except TeacherRejected:
        raise
    except Exception as error:  # ONNX Runtime's exceptions have no common base
        reason = " ".join(str(error).split())[:300]
        raise TeacherRejected(f"{model.path}: fails on the stream's samples: {reason}") from None
