"""A teacher's labels: padding, kinds, input types, and what makes a model no teacher."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.models import FLAWS, classifier, quantised_dynamically
from support.streams import teacher_record

from pipeline.onnx_runtime import open_session
from schemas.errors import TeacherRejected
from schemas.records import TeacherInput
from teacher_service.models.checks import accuracy_notice, check_model
from teacher_service.models.session import OnnxTeacher, prepare_input, to_log_space

ROWS = {"image": np.random.default_rng(3).random((50, 1, 8, 8), dtype=np.float32)}
WHOLE_ROWS = {"image": np.random.default_rng(3).integers(0, 256, (50, 1, 8, 8)).astype(np.uint8)}
UINT8 = (TeacherInput("x", "image", "uint8", "nchw", 1.0, ()),)
DEPENDENT = set(FLAWS) - {"", "dropout"}


def teacher(path: Path, **changes: Any) -> OnnxTeacher:
    return OnnxTeacher(path, teacher_record(path, **changes), threads=1)


@pytest.mark.parametrize("batch", [None, 16])
@pytest.mark.parametrize("num_rows", [1, 15, 16, 17, 50])
def test_a_padded_batch_gives_the_same_bits_as_a_full_one(tmp_path: Path, batch: int | None, num_rows: int) -> None:
    model = teacher(classifier(tmp_path / "m.onnx", batch=batch, convolution=True))
    whole = model.raw({"image": ROWS["image"][:48]})["logits"]
    some = model.raw({"image": ROWS["image"][:num_rows]})["logits"]
    assert some.shape == (num_rows, 10)
    assert some.dtype == np.float32
    shared = min(num_rows, 48)
    assert some[:shared].tobytes() == whole[:shared].tobytes()


def test_no_rows_give_no_labels(tmp_path: Path) -> None:
    none = teacher(classifier(tmp_path / "m.onnx")).label({"image": ROWS["image"][:0]})
    assert none["logits"].shape == (0, 10)


def test_probabilities_become_bounded_logarithms() -> None:
    raw = np.array([[0.0, 0.25, 0.75]], np.float32)
    assert np.allclose(to_log_space(raw, "probabilities"), np.log([[1e-12, 0.25, 0.75]]), rtol=1e-6)
    for kind in ("logits", "log_probabilities"):
        assert to_log_space(raw, kind) is raw


@pytest.mark.parametrize(
    ("values", "spec", "expected"),
    [
        ([0.5, 1.0], ("int32", "", 255.0), [128, 255]),
        ([-3.0, 300.0], ("uint8", "", 1.0), [0, 255]),
        ([1.5, 2.5], ("int64", "", 1.0), [2, 2]),
        ([0.5, 1.0], ("float16", "", 2.0), [1.0, 2.0]),
    ],
)
def test_values_are_scaled_rounded_and_clipped_into_the_inputs_dtype(values: Any, spec: Any, expected: Any) -> None:
    dtype, layout, scale = spec
    made = prepare_input(np.array(values, np.float32), TeacherInput("x", "f", dtype, layout, scale, ()))
    assert made.dtype == np.dtype(dtype)
    assert made.tolist() == expected


IMAGES = np.random.default_rng(5).integers(0, 256, (4, 3, 5, 6)).astype(np.uint8)
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def test_mean_and_deviation_are_the_channels_own_and_go_along_when_those_are_reversed() -> None:
    spec = TeacherInput("x", "f", "float32", "nhwc", 1 / 255, (), MEAN, STD, "bgr")
    made = prepare_input(IMAGES, spec)
    assert (made.shape, made.dtype) == ((4, 5, 6, 3), np.dtype("float32"))
    exact = (IMAGES / 255 - np.reshape(MEAN, (3, 1, 1))) / np.reshape(STD, (3, 1, 1))
    assert np.allclose(made, exact[:, ::-1].transpose(0, 2, 3, 1), atol=1e-5)
    assert prepare_input(IMAGES, spec).tobytes() == made.tobytes()
    assert made[:2].tobytes() == prepare_input(IMAGES[:2], spec).tobytes()


def test_one_number_is_for_all_channels_and_for_any_shape() -> None:
    for values in (IMAGES, IMAGES[:, 0, 0], IMAGES[:, 0, 0, 0]):
        made = prepare_input(values, TeacherInput("x", "f", "float32", "", 1.0, (), (127.5,), (127.5,)))
        assert np.array_equal(made, (values.astype(np.float32) - np.float32(127.5)) / np.float32(127.5))


@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
@pytest.mark.parametrize("scale", [1.0, 1 / 255])
@pytest.mark.parametrize("dtype", [np.uint8, np.float16, np.float32, np.float64, np.int32])
def test_a_scale_alone_gives_the_bits_that_it_always_gave(dtype: Any, scale: float, layout: str) -> None:
    values = IMAGES.astype(dtype)
    before = np.moveaxis(values, 1, -1) if layout == "nhwc" else values
    if scale != 1.0:
        before = before * np.asarray(scale, dtype=np.result_type(before.dtype, np.float32))
    made = prepare_input(values, TeacherInput("x", "f", "float32", layout, scale, ()))
    assert made.tobytes() == np.ascontiguousarray(before.astype(np.float32)).tobytes()


def test_channels_move_last_where_the_model_wants_them_there(tmp_path: Path) -> None:
    image = np.random.default_rng(1).random((5, 3, 8, 8), dtype=np.float32)
    spec = (TeacherInput("x", "image", "float32", "nhwc", 1.0, ()),)
    path = classifier(tmp_path / "m.onnx", (3, 8, 8), nhwc=True)
    bare = open_session(path).run(["y"], {"x": np.ascontiguousarray(image.transpose(0, 2, 3, 1))})[0]
    assert np.array_equal(teacher(path, inputs=spec, inference_batch=5).raw({"image": image})["logits"], bare)


@pytest.mark.parametrize(
    "options",
    [{}, {"convolution": True}, {"batch": 16}, {"flaw": "dropout"}, {"tail": "log_probabilities"}],
    ids=str,
)
def test_honest_models_are_accepted(tmp_path: Path, options: dict[str, Any]) -> None:
    check_model(teacher(classifier(tmp_path / "m.onnx", **options)), ROWS)


@pytest.mark.parametrize("kind", ["probabilities", "log_probabilities"])
def test_a_model_is_accepted_as_what_it_is_declared(tmp_path: Path, kind: str) -> None:
    check_model(teacher(classifier(tmp_path / "m.onnx", tail=kind), kind=kind), ROWS)


def test_a_dropout_node_is_removed_by_onnx_runtime_so_its_labels_are_those_of_evaluation(tmp_path: Path) -> None:
    plain = teacher(classifier(tmp_path / "plain.onnx"))
    left_on = teacher(classifier(tmp_path / "dropout.onnx", flaw="dropout"))
    assert np.array_equal(plain.raw(ROWS)["logits"], left_on.raw(ROWS)["logits"])


@pytest.mark.parametrize("inputs", [ROWS, WHOLE_ROWS], ids=["float32", "uint8"])
@pytest.mark.parametrize("flaw", [*sorted(DEPENDENT), "quantised"])
def test_labels_that_depend_on_chance_or_on_their_neighbours_are_refused(
    tmp_path: Path, flaw: str, inputs: dict[str, Any]
) -> None:
    dtype = inputs["image"].dtype.name
    path = classifier(tmp_path / "m.onnx", flaw="" if flaw == "quantised" else flaw, dtype=dtype)
    if flaw == "quantised":
        path = quantised_dynamically(path, tmp_path / "q.onnx")
    specs = teacher_record(path).inputs if dtype == "float32" else UINT8
    with pytest.raises(TeacherRejected, match=r"depend on their neighbours|give other labels each time") as caught:
        check_model(teacher(path, inputs=specs, inference_batch=50), inputs)
    assert "\n" not in str(caught.value)


def test_dark_images_of_bytes_hide_no_weights_that_are_quantised_dynamically(tmp_path: Path) -> None:
    dark = {"image": np.random.default_rng(0).integers(0, 100, (64, 3, 64, 64)).astype(np.uint8)}
    path = quantised_dynamically(classifier(tmp_path / "m.onnx", (3, 64, 64)), tmp_path / "q.onnx")
    scaled = (TeacherInput("x", "image", "float32", "nchw", 1 / 255, ()),)
    with pytest.raises(TeacherRejected, match="quantised dynamically"):
        check_model(teacher(path, inputs=scaled, inference_batch=64), dark)


def test_a_whole_number_input_of_an_honest_model_is_accepted(tmp_path: Path) -> None:
    check_model(teacher(classifier(tmp_path / "m.onnx", dtype="uint8"), inputs=UINT8), WHOLE_ROWS)


@pytest.mark.parametrize(
    ("options", "changes", "says"),
    [
        ({"tail": "probabilities"}, {}, "declared as logits, .* sum to 1"),
        ({}, {"kind": "probabilities"}, "declared as probabilities, .* do not sum to 1"),
        ({}, {"kind": "log_probabilities"}, "declared as log_probabilities"),
        ({"nan_above": -1.0}, {}, "not finite"),
        ({"num_classes": 7}, {}, "gives rows of shape 7, its record says 10"),
        ({"num_classes": 1}, {"num_classes": 1}, "at least 2"),
    ],
    ids=lambda value: str(value),
)
def test_outputs_of_another_kind_are_refused(
    tmp_path: Path, options: dict[str, Any], changes: dict[str, Any], says: str
) -> None:
    with pytest.raises(TeacherRejected, match=says) as caught:
        check_model(teacher(classifier(tmp_path / "m.onnx", **options), **changes), ROWS)
    assert "\n" not in str(caught.value)


def test_a_sample_whose_numbers_leave_float32_raises_no_warning() -> None:
    fed = prepare_input(np.array([[1.0, 4.0]], np.float32), TeacherInput("x", "x", "float32", "", 1e38, ()))
    assert np.array_equal(fed, np.array([[1e38, np.inf]], np.float32))


def test_a_few_rows_that_are_not_finite_are_no_reason_to_refuse(tmp_path: Path) -> None:
    means = ROWS["image"].mean(axis=(1, 2, 3))
    path = classifier(tmp_path / "m.onnx", nan_above=float(np.sort(means)[-3]))
    check_model(teacher(path), ROWS)


@pytest.mark.parametrize(
    ("share_right", "num_rows", "says"),
    [(1.0, 100, "100.0%"), (0.1, 100, "chance level"), (0.1, 20, "20 labelled")],
)
def test_the_accuracy_is_told_and_chance_is_called_chance(share_right: float, num_rows: int, says: str) -> None:
    labels = np.arange(num_rows) % 10
    guesses = np.where(np.arange(num_rows) < share_right * num_rows, labels, (labels + 1) % 10)
    notice = accuracy_notice(np.eye(10, dtype=np.float32)[guesses], labels)
    assert says in notice
    assert ("chance" in notice) == (says == "chance level")


@pytest.mark.parametrize(
    ("labels", "says"),
    [
        (np.repeat([0, 1], [250, 6]), "chance level: no better than always naming the commonest class, which is right"),
        (np.repeat([0, 1], [150, 106]), "chance level: no better"),
        (np.full(256, 1), "chance level: no better than a guess among 2 classes"),
        (np.full(256, 0), ""),
    ],
)
def test_always_naming_one_class_is_called_chance_however_often_it_is_right(labels: Any, says: str) -> None:
    notice = accuracy_notice(np.eye(2, dtype=np.float32)[np.zeros(256, np.int64)], labels)
    assert says in notice
    assert ("chance" in notice) == bool(says)


def test_without_labels_there_is_no_accuracy() -> None:
    assert accuracy_notice(np.zeros((3, 10), np.float32), np.full(3, -1)) == ""
