"""How one sample is shown: as a picture, as text, or by its first values."""

from __future__ import annotations

from typing import Any

from numpy.typing import NDArray

from pipeline.datasets.base import Dataset, HasRaw

_VALUES = 32
"""Of a sample that is neither picture nor text."""
_LETTERS = 1000
"""Of a text."""


def is_picture(values: NDArray[Any]) -> bool:
    """Whether an array is [1 or 3, height, width]."""
    return values.ndim == 3 and values.shape[0] in (1, 3) and values.dtype.kind in "fu"


def shown(values: NDArray[Any]) -> str:
    """Return the first values of an array as text."""
    flat = values.ravel()
    texts = [f"{float(each):.4g}" if flat.dtype.kind == "f" else str(each) for each in flat[:_VALUES]]
    return " ".join([*texts, *(["…"] if len(flat) > _VALUES else [])])


def stored_text(dataset: Dataset, sample_id: int) -> str:
    """The stored bytes where these are text in UTF-8; "" where the dataset gives none."""
    if not isinstance(dataset, HasRaw):
        return ""
    try:
        text = dataset.raw(sample_id).decode("utf-8")
    except UnicodeDecodeError:
        return ""
    if any(not each.isprintable() and each not in "\n\t\r" for each in text):
        return ""
    return text if len(text) <= _LETTERS else f"{text[:_LETTERS]}…"
