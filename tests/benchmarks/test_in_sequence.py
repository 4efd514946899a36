"""The arithmetic of what can be taken in sequence, and of the waits of a student that has a pace of its own."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.in_sequence import PacedStudent, Taken, taken

P = 4


def of_rate(arrivals: list[float], begin: float, end: float, rate: float, ahead: int = 0) -> Taken:
    """Beside teachers that do `rate` orders a second, of which `ahead` are labelled before their turn."""
    labelled = [min(len(arrivals), number + 1 + ahead) for number in range(len(arrivals))]
    return taken(arrivals, labelled, P, begin, end, lambda begin, end: rate * (end - begin))


def test_what_keeps_up_with_its_teachers_is_the_ideal_however_it_bursts() -> None:
    even = [0.25 * (s + 1) for s in range(40)]
    # Two teachers with two partitions each: the second's labels of a round all wait for the first's last one.
    bursts = [float(s // P) + (0.5 if s % P == 0 else 1.0) for s in range(40)]
    for arrivals in (even, bursts):
        result = of_rate(arrivals, 1.7, 9.2, 4.0)
        assert result.ratio == pytest.approx(1.0)
        assert (result.orders, result.seconds) == (28, pytest.approx(7.0))
        assert result.rounds == pytest.approx([1.0] * 7)


def test_what_comes_before_the_steady_state_counts_nothing() -> None:
    arrivals = [*[50.0] * 40, *(50 + 0.5 * (s + 1) for s in range(40))]
    assert of_rate(arrivals, 51.0, 70.0, 4.0).ratio == pytest.approx(0.5)


def test_what_was_labelled_before_is_no_work_of_the_time_in_which_it_is_taken() -> None:
    arrivals = [0.5 * (s + 1) for s in range(40)]
    result = of_rate(arrivals, 0.0, 100.0, 1.5, ahead=10)
    assert (result.orders, result.labelled) == (36, 26)
    assert result.ratio == pytest.approx(26 / 27)


def test_one_stalled_round_lowers_the_ratio_and_is_seen_in_the_spread() -> None:
    arrivals = [float(s + 1 + (8 if s >= 20 else 0)) for s in range(40)]
    result = of_rate(arrivals, 0.0, 100.0, 1.0)
    assert result.ratio == pytest.approx(36 / 44)
    assert min(result.rounds) == pytest.approx(4 / 12)
    assert result.rounds_spread is not None
    assert result.rounds_spread.median == 1.0


def test_less_than_a_round_is_taken_by_the_clock() -> None:
    result = of_rate([1.0, 5.0, 8.0], 2.0, 12.0, 2.0)
    assert (result.orders, result.seconds, result.ratio, result.rounds) == (2, 10.0, 0.1, ())
    assert of_rate([], 2.0, 12.0, 2.0).ratio == 0.0
    assert taken([1.0, 5.0, 8.0], [4, 5, 5], P, 2.0, 12.0, lambda begin, end: 1.0).labelled == 1


def paced(seconds_per_order: float, begin: float, arrivals: list[float]) -> PacedStudent:
    student = PacedStudent(seconds_per_order, begin)
    for arrival in arrivals:
        student.take(arrival)
    return student


def test_a_gap_that_the_lead_covers_makes_no_step_wait() -> None:
    arrivals = [0.0] * 10 + [9.5] * 10
    student = paced(1.0, 0.0, arrivals)
    assert student.longest_wait(0.0, 15.0) == 0.0
    assert [student.trained(now) for now in (-1.0, 0.0, 0.5, 9.0, 100.0)] == [0, 1, 1, 10, 20]


def test_a_gap_beyond_the_lead_is_waited_for_and_no_more_than_that() -> None:
    student = paced(1.0, 0.0, [0.0] * 10 + [12.5] * 10)
    assert student.longest_wait(0.0, 15.0) == 2.5
    assert student.longest_wait(13.0, 15.0) == 0.0
    assert student.times[10:12] == [12.5, 13.5]


def test_a_wait_that_lasts_still_counts() -> None:
    assert paced(1.0, 0.0, [0.0, 0.0]).longest_wait(0.0, 60.0) == 58.0


@given(st.lists(st.floats(min_value=0.0, max_value=5.0), min_size=1, max_size=50), st.floats(0.1, 3.0))
def test_a_student_only_loses_time_by_waiting(gaps: list[float], seconds_per_order: float) -> None:
    arrivals = [sum(gaps[: n + 1]) for n in range(len(gaps))]
    student = paced(seconds_per_order, 0.0, arrivals)
    assert student.times[-1] == pytest.approx((len(gaps) - 1) * seconds_per_order + sum(student.waits))
    assert all(time >= arrival for time, arrival in zip(student.times, arrivals, strict=True))
