"""A run file as frozen dataclasses: what a student is, what it learns from and how.

Each section of the TOML file is a dataclass below, each key one of its fields; `[student]`, `[optimizer]`,
`[schedule]`, `[[losses]]` and `data.view` take the further parameters of whatever they name.
"""

from __future__ import annotations

import hashlib
import json
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import tomli_w

from pipeline.captured.urls import is_url, refuse_secrets
from pipeline.datasets.uri import absolute
from pipeline.limits import MAX_SECONDS, MAX_THREADS
from pipeline.user_files import refuse_irregular
from schemas.errors import ConfigError
from schemas.names import check_name
from student_trainer.run.choices import Choice
from student_trainer.run.loss_settings import LossSettings
from student_trainer.run.metric_settings import MetricSettings
from student_trainer.run.optimizer_settings import OptimizerSettings
from student_trainer.run.peer_settings import FIRST, PeerSettings
from student_trainer.run.publish_settings import PublishSettings
from student_trainer.run.spans import Span
from student_trainer.run.student_settings import StudentSettings
from student_trainer.run.toml_tables import build, flatten, override, unknown

SOURCES = ("stream", "files", "dataset")
DEVICES = ("auto", "cpu", "cuda")
PRECISIONS = ("float32", "bf16", "fp16")


def _check(holds: bool, text: str) -> None:
    if not holds:
        raise ConfigError(text)


def _one_of(key: str, value: str, known: Sequence[str]) -> None:
    _check(value in known, unknown(key, value, known))


def _each_once(section: str, titles: Sequence[str]) -> None:
    for title in titles:
        _check(titles.count(title) == 1, f"{section} two are called {title!r}: give one a `key` of its own")


@dataclass(frozen=True, slots=True)
class DataSettings:
    """`[data]`: which samples, views and labels."""

    stream: str = ""
    """The stream to read (source = "stream"); with files: whose they are to be."""
    files: str = ""
    """Folder of captured soft targets, or its URL (source = "files")."""
    dataset: str = ""
    """Dataset URI, e.g. `digits?split=train`; with a stream: where the same data lies, if not at the manifest's URI."""
    view: Choice = field(default_factory=lambda: Choice("none"))
    """The augmentation (source = "dataset"; a stream's manifest says its own)."""
    order_size: int = 256
    """Samples in an order (source = "dataset")."""
    epochs: int = 0
    """Epochs of the sequence (source = "dataset"); 0: as many as the steps need."""
    seed: int = 0
    """Seed of the permutation and the views (source = "dataset")."""
    labelled: int | None = None
    """Label budget: how many samples show their true label, stratified by class; left out: all."""
    label_seed: int = 0
    """Which samples those are."""
    only_labelled: bool = False
    """Train on the labelled samples alone (source = "dataset"): the hard-label baseline."""

    def __post_init__(self) -> None:
        _check(self.order_size >= 1, f"order_size must be at least 1, is {self.order_size}")
        _check(self.epochs >= 0, f"epochs must not be negative, is {self.epochs}")
        _check(self.labelled is None or self.labelled >= 0, f"labelled must not be negative, is {self.labelled}")


@dataclass(frozen=True, slots=True)
class TeacherSettings:
    """`[[teachers]]`: one of the stream's teachers."""

    name: str
    """Its name in the stream."""
    weight: float = 1.0
    """Its share of every soft loss, relative to the other teachers' weights."""
    from_: int | None = None
    """The first order in which it counts, by its sequence; left out: 0."""
    until: int | None = None
    """The first order in which it counts no more; left out: there is none."""
    max_age: int | None = None
    """By how many generations its labels may be behind: older ones leave their rows out; left out: by any number."""

    def __post_init__(self) -> None:
        check_name("teacher", self.name)
        _check(self.max_age is None or self.max_age >= 0, f"max_age must not be negative, is {self.max_age}")
        _check(self.weight > 0, f"weight must be positive, is {self.weight}")
        _check(self.span.first >= 0, f"from must not be negative, is {self.from_}")
        _check(
            self.until is None or self.until > self.span.first,
            f"until {self.until} must be above from, which is {self.span.first}: it counts in no order",
        )

    @property
    def span(self) -> Span:
        """The orders in which it counts."""
        return Span(self.from_ or 0, self.until)


