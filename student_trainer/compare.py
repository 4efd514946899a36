"""Several runs side by side: their settings, their curves, and their students on one dataset.

Letters: R students, N samples of a batch, C classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.fault_limit import FaultLimit
from pipeline.progress import Progress
from pipeline.views.fetch import Fetched, Fetcher
from pipeline.views.patience import fetch_patiently
from schemas.errors import ConfigError
from schemas.records import ViewSpec
from student_trainer.evaluate import predictor, seen
from student_trainer.launch import trained_data
from student_trainer.run.differences import different_settings
from student_trainer.run.folder import read_settings
from student_trainer.run.metrics import Curves, curves
from student_trainer.run.peer_settings import FIRST
from student_trainer.run.settings import RunSettings
from student_trainer.run.summary import summary
from student_trainer.scores.classes import Classes
from student_trainer.trained import Trained, load_student


@dataclass(frozen=True, slots=True, eq=False)
class Compared:
    """What several students are on one dataset, in the runs' order, and of each in that of its [[peers]]."""

    dataset: str
    names: list[str]
    """Of the students: the run's, or RUN/PEER."""
    steps: list[int]
    """Of the checkpoints."""
    scores: list[dict[str, float]]
    """As `Classes` gives them, and num_samples."""
    agreement: list[list[float]]
    """R x R: on which share of the samples two students have the same likeliest class."""
    classes: list[dict[str, Any]]
    """Of each class with labels: class, name, samples, and [R] recall, the share of them that each student names."""

    def as_dict(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return {
            "dataset": self.dataset,
            "names": self.names,
            "steps": self.steps,
            "scores": self.scores,
            "agreement": self.agreement,
            "classes": self.classes,
        }


@dataclass(frozen=True, slots=True, eq=False)
class Comparison:
    """Runs side by side."""

    names: list[str]
    summaries: list[dict[str, Any]]
    """As `runs show` has them."""
    settings: dict[str, list[Any]]
    """key -> each run's value, where these differ"""
    curves: list[Curves]
    students: Compared | None
    """None: nobody asked."""

    def as_dict(self) -> dict[str, Any]:
        """Return it as JSON values, without the curves."""
        return {
            "runs": self.summaries,
            "settings": self.settings,
            "students": None if self.students is None else self.students.as_dict(),
        }


def compare_runs(
    paths: Sequence[Path], dataset: str | None = None, view: ViewSpec | None = None, *, students: bool = True
) -> Comparison:
    """Compare runs, which may be training meanwhile.

    Args:
        paths: of their folders.
        dataset: to evaluate all of them on; None: the one that all evaluate on.
        view: how its samples are seen; None: as each run sees them.
        students: whether the newest checkpoints are evaluated.

    Raises:
        ConfigError: no such run, one twice, no dataset that all evaluate on, or a student that does not give a sample
            one row of classes.
        CheckpointError: a run has no whole checkpoint.
        NotFinite: a student gives NaN or infinity.
        DataUnavailable: the dataset cannot be read now.
    """
    names = [path.name for path in paths]
    for path in paths:
        if sum(other.resolve() == path.resolve() for other in paths) > 1:
            raise ConfigError(f"run {path.name!r} is named twice; name each once")
    settings = [read_settings(path) for path in paths]
    found = Comparison(
        names,
        [summary(path) for path in paths],
        different_settings(settings),
        [curves(path / "metrics.jsonl") for path in paths],
        _students(_trained(dict(zip(paths, settings, strict=True))), dataset, view) if students else None,
    )
    return found


def _trained(runs: Mapping[Path, RunSettings]) -> dict[str, Trained]:
    """All students of runs, by name."""
    return {
        path.name if peer == FIRST else f"{path.name}/{peer}": load_student(path, peer)
        for path, settings in runs.items()
        for peer in settings.of_peers()
    }


def _students(by_name: Mapping[str, Trained], dataset: str | None, view: ViewSpec | None) -> Compared:
    trained = list(by_name.values())
    uris = {each.settings.name: each.settings.evaluation.dataset for each in trained}
    if dataset is None and (len(set(uris.values())) > 1 or not all(uris.values())):
        said = ", ".join(f"{name} on {uri or 'none'}" for name, uri in uris.items())
        raise ConfigError(f"these runs are not evaluated on one dataset ({said}): give one with --dataset")
    uri = dataset or next(iter(uris.values()))
    batch = min(each.settings.evaluation.batch_size for each in trained)
    fetchers = [_fetcher(each, uri, view) for each in trained]
    predict = [predictor(each.outputs, each.network.fields) for each in trained]
    metrics = [Classes() for _ in trained]
    counts = _Counts(len(trained))
    num_samples, faults = fetchers[0].dataset.num_samples, FaultLimit("decoded")
    with Progress(title=f"comparing on {uri}", after=2.0) as progress:
        for start in range(0, num_samples, batch):
            progress.update(samples=start)
            sample_ids = np.arange(start, min(start + batch, num_samples))
            fetched = _fetched(fetchers, [each.settings.student.size for each in trained], sample_ids)
            faults.leave_out(uri, None, sample_ids, fetched[0].faults)
            guesses = []
            for one, metric, fetcher, views in zip(predict, metrics, fetchers, fetched, strict=True):
                if not len(views.kept_rows):
                    continue
                batch_seen = seen(fetcher, sample_ids, views, one(views.inputs))
                metric.update(batch_seen)
                guesses.append(batch_seen.output("").argmax(axis=1))
            if guesses:
                counts.add(guesses, fetched[0].labels)
    names = fetchers[0].dataset.class_names
    for fetcher in fetchers:
        fetcher.close()
    scores = [{"num_samples": counts.num_samples, **metric.compute()} for metric in metrics]
    return Compared(
        uri, list(by_name), [each.step for each in trained], scores, counts.agreement(), counts.classes(names)
    )


def _fetcher(trained: Trained, uri: str, view: ViewSpec | None) -> Fetcher:
    """Open the dataset as a run sees it, and see that it is what its student takes."""
    fetcher, _ = trained_data(trained, uri, view, 1)
    return fetcher


def _fetched(
    fetchers: Sequence[Fetcher], sizes: Sequence[tuple[int, ...]], sample_ids: NDArray[np.int64]
) -> list[Fetched]:
    """Return each run's views of the samples that all of them can see; equal views are fetched once."""
    kept: dict[tuple[object, ...], Fetched] = {}
    found = []
    for fetcher, size in zip(fetchers, sizes, strict=True):
        key = fetcher.view.name, tuple(sorted(fetcher.view.params.items())), size
        if key not in kept:
            kept[key] = fetch_patiently(fetcher, sample_ids, 0, size)
        found.append(kept[key])
    faults = {row: why for each in kept.values() for row, why in each.faults}
    return [_without(each, faults) for each in found]


def _without(fetched: Fetched, faults: Mapping[int, str]) -> Fetched:
    """Return what was fetched but for these rows, which are told as faults."""
    left = np.flatnonzero(~np.isin(fetched.kept_rows, list(faults)))
    inputs = fetched.inputs
    if len(left) < len(fetched.kept_rows):
        inputs = {name: values[left] for name, values in inputs.items()}
    return Fetched(inputs, fetched.labels[left], fetched.kept_rows[left], tuple(sorted(faults.items())))


class _Counts:
    """On which samples students name the same class, and the right one; whole numbers, so no batch size matters."""

    def __init__(self, num_runs: int) -> None:
        self.num_samples = 0
        self._same = np.zeros((num_runs, num_runs), np.int64)
        self._labelled = np.zeros(0, np.int64)
        """[C]"""
        self._hits = np.zeros((num_runs, 0), np.int64)
        """[R, C]"""

    def add(self, guesses: Sequence[NDArray[np.int64]], labels: NDArray[np.int64]) -> None:
        """Count a batch: of each run [N] guesses, and [N] labels, -1 where there is none."""
        named = np.stack(guesses)
        self.num_samples += named.shape[1]
        self._same += (named[:, None] == named[None]).sum(axis=2)
        known = labels >= 0
        width = max(len(self._labelled), int(labels.max(initial=-1)) + 1)
        self._labelled = np.bincount(labels[known], minlength=width) + _wide(self._labelled, width)
        hits = [np.bincount(labels[known & (each == labels)], minlength=width) for each in named]
        self._hits = np.stack(hits) + _wide(self._hits, width)

    def agreement(self) -> list[list[float]]:
        """R x R shares of all samples."""
        shares: list[list[float]] = (self._same / max(1, self.num_samples)).tolist()
        return shares

    def classes(self, names: Sequence[str]) -> list[dict[str, Any]]:
        """Each class with labels."""
        return [
            {
                "class": number,
                "name": names[number] if number < len(names) else "",
                "samples": int(count),
                "recall": (self._hits[:, number] / count).tolist(),
            }
            for number, count in enumerate(self._labelled)
            if count
        ]


def _wide(counts: NDArray[np.int64], width: int) -> NDArray[np.int64]:
    """Return [..., C] counts with zeros behind, so that there are `width`."""
    return np.pad(counts, [(0, 0)] * (counts.ndim - 1) + [(0, width - counts.shape[-1])])
