from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from schemas_examples import RECORDS, SHA256, STRATEGIES, examples, ids, logits, plain, soft_targets

from schemas.avro import REGISTRY
from schemas.codecs import CodecSpec
from schemas.errors import ConfigError, DecodeError, DistillogError, EncodeError
from schemas.records import Output, SoftTargets, TeacherOutput

EXAMPLES = examples()
ADDRESS = "digits.soft-targets.vit/3@12"


def decode_or_none(record_type: Any, raw: bytes) -> Any:
    """The record, or None where the bytes are refused as they should be."""
    try:
        return record_type.decode(raw, ADDRESS)
    except DecodeError as error:
        refusal = error
    assert refusal.address == ADDRESS
    assert str(refusal).startswith(ADDRESS + ": ")
    assert "\n" not in str(refusal)
    assert refusal.raw == raw
    return None


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_comes_back_as_it_was(name: str) -> None:
    record = EXAMPLES[name]
    assert plain(type(record).decode(record.encode(), ADDRESS)) == plain(record)


@pytest.mark.parametrize("name", STRATEGIES)
def test_any_record_comes_back_as_it_was_and_as_the_same_bytes(name: str) -> None:
    @settings(max_examples=60, deadline=None)
    @given(STRATEGIES[name])
    def check(record: Any) -> None:
        raw = record.encode()
        again = type(record).decode(raw, ADDRESS)
        assert again.encode() == raw
        if isinstance(record, SoftTargets) and record.num_kept == len(record.sample_ids):
            assert again.kept_rows is None  # all rows have one form
            record = replace(record, kept_rows=None)
        assert plain(again) == plain(record)

    check()


@pytest.mark.parametrize("name", EXAMPLES)
def test_every_cut_record_is_refused(name: str) -> None:
    raw = EXAMPLES[name].encode()
    for length in range(len(raw)):
        assert decode_or_none(type(EXAMPLES[name]), raw[:length]) is None


@pytest.mark.parametrize("name", EXAMPLES)
def test_bytes_behind_a_record_are_refused(name: str) -> None:
    assert decode_or_none(type(EXAMPLES[name]), EXAMPLES[name].encode() + b"\x00") is None


