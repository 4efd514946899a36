"""Files of 8 and 16 bits: their weights' range, what falls back to float32, and what cannot be made."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from support.class_means import by_class_means

from pipeline.datasets import open_dataset
from pipeline.views import view_spec
from pipeline.views.fetch import Fetcher
from schemas.errors import ConfigError
from student_trainer.evaluate import predictor
from student_trainer.fidelity import Measure, Scores, calibration
from student_trainer.quantising import FULL, REDUCED, has_vnni
from student_trainer.smaller import Asked, make_smaller

CPUINFO = "processor\t: 0\nmodel name\t: avx_vnni of a kind\nflags\t\t: fpu sse {}\n"


@given(st.sampled_from(["avx512_vnni", "avx_vnni"]), st.lists(st.sampled_from(["avx2", "avx512f", "fma"])))
def test_vnni_is_read_from_the_flags_alone(flag: str, others: list[str]) -> None:
    assert has_vnni(CPUINFO.format(" ".join([*others, flag])))
    assert not has_vnni(CPUINFO.format(" ".join(others)))
    assert has_vnni("Features\t: fp asimd evtstrm\n")
    assert not has_vnni("")


def made(path: Path, asked: Asked) -> tuple[Scores, dict[str, object], list[str]]:
    fetcher = Fetcher(open_dataset("digits?split=test"), view_spec("none", {}))
    said: list[str] = []
    batches = calibration(fetcher, (), ["image"], 100, 3)
    before, (written,) = make_smaller(path, asked, batches, Measure(fetcher, (), 200, path), said.append)
    return before, written.as_dict(), said


def int8_weights(path: Path) -> dict[str, np.ndarray]:
    arrays = {each.name: numpy_helper.to_array(each) for each in onnx.load(path).graph.initializer}
    return {name: values for name, values in arrays.items() if values.dtype == np.int8 and values.ndim > 1}


@pytest.mark.parametrize("bits", ["7", "8"])
def test_weights_use_the_range_that_the_cpu_adds_up_without_saturation(tmp_path: Path, bits: str) -> None:
    path = by_class_means(tmp_path / "m.onnx", 0.0)
    before, written, said = made(path, Asked({"int8": tmp_path / "q.onnx"}, weight_bits=bits))
    weights = int8_weights(tmp_path / "q.onnx")
    assert len(weights) == 3
    assert {int(each.max()) for each in weights.values()} == {REDUCED if bits == "7" else FULL}
    assert all(each.min() >= (-64 if bits == "7" else -128) for each in weights.values())
    assert (written["in_float"], written["layers"], said) == ((), 3, [])
    assert before.accuracy is not None
    assert before.accuracy > 0.85
    assert before.agreement == 1.0
    assert abs(float(str(written["accuracy"])) - before.accuracy) <= 0.01
    again = tmp_path / "again.onnx"
    made(path, Asked({"int8": again}, weight_bits=bits))
    assert again.read_bytes() == (tmp_path / "q.onnx").read_bytes()


def test_layers_that_cost_accuracy_stay_in_float_and_no_others(tmp_path: Path) -> None:
    path = by_class_means(tmp_path / "m.onnx", 1e5)
    _, written, said = made(path, Asked({"int8": tmp_path / "q.onnx"}))
    assert set(written["in_float"]) == {"b", "c"}  # type: ignore[call-overload]
    assert written["layers"] == 1
    assert list(int8_weights(tmp_path / "q.onnx")) == ["a.weight_quantized"]
    assert len(said) == 3
    assert float(str(written["drop"])) <= 1.0


def test_a_file_that_loses_too_much_is_not_written(tmp_path: Path) -> None:
    path = by_class_means(tmp_path / "m.onnx", 1e5)
    says = r"q\.onnx: not written: dynamic int8 loses \d+\.\d+ points, more than --max-drop 1"
    with pytest.raises(ConfigError, match=says):
        made(path, Asked({"int8_dynamic": tmp_path / "q.onnx"}))
    assert not (tmp_path / "q.onnx").exists()


def test_one_sample_of_a_hundred_is_one_point_and_no_more() -> None:
    before = Scores(100, 0.54, 1.0, 0.0)
    assert Scores(100, 0.53, 0.99, 0.0).drop(before) == 1.0
    assert Scores(100, None, 0.93, 0.0).drop(before) == 7.0


def test_a_student_without_weights_has_nothing_to_write_in_8_bits(tmp_path: Path) -> None:
    graph = helper.make_graph(
        [helper.make_node("GlobalAveragePool", ["image"], ["logits"])],
        "g",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 1, 8, 8])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 1, 1, 1])],
    )
    path = tmp_path / "m.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)
    for kind in ("int8", "int8_dynamic"):
        with pytest.raises(ConfigError, match="no convolution and no product with a matrix of weights"):
            made(path, Asked({kind: tmp_path / "q.onnx"}))


def test_layers_that_share_their_weights_compute_the_same_in_dynamic_int8(tmp_path: Path) -> None:
    """ONNX Runtime turns the weights of products round, once for each that takes them."""
    draw = np.random.default_rng(0)
    weights = (draw.normal(size=(64, 64)) / 8).astype(np.float32)
    nodes = [
        helper.make_node("Flatten", ["image"], ["x"]),
        helper.make_node("Gemm", ["x", "w"], ["y"], transB=1),
        helper.make_node("Gemm", ["y", "w"], ["logits"], transB=1),
    ]
    shapes = {"image": ["batch", 1, 8, 8], "logits": ["batch", 64]}
    taken, given = (helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shapes.items())
    graph = helper.make_graph(nodes, "g", [taken], [given], [numpy_helper.from_array(weights, "w")])
    path = tmp_path / "m.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)
    _, written, _ = made(path, Asked({"int8_dynamic": tmp_path / "q.onnx"}, max_drop=100.0))
    assert float(str(written["error"])) < 0.05


def test_dynamic_int8_stores_tables_in_a_fourth_and_features_are_held_by_their_cosine(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    table, weights = (draw.normal(size=shape).astype(np.float32) for shape in ((1000, 16), (16, 8)))
    nodes = [
        helper.make_node("Flatten", ["image"], ["flat"]),
        helper.make_node("Mul", ["flat", "sixteen"], ["rows"]),
        helper.make_node("Cast", ["rows"], ["whole"], to=TensorProto.INT64),
        helper.make_node("Gather", ["table", "whole"], ["found"]),
        helper.make_node("ReduceMean", ["found", "axis"], ["mean"], keepdims=0),
        helper.make_node("MatMul", ["mean", "w"], ["features"]),
    ]
    constants = {"sixteen": np.float32(16), "axis": np.array([1]), "table": table, "w": weights}
    shapes = {"image": ["batch", 1, 8, 8], "features": ["batch", 8]}
    taken, given = (helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shapes.items())
    arrays = [numpy_helper.from_array(np.asarray(values), name) for name, values in constants.items()]
    path = tmp_path / "m.onnx"
    graph = helper.make_graph(nodes, "g", [taken], [given], arrays)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)
    fetcher = Fetcher(open_dataset("digits?split=test"), view_spec("none", {}))
    batches, asked = calibration(fetcher, (), ["image"], 100, 3), Asked({"int8_dynamic": tmp_path / "q.onnx"})
    before, (written,) = make_smaller(path, asked, batches, Measure(fetcher, (), 200, path, True), print)
    assert written.file_bytes < 0.35 * path.stat().st_size
    assert before.agreement == pytest.approx(1.0, abs=1e-6)
    assert before.accuracy is None  # though the data has labels: what is given are no classes
    run, wanted = predictor(tmp_path / "q.onnx"), predictor(path)
    inputs = {"image": fetcher.fetch(np.arange(fetcher.dataset.num_samples), 0).inputs["image"]}
    found, right = run(inputs)["logits"], wanted(inputs)["logits"]
    cosines = (found * right).sum(1) / np.linalg.norm(found, axis=1) / np.linalg.norm(right, axis=1)
    assert written.scores.agreement == pytest.approx(cosines.mean(), abs=1e-3)  # its ranges are of a whole call
    assert 0.99 < written.scores.agreement < 1.0
    assert written.drop == pytest.approx(100 * (1 - written.scores.agreement), abs=1e-6)
