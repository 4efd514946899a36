"""The stateless random numbers; a golden vector that changes makes every existing stream unreadable."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.hashing import bits, hash64, hash_int, integers, normal, tag, uniform

IDS = np.array([0, 5, 2**40 - 1])
WORDS = st.integers(-(2**63), 2**64 - 1)


def test_integer_hashes_are_golden():
    assert hash_int() == 2611923443488327891
    assert hash_int(0) == 3220344897584144929
    assert hash_int(1, 2) == 14398958707881596088
    assert hash_int(2, 1) == 695024335266793615
    assert tag("affine") == 8832327502057540561


def test_draws_are_golden():
    assert [hex(value) for value in bits(7, IDS, "affine", 2).ravel()] == [
        "0x60ee312a607a07fd",
        "0x241782055fdcc225",
        "0x68a173f388c3495a",
        "0x6bae5b84a2f93c1b",
        "0x1ecc2a7a37fe3d7b",
        "0x55ceea8628c82e81",
    ]
    assert uniform(7, IDS, "affine", 2).tolist() == [
        [0.37863452229110095, 0.14098370200359778],
        [0.40871357627544314, 0.42062923420141807],
        [0.12030282482009447, 0.3351885392701496],
    ]
    assert normal(7, IDS, "affine", 2).tolist() == [
        [-1.777818202972412, -0.3658321797847748],
        [-0.5333674550056458, -0.5890947580337524],
        [-2.2280542850494385, -0.6865074038505554],
    ]
    assert integers(7, IDS, "affine", 3, 10).tolist() == [[3, 5, 7], [2, 7, 4], [1, 9, 3]]


@settings(deadline=None)
@given(st.lists(WORDS, min_size=1, max_size=4), st.integers(0, 3))
def test_an_array_hashes_like_its_integers(parts, place):
    arrays = list(parts)
    at = place % len(parts)
    arrays[at] = np.array([parts[at] % 2**64, 3], np.uint64)
    hashed = hash64(*arrays)
    assert hashed.dtype == np.uint64
    assert int(hashed[0]) == hash_int(*parts)
    assert int(hash64(*parts)) == hash_int(*parts)


def test_hashing_leaves_its_arguments_alone():
    ids = np.arange(4, dtype=np.uint64)
    hash64(1, ids, ids)
    assert ids.tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("draw", [bits, uniform, normal])
def test_a_draw_does_not_depend_on_its_batch(draw):
    ids = np.array([9, 2, 2, 700, 5])
    together = draw(3, ids, "x", 5)
    alone = np.concatenate([draw(3, ids[i : i + 1], "x", 5) for i in range(len(ids))])
    assert together.tobytes() == alone.tobytes()
    assert (together[:, :3] == draw(3, ids, "x", 3)).all()
    assert (together != draw(4, ids, "x", 5)).all()
    assert (together != draw(3, ids, "y", 5)).all()


def test_uniform_draws_are_uniform():
    draws = uniform(1, np.arange(20000), "x", 10)
    assert draws.min() >= 0
    assert draws.max() < 1
    counts = np.histogram(draws, 20, (0, 1))[0]
    assert (abs(counts - 10000) < 5 * 100).all()
    assert abs(np.corrcoef(draws.T) - np.eye(10)).max() < 0.04


def test_normal_draws_have_the_moments_of_a_normal():
    draws = normal(1, np.arange(200000), "x", 10).astype(np.float64)
    assert abs(draws.mean()) < 0.004
    assert abs(draws.var() - 1) < 0.005
    assert abs((draws**4).mean() - 2.9) < 0.03
    assert 3.5 < abs(draws).max() < 3.83
