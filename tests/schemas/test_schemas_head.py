"""The codec head, the layer that it needs, and the records that carry that."""

from __future__ import annotations

import json
import struct
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from schemas_examples import STREAM_ID, logits
from support.heads import bound, layer

from schemas import head as module
from schemas.codecs import CODECS, CodecSpec, Hidden, storable
from schemas.errors import ConfigError, DecodeError, EncodeError
from schemas.head import Assembly, Head, HeadChunk, chunks
from schemas.positions import Chosen, Positions
from schemas.records import Output, SoftTargets, TeacherOutput

SPEC = CodecSpec("head", 6)


def over_the_wire(hidden: Any, num_classes: int = 9, chosen: Chosen | None = None) -> Any:
    output = Output.of("logits", hidden, SPEC, num_classes=num_classes, chosen=chosen)
    ids = np.arange(len(hidden) if chosen is None else len(chosen))
    record = SoftTargets("id", 0, 0, ids, 0, None, "t", "00" * 32, (output,))
    decoded = SoftTargets.decode(record.encode(), "here").output("logits")
    assert (decoded.num_classes, decoded.row_shape) == (num_classes, (*hidden.shape[1:-1], num_classes))
    return decoded.values()


@pytest.mark.parametrize("leading", [(), (3,), (2, 3)], ids=str)
@pytest.mark.parametrize("scale", [1e-7, 1.0, 1e4])
def test_logits_that_are_rebuilt_are_off_by_no_more_than_the_stated_bound(
    leading: tuple[int, ...], scale: float
) -> None:
    hidden = (np.random.default_rng(0).standard_normal((5, *leading, 6)) * scale).astype(np.float32)
    of = layer(9, 6)
    rows = over_the_wire(hidden)
    assert isinstance(rows, Hidden)
    exact = hidden.astype(np.float64) @ of.weight.astype(np.float64).T + of.bias
    error = np.abs(of.logits(rows.hidden) - exact)
    assert (error <= bound(of, hidden)).all()
    assert error.max() > 0
    taken = rows.take(np.array([3, 0]))
    assert of.logits(taken.hidden).tobytes() == of.logits(rows.hidden)[[3, 0]].tobytes()


def test_a_row_of_384_numbers_takes_768_bytes_whatever_the_classes() -> None:
    assert CODECS["head"].bytes_per_row(CodecSpec("head", 384), (30_522,), 30_522) == 768
    assert CODECS["head"].bytes_per_row(CodecSpec("head", 384), (4, 30_522), 30_522) == 4 * 768


def test_positions_are_rows_of_their_own() -> None:
    rows = over_the_wire(logits(3, 6), chosen=Chosen(np.array([2, 0, 1]), np.array([7, 0, 9])))
    assert isinstance(rows, Positions)
    assert rows.take(np.array([2])).columns["hidden"].tobytes() == rows.columns["hidden"][2:].tobytes()


def test_hidden_rows_beyond_float16_or_of_another_width_are_refused() -> None:
    hidden = np.array([[1.0] * 6, [65_520.0] * 6, [np.nan] * 6], np.float32)
    assert storable(hidden, SPEC, 9).tolist() == [True, False, False]
    with pytest.raises(EncodeError, match=r"beyond what head:h=6 holds in row 1: use float32"):
        Output.of("logits", hidden[:2], SPEC, num_classes=9)
    with pytest.raises(EncodeError, match=r"float32 of shape \[M, ..., H\]"):
        Output.of("logits", logits(2, 5), SPEC, num_classes=9)


@pytest.mark.parametrize(
    "columns",
    [
        {"values": np.zeros((2, 6), "<f2")},
        {"hidden": np.zeros((2, 6), "<f4")},
        {"hidden": np.zeros((3, 6), "<f2")},
        {"hidden": np.zeros(2, "<f2")},
        {"hidden": np.full((2, 6), np.inf, "<f2")},
    ],
)
def test_columns_that_are_no_hidden_rows_are_refused(columns: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"hidden|columns"):
        CODECS["head"].check(columns, 9, 2)


