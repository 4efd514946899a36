"""The codec topk8, `topk:k=10,bits=8`: class IDs in as few bits as they need, log-probabilities in 8."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from schemas_examples import SHA256, logits

from schemas.bits import bits_of, bytes_of, has_spare_bits, pack_bits, unpack_bits
from schemas.codecs import CODECS, CodecSpec, TopK
from schemas.records import Output, SoftTargets

CODEC = CODECS["topk8"]
EDGES = (2, 3, 255, 256, 257, 2_049, 32_768, 65_536, 65_537, 131_073, 151_936)


def encoded(values: Any, text: str, num_ids: int = 2**17) -> bytes:
    """A record as a teacher writes it, of samples of a dataset of some 2^17."""
    output = Output.of("logits", values, CodecSpec.parse(text))
    ids = np.arange(num_ids - len(values), num_ids)
    return SoftTargets("a" * 16, 9, 0, ids, 2**62, None, "resnet50", SHA256, (output,)).encode()


def over_the_wire(values: Any, text: str) -> TopK:
    decoded = SoftTargets.decode(encoded(values, text), "here").output("logits").values()
    assert isinstance(decoded, TopK)
    return decoded


@settings(deadline=None)
@given(st.data())
def test_numbers_of_any_width_come_back_from_their_bits(data: st.DataObject) -> None:
    most = data.draw(st.integers(0, 2**32 - 1))
    shape = data.draw(st.tuples(st.integers(0, 4), st.integers(1, 20)))
    numbers = data.draw(hnp.arrays(np.int64, shape, elements=st.integers(0, most)))
    width = bits_of(most)
    packed = pack_bits(numbers, width)
    assert packed.shape == (shape[0], bytes_of(shape[1], width))
    assert not has_spare_bits(packed, shape[1], width)
    assert unpack_bits(packed, shape[1], width).tolist() == numbers.tolist()
    as_one = [sum(number << place * width for place, number in enumerate(row)) for row in numbers.tolist()]
    assert [int.from_bytes(row.tobytes(), "little") for row in packed] == as_one


def test_more_than_32_bits_are_refused() -> None:
    with pytest.raises(ValueError, match="32 bits"):
        bits_of(2**32)


@pytest.mark.parametrize("num_classes", EDGES)
def test_class_ids_at_the_edges_of_the_widths_come_back(num_classes: int) -> None:
    values = np.zeros((3, num_classes), np.float32)
    values[0, -1], values[0, -2] = 9, 8
    values[1, num_classes // 2], values[1, 0] = 9, 8
    values[2, 0], values[2, -1] = 9, 8
    decoded = over_the_wire(values, "topk:k=2,bits=8")
    assert decoded.indices.dtype == np.int64
    expected = [[num_classes - 1, num_classes - 2], [num_classes // 2, 0], [0, num_classes - 1]]
    assert decoded.indices.tolist() == expected
    size = sum(column.nbytes for column in Output.of("y", values, CodecSpec.parse("topk:k=2,bits=8")).columns.values())
    assert size == 3 * CODEC.bytes_per_row(CodecSpec.parse("topk:k=2,bits=8"), (num_classes,), num_classes)


@pytest.mark.parametrize(("num_classes", "k", "most"), [(1_000, 10, 35), (151_936, 128, 430)])
def test_an_order_of_256_takes_so_many_bytes_a_sample_with_all_that_is_around_it(
    num_classes: int, k: int, most: int
) -> None:
    values = logits(256, num_classes)
    one = len(encoded(values, f"topk:k={k},bits=8"))
    assert one / 256 <= most
    more = len(encoded(values, f"topk:k={k},bits=8,temperatures=1|2|4"))
    assert (more - one) / 256 <= 2 * 4 + 0.5


@pytest.mark.parametrize("num_classes", [3, 97, 1_000, 65_537])
@pytest.mark.parametrize("spread", [0.0, 0.01, 4.0, 40.0, 3_000.0])
def test_log_probabilities_are_known_to_half_a_step_and_tails_exactly(num_classes: int, spread: float) -> None:
    values = (logits(5, num_classes, seed=num_classes) * np.float32(spread / 4)).astype(np.float32)
    k, temperatures = min(10, num_classes - 1), (1.0, 2.0, 4.0)
    text = f"topk:k={k},temperatures=1|2|4"
    plain = Output.of("y", values, CodecSpec.parse(text)).values()
    decoded = over_the_wire(values, text.replace(",temp", ",bits=8,temp"))
    assert isinstance(plain, TopK)
    assert decoded.indices.tolist() == plain.indices.tolist()
    for temperature in temperatures:
        assert decoded.log_tails[temperature].tobytes() == plain.log_tails[temperature].tobytes()
    kept = np.take_along_axis(values.astype(np.float64), plain.indices, axis=1)
    distance = np.minimum(kept[:, :1] - kept, 24 * 4)
    half = distance[:, -1:] * (1 + 2.0**-10) / 510 + 1e-6 * distance + 6e-8
    found = decoded.log_probs.astype(np.float64)
    assert (np.abs(found[:, :1] - found - distance) <= half + 1e-4 * (spread > 100)).all()
    mass = np.exp(decoded.log_probs_at(2.0).astype(np.float64)).sum(axis=1)
    np.testing.assert_allclose(mass + np.exp(plain.log_tails[2.0].astype(np.float64)), 1, atol=1e-5)
    whole = np.exp(found).sum(axis=1) + np.exp(plain.log_tails[1.0].astype(np.float64))
    np.testing.assert_allclose(whole, 1, atol=1e-5)


def test_the_divergence_from_the_classes_before_is_small() -> None:
    """The figure of docs/wire-format.md: what 8 bits cost of 1,000 normal logits with a deviation of 4."""
    values = logits(500, 1_000)
    plain, few = (over_the_wire(values, f"topk:k=10{bits},temperatures=1|4") for bits in ("", ",bits=8"))
    for temperature, most in ((1.0, 1e-5), (4.0, 2e-7)):
        exact, found = (each.log_probs_at(temperature).astype(np.float64) for each in (plain, few))
        assert abs((np.exp(exact) * (exact - found)).sum(axis=1).mean()) < most


def test_classes_masked_far_below_leave_the_others_their_steps() -> None:
    decoded = over_the_wire(np.array([[3.0, 2.0, 1.0, -1e9, -1e9]], np.float32), "topk:k=4,bits=8")
    np.testing.assert_allclose(decoded.log_probs[0, :3] - decoded.log_probs[0, 0], [0, -1, -2], atol=24 / 510)
    assert np.exp(decoded.log_probs[0, 3]) < 1e-10


def test_without_a_tail_at_1_log_probabilities_are_those_of_the_declared_temperatures() -> None:
    values = logits(5, 100)
    plain, few = (over_the_wire(values, f"topk:k=10{bits},temperatures=2|4") for bits in ("", ",bits=8"))
    assert (few.log_probs[:, 0] == 0).all()
    for temperature in (2.0, 4.0):
        np.testing.assert_allclose(few.log_probs_at(temperature), plain.log_probs_at(temperature), atol=0.02)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("indices", lambda column: column | np.uint8(255)),
        ("indices", lambda column: column[:, :-1]),
        ("indices", lambda column: column.astype(np.int8)),
        ("below", lambda column: column[:, ::-1]),
        ("below", lambda column: column + np.uint8(1)),
        ("below", lambda column: column[:, :3]),
        ("below", lambda column: column.astype(np.uint16)),
        ("reach", lambda column: -column),
        ("reach", lambda column: column * np.float16(np.nan)),
        ("reach", lambda column: column.astype(np.float32)),
        ("log_tail@1.0", lambda column: -column),
        ("log_tail@1.0", lambda column: column.astype(np.float16)),
    ],
)
def test_columns_that_could_not_be_trusted_are_refused(name: str, change: Any) -> None:
    columns = CODEC.encode(logits(3, 300), CodecSpec.parse("topk:k=5,bits=8"), 300)
    CODEC.check(columns, 300, 3)
    with pytest.raises(ValueError, match=r"\w"):
        CODEC.check(columns | {name: change(columns[name])}, 300, 3)


def test_a_class_id_beyond_the_classes_and_bits_behind_the_last_are_refused() -> None:
    spec = CodecSpec.parse("topk:k=5,bits=8")
    columns = CODEC.encode(logits(3, 300), spec, 300)
    beyond = pack_bits(np.full((3, 5), 300), 9)
    with pytest.raises(ValueError, match="not below 300"):
        CODEC.check(columns | {"indices": beyond}, 300, 3)
    spare = columns["indices"].copy()
    spare[1, -1] |= 128
    with pytest.raises(ValueError, match="not below 300"):
        CODEC.check(columns | {"indices": spare}, 300, 3)


def test_a_tail_that_leaves_the_kept_classes_nothing_is_still_a_number() -> None:
    columns = CODEC.encode(logits(2, 9), CodecSpec.parse("topk:k=3,bits=8"), 9)
    columns["log_tail@1.0"] = np.zeros(2, np.float32)
    CODEC.check(columns, 9, 2)
    assert np.isfinite(CODEC.decode(columns, 9).columns["log_probs"]).all()
