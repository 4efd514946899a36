"""How fast a stage was lately."""

from __future__ import annotations

import pytest

from teacher_service import clock as clock_module
from teacher_service.clock import Clock


class Time:
    now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def time(monkeypatch: pytest.MonkeyPatch) -> Time:
    made = Time()
    monkeypatch.setattr(clock_module, "time", made)
    return made


def work(clock: Clock, time: Time, seconds: float, num_samples: int) -> None:
    clock.start(num_samples)
    time.now += seconds
    clock.stop()


def test_nothing_is_known_before_something_was_measured(time: Time) -> None:
    clock = Clock()
    assert clock.seconds_per_sample() == 0.0
    clock.start(10)
    time.now += 1.0
    assert clock.seconds_per_sample() == 0.0
    clock.stop()
    assert clock.seconds_per_sample() == pytest.approx(0.1)


@pytest.mark.parametrize("seconds", [0.01, 1.0, 30.0])
def test_steady_work_has_its_own_speed(time: Time, seconds: float) -> None:
    clock = Clock()
    for _ in range(20):
        work(clock, time, seconds, 256)
    assert clock.seconds_per_sample() == pytest.approx(seconds / 256)


@pytest.mark.parametrize(("before", "after"), [(1.0, 0.1), (0.1, 1.0), (10.0, 1.0)])
def test_a_change_is_known_within_ten_seconds(time: Time, before: float, after: float) -> None:
    clock = Clock()
    for _ in range(20):
        work(clock, time, before, 1)
    began = time.now
    while time.now < began + 10.0:
        work(clock, time, after, 1)
    assert clock.seconds_per_sample() == pytest.approx(after, rel=0.12)


def test_a_short_order_counts_by_its_samples(time: Time) -> None:
    clock = Clock()
    for samples in (256, 256, 8, 256, 8):
        work(clock, time, samples / 100, samples)
    assert clock.seconds_per_sample() == pytest.approx(0.01)


def test_work_that_hangs_counts_while_it_lasts(time: Time) -> None:
    clock = Clock()
    for _ in range(20):
        work(clock, time, 1.0, 1)
    clock.start(1)
    time.now += 0.9
    assert clock.seconds_per_sample() == pytest.approx(1.0)
    time.now += 9.1
    assert clock.seconds_per_sample() > 5.0
    time.now += 100.0
    assert clock.seconds_per_sample() > 100.0


def test_a_measurement_says_nothing_of_how_long_an_order_takes(time: Time) -> None:
    clock = Clock()
    work(clock, time, 5.0, 256)
    clock.start(16)
    time.now += 0.1
    clock.stop(whole_order=False)
    assert clock.smoothed == 5.0
    assert clock.since is None


def test_progress_within_an_order_begins_its_time_anew(time: Time) -> None:
    clock = Clock()
    clock.alive()
    assert clock.since is None
    clock.start(4)
    time.now += 50.0
    clock.alive()
    assert clock.since == time.now


@pytest.mark.parametrize(("usual", "overdue"), [(0.01, 1.0), (2.0, 2.5), (20.0, 25.0)])
def test_work_is_overdue_after_a_quarter_more_than_usual_and_a_second_at_least(
    time: Time, usual: float, overdue: float
) -> None:
    clock = Clock()
    for _ in range(5):
        work(clock, time, usual, 8)
    assert not clock.overdue
    clock.start(8)
    time.now += overdue - 0.01
    assert not clock.overdue
    time.now += 0.02
    assert clock.overdue
    clock.stop()
    assert not clock.overdue
