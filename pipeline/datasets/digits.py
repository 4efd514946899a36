"""scikit-learn's handwritten digits: 1,797 real images of 8x8 pixels, in its wheel, so no network is needed."""

from __future__ import annotations

import numpy as np

from pipeline.datasets.base import ArrayDataset, Dataset
from pipeline.datasets.params import Params
from pipeline.hashing import hash64, tag
from schemas.errors import ConfigError

NUM_TEST = 500


def digits(path: str, params: dict[str, str]) -> Dataset:
    """`digits?split=train` (1,297 images) or `test` (500): field "image" [1, 8, 8] float32 in [0, 1], 10 classes.

    The split is fixed, and stratified: the test images are every 1797/500-th of all, ordered by class and then by the
    hash of their index. Raises ConfigError without scikit-learn.
    """
    taken = Params("digits", params)
    split = taken.text("split", "train", ("train", "test"))
    taken.done()
    if path:
        raise ConfigError(f"dataset digits takes no path, got {path!r}: write digits?split={split}")
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ConfigError("dataset digits needs scikit-learn: pip install 'distillog[data]'") from error
    bunch = load_digits()
    images, labels = np.asarray(bunch.images), np.asarray(bunch.target, np.int64)
    count = len(labels)
    ranked = np.lexsort((hash64(tag("digits.split"), np.arange(count)), labels))
    steps = np.arange(count + 1) * NUM_TEST // count
    is_test = np.zeros(count, bool)
    is_test[ranked] = steps[1:] > steps[:-1]
    chosen = np.flatnonzero(is_test == (split == "test"))
    return ArrayDataset(
        uri=f"digits?split={split}",
        arrays={"image": (images[chosen, None] / 16.0).astype(np.float32)},
        label_array=labels[chosen],
        class_names=tuple("0123456789"),
        num_classes=10,
    )
