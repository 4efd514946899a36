"""What a dataset is: samples addressed by an integer ID.

N: samples asked for; M: those that could be read.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from pipeline.user_code import one_line
from schemas.errors import ConfigError, DataUnavailable

Ints = npt.NDArray[np.int64]
Arrays = dict[str, npt.NDArray[Any]]
Faults = tuple[tuple[int, str], ...]


@dataclass(frozen=True, slots=True)
class Field:
    """One named array of every sample."""

    shape: tuple[int | None, ...]
    """Of one sample; None where samples differ."""
    dtype: str
    """NumPy's name of it: "float32"."""


@dataclass(frozen=True, slots=True, eq=False)
class Samples:
    """What `Dataset.read` gives."""

    fields: Arrays
    """name -> [M, ...]"""
    kept_rows: Ints
    """[M] int64, rising: which rows of the request could be read."""
    faults: Faults = ()
    """(row, reason) of each row left out: data that cannot be decoded, now or later."""


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """What the token IDs of a dataset are."""

    sha256: str
    """Of the `tokenizer.json` that makes them, as hex digits; "" where none is known."""
    size: int
    """How many tokens there are; 0 where that is not known."""
    mask_id: int = -1
    """The token that hides another; -1 where there is none."""


@dataclass(frozen=True, slots=True, eq=False)
class Parts:
    """What of each image is looked at."""

    box: npt.NDArray[np.float64]
    """[4, N]: top, left, height, width, as fractions of the image."""
    flip: npt.NDArray[np.bool_]
    """[N]: mirrored left to right."""

    @classmethod
    def whole(cls, count: int) -> Parts:
        """All of N images, as they are."""
        return cls(np.repeat([[0.0], [0.0], [1.0], [1.0]], count, axis=1), np.zeros(count, bool))


class Dataset(Protocol):
    """Samples with IDs in [0, num_samples), the same on every machine."""

    @property
    def uri(self) -> str:
        """Where it comes from, as the user wrote it."""

    @property
    def num_samples(self) -> int:
        """How many samples it has."""

    @property
    def num_classes(self) -> int:
        """How many classes its labels have; 0 when unknown."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """One name a class, or nothing."""

    @property
    def fields(self) -> dict[str, Field]:
        """The arrays of each sample."""

    def read(self, sample_ids: Ints) -> Samples:
        """The samples of [N] int64 IDs, repeats allowed.

        A sample that can never be decoded is a fault of its row. Raises OSError for what may pass: a mount that is
        away, a file that cannot be opened. Whoever calls tries again.
        """

    def labels(self, sample_ids: Ints) -> Ints:
        """[N] int64 class IDs; -1 is unlabelled."""


@runtime_checkable
class HasRaw(Protocol):
    """A dataset whose stored bytes, not its decoded arrays, say what it contains.

    Decoders differ between versions (JPEG does), and a fingerprint must not.
    """

    def raw(self, sample_id: int) -> bytes:
        """The stored bytes of a sample. Raises OSError; BadSamples where they can never be had."""


@runtime_checkable
class HasPictures(Protocol):
    """A dataset of images that lie there encoded: which part of one is looked at decides what is decoded."""

    def read_parts(self, sample_ids: Ints, parts: Parts, size: tuple[int, ...] | None) -> Samples:
        """As `read`, of a part of each image only, at `size` (height, width); None: at that of the whole.

        Raises ConfigError for another kind of size.
        """


@runtime_checkable
class HasVocabulary(Protocol):
    """A dataset of token IDs, which mean nothing without the tokenizer that they are of."""

    @property
    def vocabulary(self) -> Vocabulary:
        """What its token IDs are."""


@runtime_checkable
class HasRate(Protocol):
    """A dataset of waveforms."""

    @property
    def rate(self) -> int:
        """Points a second."""


@runtime_checkable
class CountsClasses(Protocol):
    """A dataset that may have to count its classes: `num_classes` is then its highest label plus one, or more."""

    @property
    def counted(self) -> bool:
        """Whether it counted them."""


def vocabulary_of(dataset: Dataset) -> Vocabulary:
    """Of a dataset of token IDs; of any other nothing is known."""
    return dataset.vocabulary if isinstance(dataset, HasVocabulary) else Vocabulary("", 0)


def rate_of(dataset: Dataset) -> float:
    """Points a second of its waveforms; 0 where a dataset does not say."""
    rate = dataset.rate if isinstance(dataset, HasRate) else 0
    return rate if isinstance(rate, int | float) and rate > 0 else 0


def is_thread_safe(dataset: Dataset) -> bool:
    """Whether several threads may read a dataset at once: it says so in its attribute `thread_safe`."""
    return getattr(dataset, "thread_safe", False) is True


def may_have(dataset: Dataset, num_classes: int) -> bool:
    """Whether so many classes agree with what a dataset knows of its own."""
    if isinstance(dataset, CountsClasses) and dataset.counted:
        return num_classes >= dataset.num_classes
    return dataset.num_classes in (0, num_classes)


@dataclass(frozen=True, slots=True, eq=False)
class ArrayDataset:
    """A dataset that lies in memory, or in memory-mapped files: `read` indexes the arrays."""

    uri: str
    arrays: Arrays
    """name -> [n, ...]"""
    label_array: npt.NDArray[Any]
    """[n] whole numbers"""
    class_names: tuple[str, ...] = ()
    num_classes: int = 0
    thread_safe: ClassVar[bool] = True

    @property
    def num_samples(self) -> int:
        """The common length of the arrays."""
        return len(self.label_array)

    @property
    def fields(self) -> dict[str, Field]:
        """Shapes and dtypes of the arrays' rows."""
        return {name: Field(array.shape[1:], array.dtype.name) for name, array in self.arrays.items()}

    def read(self, sample_ids: Ints) -> Samples:
        """Copies the rows; none can fail."""
        return Samples({name: array[sample_ids] for name, array in self.arrays.items()}, np.arange(len(sample_ids)))

    def labels(self, sample_ids: Ints) -> Ints:
        """[N] int64"""
        return self.label_array[sample_ids].astype(np.int64)


@contextmanager
def once_readable(uri: str) -> Iterator[None]:
    """For a beginning, which does not wait for storage: its OSError becomes DataUnavailable, in one line."""
    try:
        yield
    except OSError as error:
        text = f"dataset {uri} cannot be read: {one_line(error)}; bring it back and start again"
        raise DataUnavailable(text) from error


def image_size(size: tuple[int, ...]) -> tuple[int, int]:
    """The size as (height, width). Raises ConfigError where it is none."""
    if len(size) != 2 or min(size) < 1:
        raise ConfigError(f"images need a size of (height, width), got {size}")
    return size[0], size[1]
