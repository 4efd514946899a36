"""Teachers of two weights, as ONNX files made without PyTorch: the shape of the example's CNN, and a large one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


@dataclass(slots=True)
class _Graph:
    """Nodes and weights while a model is put together; every node takes the last one's output."""

    here: str
    nodes: list[Any] = field(default_factory=list)
    weights: list[Any] = field(default_factory=list)

    def add(self, kind: str, *weights: np.ndarray[Any, Any], **attributes: Any) -> None:
        names = []
        for array in weights:
            names.append(f"w{len(self.weights)}")
            self.weights.append(numpy_helper.from_array(array, names[-1]))
        output = f"n{len(self.nodes)}"
        # Resize takes an optional region before its scales.
        inputs = [self.here, "", *names] if kind == "Resize" else [self.here, *names]
        self.nodes.append(helper.make_node(kind, inputs, [output], **attributes))
        self.here = output


def write_cnn(path: Path, channels: Sequence[int], hidden: int, enlarge: int = 1, num_classes: int = 10) -> Path:
    """Write a CNN for [N, 1, 8, 8] float32: 3x3 convolutions, halved after each but the first, and one hidden layer.

    Args:
        path: of the ONNX file.
        channels: of the convolutions.
        hidden: width of the hidden layer.
        enlarge: factor on both sides of the image first: a larger one is more work, quadratically.
        num_classes: of the logits.
    """
    draw = np.random.default_rng(0)

    def weights(*shape: int) -> np.ndarray[Any, Any]:
        return (draw.standard_normal(shape) * np.sqrt(2 / np.prod(shape[1:]))).astype(np.float32)

    graph = _Graph("image")
    side, width = 8 * enlarge, 1
    if enlarge > 1:
        graph.add("Resize", np.array([1, 1, enlarge, enlarge], np.float32), mode="nearest")
    for index, following in enumerate(channels):
        graph.add("Conv", weights(following, width, 3, 3), np.zeros(following, np.float32), pads=[1, 1, 1, 1])
        graph.add("Relu")
        width = following
        if index:
            graph.add("MaxPool", kernel_shape=[2, 2], strides=[2, 2])
            side //= 2
    graph.add("Flatten")
    graph.add("Gemm", weights(hidden, width * side * side), np.zeros(hidden, np.float32), transB=1)
    graph.add("Relu")
    graph.add("Gemm", weights(num_classes, hidden), np.zeros(num_classes, np.float32), transB=1)
    made = helper.make_graph(
        graph.nodes,
        "cnn",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", 1, 8, 8])],
        [helper.make_tensor_value_info(graph.here, TensorProto.FLOAT, ["N", num_classes])],
        graph.weights,
    )
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 8  # what every ONNX Runtime that we allow can read
    onnx.checker.check_model(model)
    onnx.save(model, str(path))
    return path
