"""Whether a teacher is fed as it was trained: its accuracy as declared, against that of other ways to feed it.

Letters: N samples that were looked at, C classes.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from math import comb

import numpy as np
import numpy.typing as npt

from pipeline.chance import chance_level
from pipeline.datasets.base import Dataset, Ints, once_readable
from pipeline.datasets.fingerprint import content_ids
from pipeline.fault_limit import LIMIT
from pipeline.hashing import hash64, tag
from pipeline.user_code import one_line
from pipeline.views.fetch import Fetched, Fetcher
from schemas.class_maps import mapped_labels
from schemas.codecs import CodecSpec
from schemas.errors import BadSamples, StreamConflict, TeacherRejected
from schemas.records import TeacherInput, TeacherOutput
from schemas.softmax import LEAST_LOG_PROB, log_softmax
from teacher_service.models.alternatives import alternatives
from teacher_service.models.labels import unstorable
from teacher_service.models.session import OnnxTeacher

NUM_SAMPLES = 256
"""Looked at, of a dataset that has as many; of those with a label, where there are labels."""
CLEAR_GAIN = 0.05
"""Share of the samples that another way must get right beyond the declared one to be called clearly better."""
CLEAR_CHANCE = 1e-4
"""And the greatest chance of a gain like that if the two were equally good."""

_FEW = 20
_NEARLY_ALL = 0.9
_SECONDS = 20.0
"""For the declared way, and once more for all others together; one batch of the first is always looked at."""
_ROWS = 16
"""In a batch, where the model leaves it open."""
_TAG = tag("assess")


@dataclass(frozen=True, slots=True, eq=False)
class Way:
    """How a model did when fed in one way."""

    inputs: tuple[TeacherInput, ...]
    guesses: Ints
    """[N] int64 likeliest of the stored classes, -1 where an output cannot be stored: there is no label of that"""
    confidence: npt.NDArray[np.float64]
    """[N] probability of that class"""
    likelihood: npt.NDArray[np.float64]
    """[N] log-probability of the label; 0 where there is none"""
    labels: Ints
    """[N] int64 among the stored classes, -1 = unlabelled, or of a class that the teacher does not have"""
    num_chosen: Mapping[str, int] = field(default_factory=dict)
    """Output per position -> how many positions of the samples are labelled."""

    @property
    def num_samples(self) -> int:
        """N"""
        return len(self.labels)

    @property
    def num_unfit(self) -> int:
        """Of the N, those that give no label."""
        return int((self.guesses < 0).sum())

    @property
    def hits(self) -> npt.NDArray[np.bool_]:
        """[N]"""
        hits: npt.NDArray[np.bool_] = (self.guesses == self.labels) & (self.labels >= 0)
        return hits

    @property
    def accuracy(self) -> float | None:
        """Of the labelled samples; None without any."""
        num_labelled = int((self.labels >= 0).sum())
        return float(self.hits.sum() / num_labelled) if num_labelled else None

    @property
    def at_chance(self) -> bool:
        """Whether it is no better than always naming the commonest class of the labelled samples."""
        labels = self.labels[self.labels >= 0]
        return self.accuracy is not None and bool(
            chance_level(self.accuracy, int(np.bincount(labels).max()), len(labels))
        )

    @property
    def num_classes_used(self) -> int:
        """Classes that are some sample's likeliest."""
        return len(np.unique(self.guesses[self.guesses >= 0]))

    @property
    def commonest(self) -> tuple[int, float]:
        """The class that is guessed most often, and of which share of the N; (-1, 0.0) where no output is finite."""
        classes, counts = np.unique(self.guesses[self.guesses >= 0], return_counts=True)
        if not len(classes):
            return -1, 0.0
        return int(classes[counts.argmax()]), float(counts.max() / len(self.guesses))

    def first(self, count: int) -> Way:
        """Return the way on its first samples."""
        return Way(
            self.inputs, self.guesses[:count], self.confidence[:count], self.likelihood[:count], self.labels[:count]
        )


