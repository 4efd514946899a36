"""The last linear layer of an ONNX output: found, cut off in memory, and refused by name where there is none."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from support.heads import bound

from schemas.codecs import CodecSpec
from schemas.errors import ManifestMismatch, TeacherRejected
from schemas.head import Head
from schemas.records import Teacher, TeacherInput, TeacherOutput
from teacher_service.models.files import model_sha256
from teacher_service.models.heads import with_heads
from teacher_service.models.last_layer import last_layer, load_graph
from teacher_service.models.session import OnnxTeacher

RANDOM = np.random.default_rng(0)
N, D, H, C = 7, 8, 6, 5
W1, W, B = (RANDOM.standard_normal(shape, np.float32) for shape in ((D, H), (C, H), (C,)))
WORDS = RANDOM.standard_normal((D, H), np.float32)
X = {"x": RANDOM.standard_normal((N, D), np.float32)}
node = helper.make_node
Nodes = list[Any]


def model(path: Path, nodes: Nodes, shape: tuple[Any, ...] = (C,), external: bool = False, **weights: Any) -> Path:
    """x [N, 8] -> h [N, 6] -> `nodes` -> y [N, *shape]."""
    first = [node("MatMul", ["x", "w1"], ["h0"]), node("Relu", ["h0"], ["h"])]
    tensors = [numpy_helper.from_array(np.asarray(value), name) for name, value in {"w1": W1, **weights}.items()]
    graph = helper.make_graph(
        [*first, *nodes],
        "m",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", D])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", *shape])],
        tensors,
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    if external:
        onnx.save_model(made, str(path), save_as_external_data=True, location="m.bin", size_threshold=0)
    else:
        onnx.save(made, str(path))
    return path


def teacher(path: Path, shape: tuple[int, ...] = (C,), axis: int = 0, **changes: Any) -> Teacher:
    """Of one output that is stored by head, whose layer is still to be found."""
    output = TeacherOutput("logits", "y", "logits", shape, axis, shape[axis], CodecSpec("head"), **changes)
    inputs = (TeacherInput("x", "x", "float32", "", 1.0, ()),)
    return Teacher("s", "t", model_sha256(path), path.name, inputs, (output,), 4)


def dense(found: Teacher) -> Teacher:
    return replace(found, outputs=tuple(replace(each, codec=None, head_sha256=None) for each in found.outputs))


def cut(path: Path, asked: Teacher, inputs: dict[str, Any] = X) -> OnnxTeacher:
    whole = OnnxTeacher(path, dense(asked), threads=1)
    return OnnxTeacher(path, with_heads(path, asked, inputs, whole.answers(inputs)), threads=1)


FORMS: dict[str, tuple[Nodes, dict[str, Any]]] = {
    "gemm": ([node("Gemm", ["h", "w", "b"], ["y"])], {"w": W.T.copy(), "b": B}),
    "gemm of transposed weights": ([node("Gemm", ["h", "w", "b"], ["y"], transB=1)], {"w": W, "b": B}),
    "gemm without bias, scaled": ([node("Gemm", ["h", "w"], ["y"], transB=1, alpha=0.5)], {"w": W}),
    "matmul": ([node("MatMul", ["h", "w"], ["y"])], {"w": W.T.copy()}),
    "matmul and bias": (
        [node("MatMul", ["h", "w"], ["z"]), node("Add", ["b", "z"], ["y"])],
        {"w": W.T.copy(), "b": B[None]},
    ),
    "transposed behind other names": (
        [
            node("Identity", ["w"], ["same"]),
            node("Transpose", ["same"], ["w2"], perm=[1, 0]),
            node("MatMul", ["h", "w2"], ["z"]),
            node("Identity", ["z"], ["z2"]),
            node("Add", ["z2", "b"], ["y"]),
        ],
        {"w": W, "b": B},
    ),
    "weights of a Constant": (
        [node("Constant", [], ["w"], value=numpy_helper.from_array(W.T.copy())), node("MatMul", ["h", "w"], ["y"])],
        {},
    ),
    "weights before columns": (
        [
            node("Transpose", ["h"], ["columns"]),
            node("MatMul", ["w", "columns"], ["z"]),
            node("Add", ["z", "b"], ["z2"]),
            node("Transpose", ["z2"], ["y"], perm=[1, 0]),
        ],
        {"w": W, "b": B[:, None]},
    ),
    "two biases": (
        [node("Gemm", ["h", "w", "b"], ["z"], transB=1), node("Add", ["z", "b"], ["y"])],
        {"w": W, "b": B},
    ),
    "half precision": (
        [
            node("Cast", ["h"], ["half"], to=TensorProto.FLOAT16),
            node("MatMul", ["half", "w"], ["z"]),
            node("Cast", ["z"], ["y"], to=TensorProto.FLOAT),
        ],
        {"w": W.T.astype(np.float16)},
    ),
}


@pytest.mark.parametrize("dtype", [TensorProto.FLOAT16, TensorProto.BFLOAT16])
def test_a_model_that_rounds_its_logits_behind_a_layer_in_float32_is_cut(dtype: int, tmp_path: Path) -> None:
    casts = [node("Cast", ["z"], ["rounded"], to=dtype), node("Cast", ["rounded"], ["y"], to=TensorProto.FLOAT)]
    path = model(tmp_path / "m.onnx", [node("MatMul", ["h", "w"], ["z"]), *casts], w=W.T.copy())
    assert cut(path, teacher(path)).heads["logits"].weight.dtype == np.float32


@pytest.mark.parametrize("external", [False, True])
@pytest.mark.parametrize("form", FORMS)
def test_the_cut_model_gives_what_the_whole_one_does(form: str, external: bool, tmp_path: Path) -> None:
    nodes, weights = FORMS[form]
    path = model(tmp_path / "m.onnx", nodes, external=external, **weights)
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    found = cut(path, teacher(path))
    output, head = found.teacher.outputs[0], found.heads["logits"]
    assert (output.codec, output.head_sha256) == (CodecSpec("head", H), head.sha256)
    assert (head.num_classes, head.width) == (C, H)
    hidden, whole = found.label(X)["logits"], OnnxTeacher(path, dense(found.teacher), threads=1).raw(X)["logits"]
    assert hidden.shape == (N, H)
    half = 2.0**-10 * np.abs(whole).max() if form == "half precision" else 0
    assert (np.abs(head.logits(hidden.astype(np.float16)) - whole) <= 2 * bound(head, hidden) + half).all()
    np.testing.assert_allclose(found.raw(X)["logits"], whole, rtol=0, atol=1e-5 + half)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


def test_weights_that_an_embedding_shares_are_followed(tmp_path: Path) -> None:
    nodes = [
        node("ArgMax", ["x"], ["word"], axis=1, keepdims=0),
        node("Gather", ["words", "word"], ["embedded"]),
        node("Add", ["h", "embedded"], ["h2"]),
        node("Transpose", ["words"], ["w"], perm=[1, 0]),
        node("MatMul", ["h2", "w"], ["y"]),
    ]
    path = model(tmp_path / "m.onnx", nodes, (D,), words=WORDS)
    found = cut(path, teacher(path, (D,)))
    assert found.heads["logits"].weight.tobytes() == WORDS.tobytes()


def test_classes_on_any_axis_are_rebuilt_where_they_were(tmp_path: Path) -> None:
    shape = np.array([0, 2, H // 2], np.int64)
    weight = W[:, : H // 2]
    nodes = [
        node("Reshape", ["h", "sizes"], ["places"]),
        node("MatMul", ["places", "w"], ["z"]),
        node("Add", ["z", "b"], ["z2"]),
        node("Transpose", ["z2"], ["y"], perm=[0, 2, 1]),
    ]
    path = model(tmp_path / "m.onnx", nodes, (C, 2), w=weight.T.copy(), b=B, sizes=shape)
    found = cut(path, teacher(path, (C, 2)))
    whole = OnnxTeacher(path, dense(found.teacher), threads=1).raw(X)["logits"]
    assert whole.shape == (N, 2, C)
    assert found.label(X)["logits"].shape == (N, 2, H // 2)
    np.testing.assert_allclose(found.raw(X)["logits"], whole, rtol=0, atol=1e-5)
    with pytest.raises(TeacherRejected, match="5 classes along axis 1, and its record says 2 along axis 2"):
        cut(path, teacher(path, (C, 2), 1))


def test_a_class_map_selects_rows_of_the_layer(tmp_path: Path) -> None:
    nodes, weights = FORMS["gemm of transposed weights"]
    path = model(tmp_path / "m.onnx", nodes, **weights)
    found = cut(path, teacher(path, class_map=(7, -1, 3, 0, -1)))
    assert found.heads["logits"].weight.tobytes() == W[[3, 2, 0]].tobytes()
    assert found.heads["logits"].bias is not None
    assert found.heads["logits"].bias.tobytes() == B[[3, 2, 0]].tobytes()
    mapped = OnnxTeacher(path, dense(found.teacher), threads=1).label(X)["logits"]
    np.testing.assert_allclose(found.rebuilt(found.label(X))["logits"], mapped, rtol=0, atol=1e-5)


def test_an_output_beside_the_head_stays_as_it_is(tmp_path: Path) -> None:
    nodes, weights = FORMS["matmul and bias"]
    path = model(tmp_path / "m.onnx", nodes, **weights)
    by_head = teacher(path)
    both = (*by_head.outputs, replace(by_head.outputs[0], name="all", codec=CodecSpec("float16")))
    found = cut(path, replace(by_head, outputs=both))
    np.testing.assert_allclose(found.rebuilt(found.label(X))["logits"], found.raw(X)["all"], rtol=0, atol=1e-5)


REFUSED: dict[str, tuple[Nodes, dict[str, Any], str]] = {
    "a scale": (
        [node("MatMul", ["h", "w"], ["z"]), node("Mul", ["z", "s"], ["y"], name="scale")],
        {"w": W.T.copy(), "s": np.float32(2)},
        r"node 'scale' \(Mul\) is a scale or a soft-cap behind the last layer",
    ),
    "a soft-cap": (
        [node("MatMul", ["h", "w"], ["z"]), node("Tanh", ["z"], ["y"], name="cap")],
        {"w": W.T.copy()},
        r"node 'cap' \(Tanh\) is a scale or a soft-cap",
    ),
    "a softmax": (
        [node("MatMul", ["h", "w"], ["z"]), node("Softmax", ["z"], ["y"])],
        {"w": W.T.copy()},
        r"node that gives 'y' \(Softmax\) gives no logits",
    ),
    "a reshape": (
        [node("MatMul", ["h", "w"], ["z"]), node("Reshape", ["z", "s"], ["y"], name="back")],
        {"w": W.T.copy(), "s": np.array([0, C], np.int64)},
        r"node 'back' \(Reshape\) reshapes or picks numbers in a way that is not followed",
    ),
    "a convolution": (
        [
            node("Unsqueeze", ["h", "axes"], ["image"]),
            node("Conv", ["image", "w"], ["z"], name="conv"),
            node("Identity", ["z"], ["y"]),
        ],
        {"w": W[:, :, None], "axes": np.array([2], np.int64)},
        r"node 'conv' \(Conv\) is a convolution",
    ),
    "quantised weights": (
        [
            node("DequantizeLinear", ["q", "s", "zero"], ["w"], name="weights"),
            node("MatMul", ["h", "w"], ["y"]),
        ],
        {"q": np.ones((H, C), np.int8), "s": np.float32(0.1), "zero": np.int8(0)},
        r"node 'weights' \(DequantizeLinear\) is of a quantised layer",
    ),
    "a quantised layer": (
        [
            node("DynamicQuantizeLinear", ["h"], ["q", "s", "zero"]),
            node("MatMulInteger", ["q", "w", "zero"], ["z"], name="whole"),
            node("Cast", ["z"], ["y"], to=TensorProto.FLOAT),
        ],
        {"w": np.ones((H, C), np.int8)},
        r"node 'whole' \(MatMulInteger\) is of a quantised layer",
    ),
    "a residual": (
        [node("MatMul", ["h", "w"], ["z"]), node("Add", ["z", "h"], ["y"], name="residual")],
        {"w": W[:1].T.copy()},
        r"node 'residual' \(Add\) adds what the data decide: it is no bias",
    ),
    "another bias": (
        [node("MatMul", ["h", "w"], ["z"]), node("Add", ["z", "b"], ["y"])],
        {"w": W.T.copy(), "b": np.ones((N, 1), np.float32)},
        r"node that gives 'y' \(Add\) adds 7x1 numbers, which are not one for each of 5 classes",
    ),
    "no weights": (
        [node("Transpose", ["h"], ["t"]), node("MatMul", ["h", "t"], ["y"])],
        {},
        r"\(MatMul\) multiplies two tensors that the data decide",
    ),
    "no node": ([node("Relu", ["h"], ["y"])], {}, r"\(Relu\) is no linear layer"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_linear_layer_is_refused_by_node_and_operator_with_what_to_do(case: str, tmp_path: Path) -> None:
    nodes, weights, says = REFUSED[case]
    path = model(tmp_path / "m.onnx", nodes, (C,), **weights)
    with pytest.raises(TeacherRejected, match=rf"m\.onnx: output 'y': .*{says}.*use another codec, such as float16"):
        last_layer(path, load_graph(path), "y", 2)


def test_a_layer_that_does_not_rebuild_the_whole_graph_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nodes, weights = FORMS["gemm"]
    path = model(tmp_path / "m.onnx", nodes, **weights)
    honest: Callable[..., Any] = Head.logits
    monkeypatch.setattr(Head, "logits", lambda self, hidden: honest(self, hidden)[..., ::-1])
    with pytest.raises(
        TeacherRejected, match=r"the logits that are rebuilt of output 'y', .* are off by .* of its range"
    ):
        cut(path, teacher(path))


def test_a_layer_that_masks_classes_does_not_hide_that_others_are_rebuilt_wrongly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nodes, weights = FORMS["gemm"]
    masks = np.where(np.arange(C) == 2, np.float32(-1e9), B)
    path = model(tmp_path / "m.onnx", nodes, **weights | {"b": masks})
    cut(path, teacher(path))
    honest: Callable[..., Any] = Head.logits
    monkeypatch.setattr(Head, "logits", lambda self, hidden: honest(self, hidden)[..., [1, 0, 2, 3, 4]])
    with pytest.raises(TeacherRejected, match=r"off by .* of its range"):
        cut(path, teacher(path))


def test_a_layer_whose_numbers_float16_cannot_tell_apart_is_refused(tmp_path: Path) -> None:
    nodes = [node("Mul", ["h", "s"], ["small"]), node("MatMul", ["small", "w"], ["y"])]
    for scale, fits in ((2.0**-14, True), (2.0**-27, False)):
        path = model(tmp_path / "m.onnx", nodes, w=W.T / np.float32(scale), s=np.float32(scale))
        if fits:
            cut(path, teacher(path))
            continue
        with pytest.raises(TeacherRejected, match=r"'y' is given does not keep its digits in float16, .* use another"):
            cut(path, teacher(path))


def test_a_tensor_that_has_the_name_of_the_hidden_row_keeps_it(tmp_path: Path) -> None:
    path = model(tmp_path / "m.onnx", [node("MatMul", ["h", "y/hidden"], ["y"])], **{"y/hidden": W.T.copy()})
    assert cut(path, teacher(path)).label(X)["logits"].shape == (N, H)


def test_a_worker_whose_model_has_another_layer_than_the_record_says_does_not_begin(tmp_path: Path) -> None:
    nodes, weights = FORMS["gemm"]
    path = model(tmp_path / "m.onnx", nodes, **weights)
    found = cut(path, teacher(path)).teacher
    other = replace(found, outputs=(replace(found.outputs[0], head_sha256="00" * 32),))
    with pytest.raises(ManifestMismatch, match=r"the last layer of output 'logits' is .* says 0000"):
        OnnxTeacher(path, other)
