"""Processes of one run that talk to each other, each of its own."""

from __future__ import annotations

import pytest
from support.together import together


def test_all_hear_what_each_says_and_what_rank_0_tells() -> None:
    for words, lengths, first, (goes_on, undecodable, stopped) in together("said", 3):
        assert words == ["rank 0 says ü", "rank 1 says ü", "rank 2 says ü"]
        assert (lengths, first) == ([5, 0, 2304], "begin")
        assert (goes_on, undecodable, stopped) == (True, 3, 1)


def test_rows_come_as_they_were_dealt() -> None:
    _, *others = together("dealt", 3)
    for equal, cuts, cursor in others:
        assert all(equal)
        assert cuts
        assert cursor == {"pass_number": 1, "sequence": 2, "row": 3, "place": {"offsets": {"t": [1, 2]}}}


def test_gradients_of_unequal_shares_are_those_of_the_whole_batch_in_equal_bits() -> None:
    results = together("learned", 3)
    assert all(each == results[0] for each in results)
    ((loss, rows, has_nan, unused, weight),) = together("learned", 1)
    many_loss, many_rows, many_nan, many_unused, many_weight = results[0]
    assert many_loss == pytest.approx(loss)
    assert many_rows == pytest.approx(rows)
    assert many_weight == pytest.approx(weight)
    assert (many_unused, unused) == ([None, None], [None, None])
    assert many_nan
    assert not has_nan


def test_a_process_that_is_gone_is_one_line_to_the_others() -> None:
    text, left = together("lost", 2)
    assert left == "left"
    assert text.startswith("another process of the run is gone")
