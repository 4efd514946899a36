"""Datasets as users write them, found by import path: `support.user_data:bytes_0_to_255?count=100`."""

from __future__ import annotations

import errno
import io
import os
from typing import Any

import numpy as np
from PIL import Image

from pipeline.datasets.base import ArrayDataset, Field, Ints, Samples

BROKEN_EVERY = 7


class Items:
    """`__len__` and `__getitem__`, the torch way: [1, 8, 8] float32 whole numbers from 0 to 255, two fields."""

    num_classes = 10
    thread_safe = True

    def __init__(self, count: int, broken: int) -> None:
        self._pixels = np.random.default_rng(7).integers(0, 256, (count, 1, 8, 8)).astype(np.float32)
        self.labels = np.arange(count) % 10
        self._broken = broken

    def __len__(self) -> int:
        return len(self._pixels)

    def __getitem__(self, sample_id: int) -> dict[str, Any]:
        if self._broken and sample_id % self._broken == 5:
            raise ValueError(f"sample {sample_id} is cut short")
        return {"pixels": self._pixels[sample_id]}


def bytes_0_to_255(count: str = "100", broken: str = "0") -> Items:
    """Each sample is good, or with `broken=7` every seventh cannot be decoded."""
    return Items(int(count), int(broken))


def by_rank() -> Items:
    """Other pixels on each process of a run."""
    items = Items(100, 0)
    items._pixels += int(os.environ.get("RANK", "0"))
    return items


class TwoFields:
    """Two vectors of 4 numbers and no label."""

    def __len__(self) -> int:
        return 20

    def __getitem__(self, sample_id: int) -> dict[str, Any]:
        return {"first": np.full(4, sample_id, np.float32), "second": np.arange(4, dtype=np.float32)}


def two_fields() -> TwoFields:
    """Samples of two fields."""
    return TwoFields()


class Files:
    """PNG files of 8x8 grey pixels, decoded by Pillow as they are read; one of them was cut short."""

    num_classes = 10

    def __init__(self, count: int, cut: int) -> None:
        self.labels = np.arange(count) % 10
        self._cut = cut

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, sample_id: int) -> dict[str, Any]:
        file = io.BytesIO()
        pixels = np.random.default_rng(sample_id).integers(0, 256, (8, 8), np.uint8)
        Image.fromarray(pixels).save(file, "png")
        raw = file.getvalue()
        image = Image.open(io.BytesIO(raw[: len(raw) - 40] if sample_id == self._cut else raw))
        return {"pixels": np.asarray(image, np.float32)[None]}


def files(count: str = "1200", cut: str = "700") -> Files:
    """`cut` is the sample whose file ends in the middle of its pixels."""
    return Files(int(count), int(cut))


def away() -> Files:
    """Storage that does not answer."""
    raise OSError(errno.ESTALE, "Stale file handle")


def dimmed(sample: dict[str, Any], rng: np.random.Generator, mean: float = 0.5, noise: float = 0.1) -> dict[str, Any]:
    """A view that normalises and augments, and does not say which is which."""
    return {name: (values - mean + noise * rng.random()).astype(np.float32) for name, values in sample.items()}


def told(sample: dict[str, Any], rng: np.random.Generator, mean: float = 0.5, noise: float = 0.1) -> dict[str, Any]:
    """The same, and it says so."""
    return dimmed(sample, rng, mean, noise)


told.evaluation = {"noise": 0.0}  # type: ignore[attr-defined]


class Endless:
    """A dataset of any size whose labels are arithmetic: what it costs is what we make of it."""

    uri = "endless"
    num_classes = 10
    class_names = ()

    def __init__(self, count: int) -> None:
        self.num_samples = count
        self.asked = 0
        """Labels that were asked for."""

    @property
    def fields(self) -> dict[str, Field]:
        return {"pixels": Field((4,), "float32")}

    def read(self, sample_ids: Ints) -> Samples:
        pixels = (sample_ids[:, None] % np.arange(2, 6)).astype(np.float32)
        return Samples({"pixels": pixels}, np.arange(len(sample_ids)))

    def labels(self, sample_ids: Ints) -> Ints:
        self.asked += len(sample_ids)
        return sample_ids % 10


class Unsaid:
    """A hundred samples of three classes, that does not say how many there are."""

    num_samples = 100

    @property
    def fields(self) -> dict[str, Field]:
        return {"pixels": Field((4,), "float32")}

    def read(self, sample_ids: Ints) -> Samples:
        pixels = (sample_ids[:, None] % np.arange(2, 6)).astype(np.float32)
        return Samples({"pixels": pixels}, np.arange(len(sample_ids)))

    def labels(self, sample_ids: Ints) -> Ints:
        return sample_ids % 3


def unsaid() -> Unsaid:
    """Labels of classes that nobody counted."""
    return Unsaid()


def endless(count: str = "1000000000") -> Endless:
    """Samples that nobody could list."""
    return Endless(int(count))


def named_classes(names: str = "ant,bee,cow") -> ArrayDataset:
    """Two samples of each class, whose classes have names."""
    of_classes = tuple(names.split(","))
    labels = np.arange(2 * len(of_classes)) % len(of_classes)
    values = {"x": labels[:, None].astype(np.float32)}
    return ArrayDataset("", values, labels, of_classes, len(of_classes))


def placed(sample: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
    """Adds `places` [4] int64 to a digit: how bright each quarter of it is, from 0 to 5; -1 where that is too dark."""
    brightness = sample["image"].reshape(4, 16).mean(axis=1)
    return sample | {
        "places": np.minimum(np.floor(brightness * 10), 6).astype(np.int64) - 1,
        "bright": brightness.sum(),
    }
