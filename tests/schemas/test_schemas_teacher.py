"""Two versions of the teacher's record, what of the second is not built yet, and what outputs it takes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from schemas_examples import examples, plain

from schemas.avro import REGISTRY
from schemas.codecs import CodecSpec
from schemas.errors import ConfigError, DecodeError, EncodeError
from schemas.teacher import Teacher, TeacherInput
from schemas.teacher_output import TeacherOutput

FIRST = {"teacher": REGISTRY.fingerprint("teacher", 1).hex()}
TEACHER: Teacher = examples()["teacher"]
(OUTPUT,) = TEACHER.outputs
HIDDEN = TeacherOutput("hidden", "h", "features", (4, 8), None, 0, CodecSpec("float16"))

AHEAD: dict[str, tuple[dict[str, Any], str]] = {
    "a generation": ({"generation": 3}, "it has generation 3"),
    "a reduction": ({"outputs": (replace(OUTPUT, reduction="mean"),)}, "has reduction 'mean'"),
    "of the second output": (
        {"outputs": (OUTPUT, replace(HIDDEN, reduction="sum@1"))},
        "'hidden' has reduction 'sum@1'",
    ),
}


@pytest.mark.parametrize("name", AHEAD)
def test_what_is_not_built_yet_is_refused_by_name_whichever_way_it_goes(name: str) -> None:
    changes, says = AHEAD[name]
    with pytest.raises(EncodeError, match=f"^teacher 'vit': .*{says}"):
        replace(TEACHER, **changes).encode()
    datum = REGISTRY.decode("teacher", TEACHER.encode(), "")
    if "generation" in changes:
        datum |= changes
    else:
        outputs = [{field: getattr(one, field) for field in TeacherOutput.__slots__} for one in changes["outputs"]]
        for one in outputs:
            one["codec"] = one["codec"] and {"name": "float16", "k": 0, "temperatures": [1.0]}
            one["head_sha256"] = one["head_sha256"] and bytes.fromhex(one["head_sha256"])
        datum["outputs"] = outputs
    newer = REGISTRY.encode("teacher", datum)
    with pytest.raises(DecodeError, match=rf"^s.manifest/0@7: teacher 'vit' was added by a newer Distillog: .*{says}"):
        Teacher.decode(newer, "s.manifest/0@7")


def test_a_codec_that_is_not_built_yet_is_refused_by_name() -> None:
    datum = REGISTRY.decode("teacher", TEACHER.encode(), "")
    datum["outputs"][0]["codec"] = {"name": "brotli", "k": 0, "temperatures": [1.0]}
    with pytest.raises(DecodeError, match=r"by a newer Distillog: its output 'logits' has codec 'brotli'"):
        Teacher.decode(REGISTRY.encode("teacher", datum), "here")


TAKEN: dict[str, tuple[TeacherOutput, ...]] = {
    "classes beside features": (OUTPUT, HIDDEN),
    "features alone": (HIDDEN,),
    "classes of a name and codec of their own": (replace(OUTPUT, name="scores", codec=CodecSpec("topk", 3)),),
    "anchors": (replace(OUTPUT, shape=(4, 10), class_axis=1),),
    "a map whose classes come first": (replace(OUTPUT, shape=(10, 6, 6), class_axis=0),),
    "positions of classes": (replace(OUTPUT, shape=(6, 10), class_axis=1, per="position", positions="masked"),),
    "positions of features": (replace(HIDDEN, per="position", positions="masked"),),
    "one number": (replace(HIDDEN, kind="values", shape=()),),
}


@pytest.mark.parametrize("name", TAKEN)
def test_a_teacher_has_outputs_of_several_shapes(name: str) -> None:
    teacher = replace(TEACHER, outputs=TAKEN[name])
    assert Teacher.decode(teacher.encode(), "").outputs == TAKEN[name]


def test_classes_are_stored_as_the_last_axis() -> None:
    shapes = {"classes beside features": (10,), "anchors": (4, 10), "a map whose classes come first": (6, 6, 10)}
    assert {name: TAKEN[name][0].stored_shape for name in shapes} == shapes
    assert HIDDEN.stored_shape == (4, 8)


def test_the_class_output_is_the_first_that_gives_a_sample_one_row_of_classes() -> None:
    anchors = replace(OUTPUT, name="anchors", shape=(4, 10), class_axis=1)
    assert replace(TEACHER, outputs=(HIDDEN, anchors, OUTPUT)).class_output is OUTPUT
    assert replace(TEACHER, outputs=(HIDDEN, anchors)).class_output is None
    of_positions = replace(anchors, per="position", positions="masked")
    assert replace(TEACHER, outputs=(of_positions,)).class_output is None


WRONG: dict[str, tuple[tuple[TeacherOutput, ...], str]] = {
    "no output": ((), "it needs inputs, outputs"),
    "one name twice": ((OUTPUT, replace(HIDDEN, name="logits")), "two outputs 'logits'"),
    "a name with a dot": ((replace(HIDDEN, name="a.b"),), "output name 'a.b'"),
    "features of classes": ((replace(HIDDEN, class_axis=1, num_classes=8),), "which are of no classes"),
    "features as the stream says": ((replace(HIDDEN, codec=None),), "names no codec"),
    "features by topk": ((replace(HIDDEN, codec=CodecSpec("topk", 2)),), "keeps classes, and this output has none"),
    "classes without an axis": ((replace(OUTPUT, class_axis=None),), "None is no axis of 10 classes"),
    "classes of another axis": ((replace(OUTPUT, shape=(4, 10), class_axis=0),), "0 is no axis of 10 classes"),
    "a row of nothing": ((replace(HIDDEN, shape=(4, 0)),), r"rows of shape \(4, 0\)"),
    "positions that nothing chooses": ((replace(HIDDEN, per="position"),), "is of all positions"),
    "a field that chooses nothing": ((replace(HIDDEN, positions="m"),), "is per sample, and field 'm' chooses"),
    "positions of one row": ((replace(OUTPUT, per="position", positions="m"),), "which are no positions of something"),
    "more kept classes than there are": ((replace(OUTPUT, codec=CodecSpec("topk", 11)),), "use k <= 10"),
}


@pytest.mark.parametrize("name", WRONG)
def test_an_output_that_does_not_fit_together_is_not_encoded(name: str) -> None:
    outputs, says = WRONG[name]
    with pytest.raises((EncodeError, ConfigError), match=says):
        replace(TEACHER, outputs=outputs).encode()


def test_a_stream_of_the_first_version_takes_one_output_of_classes_alone() -> None:
    for outputs in ((OUTPUT, HIDDEN), (HIDDEN,), (replace(OUTPUT, name="scores"),)):
        with pytest.raises(EncodeError, match=r"version 1, which the stream pins, .* make it anew"):
            replace(TEACHER, outputs=outputs).encode(FIRST)


def test_the_first_version_holds_what_it_has_fields_for() -> None:
    raw = TEACHER.encode(FIRST)
    assert raw[2:10] == REGISTRY.fingerprint("teacher", 1)
    assert plain(Teacher.decode(raw, "")) == plain(TEACHER)


@pytest.mark.parametrize("changes", [{"mean": (0.5,)}, {"std": (0.25,)}, {"channel_order": "bgr"}], ids=str)
def test_the_first_version_loses_nothing_without_a_word(changes: dict[str, Any]) -> None:
    inputs = tuple(replace(one, **changes) for one in TEACHER.inputs)
    (field,) = changes
    refusal = rf"version 1, which the stream pins, cannot hold all of it: it has no room for {field}; .* make it anew"
    with pytest.raises(EncodeError, match=refusal):
        replace(TEACHER, inputs=inputs).encode(FIRST)


@pytest.mark.parametrize(
    ("scaling", "text"),
    [
        ((1.0,), "*1"),
        ((1 / 255,), "*1/255"),
        ((255.0,), "*255"),
        ((0.3,), "*0.3"),
        ((1 / 255, (0.485, 0.456), (0.229, 0.224)), "*1/255-0.485,0.456/0.229,0.224"),
        ((1.0, (), (0.5,)), "*1-0/0.5"),
        ((1 / 3 + 1e-12,), f"*{1 / 3 + 1e-12!r}"),
    ],
)
def test_an_inputs_arithmetic_reads_as_a_user_writes_it(scaling: Any, text: str) -> None:
    scale, *rest = scaling
    assert TeacherInput("x", "image", "float32", "nchw", scale, (), *rest).formula == text
