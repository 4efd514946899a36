"""Class maps and reductions: what of an output is stored, and which samples' labels it knows."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from schemas_examples import examples

from schemas.avro import REGISTRY
from schemas.class_maps import mapped_classes, mapped_columns, mapped_labels
from schemas.codecs import CodecSpec
from schemas.errors import ConfigError, DecodeError, EncodeError
from schemas.reductions import REDUCTIONS, Reduction
from schemas.teacher import Teacher
from schemas.teacher_output import TeacherOutput

FLOAT16 = CodecSpec("float16")
TEACHER: Teacher = examples()["teacher"]
LOGITS = TeacherOutput.of_classes("y", "logits", 5)
SPECIALIST = replace(LOGITS, class_map=(-1, 7, 2, -1, 4))
TAGS = TeacherOutput("tags", "y", "multilabel", (3, 5), 1, 5, FLOAT16)
HIDDEN = TeacherOutput("hidden", "h", "features", (4, 8), None, 0, FLOAT16)


def test_the_columns_of_a_map_come_by_rising_class_of_the_dataset() -> None:
    values = np.arange(10, dtype=np.float32).reshape(2, 5)
    assert mapped_classes(SPECIALIST.class_map) == SPECIALIST.classes == (2, 4, 7)
    assert mapped_columns(values, SPECIALIST.class_map).tolist() == [[2, 4, 1], [7, 9, 6]]
    assert mapped_columns(values, ()) is values
    assert (SPECIALIST.num_classes, SPECIALIST.codec_classes, SPECIALIST.stored_shape) == (5, 3, (3,))


@given(st.permutations(range(8)), st.integers(1, 8), st.data())
def test_a_label_is_found_in_the_column_of_its_class(order: list[int], kept: int, data: Any) -> None:
    class_map = tuple(each if each < kept else -1 for each in order)
    labels = np.array(data.draw(st.lists(st.integers(-1, 9), max_size=20)), np.int64)
    one_hot = np.eye(8, dtype=np.float32)  # the model's class i is the only one that is 1 for row i
    columns = mapped_columns(one_hot, class_map)
    for label, found in zip(labels, mapped_labels(labels, class_map), strict=True):
        if 0 <= label < kept:
            assert columns[:, found].tolist() == one_hot[:, order.index(label)].tolist()
        else:
            assert found == -1
    assert mapped_labels(labels, ()) is labels


@pytest.mark.parametrize("name", REDUCTIONS)
def test_the_text_of_a_reduction_reads_as_itself_and_takes_its_axis_away(name: str) -> None:
    reduction = Reduction.parse(f"{name}@2")
    assert str(reduction) == f"{name}@2"
    assert reduction.row((3, 4, 5)) == (3, 5)
    values = np.random.default_rng(0).normal(size=(2, 3, 4, 5)).astype(np.float32)
    reduced = reduction(values)
    assert (reduced.shape, reduced.dtype, reduced.flags.c_contiguous) == ((2, 3, 5), np.float32, True)


def test_reductions_are_what_they_are_called() -> None:
    values = np.random.default_rng(0).normal(size=(2, 3, 4)).astype(np.float32)
    assert np.allclose(Reduction("mean", 1)(values), values.sum(axis=1) / 3, atol=1e-6)
    assert np.array_equal(Reduction("first", 2)(values), values[:, :, 0])
    assert np.allclose(Reduction("attention", 1)(values), (values**2).sum(axis=1) / 3, atol=1e-6)


def test_a_mean_does_not_show_the_order_of_its_sum() -> None:
    values = np.random.default_rng(0).normal(size=(50, 300)).astype(np.float32)
    for name in ("mean", "attention"):
        assert np.array_equal(Reduction(name, 1)(values), Reduction(name, 1)(values[:, ::-1]))


@pytest.mark.parametrize("text", ["mean", "mean@0", "mean@", "mean@-1", "meen@1", "mean@1,first@2", ""])
def test_what_is_no_reduction_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"^reduction '.*': (write NAME@AXIS|did you mean 'mean')"):
        Reduction.parse(text)


TAKEN: dict[str, TeacherOutput] = {
    "a specialist": SPECIALIST,
    "a permutation": replace(LOGITS, class_map=(4, 3, 2, 1, 0)),
    "a specialist of k": replace(SPECIALIST, codec=CodecSpec("topk", 3)),
    "tags": TAGS,
    "some tags": replace(TAGS, class_map=(-1, -1, 3, -1, -1)),
    "a mean": replace(HIDDEN, reduction="mean@1"),
    "an attention map": replace(HIDDEN, kind="values", reduction="attention@2"),
}


@pytest.mark.parametrize("name", TAKEN)
def test_a_record_holds_it(name: str) -> None:
    teacher = replace(TEACHER, outputs=(TAKEN[name],))
    assert Teacher.decode(teacher.encode(), "").outputs == (TAKEN[name],)


def test_shapes_in_the_log_follow() -> None:
    shapes = {name: output.stored_shape for name, output in TAKEN.items()}
    assert (shapes["tags"], shapes["some tags"], shapes["a mean"]) == ((3, 5), (3, 1), (8,))
    assert shapes["an attention map"] == (4,)
    assert [TAKEN[name].codec_classes for name in ("a permutation", "tags", "a mean")] == [5, 0, 0]


def test_a_teacher_of_tags_has_no_output_that_labels_are_compared_with() -> None:
    tags = replace(TAGS, shape=(5,), class_axis=0)
    assert replace(TEACHER, outputs=(tags,)).class_output is None
    assert replace(TEACHER, outputs=(tags, SPECIALIST)).class_output is SPECIALIST


WRONG: dict[str, tuple[TeacherOutput, str]] = {
    "a map of others": (replace(LOGITS, class_map=(0, 1)), "has 5 classes, and a map of 2"),
    "a class twice": (replace(LOGITS, class_map=(0, 1, -1, 1, 2)), "two classes that are the dataset's 1"),
    "a map of nothing": (replace(LOGITS, class_map=(-1,) * 5), "a class map of no class"),
    "a lower number": (replace(LOGITS, class_map=(0, 1, 2, 3, -2)), "a class map of -2"),
    "a map of features": (replace(HIDDEN, class_map=(0,)), "holds features, and has a class map"),
    "more kept than mapped": (replace(SPECIALIST, codec=CodecSpec("topk", 4)), "use k <= 3"),
    "tags by topk": (replace(TAGS, codec=CodecSpec("topk", 2)), "multilabel do not: use float16 or float32"),
    "tags as the stream says": (replace(TAGS, codec=None), "holds multilabel, and names no codec"),
    "reduced classes": (replace(LOGITS, reduction="mean@1"), "holds logits, and is reduced by mean@1"),
    "reduced tags": (replace(TAGS, reduction="mean@1"), "holds multilabel, and is reduced by mean@1"),
    "no such axis": (replace(HIDDEN, reduction="mean@3"), r"rows of shape \(4, 8\), and no axis for mean@3"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_does_not_fit_together_is_not_encoded(name: str) -> None:
    output, says = WRONG[name]
    with pytest.raises((EncodeError, ConfigError), match=says):
        replace(TEACHER, outputs=(output,)).encode()


def test_a_reduction_of_a_newer_program_is_refused_by_name() -> None:
    datum = REGISTRY.decode("teacher", replace(TEACHER, outputs=(TAKEN["a mean"],)).encode(), "")
    datum["outputs"][0]["reduction"] = "median@1"
    with pytest.raises(DecodeError, match=r"by a newer Distillog: its output 'hidden' has reduction 'median@1'"):
        Teacher.decode(REGISTRY.encode("teacher", datum), "here")


@pytest.mark.parametrize("name", ["a specialist", "tags", "a mean"])
def test_a_stream_of_the_first_version_takes_none_of_it(name: str) -> None:
    pinned = {"teacher": REGISTRY.fingerprint("teacher", 1).hex()}
    with pytest.raises(EncodeError, match=r"version 1, which the stream pins, .* make it anew"):
        replace(TEACHER, outputs=(TAKEN[name],)).encode(pinned)
