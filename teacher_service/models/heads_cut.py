"""A copy of a model in memory, whose outputs by the codec head end before their last layers.

The user's file is never changed, and large tensors stay in the files beside it.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from pathlib import Path

import onnx
from onnx import helper

from schemas.errors import TeacherRejected
from schemas.head import Head
from schemas.records import TeacherOutput
from teacher_service.models.last_layer import LastLayer, head_of, last_layer, load_graph


class HeadsCut:
    """A model whose outputs by head end before their last layers.

    Raises:
        TeacherRejected: as `last_layer`, or its classes are not those of the output.
    """

    def __init__(self, path: Path, outputs: Sequence[TeacherOutput]) -> None:
        model = load_graph(path)
        self.heads: dict[str, Head] = {}
        """Output's name -> its layer, of the stored classes."""
        self.given: dict[str, str] = {}
        """Output's name -> the copy's output that is its hidden row."""
        kept = dict.fromkeys(each.output for each in outputs if each.codec is None or not each.codec.of_hidden)
        taken = set(_named(model.graph))
        there = {each.name: each for each in model.graph.output}
        added: list[onnx.ValueInfoProto] = []
        nodes: list[onnx.NodeProto] = []
        for each in outputs:
            if each.codec is None or not each.codec.of_hidden:
                continue
            layer = last_layer(path, model, each.output, len(each.shape) + 1)
            classes = layer.head.num_classes
            if each.class_axis is None or layer.class_axis != each.class_axis + 1 or classes != each.num_classes:
                raise TeacherRejected(
                    f"{path}: output {each.output!r}: its last layer gives {classes} classes along axis "
                    f"{layer.class_axis}, and its record says {each.num_classes} along axis "
                    f"{'none' if each.class_axis is None else each.class_axis + 1}: use another codec, such as float16"
                )
            self.heads[each.name] = head_of(layer, each)
            self.given[each.name] = name = _unused(f"{each.output}/hidden", taken)
            nodes += _moved(layer, name, taken)
            added.append(helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
        model.graph.node.extend(nodes)
        outputs_left = [copy.deepcopy(there[name]) for name in kept] + added
        del model.graph.output[:]
        model.graph.output.extend(outputs_left)
        _prune(model.graph)
        self.graph = model.SerializeToString()
        """Its bytes; what lies in files beside the model stays there."""


def _moved(layer: LastLayer, name: str, taken: set[str]) -> Iterator[onnx.NodeProto]:
    """Yield the nodes that give the hidden rows under a name, in float32, their axes moved as the logits' are."""
    before = layer.hidden
    for place, perm in enumerate(layer.perms):
        after = _unused(f"{name}/{place}", taken)
        yield helper.make_node("Transpose", [before], [after], perm=list(perm))
        before = after
    yield helper.make_node("Cast", [before], [name], to=onnx.TensorProto.FLOAT)


def _unused(name: str, taken: set[str]) -> str:
    while name in taken:
        name += "_"
    taken.add(name)
    return name


def _prune(graph: onnx.GraphProto) -> None:
    """Leave out what no output needs: nodes, and tensors, the last layer's own among them."""
    needed = {each.name for each in graph.output}
    kept = []
    producers = {name: node for node in graph.node for name in node.output if name}
    waiting = list(needed)
    seen: set[int] = set()
    while waiting:
        node = producers.get(waiting.pop())
        if node is None or id(node) in seen:
            continue
        seen.add(id(node))
        names = set(_read_by(node)) - needed
        needed |= names
        waiting += names
    kept = [copy.deepcopy(node) for node in graph.node if any(name in needed for name in node.output)]
    gone = {tensor.name for tensor in graph.initializer} - needed
    for of_graph, left in (
        (graph.node, kept),
        (graph.initializer, [each for each in graph.initializer if each.name in needed]),
        (graph.sparse_initializer, [each for each in graph.sparse_initializer if each.values.name in needed]),
        # Old files list tensors among the inputs, too.
        (graph.input, [each for each in graph.input if each.name not in gone]),
    ):
        copies = [copy.deepcopy(each) for each in left]  # before the field that they lie in is emptied
        del of_graph[:]
        of_graph.extend(copies)


def _named(graph: onnx.GraphProto) -> Iterator[str]:
    """Yield all names that tensors have, those within the graphs of its nodes among them."""
    yield from (each.name for each in (*graph.input, *graph.initializer))
    yield from (each.values.name for each in graph.sparse_initializer)
    for node in graph.node:
        yield from node.output
        for attribute in node.attribute:
            for inner in [attribute.g, *attribute.graphs]:
                yield from _named(inner)


def _read_by(node: onnx.NodeProto) -> Iterator[str]:
    """Yield all names that a node reads, those of the graphs in its attributes among them."""
    yield from filter(None, node.input)
    for attribute in node.attribute:
        for graph in [attribute.g, *attribute.graphs]:
            yield from (each.name for each in graph.output)
            for inner in graph.node:
                yield from _read_by(inner)
