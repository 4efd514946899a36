"""How a field of the samples gets into an ONNX input: layout, scale, mean and deviation, order of the channels."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.onnx_runtime import ONNX_DTYPES
from schemas.errors import ConfigError, TeacherRejected
from schemas.finite import all_finite
from schemas.records import TeacherInput
from teacher_service.models.declared import Declared, Scaling
from teacher_service.models.session import prepare_input, show, static_shape

_CHANNELS = (1, 3, 4)
"""Of images as cameras make them."""

Shape = tuple[int | None, ...]


def feed_inputs(
    path: Path,
    there: Mapping[str, Any],
    pairs: Mapping[str, str],
    samples: Mapping[str, npt.NDArray[Any]],
    declared: Declared,
    size: tuple[int, ...],
) -> tuple[TeacherInput, ...]:
    """Return how each input is fed.

    Args:
        there: ONNX input -> what the session says of it.
        pairs: field -> ONNX input.
        samples: field -> [M, ...] at `size`.

    Raises:
        TeacherRejected: an input that a field does not fit, or whose values nothing says how to scale.
        ConfigError: something declared that applies to no input, or makes numbers that an input's dtype cannot hold;
            or a layout that only the user knows.
    """
    general = [field for field in pairs if samples[field].ndim == 4] or (list(pairs) if len(pairs) == 1 else [])
    if not general and (declared.general != Scaling() or declared.channel_order):
        raise ConfigError(
            f"{path}: --scale, --mean, --std and --channel-order are for images, and no field is one: say it of each "
            "with --input FIELD=NAME*SCALE-MEAN/STD"
        )
    coloured = [field for field in general if samples[field].ndim == 4 and samples[field].shape[1] == 3]
    if declared.channel_order and not coloured:
        raise ConfigError(f"{path}: --channel-order {declared.channel_order}: no image [C, H, W] has 3 channels")
    fed = []
    for field, name in pairs.items():
        scaling = declared.scaling.get(field, Scaling())
        fed.append(
            _input(
                path,
                name,
                there[name],
                field,
                samples[field],
                scaling.over(declared.general) if field in general else scaling,
                "--scale {}" if field in general else f"--input {field}={name}*{{}}",
                declared.layout,
                declared.channel_order if field in coloured else "",
                size,
            )
        )
    return tuple(fed)


def _input(
    path: Path,
    name: str,
    declared: Any,
    field: str,
    values: npt.NDArray[Any],
    scaling: Scaling,
    option: str,
    layout: str | None,
    channel_order: str,
    size: tuple[int, ...],
) -> TeacherInput:
    if declared.type not in ONNX_DTYPES:
        raise TeacherRejected(f"{path}: input {name!r} takes {declared.type}, which no field of a dataset gives")
    dtype = np.dtype(ONNX_DTYPES[declared.type])
    laid = _layout(path, name, field, values.shape[1:], static_shape(declared.shape)[1:], layout)
    if scaling.scale is None and (hint := _scale_hint(values, dtype, option)):
        raise TeacherRejected(f"{path}: input {name!r} takes {dtype}, field {field!r} gives {values.dtype}: {hint}")
    channels = values.shape[1] if values.ndim > 1 else 1
    for what, numbers in (("mean", scaling.mean), ("std", scaling.std)):
        if len(numbers) not in (0, 1, channels):
            raise ConfigError(f"{path}: {what} has {len(numbers)} numbers, field {field!r} has {channels} channels")
    scale = 1.0 if scaling.scale is None else scaling.scale
    fed = TeacherInput(name, field, dtype.name, laid, scale, size, scaling.mean, scaling.std, channel_order)
    if all_finite(values) and not all_finite(prepare_input(values, fed)):
        raise ConfigError(
            f"{path}: input {name!r}: {fed.formula or 'field as it comes'} makes of field {field!r} numbers that no "
            f"{dtype} can hold: declare a smaller factor ({option.format('FACTOR')})"
        )
    return fed


def _scale_hint(values: npt.NDArray[Any], wanted: np.dtype[Any], option: str) -> str:
    """What to declare where values [M, ...] would change their range without a word."""
    given = values.dtype
    pixels = given.kind == "u" or (given.kind == "i" and values.ndim == 4)  # other whole numbers may count anything
    if pixels and wanted.kind == "f":
        low, high = option.format("1/255"), option.format("1")
        return f"declare a factor: {low} (0.00392156862745098) if it was trained on [0, 1], {high} if on 0 to 255"
    if given.kind == "f" and wanted.kind in "iub":
        return (
            f"declare a factor, such as {option.format('255')} ({option.format('1')}: they are whole numbers already)"
        )
    return ""


def _layout(path: Path, name: str, field: str, given: tuple[int, ...], wanted: Shape, asked: str | None) -> str:
    """Return `nchw` or `nhwc` for images [C, H, W], "" for what is fed as it comes."""
    misfit = TeacherRejected(
        f"{path}: input {name!r} takes samples of shape {show(wanted)}, field {field!r} gives {show(given)}"
    )
    if len(given) != 3:
        if not _fits(given, wanted):
            raise misfit
        return ""
    last = channels_last(given)
    first = (given[2], *given[:2]) if last else given
    shapes = {"nchw": first, "nhwc": (*first[1:], first[0])}
    fitting = [layout for layout, shape in shapes.items() if _fits(shape, wanted)]
    if asked is None and len(fitting) == 2:
        raise ConfigError(
            f"{path}: input {name!r} takes samples of shape {show(wanted)}, which says no layout: "
            "give --layout nchw or --layout nhwc"
        )
    found = asked or next(iter(fitting), "")
    if last and found != "nhwc":
        raise TeacherRejected(
            f"{misfit}, which looks like [H, W, C]: images are [C, H, W] here; let the dataset give them so "
            "(`image.transpose(2, 0, 1)`)"
        )
    if found not in fitting:
        raise misfit
    return "" if last else found


def channels_last(shape: tuple[int, ...]) -> bool:
    """Whether images of a shape look like [H, W, C]."""
    return shape[-1] in _CHANNELS and shape[0] not in _CHANNELS


def _fits(given: tuple[int, ...], wanted: Shape) -> bool:
    return len(given) == len(wanted) and all(w in (None, g) for g, w in zip(given, wanted, strict=True))
