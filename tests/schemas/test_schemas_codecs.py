from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from schemas_examples import SPECS, float_arrays, logits, seeds

from schemas.codecs import CODECS, CodecSpec, Dense, Features, Sampled, SoftRows, Steps, TopK, storable
from schemas.errors import ConfigError, EncodeError
from schemas.records import Output, SoftTargets

SPEC_OF = {spec.name: spec for spec in map(CodecSpec.parse, SPECS)}
"""One spec for each codec: a new codec is tested the day it is named."""
OF_LOGITS = [name for name in CODECS if name != "head"]
"""Those that are given what they are of; head's own tests are in test_schemas_head.py."""


def over_the_wire(values: Any, spec: CodecSpec) -> SoftRows:
    """The values as a reader gets them."""
    output = Output.of("logits", values, spec, seeds=seeds(spec, len(values)))
    record = SoftTargets("id", 0, 0, np.arange(len(values)), 0, None, "t", "00" * 32, (output,))
    return SoftTargets.decode(record.encode(), "here").output("logits").values()


def top(values: Any, text: str) -> TopK:
    decoded = over_the_wire(values, CodecSpec.parse(text))
    assert isinstance(decoded, TopK)
    return decoded


def log_softmax(values: Any, temperature: float = 1.0) -> Any:
    """[M, C] float64"""
    scaled = values.astype(np.float64) / temperature
    scaled -= scaled.max(axis=1, keepdims=True)
    return scaled - np.log(np.exp(scaled).sum(axis=1, keepdims=True))


def tail_of(values: Any, indices: Any, temperature: float) -> Any:
    """[M] float64: log of the mass outside `indices`, with its own peak so that a tiny tail keeps its digits."""
    log_probs = log_softmax(values, temperature)
    np.put_along_axis(log_probs, indices, -np.inf, axis=1)
    peak = log_probs.max(axis=1, keepdims=True)
    return peak[:, 0] + np.log(np.exp(log_probs - peak).sum(axis=1))


def test_there_is_an_example_of_every_codec() -> None:
    assert set(SPEC_OF) == set(OF_LOGITS)


@pytest.mark.parametrize("name", OF_LOGITS)
def test_rows_that_are_taken_are_those_of_every_column(name: str) -> None:
    rows = over_the_wire(logits(7, 10), SPEC_OF[name])
    places = np.array([5, 0, 6])
    taken = rows.take(places)
    assert list(taken.columns) == list(rows.columns)
    assert taken.temperatures == rows.temperatures
    for column, kept in zip(rows.columns.values(), taken.columns.values(), strict=True):
        assert len(column) == 7
        np.testing.assert_array_equal(kept, column[places])


@pytest.mark.parametrize("name", OF_LOGITS)
def test_bytes_per_row_are_those_of_the_columns(name: str) -> None:
    for num_classes in (2, 10, 256, 257):
        columns = CODECS[name].encode(logits(7, num_classes), SPEC_OF[name], num_classes, seeds(SPEC_OF[name], 7))
        total = sum(column.nbytes for column in columns.values())
        most = 7 * CODECS[name].bytes_per_row(SPEC_OF[name], (num_classes,), num_classes)
        if SPEC_OF[name].draws:  # as many classes a row as were drawn
            assert total <= most + 1
            continue
        assert total == most
        assert all(len(column) == 7 for column in columns.values())


@pytest.mark.parametrize("name", OF_LOGITS)
def test_what_was_encoded_passes_its_own_check(name: str) -> None:
    @settings(deadline=None)
    @given(st.data())
    def check(data: st.DataObject) -> None:
        num_rows, num_classes = data.draw(st.integers(0, 4)), data.draw(st.integers(2, 6))
        values = data.draw(float_arrays(num_rows, num_classes, 30_000))
        codec = CODECS[name]
        columns = codec.encode(values, SPEC_OF[name], num_classes, seeds(SPEC_OF[name], num_rows))
        codec.check(columns, num_classes, num_rows)
        again = codec.encode(np.asfortranarray(values), SPEC_OF[name], num_classes, seeds(SPEC_OF[name], num_rows))
        assert {key: one.tobytes() for key, one in columns.items()} == {k: one.tobytes() for k, one in again.items()}

    check()


