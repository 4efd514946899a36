from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from schemas_examples import ids

from schemas.columns import DTYPES, narrowest, pack, pack_ids, pack_sha256, unpack, unpack_columns, unpack_ids
from schemas.errors import EncodeError


@pytest.mark.parametrize("name", DTYPES)
def test_an_array_of_each_dtype_comes_back_bit_by_bit(name: str) -> None:
    @given(hnp.arrays(DTYPES[name], hnp.array_shapes(min_dims=0, max_dims=4, min_side=0)))
    def check(array: Any) -> None:
        again = unpack(pack("a", array))
        assert again.dtype == array.dtype
        assert again.shape == array.shape
        assert again.tobytes() == array.tobytes()
        assert not again.flags.writeable

    check()


def test_unpacking_copies_nothing() -> None:
    datum = pack("a", np.arange(10))
    assert unpack(datum).base is datum["data"]


def test_a_strided_array_travels_in_c_order() -> None:
    array = np.arange(12).reshape(3, 4).T[:, ::2]
    assert unpack(pack("a", array)).tolist() == array.tolist()


@pytest.mark.parametrize("dtype", ["bool", "complex64", "U3", "O", ">f4", "uint64", "datetime64[s]"])
def test_a_dtype_that_cannot_travel_is_refused(dtype: str) -> None:
    with pytest.raises(EncodeError, match="column 'a' has dtype"):
        pack("a", np.zeros(2, dtype))


@given(
    st.sampled_from(list(DTYPES)),
    st.lists(st.integers(-(2**63), 2**63 - 1) | st.integers(-2, 20), max_size=12),
    st.binary(max_size=40),
)
def test_a_shape_either_fits_the_data_or_is_refused(dtype: str, shape: list[int], data: bytes) -> None:
    try:
        array = unpack({"name": "a", "dtype": dtype, "shape": shape, "data": data, "row_splits": None})
    except ValueError:
        return
    assert list(array.shape) == shape
    assert array.tobytes() == data


@pytest.mark.parametrize("shape", [[0, 2**62], [2**32, 2**32], [-1, -8], [2**63 - 1] * 9, [1] * 65], ids=str)
def test_an_absurd_shape_is_refused(shape: list[int]) -> None:
    with pytest.raises(ValueError, match="column 'a' has"):
        unpack({"name": "a", "dtype": "uint8", "shape": shape, "data": b"12345678", "row_splits": None})
    with pytest.raises(ValueError, match="column 'a' has"):
        unpack({"name": "a", "dtype": "uint8", "shape": shape, "data": b"", "row_splits": None})


def test_a_name_that_comes_twice_is_refused() -> None:
    with pytest.raises(ValueError, match="comes twice"):
        unpack_columns([pack("a", np.zeros(1)), pack("a", np.zeros(1))])


@pytest.mark.parametrize(
    ("largest", "dtype"),
    [
        (0, "uint8"),
        (255, "uint8"),
        (256, "uint16"),
        (32_767, "uint16"),
        (32_768, "uint16"),
        (65_535, "uint16"),
        (65_536, "uint32"),
        (131_072, "uint32"),
        (2**32 - 1, "uint32"),
        (2**32, "int64"),
        (2**63 - 1, "int64"),
    ],
)
def test_the_narrowest_width_that_holds_a_number(largest: int, dtype: str) -> None:
    assert narrowest(largest) == np.dtype(dtype)
    again = unpack_ids("ids", pack_ids("ids", ids(0, largest)))
    assert again.dtype == np.int64
    assert again.tolist() == [0, largest]
    assert again.flags.writeable


def test_a_number_over_63_bits_has_no_width() -> None:
    with pytest.raises(EncodeError):
        narrowest(2**63)


@pytest.mark.parametrize("text", ["", "a5", "a5" * 33, "A5" * 32, "zz" * 32, " a5" * 21 + "a"])
def test_what_is_no_sha256_is_refused(text: str) -> None:
    with pytest.raises(EncodeError, match="SHA-256"):
        pack_sha256(text)
