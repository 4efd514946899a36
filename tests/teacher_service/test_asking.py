"""When a worker looks whether the partitions are worth sharing out anew."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from teacher_service.shares.asking import CHANGED, HOLD, IDLE, IDLE_EVERY, SELDOM, Asking

TICK = 0.1


def looks(asking: Asking, begin: float, end: float, speed: float, idle: bool = False) -> list[float]:
    """The times, in seconds, at which it wants to look, asked every tick."""
    ticks = [round(begin + TICK * number, 1) for number in range(round((end - begin) / TICK))]
    return [now for now in ticks if asking.look(now, speed, idle) is not None]


def settled(bid: float = 100.0) -> Asking:
    asking = Asking()
    asking.shared_out(0.0, bid)
    return asking


def test_a_speed_that_stays_makes_nobody_look() -> None:
    assert looks(settled(), 0.0, 1000.0, 108.0) == []


def test_a_halved_speed_is_looked_into_once_it_has_held() -> None:
    for speed in (50.0, 200.0, 1.0):
        assert looks(settled(), 1.0, 1.0 + HOLD + 1.0, speed) == [1.0 + HOLD]


def test_a_lesser_change_waits_until_the_last_sharing_out_is_a_minute_ago() -> None:
    assert looks(settled(), 1.0, SELDOM + 1.0, 80.0)[0] == SELDOM


def test_a_change_that_does_not_hold_is_no_change() -> None:
    asking = settled()
    for begin in range(0, 200, 10):
        assert looks(asking, begin, begin + HOLD - 1, 10.0) == []
        assert looks(asking, begin + HOLD - 1, begin + HOLD, 100.0) == []


def test_after_a_sharing_out_the_new_speed_is_what_was_bid() -> None:
    asking = settled()
    assert looks(asking, 1.0, 20.0, 10.0)
    asking.shared_out(20.0, 10.0)
    assert looks(asking, 20.0, 200.0, 10.0) == []


def test_an_idle_worker_looks_soon_and_then_less_and_less_often() -> None:
    times = looks(settled(), 10.0, 200.0, 100.0, idle=True)
    assert times[0] == 10.0 + IDLE
    pauses = [round(after - before) for before, after in pairwise(times)]
    assert pauses == [1, 2, 4, 8, 16, 32, 60, 60]


def test_noise_in_the_speed_of_an_idle_worker_counts_for_nothing() -> None:
    asking = settled(100.0)
    assert not looks(asking, 10.0, 11.0, 108.0)
    assert asking.look(11.0, 130.0, True) is None
    assert asking.look(12.0, 130.0, True) == 100.0
    assert asking.look(12.0 + SELDOM, 130.0, False) == 130.0


def test_work_in_between_makes_an_idle_worker_look_soon_again() -> None:
    asking = settled()
    looks(asking, 10.0, 100.0, 100.0, idle=True)
    assert looks(asking, 100.0, 101.0, 100.0, idle=False) == []
    assert looks(asking, 101.0, 102.0, 100.0, idle=True) == [101.0 + IDLE]


def test_idle_workers_have_the_partitions_shared_out_five_seconds_apart_at_least() -> None:
    asking = settled()
    assert looks(asking, 0.0, 20.0, 100.0, idle=True)[0] == IDLE_EVERY


def test_a_speed_that_is_not_known_is_no_change() -> None:
    assert looks(settled(), 0.0, 200.0, 0.0) == []
    assert looks(settled(0.0), 0.0, 200.0, 100.0) == []


@given(st.lists(st.floats(0.3, 3.0), max_size=40), st.floats(1.0, 1e5))
def test_noise_never_makes_it_look_more_often_than_every_hold(noise: list[float], bid: float) -> None:
    asking = settled(bid)
    times = [now for second, factor in enumerate(noise) for now in looks(asking, second, second + 1, bid * factor)]
    assert all(after - before >= IDLE_EVERY for before, after in pairwise(times))
    assert len(times) <= len(noise) / IDLE_EVERY + 1
    if all(1 / CHANGED < factor < CHANGED for factor in noise):
        assert not times
