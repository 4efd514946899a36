"""Class maps: of a model whose classes are not the dataset's in the dataset's order, which of them each one is.

Only the columns of classes that the dataset has are stored, by rising class of the dataset. So a model with permuted
classes is stored as if it had them in order, and a specialist's or a larger model's as those that the dataset has.
Letters: M rows, C classes of the model, K of them that the dataset has. A map is C of the dataset's classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from schemas.columns import FloatArray, IntArray

NO_CLASS = -1
"""Of one that the dataset does not have."""


def mapped_classes(class_map: Sequence[int]) -> tuple[int, ...]:
    """Return K of the dataset's classes, rising: those of the stored columns; () for the map (), which is the same."""
    return tuple(sorted(each for each in class_map if each != NO_CLASS))


def mapped_columns(values: FloatArray, class_map: Sequence[int]) -> FloatArray:
    """[..., C] -> [..., K], the columns by rising class of the dataset; as they are without a map."""
    if not class_map:
        return values
    order = np.argsort(class_map, kind="stable")[class_map.count(NO_CLASS) :]
    return np.take(values, order, axis=-1)


def mapped_labels(labels: IntArray, class_map: Sequence[int]) -> IntArray:
    """[M] int64 classes of the dataset -> the column that each is stored in, -1 for the others and where there is none.

    As they are without a map.
    """
    if not class_map:
        return labels
    classes = np.array(mapped_classes(class_map), np.int64)
    places = np.minimum(np.searchsorted(classes, labels), len(classes) - 1)
    found: IntArray = np.where(classes[places] == labels, places, NO_CLASS)
    return found


def map_problem(class_map: Sequence[int], num_classes: int) -> str:
    """Return what of a map of C = `num_classes` does not fit, "" if nothing."""
    if not class_map:
        return ""
    classes = mapped_classes(class_map)
    if len(class_map) != num_classes:
        return f"has {num_classes} classes, and a map of {len(class_map)}"
    if min(class_map) < NO_CLASS or not classes:
        return f"has a class map of {min(class_map)}" if classes else "has a class map of no class of the dataset"
    if twice := [one for one, other in pairwise(classes) if one == other]:
        return f"has two classes that are the dataset's {twice[0]}"
    return ""
