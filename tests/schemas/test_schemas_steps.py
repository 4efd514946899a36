"""The codecs int8 and int4: every number of a row as one of equal steps."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from schemas_examples import logits

from schemas.codecs import CODECS, CodecSpec, Steps, storable
from schemas.errors import EncodeError
from schemas.positions import Chosen
from schemas.records import Output, SoftTargets

STEPS = {"int8": 255, "int4": 15}
SHAPES = ((1,), (2,), (7,), (3, 4), (2, 3, 5))


def over_the_wire(values: Any, codec: str, *, classes: bool = True, chosen: Chosen | None = None) -> Steps:
    output = Output.of("y", values, CodecSpec(codec), classes=classes, chosen=chosen)
    num_samples = len(values) if chosen is None else len(chosen)
    record = SoftTargets("id", 0, 0, np.arange(num_samples), 0, None, "t", "00" * 32, (output,))
    found = SoftTargets.decode(record.encode(), "here").output("y")
    assert found.row_shape == values.shape[1:]
    rows = found.values()
    rows = rows if chosen is None else rows.rows
    assert isinstance(rows, Steps)
    return rows


def arrays(limit: float, shapes: tuple[tuple[int, ...], ...] = SHAPES) -> st.SearchStrategy[Any]:
    shaped = st.tuples(st.integers(0, 4), st.sampled_from(shapes)).map(lambda found: (found[0], *found[1]))
    return hnp.arrays(np.float32, shaped, elements=st.floats(-limit, limit, width=32))


@pytest.mark.parametrize("codec", STEPS)
@pytest.mark.parametrize("limit", [2.0**-100, 30.0, 2.0**127])
def test_classes_are_known_to_half_a_step_of_their_row(codec: str, limit: float) -> None:
    @settings(deadline=None, max_examples=60)
    @given(arrays(limit))
    def check(values: Any) -> None:
        decoded = over_the_wire(values, codec).values()
        exact = values.astype(np.float64)
        exact -= exact.max(axis=-1, keepdims=True)
        np.maximum(exact, -3e38, out=exact)
        half = (exact.max(axis=-1, keepdims=True) - exact.min(axis=-1, keepdims=True)) / (2 * STEPS[codec])
        # What float32 itself rounds, and the ranges that count as none.
        slack = 4 * np.spacing(np.abs(exact).max(initial=0)) * 2.0**29 + 3e-36
        assert decoded.dtype == np.float32
        assert (np.abs(decoded - exact) <= half + slack).all()
        assert (decoded.max(axis=-1) == 0).all()

    check()


@pytest.mark.parametrize("codec", STEPS)
@pytest.mark.parametrize("limit", [2.0**-100, 30.0, 2.0**126])
def test_features_are_known_to_half_a_step_of_their_row(codec: str, limit: float) -> None:
    @settings(deadline=None, max_examples=60)
    @given(arrays(limit, ((), *SHAPES)))
    def check(values: Any) -> None:
        decoded = over_the_wire(values, codec, classes=False).values()
        exact = values.astype(np.float64)
        rows = exact.reshape(len(exact), math.prod(values.shape[1:]))
        half = (rows.max(axis=1) - rows.min(axis=1)) / (2 * STEPS[codec])
        slack = 4 * np.spacing(np.abs(rows).max(initial=0)) * 2.0**29 + 3e-36
        assert decoded.shape == values.shape
        assert (np.abs(decoded.reshape(rows.shape) - rows) <= half[:, None] + slack).all()

    check()


@pytest.mark.parametrize("codec", STEPS)
def test_a_row_has_the_same_bytes_in_any_company(codec: str) -> None:
    values = logits(300, 999)
    for classes in (True, False):
        whole = Output.of("y", values, CodecSpec(codec), classes=classes)
        for row in (0, 64, 65, 299):
            alone = Output.of("y", values[row : row + 1], CodecSpec(codec), classes=classes)
            for name, column in alone.columns.items():
                assert column.tobytes() == whole.columns[name][row : row + 1].tobytes()


@pytest.mark.parametrize(("codec", "size"), [("int8", 1_000 + 4), ("int4", 500 + 4)])
def test_a_row_of_1_000_classes_has_a_byte_or_half_of_one_each_and_a_scale(codec: str, size: int) -> None:
    columns = Output.of("y", logits(3, 1_000), CodecSpec(codec)).columns
    assert sum(column.nbytes for column in columns.values()) == 3 * size
    assert CODECS[codec].bytes_per_row(CodecSpec(codec), (1_000,), 1_000) == size


@pytest.mark.parametrize("codec", STEPS)
@pytest.mark.parametrize("shape", [(), *SHAPES], ids=str)
def test_bytes_per_row_of_features_are_those_of_the_columns(codec: str, shape: tuple[int, ...]) -> None:
    columns = Output.of("y", np.ones((3, *shape), np.float32), CodecSpec(codec), classes=False).columns
    total = sum(column.nbytes for column in columns.values())
    assert total == 3 * CODECS[codec].bytes_per_row(CodecSpec(codec), shape, 0)


@pytest.mark.parametrize("codec", STEPS)
def test_features_whose_range_is_beyond_float32_are_refused(codec: str) -> None:
    values = np.array([[3e38, -3e38], [1, 2], [3.3e38, 3.3e38], [2e38, -1e38]], np.float32)
    assert storable(values, CodecSpec(codec), 0).tolist() == [False, True, False, True]
    assert storable(values, CodecSpec(codec), 2).all()
    with pytest.raises(EncodeError, match=rf"beyond what {codec} holds in row 0: use float32"):
        Output.of("y", values, CodecSpec(codec), classes=False)


@pytest.mark.parametrize("codec", STEPS)
def test_rows_of_positions_come_back(codec: str) -> None:
    chosen = Chosen(np.array([2, 0, 3], np.int64), np.array([1, 0, 2], np.int64))
    values = logits(5, 7)
    decoded = over_the_wire(values, codec, chosen=chosen).values()
    assert decoded.tobytes() == over_the_wire(values, codec).values().tobytes()


@pytest.mark.parametrize("codec", STEPS)
@pytest.mark.parametrize(
    ("name", "value"), [("scale", -1.0), ("scale", math.nan), ("scale", math.inf), ("scale", 3e38), ("zero", math.inf)]
)
def test_columns_that_could_not_be_widened_are_refused(codec: str, name: str, value: float) -> None:
    columns = CODECS[codec].encode(logits(3, 5), CodecSpec(codec), 0)
    CODECS[codec].check(columns, 0, 3)
    columns[name][1] = value
    with pytest.raises(ValueError, match=r"\w"):
        CODECS[codec].check(columns, 0, 3)


def test_a_scale_that_reaches_beyond_float32_from_its_zero_is_refused() -> None:
    columns = CODECS["int8"].encode(np.array([[1, 2]], np.float32), CodecSpec("int8"), 0)
    columns |= {"zero": np.array([3e38], np.float32), "scale": np.array([1e36], np.float32)}
    with pytest.raises(ValueError, match="beyond float32"):
        CODECS["int8"].check(columns, 0, 1)


def test_the_odd_code_of_int4_is_refused_where_it_is_none() -> None:
    codec = CODECS["int4"]
    even, odd = (codec.encode(logits(3, size), CodecSpec("int4"), size) for size in (4, 5))
    assert "odd" not in even
    for columns, size in (
        (even | {"odd": odd["odd"]}, 4),
        ({name: column for name, column in odd.items() if name != "odd"}, 5),
        (odd | {"odd": odd["odd"] + np.uint8(16)}, 5),
        (odd | {"odd": odd["odd"].astype(np.int8)}, 5),
        (odd | {"odd": odd["odd"][:, None]}, 5),
    ):
        with pytest.raises(ValueError, match=r"\w"):
            codec.check(columns, size, 3)
    with pytest.raises(ValueError, match="odd"):
        CODECS["int8"].check(CODECS["int8"].encode(logits(3, 5), CodecSpec("int8"), 5) | {"odd": odd["odd"]}, 5, 3)


def test_a_class_masked_far_below_costs_the_others_their_steps() -> None:
    """What the docs say of masks: the range is the row's, whatever made it."""
    masked = over_the_wire(np.array([[3, 2, -1e9]], np.float32), "int8").values()
    np.testing.assert_allclose(masked, [[0, 0, -1e9]], rtol=1e-6)
