"""The trace: what each step learned from, once, however often the run went back to a checkpoint."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from train_runs import Spoilt, digits_run, run

from pipeline.datasets.base import Arrays, Ints
from schemas.errors import NotFinite, Starved
from student_trainer.run.settings import RunSettings
from student_trainer.sources.base import Cursor, LabelledOrder
from student_trainer.sources.dataset import DatasetSource


class Ending(DatasetSource):
    """Gives so many orders, then none."""

    def __init__(self, settings: RunSettings, num_orders: int) -> None:
        super().__init__(settings)
        self._num_orders = num_orders

    def orders(self, cursor: Cursor) -> Iterator[LabelledOrder]:
        for number, order in enumerate(super().orders(cursor)):
            if number == self._num_orders:
                raise Starved("no label came")
            yield order


class Poisoned(DatasetSource):
    """The fourth order's pixels are NaN."""

    def __init__(self, settings: RunSettings) -> None:
        super().__init__(settings)
        self.fetcher = Spoilt(self.fetcher, self._spoil)

    def _spoil(self, sample_ids: Ints, inputs: Arrays) -> None:
        inputs["image"][np.isin(sample_ids, self.sequence.sample_ids(3))] = np.nan


def traced(**train: Any) -> RunSettings:
    return digits_run(train={"trace": True} | train)


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (path / "trace.jsonl").read_text().splitlines()]


def test_a_trace_holds_every_row_once_and_in_order(tmp_path: Path) -> None:
    settings = traced()
    run(tmp_path / "r", settings)
    sequence = DatasetSource(settings).sequence
    trace = lines(tmp_path / "r")
    assert [line["step"] for line in trace] == list(range(1, 13))
    rows = [
        (pass_number, number, row + each)
        for line in trace
        for pass_number, number, row, count in line["orders"]
        for each in range(count)
    ]
    expected = [(0, number, row) for number in range(10) for row in range(64)][: 12 * 50]
    assert rows == expected
    ids = [int(sequence.sample_ids(number)[row]) for _, number, row in expected]
    assert [sample for line in trace for sample in line["samples"]] == ids


def test_a_run_that_went_back_to_a_checkpoint_has_the_trace_of_one_that_did_not(tmp_path: Path) -> None:
    run(tmp_path / "whole", traced())
    settings = traced()
    with pytest.raises(Starved):
        run(tmp_path / "r", settings, Ending(settings, 9))
    place = sorted((tmp_path / "r/checkpoints").iterdir())[-1]
    assert place.name == "step-00000011"
    for path in (place / "state.pt", place / "checkpoint.json"):
        path.unlink()  # so that it goes back to step 10, with steps in its trace that come again
    run(tmp_path / "r", settings)
    assert (tmp_path / "r/trace.jsonl").read_bytes() == (tmp_path / "whole/trace.jsonl").read_bytes()


@pytest.mark.parametrize("at_once", [True, False], ids=["looked at once", "looked at later"])
def test_a_step_that_was_not_taken_is_not_in_the_trace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at_once: bool
) -> None:
    for module in ("records", "learning.guard"):
        monkeypatch.setattr(f"student_trainer.{module}.looks_at_once", lambda device: at_once)
    settings = traced(log_every=12)
    with pytest.raises(NotFinite, match="step 4, "):
        run(tmp_path / "r", settings, Poisoned(settings))
    assert [line["step"] for line in lines(tmp_path / "r")] == [1, 2, 3]


def test_a_run_writes_no_trace_that_nobody_asked_for(tmp_path: Path) -> None:
    run(tmp_path / "r", digits_run())
    assert not (tmp_path / "r/trace.jsonl").exists()


def test_a_trace_that_is_asked_for_later_begins_there(tmp_path: Path) -> None:
    settings = digits_run()
    with pytest.raises(Starved):
        run(tmp_path / "r", settings, Ending(settings, 7))
    later = traced()
    run(tmp_path / "r", later)
    assert [line["step"] for line in lines(tmp_path / "r")] == [9, 10, 11, 12]
