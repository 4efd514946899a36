"""Metrics by name, those that an evaluation chooses, and all of them fed together.

A new one is a class of `Metric` and a line in METRICS.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial

import numpy as np

from schemas.errors import ConfigError, DataUnavailable, NotFinite
from student_trainer.run.choices import choose
from student_trainer.run.metric_settings import MetricSettings, parse_metric
from student_trainer.run.toml_tables import unknown
from student_trainer.scores.classes import Agreement, Classes
from student_trainer.scores.features import Features
from student_trainer.scores.neighbours import Neighbours
from student_trainer.scores.own import Own
from student_trainer.scores.positions import PositionNll
from student_trainer.scores.ranks import Spearman
from student_trainer.scores.seen import Metric, Seen
from student_trainer.scores.tags import Tags

logger = logging.getLogger(__name__)

METRICS: dict[str, Callable[..., Metric]] = {
    "classes": Classes,
    "agreement": Agreement,
    "position_nll": PositionNll,
    "features": Features,
    "neighbours": Neighbours,
    "spearman": Spearman,
    "tags": Tags,
}

_TAKEN = ("step", "num_samples", "num_labelled", "num_commonest")
"""Names of figures that say something of the whole evaluation, and are none of a user's."""


@dataclass(frozen=True, slots=True, eq=False)
class _Named:
    settings: MetricSettings
    metric: Metric

    def full(self, name: str) -> str:
        return f"{self.settings.key}.{name}" if self.settings.key else name


class Metrics:
    """What one evaluation measures: made for it, fed with each batch, then computed once."""

    def __init__(self, chosen: Sequence[MetricSettings]) -> None:
        """Make the metrics.

        Raises:
            ConfigError: an unknown metric or parameter, or two that give figures of one name.
        """
        self._all = [_Named(settings, _make(settings)) for settings in chosen]
        given: dict[str, str] = {}
        for each in self._all:
            for name in map(each.full, each.metric.gives):
                if name in given:
                    both = f"{given[name]} and {each.settings.title}"
                    raise ConfigError(f"metrics {both} both give {name!r}: give one a `key`")
                given[name] = each.settings.title

    @property
    def compare(self) -> tuple[MetricSettings, ...]:
        """Those that need a teacher."""
        return tuple(each.settings for each in self._all if each.metric.compares)

    def update(self, seen: Seen) -> None:
        """Feed all of them.

        Raises:
            ConfigError: one that does not fit what it is given; names it.
            NotFinite: the student or the teacher gives NaN or infinity.
        """
        for each in self._all:
            with _of(each.settings):
                each.metric.update(seen)

    def rehearse(self, seen: Seen) -> None:
        """Feed each of them the same batch, and see what users' own compute of it; of no use for others afterwards.

        What is not finite is no fault here: an untrained student may give it, and nothing is computed of it.

        Raises:
            ConfigError: as `update` and `compute`.
        """
        finite = all(np.isfinite(values).all() for values in seen.outputs.values())
        taken = {each.full(name) for each in self._all for name in each.metric.gives}
        for each in self._all:
            with suppress(NotFinite), _of(each.settings):
                each.metric.update(seen)
            if finite and not each.metric.gives:
                taken |= _figures(each, taken).keys()

    def compute(self) -> dict[str, float]:
        """Return all figures by their names.

        Raises:
            ConfigError: what a user's metric gives is no figure, or has the name of another.
        """
        scores: dict[str, float] = {}
        for each in self._all:
            scores |= _figures(each, scores)
        return scores


def _figures(each: _Named, taken: Collection[str]) -> dict[str, float]:
    """What a metric computes, by full names, none of which are taken."""
    with _of(each.settings):
        given = {each.full(name): value for name, value in each.metric.compute().items()}
    for name in given:
        if name in taken or (name in _TAKEN and name not in each.metric.gives):
            raise ConfigError(f"metric {each.settings.title} gives {name!r}, which is taken: give it a `key`")
    return given


