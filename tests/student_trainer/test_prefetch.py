from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from student_trainer.prefetch import Prefetcher

DEADLINE = 10.0


def nothing() -> None:
    pass


@pytest.mark.parametrize("depth", [1, 2, 5])
def test_items_come_in_order_and_then_none(depth: int) -> None:
    with Prefetcher(lambda: iter(range(200)), depth, nothing) as ready:
        assert [ready.get() for _ in range(200)] == list(range(200))
        assert ready.get() is None
        assert ready.produced == 200


def test_no_more_than_the_depth_and_the_one_in_hand_is_made_ahead() -> None:
    with Prefetcher(lambda: iter(range(100)), 3, nothing) as ready:
        assert ready.get() == 0
        for expected in range(1, 100):
            assert ready.produced <= expected + 3 + 1
            assert ready.get() == expected


def test_an_error_of_the_thread_is_raised_after_the_items_before_it() -> None:
    def items() -> Iterator[int]:
        yield 1
        raise KeyError("lost")

    with Prefetcher(items, 4, nothing) as ready:
        assert ready.get() == 1
        with pytest.raises(KeyError, match="lost"):
            ready.get()
        with pytest.raises(KeyError, match="lost"):
            ready.get()


def test_a_wait_can_be_interrupted_and_is_measured() -> None:
    released = threading.Event()

    def items() -> Iterator[int]:
        yield 1
        released.wait(DEADLINE)

    with Prefetcher(items, 4, released.set) as ready:
        assert ready.get() == 1
        assert ready.get(lambda: True) is None
        assert not released.is_set()
        assert ready.waited >= ready.first_wait + ready.longest_wait > 0


def test_leaving_stops_a_thread_that_waits_for_room_or_for_its_source() -> None:
    before = threading.active_count()
    with Prefetcher(lambda: iter(range(1000)), 2, nothing) as ready:
        assert ready.get() == 0
    stop = threading.Event()

    def items() -> Iterator[int]:
        stop.wait(DEADLINE)
        yield from ()

    with Prefetcher(items, 2, stop.set):
        pass
    assert threading.active_count() == before