@dataclass(frozen=True, slots=True)
class TrainSettings:
    """`[train]`: the loop."""

    batch_size: int
    """Rows in a step; needs not fit the order size."""
    micro_batch: int | None = None
    """The most of them that go through the student at once, where memory is short: gradients add up; left out: all."""
    steps: int = 0
    """Optimiser steps; 0: as many full batches as the passes hold."""
    passes: int = 1
    """How many times the run may go over its stream."""
    precision: str = "float32"
    """float32, bf16 or fp16 (mixed precision; fp16 needs CUDA)."""
    threads: int = 1
    """PyTorch's threads; another number gives other bits, so a run keeps its own."""
    seed: int = 0
    """Seed of the weights and of dropout."""
    ema: float | None = None
    """Decay of a moving average of the weights, which is evaluated and exported; left out: the weights are."""
    device: str = "auto"
    """auto (CUDA where there is one), cpu or cuda."""
    log_every: int = 50
    """Steps between two lines of metrics."""
    prefetch: int = 8
    """Batches that lie ready for the training thread."""
    loaders: int = 1
    """Threads that read and view samples; no result depends on it."""
    loader_processes: bool = False
    """Whether these are processes instead."""
    trace: bool = False
    """Write what each step trained on to trace.jsonl."""

    def __post_init__(self) -> None:
        for key in ("batch_size", "micro_batch", "passes", "threads", "log_every", "prefetch", "loaders"):
            value = getattr(self, key)
            _check(value is None or value >= 1, f"{key} must be at least 1, is {value}")
        _check(self.steps >= 0, f"steps must not be negative, is {self.steps}")
        _check(0 <= self.seed < 1 << 63, f"seed must be in [0, 2^63), is {self.seed}")
        _check(self.ema is None or 0 < self.ema < 1, f"ema must be above 0 and below 1, is {self.ema}")
        for key in ("threads", "loaders"):
            value = getattr(self, key)
            _check(value <= MAX_THREADS, f"{key} must be at most {MAX_THREADS} here, is {value}")
        wanted = f"loader_processes must be true or false, is {self.loader_processes!r}"
        _check(isinstance(self.loader_processes, bool), wanted)
        _one_of("precision", self.precision, PRECISIONS)
        _one_of("device", self.device, DEVICES)


@dataclass(frozen=True, slots=True)
class EvaluationSettings:
    """`[evaluation]`: a dataset of its own."""

    dataset: str = ""
    """Dataset URI; left out: no evaluation."""
    view: Choice | None = None
    """How its samples are seen; left out: the training view without its randomness."""
    every: int = 0
    """Steps between two evaluations; 0: only at the end."""
    batch_size: int = 500
    """Samples at once."""
    metrics: tuple[MetricSettings, ...] = ()
    """What is measured; left out: `classes`, of a student that learns them."""

    def __post_init__(self) -> None:
        _check(self.every >= 0, f"every must not be negative, is {self.every}")
        _check(self.batch_size >= 1, f"batch_size must be at least 1, is {self.batch_size}")
        _each_once("[[evaluation.metrics]]", [metric.title for metric in self.metrics])


@dataclass(frozen=True, slots=True)
class CheckpointSettings:
    """`[checkpoint]`."""

    every: int = 500
    """Steps between two checkpoints; 0: only at the end."""
    keep: int = 3
    """How many of the newest stay on disk."""

    def __post_init__(self) -> None:
        _check(self.every >= 0, f"every must not be negative, is {self.every}")
        _check(self.keep >= 1, f"keep must be at least 1, is {self.keep}")


@dataclass(frozen=True, slots=True)
class StarveSettings:
    """`[starve]`: what happens while no label comes."""

    warning: float = 30.0
    """Seconds until the run says what it waits for."""
    timeout: float = 600.0
    """Seconds until it writes a checkpoint and stops with exit code 3."""

    def __post_init__(self) -> None:
        for key in ("warning", "timeout"):
            value = getattr(self, key)
            _check(0 < value <= MAX_SECONDS, f"{key} must be positive and at most {MAX_SECONDS:g} s, is {value}")