def _make(settings: MetricSettings) -> Metric:
    name = settings.name
    make = choose("[[evaluation.metrics]]", "metric", name, METRICS, lambda found: partial(Own, found, settings.params))
    with _of(settings):
        return _with(make, settings) if name in METRICS else make()


@contextmanager
def _of(settings: MetricSettings) -> Iterator[None]:
    """Say whose an error is."""
    try:
        yield
    except (ConfigError, DataUnavailable) as error:
        raise type(error)(f"metric {settings.title}: {error}") from error


def _with(make: Callable[..., Metric], settings: MetricSettings) -> Metric:
    """One of ours, all parameters of which are texts."""
    parameters = inspect.signature(make).parameters
    for key, value in settings.params.items():
        if key not in parameters:
            raise ConfigError(unknown("key", key, {"name", "key", *parameters}))
        if not isinstance(value, str):
            raise ConfigError(f"{key} must be a text, is {value!r}")
    for key, parameter in parameters.items():
        if parameter.default is parameter.empty and key not in settings.params:
            raise ConfigError(f"{key!r} is missing")
    return make(**settings.params)


def default_metrics(has_teacher: bool) -> tuple[MetricSettings, ...]:
    """What is measured where nobody says it: of a student of classes, and against a teacher of classes."""
    return (MetricSettings("classes"), *((MetricSettings("agreement"),) if has_teacher else ()))


def without_teacher(chosen: Sequence[MetricSettings]) -> tuple[MetricSettings, ...]:
    """Return those of a run's metrics that need no teacher; a warning names the others.

    Raises:
        ConfigError: as `Metrics`.
    """
    compare = Metrics(chosen).compare
    if compare:
        logger.warning(
            "[[evaluation.metrics]] %s: measured beside a teacher alone, `distillog runs evaluate --teacher FILE`",
            ", ".join(each.title for each in compare),
        )
    return tuple(each for each in chosen if each not in compare)


def with_teacher(chosen: Sequence[MetricSettings], of_classes: str) -> tuple[MetricSettings, ...]:
    """Return metrics for a student beside a teacher: where none of them compares, `agreement` with its `of_classes`.

    Raises:
        ConfigError: that is needed, and the teacher has no output of a row of classes (""); or as `Metrics`.
    """
    if Metrics(chosen).compare:
        return tuple(chosen)
    if not of_classes:
        raise ConfigError(
            "--teacher: no output gives a sample one row of classes, which the student's is held to; say what is "
            "compared with --metric, such as 'features?on=hidden&against=hidden'"
        )
    return (*(chosen or default_metrics(False)), MetricSettings("agreement", params={"against": of_classes}))


def asked_metrics(texts: Sequence[str], own: Sequence[MetricSettings], has_teacher: bool) -> tuple[MetricSettings, ...]:
    """Return the metrics that `runs evaluate` was asked for; () where nobody says which.

    Args:
        texts: of `--metric`: a metric of the run by its title, or `NAME[?KEY=VALUE&...]`.
        own: the run's metrics, which are taken where there is no text.
        has_teacher: whether there is one to compare with.

    Raises:
        ConfigError: a metric that needs a teacher where there is none, a teacher that no metric needs, or as `Metrics`.
    """
    if not texts:
        chosen = tuple(own) if has_teacher else without_teacher(own)
        if own and not chosen:
            raise ConfigError("all metrics of the run compare with a teacher: name its file with --teacher")
        return chosen
    titles = {each.title: each for each in own}
    chosen = tuple(titles.get(text) or parse_metric(text) for text in texts)
    compare = Metrics(chosen).compare
    if compare and not has_teacher:
        raise ConfigError(f"--metric {compare[0].title} compares with a teacher: name its file with --teacher")
    if has_teacher and not compare:
        raise ConfigError("--teacher: none of these metrics compares with it; add --metric agreement, or features")
    return chosen
