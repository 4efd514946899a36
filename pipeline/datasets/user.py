"""A user's own data set: `my_package.my_module:factory?size=3` calls `factory(size="3")`.

What it returns is a `Dataset`, or anything with `__len__` and `__getitem__(id)`, the torch way. An item is an array, a
dict of arrays, or a pair of one of these and a label.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from typing import Any

import numpy as np

from pipeline.datasets.base import Arrays, Dataset, Field, Ints, Samples
from schemas.errors import ConfigError

_UNKNOWN = -2  # the label of a sample that was not read yet


def imported(kind: str, module: str, name: str, known: str) -> Callable[..., Any]:
    """The callable `module:name`. Raises ConfigError; `known` is the hint where the module itself is missing."""
    try:
        found = getattr(importlib.import_module(module), name)
    except ModuleNotFoundError as error:
        # The module itself is missing, or a package above it: otherwise it lacks one of its own imports.
        if error.name and (module == error.name or module.startswith(f"{error.name}.")):
            raise ConfigError(
                f"{kind} {module}:{name}: no module {error.name!r} on the Python path (see PYTHONPATH). {known}"
            ) from error
        raise ConfigError(f"{kind} {module}:{name}: {module} needs a missing package: {error}") from error
    except AttributeError as error:
        raise ConfigError(f"{kind} {module}:{name}: {error}") from error
    if not callable(found):
        raise ConfigError(f"{kind} {module}:{name} is not callable")
    return found  # type: ignore[no-any-return]


def user_dataset(uri: str, module: str, name: str, params: dict[str, str], known: str) -> Dataset:
    """Calls the factory with the URI's parameters, as text. Raises ConfigError."""
    factory = imported("data set", module, name, known)
    try:
        inspect.signature(factory).bind(**params)
    except TypeError as error:
        raise ConfigError(f"data set {uri}: {name}() does not take these parameters: {error}") from error
    made = factory(**params)
    if all(hasattr(made, part) for part in ("read", "labels", "num_samples", "fields")):
        return made  # type: ignore[no-any-return]
    if not (hasattr(made, "__len__") and hasattr(made, "__getitem__")):
        raise ConfigError(f"data set {uri}: {name}() gave a {type(made).__name__} without __len__ and __getitem__")
    return ItemDataset(uri, made)


class ItemDataset:
    """Adapts `__len__` and `__getitem__`.

    A ValueError of `__getitem__`, or an item of another shape than the first, is a fault of that row; an OSError
    passes through, to be tried again. Optional attributes: `num_classes`, `class_names`, `labels` ([n] whole numbers;
    without it, labels are learnt by reading the items, all of them for a fingerprint).
    """

    def __init__(self, uri: str, items: Any) -> None:
        self.uri = uri
        self.num_samples = len(items)
        self._items = items
        if self.num_samples < 1:
            raise ConfigError(f"data set {uri} is empty")
        self.class_names: tuple[str, ...] = tuple(getattr(items, "class_names", ()))
        self.num_classes = int(getattr(items, "num_classes", len(self.class_names)))
        given = getattr(items, "labels", None)
        self._labels = np.full(self.num_samples, _UNKNOWN) if given is None else np.asarray(given, np.int64)
        if self._labels.shape != (self.num_samples,):
            raise ConfigError(f"data set {uri}: labels has shape {self._labels.shape}, not ({self.num_samples},)")
        first = self._first()
        self.fields = {name: Field(array.shape, array.dtype.name) for name, array in first.items()}
        """Those of the first item that can be read."""

    def read(self, sample_ids: Ints) -> Samples:
        """Calls `__getitem__` for each ID."""
        kept: list[Arrays] = []
        rows: list[int] = []
        faults: list[tuple[int, str]] = []
        for row, sample_id in enumerate(sample_ids.tolist()):
            try:
                item = self._item(sample_id)
                got = {name: Field(array.shape, array.dtype.name) for name, array in item.items()}
                if got != self.fields:
                    raise ValueError(f"sample {sample_id} has fields {got}, the first sample {self.fields}")
            except ValueError as error:
                faults.append((row, str(error)))
                continue
            kept.append(item)
            rows.append(row)
        fields = {
            name: np.stack([item[name] for item in kept]) if kept else np.empty((0, *_whole(field)), field.dtype)
            for name, field in self.fields.items()
        }
        return Samples(fields, np.array(rows, np.int64), tuple(faults))

    def labels(self, sample_ids: Ints) -> Ints:
        """[N] int64; reads the items whose labels are not known yet (-1 where that fails)."""
        for sample_id in np.unique(sample_ids[self._labels[sample_ids] == _UNKNOWN]).tolist():
            try:
                self._item(sample_id)
            except ValueError:
                self._labels[sample_id] = -1
        return self._labels[sample_ids]

    def _first(self) -> Arrays:
        reason = ""
        for sample_id in range(min(self.num_samples, 100)):
            try:
                return self._item(sample_id)
            except ValueError as error:
                reason = reason or str(error)
        raise ConfigError(f"data set {self.uri}: none of the first samples can be read: {reason}")

    def _item(self, sample_id: int) -> Arrays:
        item = self._items[sample_id]
        label = -1
        if isinstance(item, tuple):
            if len(item) != 2:
                raise ConfigError(f"data set {self.uri}: an item is a tuple of {len(item)}; give (sample, label)")
            item, label = item
        if self._labels[sample_id] == _UNKNOWN:
            self._labels[sample_id] = int(label)
        fields = item if isinstance(item, dict) else {"input": item}
        return {name: np.asarray(array) for name, array in fields.items()}


def _whole(field: Field) -> tuple[int, ...]:
    return tuple(length or 0 for length in field.shape)
