"""The arithmetic of the benchmarks: interleaving, ratios, quartiles."""

from __future__ import annotations

from math import comb

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.pairs import Pairs, Spread, interleave, median_interval

RATES = st.floats(min_value=1e-3, max_value=1e6)


def test_loops_run_in_turns_and_the_bare_one_begins_and_ends() -> None:
    ran: list[str] = []

    def measure(name: str) -> float:
        ran.append(name)
        return float(len(ran))

    first, second = interleave(2, lambda: measure("bare"), lambda: measure("a"), lambda: measure("b"))
    assert ran == ["bare", "a", "b", "bare", "a", "b", "bare"]
    assert first == Pairs((2.0, 5.0), (1.0, 4.0, 7.0))
    assert second == Pairs((3.0, 6.0), (1.0, 4.0, 7.0))


def test_a_ratio_takes_the_bare_figures_right_before_and_after() -> None:
    pairs = Pairs((8.0, 3.0), (4.0, 16.0, 1.0))
    assert pairs.ratios == [1.0, 0.75]
    assert pairs.self_ratios == [4.0, 1 / 16]
    assert pairs.differences == [-2.0, -5.5]


@given(st.lists(RATES, min_size=1, max_size=9), st.floats(min_value=0.5, max_value=1.0), RATES)
def test_a_machine_that_slows_down_steadily_changes_no_ratio(steps: list[float], slower: float, rate: float) -> None:
    bare, ours = [rate], []
    for _ in steps:
        ours.append(0.9 * bare[-1] * slower)  # ours comes midway, the next bare one at the end
        bare.append(bare[-1] * slower**2)
    assert Pairs(tuple(ours), tuple(bare)).ratios == pytest.approx([0.9] * len(steps))


@given(st.lists(RATES, min_size=1, max_size=20))
def test_quartiles_lie_around_the_median_and_inside_the_figures(values: list[float]) -> None:
    spread = Spread.of(values)
    assert min(values) <= spread.low <= spread.median <= spread.high <= max(values)
    assert spread.width == spread.high - spread.low


@pytest.mark.parametrize("count", [1, 2, 5, 6, 7, 30, 31])
def test_the_medians_interval_leaves_out_what_chance_allows_and_no_more(count: int) -> None:
    low, high = median_interval([float(value) for value in range(count)])
    left_out = int(low)
    assert high == count - 1 - left_out

    def chance(figures: int) -> float:
        """That the median lies outside of all but so many figures on either side."""
        return 2 * sum(comb(count, below) for below in range(figures + 1)) / 2**count

    assert left_out == 0 or chance(left_out) <= 0.05
    assert chance(left_out + 1) > 0.05
    assert {30: 9, 6: 0, 5: 0}.get(count, left_out) == left_out


@given(st.lists(RATES, min_size=1, max_size=40))
def test_the_medians_interval_lies_around_the_median(values: list[float]) -> None:
    low, high = median_interval(values)
    assert low <= Spread.of(values).median <= high


def test_pairs_without_their_bare_figures_are_refused() -> None:
    with pytest.raises(ValueError, match="1 figures need 2 bare ones, not 1"):
        Pairs((1.0,), (1.0,))


def test_bench_json_names_medians_spreads_and_pairs() -> None:
    said = Pairs((9.0, 9.5, 10.0), (10.0, 10.0, 10.0, 10.0)).as_dict()
    assert said["median"] == pytest.approx(0.95)
    assert said["spread"] == pytest.approx(0.05)
    assert (said["self_median"], said["self_spread"], said["pairs"]) == (1.0, 0.0, 3)
