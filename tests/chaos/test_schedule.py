from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chaos.schedule import COMMON, FLEET, FLEET_WORKERS, LOSE, ONE, THREE, by_kind, resources, schedule

README = Path(__file__).parents[2] / "README.md"
SEEDS = st.integers(0, 1 << 32)
BROKERS = st.sampled_from([1, 3])


@given(SEEDS, st.integers(1, 300), BROKERS)
def test_a_seed_gives_the_same_faults_every_time_and_as_many_as_asked_for(seed: int, count: int, brokers: int) -> None:
    faults = schedule(seed, count, 8.0, brokers)
    assert faults == schedule(seed, count, 8.0, brokers)
    assert len(faults) == count
    assert [fault.at for fault in faults] == sorted(fault.at for fault in faults)


@given(SEEDS, BROKERS)
def test_faults_come_every_8_seconds_on_average_and_overlap(seed: int, brokers: int) -> None:
    faults = schedule(seed, 200, 8.0, brokers)
    assert 0.85 * 1600 < faults[-1].at < 1.2 * 1600
    ends = [fault.at + fault.seconds for fault in faults]
    assert sum(end > later.at for end, later in zip(ends, faults[1:], strict=False)) > 40


@given(SEEDS, BROKERS)
def test_nobody_is_struck_while_a_fault_has_him(seed: int, brokers: int) -> None:
    free: dict[str, float] = {}
    for fault in schedule(seed, 200, 8.0, brokers):
        for who in resources(fault.target):
            assert free.get(who, 0.0) <= fault.at
            free[who] = fault.at + fault.seconds


@given(SEEDS, BROKERS)
def test_a_fleet_and_its_workers_are_struck_in_turn_and_no_worker_dies_five_times_a_minute(
    seed: int, brokers: int
) -> None:
    faults = schedule(seed, 200, 8.0, brokers)
    for worker in FLEET_WORKERS:
        kills = [fault.at for fault in faults if (fault.kind, fault.target) == ("kill fleet worker", worker)]
        assert all(later - at > 60.0 for at, later in pairwise(kills))
        assert set(resources(worker)) < set(resources(FLEET))
    assert {fault.kind for fault in faults if fault.target == FLEET} <= {"kill fleet", "leave"}


@given(SEEDS, BROKERS)
def test_a_long_soak_has_every_kind_and_kills_workers_most(seed: int, brokers: int) -> None:
    kinds = by_kind(schedule(seed, 200, 8.0, brokers))
    assert set(kinds) == {kind.name for kind in (ONE if brokers == 1 else THREE)} | ({LOSE} if brokers == 3 else set())
    assert kinds["kill worker"] >= 15


@given(SEEDS)
def test_of_three_brokers_one_is_lost_and_the_others_are_left_alone_after_that(seed: int) -> None:
    faults = schedule(seed, 60, 8.0, 3)
    (lost,) = [place for place, fault in enumerate(faults) if fault.kind == LOSE]
    assert 40 <= lost < 50
    assert not [fault for fault in faults[lost + 1 :] if "broker" in fault.kind]
    assert [fault for fault in faults[:lost] if "broker" in fault.kind]


def test_another_seed_is_another_schedule() -> None:
    assert schedule(1, 20) != schedule(2, 20)


@pytest.mark.parametrize("kind", [*COMMON, *ONE, *THREE], ids=lambda kind: kind.name)
def test_no_worker_is_frozen_for_longer_than_its_watchdog_waits(kind: object) -> None:
    assert kind.seconds[1] <= 30.0  # type: ignore[attr-defined]


def test_the_readme_counts_the_kinds() -> None:
    words = {14: "fourteen", 15: "fifteen", 16: "sixteen", 17: "seventeen", 18: "eighteen", 19: "nineteen"}
    said = f"{words[len(ONE)]} kinds on one broker or {words[len(THREE) + 1]} on three"
    assert said in " ".join(README.read_text().split())