@pytest.mark.parametrize("name", OF_LOGITS)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_values_that_are_not_finite_are_refused_with_their_row(name: str, value: float) -> None:
    values = logits(4, 5)
    values[2, 1] = value
    with pytest.raises(EncodeError, match="NaN or infinity in row 2"):
        Output.of("logits", values, SPEC_OF[name])


@pytest.mark.parametrize("name", OF_LOGITS)
@pytest.mark.parametrize("shape", [(5,), (3, 0), (3, 0, 2), ()], ids=str)
def test_values_of_another_shape_are_refused(name: str, shape: tuple[int, ...]) -> None:
    with pytest.raises(EncodeError, match=r"\[M, \.\.\."):
        Output.of("logits", np.zeros(shape, np.float32), SPEC_OF[name])


@pytest.mark.parametrize("name", OF_LOGITS)
def test_values_of_another_dtype_are_refused(name: str) -> None:
    with pytest.raises(EncodeError, match="float64"):
        Output.of("logits", np.zeros((2, 3)), SPEC_OF[name])


@pytest.mark.parametrize("name", OF_LOGITS)
def test_columns_of_a_wrong_count_of_rows_or_classes_are_refused(name: str) -> None:
    codec = CODECS[name]
    columns = codec.encode(logits(4, 300), SPEC_OF[name], 300, seeds(SPEC_OF[name], 4))
    for num_classes, num_rows in ((300, 3), (300, 5), (2, 4), (70_000, 4)):
        with pytest.raises(ValueError, match=r"\w"):
            codec.check(columns, num_classes, num_rows)
    for key in columns:
        kind = key.partition("@")[0]  # all tails at once: with fewer of them fewer temperatures are declared
        with pytest.raises(ValueError, match=r"\w"):
            codec.check({one: columns[one] for one in columns if not one.startswith(kind)}, 300, 4)
        more, fewer = columns[key][..., None], columns[key][: len(columns[key]) - 1]
        placed = (name, key) == ("sampled", "lengths")  # with an axis more they are those of rows of places
        for wrong in (columns[key].astype(np.float64), fewer, *([] if placed else [more])):
            with pytest.raises(ValueError, match=r"\w"):
                codec.check(columns | {key: wrong}, 300, 4)
    with pytest.raises(ValueError, match=r"\w"):
        codec.check(columns | {"extra": np.zeros(4)}, 300, 4)


@given(st.integers(0, 5).flatmap(lambda rows: float_arrays(rows, 3, 2.0**127)))
def test_float32_is_exact(values: Any) -> None:
    decoded = over_the_wire(values, SPEC_OF["float32"])
    assert isinstance(decoded, Dense)
    assert decoded.logits.dtype == np.float32
    assert decoded.logits.tobytes() == values.tobytes()


@given(st.integers(0, 5).flatmap(lambda rows: float_arrays(rows, 3, 30_000)))
def test_float16_shifts_a_row_to_a_maximum_of_nothing_and_rounds_once(values: Any) -> None:
    decoded = over_the_wire(values, SPEC_OF["float16"])
    assert isinstance(decoded, Dense)
    assert decoded.logits.dtype == np.float16
    assert decoded.logits.tobytes() == (values - values.max(axis=1, keepdims=True)).astype(np.float16).tobytes()


@given(st.integers(0, 5).flatmap(lambda rows: float_arrays(rows, 3, 2.0**127)))
@pytest.mark.parametrize("name", OF_LOGITS)
def test_every_codec_stores_every_finite_row(name: str, values: Any) -> None:
    assert storable(values, SPEC_OF[name], 3).all()
    over_the_wire(values, SPEC_OF[name])


@pytest.mark.parametrize("name", OF_LOGITS)
def test_rows_with_nan_or_infinity_are_told_apart_from_those_that_can_be_stored(name: str) -> None:
    values = logits(5, 300)
    values[1, 2], values[3, 0], values[4, 1] = np.nan, np.inf, -np.inf
    assert storable(values, SPEC_OF[name], 300).tolist() == [True, False, True, False, False]
    over_the_wire(values[storable(values, SPEC_OF[name], 300)], SPEC_OF[name])
    with pytest.raises(EncodeError, match="NaN or infinity in row 1 and 2 others"):
        Output.of("logits", values, SPEC_OF[name])


