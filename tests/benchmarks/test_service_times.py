"""Simulated accelerators: what they can do by their service times, to the last part of an order."""

from __future__ import annotations

from itertools import accumulate
from math import inf
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.service_times import ServiceTimes, ideal_orders
from benchmarks.simulated import SimulatedSession, from_table, logits_table, write_table_model
from benchmarks.teachers import NUM_CHANGES, PERIOD, changing

SECONDS = st.floats(min_value=0.1, max_value=60.0)
TIMES = st.floats(min_value=0.0, max_value=1000.0)


@st.composite
def service_times(draw: st.DrawFn) -> ServiceTimes:
    gaps = draw(st.lists(st.floats(min_value=0.5, max_value=200.0), max_size=6))
    return ServiceTimes(tuple((since, draw(SECONDS)) for since in accumulate([0.0, *gaps])))


@given(service_times(), TIMES, st.floats(min_value=0.01, max_value=50.0))
def test_what_ends_at_a_time_is_what_can_be_done_until_then(times: ServiceTimes, begin: float, orders: float) -> None:
    assert times.orders(begin, times.ends(begin, orders)) == pytest.approx(orders)


@given(service_times(), TIMES, TIMES, TIMES)
def test_a_stretch_of_time_can_be_cut_anywhere(times: ServiceTimes, one: float, two: float, three: float) -> None:
    begin, middle, end = sorted((one, two, three))
    assert times.orders(begin, end) == pytest.approx(times.orders(begin, middle) + times.orders(middle, end))


@given(service_times())
def test_service_times_are_read_as_they_are_written(times: ServiceTimes) -> None:
    assert ServiceTimes.parse(str(times)) == times


def test_an_order_takes_on_the_new_speed_in_its_middle() -> None:
    times = ServiceTimes(((0.0, 10.0), (5.0, 1.0)))
    assert times.ends(0.0, 1.0) == 5.5
    assert times.orders(0.0, 7.0) == 2.5


def test_one_that_hangs_does_what_it_can_before_and_never_ends_the_rest() -> None:
    times = ServiceTimes(((0.0, 1.0), (3.0, inf)))
    assert (times.ends(1.0, 2.0), times.ends(1.5, 2.0), times.ends(4.0, 0.5)) == (3.0, inf, inf)
    assert times.orders(0.0, 100.0) == 3.0
    assert ServiceTimes.parse(str(times)) == times


@pytest.mark.parametrize("steps", [(), ((1.0, 1.0),), ((0.0, 1.0), (0.0, 2.0)), ((0.0, 0.0),), ((0.0, float("nan")),)])
def test_service_times_that_say_nothing_are_refused(steps: tuple[tuple[float, float], ...]) -> None:
    with pytest.raises(ValueError, match="service time"):
        ServiceTimes(steps)


def test_the_ideal_is_the_sum_of_what_each_can_do() -> None:
    teachers = [ServiceTimes.constant(1.0), ServiceTimes.constant(1.0), ServiceTimes.constant(50.0)]
    assert ideal_orders(teachers, 10.0, 110.0) == pytest.approx(202.0)


def test_changing_speeds_change_at_each_change_and_equal_shares_would_not_do() -> None:
    teachers = changing()
    for change in range(1, NUM_CHANGES + 1):
        assert sum(teacher.steps[change - 1][1] != teacher.steps[change][1] for teacher in teachers) >= 2
    ideal = ideal_orders(teachers, PERIOD, (NUM_CHANGES + 1) * PERIOD)
    slowest = min(teacher.orders(PERIOD, (NUM_CHANGES + 1) * PERIOD) for teacher in teachers)
    # Even with all that may lie ready: 8 orders in each of 64 partitions.
    assert (len(teachers) * slowest + 8 * 64) / ideal < 0.9
    assert len(teachers) * slowest / ideal < 0.5


def test_a_simulated_session_answers_from_its_models_table_and_takes_its_time(tmp_path: Path) -> None:
    import time

    table = logits_table(20, 4)
    model = write_table_model(tmp_path / "table.onnx", table)
    began = time.time()
    session = SimulatedSession(from_table(model), 8, ServiceTimes.constant(0.2), began)
    (answer,) = session.run(["logits"], {"number": np.array([3, 19, 3, 0])})
    assert time.time() - began >= 0.1  # half an order
    assert np.array_equal(answer, table[[3, 19, 3, 0]])
