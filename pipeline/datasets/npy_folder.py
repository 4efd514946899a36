"""A folder of `.npy` files, memory-mapped: `image.npy` [n, ...] is the field "image"; `labels.npy` [n] is optional."""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from pipeline.datasets.base import ArrayDataset, Dataset, Field, Ints, Samples
from pipeline.datasets.folder import class_names_of, open_folder, refuse_outside
from pipeline.datasets.params import Params
from schemas.errors import ConfigError


@dataclass(frozen=True, slots=True, eq=False)
class NpyFolder:
    """Arrays on disk, checked before each read to be still the files that were opened."""

    inner: ArrayDataset
    files: dict[Path, tuple[int, int]]
    """path -> (inode, size in bytes) when opened"""
    thread_safe: ClassVar[bool] = True

    @property
    def uri(self) -> str:
        """As opened."""
        return self.inner.uri

    @property
    def num_samples(self) -> int:
        """The common length of the arrays."""
        return self.inner.num_samples

    @property
    def num_classes(self) -> int:
        """From `classes.txt`, or the highest label plus one."""
        return self.inner.num_classes

    @property
    def counted(self) -> bool:
        """Whether the classes are those that the labels show."""
        return not self.class_names

    @property
    def class_names(self) -> tuple[str, ...]:
        """The lines of `classes.txt`, where it exists."""
        return self.inner.class_names

    @property
    def fields(self) -> dict[str, Field]:
        """One a file."""
        return self.inner.fields

    def read(self, sample_ids: Ints) -> Samples:
        """Copies the rows. Raises OSError when a file is gone or was replaced.

        A mapped file that vanished or shrank would otherwise be read on from memory, or kill the process (SIGBUS).
        """
        self._check()
        return self.inner.read(sample_ids)

    def labels(self, sample_ids: Ints) -> Ints:
        """[N] int64, -1 without `labels.npy`. Raises OSError as `read`."""
        self._check()
        return self.inner.labels(sample_ids)

    def _check(self) -> None:
        for path, opened in self.files.items():
            now = path.stat()
            if (now.st_ino, now.st_size) != opened:
                text = "was replaced while it was open: start again to read the new one"
                raise OSError(errno.ESTALE, text, str(path))


def npy_folder(path: str, params: dict[str, str]) -> Dataset:
    """`npy:/data/mnist?split=train`: the `.npy` files of `/data/mnist/train` (of `/data/mnist` without a split).

    Class names, one a line, are taken from `classes.txt`. Raises ConfigError for a folder that is missing, empty, or
    holds pickled or unequal arrays.
    """
    taken = Params("npy", params)
    split = taken.text("split", "")
    taken.done()
    uri = f"npy:{path}" + (f"?split={split}" if split else "")
    root, folder = open_folder("npy", path, split)
    arrays: dict[str, npt.NDArray[Any]] = {}
    files: dict[Path, tuple[int, int]] = {}
    for file in sorted(folder.glob("*.npy")):
        refuse_outside(root, file)
        arrays[file.stem] = _mapped(file)
        stat = os.stat(file)
        files[file] = (stat.st_ino, stat.st_size)
    label_array = arrays.pop("labels", None)
    if not arrays:
        raise ConfigError(f"no .npy files but labels.npy in {folder}: each field is a file <field>.npy of [n, ...]")
    lengths = {name: len(array) for name, array in arrays.items()}
    num_samples = next(iter(lengths.values()))
    if label_array is None:
        label_array = np.broadcast_to(np.int64(-1), (num_samples,))  # one number, however many samples
    labels = _checked_labels(folder, label_array)
    lengths["labels"] = len(labels)
    if len(set(lengths.values())) != 1:
        raise ConfigError(f"the arrays in {folder} differ in length: {lengths}")
    if not num_samples:
        raise ConfigError(f"the arrays in {folder} are empty")
    names = class_names_of(root, folder)
    highest = int(labels.max(initial=-1)) + 1
    if names and highest > len(names):
        raise ConfigError(f"{folder}: labels go up to {highest - 1}, classes.txt has {len(names)} lines")
    return NpyFolder(ArrayDataset(uri, arrays, labels, names, len(names) or highest), files)


def _mapped(file: Path) -> npt.NDArray[Any]:
    try:
        array = np.load(file, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise ConfigError(f"{file} is not a plain .npy array (pickled ones are refused): {error}") from error
    if not isinstance(array, np.ndarray) or array.ndim < 1 or array.dtype.kind not in "biuf":
        raise ConfigError(f"{file} holds no array of numbers with a first axis of samples")
    return array


def _checked_labels(folder: Path, labels: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """As they lie there: copied, those of 10^9 samples would be 8 GB."""
    if labels.ndim != 1 or labels.dtype.kind not in "iu" or labels.min(initial=0) < -1:
        raise ConfigError(f"{folder / 'labels.npy'} must be [n] whole numbers, -1 where unlabelled")
    return labels
