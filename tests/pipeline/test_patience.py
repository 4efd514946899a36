"""Storage that is away for a moment, and samples that are bad: when each of them is enough."""

from __future__ import annotations

import errno
import logging
import threading
import time

import numpy as np
import pytest

from pipeline.datasets.base import ArrayDataset, Samples
from pipeline.fault_limit import FaultLimit
from pipeline.views import view_spec
from pipeline.views.fetch import Fetcher
from pipeline.views.patience import fetch_patiently, labels_patiently
from schemas.errors import BadSamples, DataUnavailable


class Away(ArrayDataset):
    """Storage that comes back when it was asked often enough."""

    tries: list[float] = []  # noqa: RUF012
    comes_back_at = 10**9

    def read(self, sample_ids):
        self.tries.append(time.monotonic())
        if len(self.tries) < self.comes_back_at:
            raise OSError(errno.EIO, "Input/output error")
        return super().read(sample_ids)


def away(comes_back_at=10**9):
    kind = type("Away", (Away,), {"tries": [], "comes_back_at": comes_back_at})
    return Fetcher(kind("mount", {"x": np.zeros((3, 1))}, np.arange(3)), view_spec("none", {}))


def test_storage_that_comes_back_is_waited_for_and_whoever_watches_is_told(caplog):
    told = []
    fetched = fetch_patiently(away(3), np.arange(3), 0, what="order 7", alive=lambda: told.append(1))
    assert fetched.labels.tolist() == [0, 1, 2]
    assert len(told) == 2
    assert caplog.text.count("order 7 cannot be read ([Errno 5] Input/output error); trying again") == 2


def test_storage_that_stays_away_ends_in_one_line_after_its_time():
    fetcher = away()
    began = time.monotonic()
    with pytest.raises(DataUnavailable) as caught:
        fetch_patiently(fetcher, np.arange(3), 0, seconds=0.8, what="order 7", advice="start the worker again")
    assert str(caught.value) == (
        "dataset mount: order 7 cannot be read ([Errno 5] Input/output error); tried for 1 s; start the worker again"
    )
    assert 0.2 < time.monotonic() - began <= 0.8
    assert len(fetcher.dataset.tries) == 4  # after 0, 0.1, 0.3 and 0.7 s


def test_who_is_asked_to_stop_waits_no_longer():
    stopped = threading.Event()
    threading.Timer(0.3, stopped.set).start()
    began = time.monotonic()
    with pytest.raises(DataUnavailable, match=r"dataset mount cannot be read .*try again"):
        fetch_patiently(away(), np.arange(3), 0, stopped=stopped, seconds=60)
    assert time.monotonic() - began < 5


class Unlabelled(ArrayDataset):
    """Its labels' storage comes back when it was asked often enough."""

    tries: list[float] = []  # noqa: RUF012
    comes_back_at = 10**9

    def labels(self, sample_ids):
        self.tries.append(time.monotonic())
        if len(self.tries) < self.comes_back_at:
            raise OSError(errno.EIO, "Input/output error")
        return super().labels(sample_ids)


def test_labels_are_waited_for_as_views_are(caplog):
    def unlabelled(comes_back_at):
        kind = type("Unlabelled", (Unlabelled,), {"tries": [], "comes_back_at": comes_back_at})
        return kind("mount", {"x": np.zeros((3, 1))}, np.arange(3))

    assert labels_patiently(unlabelled(3), np.array([2, 0])).tolist() == [2, 0]
    assert caplog.text.count("the labels of dataset mount cannot be read ([Errno 5] Input/output error); trying") == 2
    with pytest.raises(DataUnavailable, match=r"labels of dataset mount cannot be read .* 1 s; bring it back and try"):
        labels_patiently(unlabelled(10**9), np.arange(3), seconds=0.8)
    stopped = threading.Event()
    stopped.set()
    with pytest.raises(DataUnavailable):
        labels_patiently(unlabelled(10**9), np.arange(3), stopped, seconds=60)


class Hiccup(ArrayDataset):
    """One whose second sample is a fault until it was asked for often enough."""

    tries: list[int] = []  # noqa: RUF012
    comes_back_at = 10**9

    def read(self, sample_ids):
        self.tries.append(len(sample_ids))
        if len(self.tries) >= self.comes_back_at:
            return super().read(sample_ids)
        return Samples({"x": np.zeros((2, 1))}, np.array([0, 2]), ((1, "cut short"),))


def test_a_sample_that_was_read_elsewhere_is_tried_again_before_it_is_a_fault(caplog):
    def hiccup(comes_back_at):
        kind = type("Hiccup", (Hiccup,), {"tries": [], "comes_back_at": comes_back_at})
        return Fetcher(kind("mount", {"x": np.zeros((3, 1))}, np.arange(3)), view_spec("none", {}))

    assert fetch_patiently(hiccup(3), np.arange(3), 0).faults == ((1, "cut short"),)
    assert fetch_patiently(hiccup(3), np.arange(3), 0, readable=True).faults == ()
    assert "dataset mount cannot be read (cut short); trying again" in caplog.text
    stays = hiccup(10**9)
    assert fetch_patiently(stays, np.arange(3), 0, seconds=0.8, readable=True).faults == ((1, "cut short"),)
    assert len(stays.dataset.tries) == 4  # after 0, 0.1, 0.3 and 0.7 s


def test_ten_faults_of_few_rows_are_single_samples_and_eleven_are_not():
    limit = FaultLimit()
    limit.add(0, 100, 10)
    with pytest.raises(BadSamples, match=r"^11 of the last 200 samples cannot be labelled: .*stopped before order 1$"):
        limit.add(1, 100, 1)


def test_old_rows_are_forgotten():
    limit = FaultLimit()
    for sequence in range(40):
        limit.add(sequence, 1_000, 9)
    limit.add(40, 1_000, 19)  # 100 of 10,000
    with pytest.raises(BadSamples, match="101 of the last 10000"):
        limit.add(41, 1_000, 10)


def test_who_writes_no_dead_letters_logs_what_is_left_out_and_says_why_it_stops(caplog):
    limit = FaultLimit("decoded")
    ids = np.arange(100, 200)
    limit.leave_out("birds", 3, ids, ((4, "cut short"),))
    assert [(one.levelno, one.getMessage()) for one in caplog.records] == [
        (logging.WARNING, "dataset birds: sample 104 is left out: cut short")
    ]
    with pytest.raises(BadSamples, match=r"11 of the last 200 samples cannot be decoded, the last because of: empty:"):
        limit.leave_out("birds", None, ids, tuple((row, "empty") for row in range(10)))
