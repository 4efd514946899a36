"""Unequal teachers on simulated accelerators: what a student can take in sequence, against the arithmetic ideal.

Each scenario is one run of real worker processes over a real Kafka (stand.py); only the accelerators are simulated
(simulated.py): one order takes a second or more. The ideal is the sum of what the teachers can do by their service
times. The start is cut: the steady state begins some time after the last worker has joined, and is taken over whole
rounds of P orders (in_sequence.py). Workers wait more than they compute, so scenarios of few workers run side by side:
sharing the cores can only lower what they come to.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from math import inf
from typing import Any

from benchmarks.in_sequence import taken
from benchmarks.service_times import ServiceTimes
from benchmarks.stand import Stand, cpu_between
from benchmarks.streams import ORDER_SIZE, Bench

SECOND = ServiceTimes.constant(1.0)
PERIOD = 120.0
"""seconds between two changes of speed"""
CHANGING = (
    (1.0, 4.0, 1.0, 1.0, 2.0, 1.0),
    (1.0, 1.0, 8.0, 2.0, 1.0, 4.0),
    (4.0, 1.0, 2.0, 8.0, 8.0, 2.0),
    (8.0, 8.0, 4.0, 4.0, 4.0, 8.0),
)
"""[teachers, periods] seconds for an order. Unequal on average, too: orders that lie ready for minutes would let equal
shares pass where everybody is slow in turn (measured: 0.90)."""
NUM_CHANGES = 5


@dataclass(frozen=True, slots=True)
class Steady:
    """Teachers whose throughput is measured."""

    teachers: tuple[ServiceTimes, ...]
    settle: float = 30.0
    """seconds that are cut, from the last worker's joining on"""
    seconds: float = 140.0
    """then what is measured"""
    begin: float | None = None
    """in place of `settle`: seconds since the workers were started"""


@dataclass(frozen=True, slots=True)
class Stopping:
    """Four teachers, of which one stops for a time, or for ever; and a student of a given pace."""

    pace: float
    """of the student, as a fraction of what the teachers can do that are left for good"""
    left: int
    frozen: float = 0.0
    """seconds for which one is frozen (SIGSTOP)"""
    hangs_at: float = inf
    """seconds from which on one never answers again"""


def changing() -> tuple[ServiceTimes, ...]:
    """Four teachers, of which two or more become 2 to 8 times faster or slower at each change."""
    return tuple(
        ServiceTimes(tuple((PERIOD * period, seconds) for period, seconds in enumerate(row))) for row in CHANGING
    )


READY = 256
"""orders that lie ready as the student of a given pace begins: the lower threshold of `feed --follow`"""
STOP_AT = 110.0
"""seconds since the workers were started: the student has begun, after 256 orders of four teachers"""

STEADY = {
    "teachers_equal": Steady((SECOND,) * 4, seconds=200.0),
    "straggler_10x": Steady((ServiceTimes.constant(10.0), *(SECOND,) * 3), settle=120.0, seconds=300.0),
    "straggler_50x": Steady((ServiceTimes.constant(50.0), *(SECOND,) * 3), settle=90.0, seconds=220.0),
    # From right before the first change on, to where the sixth would be: so five changes, and as long after each.
    "speeds_changing": Steady(changing(), seconds=NUM_CHANGES * PERIOD, begin=PERIOD),
}
STOPS = {
    "frozen_60s": Stopping(pace=0.8, left=4, frozen=60.0),
    "hangs_for_ever": Stopping(pace=0.8, left=3, hangs_at=STOP_AT),
}
SIZES = {f"scaling_{number}": Steady((SECOND,) * number) for number in (1, 2, 4, 8, 16)}
LARGE = {f"scaling_{number}": Steady((SECOND,) * number, settle=180.0, seconds=80.0) for number in (32, 64)}
"""Printed, without a bar: where the rest goes on the cores that there are. One that started while the cores were taken
may have bid half its speed, and gets no partition until it has measured it again."""
SIDE_BY_SIDE = (
    ("teachers_equal", "straggler_10x", "straggler_50x", "speeds_changing"),
    ("scaling_1", "scaling_2", "scaling_4", "scaling_8"),
    ("scaling_16",),
    ("frozen_60s", "hangs_for_ever"),
    ("scaling_32",),
    ("scaling_64",),
)
"""what is measured at one time"""
SCENARIOS = tuple(name for group in SIDE_BY_SIDE for name in group)