def test_a_record_has_the_layer_of_the_codec_head_and_of_no_other() -> None:
    plain = TeacherOutput.of_classes("y", "logits", 9)
    assert replace(plain, codec=SPEC, head_sha256="00" * 32).problem() == ""
    assert "no last layer" in replace(plain, codec=SPEC).problem()
    assert "no last layer" in replace(plain, codec=CodecSpec("head")).problem()
    assert "a last layer" in replace(plain, codec=CodecSpec("float16"), head_sha256="00" * 32).problem()
    with pytest.raises(ConfigError, match="declared as probabilities"):
        replace(plain, kind="probabilities", codec=SPEC, head_sha256="00" * 32).problem()


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("bias", [True, False])
def test_a_layer_is_read_from_its_own_bytes_which_are_a_safetensors_file(dtype: str, bias: bool) -> None:
    safetensors = pytest.importorskip("safetensors.numpy")
    weight = logits(9, 6).astype(dtype)
    made = Head.of(weight, logits(1, 9)[0].astype(dtype) if bias else None)
    again = Head.decode(made.encode(), "here")
    assert again.sha256 == made.sha256
    assert again.weight.tobytes() == weight.tobytes()
    assert (again.num_classes, again.width) == (9, 6)
    theirs = safetensors.load(made.encode())
    assert set(theirs) == ({"weight", "bias"} if bias else {"weight"})
    assert theirs["weight"].tobytes() == weight.tobytes()
    assert theirs["weight"].dtype == np.dtype(dtype)


@given(st.data())
def test_bytes_of_a_layer_that_were_changed_are_refused_or_of_another_hash(data: st.DataObject) -> None:
    whole = layer(4, 3)
    raw = bytearray(whole.encode())
    for _ in range(data.draw(st.integers(1, 3))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    raw = raw[: data.draw(st.integers(0, len(raw)))] if data.draw(st.booleans()) else raw
    try:
        found = Head.decode(bytes(raw), "here")
    except DecodeError:
        return
    assert np.isfinite(found.weight).all()
    assert found.sha256 != whole.sha256 or bytes(raw) == whole.encode()


def test_what_is_no_layer_is_refused_with_its_address() -> None:
    header = json.dumps({"weight": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 8]}}).encode()
    for raw in (b"", b"\xff" * 20, struct.pack("<Q", len(header)) + header + b"\0" * 8):
        with pytest.raises(DecodeError, match="here: is no last layer"):
            Head.decode(raw, "here")
    with pytest.raises(EncodeError, match="NaN"):
        Head.of(np.full((2, 2), np.nan, np.float32), None)
    with pytest.raises(EncodeError, match="bias has shape"):
        Head.of(np.zeros((2, 2), np.float32), np.zeros(3, np.float32))


@pytest.fixture
def parts(monkeypatch: pytest.MonkeyPatch) -> list[HeadChunk]:
    monkeypatch.setattr(module, "CHUNK_BYTES", 64)
    found = list(chunks(STREAM_ID, "t", layer(9, 6).encode()))
    assert len(found) > 4
    return found


def assembled(*given: HeadChunk) -> Assembly:
    assembly = Assembly(STREAM_ID, "t")
    for chunk in given:
        assembly.take(HeadChunk.decode(chunk.encode(), "here"))
    return assembly


def test_a_layer_comes_whole_of_its_parts_whoever_wrote_before_or_between(parts: list[HeadChunk]) -> None:
    sha256 = parts[0].head_sha256
    whole = {sha256: layer(9, 6).encode()}
    damaged = replace(parts[2], data=bytes(len(parts[2].data)))
    both = [part for part in parts for _ in range(2)]
    foreign = [replace(part, stream_id="other") for part in parts]
    for given_ in (parts, parts[:3] + parts, [*parts[:2], damaged, *parts[3:], *parts], both, foreign + parts):
        assert assembled(*given_).found == whole
    assert assembled(*parts, damaged).seen == {}


def test_writings_that_were_cut_short_do_not_disturb_one_that_goes_on(parts: list[HeadChunk]) -> None:
    whole = {parts[0].head_sha256: layer(9, 6).encode()}
    others = [replace(part, count=len(parts) + 1, data=part.data * 2) for part in parts]  # of a program of other parts
    damaged = [replace(part, data=bytes(len(part.data))) for part in parts]
    for at in range(len(parts)):
        for between in (parts[:1], parts[:at], others[:1], others):
            assert assembled(*parts[:at], *between, *parts[at:]).found == whole
        assert assembled(*parts[:at], *damaged[at : at + 1], *parts).found == whole


def test_a_layer_that_lacks_a_part_or_is_damaged_is_not_found(parts: list[HeadChunk]) -> None:
    sha256, count = parts[0].head_sha256, len(parts)
    for given_, came in (
        ([], None),
        (parts[1:], 0),
        (parts[:-1], count - 1),
        (parts[:2] + parts[3:], 2),
        ([*parts[:2], replace(parts[2], data=bytes(len(parts[2].data))), *parts[3:]], count),
    ):
        assembly = assembled(*given_)
        assert assembly.found == {}
        assert assembly.seen.get(sha256) == (None if came is None else (came, count))