@dataclass(frozen=True, slots=True, eq=False)
class Assessment:
    """What came of looking at a teacher."""

    declared: Way
    others: tuple[Way, ...]
    """The other ways that were tried, on samples of their own number; none where the declared one leaves no room."""
    in_time: bool
    """Whether all samples were looked at in all ways."""
    has_classes: bool = True
    """Whether an output gives a sample one row of classes: without it no way is better than another."""

    @property
    def better(self) -> Way | None:
        """The best of those ways that are clearly better than the declared one, and than no model at all."""
        found = [
            way
            for way in self.others
            if not way.at_chance and clearly_better(self.declared.first(way.num_samples), way)
        ]
        return max(found, key=lambda way: (way.accuracy or 0.0, float(way.likelihood.mean())), default=None)

    @property
    def has_holes(self) -> bool:
        """Whether more samples than workers put up with give no label as declared."""
        return self.declared.num_unfit > LIMIT * self.declared.num_samples

    @property
    def degenerate(self) -> bool:
        """Whether the declared way gives one class to nearly all samples, which only labels could explain."""
        return (
            self.has_classes
            and self.declared.accuracy is None
            and self.declared.num_samples >= _FEW
            and self.declared.commonest[1] >= _NEARLY_ALL
        )


def assess(
    model: OnnxTeacher, codec: CodecSpec, fetcher: Fetcher, view_seed: int, seconds: float = _SECONDS
) -> Assessment:
    """Feed some samples of the dataset to the model as its record says, and in other ways.

    A teacher without classes is only looked at for what cannot be stored. Without labels all ways are shown; with them
    no other is tried where the declared one is right too often for another to be clearly better, and oftener than
    always naming the commonest class would be. Only how many samples are looked at depends on the clock.

    Args:
        model: the teacher.
        codec: the stream's.
        fetcher: the dataset.
        view_seed: of the views that it is fed.
        seconds: for the declared way, and once more for all others.

    Raises:
        StreamConflict: a label beyond the teacher's classes.
        TeacherRejected: the model fails on a sample.
        BadSamples, DataUnavailable: the dataset cannot be decoded, or not read.
    """
    inputs = model.teacher.inputs
    rows = model.fixed_batch or min(model.teacher.inference_batch, _ROWS)
    with once_readable(fetcher.dataset.uri):
        classes = model.teacher.class_output
        ids = some_samples(fetcher.dataset, NUM_SAMPLES, classes.class_map if classes else ())
        begun = time.monotonic()
        (declared,), num_read = _feed(model, codec, [inputs], fetcher, ids, view_seed, rows, seconds)
        per_sample = (time.monotonic() - begun) / num_read
        in_time = num_read == len(ids)
        if not declared.num_samples:
            raise BadSamples(
                f"dataset {fetcher.dataset.uri}: none of the samples that the teacher was tried on can be decoded"
            )
        if classes is None:
            return Assessment(declared, (), in_time, has_classes=False)
        _refuse_labels(model, classes, fetcher.dataset, declared)
        if declared.accuracy is not None and declared.accuracy > 1 - CLEAR_GAIN and not declared.at_chance:
            return Assessment(declared, (), in_time)
        ways = alternatives(inputs, fetcher.fetch(ids[:rows], view_seed, model.size, mix=False).inputs)
        if not ways:
            return Assessment(declared, (), in_time)
        fitting = int(seconds / (per_sample * len(ways)))
        if model.fixed_batch is None:
            rows = max(1, min(rows, fitting))
        elif fitting < rows:
            return Assessment(declared, (), False)
        others, num_tried = _feed(model, codec, ways, fetcher, ids[:num_read], view_seed, rows, seconds)
    return Assessment(declared, tuple(others), num_tried == len(ids))


def some_samples(dataset: Dataset, count: int, class_map: tuple[int, ...] = ()) -> Ints:
    """Return rising IDs, hashed over the dataset: of labelled samples where there are any, as many of each class.

    With a class map, of a class that it has.

    Among samples as they come, a class of 3 % would have seven of 256: too few to tell a model that never names it from
    one that does, beyond chance. A class that has fewer than its part is there with all that it has.
    """
    ids = content_ids(dataset.num_samples)
    labels = mapped_labels(dataset.labels(ids), class_map)
    if (labels >= 0).any():
        ids, labels = ids[labels >= 0], labels[labels >= 0]
    hashed = np.argsort(hash64(_TAG, ids), kind="stable")
    ids, labels = ids[hashed], labels[hashed]
    by_class = np.argsort(labels, kind="stable")
    _, first, class_of = np.unique(labels[by_class], return_index=True, return_inverse=True)
    turn = np.empty(len(ids), np.int64)  # how many of its class are taken before it
    turn[by_class] = np.arange(len(ids)) - first[class_of]
    return np.sort(ids[np.argsort(turn, kind="stable")[:count]])