@pytest.mark.parametrize("name", EXAMPLES)
def test_each_flipped_bit_gives_a_usable_record_or_a_decode_error(name: str) -> None:
    record = EXAMPLES[name]
    raw = record.encode()
    for position in range(len(raw) * 8):
        flipped = bytearray(raw)
        flipped[position // 8] ^= 1 << position % 8
        assert_usable(decode_or_none(type(record), bytes(flipped)))


@pytest.mark.parametrize("name", EXAMPLES)
def test_overwritten_bytes_give_a_usable_record_or_a_decode_error(name: str) -> None:
    record = EXAMPLES[name]
    raw = record.encode()

    @settings(max_examples=400, deadline=None)
    @given(st.integers(10, len(raw) - 1), st.binary(min_size=1, max_size=12) | st.just(b"\xff" * 9 + b"\x7f"))
    def check(position: int, junk: bytes) -> None:
        assert_usable(decode_or_none(type(record), raw[:position] + junk + raw[position + len(junk) :]))
        assert_usable(decode_or_none(type(record), raw[:position] + junk))

    check()


@pytest.mark.parametrize("record_type", RECORDS)
def test_random_bytes_behind_a_true_header_raise_nothing_but_decode_errors(record_type: Any) -> None:
    header = next(one for one in EXAMPLES.values() if isinstance(one, record_type)).encode()[:10]

    @settings(max_examples=300, deadline=None)
    @given(st.binary(max_size=200))
    def check(body: bytes) -> None:
        assert_usable(decode_or_none(record_type, header + body))
        assert decode_or_none(record_type, body) is None

    check()


def assert_usable(record: Any) -> None:
    """What was accepted can be used without a crash."""
    if isinstance(record, SoftTargets):
        assert len(record.kept_sample_ids) == record.num_kept
        for output in record.outputs:
            values = output.values()
            assert all(len(column) == record.num_kept for column in values.columns.values())
            assert len(output.row_shape) >= bool(output.num_classes)


@pytest.mark.parametrize("record_type", RECORDS)
@pytest.mark.parametrize("name", EXAMPLES)
def test_a_record_of_another_type_is_refused_by_its_name(record_type: Any, name: str) -> None:
    if isinstance(EXAMPLES[name], record_type):
        return
    with pytest.raises(DecodeError, match=rf": a {name.split()[0]}, not a "):
        record_type.decode(EXAMPLES[name].encode(), ADDRESS)


@pytest.mark.parametrize("record_type", RECORDS)
@pytest.mark.parametrize("raw", [None, b""])
def test_an_empty_value_is_refused(record_type: Any, raw: Any) -> None:
    with pytest.raises(DecodeError, match="an empty value"):
        record_type.decode(raw, ADDRESS)


def test_sample_ids_travel_in_the_narrowest_width_and_return_as_int64() -> None:
    sizes = {}
    for largest in (255, 256, 65_535, 65_536, 2**32 - 1, 2**32, 2**63 - 1):
        order = replace(EXAMPLES["work_order"], sample_ids=ids(0, largest))
        raw = order.encode()
        sizes[largest] = len(raw)
        again = type(order).decode(raw, ADDRESS).sample_ids
        assert again.dtype == np.int64
        assert again.tolist() == [0, largest]
    one = sizes[255]
    assert sizes == {
        255: one,
        256: one + 2,
        65_535: one + 2,
        65_536: one + 6,
        2**32 - 1: one + 6,
        2**32: one + 14,
        2**63 - 1: one + 14,
    }


def test_numbers_out_of_an_array_are_as_good_as_plain_ones() -> None:
    letter = EXAMPLES["dead_letter"]
    numbers = {
        name: np.int64(getattr(letter, name)) for name in ("partition", "offset", "sequence", "row", "sample_id")
    }
    assert replace(letter, **numbers).encode() == letter.encode()


def test_equal_records_are_equal_bytes_whatever_their_memory_order() -> None:
    values = logits(3, 4)
    by_rows, by_columns = soft_targets(values=values), soft_targets(values=np.asfortranarray(values))
    assert by_rows.encode() == by_columns.encode()
    all_rows = replace(by_rows, kept_rows=ids(0, 1, 2))
    assert all_rows.encode() == by_rows.encode()
    manifest = EXAMPLES["manifest"]
    turned = replace(
        manifest,
        view=replace(manifest.view, params=dict(reversed(manifest.view.params.items()))),
        schema_fingerprints=dict(reversed(manifest.schema_fingerprints.items())),
    )
    assert turned.encode() == manifest.encode()
    topk = soft_targets("topk:k=2,temperatures=1|2")
    columns = dict(reversed(topk.outputs[0].columns.items()))
    assert replace(topk, outputs=(replace(topk.outputs[0], columns=columns),)).encode() == topk.encode()


def test_all_rows_may_have_failed() -> None:
    record = soft_targets("topk:k=2", kept_rows=ids())
    again = SoftTargets.decode(record.encode(), ADDRESS)
    assert again.num_kept == 0
    assert again.kept_sample_ids.tolist() == []
    assert again.output("logits").values().log_probs_at(1.0).shape == (0, 2)


def test_kept_sample_ids_are_those_of_the_kept_rows() -> None:
    assert soft_targets(kept_rows=ids(0, 2)).kept_sample_ids.tolist() == [5, 0]
    assert soft_targets().kept_sample_ids.tolist() == [5, 300, 0]


def test_a_missing_output_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match="no output 'logit': did you mean 'logits'"):
        soft_targets().output("logit")


def test_decoded_values_are_views_of_the_record() -> None:
    decoded = SoftTargets.decode(soft_targets().encode(), ADDRESS).output("logits").values().logits
    assert not decoded.flags.writeable
    assert decoded.base is not None


