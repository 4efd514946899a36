"""Keeping the likeliest classes in the graph: what NumPy keeps, ties included, and who decides which of them does."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper
from support.models import classifier, with_external_data
from support.more_outputs import with_outputs
from support.streams import fetcher, manifest, teacher_record
from support.texts import language_model

from schemas.codecs import CodecSpec, TopK
from schemas.errors import ConfigError, TeacherRejected
from schemas.positions import Positions
from schemas.records import Teacher, TeacherOutput
from schemas.topk import kept_classes
from teacher_service.models import choosing
from teacher_service.models.choosing import check_cuts, choose_cuts, difference
from teacher_service.models.declared import Declared, DeclaredOutput
from teacher_service.models.describe import describe_model
from teacher_service.models.labels import label
from teacher_service.models.session import OnnxTeacher
from teacher_service.models.topk_graph import GraphCut

DIGITS = fetcher()
TEXTS = fetcher("support.texts:sentences", "support.texts:masked")
THREE = CodecSpec("topk", 3, (1.0, 4.0))
LEAST = float(np.finfo(np.float32).min)

SIZES = [(2, 1), (7, 3), (10, 9), (300, 4), (512, 1), (1024, 3), (2048, 7)]
"""(C, k); of the last three the blocks of 64 classes are more than 4 times k + 1."""


@st.composite
def rows_of(draw: st.DrawFn) -> tuple[npt.NDArray[np.float32], CodecSpec]:
    num_classes, k = draw(st.sampled_from(SIZES))
    temperatures = tuple(sorted(draw(st.sets(st.sampled_from([0.01, 0.5, 1.0, 2.0, 20.0]), min_size=1))))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    num_rows = draw(st.integers(1, 5))
    values = rng.standard_normal((num_rows, num_classes)) * draw(st.sampled_from([0.0, 1.0, 30.0]))
    if draw(st.booleans()):  # many equal ones, zeros of both signs among them
        values = np.rint(values) * draw(st.sampled_from([1.0, -1.0]))
    if draw(st.booleans()):  # masked classes, as many models have them
        values[rng.random(values.shape) < 0.5] = draw(st.sampled_from([-1e9, LEAST]))
    values = values + draw(st.sampled_from([0.0, 1e4, -1e4]))
    return values.clip(LEAST).astype(np.float32), CodecSpec("topk", k, temperatures)


@settings(max_examples=150, deadline=None)
@given(rows_of())
def test_the_graph_keeps_what_numpy_keeps_whatever_is_equal_or_far_away(
    case: tuple[npt.NDArray[np.float32], CodecSpec],
) -> None:
    values, spec = case
    numpy, graph = kept_classes(values, spec.k, spec.temperatures), GraphCut(spec, values.shape[1], 1)(values)
    assert np.array_equal(numpy.classes, graph.classes)
    np.testing.assert_allclose(graph.log_probs, numpy.log_probs, rtol=1e-6, atol=1e-5)
    for temperature, tail in numpy.log_tails.items():
        assert graph.log_tails[temperature].dtype == np.float32
        np.testing.assert_allclose(graph.log_tails[temperature], tail, rtol=1e-6, atol=1e-4)
    assert difference(numpy, graph) == ""


@pytest.mark.parametrize("num_classes", [10, 37, 1_000, 30_464, 30_522])
def test_a_row_is_cut_to_the_same_bits_in_any_company(num_classes: int) -> None:
    spec = CodecSpec("topk", 4, (1.0, 4.0))
    values = np.random.default_rng(0).normal(0, 4, (23, num_classes)).astype(np.float32)
    whole = GraphCut(spec, values.shape[1], 2)(values)
    alone = GraphCut(spec, values.shape[1], 1)
    for row in range(len(values)):
        one = alone(values[row : row + 1])
        assert one.log_probs.tobytes() == whole.log_probs[row].tobytes()
        for temperature in spec.temperatures:
            assert one.log_tails[temperature] == whole.log_tails[temperature][row]


def test_rows_with_more_axes_and_no_rows_at_all_are_cut() -> None:
    cut = GraphCut(THREE, 8, 1)
    values = np.random.default_rng(0).normal(size=(4, 5, 8)).astype(np.float32)
    kept = cut(values)
    assert kept.classes.shape == (4, 5, 3)
    assert {each.shape for each in kept.log_tails.values()} == {(4, 5)}
    assert np.array_equal(kept.classes, kept_classes(values.reshape(-1, 8), 3, (1.0,)).classes.reshape(4, 5, 3))
    assert cut(values[:0]).classes.shape == (0, 5, 3)


@pytest.mark.parametrize("kind", ["logits", "probabilities", "log_probabilities"])
@pytest.mark.parametrize("codec", ["topk:k=3,temperatures=1|4", "topk:k=3,bits=8,temperatures=1|4"])
def test_labels_of_every_kind_and_of_a_class_map_are_numpys(tmp_path: Path, kind: str, codec: str) -> None:
    path, spec = classifier(tmp_path / "m.onnx", tail=kind), CodecSpec.parse(codec)
    fetched = DIGITS.fetch(np.arange(23), 0)
    for class_map in ((), (4, -1, 0, -1, 2, 9, 8, -1, 1, 3)):
        record = teacher_record(path, kind=kind)
        numpy = replace(record, outputs=(replace(record.outputs[0], class_map=class_map),))
        was, is_ = (label(OnnxTeacher(path, each, threads=1), fetched, spec) for each in (numpy, in_graph(numpy)))
        there, here = was.outputs[0].values(), is_.outputs[0].values()
        assert isinstance(there, TopK)
        assert isinstance(here, TopK)
        assert np.array_equal(there.indices, here.indices)
        for name, column in there.columns.items():
            assert here.columns[name].dtype == column.dtype
            np.testing.assert_allclose(here.columns[name], column, rtol=1e-3, atol=1e-3)


def test_a_model_of_halves_with_external_data_is_cut_as_it_is(tmp_path: Path) -> None:
    path = classifier(tmp_path / "m.onnx", num_classes=300)
    made = onnx.load(str(path))
    made.graph.node.append(helper.make_node("Cast", ["y"], ["y16"], to=TensorProto.FLOAT16))
    made.graph.output[0].CopyFrom(helper.make_tensor_value_info("y16", TensorProto.FLOAT16, ["N", 300]))
    onnx.save(made, str(path))
    with_external_data(path, "weights.bin")
    output = TeacherOutput.of_classes("y16", "logits", 300)
    record, fetched = teacher_record(path, outputs=(output,)), DIGITS.fetch(np.arange(40), 0)
    was, is_ = (label(OnnxTeacher(path, each, threads=1), fetched, THREE) for each in (record, in_graph(record)))
    there, here = was.outputs[0].columns, is_.outputs[0].columns
    assert np.array_equal(there["indices"], here["indices"])
    np.testing.assert_allclose(here["log_tail@4.0"], there["log_tail@4.0"], atol=1e-4)


def test_rows_that_are_not_finite_are_refused_in_the_same_words(tmp_path: Path) -> None:
    path = classifier(tmp_path / "m.onnx", nan_above=0.3)
    record, fetched = teacher_record(path), DIGITS.fetch(np.arange(200), 0)
    was, is_ = (label(OnnxTeacher(path, each, threads=1), fetched, THREE) for each in (record, in_graph(record)))
    assert 0 < len(was.faults) < 200
    assert was.faults == is_.faults
    assert np.array_equal(was.kept, is_.kept)
    assert len(is_.outputs[0].columns["indices"]) == len(is_.kept)


def test_positions_are_cut_beside_an_output_that_is_not(tmp_path: Path) -> None:
    path = language_model(tmp_path / "m.onnx")
    scores = DeclaredOutput("scores", "logits", positions="masked", codec="topk:k=4,temperatures=1|2")
    hidden = DeclaredOutput("hidden", "hidden", "features", positions="masked")
    declared = Declared((scores, hidden), inputs={"tokens": "input_ids"})
    numpy = describe_model(path, "t", manifest(TEXTS, order_size=20), TEXTS, declared)
    graph = replace(numpy, outputs=(replace(numpy.outputs[0], cut="graph"), numpy.outputs[1]))
    fetched = TEXTS.fetch(np.arange(40), 0)
    was, is_ = (label(OnnxTeacher(path, each, threads=1), fetched, THREE) for each in (numpy, graph))
    assert was.outputs[1].datum() == is_.outputs[1].datum()
    there, here = was.outputs[0].values(), is_.outputs[0].values()
    assert isinstance(there, Positions)
    assert isinstance(here, Positions)
    assert np.array_equal(there.rows.indices, here.rows.indices)
    assert np.array_equal(there.chosen.counts, here.chosen.counts)


def test_samples_that_choose_no_position_are_no_fault_of_the_teacher(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = language_model(tmp_path / "m.onnx")
    scores = DeclaredOutput("scores", "logits", positions="nothing", codec="topk:k=4")
    declared = Declared((scores,), inputs={"tokens": "input_ids"})
    record = describe_model(path, "t", manifest(TEXTS, order_size=20), TEXTS, declared)
    monkeypatch.setattr(choosing, "MEASURED_FROM", 2)
    for cut, made in (("auto", "numpy"), ("graph", "graph")):
        assert choose_cuts(path, record, THREE, cut, TEXTS, 0)[0].outputs[0].cut == made


def in_graph(teacher: Teacher) -> Teacher:
    return replace(teacher, outputs=tuple(replace(one, cut="graph") for one in teacher.outputs))


def chosen(path: Path, cut: str, spec: CodecSpec, there: Teacher | None = None) -> tuple[TeacherOutput, int]:
    teacher, found = choose_cuts(path, teacher_record(path), spec, cut, DIGITS, 0, there)
    return teacher.outputs[0], len(found)


def test_the_user_the_record_or_a_measurement_decides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = classifier(tmp_path / "m.onnx")
    output, measured = chosen(path, "graph", THREE)
    assert (output.cut, measured) == ("graph", 1)
    assert chosen(path, "numpy", THREE)[0].cut == "numpy"
    assert chosen(path, "auto", THREE) == (teacher_record(path).outputs[0], 0)  # too few classes to be measured
    assert chosen(path, "auto", THREE, in_graph(teacher_record(path)))[0].cut == "graph"
    monkeypatch.setattr(choosing, "MEASURED_FROM", 2)
    for faster, cut in ((1e-9, "graph"), (1e9, "numpy")):
        monkeypatch.setattr(choosing, "CLEARLY", faster)
        output, measured = chosen(path, "auto", THREE)
        assert (output.cut, measured) == (cut, 1)


def test_what_the_graph_cannot_cut_is_refused_by_name(tmp_path: Path) -> None:
    path = classifier(tmp_path / "m.onnx")
    for text in ("float16", "sampled:n=5", "topk:k=10"):
        with pytest.raises(ConfigError, match="--cut graph: no output is stored by topk with fewer classes"):
            chosen(path, "graph", CodecSpec.parse(text))
        with pytest.raises(ConfigError, match="'logits' cannot be cut in the graph: codec"):
            in_graph(teacher_record(path)).outputs[0].refuse_codec(CodecSpec.parse(text))
        with pytest.raises(TeacherRejected, match="cannot be kept in the graph"):
            label(OnnxTeacher(path, in_graph(teacher_record(path)), threads=1), DIGITS.fetch(np.arange(3), 0), FLOAT)
    with pytest.raises(ConfigError, match="cut is 'gpu'"):
        chosen(path, "gpu", THREE)


FLOAT = CodecSpec("float32")


def test_a_runtime_that_cuts_otherwise_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = with_outputs(classifier(tmp_path / "m.onnx"), "hidden")
    inputs = DIGITS.fetch(np.arange(20), 0).inputs
    model = OnnxTeacher(path, in_graph(teacher_record(path)), threads=1)
    check_cuts(model, THREE, inputs)
    right = model.cut

    def wrong(*given: object) -> object:
        kept = right(*given)  # type: ignore[arg-type]
        return replace(kept, log_tails={each: tail + np.float32(2e-3) for each, tail in kept.log_tails.items()})

    monkeypatch.setattr(model, "cut", wrong)
    with pytest.raises(TeacherRejected, match=r"'logits' is cut otherwise .*: the mass of the others at T = 1 is off"):
        check_cuts(model, THREE, inputs)
