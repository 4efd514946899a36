"""The last, linear layer of an ONNX output: found in the graph, and taken out as a `Head`.

Letters: C classes, H numbers of a hidden row; r axes of the output, the batch's among them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

from schemas.class_maps import mapped_columns
from schemas.errors import EncodeError, TeacherRejected
from schemas.head import Head
from schemas.records import TeacherOutput

Array = npt.NDArray[Any]

_PASSED = {"Identity", "Cast", "Dropout"}
"""Operators that hand on the numbers of their first input as they are, or rounded."""
_FLOATS = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.DOUBLE, onnx.TensorProto.BFLOAT16)
_WHY = {
    "is a scale or a soft-cap behind the last layer": ("Mul", "Div", "Pow", "Tanh", "Clip", "Neg", "Sub"),
    "is a convolution": ("Conv", "ConvTranspose", "ConvInteger", "QLinearConv"),
    "is of a quantised layer": (
        *("DequantizeLinear", "QuantizeLinear", "QLinearMatMul", "MatMulInteger", "QGemm", "QLinearAdd"),
        *("DynamicQuantizeMatMul", "MatMulIntegerToFloat", "MatMulNBits", "DynamicQuantizeLinear"),
    ),
    "reshapes or picks numbers in a way that is not followed": (
        *("Reshape", "Squeeze", "Unsqueeze", "Flatten", "Gather", "GatherElements", "GatherND", "Slice", "Concat"),
        *("Split", "Expand", "Tile", "Pad"),
    ),
    "gives no logits": ("Softmax", "LogSoftmax", "Sigmoid", "Hardmax", "LogSigmoid"),
}
"""Why an operator where a linear layer is looked for is none."""


@dataclass(frozen=True, slots=True, eq=False)
class LastLayer:
    """The last layer of an ONNX output."""

    head: Head
    """All of the output's classes, in its order."""
    hidden: str
    """The tensor that the layer is given."""
    perms: tuple[tuple[int, ...], ...]
    """By which axes were moved behind the layer; the hidden rows are moved alike, so that H is where C was."""
    class_axis: int
    """Which of the output's r axes the layer's classes are."""


@dataclass(slots=True)
class _Graph:
    """What gives each tensor of a model's own graph."""

    path: Path
    model: onnx.ModelProto
    producers: dict[str, onnx.NodeProto] = field(default_factory=dict)
    constants: dict[str, onnx.TensorProto] = field(default_factory=dict)

    def __post_init__(self) -> None:
        graph = self.model.graph
        self.producers = {name: node for node in graph.node for name in node.output if name}
        self.constants = {tensor.name: tensor for tensor in graph.initializer}

    def refusal(self, output: str, node: onnx.NodeProto, why: str = "") -> TeacherRejected:
        """Return the error that names a node."""
        why = why or next((text for text, ops in _WHY.items() if node.op_type in ops), "is no linear layer")
        named = repr(node.name) if node.name else f"that gives {node.output[0]!r}"
        return TeacherRejected(
            f"{self.path}: output {output!r}: codec head needs a linear layer at its end, and node {named} "
            f"({_operator(node)}) {why}: use another codec, such as float16 or topk, or export the model so that this "
            "output is what its last MatMul or Gemm gives"
        )

    def constant(self, output: str, name: str) -> Array | None:
        """Return a tensor that is of the file alone, followed through what moves or copies it; None: it is not."""
        if name in self.constants:
            return self._array(self.constants[name])
        node = self.producers.get(name)
        if node is None:
            return None
        if node.op_type == "Constant":
            value = next((each.t for each in node.attribute if each.name == "value"), None)
            numbers = [each for each in node.attribute if each.name in ("value_float", "value_floats")]
            if value is not None:
                return self._array(value)
            return np.asarray(helper.get_attribute_value(numbers[0]), np.float32) if numbers else None
        if node.op_type not in ("Identity", "Transpose", "Cast", "DequantizeLinear"):
            return None
        found = self.constant(output, node.input[0])
        if found is None or node.op_type == "Identity":
            return found
        if node.op_type == "Transpose":
            return np.transpose(found, _attribute(node, "perm", None))
        if node.op_type == "Cast" and _attribute(node, "to", 0) in _FLOATS:
            return found.astype(helper.tensor_dtype_to_np_dtype(_attribute(node, "to", 0)))
        raise self.refusal(output, node)

    def _array(self, tensor: onnx.TensorProto) -> Array:
        try:
            return np.asarray(numpy_helper.to_array(tensor, base_dir=str(self.path.resolve().parent)))
        except Exception as error:  # onnx has no error of its own for what a file lacks
            reason = " ".join(str(error).split())[:200]
            raise TeacherRejected(f"{self.path}: tensor {tensor.name!r} cannot be read: {reason}") from None


def load_graph(path: Path) -> onnx.ModelProto:
    """Load a model without what lies in files beside it; TeacherRejected where it is none."""
    try:
        return onnx.load(str(path), format="protobuf", load_external_data=False)
    except Exception as error:  # protobuf's own errors, which differ between its implementations
        raise TeacherRejected(f"{path}: not an ONNX model: {' '.join(str(error).split())[:200]}") from None


