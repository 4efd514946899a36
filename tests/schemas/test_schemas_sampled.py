"""The codec sampled: classes drawn at random from a teacher's probabilities."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from schemas_examples import float_arrays, logits

from schemas.codecs import CODECS, CodecSpec, Sampled
from schemas.errors import EncodeError
from schemas.hashing import hash64
from schemas.records import Output, SoftTargets

CODEC = CODECS["sampled"]
N50 = CodecSpec("sampled", 50)


def seeds(count: int, start: int = 0) -> Any:
    return hash64(7, np.arange(start, start + count))


def drawn(values: Any, spec: CodecSpec = N50, start: int = 0) -> Any:
    output = Output.of("logits", values, spec, seeds=seeds(len(values), start))
    record = SoftTargets("id", 0, 0, np.arange(len(values)), 0, None, "t", "00" * 32, (output,))
    found = SoftTargets.decode(record.encode(), "here").output("logits")
    assert found.row_shape == values.shape[1:]
    rows = found.values()
    assert isinstance(rows, Sampled)
    return rows.draws


@settings(deadline=None)
@given(st.data())
def test_any_row_has_its_draws_rising_and_of_classes_that_have_a_probability(data: st.DataObject) -> None:
    num_rows, num_classes = data.draw(st.integers(0, 5)), data.draw(st.integers(1, 9))
    values = data.draw(float_arrays(num_rows, num_classes, 2.0**127))
    number = data.draw(st.integers(1, 255))
    found = drawn(values, CodecSpec("sampled", number))
    assert found.shape == (num_rows, number)
    assert (np.diff(found, axis=1) >= 0).all()
    with np.errstate(over="ignore"):
        weights = np.exp(values.astype(np.float64) - values.max(axis=1, keepdims=True))
    assert (np.take_along_axis(weights, found.astype(np.int64), axis=1) > 0).all()


def test_draws_come_as_often_as_the_teacher_says() -> None:
    """Chi square of 20,000 x 50 draws over 6 classes: 5 degrees of freedom, the 1e-6 quantile is 37."""
    row = np.array([2.0, 1.0, 0.0, -1.0, -4.0, 1.5], np.float32)
    found = drawn(np.tile(row, (20_000, 1)))
    expected = np.exp(row.astype(np.float64))
    expected *= found.size / expected.sum()
    counts = np.bincount(found.reshape(-1), minlength=6)
    assert (np.square(counts - expected) / expected).sum() < 37


def test_draws_depend_on_the_seed_and_the_place_and_on_nothing_else() -> None:
    values = logits(90, 700)
    whole = drawn(values)
    for row in (0, 45, 46, 89):
        assert drawn(values[row : row + 1], start=row).tobytes() == whole[row : row + 1].tobytes()
    same = np.tile(values[:1], (4, 3, 1)).reshape(4, 3, 700)
    of_places = drawn(same)
    assert of_places.shape == (4, 3, 50)
    assert len({places.tobytes() for row in of_places for places in row}) == 12


def test_a_certain_class_is_drawn_every_time_and_takes_four_bytes() -> None:
    values = np.zeros((256, 151_936), np.float32)
    values[:, -1] = 1e4
    columns = CODEC.encode(values, N50, 151_936, seeds(256))
    assert sum(column.nbytes for column in columns.values()) == 256 * (1 + 4 + 1) + 1
    assert (columns["draws"] == 50).all()


def test_without_seeds_or_classes_nothing_is_drawn() -> None:
    for given_seeds in (None, seeds(2)):
        with pytest.raises(EncodeError, match="sampled:n=50 draws by a seed for each of the 3 rows"):
            Output.of("logits", logits(3, 4), N50, seeds=given_seeds)
    with pytest.raises(EncodeError, match="this output has none"):
        Output.of("hidden", logits(3, 4), N50, classes=False, seeds=seeds(3))


def test_rows_without_any_are_of_the_same_number_of_draws() -> None:
    assert drawn(np.empty((0, 7), np.float32)).shape == (0, 50)
    columns = CODEC.encode(np.empty((0, 7), np.float32), N50, 7, seeds(0))
    assert CODEC.is_of(columns, N50)
    assert not CODEC.is_of(columns, CodecSpec("sampled", 49))


def test_parts_are_joined_to_the_bytes_of_the_whole() -> None:
    values = logits(9, 40)
    whole = CODEC.encode(values, N50, 40, seeds(9))
    parts = [CODEC.encode(values[low:high], N50, 40, seeds(9)[low:high]) for low, high in ((0, 4), (4, 4), (4, 9))]
    joined = CODEC.joined(parts)
    assert {name: column.tobytes() for name, column in joined.items()} == {
        name: column.tobytes() for name, column in whole.items()
    }


def of(*numbers: int, dtype: type = np.uint8) -> Any:
    return np.array(numbers, dtype)


GOOD = {"n": of(5), "lengths": of(2, 1), "indices": of(3, 8, 3), "draws": of(4, 1, 5)}


@pytest.mark.parametrize(
    "change",
    [
        {"n": of(0)},
        {"n": of(5, 5)},
        {"n": of(5, dtype=np.int64)},
        {"n": of(6)},
        {"lengths": of(1, 1)},
        {"lengths": of(3, 0)},
        {"lengths": of(2, 1, 0)},
        {"lengths": of(2, 1, dtype=np.int8)},
        {"lengths": of(1, 2)},
        {"indices": of(8, 3, 3)},
        {"indices": of(3, 3, 3)},
        {"indices": of(3, 9, 3)},
        {"indices": of(3, 8, 3, dtype=np.uint16)},
        {"indices": of(3, 8)},
        {"draws": of(5, 0, 5)},
        {"draws": of(4, 1, 4)},
        {"draws": of(4, 1)},
        {"draws": of(4, 1, 5, dtype=np.uint16)},
        {"extra": of(1)},
        {"lengths": of(), "indices": of(), "draws": of()},
    ],
    ids=str,
)
def test_columns_that_could_not_be_trusted_are_refused(change: dict[str, Any]) -> None:
    CODEC.check(GOOD, 9, 2)
    assert CODEC.decode(GOOD, 9).columns["draws"].tolist() == [[3, 3, 3, 3, 8], [3] * 5]
    with pytest.raises(ValueError, match=r"\w"):
        CODEC.check(GOOD | change, 9, 2)


def test_lengths_without_a_draw_are_refused() -> None:
    with pytest.raises(ValueError, match="nothing was drawn"):
        CODEC.check({"n": of(5), "lengths": of(0, 0), "indices": of(), "draws": of()}, 9, 2)
