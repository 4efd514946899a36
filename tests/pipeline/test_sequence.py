"""Which samples an order holds."""

from __future__ import annotations

import time
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.sequence import MAX_SAMPLES, Sequence
from schemas.errors import ConfigError

SMALL = st.builds(
    Sequence,
    num_samples=st.integers(1, 300),
    order_size=st.integers(1, 400),
    epochs=st.integers(1, 3),
    seed=st.integers(0, 2**63 - 1),
    partitions=st.integers(1, 9),
)


def epoch_ids(sequence: Sequence, epoch: int) -> np.ndarray:
    first = epoch * sequence.orders_per_epoch
    return np.concatenate([sequence.sample_ids(first + i) for i in range(sequence.orders_per_epoch)])


def test_orders_and_view_seeds_are_golden():
    sequence = Sequence(num_samples=10, order_size=4, epochs=3, seed=1, partitions=2)
    assert [sequence.sample_ids(s).tolist() for s in range(9)] == [
        [3, 1, 5, 4],
        [9, 8, 7, 0],
        [6, 2],
        [9, 6, 0, 4],
        [1, 2, 5, 8],
        [3, 7],
        [6, 4, 9, 1],
        [8, 2, 3, 7],
        [5, 0],
    ]
    assert [sequence.view_seed(e) for e in range(3)] == [653326441020123633, 8000018271228578070, 5471039586325545675]
    huge = replace(sequence, num_samples=2**40)
    assert huge.sample_ids(2**38 - 1).tolist() == [687859700151, 191683148462, 132743588330, 1022758694007]
    assert huge.sample_ids(2**38).tolist() == [186998085721, 479562826074, 401768686970, 1061851465441]


@settings(deadline=None, max_examples=50)
@given(SMALL)
def test_each_epoch_is_a_permutation(sequence):
    for epoch in range(sequence.epochs):
        assert np.sort(epoch_ids(sequence, epoch)).tolist() == list(range(sequence.num_samples))


@settings(deadline=None)
@given(st.integers(30, 600), st.integers(0, 2**63 - 1))
def test_two_epochs_differ(num_samples, seed):
    sequence = Sequence(num_samples, 64, 2, seed, 1)
    assert epoch_ids(sequence, 0).tolist() != epoch_ids(sequence, 1).tolist()
    assert epoch_ids(sequence, 0).tolist() != epoch_ids(replace(sequence, seed=seed ^ 1), 0).tolist()
    assert sequence.view_seed(0) != sequence.view_seed(1)


@settings(deadline=None, max_examples=50)
@given(SMALL)
def test_the_last_order_of_an_epoch_holds_what_is_left(sequence):
    for s in range(sequence.num_orders):
        ids = sequence.sample_ids(s)
        is_last = (s + 1) % sequence.orders_per_epoch == 0
        left = sequence.num_samples - (sequence.orders_per_epoch - 1) * sequence.order_size
        assert len(ids) == sequence.size_of(s) == (left if is_last else sequence.order_size)
        assert ids.dtype == np.int64
        assert sequence.epoch_of(s) == s // sequence.orders_per_epoch


@settings(deadline=None)
@given(st.integers(1, MAX_SAMPLES), st.integers(0, 2**63 - 1), st.data())
def test_ids_of_a_huge_dataset_are_distinct_and_inside(num_samples, seed, data):
    sequence = Sequence(num_samples, 64, 5, seed, 8)
    s = data.draw(st.integers(0, sequence.num_orders - 1))
    ids = sequence.sample_ids(s)
    assert ids.min() >= 0
    assert ids.max() < num_samples
    assert len(np.unique(ids)) == len(ids)


@pytest.mark.parametrize("num_samples", [2**40, 2**40 - 1, 2**39 + 12345, 10**9])
def test_an_order_costs_its_size_whatever_the_dataset(num_samples):
    sequence = Sequence(num_samples, 256, 100, 3, 64)
    sequence.sample_ids(0)
    tracemalloc.start()
    started = time.perf_counter()
    for s in range(sequence.num_orders - 20, sequence.num_orders):
        sequence.sample_ids(s)
    took = time.perf_counter() - started
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    # Measured: 10 to 200 kB, as the allocator pleases; an epoch's IDs would be gigabytes.
    assert peak < 2**20
    assert took < 2.0


def test_a_position_says_nothing_about_the_id_it_holds():
    ids = epoch_ids(Sequence(20000, 256, 1, 5, 1), 0)
    assert abs(np.corrcoef(np.arange(20000), ids)[0, 1]) < 0.03
    assert abs(np.corrcoef(ids[1:], ids[:-1])[0, 1]) < 0.03


@settings(deadline=None)
@given(SMALL, st.integers(0, 10**6))
def test_next_in_is_the_smallest_of_its_partition(sequence, s):
    for partition in range(sequence.partitions):
        found = sequence.next_in(partition, s)
        assert s <= found < s + sequence.partitions
        assert sequence.partition(found) == partition
        assert sequence.next_in(partition, 0) == sequence.first_of(partition)


WRONG = {
    "num_samples": [0, -1, MAX_SAMPLES + 1],
    "order_size": [0, -5],
    "epochs": [0],
    "seed": [-1, 2**63],
    "partitions": [0],
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in WRONG.items() for value in values])
def test_a_number_that_makes_no_sense_is_refused_by_name(name, value):
    with pytest.raises(ConfigError, match=name):
        replace(Sequence(10, 4, 3, 1, 2), **{name: value})


@pytest.mark.parametrize("s", [-1, 9])
def test_an_order_outside_the_stream_is_refused(s):
    with pytest.raises(IndexError, match="outside"):
        Sequence(10, 4, 3, 1, 2).sample_ids(s)
