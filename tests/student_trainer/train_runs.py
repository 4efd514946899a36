"""Small runs on the digits, for tests of training."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipeline.datasets.base import Arrays, Ints
from pipeline.views.fetch import Fetched, Fetcher
from student_trainer.records import Progress
from student_trainer.run.folder import RunFolder
from student_trainer.run.settings import RunSettings, run_settings
from student_trainer.sources.base import OrderSource, Reporter
from student_trainer.sources.dataset import DatasetSource
from student_trainer.train import TrainResult, train


def digits_run(**sections: dict[str, Any]) -> RunSettings:
    """A run of 12 steps of 50 rows in orders of 64, with dropout and momentum; sections change single keys."""
    document: dict[str, Any] = {
        "name": "r",
        "source": "dataset",
        "data": {"dataset": "digits?split=train", "view": {"name": "affine", "rotation": 10.0}, "order_size": 64},
        "student": {"name": "mlp", "hidden": [16], "dropout": 0.2},
        "losses": [{"name": "cross_entropy"}],
        "optimizer": {"name": "sgd", "lr": 0.1, "momentum": 0.9},
        "schedule": {"name": "one_cycle"},
        "train": {"batch_size": 50, "steps": 12, "log_every": 3},
        "checkpoint": {"every": 5, "keep": 9},
    }
    for section, values in sections.items():
        document[section] = document.get(section, {}) | values
    return run_settings(document)


class Spoilt(Fetcher):
    """A fetcher whose views are changed in place by `spoil`, which gets the IDs of the rows."""

    def __init__(self, whole: Fetcher, spoil: Callable[[Ints, Arrays], None]) -> None:
        super().__init__(whole.dataset, whole.view)
        self._spoil = spoil

    def fetch(self, sample_ids: Ints, view_seed: int, size: tuple[int, ...] | None = None) -> Fetched:
        fetched = super().fetch(sample_ids, view_seed, size)
        self._spoil(sample_ids[fetched.kept_rows], fetched.inputs)
        return fetched


def run(
    path: Path,
    settings: RunSettings,
    source: OrderSource | None = None,
    reporter: Reporter | None = None,
    progress: Progress | None = None,
) -> TrainResult:
    """Start a run, or resume it where its folder exists."""
    resume = (path / "run.toml").exists()
    with RunFolder.open(path) if resume else RunFolder.create(path, settings) as folder:
        return train(settings, folder, source or DatasetSource(settings), reporter, progress, resume)
