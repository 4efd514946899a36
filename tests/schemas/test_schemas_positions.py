"""Soft targets of which a sample has a row for each of its positions."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from schemas_examples import seeds

from schemas.codecs import CodecSpec
from schemas.columns import pack_ids
from schemas.errors import DecodeError, EncodeError
from schemas.positions import Chosen, positions_of
from schemas.records import Output, SoftTargets, TeacherOutput

_COUNTS = np.array([2, 0, 3], np.int64)
_CHOSEN = Chosen(_COUNTS, _COUNTS * 3)
_CODECS = (
    "float32",
    "float16",
    "int8",
    "int4",
    "topk:k=4,temperatures=1|2",
    "topk:k=4,bits=8,temperatures=1|2",
    "sampled:n=5",
)


def _targets(codec: str = "float32", counts: np.ndarray = _COUNTS) -> SoftTargets:
    values = np.random.default_rng(0).normal(size=(int(counts.sum()), 7)).astype(np.float32)
    spec = CodecSpec.parse(codec)
    output = Output.of("logits", values, spec, chosen=Chosen(counts, counts * 3), seeds=seeds(spec, len(values)))
    ids = np.arange(len(counts), dtype=np.int64)
    return SoftTargets("s", 3, 0, ids, 5, None, "t", "ab" * 32, (output,))


@pytest.mark.parametrize("codec", _CODECS)
def test_positions_come_back_as_they_were_stored(codec: str) -> None:
    targets = _targets(codec)
    read = SoftTargets.decode(targets.encode(), "t/0@1")
    assert read.outputs[0].chosen.counts.tolist() == [2, 0, 3]
    assert read.outputs[0].chosen.marks.tolist() == [6, 0, 9]
    assert read.outputs[0].row_shape == (7,)
    rows, before = read.outputs[0].values(), targets.outputs[0].values()
    assert rows.chosen.counts.tolist() == [2, 0, 3]
    for name, column in before.columns.items():
        assert np.array_equal(rows.columns[name], column)
    assert read.encode() == targets.encode()


@pytest.mark.parametrize("codec", _CODECS)
def test_an_order_without_any_position_is_one(codec: str) -> None:
    read = SoftTargets.decode(_targets(codec, np.zeros(3, np.int64)).encode(), "t/0@1").outputs[0].values()
    assert all(not len(column) for column in read.columns.values())


@given(hnp.arrays(np.int64, st.integers(1, 8), elements=st.integers(0, 4)), st.data())
def test_taken_samples_keep_their_positions(counts: np.ndarray, data: st.DataObject) -> None:
    rows = np.array(data.draw(st.lists(st.integers(0, len(counts) - 1), max_size=6)), np.int64)
    of_each = np.split(np.arange(counts.sum()), np.cumsum(counts)[:-1])
    expected = [place for row in rows for place in of_each[row].tolist()]
    assert positions_of(counts, rows).tolist() == expected


def test_taken_samples_have_the_columns_of_their_positions() -> None:
    rows = _targets("topk:k=4,temperatures=1|2").outputs[0].values()
    taken = rows.take(np.array([2, 1]))
    assert (taken.chosen.counts.tolist(), taken.chosen.marks.tolist()) == ([3, 0], [9, 0])
    for name, column in rows.columns.items():
        assert np.array_equal(taken.columns[name], column[2:])


@pytest.mark.parametrize("codec", _CODECS)
def test_parts_that_are_encoded_one_by_one_are_joined_to_the_same_bytes(codec: str) -> None:
    values = np.random.default_rng(0).normal(size=(5, 7)).astype(np.float32)
    spec = CodecSpec.parse(codec)
    own = seeds(spec, 5)

    def part(low: int, high: int, sample: int) -> Output:
        chosen, of_rows = _CHOSEN.take(slice(sample, sample + 1)), own[low:high] if spec.draws else None
        return Output.of("logits", values[low:high], spec, chosen=chosen, seeds=of_rows)

    parts = [part(0, 2, 0), part(2, 2, 1), part(2, 5, 2)]
    whole = _targets(codec)
    assert replace(whole, outputs=(Output.joined(parts),)).encode() == whole.encode()


@pytest.mark.parametrize(
    ("counts", "why"),
    [
        ([2, 0], "tells positions of 2 rows, not of 3"),
        ([2, 0, 4], r"values are float32 of shape \(5, 7\), not float32 of \(6, ..., 7\)"),
        ([2**62, 2**62, 2**62], r"values are float32 of shape \(5, 7\), not float32 of"),
    ],
)
def test_counts_that_do_not_fit_are_refused(counts: list[int], why: str) -> None:
    targets = _targets()
    wrong = replace(
        targets,
        outputs=(
            replace(targets.outputs[0], chosen=Chosen(np.array(counts, np.int64), np.zeros(len(counts), np.int64))),
        ),
    )
    with pytest.raises(EncodeError, match=f"output 'logits' {why}"):
        wrong.encode()


def test_counts_that_come_twice_are_refused() -> None:
    class Twice(Output):
        def datum(self) -> dict[str, object]:
            datum = super().datum()
            return datum | {"columns": [*datum["columns"], pack_ids("counts", _COUNTS)]}

    one = _targets().outputs[0]
    twice = Twice(one.name, one.codec, one.num_classes, one.columns, one.chosen)
    raw = replace(_targets(), outputs=(twice,)).encode()
    with pytest.raises(DecodeError, match="not both of positions, each once"):
        SoftTargets.decode(raw, "t/0@1")


def test_a_teachers_record_says_what_its_positions_are() -> None:
    output = TeacherOutput("logits", "scores", "logits", (16, 50), 1, 50, per="position", positions="masked")
    assert (output.stored_shape, output.places, output.problem()) == ((50,), (16,), "")
    hidden = TeacherOutput(
        "hidden", "last", "features", (4, 4, 8), None, 0, CodecSpec("float16"), per="position", positions="masked"
    )
    assert (hidden.stored_shape, hidden.places, hidden.problem()) == ((8,), (4, 4), "")
    segments = TeacherOutput("logits", "seg", "logits", (9, 4, 5), 0, 9, per="position", positions="inside")
    assert (segments.stored_shape, segments.places) == ((9,), (4, 5))


@pytest.mark.parametrize(
    ("output", "why"),
    [
        (TeacherOutput("logits", "o", "logits", (16, 50), 1, 50, per="position"), "field '' chooses positions"),
        (TeacherOutput("logits", "o", "logits", (16, 50), 1, 50, positions="m"), "per sample, and field 'm'"),
        (TeacherOutput("logits", "o", "logits", (50,), 0, 50, per="position", positions="m"), "no positions of"),
    ],
)
def test_a_record_of_positions_that_makes_no_sense_is_refused(output: TeacherOutput, why: str) -> None:
    assert why in output.problem()
