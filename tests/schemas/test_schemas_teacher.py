"""Two versions of the teacher's record, and what of the second is not built yet."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from schemas_examples import SHA256, examples, plain

from schemas.avro import REGISTRY
from schemas.codecs import CodecSpec
from schemas.errors import DecodeError, EncodeError
from schemas.teacher import Teacher, TeacherInput, TeacherOutput

FIRST = {"teacher": REGISTRY.fingerprint("teacher", 1).hex()}
TEACHER: Teacher = examples()["teacher"]
OUTPUT = TEACHER.output

AHEAD: dict[str, tuple[dict[str, Any], str]] = {
    "two outputs": ({"outputs": (OUTPUT, replace(OUTPUT, name="hidden"))}, "it has 2 outputs"),
    "a generation": ({"generation": 3}, "it has generation 3"),
    "features": ({"outputs": (replace(OUTPUT, kind="features"),)}, "output 'logits' holds features"),
    "multilabel": ({"outputs": (replace(OUTPUT, kind="multilabel"),)}, "holds multilabel"),
    "another name": ({"outputs": (replace(OUTPUT, name="scores"),)}, "output 'scores' has name 'scores'"),
    "anchors": ({"outputs": (replace(OUTPUT, shape=(4, 10), class_axis=1),)}, "has class_axis 1"),
    "another shape": ({"outputs": (replace(OUTPUT, shape=(10, 10)),)}, r"has shape \[10, 10\]"),
    "positions": ({"outputs": (replace(OUTPUT, per="position"),)}, "has per 'position'"),
    "chosen positions": ({"outputs": (replace(OUTPUT, positions="mask"),)}, "has positions 'mask'"),
    "a class map": ({"outputs": (replace(OUTPUT, class_map=(3, 1)),)}, r"has class_map \[3, 1\]"),
    "a reduction": ({"outputs": (replace(OUTPUT, reduction="mean"),)}, "has reduction 'mean'"),
    "a cut in the graph": ({"outputs": (replace(OUTPUT, cut="graph"),)}, "has cut 'graph'"),
    "a head": ({"outputs": (replace(OUTPUT, head_sha256=SHA256),)}, "has head_sha256"),
    "a codec": ({"outputs": (replace(OUTPUT, codec=CodecSpec("float16")),)}, "has codec"),
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
            one["codec"] = one["codec"] and {"name": "brotli", "k": 0, "temperatures": [1.0]}
            one["head_sha256"] = one["head_sha256"] and bytes.fromhex(one["head_sha256"])
        datum["outputs"] = outputs
    newer = REGISTRY.encode("teacher", datum)
    with pytest.raises(DecodeError, match=rf"^s.manifest/0@7: teacher 'vit' was added by a newer Distillog: .*{says}"):
        Teacher.decode(newer, "s.manifest/0@7")


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
