"""Sentences of token numbers, a view that masks some of them, and a tiny masked language model, by NumPy as well.

`support.texts:sentences?count=60` under the view `support.texts:masked`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

LENGTH, WORDS, WIDTH, CLASSES = 12, 300, 16, 3
"""Tokens of a sentence, different ones, hidden numbers of each, classes of a sentence."""
MASK = WORDS - 1
MOST = 6
"""Positions that are masked in a sentence, at most; some sentences have none."""


class Sentences:
    """`tokens` [12] int64, padded with 0; labels 0 to 2."""

    num_classes = CLASSES
    thread_safe = True

    def __init__(self, count: int) -> None:
        draw = np.random.default_rng(3)
        self.tokens = draw.integers(2, MASK, (count, LENGTH))
        self.tokens[np.arange(LENGTH) >= draw.integers(3, LENGTH + 1, (count, 1))] = 0
        self.labels = np.arange(count) % CLASSES

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, sample_id: int) -> dict[str, Any]:
        return {"tokens": self.tokens[sample_id]}


def sentences(count: str = "60") -> Sentences:
    """Found by import path."""
    return Sentences(int(count))


def masked(sample: dict[str, Any], rng: np.random.Generator, share: float = 0.3, most: int = MOST) -> dict[str, Any]:
    """`tokens` with some of them hidden, which `masked` says and `labels` holds, -1 elsewhere."""
    tokens = sample["tokens"]
    hidden = (rng.random(LENGTH) < share) & (tokens > 0)
    hidden[np.flatnonzero(hidden)[most:]] = False
    return {
        "tokens": np.where(hidden, MASK, tokens),
        "masked": hidden.astype(np.uint8),
        "labels": np.where(hidden, tokens, -1),
        "short": hidden[: LENGTH - 2].astype(np.uint8),
        "nothing": np.zeros(LENGTH, np.float32),
    }


masked.max_positions = {"masked": MOST}  # type: ignore[attr-defined]
masked.thread_safe = True  # type: ignore[attr-defined]


def weights(large: int = 0) -> dict[str, npt.NDArray[np.float32]]:
    """Of the model; the token `large` has a first hidden number beyond float16, if it is not 0."""
    draw = np.random.default_rng(11)
    found = {
        "words": draw.normal(0, 1, (WORDS, WIDTH)).astype(np.float32),
        "to_words": draw.normal(0, 1, (WIDTH, WORDS)).astype(np.float32),
        "to_classes": draw.normal(0, 1, (WIDTH, CLASSES)).astype(np.float32),
    }
    if large:
        found["words"][large, 0] = 90_000.0
    return found


def language_model(path: Path, large: int = 0) -> Path:
    """Write `input_ids` [N, 12] -> `hidden` [N, 12, 16], `scores` [N, 12, 300], `by_word` [N, 300, 12], `topic` [N, 3].

    What a position gives depends on its sentence: on the mean over it.
    """
    nodes = [
        helper.make_node("Gather", ["words", "input_ids"], ["embedded"]),
        helper.make_node("ReduceMean", ["embedded", "over_words"], ["mean"], keepdims=1),
        helper.make_node("Sub", ["embedded", "mean"], ["hidden"]),
        helper.make_node("MatMul", ["hidden", "to_words"], ["scores"]),
        helper.make_node("Transpose", ["scores"], ["by_word"], perm=[0, 2, 1]),
        helper.make_node("Softmax", ["scores"], ["likely"], axis=2),
        helper.make_node("ReduceMean", ["embedded", "over_words"], ["of_all"], keepdims=0),
        helper.make_node("MatMul", ["of_all", "to_classes"], ["topic"]),
    ]
    shapes = {
        "hidden": (LENGTH, WIDTH),
        "scores": (LENGTH, WORDS),
        "by_word": (WORDS, LENGTH),
        "likely": (LENGTH, WORDS),
        "topic": (CLASSES,),
    }
    values = {**weights(large), "over_words": np.array([1], np.int64)}
    graph = helper.make_graph(
        nodes,
        "language",
        [helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["N", LENGTH])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", *shape]) for name, shape in shapes.items()],
        [numpy_helper.from_array(value, name) for name, value in values.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    onnx.checker.check_model(model)
    onnx.save(model, str(path))
    return path


def scores_of(tokens: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """[N, 12] tokens -> [N, 12, 300] scores, by NumPy in float64."""
    values = weights()
    embedded = values["words"].astype(np.float64)[tokens]
    scores: npt.NDArray[np.float64] = (embedded - embedded.mean(axis=1, keepdims=True)) @ values["to_words"]
    return scores
