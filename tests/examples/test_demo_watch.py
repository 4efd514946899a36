from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from watch import Check, KillWatch, Label

PARTITIONS = 4


def label(sequence: int, worker: str = "a", time: float = 0.0) -> Label:
    return Label(sequence % PARTITIONS, sequence, 10, worker, time)


def test_a_whole_log_has_lost_nothing():
    check = Check(8, PARTITIONS)
    assert all(check.add(label(sequence)) for sequence in range(8))
    assert (check.num_lost, check.num_samples, check.num_duplicates) == (0, 80, 0)


def test_a_repetition_is_dropped_and_counted_with_its_samples():
    check = Check(8, PARTITIONS)
    assert [check.add(label(sequence)) for sequence in (0, 4, 0, 4)] == [True, True, False, False]
    assert (check.num_duplicates, check.num_duplicate_samples, check.num_lost) == (2, 20, 6)


def test_an_order_behind_a_hole_is_lost_until_it_comes_again_in_its_place():
    check = Check(8, PARTITIONS)
    for sequence in (1, 2, 3, 5, 6, 7, 4):
        check.add(label(sequence))
    assert (check.num_early, check.num_lost) == (1, 2)
    check.add(label(0))
    check.add(label(4))
    assert check.num_lost == 0


@given(st.lists(st.integers(0, 11), max_size=60))
def test_an_order_is_accepted_once_and_only_behind_all_before_it_in_its_partition(sequences: list[int]):
    check = Check(12, PARTITIONS)
    accepted = [sequence for sequence in sequences if check.add(label(sequence))]
    for partition in range(PARTITIONS):
        mine = [sequence for sequence in accepted if sequence % PARTITIONS == partition]
        assert mine == list(range(partition, partition + PARTITIONS * len(mine), PARTITIONS))
    assert len(accepted) + check.num_duplicates + check.num_early == len(sequences)
    assert check.num_lost == 12 - len(accepted)


def watched(kill_at: int = 4) -> KillWatch:
    """Worker a owns partitions 0 and 1, worker b 2 and 3; a reaches the sequence."""
    kill = KillWatch(kill_at)
    for sequence, worker in enumerate("aabb"):
        kill.add(label(sequence, worker, 99.0))
    kill.add(label(4, "a", 99.5))
    return kill


def test_the_victim_is_the_worker_that_reaches_the_sequence():
    assert KillWatch(4).victim == ""
    assert watched().victim == "a"


def test_time_counts_from_the_kill_to_the_next_label_of_each_of_its_partitions_by_another():
    kill = watched()
    kill.kill(100.0)
    assert (kill.first, kill.last) == (None, None)
    kill.add(label(8, "b", 102.5))
    kill.add(label(5, "c", 104.0))
    assert (kill.first, kill.last) == (2.5, 4.0)


def test_what_the_victim_had_sent_before_it_died_and_the_others_own_partitions_do_not_count():
    kill = watched()
    kill.kill(100.0)
    kill.add(label(5, "a", 99.9))
    kill.add(label(6, "b", 100.1))
    assert kill.first is None
    assert set(kill.waits) == {0, 1}


def test_only_the_first_label_after_the_kill_counts():
    kill = watched()
    kill.kill(100.0)
    for sequence, time in ((8, 101.0), (12, 109.0)):
        kill.add(label(sequence, "b", time))
    assert kill.waits[0] == pytest.approx(1.0)
