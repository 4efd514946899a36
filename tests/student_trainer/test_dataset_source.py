from __future__ import annotations

from itertools import islice

import numpy as np
import pytest
from support.user_data import Endless
from train_runs import digits_run

from pipeline.datasets import open_dataset
from schemas.errors import ConfigError, DataUnavailable
from student_trainer.sources.base import Cursor
from student_trainer.sources.dataset import DatasetSource
from student_trainer.sources.hard_labels import HardLabels, labelled_ids


def test_orders_go_on_from_the_cursor() -> None:
    whole = list(islice(DatasetSource(digits_run()).orders(Cursor.start()), 8))
    rest = list(islice(DatasetSource(digits_run()).orders(Cursor(0, 3, 17)), 5))
    assert [order.sequence for order in rest] == [3, 4, 5, 6, 7]
    for ours, theirs in zip(rest, whole[3:], strict=True):
        assert np.array_equal(ours.sample_ids, theirs.sample_ids)
        assert np.array_equal(ours.labels, theirs.labels)
        assert (ours.view_seed, ours.address, ours.place) == (theirs.view_seed, "", None)


def test_a_label_budget_hides_all_other_labels() -> None:
    settings = digits_run(data={"labelled": 100, "epochs": 1}, train={"steps": 0})
    source = DatasetSource(settings)
    labels = np.concatenate([order.labels for order in source.orders(Cursor.start())])
    assert len(labels) == 1297
    assert (labels >= 0).sum() == 100
    assert np.bincount(labels[labels >= 0]).tolist() == [10] * 10
    assert source.labelled_fraction == pytest.approx(100 / 1297)


def test_only_labelled_runs_over_the_labelled_samples_alone() -> None:
    settings = digits_run(data={"labelled": 100, "only_labelled": True}, train={"steps": 3})
    source = DatasetSource(settings)
    orders = list(source.orders(Cursor.start()))
    assert source.labelled_fraction == 1
    assert source.sequence.num_samples == 100
    assert source.sequence.epochs == 2  # as many as 3 steps of 50 rows need
    assert all((order.labels >= 0).all() for order in orders)
    assert orders[0].view_seed == orders[1].view_seed != orders[2].view_seed


def test_a_closed_source_ends() -> None:
    source = DatasetSource(digits_run())
    orders = source.orders(Cursor.start())
    next(orders)
    source.close()
    assert list(orders) == []


def test_a_description_tells_datasets_and_views_apart() -> None:
    same, again, other = (
        DatasetSource(digits_run(data=data)).describe()
        for data in ({}, {}, {"view": {"name": "affine", "rotation": 11.0}})
    )
    assert same == again != other
    assert same["fingerprint"] == other["fingerprint"]


@pytest.mark.parametrize(("budget", "count"), [(None, 1297), (0, 0), (37, 37)])
def test_hidden_labels_are_minus_one(budget: int | None, count: int) -> None:
    dataset = open_dataset("digits?split=train")
    ids = np.arange(dataset.num_samples)[::-1]
    hard = HardLabels.of(dataset, budget, seed=1)
    hidden = hard.read(ids)
    assert (hidden >= 0).sum() == count
    assert hard.fraction == pytest.approx(count / 1297)
    assert np.array_equal(hidden[hidden >= 0], dataset.labels(ids)[hidden >= 0])


def test_labels_are_counted_when_they_are_asked_for_and_looked_for_until_one_is_found() -> None:
    dataset = Endless(10**9)
    hard = HardLabels.of(dataset, None, seed=1)
    assert hard.any
    assert dataset.asked <= 1 << 20
    ids = np.array([5, 10**9 - 1])
    assert hard.read(ids).tolist() == [5, 9]
    small = HardLabels.of(Endless(2_000_003), None, seed=1)
    assert small.fraction == 1.0
    assert labelled_ids(dataset, small) is None


def test_a_label_budget_of_many_blocks_is_stratified() -> None:
    dataset = Endless(3_000_000)
    hard = HardLabels.of(dataset, 1_000, seed=1)
    assert hard.shown is not None
    assert np.bincount(dataset.labels(hard.shown)).tolist() == [100] * 10
    assert hard.shown.max() > 2_500_000


def test_storage_that_is_away_at_the_start_is_said_in_one_line() -> None:
    settings = digits_run(data={"dataset": "support.user_data:away"})
    with pytest.raises(DataUnavailable, match=r"away cannot be read: .*Stale file handle"):
        DatasetSource(settings)


def test_a_view_that_does_not_exist_is_refused() -> None:
    with pytest.raises(ConfigError, match="affine"):
        DatasetSource(digits_run(data={"view": "afine"}))
