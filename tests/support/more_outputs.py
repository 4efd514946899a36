"""Further outputs for a classifier of `support.models`: features of several shapes, and such as no log can hold.

`h2` [N, 32] is its hidden layer, `l1` [N, C] its logits, `mean` [N, 1] of each sample.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

Nodes = list[Any]
Weights = dict[str, Any]
Shape = tuple[Any, ...]

TOKENS, WIDTH = 4, 8
"""Of the output `tokens`: [N, 4, 8]."""


def _hidden(weights: Weights) -> tuple[Nodes, Shape]:
    return [helper.make_node("Identity", ["h2"], ["hidden"])], ("N", TOKENS * WIDTH)


def _tokens(weights: Weights) -> tuple[Nodes, Shape]:
    weights["of_tokens"] = np.array([0, TOKENS, WIDTH], np.int64)
    return [helper.make_node("Reshape", ["h2", "of_tokens"], ["tokens"])], ("N", TOKENS, WIDTH)


def _area(weights: Weights) -> tuple[Nodes, Shape]:
    """[N, C, 2, 2]: logits whose classes are no last axis."""
    weights |= {
        "of_map": np.array([0, 0, 1, 1], np.int64),
        "places": np.array([[1.0, 0.5], [-1.0, 2.0]], np.float32)[None, None],
    }
    nodes = [
        helper.make_node("Reshape", ["l1", "of_map"], ["one_place"]),
        helper.make_node("Mul", ["one_place", "places"], ["area"]),
    ]
    return nodes, ("N", "C", 2, 2)


def _large(weights: Weights) -> tuple[Nodes, Shape]:
    """[N, 1]: beyond float16 where a sample's mean is above 0.3."""
    weights["to_large"] = np.float32(65_520 / 0.3)
    return [helper.make_node("Mul", ["mean", "to_large"], ["large"])], ("N", 1)


def _mixed(weights: Weights) -> tuple[Nodes, Shape]:
    """[N, 32]: each row depends on its neighbours."""
    weights["over_rows"] = np.array([0], np.int64)
    nodes = [
        helper.make_node("ReduceMean", ["h2", "over_rows"], ["of_rows"]),
        helper.make_node("Sub", ["h2", "of_rows"], ["mixed"]),
    ]
    return nodes, ("N", TOKENS * WIDTH)


def _likeliest(weights: Weights) -> tuple[Nodes, Shape]:
    """[N, 1] of whole numbers."""
    return [helper.make_node("ArgMax", ["l1"], ["likeliest"], axis=1)], ("N", 1)


def _found(weights: Weights) -> tuple[Nodes, Shape]:
    """[K, 2]: where the hidden layer is positive, as many as there are."""
    nodes = [
        helper.make_node("NonZero", ["h2"], ["indices"]),
        helper.make_node("Transpose", ["indices"], ["pairs"], perm=[1, 0]),
        helper.make_node("Cast", ["pairs"], ["found"], to=TensorProto.FLOAT),
    ]
    return nodes, ("K", 2)


def _empty(weights: Weights) -> tuple[Nodes, Shape]:
    """[N, 0]"""
    weights |= {"nowhere": np.array([0], np.int64), "along": np.array([1], np.int64)}
    return [helper.make_node("Slice", ["h2", "nowhere", "nowhere", "along"], ["empty"])], ("N", 0)


OUTPUTS: dict[str, Callable[[Weights], tuple[Nodes, Shape]]] = {
    "hidden": _hidden,
    "tokens": _tokens,
    "area": _area,
    "large": _large,
    "mixed": _mixed,
    "likeliest": _likeliest,
    "found": _found,
    "empty": _empty,
}


def with_outputs(path: Path, *names: str) -> Path:
    """Give a saved classifier more outputs, in place."""
    model = onnx.load(str(path))
    graph, weights = model.graph, {}
    for name in names:
        nodes, shape = OUTPUTS[name](weights)
        graph.node.extend(nodes)
        of = TensorProto.INT64 if name == "likeliest" else TensorProto.FLOAT
        graph.output.append(helper.make_tensor_value_info(name, of, shape))
    graph.initializer.extend(numpy_helper.from_array(np.asarray(value), name) for name, value in weights.items())
    onnx.checker.check_model(model)
    onnx.save(model, str(path))
    return path
