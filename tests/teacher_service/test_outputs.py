"""A teacher with several outputs, of classes and of features: declared, checked, labelled, and labelled apart."""

from __future__ import annotations

import queue
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.models import classifier
from support.more_outputs import with_outputs
from support.streams import fetcher, manifest, order

from pipeline.onnx_runtime import open_session
from pipeline.sequence import Sequence
from schemas.codecs import CodecSpec, Dense, Features, TopK
from schemas.errors import ConfigError, DistillogError, TeacherRejected
from schemas.records import DeadLetter, SoftTargets, Teacher, TeacherOutput
from teacher_service.apart.child import encode_task
from teacher_service.apart.suspects import Suspects
from teacher_service.leases.chain import Chain, Job, Mark, Parcel
from teacher_service.models import describe as describe_module
from teacher_service.models.assess import assess
from teacher_service.models.checks import check_model
from teacher_service.models.declared import Declared, DeclaredOutput
from teacher_service.models.describe import describe_model
from teacher_service.models.labels import label
from teacher_service.models.session import OnnxTeacher
from teacher_service.parcels import Parcels

DIGITS = fetcher()
MANIFEST = manifest(DIGITS)
ROWS = DIGITS.fetch(np.arange(50), 0).inputs
FLOAT16 = CodecSpec("float16")


def asked(*texts: str) -> tuple[DeclaredOutput, ...]:
    """Outputs as `NAME=ONNX_OUTPUT:KIND@AXIS`."""
    from pipeline.cli.model_options import _output

    return tuple(map(_output, texts))


def describe(path: Path, *texts: str, **declared: Any) -> Teacher:
    return describe_model(path, "t", MANIFEST, DIGITS, Declared(asked(*texts), **declared))


def opened(path: Path, *texts: str) -> OnnxTeacher:
    return OnnxTeacher(path, describe(path, *texts), threads=1)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return with_outputs(classifier(tmp_path / "m.onnx"), "hidden", "tokens", "area", "large")


def test_each_output_is_described_by_what_it_gives(model: Path) -> None:
    texts = ("logits=y", "hidden=hidden:features", "tokens=tokens:values", "mask=area:logits@1")
    assert describe(model, *texts).outputs == (
        TeacherOutput.of_classes("y", "logits", 10),
        TeacherOutput("hidden", "hidden", "features", (32,), None, 0, FLOAT16),
        TeacherOutput("tokens", "tokens", "values", (4, 8), None, 0, FLOAT16),
        TeacherOutput("mask", "area", "logits", (10, 2, 2), 0, 10),
    )


def test_a_single_output_of_features_is_named_by_its_kind(model: Path) -> None:
    assert [one.name for one in describe(model, "hidden", kind="features").outputs] == ["features"]


def test_classes_are_the_last_axis_unless_said(model: Path) -> None:
    (output,) = describe(model, "words=tokens:logits").outputs
    assert (output.class_axis, output.num_classes, output.stored_shape) == (1, 8, (4, 8))


def test_where_another_axis_than_the_last_is_as_long_as_the_dataset_has_classes_it_has_to_be_said(model: Path) -> None:
    says = r"'area' has shape 32x10x2x2: the dataset's 10 classes are not .*mask=area:logits@1 or .*mask=area:logits@3$"
    with pytest.raises(ConfigError, match=says):
        describe(model, "mask=area:logits")
    (first,), (last,) = (describe(model, f"mask=area:logits@{axis}").outputs for axis in (1, 3))
    assert (first.num_classes, first.stored_shape) == (10, (2, 2, 10))
    assert (last.num_classes, last.stored_shape) == (2, (10, 2, 2))