def clearly_better(declared: Way, other: Way) -> bool:
    """Compare two ways on the same samples: by how much more is right, and by chance (McNemar's exact test)."""
    if declared.accuracy is None or other.accuracy is None:
        return False
    gained = int((other.hits & ~declared.hits).sum())
    lost = int((declared.hits & ~other.hits).sum())
    if gained - lost < CLEAR_GAIN * int((declared.labels >= 0).sum()):
        return False
    unequal = gained + lost
    chance: float = sum(comb(unequal, more) for more in range(gained, unequal + 1)) / 2**unequal
    return chance < CLEAR_CHANCE


def _feed(
    model: OnnxTeacher,
    codec: CodecSpec,
    ways: list[tuple[TeacherInput, ...]],
    fetcher: Fetcher,
    ids: Ints,
    view_seed: int,
    rows: int,
    seconds: float,
) -> tuple[list[Way], int]:
    """Run the model in several ways on the same samples, batch by batch; another way that fails is left out.

    Returns:
        The ways, and how many of the IDs were read before the time was up.
    """
    found: dict[int, list[Way]] = {place: [] for place in range(len(ways))}
    num_read = 0
    for fetched in _batches(fetcher, ids, view_seed, model.size, rows, seconds):
        num_read += rows
        for place in list(found):
            try:
                found[place].append(_way(model.fed_as(ways[place], rows), codec, fetched))
            except Exception as error:  # ONNX Runtime's exceptions have no common base
                if ways[place] == model.teacher.inputs:
                    raise TeacherRejected(f"{model.path}: fails on some samples: {one_line(error)}") from None
                del found[place]  # a layout that the model does not take
    return [_joined(parts) for parts in found.values() if parts], min(num_read, len(ids))


def _batches(
    fetcher: Fetcher, ids: Ints, view_seed: int, size: tuple[int, ...] | None, rows: int, seconds: float
) -> Iterator[Fetched]:
    """Yield batches while the next one, if it takes as long as the last, ends in time; the first in any case."""
    begun = before = time.monotonic()
    for start in range(0, len(ids), rows):
        yield fetcher.fetch(ids[start : start + rows], view_seed, size, mix=False)  # else most have no one label
        now = time.monotonic()
        if now - begun + (now - before) > seconds:
            return
        before = now


def _way(model: OnnxTeacher, codec: CodecSpec, fetched: Fetched) -> Way:
    teacher, given = model.teacher, model.label(fetched.inputs)
    sound = np.ones(len(fetched.kept_rows), np.bool_)
    counts = model.num_positions(fetched.inputs)
    sound[list(unstorable(teacher, codec, given, counts))] = False
    num_chosen = {name: int(each.sum()) for name, each in counts.items()}
    if teacher.class_output is None:
        nothing = np.zeros(len(sound))
        return Way(teacher.inputs, np.where(sound, 0, -1), nothing, nothing, np.full(len(sound), -1), num_chosen)
    name = teacher.class_output.name
    logits = model.rebuilt({name: given[name]})[name]
    log_probs = log_softmax(np.where(sound[:, None], logits, np.float32(0.0)))
    rows, labels = np.arange(len(logits)), mapped_labels(fetched.labels, teacher.class_output.class_map)
    known = sound & (labels >= 0) & (labels < logits.shape[1])
    likelihood = log_probs[rows, np.where(known, labels, 0)]
    likelihood = np.where(known, likelihood, np.where(labels >= 0, LEAST_LOG_PROB, 0.0))
    best = log_probs.argmax(axis=1)
    guesses = np.where(sound, best, -1)
    confidence = np.where(sound, np.exp(log_probs[rows, best]), 0.0)
    return Way(model.teacher.inputs, guesses, confidence, likelihood, labels, num_chosen)


def _joined(parts: list[Way]) -> Way:
    return Way(
        parts[0].inputs,
        np.concatenate([part.guesses for part in parts]),
        np.concatenate([part.confidence for part in parts]),
        np.concatenate([part.likelihood for part in parts]),
        np.concatenate([part.labels for part in parts]),
        {name: sum(part.num_chosen[name] for part in parts) for name in parts[0].num_chosen},
    )


def _refuse_labels(model: OnnxTeacher, output: TeacherOutput, dataset: Dataset, way: Way) -> None:
    highest, num_classes = int(way.labels.max()), output.codec_classes
    if highest >= num_classes:
        raise StreamConflict(
            f"dataset {dataset.uri} has a sample of class {highest}, {model.path} gives {num_classes} classes; "
            "number the classes as the teacher does"
        )
