"""What a user may have meant instead: the few other ways of feeding a model that are worth a try.

One thing is changed at a time, in all images or, where it can be declared of one, in one of them; only bytes that want
ImageNet's mean and deviation take a scale with them. Where no input is an image, the only one is changed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from schemas.records import TeacherInput

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

_UNIT = 1.5
"""Scaled values that stay below it are taken for [0, 1], or for a normalised range; those above for bytes."""
_OTHER_LAYOUT = {"nchw": "nhwc", "nhwc": "nchw"}

Values = npt.NDArray[Any]


def alternatives(inputs: tuple[TeacherInput, ...], samples: Mapping[str, Values]) -> list[tuple[TeacherInput, ...]]:
    """Return other ways to feed the inputs, the likelier first; `samples` (field -> [M, ...]) say what concerns what.

    Some may be impossible: another layout is known to fit only when the model has run.
    """
    general = [one for one in inputs if samples[one.field].ndim == 4] or (list(inputs) if len(inputs) == 1 else [])
    each = [[one] for one in general]
    changes = [(change, [general, *each]) for change in (_rescaled, _normalised, _bare)]
    changes += [(change, [general]) for change in (_laid_out, _reversed)]
    ways = [
        tuple(change(one, samples[one.field]) if one in changed else one for one in inputs)
        for change, together in changes
        for changed in together
    ]
    return [way for place, way in enumerate(ways) if way != inputs and way not in ways[:place]]


Change = Callable[[TeacherInput, Values], TeacherInput]
"""The input as it is where a change does not concern it."""


def _rescaled(one: TeacherInput, values: Values) -> TeacherInput:
    kind = values.dtype.kind
    if kind not in "fiu" or (kind in "iu" and np.dtype(one.dtype).kind in "iub"):
        return one
    return replace(one, scale=one.scale / 255 if _exceeds_unit(one, values) else one.scale * 255)


def _normalised(one: TeacherInput, values: Values) -> TeacherInput:
    if not _coloured(one, values) or one.mean or one.std or np.dtype(one.dtype).kind != "f":
        return one
    scale = one.scale / 255 if _exceeds_unit(one, values) else one.scale
    return replace(one, scale=scale, mean=IMAGENET_MEAN, std=IMAGENET_STD)


def _bare(one: TeacherInput, values: Values) -> TeacherInput:
    return replace(one, mean=(), std=())


def _laid_out(one: TeacherInput, values: Values) -> TeacherInput:
    return replace(one, layout=_OTHER_LAYOUT.get(one.layout, one.layout))


def _reversed(one: TeacherInput, values: Values) -> TeacherInput:
    return replace(one, channel_order="" if one.channel_order else "bgr") if _coloured(one, values) else one


def _coloured(one: TeacherInput, values: Values) -> bool:
    return one.layout in _OTHER_LAYOUT and values.shape[1] == len(IMAGENET_MEAN)


def _exceeds_unit(one: TeacherInput, values: Values) -> bool:
    return float(np.nanmax(np.abs(values.astype(np.float64)), initial=0.0)) * abs(one.scale) > _UNIT