@pytest.mark.parametrize("base", [0.0, 65_000.0, 3e6, -3e6])
def test_float16_keeps_the_probabilities_of_logits_of_any_size(base: float) -> None:
    values = (np.float32(base) + np.array([[3.0, 2.0, 0.0]], np.float32)).astype(np.float32)
    decoded = over_the_wire(values, SPEC_OF["float16"])
    assert isinstance(decoded, Dense)
    assert decoded.logits.tolist() == [[0.0, -1.0, -3.0]]


def test_float16_ends_at_its_lowest_number() -> None:
    decoded = over_the_wire(np.array([[3e38, 0.0, -3e38], [70_000, 0, 69_999]], np.float32), SPEC_OF["float16"])
    assert isinstance(decoded, Dense)
    assert decoded.logits.tolist() == [[0, -65_504, -65_504], [0, -65_504, -1]]


@pytest.mark.parametrize(
    "num_classes", [2_048, 2_049, 32_767, 32_768, 32_769, 65_535, 65_536, 65_537, 131_072, 131_073]
)
def test_topk_keeps_class_ids_at_the_edges_of_the_integer_widths(num_classes: int) -> None:
    values = np.zeros((2, num_classes), np.float32)
    values[0, -1], values[0, -2] = 9, 8
    values[1, num_classes // 2], values[1, 0] = 9, 8
    decoded = top(values, "topk:k=2")
    assert decoded.indices.dtype == np.int64
    assert decoded.indices.tolist() == [[num_classes - 1, num_classes - 2], [num_classes // 2, 0]]
    width = Output.of("logits", values, CodecSpec("topk", 2)).columns["indices"].itemsize
    assert width == (2 if num_classes <= 65_536 else 4)


@pytest.mark.parametrize("num_classes", [3, 10, 97, 1_000, 65_537, 151_936])
@pytest.mark.parametrize("spread", [0.0, 0.01, 4.0, 40.0])
def test_topk_tails_are_those_of_float64(num_classes: int, spread: float) -> None:
    values = (logits(3, num_classes, seed=num_classes) * np.float32(spread / 4)).astype(np.float32)
    k = min(10, num_classes - 1)
    decoded = top(values, f"topk:k={k},temperatures=1|2|4")
    for temperature in (1.0, 2.0, 4.0):
        exact = tail_of(values, decoded.indices, temperature)
        np.testing.assert_allclose(decoded.log_tails[temperature], exact, rtol=2e-7, atol=1e-12)
        kept = np.take_along_axis(log_softmax(values, temperature), decoded.indices, axis=1)
        # The wire rounds log p at T = 1 to float16, half a unit in 11 bits.
        margin = 2.0**-11 * np.abs(decoded.log_probs).max() * 2 / temperature + 1e-6
        np.testing.assert_allclose(decoded.log_probs_at(temperature), kept, rtol=0, atol=margin)
        mass = np.exp(decoded.log_probs_at(temperature).astype(np.float64)).sum(axis=1) + np.exp(exact)
        np.testing.assert_allclose(mass, 1, atol=1e-5)


@settings(deadline=None, max_examples=200)
@given(st.data())
def test_topk_sorts_by_descending_value_then_ascending_class(data: st.DataObject) -> None:
    num_rows, num_classes = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 9))
    few = st.sampled_from((-1e4, -1.5, -1e-38, -0.0, 0.0, 1e-38, 1.0, 1e4))
    rows = st.lists(st.lists(few, min_size=num_classes, max_size=num_classes), min_size=num_rows, max_size=num_rows)
    values = np.array(data.draw(rows), np.float32)
    k = data.draw(st.integers(1, num_classes))
    decoded = top(values, f"topk:k={k}")
    expected = [sorted(range(num_classes), key=lambda c: (-row[c], c))[:k] for row in values.tolist()]
    assert decoded.indices.tolist() == expected
    assert (np.diff(decoded.log_probs, axis=1) <= 0).all()


def test_topk_takes_the_lower_class_of_a_tie_at_the_edge() -> None:
    values = np.zeros((1, 100_000), np.float32)
    values[0, 77_777] = 1
    assert top(values, "topk:k=4").indices.tolist() == [[77_777, 0, 1, 2]]


def test_topk_has_the_same_bits_whatever_the_rows_beside() -> None:
    values = logits(200, 1_000)
    whole = CODECS["topk"].encode(values, CodecSpec("topk", 10, (1.0, 4.0)), 1_000)
    for row in (0, 31, 32, 33, 199):
        alone = CODECS["topk"].encode(values[row : row + 1], CodecSpec("topk", 10, (1.0, 4.0)), 1_000)
        for key, column in alone.items():
            assert column.tobytes() == whole[key][row : row + 1].tobytes()


def test_topk_of_all_classes_has_no_tail_and_the_softmax_of_every_temperature() -> None:
    values = logits(5, 4)
    decoded = top(values, "topk:k=4,temperatures=1|3")
    for temperature in (1.0, 3.0):
        assert (decoded.log_tails[temperature] == -np.inf).all()
        exact = np.take_along_axis(log_softmax(values, temperature), decoded.indices, axis=1)
        np.testing.assert_allclose(decoded.log_probs_at(temperature), exact, atol=0.02)
        np.testing.assert_allclose(np.exp(decoded.log_probs_at(temperature)).sum(axis=1), 1, rtol=1e-5)


def test_topk_of_one_class_of_one() -> None:
    decoded = top(np.full((2, 1), 3, np.float32), "topk:k=1")
    assert decoded.log_probs_at(1.0).tolist() == [[0.0], [0.0]]


def test_a_tail_of_next_to_nothing_stays_finite_below_all_classes() -> None:
    values = np.array([[3e38, -3e38, -3e38]], np.float32)
    decoded = top(values, "topk:k=1,temperatures=0.001|1")
    for temperature in (0.001, 1.0):
        assert np.isfinite(decoded.log_tails[temperature]).all()
        assert decoded.log_probs_at(temperature).tolist() == [[0.0]]


def test_topk_of_logits_too_far_apart_for_float16_gives_the_lower_ones_nothing() -> None:
    decoded = top(np.array([[1e5, 0, 0]], np.float32), "topk:k=2,temperatures=1|4")
    for temperature in (1.0, 4.0):
        assert np.exp(decoded.log_probs_at(temperature)).tolist() == [[1.0, 0.0]]


def test_topk_refuses_more_kept_classes_than_there_are() -> None:
    with pytest.raises(EncodeError, match="k=5 of only 4 classes: use k <= 4"):
        Output.of("logits", logits(2, 4), CodecSpec("topk", 5))
    with pytest.raises(ConfigError, match="topk:k=5,temperatures=1 keeps k=5 of only 4 classes: use k <= 4"):
        CodecSpec("topk", 5).refuse_classes(4)
    CodecSpec("topk", 4).refuse_classes(4)


def test_an_undeclared_temperature_is_refused_with_the_declared_ones() -> None:
    with pytest.raises(ConfigError, match=r"temperature 3: use 1, 2\.5"):
        top(logits(2, 4), "topk:k=2,temperatures=2.5|1").log_probs_at(3.0)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("indices", 4),
        ("log_probs", 0.5),
        ("log_probs", math.nan),
        ("log_probs", -math.inf),
        ("log_tail@1.0", 0.5),
        ("log_tail@1.0", math.nan),
    ],
)
def test_topk_columns_with_an_impossible_number_are_refused(key: str, value: float) -> None:
    columns = CODECS["topk"].encode(logits(3, 4), CodecSpec("topk", 2), 4)
    columns[key] = columns[key].copy()
    columns[key][1] = value
    with pytest.raises(ValueError, match=r"\w"):
        CODECS["topk"].check(columns, 4, 3)


