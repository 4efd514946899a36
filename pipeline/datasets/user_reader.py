"""A user's own `Dataset`, which reads many samples at once: what it gives is checked, what it raises is told apart."""

from __future__ import annotations

import operator
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.datasets.base import Arrays, Dataset, Faults, Field, HasRaw, Ints, Samples, is_thread_safe
from pipeline.datasets.user_classes import classes_of
from pipeline.second_look import SecondLook
from pipeline.user_code import blames_sample, calling, said
from schemas.errors import BadSamples, ConfigError


def checked(uri: str, dataset: Any) -> Dataset:
    """The dataset behind checks. Raises ConfigError for attributes that make no sense."""
    return _RawReader(uri, dataset) if isinstance(dataset, HasRaw) else _Reader(uri, dataset)


class _Reader:
    """Where `read` raises, its rows are read one by one: those that still raise are faults of their rows."""

    def __init__(self, uri: str, dataset: Any) -> None:
        self.uri = uri
        self._dataset = dataset
        self.thread_safe = is_thread_safe(dataset)
        self.num_samples = operator.index(dataset.num_samples)
        if self.num_samples < 1:
            raise ConfigError(f"dataset {uri} is empty")
        self.num_classes, self.class_names = classes_of(uri, dataset)
        try:
            self.fields = {
                str(name): Field(tuple(field.shape), np.dtype(field.dtype).name)
                for name, field in dict(dataset.fields).items()
            }
        except (TypeError, ValueError, AttributeError) as error:
            raise ConfigError(f"dataset {uri}: fields must be name -> Field: {said(error)}") from error
        if not self.fields:
            raise ConfigError(f"dataset {uri} has no fields")

    def read(self, sample_ids: Ints) -> Samples:
        """The samples of [N] int64 IDs. Raises OSError as the user's code does, ConfigError for what is no samples."""
        try:
            return self._read(sample_ids)
        except Exception as error:
            if not blames_sample(error):
                raise
        look = SecondLook()
        parts = [self._alone(sample_ids[row : row + 1], look) for row in range(len(sample_ids))]
        fields = {name: np.concatenate([part.fields[name] for part in parts]) for name in self.fields}
        kept = [row for row, part in enumerate(parts) if len(part.kept_rows)]
        faults = tuple((row, reason) for row, part in enumerate(parts) for _, reason in part.faults)
        return Samples(fields, np.array(kept, np.int64), faults)

    def _alone(self, sample_id: Ints, look: SecondLook) -> Samples:
        """Of [1] ID"""
        try:
            return look.at(partial(self._read, sample_id))
        except Exception as error:
            if not blames_sample(error):
                raise
            return self._none(((0, said(error)),))

    def labels(self, sample_ids: Ints) -> Ints:
        """[N] int64 class IDs. Raises OSError as the user's code does, ConfigError for what is no labels."""
        try:
            labels = SecondLook().at(partial(self._labels, sample_ids))
        except Exception as error:
            if not blames_sample(error):
                raise
            raise ConfigError(f"dataset {self.uri}: labels() failed: {said(error)}") from error
        if labels.shape != sample_ids.shape or labels.dtype.kind not in "iu":
            raise ConfigError(
                f"dataset {self.uri}: labels() gave {labels.dtype} of shape {labels.shape} for {len(sample_ids)} IDs; "
                "give whole numbers, -1 where unlabelled"
            )
        low, high = int(labels.min(initial=-1)), int(labels.max(initial=-1))
        if low < -1 or (self.num_classes and high >= self.num_classes):
            raise ConfigError(f"dataset {self.uri}: labels go from {low} to {high}, for {self.num_classes} classes")
        return labels.astype(np.int64, copy=False)

    def _labels(self, sample_ids: Ints) -> npt.NDArray[Any]:
        with calling(f"dataset {self.uri}: labels()"):
            return np.asarray(self._dataset.labels(sample_ids))

    def _read(self, sample_ids: Ints) -> Samples:
        with calling(f"dataset {self.uri}: read()"):
            got = self._dataset.read(sample_ids)
        if not isinstance(got, Samples):
            raise ConfigError(f"dataset {self.uri}: read() gave a {type(got).__name__}, not Samples")
        kept = np.asarray(got.kept_rows)
        rising = kept.ndim == 1 and kept.dtype.kind in "iu" and bool((np.diff(kept) > 0).all())
        if not rising or not ((kept >= 0) & (kept < len(sample_ids))).all():
            raise ConfigError(f"dataset {self.uri}: read() gave kept_rows that are no rising rows of the request")
        fields = {name: np.asarray(array) for name, array in got.fields.items()}
        if problem := self._unlike(fields, len(kept)):
            raise ConfigError(f"dataset {self.uri}: read() gave {problem}")
        return Samples(fields, kept.astype(np.int64), self._complete(kept, got.faults, len(sample_ids)))

    def _unlike(self, fields: Arrays, count: int) -> str:
        """What is wrong with some fields; "" if nothing."""
        if set(fields) != set(self.fields):
            return f"the fields {sorted(fields)}, not {sorted(self.fields)}"
        for name, array in fields.items():
            field = self.fields[name]
            if array.dtype.kind not in "biuf" or array.dtype != field.dtype or array.ndim != 1 + len(field.shape):
                return f"{name} as {_show(array)}, not {field.dtype} [{count}, {field.shape}]"
            fits = all(there in (None, length) for length, there in zip(array.shape[1:], field.shape, strict=True))
            if len(array) != count or not fits:
                return f"{name} as {_show(array)}, not {field.dtype} [{count}, {field.shape}]"
        return ""

    def _complete(self, kept: Ints, faults: Faults, count: int) -> Faults:
        """A reason for each row that is left out."""
        reasons = {int(row): str(reason) for row, reason in faults}
        left_out = np.setdiff1d(np.arange(count), kept).tolist()
        return tuple((row, reasons.get(row, "left out by the dataset without a reason")) for row in left_out)

    def _none(self, faults: Faults) -> Samples:
        fields = {
            name: np.empty((0, *(length or 0 for length in field.shape)), field.dtype)
            for name, field in self.fields.items()
        }
        return Samples(fields, np.empty(0, np.int64), faults)


class _RawReader(_Reader):
    """One that knows its stored bytes."""

    def raw(self, sample_id: int) -> bytes:
        """The stored bytes of a sample.

        Raises OSError as the user's code does, BadSamples for its other exceptions, ConfigError for what is no bytes.
        """
        try:
            raw = SecondLook().at(partial(self._raw, sample_id))
        except Exception as error:
            if not blames_sample(error):
                raise
            raise BadSamples(f"dataset {self.uri}: sample {sample_id} cannot be read: {said(error)}") from error
        if not isinstance(raw, bytes | bytearray | memoryview):
            raise ConfigError(f"dataset {self.uri}: raw() gave a {type(raw).__name__}, not bytes")
        return bytes(raw)

    def _raw(self, sample_id: int) -> object:
        with calling(f"dataset {self.uri}: raw({sample_id})"):
            return self._dataset.raw(sample_id)


def _show(array: npt.NDArray[Any]) -> str:
    return f"{array.dtype} {list(array.shape)}"