def last_layer(path: Path, model: onnx.ModelProto, output: str, rank: int) -> LastLayer:
    """Find the linear layer at the end of an output.

    It is a MatMul by a constant, or a Gemm, with what is constant and added to it; Transpose, Identity and Cast may
    stand behind it, and before its weights, and Dropout behind it.

    Args:
        path: of the file, whose large tensors may lie in others.
        model: of `load_graph`.
        output: the ONNX graph's name of it.
        rank: r.

    Raises:
        TeacherRejected: there is none, with the node and the operator in the way.
    """
    graph = _Graph(path, model)
    behind: list[onnx.NodeProto] = []  # from the output backwards
    name = output
    while True:
        node = graph.producers.get(name)
        if node is None:
            raise TeacherRejected(
                f"{path}: output {output!r}: codec head needs a linear layer at its end, and {name!r} is no node's "
                "output: use another codec, such as float16"
            )
        if node.domain not in ("", "ai.onnx"):
            raise graph.refusal(output, node)
        if node.op_type in ("MatMul", "Gemm"):
            break
        if node.op_type == "Add":
            of_data = [each for each in node.input if graph.constant(output, each) is None]
            if len(of_data) != 1:
                raise graph.refusal(output, node, "adds what the data decide: it is no bias")
            name = of_data[0]
        elif node.op_type == "Transpose" or node.op_type in _PASSED:
            if node.op_type == "Cast" and _attribute(node, "to", 0) not in _FLOATS:
                raise graph.refusal(output, node, "makes no floats of it")
            name = node.input[0]
        else:
            raise graph.refusal(output, node)
        behind.append(node)
    hidden, weight, bias, axis = _layer(graph, output, node, rank)
    biases = [] if bias is None else [_of_classes(graph, output, node, bias, -1, len(weight))]
    perms: list[tuple[int, ...]] = []
    for each in reversed(behind):
        if each.op_type == "Transpose":
            perm = tuple(_attribute(each, "perm", None) or range(rank)[::-1])
            if len(perm) != rank:
                raise graph.refusal(output, each, f"moves {len(perm)} axes of {rank}")
            axis = perm.index(axis + rank) - rank
            perms.append(perm)
        elif each.op_type == "Add":
            added = next(found for one in each.input if (found := graph.constant(output, one)) is not None)
            biases.append(_of_classes(graph, output, each, added, axis, len(weight)))
    try:
        head = Head.of(_stored(weight), _sum(biases))
    except EncodeError as error:
        raise TeacherRejected(f"{path}: output {output!r}: {error}; use another codec, such as float16") from None
    return LastLayer(head, hidden, tuple(perms), axis + rank)


def _layer(graph: _Graph, output: str, node: onnx.NodeProto, rank: int) -> tuple[str, Array, Array | None, int]:
    """Return the tensor of the hidden rows, weights [C, H], a bias, and which axis the classes are, from the end."""
    left, right = node.input[:2]
    constants = [graph.constant(output, each) for each in (left, right)]
    if (constants[0] is None) == (constants[1] is None):
        raise graph.refusal(output, node, "multiplies two tensors that the data decide: it has no weights of its own")
    on_right = constants[1] is not None
    weight = constants[1] if on_right else constants[0]
    assert weight is not None
    if weight.ndim != 2:
        raise graph.refusal(output, node, f"has weights of {weight.ndim} axes, not 2")
    if not np.issubdtype(weight.dtype, np.floating) and weight.dtype.name != "bfloat16":
        raise graph.refusal(output, node, f"has weights of {weight.dtype}")
    if node.op_type == "MatMul":
        # W [H, C] behind rows [..., H], or W [C, H] before columns [..., H, N]
        return (left, weight.T, None, -1) if on_right else (right, weight, None, -2)
    if not on_right or _attribute(node, "transA", 0):
        raise graph.refusal(output, node, "takes its hidden rows transposed, which is not followed")
    if not _attribute(node, "transB", 0):
        weight = weight.T
    bias = None
    if len(node.input) > 2 and node.input[2]:
        bias = graph.constant(output, node.input[2])
        if bias is None:
            raise graph.refusal(output, node, "adds what the data decide: it is no bias")
        bias = _scaled(bias, _attribute(node, "beta", 1.0))
    return left, _scaled(weight, _attribute(node, "alpha", 1.0)), bias, -1


def _scaled(values: Array, factor: float) -> Array:
    return values if factor == 1.0 else (values.astype(np.float64) * factor).astype(values.dtype)


def _of_classes(graph: _Graph, output: str, node: onnx.NodeProto, bias: Array, axis: int, num_classes: int) -> Array:
    """Return [C] of what is added to a tensor whose classes are an axis, from the end; refuses what is no bias."""
    sizes = [(size, place - bias.ndim) for place, size in enumerate(bias.shape)]
    if any(size != 1 and place != axis for size, place in sizes) or bias.size not in (1, num_classes):
        shape = "x".join(map(str, bias.shape))
        raise graph.refusal(output, node, f"adds {shape} numbers, which are not one for each of {num_classes} classes")
    return np.broadcast_to(bias.reshape(-1), num_classes)


def _stored(values: Array) -> Array:
    return values if values.dtype in (np.float32, np.float16) else values.astype(np.float32)


def _sum(biases: Sequence[Array]) -> Array | None:
    if len(biases) == 1:
        return _stored(biases[0])
    return np.stack(biases).astype(np.float32).sum(axis=0) if biases else None


def head_of(layer: LastLayer, output: TeacherOutput) -> Head:
    """Return the layer of the classes that are stored of an output: of a class map those that the dataset has."""
    if not output.class_map:
        return layer.head
    weight, bias = layer.head.weight, layer.head.bias
    of_map = mapped_columns(weight.T, output.class_map).T
    return Head.of(np.ascontiguousarray(of_map), None if bias is None else mapped_columns(bias, output.class_map))


def _attribute(node: onnx.NodeProto, name: str, otherwise: Any) -> Any:
    found: Iterable[Any] = (helper.get_attribute_value(each) for each in node.attribute if each.name == name)
    return next(iter(found), otherwise)


def _operator(node: onnx.NodeProto) -> str:
    return f"{node.domain}.{node.op_type}" if node.domain else str(node.op_type)
