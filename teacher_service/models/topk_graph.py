"""Keeping the likeliest classes by ONNX Runtime: the topk codecs' cut as a small graph behind the model's.

It is a graph of its own, run on a few rows of the model's output at a time, so that these stay in the processor's
cache; nothing is added to the model, whatever its opset, size, precision and external data are. For each row x [C]:

    v, i = the k + 1 largest of x, the lower class first where two are equal     (TopK, in two stages where C is large)
    s(T) = sum over all classes but the first k of i of exp((x - v[k]) / T)      (ScatterElements sets those k to -inf)

and then, in float64 and of k numbers alone, log-sum-exp of the others = v[k] / T + log s(T). The largest of the others
is v[k], so that s lies between 1 and C: nothing is lost to overflow, underflow or a difference of two large sums.
Of equal classes ONNX's TopK takes the lower one, as `schemas/topk.py` does; so both keep the same classes.
Letters: R rows, C classes, k kept ones, T temperature.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from pipeline.onnx_runtime import open_session
from schemas.codecs import CodecSpec
from schemas.columns import FloatArray
from schemas.errors import TeacherRejected
from schemas.topk import Kept, shares

_OPSET, _IR = 18, 8
_VALUES = 300_000
"""In one run of the graph, for each thread; what lies in memory beside a call's outputs is about four times that."""
_MOST_THREADS = 16
"""For which that counts."""
_ALIGNED = 16
"""Numbers in a row are a multiple of it, or a sum's last bits would depend on where in memory the row begins."""
_BLOCK = 64
"""Classes of which only the largest is looked at first; see `_Graph.likeliest`."""
_BLOCKS_FOR_EACH = 4
"""Of the classes to keep: with fewer blocks than that a first look leaves too little out."""


class GraphCut:
    """The cut of one output by one codec; used by one thread."""

    def __init__(self, spec: CodecSpec, num_classes: int, threads: int = 0) -> None:
        """Build the graph for C = `num_classes`; `threads` as of `OnnxTeacher`.

        Raises:
            TeacherRejected: this codec keeps no classes, or all of them, or ONNX Runtime cannot open the graph.
        """
        if problem := spec.no_cut(num_classes):
            raise TeacherRejected(f"the likeliest classes cannot be kept in the graph: {problem}")
        self._spec = spec
        self._num_classes = num_classes
        self._temperatures = tuple(sorted({1.0, *spec.temperatures}))
        self._rows = max(1, round(_VALUES / num_classes)) * min(threads or os.cpu_count() or 1, _MOST_THREADS)
        model = cut_graph(num_classes, spec.k, self._temperatures)
        name = Path(f"the graph that keeps {spec.k} of {num_classes} classes")
        # On the CPU in any case, where equal classes come in the order that ONNX says.
        self._session = open_session(
            name, "cpu", threads, refusal=TeacherRejected, graph=model.SerializeToString(deterministic=True)
        )

    def __call__(self, values: FloatArray) -> Kept:
        """Return what is kept of finite [M, ..., C] float32."""
        flat = values.reshape(-1, self._num_classes)
        k = self._spec.k
        classes, edges = np.empty((len(flat), k), np.int64), np.empty((len(flat), k + 1))
        sums = np.empty((len(flat), len(self._temperatures)))
        for start in range(0, len(flat), self._rows):
            part = slice(start, start + self._rows)
            edges[part], classes[part], sums[part] = self._session.run(None, {"x": flat[part]})
        edge = edges[:, k]
        outside = {each: edge / each + np.log(sums[:, at]) for at, each in enumerate(self._temperatures)}
        log_probs, tails = shares(edges[:, :k], outside, self._spec.temperatures, self._num_classes)
        return Kept(classes, log_probs, tails, self._num_classes).reshaped(*values.shape[:-1])


