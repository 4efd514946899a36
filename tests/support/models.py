"""Small ONNX classifiers made with onnx.helper alone, honest ones and ones with the faults of real exports.

`x -> float -> (convolution) -> flatten -> linear -> relu -> FLAWS -> linear -> TAILS`, weights drawn from a seed.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

Nodes = list[Any]
Weights = dict[str, Any]

HIDDEN = 32
_TYPES = {
    "float32": TensorProto.FLOAT,
    "int32": TensorProto.INT32,
    "uint8": TensorProto.UINT8,
    "int64": TensorProto.INT64,
    "string": TensorProto.STRING,
}


def _dropout(x: str, weights: Weights) -> tuple[str, Nodes]:
    weights |= {"ratio": np.float32(0.3), "training": np.bool_(True)}
    return "dropped", [helper.make_node("Dropout", [x, "ratio", "training"], ["dropped"])]


def _dropout_mask(x: str, weights: Weights) -> tuple[str, Nodes]:
    weights["ratio"] = np.float32(0.3)
    return "dropped", [
        helper.make_node("RandomUniformLike", [x], ["uniform"], dtype=TensorProto.FLOAT),
        helper.make_node("Greater", ["uniform", "ratio"], ["keep"]),
        helper.make_node("Cast", ["keep"], ["mask"], to=TensorProto.FLOAT),
        helper.make_node("Mul", [x, "mask"], ["dropped"]),
    ]


def _batch_normalization(x: str, weights: Weights) -> tuple[str, Nodes]:
    ones, zeros = np.ones(HIDDEN, np.float32), np.zeros(HIDDEN, np.float32)
    weights |= {"bn_scale": ones, "bn_bias": zeros, "bn_mean": zeros, "bn_var": ones}
    inputs = [x, "bn_scale", "bn_bias", "bn_mean", "bn_var"]
    return "normed", [helper.make_node("BatchNormalization", inputs, ["normed", "m", "v"], training_mode=1)]


def _batch_mean(x: str, weights: Weights) -> tuple[str, Nodes]:
    weights["batch_axis"] = np.array([0], np.int64)
    return "centred", [
        helper.make_node("ReduceMean", [x, "batch_axis"], ["batch_mean"]),
        helper.make_node("Sub", [x, "batch_mean"], ["centred"]),
    ]


FLAWS: dict[str, Callable[[str, Weights], tuple[str, Nodes]]] = {
    "": lambda x, weights: (x, []),
    "dropout": _dropout,  # ONNX Runtime's optimiser removes it, so its labels are those of evaluation mode
    "dropout_mask": _dropout_mask,
    "batch_normalization": _batch_normalization,
    "batch_mean": _batch_mean,
}

TAILS: dict[str, Callable[[str], Nodes]] = {
    "logits": lambda x: [helper.make_node("Identity", [x], ["y"])],
    "probabilities": lambda x: [helper.make_node("Softmax", [x], ["y"], axis=1)],
    "log_probabilities": lambda x: [helper.make_node("LogSoftmax", [x], ["y"], axis=1)],
    "one_number": lambda x: [helper.make_node("ReduceMax", [x], ["y"], keepdims=0)],
}


def classifier(
    path: Path,
    shape: tuple[int, ...] = (1, 8, 8),
    num_classes: int = 10,
    *,
    input_name: str = "x",
    dtype: str = "float32",
    batch: int | None = None,
    tail: str = "logits",
    flaw: str = "",
    convolution: bool = False,
    nhwc: bool = False,
    nan_above: float | None = None,
    slow: int = 0,
    second_output: bool = False,
    second_input: bool = False,
    scale: float = 4.0,
    seed: int = 0,
) -> Path:
    """Write a classifier of samples of `shape`.

    Args:
        batch: fixed rows of each call; None: any.
        nhwc: takes [N, H, W, C] where `shape` is (C, H, W).
        nan_above: NaN for samples whose mean lies above it.
        slow: steps of a loop of 64x64 matrix products that change nothing but the time.
        scale: of the last layer's weights, so of the logits.
    """
    draw = np.random.default_rng(seed)
    size = math.prod(shape)
    weights: Weights = {
        "w1": (draw.normal(0, 1, (size, HIDDEN)) / math.sqrt(size)).astype(np.float32),
        "b1": draw.normal(0, 0.1, HIDDEN).astype(np.float32),
        "w2": (scale * draw.normal(0, 1, (HIDDEN, num_classes)) / math.sqrt(HIDDEN)).astype(np.float32),
        "b2": draw.normal(0, 0.1, num_classes).astype(np.float32),
        "row_axis": np.array([1], np.int64),
    }
    nodes: Nodes = [helper.make_node("Cast", [input_name], ["float"], to=TensorProto.FLOAT)]
    here = "float"
    if dtype in ("int32", "uint8", "int64"):
        weights["full_scale"] = np.float32(1 / 255)
        nodes.append(helper.make_node("Mul", [here, "full_scale"], ["unit"]))
        here = "unit"
    if nhwc:
        nodes.append(helper.make_node("Transpose", [here], ["nchw"], perm=[0, 3, 1, 2]))
        here = "nchw"
    if convolution:
        weights["kernel"] = draw.normal(0, 0.5, (shape[0], shape[0], 3, 3)).astype(np.float32)
        nodes.append(helper.make_node("Conv", [here, "kernel"], ["conv"], pads=[1, 1, 1, 1]))
        here = "conv"
    nodes += [
        helper.make_node("Flatten", [here], ["flat"], axis=1),
        helper.make_node("MatMul", ["flat", "w1"], ["h0"]),
        helper.make_node("Add", ["h0", "b1"], ["h1"]),
        helper.make_node("Relu", ["h1"], ["h2"]),
    ]
    here, flawed = FLAWS[flaw]("h2", weights)
    nodes += [
        *flawed,
        helper.make_node("MatMul", [here, "w2"], ["l0"]),
        helper.make_node("Add", ["l0", "b2"], ["l1"]),
        helper.make_node("ReduceMean", ["flat", "row_axis"], ["mean"]),
    ]
    here = "l1"
    if second_input:
        nodes += [helper.make_node("Add", [here, "offset"], ["shifted"])]
        here = "shifted"
    if nan_above is not None:
        weights |= {"limit": np.float32(nan_above), "nan": np.float32("nan")}
        nodes += [
            helper.make_node("Greater", ["mean", "limit"], ["above"]),
            helper.make_node("Where", ["above", "nan", here], ["holed"]),
        ]
        here = "holed"
    if slow:
        nodes += _slow(weights, slow, here)
        here = "late"
    nodes += TAILS[tail](here)

    taken = (*shape[1:], shape[0]) if nhwc else shape
    rows = batch or "N"
    inputs = [helper.make_tensor_value_info(input_name, _TYPES[dtype], [rows, *taken])]
    if second_input:
        inputs.append(helper.make_tensor_value_info("offset", TensorProto.FLOAT, [rows, 1]))
    answer = [] if tail == "one_number" else [rows, num_classes]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, answer)]
    if second_output:
        outputs.append(helper.make_tensor_value_info("h2", TensorProto.FLOAT, [rows, HIDDEN]))
    initializers = [numpy_helper.from_array(np.asarray(value), name) for name, value in weights.items()]
    graph = helper.make_graph(nodes, "classifier", inputs, outputs, initializers)
    onnx.save(_model(graph), str(path))
    return path


def _slow(weights: Weights, steps: int, here: str) -> Nodes:
    """Square matrices multiplied in a loop; the result, of zeros, is added to the logits."""
    weights |= {
        "steps": np.int64(steps),
        "on": np.bool_(True),
        "square": np.eye(64, dtype=np.float32),
        "zero": np.float32(0),
        "all_axes": np.array([0, 1], np.int64),
    }
    tensor = helper.make_tensor_value_info
    body = helper.make_graph(
        [helper.make_node("MatMul", ["state", "square"], ["next"]), helper.make_node("Identity", ["go"], ["going"])],
        "body",
        [
            tensor("i", TensorProto.INT64, []),
            tensor("go", TensorProto.BOOL, []),
            tensor("state", TensorProto.FLOAT, [64, 64]),
        ],
        [tensor("going", TensorProto.BOOL, []), tensor("next", TensorProto.FLOAT, [64, 64])],
    )
    return [
        helper.make_node("ReduceMax", ["flat", "all_axes"], ["top"], keepdims=0),
        helper.make_node("Mul", ["top", "square"], ["first"]),
        helper.make_node("Loop", ["steps", "on", "first"], ["last"], body=body),
        helper.make_node("ReduceMax", ["last", "all_axes"], ["most"], keepdims=0),
        helper.make_node("Mul", ["most", "zero"], ["nothing"]),
        helper.make_node("Add", [here, "nothing"], ["late"]),
    ]


def _model(graph: Any) -> Any:
    # An older version than this onnx's newest: ONNX Runtime follows later.
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    onnx.checker.check_model(model)
    return model


def quantised_dynamically(path: Path, to: Path) -> Path:
    """As many tutorials do it: the scale of the activations is taken from the batch at hand."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    quantize_dynamic(str(path), str(to), weight_type=QuantType.QInt8)
    return to


def with_external_data(path: Path, *locations: str) -> list[Path]:
    """Move the first large tensors of a model into files beside it, one each, and save it in place."""
    model = onnx.load(str(path))
    large = [tensor for tensor in model.graph.initializer if len(tensor.raw_data) >= 256]
    for tensor, location in zip(large, locations, strict=False):
        onnx.external_data_helper.set_external_data(tensor, location)
    # save() would write the data into files of its own choice of layout: these are the tensors' bytes, nothing else.
    files = []
    for tensor, location in zip(large, locations, strict=False):
        file = path.parent / location
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(tensor.raw_data)
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        files.append(file)
    path.write_bytes(model.SerializeToString())
    return files
