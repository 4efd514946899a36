"""Class maps, reductions and multilabel outputs on the teacher's side: declared, checked, labelled."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.models import classifier
from support.more_outputs import with_outputs
from support.streams import fetcher, manifest

from pipeline.datasets import open_dataset
from schemas.codecs import CodecSpec, storable
from schemas.errors import ConfigError, DistillogError, TeacherRejected
from schemas.records import Teacher, TeacherOutput
from schemas.softmax import log_softmax
from teacher_service.models.assess import assess, some_samples
from teacher_service.models.checks import accuracy_notice, check_model
from teacher_service.models.class_map_files import read_class_map
from teacher_service.models.declared import Declared, DeclaredOutput
from teacher_service.models.describe import describe_model
from teacher_service.models.session import OnnxTeacher, as_stored

DIGITS = fetcher()
MANIFEST = manifest(DIGITS)
ROWS = DIGITS.fetch(np.arange(50), 0).inputs
FLOAT16 = CodecSpec("float16")
SOME = ("-", "7", "2", "-", "-", "5", "-", "9", "-", "-")
MAP = (-1, 7, 2, -1, -1, 5, -1, 9, -1, -1)


def written(folder: Path, *lines: str) -> Path:
    file = folder / "map.txt"
    file.write_text("\n".join(lines) + "\n", "utf-8")
    return file


def described(path: Path, *outputs: DeclaredOutput) -> Teacher:
    return describe_model(path, "t", MANIFEST, DIGITS, Declared(outputs))


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return with_outputs(classifier(tmp_path / "m.onnx"), "hidden", "tokens", "area")


# --- files ------------------------------------------------------------------------------------------------------------

NAMED = "support.user_data:named_classes"


@pytest.mark.parametrize("lines", [("ant", "-", "cow"), ("0", "-", "2"), (" ant ", "-", "2")])
def test_a_class_is_said_by_name_or_number(tmp_path: Path, lines: tuple[str, ...]) -> None:
    assert read_class_map(written(tmp_path, *lines), open_dataset(NAMED)) == (0, -1, 2)


def test_a_name_that_is_a_number_is_a_name(tmp_path: Path) -> None:
    dataset = open_dataset(f"{NAMED}?names=1,0")
    assert read_class_map(written(tmp_path, "0", "1"), dataset) == (1, 0)


BAD_FILES: dict[str, tuple[tuple[str, ...], str]] = {
    "an unknown name": (("ant", "bea"), "line 2: 'bea' is no class of dataset .*: did you mean 'bee'"),
    "a number too high": (("0", "3"), "line 2: '3' is no class of dataset .*: it has classes 0 to 2; write"),
    "a number of many digits": (
        ("0", "9" * 5000),
        "line 2: '9{80}' is no class .*: it has classes 0 to 2; ",
    ),
    "a negative number": (("-1",), "line 1: '-1' is no class of dataset"),
    "an empty line": (("ant", "", "bee"), "line 2: '' is no class of dataset"),
    "a class twice": (("ant", "-", "0"), "lines 1 and 3 are both class '0' of the dataset"),
    "none": (("-", "-"), "no line is a class of dataset"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_a_file_that_is_no_class_map_is_refused_by_its_line(tmp_path: Path, name: str) -> None:
    lines, says = BAD_FILES[name]
    with pytest.raises(ConfigError, match=rf"^class map {tmp_path}/map.txt.*{says}") as caught:
        read_class_map(written(tmp_path, *lines), open_dataset(NAMED))
    assert "\n" not in str(caught.value)


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    (tmp_path / "map.txt").write_bytes(b"\xff\xfe\x00")
    for file in (tmp_path / "map.txt", tmp_path / "none.txt", tmp_path / "a\0b"):
        with pytest.raises(ConfigError, match=r"^class map .*: cannot be read: "):
            read_class_map(file, open_dataset(NAMED))
    os.mkfifo(tmp_path / "pipe")
    for file in (tmp_path, tmp_path / "pipe"):
        with pytest.raises(ConfigError, match="is no regular file but a folder, a pipe or a device"):
            read_class_map(file, open_dataset(NAMED))


def test_a_file_that_is_too_large_is_refused_before_it_is_read(tmp_path: Path) -> None:
    large = tmp_path / "model.onnx"
    with large.open("wb") as file:
        file.truncate(1 << 34)
    begun = time.monotonic()
    with pytest.raises(ConfigError, match=r"model.onnx: has 17,179,869,184 bytes, and a class map 4,194,304 at most"):
        read_class_map(large, open_dataset(NAMED))
    large.write_bytes(bytes(1 << 22))
    with pytest.raises(ConfigError, match=r"line 1: .* is no class of dataset"):
        read_class_map(large, open_dataset(NAMED))
    assert time.monotonic() - begun < 10


def test_a_file_of_another_editor_is_read_too(tmp_path: Path) -> None:
    (tmp_path / "map.txt").write_bytes("\ufeffant\r\n-\r\ncow".encode())
    assert read_class_map(tmp_path / "map.txt", open_dataset(NAMED)) == (0, -1, 2)


# --- what is declared -------------------------------------------------------------------------------------------------


def test_each_way_of_storing_is_in_the_record(model: Path, tmp_path: Path) -> None:
    file = written(tmp_path, *SOME)
    outputs = (
        DeclaredOutput("y", "logits", class_map=file),
        DeclaredOutput("area", "tags", "multilabel", 1),
        DeclaredOutput("tokens", "pooled", "features", reduction="mean@1"),
    )
    declared = Declared(outputs)
    teacher = describe_model(model, "t", MANIFEST, DIGITS, declared)
    assert teacher.outputs == (
        TeacherOutput("logits", "y", "logits", (10,), 0, 10, class_map=MAP),
        TeacherOutput("tags", "area", "multilabel", (10, 2, 2), 0, 10, FLOAT16),
        TeacherOutput("pooled", "tokens", "features", (4, 8), None, 0, FLOAT16, reduction="mean@1"),
    )
    assert [one.stored_shape for one in teacher.outputs] == [(4,), (2, 2, 10), (8,)]
    words = declared.options(teacher)
    assert words[words.index("--class-map") + 1] == f"logits={file}"
    assert words[words.index("--reduce") + 1] == "pooled=mean@1"
    assert list(map(str, teacher.outputs)) == [
        "logits = y: logits, 10 classes, 4 of them the dataset's",
        "tags = area: multilabel, 10 classes, axis 1 of [N, 10, 2, 2], as float16",
        "pooled = tokens: features, mean@1 of [N, 4, 8], as float16",
    ]


def test_an_axis_as_long_as_the_map_needs_no_word(model: Path, tmp_path: Path) -> None:
    output = DeclaredOutput("area", "mask", class_map=written(tmp_path, "3", "1"))
    (found,) = described(model, output).outputs
    assert (found.class_axis, found.classes, found.stored_shape) == (2, (1, 3), (10, 2, 2))


REFUSED: dict[str, tuple[dict[str, Any], type[DistillogError], str]] = {
    "a map of another length": ({"class_map": ("1", "2")}, ConfigError, "has 2 lines, and output 'y' .* 10 classes al"),
    "one class": ({"class_map": ("-",) * 9 + ("1",)}, TeacherRejected, "has 1 class of the dataset's; soft targets"),
    "a map of features": (
        {"output": "hidden", "kind": "features", "class_map": ("1",)},
        ConfigError,
        "features have no classes",
    ),
    "reduced classes": ({"reduction": "mean@1"}, ConfigError, "--reduce o=mean@1: logits are of classes"),
    "an axis that is not there": (
        {"output": "hidden", "kind": "features", "reduction": "mean@2"},
        ConfigError,
        "--reduce o=mean@2: output 'hidden' of .* has shape 32x32, of which the batch is axis 0",
    ),
    "no such reduction": (
        {"output": "tokens", "kind": "features", "reduction": "meen@1"},
        ConfigError,
        "reduction 'meen@1': did you mean 'mean'",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_declaration_that_does_not_fit_is_refused_in_one_line(model: Path, tmp_path: Path, name: str) -> None:
    fields, kind, says = REFUSED[name]
    if "class_map" in fields:
        fields = fields | {"class_map": written(tmp_path, *fields["class_map"])}
    with pytest.raises(kind, match=says) as caught:
        described(model, DeclaredOutput(**({"output": "y", "name": "o"} | fields)))
    assert "\n" not in str(caught.value)


def test_probabilities_are_no_multilabel_logits(tmp_path: Path) -> None:
    path = classifier(tmp_path / "m.onnx", tail="probabilities")
    with pytest.raises(TeacherRejected, match=r"declared as multilabel logits, but all of it lies between 0 and 1"):
        described(path, DeclaredOutput("y", "tags", "multilabel"))


# --- labels -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tail", ["logits", "probabilities", "log_probabilities"])
def test_a_specialists_softmax_is_its_distribution_given_that_it_is_one_of_its_classes(
    tmp_path: Path, tail: str
) -> None:
    path = classifier(tmp_path / "m.onnx", tail=tail)
    output = DeclaredOutput("y", "logits", tail, class_map=written(tmp_path, *SOME))
    teacher = OnnxTeacher(path, described(path, output), threads=1)
    check_model(teacher, ROWS)
    plain = OnnxTeacher(classifier(tmp_path / "l.onnx"), described(tmp_path / "l.onnx", DeclaredOutput("y")), threads=1)
    of_all = np.exp(plain.label(ROWS)["logits"].astype(np.float64))
    of_some = np.exp(teacher.label(ROWS)["logits"].astype(np.float64))
    given = of_all[:, [2, 5, 1, 7]] / of_all[:, [2, 5, 1, 7]].sum(axis=1, keepdims=True)
    assert np.allclose(of_some / of_some.sum(axis=1, keepdims=True), given, atol=1e-4)


def test_a_permuted_model_labels_as_one_with_its_classes_in_order(tmp_path: Path) -> None:
    path = classifier(tmp_path / "m.onnx")
    plain = OnnxTeacher(path, described(path, DeclaredOutput("y")), threads=1)
    permuted = described(path, DeclaredOutput("y", class_map=written(tmp_path, *"9876543210")))
    labels = OnnxTeacher(path, permuted, threads=1).label(ROWS)["logits"]
    assert labels.tobytes() == np.ascontiguousarray(plain.label(ROWS)["logits"][:, ::-1]).tobytes()


def test_a_reduced_output_is_stored_reduced(model: Path) -> None:
    teacher = OnnxTeacher(
        model, described(model, DeclaredOutput("tokens", "pooled", "features", reduction="first@1")), threads=1
    )
    given, labels = teacher.answers(ROWS)["tokens"], teacher.label(ROWS)["pooled"]
    assert np.array_equal(labels, given[:, 0])


# --- accuracy ---------------------------------------------------------------------------------------------------------


def test_samples_of_other_classes_are_unlabelled_to_a_specialist(tmp_path: Path) -> None:
    path = classifier(tmp_path / "m.onnx")
    teacher = described(path, DeclaredOutput("y", class_map=written(tmp_path, *SOME)))
    model = OnnxTeacher(path, teacher, threads=1)
    found = assess(model, FLOAT16, DIGITS, 0)
    ids = some_samples(DIGITS.dataset, 256, MAP)
    labels = DIGITS.dataset.labels(ids)
    assert set(labels) == {2, 5, 7, 9}
    guessed = model.label(DIGITS.fetch(ids, 0).inputs)["logits"].argmax(axis=1)
    right = np.array([2, 5, 7, 9])[guessed] == labels
    assert found.declared.accuracy == pytest.approx(right.mean())
    assert found.declared.num_samples == 256
    logits = np.eye(4, dtype=np.float32)
    assert "on the first 3 labelled views: 66.7%" in accuracy_notice(logits, np.array([2, 3, 7, 2]), MAP)


def test_labels_beyond_a_specialists_classes_are_no_conflict(tmp_path: Path) -> None:
    path = classifier(tmp_path / "m.onnx", num_classes=3)
    teacher = described(path, DeclaredOutput("y", class_map=written(tmp_path, "9", "8", "-")))
    assert assess(OnnxTeacher(path, teacher, threads=1), FLOAT16, DIGITS, 0).declared.accuracy is not None
    plain = OnnxTeacher(path, replace(teacher, outputs=(replace(teacher.outputs[0], class_map=()),)), threads=1)
    with pytest.raises(DistillogError, match="has a sample of class 9"):
        assess(plain, FLOAT16, DIGITS, 0)


# --- probabilities ----------------------------------------------------------------------------------------------------


def test_what_is_stored_of_probabilities_is_the_distribution_among_the_maps_classes_however_little_these_have() -> None:
    logits = np.array([[40.0, 0.0, 8.0, 3.0], [0.0, 1.0, 2.0, 5.0]])
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    output = replace(TeacherOutput.of_classes("y", "probabilities", 4), class_map=(-1, -1, 1, 0))
    stored = as_stored(probabilities.astype(np.float32), output)
    among = np.exp(logits[:, [3, 2]])
    assert np.allclose(np.exp(log_softmax(stored)), among / among.sum(axis=1, keepdims=True), rtol=1e-5)


def test_a_sample_that_has_no_probability_of_any_of_the_maps_classes_cannot_be_stored() -> None:
    output = replace(TeacherOutput.of_classes("y", "probabilities", 3), class_map=(-1, 0, 1))
    stored = as_stored(np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]], np.float32), output)
    assert storable(stored, FLOAT16, 2).tolist() == [False, True]
    assert np.exp(stored[1]).tolist() == pytest.approx([1.0, 1e-12])