def cut_graph(num_classes: int, k: int, temperatures: tuple[float, ...]) -> ModelProto:
    """Return the graph: x [R, C] float32 -> v [R, k + 1], i [R, k] int64, s [R, number of temperatures]; k < C."""
    graph = _Graph()
    axis = graph.constant([-1])
    values, classes = graph.likeliest("x", num_classes, k + 1)
    kept = graph.add("Slice", classes, graph.constant([0]), graph.constant([k]), axis, name="i")
    edge = graph.add("Slice", values, graph.constant([k]), graph.constant([k + 1]), axis)
    filled, spare = "x", -num_classes % _ALIGNED
    if spare:
        filled = graph.add("Pad", "x", graph.constant([0, 0, 0, spare]), graph.constant(-np.inf, np.float32))
    nothing = graph.add("Expand", graph.constant(-np.inf, np.float32), graph.add("Shape", kept))
    others = graph.add("Sub", graph.add("ScatterElements", filled, kept, nothing, axis=-1), edge)
    sums = []
    for temperature in temperatures:
        scaled = others if temperature == 1 else graph.add("Div", others, graph.constant(temperature, np.float32))
        sums.append(graph.add("ReduceSum", graph.add("Exp", scaled), axis, keepdims=1))
    graph.add("Concat", *sums, axis=-1, name="s")
    outputs = [
        helper.make_tensor_value_info(values, TensorProto.FLOAT, ["R", k + 1]),
        helper.make_tensor_value_info("i", TensorProto.INT64, ["R", k]),
        helper.make_tensor_value_info("s", TensorProto.FLOAT, ["R", len(temperatures)]),
    ]
    given = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["R", num_classes])]
    made = helper.make_graph(graph.nodes, "cut", given, outputs, graph.constants)
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=_IR)


class _Graph:
    """Nodes and constants, each of a name of its own."""

    def __init__(self) -> None:
        self.nodes: list[NodeProto] = []
        self.constants: list[TensorProto] = []

    def constant(self, value: Any, dtype: npt.DTypeLike = np.int64) -> str:
        name = f"constant_{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.array(value, dtype), name))
        return name

    def add(self, operator: str, *inputs: str, name: str = "", **attributes: Any) -> str:
        return self._node(operator, inputs, [name or f"{operator}_{len(self.nodes)}"], attributes)[0]

    def top_k(self, values: str, count: int, *, largest: int = 1) -> tuple[str, str]:
        """The largest, or smallest, of each row in order, and their places; of equal ones the lower place first."""
        names = [f"values_{len(self.nodes)}", f"places_{len(self.nodes)}"]
        attributes = {"axis": -1, "largest": largest, "sorted": 1}
        found, places = self._node("TopK", (values, self.constant([count])), names, attributes)
        return found, places

    def likeliest(self, x: str, num_classes: int, count: int) -> tuple[str, str]:
        """The largest `count` of each row in order, and their classes.

        In blocks of consecutive classes, where C is a multiple of them: first the `count` blocks of the largest
        maxima, of equal ones the first, then the largest in these. None of the `count` largest, where of equal classes
        the lower one goes first, lies in another block: each of the `count` blocks before it has a class that goes
        before all of its own. The blocks are put in the classes' order, or equal ones would be taken in the blocks'.
        """
        if num_classes % _BLOCK or num_classes < _BLOCK * _BLOCKS_FOR_EACH * count:
            return self.top_k(x, count)
        last, size = self.constant([-1]), self.constant(_BLOCK)
        blocks = self.add("Reshape", x, self.constant([0, -1, _BLOCK]))
        _, found = self.top_k(self.add("ReduceMax", blocks, last, keepdims=0), count)
        chosen, _ = self.top_k(found, count, largest=0)
        inside = self.add("GatherND", blocks, self.add("Unsqueeze", chosen, last), batch_dims=1)
        values, places = self.top_k(self.add("Reshape", inside, self.constant([0, -1])), count)
        block = self.add("Div", places, size)
        within = self.add("Sub", places, self.add("Mul", block, size))
        before = self.add("Mul", self.add("GatherElements", chosen, block, axis=-1), size)
        return values, self.add("Add", before, within)

    def _node(
        self, operator: str, inputs: tuple[str, ...], outputs: list[str], attributes: dict[str, Any]
    ) -> list[str]:
        self.nodes.append(helper.make_node(operator, list(inputs), outputs, **attributes))
        return outputs