@dataclass(frozen=True, slots=True)
class RunSettings:
    """A run file."""

    name: str
    """The run's name: its folder, and with a stream its consumer group."""
    student: StudentSettings
    losses: tuple[LossSettings, ...]
    train: TrainSettings
    source: str = "stream"
    """stream: soft targets from Kafka; files: the same as `distillog capture` stored them; dataset: the same sequence
    and views without any teacher."""
    data: DataSettings = field(default_factory=DataSettings)
    teachers: tuple[TeacherSettings, ...] = ()
    peers: tuple[PeerSettings, ...] = ()
    optimizer: OptimizerSettings = field(default_factory=OptimizerSettings)
    schedule: Choice = field(default_factory=lambda: Choice("constant"))
    evaluation: EvaluationSettings = field(default_factory=EvaluationSettings)
    checkpoint: CheckpointSettings = CheckpointSettings()
    starve: StarveSettings = StarveSettings()
    publish: PublishSettings | None = None

    def __post_init__(self) -> None:
        check_name("run", self.name)
        _one_of("source", self.source, SOURCES)
        _check(bool(self.losses), "[[losses]] is empty; name at least one loss")
        _each_once("[[losses]]", [loss.title for loss in self.losses])
        if is_url(self.data.files):
            refuse_secrets(self.data.files)  # before they are stored in the run's folder
        names = [teacher.name for teacher in self.teachers]
        _check(len(set(names)) == len(names), f"[[teachers]] names one twice: {', '.join(names)}")
        _each_once("[[peers]]", [peer.name for peer in self.peers])
        alike = [(each.student, each.train.seed) for each in self.of_peers().values()]
        for number, each in enumerate(alike):
            _check(
                each not in alike[:number],
                f"[[peers]] {[FIRST, *(peer.name for peer in self.peers)][number]}: has the network and the seed of "
                "another: equal peers learn nothing from each other; give it another seed",
            )
        if self.publish is not None:
            peer, known = self.publish.peer or FIRST, self.of_peers()
            _check(self.source != "dataset", '[publish] needs source = "stream": a dataset has no teachers')
            _one_of("[publish] peer", peer, list(known))
            averaged = self.publish.weights != "average" or self.train.ema is not None
            _check(averaged, '[publish] weights = "average" needs [train] ema, which keeps it')
        if self.source in ("stream", "files"):
            what, named = self.source, "its name" if self.source == "stream" else "their folder"
            _check(bool(getattr(self.data, what)), f'[data] {what} is missing; source = "{what}" needs {named}')
            _check(bool(self.teachers), f'[[teachers]] is empty; source = "{what}" needs at least one')
            _check(not self.data.only_labelled, '[data] only_labelled needs source = "dataset"')
        else:
            _check(bool(self.data.dataset), '[data] dataset is missing; source = "dataset" needs a dataset URI')
            _check(not self.teachers, '[[teachers]] need source = "stream" or "files"; a dataset has none')
            _check(
                bool(self.train.steps or self.data.epochs), "[train] steps or [data] epochs must say how long it trains"
            )

    @property
    def bounds_age(self) -> bool:
        """Whether labels of some teacher may be too old."""
        return any(each.max_age is not None for each in self.teachers)

    def as_dict(self) -> dict[str, Any]:
        """Return the run file's tables, defaults filled in; plain values, so that JSON and TOML can hold them."""
        tables = flatten(self)
        assert isinstance(tables, dict)
        return tables

    def of_peers(self) -> dict[str, RunSettings]:
        """Return name -> the settings under which each student learns, [student] first; of one alone these."""
        found = {FIRST: self}
        for number, peer in enumerate(self.peers, 1):
            own = {key: getattr(self.student, key) for key in ("inputs", "size", "classes")}
            seed = (self.train.seed + number) % (1 << 63) if peer.seed is None else peer.seed
            found[peer.name] = replace(
                self, student=replace(peer.student, **own), train=replace(self.train, seed=seed), peers=(), publish=None
            )
        return found

    def placed(self) -> RunSettings:
        """Return the same with files and datasets' folders as absolute paths: whoever goes on may stand elsewhere."""
        files = self.data.files
        if files and not is_url(files):
            files = str(Path(files).absolute())
        return replace(
            self,
            student=self.student.placed(),
            data=replace(self.data, dataset=absolute(self.data.dataset), files=files),
            evaluation=replace(self.evaluation, dataset=absolute(self.evaluation.dataset)),
            publish=self.publish and self.publish.placed(),
        )

    def as_toml(self) -> str:
        """Return a run file that loads as these settings."""
        return tomli_w.dumps(self.as_dict())

    def sha256(self) -> str:
        """Return the hex SHA-256 over all settings."""
        return hashlib.sha256(json.dumps(self.as_dict(), sort_keys=True).encode()).hexdigest()


def run_settings(document: dict[str, Any], where: str = "run settings") -> RunSettings:
    """Make settings of a parsed run file; `where` begins the text of errors.

    Raises:
        ConfigError: an unknown or missing key, or a value that does not fit.
    """
    return build(RunSettings, document, where)


def load_run(path: Path | str, overrides: Sequence[str] = ()) -> RunSettings:
    """Read a run file and apply `section.key=value` overrides.

    Raises:
        ConfigError: in one line with file and key: as `read_document` and `run_settings`.
    """
    document = read_document(path)
    override(document, overrides)
    return run_settings(document, str(path))


def read_document(path: Path | str) -> dict[str, Any]:
    """Return the tables of a TOML file.

    Raises:
        ConfigError: no such file, no regular one, or no TOML.
    """
    refuse_irregular(path)
    try:
        return tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:  # TOML's own error is a ValueError, as that of an endless number is
        raise ConfigError(f"{path}: is not TOML: {error}") from None