@pytest.mark.parametrize("text", ["1", "1.00", "nan", "inf", "0.0", "-1.0", "x", ""])
def test_a_topk_column_of_an_impossible_temperature_is_refused(text: str) -> None:
    columns = CODECS["topk"].encode(logits(3, 4), CodecSpec("topk", 2), 4)
    columns["log_tail@" + text] = columns.pop("log_tail@1.0")
    with pytest.raises(ValueError, match=r"\w"):
        CODECS["topk"].check(columns, 4, 3)


@pytest.mark.parametrize(
    "text",
    [
        *("float32", "float16", "int8", "int4", "topk:k=10,temperatures=1|2|4", "topk:k=1,temperatures=0.1"),
        *("topk:k=10,bits=8,temperatures=1|2", "sampled:n=50", "sampled:n=255"),
    ],
)
def test_a_spec_is_its_text(text: str) -> None:
    assert str(CodecSpec.parse(text)) == text


@given(st.integers(1, 10**6), st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=4, unique=True))
def test_any_spec_comes_back_from_its_text(k: int, temperatures: list[float]) -> None:
    spec = CodecSpec("topk", k, tuple(sorted(temperatures)))
    assert CodecSpec.parse(str(spec)) == spec


def test_a_spec_sorts_its_temperatures_and_defaults_to_one() -> None:
    assert CodecSpec.parse("topk:temperatures=4|1,k=3") == CodecSpec("topk", 3, (1.0, 4.0))
    assert CodecSpec.parse("topk:k=3").temperatures == (1.0,)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("flaot16", "did you mean 'float16'"),
        ("", "choose one of"),
        ("topk", "needs k"),
        ("topk:k=0", "needs k"),
        ("topk:k=ten", "write it as in k=10"),
        ("topk:k", "write it as in k=10"),
        ("topk:k=3,temperature=2", "did you mean 'temperatures'"),
        ("topk:k=3,k=4", "twice"),
        ("topk:k=3,temperatures=1|1", "none twice"),
        ("topk:k=3,temperatures=", "temperatures=1|2|4"),
        ("topk:k=3,temperatures=0", "between 0.001 and 1000"),
        ("topk:k=3,temperatures=nan", "between 0.001 and 1000"),
        ("topk:k=3,temperatures=inf", "between 0.001 and 1000"),
        ("float16:k=3", "takes no settings"),
        ("float16:bits=8", "takes no settings"),
        ("flaot16:bits=8", "did you mean 'float16'"),
        ("topk:k=3,bits=4", "bits are 8"),
        ("topk:k=3,bits=0", "bits are 8"),
        ("topk:k=3,bits=x", "write it as in bits=8"),
        ("topk:bits=8", "needs k"),
        ("topk:k=3,n=4", "choose one of"),
        ("sampled", "needs n, 1 to 255"),
        ("sampled:n=256", "needs n, 1 to 255"),
        ("sampled:n=0", "needs n, 1 to 255"),
        ("sampled:k=5", "choose one of n"),
        ("head:k=5", "choose one of h"),
        ("head:h=-1", "the model tells"),
    ],
)
def test_a_bad_spec_says_what_is_wrong(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        CodecSpec.parse(text)
    assert message in str(caught.value)


@pytest.mark.parametrize("kind", [int, np.float64])
def test_temperatures_of_another_number_type_are_the_same_spec(kind: Any) -> None:
    plain, other = CodecSpec("topk", 2, (1.0, 2.0)), CodecSpec("topk", 2, (kind(1), kind(2)))
    assert (str(other), other) == (str(plain), plain)
    encoded = [Output.of("logits", logits(2, 4), spec).columns for spec in (plain, other)]
    assert encoded[0].keys() == encoded[1].keys()


def test_a_spec_is_checked_when_it_is_made_by_hand() -> None:
    with pytest.raises(ConfigError):
        replace(CodecSpec("topk", 3), k=0)


@pytest.mark.parametrize("name", [name for name in OF_LOGITS if not SPEC_OF[name].draws])
@pytest.mark.parametrize("leading", [(3,), (2, 1), (2, 3, 2)], ids=str)
def test_classes_of_each_place_are_stored_as_those_of_a_row(name: str, leading: tuple[int, ...]) -> None:
    spec, shape = SPEC_OF[name], (4, *leading, 12)
    values = logits(4 * int(np.prod(leading)), 12)
    flat, placed = over_the_wire(values, spec), over_the_wire(values.reshape(shape), spec)
    for key, column in placed.columns.items():
        assert column.shape[:-1] == shape[:-1] or column.shape == shape[:-1]
        assert column.tobytes() == flat.columns[key].tobytes()
    output = Output.of("logits", values.reshape(shape), spec)
    assert (output.num_classes, output.row_shape) == (12, shape[1:])
    total = sum(column.nbytes for column in output.columns.values())
    assert total == 4 * CODECS[name].bytes_per_row(spec, shape[1:], 12)


@pytest.mark.parametrize("name", ["float32", "float16"])
@pytest.mark.parametrize("shape", [(), (1,), (5,), (2, 3)], ids=str)
def test_features_of_any_shape_are_stored_as_they_are(name: str, shape: tuple[int, ...]) -> None:
    values = np.random.default_rng(1).normal(0, 100, (4, *shape)).astype(np.float32)
    output = Output.of("hidden", values, CodecSpec(name), classes=False)
    record = SoftTargets("id", 0, 0, np.arange(4), 0, None, "t", "00" * 32, (output,))
    decoded = SoftTargets.decode(record.encode(), "here").output("hidden")
    assert (decoded.num_classes, decoded.row_shape) == (0, shape)
    rows = decoded.values()
    assert isinstance(rows, Features)
    assert rows.values.tobytes() == values.astype(name).tobytes()
    assert rows.take(np.array([2, 0])).values.tobytes() == values.astype(name)[[2, 0]].tobytes()
    total = sum(column.nbytes for column in output.columns.values())
    assert total == 4 * CODECS[name].bytes_per_row(CodecSpec(name), shape, 0)


def test_features_beyond_float16_are_told_apart_and_refused_with_the_output_and_the_way_out() -> None:
    values = np.array([[1.0, 65_519.0], [1.0, 65_520.0], [-3e38, 0.0]], np.float32)
    assert storable(values, CodecSpec("float16"), 0).tolist() == [True, False, False]
    assert storable(values, CodecSpec("float32"), 0).all()
    assert storable(values, CodecSpec("float16"), 2).all()
    with pytest.raises(EncodeError, match=r"output 'hidden': .* beyond what float16 holds in row 1: use float32"):
        Output.of("hidden", values, CodecSpec("float16"), classes=False)


def test_features_have_no_top_k() -> None:
    with pytest.raises(EncodeError, match=r"output 'hidden': codec topk:k=1,.* this output has none: use float16"):
        Output.of("hidden", logits(2, 3), CodecSpec("topk", 1), classes=False)


@pytest.mark.parametrize("name", OF_LOGITS)
def test_columns_of_which_bytes_were_changed_are_refused_or_harmless(name: str) -> None:
    codec, spec, num_classes = CODECS[name], SPEC_OF[name], 300
    good = codec.encode(logits(4, num_classes), spec, num_classes, seeds(spec, 4))

    @settings(deadline=None, max_examples=150)
    @given(st.data())
    def check(data: st.DataObject) -> None:
        columns = {key: column.copy() for key, column in good.items()}
        raw = columns[data.draw(st.sampled_from(sorted(columns)))].reshape(-1).view(np.uint8)
        for _ in range(data.draw(st.integers(1, 3))):
            raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
        try:
            codec.check(columns, num_classes, 4)
        except ValueError:
            return
        rows = codec.decode(columns, num_classes)
        if isinstance(rows, Sampled):
            assert rows.draws.shape == (4, spec.k)
            assert 0 <= rows.draws.min() <= rows.draws.max() < num_classes
        elif isinstance(rows, TopK):
            assert rows.indices.shape == rows.log_probs.shape == (4, spec.k)
            assert 0 <= rows.indices.min() <= rows.indices.max() < num_classes
            assert np.isfinite(rows.log_probs).all()
        else:
            values = rows.values() if isinstance(rows, Steps) else rows.columns["logits"]
            assert values.shape == (4, num_classes)
            assert np.isfinite(values).all()

    check()