REFUSED: dict[str, tuple[tuple[str, ...], dict[str, Any], type[DistillogError], str]] = {
    "no such output": (("logits=y", "hidden=hiden"), {}, ConfigError, "no output 'hiden': did you mean 'hidden'"),
    "one name twice": (("a=y", "a=hidden:features"), {}, ConfigError, "two outputs would be called 'a'"),
    "two without names": (("y", "area"), {}, ConfigError, "two outputs would be called 'logits'; write NAME=area"),
    "a name with a dot": (("a.b=y",), {}, ConfigError, "output name 'a.b'"),
    "a kind for two": (("a=y", "b=hidden"), {"kind": "logits"}, ConfigError, "--kind is for a teacher of one output"),
    "a class axis of features": (("a=hidden:features@1",), {}, ConfigError, "features have no axis of classes"),
    "an axis that is not there": (("a=y:logits@2",), {}, TeacherRejected, r"shape 32x10: it has no axis 2 of classes"),
    "probabilities that are none": (
        ("logits=y", "mask=area:probabilities@1"),
        {},
        TeacherRejected,
        "output 'area' .*do not sum to 1.* --output mask=area:logits",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_declaration_that_does_not_fit_is_refused_in_one_line(model: Path, name: str) -> None:
    texts, declared, kind, says = REFUSED[name]
    with pytest.raises(kind, match=says) as caught:
        describe(model, *texts, **declared)
    assert "\n" not in str(caught.value)


def test_rows_that_the_data_decide_the_number_of_are_refused_by_the_outputs_name(tmp_path: Path) -> None:
    path = with_outputs(classifier(tmp_path / "m.onnx"), "found")
    with pytest.raises(TeacherRejected, match=r"output 'found' has shape \d+x2 for 16 samples: .* after NMS"):
        describe(path, "logits=y", "boxes=found:values")


def test_whole_numbers_are_refused_by_the_outputs_name(tmp_path: Path) -> None:
    path = with_outputs(classifier(tmp_path / "m.onnx"), "likeliest")
    with pytest.raises(TeacherRejected, match=r"output 'likeliest' is tensor\(int64\): labels are tensors of floats"):
        describe(path, "logits=y", "best=likeliest:values")


def test_an_output_that_holds_nothing_is_refused_by_its_name(tmp_path: Path) -> None:
    path = with_outputs(classifier(tmp_path / "m.onnx"), "empty")
    with pytest.raises(TeacherRejected, match="output 'empty' has shape 32x0: nothing to store"):
        describe(path, "nothing=empty:features")


def test_a_view_that_refused_every_sample_of_an_order_is_no_failure_of_the_model(model: Path) -> None:
    teacher = opened(model, "logits=y", "mask=area:logits@1")
    (fed,) = teacher.teacher.inputs
    scaled = teacher.fed_as((replace(fed, mean=(0.1, 0.2, 0.3)),), 32)
    labels = scaled.label({"image": np.empty((0, 64), np.float32)})  # as the dataset gives it to a view that has no row
    assert {name: values.shape for name, values in labels.items()} == {"logits": (0, 10), "mask": (0, 2, 2, 10)}


def test_the_batch_is_bounded_by_the_bytes_of_all_outputs(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    row_bytes = 4 * (10 + 32)
    monkeypatch.setattr(describe_module, "OUTPUT_BYTES", 7 * row_bytes + 1)
    texts = ("logits=y", "hidden=hidden:features")
    assert describe(model, *texts).inference_batch == 7
    assert describe(model, *texts, batch=20).inference_batch == 20
    monkeypatch.setattr(describe_module, "OUTPUT_BYTES", 1)
    assert describe(model, *texts).inference_batch == 1


def test_all_outputs_come_from_one_call_and_classes_move_last(model: Path) -> None:
    teacher = opened(model, "logits=y", "hidden=hidden:features", "mask=area:logits@1")
    calls: list[list[str]] = []
    session = teacher._session

    class Counting:
        def run(self, names: list[str], feeds: Any) -> Any:
            calls.append(names)
            return session.run(names, feeds)

    teacher._session = Counting()  # type: ignore[assignment]
    labels = teacher.label(ROWS)
    assert calls == [["y", "hidden", "area"]] * 2  # 50 rows in batches of 32
    y, hidden, area = open_session(model).run(["y", "hidden", "area"], {"x": ROWS["image"]})
    assert np.allclose(labels["logits"], y, atol=1e-5)
    assert np.allclose(labels["hidden"], hidden, atol=1e-5)
    assert np.allclose(labels["mask"], area.transpose(0, 2, 3, 1), atol=1e-5)
    assert labels["mask"].flags.c_contiguous


def test_probabilities_of_each_place_become_logarithms_beside_features_that_stay(tmp_path: Path) -> None:
    path = with_outputs(classifier(tmp_path / "m.onnx", tail="probabilities"), "hidden")
    teacher = opened(path, "p=y:probabilities", "hidden=hidden:features")
    raw, labels = teacher.raw(ROWS), teacher.label(ROWS)
    assert np.array_equal(labels["p"], np.log(np.maximum(raw["p"], np.float32(1e-12))))
    assert labels["hidden"] is not None
    assert np.array_equal(labels["hidden"], raw["hidden"])


def test_an_output_of_another_shape_than_its_record_says_is_refused(model: Path) -> None:
    teacher = describe(model, "logits=y", "hidden=hidden:features")
    other = replace(teacher, outputs=(teacher.outputs[0], replace(teacher.outputs[1], shape=(4, 8))))
    with pytest.raises(TeacherRejected, match="output 'hidden' gives rows of shape 32, its record says 4x8"):
        OnnxTeacher(model, other, threads=1).label(ROWS)


def test_features_that_depend_on_their_neighbours_are_refused_by_the_outputs_name(tmp_path: Path) -> None:
    path = with_outputs(classifier(tmp_path / "m.onnx"), "hidden", "mixed")
    check_model(opened(path, "logits=y", "hidden=hidden:features"), ROWS)
    with pytest.raises(TeacherRejected, match=r"depend on their neighbours .*output 'mix'"):
        check_model(opened(path, "logits=y", "hidden=hidden:features", "mix=mixed:features"), ROWS)


def test_a_teacher_of_features_has_no_accuracy_and_no_other_way_is_tried(model: Path) -> None:
    teacher = opened(model, "hidden=hidden:features")
    found = assess(teacher, FLOAT16, DIGITS, 0)
    assert (found.has_classes, found.better, found.others, found.degenerate) == (False, None, (), False)
    assert (found.declared.accuracy, found.declared.num_unfit, found.has_holes) == (None, 0, False)


def test_what_a_codec_cannot_hold_is_counted_before_a_teacher_is_added(model: Path) -> None:
    for codec, has_holes in (("float16", True), ("float32", False)):
        (declared,) = asked("large=large:features")
        outputs = (DeclaredOutput("y", "logits"), replace(declared, codec=CodecSpec(codec)))
        teacher = describe_model(model, "t", MANIFEST, DIGITS, Declared(outputs))
        found = assess(OnnxTeacher(model, teacher, threads=1), FLOAT16, DIGITS, 0)
        assert found.has_holes == has_holes
        assert found.declared.accuracy is not None


class Orders:
    """One order and its job."""

    def __init__(self) -> None:
        self.order = order(MANIFEST, 0)
        self.fetched = DIGITS.fetch(self.order.sample_ids, self.order.view_seed)

    def job(self) -> Job:
        return Chain(0, 1, Mark(0, 0), 4).accept(0, self.order)


def test_a_record_holds_each_output_in_its_own_codec(model: Path) -> None:
    outputs = (
        DeclaredOutput("y", "logits"),
        DeclaredOutput("hidden", "hidden", "features", codec=CodecSpec("float32")),
        DeclaredOutput("tokens", "tokens", "features"),
        DeclaredOutput("area", "mask", "logits", 1, CodecSpec("topk", 2)),
    )
    teacher = OnnxTeacher(model, describe_model(model, "t", MANIFEST, DIGITS, Declared(outputs)), threads=1)
    made = Orders()
    labels = teacher.label(made.fetched.inputs)
    parcels = Parcels(teacher.teacher, FLOAT16, "s.work-orders")
    parcel = parcels.of_labels(made.job(), made.order, label(teacher, made.fetched, FLOAT16))
    assert parcel.value is not None
    record = SoftTargets.decode(parcel.value, "here")
    assert [(one.name, one.codec, one.num_classes, one.row_shape) for one in record.outputs] == [
        ("logits", "float16", 10, (10,)),
        ("hidden", "float32", 0, (32,)),
        ("tokens", "float16", 0, (4, 8)),
        ("mask", "topk", 10, (2, 2, 10)),
    ]
    logits, hidden, tokens, mask = (one.values() for one in record.outputs)
    assert isinstance(logits, Dense)
    assert isinstance(hidden, Features)
    assert isinstance(tokens, Features)
    assert isinstance(mask, TopK)
    assert hidden.values.tobytes() == labels["hidden"].tobytes()
    assert tokens.values.tobytes() == labels["tokens"].astype(np.float16).tobytes()
    assert np.array_equal(mask.indices[..., 0], labels["mask"].argmax(axis=-1))


def test_a_row_that_one_output_cannot_store_is_a_fault_that_names_the_output(model: Path) -> None:
    teacher = opened(model, "logits=y", "large=large:features")
    made = Orders()
    made.fetched.inputs["image"][3] = np.nan
    labels = teacher.label(made.fetched.inputs)
    beyond = np.flatnonzero(labels["large"][:, 0] >= 65_520)
    assert 0 < len(beyond) < 31
    parcels = Parcels(teacher.teacher, CodecSpec("float32"), "s.work-orders")
    parcel = parcels.of_labels(made.job(), made.order, label(teacher, made.fetched, CodecSpec("float32")))
    letters = {one.row: one.reason for one in (DeadLetter.decode(letter, "here") for letter in parcel.letters)}
    expected = {int(row): "the teacher's output 'large' is beyond what float16 holds" for row in beyond}
    assert letters == expected | {3: "the teacher's output 'logits' is not finite"}
    assert parcel.value is not None
    record = SoftTargets.decode(parcel.value, "here")
    assert record.kept_rows is not None
    assert record.kept_rows.tolist() == sorted(set(range(32)) - set(letters))


def test_a_child_gives_all_outputs_to_the_same_bits(model: Path) -> None:
    teacher = opened(model, "logits=y", "hidden=hidden:features", "mask=area:logits@1")
    parcels = Parcels(teacher.teacher, FLOAT16, "s.work-orders")
    done: queue.Queue[Parcel] = queue.Queue()
    sequence = Sequence.of(MANIFEST)
    suspects = Suspects(
        lambda model: encode_task(DIGITS, model, FLOAT16, 1.0, sequence.sample_ids(0), sequence.view_seed(0)),
        lambda: teacher,
        MANIFEST.num_samples,
        parcels,
        done.put,
    )
    made = Orders()
    suspects.start()
    try:
        suspects.add(made.job())
        apart = done.get(timeout=60)
    finally:
        suspects.stop()
    here = parcels.of_labels(made.job(), made.order, label(teacher, made.fetched, FLOAT16))
    assert apart.value == here.value
