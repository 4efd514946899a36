"""Batches of rows become batches: full, in order, the same whoever loads them, whatever cannot be decoded."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.datasets.base import ArrayDataset, Ints, Samples
from pipeline.views import view_spec
from pipeline.views.fetch import Fetched, Fetcher
from pipeline.views.patience import fetch_patiently
from schemas.errors import BadSamples, DataUnavailable, ManifestMismatch
from student_trainer.batches import Batch, cut
from student_trainer.loading import Loader
from student_trainer.sources.base import BRING_BACK, Cursor, LabelledOrder

COUNT = 3000
PER_EPOCH = 4
"""Orders that are seen under one view seed."""


class Damaged(ArrayDataset):
    """Some of its samples cannot be decoded, for a while or for ever."""

    broken: frozenset[int] = frozenset()
    reads_until_whole = 10**9

    def read(self, sample_ids: Ints) -> Samples:
        kind = type(self)
        kind.reads_until_whole -= 1
        bad = np.isin(sample_ids, list(self.broken)) & (kind.reads_until_whole >= 0)
        fields = {name: array[sample_ids[~bad]] for name, array in self.arrays.items()}
        return Samples(fields, np.flatnonzero(~bad), tuple((int(row), "cut short") for row in np.flatnonzero(bad)))


class Noted(Fetcher):
    """A fetcher that notes what it is asked for."""

    requests: list[tuple[int, int]]

    def fetch(self, sample_ids: Ints, view_seed: int, size: tuple[int, ...] | None = None) -> Fetched:
        self.requests.append((view_seed, len(sample_ids)))
        return super().fetch(sample_ids, view_seed, size)


def fetcher(*broken: int, loaders: int = 1, reads: int = 10**9, signal: bool = False) -> Noted:
    kind = type("Damaged", (Damaged,), {"broken": frozenset(broken), "reads_until_whole": reads})
    values = np.arange(COUNT * 4, dtype=np.float32).reshape(COUNT, 1, 4)
    view = view_spec("signal", {"noise": 0.1}) if signal else view_spec("none", {})
    made = Noted(kind("birds", {"x": values}, np.arange(COUNT)), view, loaders)
    made.requests = []
    return made


def orders(sizes: list[int], seen: bool = False) -> list[LabelledOrder]:
    ends = list(itertools.accumulate(sizes))
    ids = [np.arange(end - size, end) + 100 for size, end in zip(sizes, ends, strict=True)]
    return [
        LabelledOrder(0, number, number // PER_EPOCH, each, each % 10, address=f"log@{number}" if seen else "")
        for number, each in enumerate(ids)
    ]


def loaded(of: Fetcher, rows: list[LabelledOrder], batch_size: int, together: int = 1) -> list[Batch]:
    loader = Loader(of, (), np.arange(50, 60))
    return [each for each, _ in loader.batches(cut(rows, batch_size, Cursor.start(), 10**6, together))]


def same(one: list[Batch], other: list[Batch]) -> bool:
    return len(one) == len(other) and all(
        torch.equal(a.sample_ids, b.sample_ids)
        and torch.equal(a.labels, b.labels)
        and torch.equal(a.inputs["x"], b.inputs["x"])
        and (a.weights is None) == (b.weights is None)
        and (a.weights is None or torch.equal(a.weights, b.weights))
        and a.cuts == b.cuts
        for a, b in zip(one, other, strict=True)
    )


SIZES = [64, 64, 30, 64, 64, 0, 7, 64]
BROKEN = (105, 163, 164, 221, 300)


@pytest.mark.parametrize("batch_size", [1, 7, 50, 200])
@pytest.mark.parametrize("loaders", [1, 3])
@pytest.mark.parametrize("together", [1, 4])
def test_batches_do_not_depend_on_how_they_are_loaded(batch_size: int, loaders: int, together: int) -> None:
    of = fetcher(*BROKEN, signal=True)
    expected = loaded(of, orders(SIZES), batch_size)
    again = loaded(fetcher(*BROKEN, loaders=loaders, signal=True), orders(SIZES), batch_size, together)
    assert same(again, expected)
    assert len(expected) == sum(SIZES) // batch_size
    for batch in expected:
        seeds = [each.view_seed for each in batch.cuts for _ in range(each.num_rows)]
        for row, (sample_id, seed) in enumerate(zip(batch.sample_ids.tolist(), seeds, strict=True)):
            good = sample_id not in BROKEN
            assert (batch.weights is None or batch.weights[row] == 1) == good
            # In the place of a broken one stands the first of the first samples.
            view = of.fetch(np.array([sample_id if good else 50]), seed if good else 0).inputs["x"][0]
            assert np.array_equal(batch.inputs["x"][row].numpy(), view)
        assert (batch.weights is None) == (not set(batch.sample_ids.tolist()) & set(BROKEN))


def test_a_batch_over_two_epochs_is_fetched_under_both_view_seeds_and_small_ones_come_together() -> None:
    of = fetcher()
    loaded(of, orders([64] * 8), 100)
    assert of.requests == [(0, 100), (0, 100), (0, 56), (1, 44), (1, 100), (1, 100)]
    of = fetcher()
    loaded(of, orders([64] * 2), 8, together=4)
    assert of.requests == [(0, 32)] * 4


def test_where_no_sample_of_a_batch_can_be_decoded_the_stand_in_fills_it() -> None:
    (batch, other) = loaded(fetcher(*range(100, 105), 50, 51), orders([10]), 5)
    assert batch.weights is not None
    assert batch.weights.tolist() == [0.0] * 5
    assert np.array_equal(batch.inputs["x"].numpy(), np.tile(np.arange(208.0, 212.0, dtype=np.float32), (5, 1, 1)))
    assert other.weights is None


def test_samples_that_cannot_be_decoded_are_named_but_not_without_end(caplog: pytest.LogCaptureFixture) -> None:
    rows = orders([100] * 27)
    with caplog.at_level(logging.WARNING):
        loaded(fetcher(*range(100, 2800, 151)), rows + rows, 50)
    named = [record.getMessage() for record in caplog.records]
    assert len(named) == 16
    assert named[0] == "dataset birds: sample 100 counts for nothing (weight 0): cut short"
    assert named[1].startswith("dataset birds: sample 251 ")
    assert named[-1].endswith("cut short; further samples are not named")


@pytest.mark.parametrize("loaders", [1, 3])
def test_more_than_one_in_a_hundred_is_no_matter_of_single_samples(loaders: int) -> None:
    with pytest.raises(BadSamples, match=r"12 of the last 1000 samples cannot be decoded.*before order 9"):
        loaded(fetcher(*range(1000, 2000, 9), loaders=loaders), orders([100] * 20), 100)


def test_a_first_sample_that_nobody_can_decode_any_more_is_said() -> None:
    with pytest.raises(BadSamples, match="none of its first samples can be decoded any more: cut short"):
        loaded(fetcher(*range(50, 60), 101), orders([10]), 5)


def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(fetch_patiently.__kwdefaults__, "seconds", 0.5)  # type: ignore[arg-type]


def test_a_sample_that_a_teacher_has_seen_is_tried_again_and_then_has_two_causes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rows = orders([20, 20], seen=True)
    whole = loaded(fetcher(), rows, 40)
    assert same(loaded(fetcher(125, reads=2), rows, 40), whole)
    impatient(monkeypatch)
    both = r"log@1: the teacher has seen sample 125, which .* decoded here \(cut short\): .* or their storage fails"
    with pytest.raises(ManifestMismatch, match=both):
        loaded(fetcher(125), rows, 40)


def test_storage_that_stays_away_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def away(*arguments: Any) -> Fetched:
        raise OSError(5, "Input/output error")

    of: Any = fetcher()
    of.fetch = away
    impatient(monkeypatch)
    with pytest.raises(DataUnavailable, match=f"dataset birds cannot be read .*{BRING_BACK}"):
        loaded(of, orders([10]), 5)


def test_a_closed_loader_waits_for_no_storage() -> None:
    def away(*arguments: Any) -> Fetched:
        close()
        raise OSError(5, "Input/output error")

    of: Any = fetcher()
    of.fetch = away
    loader = Loader(of, (), np.arange(3))
    close: Callable[[], None] = loader.close
    with pytest.raises(DataUnavailable):
        list(loader.batches(cut(orders([10]), 5, Cursor.start(), 10)))
