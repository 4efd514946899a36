"""A user's `__len__` and `__getitem__` as a dataset."""

from __future__ import annotations

import logging
import operator
import threading
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.datasets.base import Arrays, Field, Ints, Samples, is_thread_safe
from pipeline.datasets.pictures import array_of
from pipeline.datasets.user_classes import classes_of
from pipeline.second_look import SecondLook
from pipeline.user_code import blames_sample, calling, said
from schemas.errors import ConfigError

log = logging.getLogger(__name__)

_NAMED = 16
"""Samples without a label that are named, at most."""
_UNKNOWN = -2  # the label of a sample that was not read yet
_REMEMBERED = 1 << 22
"""Labels that are remembered after their items were read; with their IDs 64 MiB, whatever the size of the data."""


class ItemDataset:
    """Adapts `__len__` and `__getitem__`.

    What `__getitem__` raises, and an item of another shape than the first, is a fault of that row. What storage raises
    passes through, to be tried again (`blames_sample` tells them apart). Optional attributes: `num_classes`
    (without it, the highest of `labels` plus one), `class_names`, `labels` ([n] whole numbers; without it, labels are
    learnt by reading the items).

    Raises ConfigError where nothing can be made of it.
    """

    def __init__(self, uri: str, items: Any) -> None:
        self.uri = uri
        self.num_samples = len(items)
        self._items = items
        self.thread_safe = is_thread_safe(items)
        self._learning = threading.Lock()
        self._named: set[int] = set()
        if self.num_samples < 1:
            raise ConfigError(f"dataset {uri} is empty")
        self.num_classes, self.class_names = classes_of(uri, items)
        self._given = self._checked_labels(getattr(items, "labels", None))
        self.counted = False
        """Whether the classes are those that the labels show."""
        if not self.num_classes and self._given is not None:
            self.num_classes, self.counted = int(self._given.max()) + 1, True
        remembered = min(self.num_samples, _REMEMBERED) if self._given is None else 0
        # The label of ID i is remembered in slot i % remembered, until another's is.
        self._slot_ids = np.full(remembered, -1, np.int64)
        self._slot_labels = np.empty(remembered, np.int64)
        first = self._first()
        self.fields = {name: Field(array.shape, array.dtype.name) for name, array in first.items()}
        """Those of the first item that can be read."""

    def read(self, sample_ids: Ints) -> Samples:
        """Calls `__getitem__` for each ID."""
        # Copied row by row: an item may be a buffer that the next one is written to.
        fields = {name: np.empty((len(sample_ids), *_whole(f)), f.dtype) for name, f in self.fields.items()}
        rows: list[int] = []
        faults: list[tuple[int, str]] = []
        look = SecondLook()
        for row, sample_id in enumerate(sample_ids.tolist()):
            try:
                item, _ = look.at(partial(self._item, sample_id))
                got = {name: Field(array.shape, array.dtype.name) for name, array in item.items()}
                if got != self.fields:
                    raise ValueError(
                        f"sample {sample_id} is {_kind(got)}, the first sample {_kind(self.fields)}: give all in one "
                        "shape and dtype"
                    )
            except Exception as error:
                if not blames_sample(error):
                    raise
                faults.append((row, said(error)))
                continue
            for name, array in item.items():
                fields[name][len(rows)] = array
            rows.append(row)
        kept = {name: array[: len(rows)] for name, array in fields.items()}
        return Samples(kept, np.array(rows, np.int64), tuple(faults))

    def labels(self, sample_ids: Ints) -> Ints:
        """[N] int64; reads the items whose labels are not known (-1 where that fails)."""
        if self._given is not None:
            return self._given[sample_ids].astype(np.int64)
        labels, look = self._known(sample_ids), SecondLook()
        for place in np.flatnonzero(labels == _UNKNOWN).tolist():
            labels[place] = self._learnt(int(sample_ids[place]), look)
        return labels

    def _learnt(self, sample_id: int, look: SecondLook) -> int:
        label = int(self._known(np.array(sample_id)))
        if label == _UNKNOWN:
            try:
                _, label = look.at(partial(self._item, sample_id))
            except Exception as error:
                if not blames_sample(error):
                    raise
                label = -1  # not learnt: it may be read a moment later
                if sample_id not in self._named and len(self._named) < _NAMED:
                    self._named.add(sample_id)
                    log.warning("dataset %s: sample %d counts as unlabelled: %s", self.uri, sample_id, said(error))
        return label

    def _known(self, sample_ids: Ints) -> Ints:
        slots = sample_ids % len(self._slot_ids)
        with self._learning:
            return np.where(self._slot_ids[slots] == sample_ids, self._slot_labels[slots], _UNKNOWN)

    def _learn(self, sample_id: int, label: int) -> None:
        slot = sample_id % len(self._slot_ids)
        with self._learning:
            self._slot_ids[slot], self._slot_labels[slot] = sample_id, label

    def _first(self) -> Arrays:
        reason, look = "", SecondLook()
        for sample_id in range(min(self.num_samples, 100)):
            try:
                return look.at(partial(self._item, sample_id))[0]
            except Exception as error:
                if not blames_sample(error):
                    raise
                reason = reason or said(error)
        raise ConfigError(f"dataset {self.uri}: none of the first samples can be read: {reason}")

    def _item(self, sample_id: int) -> tuple[Arrays, int]:
        with calling(f"dataset {self.uri}: __getitem__({sample_id})"):
            return self._parts(sample_id)

    def _parts(self, sample_id: int) -> tuple[Arrays, int]:
        """Its fields and its label"""
        item = self._items[sample_id]
        label = -1
        if isinstance(item, tuple):
            if len(item) != 2:
                raise ValueError(f"an item is a tuple of {len(item)}; give (sample, label)")
            item, label = item[0], self._checked_label(item[1])
        fields = item if isinstance(item, dict) else {"input": item}
        arrays = {name: array_of(value) for name, value in fields.items()}
        for name, array in arrays.items():
            if not isinstance(name, str) or array.dtype.kind not in "biuf":
                given = type(fields[name]).__name__
                raise ValueError(f"field {name!r} is a {given} ({array.dtype}); give arrays of numbers under names")
        if not arrays:
            raise ValueError("an item without fields")
        if self._given is None:
            self._learn(sample_id, label)
        return arrays, label

    def _checked_label(self, label: Any) -> int:
        try:
            number = operator.index(label)
        except TypeError:
            raise ValueError(f"label {label!r} is no whole number; give -1 where unlabelled") from None
        if number < -1 or (self.num_classes and number >= self.num_classes):
            raise ValueError(f"label {number} is none of {self.num_classes} classes; give -1 where unlabelled")
        return number

    def _checked_labels(self, given: Any) -> npt.NDArray[Any] | None:
        if given is None:
            return None
        labels = np.asarray(given)
        if labels.shape != (self.num_samples,) or labels.dtype.kind not in "iu":
            raise ConfigError(
                f"dataset {self.uri}: labels is {labels.dtype} of shape {labels.shape}; give {self.num_samples} whole "
                "numbers, -1 where unlabelled"
            )
        low, high = int(labels.min()), int(labels.max())
        if low < -1 or (self.num_classes and high >= self.num_classes):
            raise ConfigError(
                f"dataset {self.uri}: labels go from {low} to {high}, for {self.num_classes} classes; -1 is unlabelled"
            )
        return labels


def _kind(fields: dict[str, Field]) -> str:
    return ", ".join(f"{name} {field.dtype} {list(field.shape)}" for name, field in fields.items())


def _whole(field: Field) -> tuple[int, ...]:
    return tuple(length or 0 for length in field.shape)
