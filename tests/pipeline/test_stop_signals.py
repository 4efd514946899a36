"""Being asked to stop may come anywhere, also where the main thread holds what stopping needs."""

from __future__ import annotations

import signal
import threading

from pipeline.stop_signals import forget, on_stop


def test_what_stops_may_take_a_lock_that_the_main_thread_held_when_the_signal_came() -> None:
    lock, taken = threading.Lock(), list[bool]()
    with on_stop(lambda: taken.append(lock.acquire(timeout=5.0))), lock:
        signal.raise_signal(signal.SIGTERM)
    assert taken == [True]
    forget()


def test_a_hangup_that_is_told_many_times_stops_at_least_once_and_hangs_nothing() -> None:
    stop = threading.Event()
    with on_stop(stop.set, hangup=True):
        for _ in range(200_000):  # more than a pipe holds
            signal.raise_signal(signal.SIGHUP)
        assert stop.wait(10.0)


def test_handlers_and_threads_are_as_before_when_the_block_has_ended() -> None:
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    before = [signal.getsignal(number) for number in numbers], threading.active_count()
    with on_stop(lambda: None, hangup=True):
        pass
    assert ([signal.getsignal(number) for number in numbers], threading.active_count()) == before