BROKEN = {
    "sequence": replace(soft_targets(), sequence=-1),
    "epoch": replace(soft_targets(), epoch=-1),
    "view seed": replace(soft_targets(), view_seed=-1),
    "view seed over 63 bits": replace(soft_targets(), view_seed=2**63),
    "negative sample ID": replace(soft_targets(), sample_ids=ids(1, -2, 3)),
    "sample IDs of another dtype": replace(soft_targets(), sample_ids=np.arange(3, dtype=np.int32)),
    "kept rows beyond N": replace(soft_targets(kept_rows=ids(0, 2)), kept_rows=ids(0, 3)),
    "kept rows below 0": replace(soft_targets(kept_rows=ids(0, 2)), kept_rows=ids(-1, 2)),
    "kept rows twice": replace(soft_targets(kept_rows=ids(0, 2)), kept_rows=ids(2, 2)),
    "more kept rows than outputs": replace(soft_targets(kept_rows=ids(0, 2)), kept_rows=None),
    "hash": replace(soft_targets(), teacher_sha256="A5" * 32),
    "short hash": replace(soft_targets(), teacher_sha256="a5" * 31),
    "two outputs of one name": replace(soft_targets(), outputs=soft_targets().outputs * 2),
    "unknown codec": replace(soft_targets(), outputs=(Output("logits", "int3", 4, {}),)),
    "missing column": replace(soft_targets(), outputs=(Output("logits", "float32", 4, {}),)),
    "lone surrogate": replace(soft_targets(), stream_id="\ud800"),
    "letter row": replace(EXAMPLES["dead_letter"], row=-1),
    "teacher kind": replace(EXAMPLES["teacher"], outputs=(TeacherOutput.of_classes("y", "scores", 10),)),
    "teacher path": replace(EXAMPLES["teacher"], model_file="../model.onnx"),
    "teacher name": replace(EXAMPLES["teacher"], name="vit.large"),
    "teacher without inputs": replace(EXAMPLES["teacher"], inputs=()),
    "layout": replace(EXAMPLES["teacher"], inputs=(replace(EXAMPLES["teacher"].inputs[0], layout="chw"),)),
    "channel order": replace(
        EXAMPLES["teacher"], inputs=(replace(EXAMPLES["teacher"].inputs[0], channel_order="gbr"),)
    ),
    "mean": replace(EXAMPLES["teacher"], inputs=(replace(EXAMPLES["teacher"].inputs[0], mean=(float("nan"),)),)),
    "std": replace(EXAMPLES["teacher"], inputs=(replace(EXAMPLES["teacher"].inputs[0], std=(0.0,)),)),
    "stream name": replace(EXAMPLES["manifest"], stream="a.b"),
    "class names": replace(EXAMPLES["manifest"], class_names=("one",)),
    "no samples": replace(EXAMPLES["manifest"], num_samples=0),
    "list parameter": replace(EXAMPLES["manifest"], view=replace(EXAMPLES["manifest"].view, params={"a": [1]})),
    "nan parameter": replace(EXAMPLES["manifest"], view=replace(EXAMPLES["manifest"].view, params={"a": float("nan")})),
    "probe": replace(
        EXAMPLES["manifest"], view_probe=replace(EXAMPLES["manifest"].view_probe, view_seeds=ids(1, 2, 3))
    ),
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_wrong_value_is_not_encoded(what: str) -> None:
    with pytest.raises((EncodeError, ConfigError)):
        BROKEN[what].encode()


@pytest.mark.parametrize(
    "change",
    [
        {"sequence": -1},
        {"view_seed": -1},
        {"kept_rows": {"name": "k", "dtype": "uint8", "shape": [1], "data": b"\x03", "row_splits": None}},
        {"kept_rows": {"name": "k", "dtype": "float32", "shape": [0], "data": b"", "row_splits": None}},
        {"sample_ids": {"name": "k", "dtype": "int64", "shape": [1], "data": b"\xff" * 8, "row_splits": None}},
        {"sample_ids": {"name": "k", "dtype": "uint8", "shape": [3], "data": b"123", "row_splits": b""}},
        {"sample_ids": {"name": "k", "dtype": "uint8", "shape": [3, 1], "data": b"123", "row_splits": None}},
        {"outputs": [{"name": "a", "codec": "int3", "num_classes": 4, "columns": []}]},
    ],
    ids=str,
)
def test_what_only_a_foreign_writer_writes_is_refused(change: dict[str, Any]) -> None:
    datum = REGISTRY.decode("soft_targets", soft_targets().encode(), ADDRESS)
    assert decode_or_none(SoftTargets, REGISTRY.encode("soft_targets", datum | change)) is None


def test_nesting_in_the_parameters_of_a_view_is_refused_and_does_not_overflow_the_stack() -> None:
    manifest = EXAMPLES["manifest"]
    for text in ("[" * 100_000, "[]", '{"a":NaN}', '{"a":1e999}', '{"a":null}', '{"a":' + "9" * 5000 + "}"):
        datum = REGISTRY.decode("manifest", manifest.encode(), ADDRESS)
        datum["view"]["params"] = text
        assert decode_or_none(type(manifest), REGISTRY.encode("manifest", datum)) is None


@pytest.mark.parametrize("codec", ["float32", "float16", "topk:k=3"])
def test_an_order_of_256_has_little_overhead(codec: str) -> None:
    spec = CodecSpec.parse(codec)
    output = Output.of("logits", logits(256, 10), spec)
    record = SoftTargets("a" * 32, 9, 0, np.arange(256), 5, None, "vit", SHA256, (output,))
    columns = sum(column.nbytes for column in output.columns.values())
    assert len(record.encode()) < columns + 256 + 250


def test_every_error_of_ours_has_one_base() -> None:
    assert issubclass(DecodeError, DistillogError)