def measure_steady(bench: Bench, name: str, steady: Steady, cancelled: threading.Event) -> dict[str, Any]:
    """What could be taken in the steady state, and the cores that it took."""
    with Stand(bench, name.replace("_", "-"), steady.teachers, cancelled=cancelled) as stand:
        joined = stand.now
        begin = joined + steady.settle if steady.begin is None else steady.begin
        if begin < joined:
            raise RuntimeError(
                f"{name}: the last worker joined after {joined:.0f} s, measuring begins at {begin:.0f} s"
            )
        stand.wait(begin)
        shares = [stand.shares()]
        before, since = stand.cpu(), stand.now
        stand.wait(begin + steady.seconds)
        cpu = cpu_between(before, stand.cpu(), stand.now - since)
        shares.append(stand.shares())
        arrivals, labelled = list(stand.taker.arrivals), list(stand.taker.labelled)
        result = taken(arrivals, labelled, stand.partitions, begin, begin + steady.seconds, stand.ideal)
    rounds = result.rounds_spread
    return {
        "median": result.ratio,
        "runs": 1,
        "labelled": result.labelled,
        "orders": result.orders,
        "orders_per_s": result.orders / result.seconds,
        "ideal_orders_per_s": result.ideal_orders / result.seconds,
        "samples_per_s": ORDER_SIZE * result.orders / result.seconds,
        "ideal_samples_per_s": ORDER_SIZE * result.ideal_orders / result.seconds,
        "seconds": result.seconds,
        "cut_s": begin,
        "joined_s": joined,
        "rounds": len(result.rounds),
        "rounds_quartiles": [rounds.low, rounds.high] if rounds else [],
        "teachers": [str(service) for service in steady.teachers],
        "partitions": shares,
        "cores": cpu,
    }


def measure_stop(bench: Bench, name: str, stopping: Stopping, cancelled: threading.Event) -> dict[str, Any]:
    """The longest wait of a step while one of four teachers stops."""
    last = ServiceTimes(((0.0, 1.0), (stopping.hangs_at, inf))) if stopping.hangs_at < inf else SECOND
    pace = stopping.pace * stopping.left
    teachers = (*(SECOND,) * 3, last)
    with Stand(bench, name.replace("_", "-"), teachers, 1 / pace, READY, cancelled) as stand:
        victim = stand.workers[-1]
        stand.wait(STOP_AT)
        student = stand.taker.student
        if student is None:
            raise RuntimeError(
                f"{name}: {len(stand.taker.arrivals)} orders at {STOP_AT:.0f} s, {READY} were to lie ready"
            )
        lead = len(stand.taker.arrivals) - student.trained(stand.now)
        if stopping.frozen:
            victim.send(signal.SIGSTOP)
            stand.wait(STOP_AT + stopping.frozen)
            victim.send(signal.SIGCONT)
        # A worker that finds itself hung ends; one that was frozen goes on.
        stand.wait(STOP_AT + 120.0, may_end=[] if stopping.frozen else [victim])
        end = stand.now
        arrivals = list(stand.taker.arrivals)
        gaps = [after - before for before, after in pairwise(arrivals) if after >= STOP_AT]
        return {
            "longest_wait_s": student.longest_wait(STOP_AT, end),
            "lead_orders": lead,
            "lead_s": lead / pace,
            "student_orders_per_s": pace,
            "longest_gap_s": max([*gaps, end - arrivals[-1]]),
            "trained_orders": student.trained(end),
            "stopped_one_ended": not victim.running,
        }


def run(bench: Bench, only: Iterable[str] = ()) -> dict[str, Any]:
    """Measure all scenarios, or some; the ratio of scaling is that of the worst size.

    A scenario that fails is named among `failed`, and takes no other along.
    """
    chosen = set(only) or set(SCENARIOS)
    measured: dict[str, dict[str, Any]] = {}
    failed: dict[str, str] = {}
    for group in SIDE_BY_SIDE:
        _measure(bench, [name for name in group if name in chosen], measured, failed)
    stops = {name: measured[name] for name in STOPS if name in measured}
    sizes = {name: measured[name] for name in SIZES if name in measured}
    ratios = {name: measured[name] for name in STEADY if name in measured}
    if sizes:
        ratios["scaling_16"] = min(sizes.values(), key=lambda figures: figures["median"])
    of_size = sizes | {name: measured[name] for name in LARGE if name in measured}
    scaling = {str(len(each["teachers"])): each for each in of_size.values()}
    figures: dict[str, Any] = {"ratios": ratios, "scaling": scaling, "stops": stops, "failed": failed}
    if stops:
        figures["longest_wait_s"] = max(stop["longest_wait_s"] for stop in stops.values())
    return figures


def _measure(bench: Bench, names: Sequence[str], measured: dict[str, dict[str, Any]], failed: dict[str, str]) -> None:
    """Measure some scenarios side by side."""
    cancelled = threading.Event()

    def measure(name: str) -> dict[str, Any]:
        if name in STOPS:
            return measure_stop(bench, name, STOPS[name], cancelled)
        return measure_steady(bench, name, (STEADY | SIZES | LARGE)[name], cancelled)

    with ThreadPoolExecutor(max(1, len(names))) as pool:
        started = {name: pool.submit(measure, name) for name in names}
        try:
            for name, future in started.items():
                try:
                    measured[name] = future.result()
                except Exception as error:
                    failed[name] = str(error)[:300]
        except BaseException:
            cancelled.set()  # or the pool would wait for all of them
            raise
