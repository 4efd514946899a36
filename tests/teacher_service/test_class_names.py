"""Class maps that are made by the names of the model's and the dataset's classes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.models import classifier
from support.streams import fetcher, manifest

from schemas.class_maps import mapped_columns
from schemas.errors import ConfigError
from schemas.records import TeacherOutput
from teacher_service.models.class_names import METADATA_KEYS, matched
from teacher_service.models.declared import Declared, DeclaredOutput
from teacher_service.models.describe import describe_model

DIGITS = fetcher()
MANIFEST = manifest(DIGITS)
ALL = [str(number) for number in range(10)]
TURNED = ALL[::-1]
SOME = ["none", "7", "2", "x", "y", "5", "z", "9", "eight", "zero"]
MAP = (-1, 7, 2, -1, -1, 5, -1, 9, -1, -1)


@given(st.permutations(range(8)), st.sets(st.integers(0, 7), max_size=7), st.integers(0, 2))
def test_names_are_found_whatever_their_order_case_and_spaces(order: list[int], other: set[int], way: int) -> None:
    there = [f"Class_{chr(97 + number)}-x" for number in range(8)]
    written = [(str, str.upper, lambda name: name.replace("_", "  ").replace("-", "_"))[way](name) for name in there]
    names = [f"other {each}" if each in other else written[each] for each in order]
    assert matched(names, there, "m") == tuple(-1 if each in other else each for each in order)


def test_an_equal_name_goes_before_one_that_is_alike() -> None:
    assert matched(["Cat", "cat"], ["cat", "CAT"], "m") == (1, 0)


@pytest.mark.parametrize(
    ("names", "there", "whose"),
    [
        (["cat", "dog", "cat"], ["cat", "dog"], "the model's"),
        (["sea lion"], ["sea_lion", "Sea-Lion"], "the dataset's"),
        (["Cat", "CAT"], ["cat"], "the model's"),
    ],
)
def test_names_that_could_be_two_are_refused(names: list[str], there: list[str], whose: str) -> None:
    with pytest.raises(ConfigError, match=f"2 of {whose} classes, .* give --class-map") as caught:
        matched(names, there, "m")
    assert "\n" not in str(caught.value)


def test_names_that_nothing_on_the_other_side_has_may_be_equal() -> None:
    assert matched(["unused", "unused", "a"], ["b", "a"], "m") == (-1, -1, 1)


def described(path: Path, names: Path | str) -> TeacherOutput:
    declared = Declared((DeclaredOutput("y", "logits", class_names=names),))
    (output,) = describe_model(path, "t", MANIFEST, DIGITS, declared).outputs
    return output


def written(folder: Path, text: str) -> Path:
    (folder / "names.txt").write_text(text, "utf-8")
    return folder / "names.txt"


def with_metadata(path: Path, key: str, text: str) -> Path:
    model = onnx.load(path)
    onnx.helper.set_model_props(model, {key: text, "author": "nobody"})
    onnx.save(model, path)
    return path


def test_a_file_of_names_makes_the_map_and_what_is_not_found_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = classifier(tmp_path / "m.onnx")
    in_turn = {str(number): name for number, name in enumerate(SOME)}
    for text in ("\n".join(SOME) + "\n", json.dumps(SOME), json.dumps(in_turn)):
        output = described(model, written(tmp_path, text))
        assert output.class_map == MAP
        assert output.classes == (2, 5, 7, 9)
    assert "4 of the model's 10 classes are among the dataset's 10; it does not have 'none', 'x'" in caplog.text
    assert "the model does not have '0', '1', '3'" in caplog.text
    assert described(model, written(tmp_path, json.dumps(ALL))).class_map == ()
    assert described(model, written(tmp_path, "\n".join(TURNED))).class_map == tuple(range(10))[::-1]


@pytest.mark.parametrize("key", METADATA_KEYS)
def test_names_are_taken_from_the_models_own_metadata(tmp_path: Path, key: str) -> None:
    text = str(dict(enumerate(SOME))) if key == "names" else json.dumps(SOME)
    model = with_metadata(classifier(tmp_path / "m.onnx"), key, text)
    assert described(model, "@model").class_map == MAP


REFUSED = {
    "nine": (json.dumps(ALL[1:]), "9 names, and the model has 10 classes"),
    "none": (json.dumps([f"n{number}" for number in range(10)]), "none of the model's classes .* is called as one"),
    "twice": (json.dumps(["1", *ALL[1:]]), "'1', '1' are 2 of the model's classes"),
    "broken": ('["0", ', "is no list of names in JSON"),
    "numbers": (json.dumps(list(range(10))), "neither a list of texts nor a table"),
    "repeated": ('{"0": "0", "1": "1", "1": "2"}', "it names '1' 2 times"),
    "gaps": (json.dumps({"0": "0", "2": "2"}), "do not go from 0 on"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_names_that_make_no_map_are_refused_in_one_line(tmp_path: Path, name: str) -> None:
    text, says = REFUSED[name]
    with pytest.raises(ConfigError, match=rf"--class-names logits=.*{says}") as caught:
        described(classifier(tmp_path / "m.onnx"), written(tmp_path, text))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("key", "text", "says"),
    [
        ("author", "x", "has no names of classes"),
        ("names", "__import__('os')", "'names' holds no names of classes"),
        ("names", "{0: 'a', 1: 'b', 1: 'c'}", "'names' holds no names of classes: it names 1 2 times"),
        ("names", '{"0": "a", "1": "b", "1": "c"}', "'names' holds no names of classes: it names '1' 2 times"),
    ],
)
def test_a_model_without_names_is_refused(tmp_path: Path, key: str, text: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        described(with_metadata(classifier(tmp_path / "m.onnx"), key, text), "@model")


def test_a_map_and_names_exclude_one_another_and_features_have_none(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="None beside a class_map"):
        DeclaredOutput("y", class_map="a", class_names="b")
    features = Declared((DeclaredOutput("y", "f", "features", class_names="names"),))
    with pytest.raises(ConfigError, match="--class-names f=names: features have no classes"):
        describe_model(classifier(tmp_path / "m.onnx"), "t", MANIFEST, DIGITS, features)


def test_labels_are_stored_by_the_datasets_classes(tmp_path: Path) -> None:
    output = described(classifier(tmp_path / "m.onnx"), written(tmp_path, "\n".join(SOME)))
    assert mapped_columns(np.arange(10.0, dtype=np.float32)[None], output.class_map).tolist() == [[2, 5, 1, 7]]
